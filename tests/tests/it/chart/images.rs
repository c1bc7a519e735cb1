//! Images: what their Dockerfiles put on a base, built and run by a real engine. Registries are not needed: the base is made here,
//! and the program is the one under test in place of the one that the first stage builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::super::system::fleet::{wait_for, windlass};
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

    /// An image of files of this host, with the libraries that the programs among them need.
    fn base(&self, name: &str, programs: &[&Path]) {
        let tree = self.path(name);
        fs::create_dir_all(tree.join("tmp")).expect("the folder can be written");
        let put = |file: &Path| {
            let target = tree.join(file.strip_prefix("/").expect("paths are whole"));
            fs::create_dir_all(target.parent().expect("it is in a folder"))
                .expect("the folder can be written");
            fs::copy(file, target).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        };
        for program in programs {
            let needs = Command::new("ldd").arg(program).output().expect("ldd is installed");
            for word in String::from_utf8_lossy(&needs.stdout).split_whitespace() {
                if word.starts_with('/') {
                    put(Path::new(word));
                }
            }
        }
        for program in programs.iter().filter(|program| **program != windlass()) {
            put(program);
        }
        let archive = self.path(&format!("{name}.tar"));
        let packed = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".").status();
        assert!(packed.expect("tar is installed").success());
        self.text(&["import", archive.to_str().expect("paths are text"), &format!("localhost/{name}")]);
    }

    /// Builds the last stage of a Dockerfile; yields the image's configuration.
    fn build(&self, dockerfile: &str, name: &str, arguments: &[&str]) -> Value {
        let context = self.path(&format!("{name}-context"));
        fs::create_dir_all(&context).expect("the folder can be written");
        fs::copy(windlass(), context.join("windlass")).expect("the program can be copied");
        let whole = fs::read_to_string(root().join(dockerfile)).expect("it is there");
        let last = whole.rfind("\nFROM ").expect("it has stages") + 1;
        assert!(whole[..last].contains("AS build\n"), "{dockerfile} has a stage that builds the program");
        let built = "COPY --from=build /out/windlass ";
        assert_eq!(whole[last..].matches(built).count(), 1, "{dockerfile}");
        let stage = format!("ARG BASE_IMAGE\n{}", whole[last..].replace(built, "COPY windlass "));
        fs::write(context.join("Dockerfile"), stage).expect("the folder can be written");
        let context = context.to_str().expect("paths are text").to_owned();
        let mut all = vec!["build", "--quiet", "--format", "docker", "--tag", name];
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
    podman.base("base", &[&windlass()]);
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
    podman.base("base", &[&windlass(), Path::new("/bin/sh")]);
    let arguments = ["--build-arg", "BASE_IMAGE=localhost/base", "--build-arg", "PACKAGES="];
    let config = podman.build("node-agent/Dockerfile", "agent", &arguments);
    assert_eq!(list(&config["Cmd"]).iter().map(text).collect::<Vec<_>>(), ["agent"]);
    let output = podman.output(&["run", "--rm", "--network", "none", "agent"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--join"), "{said}");
    let shown = podman.text(&["run", "--rm", "--network", "none", "agent", "agent", "--help"]);
    assert!(shown.contains("/var/lib/windlass/agent"), "{shown}");
}
