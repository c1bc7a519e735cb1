//! The sweeper: attempts whose lease has ended, and jobs whose time to live is over.

use std::sync::Arc;

use jiff::Timestamp;
use windlass_core::life::Ending;
use windlass_core::progress::Progress;
use windlass_crds::JobPhase;
use windlass_crds::protocol::TerminalPhase;
use windlass_store::{
    AttemptRow, DeleteOutcome, EventLevel, JobChange, JobRow, NewEvent, Store, Transition, TransitionOutcome,
};

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::dispatch::{Dispatch, transition};
use crate::error::ApiError;

/// The most rows of a kind in one sweep; the rest waits for the next.
const BATCH: u32 = 500;

/// Ends what nobody keeps alive; cheap to clone.
#[derive(Clone)]
pub struct Sweeper {
    dispatch: Dispatch,
    store: Store,
    bodies: Bodies,
    clock: Arc<dyn Clock>,
}

impl Sweeper {
    /// A sweeper that works on this store.
    pub fn new(dispatch: Dispatch, store: Store, bodies: Bodies, clock: Arc<dyn Clock>) -> Self {
        Self { dispatch, store, bodies, clock }
    }

    /// One round.
    pub async fn sweep(&self) -> Result<(), ApiError> {
        let now = self.clock.now();
        self.expire(now).await?;
        self.collect(now).await
    }

    /// Takes back attempts whose lease has ended. A controller that has just come up waits one lease first, so that
    /// nodes that could not reach it have time to show that they live.
    async fn expire(&self, now: Timestamp) -> Result<(), ApiError> {
        if self.dispatch.was_away(now) {
            return Ok(());
        }
        let expired = self.store.expired_leases(now, BATCH).await?;
        if expired.is_empty() {
            return Ok(());
        }
        let transitions: Vec<Transition> =
            expired.iter().map(|(job, attempt)| self.lost(job, attempt)).collect();
        let outcomes = self.store.apply_transitions(now, transitions).await?;
        for ((job, attempt), outcome) in expired.iter().zip(outcomes) {
            // A stale one was renewed or reported meanwhile.
            if let TransitionOutcome::Done(after) = outcome {
                self.tell(now, job, attempt, &after).await?;
            }
        }
        Ok(())
    }

    fn lost(&self, job: &JobRow, attempt: &AttemptRow) -> Transition {
        let ending = Ending {
            phase: TerminalPhase::Lost,
            reason: "NodeLost".to_owned(),
            message: Some(format!("node `{}` did not renew the lease of the attempt", attempt.node)),
            exit_code: None,
            controller_was_away: self.dispatch.was_away(attempt.lease_until),
            started: job.phase != JobPhase::Claimed,
        };
        let mut progress = Progress { steps: job.steps.clone(), ..Progress::default() };
        progress.skip_pending();
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

    /// Removes jobs whose time to live is over.
    async fn collect(&self, now: Timestamp) -> Result<(), ApiError> {
        for job in self.store.ttl_due(now, BATCH).await? {
            match self.store.delete_job(now, &job.uid).await? {
                DeleteOutcome::Deleted { bodies } => {
                    tracing::info!(job.id = %job.uid, job.name = %job.name, "job removed");
                    super::pruner::remove_bodies(&self.store, &self.bodies, bodies).await?;
                }
                DeleteOutcome::StillHeld(_) | DeleteOutcome::NotFound => {}
            }
        }
        Ok(())
    }
}
