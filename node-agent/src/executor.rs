//! Executes attempts: one task each, from the first look at the job to the removal of its last trace.
//!
//! ```text
//! policy ─► plugins validate ─► inputs ─► workspace ─► Started ─► step … step ─► artifacts ─► Terminal ─► clean up ─► ledger
//!                                                       │
//!            for each step: prepare ─► StepStarted ─► start ─► wait ─► StepEnded
//!                                                       └─ output ─► Log records
//! ```
//!
//! *Guarantees*: no step is run twice. A unit exists in the driver's inventory from its preparation until its end is
//! durable in the outbox, so after a crash every step is found as ended (by its record), running or ended (by its
//! unit, which is taken up), or not begun. After the host was booted again an attempt that had started is lost.
//! Exactly one terminal record is written, after which nothing of the attempt runs. All output is in the outbox before
//! it. Of an attempt that came by the Worker API the result is kept too, before its entry in the ledger goes.
//!
//! *Time*: the supervisor of a unit watches step timeout and lease; this task watches the lease too, stops units when
//! told, and judges by the unit's own record of how it ended.

mod artifacts;
pub(crate) mod egress;
pub(crate) mod environment;
mod facts;
mod guard;
mod images;
pub(crate) mod inputs;
pub(crate) mod limits;
pub(crate) mod output;
pub(crate) mod policy;
mod pump;
mod secrets;
pub(crate) mod service;
mod step;
mod system;
mod told;
mod verdict;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_crds::protocol::{
    Assignment, AttemptId, RecordBody, SandboxCapability, SandboxRules, StepEnded, Terminal, TerminalPhase,
};
use windlass_crds::sandbox_job::Step;
use windlass_sandbox::driver::UnitPhase;
use windlass_sandbox::engine::{Engines, Image};
use windlass_sandbox::image::Held;
use windlass_sandbox::{DiskQuota, Driver, Error as SandboxError, Images, Mount, UnitId};

use self::egress::Egress;
use self::inputs::InputCache;
use self::step::StepRun;
use self::verdict::{Verdict, describe, plugin_reason, sandbox_verdict, terminal};
pub(crate) use self::verdict::{refusal_record, release_record};
use crate::artifacts::Spool;
use crate::backoff::Backoff;
use crate::client::ControllerClient;
use crate::clock::Clock;
use crate::config_sync::InForce;
use crate::facts::{Collector, FactsOutbox};
use crate::held::{Control, HeldAttempts, StopCause};
use crate::ids::IdSource;
use crate::inference::InferenceHandle;
use crate::ledger::{Entry, Ledger};
use crate::mask::Mask;
use crate::names::{attempt_name, unit_id};
use crate::outbox::{NewRecord, Outbox, Progress};
use crate::plugins::Registry;
use crate::session::SessionHandle;
use crate::vault::NodeKey;
use crate::watch;
use crate::worker_api::runs::{End, Runs};
use crate::workspaces::{Content, Home, Placement, Workspaces};

/// How long a job may take that does not say.
const JOB_TIMEOUT: Duration = Duration::from_secs(3600);
/// What must be left of a lease before anything is begun: enough to set a sandbox up and to hear from the controller.
/// Of shorter leases a quarter.
const LEAST_LEASE: Duration = Duration::from_secs(5);
/// How long a lease that leaves too little may take to be renewed. A controller that answers does so at once.
const LEASE_WAIT: Duration = Duration::from_secs(20);
/// Tries to fetch an input before the attempt is given back.
const INPUT_TRIES: u32 = 4;
/// Tries to remove what an attempt has left; what stays is removed at the next start.
const CLEAN_UP_TRIES: u32 = 3;

/// What every attempt needs.
pub(crate) struct ExecutorParts {
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) held: HeldAttempts,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) node_key: NodeKey,
    pub(crate) workspaces: Arc<dyn Workspaces>,
    pub(crate) inputs: InputCache,
    pub(crate) artifacts: Arc<Spool>,
    pub(crate) in_force: InForce,
    pub(crate) sandbox: SandboxCapability,
    pub(crate) plugins: Registry,
    pub(crate) egress: Egress,
    pub(crate) engines: Engines,
    pub(crate) services: service::Turns,
    pub(crate) images: Option<Images>,
    pub(crate) inference: InferenceHandle,
    pub(crate) facts: Arc<Collector>,
    pub(crate) facts_outbox: Arc<FactsOutbox>,
    /// Asks the lease keeper for a heartbeat now.
    pub(crate) hurry: Arc<Notify>,
    /// Where results are kept of attempts that came by the Worker API.
    pub(crate) runs: Runs,
}

/// What was found of an attempt after a restart.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) progress: Progress,
    /// Its home, if it had started and still has one.
    pub(crate) home: Option<Home>,
    /// Its units by the driver's inventory.
    pub(crate) units: BTreeMap<UnitId, UnitPhase>,
    /// The host was booted since the attempt was taken on.
    pub(crate) rebooted: bool,
}

/// The task of one attempt.
pub(crate) struct AttemptTask {
    parts: Arc<ExecutorParts>,
    entry: Entry,
    name: String,
    control: watch::Receiver<Control>,
    recovered: Recovered,
    rules: SandboxRules,
    /// How long the job may take in all.
    job_timeout: Duration,
    /// When the attempt started, on `CLOCK_BOOTTIME`; `None` before it has.
    started: Option<Duration>,
    /// The same by the wall clock.
    started_at: Option<Timestamp>,
    mounts: Vec<Mount>,
    /// Where it lives, once it does.
    home: Option<Home>,
    /// The rule of the node, as it is now, that keeps further steps of a taken up attempt from being started.
    refusal: Option<policy::Refusal>,
    /// Records that go out with the next that must be durable.
    pending: Vec<NewRecord>,
    /// Takes the attempt's secrets out of what leaves the node.
    mask: Mask,
    /// The images that are known to be on the node, by their full names.
    images: BTreeMap<String, Image>,
    /// The images that native steps see as their system, by what the job calls them. They stay for as long as the attempt.
    systems: BTreeMap<String, Held>,
}

impl AttemptTask {
    /// A task for an attempt that is in the ledger and in the table of held ones.
    pub(crate) fn new(
        parts: Arc<ExecutorParts>,
        entry: Entry,
        control: watch::Receiver<Control>,
        recovered: Recovered,
    ) -> Self {
        let name = attempt_name(&entry.assignment.attempt);
        let mask = secrets::mask(&entry.assignment.secrets);
        let started = recovered.progress.started_at.map(|at| {
            // The wall clock carries it over the restart; it cannot have started in the future.
            let ago = Duration::try_from(parts.clock.now().duration_since(at)).unwrap_or_default();
            parts.clock.boottime().saturating_sub(ago)
        });
        let recovered_started_at = recovered.progress.started_at;
        let mut task = Self {
            parts,
            entry,
            name,
            control,
            recovered,
            rules: SandboxRules::default(),
            job_timeout: JOB_TIMEOUT,
            started,
            started_at: recovered_started_at,
            mounts: Vec::new(),
            home: None,
            refusal: None,
            pending: Vec::new(),
            mask,
            images: BTreeMap::new(),
            systems: BTreeMap::new(),
        };
        task.take_rules();
        task
    }

    /// Executes the attempt, or what a restart left of it, to its end. Returns when nothing of it is left.
    pub(crate) async fn run(mut self) -> AttemptId {
        let attempt = self.entry.assignment.attempt.clone();
        let ended = if let Some(terminal) = self.recovered.progress.terminal.take() {
            terminal
        } else {
            let verdict = match self.execute().await {
                Ok(verdict) | Err(verdict) => verdict,
            };
            let message = verdict.message.clone().map(|message| self.mask.text(message));
            let verdict = Verdict { message, ..verdict };
            tracing::info!(
                phase = %verdict.phase,
                reason = verdict.reason,
                message = verdict.message.as_deref().unwrap_or_default(),
                "attempt ended"
            );
            self.keep_artifacts().await;
            let terminal = terminal(verdict);
            let at = self.parts.clock.now();
            self.pending.push(NewRecord { at, body: RecordBody::Terminal(terminal.clone()), mark: None });
            // Before it can be sent, so that its acknowledgement finds the note.
            self.parts.held.ending(&attempt);
            self.commit().await;
            terminal
        };
        self.parts.held.ended(&attempt);
        // What tells of them is durable.
        self.parts.artifacts.release(&attempt).await;
        if self.entry.pushed {
            self.keep_result(ended).await;
        }
        self.clean_up().await;
        self.parts.held.remove(&attempt);
        attempt
    }

    /// Keeps how the attempt ended for the one who gave it to this node.
    async fn keep_result(&self, ended: Terminal) {
        let Terminal { phase, reason, message, exit_code, last_sequence: _ } = ended;
        let (started_at, ended_at) = (self.started_at, self.parts.clock.now());
        let end = End { phase, reason, message, exit_code, started_at, ended_at };
        self.parts.runs.ended(self.attempt(), end).await;
    }

    const fn assignment(&self) -> &Assignment {
        &self.entry.assignment
    }

    const fn attempt(&self) -> &AttemptId {
        &self.entry.assignment.attempt
    }

    fn take_rules(&mut self) {
        let mut timeout = self.assignment().spec.timeout.map_or(JOB_TIMEOUT, windlass_crds::Span::get);
        if let Some(applied) = self.parts.in_force.get() {
            self.rules = applied.configuration.policy.sandbox.clone();
            if let Some(most) = applied.configuration.constraints.max_job_timeout_seconds {
                timeout = timeout.min(Duration::from_secs(most));
            }
        }
        self.job_timeout = timeout;
    }

    async fn execute(&mut self) -> Result<Verdict, Verdict> {
        let steps = steps(self.assignment());
        if self.recovered.rebooted {
            return Err(if self.recovered.progress.started_at.is_some() {
                Verdict::lost("NodeRebooted", "the node was booted while the job ran")
            } else {
                Verdict::released("NodeRebooted", "the node was booted before the job started")
            });
        }
        if self.entry.sealed.is_some() {
            return Err(secrets::lost(self.recovered.progress.started_at.is_some()));
        }
        let home = match self.recovered.progress.started_at {
            Some(_) => self.take_up()?,
            None => self.begin(&steps).await?,
        };
        self.home = Some(home.clone());
        let mut last_exit_code = None;
        for (index, step) in (0..).zip(&steps) {
            let before = self.recovered.progress.steps.remove(&index).unwrap_or_default();
            let ended = match before.ended {
                Some(ended) => ended,
                None => StepRun::new(self, &home, index, step, before).execute().await?,
            };
            last_exit_code = ended.exit_code;
            if !ended.succeeded {
                self.judge_failure(step, &ended)?;
            }
        }
        // A job whose last step failed and may fail has succeeded all the same.
        let exit_code = last_exit_code.map(|_| 0);
        Ok(Verdict { phase: TerminalPhase::Succeeded, reason: "Completed", message: None, exit_code })
    }

    /// What a failed step means for the attempt.
    fn judge_failure(&self, step: &Step, ended: &StepEnded) -> Result<(), Verdict> {
        let how = ended.message.clone().unwrap_or_else(|| ended.reason.clone());
        let with_code = |verdict: Verdict| Verdict { exit_code: ended.exit_code, ..verdict };
        match ended.reason.as_str() {
            "LeaseExpired" => Err(Verdict::lost("LeaseExpired", "the lease ended while the job ran")),
            "SupervisorLost" => Err(Verdict::lost("SupervisorLost", how)),
            "EngineLost" => Err(Verdict::lost("EngineLost", how)),
            "SetupFailed" => Err(Verdict::failed("SandboxFailed", how)),
            // Whoever tries that is not to go on, whatever the step says of errors.
            "SeccompDenied" => {
                Err(with_code(Verdict::failed("SeccompDenied", format!("step `{}`: {how}", step.name))))
            }
            "Cancelled" => Err(self.stopped().unwrap_or_else(|| {
                // The order was given before a restart that has forgotten it; only a cancel or a stop leads here.
                Verdict::lost("AgentStopped", "the job was stopped on the node")
            })),
            "Timeout" if self.left_of_job().is_zero() => Err(self.job_over()),
            _ if step.continue_on_error => Ok(()),
            _ => Err(with_code(Verdict::failed("StepFailed", format!("step `{}`: {how}", step.name)))),
        }
    }

    /// Everything before the first step.
    async fn begin(&mut self, steps: &[Step]) -> Result<Home, Verdict> {
        self.lease_in_hand().await?;
        if self.parts.in_force.get().is_none() {
            return Err(Verdict::released("NoConfiguration", "the node has no configuration in force"));
        }
        self.take_rules();
        let resolve = |path: &Path| std::fs::canonicalize(path);
        let host_paths = policy::check(self.assignment(), &self.rules, &self.parts.sandbox, &resolve)
            .map_err(|refusal| Verdict::failed("PolicyRefused", refusal.to_string()))?;
        for step in steps {
            let plugin = self.parts.plugins.for_step(step);
            plugin
                .and_then(|plugin| plugin.validate(step))
                .map_err(|error| Verdict::failed(plugin_reason(&error), describe(&error)))?;
        }
        if self.assignment().spec.sandbox.inference
            && let Some(why) = self.parts.inference.unusable()
        {
            return Err(Verdict::released("InferenceUnavailable", why));
        }
        secrets::check(self.assignment(), steps)?;
        self.mounts = self.host_mounts(host_paths);
        self.fetch_images(steps).await?;
        let (placements, inputs) = self.placements().await?;
        // What an earlier try prepared and did not start.
        for unit in std::mem::take(&mut self.recovered.units).into_keys() {
            self.parts.driver.cleanup(&unit).await.map_err(|error| sandbox_verdict(&error, false))?;
        }
        let lease_until = self.control.borrow().lease_until;
        let home = self
            .parts
            .workspaces
            .create(&self.name, placements, self.quota(), lease_until)
            .await
            .map_err(|error| sandbox_verdict(&error, false))?;
        drop(inputs);
        self.keep_lease(&home)?;
        Ok(home)
    }

    /// Goes back to an attempt that had started.
    fn take_up(&mut self) -> Result<Home, Verdict> {
        let Some(home) = self.recovered.home.take() else {
            return Err(Verdict::lost(
                "WorkspaceLost",
                "the job's workspace was gone when the agent came back",
            ));
        };
        let resolve = |path: &Path| std::fs::canonicalize(path);
        match policy::check(self.assignment(), &self.rules, &self.parts.sandbox, &resolve) {
            Ok(host_paths) => self.mounts = self.host_mounts(host_paths),
            // A step that runs was allowed when it began; one that is yet to be started is not.
            Err(refusal) => self.refusal = Some(refusal),
        }
        self.keep_lease(&home)?;
        Ok(home)
    }

    /// The quota of the workspace. A limit that somebody insists on is worth the time that exactness takes.
    fn quota(&self) -> Option<DiskQuota> {
        let limits = limits::resolve(&self.assignment().spec.sandbox.resources, &self.rules);
        limits.disk_bytes.map(|limit| match limit {
            limits::Effective::Named(bytes) => DiskQuota { bytes, exact: true },
            limits::Effective::Default(bytes) => DiskQuota { bytes, exact: false },
        })
    }

    fn keep_lease(&self, home: &Home) -> Result<(), Verdict> {
        let kept = self.parts.held.write_lease_with(self.attempt(), &home.lease);
        kept.map_err(|error| Verdict::released("DiskFull", format!("the lease cannot be written: {error}")))
    }

    fn host_mounts(&self, resolved: Vec<std::path::PathBuf>) -> Vec<Mount> {
        let inputs = self.assignment().spec.workspace.inputs.iter();
        let declared = inputs.filter_map(|input| Some((input, input.host_path.as_ref()?)));
        declared
            .zip(resolved)
            .map(|((input, host_path), source)| Mount {
                source,
                target: input.path.clone(),
                read_only: host_path.read_only,
            })
            .collect()
    }

    /// What is to be placed in the workspace, with uploads fetched.
    async fn placements(&self) -> Result<(Vec<Placement>, Vec<inputs::Held>), Verdict> {
        let mut placements = Vec::new();
        let mut held = Vec::new();
        let limits = limits::resolve(&self.assignment().spec.sandbox.resources, &self.rules);
        let disk_bytes = limits.disk_bytes.map(limits::Effective::value);
        for input in &self.assignment().spec.workspace.inputs {
            let content = if let Some(text) = &input.inline {
                Content::Text(text.clone())
            } else if let Some(upload) = &input.upload {
                let file = self.fetch(&upload.digest).await?;
                let path = file.path().to_owned();
                held.push(file);
                if upload.unpack { Content::Archive(path) } else { Content::File(path) }
            } else {
                continue;
            };
            let (path, executable) = (input.path.clone(), input.executable);
            placements.push(Placement { path, content, executable, disk_bytes });
        }
        Ok((placements, held))
    }

    async fn fetch(&self, digest: &str) -> Result<inputs::Held, Verdict> {
        let mut backoff = Backoff::for_controller();
        let mut control = self.control.clone();
        let mut tries = 1;
        loop {
            let get = async {
                let session = self.parts.session.ready().await;
                (self.parts.inputs.get(digest, &*self.parts.client, &session).await, session)
            };
            // Cancel-safe: a fetch that is dropped leaves a file that is removed at the next start.
            let (got, session) = tokio::select! {
                biased;
                verdict = self.stop_or_lease_end(&mut control) => return Err(verdict),
                got = get => got,
            };
            let error = match got {
                Ok(held) => return Ok(held),
                Err(error) => error,
            };
            if let inputs::Error::Fetch { source, .. } = &error
                && source.is_unauthorized()
            {
                self.parts.session.expired(&session);
            }
            let message = crate::error_chain(&error);
            if !error.is_transient() {
                return Err(Verdict::failed("InputMissing", message));
            }
            if tries == INPUT_TRIES && matches!(error, inputs::Error::Mismatch { .. }) {
                // It comes damaged each time, and would on every other node.
                return Err(Verdict::failed("InputDamaged", message));
            }
            if tries == INPUT_TRIES {
                return Err(Verdict::released("InputUnavailable", message));
            }
            tries += 1;
            tokio::time::sleep(backoff.next(&*self.parts.ids)).await;
        }
    }

    /// Returns the verdict when the attempt is told to stop or its lease ends, while nothing of it runs.
    async fn stop_or_lease_end(&self, control: &mut watch::Receiver<Control>) -> Verdict {
        loop {
            let Control { stop: _, lease_until } = *control.borrow_and_update();
            if let Some(verdict) = self.stopped() {
                return verdict;
            }
            let left = lease_until.saturating_sub(self.parts.clock.boottime());
            if left.is_zero() {
                return self.lease_over();
            }
            // Cancel-safe: both only look.
            tokio::select! {
                biased;
                changed = control.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// The verdict when the time of the whole job is over.
    fn job_over(&self) -> Verdict {
        let message = format!("the job took longer than {} s", self.job_timeout.as_secs_f64());
        Verdict::new(TerminalPhase::TimedOut, "JobTimeout", message)
    }

    fn lease_over(&self) -> Verdict {
        if self.started.is_some() {
            Verdict::lost("LeaseExpired", "the lease ended while the job ran")
        } else {
            Verdict::released("LeaseExpired", "the lease ended before the job started")
        }
    }

    /// The verdict when the attempt was told to stop and nothing of it runs.
    fn stopped(&self) -> Option<Verdict> {
        Some(match self.control.borrow().stop? {
            StopCause::Cancelled => {
                Verdict::new(TerminalPhase::Cancelled, "CancelRequested", "the job was cancelled")
            }
            StopCause::AgentStopped if self.started.is_some() => {
                Verdict::lost("AgentStopped", "the agent was told to stop")
            }
            StopCause::AgentStopped => Verdict::released("AgentStopped", "the agent was told to stop"),
            StopCause::Fenced => Verdict::lost("Fenced", "the job was given to another node"),
        })
    }

    /// Returns when enough is left of the lease to begin something; has it renewed if need be.
    async fn lease_in_hand(&mut self) -> Result<(), Verdict> {
        let lease = Duration::from_secs(self.assignment().lease_seconds);
        let least = LEAST_LEASE.min(lease / 4);
        let give_up = Instant::now() + LEASE_WAIT;
        loop {
            let Control { stop: _, lease_until } = *self.control.borrow_and_update();
            if let Some(verdict) = self.stopped() {
                return Err(verdict);
            }
            let left = lease_until.saturating_sub(self.parts.clock.boottime());
            if left >= least {
                // Long polls eat into the first lease, which could end before the next beat.
                if left < lease * 3 / 5 {
                    self.parts.hurry.notify_one();
                }
                return Ok(());
            }
            self.parts.hurry.notify_one();
            // Cancel-safe: both only look.
            tokio::select! {
                biased;
                changed = self.control.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = tokio::time::sleep_until(give_up) => return Err(self.lease_over()),
            }
        }
    }

    /// What is left of the job's time.
    fn left_of_job(&self) -> Duration {
        let now = self.parts.clock.boottime();
        let elapsed = self.started.map_or(Duration::ZERO, |started| now.saturating_sub(started));
        self.job_timeout.saturating_sub(elapsed)
    }

    fn record(&mut self, body: RecordBody) {
        self.record_masked(self.mask.record(body));
    }

    /// Records what is without secrets.
    fn record_masked(&mut self, body: RecordBody) {
        let at = self.parts.clock.now();
        self.pending.push(NewRecord { at, body, mark: None });
    }

    fn event(&mut self, level: &str, reason: &str, message: String) {
        self.event_with(level, reason, message, None);
    }

    fn event_with(&mut self, level: &str, reason: &str, message: String, data: Option<serde_json::Value>) {
        let (level, reason) = (level.to_owned(), reason.to_owned());
        self.record(RecordBody::Event { level, reason, message, data });
    }

    /// Makes everything that was recorded durable.
    async fn commit(&mut self) {
        let records = std::mem::take(&mut self.pending);
        let attempt = self.attempt().clone();
        self.parts.outbox.append(&attempt, records).await;
    }

    /// Removes what is left of an attempt whose terminal record is durable: units, home, ledger entry, progress, in
    /// this order, so that a crash in between is taken up here again.
    async fn clean_up(&mut self) {
        let attempt = self.attempt().clone();
        let count = u32::try_from(steps(self.assignment()).len()).unwrap_or(u32::MAX);
        let mut clean = true;
        for unit in (0..count).map(|step| unit_id(&attempt, step)) {
            clean &= self.clean_up_unit(&unit).await;
        }
        // A program that still runs keeps its workspace.
        if clean {
            let remove = || self.parts.workspaces.remove(&self.name);
            clean = tries(CLEAN_UP_TRIES, remove, "the workspace cannot be removed").await;
        }
        if !clean {
            return;
        }
        match self.parts.ledger.remove(&attempt).await {
            Ok(()) => self.parts.outbox.forget(&attempt),
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "what is left of an attempt goes at the next start");
            }
        }
    }

    /// Removes a unit, ending it first if it runs against expectation.
    async fn clean_up_unit(&self, unit: &UnitId) -> bool {
        let driver = &self.parts.driver;
        let mut result = driver.cleanup(unit).await;
        if let Err(SandboxError::StillRunning { .. }) = result {
            end_unit(&**driver, unit).await;
            result = driver.cleanup(unit).await;
        }
        match result {
            Ok(()) | Err(SandboxError::NotFound { .. }) => true,
            Err(_) => {
                let remove = || driver.cleanup(unit);
                tries(CLEAN_UP_TRIES, remove, "a unit cannot be removed").await
            }
        }
    }
}

/// Kills a unit and waits for its end.
pub(crate) async fn end_unit(driver: &dyn Driver, unit: &UnitId) {
    use windlass_sandbox::{Stop, StopReason};
    let stop = Stop { grace: Duration::ZERO, reason: StopReason::Cancelled };
    let ended = match driver.signal(unit, stop).await {
        Ok(()) => driver.wait(unit).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::warn!(unit = %unit, error = %crate::error_chain(&error), "a unit cannot be ended");
    }
}

/// Tries something a few times, a second apart.
async fn tries<F>(count: u32, mut attempt: impl FnMut() -> F, trouble: &'static str) -> bool
where
    F: Future<Output = Result<(), SandboxError>>,
{
    for number in 1..=count {
        match attempt().await {
            Ok(()) => return true,
            Err(error) if number == count => {
                tracing::warn!(error = %crate::error_chain(&error), "{trouble}");
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
    false
}

/// The steps of a job, its shorthand written out.
pub(crate) fn steps(assignment: &Assignment) -> Vec<Step> {
    let spec = &assignment.spec;
    if spec.command.is_none() && spec.script.is_none() {
        return spec.steps.clone();
    }
    let shorthand = Step {
        name: "main".to_owned(),
        command: spec.command.clone(),
        script: spec.script.clone(),
        secrets: spec.secrets.clone(),
        ..Step::default()
    };
    let mut steps = vec![shorthand];
    steps.extend(spec.steps.iter().cloned());
    steps
}
