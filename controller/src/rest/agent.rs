//! The agent protocol over HTTP: thin handlers over [`crate::dispatch::Dispatch`].

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use windlass_crds::protocol::{
    CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck, HeartbeatRequest, HeartbeatResponse,
    RegisterRequest, ReportRequest, ReportResponse,
};

use super::App;
use super::extract::{Json, Node, Query};
use crate::error::ApiError;

/// The longest wait for a newer configuration.
const MAX_WAIT: u64 = 50;

pub(super) async fn register(
    State(app): State<App>,
    Json(request): Json<RegisterRequest>,
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
    Json(ack): Json<ConfigAck>,
) -> Result<StatusCode, ApiError> {
    app.dispatch.acknowledge(&node, ack).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn capability(
    State(app): State<App>,
    Node(node): Node,
    Json(report): Json<CapabilityReport>,
) -> Result<StatusCode, ApiError> {
    app.dispatch.capability(&node, report).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn claim(
    State(app): State<App>,
    Node(node): Node,
    Json(request): Json<ClaimRequest>,
) -> Result<axum::Json<ClaimResponse>, ApiError> {
    app.dispatch.claim(&node.name, &request).await.map(axum::Json)
}

pub(super) async fn heartbeat(
    State(app): State<App>,
    Node(node): Node,
    Json(request): Json<HeartbeatRequest>,
) -> Result<axum::Json<HeartbeatResponse>, ApiError> {
    app.dispatch.heartbeat(&node, request).await.map(axum::Json)
}

pub(super) async fn report(
    State(app): State<App>,
    Node(node): Node,
    Json(request): Json<ReportRequest>,
) -> Result<axum::Json<ReportResponse>, ApiError> {
    app.dispatch.report(&node, request).await.map(axum::Json)
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
    let content = app.bodies.stream(&row.object_key).await;
    let content = content.map_err(|error| ApiError::internal("read an input", error))?;
    Ok(([("content-length", row.size.to_string())], Body::from_stream(content)).into_response())
}
