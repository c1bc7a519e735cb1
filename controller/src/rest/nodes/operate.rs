//! Operating nodes: cordon, drain, what they hold, and what happened to them.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use windlass_core::drain;
use windlass_crds::node_config::AtDeadline;
use windlass_crds::{NodeConfig, Span};
use windlass_store::{NewDrain, NodeRow, Overdue};

use super::super::App;
use super::super::extract::{Json as Input, Operator, Path, Query};
use super::super::present;
use crate::error::{ApiError, Code};

pub(in crate::rest) async fn cordon(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<NodeConfig>, ApiError> {
    find(&app, &name).await?;
    let row = app.store.cordon_node(app.clock.now(), &name).await?;
    tracing::info!(node.name = %name, "node cordoned by request");
    Ok(Json(present::node(&row)))
}

pub(in crate::rest) async fn uncordon(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<NodeConfig>, ApiError> {
    find(&app, &name).await?;
    let row = app.store.uncordon_node(app.clock.now(), &name).await?;
    tracing::info!(node.name = %name, "node uncordoned by request");
    Ok(Json(present::node(&row)))
}

/// How a node is to be emptied.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::rest) struct DrainRequest {
    /// How long running jobs are waited for.
    deadline: Option<Span>,
    /// What then becomes of those that are left.
    #[serde(default)]
    at_deadline: AtDeadline,
}

pub(in crate::rest) async fn drain(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
    Input(request): Input<DrainRequest>,
) -> Result<Json<NodeConfig>, ApiError> {
    find(&app, &name).await?;
    let now = app.clock.now();
    let DrainRequest { deadline, at_deadline } = request;
    let drain = NewDrain {
        deadline_at: deadline.and_then(|span| {
            let wait = SignedDuration::try_from(span.get()).ok()?;
            now.checked_add(wait).ok()
        }),
        overdue: match at_deadline {
            AtDeadline::Requeue => Overdue::Requeue,
            AtDeadline::Cancel => Overdue::Cancel,
        },
    };
    let row = app.store.drain_node(now, &name, drain).await?;
    tracing::info!(node.name = %name, node.running = row.running, "node is drained by request");
    Ok(Json(present::node(&row)))
}

/// What happened to a node, newest first.
pub(in crate::rest) async fn history(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    find(&app, &name).await?;
    let events = app.store.node_history(&name).await?;
    let items = events.iter().map(|event| {
        json!({
            "number": event.number, "at": event.at, "kind": event.kind.to_string(), "message": event.message,
        })
    });
    Ok(Json(json!({"kind": "NodeHistory", "items": items.collect::<Vec<_>>()})))
}

/// How many reports are asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) struct FactsQuery {
    limit: Option<u32>,
}

/// The most reports of one answer.
const MOST_FACTS: u32 = 50;

/// What a node has told of its host, newest first; one report where nobody says how many.
pub(in crate::rest) async fn facts(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<FactsQuery>,
) -> Result<Json<Value>, ApiError> {
    find(&app, &name).await?;
    let limit = query.limit.unwrap_or(1);
    if !(1..=MOST_FACTS).contains(&limit) {
        let message = format!("limit: {limit} is not between 1 and {MOST_FACTS}");
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let rows = app.store.node_facts(&name, limit).await?;
    let items = rows.iter().map(|row| json!({"receivedAt": row.received_at, "facts": row.facts}));
    Ok(Json(json!({"kind": "NodeFacts", "items": items.collect::<Vec<_>>()})))
}

/// What a node holds, oldest first.
pub(in crate::rest) async fn attempts(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    find(&app, &name).await?;
    let attempts = app.store.live_attempts(&name).await?;
    let uids: Vec<_> = attempts.iter().map(|attempt| attempt.job.clone()).collect();
    let jobs = app.store.get_jobs(&uids).await?;
    let jobs: HashMap<_, _> = jobs.into_iter().map(|job| (job.uid.clone(), job)).collect();
    let items = attempts.iter().filter_map(|attempt| {
        // A job that ended between the two lookups is none that the node holds.
        let job = jobs.get(&attempt.job)?;
        let mut item = present::attempt(attempt);
        item["namespace"] = json!(job.namespace);
        item["job"] = json!(job.name);
        item["interruptible"] = json!(drain::is_interruptible(&job.spec.retry));
        item["cancelling"] = json!(job.cancel_requested_at.is_some());
        Some(item)
    });
    Ok(Json(json!({"kind": "NodeAttemptList", "items": items.collect::<Vec<_>>()})))
}

async fn find(app: &App, name: &str) -> Result<NodeRow, ApiError> {
    app.store.get_node(name).await?.ok_or_else(|| ApiError::not_found("node", name))
}
