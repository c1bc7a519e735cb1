//! Intake: takes a job on that somebody gave to this node, once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use windlass_crds::protocol::worker_api::{RunJobResponse, RunStatus, Truncated};
use windlass_crds::protocol::{Assignment, AttemptId, SandboxCapability, VERSION};

use super::caller::Caller;
use super::problem::{Code, Refusal};
use super::request::{self, Node, Wanted};
use super::runs::{Found, Runs};
use crate::capabilities::sha256_text;
use crate::claim::Claimed;
use crate::clock::Clock;
use crate::config_sync::InForce;
use crate::executor::policy;
use crate::held::HeldAttempts;
use crate::inference::InferenceHandle;
use crate::ledger::{Entry, Ledger, Taken};
use crate::readiness::Readiness;
use crate::watch;

/// How long a call may wait for a free slot: an attempt that has ended takes one up until it is cleaned up.
const ROOM_WAIT: Duration = Duration::from_secs(10);

/// What taking a job on needs.
pub(crate) struct Intake {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) held: HeldAttempts,
    pub(crate) readiness: Readiness,
    pub(crate) in_force: InForce,
    pub(crate) sandbox: SandboxCapability,
    pub(crate) inference: InferenceHandle,
    pub(crate) slots: watch::Receiver<u32>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) claimed: mpsc::Sender<Claimed>,
    /// Tells the lease keeper to beat now.
    pub(crate) hurry: Arc<Notify>,
    pub(crate) runs: Runs,
    /// Held from the look at what is free to the taking on, so that two calls do not take the same slot.
    pub(crate) admission: Mutex<()>,
}

/// A run that a caller has asked for.
pub(super) enum Answer {
    /// It goes on.
    Running { run: RunJobResponse, end: oneshot::Receiver<Arc<RunJobResponse>> },
    /// It has ended.
    Ended(RunJobResponse),
}

impl Intake {
    /// Why the node takes no jobs just now.
    pub(super) fn not_ready(&self) -> Option<String> {
        self.readiness.not_ready()
    }

    /// What time it is.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Takes on what a request asks for, or joins its run.
    ///
    /// # Errors
    /// Why it is not taken on.
    pub(super) async fn run(&self, body: &[u8], caller: Caller) -> Result<Answer, Refusal> {
        let in_force = self.in_force.get();
        let max_timeout =
            in_force.as_ref().and_then(|applied| applied.configuration.constraints.max_job_timeout_seconds);
        let node = Node { sandbox: &self.sandbox, max_timeout, now: self.clock.now() };
        let Wanted { assignment, hold } = request::read(body, caller, &node)?;
        let request = named(&assignment);
        // Most repeated calls need not wait for anybody.
        if let Some(answer) = self.join(&assignment.attempt, Some(&request)).await? {
            return Ok(answer);
        }
        if let (Some(applied), Some(_)) = (in_force, hold) {
            let resolve = |path: &Path| std::fs::canonicalize(path);
            let rules = &applied.configuration.policy.sandbox;
            policy::check(&assignment, rules, &self.sandbox, &resolve)
                .map_err(|refusal| Refusal::new(Code::Forbidden, refusal.to_string()))?;
            if assignment.spec.sandbox.inference {
                self.model_is_there()?;
            }
        }
        let _one = self.admission.lock().await;
        if let Some(answer) = self.join(&assignment.attempt, Some(&request)).await? {
            return Ok(answer);
        }
        // It came by a claim, before the node was to be called; it needs no room beside itself.
        if self.ledger.knows(&assignment.attempt) {
            return Err(gone(&assignment.attempt));
        }
        self.room().await?;
        self.take(assignment, hold, request).await
    }

    /// Refuses a job that needs the node's model where there is none.
    fn model_is_there(&self) -> Result<(), Refusal> {
        match self.inference.unusable() {
            None => Ok(()),
            Some(why) if self.inference.capability().is_none() => Err(Refusal::field(
                "sandbox.use_inference",
                format!("{why}; leave it out, or call another node"),
            )),
            Some(why) => Err(Refusal::new(Code::Unavailable, why)),
        }
    }

    /// What is known of a run.
    ///
    /// # Errors
    /// `404` for one that is not known, or belongs to another caller.
    pub(super) async fn look(&self, attempt: &AttemptId, caller: Caller) -> Result<RunJobResponse, Refusal> {
        visible(attempt, caller)?;
        match self.join(attempt, None).await? {
            Some(Answer::Running { run, end: _ }) => Ok(run),
            Some(Answer::Ended(response)) => Ok(response),
            None => Err(unknown(attempt)),
        }
    }

    /// The caller has the result of a run.
    ///
    /// # Errors
    /// `404` for one that is not known, `409` while it goes on, and for an attempt of the controller.
    pub(super) async fn settle(&self, attempt: &AttemptId, caller: Caller) -> Result<(), Refusal> {
        visible(attempt, caller)?;
        if !attempt.is_bare() {
            let detail = "an attempt of the controller is settled by its reports";
            return Err(Refusal::new(Code::Conflict, detail));
        }
        match self.runs.find(attempt, None) {
            Found::Unknown => return Err(unknown(attempt)),
            Found::Settled => return Ok(()),
            Found::Running { .. } | Found::Ended | Found::Other => {}
        }
        match self.runs.settle(attempt, self.clock.now()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::new(Code::Conflict, "the run goes on; its result is not there yet")),
            Err(error) => Err(disk(&error)),
        }
    }

    /// The run of this name, where there is one.
    async fn join(&self, attempt: &AttemptId, request: Option<&str>) -> Result<Option<Answer>, Refusal> {
        match self.runs.find(attempt, request) {
            Found::Unknown => Ok(None),
            Found::Running { task, end } => Ok(Some(Answer::Running { run: running(attempt, task), end })),
            Found::Ended => match self.runs.result(attempt).await {
                Ok(Some(response)) => Ok(Some(Answer::Ended(response))),
                // It was stored between the two looks.
                Ok(None) => Err(gone(attempt)),
                Err(error) => Err(disk(&error)),
            },
            Found::Settled => Err(gone(attempt)),
            Found::Other => Err(Refusal::new(
                Code::Conflict,
                format!("job_id: `{}` has run with another request; choose another id", attempt.job),
            )),
        }
    }

    /// Returns when there is a slot.
    async fn room(&self) -> Result<(), Refusal> {
        let (mut count, mut slots) = (self.held.count(), self.slots.clone());
        let wait = async {
            loop {
                if *self.draining.borrow() {
                    return Err(refuse("the node is being stopped and takes no more work".to_owned()));
                }
                if let Some(reason) = self.readiness.not_ready() {
                    return Err(refuse(format!("the node takes no jobs: {reason}")));
                }
                let held = u32::try_from(*count.borrow_and_update()).unwrap_or(u32::MAX);
                if held < *slots.borrow_and_update() {
                    return Ok(());
                }
                // Cancel-safe: both only look. Their senders live as long as the agent.
                let looked = tokio::select! {
                    biased;
                    looked = count.changed() => looked,
                    looked = slots.changed() => looked,
                };
                if looked.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(ROOM_WAIT, wait).await {
            Ok(found) => found,
            Err(_) => Err(refuse(format!("all {} slots of the node are taken", *self.slots.borrow()))),
        }
    }

    async fn take(
        &self,
        assignment: Assignment,
        hold: Option<Duration>,
        request: String,
    ) -> Result<Answer, Refusal> {
        let attempt = assignment.attempt.clone();
        let now = self.clock.boottime();
        let entry = Entry {
            // Nobody knows for how long the request was under way: the first lease comes by a heartbeat.
            lease_until: hold.map_or(now, |hold| now.saturating_add(hold)),
            host_boot: self.clock.host_boot(),
            assignment,
            pushed: true,
            sealed: None,
        };
        match self.ledger.take(&entry).await {
            Ok(Taken::New) => {}
            Ok(Taken::Known) => return Err(gone(&attempt)),
            Err(error) => return Err(refuse(crate::error_chain(&error))),
        }
        let task = task(&entry.assignment);
        self.runs.began(&attempt, task, request);
        let control = self.held.insert(attempt.clone(), now, entry.lease_until);
        let found = self.runs.find(&attempt, None);
        tracing::info!(job.id = attempt.job, attempt.epoch = attempt.epoch, "job taken on by the Worker API");
        // The dispatcher is gone only when the whole agent is.
        if self.claimed.send(Claimed::Take(entry, control)).await.is_err() {
            std::future::pending::<()>().await;
        }
        if hold.is_none() {
            self.hurry.notify_one();
        }
        match found {
            Found::Running { task, end } => Ok(Answer::Running { run: running(&attempt, task), end }),
            Found::Unknown | Found::Ended | Found::Settled | Found::Other => Err(gone(&attempt)),
        }
    }
}

/// The task that an assignment belongs to.
pub(crate) fn task(assignment: &Assignment) -> String {
    assignment.task_id.clone().unwrap_or_else(|| assignment.attempt.job.clone())
}

/// Names what an assignment asks for. Of the controller's the epoch says enough: what else differs between two calls is
/// when they were made.
pub(crate) fn named(assignment: &Assignment) -> String {
    if !assignment.attempt.is_bare() {
        return String::new();
    }
    let asked = serde_json::to_vec(&(&assignment.task_id, &assignment.spec));
    sha256_text(&asked.expect("a job has only string keys and becomes JSON"))
}

fn running(attempt: &AttemptId, task_id: String) -> RunJobResponse {
    RunJobResponse {
        version: VERSION,
        task_id,
        job_id: attempt.job.clone(),
        epoch: attempt.epoch,
        status: RunStatus::Running,
        exit_code: -1,
        stdout: String::new(),
        stderr: String::new(),
        started_at: None,
        ended_at: None,
        truncated: Truncated::default(),
        reason: None,
        message: None,
    }
}

/// Others see their own runs, and not whether there are any of the controller.
fn visible(attempt: &AttemptId, caller: Caller) -> Result<(), Refusal> {
    match caller {
        Caller::Controller => Ok(()),
        Caller::Other if attempt.is_bare() => Ok(()),
        Caller::Other => Err(unknown(attempt)),
    }
}

fn unknown(attempt: &AttemptId) -> Refusal {
    Refusal::new(Code::NotFound, format!("run {attempt} is not known here, or its result was stored"))
}

fn gone(attempt: &AttemptId) -> Refusal {
    Refusal::new(
        Code::Gone,
        format!("run {attempt} was taken on before, and its result is not kept any more"),
    )
}

fn refuse(detail: String) -> Refusal {
    Refusal::new(Code::Unavailable, detail)
}

fn disk(error: &std::io::Error) -> Refusal {
    refuse(format!("results cannot be read or written on this node just now: {error}"))
}
