//! The program itself, with the real sandbox.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use windlass_crds::protocol::{Assignment, AttemptId, Stream, TerminalPhase};
use windlass_crds::sandbox_job::{Input, OfflinePolicy, SandboxJobSpec, Script, Step, Upload};

use crate::controller::Controller;

/// A running agent, killed when dropped.
struct Agent(Child);

impl Agent {
    fn start(state: &Path, flags: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_windlass-agent"))
            .arg("--state-dir")
            .arg(state)
            .args(["--name", "node-1", "--concurrency", "2", "--min-free-mib", "1"])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end, at most a minute, and returns the code and the log.
    async fn ended(mut self) -> (Option<i32>, String) {
        let mut pipe = self.0.stderr.take().unwrap();
        let log = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            pipe.read_to_string(&mut log).map(|_| log)
        });
        for _ in 0..1200 {
            if let Some(status) = self.0.try_wait().unwrap() {
                return (status.code(), log.await.unwrap().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the agent did not end within a minute");
    }

    async fn drained(self) -> String {
        self.signal(rustix::process::Signal::TERM);
        let (code, log) = self.ended().await;
        assert_eq!(code, Some(0), "{log}");
        log
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A job of scripts.
fn job(uid: &str, scripts: &[(&str, &str)]) -> Assignment {
    let step = |(number, (interpreter, source)): (usize, &(&str, &str))| Step {
        name: format!("s{number}"),
        script: Some(Script {
            interpreter: (*interpreter).to_owned(),
            source: (*source).to_owned(),
            args: Vec::new(),
        }),
        ..Step::default()
    };
    Assignment {
        attempt: AttemptId { job: uid.to_owned(), epoch: 1 },
        namespace: "default".to_owned(),
        name: format!("job-{uid}"),
        number: 1,
        spec: SandboxJobSpec {
            steps: scripts.iter().enumerate().map(step).collect(),
            ..SandboxJobSpec::default()
        },
        offline: OfflinePolicy::Stop,
        lease_seconds: 25,
        claimed_at: jiff::Timestamp::UNIX_EPOCH,
        task_id: None,
        secrets: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_and_runs_scripts_in_the_sandbox() {
    let controller = Controller::start().await;
    let state = tempfile::tempdir().unwrap();
    let content = b"from an upload".to_vec();
    let digest = {
        use sha2::Digest as _;
        format!("sha256:{}", hex::encode(sha2::Sha256::digest(&content)))
    };
    controller.change(|state| state.inputs.insert(digest.clone(), content));
    let bash =
        r#"echo "hello from $WINDLASS_JOB_NAME in $PWD as $(id -u)"; cat data/in >&2; echo kept > note"#;
    let python = "import os\nprint(open('note').read().strip(), os.environ['WINDLASS_ATTEMPT'], sorted(os.listdir('/workspace/.windlass')))";
    let mut assignment = job("a", &[("bash", bash), ("python", python)]);
    assignment.spec.workspace.inputs = vec![Input {
        path: "data/in".to_owned(),
        upload: Some(Upload { digest, unpack: false }),
        ..Input::default()
    }];
    controller.change(|state| state.queue.push_back(assignment));
    let agent = Agent::start(state.path(), &["--join", &controller.token()]);
    let terminal = controller.terminal("a").await;
    let (stdout, stderr) = {
        let state = controller.state();
        state.check("a");
        (state.output("a", Stream::Stdout), state.output("a", Stream::Stderr))
    };
    assert_eq!(terminal.phase, TerminalPhase::Succeeded, "{terminal:?}\n{stdout}\n{stderr}");
    assert!(stdout.starts_with("hello from job-a in /workspace as 1000\n"), "{stdout}");
    assert!(stdout.ends_with("kept 1 ['artifacts', 'steps']\n"), "{stdout}");
    assert_eq!(stderr, "from an upload");
    assert_eq!(controller.state().acks.len(), 1);

    controller.change(|state| state.queue.push_back(job("b", &[("no-such-interpreter", "x")])));
    let terminal = controller.terminal("b").await;
    assert_eq!((terminal.phase, terminal.exit_code), (TerminalPhase::Failed, Some(127)), "{terminal:?}");
    assert!(terminal.message.unwrap().contains("interpreter `no-such-interpreter`"));

    let log = agent.drained().await;
    assert!(!log.contains(crate::controller::SECRET) && !log.contains("node-token"), "{log}");
    for folder in ["ledger", "workspaces", "leases"] {
        assert_eq!(std::fs::read_dir(state.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
    // Later starts need no token.
    let agent = Agent::start(state.path(), &[]);
    controller.until("registration", |state| (state.registrations.len() == 2).then_some(())).await;
    assert_eq!(controller.state().registrations[1].psk, None);
    agent.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_survives_kill_9_of_the_agent_and_ends_once() {
    let controller = Controller::start().await;
    let state = tempfile::tempdir().unwrap();
    let script =
        "echo begun; for i in 1 2 3 4 5 6; do sleep 0.5; echo $i; done; echo $$ >> runs; wc -l < runs";
    controller.change(|state| state.queue.push_back(job("a", &[("bash", script), ("bash", "echo second")])));
    let agent = Agent::start(state.path(), &["--join", &controller.token()]);
    controller
        .until("output", |state| state.output("a", Stream::Stdout).contains("begun").then_some(()))
        .await;
    agent.signal(rustix::process::Signal::KILL);
    let (code, _) = agent.ended().await;
    assert_eq!(code, None);
    let agent = Agent::start(state.path(), &[]);
    let terminal = controller.terminal("a").await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded, "{terminal:?}");
    {
        let state = controller.state();
        state.check("a");
        assert_eq!(state.output("a", Stream::Stdout), "begun\n1\n2\n3\n4\n5\n6\n1\nsecond\n");
    }
    agent.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_records_were_removed_while_the_agent_was_away_is_ended_before_it_is_called_lost() {
    let controller = Controller::start().await;
    let state = tempfile::tempdir().unwrap();
    let script = "echo begun; for i in $(seq 600); do echo $i > alive; sleep 0.1; done";
    controller.change(|state| state.queue.push_back(job("a", &[("bash", script)])));
    let agent = Agent::start(state.path(), &["--join", &controller.token()]);
    controller
        .until("output", |state| state.output("a", Stream::Stdout).contains("begun").then_some(()))
        .await;
    agent.signal(rustix::process::Signal::KILL);
    agent.ended().await;
    let unit = std::fs::read_dir(state.path().join("sandbox/units")).unwrap().next().unwrap().unwrap().path();
    let supervisor: serde_json::Value =
        serde_json::from_slice(&std::fs::read(unit.join("supervisor.json")).unwrap()).unwrap();
    let pid = supervisor["init"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let init = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    std::fs::remove_dir_all(std::fs::canonicalize(unit).unwrap()).unwrap();
    let agent = Agent::start(state.path(), &[]);
    let terminal = controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "SupervisorLost"));
    let mut ended = [rustix::event::PollFd::new(&init, rustix::event::PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&now)), Ok(1), "it has ended by then");
    agent.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_term_cancels_what_runs() {
    let controller = Controller::start().await;
    let state = tempfile::tempdir().unwrap();
    controller.change(|state| state.queue.push_back(job("a", &[("bash", "echo begun; exec sleep 600")])));
    let agent = Agent::start(state.path(), &["--join", &controller.token()]);
    controller
        .until("output", |state| state.output("a", Stream::Stdout).contains("begun").then_some(()))
        .await;
    agent.signal(rustix::process::Signal::TERM);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(controller.state().terminal("a").is_none(), "the first lets it finish");
    agent.signal(rustix::process::Signal::TERM);
    let (code, log) = agent.ended().await;
    assert_eq!(code, Some(0), "{log}");
    let terminal = controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "AgentStopped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_an_agent_from_starting_is_said_with_the_fix() {
    let state = tempfile::tempdir().unwrap();
    let (code, log) = Agent::start(state.path(), &[]).ended().await;
    assert_eq!(code, Some(2));
    assert!(log.contains("--join"), "{log}");

    let (code, log) = Agent::start(state.path(), &["--join", "wl1.bm9uc2Vuc2U"]).ended().await;
    assert_eq!(code, Some(2));
    assert!(log.contains("damaged") && !log.contains("bm9uc2Vuc2U"), "{log}");

    let controller = Controller::start().await;
    let agent = Agent::start(state.path(), &["--join", &controller.token()]);
    controller.until("registration", |state| (!state.registrations.is_empty()).then_some(())).await;
    let (code, log) = Agent::start(state.path(), &["--join", &controller.token()]).ended().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("another agent uses the state folder"), "{log}");
    agent.drained().await;

    let other = tempfile::tempdir().unwrap();
    let stranger = Controller::start().await;
    let refused = {
        use base64::Engine as _;
        let json = serde_json::json!({"u": stranger.url().as_str(), "c": hex::encode(stranger.ca_hash()), "s": "wrong"});
        format!("wl1.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string()))
    };
    let (code, log) = Agent::start(other.path(), &["--join", &refused]).ended().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("windlass join-token create"), "{log}");
}
