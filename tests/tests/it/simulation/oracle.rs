//! The oracle: what must hold, checked at every step.
//!
//! ```text
//! a program starts ──────────► nothing else of its job runs; the host has room
//! the store has changed ─────► epochs, completions, retries, leases, capacity, acknowledged records
//! a report is answered ──────► what was acknowledged is remembered, and found again in the store
//! a sweep has ended ─────────► nobody holds what its lease does not cover
//! ```
//!
//! It knows the truth of both sides: what really runs in the sandboxes, and what the store says.

mod job;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use windlass_agent::testing::FakeSandbox;
use windlass_crds::protocol::{AttemptId, HeartbeatResponse, Outcome, Record, ReportResponse};
use windlass_store::{AttemptRow, Change, JobRow};

pub(crate) use self::job::KnownJob;
use super::network::Network;
use super::plan::{NodePlan, Plan};

/// A lease, by the design.
const LEASE: SignedDuration = SignedDuration::from_secs(25);
/// The lease, in seconds, that a planned stop of the controller grants.
const PLANNED: u64 = 15 * 60;
/// How long after the end of its lease an attempt may still be held: a sweep each second, and a second to spare.
const SWEEP: SignedDuration = SignedDuration::from_secs(2);

/// What must hold. The name is what a failing seed and the mutants' table show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Invariant {
    /// At most one attempt of a job is live, and it is the newest.
    OneLiveEpoch,
    /// Nothing of an attempt runs once the store has ended it, or another one starts.
    ProcessOutlivesAttempt,
    /// No step is run twice.
    StepRunTwice,
    /// What has ended stays as it ended.
    CompletionIsFinal,
    /// Every acknowledged record is in the store, once, as it was sent.
    AcknowledgedIsStored,
    /// Output is complete and in order.
    Logs,
    /// No node is given more than it has.
    Capacity,
    /// A retry is used up only by an attempt that started, and was not lost while the controller was away.
    Retries,
    /// Only the run of an agent that has registered last is served.
    SecondBoot,
    /// A controller that is told to stop first grants leases that outlast its absence.
    PlannedStop,
    /// Nobody is judged before the lease has ended, nor by a controller that has just come up.
    Patience,
    /// What nobody holds is taken back in time.
    Recovery,
    /// A cancelled job ends soon.
    Cancel,
    /// One request is one job.
    Idempotency,
    /// A job that others pass over starts in time all the same.
    Starvation,
    /// Every job ends as it must, or waits for a reason that can be told.
    Outcome,
    /// An agent goes on until it is told to stop.
    AgentGaveUp,
    /// Nodes clean up.
    Leftovers,
}

/// The oracle of a simulation.
pub(crate) struct Oracle {
    nodes: Vec<NodePlan>,
    /// Protects what is known; no call to the controller is made under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    violations: Vec<String>,
    sandboxes: Vec<FakeSandbox>,
    jobs: BTreeMap<String, KnownJob>,
    /// The unit's job, epoch and step.
    started: BTreeSet<(String, u64, u32)>,
    /// A hash of each record that was acknowledged.
    acknowledged: BTreeMap<AttemptId, BTreeMap<u64, u64>>,
    controller: Presence,
    /// The run of each node's agent that has registered last.
    registered: BTreeMap<String, String>,
}

/// When the controller was there, by its own clock.
#[derive(Default)]
struct Presence {
    up_since: Timestamp,
    /// From going to coming, and one lease beyond.
    away: Vec<(Timestamp, Timestamp)>,
    gone: Option<Timestamp>,
    /// The end of the last jump of its clock.
    jumped: Option<Timestamp>,
}

/// A job and its attempts as the store has them.
pub(crate) type Seen = (JobRow, Vec<AttemptRow>);

impl Oracle {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { nodes: plan.nodes.clone(), state: Mutex::default() }
    }

    /// Watches a sandbox, in the order of the nodes.
    pub(crate) fn watch(&self, sandbox: FakeSandbox) {
        self.state().sandboxes.push(sandbox);
    }

    pub(crate) fn violated(&self, invariant: Invariant, what: impl std::fmt::Display) {
        self.state().violated(invariant, what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub(crate) fn has_violations(&self) -> bool {
        !self.state().violations.is_empty()
    }

    pub(crate) fn jobs(&self) -> Vec<KnownJob> {
        self.state().jobs.values().cloned().collect()
    }

    pub(crate) fn controller_came(&self, now: Timestamp) {
        let presence = &mut self.state().controller;
        presence.up_since = now;
        if let Some(gone) = presence.gone.take() {
            presence.away.push((gone, now));
        }
    }

    pub(crate) fn controller_went(&self, now: Timestamp) {
        self.state().controller.gone = Some(now);
    }

    /// The controller's clock is at `now` after a jump of so many seconds. When it was away is told by the new time.
    pub(crate) fn controller_jumped(&self, now: Timestamp, seconds: i64) {
        let presence = &mut self.state().controller;
        presence.jumped = Some(now);
        let by = SignedDuration::from_secs(seconds);
        for (from, to) in &mut presence.away {
            (*from, *to) = (*from + by, *to + by);
        }
    }

    /// The controller has registered a run of an agent.
    pub(crate) fn registered(&self, node: &str, boot: &str) {
        self.state().registered.insert(node.to_owned(), boot.to_owned());
    }

    /// The controller has answered a claim or a heartbeat.
    pub(crate) fn served(&self, node: &str, boot: &str) {
        let mut state = self.state();
        let registered = state.registered.get(node).cloned();
        if registered.as_deref() != Some(boot) {
            state.violated(
                Invariant::SecondBoot,
                format_args!("run {boot} of {node} is served, and {registered:?} has registered"),
            );
        }
    }

    /// A heartbeat was answered; what it grants must outlast a controller that is about to go.
    pub(crate) fn granted(&self, network: &Network, node: &str, answer: &HeartbeatResponse) {
        if !network.controller.is_stopping() {
            return;
        }
        for renewal in answer.renewed.iter().filter(|renewal| renewal.lease_seconds < PLANNED) {
            self.violated(
                Invariant::PlannedStop,
                format_args!("{node} is granted {} s for {}", renewal.lease_seconds, renewal.attempt),
            );
        }
    }

    /// A program has begun to run on a node.
    pub(crate) fn started(&self, network: &Network, node: usize, unit: &str) {
        network.note(format!("n{node} runs {unit}"));
        let (job, epoch, step) = parts(unit);
        let mut state = self.state();
        if !state.started.insert((job.clone(), epoch, step)) {
            state.violated(Invariant::StepRunTwice, format_args!("{unit} was started again on n{node}"));
        }
        let running = state.running();
        for (other, units) in running.iter().enumerate() {
            for other_unit in units.iter().filter(|other| *other != unit) {
                if parts(other_unit).0 == job {
                    state.violated(
                        Invariant::ProcessOutlivesAttempt,
                        format_args!("{unit} starts on n{node} while {other_unit} runs on n{other}"),
                    );
                }
            }
        }
        let here = &running[node];
        if here.len() > self.nodes[node].slots as usize {
            let slots = self.nodes[node].slots;
            state.violated(
                Invariant::Capacity,
                format_args!("n{node} runs {} units in {slots} slots", here.len()),
            );
        }
    }

    /// A report was answered, whether anybody hears it or not.
    pub(crate) fn answered(&self, network: &Network, records: &[Record], answer: &ReportResponse) {
        let mut state = self.state();
        for (record, result) in records.iter().zip(&answer.results) {
            match result.outcome {
                Outcome::Accepted | Outcome::Duplicate | Outcome::Superseded => {}
                Outcome::Rejected => {
                    network.note(format!("{} record {} is rejected", record.attempt, record.sequence));
                    continue;
                }
            }
            let mut hasher = DefaultHasher::new();
            serde_json::to_string(record).expect("a record is plain data").hash(&mut hasher);
            let hash = hasher.finish();
            let known = state.acknowledged.entry(record.attempt.clone()).or_default();
            if *known.entry(record.sequence).or_insert(hash) != hash {
                state.violated(
                    Invariant::AcknowledgedIsStored,
                    format_args!(
                        "record {} of {} was sent twice with different content",
                        record.sequence, record.attempt
                    ),
                );
            }
        }
    }

    /// Looks at every job that the changes are about.
    pub(crate) fn examine(&self, network: &Network, changes: &[Change]) {
        let uids: BTreeSet<_> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Job { uid } | Change::Records { uid } => Some(uid.clone()),
                Change::Any => unreachable!("a store in memory always says what has changed"),
                Change::Queued
                | Change::Node { .. }
                | Change::Freed { .. }
                | Change::Event { .. }
                | Change::Template { .. } => None,
            })
            .collect();
        if uids.is_empty() {
            return;
        }
        let seen = network.controller.inspect(|store| async move {
            let uids: Vec<_> = uids.into_iter().collect();
            let mut seen: Vec<Seen> = Vec::new();
            for job in store.get_jobs(&uids).await.expect("the store works") {
                let attempts = store.attempts(&job.uid).await.expect("the store works");
                seen.push((job, attempts));
            }
            seen.sort_by(|one, other| one.0.uid.cmp(&other.0.uid));
            seen
        });
        let now = network.controller.wall_at(network.now_millis());
        let mut state = self.state();
        for (job, attempts) in seen {
            let told = state.take_over(now, job, attempts);
            told.into_iter().for_each(|line| network.note(line));
        }
        state.check_capacity(&self.nodes);
    }

    /// After a sweep: nobody holds what its lease does not cover.
    pub(crate) fn swept(&self, network: &Network) {
        if !network.controller.is_up() {
            return;
        }
        let now = network.controller.wall_at(network.now_millis());
        {
            let state = self.state();
            let settled = state.controller.up_since.max(state.controller.jumped.unwrap_or(Timestamp::MIN));
            if now.duration_since(settled) <= LEASE + SWEEP {
                return;
            }
        }
        let late = network.controller.inspect(move |store| async move {
            store.expired_leases(now - SWEEP, 10).await.expect("the store works").rows
        });
        for (job, attempt) in late {
            let id = attempt.id();
            let over = now.duration_since(attempt.lease_until);
            self.violated(
                Invariant::Recovery,
                format_args!("{} still holds {id}, {over} after its lease", job.name),
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn violated(&mut self, invariant: Invariant, what: impl std::fmt::Display) {
        let line = format!("invariant {invariant}: {what}");
        // A violation that is still there a second later is no new one.
        if !self.violations.contains(&line) {
            self.violations.push(line);
        }
    }

    /// The units that really run, by node.
    fn running(&self) -> Vec<Vec<String>> {
        let names = |sandbox: &FakeSandbox| sandbox.running().iter().map(ToString::to_string).collect();
        self.sandboxes.iter().map(names).collect()
    }

    /// The sums over all live attempts of a node, against what it has.
    fn check_capacity(&mut self, nodes: &[NodePlan]) {
        for (number, node) in nodes.iter().enumerate() {
            let name = format!("n{number}");
            let live = self.jobs.values().flat_map(|job| job.attempts.values());
            let live: Vec<_> =
                live.filter(|attempt| attempt.phase.is_live() && attempt.node == name).collect();
            let cpu: u64 = live.iter().map(|attempt| attempt.reserve.cpu_millis).sum();
            let memory: u64 = live.iter().map(|attempt| attempt.reserve.memory_bytes).sum();
            let slots = live.len();
            if slots > node.slots as usize || cpu > u64::from(node.cores) * 1000 || memory > node.ram_mb << 20
            {
                self.violated(
                    Invariant::Capacity,
                    format_args!(
                        "{name} was given {slots} attempts with {cpu}m and {memory} bytes; it is {node:?}"
                    ),
                );
            }
        }
    }

    /// Whether a lease that ended then may have ended because the controller was away.
    fn was_away(&self, lease_until: Timestamp) -> bool {
        self.controller.away.iter().any(|(from, to)| (*from..=*to).contains(&lease_until))
    }
}

/// The job, epoch and step in the name of a unit.
fn parts(unit: &str) -> (String, u64, u32) {
    let mut parts = unit.rsplitn(3, '-');
    let step = parts.next().and_then(|step| step.parse().ok());
    let epoch = parts.next().and_then(|epoch| epoch.parse().ok());
    let named = parts.next().zip(epoch).zip(step);
    let ((job, epoch), step) = named.expect("units are named after attempts");
    (job.to_owned(), epoch, step)
}

/// How long a job that somebody cancelled may still be held when nothing is in the way: a beat, the grace after TERM,
/// and time to report.
pub(crate) const CANCEL: Duration = Duration::from_secs(30);
