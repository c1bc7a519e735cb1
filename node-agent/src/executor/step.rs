//! One step of an attempt: its program in the sandbox, from preparation to the record of its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;
use windlass_crds::facts::FactsStep;
use windlass_crds::protocol::worker_api::Truncated;
use windlass_crds::protocol::{RecordBody, StepEnded, Stream};
use windlass_crds::sandbox_job::{ContainerUser, Limit as JobLimit, Network as JobNetwork, Step, StepUsage};
use windlass_crds::service::ServiceStep;
use windlass_sandbox::driver::{KillProof, UnitPhase};
use windlass_sandbox::engine::{EngineKind, Image};
use windlass_sandbox::{
    Container, DiskQuota, Driver, EndReason, Entrypoint, Error as SandboxError, Exit, Limit, LimitName,
    Limits, Network, Prepared, Stop, StopReason, UnitId, UnitSpec,
};

use super::AttemptTask;
use super::egress::StepProxy;
use super::environment::{WORKSPACE, environment};
use super::limits::{Effective, EffectiveLimits, resolve};
use super::pump::{self, Maskers, Pump};
use super::secrets;
use super::service::{Touched, Trouble};
use super::verdict::{Verdict, describe, plugin_reason, sandbox_verdict};
use crate::clock::Clock;
use crate::held::{Control, StopCause};
use crate::names::unit_id;
use crate::outbox::StepProgress;
use crate::plugins::{self, Program, RolledBack, StepRunner};
use crate::worker_api::runs::Collector;
use crate::workspaces::{Home, script_path};

/// Time between TERM and KILL when a job is cancelled or a step takes too long.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of each stream that a step may keep where the node's rules do not say.
const OUTPUT_CAP: u64 = 10 << 20;
/// Between tries to tell a unit's supervisor to stop it.
const SIGNAL_RETRY: Duration = Duration::from_secs(1);

/// A step that is being executed.
pub(super) struct StepRun<'a> {
    pub(super) task: &'a mut AttemptTask,
    home: &'a Home,
    pub(super) index: u32,
    pub(super) step: &'a Step,
    pub(super) before: StepProgress,
    unit: UnitId,
    /// What a step of kind `service` has touched, until it is put back.
    pub(super) touched: Option<Touched>,
    /// How the attempt ends, where the step did not get to an end of its own.
    verdict: Option<Verdict>,
}

/// Why what the agent does for a step was cut off.
pub(super) enum Cut {
    /// The attempt was told to stop, or its lease has ended.
    Stopped(Verdict),
    /// The step's time is over.
    Time,
}

impl<'a> StepRun<'a> {
    pub(super) fn new(
        task: &'a mut AttemptTask,
        home: &'a Home,
        index: u32,
        step: &'a Step,
        before: StepProgress,
    ) -> Self {
        let unit = unit_id(task.attempt(), index);
        Self { task, home, index, step, before, unit, touched: None, verdict: None }
    }

    /// Executes the step. Its end is recorded but not durable yet.
    ///
    /// # Errors
    /// How the attempt ends, where the step could not be executed.
    pub(super) async fn execute(mut self) -> Result<StepEnded, Verdict> {
        let plugin = self.task.parts.plugins.for_step(self.step);
        let plugin = plugin.map_err(|error| Verdict::failed(plugin_reason(&error), describe(&error)))?;
        let step = self.step;
        let executed = plugin.execute(step, &mut self).await;
        if let Some(verdict) = self.verdict {
            return Err(verdict);
        }
        let ended = match executed {
            Ok(exit) => {
                let failure = match plugin.verify(step, &exit) {
                    Ok(()) => None,
                    Err(plugins::Error::Postcheck { message }) => {
                        let undone = plugin.rollback(step, &mut self).await;
                        Some(self.rolled_back(message, undone))
                    }
                    Err(error) => Some(error),
                };
                step_ended(self.index, &exit, failure)
            }
            Err(error) => step_refused(self.index, &error),
        };
        tracing::info!(step = step.name, succeeded = ended.succeeded, reason = ended.reason, "step ended");
        self.task.record(RecordBody::StepEnded(ended.clone()));
        Ok(ended)
    }

    /// What a step has failed with, after what was done about it.
    fn rolled_back(&mut self, message: String, undone: Result<RolledBack, plugins::Error>) -> plugins::Error {
        match undone {
            Ok(RolledBack::NothingToUndo) => plugins::Error::Postcheck { message },
            Ok(RolledBack::Undone { how }) => {
                let told = format!("step `{}` was rolled back: {how}", self.step.name);
                self.task.event("info", "RolledBack", told);
                plugins::Error::Postcheck { message: format!("{message}; rolled back: {how}") }
            }
            Err(error) => {
                self.task.event("error", "RollbackFailed", describe(&error));
                plugins::Error::Rollback { message: format!("{message}; not rolled back: {error}") }
            }
        }
    }

    /// Notes how the attempt ends.
    fn ends(&mut self, verdict: Verdict) -> plugins::Error {
        let message = verdict.message.clone().unwrap_or_else(|| verdict.reason.to_owned());
        self.verdict = Some(verdict);
        plugins::Error::Execution { message }
    }

    /// Runs a program to its end.
    async fn run_program(&mut self, program: Program) -> Result<Exit, Verdict> {
        match self.task.recovered.units.remove(&self.unit) {
            Some(UnitPhase::Running | UnitPhase::Ended(_)) => {
                tracing::info!(step = self.step.name, "a step that ran during a restart was taken up");
                if self.before.started_at.is_none() {
                    self.task.record(RecordBody::StepStarted { step: self.index });
                }
            }
            // It may have run, and it may be running.
            None if self.before.started_at.is_some() => {
                self.end_unrecorded().await;
                let message = "the node's records of the step were removed while the agent was away";
                return Err(Verdict::lost("SupervisorLost", message));
            }
            found @ (Some(UnitPhase::Prepared) | None) => {
                if found.is_some() {
                    // Its specification may have changed: less of the job's time is left.
                    let removed = self.task.parts.driver.cleanup(&self.unit).await;
                    removed.map_err(|error| sandbox_verdict(&error, true))?;
                }
                self.start(program).await?;
            }
        }
        let exit = self.supervise().await?;
        self.task.take_back(self.home, self.index, self.step).await;
        self.note_end(&exit);
        if self.task.entry.pushed {
            self.keep_output(&exit).await;
        }
        Ok(exit)
    }

    /// Begins a step of which nothing runs in the sandbox. That it has begun is durable then.
    pub(super) async fn begin_without_unit(&mut self) -> Result<(), Verdict> {
        if let Some(refusal) = &self.task.refusal {
            return Err(Verdict::failed("PolicyRefused", refusal.to_string()));
        }
        self.task.lease_in_hand().await?;
        if self.task.started.is_none() {
            self.task.started = Some(self.task.parts.clock.boottime());
            self.task.started_at = Some(self.task.parts.clock.now());
            self.task.record(RecordBody::Started { unenforced: Vec::new() });
        }
        if self.before.started_at.is_none() {
            self.task.record(RecordBody::StepStarted { step: self.index });
        }
        self.task.commit().await;
        self.remove_ended_units().await;
        match self.task.stopped() {
            Some(verdict) => Err(verdict),
            None => Ok(()),
        }
    }

    /// Prepares and starts the unit. Everything before it is durable by then.
    async fn start(&mut self, program: Program) -> Result<(), Verdict> {
        if let Some(refusal) = &self.task.refusal {
            return Err(Verdict::failed("PolicyRefused", refusal.to_string()));
        }
        self.task.lease_in_hand().await?;
        let started = self.task.started.is_some();
        if let Some(source) = &program.script {
            let written = self.task.parts.workspaces.write_script(self.home, self.index, source).await;
            written.map_err(|error| sandbox_verdict(&error, started))?;
        }
        let left = self.task.left_of_job();
        if left.is_zero() {
            return Err(self.task.job_over());
        }
        let image = self.task.image(self.step).await?;
        let until = Instant::now() + left;
        let system = if image.is_none() { self.task.system(self.step, until).await? } else { None };
        let mut spec = self.unit_spec(program.command, left);
        // The program of an image finds itself where the image wants it; what a job brings, where the job's files are.
        if self.step.container.is_some() && self.step.working_dir.is_none() {
            let of_engine = image.as_ref().and_then(|(_, _, image)| image.working_dir.clone());
            let own = system.as_ref().and_then(|system| system.image.config.working_dir.clone());
            spec.cwd = of_engine.or(own).unwrap_or(spec.cwd);
        }
        spec.handed = self.task.hand_over(self.home, self.index, self.step).await?;
        spec.container = image.map(|(kind, name, image)| self.container(kind, name, &image));
        spec.system = system;
        let driver = Arc::clone(&self.task.parts.driver);
        let prepared = driver.prepare(&spec).await.map_err(|error| sandbox_verdict(&error, started))?;
        if !started {
            self.task.started = Some(self.task.parts.clock.boottime());
            self.task.started_at = Some(self.task.parts.clock.now());
            self.record_started(prepared);
        }
        if self.before.started_at.is_none() {
            self.task.record(RecordBody::StepStarted { step: self.index });
        }
        self.task.commit().await;
        self.remove_ended_units().await;
        if let Some(verdict) = self.task.stopped() {
            return Err(verdict);
        }
        tracing::info!(step = self.step.name, "step starts");
        match driver.start(&self.unit).await {
            // A sandbox that could not be made is an end like any other.
            Ok(()) | Err(SandboxError::Setup { .. }) => Ok(()),
            Err(error) => Err(sandbox_verdict(&error, true)),
        }
    }

    fn record_started(&mut self, prepared: Prepared) {
        let unenforced = prepared.unenforced.iter().map(|unenforced| limit_word(unenforced.limit)).collect();
        self.task.record(RecordBody::Started { unenforced });
        if matches!(self.task.quota(), Some(DiskQuota { exact: true, .. }))
            && let Some(means) = prepared.isolation.iter().find_map(|word| word.strip_prefix("disk by "))
        {
            self.task.event(
                "info",
                "DiskLimit",
                format!("the workspace is kept within its limit by {means}"),
            );
        }
        for unenforced in prepared.unenforced {
            let message = format!("limit {} is not enforced: {}", unenforced.limit, unenforced.reason);
            self.task.event("warn", "LimitUnenforced", message);
        }
    }

    /// Removes the units of the steps before this one, whose ends are durable now.
    async fn remove_ended_units(&self) {
        if let Some(before) = self.index.checked_sub(1) {
            let unit = unit_id(self.task.attempt(), before);
            if let Err(error) = self.task.parts.driver.cleanup(&unit).await {
                // The end of the attempt tries again.
                tracing::debug!(unit = %unit, error = %error, "a unit stays until the end of its attempt");
            }
        }
    }

    fn unit_spec(&self, command: Vec<String>, left_of_job: Duration) -> UnitSpec {
        let assignment = self.task.assignment();
        let sandbox = &assignment.spec.sandbox;
        let mut spec = UnitSpec::new(
            self.unit.clone(),
            command,
            self.home.workspace.clone(),
            self.home.identity,
            self.home.lease_file.clone(),
        );
        spec.env = environment(assignment, self.step);
        if sandbox.inference {
            for (name, value) in
                self.task.parts.inference.environment(assignment.spec.requires.model.as_deref())
            {
                // What is declared wins, but for names that are reserved, which cannot be declared.
                spec.env.entry(name.to_owned()).or_insert(value);
            }
        }
        spec.cwd = self.step.working_dir.clone().unwrap_or_else(|| WORKSPACE.to_owned());
        spec.mounts = self.task.mounts.clone();
        spec.network = match sandbox.network {
            JobNetwork::None => Network::None,
            JobNetwork::Restricted => Network::Restricted,
            JobNetwork::Open => Network::Open,
        };
        let limits = resolve(&sandbox.resources, &self.task.rules);
        spec.limits = unit_limits(limits, &sandbox.unenforced);
        spec.timeout = Some(self.step.timeout.map_or(left_of_job, |span| span.get().min(left_of_job)));
        spec.grace = GRACE;
        spec.output_cap = self.task.rules.output_cap_bytes.unwrap_or(OUTPUT_CAP);
        // A job's name is a DNS label or subdomain; a host's name must be shorter.
        if assignment.name.len() <= 63 {
            spec.hostname.clone_from(&assignment.name);
        }
        spec
    }

    /// The container of the step.
    fn container(&self, engine: EngineKind, reference: String, image: &Image) -> Container {
        let assignment = self.task.assignment();
        let mut container = Container::new(engine, image.id.clone(), reference);
        if let Some(step) = &self.step.container {
            container.entrypoint = step.entrypoint.clone().map_or(Entrypoint::Image, Entrypoint::Given);
            container.read_only_root = step.read_only_root;
            container.scratch.clone_from(&step.tmpfs);
            container.root = match step.user {
                ContainerUser::Job => false,
                ContainerUser::Root => true,
            };
        }
        if let Some(gpu) = &assignment.spec.requires.gpu {
            match gpu.vendor.as_deref() {
                Some("amd") => {
                    container.devices =
                        (0..gpu.count).map(|number| format!("amd.com/gpu={number}")).collect();
                }
                Some(_) | None => container.gpus = gpu.count,
            }
        }
        container.labels = [
            ("dev.windlass.job", assignment.attempt.job.clone()),
            ("dev.windlass.attempt", assignment.attempt.epoch.to_string()),
            ("dev.windlass.step", self.step.name.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        container
    }

    /// Follows the unit to its end: hands its output on and passes stops to it.
    async fn supervise(&mut self) -> Result<Exit, Verdict> {
        let parts = Arc::clone(&self.task.parts);
        let pump = Pump {
            outbox: &parts.outbox,
            driver: &*parts.driver,
            clock: &*parts.clock,
            attempt: self.task.attempt(),
            step: self.index,
            unit: &self.unit,
            mask: &self.task.mask,
            key: &parts.node_key,
        };
        let mark = self.before.mark.take().unwrap_or_default();
        // The proxy serves for as long as the unit runs.
        let (running, ended) = tokio::sync::oneshot::channel::<()>();
        let wait = async {
            let exit = parts.driver.wait(&self.unit).await;
            drop(running);
            exit
        };
        let proxy = self.proxy();
        let serve = async {
            if let Some(proxy) = proxy {
                // Nothing is ever sent: the end is that the other side is gone.
                proxy.run(async { drop(ended.await) }).await;
            }
        };
        let follow = async {
            let (exit, pumped, ()) = tokio::join!(wait, pump.run(mark), serve);
            (exit, pumped)
        };
        let control = self.task.control.clone();
        // Cancel-safe: the first arm never wins, the second is not dropped before it does.
        let (exit, pumped) = tokio::select! {
            biased;
            never = pass_stops(&*parts.driver, &self.unit, control, &*parts.clock) => match never {},
            followed = follow => followed,
        };
        if let Err(pump::Error::Sealed) = pumped {
            return Err(secrets::lost(true));
        }
        if let Err(error) = pumped {
            let message = crate::error_chain(&error);
            tracing::warn!(unit = %self.unit, error = message, "output of a step cannot be read");
            self.task.event("error", "OutputLost", format!("output of step `{}`: {message}", self.step.name));
        }
        if let Err(SandboxError::NotFound { .. }) = &exit {
            self.end_unrecorded().await;
        }
        exit.map_err(|error| match error {
            // It was prepared and its start was not seen, so it is not known whether it ran.
            SandboxError::NotStarted { .. } | SandboxError::NotFound { .. } => {
                Verdict::lost("UnitLost", crate::error_chain(&error))
            }
            error => sandbox_verdict(&error, true),
        })
    }

    /// Ends what may still run of a unit whose records were removed, before the attempt is called lost and begins elsewhere. What is in
    /// no cgroup cannot be found any more, and ends with its lease.
    async fn end_unrecorded(&self) {
        if let Err(error) = self.task.parts.driver.cleanup(&self.unit).await {
            tracing::error!(unit = %self.unit, error = crate::error_chain(&error), "a step without records may still run");
        }
    }

    /// Keeps what the unit has written, up to what a response of the Worker API carries.
    async fn keep_output(&self, exit: &Exit) {
        let mut collector = Collector::default();
        let mut maskers = Maskers::new(&self.task.mask);
        let killed = exit.reason != EndReason::Exited;
        let mut source = self.task.parts.driver.output(&self.unit, 0);
        let mut discarded = Truncated { stdout: exit.stdout.truncated, stderr: exit.stderr.truncated };
        loop {
            match source.next().await {
                Ok(Some(chunk)) => {
                    let stream = pump::stream_word(chunk.stream);
                    if !collector.take(stream, &maskers.of(stream).push(&chunk.bytes)) {
                        break;
                    }
                }
                Ok(None) => {
                    for (stream, cut) in
                        [(Stream::Stdout, discarded.stdout), (Stream::Stderr, discarded.stderr)]
                    {
                        collector.take(stream, &maskers.of(stream).finish(cut || killed));
                    }
                    break;
                }
                Err(error) => {
                    tracing::warn!(unit = %self.unit, error = %crate::error_chain(&error), "output of a step cannot be read again");
                    discarded = Truncated { stdout: true, stderr: true };
                    break;
                }
            }
        }
        let output = collector.finish(discarded);
        self.task.parts.runs.keep_output(self.task.attempt(), self.index, output).await;
    }

    /// The proxy of a step with a restricted network.
    fn proxy(&self) -> Option<StepProxy> {
        let sandbox = &self.task.assignment().spec.sandbox;
        match sandbox.network {
            JobNetwork::None | JobNetwork::Open => return None,
            JobNetwork::Restricted => {}
        }
        let parts = &self.task.parts;
        Some(StepProxy {
            egress: parts.egress.clone(),
            driver: Arc::clone(&parts.driver),
            outbox: Arc::clone(&parts.outbox),
            clock: Arc::clone(&parts.clock),
            attempt: self.task.attempt().clone(),
            unit: self.unit.clone(),
            step: self.step.name.clone(),
            rules: sandbox.egress.clone(),
            transfer: self.task.rules.max_transfer_bytes,
            inference: sandbox.inference.then(|| parts.inference.clone()),
            mask: self.task.mask.clone(),
        })
    }

    /// Leaves a proof where a program was stopped.
    fn note_end(&mut self, exit: &Exit) {
        let stopped = match exit.reason {
            EndReason::Timeout
            | EndReason::LeaseExpired
            | EndReason::Cancelled
            | EndReason::EngineLost
            | EndReason::SeccompDenied => true,
            EndReason::Exited
            | EndReason::Signalled
            | EndReason::OOMKilled
            | EndReason::PidsLimit
            | EndReason::DiskLimit
            | EndReason::SetupFailed
            | EndReason::SupervisorLost => false,
        };
        if stopped && let Some(proof) = &exit.proof {
            let level = if proof.holds() { "info" } else { "error" };
            let message = format!("step `{}`: {}", self.step.name, proof_text(proof));
            self.task.event(level, "Stopped", message);
        }
        for trouble in &exit.teardown {
            let message = format!("step `{}`: {trouble}", self.step.name);
            self.task.event("warn", "TeardownTrouble", message);
        }
    }
}

#[async_trait]
impl StepRunner for StepRun<'_> {
    fn script_path(&self) -> String {
        script_path(self.index)
    }

    async fn run(&mut self, program: Program) -> Result<Exit, plugins::Error> {
        self.run_program(program).await.map_err(|verdict| self.ends(verdict))
    }

    async fn facts(&mut self, step: &FactsStep) -> Result<Exit, plugins::Error> {
        self.tell_facts(step).await.map_err(|verdict| self.ends(verdict))
    }

    async fn service(&mut self, step: &ServiceStep) -> Result<Exit, plugins::Error> {
        match self.act_on_service(step).await {
            Ok(exit) => Ok(exit),
            Err(Trouble::Attempt(verdict)) => Err(self.ends(verdict)),
            Err(Trouble::Step(error)) => Err(error),
            Err(Trouble::Time) => Err(plugins::Error::Timeout { message: "took too long".to_owned() }),
        }
    }

    async fn undo_service(&mut self, step: &ServiceStep) -> Result<RolledBack, plugins::Error> {
        self.put_back(step).await
    }
}

/// Tells a unit to stop when its attempt is told to or the lease ends. A later order can only make it quicker.
async fn pass_stops(
    driver: &dyn Driver,
    unit: &UnitId,
    mut control: watch::Receiver<Control>,
    clock: &dyn Clock,
) -> Infallible {
    let mut passed: Option<Stop> = None;
    loop {
        let Control { stop, lease_until } = *control.borrow_and_update();
        let left = lease_until.saturating_sub(clock.boottime());
        let wanted = match stop {
            _ if left.is_zero() => Some(Stop { grace: Duration::ZERO, reason: StopReason::LeaseExpired }),
            // Somebody else may be about to run it.
            Some(StopCause::Fenced) => Some(Stop { grace: Duration::ZERO, reason: StopReason::Cancelled }),
            Some(StopCause::Cancelled | StopCause::AgentStopped) => {
                Some(Stop { grace: GRACE, reason: StopReason::Cancelled })
            }
            None => None,
        };
        let news = match (wanted, passed) {
            (None, _) => None,
            (Some(wanted), Some(passed)) if wanted.grace >= passed.grace => None,
            (Some(wanted), _) => Some(wanted),
        };
        if let Some(stop) = news {
            match driver.signal(unit, stop).await {
                Ok(()) => passed = Some(stop),
                Err(error) => {
                    tracing::warn!(unit = %unit, error = %crate::error_chain(&error), "a unit cannot be told to stop; trying again");
                    tokio::time::sleep(SIGNAL_RETRY).await;
                    continue;
                }
            }
        }
        // Cancel-safe: both only look. A lease that is over needs no more looks at the time.
        tokio::select! {
            biased;
            changed = control.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = tokio::time::sleep(left), if !left.is_zero() => {}
        }
    }
}

const fn limit_word(limit: LimitName) -> JobLimit {
    match limit {
        LimitName::Cpu => JobLimit::Cpu,
        LimitName::Memory => JobLimit::Memory,
        LimitName::Pids => JobLimit::Pids,
        LimitName::Disk => JobLimit::Disk,
        LimitName::Io => JobLimit::Io,
        LimitName::Files => JobLimit::Files,
    }
}

fn unit_limits(limits: EffectiveLimits, accepted: &[JobLimit]) -> Limits {
    let limit = |effective: Option<Effective>| {
        effective.map(|effective| match effective {
            Effective::Named(value) => Limit::named(value),
            Effective::Default(value) => Limit::default_value(value),
        })
    };
    let EffectiveLimits {
        cpu_millis,
        memory_bytes,
        pids,
        disk_bytes,
        cpu_weight,
        io_read_bps,
        io_write_bps,
        files,
    } = limits;
    let usual = Limits::default();
    Limits {
        cpu_millis: limit(cpu_millis),
        memory_bytes: limit(memory_bytes),
        pids: limit(pids),
        disk_bytes: limit(disk_bytes),
        cpu_weight: limit(cpu_weight),
        io_read_bps: limit(io_read_bps),
        io_write_bps: limit(io_write_bps),
        open_files: files.map_or(usual.open_files, Effective::value),
        accept_unenforced: accepted
            .iter()
            .map(|accepted| match accepted {
                JobLimit::Cpu => LimitName::Cpu,
                JobLimit::Memory => LimitName::Memory,
                JobLimit::Pids => LimitName::Pids,
                JobLimit::Disk => LimitName::Disk,
                JobLimit::Io => LimitName::Io,
                JobLimit::Files => LimitName::Files,
            })
            .collect(),
        ..usual
    }
}

pub(super) fn timestamp(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds).ok()
}

fn step_ended(step: u32, exit: &Exit, failure: Option<plugins::Error>) -> StepEnded {
    let usage = StepUsage {
        stdout_bytes: exit.stdout.bytes,
        stdout_truncated: exit.stdout.truncated,
        stderr_bytes: exit.stderr.bytes,
        stderr_truncated: exit.stderr.truncated,
        cpu_ms: exit.program_started.then_some(exit.usage.cpu_ns / 1_000_000),
        memory_peak_bytes: exit.usage.peak_memory_bytes,
        pids_peak: exit.usage.peak_pids,
        io_read_bytes: exit.usage.io_read_bytes,
        io_write_bytes: exit.usage.io_write_bytes,
    };
    let reason = match &failure {
        // No program has ended in a way of its own.
        Some(error) if !exit.program_started && exit.reason == EndReason::Exited => plugin_reason(error),
        Some(_) | None => exit.reason.as_str(),
    };
    StepEnded {
        step,
        succeeded: failure.is_none(),
        reason: reason.to_owned(),
        message: failure.map(|failure| failure.to_string()),
        exit_code: exit.code,
        signal: exit.signal,
        usage,
    }
}

/// The end of a step that its plugin could not carry out.
fn step_refused(step: u32, error: &plugins::Error) -> StepEnded {
    StepEnded {
        step,
        succeeded: false,
        reason: plugin_reason(error).to_owned(),
        message: Some(describe(error)),
        exit_code: None,
        signal: None,
        usage: StepUsage::default(),
    }
}

/// A proof that nothing of a unit is left, for people.
fn proof_text(proof: &KillProof) -> String {
    let time = |milliseconds| timestamp(milliseconds).map_or("unknown".to_owned(), |at| at.to_string());
    let mut parts = Vec::new();
    parts.extend(proof.term_sent_at_ms.map(|at| format!("TERM sent {}", time(at))));
    parts.extend(proof.kill_sent_at_ms.map(|at| format!("KILL sent {}", time(at))));
    parts.push(if proof.namespace_empty {
        "its process namespace is empty".to_owned()
    } else {
        "its process namespace was NOT confirmed empty".to_owned()
    });
    parts.extend(
        proof
            .cgroup_empty
            .map(|empty| if empty { "its cgroup is empty" } else { "its cgroup is NOT empty" }.to_owned()),
    );
    parts.push(format!("confirmed {}", time(proof.confirmed_at_ms)));
    parts.join(", ")
}
