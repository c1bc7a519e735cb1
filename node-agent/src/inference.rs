//! The node's server of models: run as one container, or used where it runs already, and offered to the steps that ask for it.
//!
//! ```text
//!  configuration ──► task: observe ─► plan ─► apply ─┬─► container engine (image, port, container)
//!                      │                             └─► server (version, models, pull, delete)
//!                      ├──► readiness, capability report (`InferenceReady`)
//!                      └──► endpoint ──► egress proxy of steps with `sandbox.inference`
//! ```
//!
//! *Guarantees*: at most one container in a state folder, and none where none is configured or the agent has ended in order.
//! One that a crash has left is taken up if it is as the configuration says, and replaced otherwise. Everything is a round that
//! begins with a look, so it can be dropped at any moment and begun anew.
//!
//! *Caveats*: the server has the network of the host, for it must fetch models and must not depend on a bridge; it is told to
//! listen on the loopback address. See docs/adr/0017-inference-and-facts.md.

mod api;
mod container;
mod models;
mod place;
mod task;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use windlass_crds::inference::InferenceStatus;
use windlass_crds::protocol::InferenceCapability;
use windlass_sandbox::egress::LocalServer;

use self::place::Endpoint;
pub(crate) use self::task::InferenceTask;
use crate::watch;

/// Where steps find the server: the proxy's own address inside.
const INSIDE: &str = "http://127.0.0.1";
/// The rule that a request to the server is allowed by.
const RULE: &str = "sandbox.inference";
/// How long a step's proxy waits for the server's address after the agent has come up.
const ENDPOINT_WAIT: Duration = Duration::from_secs(10);

/// What steps may ask of a server: to compute, and what it has. Models are the node's business: nothing here changes them.
const REQUESTS: &[(&str, &str)] = &[
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/rerank"),
    ("POST", "/completion"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("POST", "/api/show"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
];

/// What the rest of the agent may know of the server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct InferenceHandle {
    state: Arc<watch::Sender<State>>,
    /// Tells the task to end what it runs.
    stop: Arc<watch::Sender<bool>>,
    stopped: Arc<Notify>,
}

/// What is known of the server now.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// What goes into the capability report; `None` where none is configured.
    told: Option<InferenceCapability>,
    endpoint: Option<Endpoint>,
}

impl State {
    /// The server as steps may use it.
    fn local(&self) -> Option<LocalServer> {
        self.endpoint.as_ref().map(Endpoint::local)
    }
}

impl InferenceHandle {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::default())),
            stop: Arc::new(watch::Sender::new(false)),
            stopped: Arc::new(Notify::new()),
        }
    }

    /// What goes into the capability report.
    pub(crate) fn capability(&self) -> Option<InferenceCapability> {
        self.state.borrow().told.clone()
    }

    /// Ends the container, if there is one, and keeps it from coming back. For the agent's orderly end.
    pub(crate) async fn stop(&self) {
        let stopped = self.stopped.notified();
        self.stop.send_replace(true);
        stopped.await;
    }

    /// Why steps cannot use the server now; `None` where they can.
    pub(crate) fn unusable(&self) -> Option<String> {
        match &self.state.borrow().told {
            None => Some("the node has no server of models: its inference is not configured".to_owned()),
            Some(told) if told.running => None,
            Some(told) => Some(format!("the node's server of models is not ready: {}", told.status.message)),
        }
    }

    /// What a step's environment says of the server, beside what the step says itself.
    pub(crate) fn environment(&self, model: Option<&str>) -> Vec<(&'static str, String)> {
        let base = format!("{INSIDE}:{}", windlass_sandbox::egress::PORT);
        let mut environment = vec![
            ("OPENAI_BASE_URL", format!("{base}/v1")),
            // Clients insist on one; where the server wants another, the proxy puts it in its place.
            ("OPENAI_API_KEY", "windlass".to_owned()),
            ("OLLAMA_HOST", base.clone()),
            ("WINDLASS_INFERENCE_URL", base),
        ];
        let first = || {
            let state = self.state.borrow();
            state.told.as_ref().and_then(|told| told.available_models.first().cloned())
        };
        environment
            .extend(model.map(str::to_owned).or_else(first).map(|model| ("WINDLASS_INFERENCE_MODEL", model)));
        environment
    }

    /// The server as the proxy of a step offers it. Waits a little for an address that is not known yet, as after a restart.
    pub(crate) async fn local_server(&self) -> Option<LocalServer> {
        let mut state = self.state.subscribe();
        let known =
            tokio::time::timeout(ENDPOINT_WAIT, state.wait_for(|state| state.endpoint.is_some())).await;
        if !matches!(known, Ok(Ok(()))) {
            return None;
        }
        state.borrow().local()
    }

    /// Returns when steps may use another server than this, or none any more. Cancel-safe: it only looks.
    pub(crate) async fn other_than(&self, known: Option<&LocalServer>) -> Option<LocalServer> {
        let mut state = self.state.subscribe();
        if state.wait_for(|state| state.local().as_ref() != known).await.is_err() {
            std::future::pending::<()>().await;
        }
        state.borrow().local()
    }
}

/// Why there is no server to use, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    /// One word, for programs.
    reason: &'static str,
    /// What is wrong and what to do about it.
    message: String,
    /// Whether it is only a matter of time.
    passing: bool,
}

impl Trouble {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), passing: false }
    }

    /// Nothing is wrong; it takes a while.
    fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), passing: true }
    }
}

/// What is told of a server that is configured so.
fn told(status: InferenceStatus, required: bool, existing: bool, supported: bool) -> InferenceCapability {
    InferenceCapability {
        supported,
        mode: if required { "require" } else { "allow" }.to_owned(),
        existing_service: existing,
        running: status.ready,
        available_models: status.models.iter().map(|model| model.name.clone()).collect(),
        status,
    }
}

/// Whether an address is of this host or of a private network.
fn is_near(address: IpAddr) -> bool {
    windlass_sandbox::egress::special(address).is_some()
}

#[cfg(test)]
mod tests;
