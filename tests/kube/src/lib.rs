//! Kubernetes API servers for tests: the real `kube-apiserver` over `etcd`, and nothing else of a cluster.
//!
//! [`Cluster::shared`] is one for all processes of a test run; tests keep apart by namespaces and names.
//! [`Cluster::own`] is for tests that stop it, or that take something away which all others need.
//!
//! The programs are those of the folder in `KUBEBUILDER_ASSETS`, of any version from 1.20 on; without it those that
//! `tests/kube/servers` has made. A machine with neither makes the tests fail. There are no controllers but the API server's own: a
//! namespace that is deleted stays `Terminating` with everything in it, and nothing is collected.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use windlass_test_process::{
    Claim, Guard, Signal, answers, free_port, is_alive, on_path, own, send, shared, wait_for,
};

/// Who may call, each with a static token: name, groups.
const USERS: [(&str, &str); 5] = [
    ("admin", "system:masters"),
    ("windlass", "windlass"),
    ("editor", "editors"),
    ("viewer", "viewers"),
    ("nobody", ""),
];

/// Kills both programs of a folder and removes what they have written.
const END: &str = r#"
for program in kube-apiserver etcd; do
    pid=$(cat $program.pid 2>/dev/null) || continue
    kill -KILL "$pid" 2>/dev/null
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
done
rm -rf ready data certs *.pid *.log *.yaml *.csv *.pem
"#;

/// A running API server with its etcd.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    ports: Ports,
    arguments: Vec<String>,
    _guard: Option<Guard>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    api: u16,
    etcd: u16,
}

impl Cluster {
    /// The cluster of this test run.
    ///
    /// # Panics
    /// Where there are no programs to start, or they do not start; with the reason.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<(Cluster, Claim)> = OnceLock::new();
        let (cluster, _) = SHARED.get_or_init(|| {
            let check = |told: &str| Ports::read(told).is_some_and(|ports| answers(ports.api));
            let (claim, told) = shared("kube", env!("CARGO_MANIFEST_DIR"), END, check, |folder| {
                let ports = Ports { api: free_port(), etcd: free_port() };
                start(folder, ports, &[]);
                format!("{} {}", ports.api, ports.etcd)
            });
            let ports = Ports::read(&told).expect("what was written above");
            (Self { folder: claim.folder.clone(), ports, arguments: Vec::new(), _guard: None }, claim)
        });
        cluster
    }

    /// A cluster for this test alone, with more arguments for its API server. It ends with the value, or with the process.
    ///
    /// # Panics
    /// As [`Cluster::shared`].
    pub fn own(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("windlass-kube-").tempdir();
        let folder = folder.expect("the temporary folder can be written").keep();
        let guard = own(&folder, END);
        let ports = Ports { api: free_port(), etcd: free_port() };
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        start(&folder, ports, &arguments);
        Self { folder, ports, arguments, _guard: Some(guard) }
    }

    /// A file by which `kubectl` and others reach the cluster as this user: `admin` may everything; `windlass`, `editor`,
    /// `viewer` and `nobody` only what they are granted.
    ///
    /// # Panics
    /// Where there is no such user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        assert!(USERS.iter().any(|(known, _)| *known == user), "there is no user {user}");
        self.folder.join(format!("{user}.yaml"))
    }

    /// As [`Cluster::kubeconfig`], but the API server is reached at this port of 127.0.0.1. The file is made at `path`.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn kubeconfig_through(&self, user: &str, port: u16, path: &Path) {
        fs::write(path, kubeconfig(&self.folder, user, port)).expect("the test's folder can be written");
    }

    /// The API server's port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.ports.api
    }

    /// A `kubectl` of the administrator.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_as("admin", arguments)
    }

    /// A `kubectl` of a user.
    pub fn command_as(&self, user: &str, arguments: &[&str]) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(self.kubeconfig(user)).args(arguments);
        // What kubectl remembers of a server is kept by its address, and ports are used again.
        kubectl.arg("--cache-dir").arg(self.folder.join("data/kubectl")).stdin(Stdio::null());
        kubectl
    }

    /// What `kubectl` prints.
    ///
    /// # Panics
    /// Where it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("kubectl is installed");
        printed(arguments, &output)
    }

    /// What `kubectl` says where it must fail.
    ///
    /// # Panics
    /// Where it succeeds.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("kubectl is installed");
        assert!(
            !output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs `kubectl` with a text as its input; yields whether it succeeded and everything that it printed.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn pipe(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let mut kubectl = self.command(arguments);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().expect("kubectl is installed");
        // What begins with a brace would be taken for JSON, which YAML in braces is not.
        let written = child.stdin.take().expect("it is piped").write_all(format!("---\n{input}").as_bytes());
        let output = child.wait_with_output().expect("it is our child");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(written.is_ok() || !output.status.success(), "kubectl did not read its input: {text}");
        (output.status.success(), text.into_owned())
    }

    /// Applies manifests.
    ///
    /// # Panics
    /// Where one is refused.
    pub fn apply(&self, manifests: &str) -> String {
        let (applied, text) = self.pipe(&["apply", "-f", "-"], manifests);
        assert!(applied, "{text}");
        text
    }

    /// A namespace of its own for a test.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn namespace(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]);
        name
    }

    /// Major and minor version of the API server.
    ///
    /// # Panics
    /// Where it does not tell.
    pub fn version(&self) -> (u32, u32) {
        let told = self.kubectl(&["get", "--raw", "/version"]);
        let number = |key: &str| {
            let (_, rest) = told.split_once(&format!("\"{key}\": \""))?;
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
        };
        let version = number("major").zip(number("minor"));
        version.unwrap_or_else(|| panic!("/version has major and minor: {told}"))
    }

    /// Whether the server checks rules written in CEL (1.25 and newer).
    pub fn knows_cel(&self) -> bool {
        self.version() >= (1, 25)
    }

    /// Kills the API server; etcd stays. It is gone when this returns.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn stop_api_server(&self) {
        self.kill("kube-apiserver", self.ports.api);
    }

    fn kill(&self, name: &str, port: u16) {
        let pid = fs::read_to_string(self.folder.join(format!("{name}.pid"))).expect("it was started");
        let pid = pid.trim().parse().expect("a process id is a number");
        send(pid, Signal::KILL);
        wait_for(&format!("{name} to end"), || !is_alive(pid));
        // Its last threads may end after the process counts as dead, and answer for the one that comes next.
        wait_for(&format!("the port of {name} to be free"), || {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
    }

    /// Starts the API server that was stopped; it answers when this returns.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_api_server(&self) {
        start_api_server(&self.folder, self.ports, &self.arguments);
    }

    /// Takes everything away that was stored, as when a cluster is made anew behind the same address. An API server without
    /// any object of ours answers when this returns.
    ///
    /// # Panics
    /// Where it does not start again.
    pub fn lose_everything(&self) {
        self.stop_api_server();
        self.kill("etcd", self.ports.etcd);
        fs::remove_dir_all(self.folder.join("data/etcd")).expect("it is ours");
        start_etcd(&self.folder, self.ports);
        self.start_api_server();
    }

    /// Lets etcd forget every revision but the newest. What watches from an older one is told `410 Gone`, unless the API
    /// server answers from its own cache (`--watch-cache=false`).
    ///
    /// # Panics
    /// Where etcd does not do it.
    pub fn compact(&self) {
        let range = self.etcd("/v3/kv/range", r#"{"key": "AA=="}"#);
        let (_, rest) = range.split_once("\"revision\":\"").expect("etcd names its revision");
        let revision: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let answer =
            self.etcd("/v3/kv/compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#));
        assert!(answer.contains("\"revision\"") && !answer.contains("\"error\""), "{answer}");
    }

    /// Asks etcd over its JSON gateway.
    fn etcd(&self, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.ports.etcd)).expect("etcd listens");
        let request = format!(
            "POST {path} HTTP/1.0\r\nhost: etcd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).expect("etcd reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("etcd answers");
        answer
    }
}

impl Ports {
    fn read(told: &str) -> Option<Self> {
        let (api, etcd) = told.trim().split_once(' ')?;
        Some(Self { api: api.parse().ok()?, etcd: etcd.parse().ok()? })
    }
}

fn printed(arguments: &[&str], output: &Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
    text.into_owned()
}

/// Starts etcd and the API server in the folder; both answer when this returns.
fn start(folder: &Path, ports: Ports, arguments: &[String]) {
    fs::create_dir(folder.join("data")).expect("the folder can be written");
    fs::create_dir(folder.join("certs")).expect("the folder can be written");
    let users: String =
        USERS.iter().map(|(user, groups)| format!("{},{user},{user},\"{groups}\"\n", token(user))).collect();
    fs::write(folder.join("users.csv"), users).expect("the folder can be written");
    let key = folder.join("accounts.pem");
    let made =
        Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").stderr(Stdio::null()).status();
    assert!(made.is_ok_and(|made| made.success()), "openssl is installed");
    start_etcd(folder, ports);
    start_api_server(folder, ports, arguments);
}

fn start_etcd(folder: &Path, ports: Ports) {
    let peers = free_port();
    let mut etcd = Command::new(program("etcd"));
    etcd.arg("--data-dir").arg(folder.join("data/etcd"));
    for (flag, port) in [
        ("--listen-client-urls", ports.etcd),
        ("--advertise-client-urls", ports.etcd),
        ("--listen-peer-urls", peers),
        ("--initial-advertise-peer-urls", peers),
    ] {
        etcd.arg(format!("{flag}=http://127.0.0.1:{port}"));
    }
    etcd.arg(format!("--initial-cluster=default=http://127.0.0.1:{peers}"));
    spawn(folder, "etcd", etcd, || answers(ports.etcd));
}

fn start_api_server(folder: &Path, ports: Ports, arguments: &[String]) {
    let key = folder.join("accounts.pem");
    let mut server = Command::new(program("kube-apiserver"));
    server
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd))
        .arg(format!("--secure-port={}", ports.api))
        .arg(format!("--cert-dir={}", folder.join("certs").display()))
        .arg(format!("--token-auth-file={}", folder.join("users.csv").display()))
        .arg(format!("--service-account-key-file={}", key.display()))
        .arg(format!("--service-account-signing-key-file={}", key.display()))
        .args([
            "--bind-address=127.0.0.1",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
        ])
        // As clusters have it: agents in pods are privileged.
        .arg("--allow-privileged=true")
        .args([
            "--service-account-issuer=https://windlass.test",
            "--disable-admission-plugins=ServiceAccount",
        ])
        .args(arguments);
    for (user, _) in USERS {
        // Written anew with the server's own certificate, which it makes at its first start.
        fs::write(folder.join(format!("{user}.yaml")), kubeconfig(folder, user, ports.api))
            .expect("it can be written");
    }
    let ready = || {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(folder.join("admin.yaml"));
        kubectl.args(["get", "--raw", "/readyz", "--request-timeout=5s"]).stdin(Stdio::null());
        let system = ["get", "namespace", "kube-system", "default"];
        let asks = |mut kubectl: Command| kubectl.output().is_ok_and(|output| output.status.success());
        let mut namespaces = Command::new("kubectl");
        namespaces.arg("--kubeconfig").arg(folder.join("admin.yaml")).args(system).stdin(Stdio::null());
        answers(ports.api) && asks(kubectl) && asks(namespaces)
    };
    assert!(
        on_path("kubectl").is_some(),
        "kubectl must be installed (Debian: apt-get install kubernetes-client)"
    );
    spawn(folder, "kube-apiserver", server, ready);
}

/// Starts a program that outlives this process, and waits until it is ready.
fn spawn(folder: &Path, name: &str, mut command: Command, mut ready: impl FnMut() -> bool) {
    let log = folder.join(format!("{name}.log"));
    let file = fs::File::options().create(true).append(true).open(&log).expect("the folder can be written");
    let errors = file.try_clone().expect("a file can be shared");
    // In a group of its own: what ends a test that hangs must not end what others use.
    command.stdin(Stdio::null()).stdout(file).stderr(errors).current_dir(folder).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} can be started: {error}"));
    fs::write(folder.join(format!("{name}.pid")), child.id().to_string()).expect("the folder can be written");
    let pid = i32::try_from(child.id()).expect("process ids are small");
    // Collected when it ends, so that it is not taken for alive.
    std::thread::spawn(move || child.wait());
    wait_for(&format!("{name} to be ready"), || {
        assert!(is_alive(pid), "{name} does not start: {}", tail(&log));
        ready()
    });
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn token(user: &str) -> String {
    format!("{user}-for-tests-only")
}

fn kubeconfig(folder: &Path, user: &str, port: u16) -> String {
    let authority = folder.join("certs/apiserver.crt");
    let token = token(user);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: '{user}', namespace: default}}}}]\n\
         users: [{{name: '{user}', user: {{token: '{token}'}}}}]\n",
        authority.display()
    )
}

/// The program that tests start: of the folder that a developer names, or the one that `tests/kube/servers` has made.
fn program(name: &str) -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "the word by which all tools of Kubernetes find these programs"
    )]
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| {
        #[expect(clippy::disallowed_methods, reason = "where the user's cache is, is no setting of ours")]
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
            #[expect(clippy::disallowed_methods, reason = "as above")]
            std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"))
        });
        cache.expect("there is a home folder").join("windlass/kube/bin")
    });
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: run tests/kube/servers, which makes it, or set KUBEBUILDER_ASSETS to a folder with it",
        program.display()
    );
    program
}
