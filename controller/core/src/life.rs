//! What follows when an attempt ends: the job is done, or goes back to its queue.
//!
//! Two budgets count separately. `retry.lostAttempts` bounds attempts that were lost with their node;
//! `retry.failures` allows runs after a failure. An attempt that never started, was lost while the controller
//! itself was away, or was stopped to empty its node, is charged to neither.

use jiff::{SignedDuration, Timestamp};
use windlass_crds::JobPhase;
use windlass_crds::protocol::TerminalPhase;
use windlass_crds::sandbox_job::{Backoff, RetryPolicy};

/// The reason of a job whose attempts are used up.
pub const ATTEMPTS_EXHAUSTED: &str = "AttemptsExhausted";
/// The reason of a job that somebody cancelled.
pub const CANCELLED: &str = "Cancelled";
/// The reason of a job that waits to be tried again.
pub const RETRYING: &str = "Retrying";

/// What the decision needs to know of the job.
#[derive(Clone, Copy, Debug)]
pub struct JobView<'a> {
    /// The job's retry policy.
    pub retry: &'a RetryPolicy,
    /// Whether somebody has asked to cancel it.
    pub cancel_requested: bool,
    /// Attempts made so far, the one that ended included.
    pub attempts: u32,
    /// Attempts charged as lost before this one.
    pub lost_attempts: u32,
    /// Attempts charged as failed before this one.
    pub failures: u32,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The outcome.
    pub phase: TerminalPhase,
    /// Why, as one word.
    pub reason: String,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// The exit code of the step that decided.
    pub exit_code: Option<i32>,
    /// Whether the controller was away while the lease needed renewal: then a loss is not the node's fault.
    pub controller_was_away: bool,
    /// Whether anything of the job had started.
    pub started: bool,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The job's phase from now on: terminal, or `Queued`.
    pub phase: JobPhase,
    /// Why, as one word.
    pub reason: String,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// The exit code of the step that decided, once the job is done.
    pub exit_code: Option<i32>,
    /// The earliest time of the next attempt, where there is one.
    pub not_before: Option<Timestamp>,
    /// Attempts charged as lost.
    pub lost_attempts: u32,
    /// Attempts charged as failed.
    pub failures: u32,
}

/// What follows when an attempt ends in this way.
///
/// `jitter` is a random number from 0 to 1 that spreads retries of many jobs over time.
pub fn next(job: JobView<'_>, ending: &Ending, now: Timestamp, jitter: f64) -> Next {
    let done = |phase: JobPhase| Next {
        phase,
        reason: ending.reason.clone(),
        message: ending.message.clone(),
        exit_code: ending.exit_code,
        not_before: None,
        lost_attempts: job.lost_attempts,
        failures: job.failures,
    };
    match ending.phase {
        TerminalPhase::Succeeded => done(JobPhase::Succeeded),
        TerminalPhase::Cancelled if job.cancel_requested => done(JobPhase::Cancelled),
        TerminalPhase::Failed | TerminalPhase::TimedOut => {
            let phase =
                if ending.phase == TerminalPhase::Failed { JobPhase::Failed } else { JobPhase::TimedOut };
            let failures = job.failures + 1;
            if job.cancel_requested {
                return Next { failures, ..cancelled(job, ending) };
            }
            if failures > job.retry.failures {
                let mut next = Next { failures, ..done(phase) };
                if job.retry.failures > 0 {
                    next.phase = JobPhase::Failed;
                    next.reason = ATTEMPTS_EXHAUSTED.to_owned();
                    next.message = Some(format!(
                        "all {failures} runs failed; the last one: {}",
                        ending.message.as_deref().unwrap_or(&ending.reason)
                    ));
                }
                return next;
            }
            let wait = backoff(&job.retry.backoff, failures - 1, jitter);
            Next { failures, ..requeued(job, ending, now, wait) }
        }
        TerminalPhase::Lost if ending.started && !ending.controller_was_away => {
            let lost_attempts = job.lost_attempts + 1;
            if job.cancel_requested {
                return Next { lost_attempts, ..cancelled(job, ending) };
            }
            if lost_attempts >= job.retry.lost_attempts {
                return Next {
                    phase: JobPhase::Failed,
                    reason: ATTEMPTS_EXHAUSTED.to_owned(),
                    message: Some(format!(
                        "{lost_attempts} of {} attempts were lost; the last one: {}",
                        job.retry.lost_attempts,
                        ending.message.as_deref().unwrap_or(&ending.reason)
                    )),
                    exit_code: None,
                    not_before: None,
                    lost_attempts,
                    failures: job.failures,
                };
            }
            // The first loss is most likely the node's own trouble: try elsewhere at once.
            let wait = if lost_attempts == 1 {
                SignedDuration::ZERO
            } else {
                backoff(&job.retry.backoff, lost_attempts - 2, jitter)
            };
            Next { lost_attempts, ..requeued(job, ending, now, wait) }
        }
        // A cancelled attempt of a job that nobody has cancelled was stopped to empty its node.
        TerminalPhase::Lost | TerminalPhase::Released | TerminalPhase::Cancelled => {
            if job.cancel_requested {
                return cancelled(job, ending);
            }
            // Not charged, so bounded only by this wait: a node that keeps giving a job back must not spin.
            let free = job.attempts.saturating_sub(job.lost_attempts + job.failures).max(1);
            let wait =
                if free == 1 { SignedDuration::ZERO } else { backoff(&job.retry.backoff, free - 2, jitter) };
            requeued(job, ending, now, wait)
        }
    }
}

/// The job will not be tried again, because somebody has asked to cancel it.
fn cancelled(job: JobView<'_>, ending: &Ending) -> Next {
    Next {
        phase: JobPhase::Cancelled,
        reason: CANCELLED.to_owned(),
        message: Some(format!("cancelled; the last attempt ended with {}", ending.reason)),
        exit_code: None,
        not_before: None,
        lost_attempts: job.lost_attempts,
        failures: job.failures,
    }
}

/// The job goes back to its queue.
fn requeued(job: JobView<'_>, ending: &Ending, now: Timestamp, wait: SignedDuration) -> Next {
    Next {
        phase: JobPhase::Queued,
        reason: RETRYING.to_owned(),
        message: Some(format!(
            "attempt {} ended with {}{}",
            job.attempts,
            ending.reason,
            ending.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
        )),
        exit_code: None,
        not_before: now.checked_add(wait).ok(),
        lost_attempts: job.lost_attempts,
        failures: job.failures,
    }
}

/// The wait before retry number `retry` (from 0): `initial` doubled each time up to `max`, then spread over the
/// upper half of that ("equal jitter"), so that a retry is never immediate and many never come at once.
fn backoff(policy: &Backoff, retry: u32, jitter: f64) -> SignedDuration {
    let initial = policy.initial.millis();
    let ceiling = initial.checked_shl(retry.min(32)).filter(|shifted| *shifted >> retry.min(32) == initial);
    let wait = ceiling.unwrap_or(u64::MAX).min(policy.max.millis().max(1));
    let half = wait / 2;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a wait is bounded by the validated maximum of 30 days in milliseconds, exact in a double"
    )]
    let spread = (half as f64 * jitter.clamp(0.0, 1.0)) as u64;
    SignedDuration::from_millis(i64::try_from(wait - half + spread).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use windlass_crds::Span;

    fn ending(phase: TerminalPhase) -> Ending {
        Ending {
            phase,
            reason: "Because".into(),
            message: None,
            exit_code: (phase == TerminalPhase::Failed).then_some(3),
            controller_was_away: false,
            started: true,
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn view(retry: &RetryPolicy) -> JobView<'_> {
        JobView { retry, cancel_requested: false, attempts: 1, lost_attempts: 0, failures: 0 }
    }

    #[test]
    fn a_failure_is_final_by_default_and_keeps_its_reason_and_exit_code() {
        let next = next(view(&RetryPolicy::default()), &ending(TerminalPhase::Failed), now(), 0.5);
        assert_eq!(
            (next.phase, next.reason.as_str(), next.exit_code),
            (JobPhase::Failed, "Because", Some(3))
        );
        assert_eq!(next.failures, 1);
    }

    #[test]
    fn a_failure_is_retried_after_a_growing_wait_and_then_exhausted() {
        let retry = RetryPolicy { failures: 2, ..Default::default() };
        let mut job = view(&retry);
        let mut waits = Vec::new();
        loop {
            let next = next(job, &ending(TerminalPhase::Failed), now(), 1.0);
            job.failures = next.failures;
            job.attempts += 1;
            match next.not_before {
                Some(at) => waits.push((at - now()).get_seconds()),
                None => {
                    assert_eq!(next.reason, ATTEMPTS_EXHAUSTED);
                    assert_eq!((next.phase, next.exit_code), (JobPhase::Failed, Some(3)));
                    break;
                }
            }
        }
        assert_eq!(waits, [10, 20]);
    }

    #[test]
    fn three_lost_attempts_are_a_dead_letter_and_the_first_is_retried_at_once() {
        let retry = RetryPolicy::default();
        let mut job = view(&retry);
        let first = next(job, &ending(TerminalPhase::Lost), now(), 0.0);
        assert_eq!((first.phase, first.not_before), (JobPhase::Queued, Some(now())));
        job.lost_attempts = first.lost_attempts;
        let second = next(job, &ending(TerminalPhase::Lost), now(), 0.0);
        assert!(second.not_before > Some(now()));
        job.lost_attempts = second.lost_attempts;
        let third = next(job, &ending(TerminalPhase::Lost), now(), 0.0);
        assert_eq!((third.phase, third.reason.as_str()), (JobPhase::Failed, ATTEMPTS_EXHAUSTED));
        assert_eq!(third.exit_code, None);
    }

    #[test]
    fn what_is_nobodys_fault_is_charged_to_nobody() {
        let retry = RetryPolicy::default();
        for change in [
            |ending: &mut Ending| ending.controller_was_away = true,
            |ending: &mut Ending| ending.started = false,
            |ending: &mut Ending| ending.phase = TerminalPhase::Released,
            // Stopped to empty its node: nobody has cancelled the job.
            |ending: &mut Ending| ending.phase = TerminalPhase::Cancelled,
        ] {
            let mut ended = ending(TerminalPhase::Lost);
            change(&mut ended);
            let next = next(view(&retry), &ended, now(), 0.0);
            assert_eq!((next.phase, next.lost_attempts, next.failures), (JobPhase::Queued, 0, 0));
        }
    }

    #[test]
    fn a_cancelled_job_is_never_tried_again_but_may_still_succeed() {
        let retry = RetryPolicy { failures: 5, ..Default::default() };
        let job = JobView { cancel_requested: true, ..view(&retry) };
        for phase in [
            TerminalPhase::Cancelled,
            TerminalPhase::Failed,
            TerminalPhase::TimedOut,
            TerminalPhase::Lost,
            TerminalPhase::Released,
        ] {
            assert_eq!(next(job, &ending(phase), now(), 0.5).phase, JobPhase::Cancelled, "{phase}");
        }
        assert_eq!(next(job, &ending(TerminalPhase::Succeeded), now(), 0.5).phase, JobPhase::Succeeded);
    }

    proptest! {
        #[test]
        fn the_wait_stays_between_half_the_step_and_the_maximum(
            initial in 1u64..10_000_000, max in 1u64..100_000_000, retry in 0u32..200, jitter in 0.0f64..=1.0,
        ) {
            let policy = Backoff { initial: Span::from_millis(initial), max: Span::from_millis(max) };
            let wait = backoff(&policy, retry, jitter);
            prop_assert!(wait <= SignedDuration::from_millis(max as i64));
            prop_assert!(wait >= SignedDuration::from_millis((initial.min(max) / 2) as i64));
        }

        #[test]
        fn every_job_ends_after_its_budgets(outcomes in proptest::collection::vec(0u8..3, 1..400)) {
            let retry = RetryPolicy { failures: 3, lost_attempts: 4, ..Default::default() };
            let mut job = view(&retry);
            let mut charged = 0;
            for outcome in outcomes {
                let phase = [TerminalPhase::Failed, TerminalPhase::Lost, TerminalPhase::TimedOut][usize::from(outcome)];
                charged += 1;
                let next = next(job, &ending(phase), now(), 0.5);
                if next.phase.is_terminal() {
                    break;
                }
                job.lost_attempts = next.lost_attempts;
                job.failures = next.failures;
                job.attempts += 1;
            }
            prop_assert!(charged <= 4 + 4);
        }
    }
}
