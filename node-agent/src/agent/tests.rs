//! The whole agent on fakes, in virtual time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proptest::test_runner::TestRunner;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use windlass_crds::Span;
use windlass_crds::protocol::{
    AckStatus, Assignment, AttemptId, RecordBody, Stream, TerminalPhase, Unreadable,
};
use windlass_crds::sandbox_job::{Input, Network, Step, Upload};
use windlass_sandbox::{Driver as _, LimitName};

use self::worker_api::FakeHost;
use super::*;
use crate::clock::Clock as _;
use crate::executor::egress::Egress;
use crate::fs::AgentFs as _;
use crate::identity::Identity;
use crate::names::unit_id;
use crate::plugins::Registry;
use crate::registration::JoinSecret;
use crate::testing::controller::FakeController;
use crate::testing::{
    Crash, FakeSandbox, FixedHost, MemoryFs, SeededIds, VirtualClock, assignment, capability, configuration,
    node_key, script,
};
use crate::vault::NodeKey;
use crate::workspaces::Workspaces as _;

mod artifacts;
mod engines;
mod secrets;

const NODE: &str = "node-1";

/// One node and its controller; the agent on it can be crashed and started again.
struct World {
    clock: VirtualClock,
    fs: Arc<MemoryFs>,
    sandbox: FakeSandbox,
    controller: FakeController,
    ids: Arc<SeededIds>,
    inputs: tempfile::TempDir,
    artifacts: tempfile::TempDir,
    artifact_bytes: u64,
    concurrency: u32,
    join: Option<(&'static str, bool)>,
    /// What serves the Worker API.
    api: Option<FakeHost>,
    key: NodeKey,
    engines: windlass_sandbox::engine::Engines,
    /// Images of the node that native steps see as their system.
    images: Option<windlass_sandbox::Images>,
}

/// An agent that runs.
struct Run {
    stop: watch::Sender<Stop>,
    status: watch::Receiver<AgentStatus>,
    task: JoinHandle<Result<(), Error>>,
}

impl World {
    fn new() -> Self {
        let clock = VirtualClock::new();
        Self {
            sandbox: FakeSandbox::new(Arc::new(clock.clone())),
            clock,
            fs: Arc::new(MemoryFs::default()),
            controller: FakeController::new(NODE),
            ids: Arc::new(SeededIds::new(7)),
            inputs: tempfile::tempdir().unwrap(),
            artifacts: tempfile::tempdir().unwrap(),
            artifact_bytes: 1 << 30,
            concurrency: 4,
            join: Some(("secret", false)),
            api: None,
            key: node_key(),
            engines: windlass_sandbox::engine::Engines::default(),
            images: None,
        }
    }

    fn start(&self) -> Run {
        let join = self.join.map(|(secret, used)| JoinSecret { secret: secret.to_owned(), used });
        let agent = Agent::build(AgentParts {
            identity: Identity::ephemeral(NODE, &[7; 32]).unwrap(),
            join,
            on_registered: None,
            client: Arc::new(self.controller.clone()),
            lease_client: Arc::new(self.controller.clone()),
            clock: Arc::new(self.clock.clone()),
            ids: self.ids.clone(),
            fs: self.fs.clone(),
            host: Arc::new(FixedHost),
            driver: Arc::new(self.sandbox.clone()),
            sandbox: {
                let mut sandbox = capability();
                sandbox.runtimes.extend(self.engines.iter().map(|engine| engine.kind().to_string()));
                sandbox
            },
            node_key: self.key.clone(),
            workspaces: Arc::new(self.sandbox.clone()),
            plugins: Registry::built_in(),
            egress: Egress::system(None),
            engines: self.engines.clone(),
            worker_api: self.api.clone().map(|api| Arc::new(api) as Arc<dyn crate::ApiHost>),
            images: self.images.clone(),
            settings: Settings {
                labels: BTreeMap::new(),
                concurrency: self.concurrency,
                least_free_bytes: 256 << 20,
                inputs: self.inputs.path().to_owned(),
                artifacts: self.artifacts.path().join("artifacts"),
                artifact_bytes: self.artifact_bytes,
                input_cache_bytes: 1 << 30,
                models: "/nonexistent/models".into(),
                keeper: KeeperHost::AgentRuntime,
            },
        });
        let (stop, stopped) = watch::channel(Stop::Run);
        let status = agent.status();
        Run { stop, status, task: tokio::spawn(agent.run(stopped)) }
    }

    /// Runs a job on a fresh agent and returns how it ended.
    async fn run_job(&self, assignment: Assignment) -> windlass_crds::protocol::Terminal {
        let job = assignment.attempt.job.clone();
        self.controller.assign(assignment);
        let run = self.start();
        let terminal = self.controller.terminal(&job).await;
        run.drain().await;
        self.check();
        terminal
    }

    /// What must hold after everything has ended.
    fn check(&self) {
        self.controller.state().check_records();
        let starts = self.sandbox.starts();
        let mut units: Vec<_> = starts.iter().map(|(unit, _)| unit.clone()).collect();
        units.sort();
        units.dedup();
        assert_eq!(units.len(), starts.len(), "a step ran twice: {starts:?}");
        assert_eq!(self.sandbox.units(), [], "a unit was left behind");
        assert!(self.sandbox.homes().is_empty(), "a home was left behind");
        let entries: Vec<_> =
            self.fs.paths().into_iter().filter(|path| path.starts_with("ledger/")).collect();
        assert!(entries.is_empty(), "{entries:?}");
    }

    async fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        for _ in 0..36_000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not within an hour: {what}");
    }
}

impl Run {
    /// Kills the agent as kill -9 does.
    async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    async fn drain(self) {
        self.stop.send_replace(Stop::Drain);
        self.task.await.unwrap().unwrap();
    }

    async fn cancel(self) {
        self.stop.send_replace(Stop::Cancel);
        self.task.await.unwrap().unwrap();
    }

    async fn failed(self) -> Error {
        self.task.await.unwrap().unwrap_err()
    }
}

fn id(job: &str) -> AttemptId {
    AttemptId { job: job.to_owned(), epoch: 1 }
}

fn steps(job: &str, commands: &[&[&str]]) -> Assignment {
    let mut assignment = assignment(job, 1, &["true"]);
    assignment.spec.steps = commands
        .iter()
        .enumerate()
        .map(|(number, command)| Step {
            name: format!("s{number}"),
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            ..Step::default()
        })
        .collect();
    assignment
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_its_steps_in_order_and_reports_everything() {
    let world = World::new();
    let job = steps("a", &[&["out one", "sleep 50", "err two", "sleep 1000", "out three"], &["out four"]]);
    let terminal = world.run_job(job).await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded);
    assert_eq!((terminal.reason.as_str(), terminal.exit_code), ("Completed", Some(0)));
    let story = world.controller.state().story("a");
    assert_eq!(
        story,
        [
            "started",
            "step 0",
            "stdout 0 one",
            "stderr 0 two",
            "stdout 0 three",
            "step 0 Exited",
            "step 1",
            "stdout 1 four",
            "step 1 Exited",
            "Succeeded Completed",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn output_is_sent_while_the_step_runs() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["out early", "sleep 20000"]]));
    let run = world.start();
    world
        .controller
        .until("output", |state| state.story("a").contains(&"stdout 0 early".to_owned()).then_some(()))
        .await;
    assert_eq!(world.sandbox.running(), [unit_id(&id("a"), 0)]);
    let (_, since) = world.sandbox.starts()[0];
    assert!(world.clock.boottime() - since < Duration::from_millis(100));
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_ends_the_job_unless_it_may_fail() {
    let world = World::new();
    let terminal = world.run_job(steps("a", &[&["exit 3"], &["true"]])).await;
    assert_eq!(terminal.phase, TerminalPhase::Failed);
    assert_eq!((terminal.reason.as_str(), terminal.exit_code), ("StepFailed", Some(3)));
    assert!(terminal.message.unwrap().contains("`s0`: exited with code 3"));
    assert_eq!(world.sandbox.starts().len(), 1);

    let mut lenient = steps("b", &[&["exit 3"], &["true"]]);
    lenient.spec.steps[0].continue_on_error = true;
    let terminal = world.run_job(lenient).await;
    assert_eq!((terminal.phase, terminal.exit_code), (TerminalPhase::Succeeded, Some(0)));
    assert_eq!(world.sandbox.starts().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_script_in_shorthand_is_one_step() {
    let world = World::new();
    let mut job = assignment("a", 1, &["true"]);
    job.spec.steps = Vec::new();
    job.spec.script = Some(script("out from a script\nexit 4"));
    let terminal = world.run_job(job).await;
    assert_eq!(terminal.exit_code, Some(4));
    assert_eq!(world.controller.state().output("a", Stream::Stdout), "from a script");
}

#[tokio::test(start_paused = true)]
async fn time_limits_of_step_and_job_have_different_ends() {
    let world = World::new();
    let mut step_limit = steps("a", &[&["sleep 60000"], &["true"]]);
    step_limit.spec.steps[0].timeout = Some(Span::from_secs(5));
    let terminal = world.run_job(step_limit.clone()).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "StepFailed"));
    assert!(world.controller.state().story("a").contains(&"step 0 Timeout".to_owned()));
    assert!(
        world.controller.state().story("a").contains(&"event Stopped".to_owned()),
        "the proof is reported"
    );

    let mut job_limit = steps("b", &[&["sleep 6000"], &["sleep 60000"], &["true"]]);
    job_limit.spec.timeout = Some(Span::from_secs(10));
    job_limit.spec.steps[1].timeout = Some(Span::from_secs(30));
    job_limit.spec.steps[1].continue_on_error = true;
    let terminal = world.run_job(job_limit).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::TimedOut, "JobTimeout"));
}

#[tokio::test(start_paused = true)]
async fn unpacking_an_image_takes_no_longer_than_the_step_and_the_job_may() {
    let mut world = World::new();
    let folder = world.inputs.path().to_str().unwrap().to_owned();
    let dir = world.inputs.path().join("images");
    let limits = windlass_sandbox::image::ImageLimits::default();
    world.images = Some(windlass_sandbox::Images::open(dir.clone(), dir, limits).unwrap());
    let mut rules = configuration(NODE, 2);
    rules.policy.sandbox.images.folders = vec![folder.clone()];
    world.controller.configure(&rules);
    // In no time nothing can be unpacked: there is none left before anybody has looked for it.
    let ended = async |job: &str, step: Option<u64>, whole: Option<u64>| {
        let mut job = steps(job, &[&["true"]]);
        job.spec.sandbox.image = Some(format!("oci:{folder}/missing"));
        job.spec.steps[0].timeout = step.map(Span::from_secs);
        job.spec.timeout = whole.map(Span::from_secs);
        world.run_job(job).await
    };
    let terminal = ended("step", Some(0), None).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "ImageUnavailable"));
    let message = terminal.message.unwrap();
    assert!(message.contains("step `s0`") && message.contains("within its timeout of 0 s"), "{message}");
    let terminal = ended("job", Some(5), Some(0)).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::TimedOut, "JobTimeout"));
    let terminal = ended("neither", Some(5), None).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "ImageNotFound"));
}

#[tokio::test(start_paused = true)]
async fn the_nodes_longest_job_time_is_the_ceiling() {
    let world = World::new();
    let mut rules = configuration(NODE, 2);
    rules.constraints.max_job_timeout_seconds = Some(7);
    world.controller.configure(&rules);
    let mut job = steps("a", &[&["sleep 60000"]]);
    job.spec.timeout = Some(Span::from_secs(3000));
    let terminal = world.run_job(job).await;
    assert_eq!(terminal.phase, TerminalPhase::TimedOut);
    assert!(terminal.message.unwrap().contains("7 s"));
}

#[tokio::test(start_paused = true)]
async fn what_the_node_does_not_allow_is_refused_by_name_before_anything_runs() {
    let world = World::new();
    let mut job = assignment("a", 1, &["true"]);
    job.spec.sandbox.network = Network::Open;
    let terminal = world.run_job(job).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "PolicyRefused"));
    assert!(terminal.message.unwrap().contains("policy.sandbox.networks"));
    assert_eq!(world.sandbox.starts(), []);
    assert_eq!(world.controller.state().story("a"), ["Failed PolicyRefused"]);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_step_keeps_the_first_from_running() {
    let world = World::new();
    let terminal = world.run_job(steps("a", &[&["true"], &[""]])).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "ValidationError"));
    let message = terminal.message.unwrap();
    assert!(message.contains("VALIDATION_ERROR") && message.contains("steps[s1].command"), "{message}");
    assert_eq!(world.sandbox.starts(), []);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_made_says_which_part_failed() {
    let world = World::new();
    let terminal = world.run_job(assignment("a", 1, &["broken"])).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "SandboxFailed"));
    assert!(terminal.message.unwrap().contains("mount /proc: refused"));
}

#[tokio::test(start_paused = true)]
async fn limits_and_their_sources_reach_the_sandbox() {
    let world = World::new();
    let mut rules = configuration(NODE, 2);
    rules.policy.sandbox.max.pids = Some(64);
    rules.policy.sandbox.output_cap_bytes = Some(1000);
    world.controller.configure(&rules);
    let mut job = assignment("a", 1, &["sleep 5000"]);
    job.spec.sandbox.resources.memory = Some("64Mi".parse().unwrap());
    job.spec.sandbox.unenforced = vec![windlass_crds::sandbox_job::Limit::Memory];
    world.controller.assign(job);
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    let spec = world.sandbox.spec(&unit_id(&id("a"), 0)).unwrap();
    assert_eq!(spec.limits.memory_bytes, Some(windlass_sandbox::Limit::named(64 << 20)));
    assert_eq!(spec.limits.pids, Some(windlass_sandbox::Limit::named(64)));
    assert_eq!(spec.limits.disk_bytes, Some(windlass_sandbox::Limit::default_value(1 << 30)));
    assert_eq!(spec.limits.cpu_millis, None);
    assert!(spec.limits.accept_unenforced.contains(&LimitName::Memory));
    assert_eq!((spec.output_cap, spec.hostname.as_str()), (1000, "job-a"));
    assert_eq!(spec.env["WINDLASS_JOB_ID"], "a");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_step_and_reports_the_proof() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["deaf", "sleep 600000"], &["true"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    let asked = world.clock.boottime();
    world.controller.change(|state| state.cancelled.insert(id("a")));
    let terminal = world.controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Cancelled, "CancelRequested"));
    let took = world.clock.boottime() - asked;
    assert!(took >= secs(5) && took < secs(6), "TERM, the grace of 5 s, KILL: {took:?}");
    let story = world.controller.state().story("a");
    assert_eq!(
        story,
        ["started", "step 0", "event Stopped", "step 0 Cancelled", "Cancelled CancelRequested"]
    );
    let asks = world.controller.state().claims.len();
    assert!(asks < 10, "an order that is being obeyed is not asked for again: {asks} claims");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_fenced_attempt_is_killed_at_once() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["deaf", "sleep 600000"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    let asked = world.clock.boottime();
    world.controller.change(|state| state.fenced.insert(id("a")));
    let terminal = world.controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "Fenced"));
    assert!(world.clock.boottime() - asked < secs(1));
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_while_a_job_runs_and_stop_it_when_they_are_not() {
    let world = World::new();
    world.controller.assign(steps("long", &[&["sleep 300000"]]));
    let run = world.start();
    let terminal = world.controller.terminal("long").await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded, "300 s with leases of 25 s");

    world.controller.assign(steps("lost", &[&["sleep 300000"]]));
    world.until("start", || !world.sandbox.running().is_empty()).await;
    world.controller.change(|state| state.stingy = true);
    let asked = world.clock.boottime();
    let terminal = world.controller.terminal("lost").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "LeaseExpired"));
    let took = world.clock.boottime() - asked;
    assert!(took <= secs(26), "{took:?}");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_controller_stops_what_its_lease_does_not_cover_and_loses_no_record() {
    let world = World::new();
    world.controller.assign(steps("short", &[&["out a", "sleep 10000", "out b"]]));
    world.controller.assign(steps("long", &[&["out a", "sleep 120000"]]));
    let run = world.start();
    world.until("start", || world.sandbox.running().len() == 2).await;
    world.controller.change(|state| state.down = true);
    world.until("end", || world.sandbox.running().is_empty()).await;
    tokio::time::sleep(secs(300)).await;
    world.controller.change(|state| state.down = false);
    assert_eq!(world.controller.terminal("short").await.phase, TerminalPhase::Succeeded);
    assert_eq!(world.controller.terminal("long").await.reason, "LeaseExpired");
    assert_eq!(world.controller.state().output("short", Stream::Stdout), "ab");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_until_the_controller_has_heard_of_the_end() {
    let world = World::new();
    world.controller.change(|state| state.reports_down = true);
    world.controller.assign(steps("a", &[&["sleep 1000"]]));
    let run = world.start();
    world.until("the end", || !world.sandbox.starts().is_empty() && world.sandbox.running().is_empty()).await;
    tokio::time::sleep(secs(60)).await;
    let beat = |world: &World| world.controller.state().heartbeats.last().unwrap().held.clone();
    assert_eq!(beat(&world), [id("a")]);
    assert!(world.sandbox.homes().is_empty(), "it is cleaned up all the same");
    run.crash().await;
    let run = world.start();
    tokio::time::sleep(secs(30)).await;
    assert_eq!(beat(&world), [id("a")], "after a restart too");
    world.controller.change(|state| state.reports_down = false);
    world.controller.terminal("a").await;
    tokio::time::sleep(secs(30)).await;
    assert_eq!(beat(&world), []);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_first_lease_that_a_long_poll_has_used_up_is_renewed_before_the_job_starts() {
    let world = World::new();
    let run = world.start();
    let claims = |world: &World| world.controller.state().claims.len();
    world.until("a claim", || claims(&world) == 1).await;
    tokio::time::sleep(secs(29)).await;
    assert_eq!(claims(&world), 1);
    let beats = world.controller.state().heartbeats.len();
    world.controller.assign(steps("a", &[&["sleep 60000"]]));
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    assert!(world.controller.state().heartbeats[beats..].iter().any(|beat| beat.held == [id("a")]));
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_doubled_assignment_runs_once() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 1000"]]));
    world.controller.assign(steps("a", &[&["sleep 1000"]]));
    let run = world.start();
    world.controller.terminal("a").await;
    world.controller.assign(steps("a", &[&["sleep 1000"]]));
    tokio::time::sleep(secs(60)).await;
    assert_eq!(world.sandbox.starts().len(), 1);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_assignment_whose_answer_was_lost_comes_again_and_is_given_back_by_a_node_that_drains() {
    for drains in [false, true] {
        let world = World::new();
        world.controller.assign(steps("a", &[&["sleep 15000"]]));
        let run = world.start();
        world.until("start", || !world.sandbox.running().is_empty()).await;
        tokio::time::sleep(secs(1)).await;
        world.controller.change(|state| state.down = true);
        world.controller.assign(assignment("b", 1, &["true"]));
        tokio::time::sleep(secs(1)).await;
        assert!(world.controller.state().queue.is_empty(), "it was granted");
        if drains {
            run.stop.send_replace(Stop::Drain);
        }
        world.controller.change(|state| state.down = false);
        let terminal = world.controller.terminal("b").await;
        if drains {
            assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Released, "Draining"));
        } else {
            assert_eq!(terminal.phase, TerminalPhase::Succeeded);
        }
        run.drain().await;
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_read_fails_with_the_reason_and_the_others_run() {
    let world = World::new();
    let newer = AttemptId { job: "newer".to_owned(), epoch: 1 };
    let problem = "spec: unknown field `teleport`".to_owned();
    world.controller.change(|state| state.unreadable.push(Unreadable { attempt: newer, problem }));
    world.controller.assign(assignment("plain", 1, &["true"]));
    let run = world.start();
    let terminal = world.controller.terminal("newer").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "UnsupportedSpec"));
    let message = terminal.message.unwrap();
    assert!(message.contains("teleport") && message.contains("update the agent"), "{message}");
    assert_eq!(world.controller.terminal("plain").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_run_at_once_than_there_are_slots_and_a_free_slot_is_used_at_once() {
    let mut world = World::new();
    world.concurrency = 2;
    for job in ["a", "b", "c", "d"] {
        world.controller.assign(steps(job, &[&["sleep 7000"]]));
    }
    let run = world.start();
    let began = world.clock.boottime();
    for job in ["a", "b", "c", "d"] {
        assert!(world.sandbox.running().len() <= 2);
        world.controller.terminal(job).await;
    }
    let took = world.clock.boottime() - began;
    assert!(took < secs(15), "two rounds of 7 s, without waiting for a long poll to end: {took:?}");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_configuration_changes_slots_while_the_agent_runs() {
    let mut world = World::new();
    world.concurrency = 1;
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.up && status.slots == 1).await.unwrap();
    let mut wider = configuration(NODE, 2);
    wider.node.concurrency = Some(3);
    world.controller.configure(&wider);
    status.wait_for(|status| status.slots == 3 && status.config_version == Some(2)).await.unwrap();
    for job in ["a", "b", "c"] {
        world.controller.assign(steps(job, &[&["sleep 5000"]]));
    }
    world.until("three at once", || world.sandbox.running().len() == 3).await;
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn version_10_is_newer_than_9_and_an_older_one_is_refused() {
    let world = World::new();
    let run = world.start();
    let acked = |version: &'static str| {
        world.controller.until("an acknowledgement", move |state| {
            state.acks.iter().find(|ack| ack.config_version == version).cloned()
        })
    };
    acked("1").await;
    for version in [9, 10] {
        world.controller.configure(&configuration(NODE, version));
        let ack = acked(if version == 9 { "9" } else { "10" }).await;
        assert_eq!(ack.status, AckStatus::Applied);
        assert!(ack.effective_config_hash.unwrap().starts_with("sha256:"));
    }
    run.crash().await;
    world.controller.configure(&configuration(NODE, 9));
    world.controller.change(|state| state.acks.clear());
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
    let ack = acked("9").await;
    assert_eq!(
        ack.status,
        AckStatus::Failed,
        "a controller with an old database must not pass for one that is obeyed"
    );
    assert_eq!(ack.error.unwrap().error_type, "OlderVersion");
    assert_eq!(status.borrow().config_version, Some(10));
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_version_of_another_object_or_with_other_content_is_not_taken_for_the_one_in_force() {
    let world = World::new();
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.config_version == Some(1) && status.slots == 4).await.unwrap();
    run.crash().await;

    // The same version of a node that was made anew while the agent was away.
    let with = |version: u64, uid: &str, slots: u32| {
        let mut made = configuration(NODE, version);
        made.node_uid = Some(uid.to_owned());
        made.node.concurrency = Some(slots);
        made
    };
    world.controller.configure(&with(1, "uid-2", 2));
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.slots == 2).await.unwrap();
    world.controller.configure(&with(3, "uid-2", 3));
    status.wait_for(|status| status.slots == 3 && status.config_version == Some(3)).await.unwrap();

    // Deleted and made anew while the agent runs: its token works no more, and versions begin again.
    world.controller.change(|state| {
        state.configuration = Some(serde_json::to_value(with(1, "uid-3", 5)).unwrap());
        let issued = state.registrations.len();
        state.expired_tokens.insert(format!("token-{issued}"));
    });
    status.wait_for(|status| status.slots == 5 && status.config_version == Some(1)).await.unwrap();

    // A controller that was taken back to a backup issues a version a second time.
    run.crash().await;
    world.controller.configure(&with(1, "uid-3", 6));
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.slots == 6).await.unwrap();
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_be_applied_leaves_the_old_one_in_force_over_a_restart() {
    let world = World::new();
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
    let mut bad = configuration(NODE, 2);
    bad.node.concurrency = Some(9);
    bad.policy.sandbox.networks = vec![Network::Open];
    world.controller.configure(&bad);
    let failed = |from: usize| {
        world.controller.until("a failed acknowledgement", move |state| {
            state.acks.iter().skip(from).find(|ack| ack.status == AckStatus::Failed).cloned()
        })
    };
    let ack = failed(0).await;
    assert_eq!(ack.config_version, "2");
    assert_eq!(ack.error.unwrap().error_type, "NetworkUnavailable");
    assert_eq!((status.borrow().config_version, status.borrow().slots), (Some(1), 4));
    let before = world.controller.state().acks.len();
    run.crash().await;

    let run = world.start();
    let ack = failed(before).await;
    assert_eq!(ack.config_version, "2", "after a restart it is tried and acknowledged again");
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
    assert_eq!((status.borrow().config_version, status.borrow().slots), (Some(1), 4));
    world.controller.assign(assignment("a", 1, &["true"]));
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_configuration_the_node_takes_no_work_and_says_why() {
    let world = World::new();
    let mut bad = configuration(NODE, 1);
    bad.node.concurrency = Some(0);
    world.controller.configure(&bad);
    world.controller.assign(assignment("a", 1, &["true"]));
    let run = world.start();
    let why = world
        .controller
        .until("a heartbeat", |state| state.heartbeats.last().and_then(|beat| beat.not_ready.clone()))
        .await;
    assert!(why.contains("node.concurrency: 0"), "{why}");
    tokio::time::sleep(secs(60)).await;
    assert_eq!(world.sandbox.starts(), []);
    world.controller.configure(&configuration(NODE, 2));
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_a_full_disk_kept_out_is_applied_when_there_is_room() {
    let world = World::new();
    world.fs.set_full(true);
    let run = world.start();
    world.until("the refusal", || !world.controller.state().acks.is_empty()).await;
    assert_eq!(world.controller.state().acks[0].status, AckStatus::Failed);
    world.fs.set_full(false);
    world.controller.assign(assignment("a", 1, &["true"]));
    let terminal = world.controller.terminal("a").await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded);
    let acks: Vec<_> = world.controller.state().acks.iter().map(|ack| ack.status).collect();
    assert_eq!(acks, [AckStatus::Failed, AckStatus::Applied]);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_known_node_works_from_its_last_good_configuration_before_the_controller_is_back() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 10000"], &["out done"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    world.controller.change(|state| state.down = true);
    run.crash().await;
    let run = world.start();
    tokio::time::sleep(secs(15)).await;
    assert_eq!(run.status.borrow().config_version, Some(1));
    assert!(!run.status.borrow().registered);
    assert_eq!(world.sandbox.starts().len(), 2, "the second step was started without the controller");
    world.controller.change(|state| state.down = false);
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_nearly_full_disk_takes_no_work_until_there_is_room() {
    let world = World::new();
    world.fs.set_free_bytes(1 << 20);
    world.controller.assign(assignment("a", 1, &["true"]));
    let run = world.start();
    let why = world
        .controller
        .until("a heartbeat", |state| state.heartbeats.last().and_then(|beat| beat.not_ready.clone()))
        .await;
    assert!(why.contains("nearly full"), "{why}");
    assert_eq!(world.sandbox.starts(), []);
    world.fs.set_free_bytes(1 << 40);
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_pauses_what_runs_and_everything_goes_on_when_there_is_room() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 5000"], &["out b"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    world.fs.set_full(true);
    world.controller.assign(assignment("new", 1, &["true"]));
    let mut status = run.status.clone();
    status.wait_for(|status| status.not_ready.is_some()).await.unwrap();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(world.sandbox.starts().len(), 1, "the second step waits for the record of the first");
    world.fs.set_full(false);
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    world.controller.terminal("new").await;
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn drain_finishes_what_runs_and_takes_nothing_new() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 40000"], &["out end"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    run.stop.send_replace(Stop::Drain);
    tokio::time::sleep(secs(1)).await;
    world.controller.assign(assignment("b", 1, &["true"]));
    run.drain().await;
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    assert_eq!(world.controller.state().queue.len(), 1);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn cancel_stops_what_runs_and_reports_it_as_lost() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["deaf", "sleep 400000"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    run.stop.send_replace(Stop::Drain);
    tokio::time::sleep(secs(1)).await;
    run.cancel().await;
    let terminal = world.controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "AgentStopped"));
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_its_controller_ends_all_the_same_and_sends_the_rest_later() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["out x", "sleep 400000"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    world.controller.change(|state| state.down = true);
    let asked = world.clock.boottime();
    run.cancel().await;
    assert!(world.clock.boottime() - asked < secs(26));
    world.controller.change(|state| state.down = false);
    let run = world.start();
    assert_eq!(world.controller.terminal("a").await.reason, "AgentStopped");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_unit_outlives_the_agent_and_is_taken_up_with_its_output() {
    let world = World::new();
    world.controller.assign(steps(
        "a",
        &[&["out one", "sleep 4000", "out two", "sleep 4000", "out three"], &["out four"]],
    ));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    tokio::time::sleep(secs(1)).await;
    run.crash().await;
    tokio::time::sleep(secs(5)).await;
    let run = world.start();
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    assert_eq!(world.controller.state().output("a", Stream::Stdout), "onetwothreefour");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_unit_dies_with_its_lease_when_nobody_is_there_to_renew_it() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 600000"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    run.crash().await;
    tokio::time::sleep(secs(36)).await;
    assert!(world.sandbox.running().is_empty());
    let run = world.start();
    assert_eq!(world.controller.terminal("a").await.reason, "LeaseExpired");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_what_ran_is_lost_and_what_had_not_started_is_given_back() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 600000"]]));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    run.crash().await;
    world.sandbox.reboot();
    world.clock.reboot("boot-2");
    // As if it had been taken on just before the power went.
    let entry = ledger::Entry {
        assignment: assignment("b", 1, &["true"]),
        lease_until: world.clock.boottime() + secs(25),
        host_boot: "boot-1".to_owned(),
        pushed: false,
        sealed: None,
    };
    world.fs.create_new("ledger/b-1.json", serde_json::to_vec(&entry).unwrap()).await.unwrap();
    let run = world.start();
    let terminal = world.controller.terminal("a").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Lost, "NodeRebooted"));
    let terminal = world.controller.terminal("b").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Released, "NodeRebooted"));
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_noted_and_not_begun_goes_on_when_its_lease_is_renewed_and_is_given_back_otherwise()
 {
    for (stingy, expected) in [(false, TerminalPhase::Succeeded), (true, TerminalPhase::Released)] {
        let world = World::new();
        let run = world.start();
        run.status.clone().wait_for(|status| status.up).await.unwrap();
        run.crash().await;
        world.controller.change(|state| state.stingy = stingy);
        let entry = ledger::Entry {
            assignment: assignment("a", 1, &["true"]),
            lease_until: world.clock.boottime(),
            host_boot: world.clock.host_boot(),
            pushed: false,
            sealed: None,
        };
        world.fs.create_new("ledger/a-1.json", serde_json::to_vec(&entry).unwrap()).await.unwrap();
        let run = world.start();
        assert_eq!(world.controller.terminal("a").await.phase, expected);
        run.drain().await;
        world.check();
    }
}

/// Crashes at every changing operation on files, in each of three ways, and starts again.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_runs_no_step_twice_and_reports_everything_once() {
    let job = || steps("a", &[&["out one", "sleep 2000", "err two"], &["exit 5"], &["out never"]]);
    let operations = {
        let world = World::new();
        world.run_job(job()).await;
        world.fs.operations()
    };
    assert!(operations > 5, "{operations}");
    for crash in [Crash::Before, Crash::Within, Crash::After] {
        for at in 1..=operations {
            let world = World::new();
            world.fs.crash_at(at, crash);
            world.controller.assign(job());
            let run = world.start();
            tokio::select! {
                biased;
                () = world.fs.crashed() => {}
                _ = world.controller.terminal("a") => {}
            }
            run.crash().await;
            world.fs.restart();
            // A claim that was granted and never noted is the controller's to give again.
            let lost = world.controller.state().queue.is_empty()
                && !world.fs.paths().iter().any(|path| path.starts_with("ledger/"))
                && world.controller.state().records.is_empty()
                && world.sandbox.starts().is_empty();
            let run = world.start();
            if lost && !unsent(&world).await {
                world.controller.assign(Assignment { attempt: AttemptId { epoch: 2, ..id("a") }, ..job() });
            }
            let terminal = world.controller.terminal("a").await;
            let context = format!("{crash:?} at {at}: {:?}", world.controller.state().story("a"));
            assert_eq!(terminal.phase, TerminalPhase::Failed, "{context}");
            assert_eq!(terminal.exit_code, Some(5), "{context}");
            run.drain().await;
            assert_eq!(world.controller.state().output("a", Stream::Stdout), "one", "{context}");
            assert_eq!(world.controller.state().output("a", Stream::Stderr), "two", "{context}");
            assert_eq!(world.sandbox.starts().len(), 2, "{context}");
            world.check();
        }
    }
}

/// Whether there are records in the outbox that have not been sent.
async fn unsent(world: &World) -> bool {
    let (outbox, _) = Outbox::open(world.fs.clone()).await.unwrap();
    let records = outbox.backlog().borrow().records;
    records > 0
}

/// Crashes at random moments, several times, while answers of the controller get lost.
#[test]
fn crashes_at_any_moment_run_no_step_twice_and_report_everything_once() {
    use proptest::prelude::*;
    let crashes = proptest::collection::vec(0..8000_u64, 0..5);
    let mut runner = TestRunner::new(ProptestConfig { cases: 40, ..ProptestConfig::default() });
    let result = runner.run(&(crashes, any::<bool>()), |(crashes, reports_down)| {
        block_on(async move {
            let world = World::new();
            world.controller.change(|state| state.reports_down = reports_down);
            let mut run = world.start();
            let mut status = run.status.clone();
            status.wait_for(|status| status.up).await.unwrap();
            world.controller.assign(steps(
                "a",
                &[&["out one", "sleep 3000", "out two"], &["err x", "sleep 3000", "err y"]],
            ));
            world.until("start", || !world.sandbox.starts().is_empty()).await;
            for after in crashes {
                tokio::time::sleep(Duration::from_millis(after)).await;
                run.crash().await;
                run = world.start();
            }
            world.controller.change(|state| state.reports_down = false);
            assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
            run.drain().await;
            assert_eq!(world.sandbox.starts().len(), 2);
            assert_eq!(world.controller.state().output("a", Stream::Stderr), "xy");
            world.check();
        });
        Ok(())
    });
    result.unwrap();
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future);
}

#[tokio::test(start_paused = true)]
async fn registration_is_tried_again_through_outages_and_refused_for_good_with_the_fix() {
    let world = World::new();
    world.controller.change(|state| state.refuse_registration = [503, 500].into());
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.registered).await.unwrap();
    run.drain().await;

    for (known, status, kind, fix) in [
        (false, 401, "token_refused", "windlass join-token create"),
        (true, 401, "token_refused", "windlass join-token create"),
        (false, 409, "name_taken", "--replace node-1"),
        (false, 422, "registration_refused", "node-1"),
    ] {
        let mut world = World::new();
        world.join = Some(("secret", known));
        world.controller.change(|state| state.refuse_registration = vec![status; 9].into());
        let error = world.start().failed().await;
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(fix) && !error.to_string().contains("secret"), "{error}");
    }
    let mut world = World::new();
    world.join = None;
    world.controller.change(|state| state.refuse_registration = [401].into());
    assert_eq!(world.start().failed().await.kind(), "key_refused");
}

#[tokio::test(start_paused = true)]
async fn a_known_node_proves_its_key_and_shows_its_token_only_when_that_is_not_enough() {
    let mut world = World::new();
    world.join = Some(("secret", true));
    world.controller.change(|state| state.refuse_registration = [401].into());
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.registered).await.unwrap();
    let shown: Vec<_> =
        world.controller.state().registrations.iter().map(|request| request.psk.clone()).collect();
    assert_eq!(shown, [None, Some("secret".to_owned())]);
    assert!(world.controller.state().registrations.iter().all(|request| request.proof.is_some()));
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_token_is_renewed_at_two_thirds_of_its_life_and_when_it_is_not_accepted() {
    let world = World::new();
    world.controller.change(|state| state.token_life = Some(900));
    let run = world.start();
    let registrations = || world.controller.state().registrations.len();
    tokio::time::sleep(secs(599)).await;
    assert_eq!(registrations(), 1);
    tokio::time::sleep(secs(3)).await;
    assert_eq!(registrations(), 2);
    world.controller.change(|state| state.expired_tokens.insert("token-2".to_owned()));
    tokio::time::sleep(secs(60)).await;
    assert_eq!(registrations(), 3);
    world.controller.assign(assignment("a", 1, &["true"]));
    world.controller.terminal("a").await;
    run.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_agent_with_the_same_identity_ends_this_one() {
    let world = World::new();
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
    world.controller.change(|state| state.fence_node = true);
    let error = run.failed().await;
    assert_eq!(error.kind(), "superseded");
    assert!(error.to_string().contains("--state-dir"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn uploads_are_fetched_verified_and_placed_and_a_missing_one_fails_the_job() {
    let world = World::new();
    let content = "x".repeat(5000).into_bytes();
    let digest = crate::capabilities::sha256_text(&content);
    let wrong = crate::capabilities::sha256_text(b"other");
    world.controller.change(|state| {
        state.inputs.insert(digest.clone(), content.clone());
        state.inputs.insert(wrong.clone(), content.clone());
    });
    let with = |job: &str, digest: &str| {
        let mut assignment = assignment(job, 1, &["sleep 1000"]);
        let upload = |path: &str| Input {
            path: path.to_owned(),
            upload: Some(Upload { digest: digest.to_owned(), unpack: false }),
            ..Input::default()
        };
        assignment.spec.workspace.inputs = vec![upload("data/in"), upload("again")];
        assignment
    };
    world.controller.assign(with("a", &digest));
    let run = world.start();
    world.until("start", || !world.sandbox.running().is_empty()).await;
    let placed = world.sandbox.homes()["a-1"].clone();
    assert_eq!(placed[0].path, "data/in");
    let crate::workspaces::Content::File(path) = &placed[0].content else { panic!("{placed:?}") };
    assert_eq!(std::fs::read(path).unwrap(), content);
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);

    let missing = crate::capabilities::sha256_text(b"missing");
    world.controller.assign(with("b", &missing));
    let terminal = world.controller.terminal("b").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "InputMissing"));
    world.controller.assign(with("c", &wrong));
    let terminal = world.controller.terminal("c").await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "InputDamaged"));
    world.controller.assign(with("d", "sha256:../../etc/passwd"));
    let terminal = world.controller.terminal("d").await;
    assert_eq!(terminal.reason, "InputMissing");
    run.drain().await;
    world.check();
    let kept = std::fs::read_dir(world.inputs.path()).unwrap().count();
    assert_eq!(kept, 1, "nothing half fetched or wrong is kept");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_removed_at_start() {
    let world = World::new();
    let spec = windlass_sandbox::UnitSpec::new(
        unit_id(&id("stray"), 0),
        vec!["sleep 600000".to_owned()],
        "/workspaces/stray-1".into(),
        windlass_sandbox::Identity { uid: 1, gid: 1 },
        "/leases/stray-1".into(),
    );
    world.sandbox.create("stray-1", Vec::new(), None, world.clock.boottime() + secs(600)).await.unwrap();
    world.sandbox.prepare(&spec).await.unwrap();
    world.sandbox.start(&spec.id).await.unwrap();
    let run = world.start();
    world.until("cleanup", || world.sandbox.units().is_empty() && world.sandbox.homes().is_empty()).await;
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_lists_exactly_what_is_held() {
    let world = World::new();
    world.controller.assign(steps("a", &[&["sleep 25000"]]));
    let run = world.start();
    world.controller.terminal("a").await;
    tokio::time::sleep(secs(30)).await;
    run.drain().await;
    let state = world.controller.state();
    assert!(state.heartbeats.iter().any(|beat| beat.held == [id("a")]));
    assert!(state.heartbeats.last().unwrap().held.is_empty());
    assert!(state.heartbeats.iter().all(|beat| beat.slots == 4));
    let hash = state.heartbeats.last().unwrap().capability_hash.clone().unwrap();
    assert!(hash.starts_with("sha256:"));
    let reported = state.registrations[0].capability.clone();
    assert_eq!(crate::capabilities::report_hash(&reported), hash);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_story() {
    let story = || async {
        let world = World::new();
        for job in ["a", "b", "c"] {
            world.controller.assign(steps(job, &[&["out x", "sleep 500", "err y"], &["sleep 100", "out z"]]));
        }
        let run = world.start();
        for job in ["a", "b", "c"] {
            world.controller.terminal(job).await;
        }
        run.drain().await;
        let state = world.controller.state();
        state.received.clone()
    };
    assert_eq!(story().await, story().await);
}

#[tokio::test(start_paused = true)]
async fn a_default_limit_that_is_not_enforced_is_reported_and_a_named_one_fails_the_job() {
    let world = World::new();
    world.sandbox.cannot_enforce(LimitName::Memory);
    world.run_job(assignment("a", 1, &["true"])).await;
    let bodies = world.controller.state().bodies("a");
    let memory = windlass_crds::sandbox_job::Limit::Memory;
    assert!(matches!(&bodies[0], RecordBody::Started { unenforced } if *unenforced == [memory]));
    assert_eq!(world.controller.state().story("a")[1], "event LimitUnenforced");

    let mut named = assignment("b", 1, &["true"]);
    named.spec.sandbox.resources.memory = Some("64Mi".parse().unwrap());
    let terminal = world.run_job(named.clone()).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "SandboxFailed"));
    assert!(terminal.message.unwrap().contains("limit memory"));
    named.attempt = id("c");
    named.spec.sandbox.unenforced = vec![memory];
    assert_eq!(world.run_job(named).await.phase, TerminalPhase::Succeeded);
}

mod worker_api;
