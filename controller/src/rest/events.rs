//! Events: what happened, for people; of one job, one node, or all.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use windlass_store::{Change, EventRow};

use super::App;
use super::extract::{Operator, Query};
use super::{present, sse};
use crate::error::{ApiError, Code};

/// The most events in one answer.
const MAX_PAGE: u32 = 500;

#[derive(Deserialize)]
pub(super) struct EventQuery {
    node: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
    #[serde(default)]
    watch: bool,
}

pub(super) async fn list(
    State(app): State<App>,
    _: Operator,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    answer(app, None, query, &headers).await
}

/// Events of one job, or of all, in a page or as they come.
pub(super) async fn answer(
    app: App,
    job: Option<String>,
    query: EventQuery,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let resume = sse::last_event_id(headers).or(query.cursor);
    let after = resume
        .map(|cursor| cursor.parse::<i64>())
        .transpose()
        .map_err(|_| ApiError::new(Code::BadRequest, "cursor: not one that the events have returned"))?;
    let after = after.unwrap_or(0);
    let node = query.node;
    if query.watch || sse::wanted(headers) {
        return Ok(sse::stream(move |sender| async move {
            let mut after = after;
            let mut changes = app.store.changes();
            loop {
                let rows = read(&app, job.as_deref(), node.as_deref(), after, MAX_PAGE).await?;
                let more = rows.len() == MAX_PAGE as usize;
                for row in rows {
                    after = row.id;
                    if sender.send("event", Some(&row.id.to_string()), &present::event(&row)).await.is_err() {
                        return Ok(());
                    }
                }
                if more {
                    continue;
                }
                loop {
                    tokio::select! {
                        biased;
                        // Cancel-safe: nothing is held.
                        () = app.stopping.cancelled() => return Ok(()),
                        // Cancel-safe: the stream ends with this future.
                        change = changes.recv() => match change {
                            Ok(Change::Event { job: changed }) if job.is_none() || changed == job => break,
                            Ok(Change::Any) | Err(RecvError::Lagged(_)) => break,
                            Ok(_) => {}
                            Err(RecvError::Closed) => return Ok(()),
                        }
                    }
                }
            }
        }));
    }
    let limit = query.limit.unwrap_or(100);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ApiError::new(
            Code::BadRequest,
            format!("limit: {limit} is not between 1 and {MAX_PAGE}"),
        ));
    }
    let rows = read(&app, job.as_deref(), node.as_deref(), after, limit).await?;
    let cursor = rows.last().map_or(after, |row| row.id).to_string();
    let items: Vec<_> = rows.iter().map(present::event).collect();
    Ok(Json(json!({"items": items, "cursor": cursor})).into_response())
}

/// The events after `after`, of a node where one is named.
async fn read(
    app: &App,
    job: Option<&str>,
    node: Option<&str>,
    after: i64,
    limit: u32,
) -> Result<Vec<EventRow>, ApiError> {
    let mut rows = Vec::new();
    let mut after = after;
    loop {
        let page = app.store.events(job, Some(after), limit).await?;
        let last_page = page.len() < limit as usize;
        for row in page {
            after = row.id;
            if node.is_none() || row.node.as_deref() == node {
                rows.push(row);
            }
            if rows.len() == limit as usize {
                return Ok(rows);
            }
        }
        if last_page {
            return Ok(rows);
        }
    }
}
