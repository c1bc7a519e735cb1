//! Our own system, as its users start it, and a client that submits and watches.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Certificate, Client, RequestBuilder, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::bench::{Bench, Daemon, free_port};

/// How long a job may take from submit to end. Far above what is measured; without it a defect would hang the bench.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller and an agent, in one process or in two.
#[derive(Debug)]
pub(crate) struct Windlass {
    // Before the controller, so that it is dropped and stopped first.
    agent: Option<Daemon>,
    controller: Daemon,
    /// Speaks to the controller.
    pub(crate) api: Api,
}

impl Windlass {
    /// `windlass dev`: both in one process.
    pub(crate) fn dev(bench: &Bench) -> anyhow::Result<Self> {
        let (folder, port) = (bench.folder("dev")?, free_port()?);
        let mut command = program(bench);
        command.arg("dev").arg("--state-dir").arg(folder.join("state"));
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        let (controller, api) =
            listening(bench, &command, "dev", &folder, &folder.join("state/controller"), port, Watch::Jobs)?;
        let mut this = Self { agent: None, controller, api };
        this.warm_up()?;
        Ok(this)
    }

    /// `windlass controller` and `windlass agent`.
    pub(crate) fn fleet(bench: &Bench) -> anyhow::Result<Self> {
        Self::fleet_with(bench, &[])
    }

    /// The same with more settings of the controller.
    pub(crate) fn fleet_with(bench: &Bench, settings: &[&str]) -> anyhow::Result<Self> {
        let (folder, port) = (bench.folder("fleet")?, free_port()?);
        let state = folder.join("controller");
        let mut command = program(bench);
        command.arg("controller").arg("--state-dir").arg(&state);
        command.arg("--listen").arg(format!("127.0.0.1:{port}")).args(settings);
        let (controller, api) = listening(bench, &command, "controller", &folder, &state, port, Watch::Jobs)?;
        let mut command = program(bench);
        command.arg("agent").arg("--state-dir").arg(folder.join("agent"));
        command.arg("--join").arg(api.join_token()?).args(["--name", "bench"]);
        let agent = Daemon::start(&command, "agent", &folder)?;
        let mut this = Self { agent: Some(agent), controller, api };
        this.warm_up()?;
        Ok(this)
    }

    /// The processes of agent and controller, which may be one.
    pub(crate) fn pids(&self) -> (u32, u32) {
        (self.agent.as_ref().unwrap_or(&self.controller).pid(), self.controller.pid())
    }

    /// Waits for the node by running jobs, which also fills caches on both sides.
    fn warm_up(&mut self) -> anyhow::Result<()> {
        for _ in 0..5 {
            let job = self.api.submit(&["/bin/true"])?;
            self.api.ended(&job).context("while the system warms up")?;
        }
        Ok(())
    }
}

/// A controller alone, which can be killed and started again.
#[derive(Debug)]
pub(crate) struct Controller {
    command: Command,
    folder: PathBuf,
    port: u16,
    running: Option<Daemon>,
    /// Speaks to it.
    pub(crate) api: Api,
}

impl Controller {
    /// Starts one with a new folder of this name and these settings.
    pub(crate) fn start(bench: &Bench, name: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let (folder, port) = (bench.folder(name)?, free_port()?);
        let state = folder.join("controller");
        let mut command = program(bench);
        command.arg("controller").arg("--state-dir").arg(&state).args(settings);
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        let (running, api) = listening(bench, &command, "controller", &folder, &state, port, Watch::Nothing)?;
        Ok(Self { command, folder, port, running: Some(running), api })
    }

    /// Starts an agent for it.
    pub(crate) fn agent(&self, bench: &Bench, name: &str) -> anyhow::Result<Daemon> {
        let mut command = program(bench);
        command.arg("agent").arg("--state-dir").arg(self.folder.join(name));
        command.arg("--join").arg(self.api.join_token()?).args(["--name", name]);
        Daemon::start(&command, name, &self.folder)
    }

    /// Kills it, as the kernel does when memory is short.
    pub(crate) fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running.stopped_by(Signal::KILL));
        }
    }

    /// Starts it again; returns once it listens.
    pub(crate) fn again(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        let running = Daemon::start(&self.command, "controller", &self.folder)?;
        self.running = Some(running.until(|| TcpStream::connect(("127.0.0.1", port)).is_ok())?);
        Ok(())
    }
}

/// What a client is told of without asking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Jobs,
    Nothing,
}

/// Our program, which neither finds nor leaves anything in the user's folders.
pub(crate) fn program(bench: &Bench) -> Command {
    let mut command = Command::new(&bench.windlass);
    for folder in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        command.env(folder, &bench.work);
    }
    command
}

/// Starts a controller and a client for it.
fn listening(
    bench: &Bench,
    command: &Command,
    name: &str,
    folder: &Path,
    state: &Path,
    port: u16,
    watch: Watch,
) -> anyhow::Result<(Daemon, Api)> {
    let token_file = state.join("admin.token");
    let listens = || token_file.exists() && TcpStream::connect(("127.0.0.1", port)).is_ok();
    let daemon = Daemon::start(command, name, folder)?.until(listens)?;
    let url = format!("https://127.0.0.1:{port}");
    let api = Api::new(bench, url, state.join("pki/ca.crt"), token_file, watch)?;
    Ok((daemon, api))
}

/// A job that was submitted.
#[derive(Debug)]
pub(crate) struct Submitted {
    /// Its name.
    pub(crate) name: String,
    /// Before the request was sent.
    pub(crate) sent: Instant,
    /// When the answer was there, which says that the job is on disk.
    pub(crate) acknowledged: SystemTime,
}

/// A job that the watcher saw end.
#[derive(Debug)]
struct Ended {
    name: String,
    phase: String,
    at: Instant,
}

/// A client of the controller: one connection to submit by, one that watches.
#[derive(Debug)]
pub(crate) struct Api {
    runtime: Handle,
    http: Client,
    url: String,
    ca_file: PathBuf,
    token_file: PathBuf,
    token: String,
    ended: Receiver<Ended>,
}

impl Api {
    fn new(
        bench: &Bench,
        url: String,
        ca_file: PathBuf,
        token_file: PathBuf,
        watch: Watch,
    ) -> anyhow::Result<Self> {
        // The only way to fail is that a provider was installed before, which is just as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = client(&ca_file)?;
        let token = fs::read_to_string(&token_file)?.trim().to_owned();
        let runtime = bench.runtime.handle().clone();
        let (sender, ended) = mpsc::channel();
        if watch == Watch::Nothing {
            return Ok(Self { runtime, http, url, ca_file, token_file, token, ended });
        }
        let watch = http.get(format!("{url}/v1/namespaces/default/jobs?watch=true")).bearer_auth(&token);
        let response = runtime.block_on(async { watch.send().await?.error_for_status() })?;
        runtime.spawn(async move {
            // Whoever waits for a job notices by the closed channel.
            if let Err(error) = follow(response, &sender).await {
                eprintln!("the watch ended: {error:#}");
            }
        });
        Ok(Self { runtime, http, url, ca_file, token_file, token, ended })
    }

    /// Creates a job of one command.
    pub(crate) fn submit(&self, command: &[&str]) -> anyhow::Result<Submitted> {
        let job = job(command);
        let sent = Instant::now();
        let (created, acknowledged) = self.runtime.block_on(async {
            let request = self.http.post(format!("{}/v1/namespaces/default/jobs", self.url));
            let response = request.bearer_auth(&self.token).json(&job).send().await?;
            let acknowledged = wall_clock();
            anyhow::Ok((read(response).await?, acknowledged))
        })?;
        let name = created["metadata"]["name"].as_str().context("a created job has a name")?.to_owned();
        Ok(Submitted { name, sent, acknowledged })
    }

    /// Waits until the watcher has seen the job succeed; tells when.
    pub(crate) fn ended(&self, job: &Submitted) -> anyhow::Result<Instant> {
        loop {
            let ended = self.ended.recv_timeout(PATIENCE);
            let Ended { name, phase, at } = ended.with_context(|| format!("job {} did not end", job.name))?;
            if name == job.name {
                ensure!(phase == "Succeeded", "job {name} is {phase}: {}", self.result(&name)?);
                return Ok(at);
            }
        }
    }

    /// What became of a job.
    pub(crate) fn result(&self, name: &str) -> anyhow::Result<Value> {
        self.get(&format!("/v1/namespaces/default/jobs/{name}/result"))
    }

    /// What the command of a job that has ended wrote.
    pub(crate) fn stdout(&self, name: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let result = self.result(name)?;
            if result["logsComplete"] == true {
                let text = result["steps"][0]["stdout"].as_str();
                return Ok(text.context("a result has its steps' output")?.to_owned());
            }
            ensure!(start.elapsed() < PATIENCE, "the output of job {name} does not arrive");
        }
    }

    /// The arguments by which the command line speaks to this controller.
    pub(crate) fn connection(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let words = [
            "--server",
            &self.url,
            "--ca-file",
            &path(&self.ca_file),
            "--token-file",
            &path(&self.token_file),
        ];
        words.map(str::to_owned).to_vec()
    }

    /// A request by a connection of its own.
    pub(crate) fn apart(&self, path: &str) -> anyhow::Result<RequestBuilder> {
        Ok(client(&self.ca_file)?.post(format!("{}{path}", self.url)).bearer_auth(&self.token))
    }

    /// Sends something, and yields the answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token);
        self.runtime.block_on(async { read(request.json(body).send().await?).await })
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        self.runtime.block_on(async { read(request.send().await?).await })
    }

    fn join_token(&self) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}/v1/join-tokens", self.url)).bearer_auth(&self.token);
        let created = self.runtime.block_on(async { read(request.json(&json!({})).send().await?).await })?;
        Ok(created["token"].as_str().context("a join token is text")?.to_owned())
    }
}

fn client(ca_file: &Path) -> anyhow::Result<Client> {
    let ca = Certificate::from_pem(&fs::read(ca_file)?)?;
    Ok(Client::builder().no_proxy().tcp_nodelay(true).tls_certs_only([ca]).build()?)
}

/// A job of one command, whose name the controller makes.
pub(crate) fn job(command: &[&str]) -> Value {
    json!({
        "apiVersion": "windlass.dev/v1alpha1",
        "kind": "SandboxJob",
        "metadata": { "generateName": "bench-" },
        "spec": { "command": command },
    })
}

/// The body of a success, or what the server says is wrong.
pub(crate) async fn read(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let body: Value = response.json().await?;
    if !status.is_success() {
        bail!("the controller answers {status}: {body}");
    }
    Ok(body)
}

/// Reads server-sent events and passes on jobs that have ended.
async fn follow(mut response: Response, ended: &mpsc::Sender<Ended>) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        let at = Instant::now();
        buffer.extend_from_slice(&bytes);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let job: Value = serde_json::from_slice(data)?;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let (Some(name), Some(phase)) = (text(&job["metadata"]["name"]), text(&job["status"]["phase"]))
            else {
                continue;
            };
            let is_over = matches!(phase.as_str(), "Succeeded" | "Failed" | "Cancelled" | "TimedOut");
            if is_over && ended.send(Ended { name, phase, at }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The clock that steps read, too.
#[expect(clippy::disallowed_methods, reason = "a bench measures the real time")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
