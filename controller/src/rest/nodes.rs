//! Nodes, as operators see them.

mod operate;

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use windlass_core::validate;
use windlass_crds::NodeConfig;
use windlass_crds::protocol::FieldError;
use windlass_store::{Change, EventLevel, LiveAttempts, NewEvent, NewNodeConfig, Put};

pub(super) use operate::{DrainRequest, attempts, cordon, drain, facts, history, uncordon};

use super::App;
use super::extract::{Body, IfMatch, Operator, Path, Query};
use super::origin::require_native;
use super::{present, sse};
use crate::error::{ApiError, Code};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    name: Option<String>,
    #[serde(default)]
    watch: bool,
}

pub(super) async fn list(
    State(app): State<App>,
    _: Operator,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if query.watch || sse::wanted(&headers) {
        return Ok(sse::stream(move |sender| watch(app, query.name, sender)));
    }
    let rows = app.store.list_nodes().await?;
    let rows = rows.iter().filter(|row| query.name.as_ref().is_none_or(|name| *name == row.name));
    let items: Vec<_> = rows.map(present::node).collect();
    Ok(Json(present::list("NodeConfigList", &items, None)).into_response())
}

pub(super) async fn get(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<NodeConfig>, ApiError> {
    let row = app.store.get_node(&name).await?;
    row.map(|row| Json(present::node(&row))).ok_or_else(|| ApiError::not_found("node", &name))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WriteQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn apply(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<WriteQuery>,
    if_match: IfMatch,
    Body(node): Body<NodeConfig>,
) -> Result<Response, ApiError> {
    if let Some(found) = node.metadata.name.as_ref().filter(|found| **found != name) {
        let message = format!("`{found}` differs from `{name}` in the path");
        let error = FieldError { field: "metadata.name".to_owned(), message };
        return Err(ApiError::invalid("node", vec![error]));
    }
    validate::validate_node(&node).map_err(|errors| ApiError::invalid("node", errors))?;
    let found = app.store.get_node(&name).await?;
    if_match.check("node", &name, found.as_ref().map(|row| row.resource_version))?;
    if query.dry_run {
        let word = match found {
            None => "created",
            Some(row) if row.spec == node.spec => "unchanged",
            Some(_) => "configured",
        };
        return Ok((StatusCode::OK, [("windlass-outcome", word)], Json(node)).into_response());
    }
    if let Some(row) = app.store.get_node(&name).await?
        && row.spec != node.spec
    {
        require_native(&app, &row.uid, &format!("node `{name}`")).await?;
    }
    let now = app.clock.now();
    let new = NewNodeConfig {
        name,
        uid: app.ids.uid(now),
        spec: node.spec,
        labels: node.metadata.labels.unwrap_or_default(),
        annotations: node.metadata.annotations.unwrap_or_default(),
        // Without If-Match applying means this spec, whatever was there before; two operators are serialised by the store.
        expected_version: if_match.version(),
    };
    let put = if_match.settle(app.store.put_node_config(now, new).await)?;
    let (status, word) = match &put {
        Put::Created(_) => (StatusCode::CREATED, "created"),
        Put::Updated(_) => (StatusCode::OK, "configured"),
        Put::Unchanged(_) => (StatusCode::OK, "unchanged"),
    };
    let row = put.into_inner();
    tracing::info!(node.name = %row.name, config.version = row.config_version, outcome = word, "node applied");
    Ok((status, [("windlass-outcome", word)], Json(present::node(&row))).into_response())
}

#[derive(Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
    if_match: IfMatch,
) -> Result<Json<NodeConfig>, ApiError> {
    if let Some(row) = app.store.get_node(&name).await? {
        require_native(&app, &row.uid, &format!("node `{name}`")).await?;
    }
    let attempts = if query.force { LiveAttempts::Abandon } else { LiveAttempts::Refuse };
    let now = app.clock.now();
    let row = match app.store.delete_node(now, &name, attempts, if_match.version()).await {
        Err(windlass_store::Error::InUse { by, .. }) => {
            let detail = format!(
                "node `{name}` has {by}; `windlass drain {name} --wait` empties it first, and `--force` lets its \
                 attempts end with their leases"
            );
            return Err(ApiError::new(Code::InUse, detail));
        }
        result => if_match.settle(result)?.ok_or_else(|| ApiError::not_found("node", &name))?,
    };
    tracing::info!(node.name = %name, node.running = row.running, "node deregistered by request");
    let event = NewEvent {
        job: None,
        node: Some(name),
        level: if row.running > 0 { EventLevel::Warn } else { EventLevel::Info },
        source: "nodes".to_owned(),
        reason: "Deregistered".to_owned(),
        message: match row.running {
            0 => "the node was deregistered".to_owned(),
            count => format!("the node was deregistered; {count} attempts end with their leases"),
        },
        data: None,
    };
    app.store.append_event(now, event).await?;
    Ok(Json(present::node(&row)))
}

/// Sends every node, then each change.
async fn watch(app: App, only: Option<String>, sender: std::sync::Arc<sse::Sender>) -> Result<(), ApiError> {
    let mut changes = app.store.changes();
    let mut shown: HashMap<String, (i64, NodeConfig)> = HashMap::new();
    let mut synced = false;
    loop {
        let rows = app.store.list_nodes().await?;
        let rows = rows.iter().filter(|row| only.as_ref().is_none_or(|name| *name == row.name));
        let rows: HashMap<_, _> = rows.map(|row| (row.name.clone(), row)).collect();
        let mut names: Vec<_> = rows.keys().chain(shown.keys()).cloned().collect();
        names.sort();
        names.dedup();
        for name in names {
            let sent = match rows.get(&name) {
                Some(row) => {
                    let event = match shown.get(&name) {
                        Some((version, _)) if *version >= row.resource_version => continue,
                        Some(_) => "modified",
                        None => "added",
                    };
                    let object = present::node(row);
                    let sent = sender.send(event, None, &object).await;
                    shown.insert(name, (row.resource_version, object));
                    sent
                }
                None => match shown.remove(&name) {
                    Some((_, last)) => sender.send("deleted", None, &last).await,
                    None => continue,
                },
            };
            if sent.is_err() {
                return Ok(());
            }
        }
        if !synced {
            synced = true;
            if sender.send("synced", None, &json!({})).await.is_err() {
                return Ok(());
            }
        }
        loop {
            tokio::select! {
                biased;
                // Cancel-safe: nothing is held.
                () = app.stopping.cancelled() => return Ok(()),
                // Cancel-safe: the stream ends with this future.
                change = changes.recv() => match change {
                    Ok(Change::Node { .. } | Change::Any) | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return Ok(()),
                }
            }
        }
    }
}
