//! The controller's side of the agent protocol, apart from HTTP.
//!
//! Everything a node can ask is a method here, over the store and injected time and ids, so that the same code serves
//! HTTP handlers and the simulation. Waiting (long polls) is built on [`windlass_store::Store::changes`]: a wake-up
//! says only that something may have changed; what is true is always read again.
//!
//! ```text
//! claim     ──► fits (classes of the node's profile) ──► store.claim      ─┐
//! heartbeat ──► coalesced per tick ──► store.beat                          ├─► attempts, leases
//! report    ──► bodies ──► core::progress, core::life ──► store.apply     ─┤
//! push      ──► store.claim on the node's behalf ──► the node's Worker API ─┘
//! ```

mod claim;
mod config;
mod facts;
mod fits;
mod heartbeat;
mod push;
mod register;
mod report;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use windlass_crds::protocol;
use windlass_store::{NewNodeEvent, NodeEventKind, NodeRow, Store};

use crate::auth::{self, NodeTokens};
use crate::bodies::Bodies;
use crate::clock::{Clock, IdSource};
use crate::error::{ApiError, Code};
use crate::secrets::Secrets;

pub(crate) use claim::{is_closed, room, slots};
pub use push::{CallError, MakeClient, Push, Target, WorkerClient, WorkerTokens};
pub(crate) use report::transition;

/// Times of the agent protocol.
#[derive(Clone, Copy, Debug)]
pub struct LeaseSettings {
    /// How often agents send a heartbeat.
    pub beat: Duration,
    /// How long an attempt lives without a heartbeat.
    pub lease: Duration,
    /// The lease of attempts with `offline: continue`.
    pub grace: Duration,
}

impl Default for LeaseSettings {
    /// DESIGN §4: beat 10 s, lease 25 s, grace 15 min; with a sweep each second recovery takes at most 35 s.
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(10),
            lease: Duration::from_secs(25),
            grace: Duration::from_secs(15 * 60),
        }
    }
}

/// What [`Dispatch`] works with.
#[derive(Clone)]
pub struct DispatchParts {
    /// The store.
    pub store: Store,
    /// Bodies of log chunks and inputs.
    pub bodies: Bodies,
    /// What attempts are given of secrets.
    pub secrets: Secrets,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// New ids and chance.
    pub ids: Arc<dyn IdSource>,
    /// Makes and checks node tokens.
    pub tokens: NodeTokens,
    /// Makes the tokens by which nodes are called.
    pub worker_tokens: WorkerTokens,
    /// Times.
    pub leases: LeaseSettings,
    /// The URL under which nodes reach this controller, without a trailing slash.
    pub base_url: String,
    /// The certificate authority that nodes should trust, in PEM.
    pub ca_pem: Option<String>,
    /// Fires when the controller is about to stop.
    pub stopping: CancellationToken,
}

/// The controller's side of the agent protocol; cheap to clone.
#[derive(Clone)]
pub struct Dispatch {
    parts: Arc<DispatchParts>,
    fits: Arc<fits::Fits>,
    beats: heartbeat::Beats,
    service: Arc<Service>,
}

impl Dispatch {
    /// Starts serving nodes.
    pub fn new(parts: DispatchParts) -> Self {
        let service = Arc::new(Service::begin(parts.clock.now()));
        let beats = heartbeat::Beats::start(parts.store.clone(), parts.clock.clone(), service.clone());
        Self { parts: Arc::new(parts), fits: Arc::default(), beats, service }
    }

    /// The node that a token was made for, if it still exists under the same uid and nobody else has been given its name.
    pub async fn authenticate(&self, token: &str) -> Result<NodeRow, ApiError> {
        let refused = |detail: String| ApiError::new(Code::Unauthenticated, detail);
        let made_for =
            self.parts.tokens.check(token, self.now()).map_err(|error| refused(error.to_string()))?;
        let auth::NodeIdentity { name, uid, holder } = made_for;
        let node = self.parts.store.get_node(&name).await?;
        let node = node
            .filter(|node| node.uid == uid)
            .ok_or_else(|| refused(format!("node `{name}` is not known any more; register again")))?;
        if identity(&node).holder == holder { Ok(node) } else { Err(self.fence(&node).await?) }
    }

    /// Refuses what comes from another run of the agent than the one that registered last, and remembers that it came.
    async fn check_boot(&self, node: &NodeRow, boot_id: &str) -> Result<(), ApiError> {
        if node.boot_id.as_deref() == Some(boot_id) { Ok(()) } else { Err(self.fence(node).await?) }
    }

    /// What an agent is told that is not the node any more. That it came is remembered.
    async fn fence(&self, node: &NodeRow) -> Result<ApiError, ApiError> {
        if node.registered_at.is_some() {
            let message = "a second instance of the agent was refused; stop it, or give it another name";
            let event = NewNodeEvent { kind: NodeEventKind::Fenced, message: message.to_owned() };
            self.parts.store.note_node(self.now(), &node.name, event).await?;
        }
        Ok(ApiError::new(
            Code::Fenced,
            format!(
                "another agent has registered as node `{}` since; stop one of them, or give this one another name",
                node.name
            ),
        ))
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// Whether a lease that ended at this time may have ended because this controller was away: it was not yet up, or
    /// without its database, or had not been back for one lease, when the lease needed renewal.
    pub(crate) fn was_away(&self, lease_until: Timestamp) -> bool {
        !self.service.served().for_a_lease(lease_until, self.parts.leases.lease)
    }

    /// Notes whether the database has answered just now: without it no lease is renewed.
    pub(crate) fn database_answers(&self, answers: bool) {
        self.service.note(answers, self.now());
    }

    /// Notes that the clock was put forward: what ended since would have ended later.
    pub(crate) fn clock_was_moved(&self) {
        self.service.begin_anew(self.now());
    }

    /// How long an attempt lives without a heartbeat.
    pub(crate) fn lease(&self) -> Duration {
        self.parts.leases.lease
    }

    /// From when on every node that lives has been heard of: one lease after this controller began to serve without a gap.
    pub(crate) fn heard_since(&self) -> Timestamp {
        let Served { since, interrupted } = *self.service.served();
        since.checked_add(self.parts.leases.lease).ok().filter(|_| !interrupted).unwrap_or(Timestamp::MAX)
    }
}

/// Since when leases can be renewed here.
#[derive(Debug)]
struct Service {
    served: Mutex<Served>,
}

#[derive(Clone, Copy, Debug)]
struct Served {
    /// When the controller came up, the database last came back, or the clock was last put forward.
    since: Timestamp,
    /// The database has not answered since it was last asked.
    interrupted: bool,
}

impl Served {
    /// Whether nodes have been served without a gap for more than a lease before this time.
    fn for_a_lease(self, until: Timestamp, lease: Duration) -> bool {
        !self.interrupted && until.duration_since(self.since) > signed(lease)
    }
}

impl Service {
    const fn begin(now: Timestamp) -> Self {
        Self { served: Mutex::new(Served { since: now, interrupted: false }) }
    }

    fn begin_anew(&self, now: Timestamp) {
        self.served().since = now;
    }

    fn note(&self, answers: bool, now: Timestamp) {
        let mut served = self.served();
        if answers && served.interrupted {
            served.since = now;
        }
        served.interrupted = !answers;
    }

    /// The lock is held for a look and never over a call.
    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a payload of a version that this controller does not speak.
pub(crate) fn check_version(version: u32) -> Result<(), ApiError> {
    if version == protocol::VERSION {
        return Ok(());
    }
    Err(ApiError::new(
        Code::UnsupportedPayloadVersion,
        format!(
            "payload version {version} is not supported; this controller speaks version {}",
            protocol::VERSION
        ),
    ))
}

/// The node as its tokens name it.
fn identity(node: &NodeRow) -> auth::NodeIdentity {
    let holder = auth::holder(node.public_key.as_deref(), node.boot_id.as_deref(), node.registered_at);
    auth::NodeIdentity { name: node.name.clone(), uid: node.uid.clone(), holder }
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ended_for_want_of_a_database_is_nobodys_fault() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let lease = Duration::from_secs(25);
        let service = Service::begin(at(0));
        let served = |until| service.served().for_a_lease(at(until), lease);
        assert!(!served(25) && served(26));
        service.note(true, at(100));
        assert!(served(26), "nothing has happened");
        service.note(false, at(200));
        assert!(!served(1000), "nobody knows for how long");
        service.note(false, at(250));
        service.note(true, at(300));
        assert!(!served(200) && !served(325) && served(326), "it begins anew");
        service.begin_anew(at(1000));
        assert!(!served(1025) && served(1026), "the clock was put forward");
    }
}
