//! Images: what their Dockerfiles make, built in all their stages and run by a real engine. Registries are not needed: both bases are made
//! here, and where the first stage calls `cargo` it is given the program under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::super::bases::{self, Tree};
use super::super::system::fleet::wait_for;
use super::engine::{chart, list, root, text};

/// Podman with a store of its own.
struct Podman {
    folder: tempfile::TempDir,
}

impl Podman {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        // Limits that every machine permits; by default more are asked for than an ordinary container of CI may set.
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=1024:1024\"]\n\
                        [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(folder.path().join("containers.conf"), settings).expect("the folder can be written");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self, arguments: &[&str]) -> Output {
        Command::new("podman")
            .arg("--root")
            .arg(self.path("store"))
            .arg("--runroot")
            .arg(self.path("run"))
            .args(["--storage-driver", "vfs"])
            .args(arguments)
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .output()
            .expect("podman is installed (Debian: podman, runc)")
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("it prints text").trim().to_owned()
    }

    /// Makes an image of a tree.
    fn base(&self, tree: &Tree, name: &str) {
        let archive = tree.pack();
        self.text(&["import", archive.to_str().expect("paths are text"), &format!("localhost/{name}")]);
    }

    /// Builds a Dockerfile, whose first stage finds the project's scripts and the program; yields the image's configuration.
    fn build(&self, dockerfile: &str, name: &str, arguments: &[&str]) -> Value {
        self.base(&Tree::builder(self.path("builder")), "builder");
        let context = self.path(&format!("{name}-context"));
        bases::context(&context, &[dockerfile, "controller/build-image"]);
        let file = context.join(dockerfile).display().to_string();
        let context = context.display().to_string();
        let mut all = vec!["build", "--quiet", "--format", "docker", "--tag", name, "--file", &file];
        all.extend(["--build-arg", "BUILD_IMAGE=localhost/builder"]);
        all.extend(arguments);
        all.push(&context);
        self.text(&all);
        let inspected = self.text(&["image", "inspect", name]);
        let inspected: Value = serde_json::from_str(&inspected).expect("it prints JSON");
        inspected[0]["Config"].clone()
    }
}

impl Drop for Podman {
    /// No container outlives its test.
    fn drop(&mut self) {
        let output = self.output(&["rm", "--all", "--force", "--time", "0"]);
        let removed = output.status.success() || std::thread::panicking();
        assert!(removed, "containers were not removed: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_controllers_image_runs_as_the_charts_user_and_writes_to_its_volume_alone() {
    let podman = Podman::new();
    podman.base(&Tree::base(podman.path("base"), &[]), "base");
    let config =
        podman.build("controller/Dockerfile", "controller", &["--build-arg", "BASE_IMAGE=localhost/base"]);
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(list(&config["Entrypoint"]).iter().map(text).collect::<Vec<_>>(), ["/usr/bin/windlass"]);
    let values = fs::read_to_string(chart().join("values.yaml")).expect("it is there");
    assert!(values.contains("runAsUser: 65532"));
    podman.text(&[
        "run",
        "--detach",
        "--name",
        "c",
        "--network",
        "none",
        "--read-only",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        "/var/lib/windlass:mode=1777",
        "controller",
    ]);
    let queues = [
        "exec",
        "c",
        "windlass",
        "get",
        "queues",
        "--server",
        "https://127.0.0.1:12082",
        "--ca-file",
        "/var/lib/windlass/controller/pki/ca.crt",
        "--token-file",
        "/var/lib/windlass/controller/admin.token",
    ];
    wait_for("the controller answers", Duration::from_secs(60), || {
        let output = podman.output(&queues);
        output.status.success().then_some(())
    });
    podman.text(&["stop", "--time", "30", "c"]);
    let code = podman.text(&["inspect", "--format", "{{.State.ExitCode}}", "c"]);
    assert_eq!(code, "0", "{:?}", podman.output(&["logs", "c"]));
}

#[test]
fn the_agents_image_has_what_its_base_has_and_says_what_it_lacks() {
    let podman = Podman::new();
    podman.base(&Tree::base(podman.path("base"), &["/bin/sh"]), "base");
    let arguments = ["--build-arg", "BASE_IMAGE=localhost/base", "--build-arg", "PACKAGES="];
    let config = podman.build("node-agent/Dockerfile", "agent", &arguments);
    assert_eq!(list(&config["Cmd"]).iter().map(text).collect::<Vec<_>>(), ["agent"]);
    let output = podman.output(&["run", "--rm", "--network", "none", "agent"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--join"), "{said}");
    let shown = podman.text(&["run", "--rm", "--network", "none", "agent", "agent", "--help"]);
    assert!(shown.contains("/var/lib/windlass/agent"), "{shown}");
}

#[test]
fn the_build_stage_builds_for_both_architectures_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).expect("the folder can be written");
    let script = |name: &str, text: &str| {
        let path = programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the folder can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    };
    script("uname", "echo x86_64");
    script("apt-get", "echo apt-get $* >>said");
    script("rustup", "echo rustup $* >>said");
    script(
        "cargo",
        "echo cargo $* >>said; env | grep -e _LINKER -e ^CC_ | sort >>said\n\
         mkdir -p target/$7/release && echo $7 >target/$7/release/windlass",
    );
    let build = |architecture: &str| {
        Command::new("sh")
            .args(["-c", "PATH=$1:$PATH exec sh $2 $3 out", "sh"])
            .args([&programs, &root().join("controller/build-image")])
            .arg(architecture)
            .current_dir(folder.path())
            .output()
            .expect("sh is installed")
    };
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    for (architecture, target, said) in [
        (
            "amd64",
            "x86_64-unknown-linux-gnu",
            vec!["cargo build --release --locked --package windlass --target"],
        ),
        (
            "arm64",
            "aarch64-unknown-linux-gnu",
            vec![
                "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
                "rustup target add aarch64-unknown-linux-gnu",
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc",
                "CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc",
            ],
        ),
    ] {
        let output = build(architecture);
        assert!(output.status.success(), "{architecture}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(read("out/windlass").trim(), target);
        for part in said {
            assert!(read("said").contains(part), "{architecture}: no `{part}` in {}", read("said"));
        }
    }
    let output = build("riscv64");
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("must be amd64 or arm64")
    );
}
