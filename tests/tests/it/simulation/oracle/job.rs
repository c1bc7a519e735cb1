//! What is known of one job, and what may follow from what.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::JobPhase;
use windlass_store::{AttemptPhase, AttemptRow, JobRow};

use super::{Invariant, LEASE, State, parts};

/// A job as it was when it last changed.
#[derive(Clone)]
pub(crate) struct KnownJob {
    pub(crate) row: JobRow,
    pub(crate) attempts: BTreeMap<u64, AttemptRow>,
    /// When it was first seen with a wish to cancel.
    pub(crate) cancel_seen: Option<Timestamp>,
}

impl State {
    /// Compares what the store says now with what it said before. Yields what is worth a note.
    pub(super) fn take_over(
        &mut self,
        now: Timestamp,
        job: JobRow,
        attempts: Vec<AttemptRow>,
    ) -> Vec<String> {
        let before = self.jobs.remove(&job.uid);
        let mut told = Vec::new();
        self.check_epochs(&job, &attempts, before.as_ref());
        self.check_completion(&job, &attempts, before.as_ref());
        self.check_received(&job, &attempts);
        for attempt in &attempts {
            let old = before.as_ref().and_then(|before| before.attempts.get(&attempt.epoch));
            let was_live = old.is_none_or(|old| old.phase.is_live());
            if was_live && !attempt.phase.is_live() {
                let why = attempt.reason.as_deref().unwrap_or_default();
                told.push(format!("{} ends as {} ({why})", attempt.id(), attempt.phase));
                self.check_end(now, attempt);
                self.check_charge(&job, attempt, before.as_ref());
            }
        }
        if before.as_ref().is_none_or(|before| before.row.phase != job.phase) {
            told.push(format!("{} ({}) is {}", job.name, job.uid, job.phase));
        }
        let cancel_seen = before.and_then(|before| before.cancel_seen);
        let cancel_seen = cancel_seen.or(job.cancel_requested_at.map(|_| now));
        let attempts = attempts.into_iter().map(|attempt| (attempt.epoch, attempt)).collect();
        self.jobs.insert(job.uid.clone(), KnownJob { row: job, attempts, cancel_seen });
        told
    }

    fn check_epochs(&mut self, job: &JobRow, attempts: &[AttemptRow], before: Option<&KnownJob>) {
        let live: Vec<_> =
            attempts.iter().filter(|attempt| attempt.phase.is_live()).map(|attempt| attempt.epoch).collect();
        let newest = attempts.last().map_or(0, |attempt| attempt.epoch);
        let grown = before.is_none_or(|before| before.row.epoch <= job.epoch);
        let right = if job.phase.is_held() { live == [job.epoch] } else { live.is_empty() };
        if !right || newest != job.epoch || !grown {
            self.violated(
                Invariant::OneLiveEpoch,
                format_args!(
                    "{} is {} at epoch {} with live attempts {live:?} of {newest}",
                    job.name, job.phase, job.epoch
                ),
            );
        }
    }

    fn check_completion(&mut self, job: &JobRow, attempts: &[AttemptRow], before: Option<&KnownJob>) {
        let succeeded = attempts.iter().filter(|attempt| attempt.phase == AttemptPhase::Succeeded).count();
        if succeeded > usize::from(job.phase == JobPhase::Succeeded) {
            self.violated(
                Invariant::CompletionIsFinal,
                format_args!("{} is {} with {succeeded} attempts that succeeded", job.name, job.phase),
            );
        }
        let Some(before) = before else { return };
        let end = |row: &JobRow| (row.phase, row.epoch, row.exit_code, row.finished_at);
        if before.row.phase.is_terminal() && end(&before.row) != end(job) {
            self.violated(
                Invariant::CompletionIsFinal,
                format_args!("{} was {:?} and is {:?}", job.name, end(&before.row), end(job)),
            );
        }
        for attempt in attempts {
            let Some(old) = before.attempts.get(&attempt.epoch) else { continue };
            if !old.phase.is_live() && (old.phase, &old.reason) != (attempt.phase, &attempt.reason) {
                self.violated(
                    Invariant::CompletionIsFinal,
                    format_args!("{} was {} and is {}", attempt.id(), old.phase, attempt.phase),
                );
            }
        }
    }

    /// Everything that was acknowledged has arrived.
    fn check_received(&mut self, job: &JobRow, attempts: &[AttemptRow]) {
        for attempt in attempts {
            let acknowledged = self.acknowledged.get(&attempt.id()).map_or(0, BTreeMap::len) as u64;
            // More may be there: an answer that the controller did not live to give.
            if attempt.received < acknowledged {
                self.violated(
                    Invariant::AcknowledgedIsStored,
                    format_args!(
                        "{}: {acknowledged} records were acknowledged, {} are there",
                        attempt.id(),
                        attempt.received
                    ),
                );
            }
            if job.logs_complete
                && attempt.epoch == job.epoch
                && attempt.last_sequence.is_some_and(|last| last != attempt.received)
            {
                self.violated(
                    Invariant::Logs,
                    format_args!(
                        "{} is said to be complete with {} of {:?} records",
                        attempt.id(),
                        attempt.received,
                        attempt.last_sequence
                    ),
                );
            }
        }
    }

    /// An attempt has ended: nothing of it runs, and it was not taken from its node too early.
    fn check_end(&mut self, now: Timestamp, attempt: &AttemptRow) {
        for (node, units) in self.running().into_iter().enumerate() {
            for unit in &units {
                let (job, epoch, _) = parts(unit);
                if job == attempt.job && epoch == attempt.epoch {
                    self.violated(
                        Invariant::ProcessOutlivesAttempt,
                        format_args!("{} has ended as {} and runs on n{node}", attempt.id(), attempt.phase),
                    );
                }
            }
        }
        if attempt.reason.as_deref() == Some("NodeLost") {
            let up_since = self.controller.up_since;
            if attempt.lease_until > now {
                self.violated(
                    Invariant::Patience,
                    format_args!(
                        "{} was taken back at {now}, its lease ends {}",
                        attempt.id(),
                        attempt.lease_until
                    ),
                );
            }
            if now.duration_since(up_since) < LEASE {
                self.violated(
                    Invariant::Patience,
                    format_args!(
                        "{} was taken back at {now} by a controller that is up since {up_since}",
                        attempt.id()
                    ),
                );
            }
        }
    }

    /// What the end of an attempt has cost.
    fn check_charge(&mut self, job: &JobRow, attempt: &AttemptRow, before: Option<&KnownJob>) {
        let (lost, failed) = before.map_or((0, 0), |before| (before.row.lost_attempts, before.row.failures));
        let charged_lost = job.lost_attempts > lost;
        let charged_failed = job.failures > failed;
        let started =
            self.started.iter().any(|(uid, epoch, _)| *uid == attempt.job && *epoch == attempt.epoch);
        let problem =
            if charged_failed && !matches!(attempt.phase, AttemptPhase::Failed | AttemptPhase::TimedOut) {
                Some("a failure that was none")
            } else if charged_lost && attempt.phase != AttemptPhase::Lost {
                Some("a loss that was none")
            } else if charged_lost && !started {
                Some("a loss before anything had started")
            } else if charged_lost && self.was_away(attempt.lease_until) {
                Some("a loss while the controller was away")
            } else {
                None
            };
        if let Some(problem) = problem {
            self.violated(
                Invariant::Retries,
                format_args!("{} ended as {} and used up a retry for {problem}", attempt.id(), attempt.phase),
            );
        }
    }
}
