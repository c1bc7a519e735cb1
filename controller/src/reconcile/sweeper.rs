//! The sweeper: attempts whose lease has ended, and jobs whose time to live is over.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use windlass_core::life::Ending;
use windlass_core::progress::{End, Progress};
use windlass_crds::JobPhase;
use windlass_crds::protocol::TerminalPhase;
use windlass_store::{
    AttemptRow, DeleteOutcome, EventLevel, JobChange, JobRow, NewEvent, Readable, Store, Transition,
    TransitionOutcome,
};

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::dispatch::{Dispatch, transition};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// The most rows of a kind in one sweep; the rest waits for the next.
const BATCH: u32 = 500;

/// What between two sweeps is a jump of the clock. A time server that slews it does a thousandth of that.
const JUMP: SignedDuration = SignedDuration::from_millis(500);

/// How far the time of day is ahead of the steady clock.
fn ahead(clock: &dyn Clock) -> SignedDuration {
    let steady = SignedDuration::try_from(clock.steady()).unwrap_or(SignedDuration::MAX);
    clock.now().duration_since(Timestamp::UNIX_EPOCH) - steady
}

/// Ends what nobody keeps alive; cheap to clone.
#[derive(Clone)]
pub struct Sweeper {
    dispatch: Dispatch,
    store: Store,
    bodies: Bodies,
    clock: Arc<dyn Clock>,
    /// How far the time of day was ahead of the steady clock when leases were last judged.
    ahead: Arc<Mutex<SignedDuration>>,
    metrics: Metrics,
    /// The damaged rows that were told of; the lock is held only to exchange them.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl Sweeper {
    /// A sweeper that works on this store.
    pub fn new(
        dispatch: Dispatch,
        store: Store,
        bodies: Bodies,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let ahead = Arc::new(Mutex::new(ahead(&*clock)));
        Self { dispatch, store, bodies, clock, ahead, metrics, told: Arc::default() }
    }

    /// One round.
    pub async fn sweep(&self) -> Result<(), ApiError> {
        let store = self.store.as_leader();
        self.follow_clock(store.as_ref()).await?;
        // Of several controllers one does this, and only while it leads.
        let Some(store) = store else { return Ok(()) };
        let now = self.clock.now();
        let mut damaged = self.expire(&store, now).await?;
        damaged.extend(self.collect(&store, now).await?);
        self.tell_of_damage(damaged.into_iter().collect());
        Ok(())
    }

    /// Says which rows are left out, each once for as long as it is damaged.
    fn tell_of_damage(&self, damaged: BTreeSet<String>) {
        self.metrics.damaged_rows(damaged.len());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for row in damaged.difference(&told) {
            tracing::error!(error = %row, "a row cannot be read; the sweeper leaves it out until it is repaired");
        }
        *told = damaged;
    }

    /// Leases are durations, and the store keeps when they end. When somebody has put the clock forward, they end so
    /// much later; else nodes would lose what they hold, and it would run twice. When it was put back, leases end late
    /// by so much until the next heartbeat: what was granted since must not become shorter. Only the clock of the
    /// controller that ends leases matters. Where none led at the time, nobody has moved leases; so whoever comes to lead
    /// waits one lease first, in which nodes that live renew theirs.
    async fn follow_clock(&self, leading: Option<&Store>) -> Result<(), ApiError> {
        let ahead = ahead(&*self.clock);
        let jump = ahead - *self.ahead();
        if jump >= JUMP {
            self.dispatch.clock_was_moved();
        }
        if jump >= JUMP
            && let Some(store) = leading
        {
            let moved = store.move_leases(jump.unsigned_abs()).await?;
            tracing::warn!(
                jump.seconds = jump.as_secs(),
                leases.moved = moved,
                "the clock was put forward; leases follow it"
            );
        }
        *self.ahead() = ahead;
        Ok(())
    }

    fn ahead(&self) -> MutexGuard<'_, SignedDuration> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back attempts whose lease has ended. A controller that has just come up, or whose database has just come back, or whose
    /// clock was just put forward, waits one lease first, so that nodes that could not reach it have time to show that they live. Yields what cannot
    /// be read.
    async fn expire(&self, store: &Store, now: Timestamp) -> Result<Vec<String>, ApiError> {
        let expired = store.expired_leases(now, BATCH).await;
        self.dispatch.database_answers(expired.is_ok());
        let Readable { rows: expired, damaged } = expired?;
        if expired.is_empty() || self.dispatch.was_away(now) {
            return Ok(damaged);
        }
        let transitions: Vec<Transition> =
            expired.iter().map(|(job, attempt)| self.lost(job, attempt)).collect();
        let outcomes = store.apply_transitions(now, transitions).await?;
        for ((job, attempt), outcome) in expired.iter().zip(outcomes) {
            // A stale one was renewed or reported meanwhile.
            if let TransitionOutcome::Done(after) = outcome {
                self.tell(now, job, attempt, &after).await?;
            }
        }
        Ok(damaged)
    }

    fn lost(&self, job: &JobRow, attempt: &AttemptRow) -> Transition {
        let ending = Ending {
            phase: TerminalPhase::Lost,
            reason: "NodeLost".to_owned(),
            message: Some(format!("node `{}` did not renew the lease of the attempt", attempt.node)),
            exit_code: None,
            // So was it while a backup was restored.
            controller_was_away: self.dispatch.was_away(attempt.lease_until)
                || self.store.restored().is_some_and(|restored| restored.had(attempt.epoch)),
            started: job.phase != JobPhase::Claimed,
        };
        let mut progress = Progress { steps: job.steps.clone(), ..Progress::default() };
        progress.close(End { at: self.clock.now(), succeeded: false, reason: ending.reason.clone() });
        let mut change = JobChange { steps: Some(progress.steps), ..JobChange::of(job) };
        self.dispatch.end(job, &ending, None, &mut change);
        transition(job, change)
    }

    async fn tell(
        &self,
        now: Timestamp,
        job: &JobRow,
        attempt: &AttemptRow,
        after: &JobRow,
    ) -> Result<(), ApiError> {
        let dead = after.phase == JobPhase::Failed;
        let event = NewEvent {
            job: Some(job.uid.clone()),
            node: Some(attempt.node.clone()),
            level: if dead { EventLevel::Error } else { EventLevel::Warn },
            source: "sweeper".to_owned(),
            reason: if dead { "DeadLetter" } else { "AttemptLost" }.to_owned(),
            message: format!(
                "attempt {} on node `{}` was lost; the job is {} now{}",
                attempt.number,
                attempt.node,
                after.phase,
                after.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
            ),
            data: None,
        };
        self.store.append_event(now, event).await?;
        Ok(())
    }

    /// Removes jobs whose time to live is over. Yields what cannot be read.
    async fn collect(&self, store: &Store, now: Timestamp) -> Result<Vec<String>, ApiError> {
        let Readable { rows, damaged } = store.ttl_due(now, BATCH).await?;
        for job in rows {
            match store.delete_job(now, &job.uid, None).await? {
                DeleteOutcome::Deleted { bodies } => {
                    tracing::info!(job.id = %job.uid, job.name = %job.name, "job removed");
                    super::pruner::remove_bodies(store, &self.bodies, bodies).await?;
                }
                DeleteOutcome::StillHeld(_) | DeleteOutcome::NotFound => {}
            }
        }
        Ok(damaged)
    }
}
