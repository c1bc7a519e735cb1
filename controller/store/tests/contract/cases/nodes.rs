//! Nodes.

use std::collections::HashMap;
use std::time::Duration;

use windlass_crds::NodeConfigSpec;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::protocol::{AckError, AckStatus};
use windlass_store::{
    Ack, Beat, CapabilityUpdate, Error, JoinTokenRow, LiveAttempts, NewNodeConfig, NodeRegistration, NodeRow,
    Put, RedeemedToken, RegisterOutcome, Store,
};

use crate::fixtures::{at, capability, claimed, finish, join_token, redeemed, register, registration};

async fn node(store: &Store, name: &str) -> NodeRow {
    store.get_node(name).await.unwrap().expect("the node exists")
}

async fn uses(store: &Store, id: &str) -> u32 {
    store.find_join_token(&join_token(id).secret_hash).await.unwrap().expect("the token exists").uses
}

async fn try_register(store: &Store, seconds: i64, registration: NodeRegistration) -> RegisterOutcome {
    store.register_node(at(seconds), registration).await.unwrap()
}

fn without_token(name: &str) -> NodeRegistration {
    NodeRegistration { token: None, ..registration(name) }
}

fn replacing(name: &str, id: &str) -> NodeRegistration {
    NodeRegistration {
        public_key: Some(b"new key".to_vec()),
        token: Some(RedeemedToken { id: id.into(), allows_new: false, replaces: Some(name.into()) }),
        ..registration(name)
    }
}

async fn replace_token(store: &Store, name: &str, id: &str) {
    let mut token = join_token(id);
    token.replaces = Some(name.to_owned());
    token.max_uses = Some(1);
    store.create_join_token(at(0), token).await.unwrap();
}

fn config(name: &str, concurrency: u32) -> NewNodeConfig {
    NewNodeConfig {
        name: name.to_owned(),
        uid: format!("declared {name}"),
        spec: NodeConfigSpec { concurrency: Some(concurrency), ..NodeConfigSpec::default() },
        labels: Default::default(),
        annotations: Default::default(),
        expected_version: None,
    }
}

pub(crate) async fn a_new_node_needs_a_token(store: Store) {
    assert_eq!(try_register(&store, 0, without_token("n")).await, RegisterOutcome::TokenInvalid);
    assert_eq!(try_register(&store, 0, registration("n")).await, RegisterOutcome::TokenInvalid);
    assert_eq!(store.get_node("n").await.unwrap(), None);
}

pub(crate) async fn a_new_node_with_a_token_is_created_and_the_use_is_counted(store: Store) {
    store.create_join_token(at(0), join_token("token")).await.unwrap();
    let outcome = try_register(&store, 5, registration("n")).await;
    let RegisterOutcome::Created(row) = outcome else { panic!("{outcome:?}") };
    assert_eq!(row, node(&store, "n").await);
    assert_eq!((row.uid.as_str(), row.boot_id.as_deref()), ("uid of n", Some("n boot 1")));
    assert_eq!((row.registered_at, row.created_at, row.last_seen_at), (Some(at(5)), at(5), Some(at(5))));
    assert_eq!(row.capability, Some(capability("n")));
    assert_eq!((row.config_version, row.generation, row.acked_version), (1, 1, None));
    assert_eq!(uses(&store, "token").await, 1);
    // A node without a key can join, but not come back without a token that replaces it.
    let keyless = NodeRegistration { public_key: None, proven: false, ..registration("k") };
    assert!(matches!(try_register(&store, 5, keyless).await, RegisterOutcome::Created(_)));
}

pub(crate) async fn a_known_node_proves_its_key_and_needs_no_token(store: Store) {
    register(&store, &["n"]).await;
    let mut again = without_token("n");
    again.boot_id = "n boot 2".to_owned();
    again.capability_hash = "capability 2".to_owned();
    again.agent_version = "1.1.0".to_owned();
    again.labels = [("zone".to_owned(), "a".to_owned())].into();
    let outcome = try_register(&store, 9, again).await;
    let RegisterOutcome::Known(row) = outcome else { panic!("{outcome:?}") };
    assert_eq!((row.boot_id.as_deref(), row.registered_at), (Some("n boot 2"), Some(at(9))));
    assert_eq!((row.agent_version.as_deref(), row.agent_labels.len()), (Some("1.1.0"), 1));
    assert_eq!((row.uid.as_str(), row.created_at), ("uid of n", at(0)));
    // Nor is one used that it happens to present.
    assert!(matches!(try_register(&store, 9, registration("n")).await, RegisterOutcome::Known(_)));
    assert_eq!(uses(&store, "token").await, 1);
}

pub(crate) async fn a_known_name_with_another_key_is_taken(store: Store) {
    register(&store, &["n"]).await;
    let before = node(&store, "n").await;
    let other = NodeRegistration { public_key: Some(b"other".to_vec()), ..registration("n") };
    assert_eq!(try_register(&store, 1, other.clone()).await, RegisterOutcome::NameTaken);
    let other = NodeRegistration { token: None, ..other };
    assert_eq!(try_register(&store, 1, other).await, RegisterOutcome::NameTaken);
    assert_eq!(node(&store, "n").await, before);
    assert_eq!(uses(&store, "token").await, 1);
}

pub(crate) async fn a_known_name_without_proof_needs_it(store: Store) {
    register(&store, &["n"]).await;
    let unproven = NodeRegistration { proven: false, ..without_token("n") };
    assert_eq!(try_register(&store, 1, unproven).await, RegisterOutcome::NeedsProof);
    let keyless = NodeRegistration { public_key: None, proven: false, ..without_token("n") };
    assert_eq!(try_register(&store, 1, keyless).await, RegisterOutcome::NeedsProof);
}

pub(crate) async fn a_presented_key_must_be_proven(store: Store) {
    store.create_join_token(at(0), join_token("token")).await.unwrap();
    let unproven = NodeRegistration { proven: false, ..registration("n") };
    assert_eq!(try_register(&store, 1, unproven).await, RegisterOutcome::NeedsProof);
    register(&store, &["m"]).await;
    replace_token(&store, "m", "r").await;
    let unproven = NodeRegistration { proven: false, ..replacing("m", "r") };
    assert_eq!(try_register(&store, 1, unproven).await, RegisterOutcome::NeedsProof);
    assert_eq!(uses(&store, "r").await, 0);
}

pub(crate) async fn a_replace_token_stores_the_new_key(store: Store) {
    register(&store, &["n"]).await;
    replace_token(&store, "n", "r").await;
    let outcome = try_register(&store, 1, replacing("n", "r")).await;
    let RegisterOutcome::Known(row) = outcome else { panic!("{outcome:?}") };
    assert_eq!(row.public_key.as_deref(), Some(b"new key".as_slice()));
    assert_eq!(uses(&store, "r").await, 1);
    assert_eq!(try_register(&store, 2, without_token("n")).await, RegisterOutcome::NameTaken);
    let new = NodeRegistration { token: None, ..replacing("n", "r") };
    assert!(matches!(try_register(&store, 2, new).await, RegisterOutcome::Known(_)));
}

pub(crate) async fn a_replace_token_is_for_its_node_only(store: Store) {
    register(&store, &["n", "m"]).await;
    replace_token(&store, "n", "r").await;
    let mut wrong = replacing("n", "r");
    wrong.name = "m".to_owned();
    assert_eq!(try_register(&store, 1, wrong.clone()).await, RegisterOutcome::NameTaken);
    wrong.name = "new".to_owned();
    assert_eq!(try_register(&store, 1, wrong).await, RegisterOutcome::TokenInvalid);
    // The caller's word does not count against what the token says.
    let mut lying = replacing("m", "r");
    lying.token = Some(RedeemedToken { id: "r".into(), allows_new: true, replaces: Some("m".into()) });
    assert_eq!(try_register(&store, 1, lying).await, RegisterOutcome::TokenInvalid);
    assert_eq!(uses(&store, "r").await, 0);
}

pub(crate) async fn an_expired_token_is_invalid(store: Store) {
    let mut token = join_token("token");
    token.expires_at = Some(at(10));
    store.create_join_token(at(0), token).await.unwrap();
    assert_eq!(try_register(&store, 10, registration("n")).await, RegisterOutcome::TokenInvalid);
    assert!(matches!(try_register(&store, 9, registration("n")).await, RegisterOutcome::Created(_)));
}

pub(crate) async fn a_revoked_token_is_invalid(store: Store) {
    store.create_join_token(at(0), join_token("token")).await.unwrap();
    assert!(store.revoke_join_token(at(1), "token").await.unwrap());
    assert!(store.revoke_join_token(at(2), "token").await.unwrap());
    assert!(!store.revoke_join_token(at(2), "other").await.unwrap());
    assert_eq!(try_register(&store, 3, registration("n")).await, RegisterOutcome::TokenInvalid);
    assert_eq!(store.list_join_tokens().await.unwrap()[0].revoked_at, Some(at(1)));
}

pub(crate) async fn a_used_up_token_is_invalid(store: Store) {
    let mut token = join_token("token");
    token.max_uses = Some(2);
    store.create_join_token(at(0), token).await.unwrap();
    for name in ["a", "b"] {
        assert!(matches!(try_register(&store, 1, registration(name)).await, RegisterOutcome::Created(_)));
    }
    assert_eq!(try_register(&store, 1, registration("c")).await, RegisterOutcome::TokenInvalid);
    assert_eq!(uses(&store, "token").await, 2);
}

pub(crate) async fn of_many_nodes_with_one_use_one_is_admitted(store: Store) {
    let mut token = join_token("token");
    token.max_uses = Some(1);
    store.create_join_token(at(0), token).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = store.clone();
        tasks.spawn(async move { try_register(&store, 1, registration(&format!("n{n}"))).await });
    }
    let outcomes = tasks.join_all().await;
    let created = outcomes.iter().filter(|outcome| matches!(outcome, RegisterOutcome::Created(_))).count();
    let refused = outcomes.iter().filter(|outcome| **outcome == RegisterOutcome::TokenInvalid).count();
    assert_eq!((created, refused), (1, 19));
    assert_eq!(store.list_nodes().await.unwrap().len(), 1);
}

pub(crate) async fn a_declared_node_that_registers_keeps_its_configuration(store: Store) {
    let Put::Created(declared) = store.put_node_config(at(0), config("n", 3)).await.unwrap() else {
        panic!()
    };
    assert_eq!((declared.config_version, declared.registered_at), (1, None));
    assert_eq!(try_register(&store, 1, without_token("n")).await, RegisterOutcome::TokenInvalid);
    store.create_join_token(at(0), join_token("token")).await.unwrap();
    let RegisterOutcome::Created(row) = try_register(&store, 2, registration("n")).await else { panic!() };
    assert_eq!((row.uid, row.spec, row.created_at), (declared.uid, declared.spec, at(0)));
    assert_eq!(row.registered_at, Some(at(2)));
}

pub(crate) async fn a_configuration_grows_its_version_only_when_it_differs(store: Store) {
    store.put_node_config(at(0), config("n", 3)).await.unwrap();
    let before = node(&store, "n").await;
    assert_eq!(store.put_node_config(at(1), config("n", 3)).await.unwrap(), Put::Unchanged(before.clone()));
    let mut labelled = config("n", 3);
    labelled.labels = [("a".to_owned(), "b".to_owned())].into();
    let Put::Updated(row) = store.put_node_config(at(2), labelled.clone()).await.unwrap() else { panic!() };
    assert_eq!((row.config_version, row.generation), (1, 1), "labels of the manifest are not configuration");
    assert!(row.resource_version > before.resource_version);
    labelled.spec.concurrency = Some(4);
    let Put::Updated(row) = store.put_node_config(at(3), labelled).await.unwrap() else { panic!() };
    assert_eq!((row.config_version, row.generation), (2, 2));
    assert_eq!(row, node(&store, "n").await);
}

pub(crate) async fn version_ten_is_newer_than_nine(store: Store) {
    register(&store, &["n"]).await;
    for concurrency in 1..=9 {
        store.put_node_config(at(0), config("n", concurrency)).await.unwrap();
    }
    assert_eq!(node(&store, "n").await.config_version, 10);
    let ack = |version| Ack { version, status: AckStatus::Applied, error: None, hash: None };
    store.record_ack(at(1), "n", ack(9)).await.unwrap();
    store.record_ack(at(2), "n", ack(10)).await.unwrap();
    store.record_ack(at(3), "n", ack(9)).await.unwrap();
    let row = node(&store, "n").await;
    assert_eq!((row.acked_version, row.applied_version), (Some(10), Some(10)));
}

pub(crate) async fn a_configuration_on_a_stale_version_conflicts(store: Store) {
    let on = |version| NewNodeConfig { expected_version: Some(version), ..config("n", 3) };
    let refused = store.put_node_config(at(0), on(7)).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { object: "node", expected: 7, found: 0, .. }), "{refused}");
    store.put_node_config(at(0), on(0)).await.unwrap();
    let refused = store.put_node_config(at(0), on(0)).await.unwrap_err();
    assert_eq!(refused.kind(), "Conflict");
    let version = node(&store, "n").await.resource_version;
    store.put_node_config(at(0), on(version)).await.unwrap();
}

pub(crate) async fn an_acknowledgement_of_a_lower_version_changes_nothing(store: Store) {
    register(&store, &["n"]).await;
    let ack = |version, hash: &str| Ack {
        version,
        status: AckStatus::Applied,
        error: None,
        hash: Some(hash.to_owned()),
    };
    store.record_ack(at(1), "n", ack(3, "three")).await.unwrap();
    let before = node(&store, "n").await;
    store.record_ack(at(2), "n", ack(2, "two")).await.unwrap();
    let after = node(&store, "n").await;
    assert_eq!((after.acked_version, after.effective_hash.as_deref()), (Some(3), Some("three")));
    assert_eq!(after.resource_version, before.resource_version);
    store.record_ack(at(3), "n", ack(3, "three")).await.unwrap();
    assert_eq!(node(&store, "n").await.resource_version, before.resource_version, "said before");
}

pub(crate) async fn a_failed_acknowledgement_keeps_the_applied_version(store: Store) {
    register(&store, &["n"]).await;
    let good = Ack { version: 1, status: AckStatus::Applied, error: None, hash: None };
    store.record_ack(at(1), "n", good.clone()).await.unwrap();
    let error = AckError { error_type: "RuntimeUnavailable".into(), message: "podman is missing".into() };
    let failed = Ack { version: 2, status: AckStatus::Failed, error: Some(error.clone()), hash: None };
    store.record_ack(at(2), "n", failed).await.unwrap();
    let row = node(&store, "n").await;
    assert_eq!((row.acked_version, row.applied_version), (Some(2), Some(1)));
    assert_eq!((row.ack_status, row.ack_error), (Some(AckStatus::Failed), Some(error)));
    store.record_ack(at(3), "n", Ack { version: 2, ..good }).await.unwrap();
    let row = node(&store, "n").await;
    assert_eq!(
        (row.ack_status, row.ack_error, row.applied_version),
        (Some(AckStatus::Applied), None, Some(2))
    );
}

pub(crate) async fn an_acknowledgement_of_an_unknown_node_is_refused(store: Store) {
    let ack = Ack { version: 1, status: AckStatus::Applied, error: None, hash: None };
    assert_eq!(store.record_ack(at(1), "n", ack).await.unwrap_err().kind(), "NotFound");
    let update = CapabilityUpdate {
        hash: "h".into(),
        report: capability("n"),
        labels: Default::default(),
        agent_version: "1".into(),
    };
    assert_eq!(store.record_capability(at(1), "n", update).await.unwrap_err().kind(), "NotFound");
    assert_eq!(store.set_node_conditions(at(1), "n", vec![], None, 0).await.unwrap_err().kind(), "NotFound");
    assert_eq!(store.delete_node(at(1), "n", LiveAttempts::Refuse, None).await.unwrap(), None);
}

pub(crate) async fn capability_reports_replace_each_other(store: Store) {
    register(&store, &["n"]).await;
    for n in 0..30 {
        let mut report = capability("n");
        report.compute.cpu_cores = n;
        let update = CapabilityUpdate {
            hash: format!("hash {n}"),
            report,
            labels: [("round".to_owned(), n.to_string())].into(),
            agent_version: "2.0.0".into(),
        };
        store.record_capability(at(i64::from(n)), "n", update).await.unwrap();
    }
    let row = node(&store, "n").await;
    assert_eq!(row.capability_hash.as_deref(), Some("hash 29"));
    assert_eq!(row.capability.unwrap().compute.cpu_cores, 29);
    assert_eq!((row.agent_labels["round"].as_str(), row.last_seen_at), ("29", Some(at(29))));
    let history = store.capability_history("n").await.unwrap();
    assert_eq!(history.len(), 20);
    assert_eq!((history[0].hash.as_str(), history[0].at), ("hash 29", at(29)));
    assert_eq!(history[19].report.compute.cpu_cores, 10);
}

pub(crate) async fn conditions_are_set_on_the_version_they_were_judged_on(store: Store) {
    register(&store, &["n"]).await;
    let version = node(&store, "n").await.resource_version;
    let ready = Condition {
        condition_type: "Ready".into(),
        status: ConditionStatus::True,
        reason: "Beats".into(),
        message: String::new(),
        last_transition_time: at(1),
        observed_generation: Some(1),
    };
    store.set_node_conditions(at(1), "n", vec![ready.clone()], None, version).await.unwrap();
    let refused = store.set_node_conditions(at(1), "n", vec![], None, version).await.unwrap_err();
    assert_eq!(refused.kind(), "Conflict");
    let row = node(&store, "n").await;
    assert_eq!(row.conditions, std::slice::from_ref(&ready));
    store.set_node_conditions(at(1), "n", vec![ready], None, row.resource_version).await.unwrap();
    assert_eq!(node(&store, "n").await.resource_version, row.resource_version, "they were so before");
}

pub(crate) async fn a_node_with_attempts_is_not_deleted(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let refused = store.delete_node(at(1), "n", LiveAttempts::Refuse, None).await.unwrap_err();
    assert!(matches!(refused, Error::InUse { object: "node", .. }), "{refused}");
    finish(&store, &got, at(2)).await;
    assert_eq!(store.delete_node(at(3), "n", LiveAttempts::Refuse, None).await.unwrap().unwrap().name, "n");
    assert_eq!(store.get_node("n").await.unwrap(), None);
    assert_eq!(store.attempts(&got.job.uid).await.unwrap()[0].node, "n", "what it did stays known");
}

pub(crate) async fn a_deleted_node_needs_a_token_again(store: Store) {
    register(&store, &["n"]).await;
    store.delete_node(at(1), "n", LiveAttempts::Refuse, None).await.unwrap();
    assert_eq!(try_register(&store, 2, without_token("n")).await, RegisterOutcome::TokenInvalid);
    // The agent still has the token that it joined with; it must not come back by itself.
    assert_eq!(try_register(&store, 2, registration("n")).await, RegisterOutcome::Departed { at: at(1) });
    let renamed = NodeRegistration { public_key: registration("n").public_key, ..registration("m") };
    assert_eq!(try_register(&store, 2, renamed).await, RegisterOutcome::Departed { at: at(1) });
    let newer = JoinTokenRow { created_at: at(2), ..join_token("newer") };
    store.create_join_token(at(2), newer).await.unwrap();
    let again = || NodeRegistration { token: Some(redeemed("newer")), ..registration("n") };
    assert!(matches!(try_register(&store, 3, again()).await, RegisterOutcome::Created(_)));
    store.delete_node(at(4), "n", LiveAttempts::Refuse, None).await.unwrap();
    assert_eq!(try_register(&store, 5, again()).await, RegisterOutcome::Departed { at: at(4) });
    let other = NodeRegistration { public_key: Some(b"another key".to_vec()), ..again() };
    assert!(matches!(try_register(&store, 5, other).await, RegisterOutcome::Created(_)), "another agent may");
}

pub(crate) async fn a_forgotten_node_may_come_back_with_the_token_it_has(store: Store) {
    register(&store, &["n"]).await;
    assert_eq!(store.forget_node(at(1), "n").await.unwrap().unwrap().name, "n");
    assert_eq!(store.forget_node(at(1), "n").await.unwrap(), None);
    assert!(matches!(try_register(&store, 2, registration("n")).await, RegisterOutcome::Created(_)));
    claimed(&store, "n", "job", at(3)).await;
    assert_eq!(store.forget_node(at(4), "n").await.unwrap_err().kind(), "InUse");
}

pub(crate) async fn nodes_are_listed_with_what_they_hold(store: Store) {
    register(&store, &["b", "a"]).await;
    store.put_node_config(at(0), config("c", 1)).await.unwrap();
    claimed(&store, "b", "job", at(0)).await;
    let beat = Beat {
        node: "a".into(),
        boot_id: "a boot 1".into(),
        held: vec![],
        left: HashMap::new(),
        slots: 3,
        not_ready: None,
        lease: Duration::from_secs(1),
        lease_continue: Duration::from_secs(1),
    };
    store.beat(at(1), vec![beat]).await.unwrap();
    let nodes = store.list_nodes().await.unwrap();
    let seen: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.running, node.slots)).collect();
    assert_eq!(seen, [("a", 0, 3), ("b", 1, 0), ("c", 0, 0)]);
}
