//! Nodes: a NodeConfig object and the node in the store. A node that registers gets an object.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DynamicObject, TypeMeta};
use serde_json::{Value, json};
use windlass_core::validate::ValidNode;
use windlass_crds::NodeConfigSpec;
use windlass_store::{Binding, NewNodeConfig, NodeRow, OriginKind, Put};

use super::cluster::Error;
use super::event::{self, Happening, event};
use super::object::{Declared, Name, ObjectKind, Seen};
use super::queue::Then;
use super::session::{Looked, Session};
use super::status::{Accepted, Refusal, fit_node, settled};
use crate::rest::present;

/// How old the time may be at which a node was last seen, while nothing else changes.
const LAST_SEEN: SignedDuration = SignedDuration::from_secs(300);

/// Brings a node and its object together.
pub(super) async fn look(session: &Session, name: &Name) -> Looked {
    let mut writes = 0;
    let result = match session.cache.get(name) {
        Some(seen) if session.cache.is_behind(name, &seen) => Ok(Then::After(Duration::from_millis(200))),
        Some(seen) => sync(session, name, &seen, &mut writes).await,
        None => without_object(session, name, &mut writes).await,
    };
    match result {
        Ok(then) => Looked { then, writes },
        Err(error) => session.failed(&error, "bring a node and its object together", writes),
    }
}

/// A node without an object gets one, once it has registered.
async fn without_object(session: &Session, name: &Name, writes: &mut u32) -> Result<Then, Error> {
    if !session.cache.knows_nodes() {
        // The list tells whether there is one.
        return Ok(Then::Settled);
    }
    let store = &session.parts.store;
    let Some(node) = store.get_node(&name.name).await?.filter(|node| node.registered_at.is_some()) else {
        return Ok(Then::Settled);
    };
    if store.origin_of(&node.uid).await?.is_some_and(|origin| !origin.released) {
        // Of another cluster, or of an object that is being looked for.
        return Ok(Then::Settled);
    }
    let mut labels = node.meta_labels.clone();
    labels.extend(session.parts.args.node_label.iter().map(|label| (label.key.clone(), label.value.clone())));
    let object = DynamicObject {
        types: Some(TypeMeta {
            api_version: windlass_crds::API_VERSION.to_owned(),
            kind: ObjectKind::Node.manifest().name().to_owned(),
        }),
        metadata: ObjectMeta {
            name: Some(node.name.clone()),
            labels: Some(labels).filter(|labels| !labels.is_empty()),
            annotations: Some(node.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        },
        data: json!({"spec": node.spec}),
    };
    *writes += 1;
    if session.writer.create(name, &object).await? {
        tracing::info!(node.name = %node.name, "object created for a node that has registered");
    }
    // The watch tells of it.
    Ok(Then::Settled)
}

async fn sync(session: &Session, name: &Name, seen: &Seen, writes: &mut u32) -> Result<Then, Error> {
    let Declared::Node(declared) = &seen.declared else { return Ok(Then::Settled) };
    if seen.is_deleted {
        return Ok(Then::Settled);
    }
    session.lead.check()?;
    let (row, accepted) = match declared {
        Ok(node) => declare(session, name, seen, node).await?,
        Err(problem) => {
            // What was in force stays.
            let row = session.parts.store.get_node(&name.name).await?;
            (row, Accepted::No(Refusal::Invalid, problem.clone()))
        }
    };
    report(session, name, seen, row.as_ref(), &accepted, writes).await?;
    Ok(match accepted {
        Accepted::Yes => Then::Settled,
        Accepted::No(..) => Then::After(Duration::from_secs(60)),
    })
}

/// Makes the store be what the object declares, if the node is this object's.
async fn declare(
    session: &Session,
    name: &Name,
    seen: &Seen,
    node: &ValidNode,
) -> Result<(Option<NodeRow>, Accepted), Error> {
    let parts = &session.parts;
    let origin = session.origin(&seen.uid);
    let row = parts.store.get_node(&name.name).await?;
    if let Some(row) = row {
        let owner = parts.store.origin_of(&row.uid).await?.filter(|owner| !owner.released);
        if owner.is_none() && row.spec != node.get().spec && row.spec != NodeConfigSpec::default() {
            let message = format!(
                "node `{}` is configured otherwise through Windlass's own API; make both the same, or `windlass export nodes`",
                name.name
            );
            return Ok((Some(row), Accepted::No(Refusal::NameTaken, message)));
        }
        match parts.store.bind_origin(origin, OriginKind::Node, &row.uid).await? {
            Binding::Bound => {}
            Binding::Taken(owner) => {
                let message = format!(
                    "node `{}` is configured by another object, {} of cluster {}; delete one of the two",
                    name.name, owner.origin.object, owner.origin.cluster
                );
                return Ok((Some(row), Accepted::No(Refusal::NameTaken, message)));
            }
        }
        let row = put(session, seen, node.get().spec.clone(), row.name).await?;
        return Ok((Some(row), Accepted::Yes));
    }
    let row = put(session, seen, node.get().spec.clone(), name.name.clone()).await?;
    match parts.store.bind_origin(origin, OriginKind::Node, &row.uid).await? {
        Binding::Bound => Ok((Some(row), Accepted::Yes)),
        Binding::Taken(owner) if owner.subject != row.uid => {
            // The object's node was deregistered since, and has come back as a new one.
            parts.store.forget_origin(&owner.origin).await?;
            Ok((Some(row), Accepted::No(Refusal::NameTaken, "the node was deregistered".to_owned())))
        }
        Binding::Taken(_) => {
            Ok((Some(row), Accepted::No(Refusal::NameTaken, "another object was quicker".to_owned())))
        }
    }
}

async fn put(
    session: &Session,
    seen: &Seen,
    spec: NodeConfigSpec,
    name: String,
) -> Result<NodeRow, windlass_store::Error> {
    let parts = &session.parts;
    let now = parts.clock.now();
    let new = NewNodeConfig {
        name,
        uid: parts.ids.uid(now),
        spec,
        labels: seen.labels.clone(),
        annotations: seen.annotations.clone(),
        expected_version: None,
    };
    let put = parts.store.put_node_config(now, new).await?;
    if let Put::Created(row) | Put::Updated(row) = &put {
        tracing::info!(node.name = %row.name, config.version = row.config_version, "node configured by its object");
    }
    Ok(put.into_inner())
}

/// Lets a node be configured by default.
pub(super) async fn put_default(session: &Session, node: &NodeRow) -> Result<(), windlass_store::Error> {
    let parts = &session.parts;
    let new = NewNodeConfig {
        name: node.name.clone(),
        uid: node.uid.clone(),
        spec: NodeConfigSpec::default(),
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        expected_version: None,
    };
    parts.store.put_node_config(parts.clock.now(), new).await.map(drop)
}

async fn report(
    session: &Session,
    name: &Name,
    seen: &Seen,
    row: Option<&NodeRow>,
    accepted: &Accepted,
    writes: &mut u32,
) -> Result<(), Error> {
    let now = session.parts.clock.now();
    // What is known of a node is not shown at an object that it does not belong to.
    let row = row.filter(|_| !matches!(accepted, Accepted::No(Refusal::NameTaken, _)));
    let mut status = row.and_then(|row| present::node(row).status).unwrap_or_default();
    status.observed_generation = Some(seen.generation);
    let mut conditions = vec![accepted.condition(seen, now)];
    conditions.append(&mut status.conditions);
    status.conditions = settled(&seen.status, conditions, seen.generation);
    status.last_seen_at = last_seen(&seen.status, status.last_seen_at);
    let wanted = fit_node(status);
    if wanted == seen.status {
        return Ok(());
    }
    *writes += session.writer.status(name, seen, &wanted).await?;
    session.cache.written(name, seen);
    for happening in happenings(&seen.status, &wanted) {
        *writes += 1;
        let event = event(name, seen, &happening, now, &session.identity);
        if let Err(error) = session.writer.event(event::namespace(name), &event).await {
            session.complain("create an Event", error.kind(), &crate::error::chain(&error));
        }
    }
    Ok(())
}

/// The time at which a node was last seen, or the one that is shown where that is not much older.
fn last_seen(shown: &Value, now: Option<Timestamp>) -> Option<Timestamp> {
    let shown: Option<Timestamp> = shown["lastSeenAt"].as_str().and_then(|text| text.parse().ok());
    match (shown, now) {
        (Some(shown), Some(now)) if now.duration_since(shown).abs() < LAST_SEEN => Some(shown),
        (_, now) => now,
    }
}

/// Changes of `Ready` and `Accepted`, which are what people wait for.
fn happenings(old: &Value, new: &Value) -> Vec<Happening> {
    let find = |status: &Value, name: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == name).cloned()
    };
    let mut found = Vec::new();
    for (name, yes, no) in [("Ready", "NodeReady", "NodeNotReady"), ("Accepted", "Accepted", "Refused")] {
        let Some(now) = find(new, name) else { continue };
        let before = find(old, name);
        let is_true = now["status"] == "True";
        let changed = match &before {
            Some(before) => {
                before["status"] != now["status"] || (!is_true && before["reason"] != now["reason"])
            }
            None => !is_true || name == "Ready",
        };
        if changed {
            let reason = now["reason"].as_str().unwrap_or_default();
            let message = now["message"].as_str().unwrap_or_default();
            found.push(Happening {
                warning: !is_true,
                reason: if is_true { yes } else { no }.to_owned(),
                action: "Observe",
                note: if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") },
                occurrence: format!("{reason} {}", now["lastTransitionTime"]),
            });
        }
    }
    found
}
