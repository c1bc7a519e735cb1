//! The paths of the Worker API.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt as _;
use windlass_crds::protocol::AttemptId;
use windlass_crds::protocol::worker_api::{RUN_PATH, attempt_path, openapi};

use super::Rules;
use super::caller::{self, Caller};
use super::intake::{Answer, Intake};
use super::problem::{Code, Refusal};
use super::request::uuid;

/// How long a request may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(60);
/// How much of a body that is refused is let go by, how much of one without a valid token, and how long that may take.
const LET_GO_BY: usize = 16 << 20;
const LET_STRANGERS_GO_BY: usize = 1 << 20;
const LET_GO_WAIT: Duration = Duration::from_secs(5);
/// The preference of RFC 7240 for an answer before the run has ended.
const ASYNC: &str = "respond-async";

struct Api {
    intake: Intake,
    rules: Arc<ArcSwapOption<Rules>>,
}

type Shared = State<Arc<Api>>;

/// The Worker API by these rules, which may change while it is served.
pub(super) fn router(intake: Intake, rules: Arc<ArcSwapOption<Rules>>) -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/v1/openapi.json", get(async || Json(openapi())))
        .route(RUN_PATH, post(run))
        .route("/v1/worker/jobs/{job}/attempts/{epoch}", get(look).delete(settle))
        .fallback(async || {
            Refusal::new(Code::NotFound, "there is no such path; see the Worker API's description")
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(Code::MethodNotAllowed, "the path is there, but not with this method")
        })
        .with_state(Arc::new(Api { intake, rules }))
}

async fn readyz(State(api): Shared) -> (StatusCode, String) {
    match api.intake.not_ready() {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

/// Runs a job. Who hangs up does not stop it.
async fn run(State(api): Shared, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let (caller, rules) = match api.identify(&parts.headers).await {
        Ok(found) => found,
        Err(refusal) => {
            let_go_by(&mut body.into_data_stream(), LET_STRANGERS_GO_BY).await;
            return Err(refusal);
        }
    };
    let body = read(&parts.headers, body, rules.max_request).await?;
    let answer = api.intake.run(&body, caller).await?;
    let (run, end) = match answer {
        Answer::Ended(response) => return Ok(Json(response).into_response()),
        Answer::Running { run, end } => (run, end),
    };
    if prefers_async(&parts.headers) {
        let location = attempt_path(&run.job_id, run.epoch);
        let mut response = (StatusCode::ACCEPTED, Json(run)).into_response();
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static("preference-applied"), HeaderValue::from_static(ASYNC));
        headers.insert(
            header::LOCATION,
            location.parse().expect("a path of a UUID and a number is one of a header"),
        );
        return Ok(response);
    }
    match end.await {
        Ok(response) => Ok(Json(&*response).into_response()),
        // Only when the whole agent ends.
        Err(_) => Err(Refusal::new(Code::Unavailable, "the agent is being stopped; ask again")),
    }
}

async fn look(
    State(api): Shared,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (caller, _) = api.identify(&headers).await?;
    let response = api.intake.look(&attempt(path)?, caller).await?;
    Ok(Json(response).into_response())
}

async fn settle(
    State(api): Shared,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    let (caller, _) = api.identify(&headers).await?;
    api.intake.settle(&attempt(path)?, caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Api {
    async fn identify(&self, headers: &HeaderMap) -> Result<(Caller, Arc<Rules>), Refusal> {
        let rules = self.rules.load_full();
        let rules = rules.ok_or_else(|| Refusal::new(Code::Unavailable, "the Worker API is being closed"))?;
        let caller = caller::identify(headers, &rules.settings, self.intake.now()).await?;
        Ok((caller, rules))
    }
}

fn attempt((job, epoch): (String, String)) -> Result<AttemptId, Refusal> {
    let epoch = epoch
        .parse()
        .map_err(|_| Refusal::field("epoch", format!("`{epoch}` is not a whole number, such as 0")))?;
    Ok(AttemptId { job: uuid("job_id", &job)?, epoch })
}

/// Reads a body up to a limit.
async fn read(headers: &HeaderMap, body: Body, most: u64) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        Refusal::new(
            Code::TooLarge,
            format!(
                "the request has more than {most} bytes; spec.workerApi.maxRequest of the node sets the limit"
            ),
        )
    };
    let said = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut pieces = body.into_data_stream();
    if said.is_some_and(|said| said > most) {
        let_go_by(&mut pieces, LET_GO_BY).await;
        return Err(too_large());
    }
    let arrive = async {
        let mut content = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece
                .map_err(|error| Refusal::new(Code::BadRequest, format!("the request broke off: {error}")))?;
            if (content.len() + piece.len()) as u64 > most {
                let_go_by(&mut pieces, LET_GO_BY).await;
                return Err(too_large());
            }
            content.extend_from_slice(&piece);
        }
        Ok(content)
    };
    match tokio::time::timeout(BODY_WAIT, arrive).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::new(
            Code::Timeout,
            format!("the request did not arrive within {} s", BODY_WAIT.as_secs()),
        )),
    }
}

/// Reads some more of a body that is refused and throws it away: many a caller reads no answer before it has sent all.
async fn let_go_by(pieces: &mut BodyDataStream, most: usize) {
    let gone = async {
        let mut left = most;
        while let Some(Ok(piece)) = pieces.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    // Who takes longer than that may miss the answer.
    tokio::time::timeout(LET_GO_WAIT, gone).await.ok();
}

fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split([',', ';']));
    preferences.any(|preference| preference.trim().eq_ignore_ascii_case(ASYNC))
}
