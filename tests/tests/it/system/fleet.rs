//! A controller and agents as processes of their own, driven by the command line that people use.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test, built beside this test.
pub(crate) fn windlass() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests are built below the target folder");
    let program = folder.join("windlass");
    assert!(program.exists(), "{} is missing: build it first (`make test` does)", program.display());
    program
}

/// Waits until `look` finds something; fails after `bound` with what it was waiting for.
pub(crate) fn wait_for<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", bound.as_secs());
        // The pause between two looks at a condition, not a wait for something to have happened.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A process that is ended with the test: politely first, so that it cleans up.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be shared"))
            .stderr(file)
            .spawn()
            .expect("the program starts");
        Self { child, log }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub(crate) fn has_ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("the process is ours").map(|status| status.code().unwrap_or(-1))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for _ in 0..2 {
            if self.has_ended().is_none() {
                self.signal("TERM");
                let deadline = Instant::now() + Duration::from_secs(4);
                while self.has_ended().is_none() && Instant::now() < deadline {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        }
        if self.has_ended().is_none() {
            self.kill();
        }
    }
}

/// A controller with its state, and what is needed to speak to it.
pub(crate) struct Fleet {
    // Dropped in this order: the controller ends before its state is removed.
    pub(crate) controller: Process,
    pub(crate) url: String,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    namespace: Option<String>,
    /// Where the identity is, if not in the controller's folder.
    identity: Option<PathBuf>,
    dir: TempDir,
}

/// The program, in a network namespace where one is named.
pub(crate) fn program_in(namespace: Option<&str>) -> Command {
    match namespace {
        None => Command::new(windlass()),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(windlass());
            command
        }
    }
}

impl Fleet {
    /// A controller on loopback with the default times.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A controller with further settings.
    pub(crate) fn with(settings: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = format!("127.0.0.1:{}", port.expect("a port is free").port());
        Self::on(&listen, None, settings)
    }

    /// A controller with further settings and this environment.
    pub(crate) fn with_environment(settings: &[&str], environment: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = format!("127.0.0.1:{}", port.expect("a port is free").port());
        Self::in_environment(&listen, None, settings, environment, None)
    }

    /// One of several controllers that share what `settings` name, and this identity, in this environment.
    pub(crate) fn sharing(identity: &Path, settings: &[&str], environment: &[(&str, &str)]) -> Self {
        let token = identity.join("admin.token");
        let mut all = vec!["--authority", identity.to_str().expect("the path is text")];
        all.extend(["--admin-token-file", token.to_str().expect("the path is text")]);
        all.extend(settings);
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = format!("127.0.0.1:{}", port.expect("a port is free").port());
        Self::in_environment(&listen, None, &all, environment, Some(identity))
    }

    /// A controller on this address, and everything else of the fleet, in this network namespace.
    pub(crate) fn on(listen: &str, namespace: Option<&str>, settings: &[&str]) -> Self {
        Self::in_environment(listen, namespace, settings, &[], None)
    }

    fn in_environment(
        listen: &str,
        namespace: Option<&str>,
        settings: &[&str],
        environment: &[(&str, &str)],
        identity: Option<&Path>,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the test");
        let mut all = vec!["--listen".to_owned(), listen.to_owned()];
        all.extend(settings.iter().map(ToString::to_string));
        let namespace = namespace.map(str::to_owned);
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let controller = Self::run_controller(dir.path(), namespace.as_deref(), &all, &environment);
        let url = format!("https://{listen}");
        let identity = identity.map(Path::to_owned);
        let fleet = Self { controller, url, settings: all, environment, namespace, identity, dir };
        fleet.wait_until_ready();
        fleet
    }

    fn run_controller(
        dir: &Path,
        namespace: Option<&str>,
        settings: &[String],
        environment: &[(String, String)],
    ) -> Process {
        let mut command = program_in(namespace);
        command.arg("controller").arg("--state-dir").arg(dir.join("controller")).args(settings);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(&mut command, dir.join("controller.log"))
    }

    fn wait_until_ready(&self) {
        wait_for("the controller answers", Duration::from_secs(30), || {
            self.cli(&["get", "queues", "-o", "json"]).status.success().then_some(())
        });
    }

    /// Starts the controller again, with the same state, address and settings.
    pub(crate) fn restart_controller(&mut self) {
        assert!(self.controller.has_ended().is_some(), "the controller must have ended before");
        self.controller = Self::run_controller(
            self.dir.path(),
            self.namespace.as_deref(),
            &self.settings,
            &self.environment,
        );
        self.wait_until_ready();
    }

    /// As [`Fleet::restart_controller`], with other settings beside its address from now on.
    pub(crate) fn restart_controller_with(&mut self, settings: &[&str]) {
        self.settings.truncate(2);
        self.settings.extend(settings.iter().map(ToString::to_string));
        self.restart_controller();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line, set up to speak to this controller.
    pub(crate) fn command(&self) -> Command {
        let state = self.dir.path().join("controller");
        let (ca, token) = match &self.identity {
            Some(identity) => (identity.join("ca.crt"), identity.join("admin.token")),
            None => (state.join("pki/ca.crt"), state.join("admin.token")),
        };
        let mut command = program_in(self.namespace.as_deref());
        command
            .env("WINDLASS_SERVER", &self.url)
            .env("WINDLASS_CA_FILE", ca)
            .env("WINDLASS_TOKEN_FILE", token)
            .current_dir(self.dir.path());
        command
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("the command runs")
    }

    /// What a command prints, when it succeeds.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(
            output.status.success(),
            "windlass {} failed: {}\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr),
            self.controller.log()
        );
        String::from_utf8(output.stdout).expect("the command prints text")
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.text(&all)).expect("the command prints JSON")
    }

    /// The job of this name; null fields where it is not there.
    pub(crate) fn job(&self, name: &str) -> Value {
        self.json(&["get", "job", name])
    }

    pub(crate) fn phase(&self, name: &str) -> String {
        self.job(name)["status"]["phase"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn wait_for_phase(&self, name: &str, phase: &str, bound: Duration) -> Value {
        wait_for(&format!("job {name} is {phase}"), bound, || {
            let job = self.job(name);
            (job["status"]["phase"] == phase).then_some(job)
        })
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        let file = self.path("manifest.yaml");
        std::fs::write(&file, manifest).expect("the manifest can be written");
        self.text(&["apply", "-f", file.to_str().expect("the path is text")])
    }

    /// A job of one bash script.
    pub(crate) fn script(&self, name: &str, fields: &str, source: &str) {
        let source = source.replace('\n', "\n      ");
        self.apply(&format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n{fields}  \
             script:\n    source: |\n      {source}\n"
        ));
    }

    /// An agent that has joined and is ready.
    pub(crate) fn agent(&self, name: &str) -> Process {
        let token = self.json(&["join-token", "create"]);
        let token = token["token"].as_str().expect("the token is text").to_owned();
        let agent = self.run_agent(name, &["--join", &token]);
        self.wait_until_node_is_ready(name);
        agent
    }

    /// An agent with the state that it had before.
    pub(crate) fn run_agent(&self, name: &str, settings: &[&str]) -> Process {
        let mut command = Command::new(windlass());
        command
            .arg("agent")
            .arg("--state-dir")
            .arg(self.dir.path().join(name))
            .args(["--name", name])
            .args(settings);
        Process::start(&mut command, self.dir.path().join(format!("{name}.log")))
    }

    pub(crate) fn wait_until_node_is_ready(&self, name: &str) {
        wait_for(&format!("node {name} is Ready"), Duration::from_secs(30), || {
            self.condition(name, "Ready").is_some_and(|(status, _)| status == "True").then_some(())
        });
    }

    /// Status and message of a node's condition.
    pub(crate) fn condition(&self, node: &str, name: &str) -> Option<(String, String)> {
        let output = self.cli(&["get", "node", node, "-o", "json"]);
        let node: Value = serde_json::from_slice(&output.stdout).ok()?;
        let conditions = node["status"]["conditions"].as_array()?;
        let found = conditions.iter().find(|condition| condition["type"] == name)?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("message")))
    }
}
