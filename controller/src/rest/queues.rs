//! Queues: statistics and settings.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use windlass_crds::names;
use windlass_crds::protocol::FieldError;
use windlass_store::{QueueCounts, QueueRow, QueueSettings, QueueSettingsRow};

use super::App;
use super::extract::{Json as Input, Operator, Path};
use crate::error::ApiError;

/// The largest weight: a share of a thousandth is as good as none.
const MAX_WEIGHT: u32 = 1000;

pub(super) async fn list(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    let rows = app.store.queue_stats(app.clock.now()).await?;
    let mut settings: BTreeMap<String, QueueSettingsRow> =
        app.store.queue_settings().await?.into_iter().map(|row| (row.queue.clone(), row)).collect();
    let mut items: BTreeMap<&str, Value> = BTreeMap::new();
    for row in &rows {
        let settings = settings.remove(&row.queue).map(|row| row.settings);
        items.insert(&row.queue, present(row, settings.unwrap_or_default()));
    }
    // Those for which something is set are shown also while nothing is in them.
    for (queue, row) in &settings {
        let empty = QueueRow {
            queue: queue.clone(),
            by_priority: Vec::new(),
            totals: QueueCounts::default(),
            oldest_queued_at: None,
        };
        items.insert(queue, present(&empty, row.settings));
    }
    Ok(Json(json!({"kind": "QueueList", "items": items.into_values().collect::<Vec<_>>()})))
}

/// What is to be set for a queue. What is left out is as if nothing were set.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct QueueRequest {
    /// The queue's share of what runs, against the weights of the others. As soon as any queue has another weight than 1,
    /// queues share by weight; until then all of them are one line by priority and age.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    weight: Option<u32>,
    /// How many of its jobs may run at once.
    #[serde(default)]
    concurrency: Option<u32>,
}

pub(super) async fn set(
    State(app): State<App>,
    _: Operator,
    Path(name): Path<String>,
    Input(request): Input<QueueRequest>,
) -> Result<Json<Value>, ApiError> {
    let mut errors = Vec::new();
    if let Err(error) = names::check_label(&name) {
        errors.push(FieldError { field: "name".to_owned(), message: error.to_string() });
    }
    let settings = QueueSettings {
        weight: request.weight.unwrap_or(QueueSettings::default().weight),
        concurrency: request.concurrency,
    };
    if settings.weight == 0 || settings.weight > MAX_WEIGHT {
        let message = format!("{} is not between 1 and {MAX_WEIGHT}", settings.weight);
        errors.push(FieldError { field: "weight".to_owned(), message });
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("queue", errors));
    }
    let changed = if settings == QueueSettings::default() {
        app.store.unset_queue(&name).await?
    } else {
        app.store.set_queue(app.clock.now(), &name, settings).await?
    };
    tracing::info!(
        queue.name = %name,
        queue.weight = settings.weight,
        queue.concurrency = settings.concurrency,
        queue.changed = changed,
        "queue set by request"
    );
    Ok(Json(json!({
        "kind": "Queue", "name": name, "weight": settings.weight, "concurrency": settings.concurrency,
    })))
}

fn present(row: &QueueRow, settings: QueueSettings) -> Value {
    let mut value = counts(&row.totals);
    value["name"] = json!(row.queue);
    value["weight"] = json!(settings.weight);
    value["concurrency"] = json!(settings.concurrency);
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
