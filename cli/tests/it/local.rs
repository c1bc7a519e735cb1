//! Whole fleets in one process: `run --local`, `dev`, and an agent that joins a controller, with the real sandbox.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::world::{Output, Running, World, bare, finish};

/// A user who may nothing.
const ORDINARY_USER: u32 = 12_345;

/// A home folder for a user, with a folder for temporary files of its own.
struct Home {
    folder: tempfile::TempDir,
    user: Option<u32>,
    binary: PathBuf,
}

impl Home {
    /// The home of whoever runs the tests.
    fn own() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("tmp")).expect("the folder can be written");
        // Attempts of root run as users of their own, who must be able to pass through.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).expect("it is ours");
        Self { folder, user: None, binary: env!("CARGO_BIN_EXE_windlass").into() }
    }

    /// The home of an ordinary user, who also owns a copy of the program: where it was built is not everybody's.
    fn ordinary() -> Self {
        let home = Self::own();
        if !rustix::process::geteuid().is_root() {
            return home;
        }
        let binary = home.folder.path().join("windlass");
        std::fs::copy(&home.binary, &binary).expect("the program can be copied");
        for path in [home.folder.path().to_owned(), home.path("tmp"), binary.clone()] {
            std::os::unix::fs::chown(path, Some(ORDINARY_USER), Some(ORDINARY_USER))
                .expect("root may do this");
        }
        Self { user: Some(ORDINARY_USER), binary, ..home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("TMPDIR", self.path("tmp"))
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.folder.path())
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    async fn cli(&self, args: &[&str]) -> Output {
        finish(self.command(args)).await
    }

    /// What is left in the folder for temporary files.
    fn leftovers(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("tmp"))
            .expect("it is there")
            .map(|entry| entry.expect("it is there").path())
            .collect()
    }
}

async fn runs_a_job_and_leaves_nothing(home: &Home) {
    let input = home.path("data");
    std::fs::create_dir(&input).expect("the folder can be written");
    std::fs::write(input.join("words"), "one two\n").expect("the folder can be written");
    let script = "cat data/words; printf '\\377' ; echo warned >&2; id -u; exit 7";
    let output = home.cli(&["run", "--local", "--input", "data=data", "--", "sh", "-c", script]).await;
    assert_eq!(output.code, Some(7), "{output:?}");
    assert!(output.stdout_bytes.starts_with(b"one two\n\xff"), "{output:?}");
    assert!(!output.stdout.ends_with("\n0\n"), "a step is never root: {output:?}");
    assert!(output.stderr.starts_with("warned\n"), "{}", output.stderr);
    assert!(output.stderr.contains(" Failed: StepFailed"), "{}", output.stderr);
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new());
    assert!(!home.path(".local").exists(), "nothing is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_run_needs_no_server_and_leaves_nothing() {
    runs_a_job_and_leaves_nothing(&Home::own()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_run_works_for_an_ordinary_user_too() {
    runs_a_job_and_leaves_nothing(&Home::ordinary()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_local_run_stops_its_job_and_leaves_nothing() {
    let home = Home::own();
    let script = "trap 'echo told; exit 0' TERM; echo begun; while :; do sleep 0.1; done";
    let mut running = Running::start(home.command(&["run", "--local", "--", "sh", "-c", script]));
    running.stdout_has("begun").await;
    running.interrupt();
    let output = running.end().await;
    assert_eq!((output.code, output.stdout.as_str()), (Some(130), "begun\ntold\n"), "{output:?}");
    assert!(output.stderr.contains("Cancelling the job"), "{}", output.stderr);
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_run_of_a_job_that_fits_nowhere_gives_up_and_says_why() {
    let home = Home::own();
    let stderr = home.cli(&["run", "--local", "--cpu", "9000", "--", "true"]).await.failed(1);
    assert!(stderr.contains("cannot run here\n  local: "), "{stderr}");
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_is_found_by_other_invocations_while_it_runs_and_drains_at_its_end() {
    let home = Home::own();
    let args = ["dev", "--state-dir", "state", "--listen", "127.0.0.1:0", "--name", "here"];
    let mut dev = Running::start(home.command(&args));
    dev.stderr_has("windlass join-token create").await;
    let config = home.cli(&["config"]).await.ok().stdout;
    assert!(config.contains("the running `windlass dev`"), "{config}");
    let file = home.path(".local/state/windlass/dev.yaml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(home.cli(&["run", "--", "echo", "hello"]).await.ok().stdout, "hello\n");
    home.cli(&["wait", "node/here", "--for", "condition=Ready", "--timeout", "30s"]).await.ok();
    let doctor = home.cli(&["doctor", "-o", "json"]).await.ok().stdout;
    let findings: Value = serde_json::from_str(&doctor).unwrap();
    let server = findings.as_array().unwrap().iter().find(|finding| finding["id"] == "server").unwrap();
    assert_eq!(server["state"], "ok");

    let second = home.cli(&args).await.failed(1);
    assert!(second.contains("is held by another process"), "{second}");
    assert!(second.contains("a `windlass dev` with the process id"), "{second}");

    home.cli(&["run", "--detach", "--name", "last", "--", "sh", "-c", "echo begun; sleep 1; echo done"])
        .await
        .ok();
    home.cli(&["wait", "job/last", "--for", "phase=Running", "--timeout", "30s"]).await.ok();
    dev.interrupt();
    dev.stderr_has("Draining").await;
    let output = dev.end().await.ok();
    assert!(
        output.stdout.starts_with("https://127.0.0.1:") && output.stdout.contains("node here"),
        "{output:?}"
    );
    assert!(!file.exists());

    // What was kept is there again, with the job that the drain has waited for.
    let mut dev = Running::start(home.command(&args));
    dev.stderr_has("windlass join-token create").await;
    assert_eq!(home.cli(&["logs", "last"]).await.ok().stdout, "begun\ndone\n");
    home.cli(&["run", "--detach", "--name", "endless", "--", "sleep", "inf"]).await.ok();
    home.cli(&["wait", "job/endless", "--for", "phase=Running", "--timeout", "30s"]).await.ok();
    dev.interrupt();
    dev.stderr_has("Draining").await;
    dev.interrupt();
    dev.end().await.failed(130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_job_tells_of_its_artifacts_and_saves_them() {
    let home = Home::ordinary();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/artifacts.yaml");
    std::fs::copy(example, home.path("artifacts.yaml")).unwrap();
    let run = home.cli(&["run", "--local", "-f", "artifacts.yaml"]).await.ok();
    assert!(run.stderr.contains("3 artifacts: `--artifacts DIR` saves them"), "{run:?}");
    let run = home.cli(&["run", "--local", "-f", "artifacts.yaml", "--artifacts", "tmp/out"]).await.ok();
    assert!(run.stderr.contains("3 artifacts saved in tmp/out"), "{run:?}");
    let read = |name: &str| std::fs::read_to_string(home.path("tmp/out").join(name)).unwrap();
    assert_eq!(read("report.md"), "# Squares\n\n10 rows are in `data/squares.csv`.\n");
    assert_eq!(read("data/squares.csv").lines().count(), 11);
    assert_eq!(read("summary.json"), "{\"rows\": 10}\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_says_what_is_wrong_with_its_port_and_its_folder() {
    let home = Home::ordinary();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = home.cli(&["dev", "--state-dir", "state", "--listen", &address]).await.failed(1);
    assert!(port.contains(&address) && port.contains("--listen"), "{port}");
    if home.user.is_some() {
        let folder =
            home.cli(&["dev", "--state-dir", "/etc/windlass", "--listen", "127.0.0.1:0"]).await.failed(1);
        assert!(
            folder.contains("/etc/windlass cannot be made") && folder.contains("--state-dir"),
            "{folder}"
        );
    }
    let file = home.path("file");
    std::fs::write(&file, "").unwrap();
    let folder = home.cli(&["dev", "--state-dir", "file", "--listen", "127.0.0.1:0"]).await.failed(1);
    assert!(folder.contains("file cannot be made"), "{folder}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_joins_with_nothing_but_the_token() {
    let world = World::new().await;
    let home = Home::own();
    let token = world.cli(&["join-token", "create", "--uses", "1"]).await.ok().stdout;
    let args =
        ["agent", "--join", token.trim_end(), "--state-dir", "state", "--name", "far", "--log", "error"];
    let agent = Running::start(home.command(&args));
    assert_eq!(world.cli(&["run", "--", "echo", "from afar"]).await.ok().stdout, "from afar\n");
    let nodes = world.cli(&["get", "nodes", "-o", "name"]).await.ok().stdout;
    assert_eq!(nodes, "node/far\n");
    let second = home.cli(&args).await.failed(1);
    assert!(second.contains("another agent uses the state folder"), "{second}");
    agent.interrupt();
    let output = agent.end().await.ok();
    assert!(output.stderr.contains("Draining"), "{output:?}");

    let nonsense = home.cli(&["agent", "--join", "wl1.nonsense", "--state-dir", "other"]).await.failed(2);
    assert!(nonsense.contains("token"), "{nonsense}");
    let unjoined = home.cli(&["agent", "--state-dir", "other"]).await.failed(2);
    assert!(unjoined.contains("windlass join-token create"), "{unjoined}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_says_what_is_wrong_with_its_port_and_its_folder() {
    let world = World::new().await;
    let in_use = world.folder.path().join("state").display().to_string();
    let run = async |args: &[&str]| finish(bare(args, world.folder.path())).await;
    let held = run(&["controller", "--state-dir", &in_use, "--listen", "127.0.0.1:0"]).await.failed(1);
    assert!(held.contains("is held by another process"), "{held}");
    let address = world.url.trim_start_matches("https://");
    let port = run(&["controller", "--state-dir", "fresh", "--listen", address]).await.failed(1);
    assert!(port.contains("another program may have it"), "{port}");

    for (flags, said) in [
        (["--lease", "1s"], "--lease 1s"),
        (["--max-connections", "1"], "--max-connections 1 is too few"),
        (["--max-connections", "9999999999"], "open files"),
        (["--advertise-url", "http://host"], "--advertise-url"),
    ] {
        let args = [&["controller", "--state-dir", "fresh", "--listen", "127.0.0.1:0"], &flags[..]].concat();
        let usage = run(&args).await.failed(2);
        assert!(usage.contains(said), "{usage}");
    }

    let mut controller = Running::start(bare(
        &["controller", "--state-dir", "fresh", "--listen", "127.0.0.1:0"],
        world.folder.path(),
    ));
    controller.stderr_has("controller is listening").await;
    controller.interrupt();
    controller.end().await.ok();
}

#[tokio::test]
async fn a_token_that_only_this_host_can_use_says_so() {
    let world = World::new().await;
    let made = world.cli(&["join-token", "create"]).await.ok();
    assert_eq!(made.stdout.lines().count(), 1, "the token alone is the data");
    for said in [world.url.as_str(), "only agents on the controller's own host", "--advertise-url"] {
        assert!(made.stderr.contains(said), "{said}: {}", made.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tries_everything_and_judges_the_state_folder() {
    let home = Home::ordinary();
    let findings = home.cli(&["doctor", "-o", "json"]).await.ok().stdout;
    let findings: Value = serde_json::from_str(&findings).unwrap();
    let ids: Vec<&str> =
        findings.as_array().unwrap().iter().filter_map(|finding| finding["id"].as_str()).collect();
    for expected in ["user-namespace", "seccomp", "run", "state-folder"] {
        assert!(ids.contains(&expected), "{expected} in {ids:?}");
    }
    assert!(!ids.contains(&"server"), "none is configured");
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new());
    let unwritable = home.cli(&["doctor", "--state-dir", "/proc/windlass"]).await;
    assert_eq!(unwritable.code, Some(1), "{unwritable:?}");
    assert!(
        unwritable.stdout.contains("missing") && unwritable.stdout.contains("--state-dir PATH"),
        "{unwritable:?}"
    );
    assert!(unwritable.stderr.contains("This host cannot run jobs: 1 thing is missing."), "{unwritable:?}");
}
