//! The REST API: routes, who may call them, and what every request has in common.
//!
//! ```text
//! request ─► id, trace, panic ─► headers, pace ─► body limit ─► time-out ─► operator or node ─► handler ─► JSON | SSE | problem+json
//! ```

mod agent;
mod artifacts;
mod events;
mod extract;
pub(crate) mod inputs;
mod jobs;
mod join_tokens;
mod meta;
mod nodes;
pub mod openapi;
pub(crate) mod origin;
pub(crate) mod pace;
pub(crate) mod present;
mod queues;
mod rollouts;
mod secrets;
mod sse;
mod templates;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use windlass_store::Store;

use crate::bodies::Bodies;
use crate::clock::{Clock, IdSource};
use crate::dispatch::Dispatch;
use crate::error::{ApiError, Code};
use crate::links::ArtifactLinks;
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::submit::Submission;

pub(crate) use join_tokens::{NewJoinToken, create as create_join_token};

/// The most bytes of a JSON body: a manifest may have 1.5 MiB, a report a batch of log chunks.
const JSON_LIMIT: usize = 8 * 1024 * 1024;
/// How long a request may take that does not wait on purpose.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// The header that names a request.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers work with.
pub struct AppParts {
    /// The store.
    pub store: Store,
    /// Bodies of logs, artifacts and inputs.
    pub bodies: Bodies,
    /// The agent protocol.
    pub dispatch: Dispatch,
    /// Secrets.
    pub secrets: Secrets,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// New ids and chance.
    pub ids: Arc<dyn IdSource>,
    /// Counters.
    pub metrics: Metrics,
    /// Links to artifacts.
    pub links: ArtifactLinks,
    /// The URL under which nodes reach this controller.
    pub base_url: String,
    /// The SHA-256 of the authority's certificate, in hexadecimal; goes into join tokens.
    pub ca_fingerprint: String,
    /// Fires when the controller stops: streams end then.
    pub stopping: CancellationToken,
}

impl AppParts {
    /// What making a job needs.
    pub(crate) fn submission(&self) -> Submission<'_> {
        Submission {
            store: &self.store,
            bodies: &self.bodies,
            clock: &*self.clock,
            ids: &*self.ids,
            of_cluster: false,
        }
    }
}

/// What handlers work with; cheap to clone.
pub type App = Arc<AppParts>;

/// The whole API.
pub fn router(app: App) -> Router {
    let quick = Router::new()
        .route("/v1/version", get(meta::version))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/livez", get(meta::livez))
        .route("/healthz", get(meta::livez))
        .route("/readyz", get(meta::readyz))
        .route("/metrics", get(meta::metrics))
        .route("/v1/namespaces/{namespace}/jobs", post(jobs::create))
        .route("/v1/namespaces/{namespace}/job-batches", post(jobs::create_many))
        .route("/v1/namespaces/{namespace}/jobs/{name}", put(jobs::apply).delete(jobs::remove).get(jobs::get))
        .route("/v1/namespaces/{namespace}/jobs/{name}/cancel", post(jobs::cancel))
        .route("/v1/namespaces/{namespace}/jobs/{name}/retry", post(jobs::retry))
        .route("/v1/namespaces/{namespace}/jobs/{name}/attempts", get(jobs::attempts))
        .route("/v1/namespaces/{namespace}/jobs/{name}/result", get(jobs::result))
        .route("/v1/namespaces/{namespace}/jobs/{name}/placement", get(jobs::placement))
        .route("/v1/namespaces/{namespace}/jobs/{name}/artifacts", get(jobs::artifacts))
        .route("/v1/namespaces/{namespace}/jobs/{name}/artifacts/{artifact}/link", post(jobs::link))
        .route("/v1/nodes/{name}", get(nodes::get).put(nodes::apply).delete(nodes::remove))
        .route("/v1/nodes/{name}/cordon", post(nodes::cordon))
        .route("/v1/nodes/{name}/uncordon", post(nodes::uncordon))
        .route("/v1/nodes/{name}/drain", post(nodes::drain))
        .route("/v1/nodes/{name}/attempts", get(nodes::attempts))
        .route("/v1/nodes/{name}/history", get(nodes::history))
        .route("/v1/nodes/{name}/facts", get(nodes::facts))
        .route("/v1/templates", get(templates::list_all))
        .route("/v1/namespaces/{namespace}/templates", get(templates::list))
        .route(
            "/v1/namespaces/{namespace}/templates/{name}",
            get(templates::get).put(templates::apply).delete(templates::remove),
        )
        .route("/v1/queues", get(queues::list))
        .route("/v1/queues/{name}", put(queues::set))
        .route("/v1/rollouts", get(rollouts::list).post(rollouts::start))
        .route("/v1/rollouts/{name}", get(rollouts::get))
        .route("/v1/rollouts/{name}/pause", post(rollouts::pause))
        .route("/v1/rollouts/{name}/resume", post(rollouts::resume))
        .route("/v1/rollouts/{name}/abort", post(rollouts::abort))
        .route("/v1/rollouts/{name}/undo", post(rollouts::undo))
        .route("/v1/join-tokens", post(join_tokens::post).get(join_tokens::list))
        .route("/v1/join-tokens/{id}", delete(join_tokens::revoke))
        .route("/v1/secrets", get(secrets::list_all))
        .route("/v1/secrets/rotate", post(secrets::rotate))
        .route("/v1/namespaces/{namespace}/secrets", get(secrets::list))
        .route(
            "/v1/namespaces/{namespace}/secrets/{name}",
            get(secrets::get).put(secrets::set).delete(secrets::remove),
        )
        .route("/v1/namespaces/{namespace}/secrets/{name}/keys/{key}", delete(secrets::remove_key))
        .route("/v1/inputs/{digest}", get(inputs::head))
        .route("/v1/nodes/artifacts", post(agent::artifacts_lost))
        .route("/v1/nodes/register", post(agent::register))
        .route("/v1/nodes/capability", post(agent::capability))
        .route("/v1/nodes/heartbeat", post(agent::heartbeat))
        .route("/v1/nodes/report", post(agent::report))
        .layer(middleware::from_fn(time_limit));
    // These wait, stream or carry large bodies on purpose.
    let slow = Router::new()
        .route("/v1/jobs", get(jobs::list_all))
        .route("/v1/namespaces/{namespace}/jobs", get(jobs::list))
        .route("/v1/namespaces/{namespace}/jobs/{name}/logs", get(jobs::logs))
        .route("/v1/namespaces/{namespace}/jobs/{name}/events", get(jobs::events))
        .route("/v1/namespaces/{namespace}/jobs/{name}/artifacts/{artifact}", get(jobs::artifact))
        .route("/v1/artifacts/{job}/{epoch}/{number}", get(jobs::linked))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/events", get(events::list))
        .route("/v1/nodes/config", get(agent::configuration).post(agent::acknowledge))
        .route("/v1/nodes/claim", post(agent::claim))
        .route("/v1/nodes/inputs/{digest}", get(agent::input))
        .route("/v1/nodes/artifacts/{job}/{epoch}/{number}", put(agent::artifact))
        .route("/v1/inputs/{digest}", put(inputs::put));
    quick
        .merge(slow)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_route)
        .layer(DefaultBodyLimit::max(JSON_LIMIT))
        .layer(middleware::from_fn(pace::admit))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
        .with_state(app)
}

async fn no_route(request: Request) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("there is no path `{}`; /v1/openapi.json lists them", request.uri().path()),
    )
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        format!("`{}` is not a method of `{}`", request.method(), request.uri().path()),
    )
}

async fn time_limit(request: Request, next: Next) -> Response {
    match tokio::time::timeout(TIME_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("the request took longer than {} s", TIME_LIMIT.as_secs());
            ApiError::new(Code::Timeout, detail).into_response()
        }
    }
}

/// A defect: the request fails, the controller goes on.
#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic.message = message, "a handler panicked; this is a defect");
    ApiError::new(Code::Internal, "the controller has a defect; its log has the details").into_response()
}

/// Names the request, counts it, and puts its id into the answer and into problem bodies.
async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = match given {
        Some(id) if (1..=100).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => {
            id.to_owned()
        }
        Some(_) | None => app.ids.uid(app.clock.now()),
    };
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let span = tracing::debug_span!("rest", request.id = %id, http.method = %method, http.route = %route);
    let started = tokio::time::Instant::now();
    let mut response = next.run(request).instrument(span).await;
    app.metrics.request(&method, &route, response.status(), started.elapsed());
    if response.headers().get("content-type").is_some_and(|kind| kind == "application/problem+json") {
        response = with_request_id(response, &id).await;
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    response
}

/// Adds the request's id to a problem body.
async fn with_request_id(response: Response, id: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    // Problem bodies are made above, small and whole, so reading one back cannot fail.
    let body = axum::body::to_bytes(body, JSON_LIMIT).await.unwrap_or_default();
    let body = match serde_json::from_slice::<windlass_crds::protocol::Problem>(&body) {
        Ok(mut problem) => {
            problem.request_id = Some(id.to_owned());
            serde_json::to_vec(&problem).unwrap_or_else(|_| body.to_vec())
        }
        Err(_) => body.to_vec(),
    };
    parts.headers.remove("content-length");
    Response::from_parts(parts, body.into())
}
