//! One simulation: carries a plan out in virtual time and looks at what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;
use tokio::time::Instant;
use windlass_agent::Stop;
use windlass_crds::JobPhase;
use windlass_store::{AttemptPhase, AttemptRow, LogFilter, RecordStore};

use super::controller::Controller;
use super::network::{EPOCH_MILLIS, Network};
use super::nodes::Node;
use super::operator::Operator;
use super::oracle::{CANCEL, Invariant, KnownJob};
use super::plan::{JobPlan, Plan, STORM, Suspended, Trouble};

/// How long everything may take to end after the storm.
const CALM: Duration = Duration::from_secs(1200);
/// How long a fleet may take to clean up after its last job.
const CLEAN_UP: Duration = Duration::from_secs(120);
/// How often the world is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a controller that was told to stop still answers: its notice and its drain.
const DRAIN: Duration = Duration::from_millis(5_500);

/// What became of a simulation.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
    /// A hash of everything that happened.
    pub(crate) digest: u64,
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
    operator: Operator<'a>,
    nodes: Vec<Node>,
    /// When agents that are down come back.
    returns: BTreeMap<usize, Instant>,
    /// When full disks have room again.
    room_at: BTreeMap<usize, Instant>,
    /// When a controller that stops is gone.
    controller_goes: Option<(Instant, Duration)>,
    controller_returns: Option<Instant>,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, controller: Controller) -> Self {
        let network = Arc::new(Network::new(controller, plan));
        network.oracle.controller_came(network.controller.wall_at(EPOCH_MILLIS));
        let nodes = (0..plan.nodes.len()).map(|number| Node::new(&network, number, plan)).collect();
        Self {
            plan,
            operator: Operator::new(plan, &network),
            network,
            nodes,
            returns: BTreeMap::new(),
            room_at: BTreeMap::new(),
            controller_goes: None,
            controller_returns: None,
        }
    }

    async fn run(mut self) -> Outcome {
        self.operator.declare_nodes();
        for node in &mut self.nodes {
            node.start();
        }
        let mut troubles = self.plan.troubles.iter().copied().peekable();
        let mut tick = 0_u32;
        loop {
            tokio::time::sleep(TICK).await;
            tick += 1;
            let at = self.network.elapsed();
            while let Some((_, trouble)) = troubles.next_if(|(due, _)| *due <= at && at < STORM) {
                self.afflict(trouble).await;
            }
            if at >= STORM {
                self.network.heal();
            }
            self.bring_back(at).await;
            self.operator.act(at);
            if tick.is_multiple_of(2) {
                self.network.controller.sweep(self.network.now_millis());
                self.network.settle();
            }
            // What is late stays late, so that there is no need to look each time.
            if tick.is_multiple_of(10) {
                self.network.oracle.swept(&self.network);
                self.check_cancels(at);
                self.check_starvation();
            }
            if self.network.oracle.has_violations() || (at > STORM && self.all_ended()) {
                break;
            }
            if at > STORM + CALM {
                self.tell_what_waits();
                break;
            }
        }
        if !self.network.oracle.has_violations() {
            // Logs may still be on their way, and nodes clean up.
            let give_up = self.network.elapsed() + CLEAN_UP;
            while !self.is_settled() && self.network.elapsed() < give_up {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            self.check_end();
        }
        for node in &mut self.nodes {
            node.crash(None).await;
        }
        let (trace, digest) = self.network.take_trace();
        Outcome { violations: self.network.oracle.violations(), trace, digest }
    }

    async fn afflict(&mut self, trouble: Trouble) {
        let network = Arc::clone(&self.network);
        network.note(format!("trouble: {trouble:?}"));
        let now = Instant::now();
        match trouble {
            Trouble::Crash { node, away, within } => {
                self.nodes[node].crash(within).await;
                self.returns.insert(node, Instant::now() + away);
            }
            Trouble::Reboot { node, away, within } => {
                self.nodes[node].reboot(within).await;
                self.returns.insert(node, Instant::now() + away);
            }
            Trouble::Stop { node, cancel, away } => {
                self.nodes[node].tell(if cancel { Stop::Cancel } else { Stop::Drain });
                self.returns.insert(node, now + away);
            }
            Trouble::Controller { away } => {
                self.controller_goes = None;
                self.controller_gone(now + away);
            }
            Trouble::PlannedStop { away } => {
                if self.controller_goes.is_none() && network.controller.is_up() {
                    network.controller.begin_stop();
                    network.wake_polls();
                    self.controller_goes = Some((now + DRAIN, away));
                }
            }
            Trouble::Cut { node, requests, answers, away } => network.cut(node, requests, answers, away),
            Trouble::DiskFull { node, away } => {
                self.nodes[node].fs.set_full(true);
                self.room_at.insert(node, now + away);
            }
            Trouble::Wall { node, seconds } => {
                self.nodes[node].clock.jump(SignedDuration::from_secs(seconds));
            }
            Trouble::Slept { node, asleep } => {
                self.nodes[node].clock.wake_after(asleep);
                self.nodes[node].sandbox.clock_moved();
            }
            // What was moved while it was down it cannot know.
            Trouble::ControllerWall { .. } if !network.controller.is_up() => {}
            Trouble::ControllerWall { seconds } => {
                network.controller.jump(seconds);
                network.oracle.controller_jumped(network.controller.wall_at(network.now_millis()), seconds);
            }
            Trouble::SlowStore { away } => network.slow_store(away),
        }
    }

    /// The controller is gone until then.
    fn controller_gone(&mut self, until: Instant) {
        let network = &self.network;
        if network.controller.is_up() {
            network.oracle.controller_went(network.controller.wall_at(network.now_millis()));
        }
        network.controller.kill();
        network.wake_polls();
        self.controller_returns = Some(until);
    }

    async fn bring_back(&mut self, at: Duration) {
        let now = Instant::now();
        let calm = at >= STORM;
        if let Some((_, away)) = self.controller_goes.take_if(|(due, _)| *due <= now) {
            self.network.controller.end_stop(self.network.now_millis());
            self.network.settle();
            self.network.note("controller has stopped");
            self.controller_gone(now + away);
        }
        if self.controller_returns.take_if(|due| *due <= now || calm).is_some() {
            let network = &self.network;
            network.controller.start(network.now_millis());
            network.oracle.controller_came(network.controller.wall_at(network.now_millis()));
            network.note("controller starts");
        }
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            if self.room_at.get(&number).is_some_and(|due| *due <= now || calm) {
                self.room_at.remove(&number);
                node.fs.set_full(false);
            }
            if let Some((told, end)) = node.ended().await {
                self.network.note(&end);
                if !told {
                    self.network.oracle.violated(Invariant::AgentGaveUp, end);
                }
            }
            let due = self.returns.get(&number).is_some_and(|due| *due <= now || calm);
            if due && !node.is_up() {
                self.returns.remove(&number);
                node.start();
            }
        }
    }

    /// Once nothing is in the way, a job that somebody cancelled ends soon.
    fn check_cancels(&self, at: Duration) {
        if at < STORM + CANCEL {
            return;
        }
        let running: Vec<String> =
            self.nodes.iter().flat_map(|node| node.sandbox.running()).map(|unit| unit.to_string()).collect();
        let now = self.network.controller.wall_at(self.network.now_millis());
        let limit = SignedDuration::try_from(CANCEL).expect("half a minute is in range");
        for job in self.network.oracle.jobs() {
            let row = &job.row;
            // An attempt that its node has never heard of ends with its lease.
            let runs = running.iter().any(|unit| unit.starts_with(&format!("{}-{}-", row.uid, row.epoch)));
            if row.phase.is_held()
                && runs
                && job.cancel_seen.is_some_and(|seen| now.duration_since(seen) > limit)
            {
                self.network.oracle.violated(
                    Invariant::Cancel,
                    format_args!("{} is {} long after it was cancelled", row.name, row.phase),
                );
            }
        }
    }

    /// A job that has waited for as long as it may has an attempt.
    fn check_starvation(&self) {
        let now = self.network.controller.wall_at(self.network.now_millis());
        for job in self.network.oracle.jobs().iter().filter(|job| job.attempts.is_empty()) {
            let number = self.operator.number_of(&job.row.uid);
            let within = number.and_then(|number| self.plan.jobs[number].starts_within);
            let waits = now.duration_since(job.row.created_at).unsigned_abs();
            if within.is_some_and(|within| waits > within) {
                let why = self.explanation(job);
                self.network.oracle.violated(
                    Invariant::Starvation,
                    format_args!("{} waits for {} s: {why}", job.row.name, waits.as_secs()),
                );
            }
        }
    }

    /// Whether every job has ended or waits for good.
    fn all_ended(&self) -> bool {
        let jobs = self.network.oracle.jobs();
        self.operator.is_done()
            && jobs.iter().all(|job| job.row.phase.is_terminal() || self.waits_for_good(job))
    }

    /// Whether a job waits for a reason that does not go by itself.
    fn waits_for_good(&self, job: &KnownJob) -> bool {
        if job.row.phase != JobPhase::Queued {
            return false;
        }
        let Some(number) = self.operator.number_of(&job.row.uid) else { return false };
        let plan = &self.plan.jobs[number];
        plan.suspended == Suspended::ForEver || !self.plan.nodes.iter().any(|node| node.could_run(plan))
    }

    /// Whether every node has cleaned up and sent what it had.
    fn is_settled(&self) -> bool {
        let clean = |node: &Node| node.sandbox.units().is_empty() && node.sandbox.homes().is_empty();
        let told = |job: &KnownJob| {
            job.row.logs_complete || !matches!(job.row.phase, JobPhase::Succeeded | JobPhase::Failed)
        };
        self.nodes.iter().all(clean) && self.network.oracle.jobs().iter().all(told)
    }

    /// Nothing should be open any more.
    fn tell_what_waits(&self) {
        for job in self.network.oracle.jobs() {
            if !job.row.phase.is_terminal() && !self.waits_for_good(&job) {
                let why = self.explanation(&job);
                self.network.oracle.violated(
                    Invariant::Outcome,
                    format_args!("{} is still {} ({:?}): {why}", job.row.name, job.row.phase, job.row.reason),
                );
            }
        }
    }

    /// What the controller says about why a job does not run.
    fn explanation(&self, job: &KnownJob) -> Value {
        let path = format!("/v1/namespaces/default/jobs/{}/placement", job.row.name);
        let answer = self.network.ask_operator("GET", &path, None, &Value::Null);
        answer.map_or(Value::Null, |(_, body)| body)
    }

    /// What must hold once everything has ended.
    fn check_end(&self) {
        let oracle = &self.network.oracle;
        for node in &self.nodes {
            let (units, homes) = (node.sandbox.units(), node.sandbox.homes());
            if !units.is_empty() || !homes.is_empty() {
                oracle.violated(
                    Invariant::Leftovers,
                    format_args!("{} keeps what nobody needs: {units:?} {:?}", node.name, homes.keys()),
                );
            }
        }
        let jobs = oracle.jobs();
        if jobs.len() != self.plan.jobs.len() {
            let names: Vec<_> = jobs.iter().map(|job| job.row.name.as_str()).collect();
            oracle.violated(
                Invariant::Idempotency,
                format_args!("{} jobs became {names:?}", self.plan.jobs.len()),
            );
        }
        for job in &jobs {
            let Some(number) = self.operator.number_of(&job.row.uid) else { continue };
            let plan = &self.plan.jobs[number];
            if let Some(problem) = self.problem_of(plan, job) {
                oracle.violated(Invariant::Outcome, format_args!("{}: {problem}", job.row.name));
            }
            for attempt in job.attempts.values() {
                if let Some(problem) = self.problem_of_logs(plan, attempt) {
                    oracle.violated(Invariant::Logs, format_args!("{}: {problem}", attempt.id()));
                }
            }
        }
    }

    /// What is wrong with how a job has ended, or with why it waits.
    fn problem_of(&self, plan: &JobPlan, job: &KnownJob) -> Option<String> {
        let row = &job.row;
        let what = format!("it is {} ({:?}: {:?})", row.phase, row.reason, row.message);
        let exhausted = row.reason.as_deref() == Some("AttemptsExhausted");
        let failed = job.attempts.values().filter(|attempt| attempt.phase == AttemptPhase::Failed).count();
        let timed_out = job.attempts.values().any(|attempt| attempt.phase == AttemptPhase::TimedOut);
        let jumps = self
            .plan
            .troubles
            .iter()
            .any(|(_, trouble)| matches!(trouble, Trouble::Wall { .. } | Trouble::Slept { .. }));
        let total: u64 = plan.steps.iter().sum();
        let too_long = plan.timeout.is_some_and(|timeout| Duration::from_millis(total) >= timeout);
        let right = match row.phase {
            // A clock that was moved while the agent was away takes from the job's time, or gives to it.
            JobPhase::Succeeded => plan.code == 0 && (!too_long || jumps),
            JobPhase::Cancelled => self.operator.has_cancelled(plan.number),
            JobPhase::TimedOut => too_long || (plan.timeout.is_some() && jumps),
            JobPhase::Failed if exhausted => {
                (row.lost_attempts >= plan.lost_attempts)
                    || (row.failures > plan.failures && (failed > 0 || timed_out))
            }
            JobPhase::Failed => plan.code != 0 && plan.failures == 0 && (!too_long || jumps),
            JobPhase::Queued => {
                let explanation = self.explanation(job);
                let told = !explanation["job"].is_null();
                let items = explanation["items"].as_array().cloned().unwrap_or_default();
                let excluded =
                    items.iter().all(|item| item["fits"] == Value::Bool(false) && !item["message"].is_null());
                if !(told || (excluded && items.len() == self.plan.nodes.len())) {
                    return Some(format!("{what} and nobody can say why: {explanation}"));
                }
                true
            }
            JobPhase::PendingApproval | JobPhase::Claimed | JobPhase::Running | JobPhase::Waiting => false,
        };
        (!right).then_some(what)
    }

    /// What is wrong with the output of an attempt.
    fn problem_of_logs(&self, plan: &JobPlan, attempt: &AttemptRow) -> Option<String> {
        let (uid, epoch) = (attempt.job.clone(), attempt.epoch);
        let rows = self.network.controller.inspect(move |store| async move {
            let filter = LogFilter { epoch: Some(epoch), step: None, stream: None };
            store.logs(&uid, filter, None, 1000).await.expect("the store works")
        });
        let mut log = Vec::new();
        for row in rows {
            match row.body {
                RecordStore::Inline(bytes) => log.extend(bytes),
                RecordStore::Object { .. } | RecordStore::Json(_) | RecordStore::None => {}
            }
        }
        let log = String::from_utf8_lossy(&log);
        let wanted = plan.output();
        let whole = match attempt.phase {
            AttemptPhase::Succeeded => true,
            AttemptPhase::Failed => attempt.reason.as_deref() == Some("StepFailed") && plan.code != 0,
            AttemptPhase::Claimed
            | AttemptPhase::Running
            | AttemptPhase::Cancelled
            | AttemptPhase::TimedOut
            | AttemptPhase::Lost
            | AttemptPhase::Released => false,
        };
        if attempt.last_sequence.is_some_and(|last| last != attempt.received) {
            return Some(format!("{} of {:?} records are there", attempt.received, attempt.last_sequence));
        }
        // What a fenced or rebooted node has not sent may be missing, at the end only.
        let right = if whole { log == wanted } else { wanted.starts_with(&*log) };
        (!right).then(|| format!("it wrote {log:?}, not {wanted:?}"))
    }
}
