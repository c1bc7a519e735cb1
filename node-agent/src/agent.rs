//! The agent: ties its parts together and dispatches.
//!
//! ```text
//!                    ┌── registration ──► session ──► everybody
//!                    ├── config sync ───► configuration in force ──► slots, rules
//!  controller ◄──────┼── claims ──────► dispatcher ──► one task per attempt ──► driver
//!                    │    Worker API ───────┘
//!                    ├── lease keeper ◄─► held attempts ◄──┘      │
//!                    ├── sender ◄──── outbox ◄── writer ◄─────────┤
//!                    └── artifact sender ◄──── spool ◄────────────┘
//! ```
//!
//! All tasks belong to the future of [`Agent::run`]: dropping it is a crash, after which nothing of the agent goes on.
//! What runs in the sandbox goes on under its supervisors until its lease ends.

mod parts;
mod wiring;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;
use windlass_crds::protocol::{AttemptId, SandboxCapability};

pub use self::parts::{AgentParts, Error, KeeperHost, Settings, Stop};
use self::wiring::{BringUp, KeepImages, Wiring};
use crate::artifacts::Spool;
use crate::artifacts::sender::ArtifactSender;
use crate::capabilities::{Capabilities, NodeFacts};
use crate::claim::{Claimed, Claims};
use crate::config_sync::{ConfigState, ConfigSync, InForce};
use crate::executor::inputs::InputCache;
use crate::executor::{AttemptTask, ExecutorParts, Recovered, end_unit, refusal_record, release_record};
use crate::facts::{Collector, FactsOutbox, FactsTask};
use crate::heartbeat::LeaseKeeper;
use crate::held::{HeldAttempts, StopCause};
use crate::inference::{InferenceHandle, InferenceTask};
use crate::ledger::{self, Ledger};
use crate::names::attempt_name;
use crate::outbox::sender::Sender;
use crate::outbox::{NewRecord, Outbox, OutboxWriter};
use crate::readiness::{Part, Readiness};
use crate::recovery::{self, Found, Resumed};
use crate::registration::Registration;
use crate::session::SessionHandle;
use crate::status::AgentStatus;
use crate::watch;
use crate::worker_api::runs::Runs;
use crate::worker_api::{self, Intake, WorkerApi};

/// How long attempts may take to stop when the agent is told to cancel them: TERM, the grace of 5 s, KILL, and time to
/// write it down.
const CANCEL_WAIT: Duration = Duration::from_secs(15);
/// How long the last records may take to be sent before the agent exits; they are sent at its next start otherwise.
const FLUSH_WAIT: Duration = Duration::from_secs(10);

/// How long an engine may take to end the server of models before the agent exits without it.
const SERVER_WAIT: Duration = Duration::from_secs(15);

/// An agent that does not run yet.
pub struct Agent {
    parts: AgentParts,
    status: tokio::sync::watch::Sender<AgentStatus>,
}

/// How a task has ended.
enum Ended {
    Attempt,
    Released,
    Failed(Error),
}

impl Agent {
    /// Makes an agent. Nothing happens before it runs.
    pub fn build(parts: AgentParts) -> Self {
        let status = AgentStatus { node: parts.identity.name().to_owned(), ..AgentStatus::default() };
        Self { parts, status: tokio::sync::watch::Sender::new(status) }
    }

    /// Follows what the agent says of itself.
    pub fn status(&self) -> tokio::sync::watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// Runs until `stop` says otherwise. A dropped sender of `stop` means to run for ever.
    ///
    /// # Errors
    /// When the agent cannot go on. What runs in the sandbox is left to its supervisors and leases then.
    pub async fn run(self, stop: tokio::sync::watch::Receiver<Stop>) -> Result<(), Error> {
        let mut running = Running::start(self).await?;
        running.dispatch(stop).await
    }
}

/// What the dispatcher owns.
struct Running {
    tasks: JoinSet<Ended>,
    executor: Arc<ExecutorParts>,
    held: HeldAttempts,
    claimed: mpsc::Receiver<Claimed>,
    draining: watch::Sender<bool>,
    inference: InferenceHandle,
    attempts: usize,
}

impl Running {
    async fn start(agent: Agent) -> Result<Self, Error> {
        let Agent { parts, status } = agent;
        let AgentParts {
            identity,
            join,
            on_registered,
            client,
            lease_client,
            clock,
            ids,
            fs,
            host,
            driver,
            sandbox,
            node_key,
            workspaces,
            plugins,
            egress,
            engines,
            worker_api: api_host,
            images,
            settings,
        } = parts;
        let identity = Arc::new(identity);
        let node = identity.name().to_owned();
        let boot_id = ids.unique();
        let readiness = Readiness::new();
        tracing::info!(
            node.name = node,
            agent.boot = boot_id,
            runtimes = sandbox.runtimes.join(","),
            features = sandbox.features.join(","),
            "sandbox checked"
        );
        if !sandbox.supported {
            let cause = format!("no runtime works on this host: {}", sandbox.lacks.join("; "));
            readiness.set(Part::Sandbox, Some(cause));
        }

        let (ledger, entries) = Ledger::open(Arc::clone(&fs), node_key.clone()).await?;
        let (outbox, writer) = Outbox::open(Arc::clone(&fs)).await?;
        let found = Found {
            entries,
            progress: outbox.progress(),
            inventory: driver.inventory().await.map_err(Error::Inventory)?,
            homes: workspaces.list().await.map_err(Error::Inventory)?,
            host_boot: clock.host_boot(),
        };
        let (ledger, outbox) = (Arc::new(ledger), Arc::new(outbox));
        let unreported = outbox.unreported_ends();
        let is_open = |id: &AttemptId| found.entries.contains_key(id) || unreported.contains(id);
        let runs = Runs::open(Arc::clone(&fs), clock.now(), is_open).await.map_err(Error::Results)?;
        runs.tidy(clock.now()).await;

        let spool = Spool::open(
            settings.artifacts.clone(),
            settings.artifact_bytes,
            settings.least_free_bytes,
            Arc::clone(&ids),
        );
        let spool = Arc::new(spool.map_err(Error::Artifacts)?);
        for attempt in spool.attempts() {
            // Those in the ledger do so themselves, once their end is durable.
            if !found.entries.contains_key(&attempt) {
                spool.release(&attempt).await;
            }
        }

        let session = SessionHandle::new();
        let held = HeldAttempts::default();
        let in_force = InForce::default();
        let hurry = Arc::new(Notify::new());
        let slots = watch::Sender::new(settings.concurrency);
        let config_state = watch::Sender::new(ConfigState::default());
        let newest = watch::Sender::new(0);
        let up = watch::Sender::new(false);
        let draining = watch::Sender::new(false);
        let (claimed_sender, claimed) = mpsc::channel(64);

        let capability = SandboxCapability { max_concurrency: Some(settings.concurrency), ..sandbox };
        let inference = InferenceHandle::new();
        let facts = NodeFacts {
            name: node.clone(),
            labels: settings.labels.clone(),
            boot_id: boot_id.clone(),
            step_kinds: plugins.kinds().into_iter().map(str::to_owned).collect(),
            sandbox: capability.clone(),
            inference: inference.clone(),
        };
        let intake = Intake {
            clock: Arc::clone(&clock),
            ledger: Arc::clone(&ledger),
            held: held.clone(),
            readiness: readiness.clone(),
            in_force: in_force.clone(),
            sandbox: capability.clone(),
            inference: inference.clone(),
            slots: slots.subscribe(),
            draining: draining.subscribe(),
            claimed: claimed_sender.clone(),
            hurry: Arc::clone(&hurry),
            runs: runs.clone(),
            admission: tokio::sync::Mutex::new(()),
        };
        let worker_api = WorkerApi::new(api_host, intake);
        let served = worker_api.served();
        let capabilities = Arc::new(Capabilities::new(facts, host, Arc::clone(&clock), served));
        let inputs = InputCache::new(
            settings.inputs.clone(),
            settings.input_cache_bytes,
            Arc::clone(&clock),
            Arc::clone(&ids),
        );
        if let Err(error) = inputs.remove_leftovers() {
            tracing::warn!(error = %error, "half-fetched inputs of an earlier run cannot be removed");
        }
        let labels = settings.labels.clone();
        let collector = Arc::new(Collector::new(node.clone(), labels, engines.clone(), Arc::clone(&clock)));
        let facts_outbox = Arc::new(FactsOutbox::new(Arc::clone(&outbox), Arc::clone(&clock)));
        let images_to_keep = images.clone();
        let executor = Arc::new(ExecutorParts {
            client: Arc::clone(&client),
            session: session.clone(),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&ids),
            outbox: Arc::clone(&outbox),
            ledger: Arc::clone(&ledger),
            held: held.clone(),
            driver,
            node_key,
            workspaces,
            inputs,
            artifacts: Arc::clone(&spool),
            in_force: in_force.clone(),
            sandbox: capability.clone(),
            plugins,
            egress,
            engines: engines.clone(),
            services: crate::executor::service::Turns::default(),
            inference: inference.clone(),
            images,
            facts: Arc::clone(&collector),
            facts_outbox: Arc::clone(&facts_outbox),
            hurry: Arc::clone(&hurry),
            runs: runs.clone(),
        });
        let config_sync = ConfigSync {
            node: node.clone(),
            client: Arc::clone(&client),
            session: session.clone(),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&ids),
            fs: Arc::clone(&fs),
            sandbox: capability,
            in_force: in_force.clone(),
            worker_api,
            state: config_state,
            newest: newest.subscribe(),
        };
        config_sync.load_last_good().await?;

        let wiring = Wiring {
            session: session.clone(),
            config: config_sync.state.subscribe(),
            stalled: outbox.stalled(),
            backlog: outbox.backlog(),
            held: held.count(),
            up: up.subscribe(),
            draining: draining.subscribe(),
            readiness: readiness.clone(),
            slots: slots.clone(),
            concurrency: settings.concurrency,
            status,
        };
        wiring.pass_on();
        let facts_task = FactsTask {
            collector,
            outbox: facts_outbox,
            in_force: in_force.clone(),
            config: config_sync.state.subscribe(),
        };
        let keep_images = images_to_keep.map(|images| KeepImages {
            images,
            in_force: in_force.clone(),
            config: config_sync.state.subscribe(),
        });
        let inference_task = InferenceTask {
            handle: inference.clone(),
            engines,
            in_force,
            config: config_sync.state.subscribe(),
            readiness: readiness.clone(),
            capabilities: Arc::clone(&capabilities),
            hurry: Arc::clone(&hurry),
            ids: Arc::clone(&ids),
            models: settings.models.clone(),
        };
        let bring_up = BringUp {
            client: Arc::clone(&client),
            session: session.clone(),
            ids: Arc::clone(&ids),
            config: config_sync.state.subscribe(),
            capabilities: Arc::clone(&capabilities),
            up: up.clone(),
        };
        let registration = Registration {
            client: Arc::clone(&client),
            session: session.clone(),
            identity,
            capabilities: Arc::clone(&capabilities),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&ids),
            join,
            on_registered,
        };
        let keeper = LeaseKeeper {
            node: node.clone(),
            client: lease_client,
            session: session.clone(),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&ids),
            held: held.clone(),
            capabilities,
            readiness: readiness.clone(),
            slots: slots.subscribe(),
            newest,
            hurry: Arc::clone(&hurry),
            up: up.subscribe(),
        };
        let claims = Claims {
            node,
            boot_id,
            client: Arc::clone(&client),
            session: session.clone(),
            clock,
            ids: Arc::clone(&ids),
            fs,
            ledger,
            held: held.clone(),
            readiness,
            slots: slots.subscribe(),
            draining: draining.subscribe(),
            config: config_sync.state.subscribe(),
            claimed: claimed_sender,
            hurry: Arc::clone(&hurry),
            least_free_bytes: settings.least_free_bytes,
        };
        for attempt in unreported {
            held.ending(&attempt);
        }
        let artifact_sender = ArtifactSender {
            spool,
            outbox: Arc::clone(&outbox),
            client: Arc::clone(&client),
            session: session.clone(),
            ids: Arc::clone(&ids),
        };
        let sender = Sender { outbox: Arc::clone(&outbox), client, session, ids, held: held.clone(), runs };

        let mut running =
            Self { tasks: JoinSet::new(), executor, held, claimed, draining, inference, attempts: 0 };
        running.spawn_for_ever("agent.outbox", write(writer, outbox));
        running.resume(found).await;
        running.spawn_for_ever("agent.wiring", async { Ok(wiring.run().await) });
        running.spawn_for_ever("agent.register", async { Ok(registration.run().await?) });
        running.spawn_for_ever("agent.config", async { Ok(config_sync.run().await) });
        running.spawn_for_ever("agent.facts", async { Ok(facts_task.run().await) });
        if let Some(keep_images) = keep_images {
            running.spawn_for_ever("agent.images", async { Ok(keep_images.run().await) });
        }
        running.spawn_for_ever("agent.inference", async { Ok(inference_task.run().await) });
        running.spawn_for_ever("agent.capability", async { Ok(bring_up.run().await) });
        running.spawn_for_ever("agent.report", async { Ok(sender.run().await) });
        running.spawn_for_ever("agent.artifacts", async { Ok(artifact_sender.run().await) });
        let keeping = keeper_task(settings.keeper, keeper)?;
        running.spawn_for_ever("agent.heartbeat", keeping);
        let mut is_up = up.subscribe();
        running.spawn_for_ever("agent.claim", async move {
            // Its sender lives in the other tasks.
            drop(is_up.wait_for(|up| *up).await);
            Ok(claims.run().await?)
        });
        Ok(running)
    }

    /// Carries on what an earlier run has left.
    async fn resume(&mut self, found: Found) {
        let recovery::Plan { attempts, forget, orphans, abandoned } = recovery::plan(found);
        tracing::info!(attempts = attempts.len(), orphans = orphans.len(), "earlier run examined");
        for attempt in forget {
            self.executor.outbox.forget(&attempt);
        }
        for unit in orphans {
            tracing::warn!(unit = %unit, "a unit of no known attempt is ended and removed");
            end_unit(&*self.executor.driver, &unit).await;
            if let Err(error) = self.executor.driver.cleanup(&unit).await {
                tracing::warn!(unit = %unit, error = %crate::error_chain(&error), "a unit cannot be removed");
            }
        }
        for name in abandoned {
            if let Err(error) = self.executor.workspaces.remove(&name).await {
                tracing::warn!(home = name, error = %crate::error_chain(&error), "what is left of an attempt cannot be removed");
            }
        }
        for resumed in attempts {
            self.resume_one(resumed).await;
        }
    }

    async fn resume_one(&mut self, resumed: Resumed) {
        let Resumed { entry, progress, units, rebooted } = resumed;
        let attempt = entry.assignment.attempt.clone();
        tracing::info!(
            job.id = attempt.job,
            attempt.epoch = attempt.epoch,
            started = progress.started_at.is_some(),
            rebooted,
            "attempt of an earlier run is taken up"
        );
        let home = if progress.started_at.is_some() && !rebooted {
            match self.executor.workspaces.open(&attempt_name(&attempt)).await {
                Ok(home) => home,
                Err(error) => {
                    tracing::warn!(job.id = attempt.job, error = %crate::error_chain(&error), "the workspace of an attempt cannot be opened");
                    None
                }
            }
        } else {
            None
        };
        // The lease was renewed since the entry was made, if it was written where the supervisors read it.
        let lease_until = home.as_ref().map_or(entry.lease_until, |home| home.lease_until);
        if entry.pushed {
            let (task, request) = (worker_api::task(&entry.assignment), worker_api::named(&entry.assignment));
            self.executor.runs.began(&attempt, task, request);
        }
        let control = self.held.insert(attempt, Duration::ZERO, lease_until);
        self.spawn_attempt(entry, control, Recovered { progress, home, units, rebooted });
    }

    async fn dispatch(&mut self, mut stop: tokio::sync::watch::Receiver<Stop>) -> Result<(), Error> {
        let mut told = Stop::Run;
        let mut can_be_told = true;
        let mut give_up: Option<Instant> = None;
        loop {
            let wanted = *stop.borrow_and_update();
            if wanted > told {
                told = wanted;
                tracing::info!(held = self.attempts, "{}", told.announcement());
                self.draining.send_replace(true);
                if told == Stop::Cancel {
                    self.held.stop_all(StopCause::AgentStopped);
                    give_up = Some(Instant::now() + CANCEL_WAIT);
                }
            }
            if told > Stop::Run && self.attempts == 0 {
                return self.flush().await;
            }
            let due = give_up.unwrap_or_else(Instant::now);
            // Cancel-safe: `recv`, `join_next` and `changed` lose nothing when dropped.
            tokio::select! {
                biased;
                changed = stop.changed(), if can_be_told => can_be_told = changed.is_ok(),
                Some(ended) = self.tasks.join_next() => self.ended(ended)?,
                Some(claimed) = self.claimed.recv() => self.take(claimed, told),
                () = tokio::time::sleep_until(due), if give_up.is_some() => {
                    tracing::warn!(held = self.attempts, "not every attempt could be stopped in time; they are left to their leases");
                    return self.flush().await;
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> Result<(), Error> {
        match ended.map_err(Error::Panicked)? {
            Ended::Attempt => {
                self.attempts -= 1;
                Ok(())
            }
            Ended::Released => Ok(()),
            Ended::Failed(error) => Err(error),
        }
    }

    fn take(&mut self, claimed: Claimed, told: Stop) {
        match claimed {
            Claimed::Take(entry, control) => {
                self.spawn_attempt(entry, control, Recovered::default());
                if told == Stop::Cancel {
                    self.held.stop_all(StopCause::AgentStopped);
                }
            }
            Claimed::Release(assignment, release) => {
                let attempt = assignment.attempt;
                tracing::info!(job.id = attempt.job, reason = release.reason, "attempt given back");
                self.end_untouched(attempt, release_record(&release, self.executor.clock.now()));
            }
            Claimed::Refuse(attempt, message) => {
                self.end_untouched(attempt, refusal_record(message, self.executor.clock.now()));
            }
        }
    }

    /// Reports the end of an attempt of which nothing was begun.
    fn end_untouched(&mut self, attempt: AttemptId, end: NewRecord) {
        let executor = Arc::clone(&self.executor);
        self.tasks.spawn(async move {
            executor.ledger.remember_ended(&attempt);
            executor.outbox.append(&attempt, vec![end]).await;
            executor.outbox.forget(&attempt);
            Ended::Released
        });
    }

    fn spawn_attempt(
        &mut self,
        entry: ledger::Entry,
        control: watch::Receiver<crate::held::Control>,
        recovered: Recovered,
    ) {
        self.attempts += 1;
        let assignment = &entry.assignment;
        let span = tracing::info_span!(
            "agent.attempt",
            job.id = assignment.attempt.job,
            job.name = assignment.name,
            attempt.epoch = assignment.attempt.epoch,
        );
        let task = AttemptTask::new(Arc::clone(&self.executor), entry, control, recovered);
        let run = async move {
            task.run().await;
            Ended::Attempt
        };
        self.tasks.spawn(run.instrument(span));
    }

    fn spawn_for_ever(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<std::convert::Infallible, Error>> + Send + 'static,
    ) {
        let span = tracing::info_span!("agent.task", task.name = name);
        let run = async move {
            match task.await {
                Ok(never) => match never {},
                Err(error) => Ended::Failed(error),
            }
        };
        self.tasks.spawn(run.instrument(span));
    }

    /// Sends what is left, as far as it goes in the time there is.
    async fn flush(&self) -> Result<(), Error> {
        if tokio::time::timeout(SERVER_WAIT, self.inference.stop()).await.is_err() {
            tracing::warn!("the server of models could not be ended in time; the next start takes it up");
        }
        let outbox = &self.executor.outbox;
        let (sent, delivered) = tokio::join!(
            tokio::time::timeout(FLUSH_WAIT, outbox.drained()),
            tokio::time::timeout(FLUSH_WAIT, self.executor.artifacts.drained()),
        );
        if sent.is_err() {
            let left = outbox.backlog().borrow().records;
            tracing::warn!(
                records = left,
                "not every record could be sent; the rest is sent at the next start"
            );
        }
        if delivered.is_err() {
            tracing::warn!("not every artifact could be sent; the rest is sent at the next start");
        }
        // A full disk must not hold the exit up: what is not written now is only sent twice.
        if tokio::time::timeout(FLUSH_WAIT, outbox.settle()).await.is_err() {
            tracing::warn!(
                "acknowledgements could not be written; some records are sent again at the next start"
            );
        }
        tracing::info!("agent ends");
        Ok(())
    }
}

async fn write(writer: OutboxWriter, outbox: Arc<Outbox>) -> Result<std::convert::Infallible, Error> {
    Ok(writer.run(outbox).await)
}

/// The lease keeper as a task of the agent: itself, or what stands for its thread.
fn keeper_task(
    host: KeeperHost,
    keeper: LeaseKeeper,
) -> Result<futures::future::BoxFuture<'static, Result<std::convert::Infallible, Error>>, Error> {
    match host {
        KeeperHost::AgentRuntime => Ok(Box::pin(async { Ok(keeper.run().await?) })),
        KeeperHost::OwnThread => {
            let keeping = crate::keeper_thread::spawn(keeper).map_err(Error::KeeperThread)?;
            Ok(Box::pin(keeping.ended()))
        }
    }
}

#[cfg(test)]
mod tests;
