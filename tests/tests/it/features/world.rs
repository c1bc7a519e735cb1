//! What a scenario works with: a controller, real agents, nodes by hand, and the last answer.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use base64::Engine as _;
use reqwest::{Certificate, Method};
use serde_json::{Value, json};
use windlass_store::StoreUrl;
use windlass_test_postgres::{Database, Server};

use crate::system::fleet::{Fleet, Process};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose agent is this test.
#[derive(Clone, Debug, Default)]
pub(super) struct ByHand {
    pub(super) token: String,
    pub(super) cores: u32,
    /// What it holds, or held.
    pub(super) attempt: Value,
}

/// What a scenario works with.
#[derive(Default)]
pub(super) struct World {
    agents: Vec<Process>,
    fleet: Option<Fleet>,
    database: Option<Database<'static>>,
    http: Option<Http>,
    /// How often an orchestrator has had a node run something.
    pub(super) orders: u32,
    pub(super) by_hand: BTreeMap<String, ByHand>,
    /// Status and body of the last answer.
    pub(super) status: u16,
    pub(super) answer: Value,
    /// How often each run was given out, and the number of its attempt.
    pub(super) given: BTreeMap<String, Vec<u64>>,
}

impl World {
    /// Starts the controller, on a database of its own.
    pub(super) fn start(&mut self, store: &str, settings: &[&str]) {
        let mut settings = settings.to_vec();
        let url = match store {
            "SQLite" => None,
            "PostgreSQL" => Some(self.database.insert(Server::shared().database()).url()),
            other => panic!("there is no store `{other}`"),
        };
        if let Some(url) = &url {
            settings.extend(["--store", url]);
        }
        let fleet = self.fleet.insert(Fleet::with(&settings));
        self.http = Some(Http::new(fleet));
    }

    pub(super) fn fleet(&self) -> &Fleet {
        self.fleet.as_ref().expect("the scenario begins with a controller")
    }

    pub(super) fn http(&self) -> &Http {
        self.http.as_ref().expect("the scenario begins with a controller")
    }

    /// Where the controller's database is.
    pub(super) fn store(&self) -> StoreUrl {
        match &self.database {
            None => StoreUrl::Sqlite(self.fleet().path("controller/windlass.db")),
            Some(database) => StoreUrl::Postgres(database.url().parse().expect("a URL")),
        }
    }

    /// Starts a real agent.
    pub(super) fn real_node(&mut self, name: &str) {
        let agent = self.fleet().agent(name);
        self.agents.push(agent);
    }

    /// Asks, and keeps the answer.
    pub(super) fn ask(&mut self, method: Method, path: &str, token: Option<&str>, body: Option<&Value>) {
        (self.status, self.answer) = self.http().ask(method, path, token, body);
    }

    /// [`World::ask`] as an operator.
    pub(super) fn operate(&mut self, method: Method, path: &str, body: Option<&Value>) {
        let token = self.http().operator.clone();
        self.ask(method, path, Some(&token), body);
    }

    /// Registers a node by hand.
    pub(super) fn register(&mut self, name: &str, psk: &str) {
        let node = ByHand { cores: 4, ..ByHand::default() };
        let body = json!({"psk": psk, "capability": capability(name, node.cores)});
        self.ask(Method::POST, "/v1/nodes/register", None, Some(&body));
        let token = self.answer["auth"]["node_jwt"].as_str().unwrap_or_default().to_owned();
        self.by_hand.insert(name.to_owned(), ByHand { token, ..node });
    }

    /// Registers a node by hand with a token of the controller.
    pub(super) fn join(&mut self, name: &str) {
        let token = self.fleet().json(&["join-token", "create"]);
        let content =
            token["token"].as_str().and_then(|token| token.strip_prefix("wl1.")).expect("a join token");
        let content = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(content).expect("base64");
        let content: Value = serde_json::from_slice(&content).expect("JSON");
        self.register(name, content["s"].as_str().expect("the secret is text"));
    }

    /// Asks as a node.
    pub(super) fn ask_as(&mut self, node: &str, method: Method, verb: &str, body: Option<&Value>) {
        let token = self.by_hand[node].token.clone();
        self.ask(method, &format!("/v1/nodes/{verb}"), Some(&token), body);
    }

    /// Ends what was started.
    pub(super) fn end(mut self) {
        self.agents.clear();
        drop(self.fleet.take());
        if let Some(database) = self.database.take() {
            database.remove();
        }
    }
}

/// What a node by hand says that it can do.
pub(super) fn capability(node: &str, cores: u32) -> Value {
    json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z",
        "node": {"node_slug": node},
        "platform": {"os": "linux", "arch": "amd64"},
        "compute": {"cpu_cores": cores, "ram_mb": 8192},
        "sandbox": {
            "supported": true, "max_concurrency": 4, "runtimes": ["native"], "networks": ["None"],
            "limits": ["cpu", "memory", "pids", "disk"],
        },
        "agent": {"version": "0.1.0", "boot_id": boot(node)},
    })
}

/// The run of a node by hand.
pub(super) fn boot(node: &str) -> String {
    format!("boot of {node}")
}

/// A client of the controller that says just what it is told.
pub(super) struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    base: String,
    pub(super) operator: String,
}

impl Http {
    fn new(fleet: &Fleet) -> Self {
        // Another test of this process may have been quicker.
        rustls::crypto::ring::default_provider().install_default().ok();
        let pem = fs::read(fleet.path("controller/pki/ca.crt")).expect("the controller has made it");
        let authority = Certificate::from_pem(&pem).expect("it is a certificate");
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .tls_certs_only([authority])
            .build()
            .expect("the settings fit together");
        let operator =
            fs::read_to_string(fleet.path("controller/admin.token")).expect("the controller has made it");
        Self {
            runtime: tokio::runtime::Runtime::new().expect("threads can be started"),
            client,
            base: fleet.url.clone(),
            operator: operator.trim().to_owned(),
        }
    }

    /// Runs something on the client's threads until it is done.
    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Asks; yields status and body.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> (u16, Value) {
        self.run(self.asking(method, path, token, body))
    }

    /// [`Http::ask`] among others at the same time.
    pub(super) async fn asking(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.expect("the controller answers");
        let status = response.status().as_u16();
        let body = response.bytes().await.expect("the answer is whole");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}
