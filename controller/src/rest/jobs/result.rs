//! What became of a job: its attempts, and its result with the beginning of each step's output.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use windlass_crds::protocol::Stream;
use windlass_store::{LogFilter, RecordStore};

use super::super::App;
use super::super::extract::{Operator, Path};
use super::super::present;
use super::find;
use crate::error::ApiError;

/// How much of each stream a result shows, in bytes (contracts.md §1.8).
const EXCERPT: usize = 256 * 1024;

pub(in crate::rest) async fn attempts(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    let items: Vec<_> = app.store.attempts(&job.uid).await?.iter().map(present::attempt).collect();
    Ok(Json(json!({"items": items})))
}

pub(in crate::rest) async fn result(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    let mut steps = Vec::with_capacity(job.steps.len());
    for (position, status) in job.steps.iter().enumerate() {
        let mut step = serde_json::to_value(status)
            .map_err(|error| ApiError::internal("write a step's status", error))?;
        let usage = status.usage.clone().unwrap_or_default();
        for (stream, word, cut) in [
            (Stream::Stdout, "stdout", usage.stdout_truncated),
            (Stream::Stderr, "stderr", usage.stderr_truncated),
        ] {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            let (text, longer) = excerpt(&app, &job.uid, job.epoch, position, stream).await?;
            step[word] = text.into();
            step[format!("{word}Truncated")] = (cut || longer).into();
        }
        steps.push(step);
    }
    Ok(Json(json!({
        "phase": job.phase,
        "reason": job.reason,
        "message": job.message,
        "exitCode": job.exit_code,
        "node": job.node,
        "attempts": job.attempts,
        "startedAt": job.started_at,
        "finishedAt": job.finished_at,
        "unenforced": job.unenforced,
        "logsComplete": job.logs_complete,
        "steps": steps,
    })))
}

/// The beginning of a step's output as text, and whether there is more of it.
async fn excerpt(
    app: &App,
    uid: &str,
    epoch: u64,
    step: u32,
    stream: Stream,
) -> Result<(String, bool), ApiError> {
    let filter = LogFilter { epoch: Some(epoch), step: Some(step), stream: Some(stream) };
    let mut bytes = Vec::new();
    let mut cursor = None;
    loop {
        let rows = app.store.logs(uid, filter, cursor, 64).await?;
        let Some(last) = rows.last() else { break };
        cursor = Some(last.cursor());
        for row in rows {
            match row.body {
                RecordStore::Inline(body) => bytes.extend_from_slice(&body),
                RecordStore::Object { key, len: _ } => {
                    let body = app.bodies.get(&key).await;
                    bytes.extend_from_slice(
                        &body.map_err(|error| ApiError::internal("read a log body", error))?,
                    );
                }
                RecordStore::Json(_) | RecordStore::None => {}
            }
        }
        if bytes.len() > EXCERPT {
            break;
        }
    }
    let longer = bytes.len() > EXCERPT;
    if longer {
        // Cut between characters where the output is UTF-8.
        let mut cut = EXCERPT;
        while cut > EXCERPT - 4 && bytes[cut] & 0b1100_0000 == 0b1000_0000 {
            cut -= 1;
        }
        bytes.truncate(cut);
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), longer))
}
