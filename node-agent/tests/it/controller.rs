//! A small controller: the agent protocol over TLS on loopback, with an authority of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as AxumState};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::Digest as _;
use tokio::sync::watch;
use windlass_crds::protocol::{
    Assignment, AttemptId, Bootstrap, BootstrapAuth, ClaimRequest, ClaimResponse, ConfigAck, Endpoints,
    HeartbeatRequest, HeartbeatResponse, LogBody, Orchestrator, Outcome, Problem, Record, RecordBody,
    RecordOutcome, RegisterRequest, Renewal, ReportRequest, ReportResponse, Stream, Terminal, Trust, VERSION,
};

pub(crate) const SECRET: &str = "the-secret";

/// A controller that listens until it is dropped.
#[derive(Clone)]
pub(crate) struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    ca_pem: String,
    ca_hash: [u8; 32],
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    handle: axum_server::Handle<std::net::SocketAddr>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) registrations: Vec<RegisterRequest>,
    pub(crate) acks: Vec<ConfigAck>,
    pub(crate) queue: VecDeque<Assignment>,
    pub(crate) records: BTreeMap<(AttemptId, u64), Record>,
    pub(crate) inputs: BTreeMap<String, Vec<u8>>,
    pub(crate) unauthorized: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

struct Certificates {
    ca_pem: String,
    ca_hash: [u8; 32],
    config: rustls::ServerConfig,
}

fn certificates() -> Certificates {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca_params = CertificateParams::new(Vec::new()).unwrap();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &Issuer::from_params(&ca_params, &ca_key)).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone(), ca.der().clone()], private)
        .unwrap();
    Certificates { ca_pem: ca.pem(), ca_hash: sha2::Sha256::digest(ca.der()).into(), config }
}

impl Controller {
    pub(crate) async fn start() -> Self {
        let Certificates { ca_pem, ca_hash, mut config } = certificates();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let handle = axum_server::Handle::new();
        let inner = Inner {
            url,
            ca_pem,
            ca_hash,
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            handle: handle.clone(),
        };
        let controller = Self { inner: Arc::new(inner) };
        // The routes hold the state weakly through this clone; the handle ends the server with the last other one.
        let routes = axum::Router::new()
            .route("/v1/nodes/register", post(register))
            .route("/v1/nodes/config", get(config_of).post(acknowledge))
            .route("/v1/nodes/capability", post(|| async { StatusCode::NO_CONTENT }))
            .route("/v1/nodes/claim", post(claim))
            .route("/v1/nodes/heartbeat", post(heartbeat))
            .route("/v1/nodes/report", post(report))
            .route("/v1/nodes/inputs/{digest}", get(input))
            .with_state(controller.clone());
        let server =
            axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(config))).unwrap();
        tokio::spawn(server.handle(handle).serve(routes.into_make_service()));
        controller
    }

    pub(crate) fn url(&self) -> url::Url {
        self.inner.url.parse().unwrap()
    }

    pub(crate) fn ca_pem(&self) -> &str {
        &self.inner.ca_pem
    }

    pub(crate) fn ca_hash(&self) -> [u8; 32] {
        self.inner.ca_hash
    }

    pub(crate) fn token(&self) -> String {
        let json =
            serde_json::json!({"u": self.inner.url, "c": hex::encode(self.inner.ca_hash), "s": SECRET});
        format!("wl1.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string()))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.inner.changes.send_modify(|count| *count += 1);
        result
    }

    /// Waits until `look` finds something, at most a minute.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut changes = self.inner.changes.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                if let Some(found) = look(&self.state()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not within a minute: {what}"))
    }

    pub(crate) async fn terminal(&self, job: &str) -> Terminal {
        self.until("the end of a job", |state| state.terminal(job)).await
    }

    fn endpoint(&self, path: &str) -> String {
        format!("{}/v1/nodes/{path}", self.inner.url)
    }
}

impl State {
    pub(crate) fn terminal(&self, job: &str) -> Option<Terminal> {
        self.records.iter().find_map(|((attempt, _), record)| match &record.body {
            RecordBody::Terminal(terminal) if attempt.job == job => Some(terminal.clone()),
            _ => None,
        })
    }

    /// What the steps of a job wrote, one after the other, checked for gaps and repetitions.
    pub(crate) fn output(&self, job: &str, wanted: Stream) -> String {
        let mut output: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for ((attempt, _), record) in &self.records {
            if let RecordBody::Log { step, stream, body, offset } = record.body.clone()
                && attempt.job == job
                && stream == wanted
            {
                let output = output.entry(step).or_default();
                assert_eq!(offset, output.len() as u64);
                output.extend(LogBody::into_bytes(body).unwrap());
            }
        }
        String::from_utf8(output.into_values().flatten().collect()).unwrap()
    }

    /// That a job's records have no gaps and it ended once.
    pub(crate) fn check(&self, job: &str) {
        let of: Vec<_> = self.records.iter().filter(|((attempt, _), _)| attempt.job == job).collect();
        let sequences: Vec<u64> = of.iter().map(|((_, sequence), _)| *sequence).collect();
        assert_eq!(sequences, (1..=of.len() as u64).collect::<Vec<_>>());
        let ends = of.iter().filter(|(_, record)| matches!(record.body, RecordBody::Terminal(_))).count();
        assert_eq!(ends, 1);
    }
}

fn problem(status: StatusCode, code: &str) -> Response {
    let body = Problem {
        problem_type: format!("urn:windlass:problem:{code}"),
        title: code.to_owned(),
        status: status.as_u16(),
        detail: Some("a detail".to_owned()),
        code: code.to_owned(),
        request_id: None,
        errors: Vec::new(),
    };
    (status, Json(body)).into_response()
}

fn refuse(controller: &Controller, headers: &HeaderMap) -> Option<Response> {
    let known = headers.get("authorization").is_some_and(|value| value == "Bearer node-token");
    (!known || controller.state().unauthorized).then(|| problem(StatusCode::UNAUTHORIZED, "unauthenticated"))
}

async fn register(AxumState(this): AxumState<Controller>, Json(request): Json<RegisterRequest>) -> Response {
    let known = !this.state().registrations.is_empty();
    if request.psk.as_deref() != Some(SECRET) && !known {
        return problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    }
    let node = &request.capability.node.node_slug;
    let boot = &request.capability.agent.as_ref().unwrap().boot_id;
    let proof = request.proof.as_ref().unwrap();
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let message = windlass_crds::protocol::registration_message(node, boot, proof.signed_at);
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, decode(&proof.public_key))
        .verify(message.as_bytes(), &decode(&proof.signature))
        .unwrap();
    this.change(|state| state.registrations.push(request));
    let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    let bootstrap = Bootstrap {
        version: VERSION,
        issued_at: now,
        node_uid: Some("uid".to_owned()),
        orchestrator: Orchestrator {
            base_url: this.inner.url.clone(),
            endpoints: Endpoints {
                worker_registration_url: this.endpoint("register"),
                node_report_url: this.endpoint("capability"),
                node_config_url: this.endpoint("config"),
                claim_url: this.endpoint("claim"),
                heartbeat_url: this.endpoint("heartbeat"),
                report_url: this.endpoint("report"),
                inputs_url: this.endpoint("inputs"),
                artifacts_url: None,
            },
        },
        auth: BootstrapAuth {
            node_jwt: "node-token".to_owned(),
            expires_at: now + jiff::SignedDuration::from_hours(1),
        },
        trust: Some(Trust { ca_bundle_pem: Some(this.ca_pem().to_owned()) }),
        initial_config_version: None,
    };
    (StatusCode::CREATED, Json(bootstrap)).into_response()
}

#[derive(serde::Deserialize)]
struct After {
    after: Option<u64>,
    wait: u64,
}

async fn config_of(
    AxumState(this): AxumState<Controller>,
    Query(After { after, wait }): Query<After>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refuse(&this, &headers) {
        return refusal;
    }
    if after.is_some_and(|after| after >= 1) {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        return StatusCode::NO_CONTENT.into_response();
    }
    let node = this.state().registrations[0].capability.node.node_slug.clone();
    let configuration = serde_json::json!({
        "version": 1, "config_version": "1", "issued_at": "2026-01-01T00:00:00Z", "node_slug": node,
        "orchestrator": {"base_url": this.inner.url,
            "endpoints": {"node_report_url": this.endpoint("capability")}},
    });
    Json(configuration).into_response()
}

async fn acknowledge(AxumState(this): AxumState<Controller>, Json(ack): Json<ConfigAck>) -> StatusCode {
    this.change(|state| state.acks.push(ack));
    StatusCode::NO_CONTENT
}

async fn claim(
    AxumState(this): AxumState<Controller>,
    headers: HeaderMap,
    Json(request): Json<ClaimRequest>,
) -> Response {
    if let Some(refusal) = refuse(&this, &headers) {
        return refusal;
    }
    let mut changes = this.inner.changes.subscribe();
    let wait = Duration::from_secs(request.wait_seconds.into());
    let waited = tokio::time::timeout(wait, async {
        loop {
            let assignments: Vec<Assignment> = {
                let mut state = this.state();
                let count = state.queue.len().min(request.max as usize);
                state.queue.drain(..count).collect()
            };
            if !assignments.is_empty() {
                return assignments;
            }
            changes.changed().await.unwrap();
        }
    });
    let assignments = waited.await.unwrap_or_default();
    let answer = ClaimResponse {
        version: VERSION,
        assignments,
        orders: Vec::new(),
        stopping: false,
        unreadable: Vec::new(),
    };
    Json(answer).into_response()
}

async fn heartbeat(
    AxumState(this): AxumState<Controller>,
    Json(request): Json<HeartbeatRequest>,
) -> Response {
    this.change(|_| ());
    let renewed = request.held.into_iter().map(|attempt| Renewal { attempt, lease_seconds: 25 }).collect();
    let answer = HeartbeatResponse {
        version: VERSION,
        renewed,
        orders: Vec::new(),
        interval_seconds: 1,
        config_version: "1".to_owned(),
        send_capability: false,
    };
    Json(answer).into_response()
}

async fn report(AxumState(this): AxumState<Controller>, Json(request): Json<ReportRequest>) -> Response {
    let results = this.change(|state| {
        let store = |record: Record| {
            let (attempt, sequence) = (record.attempt.clone(), record.sequence);
            let known = state.records.insert((attempt.clone(), sequence), record);
            let outcome = if known.is_some() { Outcome::Duplicate } else { Outcome::Accepted };
            RecordOutcome { attempt, sequence, outcome, detail: None }
        };
        request.records.into_iter().map(store).collect()
    });
    Json(ReportResponse { version: VERSION, results }).into_response()
}

async fn input(
    AxumState(this): AxumState<Controller>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refuse(&this, &headers) {
        return refusal;
    }
    match this.state().inputs.get(&digest) {
        Some(content) => Bytes::from(content.clone()).into_response(),
        None => problem(StatusCode::NOT_FOUND, "not_found"),
    }
}
