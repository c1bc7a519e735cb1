//! A step that tells facts of the node: the agent itself looks, and what it finds is the step's output.

use std::sync::Arc;

use windlass_crds::facts::FactsStep;
use windlass_crds::protocol::{LogBody, RecordBody, Stream};
use windlass_sandbox::{EndReason, Exit, StreamEnd, Usage};

use super::step::StepRun;
use super::verdict::Verdict;
use crate::facts::Asked;

/// Bytes of output in one record, as for programs.
const CHUNK: usize = 64 << 10;

impl StepRun<'_> {
    /// Looks, and tells. Does the same again after a restart in the middle of it.
    pub(super) async fn tell_facts(&mut self, step: &FactsStep) -> Result<Exit, Verdict> {
        self.begin_without_unit().await?;
        let began = self.task.parts.clock.now();
        let parts = Arc::clone(&self.task.parts);
        let settings = parts.in_force.get().and_then(|applied| applied.configuration.facts.clone());
        let settings = settings.filter(|settings| settings.steps).ok_or_else(|| {
            let message = "refused by the node's rule facts.steps: the node tells no facts to jobs";
            Verdict::failed("PolicyRefused", message)
        })?;
        let asked = Asked::Job(&self.task.attempt().job);
        let mut control = self.task.control.clone();
        // Cancel-safe: looking can be dropped at any time, and the other only looks.
        let facts = tokio::select! {
            biased;
            _stopped = control.wait_for(|control| control.stop.is_some()) => {
                return Err(self.task.stopped().unwrap_or_else(|| {
                    Verdict::lost("AgentStopped", "the job was stopped on the node")
                }));
            }
            facts = parts.facts.collect(&settings, &step.include, asked) => facts,
        };
        let mut text =
            serde_json::to_string_pretty(&facts).expect("facts have only string keys and so become JSON");
        text.push('\n');
        let text = self.task.mask.text(text);
        // Facts may hold what the job was told in confidence, such as the environment of its containers.
        if !self.task.mask.is_nothing() {
            let message =
                "the facts are kept in the job's output only: the job has secrets, which are masked there";
            self.task.event("info", "FactsNotKept", message.to_owned());
        } else if !parts.facts_outbox.send(facts) {
            let message = "the facts are not kept beside the job's output: too much waits for the controller";
            self.task.event("warn", "FactsNotKept", message.to_owned());
        }
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
        let written = text.len() as u64;
        Ok(Exit {
            reason: EndReason::Exited,
            code: Some(0),
            signal: None,
            message: None,
            program_started: false,
            started_at_ms: Some(began.as_millisecond()),
            ended_at_ms: self.task.parts.clock.now().as_millisecond(),
            usage: Usage::default(),
            stdout: StreamEnd { bytes: written, ..StreamEnd::default() },
            stderr: StreamEnd::default(),
            proof: None,
            teardown: Vec::new(),
        })
    }
}
