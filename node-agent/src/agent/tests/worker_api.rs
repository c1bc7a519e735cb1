//! The contract of the Worker API, on a whole agent in virtual time.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use windlass_crds::facts::{FactsPart, FactsStep};
use windlass_crds::node_config::DispatchMode;
use windlass_crds::protocol::{Configuration, FactsSettings, WorkerApiSettings};

use super::*;
use crate::worker_api::{ApiHost, Door};

const TASK: &str = "0198c1de-7a4b-7000-8000-000000000001";
const JOB: &str = "0198c1de-7a4b-7000-8000-000000000002";
const TOKEN: &str = "token-of-the-controller";

/// Serves no network: whoever calls takes the router.
#[derive(Clone, Default)]
pub(super) struct FakeHost {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The doors that are open.
    doors: BTreeMap<SocketAddr, axum::Router>,
    /// Somebody else has these.
    taken: Vec<SocketAddr>,
}

struct Guard {
    host: FakeHost,
    at: SocketAddr,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.host.state.lock().unwrap().doors.remove(&self.at);
    }
}

#[async_trait]
impl ApiHost for FakeHost {
    async fn open(
        &self,
        listen: SocketAddr,
        url: Option<&url::Url>,
        router: axum::Router,
    ) -> io::Result<Door> {
        let mut state = self.state.lock().unwrap();
        let same_port = |at: &SocketAddr| at.port() == listen.port();
        if state.taken.contains(&listen) || state.doors.keys().any(same_port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.doors.insert(listen, router);
        Ok(Door {
            base_url: url.map_or_else(|| format!("https://{listen}"), ToString::to_string),
            certificate_pem: "certificate".to_owned(),
            guard: Box::new(Guard { host: self.clone(), at: listen }),
        })
    }
}

impl FakeHost {
    fn open_at(&self) -> Vec<SocketAddr> {
        self.state.lock().unwrap().doors.keys().copied().collect()
    }

    fn router(&self) -> axum::Router {
        self.state.lock().unwrap().doors.values().next().cloned().expect("the Worker API is served")
    }

    /// Calls; yields status, body and content type.
    async fn call(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.router().oneshot(request).await.unwrap();
        let status = response.status();
        let problem =
            response.headers().get("content-type").is_some_and(|kind| kind == "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        let is_error = status.is_client_error() || status.is_server_error();
        assert!(!is_error || body.is_string() || problem, "{status} {body}");
        (status, body)
    }

    async fn run(&self, token: &str, body: &Value) -> (StatusCode, Value) {
        self.call(request(token, body.to_string())).await
    }

    async fn get(&self, token: &str, path: &str) -> (StatusCode, Value) {
        let builder = Request::builder().uri(path).header("authorization", format!("Bearer {token}"));
        self.call(builder.body(Body::empty()).unwrap()).await
    }
}

fn request(token: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri("/v1/worker/jobs:run")
        .header("authorization", format!("Bearer {token}"))
        .body(body.into())
        .unwrap()
}

/// A configuration with a Worker API and the controller's token.
fn with_api(version: u64, change: impl FnOnce(&mut Configuration)) -> Configuration {
    let mut configuration = configuration(NODE, version);
    configuration.worker_api = Some(WorkerApiSettings {
        listen: "127.0.0.1:12090".to_owned(),
        orchestrator_bearer_token: Some(TOKEN.to_owned()),
        orchestrator_bearer_token_expires_at: None,
        token_file: None,
    });
    change(&mut configuration);
    configuration
}

/// A node whose configuration asks for a Worker API.
fn world(change: impl FnOnce(&mut Configuration)) -> (World, FakeHost) {
    let host = FakeHost::default();
    let world = World { api: Some(host.clone()), ..World::new() };
    world.controller.configure(&with_api(1, change));
    (world, host)
}

fn bare(command: &[&str]) -> Value {
    json!({"version": 1, "task_id": TASK, "job_id": JOB, "sandbox": {"image": "", "command": command}})
}

/// What the controller sends: a whole attempt.
fn pushed(epoch: u64, command: &[&str]) -> Value {
    let text = serde_json::to_string(&assignment(JOB, epoch, command)).unwrap();
    json!({"version": 1, "task_id": JOB, "job_id": JOB, "sandbox": {"job_spec_json": text}})
}

async fn up(run: &Run) {
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bare_request_runs_and_answers_with_all_that_the_contract_names() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    let (status, answer) = host.run(TOKEN, &bare(&["out hello", "err oops"])).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((answer["version"].as_u64(), answer["status"].as_str()), (Some(1), Some("completed")));
    assert_eq!((answer["task_id"].as_str(), answer["job_id"].as_str()), (Some(TASK), Some(JOB)));
    assert_eq!(answer["exit_code"], 0);
    assert_eq!((answer["stdout"].as_str(), answer["stderr"].as_str()), (Some("hello"), Some("oops")));
    assert_eq!(answer["truncated"], json!({"stdout": false, "stderr": false}));
    assert!(answer["started_at"].is_string() && answer["ended_at"].is_string(), "{answer}");
    let spec = world.sandbox.starts();
    assert_eq!(spec.len(), 1);
    run.drain().await;
    let state = world.controller.state();
    assert!(state.records.is_empty(), "no controller hears of it: {:?}", state.received);
    assert!(state.heartbeats.iter().all(|beat| beat.held.is_empty()));
    assert!(state.claims.iter().all(|claim| claim.held.is_empty()));
    drop(state);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_first_step_runs_nothing_in_the_sandbox_tells_when_it_started() {
    let (world, host) = world(|configuration| {
        configuration.facts = Some(FactsSettings { steps: true, ..FactsSettings::default() });
    });
    let run = world.start();
    up(&run).await;
    let mut job = assignment(JOB, 1, &["true"]);
    let facts = FactsStep { include: vec![FactsPart::Containers] };
    job.spec.steps = vec![Step { name: "s".to_owned(), facts: Some(facts), ..Step::default() }];
    let mut body = pushed(1, &["true"]);
    body["sandbox"]["job_spec_json"] = serde_json::to_string(&job).unwrap().into();
    let (status, answer) = host.run(TOKEN, &body).await;
    assert_eq!((status, answer["status"].as_str()), (StatusCode::OK, Some("completed")), "{answer}");
    assert!(answer["started_at"].is_string(), "{answer}");
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_or_takes_too_long_is_an_answer_like_any_other() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    let (status, answer) = host.run(TOKEN, &bare(&["exit 7"])).await;
    assert_eq!(
        (status, answer["status"].as_str(), answer["exit_code"].as_i64()),
        (StatusCode::OK, Some("failed"), Some(7))
    );
    let mut slow = bare(&["out begun", "sleep 60000"]);
    slow["job_id"] = TASK.into();
    slow["sandbox"]["timeout_seconds"] = 5.into();
    let (status, answer) = host.run(TOKEN, &slow).await;
    assert_eq!(
        (status, answer["status"].as_str(), answer["exit_code"].as_i64()),
        (StatusCode::OK, Some("timeout"), Some(-1))
    );
    assert_eq!(answer["stdout"], "begun");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_hangs_up_and_calls_again_joins_the_run_and_then_gets_its_result() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    let job = bare(&["out once", "sleep 20000"]);
    let gave_up = tokio::time::timeout(secs(5), host.run(TOKEN, &job)).await;
    assert!(gave_up.is_err(), "it runs for 20 s");
    let path = format!("/v1/worker/jobs/{JOB}/attempts/0");
    assert_eq!(host.get(TOKEN, &path).await.1["status"], "running");
    let (first, second) = tokio::join!(host.run(TOKEN, &job), host.run(TOKEN, &job));
    assert_eq!((first.0, &first.1), (StatusCode::OK, &second.1));
    assert_eq!((host.run(TOKEN, &job).await, host.get(TOKEN, &path).await), (first.clone(), first));
    let other = host.run(TOKEN, &bare(&["out twice"])).await;
    assert_eq!((other.0, other.1["code"].as_str()), (StatusCode::CONFLICT, Some("conflict")));
    assert_eq!(world.sandbox.starts().len(), 1);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_answer_can_be_had_before_the_end() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    let mut early = request(TOKEN, bare(&["sleep 20000"]).to_string());
    early.headers_mut().insert("prefer", "wait=10, respond-async".parse().unwrap());
    let response = host.router().oneshot(early).await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(response.headers()["preference-applied"], "respond-async");
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(host.get(TOKEN, &location).await.1["status"], "running");
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_bare_run_goes_on_over_a_crash_of_the_agent_and_is_never_run_again() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    let job = bare(&["out before", "sleep 30000", "out after"]);
    assert!(tokio::time::timeout(secs(5), host.run(TOKEN, &job)).await.is_err());
    run.crash().await;
    world.controller.change(|state| state.down = true);
    let run = world.start();
    // Without its controller the node serves by its last good configuration.
    world.until("the Worker API is served", || !host.open_at().is_empty()).await;
    let (status, answer) = host.run(TOKEN, &job).await;
    assert_eq!((status, answer["stdout"].as_str()), (StatusCode::OK, Some("beforeafter")));
    run.crash().await;
    let run = world.start();
    world.until("the Worker API is served", || !host.open_at().is_empty()).await;
    assert_eq!(host.run(TOKEN, &job).await, (StatusCode::OK, answer), "the result was kept");
    let path = format!("/v1/worker/jobs/{JOB}/attempts/0");
    let settle = Request::builder()
        .method(Method::DELETE)
        .uri(&path)
        .header("authorization", format!("Bearer {TOKEN}"));
    assert_eq!(host.call(settle.body(Body::empty()).unwrap()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(host.get(TOKEN, &path).await.0, StatusCode::GONE);
    run.crash().await;
    world.controller.change(|state| state.down = false);
    let run = world.start();
    up(&run).await;
    let (status, answer) = host.run(TOKEN, &job).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::GONE, Some("gone")));
    assert_eq!(world.sandbox.starts().len(), 1, "never again");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_the_controller_runs_as_if_it_had_been_claimed() {
    let (world, host) = world(|configuration| configuration.node.dispatch = DispatchMode::Push);
    world.controller.assign(assignment("pulled", 1, &["true"]));
    let run = world.start();
    up(&run).await;
    let (status, answer) = host.run(TOKEN, &pushed(1, &["out hello", "sleep 60000"])).await;
    assert_eq!((status, answer["stdout"].as_str()), (StatusCode::OK, Some("hello")), "{answer}");
    let terminal = world.controller.terminal(JOB).await;
    assert_eq!((terminal.phase, terminal.exit_code), (TerminalPhase::Succeeded, Some(0)));
    assert_eq!(world.controller.state().output(JOB, Stream::Stdout), "hello");
    let attempt = AttemptId { job: JOB.to_owned(), epoch: 1 };
    let beats =
        world.controller.state().heartbeats.iter().filter(|beat| beat.held.contains(&attempt)).count();
    assert!(beats > 4, "its lease was renewed {beats} times in a minute");
    assert!(world.controller.state().claims.iter().all(|claim| claim.max == 0), "it asks for no work itself");
    run.drain().await;
    assert_eq!(world.sandbox.starts().len(), 1, "what waits to be pulled is not touched");
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_node_has_claimed_is_known_however_full_that_makes_it() {
    let (world, host) = world(|configuration| configuration.node.concurrency = Some(1));
    world.controller.assign(assignment(JOB, 1, &["sleep 30000"]));
    let run = world.start();
    up(&run).await;
    world.until("it runs", || !world.sandbox.running().is_empty()).await;
    assert_eq!(host.run(TOKEN, &pushed(1, &["sleep 30000"])).await.0, StatusCode::GONE);
    assert_eq!(world.controller.terminal(JOB).await.phase, TerminalPhase::Succeeded);
    assert_eq!(host.run(TOKEN, &pushed(1, &["sleep 30000"])).await.0, StatusCode::GONE, "it has ended");
    run.drain().await;
    assert_eq!(world.sandbox.starts().len(), 1);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_given_away_meanwhile_is_taken_on_and_never_begun() {
    let (world, host) = world(|_| {});
    let attempt = AttemptId { job: JOB.to_owned(), epoch: 1 };
    world.controller.change(|state| state.fenced.insert(attempt));
    let run = world.start();
    up(&run).await;
    let (status, answer) = host.run(TOKEN, &pushed(1, &["out hello"])).await;
    assert_eq!((status, answer["status"].as_str()), (StatusCode::OK, Some("failed")));
    assert_eq!(answer["reason"], "Fenced");
    assert_eq!(world.sandbox.starts(), []);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_of_the_controller_an_attempt_is_given_back_unbegun() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    world.controller.change(|state| state.stingy = true);
    let (status, answer) = host.run(TOKEN, &pushed(1, &["out hello"])).await;
    assert_eq!((status, answer["reason"].as_str()), (StatusCode::OK, Some("LeaseExpired")));
    assert_eq!(world.controller.terminal(JOB).await.phase, TerminalPhase::Released);
    assert_eq!(world.sandbox.starts(), []);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn the_result_of_an_attempt_is_there_until_the_controller_has_stored_it() {
    let (world, host) = world(|_| {});
    let run = world.start();
    up(&run).await;
    world.controller.change(|state| state.reports_down = true);
    let job = pushed(2, &["out kept"]);
    let (_, answer) = host.run(TOKEN, &job).await;
    let path = format!("/v1/worker/jobs/{JOB}/attempts/2");
    assert_eq!(host.get(TOKEN, &path).await, (StatusCode::OK, answer.clone()));
    run.crash().await;
    let run = world.start();
    up(&run).await;
    assert_eq!(host.get(TOKEN, &path).await, (StatusCode::OK, answer.clone()), "after a restart too");
    assert_eq!(host.run(TOKEN, &job).await, (StatusCode::OK, answer));
    world.controller.change(|state| state.reports_down = false);
    world.controller.terminal(JOB).await;
    run.drain().await;
    let run = world.start();
    up(&run).await;
    assert_eq!(host.get(TOKEN, &path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.sandbox.starts().len(), 1);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_a_pushed_attempt() {
    let (world, host) = world(|configuration| configuration.node.dispatch = DispatchMode::Push);
    let run = world.start();
    up(&run).await;
    let attempt = AttemptId { job: JOB.to_owned(), epoch: 1 };
    let called = {
        let host = host.clone();
        tokio::spawn(async move { host.run(TOKEN, &pushed(1, &["out begun", "sleep 600000"])).await })
    };
    world.until("it runs", || !world.sandbox.running().is_empty()).await;
    world.controller.change(|state| state.cancelled.insert(attempt));
    let (_, answer) = called.await.unwrap();
    assert_eq!(
        (answer["status"].as_str(), answer["reason"].as_str()),
        (Some("failed"), Some("CancelRequested"))
    );
    assert_eq!(world.controller.terminal(JOB).await.phase, TerminalPhase::Cancelled);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn tokens_are_checked_before_anything_else_and_change_with_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let other = "o".repeat(40);
    std::fs::write(&file, &other).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (world, host) = world(|configuration| {
        configuration.worker_api.as_mut().unwrap().token_file = Some(file.display().to_string());
    });
    let run = world.start();
    up(&run).await;
    let path = format!("/v1/worker/jobs/{JOB}/attempts/1");
    for (status, answer) in [
        host.run("wrong", &json!("rubbish")).await,
        host.get("wrong", &path).await,
        host.call(Request::post("/v1/worker/jobs:run").body(Body::from("{}")).unwrap()).await,
    ] {
        assert_eq!((status, answer["code"].as_str()), (StatusCode::UNAUTHORIZED, Some("unauthenticated")));
        assert_eq!(answer["type"], "urn:windlass:problem:unauthenticated");
    }
    assert_eq!(host.run(&other, &pushed(1, &["true"])).await.0, StatusCode::FORBIDDEN);
    assert_eq!(host.run(&other, &bare(&["true"])).await.0, StatusCode::OK);
    assert_eq!(host.run(TOKEN, &pushed(1, &["true"])).await.0, StatusCode::OK);
    assert_eq!(host.get(&other, &path).await.0, StatusCode::NOT_FOUND, "it is none of theirs");

    let soon = world.clock.now() + jiff::SignedDuration::from_secs(60);
    world.controller.configure(&with_api(2, |configuration| {
        let api = configuration.worker_api.as_mut().unwrap();
        api.orchestrator_bearer_token = Some("next".to_owned());
        api.orchestrator_bearer_token_expires_at = Some(soon);
    }));
    world.until("the next token is in force", || run.status.borrow().config_version == Some(2)).await;
    assert_eq!(host.get(TOKEN, &path).await.0, StatusCode::UNAUTHORIZED, "the one before has ended");
    assert_eq!(host.get("next", &path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(host.get(&other, &path).await.0, StatusCode::UNAUTHORIZED, "its file is declared no more");
    tokio::time::sleep(secs(61)).await;
    let (status, answer) = host.get("next", &path).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(answer["detail"].as_str().unwrap().contains("has expired"), "{answer}");
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is() {
    let (world, host) = world(|configuration| configuration.constraints.max_request_bytes = Some(1000));
    let run = world.start();
    up(&run).await;
    let mut said = request(TOKEN, "{}");
    said.headers_mut().insert("content-length", "1001".parse().unwrap());
    let chunks = (0..50).map(|_| Ok::<_, io::Error>("x".repeat(100)));
    let streamed = request(TOKEN, Body::from_stream(futures::stream::iter(chunks)));
    for too_large in [said, streamed] {
        let (status, answer) = host.call(too_large).await;
        assert_eq!((status, answer["code"].as_str()), (StatusCode::PAYLOAD_TOO_LARGE, Some("too_large")));
        assert!(answer["detail"].as_str().unwrap().contains("1000 bytes"), "{answer}");
    }
    assert_eq!(host.run(TOKEN, &bare(&["true"])).await.0, StatusCode::OK);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn bad_requests_and_the_nodes_rules_are_refused_with_the_reason() {
    let (world, host) =
        world(|configuration| configuration.policy.sandbox.blocked_commands = vec!["shutdown".to_owned()]);
    let run = world.start();
    up(&run).await;
    let refused = async |body: Value, status: StatusCode, code: &str, said: &str| {
        let (found, answer) = host.run(TOKEN, &body).await;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(said), "{answer}");
    };
    let changed = |pointer: &str, value: Value| {
        let mut body = bare(&["true"]);
        let (at, key) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(at).unwrap()[key] = value;
        body
    };
    let bad = StatusCode::BAD_REQUEST;
    refused(json!([]), bad, "bad_request", "JSON object").await;
    refused(changed("/version", 2.into()), bad, "unsupported_payload_version", "supported is 1").await;
    refused(changed("/job_id", "x".into()), bad, "bad_request", "is not a UUID").await;
    refused(changed("/sandbox/network_policy", "open".into()), bad, "bad_request", "network_policy").await;
    let forged = json!({"WINDLASS_TASK_ID": "forged"});
    refused(changed("/sandbox/env", forged), bad, "bad_request", "`WINDLASS_TASK_ID` is reserved").await;
    let command = json!(["shutdown", "now"]);
    refused(changed("/sandbox/command", command), StatusCode::FORBIDDEN, "forbidden", "blocked_commands")
        .await;
    let image = changed("/sandbox/image", "alpine:latest".into());
    refused(image, StatusCode::FORBIDDEN, "forbidden", "the job asks for runtime `podman`").await;
    assert_eq!(host.get(TOKEN, "/v1/worker/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(host.get(TOKEN, "/v1/worker/jobs:run").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(host.get(TOKEN, &format!("/v1/worker/jobs/{JOB}/attempts/x")).await.0, bad);
    assert_eq!(world.sandbox.starts(), []);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn health_is_told_to_everybody_and_a_full_node_says_so() {
    let (world, host) = world(|configuration| configuration.node.concurrency = Some(1));
    let run = world.start();
    up(&run).await;
    let get = async |path: &str| host.call(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(get("/healthz").await, (StatusCode::OK, "ok".into()));
    assert_eq!(get("/readyz").await, (StatusCode::OK, "ready".into()));
    let long = {
        let host = host.clone();
        tokio::spawn(async move { host.run(TOKEN, &bare(&["sleep 30000"])).await })
    };
    world.until("it runs", || !world.sandbox.running().is_empty()).await;
    let (status, answer) = host.run(TOKEN, &pushed(1, &["true"])).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")));
    assert!(answer["detail"].as_str().unwrap().contains("all 1 slots"), "{answer}");
    long.await.unwrap();
    assert_eq!(host.run(TOKEN, &pushed(1, &["true"])).await.0, StatusCode::OK, "it was not taken on before");
    world.fs.set_free_bytes(0);
    world.until("the disk is noticed", || run.status.borrow().not_ready.is_some()).await;
    let (status, why) = get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.as_str().unwrap().contains("disk"), "{why}");
    world.fs.set_free_bytes(1 << 40);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_worker_api_is_served_before_the_configuration_is_acknowledged_and_then_reported() {
    let (world, host) = world(|_| {});
    let run = world.start();
    world.controller.until("an acknowledgement", |state| state.acks.first().cloned()).await;
    assert_eq!(host.open_at().len(), 1, "it is served by then");
    up(&run).await;
    let report = world.controller.until("a report", |state| state.capabilities.last().cloned()).await;
    assert_eq!(report.worker_api.unwrap().base_url, "https://127.0.0.1:12090");
    assert_eq!(report.tls.unwrap().worker_api_server_cert_pem.as_deref(), Some("certificate"));
    world.controller.configure(&with_api(2, |configuration| configuration.worker_api = None));
    world
        .controller
        .until("a report without it", |state| {
            state.capabilities.last().is_some_and(|report| report.worker_api.is_none()).then_some(())
        })
        .await;
    assert_eq!(host.open_at(), []);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_taken_fails_the_configuration_and_leaves_the_door_that_is_open() {
    let (world, host) = world(|_| {});
    let other: SocketAddr = "127.0.0.1:12091".parse().unwrap();
    let same_port: SocketAddr = "127.0.0.2:12090".parse().unwrap();
    host.state.lock().unwrap().taken = vec![other, same_port];
    let run = world.start();
    up(&run).await;
    for (version, listen) in [(2, other), (3, same_port)] {
        world.controller.configure(&with_api(version, |configuration| {
            configuration.worker_api.as_mut().unwrap().listen = listen.to_string();
        }));
        let ack = world
            .controller
            .until("an acknowledgement", |state| {
                state.acks.iter().find(|ack| ack.config_version == version.to_string()).cloned()
            })
            .await;
        let error = ack.error.unwrap();
        assert_eq!((ack.status, error.error_type.as_str()), (AckStatus::Failed, "WorkerApiUnavailable"));
        assert!(
            error.message.contains(&listen.to_string()) && error.message.contains("spec.workerApi.listen")
        );
        assert_eq!(host.open_at(), ["127.0.0.1:12090".parse().unwrap()]);
    }
    // Whoever had the address gives it up.
    host.state.lock().unwrap().taken.clear();
    world.until("the last one is applied after all", || run.status.borrow().config_version == Some(3)).await;
    assert_eq!(host.open_at(), [same_port]);
    assert_eq!(host.run(TOKEN, &bare(&["true"])).await.0, StatusCode::OK);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_file_that_cannot_be_used_fails_the_configuration() {
    let (world, host) = world(|configuration| {
        configuration.worker_api.as_mut().unwrap().token_file = Some("/nonexistent/token".to_owned());
    });
    let run = world.start();
    let ack = world.controller.until("an acknowledgement", |state| state.acks.first().cloned()).await;
    let error = ack.error.unwrap();
    assert_eq!(error.error_type, "TokenFileUnusable");
    assert!(error.message.contains("/nonexistent/token cannot be read"), "{}", error.message);
    assert_eq!(host.open_at(), []);
    run.cancel().await;
}
