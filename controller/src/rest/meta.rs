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

/// Ready when the database and the bodies can be written and the controller is not stopping. Each line of another answer
/// begins with what is not ready: `controller`, `database` or `bodies`.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    if app.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "controller: it is stopping\n").into_response();
    }
    let (database, bodies) = tokio::join!(app.store.ping(), app.bodies.ping());
    let mut failing = String::new();
    if let Err(error) = database {
        failing.push_str(&format!("database: {}\n", chain(&error)));
    }
    if let Err(error) = bodies {
        failing.push_str(&format!("bodies: {}\n", chain(&error)));
    }
    if failing.is_empty() {
        return "ready".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, failing).into_response()
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
