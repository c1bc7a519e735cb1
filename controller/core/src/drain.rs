//! Draining a node: what has to happen next.
//!
//! *Flow.* A drain keeps new jobs away and waits. At its deadline, attempts that are left are stopped: either their jobs
//! are cancelled, or those jobs that may be started again go back to their queue and are charged for nothing. The drain
//! is finished when the node holds nothing.
//!
//! *Guarantees.* The plan depends on nothing but what is there, so a controller that dies anywhere in it goes on with
//! the same. A job that must not run twice is never started again by a drain: it is waited for, also past the deadline,
//! unless the operator has asked for cancellation.

use jiff::Timestamp;
use windlass_crds::sandbox_job::RetryPolicy;

/// A drain as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// When attempts that are left are stopped.
    pub deadline_at: Option<Timestamp>,
    /// Whether jobs that are left are cancelled; otherwise they are requeued.
    pub cancels: bool,
    /// Whether the deadline has been noted.
    pub stopping: bool,
    /// Whether the end has been noted.
    pub drained: bool,
    /// The jobs that the node holds.
    pub held: Vec<Held>,
}

/// A job that the node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The job's uid.
    pub uid: String,
    /// Whether it is to be cancelled already.
    pub cancel_requested: bool,
}

/// What has to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Note that the deadline has passed; from then on the node is told to stop what is to be requeued.
    Stop,
    /// Cancel a job.
    Cancel {
        /// The job's uid.
        uid: String,
    },
    /// Note that the node holds nothing any more.
    Finish,
}

/// What has to happen now.
pub fn plan(drain: &Drain, now: Timestamp) -> Vec<Action> {
    if drain.drained {
        return Vec::new();
    }
    if drain.held.is_empty() {
        return vec![Action::Finish];
    }
    if drain.deadline_at.is_none_or(|at| at > now) {
        return Vec::new();
    }
    let mut actions = Vec::new();
    if !drain.stopping {
        actions.push(Action::Stop);
    }
    if drain.cancels {
        let open = drain.held.iter().filter(|held| !held.cancel_requested);
        actions.extend(open.map(|held| Action::Cancel { uid: held.uid.clone() }));
    }
    actions
}

/// Whether a job may be stopped and started again elsewhere: its author allows more than one attempt when a node is
/// lost.
pub const fn is_interruptible(retry: &RetryPolicy) -> bool {
    retry.lost_attempts > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn held(uid: &str) -> Held {
        Held { uid: uid.to_owned(), cancel_requested: false }
    }

    fn drain(jobs: &[&str]) -> Drain {
        Drain {
            deadline_at: Some(at(100)),
            cancels: false,
            stopping: false,
            drained: false,
            held: jobs.iter().map(|uid| held(uid)).collect(),
        }
    }

    #[test]
    fn jobs_are_waited_for_until_the_deadline_and_then_stopped() {
        assert_eq!(plan(&drain(&["a"]), at(99)), []);
        assert_eq!(plan(&drain(&["a"]), at(100)), [Action::Stop]);
        assert_eq!(plan(&Drain { stopping: true, ..drain(&["a"]) }, at(200)), []);
        assert_eq!(plan(&Drain { deadline_at: None, ..drain(&["a"]) }, at(1_000_000)), []);
        let cancelling = Drain { cancels: true, ..drain(&["a", "b"]) };
        let cancel = |uid: &str| Action::Cancel { uid: uid.to_owned() };
        assert_eq!(plan(&cancelling, at(100)), [Action::Stop, cancel("a"), cancel("b")]);
        // The controller died between the two.
        assert_eq!(plan(&Drain { stopping: true, ..cancelling }, at(100)), [cancel("a"), cancel("b")]);
    }

    #[test]
    fn an_empty_node_is_drained_at_once_and_once() {
        assert_eq!(plan(&drain(&[]), at(1)), [Action::Finish]);
        assert_eq!(plan(&drain(&[]), at(200)), [Action::Finish]);
        assert_eq!(plan(&Drain { drained: true, ..drain(&[]) }, at(200)), []);
    }

    #[test]
    fn a_job_with_one_attempt_must_not_be_started_again() {
        assert!(is_interruptible(&RetryPolicy::default()));
        assert!(!is_interruptible(&RetryPolicy { lost_attempts: 1, ..RetryPolicy::default() }));
    }

    fn apply(drain: &mut Drain, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Stop => drain.stopping = true,
                Action::Finish => drain.drained = true,
                Action::Cancel { uid } => {
                    for held in drain.held.iter_mut().filter(|held| held.uid == *uid) {
                        held.cancel_requested = true;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_carried_out_is_not_planned_again(
            deadline in proptest::option::of(0i64..200), now in 0i64..200, cancels: bool, stopping: bool, drained: bool,
            cancelled in proptest::collection::vec(any::<bool>(), 0..5),
        ) {
            let held = cancelled.iter().enumerate();
            let held = held.map(|(n, cancelled)| Held { uid: n.to_string(), cancel_requested: *cancelled }).collect();
            let mut drain = Drain { deadline_at: deadline.map(at), cancels, stopping, drained, held };
            let before = drain.clone();
            let actions = plan(&drain, at(now));
            apply(&mut drain, &actions);
            prop_assert_eq!(plan(&drain, at(now)), vec![]);
            // Nothing is stopped or cancelled before the deadline.
            if before.deadline_at.is_none_or(|at_| at_ > at(now)) {
                prop_assert!(actions.iter().all(|action| *action == Action::Finish));
            }
        }
    }
}
