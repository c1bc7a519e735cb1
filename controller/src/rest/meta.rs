//! What is not about an object: version, health, metrics.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use crate::error::{ApiError, chain};

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "apiVersion": windlass_crds::API_VERSION}))
}

pub(super) async fn livez() -> &'static str {
    "ok"
}

/// Ready when the store can write and the controller is not stopping.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    if app.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping").into_response();
    }
    match app.store.ping().await {
        Ok(()) => "ready".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("store: {}", chain(&error))).into_response(),
    }
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let counts = app.store.counts(app.clock.now()).await?;
    let text = app
        .metrics
        .render(&counts, app.clock.now())
        .map_err(|error| ApiError::internal("render the metrics", error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([("content-type", kind)], text).into_response())
}
