//! Steps of which nothing runs in the sandbox: what the agent itself does for them has a time and an end, and is told as output.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use windlass_crds::protocol::worker_api::Truncated;
use windlass_crds::protocol::{LogBody, RecordBody, Stream};
use windlass_sandbox::{EndReason, Exit, StreamEnd, Usage};

use super::step::{Cut, StepRun};
use crate::worker_api::runs::Collector;

/// Bytes of output in one record, as for programs.
const CHUNK: usize = 64 << 10;

impl StepRun<'_> {
    /// When the step must have ended.
    pub(super) fn time_limit(&self) -> Instant {
        let left = self.task.left_of_job();
        // The wall clock carries it over a restart.
        let began = self.before.started_at.map_or(Duration::ZERO, |at| {
            Duration::try_from(self.task.parts.clock.now().duration_since(at)).unwrap_or_default()
        });
        let own = self.step.timeout.map(|span| span.get().saturating_sub(began));
        Instant::now() + own.map_or(left, |own| own.min(left))
    }

    /// Awaits something that can be dropped at any time, unless the attempt is stopped, its lease ends, or the time is over.
    pub(super) async fn within<T>(&self, limit: Instant, work: impl Future<Output = T>) -> Result<T, Cut> {
        let mut control = self.task.control.clone();
        // Cancel-safe: the first two only look, and whoever calls can do without the end of the third.
        tokio::select! {
            biased;
            verdict = self.task.stop_or_lease_end(&mut control) => Err(Cut::Stopped(verdict)),
            () = tokio::time::sleep_until(limit) => Err(Cut::Time),
            done = work => Ok(done),
        }
    }

    /// Makes a text the step's output, as if a program had written it and ended well.
    pub(super) async fn tell(&mut self, began: Timestamp, text: &str) -> Exit {
        let text = self.task.mask.text(text.to_owned());
        let mut offset = 0;
        while offset < text.len() {
            let end = text.floor_char_boundary((offset + CHUNK).min(text.len()));
            self.task.record(RecordBody::Log {
                step: self.index,
                stream: Stream::Stdout,
                offset: offset as u64,
                body: LogBody::Text(text[offset..end].to_owned()),
            });
            offset = end;
        }
        if self.task.entry.pushed {
            let mut collector = Collector::default();
            collector.take(Stream::Stdout, text.as_bytes());
            let output = collector.finish(Truncated::default());
            self.task.parts.runs.keep_output(self.task.attempt(), self.index, output).await;
        }
        let stdout = StreamEnd { bytes: text.len() as u64, ..StreamEnd::default() };
        Exit { stdout, ..self.ended(began, EndReason::Exited, Some(0)) }
    }

    /// The end of a step that took too long.
    pub(super) fn out_of_time(&self, began: Timestamp) -> Exit {
        let message = match self.step.timeout {
            Some(timeout) => format!("took longer than the step's timeout of {timeout}"),
            None => "took longer than was left of the job's time".to_owned(),
        };
        Exit { message: Some(message), ..self.ended(began, EndReason::Timeout, None) }
    }

    fn ended(&self, began: Timestamp, reason: EndReason, code: Option<i32>) -> Exit {
        Exit {
            reason,
            code,
            signal: None,
            message: None,
            program_started: false,
            started_at_ms: Some(began.as_millisecond()),
            ended_at_ms: self.task.parts.clock.now().as_millisecond(),
            usage: Usage::default(),
            stdout: StreamEnd::default(),
            stderr: StreamEnd::default(),
            proof: None,
            teardown: Vec::new(),
        }
    }
}
