//! The end of a unit: confirm that nothing is left, and tell how it was.

use std::time::Duration;

use futures::StreamExt;
use windlass_launcher::deadline::wall_ms;
use windlass_launcher::exit::{EndReason, Exit, Usage};
use windlass_launcher::frame::Stream;

use super::begin::{chain, remove};
use super::watch::{END_BOUND, Watch, is_over};
use crate::engine::ContainerState;

/// Between looks for the end of a container whose first process has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a container that was killed by others is looked at for being removed.
const REMOVAL: Duration = Duration::from_secs(1);
/// What an engine adds to a signal to make an exit code of it.
const SIGNALLED: i32 = 128;

impl Watch {
    /// Tells how a unit was whose first process has ended, or has not been seen.
    pub(super) async fn finish(mut self) -> Exit {
        let mut teardown = Vec::new();
        let last = tokio::time::timeout(END_BOUND, async {
            while let Some(output) = &mut self.running.attached {
                match output.next().await {
                    Some(Ok((stream, bytes))) => self.spool.push(stream, &bytes, wall_ms()),
                    Some(Err(error)) => return Some(chain(&error)),
                    None => return None,
                }
            }
            None
        })
        .await;
        match last {
            Ok(None) => {}
            Ok(Some(error)) => teardown.push(format!("read what was left of the output: {error}")),
            Err(_) => teardown.push("the engine did not end the output".to_owned()),
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.spool.close(stream, wall_ms());
        }
        let state = self.state(&mut teardown).await;
        if self.unit.record.init.is_none() {
            // It had ended before it could be seen; the engine's word is all there is.
            self.proof.namespace_empty = matches!(&state, Told::Ended(_) | Told::Removed);
        }
        self.proof.confirmed_at_ms = wall_ms();
        if let Some(error) = self.spool.failure() {
            teardown.push(format!("write the output spool: {error}"));
        }
        let (reason, code, signal, message) = self.ending(&state);
        remove(&self.made, &mut teardown).await;
        Exit {
            reason,
            code,
            signal,
            message,
            program_started: true,
            started_at_ms: Some(self.running.started.0),
            ended_at_ms: self.proof.confirmed_at_ms,
            usage: Usage {
                cpu_ns: self.counts.cpu_ns.unwrap_or(0),
                peak_memory_bytes: self.counts.peak_memory,
                peak_pids: self.counts.peak_pids,
                io_read_bytes: None,
                io_write_bytes: None,
            },
            stdout: self.spool.end(Stream::Stdout),
            stderr: self.spool.end(Stream::Stderr),
            proof: Some(self.proof.clone()),
            teardown,
        }
    }

    /// What the engine says of the end.
    async fn state(&self, teardown: &mut Vec<String>) -> Told {
        let Some(id) = self.made.containers.first() else { return Told::Removed };
        let told = tokio::time::timeout(END_BOUND, async {
            loop {
                match self.made.engine.inspect(id).await {
                    Ok(Some(state)) if state.running => tokio::time::sleep(LOOK).await,
                    Ok(Some(state)) => return Told::Ended(state),
                    Ok(None) => return Told::Removed,
                    Err(error) => return Told::Nothing(chain(&error)),
                }
            }
        });
        let mut told =
            told.await.unwrap_or_else(|_| Told::Nothing("it says that the container runs".to_owned()));
        let killed =
            matches!(&told, Told::Ended(state) if state.exit_code.and_then(signal_of) == Some(libc::SIGKILL));
        if killed && self.stopping.is_none() && self.counts.oom_kills == 0 && self.is_removed(id).await {
            told = Told::Removed;
        }
        if let Told::Nothing(why) = &told {
            teardown.push(format!("ask the engine how it ended: {why}"));
        }
        told
    }

    /// Whether a container that was killed by others goes away soon: who removes one kills it first.
    async fn is_removed(&self, id: &str) -> bool {
        let until = tokio::time::Instant::now() + REMOVAL;
        while tokio::time::Instant::now() < until {
            match self.made.engine.inspect(id).await {
                Ok(None) => return true,
                Ok(Some(_)) => tokio::time::sleep(LOOK).await,
                Err(_) => return false,
            }
        }
        false
    }

    /// Decides the reason.
    fn ending(&self, told: &Told) -> (EndReason, Option<i32>, Option<i32>, Option<String>) {
        let engine = self.unit.launch.engine;
        let code = match told {
            Told::Ended(state) => state.exit_code,
            Told::Removed | Told::Nothing(_) => None,
        };
        let memory = || Some("the memory limit was reached".to_owned());
        if let Some(stopping) = self.stopping {
            let message = match stopping.reason {
                EndReason::Timeout => {
                    self.unit.launch.timeout_ms.map(|limit| format!("time limit of {limit} ms passed"))
                }
                EndReason::DiskLimit => Some(self.disk_limit()),
                EndReason::OOMKilled => memory(),
                EndReason::LeaseExpired => Some("lease expired without a renewal".to_owned()),
                EndReason::EngineLost => {
                    let why = self.lost.as_deref().unwrap_or_default();
                    Some(format!("{engine} was lost while the container ran, which was killed: {why}"))
                }
                EndReason::Exited
                | EndReason::Signalled
                | EndReason::Cancelled
                | EndReason::PidsLimit
                | EndReason::SeccompDenied
                | EndReason::SetupFailed
                | EndReason::SupervisorLost => None,
            };
            let signal = code.and_then(signal_of);
            return (stopping.reason, code.filter(|_| signal.is_none()), signal, message);
        }
        match told {
            Told::Removed => {
                let message = "its container was removed by somebody else while it ran".to_owned();
                (EndReason::Signalled, None, Some(libc::SIGKILL), Some(message))
            }
            Told::Nothing(why) => {
                let message = format!("{engine} does not tell how the container ended: {why}");
                (EndReason::EngineLost, None, None, Some(message))
            }
            Told::Ended(state) => self.ended(state),
        }
    }

    /// The reason of a container that has ended by itself.
    fn ended(&self, state: &ContainerState) -> (EndReason, Option<i32>, Option<i32>, Option<String>) {
        let Some(code) = state.exit_code else {
            return (EndReason::EngineLost, None, None, Some("the engine tells no exit code".to_owned()));
        };
        // A unit that went beyond its memory has not done what was asked, whatever its last command says.
        if state.oom_killed || self.counts.oom_kills > 0 {
            return (EndReason::OOMKilled, Some(code), None, Some("the memory limit was reached".to_owned()));
        }
        if code == 0 {
            return (EndReason::Exited, Some(0), None, None);
        }
        if self.counts.refused_pids > 0 {
            let message = "the limit of processes was reached".to_owned();
            return (EndReason::PidsLimit, Some(code), None, Some(message));
        }
        let by_file_system = self.unit.launch.disk.as_ref().filter(|disk| disk.by_file_system);
        if by_file_system.is_some_and(|disk| is_over(disk, 0)) {
            return (EndReason::DiskLimit, Some(code), None, Some(self.disk_limit()));
        }
        match signal_of(code) {
            Some(signal) => {
                let message = format!("ended with code {code}, which stands for signal {signal}");
                (EndReason::Signalled, Some(code), Some(signal), Some(message))
            }
            None => (EndReason::Exited, Some(code), None, None),
        }
    }

    fn disk_limit(&self) -> String {
        let bytes = self.unit.launch.disk.as_ref().map_or(0, |disk| disk.bytes);
        format!("the workspace reached its limit of {bytes} bytes")
    }
}

/// What an engine says of a container that has ended.
enum Told {
    Ended(ContainerState),
    Removed,
    Nothing(String),
}

/// The signal that an exit code stands for. Programs use such codes seldom; shells, for the signals of their children.
fn signal_of(code: i32) -> Option<i32> {
    const FATAL: [i32; 9] = [
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGKILL,
        libc::SIGSEGV,
        libc::SIGTERM,
        libc::SIGSYS,
    ];
    let signal = code.checked_sub(SIGNALLED)?;
    FATAL.contains(&signal).then_some(signal)
}
