//! How attempts end: the words for it, and which end an error means.

use jiff::Timestamp;
use windlass_crds::protocol::{RecordBody, Terminal, TerminalPhase};
use windlass_sandbox::{Error as SandboxError, ImageProblem};

use crate::claim::Release;
use crate::outbox::NewRecord;
use crate::plugins;

/// How an attempt ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) phase: TerminalPhase,
    pub(super) reason: &'static str,
    pub(super) message: Option<String>,
    pub(super) exit_code: Option<i32>,
}

impl Verdict {
    pub(super) fn new(phase: TerminalPhase, reason: &'static str, message: impl Into<String>) -> Self {
        Self { phase, reason, message: Some(message.into()), exit_code: None }
    }

    pub(super) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(TerminalPhase::Failed, reason, message)
    }

    pub(super) fn released(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(TerminalPhase::Released, reason, message)
    }

    pub(super) fn lost(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(TerminalPhase::Lost, reason, message)
    }
}

/// The terminal record of an attempt that is given back untouched.
pub(crate) fn release_record(release: &Release, at: Timestamp) -> NewRecord {
    terminal_record(Verdict::released(release.reason, release.message.clone()), at)
}

/// The terminal record of an attempt whose job this agent cannot read. Another try here would end the same way.
pub(crate) fn refusal_record(message: String, at: Timestamp) -> NewRecord {
    terminal_record(Verdict::failed("UnsupportedSpec", message), at)
}

/// What a verdict says in the terminal record of an attempt. The outbox fills in the last sequence when it numbers the
/// record.
pub(super) fn terminal(verdict: Verdict) -> Terminal {
    let Verdict { phase, reason, message, exit_code } = verdict;
    Terminal { phase, reason: reason.to_owned(), message, exit_code, last_sequence: 0 }
}

fn terminal_record(verdict: Verdict, at: Timestamp) -> NewRecord {
    NewRecord { at, body: RecordBody::Terminal(terminal(verdict)), mark: None }
}

/// How an attempt ends that the sandbox does not serve.
pub(super) fn sandbox_verdict(error: &SandboxError, started: bool) -> Verdict {
    let message = crate::error_chain(error);
    if !started && is_out_of_space(error) {
        return Verdict::released("DiskFull", message);
    }
    if !started && matches!(error, SandboxError::IdentitiesExhausted { .. }) {
        return Verdict::released("NoUserLeft", message);
    }
    match error {
        SandboxError::SupervisorLost { .. } => Verdict::lost("SupervisorLost", message),
        // Another node may have one that works.
        SandboxError::EngineUnreachable { .. } if started => Verdict::lost("EngineLost", message),
        SandboxError::EngineUnreachable { .. } => Verdict::released("EngineUnavailable", message),
        SandboxError::Image { problem, .. } => Verdict::failed(image_reason(*problem), message),
        SandboxError::UnsafePath { .. }
        | SandboxError::ArchiveTooLarge { .. }
        | SandboxError::Archive { .. } => Verdict::failed("InputRefused", message),
        SandboxError::InvalidId { .. }
        | SandboxError::InvalidSpec { .. }
        | SandboxError::Unsupported { .. }
        | SandboxError::Unenforceable { .. }
        | SandboxError::Exists { .. }
        | SandboxError::NotFound { .. }
        | SandboxError::NotStarted { .. }
        | SandboxError::StillRunning { .. }
        | SandboxError::Setup { .. }
        | SandboxError::Launcher { .. }
        | SandboxError::InUse { .. }
        | SandboxError::IdentitiesExhausted { .. }
        | SandboxError::Corrupt { .. }
        | SandboxError::Cgroup { .. }
        | SandboxError::Engine { .. }
        | SandboxError::Io { .. } => Verdict::failed("SandboxFailed", message),
    }
}

/// Why an image cannot be used, as one word.
const fn image_reason(problem: ImageProblem) -> &'static str {
    match problem {
        ImageProblem::Invalid => "ImageInvalid",
        ImageProblem::NotFound => "ImageNotFound",
        ImageProblem::Unauthorized => "ImageUnauthorized",
        ImageProblem::Digest => "ImageDigestMismatch",
        ImageProblem::Unavailable => "ImageUnavailable",
        ImageProblem::Credentials => "ImageCredentialsInvalid",
        ImageProblem::Unusable => "ImageUnusable",
    }
}

/// Whether an error comes from a full disk, which is not the job's fault.
fn is_out_of_space(error: &SandboxError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        }
        cause = error.source();
    }
    false
}

/// Why a step that a plugin does not carry out ends its attempt, as one word.
pub(super) fn plugin_reason(error: &plugins::Error) -> &'static str {
    match error {
        plugins::Error::Validation { .. } => "ValidationError",
        plugins::Error::Unsupported { .. } => "UnsupportedTask",
        plugins::Error::Execution { .. } => "ExecutionError",
        plugins::Error::Postcheck { .. } => "PostcheckError",
        plugins::Error::Rollback { .. } => "RollbackError",
        plugins::Error::Timeout { .. } => "TimeoutError",
    }
}

/// The same as a sentence, with the stable code.
pub(super) fn describe(error: &plugins::Error) -> String {
    format!("{}: {error}", error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(kind: std::io::ErrorKind) -> SandboxError {
        SandboxError::Io { operation: "write", path: "/x".into(), source: kind.into() }
    }

    #[test]
    fn a_full_disk_is_not_the_jobs_fault_unless_it_has_started() {
        let full = io(std::io::ErrorKind::StorageFull);
        assert_eq!(sandbox_verdict(&full, false).phase, TerminalPhase::Released);
        assert_eq!(sandbox_verdict(&full, true).phase, TerminalPhase::Failed);
        assert_eq!(sandbox_verdict(&io(std::io::ErrorKind::PermissionDenied), false).reason, "SandboxFailed");
    }

    #[test]
    fn an_unsafe_input_is_named_as_such() {
        let error = SandboxError::UnsafePath { path: "../x".to_owned(), problem: "contains '..'".to_owned() };
        let verdict = sandbox_verdict(&error, false);
        assert_eq!((verdict.phase, verdict.reason), (TerminalPhase::Failed, "InputRefused"));
        assert!(verdict.message.unwrap().contains("../x"));
    }
}
