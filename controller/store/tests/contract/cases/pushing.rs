//! Nodes that are given their jobs: the numbers of their tokens, how it went, and claims on their behalf.

use windlass_crds::NodeConfigSpec;
use windlass_crds::node_config::DispatchMode;
use windlass_crds::protocol::AckStatus;
use windlass_store::{Ack, Error, NewNodeConfig, NewRollout, NodeEventKind, NodeRow, RolloutStep, Store};

use crate::fixtures::{at, claim, job, register};

async fn node(store: &Store) -> NodeRow {
    store.get_node("n").await.unwrap().expect("the node exists")
}

async fn declare(store: &Store, second: i64, dispatch: DispatchMode) -> NodeRow {
    let config = NewNodeConfig {
        name: "n".to_owned(),
        uid: "uid".to_owned(),
        spec: NodeConfigSpec { dispatch, ..NodeConfigSpec::default() },
        labels: Default::default(),
        annotations: Default::default(),
        expected_version: None,
    };
    store.put_node_config(at(second), config).await.unwrap().into_inner()
}

async fn apply(store: &Store, version: u64) {
    let ack = Ack { version, status: AckStatus::Applied, error: None, hash: None };
    store.record_ack(at(3), "n", ack).await.unwrap();
}

pub(crate) async fn a_token_has_a_number_and_comes_with_a_newer_configuration(store: Store) {
    register(&store, &["n"]).await;
    let declared = declare(&store, 1, DispatchMode::Push).await;
    assert_eq!(declared.push, None);
    let first = store.issue_worker_token(at(2), "n", 0).await.unwrap();
    assert_eq!(first.config_version, declared.config_version, "the node has not answered for it yet");
    let push = first.push.clone().unwrap();
    assert_eq!((push.serial, push.since_version, push.issued_at), (1, declared.config_version, at(2)));
    assert_eq!(push.token_at(None), None);
    assert_eq!(push.token_at(Some(declared.config_version - 1)), None);
    assert_eq!(push.token_at(Some(declared.config_version)), Some((1, at(2))));
    apply(&store, first.config_version).await;

    let second = store.issue_worker_token(at(10), "n", 1).await.unwrap();
    assert_eq!(second.config_version, first.config_version + 1);
    assert_eq!(second.generation, first.generation, "nobody has declared anything");
    let push = second.push.clone().unwrap();
    assert_eq!(push.token_at(Some(first.config_version)), Some((1, at(2))), "until the node has applied it");
    assert_eq!(push.token_at(Some(second.config_version)), Some((2, at(10))));
    let late = store.issue_worker_token(at(11), "n", 1).await.unwrap_err();
    assert!(matches!(late, Error::Conflict { expected: 1, found: 2, .. }), "{late}");
    assert_eq!(node(&store).await, store.list_nodes().await.unwrap().remove(0));
    assert!(matches!(store.issue_worker_token(at(11), "m", 0).await, Err(Error::NotFound { .. })));

    // Who pulls has none, and who is given its jobs again gets another one.
    let pulls = declare(&store, 12, DispatchMode::Pull).await;
    assert_eq!(pulls.push, None);
    apply(&store, pulls.config_version).await;
    let again = declare(&store, 13, DispatchMode::Push).await;
    let again =
        store.issue_worker_token(at(14), "n", 0).await.map(|row| (row.config_version, again.config_version));
    let (with_token, declared) = again.unwrap();
    assert_eq!(with_token, declared);
}

pub(crate) async fn a_token_of_a_node_that_has_answered_makes_a_newer_configuration(store: Store) {
    register(&store, &["n"]).await;
    let declared = declare(&store, 1, DispatchMode::Push).await;
    apply(&store, declared.config_version).await;
    let issued = store.issue_worker_token(at(4), "n", 0).await.unwrap();
    assert_eq!(issued.config_version, declared.config_version + 1);
    assert_eq!(issued.push.unwrap().since_version, issued.config_version);
}

pub(crate) async fn a_roll_out_takes_a_newer_token_for_its_own_version(store: Store) {
    register(&store, &["n"]).await;
    declare(&store, 1, DispatchMode::Push).await;
    let issued = store.issue_worker_token(at(2), "n", 0).await.unwrap();
    let new = NewRollout {
        name: "r".to_owned(),
        selector: "zone=a".to_owned(),
        patch: serde_json::json!({}),
        max_unavailable: 1,
        pause_after: None,
        timeout: windlass_crds::Span::from_secs(300),
        nodes: vec!["n".to_owned()],
    };
    let rollout = store.create_rollout(at(3), new).await.unwrap();
    let spec = Box::new(NodeConfigSpec { concurrency: Some(2), ..issued.spec.clone() });
    let expected_version = node(&store).await.resource_version;
    let step = RolloutStep::Change { node: "n".to_owned(), spec, expected_version };
    let changed = store.advance_rollout(at(4), "r", rollout.version, vec![step]).await.unwrap();
    let declared = node(&store).await.config_version;
    assert_eq!(changed.nodes[0].config_version, Some(declared));
    let renewed = store.issue_worker_token(at(5), "n", 1).await.unwrap();
    let followed = store.get_rollout("r").await.unwrap().unwrap();
    assert_eq!(followed.nodes[0].config_version, Some(renewed.config_version));
    assert!(followed.version > changed.version, "what was decided on the one before is decided again");
}

pub(crate) async fn how_calls_go_is_written_when_it_changes(store: Store) {
    register(&store, &["n"]).await;
    store.note_delivery(at(1), "n", Ok(())).await.unwrap();
    store.note_delivery(at(1), "nobody", Ok(())).await.unwrap();
    assert_eq!(node(&store).await.push, None, "it is called by nobody");
    declare(&store, 1, DispatchMode::Push).await;
    store.issue_worker_token(at(2), "n", 0).await.unwrap();
    store.note_delivery(at(10), "n", Ok(())).await.unwrap();
    let first = node(&store).await;
    assert_eq!(first.push.as_ref().unwrap().delivered_at, Some(at(10)));
    store.note_delivery(at(11), "n", Ok(())).await.unwrap();
    assert_eq!(node(&store).await, first, "often enough");
    for (second, error) in [(20, "refused"), (21, "refused"), (22, "timed out")] {
        store.note_delivery(at(second), "n", Err(error.to_owned())).await.unwrap();
    }
    let failing = node(&store).await.push.unwrap();
    assert_eq!((failing.error.as_deref(), failing.error_since), (Some("timed out"), Some(at(20))));
    assert_eq!(failing.delivered_at, Some(at(10)));
    store.note_delivery(at(23), "n", Ok(())).await.unwrap();
    let back = node(&store).await.push.unwrap();
    assert_eq!((back.error, back.error_since, back.delivered_at), (None, None, Some(at(23))));
    let kinds: Vec<_> = store.node_history("n").await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds[..2], [NodeEventKind::Reached, NodeEventKind::Unreached]);
    store.issue_worker_token(at(30), "n", 1).await.unwrap();
    assert_eq!(node(&store).await.push.unwrap().delivered_at, Some(at(23)));
}

pub(crate) async fn nothing_is_heard_of_a_node_by_a_claim_on_its_behalf(store: Store) {
    register(&store, &["n"]).await;
    let before = node(&store).await;
    job("a").create(&store, at(1)).await;
    let claimed = claim("n").on_behalf().run(&store, at(500)).await;
    assert_eq!(claimed.len(), 1);
    let after = node(&store).await;
    assert_eq!((after.last_seen_at, after.last_claim_at), (before.last_seen_at, before.last_claim_at));
    assert_eq!(after.running, 1);
    claim("n").run(&store, at(501)).await;
    assert_eq!(node(&store).await.last_claim_at, Some(at(501)));
}
