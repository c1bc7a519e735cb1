//! Roll-outs: started, shown, and turned by people.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use windlass_core::rollout::{self, Command, Patch, Selector};
use windlass_crds::Span;
use windlass_crds::names::{self, Quoted};
use windlass_crds::protocol::FieldError;
use windlass_crds::rollout::{NewRollout, Rollout, RolloutNode, RolloutPhase};
use windlass_store::{NodeRow, RolloutNodeRow, RolloutRow};

use super::App;
use super::extract::{Json as Input, Operator, Path};
use super::origin::declared_in;
use crate::error::{ApiError, Code};
use crate::reconcile;

/// The shortest time for a node: a few heartbeats.
const MIN_TIMEOUT: Span = Span::from_secs(10);
/// The longest time for a node.
const MAX_TIMEOUT: Span = Span::from_secs(7 * 24 * 3600);
/// The most nodes whose errors are told.
const TOLD: usize = 20;
/// How often a command is tried while the roll-out gets further.
const TRIES: usize = 5;

pub(super) async fn list(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    let nodes = app.store.list_nodes().await?;
    let rows = app.store.list_rollouts().await?;
    let items: Vec<_> = rows.iter().map(|row| present(row, &nodes)).collect();
    Ok(Json(json!({"kind": "RolloutList", "items": items})))
}

pub(super) async fn get(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Rollout>, ApiError> {
    let row = find(&app, &name).await?;
    Ok(Json(present(&row, &app.store.list_nodes().await?)))
}

pub(super) async fn start(
    State(app): State<App>,
    _: Operator,
    Input(new): Input<NewRollout>,
) -> Result<(StatusCode, Json<Rollout>), ApiError> {
    let now = app.clock.now();
    let name = new.name.clone().unwrap_or_else(|| made_up(&app.ids.uid(now)));
    let mut errors = check(&new, &name);
    let selector = Selector::parse(&new.selector);
    let checked = selector
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|selector| Patch::check(&new.patch, selector).map(|patch| (selector.clone(), patch)));
    let (selector, patch) = match checked {
        Ok(checked) if errors.is_empty() => checked,
        Ok(_) => return Err(ApiError::invalid("roll-out", errors)),
        Err(more) => {
            errors.extend(more);
            return Err(ApiError::invalid("roll-out", errors));
        }
    };
    let nodes = app.store.list_nodes().await?;
    let selected = reconcile::selected(&nodes, &selector, &patch);
    if selected.is_empty() {
        let message = format!(
            "{} matches no node; `windlass get nodes -o yaml` shows the labels in force",
            Quoted(&new.selector)
        );
        errors.push(FieldError { field: "selector".to_owned(), message });
    }
    for node in selected.iter().filter(|node| !node.errors.is_empty()).take(TOLD) {
        errors.extend(node.errors.iter().map(|FieldError { field, message }| FieldError {
            field: field.clone(),
            message: format!("on node `{}`: {message}", node.name),
        }));
    }
    for node in &selected {
        let Some(cluster) = declared_in(&app.store, &node.uid).await? else { continue };
        let message = format!(
            "node `{}` is declared in Kubernetes (cluster {cluster}), which would undo the change; leave it out with \
             the selector and change it there with kubectl",
            node.name
        );
        errors.push(FieldError { field: "selector".to_owned(), message });
        if errors.len() >= TOLD {
            break;
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("roll-out", errors));
    }
    let new = windlass_store::NewRollout {
        name,
        selector: new.selector,
        patch: patch.spec().clone(),
        max_unavailable: new.max_unavailable,
        pause_after: new.pause_after,
        timeout: new.node_timeout,
        nodes: selected.into_iter().map(|node| node.name).collect(),
    };
    let row = app.store.create_rollout(now, new).await.map_err(explained)?;
    tracing::info!(rollout.name = %row.name, rollout.nodes = row.nodes.len(), "roll-out started by request");
    Ok((StatusCode::CREATED, Json(present(&row, &nodes))))
}

pub(super) async fn pause(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Rollout>, ApiError> {
    turn(&app, &name, Command::Pause).await
}

pub(super) async fn resume(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Rollout>, ApiError> {
    turn(&app, &name, Command::Resume).await
}

pub(super) async fn abort(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Rollout>, ApiError> {
    turn(&app, &name, Command::Abort).await
}

pub(super) async fn undo(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Rollout>, ApiError> {
    turn(&app, &name, Command::Undo).await
}

/// Does what a person asks, where it means something.
async fn turn(app: &App, name: &str, command: Command) -> Result<Json<Rollout>, ApiError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let row = find(app, name).await?;
        let nodes = app.store.list_nodes().await?;
        let turned = rollout::turn(&reconcile::snapshot(&row, &nodes), command).map_err(|refusal| {
            ApiError::new(Code::Conflict, format!("roll-out `{name}` cannot {command}: {refusal}"))
        })?;
        let steps = reconcile::turned(turned);
        match app.store.advance_rollout(app.clock.now(), name, row.version, steps).await {
            Ok(row) => {
                tracing::info!(rollout.name = %name, rollout.command = %command, "roll-out turned by request");
                return Ok(Json(present(&row, &nodes)));
            }
            // It has got further in between.
            Err(windlass_store::Error::Conflict { .. }) if tries < TRIES => {}
            Err(error) => return Err(explained(error)),
        }
    }
}

/// Says what to do about a node that another roll-out has hold of.
fn explained(error: windlass_store::Error) -> ApiError {
    if let windlass_store::Error::InUse { key, by, .. } = &error {
        let detail = format!("{by} has hold of node `{key}` already: let it finish, or undo or abort it");
        return ApiError::new(Code::InUse, detail);
    }
    error.into()
}

fn check(new: &NewRollout, name: &str) -> Vec<FieldError> {
    let NewRollout { name: _, selector: _, patch: _, max_unavailable, pause_after, node_timeout } = new;
    let mut errors = Vec::new();
    let mut refuse = |field: &str, message: String| {
        errors.push(FieldError { field: field.to_owned(), message });
    };
    if let Err(error) = names::check_label(name) {
        refuse("name", format!("{} {error}", Quoted(name)));
    }
    if *max_unavailable == 0 {
        refuse("maxUnavailable", "`0` would never change a node; write 1 or more".to_owned());
    }
    if *pause_after == Some(0) {
        refuse("pauseAfter", "`0` would pause before the first node; write 1 or more".to_owned());
    }
    if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(node_timeout) {
        refuse("nodeTimeout", format!("`{node_timeout}` is not between {MIN_TIMEOUT} and {MAX_TIMEOUT}"));
    }
    errors
}

/// A name such as `rollout-3fa9c1`.
fn made_up(uid: &str) -> String {
    let end: String = uid.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("rollout-{}", &end[end.len().saturating_sub(6)..])
}

async fn find(app: &App, name: &str) -> Result<RolloutRow, ApiError> {
    app.store.get_rollout(name).await?.ok_or_else(|| ApiError::not_found("roll-out", name))
}

fn present(row: &RolloutRow, nodes: &[NodeRow]) -> Rollout {
    let waits_for = rollout::waits_for(&reconcile::snapshot(row, nodes));
    let message = waits_for.map(|what| format!("waits for {what}"));
    let node = |node: &RolloutNodeRow| RolloutNode {
        node: node.node.clone(),
        state: node.state,
        config_version: node.config_version,
        changed_at: node.changed_at,
        message: node.message.clone(),
    };
    Rollout {
        kind: "Rollout".to_owned(),
        name: row.name.clone(),
        selector: row.selector.clone(),
        patch: json!({"spec": row.patch}),
        max_unavailable: row.max_unavailable,
        pause_after: row.pause_after,
        node_timeout: row.timeout,
        direction: row.direction,
        phase: row.phase,
        reason: row.reason.clone().filter(|_| row.phase != RolloutPhase::Rolling),
        message: message.or_else(|| row.message.clone().filter(|_| row.phase != RolloutPhase::Rolling)),
        created_at: row.created_at,
        updated_at: row.updated_at,
        nodes: row.nodes.iter().map(node).collect(),
    }
}
