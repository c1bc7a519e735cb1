//! One simulation: what is submitted, what goes wrong, what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::time::Instant;
use windlass_agent::testing::Crash;
use windlass_crds::JobPhase;
use windlass_store::{AttemptPhase, JobRow, LogFilter, RecordStore};

use super::controller::Controller;
use super::network::{EPOCH_MILLIS, Network};
use super::nodes::{Node, SLOTS};

const NODES: usize = 3;
const JOBS: usize = 10;
/// How long things go wrong.
const STORM: Duration = Duration::from_secs(120);
/// How long everything may take to end after that.
const CALM: Duration = Duration::from_secs(1800);

/// What a seed decides beforehand.
pub(crate) struct Plan {
    seed: u64,
    jobs: Vec<Job>,
    troubles: Vec<(Duration, Trouble)>,
}

struct Job {
    name: String,
    at: Duration,
    runs_millis: u64,
    code: i32,
    failures: u32,
    patient: bool,
    cancel_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// An agent crashes and comes back after a while.
    Crash { node: usize, away: Duration, within: Option<(u64, Crash)> },
    /// The controller crashes and comes back after a while.
    Controller { away: Duration },
    /// A node reaches nobody for a while.
    Cut { node: usize, away: Duration },
}

/// What became of a simulation.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let storm = u64::try_from(STORM.as_millis()).expect("a storm is short");
        let some_time = |rng: &mut StdRng| Duration::from_millis(rng.random_range(0..storm));
        let jobs = (0..JOBS).map(|number| {
            let at = Duration::from_millis(rng.random_range(0..60_000));
            Job {
                name: format!("job-{number}"),
                at,
                // From at once to longer than a lease.
                runs_millis: if rng.random_bool(0.7) {
                    rng.random_range(0..3_000)
                } else {
                    rng.random_range(0..70_000)
                },
                code: if rng.random_bool(0.25) { 3 } else { 0 },
                failures: rng.random_range(0..2),
                patient: rng.random_bool(0.2),
                cancel_at: rng
                    .random_bool(0.15)
                    .then(|| at + Duration::from_millis(rng.random_range(0..30_000))),
            }
        });
        let jobs: Vec<_> = jobs.collect();
        let troubles = (0..rng.random_range(4..12)).map(|_| {
            let at = some_time(&mut rng);
            let node = rng.random_range(0..NODES);
            let away = Duration::from_millis(rng.random_range(100..50_000));
            let trouble = match rng.random_range(0..5) {
                0 => Trouble::Controller { away },
                1 => Trouble::Cut { node, away },
                _ => {
                    let how = [Crash::Before, Crash::Within, Crash::After][rng.random_range(0..3)];
                    let within = rng.random_bool(0.7).then(|| (rng.random_range(1..12), how));
                    Trouble::Crash { node, away, within }
                }
            };
            (at, trouble)
        });
        let mut troubles: Vec<_> = troubles.collect();
        troubles.sort_by_key(|(at, _)| *at);
        Self { seed, jobs, troubles }
    }
}

/// Runs a plan in virtual time.
pub(crate) fn simulate(plan: &Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    let controller = Controller::new(plan.seed, EPOCH_MILLIS);
    runtime.block_on(async { World::new(plan, controller).run().await })
}

struct World<'a> {
    plan: &'a Plan,
    network: Arc<Network>,
    nodes: Vec<Node>,
    began: Instant,
    violations: Vec<String>,
    /// When what is down comes back.
    returns: BTreeMap<usize, Instant>,
    controller_returns: Option<Instant>,
    submitted: BTreeSet<usize>,
    cancelled: BTreeSet<usize>,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, controller: Controller) -> Self {
        let network = Network::new(controller, plan.seed, NODES);
        let nodes = (0..NODES).map(|number| Node::new(&network, number, plan.seed)).collect();
        Self {
            plan,
            network,
            nodes,
            began: Instant::now(),
            violations: Vec::new(),
            returns: BTreeMap::new(),
            controller_returns: None,
            submitted: BTreeSet::new(),
            cancelled: BTreeSet::new(),
        }
    }

    async fn run(mut self) -> Outcome {
        for node in &mut self.nodes {
            node.start();
        }
        let mut troubles = self.plan.troubles.iter().copied().peekable();
        let mut next_sweep = Duration::from_secs(1);
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let at = self.began.elapsed();
            while let Some((_, trouble)) = troubles.next_if(|(due, _)| *due <= at && at < STORM) {
                self.afflict(trouble).await;
            }
            if at >= STORM {
                self.network.heal();
            }
            self.bring_back(at).await;
            self.submit_and_cancel(at);
            if at >= next_sweep {
                next_sweep = at + Duration::from_secs(1);
                self.network.controller.sweep(self.network.now_millis());
                self.network.something_new();
            }
            self.check_now();
            if !self.violations.is_empty() || (at > STORM && self.all_ended()) {
                break;
            }
            if at > STORM + CALM {
                self.violations.push(format!("not every job has ended: {}", self.still_open()));
                break;
            }
        }
        if self.violations.is_empty() {
            // Logs may still be on their way, and nodes clean up.
            for _ in 0..60 {
                if self.is_settled() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            self.check_end();
        }
        for node in &mut self.nodes {
            node.crash(None).await;
        }
        Outcome { violations: self.violations, trace: self.network.take_trace() }
    }

    async fn afflict(&mut self, trouble: Trouble) {
        self.network.note(format!("trouble: {trouble:?}"));
        match trouble {
            Trouble::Crash { node, away, within } => {
                self.nodes[node].crash(within).await;
                self.returns.insert(node, Instant::now() + away);
            }
            Trouble::Controller { away } => {
                self.network.controller.kill();
                self.controller_returns = Some(Instant::now() + away);
            }
            Trouble::Cut { node, away } => self.network.cut(node, away),
        }
    }

    async fn bring_back(&mut self, at: Duration) {
        let now = Instant::now();
        if self.controller_returns.is_some_and(|due| due <= now || at >= STORM) {
            self.controller_returns = None;
            self.network.controller.clock.set_millis(self.network.now_millis());
            self.network.controller.start();
            self.network.note("controller starts");
        }
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if let Some(end) = node.gave_up().await {
                self.violations.push(format!("agent {number} gave up: {end}"));
            }
            let due = self.returns.get(&number).is_some_and(|due| *due <= now || at >= STORM);
            if due && !node.is_up() {
                self.returns.remove(&number);
                node.start();
            }
        }
    }

    fn submit_and_cancel(&mut self, at: Duration) {
        let now = self.network.now_millis();
        for (number, job) in self.plan.jobs.iter().enumerate() {
            if job.at <= at && !self.submitted.contains(&number) {
                let manifest = json!({
                    "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob", "metadata": {"name": job.name},
                    "spec": {
                        "command": [
                            format!("out begin {number};"), format!("sleep {}", job.runs_millis),
                            format!("out end {number};"), format!("exit {}", job.code),
                        ],
                        "retry": {"lostAttempts": 100, "failures": job.failures},
                        "offline": if job.patient { "continue" } else { "stop" },
                    },
                });
                let path = format!("/v1/namespaces/default/jobs/{}", job.name);
                if let Some((status, body)) = self.network.controller.request(now, "PUT", &path, &manifest) {
                    assert!(matches!(status, 200 | 201), "{body}");
                    self.submitted.insert(number);
                    self.network.note(format!("submitted {}", job.name));
                    self.network.something_new();
                }
            }
            let due = job.cancel_at.is_some_and(|due| due <= at);
            if due && self.submitted.contains(&number) && !self.cancelled.contains(&number) {
                let path = format!("/v1/namespaces/default/jobs/{}/cancel", job.name);
                if self.network.controller.request(now, "POST", &path, &json!({})).is_some() {
                    self.cancelled.insert(number);
                    self.network.note(format!("cancel asked for {}", job.name));
                    self.network.something_new();
                }
            }
        }
    }

    /// What must hold at every moment.
    fn check_now(&mut self) {
        let mut live: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in &self.nodes {
            let running = node.sandbox.running();
            if running.len() > SLOTS as usize {
                self.violations.push(format!("{} runs {} units in {SLOTS} slots", node.name, running.len()));
            }
            for unit in running {
                // `<job uid>-<epoch>-<step>`
                let job = unit.as_str().rsplitn(3, '-').nth(2).expect("units are named after attempts");
                live.entry(job.to_owned()).or_default().push(format!("{} on {}", unit, node.name));
            }
        }
        for (job, units) in live {
            if units.len() > 1 {
                self.violations.push(format!("job {job} runs twice at once: {}", units.join(", ")));
            }
        }
    }

    fn rows(&self) -> Vec<JobRow> {
        self.network.controller.inspect(|store, _| async move {
            let page = windlass_store::Page { limit: 500, cursor: None };
            store.list_jobs(windlass_store::JobFilter::default(), page).await.expect("the store works").0
        })
    }

    fn all_ended(&self) -> bool {
        self.submitted.len() == JOBS && self.rows().iter().all(|row| row.phase.is_terminal())
    }

    /// Whether every node has cleaned up and sent what it had.
    fn is_settled(&self) -> bool {
        let clean = |node: &Node| node.sandbox.units().is_empty() && node.sandbox.homes().is_empty();
        let told = |row: &JobRow| row.logs_complete || row.phase == JobPhase::Cancelled;
        self.nodes.iter().all(clean) && self.rows().iter().all(told)
    }

    fn still_open(&self) -> String {
        let open = self.rows().into_iter().filter(|row| !row.phase.is_terminal());
        open.map(|row| format!("{} is {} ({:?})", row.name, row.phase, row.reason))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// What must hold once everything has ended.
    fn check_end(&mut self) {
        let mut starts = BTreeSet::new();
        for node in &self.nodes {
            for (unit, _) in node.sandbox.starts() {
                if !starts.insert(unit.clone()) {
                    self.violations.push(format!("unit {unit} was started twice"));
                }
            }
            if !node.sandbox.units().is_empty() || !node.sandbox.homes().is_empty() {
                let units = node.sandbox.units();
                self.violations.push(format!("{} keeps what nobody needs: {units:?}", node.name));
            }
        }
        for row in self.rows() {
            let number =
                self.plan.jobs.iter().position(|job| job.name == row.name).expect("it was submitted here");
            let problems = self.check_job(number, &row);
            self.violations.extend(problems.into_iter().map(|problem| format!("{}: {problem}", row.name)));
        }
    }

    fn check_job(&self, number: usize, row: &JobRow) -> Vec<String> {
        let mut problems = Vec::new();
        let job = &self.plan.jobs[number];
        let may_be_cancelled = self.cancelled.contains(&number);
        let expected = if job.code == 0 { JobPhase::Succeeded } else { JobPhase::Failed };
        if row.phase != expected && !(may_be_cancelled && row.phase == JobPhase::Cancelled) {
            problems.push(format!("it is {} ({:?}), not {expected}", row.phase, row.reason));
        }
        let uid = row.uid.clone();
        let attempts = self
            .network
            .controller
            .inspect(|store, _| async move { store.attempts(&uid).await.expect("the store works") });
        let count = |phase| attempts.iter().filter(|attempt| attempt.phase == phase).count();
        if count(AttemptPhase::Succeeded) > 1 {
            problems.push("it succeeded twice".to_owned());
        }
        if attempts.iter().any(|attempt| attempt.phase.is_live()) {
            problems.push("it has ended and has a live attempt".to_owned());
        }
        let failed = count(AttemptPhase::Failed);
        let allowed = usize::try_from(job.failures).expect("small") + 1;
        if failed > allowed {
            problems.push(format!("it failed {failed} times, and {allowed} were allowed"));
        }
        if row.phase == JobPhase::Succeeded || (row.phase == JobPhase::Failed && row.exit_code.is_some()) {
            if !row.logs_complete {
                problems.push("its log is not complete".to_owned());
            }
            let (uid, epoch) = (row.uid.clone(), row.epoch);
            let log = self.network.controller.inspect(move |store, _| async move {
                let filter = LogFilter { epoch: Some(epoch), step: None, stream: None };
                let rows = store.logs(&uid, filter, None, 1000).await.expect("the store works");
                let bytes = rows.into_iter().flat_map(|row| match row.body {
                    RecordStore::Inline(bytes) => bytes,
                    RecordStore::Object { .. } | RecordStore::Json(_) | RecordStore::None => Vec::new(),
                });
                String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
            });
            let wanted = format!("begin {number};end {number};");
            if log != wanted {
                problems.push(format!("its log is {log:?}, not {wanted:?}"));
            }
        }
        problems
    }
}
