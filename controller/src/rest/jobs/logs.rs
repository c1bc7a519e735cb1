//! A job's logs and events: in pages, or as they come.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use windlass_crds::protocol::{LogBody, Stream};
use windlass_store::{Change, JobRow, LogCursor, LogFilter, LogRow, RecordStore};

use super::super::App;
use super::super::events::{self, EventQuery};
use super::super::extract::{Operator, Path, Query};
use super::super::sse;
use super::find;
use crate::error::{ApiError, Code, chain};

/// The most log records in one answer.
const MAX_PAGE: u32 = 1000;
/// How long a stream waits for records that a finished attempt has announced but not delivered.
const STRAGGLERS: SignedDuration = SignedDuration::from_secs(30);
/// How often a stream looks by itself, should a wake-up have been missed.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
pub(in crate::rest) struct LogQuery {
    step: Option<String>,
    stream: Option<Stream>,
    epoch: Option<u64>,
    cursor: Option<String>,
    limit: Option<u32>,
}

pub(in crate::rest) async fn logs(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    let names = windlass_core::validate::step_names(&job.spec);
    let step = query.step.as_ref().map(|wanted| {
        let position = names.iter().position(|name| name == wanted);
        position.and_then(|position| u32::try_from(position).ok()).ok_or_else(|| {
            ApiError::new(
                Code::BadRequest,
                format!("step: the job has no `{wanted}`, but {}", names.join(", ")),
            )
        })
    });
    let filter = LogFilter { epoch: query.epoch, step: step.transpose()?, stream: query.stream };
    let resume = sse::last_event_id(&headers).or(query.cursor);
    let cursor = resume.as_deref().map(parse_cursor).transpose()?;
    if sse::wanted(&headers) {
        return Ok(sse::stream(move |sender| follow(app, job.uid, names, filter, cursor, sender)));
    }
    let limit = query.limit.unwrap_or(MAX_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ApiError::new(
            Code::BadRequest,
            format!("limit: {limit} is not between 1 and {MAX_PAGE}"),
        ));
    }
    let rows = app.store.logs(&job.uid, filter, cursor, limit).await?;
    let next = rows.last().map(windlass_store::LogRow::cursor).or(cursor);
    let more = rows.len() == limit as usize;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        items.push(present(&app, &names, row).await);
    }
    let complete = !more && settled(&app, &job).await?;
    Ok(Json(json!({"items": items, "cursor": next.map(write_cursor), "complete": complete})).into_response())
}

/// Sends log records as they come, until the job has ended and all are there.
async fn follow(
    app: App,
    uid: String,
    names: Vec<String>,
    filter: LogFilter,
    mut cursor: Option<LogCursor>,
    sender: Arc<sse::Sender>,
) -> Result<(), ApiError> {
    let mut changes = app.store.changes();
    loop {
        // The job is read before its records, so that an end that is seen has all its records behind it.
        let job = app.store.get_job_by_uid(&uid).await?;
        let rows = app.store.logs(&uid, filter, cursor, 256).await?;
        let more = rows.len() == 256;
        for row in rows {
            let next = row.cursor();
            let item = present(&app, &names, row).await;
            if sender.send("log", Some(&write_cursor(next)), &item).await.is_err() {
                return Ok(());
            }
            cursor = Some(next);
        }
        if more {
            continue;
        }
        let end = match &job {
            None => Some(json!({"phase": null, "deleted": true, "logsComplete": false})),
            Some(job) if settled(&app, job).await? => Some(json!({
                "phase": job.phase, "reason": job.reason, "message": job.message,
                "exitCode": job.exit_code, "logsComplete": job.logs_complete,
            })),
            Some(_) => None,
        };
        if let Some(end) = end {
            drop(sender.send("end", None, &end).await);
            return Ok(());
        }
        if !changed(&app, &mut changes, &uid).await {
            return Ok(());
        }
    }
}

/// Waits until something about the job may have changed; false when the controller stops.
pub(in crate::rest) async fn changed(app: &App, changes: &mut Receiver<Change>, uid: &str) -> bool {
    let concerns = async {
        loop {
            match changes.recv().await {
                Ok(Change::Job { uid: changed } | Change::Records { uid: changed }) if changed == uid => {
                    return true;
                }
                Ok(Change::Event { job: Some(changed) }) if changed == uid => return true,
                Ok(Change::Any) | Err(RecvError::Lagged(_)) => return true,
                Ok(_) => {}
                Err(RecvError::Closed) => return false,
            }
        }
    };
    tokio::select! {
        biased;
        // Cancel-safe: nothing is held.
        () = app.stopping.cancelled() => false,
        // Cancel-safe: another look follows in any case.
        open = concerns => open,
        // Cancel-safe: a timer.
        () = tokio::time::sleep(LOOK) => true,
    }
}

/// Whether the job has ended and no more records are to be expected.
async fn settled(app: &App, job: &JobRow) -> Result<bool, ApiError> {
    if !job.phase.is_terminal() || job.logs_complete {
        return Ok(job.phase.is_terminal());
    }
    let waited_long = job.finished_at.is_none_or(|at| app.clock.now().duration_since(at) > STRAGGLERS);
    // A job that was never claimed has no records, and an attempt that was lost with its node announces none.
    let attempts = app.store.attempts(&job.uid).await?;
    let announced =
        attempts.iter().any(|attempt| attempt.epoch == job.epoch && attempt.last_sequence.is_some());
    Ok(waited_long || !announced)
}

/// The output of a record that is kept apart from its row; where it cannot be read, why not, for people.
async fn kept_apart(app: &App, key: &str, len: u64) -> Result<Vec<u8>, &'static str> {
    let (reason, error) = match app.bodies.get(key).await {
        Ok(body) if body.len() as u64 == len => return Ok(body.to_vec()),
        Ok(body) => ("what is stored of it is damaged", format!("it has {} bytes, not {len}", body.len())),
        Err(error) if error.is_missing() => ("it is not stored any more", chain(&error)),
        Err(error) => ("it cannot be read", chain(&error)),
    };
    app.metrics.unreadable_log();
    tracing::error!(body.key = key, error, "a piece of a job's output cannot be read; it is shown as a gap");
    Err(reason)
}

/// A record as it is shown. Output that cannot be read hides no other: in its place is a `gap` that says how much is
/// missing and why.
async fn present(app: &App, names: &[String], row: LogRow) -> Value {
    let (bytes, gap) = match row.body {
        RecordStore::Inline(bytes) => (bytes, None),
        RecordStore::Object { key, len } => match kept_apart(app, &key, len).await {
            Ok(bytes) => (bytes, None),
            Err(reason) => (Vec::new(), Some(json!({"bytes": len, "reason": reason}))),
        },
        RecordStore::Json(_) | RecordStore::None => (Vec::new(), None),
    };
    let position = row.step.and_then(|step| usize::try_from(step).ok());
    let mut item = json!({
        "epoch": row.epoch,
        "sequence": row.sequence,
        "at": row.at,
        "step": position.and_then(|position| names.get(position)),
        "stream": row.stream,
        "offset": row.offset,
    });
    match LogBody::from_bytes(bytes) {
        LogBody::Text(text) => item["text"] = text.into(),
        LogBody::Base64(text) => item["base64"] = text.into(),
    }
    if let Some(gap) = gap {
        item["gap"] = gap;
    }
    item
}

fn write_cursor(cursor: LogCursor) -> String {
    format!("{}.{}", cursor.epoch, cursor.sequence)
}

fn parse_cursor(text: &str) -> Result<LogCursor, ApiError> {
    text.split_once('.')
        .and_then(|(epoch, sequence)| {
            Some(LogCursor { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
        })
        .ok_or_else(|| ApiError::new(Code::BadRequest, "cursor: not one that the logs have returned"))
}

pub(in crate::rest) async fn events(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    events::answer(app, Some(job.uid), query, &headers).await
}
