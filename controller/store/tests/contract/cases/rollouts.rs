//! Roll-outs: what is kept of them, and how they get further.

use serde_json::json;
use windlass_crds::rollout::{RolloutDirection, RolloutNodeState, RolloutPhase};
use windlass_crds::{NodeConfigSpec, Span};
use windlass_store::{Error, LiveAttempts, NewNodeConfig, NewRollout, RolloutRow, RolloutStep, Store};

use crate::fixtures::{at, register};

fn rollout(name: &str, nodes: &[&str]) -> NewRollout {
    NewRollout {
        name: name.to_owned(),
        selector: "zone=a".to_owned(),
        patch: json!({"concurrency": 4, "labels": {"old": null}}),
        max_unavailable: 2,
        pause_after: Some(1),
        timeout: Span::from_secs(300),
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
    }
}

fn spec(concurrency: u32) -> NodeConfigSpec {
    NodeConfigSpec { concurrency: Some(concurrency), ..NodeConfigSpec::default() }
}

async fn change(store: &Store, node: &str, concurrency: u32) -> RolloutStep {
    let expected_version = store.get_node(node).await.unwrap().unwrap().resource_version;
    RolloutStep::Change { node: node.to_owned(), spec: Box::new(spec(concurrency)), expected_version }
}

fn settle(node: &str, state: RolloutNodeState) -> RolloutStep {
    RolloutStep::Settle { node: node.to_owned(), state, message: "so it is".to_owned() }
}

fn turn(phase: RolloutPhase) -> RolloutStep {
    RolloutStep::Turn {
        direction: RolloutDirection::Forward,
        phase,
        pause_after: None,
        reason: "Requested".to_owned(),
        message: "somebody has asked".to_owned(),
    }
}

fn states(row: &RolloutRow) -> Vec<(&str, RolloutNodeState)> {
    row.nodes.iter().map(|node| (node.node.as_str(), node.state)).collect()
}

pub(crate) async fn a_roll_out_reads_back_as_it_was_started(store: Store) {
    register(&store, &["b", "a"]).await;
    let row = store.create_rollout(at(1), rollout("r", &["b", "a"])).await.unwrap();
    assert_eq!(store.get_rollout("r").await.unwrap().as_ref(), Some(&row));
    assert_eq!(store.list_rollouts().await.unwrap(), std::slice::from_ref(&row));
    assert_eq!(
        (row.version, row.direction, row.phase),
        (1, RolloutDirection::Forward, RolloutPhase::Rolling)
    );
    assert_eq!((row.max_unavailable, row.pause_after, row.timeout), (2, Some(1), Span::from_secs(300)));
    assert_eq!((row.patch, row.created_at), (json!({"concurrency": 4, "labels": {"old": null}}), at(1)));
    assert_eq!(store.get_rollout("none").await.unwrap(), None);
    let again = store.create_rollout(at(2), rollout("r", &[])).await.unwrap_err();
    assert!(matches!(again, Error::AlreadyExists { .. }), "{again:?}");
    let unknown = store.create_rollout(at(2), rollout("s", &["nowhere"])).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound { .. }), "{unknown:?}");
    assert_eq!(store.get_rollout("s").await.unwrap(), None, "nothing of it is there");
}

pub(crate) async fn a_step_changes_the_node_and_is_noted_in_its_history(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(1), rollout("r", &["a", "b"])).await.unwrap();
    let before = store.get_node("a").await.unwrap().unwrap();
    let step = change(&store, "a", 4).await;
    let row = store.advance_rollout(at(2), "r", 1, vec![step]).await.unwrap();
    assert_eq!(states(&row), [("a", RolloutNodeState::Changing), ("b", RolloutNodeState::Pending)]);
    let node = store.get_node("a").await.unwrap().unwrap();
    assert_eq!((node.spec.concurrency, node.config_version), (Some(4), before.config_version + 1));
    assert_eq!(row.nodes[0].config_version, Some(node.config_version));
    assert_eq!((row.nodes[0].changed_at, row.nodes[0].former.as_ref()), (Some(at(2)), Some(&before.spec)));
    // What was there first stays known, however often it is changed.
    let step = change(&store, "a", 5).await;
    let row = store.advance_rollout(at(3), "r", row.version, vec![step]).await.unwrap();
    assert_eq!(row.nodes[0].former.as_ref(), Some(&before.spec));
    let steps = vec![settle("a", RolloutNodeState::Done), turn(RolloutPhase::Paused)];
    let row = store.advance_rollout(at(4), "r", row.version, steps).await.unwrap();
    assert_eq!(
        (row.phase, row.reason.as_deref(), row.pause_after),
        (RolloutPhase::Paused, Some("Requested"), None)
    );
    assert_eq!(
        (row.nodes[0].state, row.nodes[0].message.as_deref()),
        (RolloutNodeState::Done, Some("so it is"))
    );
    let history = store.node_history("a").await.unwrap();
    let told: Vec<_> = history.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(told[0], "roll-out `r`: Done: so it is", "{told:?}");
    assert!(told.iter().any(|message| message.starts_with("roll-out `r` has declared version")), "{told:?}");
}

pub(crate) async fn what_somebody_has_declared_in_between_is_what_a_node_had_before(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(1), rollout("r", &["a", "b"])).await.unwrap();
    let first = store.get_node("a").await.unwrap().unwrap();
    let step = change(&store, "a", 4).await;
    let row = store.advance_rollout(at(2), "r", 1, vec![step]).await.unwrap();
    let declare = async |concurrency| {
        let node = store.get_node("a").await.unwrap().unwrap();
        let config = NewNodeConfig {
            name: "a".to_owned(),
            uid: node.uid,
            spec: spec(concurrency),
            labels: node.meta_labels,
            annotations: node.annotations,
            expected_version: None,
        };
        store.put_node_config(at(3), config).await.unwrap().into_inner().config_version
    };
    declare(9).await;
    let step = change(&store, "a", 5).await;
    let row = store.advance_rollout(at(4), "r", row.version, vec![step]).await.unwrap();
    assert_eq!(row.nodes[0].former.as_ref(), Some(&spec(9)), "not {:?}", first.spec);
    // Also where it is as it should be already, and is only watched.
    let config_version = declare(8).await;
    let watch = RolloutStep::Watch { node: "a".to_owned(), config_version };
    let row = store.advance_rollout(at(5), "r", row.version, vec![watch.clone()]).await.unwrap();
    assert_eq!(row.nodes[0].former.as_ref(), Some(&spec(8)));
    let row = store.advance_rollout(at(6), "r", row.version, vec![watch]).await.unwrap();
    assert_eq!(row.nodes[0].former.as_ref(), Some(&spec(8)));
}

pub(crate) async fn a_configuration_that_is_declared_again_is_a_new_version(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(1), rollout("r", &["a", "b"])).await.unwrap();
    let (one, again) = (change(&store, "a", 4).await, async || change(&store, "a", 4).await);
    let row = store.advance_rollout(at(2), "r", 1, vec![one]).await.unwrap();
    let first = store.get_node("a").await.unwrap().unwrap();
    let row = store.advance_rollout(at(3), "r", row.version, vec![again().await]).await.unwrap();
    let second = store.get_node("a").await.unwrap().unwrap();
    assert_eq!((second.config_version, second.generation), (first.config_version + 1, first.generation));
    assert!(second.resource_version > first.resource_version);
    assert_eq!(row.nodes[0].config_version, Some(second.config_version));
    assert_eq!(row.nodes[0].former.as_ref(), Some(&NodeConfigSpec::default()));
    let told: Vec<_> =
        store.node_history("a").await.unwrap().into_iter().map(|event| event.message).collect();
    let waits = format!("version {} waits for the node", second.config_version);
    assert!(told.contains(&waits), "{told:?}");
}

pub(crate) async fn steps_happen_on_the_version_they_were_decided_on_or_not_at_all(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(1), rollout("r", &["a", "b"])).await.unwrap();
    let (one, other) = (change(&store, "a", 4).await, change(&store, "b", 4).await);
    let late = store.advance_rollout(at(2), "r", 2, vec![one.clone()]).await.unwrap_err();
    assert!(matches!(late, Error::Conflict { object: "roll-out", .. }), "{late:?}");
    // Somebody has touched the second node.
    store.cordon_node(at(2), "b").await.unwrap();
    let late = store.advance_rollout(at(3), "r", 1, vec![one, other]).await.unwrap_err();
    assert!(matches!(late, Error::Conflict { object: "node", .. }), "{late:?}");
    assert_eq!(store.get_node("a").await.unwrap().unwrap().spec, NodeConfigSpec::default());
    let row = store.get_rollout("r").await.unwrap().unwrap();
    assert_eq!((row.version, row.nodes[0].state), (1, RolloutNodeState::Pending));
    let unknown = store.advance_rollout(at(3), "none", 1, vec![]).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound { .. }), "{unknown:?}");
}

pub(crate) async fn a_node_belongs_to_one_open_roll_out(store: Store) {
    register(&store, &["a", "b", "c"]).await;
    store.create_rollout(at(1), rollout("one", &["a", "b"])).await.unwrap();
    let taken = store.create_rollout(at(2), rollout("two", &["c", "b"])).await.unwrap_err();
    let Error::InUse { key, by, .. } = &taken else { panic!("{taken:?}") };
    assert_eq!((key.as_str(), by.as_str()), ("b", "roll-out `one`"));
    let row = store.create_rollout(at(2), rollout("two", &["c"])).await.unwrap();
    let join = vec![RolloutStep::Join { node: "a".to_owned() }];
    let taken = store.advance_rollout(at(3), "two", row.version, join.clone()).await.unwrap_err();
    assert!(matches!(taken, Error::InUse { .. }), "{taken:?}");
    let one = store.advance_rollout(at(4), "one", 1, vec![turn(RolloutPhase::Aborted)]).await.unwrap();
    let two = store.advance_rollout(at(5), "two", row.version, join).await.unwrap();
    assert_eq!(states(&two), [("c", RolloutNodeState::Pending), ("a", RolloutNodeState::Pending)]);
    // It cannot be taken up again while another one has one of its nodes.
    let taken = store.advance_rollout(at(6), "one", one.version, vec![turn(RolloutPhase::Rolling)]).await;
    assert!(matches!(taken, Err(Error::InUse { .. })), "{taken:?}");
    store.advance_rollout(at(7), "two", two.version, vec![turn(RolloutPhase::Complete)]).await.unwrap();
    store.advance_rollout(at(8), "one", one.version, vec![turn(RolloutPhase::Rolling)]).await.unwrap();
}

pub(crate) async fn a_node_that_is_deregistered_leaves_its_roll_out(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(1), rollout("r", &["a", "b"])).await.unwrap();
    store.delete_node(at(2), "a", LiveAttempts::Refuse, None).await.unwrap();
    let row = store.get_rollout("r").await.unwrap().unwrap();
    assert_eq!(states(&row), [("b", RolloutNodeState::Pending)]);
    // Steps about it change nothing.
    let steps = vec![settle("a", RolloutNodeState::Done)];
    let row = store.advance_rollout(at(3), "r", row.version, steps).await.unwrap();
    assert_eq!(states(&row), [("b", RolloutNodeState::Pending)]);
}

pub(crate) async fn only_the_last_hundred_that_have_ended_are_kept(store: Store) {
    register(&store, &["a", "b"]).await;
    store.create_rollout(at(0), rollout("open", &["b"])).await.unwrap();
    for n in 0..103 {
        let name = format!("r-{n:03}");
        store.create_rollout(at(n), rollout(&name, &["a"])).await.unwrap();
        store.advance_rollout(at(n), &name, 1, vec![turn(RolloutPhase::Complete)]).await.unwrap();
    }
    let names: Vec<_> = store.list_rollouts().await.unwrap().into_iter().map(|row| row.name).collect();
    assert_eq!((names.len(), names.first().map(String::as_str)), (101, Some("r-102")));
    assert_eq!(names[99..], ["r-003", "open"]);
}
