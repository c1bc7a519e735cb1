//! A Docker of a test's own, with a network of its own, so that containers which publish ports and have names meet nobody.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use windlass_test_process::{Guard, on_path, own, wait_for};

use crate::{END, run, start};

/// runc, which gives containers no capability that this machine lacks: one that is privileged asks for all there are.
const RUNTIME: &str = r#"#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys

def value(option):
    return next((value for name, value in zip(sys.argv, sys.argv[1:]) if name == option), None)

bundle, process = value("--bundle"), value("--process")
path = pathlib.Path(bundle, "config.json") if bundle else pathlib.Path(process) if process else None
if path:
    dump = subprocess.run(["setpriv", "--dump"], check=True, capture_output=True, text=True).stdout
    line = next(line for line in dump.splitlines() if line.startswith("Capability bounding set:"))
    known = {"CAP_" + name.strip().upper() for name in line.split(":")[1].split(",")}
    spec = json.loads(path.read_text())
    capabilities = (spec["process"] if bundle else spec).get("capabilities") or {}
    for kind, names in capabilities.items():
        capabilities[kind] = [name for name in names or [] if name in known]
    path.write_text(json.dumps(spec))
os.execvp("runc", ["runc", *sys.argv[1:]])
"#;

/// A running Docker. It ends, with everything in it, when this is dropped or the process ends.
#[derive(Debug)]
pub struct Docker {
    folder: PathBuf,
    _guard: Guard,
}

impl Docker {
    /// Starts one with nothing in it.
    ///
    /// # Panics
    /// Where docker.io is not installed or does not start; with its log.
    pub fn own() -> Self {
        for program in ["dockerd", "docker", "runc", "ip", "unshare", "setpriv", "python3"] {
            assert!(
                on_path(program).is_some(),
                "{program} is installed (Debian: docker.io, runc, iproute2, util-linux, python3)"
            );
        }
        // Sockets have short paths.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("windlass-docker-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let state = folder.join("docker");
        fs::create_dir_all(&state).expect("the machine lets tests write files and run programs");
        let guard = own(&folder, END);
        let pid = serve(&folder, &state);
        fs::write(folder.join("pids"), pid.to_string())
            .expect("the machine lets tests write files and run programs");
        let docker = Self { folder, _guard: guard };
        let log = || fs::read_to_string(state.join("log")).unwrap_or_default();
        wait_for("Docker of a test's own", || {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "{}", log());
            std::os::unix::net::UnixStream::connect(state.join("socket")).is_ok()
        });
        docker
    }

    /// Where it listens, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.folder.join("docker/socket").display())
    }

    /// What a command of Docker prints.
    ///
    /// # Panics
    /// Where it fails.
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        run(self.command().args(arguments)).trim().to_owned()
    }

    /// What becomes of a command of Docker that reads this.
    ///
    /// # Panics
    /// Where the program cannot be run.
    pub fn piped(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker is installed (Debian: docker.io)");
        let mut pipe = child.stdin.take().expect("it is piped");
        match pipe.write_all(input.as_bytes()) {
            // What has ended by itself says why on its other pipes.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{arguments:?}: {error}"),
            Ok(()) | Err(_) => drop(pipe),
        }
        child.wait_with_output().expect("it is our child")
    }

    /// Imports an archive as an image, with these changes of its configuration.
    ///
    /// # Panics
    /// Where Docker refuses.
    #[track_caller]
    pub fn import(&self, archive: &Path, name: &str, changes: &[&str]) {
        let mut command = self.command();
        command.arg("import");
        for change in changes {
            command.args(["--change", change]);
        }
        run(command.arg(archive).arg(name));
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["--host", &self.host()]);
        command
    }
}

/// Starts the service; gives its pid.
fn serve(folder: &Path, state: &Path) -> u32 {
    let runtime = folder.join("runtime");
    fs::write(&runtime, RUNTIME).expect("the machine lets tests write files and run programs");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let at = |name: &str| state.join(name).display().to_string();
    let mut service = Command::new("unshare");
    service.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", "dockerd"]);
    service.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
    service.args(["--host", &format!("unix://{}", at("socket"))]);
    service.args(["--ip6tables=false", "--storage-driver=vfs"]);
    service.arg("--add-runtime").arg(format!("here={}", runtime.display())).arg("--default-runtime=here");
    start(&service, &state.join("log"))
}
