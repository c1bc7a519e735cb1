//! Statistics of queues.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use windlass_store::{QueueCounts, QueueRow};

use super::App;
use super::extract::Operator;
use crate::error::ApiError;

pub(super) async fn list(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    let rows = app.store.queue_stats(app.clock.now()).await?;
    let items: Vec<_> = rows.iter().map(present).collect();
    Ok(Json(json!({"kind": "QueueList", "items": items})))
}

fn present(row: &QueueRow) -> Value {
    let mut value = counts(&row.totals);
    value["name"] = json!(row.queue);
    value["oldestQueuedAt"] = json!(row.oldest_queued_at);
    let priorities = row.by_priority.iter().map(|priority| {
        let mut value = counts(&priority.counts);
        value["priority"] = json!(priority.priority);
        value
    });
    value["priorities"] = priorities.collect();
    value
}

fn counts(counts: &QueueCounts) -> Value {
    let QueueCounts { queued, delayed, suspended, pending_approval, running, waiting, dead } = counts;
    json!({
        "queued": queued, "delayed": delayed, "suspended": suspended, "pendingApproval": pending_approval,
        "running": running, "waiting": waiting, "dead": dead,
    })
}
