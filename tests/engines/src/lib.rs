//! Container engines for tests: one service of Podman and one of Docker for all test processes of a run, with state in a
//! temporary folder, ended by a guard. Both are told to touch no network of the host, and have images made here.
//!
//! [`Docker::own`] is for tests of what has networks, ports and privileges.
//!
//! A machine without them makes the tests fail, because everything here panics with what is missing.

mod own;
mod rootless;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub use own::Docker;
pub use rootless::Rootless;
use windlass_test_process::{Claim, on_path, shared, wait_for};

/// The image of all tests: BusyBox, and nothing else.
pub const IMAGE: &str = "localhost/windlass-test:1";
/// An image with one program in it, which is no shell: BusyBox under the name `true`.
pub const BARE: &str = "localhost/windlass-bare:1";

/// Ends the services of a folder and what they have mounted.
const END: &str = r#"
for pid in $(cat pids 2>/dev/null) $(cat docker/pid 2>/dev/null); do kill -TERM "$pid" 2>/dev/null; done
for pid in $(cat pids 2>/dev/null) $(cat docker/pid 2>/dev/null); do
    for i in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null
done
grep -o " $(pwd -P)/[^ ]*" /proc/self/mounts | sort -r | while read -r mount; do umount -l "$mount" 2>/dev/null; done
rm -rf ready pids podman docker root image.tar bare.tar conf runtime
"#;

/// Where the service of an engine listens: `podman` or `docker`.
///
/// # Panics
/// Where the engines are not installed or do not start.
pub fn socket(engine: &str) -> PathBuf {
    folder().join(engine).join("socket")
}

/// The folder of the shared services.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn folder() -> &'static Path {
    static SHARED: OnceLock<Claim> = OnceLock::new();
    let start = || {
        let answers = |folder: &str| {
            let connects = |engine: &str| {
                let socket = Path::new(folder).join(engine).join("socket");
                std::os::unix::net::UnixStream::connect(socket).is_ok()
            };
            connects("podman") && connects("docker")
        };
        shared("engines", env!("CARGO_MANIFEST_DIR"), END, answers, start_all).0
    };
    &SHARED.get_or_init(start).folder
}

fn start_all(folder: &Path) -> String {
    let pids = [start_podman(folder), start_docker(folder)].map(|pid| pid.to_string());
    fs::write(folder.join("pids"), pids.join("\n"))
        .expect("the machine lets tests write files and run programs");
    make_images(folder);
    for (archive, name) in [("image.tar", IMAGE), ("bare.tar", BARE)] {
        import_into_podman(&folder.join("podman/socket"), &folder.join(archive), name);
        let socket = format!("unix://{}", folder.join("docker/socket").display());
        let change = "ENV PATH=/bin";
        run(Command::new("docker")
            .args(["-H", &socket, "import", "-c", change])
            .arg(folder.join(archive))
            .arg(name));
    }
    folder.display().to_string()
}

/// Imports an archive as an image of the Podman behind a socket.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn import_into_podman(socket: &Path, archive: &Path, name: &str) {
    let url = format!("unix://{}", socket.display());
    let mut import = Command::new("podman");
    import.args(["--remote", "--url", &url, "import", "-c", "ENV PATH=/bin"]).arg(archive).arg(name);
    run(&mut import);
}

/// Writes the settings of a Podman that keeps everything below `folder`; gives the environment that names them.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn podman_settings(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let conf = folder.join("conf");
    fs::create_dir_all(&conf).expect("the machine lets tests write files and run programs");
    let state = folder.join("podman");
    fs::create_dir_all(&state).expect("the machine lets tests write files and run programs");
    let write = |name: &str, text: String| {
        fs::write(conf.join(name), text).expect("the machine lets tests write files and run programs");
        conf.join(name)
    };
    // runc also on hosts with both generations of cgroups, which crun refuses; no rule of the host's firewall.
    let containers = write(
        "containers.conf",
        "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
         [containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=1024:1024\"]\n"
            .to_owned(),
    );
    let storage = write(
        "storage.conf",
        format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\nrootless_storage_path = \"{0}/root\"\n",
            state.display()
        ),
    );
    // Everything on loopback is a registry of a test.
    let registries = write(
        "registries.conf",
        "unqualified-search-registries = []\n[[registry]]\nprefix = \"*.localhost\"\ninsecure = true\n\
         [[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n"
            .to_owned(),
    );
    vec![
        ("CONTAINERS_CONF", containers),
        ("CONTAINERS_STORAGE_CONF", storage),
        ("CONTAINERS_REGISTRIES_CONF", registries),
    ]
}

/// A service of the Podman in `folder`, at `socket`; gives its pid.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn serve_podman(folder: &Path, socket: &Path) -> u32 {
    assert!(on_path("podman").is_some() && on_path("runc").is_some(), "podman and runc are installed");
    let mut service = Command::new("podman");
    service
        .args(["system", "service", "--time", "0"])
        .arg(format!("unix://{}", socket.display()))
        .envs(podman_settings(folder));
    let pid = start(&service, &socket.with_extension("log"));
    wait_for("Podman's socket", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    pid
}

fn start_podman(folder: &Path) -> u32 {
    fs::create_dir_all(folder.join("podman")).expect("the machine lets tests write files and run programs");
    serve_podman(folder, &folder.join("podman/socket"))
}

fn start_docker(folder: &Path) -> u32 {
    assert!(on_path("dockerd").is_some() && on_path("docker").is_some(), "docker.io is installed");
    let state = folder.join("docker");
    fs::create_dir_all(&state).expect("the machine lets tests write files and run programs");
    let at = |name: &str| state.join(name);
    let mut service = Command::new("dockerd");
    service
        .arg("--data-root")
        .arg(at("data"))
        .arg("--exec-root")
        .arg(at("exec"))
        .arg("--pidfile")
        .arg(at("pid"))
        .arg("--host")
        .arg(format!("unix://{}", at("socket").display()))
        // No bridge, no rules, no forwarding: the host's network stays as it is.
        .args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ])
        .arg("--storage-driver=vfs");
    let pid = start(&service, &at("log"));
    wait_for("Docker's socket", || std::os::unix::net::UnixStream::connect(at("socket")).is_ok());
    pid
}

/// Starts a service in a session of its own, which outlives this process; gives its pid.
fn start(service: &Command, log: &Path) -> u32 {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "setsid \"$@\" >\"$LOG\" 2>&1 </dev/null & echo $!", "sh"])
        .arg(service.get_program())
        .args(service.get_args())
        .env("LOG", log)
        // Its helpers leave notes where they are started.
        .current_dir(log.parent().expect("a log is in a folder"));
    for (name, value) in service.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    run(&mut shell).trim().parse().expect("the shell tells a number")
}

/// Makes the archives of the images in `folder`.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn make_images(folder: &Path) {
    let busybox = on_path("busybox").expect("busybox-static is installed");
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin")).expect("the machine lets tests write files and run programs");
    fs::copy(busybox, root.join("bin/true")).expect("the machine lets tests write files and run programs");
    archive(&root, &folder.join("bare.tar"));
    fs::rename(root.join("bin/true"), root.join("bin/busybox"))
        .expect("the machine lets tests write files and run programs");
    let list = Command::new(root.join("bin/busybox"))
        .arg("--list")
        .output()
        .expect("the machine lets tests write files and run programs");
    for name in String::from_utf8(list.stdout)
        .expect("the machine lets tests write files and run programs")
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))
            .expect("the machine lets tests write files and run programs");
    }
    for dir in ["etc", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).expect("the machine lets tests write files and run programs");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")
        .expect("the machine lets tests write files and run programs");
    archive(&root, &folder.join("image.tar"));
}

fn archive(root: &Path, to: &Path) {
    run(Command::new("tar").args(["--owner=0", "--group=0", "-cf"]).arg(to).arg("-C").arg(root).arg("."));
}

/// Runs a program that must succeed.
///
/// # Panics
/// Where the machine lacks what it takes.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("the machine lets tests write files and run programs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// An engine's own program, set to speak to the service behind a socket.
pub fn program(engine: &str, socket: &Path) -> Command {
    let url = format!("unix://{}", socket.display());
    let mut command = Command::new(engine);
    match engine {
        "podman" => command.args(["--remote", "--url", &url]),
        _ => command.args(["-H", &url]),
    };
    command
}

/// A container of the host that is no test's unit, and is removed with this.
#[derive(Debug)]
pub struct Made {
    engine: String,
    socket: PathBuf,
    /// Its name.
    pub name: String,
}

impl Made {
    /// Makes a container of a shell script, with further options, and starts nothing. Its name begins with `name`.
    ///
    /// # Panics
    /// Where the engine refuses.
    pub fn new(engine: &str, socket: &Path, name: &str, options: &[&str], script: &str) -> Self {
        let name = format!("{name}-{engine}-{}", std::process::id());
        let made = Self { engine: engine.to_owned(), socket: socket.to_owned(), name };
        // Limits that any machine lets a container have; Podman's program has some of its own.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let mut create = made.program();
        create.args(["create", "--network", "none", "--name", &made.name]).args(limits).args(options);
        run(create.args([IMAGE, "sh", "-c", script]));
        made
    }

    /// The same, started.
    ///
    /// # Panics
    /// Where the engine refuses.
    pub fn started(engine: &str, socket: &Path, name: &str, options: &[&str], script: &str) -> Self {
        let made = Self::new(engine, socket, name, options, script);
        run(made.program().args(["start", &made.name]));
        made
    }

    /// The engine's own program.
    pub fn program(&self) -> Command {
        program(&self.engine, &self.socket)
    }

    /// Its state and when it was last started.
    ///
    /// # Panics
    /// Where the engine refuses.
    pub fn state(&self) -> (String, String) {
        let format = "{{.State.Status}} {{.State.StartedAt}}";
        let text = run(self.program().args(["inspect", "-f", format, &self.name]));
        let (state, started) = text.trim().split_once(' ').expect("the engine tells both");
        (state.to_owned(), started.to_owned())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        run(self.program().args(["rm", "-f", &self.name]));
    }
}
