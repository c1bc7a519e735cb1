//! Push: nodes that are declared `dispatch: Push` are given their jobs by calling their Worker API.
//!
//! ```text
//!  nodes ──► one task each ──► token due? ──► can it be called? ──► claim on its behalf ──► one delivery each
//!                                                                     (as agents claim)      │ call, ask, call again
//!                          heartbeats and reports of the agent  ◄── the attempt runs ◄───────┘
//! ```
//!
//! A job is claimed for a node in the same statement as by its agent, so capacity, classes, queues, reservations and fences
//! hold the same. Then the attempt is sent. From there on all is as with an agent that has claimed: its heartbeats renew the
//! lease, its reports tell what happens.
//!
//! *Guarantees.* No attempt runs twice, whatever is lost on the way: the node takes an (attempt, epoch) on once, begins only
//! when a heartbeat has given it a lease, and gets none for an attempt that has been given back meanwhile. So a delivery
//! whose answer is lost is tried again, after asking whether the node has it; and so it is by a controller that comes up and
//! finds attempts which nobody has begun. Controllers that share a database may deliver the same attempt.
//!
//! An attempt that cannot be delivered is given back, which uses up no retry: at once where it surely was not taken on, else
//! when its lease ends. The node is then left alone for a while, so that other nodes get the job.

mod client;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use windlass_core::push::{self as decide, PushView};
use windlass_crds::node_config::DispatchMode;
use windlass_crds::protocol::{Assignment, AttemptId, TerminalPhase};
use windlass_store::{AttemptPhase, Change, JobChange, NodeRow, TransitionOutcome};

use self::client::HttpsClient;
pub use self::client::{CallError, Target, WorkerClient};
pub use self::token::WorkerTokens;
use super::{Dispatch, transition};
use crate::error::{ApiError, chain};
use crate::kube::values::Reading;
use crate::metrics::{Delivery as Counted, Metrics};
use crate::secrets::Delivery;

/// How often nodes are looked at even when nothing was heard.
const TICK: Duration = Duration::from_secs(1);
/// How soon a node is looked at again that wakes its task all the time.
const PAUSE: Duration = Duration::from_millis(20);
/// The most deliveries to one node at a time.
const AT_ONCE: usize = 16;
/// How long an attempt may be claimed and not begun before this controller asks the node for it.
const OVERDUE: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);
/// Between two tries of a delivery, and how many there are while it surely did not arrive.
const RETRY: Duration = Duration::from_millis(500);
const TRIES: u32 = 3;

/// How long a token is given a chance before another one is issued for a node that refuses it.
const TOKEN_TRIAL: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// How often it is noted that a node takes jobs, which people look at.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// Makes the client for a node.
pub type MakeClient = Arc<dyn Fn() -> Arc<dyn WorkerClient> + Send + Sync>;

/// Gives jobs to nodes; cheap to clone.
#[derive(Clone)]
pub struct Push {
    dispatch: Dispatch,
    metrics: Metrics,
    make_client: MakeClient,
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Push")
    }
}

/// What became of a delivery.
enum Delivered {
    /// The node has the attempt.
    Taken,
    /// The node will not have the job, now or later.
    Refused(String),
    /// It surely does not have it.
    Unsent(String),
    /// It surely does not have it, because it does not know the token.
    Unauthorized(String),
    /// Nobody knows; it is asked for again, or the lease decides. `unauthorized` says that the node does not know the token.
    Lost { why: String, unauthorized: bool },
    /// The attempt is over, or this controller is.
    Over,
}

impl Push {
    /// Gives jobs over HTTPS; a node has so long to take one.
    pub fn over_https(dispatch: Dispatch, metrics: Metrics, timeout: Duration) -> Self {
        Self::with(dispatch, metrics, Arc::new(move || Arc::new(HttpsClient::new(timeout))))
    }

    /// Gives jobs by these clients.
    pub fn with(dispatch: Dispatch, metrics: Metrics, make_client: MakeClient) -> Self {
        Self { dispatch, metrics, make_client }
    }

    /// Serves all nodes that are to be called, until `stop` fires.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.dispatch.parts.store.changes();
        let mut tasks: BTreeMap<String, (String, tokio::task::JoinHandle<()>)> = BTreeMap::new();
        let mut trouble = None;
        loop {
            match self.dispatch.parts.store.list_nodes().await {
                Ok(nodes) => {
                    trouble = None;
                    let wanted: BTreeMap<String, String> =
                        nodes.into_iter().filter(is_pushed).map(|node| (node.name, node.uid)).collect();
                    tasks.retain(|name, (uid, task)| {
                        let stays = wanted.get(name) == Some(uid) && !task.is_finished();
                        if !stays {
                            task.abort();
                        }
                        stays
                    });
                    for (name, uid) in wanted {
                        tasks.entry(name).or_insert_with_key(|name| {
                            let span = tracing::info_span!("dispatch.push", node.name = %name);
                            let serving = Serving::new(self.clone(), name.clone());
                            (uid, tokio::spawn(serving.run(stop.clone()).instrument(span)))
                        });
                    }
                }
                Err(error) => tell(&mut trouble, &error.into()),
            }
            tokio::select! {
                biased;
                // Cancel-safe: nothing is held.
                () = stop.cancelled() => break,
                // Cancel-safe: what has changed is looked at in any case.
                () = woken(&mut changes, |change| matches!(change, Change::Node { .. })) => {
                    tokio::time::sleep(PAUSE).await;
                }
                // Cancel-safe: a timer.
                () = tokio::time::sleep(TICK) => {}
            }
        }
        for (_, (_, task)) in tasks {
            // It ends by itself, and a defect in it is nobody's but its own.
            drop(task.await);
        }
    }

    /// A node with a token that is not due; issues one where it is.
    pub(crate) async fn with_token(dispatch: &Dispatch, node: NodeRow) -> Result<NodeRow, ApiError> {
        let issued_at = node.push.as_ref().map(|push| push.issued_at);
        if !is_pushed(&node)
            || !decide::token_is_due(issued_at, dispatch.parts.worker_tokens.life(), dispatch.now())
        {
            return Ok(node);
        }
        let serial = node.push.as_ref().map_or(0, |push| push.serial);
        let store = &dispatch.parts.store;
        match store.issue_worker_token(dispatch.now(), &node.name, serial).await {
            Ok(node) => {
                tracing::info!(
                    node.name = %node.name,
                    token.serial = serial + 1,
                    config.version = node.config_version,
                    "token for the node's Worker API issued"
                );
                Ok(node)
            }
            // Another controller was quicker.
            Err(windlass_store::Error::Conflict { .. }) => {
                let found = store.get_node(&node.name).await?;
                found.ok_or_else(|| ApiError::not_found("node", &node.name))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a node is declared to be called.
pub(crate) fn is_pushed(node: &NodeRow) -> bool {
    match node.spec.dispatch {
        DispatchMode::Push => true,
        DispatchMode::Pull => false,
    }
}

impl Dispatch {
    /// Why a node that is to be called cannot be; `None` where it can, or is not to be.
    pub(crate) fn push_obstacle(&self, node: &NodeRow) -> Option<decide::Unreachable> {
        if !is_pushed(node) {
            return None;
        }
        let capability = node.capability.as_ref();
        let token = self.parts.worker_tokens.in_force(node);
        let view = PushView {
            acknowledged: node.acked_version.zip(node.ack_status),
            applied: node.applied_version,
            url: capability.and_then(|report| report.worker_api.as_ref()).map(|api| api.base_url.as_str()),
            certificate: capability
                .and_then(|report| report.tls.as_ref())
                .and_then(|tls| tls.worker_api_server_cert_pem.as_deref()),
            token_expires_at: token.map(|token| token.expires_at),
        };
        decide::unreachable(&view, self.now())
    }

    /// Why a node that is to be called cannot be, or could not be when it was last tried.
    pub(crate) fn why_unreachable(&self, node: &NodeRow) -> Option<String> {
        let tried = || node.push.as_ref().filter(|_| is_pushed(node))?.error.clone();
        self.push_obstacle(node).map(|obstacle| obstacle.to_string()).or_else(tried)
    }

    fn target(&self, node: &NodeRow) -> Option<Target> {
        let capability = node.capability.as_ref()?;
        Some(Target {
            node: node.name.clone(),
            url: capability.worker_api.as_ref()?.base_url.trim_end_matches('/').to_owned(),
            certificate: capability.tls.as_ref()?.worker_api_server_cert_pem.clone()?,
            token: self.parts.worker_tokens.in_force(node)?.text,
        })
    }
}

/// The task that serves one node.
struct Serving {
    push: Push,
    node: String,
    client: Arc<dyn WorkerClient>,
    deliveries: JoinSet<(AttemptId, Delivered)>,
    /// Attempts that are under way.
    under_way: BTreeSet<AttemptId>,
    /// Attempts that the node is known to have.
    taken: BTreeSet<AttemptId>,
    failures: u32,
    /// Until when the node is left alone.
    paused_until: Option<Instant>,
    /// When attempts that nobody has begun are looked for again.
    recover_at: Instant,
    /// Until when it need not be noted again that the node takes jobs.
    noted_until: Option<Instant>,
}

impl Serving {
    fn new(push: Push, node: String) -> Self {
        let client = (push.make_client)();
        Self {
            push,
            node,
            client,
            deliveries: JoinSet::new(),
            under_way: BTreeSet::new(),
            taken: BTreeSet::new(),
            failures: 0,
            paused_until: None,
            recover_at: Instant::now(),
            noted_until: None,
        }
    }

    /// Serves until `stop` fires or the node is not to be called any more.
    async fn run(mut self, stop: CancellationToken) {
        tracing::info!("jobs are pushed to the node");
        let mut changes = self.push.dispatch.parts.store.changes();
        let mut trouble = None;
        // At a start all attempts that are not begun are somebody else's, or of a run of this controller that has ended.
        let mut first = true;
        loop {
            match self.round(first).await {
                Ok(true) => (trouble, first) = (None, false),
                Ok(false) => break,
                Err(error) => tell(&mut trouble, &error),
            }
            let name = self.node.clone();
            let concerns = |change: &Change| match change {
                Change::Queued => true,
                Change::Node { name: changed } | Change::Freed { node: changed } => *changed == name,
                Change::Job { .. }
                | Change::Records { .. }
                | Change::Event { .. }
                | Change::Template { .. }
                | Change::Any => false,
            };
            tokio::select! {
                biased;
                // Cancel-safe: nothing is held.
                () = stop.cancelled() => break,
                // Cancel-safe: `join_next` loses nothing when dropped.
                Some(ended) = self.deliveries.join_next() => match ended {
                    Ok((attempt, delivered)) => self.settle(attempt, delivered).await,
                    Err(error) => tracing::error!(error = %error, "a delivery panicked; this is a defect"),
                },
                // Cancel-safe: what has changed is looked at in any case.
                () = woken(&mut changes, concerns) => tokio::time::sleep(PAUSE).await,
                // Cancel-safe: a timer.
                () = tokio::time::sleep(TICK) => {}
            }
        }
        // Whoever comes next finds what was under way by the attempts that nobody has begun.
        self.deliveries.shutdown().await;
    }

    /// Looks once; false when the node is not to be called any more.
    async fn round(&mut self, first: bool) -> Result<bool, ApiError> {
        let dispatch = self.push.dispatch.clone();
        let Some(node) = dispatch.parts.store.get_node(&self.node).await?.filter(is_pushed) else {
            return Ok(false);
        };
        let node = Push::with_token(&dispatch, node).await?;
        if let Some(obstacle) = dispatch.push_obstacle(&node) {
            tracing::debug!(reason = <&str>::from(obstacle), "the node cannot be called: {obstacle}");
            return Ok(true);
        }
        if Instant::now() >= self.recover_at {
            self.recover(&node, first).await?;
            self.recover_at = Instant::now() + OVERDUE.unsigned_abs();
        }
        if self.paused_until.is_some_and(|until| Instant::now() < until) || !is_live(&dispatch, &node) {
            return Ok(true);
        }
        let room = AT_ONCE.saturating_sub(self.deliveries.len());
        // After a failure one delivery shows whether the node is back.
        let max = u32::try_from(if self.failures > 0 { room.min(1) } else { room }).unwrap_or(0);
        if max == 0 {
            return Ok(true);
        }
        for assignment in dispatch.claim_on_behalf(&node, max).await? {
            self.deliver(assignment, false);
        }
        Ok(true)
    }

    /// Takes up attempts that were claimed for the node and that it has not begun.
    async fn recover(&mut self, node: &NodeRow, first: bool) -> Result<(), ApiError> {
        let dispatch = self.push.dispatch.clone();
        let now = dispatch.now();
        let live = dispatch.parts.store.live_attempts(&node.name).await?;
        let ids: BTreeSet<AttemptId> = live.iter().map(windlass_store::AttemptRow::id).collect();
        self.taken.retain(|attempt| ids.contains(attempt));
        let mut waiting: BTreeMap<String, windlass_store::AttemptRow> = live
            .into_iter()
            .filter(|attempt| attempt.phase == AttemptPhase::Claimed)
            .filter(|attempt| first || now.duration_since(attempt.claimed_at) >= OVERDUE)
            .filter(|attempt| attempt.lease_until > now)
            .filter(|attempt| !self.under_way.contains(&attempt.id()) && !self.taken.contains(&attempt.id()))
            .map(|attempt| (attempt.job.clone(), attempt))
            .collect();
        let uids: Vec<String> = waiting.keys().cloned().collect();
        if uids.is_empty() {
            return Ok(());
        }
        let jobs = dispatch.parts.store.get_jobs(&uids).await?;
        let held = jobs.into_iter().filter_map(|job| {
            let attempt = waiting.remove(&job.uid).filter(|attempt| attempt.epoch == job.epoch)?;
            Some((job, attempt))
        });
        let reading = Reading::new(&dispatch.parts.stopping);
        let read = held.map(async |(job, attempt)| {
            let secrets = &dispatch.parts.secrets;
            let delivery = secrets.deliver(&job.uid, &job.namespace, &job.spec, &reading).await?;
            // The node may have begun it, so it is not given back: should it not have, the attempt ends with its lease.
            Ok::<_, ApiError>(match delivery {
                Delivery::Given { secrets, spec } => Some((job, attempt, secrets, spec)),
                Delivery::Postponed { .. } => None,
            })
        });
        let found: Vec<_> = try_join_all(read).await?.into_iter().flatten().collect();
        // Whoever has claimed one of them cannot give it back any more once it has another version.
        let marks = found.iter().map(|(job, ..)| transition(job, JobChange::of(job))).collect();
        let marked = dispatch.parts.store.apply_transitions(now, marks).await?;
        for ((job, attempt, secrets, spec), marked) in found.into_iter().zip(marked) {
            match marked {
                TransitionOutcome::Done(_) => {}
                // It has begun, or was given back. Else it is found again.
                TransitionOutcome::Stale => continue,
            }
            tracing::info!(job.id = %job.uid, attempt.epoch = attempt.epoch, "delivery taken up");
            let left = attempt.lease_until.duration_since(dispatch.now()).max(jiff::SignedDuration::ZERO);
            self.deliver(
                Assignment {
                    attempt: attempt.id(),
                    namespace: job.namespace,
                    name: job.name,
                    number: attempt.number,
                    spec: *spec,
                    offline: attempt.offline,
                    lease_seconds: left.unsigned_abs().as_secs(),
                    claimed_at: attempt.claimed_at,
                    secrets,
                    task_id: None,
                },
                true,
            );
        }
        Ok(())
    }

    fn deliver(&mut self, assignment: Assignment, ask_first: bool) {
        let attempt = assignment.attempt.clone();
        self.under_way.insert(attempt.clone());
        let span =
            tracing::info_span!("dispatch.deliver", job.id = attempt.job, attempt.epoch = attempt.epoch);
        let delivery = Sending {
            dispatch: self.push.dispatch.clone(),
            client: Arc::clone(&self.client),
            node: self.node.clone(),
            assignment,
        };
        self.deliveries.spawn(async move { (attempt, delivery.send(ask_first).await) }.instrument(span));
    }

    /// Draws the conclusions from a delivery.
    async fn settle(&mut self, attempt: AttemptId, delivered: Delivered) {
        self.under_way.remove(&attempt);
        let (counted, outcome, end) = match delivered {
            Delivered::Taken => {
                tracing::info!(
                    job.id = attempt.job,
                    attempt.epoch = attempt.epoch,
                    "the node has taken the job"
                );
                self.taken.insert(attempt.clone());
                (self.failures, self.paused_until) = (0, None);
                let noted = self.noted_until.is_some_and(|until| Instant::now() < until);
                self.noted_until =
                    self.noted_until.filter(|_| noted).or_else(|| Some(Instant::now() + NOTE_EVERY));
                (Counted::Taken, (!noted).then_some(Ok(())), None)
            }
            Delivered::Refused(why) => {
                tracing::warn!(
                    job.id = attempt.job,
                    attempt.epoch = attempt.epoch,
                    error = why,
                    "the node refuses the job"
                );
                (Counted::Refused, None, Some((TerminalPhase::Failed, "WorkerApiRefused", why)))
            }
            Delivered::Unauthorized(why) => {
                self.fail(&attempt, &why);
                self.replace_token().await;
                (
                    Counted::Failed,
                    Some(Err(why.clone())),
                    Some((TerminalPhase::Released, "NotDelivered", why)),
                )
            }
            Delivered::Unsent(why) => {
                self.fail(&attempt, &why);
                (
                    Counted::Failed,
                    Some(Err(why.clone())),
                    Some((TerminalPhase::Released, "NotDelivered", why)),
                )
            }
            Delivered::Lost { why, unauthorized } => {
                self.fail(&attempt, &why);
                if unauthorized {
                    self.replace_token().await;
                }
                (Counted::Failed, Some(Err(why)), None)
            }
            Delivered::Over => return,
        };
        self.push.metrics.delivery(counted);
        let dispatch = &self.push.dispatch;
        let noted = async {
            if let Some(outcome) = outcome {
                dispatch.parts.store.note_delivery(dispatch.now(), &self.node, outcome).await?;
            }
            let Some((phase, reason, message)) = end else { return Ok(()) };
            let Some(node) = dispatch.parts.store.get_node(&self.node).await? else { return Ok(()) };
            dispatch.end_undelivered(&node, &attempt, phase, (reason, message)).await
        };
        if let Err(error) = noted.await {
            tracing::warn!(
                job.id = attempt.job,
                error = %chain(&error),
                "what became of a delivery could not be stored; the attempt ends with its lease"
            );
        }
    }

    /// Issues another token where the node does not take the one that should be in force: its clock is wrong, it was set back
    /// to an earlier state, or the life of tokens was changed.
    async fn replace_token(&self) {
        let dispatch = &self.push.dispatch;
        let replaced = async {
            let found = dispatch.parts.store.get_node(&self.node).await?;
            let Some((node, push)) = found.and_then(|node| Some((node.clone(), node.push?))) else {
                return Ok(());
            };
            let fresh = dispatch.now().duration_since(push.issued_at).abs() < TOKEN_TRIAL;
            // One that the node has not applied yet may be all that it lacks.
            if fresh || node.applied_version.is_none_or(|applied| applied < push.since_version) {
                return Ok(());
            }
            dispatch.parts.store.issue_worker_token(dispatch.now(), &self.node, push.serial).await.map(drop)
        };
        match replaced.await {
            // Another controller was quicker.
            Ok(()) | Err(windlass_store::Error::Conflict { .. }) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "another token could not be issued"),
        }
    }

    fn fail(&mut self, attempt: &AttemptId, why: &str) {
        self.noted_until = None;
        self.failures = self.failures.saturating_add(1);
        let pause = decide::pause(self.failures).unsigned_abs();
        self.paused_until = Some(Instant::now() + pause);
        tracing::warn!(
            job.id = attempt.job,
            attempt.epoch = attempt.epoch,
            error = why,
            pause = pause.as_secs(),
            "a job could not be given to the node, which is left alone for a while"
        );
    }
}

/// Whether a heartbeat of the node is fresh.
fn is_live(dispatch: &Dispatch, node: &NodeRow) -> bool {
    let age = node.last_seen_at.map(|at| dispatch.now().duration_since(at));
    age.is_some_and(|age| age <= super::signed(dispatch.lease()))
}

/// One delivery.
struct Sending {
    dispatch: Dispatch,
    client: Arc<dyn WorkerClient>,
    node: String,
    assignment: Assignment,
}

impl Sending {
    /// Tries until the node has the attempt, has refused it, or its lease is over.
    async fn send(self, ask_first: bool) -> Delivered {
        let give_up = Instant::now() + Duration::from_secs(self.assignment.lease_seconds);
        // Whether the node may have it, so that it is asked before it is sent again.
        let mut doubtful = ask_first;
        let mut tries = 0;
        loop {
            let target = match self.target().await {
                Ok(Some(target)) => target,
                Ok(None) => return Delivered::Over,
                Err(error) if doubtful => {
                    return Delivered::Lost { why: chain(&error), unauthorized: false };
                }
                Err(error) => return Delivered::Unsent(chain(&error)),
            };
            let attempt = &self.assignment.attempt;
            if doubtful {
                match self.client.has(&target, attempt).await {
                    Ok(true) => return Delivered::Taken,
                    Ok(false) => doubtful = false,
                    Err(error) => {
                        // It may have it and work on it: whatever keeps it from telling takes nothing away from it.
                        let unauthorized = matches!(error, CallError::Refused { status: 401, .. });
                        tries += 1;
                        if (tries >= TRIES && matches!(error, CallError::Refused { .. }))
                            || Instant::now() + RETRY >= give_up
                        {
                            return Delivered::Lost { why: chain(&error), unauthorized };
                        }
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            let Err(error) = self.client.run(&target, &self.assignment).await else {
                return Delivered::Taken;
            };
            let why = chain(&error);
            match error {
                // It had it, and has told everything about it by now.
                CallError::Refused { status: 410, .. } => return Delivered::Taken,
                CallError::Refused { status: 400 | 403 | 409 | 413 | 422, .. } => {
                    return Delivered::Refused(why);
                }
                // A configuration with another token may have been applied since the node was looked at.
                CallError::Refused { status: 401, .. } if tries + 1 < TRIES => {}
                CallError::Refused { status: 401, .. } => return Delivered::Unauthorized(why),
                // It has waited for room already.
                CallError::Refused { status: 503, .. } => return Delivered::Unsent(why),
                CallError::Refused { status: 500.., .. } if tries + 1 < TRIES => {}
                CallError::Refused { .. } => return Delivered::Unsent(why),
                CallError::Unsent { .. } if tries + 1 >= TRIES => return Delivered::Unsent(why),
                CallError::Unsent { .. } => {}
                CallError::Unanswered { .. } => doubtful = true,
            }
            tries += 1;
            tracing::debug!(error = why, tries, "a delivery is tried again");
            if Instant::now() + RETRY >= give_up {
                return match doubtful {
                    true => Delivered::Lost { why, unauthorized: false },
                    false => Delivered::Unsent(why),
                };
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Where the node is called now; `None` where the attempt is not its any more.
    async fn target(&self) -> Result<Option<Target>, ApiError> {
        let store = &self.dispatch.parts.store;
        let AttemptId { job, epoch } = &self.assignment.attempt;
        let found = store.get_jobs(std::slice::from_ref(job)).await?;
        let holds = found.first().is_some_and(|row| {
            row.epoch == *epoch && row.phase.is_held() && row.node.as_deref() == Some(&self.node)
        });
        if !holds {
            return Ok(None);
        }
        let node = store.get_node(&self.node).await?;
        Ok(node.and_then(|node| self.dispatch.target(&node)))
    }
}

/// Waits for a change that is looked for.
async fn woken(changes: &mut Receiver<Change>, concerns: impl Fn(&Change) -> bool) {
    loop {
        match changes.recv().await {
            Ok(Change::Any) | Err(RecvError::Lagged(_)) => return,
            Ok(change) if concerns(&change) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Says an error once, and again only when it is another one.
fn tell(said: &mut Option<String>, error: &ApiError) {
    let text = chain(error);
    if said.as_ref() != Some(&text) {
        tracing::warn!(error = %text, "nodes cannot be given jobs; it will be tried again");
        *said = Some(text);
    }
}
