//! What is to be done about a job and its object: a pure function of what both are.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use windlass_core::validate::{self, ValidJob};
use windlass_store::{JobPatch, JobRow};

use crate::kube::object::{Seen, sentence};
use crate::kube::status::{Accepted, Refusal};
use crate::submit;

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot<'a> {
    pub(super) seen: &'a Seen,
    /// What the object declares, or everything that is wrong with it.
    pub(super) declared: Result<&'a ValidJob, &'a str>,
    pub(super) known: Known<'a>,
    pub(super) now: Timestamp,
    /// How long a deletion waits for the node.
    pub(super) delete_wait: Duration,
}

/// What the store has for the object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'a> {
    /// Nothing yet.
    Nothing,
    /// A job that was deleted since, as when its time to live had passed.
    Ended,
    /// This job.
    Job(&'a JobRow),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Make the job.
    Create,
    /// Change what may change.
    Change(JobPatch),
    /// Ask for it to be cancelled.
    Cancel,
    /// Delete the job, which no node holds.
    Discard,
    /// Let the object stay until the job is stopped on its node, or let it go.
    Finalizer(bool),
    /// Let the object go although the node has not answered.
    GiveUp,
    /// Delete the object.
    DeleteObject,
}

/// Everything to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// Whether the spec is in force afterwards.
    pub(super) accepted: Accepted,
    /// When to look again, if nothing happens before.
    pub(super) again: Option<Duration>,
}

pub(super) fn plan(snapshot: &Snapshot<'_>) -> Plan {
    if snapshot.seen.is_deleted {
        return deletion(snapshot);
    }
    let accepted = |actions| Plan { actions, accepted: Accepted::Yes, again: None };
    let refused = |actions, refusal, message: &str| Plan {
        actions,
        accepted: Accepted::No(refusal, message.to_owned()),
        again: None,
    };
    match (snapshot.known, snapshot.declared) {
        (Known::Ended, _) => accepted(vec![Action::DeleteObject]),
        (Known::Nothing, Ok(_)) => accepted(vec![Action::Create]),
        (Known::Nothing, Err(problem)) => refused(Vec::new(), Refusal::Invalid, problem),
        (Known::Job(row), Err(problem)) => {
            refused(finalizer(snapshot.seen, row).into_iter().collect(), Refusal::Invalid, problem)
        }
        (Known::Job(row), Ok(job)) => {
            let mut actions = Vec::new();
            let mut old = (*row.spec).clone();
            // Cancelling is permitted in other ways too, which must not make the manifest wrong.
            old.cancel = false;
            if let Err(errors) = validate::validate_job_update(&old, job.spec()) {
                actions.extend(finalizer(snapshot.seen, row));
                return refused(actions, Refusal::SpecChanged, &sentence(&errors));
            }
            let patch = submit::changes(row, job.get());
            if patch != JobPatch::default() {
                actions.push(Action::Change(patch));
            }
            if job.spec().cancel && row.cancel_requested_at.is_none() && !row.phase.is_terminal() {
                actions.push(Action::Cancel);
            }
            actions.extend(finalizer(snapshot.seen, row));
            accepted(actions)
        }
    }
}

/// The object is kept exactly while a node holds its job.
fn finalizer(seen: &Seen, row: &JobRow) -> Option<Action> {
    (row.phase.is_held() != seen.has_finalizer()).then(|| Action::Finalizer(row.phase.is_held()))
}

/// Waits for the node from when it was asked to stop, by the store's own time. When the object was deleted, by the API server's clock,
/// says nothing to this one's.
fn deletion(snapshot: &Snapshot<'_>) -> Plan {
    let mut actions = Vec::new();
    let mut again = None;
    let mut held_since = None;
    match snapshot.known {
        Known::Job(row) if row.phase.is_held() => {
            if row.cancel_requested_at.is_none() {
                actions.push(Action::Cancel);
            }
            held_since = Some(row.cancel_requested_at.unwrap_or(snapshot.now));
        }
        Known::Job(_) => actions.push(Action::Discard),
        Known::Nothing | Known::Ended => {}
    }
    if snapshot.seen.has_finalizer() {
        let limit = SignedDuration::try_from(snapshot.delete_wait).unwrap_or(SignedDuration::MAX);
        match held_since.map(|since| limit - snapshot.now.duration_since(since)) {
            None => actions.push(Action::Finalizer(false)),
            Some(left) if left.is_positive() => again = Some(left.unsigned_abs()),
            Some(_) => actions.push(Action::GiveUp),
        }
    }
    Plan { actions, accepted: Accepted::Yes, again }
}

#[cfg(test)]
mod tests;
