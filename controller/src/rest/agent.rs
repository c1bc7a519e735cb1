//! The agent protocol over HTTP: thin handlers over [`crate::dispatch::Dispatch`].

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Deserialize;
use windlass_crds::protocol::{
    ArtifactsLost, AttemptId, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck, HeartbeatRequest,
    HeartbeatResponse, RegisterRequest, ReportRequest, ReportResponse,
};
use windlass_store::InputRow;

use super::extract::{Message, Node, Path, Query, Raw, not_taken};
use super::{App, artifacts, inputs};
use crate::bodies;
use crate::error::{ApiError, chain};

/// The longest wait for a newer configuration.
const MAX_WAIT: u64 = 50;

pub(super) async fn register(
    State(app): State<App>,
    Message(request): Message<RegisterRequest>,
) -> Result<Response, ApiError> {
    let (bootstrap, created) = app.dispatch.register(request).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(bootstrap)).into_response())
}

#[derive(Deserialize)]
pub(super) struct ConfigQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

pub(super) async fn configuration(
    State(app): State<App>,
    Node(node): Node,
    Query(query): Query<ConfigQuery>,
) -> Result<Response, ApiError> {
    let wait = Duration::from_secs(query.wait.min(MAX_WAIT));
    Ok(match app.dispatch.configuration(&node.name, query.after, wait).await? {
        Some(configuration) => axum::Json(configuration).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

pub(super) async fn acknowledge(
    State(app): State<App>,
    Node(node): Node,
    Message(ack): Message<ConfigAck>,
) -> Result<StatusCode, ApiError> {
    app.dispatch.acknowledge(&node, ack).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn capability(
    State(app): State<App>,
    Node(node): Node,
    Message(report): Message<CapabilityReport>,
) -> Result<StatusCode, ApiError> {
    app.dispatch.capability(&node, report).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn claim(
    State(app): State<App>,
    Node(node): Node,
    Message(request): Message<ClaimRequest>,
) -> Result<axum::Json<ClaimResponse>, ApiError> {
    app.dispatch.claim(&node.name, &request).await.map(axum::Json)
}

pub(super) async fn heartbeat(
    State(app): State<App>,
    Node(node): Node,
    Message(request): Message<HeartbeatRequest>,
) -> Result<axum::Json<HeartbeatResponse>, ApiError> {
    app.dispatch.heartbeat(&node, request).await.map(axum::Json)
}

pub(super) async fn report(
    State(app): State<App>,
    Node(node): Node,
    Raw(body): Raw,
) -> Result<axum::Json<ReportResponse>, ApiError> {
    let (request, refused) = ReportRequest::read(&body).map_err(|error| not_taken(&error))?;
    let mut response = app.dispatch.report(&node, request).await?;
    response.results.extend(refused);
    Ok(axum::Json(response))
}

/// An input of a job that the node holds.
pub(super) async fn input(
    State(app): State<App>,
    Node(node): Node,
    Path(digest): Path<String>,
) -> Result<Response, ApiError> {
    let held = app.store.live_attempts(&node.name).await?;
    let uids: Vec<_> = held.into_iter().map(|attempt| attempt.job).collect();
    let jobs = app.store.get_jobs(&uids).await?;
    let named = jobs.iter().flat_map(|job| &job.spec.workspace.inputs);
    let mut digests = named.filter_map(|input| input.upload.as_ref()).map(|upload| &upload.digest);
    // A node sees the inputs of its own jobs and nobody else's.
    let row = if digests.any(|named| *named == digest) { app.store.get_input(&digest).await? } else { None };
    let row = row.ok_or_else(|| ApiError::not_found("input of a job on this node", &digest))?;
    let Some(row) = inputs::find_whole(&app.store, &app.bodies, &digest).await? else {
        tracing::error!(input.digest = %digest, body.key = %row.object_key, "the body of an input is missing or cut");
        return Err(inputs::damaged(&digest));
    };
    let content = app.bodies.verified(&row.object_key, &digest).await;
    let content = content.map_err(|error| ApiError::internal("read an input", error))?;
    let InputRow { digest, size, object_key } = row;
    let watched = content.then(move |piece| {
        let (app, digest, object_key) = (app.clone(), digest.clone(), object_key.clone());
        async move {
            if let Err(bodies::Error::Digest { found, .. }) = &piece {
                tracing::error!(
                    input.digest = %digest,
                    input.found = %found,
                    body.key = %object_key,
                    "the body of an input is damaged and set aside; who needs it must upload it again"
                );
                // The node comes again because the answer was cut off, and is then told what the matter is.
                if let Err(error) = app.bodies.set_aside(&object_key).await {
                    tracing::error!(body.key = %object_key, error = %chain(&error), "a damaged body stays in its place");
                }
            }
            piece
        }
    });
    Ok(([("content-length", size.to_string())], Body::from_stream(watched)).into_response())
}

/// The body of an artifact of an attempt that the node has or had.
pub(super) async fn artifact(
    State(app): State<App>,
    Node(node): Node,
    Path((job, epoch, number)): Path<(String, u64, u32)>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let attempt = AttemptId { job, epoch };
    let content = body.into_data_stream().boxed();
    let is_new = artifacts::take(&app, &node, &attempt, number, content).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

pub(super) async fn artifacts_lost(
    State(app): State<App>,
    Node(node): Node,
    Message(lost): Message<ArtifactsLost>,
) -> Result<StatusCode, ApiError> {
    artifacts::lose(&app, &node, lost).await?;
    Ok(StatusCode::NO_CONTENT)
}
