//! A controller without a network: requests go straight to the router.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use windlass_controller::auth::{NodeTokens, secret_hash};
use windlass_controller::bodies::Bodies;
use windlass_controller::clock::{Clock, ManualClock, RandomIds};
use windlass_controller::dispatch::{Dispatch, DispatchParts, LeaseSettings, WorkerTokens};
use windlass_controller::kube::ClusterValues;
use windlass_controller::links::ArtifactLinks;
use windlass_controller::metrics::Metrics;
use windlass_controller::reconcile::{Nodes, Orphans, Reservations, Rollouts, Sweeper};
use windlass_controller::rest::{AppParts, router};
use windlass_controller::secrets::{Keyring, Secrets};
use windlass_store::{ApiTokenRow, Store, StoreOptions, StoreUrl};

/// The API token of the operator.
const OPERATOR: &str = "operator";
/// The key that seals secrets.
pub(crate) const SECRETS_KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

pub(crate) struct World {
    pub(crate) router: Router,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Store,
    pub(crate) bodies: Bodies,
    pub(crate) dispatch: Dispatch,
    pub(crate) sweeper: Sweeper,
    pub(crate) orphans: Orphans,
    pub(crate) nodes: Nodes,
    pub(crate) reservations: Reservations,
    pub(crate) rollouts: Rollouts,
    pub(crate) stopping: CancellationToken,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) outcome: Option<String>,
    pub(crate) body: Value,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(StoreUrl::SqliteMemory).await
    }

    /// A world on an empty database.
    pub(crate) async fn on(url: StoreUrl) -> Self {
        Self::with(url, Bodies::memory()).await
    }

    /// A world on an empty database, with bodies in a place of their own.
    pub(crate) async fn with(url: StoreUrl, bodies: Bodies) -> Self {
        let options = StoreOptions { url, read_connections: 2 };
        let store = Store::open(options).await.expect("an empty store opens");
        let clock = Arc::new(ManualClock::at_millis(1_700_000_000_000));
        let token = ApiTokenRow {
            id: "operator".into(),
            secret_hash: secret_hash(OPERATOR),
            name: "operator".into(),
            role: "admin".into(),
            created_at: clock.now(),
            expires_at: None,
        };
        store.create_api_token(token).await.expect("the token is new");
        Self::started(store, bodies, clock, Self::keys(), None)
    }

    /// A world whose controller has no key for secrets.
    pub(crate) async fn without_key() -> Self {
        let World { store, bodies, clock, .. } = Self::new().await;
        Self::started(store, bodies, clock, Keyring::none(), None)
    }

    /// A world whose controller reads a cluster, and is settled.
    pub(crate) async fn with_cluster(values: ClusterValues) -> Self {
        Self::settled().await.restarted_with(Some(values))
    }

    fn keys() -> Keyring {
        Keyring::of_text(SECRETS_KEY).expect("it is a key")
    }

    /// What a controller is that is started now on the same database.
    pub(crate) fn restarted(&self) -> Self {
        self.restarted_with(None)
    }

    /// As [`World::restarted`], and it reads this cluster.
    pub(crate) fn restarted_with(&self, values: Option<ClusterValues>) -> Self {
        Self::started(self.store.clone(), self.bodies.clone(), self.clock.clone(), Self::keys(), values)
    }

    fn started(
        store: Store,
        bodies: Bodies,
        clock: Arc<ManualClock>,
        keys: Keyring,
        values: Option<ClusterValues>,
    ) -> Self {
        let ids = Arc::new(RandomIds::seeded(1));
        let stopping = CancellationToken::new();
        let metrics = Metrics::new();
        let secrets = Secrets::new(store.clone(), clock.clone(), ids.clone(), metrics.clone(), keys);
        let secrets = match values {
            Some(values) => secrets.with_cluster(values),
            None => secrets,
        };
        let dispatch = Dispatch::new(DispatchParts {
            store: store.clone(),
            bodies: bodies.clone(),
            secrets: secrets.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            tokens: NodeTokens::new(b"test"),
            worker_tokens: WorkerTokens::new(b"test", jiff::SignedDuration::from_hours(24)),
            leases: LeaseSettings::default(),
            base_url: "https://controller.test".into(),
            ca_pem: None,
            stopping: stopping.clone(),
        });
        let sweeper =
            Sweeper::new(dispatch.clone(), store.clone(), bodies.clone(), clock.clone(), metrics.clone());
        let orphans = Orphans::new(store.clone(), bodies.clone(), clock.clone(), metrics.clone());
        let nodes = Nodes::new(&dispatch, store.clone(), clock.clone());
        let after = Duration::from_secs(60);
        let reservations = Reservations::new(dispatch.clone(), store.clone(), clock.clone(), after);
        let rollouts = Rollouts::new(&dispatch, store.clone(), clock.clone());
        let app = AppParts {
            store: store.clone(),
            bodies: bodies.clone(),
            dispatch: dispatch.clone(),
            secrets,
            clock: clock.clone(),
            ids,
            metrics,
            links: ArtifactLinks::new(b"test"),
            base_url: "https://controller.test".into(),
            ca_fingerprint: "00".repeat(32),
            stopping: stopping.clone(),
        };
        Self {
            router: router(Arc::new(app)),
            clock,
            store,
            bodies,
            dispatch,
            sweeper,
            orphans,
            nodes,
            reservations,
            rollouts,
            stopping,
        }
    }

    /// A world whose controller has been up long enough to judge leases.
    pub(crate) async fn settled() -> Self {
        let world = Self::new().await;
        world.clock.advance(Duration::from_secs(60));
        world
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.expect("the router answers every request")
    }

    pub(crate) async fn send(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .expect("a test's request is well-formed");
        read(self.raw(request).await).await
    }

    /// Sends a request as the operator on condition of a version.
    pub(crate) async fn if_match(
        &self,
        version: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {OPERATOR}"))
            .header("if-match", version)
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .expect("a test's request is well-formed");
        read(self.raw(request).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(OPERATOR, "GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(OPERATOR, "POST", path, Some(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(OPERATOR, "PUT", path, Some(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(OPERATOR, "DELETE", path, None).await
    }

    /// Creates a job in the default namespace.
    pub(crate) async fn job(&self, name: &str, spec: Value) -> Answer {
        self.post("/v1/namespaces/default/jobs", manifest(name, spec)).await
    }

    /// The phase and reason of a job.
    pub(crate) async fn phase(&self, name: &str) -> String {
        let job = self.get(&format!("/v1/namespaces/default/jobs/{name}")).await.body;
        let status = &job["status"];
        format!("{} {}", status["phase"].as_str().unwrap_or("?"), status["reason"].as_str().unwrap_or("-"))
    }

    /// A node that has joined with a fresh token and applied its configuration.
    pub(crate) async fn node(&self, name: &str) -> Agent<'_> {
        let made = self.post("/v1/join-tokens", json!({})).await;
        let psk = psk(made.body["token"].as_str().expect("a token is text"));
        let agent =
            Agent { world: self, name: name.into(), boot: format!("boot-{name}"), token: String::new() };
        let answer = agent.register(Some(&psk)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let token = answer.body["auth"]["node_jwt"].as_str().expect("a token is text").to_owned();
        let agent = Agent { token, ..agent };
        let config = agent.call("GET", "config?after=0", None).await;
        let version = config.body["config_version"].as_str().expect("a version is text");
        assert_eq!(agent.ack(version, "applied").await.status, 204);
        agent
    }
}

/// An agent by hand.
pub(crate) struct Agent<'a> {
    pub(crate) world: &'a World,
    pub(crate) name: String,
    pub(crate) boot: String,
    pub(crate) token: String,
}

impl Agent<'_> {
    pub(crate) fn capability(&self) -> Value {
        json!({
            "version": 1, "reported_at": self.world.clock.now(),
            "node": {"node_slug": self.name},
            "platform": {"os": "linux", "arch": "amd64"},
            "compute": {"cpu_cores": 4, "ram_mb": 8192},
            "sandbox": {
                "supported": true, "max_concurrency": 2, "runtimes": ["native"], "networks": ["None"],
                "limits": ["cpu", "memory", "pids", "disk"],
            },
            "agent": {"version": "0.1.0", "boot_id": self.boot},
        })
    }

    pub(crate) async fn register(&self, psk: Option<&str>) -> Answer {
        let body = json!({"psk": psk, "capability": self.capability()});
        self.world.send("", "POST", "/v1/nodes/register", Some(&body)).await
    }

    pub(crate) async fn call(&self, method: &str, verb: &str, body: Option<Value>) -> Answer {
        self.world.send(&self.token, method, &format!("/v1/nodes/{verb}"), body.as_ref()).await
    }

    pub(crate) async fn ack(&self, version: &str, status: &str) -> Answer {
        let body = json!({
            "version": 1, "node_slug": self.name, "config_version": version, "ack_at": self.world.clock.now(),
            "status": status,
            "error": (status == "failed").then(|| json!({"type": "RuntimeUnavailable", "message": "no podman"})),
        });
        self.call("POST", "config", Some(body)).await
    }

    pub(crate) async fn claim(&self, request: &str, max: u32) -> Vec<Value> {
        let answer = self.claim_holding(request, max, &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["assignments"].as_array().cloned().expect("assignments is a list")
    }

    pub(crate) async fn claim_holding(&self, request: &str, max: u32, held: &[Value]) -> Answer {
        let body = json!({
            "version": 1, "request_id": request, "boot_id": self.boot, "max": max, "wait_seconds": 0, "held": held,
        });
        self.call("POST", "claim", Some(body)).await
    }

    /// Begins a long poll for one job while holding none, lets something happen once it has found nothing, and yields the name of
    /// the job that came.
    pub(crate) async fn poll_while<T>(&self, request: &str, happens: impl Future<Output = T>) -> Value {
        self.world.clock.advance(Duration::from_secs(2));
        let now = self.world.clock.now();
        let body = json!({
            "version": 1, "request_id": request, "boot_id": self.boot, "max": 1, "wait_seconds": 30, "held": [],
        });
        let (answer, _) = tokio::join!(self.call("POST", "claim", Some(body)), async {
            let asked =
                || async { self.world.store.get_node(&self.name).await.unwrap().unwrap().last_claim_at };
            while asked().await != Some(now) {
                tokio::task::yield_now().await;
            }
            happens.await
        });
        answer.body["assignments"][0]["name"].clone()
    }

    pub(crate) async fn beat(&self, held: &[Value]) -> Answer {
        let left = vec![25; held.len()];
        let body =
            json!({"version": 1, "boot_id": self.boot, "held": held, "left_seconds": left, "slots": 2});
        self.call("POST", "heartbeat", Some(body)).await
    }

    /// Reports records (sequence and body) of an attempt and returns the outcomes.
    pub(crate) async fn report(&self, attempt: &Value, records: &[(u64, Value)]) -> Vec<String> {
        let records: Vec<_> =
            records.iter().map(|(sequence, body)| (attempt, *sequence, body.clone())).collect();
        self.report_all(&records).await
    }

    /// Reports records (attempt, sequence and body) in one batch and returns the outcomes.
    pub(crate) async fn report_all(&self, records: &[(&Value, u64, Value)]) -> Vec<String> {
        let at = self.world.clock.now();
        let record = |(attempt, sequence, body): &(&Value, u64, Value)| json!({"attempt": attempt, "sequence": sequence, "at": at, "body": body});
        let records: Vec<_> = records.iter().map(record).collect();
        let answer = self.call("POST", "report", Some(json!({"version": 1, "records": records}))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = answer.body["results"].as_array().expect("results is a list");
        results.iter().map(|result| result["outcome"].as_str().unwrap_or("?").to_owned()).collect()
    }
}

pub(crate) fn manifest(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn started() -> Value {
    json!({"kind": "started", "unenforced": []})
}

pub(crate) fn log(text: &str, offset: u64) -> Value {
    json!({"kind": "log", "step": 0, "stream": "stdout", "offset": offset, "body": {"text": text}})
}

pub(crate) fn step_ended(code: i32) -> Value {
    json!({"kind": "step_ended", "step": 0, "succeeded": code == 0, "reason": "Exited", "exit_code": code})
}

pub(crate) fn terminal(phase: &str, last: u64) -> Value {
    let (reason, code) = match phase {
        "succeeded" => ("Completed", Some(0)),
        "failed" => ("StepFailed", Some(3)),
        "cancelled" => ("CancelRequested", None),
        _ => ("LeaseExpired", None),
    };
    json!({"kind": "terminal", "phase": phase, "reason": reason, "exit_code": code, "last_sequence": last})
}

/// The secret inside a join token.
pub(crate) fn psk(token: &str) -> String {
    use base64::Engine as _;
    let content = token.strip_prefix("wl1.").expect("a join token has its prefix");
    let content = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(content).expect("base64");
    let content: Value = serde_json::from_slice(&content).expect("JSON");
    content["s"].as_str().expect("the secret is text").to_owned()
}

pub(crate) async fn read(response: Response) -> Answer {
    let status = response.status();
    let outcome = response.headers().get("windlass-outcome");
    let outcome = outcome.map(|outcome| outcome.to_str().expect("the header is text").to_owned());
    let body = axum::body::to_bytes(response.into_body(), 64 << 20).await.expect("the body ends");
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    if status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE {
        assert!(body["request_id"].is_string() || !body.is_object(), "a problem names its request: {body}");
    }
    Answer { status: status.as_u16(), outcome, body }
}

/// A stream of server-sent events, read one by one.
pub(crate) struct Events {
    body: futures::stream::BoxStream<'static, Result<axum::body::Bytes, axum::Error>>,
    text: String,
}

impl Events {
    pub(crate) async fn open(world: &World, path: &str, last_id: Option<&str>) -> Self {
        let mut request = Request::builder()
            .uri(path)
            .header("authorization", format!("Bearer {OPERATOR}"))
            .header("accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = world.raw(request.body(Body::empty()).expect("well-formed")).await;
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body().into_data_stream().boxed(), text: String::new() }
    }

    /// The next event: its name, its id and its data; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let prefix = format!("{name}: ");
                    block.lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
                };
                if let Some(name) = field("event") {
                    let data = field("data").expect("an event has data");
                    return Some((name, field("id"), serde_json::from_str(&data).expect("data is JSON")));
                }
                continue;
            }
            let piece = tokio::time::timeout(Duration::from_secs(20), self.body.next()).await;
            let piece = piece.expect("an event comes within 20 s")?;
            self.text.push_str(std::str::from_utf8(&piece.expect("the stream is whole")).expect("text"));
        }
    }
}
