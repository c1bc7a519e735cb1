//! How the command ends: one exit code for each kind of end, the same for every verb.

use std::process::ExitCode;

use windlass_crds::JobPhase;

/// How the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done.
    Success,
    /// The server, the job or the machine refused.
    Failed,
    /// The command line or the settings are wrong.
    Usage,
    /// A manifest or an input is invalid.
    Invalid,
    /// The server cannot be reached or is not ready.
    Unreachable,
    /// The job's attempts were used up by lost nodes.
    LostAttempts,
    /// The token is missing, wrong, or not allowed to do this.
    Unauthorised,
    /// The job or the wait took too long.
    TimedOut,
    /// The job was cancelled, or the command interrupted.
    Interrupted,
    /// The followed job failed with this exit code of its own.
    Job(u8),
}

/// The table of exit codes that `windlass --help` prints.
pub(crate) const HELP: &str = "\
Exit codes:
    0  Everything was done.
    1  The server or something else refused; the message says what.
    2  The command line or a setting is wrong.
   65  A manifest or an input is invalid.
   69  The server cannot be reached or is not ready.
   75  The job's attempts were used up by lost nodes.
   77  The token is missing, wrong, or not allowed to do this.
  124  The job or the wait timed out.
  130  The job was cancelled, or the command was interrupted.
  `windlass run` that follows a job ends with the exit code of the step that decided, when the job failed by exit.";

impl Exit {
    /// The code for the operating system.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Invalid => 65,
            Self::Unreachable => 69,
            Self::LostAttempts => 75,
            Self::Unauthorised => 77,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
            Self::Job(code) => code,
        }
    }

    /// How a command ends that followed a job to this end. A job that has not ended yet is a failure of following.
    pub(crate) fn of_job(phase: JobPhase, reason: Option<&str>, exit_code: Option<i32>) -> Self {
        match phase {
            JobPhase::Succeeded => Self::Success,
            JobPhase::TimedOut => Self::TimedOut,
            JobPhase::Cancelled => Self::Interrupted,
            JobPhase::Failed if reason == Some("AttemptsExhausted") => Self::LostAttempts,
            JobPhase::Failed => match exit_code.and_then(|code| u8::try_from(code).ok()) {
                None | Some(0) => Self::Failed,
                Some(code) => Self::Job(code),
            },
            JobPhase::PendingApproval
            | JobPhase::Queued
            | JobPhase::Claimed
            | JobPhase::Running
            | JobPhase::Waiting => Self::Failed,
        }
    }

    /// How a command ends that the server refused with this code of [`windlass_crds::protocol::Problem`].
    pub(crate) fn of_problem(code: &str) -> Self {
        match code {
            "invalid" | "bad_request" | "too_large" | "digest_mismatch" | "unsupported_media_type" => {
                Self::Invalid
            }
            "unauthenticated" | "forbidden" => Self::Unauthorised,
            "unavailable" => Self::Unreachable,
            // The list is open: a newer server may know more codes, and all of them are refusals.
            _ => Self::Failed,
        }
    }

    /// The end of a command whose parts ended like this: the first that is not a success.
    pub(crate) fn worst(self, other: Self) -> Self {
        if self == Self::Success { other } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_followed_job_decides_the_exit_code() {
        let table = [
            (JobPhase::Succeeded, None, Some(0), 0),
            (JobPhase::Failed, Some("StepFailed"), Some(3), 3),
            (JobPhase::Failed, Some("StepFailed"), Some(255), 255),
            (JobPhase::Failed, Some("StepFailed"), Some(0), 1),
            (JobPhase::Failed, Some("StepFailed"), Some(-1), 1),
            (JobPhase::Failed, Some("StepFailed"), Some(300), 1),
            (JobPhase::Failed, Some("OOMKilled"), None, 1),
            (JobPhase::Failed, Some("AttemptsExhausted"), Some(9), 75),
            (JobPhase::TimedOut, Some("JobTimeout"), Some(9), 124),
            (JobPhase::Cancelled, None, None, 130),
            (JobPhase::Running, None, None, 1),
        ];
        for (phase, reason, exit_code, expected) in table {
            assert_eq!(
                Exit::of_job(phase, reason, exit_code).code(),
                expected,
                "{phase} {reason:?} {exit_code:?}"
            );
        }
    }

    #[test]
    fn a_refusal_decides_the_exit_code() {
        let table = [
            ("invalid", 65),
            ("bad_request", 65),
            ("too_large", 65),
            ("unauthenticated", 77),
            ("forbidden", 77),
            ("not_found", 1),
            ("conflict", 1),
            ("name_taken", 1),
            ("already_ended", 1),
            ("internal", 1),
            ("rate_limited", 1),
            ("unavailable", 69),
            ("a code of a newer server", 1),
        ];
        for (code, expected) in table {
            assert_eq!(Exit::of_problem(code).code(), expected, "{code}");
        }
    }

    #[test]
    fn every_documented_code_is_in_the_help() {
        let all = [
            Exit::Success,
            Exit::Failed,
            Exit::Usage,
            Exit::Invalid,
            Exit::Unreachable,
            Exit::LostAttempts,
            Exit::Unauthorised,
            Exit::TimedOut,
            Exit::Interrupted,
        ];
        for exit in all {
            let line = format!("{:>5}  ", exit.code());
            assert!(HELP.lines().any(|help| help.starts_with(&line)), "{exit:?} is not in the help");
        }
    }

    #[test]
    fn the_first_failure_of_several_parts_decides() {
        assert_eq!(Exit::Success.worst(Exit::Invalid), Exit::Invalid);
        assert_eq!(Exit::Unreachable.worst(Exit::Invalid), Exit::Unreachable);
    }
}
