//! What operators do to nodes, and what is remembered of nodes.

use windlass_crds::NodeConfigSpec;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::protocol::{AckError, AckStatus};
use windlass_store::{
    Ack, DrainRow, DrainStep, LiveAttempts, NewDrain, NewNodeConfig, NewNodeEvent, NodeEventKind, NodeHold,
    NodeRegistration, NodeRow, Overdue, RedeemedToken, Store,
};

use crate::fixtures::{at, claim, claimed, finish, job, join_token, register, registration};

async fn node(store: &Store, name: &str) -> NodeRow {
    store.get_node(name).await.unwrap().expect("the node exists")
}

async fn history(store: &Store, name: &str) -> Vec<NodeEventKind> {
    let mut kinds: Vec<_> =
        store.node_history(name).await.unwrap().into_iter().map(|event| event.kind).collect();
    kinds.reverse();
    kinds
}

fn config(name: &str, concurrency: u32) -> NewNodeConfig {
    NewNodeConfig {
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        spec: NodeConfigSpec { concurrency: Some(concurrency), ..NodeConfigSpec::default() },
        labels: Default::default(),
        annotations: Default::default(),
        expected_version: None,
    }
}

pub(crate) async fn a_cordon_is_set_once_and_lifted_once(store: Store) {
    register(&store, &["n"]).await;
    let before = node(&store, "n").await;
    assert_eq!(before.hold, None);
    let cordoned = store.cordon_node(at(5), "n").await.unwrap();
    assert_eq!(cordoned.hold, Some(NodeHold { since: at(5), drain: None }));
    assert!(cordoned.resource_version > before.resource_version);
    assert_eq!((cordoned.config_version, cordoned.generation), (before.config_version, before.generation));
    assert_eq!(store.cordon_node(at(6), "n").await.unwrap(), cordoned, "a second time changes nothing");
    assert_eq!(store.list_nodes().await.unwrap(), std::slice::from_ref(&cordoned));
    let lifted = store.uncordon_node(at(7), "n").await.unwrap();
    assert_eq!(lifted.hold, None);
    assert_eq!(store.uncordon_node(at(8), "n").await.unwrap(), lifted);
    use NodeEventKind::{Cordoned, Registered, Uncordoned};
    assert_eq!(history(&store, "n").await, [Registered, Cordoned, Uncordoned]);
}

pub(crate) async fn a_manifest_and_a_cordon_leave_each_other_alone(store: Store) {
    register(&store, &["n"]).await;
    store.cordon_node(at(1), "n").await.unwrap();
    let applied = store.put_node_config(at(2), config("n", 3)).await.unwrap().into_inner();
    assert_eq!(applied.hold, Some(NodeHold { since: at(1), drain: None }), "a manifest lifts no cordon");
    let lifted = store.uncordon_node(at(3), "n").await.unwrap();
    assert_eq!(lifted.spec, applied.spec);
    assert_eq!(lifted.config_version, applied.config_version, "the node need not be configured anew");
}

pub(crate) async fn a_claim_on_its_way_when_its_node_is_cordoned_gets_nothing(store: Store) {
    register(&store, &["n"]).await;
    job("a").create(&store, at(0)).await;
    store.cordon_node(at(1), "n").await.unwrap();
    assert!(claim("n").run(&store, at(2)).await.is_empty());
    store.uncordon_node(at(3), "n").await.unwrap();
    assert_eq!(claim("n").run(&store, at(4)).await.len(), 1);
}

pub(crate) async fn a_drain_takes_the_place_of_a_cordon_and_of_an_earlier_drain(store: Store) {
    register(&store, &["n"]).await;
    store.cordon_node(at(1), "n").await.unwrap();
    let drained = store.drain_node(at(2), "n", NewDrain::default()).await.unwrap();
    let drain = |deadline_at, overdue| DrainRow { deadline_at, overdue, stopping_at: None, drained_at: None };
    assert_eq!(
        drained.hold,
        Some(NodeHold { since: at(1), drain: Some(drain(None, Overdue::Requeue)) }),
        "jobs are kept away since the cordon"
    );
    store.advance_drain(at(3), "n", DrainStep::Finish, drained.resource_version).await.unwrap();
    let again = NewDrain { deadline_at: Some(at(60)), overdue: Overdue::Cancel };
    let drained = store.drain_node(at(4), "n", again).await.unwrap();
    assert_eq!(
        drained.hold.unwrap().drain,
        Some(drain(Some(at(60)), Overdue::Cancel)),
        "what was reached before is forgotten"
    );
    assert_eq!(store.cordon_node(at(5), "n").await.unwrap(), drained, "a cordon does not end a drain");
    assert_eq!(store.uncordon_node(at(6), "n").await.unwrap().hold, None, "lifting it does");
}

pub(crate) async fn a_drain_goes_on_once_and_on_the_version_it_was_judged_on(store: Store) {
    let got = claimed(&store, "n", "a", at(1)).await;
    let drain = NewDrain { deadline_at: Some(at(10)), overdue: Overdue::Requeue };
    let row = store.drain_node(at(2), "n", drain).await.unwrap();
    let stale = store.advance_drain(at(10), "n", DrainStep::Stop, row.resource_version - 1).await;
    assert_eq!(stale.unwrap_err().kind(), "Conflict");
    store.advance_drain(at(10), "n", DrainStep::Stop, row.resource_version).await.unwrap();
    let stopping = node(&store, "n").await;
    assert_eq!(stopping.hold.unwrap().drain.unwrap().stopping_at, Some(at(10)));
    store.advance_drain(at(11), "n", DrainStep::Stop, stopping.resource_version).await.unwrap();
    assert_eq!(node(&store, "n").await, stopping, "a second time changes nothing");
    store.advance_drain(at(12), "n", DrainStep::Finish, stopping.resource_version).await.unwrap();
    assert_eq!(node(&store, "n").await, stopping, "it still holds an attempt");
    finish(&store, &got, at(12)).await;
    store.advance_drain(at(12), "n", DrainStep::Finish, stopping.resource_version).await.unwrap();
    let drain = node(&store, "n").await.hold.unwrap().drain.unwrap();
    assert_eq!((drain.stopping_at, drain.drained_at), (Some(at(10)), Some(at(12))));
    use NodeEventKind::{DrainOverdue, DrainStarted, Drained, Registered};
    assert_eq!(history(&store, "n").await, [Registered, DrainStarted, DrainOverdue, Drained]);
    // A cordon is no drain.
    let row = store.uncordon_node(at(13), "n").await.unwrap();
    store.advance_drain(at(14), "n", DrainStep::Finish, row.resource_version).await.unwrap();
    assert_eq!(node(&store, "n").await, row);
}

pub(crate) async fn what_is_asked_of_an_unknown_node_is_refused(store: Store) {
    for refused in [
        store.cordon_node(at(1), "n").await.unwrap_err(),
        store.uncordon_node(at(1), "n").await.unwrap_err(),
        store.drain_node(at(1), "n", NewDrain::default()).await.unwrap_err(),
        store.advance_drain(at(1), "n", DrainStep::Stop, 1).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), "NotFound");
    }
    let event = NewNodeEvent { kind: NodeEventKind::Fenced, message: String::new() };
    store.note_node(at(1), "n", event).await.unwrap();
    assert_eq!(store.node_history("n").await.unwrap(), []);
}

pub(crate) async fn a_node_that_goes_takes_its_cordon_and_history_with_it(store: Store) {
    register(&store, &["n"]).await;
    store.cordon_node(at(1), "n").await.unwrap();
    store.forget_node(at(2), "n").await.unwrap().unwrap();
    assert_eq!(store.node_history("n").await.unwrap(), []);
    register(&store, &["n"]).await;
    assert_eq!(node(&store, "n").await.hold, None);
    assert_eq!(history(&store, "n").await, [NodeEventKind::Registered]);
}

pub(crate) async fn a_node_is_forced_out_and_its_attempts_end_with_their_leases(store: Store) {
    let got = claimed(&store, "n", "a", at(10)).await;
    assert_eq!(store.delete_node(at(11), "n", LiveAttempts::Refuse, None).await.unwrap_err().kind(), "InUse");
    assert_eq!(
        store.delete_node(at(11), "n", LiveAttempts::Abandon, None).await.unwrap().unwrap().running,
        1
    );
    assert_eq!(store.get_node("n").await.unwrap(), None);
    assert_eq!(claim("n").try_run(&store, at(12)).await.unwrap_err().kind(), "NotFound");
    let live = store.live_attempts("n").await.unwrap();
    assert_eq!(live.len(), 1, "its process may still run, so nobody else may start the job");
    let expired = store.expired_leases(at(35), 10).await.unwrap().rows;
    assert_eq!(expired[0].0.uid, got.job.uid);
}

pub(crate) async fn the_history_tells_the_life_of_a_node(store: Store) {
    store.create_join_token(at(0), join_token("token")).await.unwrap();
    store.put_node_config(at(0), config("n", 2)).await.unwrap();
    store.register_node(at(1), registration("n")).await.unwrap();
    let ack = |status, error: Option<&str>| Ack {
        version: 1,
        status,
        error: error.map(|message| AckError { error_type: "Broken".into(), message: message.into() }),
        hash: None,
    };
    store.record_ack(at(2), "n", ack(AckStatus::Failed, Some("no podman"))).await.unwrap();
    store.record_ack(at(3), "n", ack(AckStatus::Failed, Some("no podman"))).await.unwrap();
    store.record_ack(at(4), "n", ack(AckStatus::Applied, None)).await.unwrap();
    let ready = Condition {
        condition_type: "Ready".to_owned(),
        status: ConditionStatus::True,
        reason: "Healthy".to_owned(),
        message: String::new(),
        last_transition_time: at(5),
        observed_generation: None,
    };
    let online = NewNodeEvent { kind: NodeEventKind::Online, message: "it takes jobs".to_owned() };
    let version = node(&store, "n").await.resource_version;
    store.set_node_conditions(at(5), "n", vec![ready.clone()], Some(online.clone()), version).await.unwrap();
    let version = node(&store, "n").await.resource_version;
    store.set_node_conditions(at(6), "n", vec![ready], Some(online), version).await.unwrap();
    let newer = NodeRegistration {
        boot_id: "n boot 2".to_owned(),
        agent_version: "1.1.0".to_owned(),
        ..registration("n")
    };
    store.register_node(at(7), newer.clone()).await.unwrap();
    store.register_node(at(8), newer.clone()).await.unwrap();
    let replacing = RedeemedToken { id: "token".into(), allows_new: false, replaces: Some("n".into()) };
    let other = NodeRegistration { public_key: Some(b"other".to_vec()), token: Some(replacing), ..newer };
    store.register_node(at(9), other).await.unwrap();
    use NodeEventKind as Kind;
    assert_eq!(
        history(&store, "n").await,
        [
            Kind::ConfigDeclared,
            Kind::Registered,
            Kind::ConfigFailed,
            Kind::ConfigApplied,
            Kind::Online,
            Kind::AgentVersion,
            Kind::Returned,
            Kind::Replaced,
        ]
    );
    let events = store.node_history("n").await.unwrap();
    let failed = events.iter().find(|event| event.kind == Kind::ConfigFailed).unwrap();
    assert_eq!((failed.at, failed.message.as_str()), (at(2), "version 1: no podman"));
    let version = events.iter().find(|event| event.kind == Kind::AgentVersion).unwrap();
    assert_eq!(version.message, "from version 1.0.0 to 1.1.0");
}

pub(crate) async fn the_history_keeps_only_the_last_of_it(store: Store) {
    register(&store, &["n"]).await;
    for n in 0..250 {
        let event = NewNodeEvent { kind: NodeEventKind::Fenced, message: format!("number {n}") };
        store.note_node(at(n), "n", event).await.unwrap();
    }
    let events = store.node_history("n").await.unwrap();
    assert_eq!(events.len(), 200);
    assert_eq!((events[0].message.as_str(), events[199].message.as_str()), ("number 249", "number 50"));
}

pub(crate) async fn a_note_that_repeats_the_last_one_is_not_kept(store: Store) {
    register(&store, &["n"]).await;
    let event = |message: &str| NewNodeEvent { kind: NodeEventKind::Fenced, message: message.to_owned() };
    for message in ["a\0", "a\0", "b", "a\0"] {
        store.note_node(at(1), "n", event(message)).await.unwrap();
    }
    assert_eq!(store.node_history("n").await.unwrap().len(), 4);
}
