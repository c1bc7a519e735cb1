//! Acting on a job: cancel, retry, delete.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use windlass_crds::{SandboxJob, Span};
use windlass_store::{CancelOutcome, DeleteOutcome, JobPatch, RetryOutcome};

use super::super::App;
use super::super::extract::{IfMatch, Operator, Path};
use super::super::origin::require_native;
use super::super::present;
use super::find;
use crate::error::{ApiError, Code};
use crate::reconcile::remove_bodies;

pub(in crate::rest) async fn cancel(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<SandboxJob>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    match app.store.request_cancel(app.clock.now(), &job.uid).await? {
        CancelOutcome::Cancelled(row) | CancelOutcome::Requested(row) => {
            tracing::info!(job.id = %row.uid, "job cancelled by request");
            Ok(Json(present::job(&row)))
        }
        CancelOutcome::AlreadyEnded(row) => Err(ApiError::new(
            Code::AlreadyEnded,
            format!("job `{namespace}/{name}` has already ended as {}", row.phase),
        )),
        CancelOutcome::NotFound => Err(ApiError::not_found("job", &format!("{namespace}/{name}"))),
    }
}

pub(in crate::rest) async fn retry(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<SandboxJob>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    require_native(&app, &job.uid, &format!("job `{namespace}/{name}`")).await?;
    match app.store.retry_job(app.clock.now(), &job.uid).await? {
        RetryOutcome::Queued(row) => {
            tracing::info!(job.id = %row.uid, "job queued again by request");
            Ok(Json(present::job(&row)))
        }
        RetryOutcome::NotEnded(row) => Err(ApiError::new(
            Code::NotEnded,
            format!("job `{namespace}/{name}` is {}; only a job that has ended can be run again", row.phase),
        )),
        RetryOutcome::NotFound => Err(ApiError::not_found("job", &format!("{namespace}/{name}"))),
    }
}

pub(in crate::rest) async fn remove(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    if_match: IfMatch,
) -> Result<Response, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    require_native(&app, &job.uid, &format!("job `{namespace}/{name}`")).await?;
    let now = app.clock.now();
    match if_match.settle(app.store.delete_job(now, &job.uid, if_match.version()).await)? {
        DeleteOutcome::Deleted { bodies } => {
            remove_bodies(&app.store, &app.bodies, bodies).await?;
            Ok((StatusCode::OK, Json(present::job(&job))).into_response())
        }
        DeleteOutcome::StillHeld(_) => {
            // A node holds it: it is cancelled now, and removed by the sweeper as soon as it has ended.
            let at_once =
                JobPatch { ttl_after_finished: Some(Some(Span::from_millis(0))), ..JobPatch::default() };
            if_match.settle(app.store.update_job(now, &job.uid, at_once, if_match.version()).await)?;
            app.store.request_cancel(now, &job.uid).await?;
            let row = find(&app, &namespace, &name).await?;
            Ok((StatusCode::ACCEPTED, Json(present::job(&row))).into_response())
        }
        DeleteOutcome::NotFound => Err(ApiError::not_found("job", &format!("{namespace}/{name}"))),
    }
}
