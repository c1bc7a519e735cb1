//! Every situation that a job and its object can be in.

use std::sync::Arc;

use serde_json::{Value, json};
use windlass_core::validate::validate_job;
use windlass_crds::{JobPhase, Priority, SandboxJob, Span};
use windlass_store::Reserve;

use super::*;
use crate::kube::object::{FINALIZER, ObjectKind};

const NOW: i64 = 1_000_000;

fn job(spec: Value) -> ValidJob {
    let mut spec = spec;
    if spec["command"].is_null() {
        spec["command"] = json!(["true"]);
    }
    let metadata = json!({"name": "a", "namespace": "default"});
    let job: SandboxJob =
        serde_json::from_value(json!({"apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob", "metadata": metadata, "spec": spec}))
            .unwrap();
    validate_job(&job).unwrap()
}

fn row(phase: JobPhase) -> JobRow {
    let at = Timestamp::from_second(NOW - 100).unwrap();
    JobRow {
        uid: "u".into(),
        namespace: "default".into(),
        name: "a".into(),
        labels: Default::default(),
        annotations: Default::default(),
        spec: Arc::new(job(json!({})).spec().clone()),
        spec_hash: String::new(),
        queue: "default".into(),
        priority: Priority::NORMAL.get(),
        class_id: 1,
        reserve: Reserve::default(),
        phase,
        reason: None,
        message: None,
        node: Some("n".into()),
        epoch: 1,
        attempts: 1,
        lost_attempts: 0,
        failures: 0,
        exit_code: None,
        steps: Vec::new(),
        unenforced: Vec::new(),
        logs_complete: false,
        suspend: false,
        cancel_requested_at: None,
        queued_at: Some(at),
        not_before: None,
        created_at: at,
        started_at: None,
        finished_at: None,
        ttl_at: None,
        generation: 1,
        resource_version: 7,
        lease_until: None,
    }
}

/// An object, whose deletion may have been asked for: at a time of the API server, whose clock is wrong.
fn object(finalizer: bool, deleted: bool) -> Seen {
    let deleted = deleted.then_some(Timestamp::UNIX_EPOCH);
    let finalizers = if finalizer { vec!["other/one", FINALIZER] } else { vec!["other/one"] };
    let object = serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "default", "uid": "o", "resourceVersion": "1", "generation": 1,
            "deletionTimestamp": deleted, "finalizers": finalizers},
        "spec": {"command": ["true"]},
    }));
    Seen::read(ObjectKind::Job, object.unwrap()).unwrap().1
}

fn planned(seen: &Seen, declared: Result<&ValidJob, &str>, known: Known<'_>) -> Plan {
    let now = Timestamp::from_second(NOW).unwrap();
    plan(&Snapshot { seen, declared, known, now, delete_wait: Duration::from_secs(600) })
}

fn actions(seen: &Seen, spec: Value, known: Known<'_>) -> Vec<Action> {
    let plan = planned(seen, Ok(&job(spec)), known);
    assert_eq!(plan.accepted, Accepted::Yes);
    plan.actions
}

const ALL: [JobPhase; 9] = [
    JobPhase::PendingApproval,
    JobPhase::Queued,
    JobPhase::Claimed,
    JobPhase::Running,
    JobPhase::Waiting,
    JobPhase::Succeeded,
    JobPhase::Failed,
    JobPhase::Cancelled,
    JobPhase::TimedOut,
];

#[test]
fn a_new_object_gets_a_job_and_one_whose_job_was_deleted_goes() {
    let seen = object(false, false);
    assert_eq!(actions(&seen, json!({}), Known::Nothing), [Action::Create]);
    assert_eq!(actions(&seen, json!({}), Known::Ended), [Action::DeleteObject]);
}

#[test]
fn an_object_that_says_the_same_again_changes_nothing() {
    for phase in ALL {
        let seen = object(phase.is_held(), false);
        assert_eq!(actions(&seen, json!({}), Known::Job(&row(phase))), [], "{phase}");
        let cancelled = JobRow { cancel_requested_at: Some(Timestamp::UNIX_EPOCH), ..row(phase) };
        assert_eq!(actions(&seen, json!({}), Known::Job(&cancelled)), [], "{phase}, cancelled by REST");
    }
}

#[test]
fn an_object_is_kept_exactly_while_a_node_holds_its_job() {
    for phase in ALL {
        for finalizer in [false, true] {
            let found = actions(&object(finalizer, false), json!({}), Known::Job(&row(phase)));
            let wanted = phase.is_held();
            let expected = (finalizer != wanted).then_some(Action::Finalizer(wanted));
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{phase} {finalizer}");
        }
    }
}

#[test]
fn what_may_change_is_changed_and_what_may_not_is_refused_as_a_whole() {
    let queued = row(JobPhase::Queued);
    let seen = object(false, false);
    let spec = json!({"suspend": true, "priority": 700, "ttlAfterFinished": "1h"});
    let patch = JobPatch {
        suspend: Some(true),
        priority: Some(700),
        ttl_after_finished: Some(Some(Span::from_secs(3600))),
        ..JobPatch::default()
    };
    assert_eq!(actions(&seen, spec, Known::Job(&queued)), [Action::Change(patch)]);
    assert_eq!(actions(&seen, json!({"cancel": true}), Known::Job(&queued)), [Action::Cancel]);
    for phase in ALL {
        let changed = job(json!({"command": ["false"], "suspend": true, "cancel": true}));
        let plan = planned(&object(phase.is_held(), false), Ok(&changed), Known::Job(&row(phase)));
        assert_eq!(plan.actions, [], "{phase}");
        let Accepted::No(Refusal::SpecChanged, message) = plan.accepted else { panic!("{plan:?}") };
        assert!(message.contains("command") && message.contains("submit a new job"), "{message}");
    }
    let ended = row(JobPhase::Failed);
    assert_eq!(actions(&seen, json!({"cancel": true}), Known::Job(&ended)), [], "it has ended");
}

#[test]
fn an_object_that_breaks_a_rule_gets_no_job_and_stops_none() {
    let seen = object(false, false);
    let plan = planned(&seen, Err("spec: no"), Known::Nothing);
    assert_eq!(plan.actions, []);
    assert_eq!(plan.accepted, Accepted::No(Refusal::Invalid, "spec: no".into()));
    let plan = planned(&seen, Err("spec: no"), Known::Job(&row(JobPhase::Running)));
    assert_eq!(plan.actions, [Action::Finalizer(true)], "its job goes on, and is still stopped at the end");
}

#[test]
fn deletion_cancels_waits_for_the_node_and_ends() {
    for phase in ALL {
        let found = |finalizer, row: &JobRow| {
            let plan = planned(&object(finalizer, true), Ok(&job(json!({}))), Known::Job(row));
            (plan.actions, plan.again)
        };
        let row = row(phase);
        let asked = |ago| {
            let at = Timestamp::from_second(NOW - ago).unwrap();
            JobRow { cancel_requested_at: Some(at), ..row.clone() }
        };
        if phase.is_held() {
            let wait = |seconds| Some(Duration::from_secs(seconds));
            assert_eq!(found(true, &row), (vec![Action::Cancel], wait(600)), "{phase}");
            assert_eq!(found(true, &asked(10)), (vec![], wait(590)), "{phase}");
            assert_eq!(found(false, &row), (vec![Action::Cancel], None), "somebody took the finalizer away");
            assert_eq!(found(true, &asked(600)), (vec![Action::GiveUp], None), "{phase}");
        } else {
            assert_eq!(found(true, &row), (vec![Action::Discard, Action::Finalizer(false)], None), "{phase}");
            assert_eq!(found(false, &row), (vec![Action::Discard], None), "{phase}");
        }
    }
    for known in [Known::Nothing, Known::Ended] {
        assert_eq!(actions(&object(true, true), json!({}), known), [Action::Finalizer(false)]);
        assert_eq!(actions(&object(false, true), json!({}), known), [], "never created any more");
    }
}
