//! Claims: work and orders for a node, as soon as there are any.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::SignedDuration;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::Instant;
use windlass_core::drain;
use windlass_core::life::Ending;
use windlass_core::placement::Offer;
use windlass_core::requirement::Room;
use windlass_crds::protocol::{
    self, Assignment, AttemptId, ClaimRequest, ClaimResponse, Order, Record, RecordBody, ReportRequest,
    Terminal, TerminalPhase,
};
use windlass_store::{
    Change, ClaimSpec, ClaimedJob, JobChange, JobRow, NodeRow, Overdue, Reserve, Transition,
    TransitionOutcome,
};

use super::push::is_pushed;
use super::{Dispatch, check_version, transition};
use crate::error::{ApiError, Code};
use crate::kube::values::{LOOK, Reading};
use crate::secrets::Delivery;

/// The longest long poll; below the 60 s after which many middleboxes drop a silent connection.
const MAX_WAIT: Duration = Duration::from_secs(50);

/// The most assignments in one answer.
const MAX_BATCH: u32 = 256;

/// By which part the wait for something that the cluster lacks is longer at most, so that many jobs do not come at once.
const JITTER: f64 = 0.25;

/// What becomes of a job that was claimed.
enum Answer {
    /// The node is given it.
    Given(Box<Assignment>),
    /// It waits in its queue.
    GivenBack(Box<Transition>),
    /// The node may have it; it ends with its lease if not.
    Left,
}

/// Who asks for jobs.
#[derive(Clone, Copy)]
struct Asker<'a> {
    boot_id: &'a str,
    request_id: &'a str,
    on_behalf: bool,
}

impl Dispatch {
    /// Work and orders for a node, waiting for them at most as long as the request says.
    pub async fn claim(&self, name: &str, request: &ClaimRequest) -> Result<ClaimResponse, ApiError> {
        check_version(request.version)?;
        let received = Instant::now();
        let deadline = received + Duration::from_secs(request.wait_seconds.into()).min(MAX_WAIT);
        let mut changes = self.parts.store.changes();
        loop {
            let waited = received.elapsed();
            let mut answer = self.claim_once(name, request).await?;
            for assignment in &mut answer.assignments {
                // The node counts from when it sent the request, which is no later than when it came in.
                assignment.lease_seconds += waited.as_secs();
            }
            if !answer.assignments.is_empty() || !answer.orders.is_empty() {
                return Ok(answer);
            }
            let next_ready = self.parts.store.next_ready_at(self.now()).await?;
            let until_ready = next_ready.map(|at| at.duration_since(self.now()).max(SignedDuration::ZERO));
            let wake_at =
                until_ready.map_or(deadline, |wait| deadline.min(Instant::now() + wait.unsigned_abs()));
            tokio::select! {
                biased;
                // Cancel-safe: nothing is held.
                () = self.parts.stopping.cancelled() => return Ok(ClaimResponse { stopping: true, ..answer }),
                // Cancel-safe: a change that is lost with the future is found by the look that follows.
                open = relevant(&mut changes, name, request) => if !open { return Ok(answer) },
                // Cancel-safe: a timer.
                () = tokio::time::sleep_until(wake_at) => if Instant::now() >= deadline { return Ok(answer) },
            }
        }
    }

    /// Work and orders that are there now.
    pub async fn claim_once(&self, name: &str, request: &ClaimRequest) -> Result<ClaimResponse, ApiError> {
        let node = self.parts.store.get_node(name).await?;
        let node = node.ok_or_else(|| ApiError::not_found("node", name))?;
        self.check_boot(&node, &request.boot_id).await?;
        let orders = self.orders(&node, &request.held).await?;
        let asker = Asker { boot_id: &request.boot_id, request_id: &request.request_id, on_behalf: false };
        // A node that is given its jobs asks for none; one that has not heard of that yet gets none.
        let max = if is_pushed(&node) { 0 } else { request.max };
        let assignments = self.assign(&node, asker, max).await?;
        let unreadable = Vec::new();
        Ok(ClaimResponse { version: protocol::VERSION, assignments, orders, stopping: false, unreadable })
    }

    /// Claims jobs for a node that does not ask itself, at most `max`. Nothing is heard of the node by that.
    pub(crate) async fn claim_on_behalf(
        &self,
        node: &NodeRow,
        max: u32,
    ) -> Result<Vec<Assignment>, ApiError> {
        let Some(boot_id) = &node.boot_id else { return Ok(Vec::new()) };
        let request_id = self.parts.ids.uid(self.now());
        let asker = Asker { boot_id, request_id: &request_id, on_behalf: true };
        match self.assign(node, asker, max).await {
            // The agent has been started again since the node was looked at.
            Err(error) if error.code == Code::Fenced => Ok(Vec::new()),
            result => result,
        }
    }

    async fn assign(&self, node: &NodeRow, asker: Asker<'_>, max: u32) -> Result<Vec<Assignment>, ApiError> {
        let Some(capability) = &node.capability else { return Ok(Vec::new()) };
        let offer = Offer::new(&node.name, capability, &node.spec);
        // A node that must not take jobs still shows that its claim channel is alive.
        let max = if is_closed(node) { 0 } else { max.min(MAX_BATCH) };
        let classes = self.fitting(&offer).await?;
        let leases = &self.parts.leases;
        let spec = ClaimSpec {
            node: &node.name,
            boot_id: asker.boot_id,
            request_id: asker.request_id,
            max,
            classes: &classes,
            queues: &node.spec.queues,
            slots: slots(node),
            capacity: Reserve {
                cpu_millis: offer.capacity.cpu_millis,
                memory_bytes: offer.capacity.memory_bytes,
                gpus: offer.capacity.gpus,
            },
            lease: leases.lease,
            // The first heartbeat of a node that has got the job brings the long one.
            lease_continue: match asker.on_behalf {
                true => leases.lease,
                false => node.spec.offline_grace.map_or(leases.grace, windlass_crds::Span::get),
            },
            node_offline_default: node.spec.offline,
            on_behalf: asker.on_behalf,
        };
        let claimed = self.parts.store.claim(self.now(), spec).await?;
        let reading = Reading::new(&self.parts.stopping);
        let answers = join_all(claimed.into_iter().map(|claimed| self.assignment(claimed, &reading))).await;
        let (mut assignments, mut given_back) = (Vec::with_capacity(answers.len()), Vec::new());
        for answer in answers {
            // Should this fail, the node asks again by the same request, and gets the same attempts.
            match answer? {
                Answer::Given(assignment) => assignments.push(*assignment),
                Answer::GivenBack(transition) => given_back.push(*transition),
                Answer::Left => {}
            }
        }
        let jobs: Vec<String> = given_back.iter().map(|transition| transition.job.clone()).collect();
        let outcomes = self.parts.store.apply_transitions(self.now(), given_back).await?;
        for (uid, outcome) in jobs.iter().zip(outcomes) {
            match outcome {
                TransitionOutcome::Done(_) => {}
                TransitionOutcome::Stale => {
                    tracing::info!(
                        job.id = uid,
                        "the attempt is not given back, because somebody else may have given it out"
                    );
                }
            }
        }
        Ok(assignments)
    }

    /// The requirement classes that a node with this offer fits, ascending.
    pub(crate) async fn fitting(&self, offer: &Offer) -> Result<Arc<Vec<i64>>, ApiError> {
        self.fits.fitting(&self.parts.store, offer).await
    }

    /// What becomes of a claimed job, which may have to wait for something that its steps name.
    async fn assignment(&self, claimed: ClaimedJob, reading: &Reading<'_>) -> Result<Answer, ApiError> {
        let ClaimedJob { job, epoch, number, lease, offline, repeated } = claimed;
        let delivered = self.parts.secrets.deliver(&job.uid, &job.namespace, &job.spec, reading).await?;
        let (secrets, spec) = match delivered {
            Delivery::Given { secrets, spec } => (secrets, spec),
            Delivery::Postponed { reason, message } => {
                tracing::info!(job.id = %job.uid, job.epoch = epoch, reason, repeated, "the job waits for what its steps name");
                // An earlier answer to the same request may have brought it to the node: then its lease decides.
                if repeated {
                    return Ok(Answer::Left);
                }
                return Ok(Answer::GivenBack(Box::new(self.postponed(&job, reason, message))));
            }
        };
        tracing::info!(job.id = %job.uid, job.epoch = epoch, node.name = job.node.as_deref(), "job claimed");
        Ok(Answer::Given(Box::new(Assignment {
            attempt: AttemptId { job: job.uid, epoch },
            namespace: job.namespace,
            name: job.name,
            number,
            spec: *spec,
            offline,
            lease_seconds: lease.as_secs(),
            claimed_at: self.now(),
            task_id: None,
            secrets,
        })))
    }

    /// Gives an attempt back that nobody but the caller has had: the job goes to its queue for a while, however it is retried otherwise.
    /// Holds only for the version of the job that was claimed: whoever gives the attempt out after that has drawn another one.
    fn postponed(&self, job: &JobRow, reason: &str, message: String) -> Transition {
        let ending = Ending {
            phase: TerminalPhase::Released,
            reason: reason.to_owned(),
            message: Some(message),
            exit_code: None,
            controller_was_away: false,
            started: false,
        };
        let mut change = JobChange::of(job);
        self.end(job, &ending, None, &mut change);
        let wait = LOOK.mul_f64(1.0 + JITTER * self.parts.ids.chance());
        change.not_before = change.not_before.and(self.now().checked_add(wait).ok());
        transition(job, change)
    }

    /// Ends an attempt that its node has not begun, as if the node had said so.
    pub(super) async fn end_undelivered(
        &self,
        node: &NodeRow,
        attempt: &AttemptId,
        phase: TerminalPhase,
        (reason, message): (&str, String),
    ) -> Result<(), ApiError> {
        let terminal = Terminal {
            phase,
            reason: reason.to_owned(),
            message: Some(message),
            exit_code: None,
            last_sequence: 1,
        };
        let body = RecordBody::Terminal(terminal);
        let record = Record { attempt: attempt.clone(), sequence: 1, at: self.now(), body };
        let request = ReportRequest { version: protocol::VERSION, records: vec![record] };
        self.report(node, request).await.map(drop)
    }

    /// What to do with the attempts that a node says it holds.
    async fn orders(&self, node: &NodeRow, held: &[AttemptId]) -> Result<Vec<Order>, ApiError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let uids: Vec<_> = held.iter().map(|attempt| attempt.job.clone()).collect();
        let jobs = self.parts.store.get_jobs(&uids).await?;
        let jobs: HashMap<_, _> = jobs.into_iter().map(|job| (job.uid.clone(), job)).collect();
        let drain = node.hold.and_then(|hold| hold.drain);
        let requeues =
            drain.is_some_and(|drain| drain.stopping_at.is_some() && drain.overdue == Overdue::Requeue);
        let order = |attempt: &AttemptId| match jobs.get(&attempt.job) {
            Some(job)
                if job.epoch == attempt.epoch
                    && job.phase.is_held()
                    && job.node.as_deref() == Some(&node.name) =>
            {
                // An agent stops an attempt in one way, whether the job is cancelled or the node is emptied; what
                // becomes of the job is decided here when the attempt has ended.
                let stop = job.cancel_requested_at.is_some()
                    || (requeues && drain::is_interruptible(&job.spec.retry));
                stop.then(|| Order::Cancel { attempt: attempt.clone() })
            }
            Some(_) | None => Some(Order::Fenced { attempt: attempt.clone() }),
        };
        Ok(held.iter().filter_map(order).collect())
    }
}

/// Whether a node must not take jobs, whatever it has free.
pub(crate) fn is_closed(node: &NodeRow) -> bool {
    node.spec.unschedulable
        || node.hold.is_some()
        || node.applied_version.is_none()
        || node.not_ready.is_some()
}

/// What a job reserves, as the room that it takes.
pub(crate) const fn room(reserve: Reserve) -> Room {
    let Reserve { cpu_millis, memory_bytes, gpus } = reserve;
    Room { cpu_millis, memory_bytes, gpus }
}

/// How many attempts a node can hold.
pub(crate) fn slots(node: &NodeRow) -> u32 {
    let sandbox = node.capability.as_ref().and_then(|capability| capability.sandbox.as_ref());
    let own = sandbox.and_then(|sandbox| sandbox.max_concurrency);
    node.spec.concurrency.or(own).unwrap_or(1)
}

/// Waits for a change that may concern this claim; false when there will be none any more.
async fn relevant(changes: &mut Receiver<Change>, node: &str, request: &ClaimRequest) -> bool {
    loop {
        let concerns = match changes.recv().await {
            Ok(Change::Queued) => request.max > 0,
            Ok(Change::Node { name }) => name == node,
            // An attempt that the node has ended takes up its room here until its report is stored.
            Ok(Change::Freed { node: freed }) => request.max > 0 && freed == node,
            Ok(Change::Job { uid }) => request.held.iter().any(|attempt| attempt.job == uid),
            Ok(Change::Records { .. } | Change::Event { .. } | Change::Template { .. }) => false,
            Ok(Change::Any) | Err(RecvError::Lagged(_)) => true,
            Err(RecvError::Closed) => return false,
        };
        if concerns {
            return true;
        }
    }
}
