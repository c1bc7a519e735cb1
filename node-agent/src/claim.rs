//! Claims: the long poll that brings work and orders.
//!
//! There is always one poll under way, also when the node is full, drains or is not ready; it then asks for orders
//! only, as a node does that is given its work by its Worker API. When a slot becomes free during such a poll, it is dropped and asked anew.
//!
//! *Request ids*: a poll that may have been granted something and whose answer did not arrive is asked again with the
//! same id, so that the same assignments come. A poll that asked for nothing leaves nothing behind, and a new id is
//! used.
//!
//! *Leases* count from when the first request with the id was sent. When that leaves little, the executor has the lease
//! renewed before it does anything.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use windlass_crds::node_config::DispatchMode;
use windlass_crds::protocol::{Assignment, AttemptId, ClaimRequest, ClaimResponse, Unreadable, VERSION};

use crate::backoff::Backoff;
use crate::client::{self, ControllerClient};
use crate::clock::Clock;
use crate::config_sync::ConfigState;
use crate::fs::AgentFs;
use crate::heartbeat::Superseded;
use crate::held::{Control, HeldAttempts};
use crate::ids::IdSource;
use crate::ledger::{self, Ledger, Taken};
use crate::readiness::{Part, Readiness};
use crate::session::SessionHandle;
use crate::watch;

/// How long the controller may hold a poll; below the 60 s after which middleboxes drop silent connections.
const POLL_SECONDS: u32 = 30;
/// An empty answer that comes sooner means that the controller is going down or confused.
const TOO_SOON: Duration = Duration::from_secs(1);

/// What the claim loop hands to the dispatcher.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// A new attempt, durable in the ledger and in the table of held ones.
    Take(ledger::Entry, watch::Receiver<Control>),
    /// An attempt that is given back untouched.
    Release(Assignment, Release),
    /// An attempt that fails because its job cannot be read, with the reason for people.
    Refuse(AttemptId, String),
}

/// Why an attempt is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The claiming task.
pub(crate) struct Claims {
    pub(crate) node: String,
    pub(crate) boot_id: String,
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) fs: Arc<dyn AgentFs>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) held: HeldAttempts,
    pub(crate) readiness: Readiness,
    pub(crate) slots: watch::Receiver<u32>,
    pub(crate) draining: watch::Receiver<bool>,
    /// Says whether this node asks for work at all.
    pub(crate) config: watch::Receiver<ConfigState>,
    pub(crate) claimed: mpsc::Sender<Claimed>,
    /// Tells the lease keeper to beat now.
    pub(crate) hurry: Arc<Notify>,
    /// Free bytes below which no work is taken on.
    pub(crate) least_free_bytes: u64,
}

/// A request that may be asked again.
struct Asked {
    id: String,
    first_sent_at: Duration,
}

impl Claims {
    /// Claims for ever.
    ///
    /// # Errors
    /// When another agent has taken over this node's identity.
    pub(crate) async fn run(self) -> Result<std::convert::Infallible, Superseded> {
        let mut backoff = Backoff::for_controller();
        let mut trouble: Option<&'static str> = None;
        let mut again: Option<Asked> = None;
        loop {
            let session = self.session.ready().await;
            self.look_at_disk().await;
            let max = self.room();
            let sent_at = self.clock.boottime();
            let asked =
                again.take().unwrap_or_else(|| Asked { id: self.ids.unique(), first_sent_at: sent_at });
            let request = ClaimRequest {
                version: VERSION,
                request_id: asked.id.clone(),
                boot_id: self.boot_id.clone(),
                max,
                wait_seconds: POLL_SECONDS,
                held: self.held.to_be_ordered(),
            };
            let began = Instant::now();
            // Cancel-safe: a poll that is dropped is asked again, with the same id if it may have been granted
            // something.
            let answer = tokio::select! {
                biased;
                answer = self.client.claim(&session, &request) => answer,
                () = self.better_ask_anew(max) => {
                    again = (max > 0).then_some(asked);
                    continue;
                }
            };
            let error = match answer {
                Ok(response) => {
                    if trouble.take().is_some() {
                        tracing::info!("claims reach the controller again");
                    }
                    let empty = response.assignments.is_empty()
                        && response.orders.is_empty()
                        && response.unreadable.is_empty();
                    self.take_over(response, asked.first_sent_at).await;
                    if empty && began.elapsed() < TOO_SOON {
                        tokio::time::sleep(backoff.next(&*self.ids)).await;
                    } else {
                        backoff.reset();
                    }
                    continue;
                }
                Err(error) => error,
            };
            if error.is_fenced() {
                return Err(Superseded { node: self.node });
            }
            if max > 0 && matches!(error, client::Error::Unreachable { .. } | client::Error::Malformed { .. })
            {
                again = Some(asked);
            }
            if error.is_unauthorized() {
                self.session.expired(&session);
            }
            if trouble != Some(error.kind()) {
                trouble = Some(error.kind());
                tracing::warn!(error = %crate::error_chain(&error), "claims do not reach the controller; trying again");
            }
            tokio::time::sleep(backoff.next(&*self.ids)).await;
        }
    }

    /// How many attempts can be taken on now.
    fn room(&self) -> u32 {
        if *self.draining.borrow() || self.readiness.not_ready().is_some() {
            return 0;
        }
        match self.config.borrow().dispatch {
            DispatchMode::Pull => {}
            // It is given work by its Worker API; the poll goes on for orders.
            DispatchMode::Push => return 0,
        }
        let held = u32::try_from(*self.held.count().borrow()).unwrap_or(u32::MAX);
        self.slots.borrow().saturating_sub(held)
    }

    /// Returns when a poll that asked for `max` should be dropped: it asked for nothing and there is room now, or it
    /// asked for something and there is none.
    async fn better_ask_anew(&self, max: u32) {
        let mut count = self.held.count();
        let mut slots = self.slots.clone();
        let mut draining = self.draining.clone();
        let mut config = self.config.clone();
        let mut readiness = self.readiness.changes();
        while (max == 0) == (self.room() == 0) {
            // Cancel-safe: all only look. Their senders live as long as the agent.
            let looked = tokio::select! {
                biased;
                looked = count.changed() => looked,
                looked = slots.changed() => looked,
                looked = draining.changed() => looked,
                looked = config.changed() => looked,
                looked = readiness.changed() => looked,
            };
            if looked.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn look_at_disk(&self) {
        let cause = match self.fs.free_bytes().await {
            Ok(free) if free < self.least_free_bytes => Some(format!(
                "the state folder's disk is nearly full: {} MiB free, {} needed",
                free >> 20,
                self.least_free_bytes >> 20
            )),
            Ok(_) => None,
            Err(error) => Some(format!("the state folder's disk cannot be examined: {error}")),
        };
        self.readiness.set(Part::Disk, cause);
    }

    async fn take_over(&self, response: ClaimResponse, first_sent_at: Duration) {
        let ClaimResponse { version: _, assignments, orders, stopping, unreadable } = response;
        if stopping {
            // The answer to a heartbeat that is sent now grants leases that outlast the controller's absence.
            self.hurry.notify_one();
        }
        self.held.obey(&orders);
        let draining = *self.draining.borrow();
        let host_boot = self.clock.host_boot();
        let took = assignments.into_iter().map(|assignment| {
            let lease_until = first_sent_at + Duration::from_secs(assignment.lease_seconds);
            let entry = ledger::Entry {
                assignment,
                lease_until,
                host_boot: host_boot.clone(),
                pushed: false,
                sealed: None,
            };
            async move {
                if draining {
                    let message = "the agent is draining and takes no more work".to_owned();
                    return Some(Claimed::Release(entry.assignment, Release { reason: "Draining", message }));
                }
                match self.ledger.take(&entry).await {
                    Ok(Taken::Known) => None,
                    Ok(Taken::New) => {
                        let attempt = entry.assignment.attempt.clone();
                        let control = self.held.insert(attempt, first_sent_at, entry.lease_until);
                        Some(Claimed::Take(entry, control))
                    }
                    Err(error) => {
                        let message = crate::error_chain(&error);
                        tracing::warn!(
                            job.id = entry.assignment.attempt.job,
                            error = message,
                            "an assignment cannot be noted and is given back"
                        );
                        Some(Claimed::Release(entry.assignment, Release { reason: "DiskFull", message }))
                    }
                }
            }
        });
        for Unreadable { attempt, problem } in unreadable {
            tracing::warn!(
                job.id = attempt.job,
                error = problem,
                "a job asks for what this agent does not know and is refused; update the agent"
            );
            let message = format!(
                "the agent of version {} cannot read the job: {problem}; update the agent, or leave out what is new",
                env!("CARGO_PKG_VERSION")
            );
            // The dispatcher is gone only when the whole agent is.
            if self.claimed.send(Claimed::Refuse(attempt, message)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        for claimed in futures::future::join_all(took).await.into_iter().flatten() {
            // The dispatcher is gone only when the whole agent is.
            if self.claimed.send(claimed).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
