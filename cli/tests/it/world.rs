//! A real controller, a node played by hand, and the command.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use windlass_controller::{Controller, ControllerArgs};

/// The longest that anything in a test may take.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// A controller with its own state folder.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) url: String,
    pub(crate) ca_file: String,
    pub(crate) token_file: String,
    http: reqwest::Client,
    _stop: tokio_util::sync::DropGuard,
    _controller: Controller,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let stop = CancellationToken::new();
        let args = ControllerArgs::new(folder.path().join("state"), ([127, 0, 0, 1], 0).into());
        let controller = Controller::start(args, stop.clone()).await.expect("the controller starts");
        let ca = std::fs::read(controller.ca_file()).expect("the authority was made");
        let certificates = reqwest::Certificate::from_pem_bundle(&ca).expect("the authority is PEM");
        rustls::crypto::ring::default_provider().install_default().ok();
        let http =
            reqwest::Client::builder().tls_certs_only(certificates).no_proxy().build().expect("a client");
        Self {
            url: controller.url().to_owned(),
            ca_file: controller.ca_file().display().to_string(),
            token_file: controller.admin_token_file().display().to_string(),
            http,
            folder,
            _stop: stop.drop_guard(),
            _controller: controller,
        }
    }

    /// The command with the settings of this controller in its environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(args, self.folder.path());
        command
            .env("WINDLASS_SERVER", &self.url)
            .env("WINDLASS_CA_FILE", &self.ca_file)
            .env("WINDLASS_TOKEN_FILE", &self.token_file);
        command
    }

    /// Runs the command to its end.
    pub(crate) async fn cli(&self, args: &[&str]) -> Output {
        finish(self.command(args)).await
    }

    /// Runs the command with this on its standard input.
    pub(crate) async fn cli_with_input(&self, args: &[&str], input: &str) -> Output {
        let file = self.folder.path().join("stdin");
        std::fs::write(&file, input).expect("the folder can be written");
        let mut command = self.command(args);
        command.stdin(std::fs::File::open(&file).expect("it was just written"));
        finish(command).await
    }

    /// Starts the command and leaves it running.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }

    /// Writes a file into the world's folder and yields its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it is below the folder"))
            .expect("the folder can be written");
        std::fs::write(&path, content).expect("the folder can be written");
        path.display().to_string()
    }

    /// What anybody gets there without a token.
    pub(crate) async fn get_anonymously(&self, url: &str) -> (u16, Vec<u8>) {
        let answer = self.http.get(url).send().await.expect("the controller answers");
        (answer.status().as_u16(), answer.bytes().await.expect("the answer is whole").to_vec())
    }

    /// A node that has joined and applied its configuration.
    pub(crate) async fn node(&self, name: &str) -> Node<'_> {
        let created = self.cli(&["join-token", "create", "-o", "json"]).await.ok();
        let token: Value = serde_json::from_str(&created.stdout).expect("JSON");
        let mut node = Node { world: self, name: name.to_owned(), token: String::new(), requests: 0 };
        let secret = secret(token["token"].as_str().expect("the token is text"));
        let body = json!({"psk": secret, "capability": node.capability()});
        let bootstrap = node.call(reqwest::Method::POST, "register", Some(body)).await;
        node.token = bootstrap["auth"]["node_jwt"].as_str().expect("the token is text").to_owned();
        let config = node.call(reqwest::Method::GET, "config?after=0", None).await;
        let ack = json!({
            "version": 1, "node_slug": name, "config_version": config["config_version"], "ack_at": now(),
            "status": "applied",
        });
        node.call(reqwest::Method::POST, "config", Some(ack)).await;
        node
    }
}

/// The secret inside a join token.
fn secret(token: &str) -> String {
    let content = token.strip_prefix("wl1.").expect("a join token has its prefix");
    let content = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(content).expect("base64");
    let content: Value = serde_json::from_slice(&content).expect("JSON");
    content["s"].as_str().expect("the secret is text").to_owned()
}

#[expect(clippy::disallowed_methods, reason = "the node played by hand has the clock of this machine")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// What a step does, as its node reports it.
#[derive(Clone)]
pub(crate) enum Act {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Tells something to people.
    Event(&'static str),
    /// Tells of this.
    Leave(Value),
    /// Exits and so ends the job.
    Exit(i32),
    /// Exits with 0 after it has written this many bytes, of which few were kept.
    ExitCut(u64),
    /// Runs into the job's time limit.
    TimeOut,
    /// Runs until somebody cancels the job.
    UntilCancelled,
}

/// A node played by hand.
pub(crate) struct Node<'a> {
    world: &'a World,
    name: String,
    token: String,
    requests: u32,
}

impl Node<'_> {
    fn capability(&self) -> Value {
        json!({
            "version": 1, "reported_at": now(),
            "node": {"node_slug": self.name, "labels": {"disk": "ssd"}},
            "platform": {"os": "linux", "distro": "debian 12", "arch": "amd64", "kernel_version": "6.1"},
            "compute": {"cpu_cores": 4, "ram_mb": 8192},
            "sandbox": {
                "supported": true, "max_concurrency": 2, "runtimes": ["native"], "networks": ["None"],
                "limits": ["cpu", "memory", "pids", "disk"],
            },
            "agent": {"version": "0.1.0", "boot_id": format!("boot-{}", self.name), "step_kinds": ["command", "script"]},
        })
    }

    async fn call(&self, method: reqwest::Method, verb: &str, body: Option<Value>) -> Value {
        let mut request = self.world.http.request(method, format!("{}/v1/nodes/{verb}", self.world.url));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the controller answers");
        let status = response.status();
        let text = response.text().await.expect("the answer is whole");
        assert!(status.is_success(), "{verb}: {status}: {text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("the answer is JSON") }
    }

    /// Takes the next job and does nothing with it.
    pub(crate) async fn take(&mut self) -> Value {
        let claimed = tokio::time::timeout(BOUND, async {
            loop {
                let claimed = self.claim(1, &[]).await;
                if let Some(assignment) = claimed["assignments"].get(0) {
                    return assignment.clone();
                }
            }
        });
        claimed.await.expect("there is a job")
    }

    /// Takes the next job and does all of this, as its only step. Yields the attempt.
    pub(crate) async fn perform(&mut self, acts: &[Act]) -> Value {
        let assignment = self.take().await;
        let attempt = &assignment["attempt"];
        let mut sequence = 0;
        let mut offsets = [0, 0];
        let mut bodies =
            vec![json!({"kind": "started", "unenforced": []}), json!({"kind": "step_started", "step": 0})];
        for act in acts {
            match act {
                Act::Stdout(bytes) => bodies.push(log("stdout", &mut offsets[0], bytes)),
                Act::Stderr(bytes) => bodies.push(log("stderr", &mut offsets[1], bytes)),
                Act::Leave(manifest) => bodies.push(manifest.clone()),
                Act::Event(message) => bodies.push(json!({
                    "kind": "event", "level": "warn", "reason": "Told", "message": message,
                })),
                Act::Exit(code) => {
                    bodies.push(json!({
                        "kind": "step_ended", "step": 0, "succeeded": *code == 0, "reason": "Exited", "exit_code": code,
                    }));
                    let (phase, reason) =
                        if *code == 0 { ("succeeded", "Completed") } else { ("failed", "StepFailed") };
                    bodies.push(
                        json!({"kind": "terminal", "phase": phase, "reason": reason, "exit_code": code}),
                    );
                }
                Act::ExitCut(bytes) => {
                    bodies.push(json!({
                        "kind": "step_ended", "step": 0, "succeeded": true, "reason": "Exited", "exit_code": 0,
                        "usage": {"stdoutBytes": bytes, "stdoutTruncated": true},
                    }));
                    bodies.push(
                        json!({"kind": "terminal", "phase": "succeeded", "reason": "Completed", "exit_code": 0}),
                    );
                }
                Act::TimeOut => {
                    bodies.push(
                        json!({"kind": "step_ended", "step": 0, "succeeded": false, "reason": "Timeout"}),
                    );
                    bodies.push(json!({"kind": "terminal", "phase": "timed_out", "reason": "JobTimeout"}));
                }
                Act::UntilCancelled => {
                    self.report(attempt, &mut sequence, std::mem::take(&mut bodies)).await;
                    self.wait_for_cancel(attempt).await;
                    bodies.push(
                        json!({"kind": "step_ended", "step": 0, "succeeded": false, "reason": "Cancelled"}),
                    );
                    bodies
                        .push(json!({"kind": "terminal", "phase": "cancelled", "reason": "CancelRequested"}));
                }
            }
        }
        self.report(attempt, &mut sequence, bodies).await;
        attempt.clone()
    }

    /// Sends the body of an artifact.
    pub(crate) async fn send_artifact(&self, attempt: &Value, number: u32, content: &[u8]) {
        let job = attempt["job"].as_str().expect("a uid is text");
        let place = format!("v1/nodes/artifacts/{job}/{}/{number}", attempt["epoch"]);
        let request = self.world.http.put(format!("{}/{place}", self.world.url));
        let sent = request.bearer_auth(&self.token).body(content.to_vec()).send().await;
        assert!(sent.expect("the controller answers").status().is_success(), "{place}");
    }

    /// Tells that the body of an artifact will never come.
    pub(crate) async fn lose_artifact(&self, attempt: &Value, number: u32, reason: &str) {
        let lost = json!([{"number": number, "reason": reason}]);
        let body = json!({"version": 1, "attempt": attempt, "lost": lost});
        self.call(reqwest::Method::POST, "artifacts", Some(body)).await;
    }

    async fn claim(&mut self, max: u32, held: &[&Value]) -> Value {
        self.requests += 1;
        let body = json!({
            "version": 1, "request_id": format!("{}-{}", self.name, self.requests),
            "boot_id": format!("boot-{}", self.name), "max": max, "wait_seconds": 5, "held": held,
        });
        self.call(reqwest::Method::POST, "claim", Some(body)).await
    }

    async fn wait_for_cancel(&mut self, attempt: &Value) {
        let ordered = tokio::time::timeout(BOUND, async {
            loop {
                let answer = self.claim(0, &[attempt]).await;
                let orders = answer["orders"].as_array().cloned().unwrap_or_default();
                if orders.iter().any(|order| order["kind"] == "cancel" && order["attempt"] == *attempt) {
                    return;
                }
            }
        });
        ordered.await.expect("the job is cancelled");
    }

    async fn report(&self, attempt: &Value, sequence: &mut u64, bodies: Vec<Value>) {
        let records: Vec<Value> = bodies
            .into_iter()
            .map(|mut body| {
                *sequence += 1;
                if body["kind"] == "terminal" {
                    body["last_sequence"] = json!(*sequence);
                }
                json!({"attempt": attempt, "sequence": *sequence, "at": now(), "body": body})
            })
            .collect();
        let answer =
            self.call(reqwest::Method::POST, "report", Some(json!({"version": 1, "records": records}))).await;
        for result in answer["results"].as_array().expect("results is a list") {
            assert_eq!(result["outcome"], "accepted", "{answer}");
        }
    }
}

fn log(stream: &str, offset: &mut usize, bytes: &[u8]) -> Value {
    let body = match std::str::from_utf8(bytes) {
        Ok(text) => json!({"text": text}),
        Err(_) => json!({"base64": base64::engine::general_purpose::STANDARD.encode(bytes)}),
    };
    let record = json!({"kind": "log", "step": 0, "stream": stream, "offset": *offset, "body": body});
    *offset += bytes.len();
    record
}

/// The command with nothing of this machine's environment.
pub(crate) fn bare(args: &[&str], home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What the command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) stdout_bytes: Vec<u8>,
    pub(crate) stderr_bytes: Vec<u8>,
}

impl Output {
    /// The output of a command that must have ended well.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The standard error of a command that must have ended with this code.
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr
    }
}

/// Runs a command to its end.
pub(crate) async fn finish(command: Command) -> Output {
    Running::start(command).end().await
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Reader,
    stderr: Reader,
}

/// Reads a stream of the command while it runs.
struct Reader {
    task: tokio::task::JoinHandle<Vec<u8>>,
    so_far: tokio::sync::watch::Receiver<Vec<u8>>,
}

impl Reader {
    fn start(mut stream: impl tokio::io::AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, so_far) = tokio::sync::watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = stream.read(&mut buffer).await.expect("the pipe can be read");
                if count == 0 {
                    return sender.borrow().clone();
                }
                sender.send_modify(|bytes| bytes.extend_from_slice(&buffer[..count]));
            }
        });
        Self { task, so_far }
    }

    async fn until(&mut self, text: &str) {
        let found = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).contains(text);
        let waited = tokio::time::timeout(BOUND, self.so_far.wait_for(found)).await;
        let came = matches!(waited, Ok(Ok(_)));
        drop(waited);
        if !came {
            let so_far = String::from_utf8_lossy(&self.so_far.borrow()).into_owned();
            panic!("`{text}` did not come; what came is:\n{so_far}");
        }
    }
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command was built");
        let stdout = Reader::start(child.stdout.take().expect("it is piped"));
        let stderr = Reader::start(child.stderr.take().expect("it is piped"));
        Self { child, stdout, stderr }
    }

    /// Waits until standard output holds a text.
    pub(crate) async fn stdout_has(&mut self, text: &str) {
        self.stdout.until(text).await;
    }

    /// Waits until standard error holds a text.
    pub(crate) async fn stderr_has(&mut self, text: &str) {
        self.stderr.until(text).await;
    }

    /// Stops reading standard output, as a reader that has seen enough does.
    pub(crate) async fn close_stdout(&mut self) {
        let reading = std::mem::replace(&mut self.stdout.task, tokio::spawn(async { Vec::new() }));
        reading.abort();
        assert!(reading.await.is_err_and(|error| error.is_cancelled()), "the command wrote nothing yet");
    }

    /// Interrupts the command as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        let id = self.child.id().expect("it runs");
        let process =
            rustix::process::Pid::from_raw(i32::try_from(id).expect("an id is small")).expect("not zero");
        rustix::process::kill_process(process, rustix::process::Signal::INT).expect("it runs");
    }

    /// Waits for the end.
    pub(crate) async fn end(mut self) -> Output {
        let status =
            tokio::time::timeout(BOUND, self.child.wait()).await.expect("the command ends").expect("status");
        let stdout_bytes = self.stdout.task.await.expect("the reader does not panic");
        let stderr_bytes = self.stderr.task.await.expect("the reader does not panic");
        Output {
            code: status.code(),
            stdout: String::from_utf8_lossy(&stdout_bytes).into_owned(),
            stderr: String::from_utf8_lossy(&stderr_bytes).into_owned(),
            stdout_bytes,
            stderr_bytes,
        }
    }
}
