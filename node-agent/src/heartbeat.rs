//! The lease keeper: shows that the node lives and renews the leases of what it holds.
//!
//! It has its own thread, runtime and HTTP client, so that neither jobs that eat the processor nor a busy agent can
//! starve it. [`HeldAttempts`] is all that it shares with the rest, beside flags.
//!
//! ```text
//!  held attempts ──► heartbeat ──► controller
//!        ▲                            │ renewed leases, orders, newest configuration
//!        └────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use windlass_crds::protocol::{HeartbeatRequest, HeartbeatResponse, VERSION, parse_config_version};

use crate::capabilities::Capabilities;
use crate::client::ControllerClient;
use crate::clock::Clock;
use crate::held::HeldAttempts;
use crate::ids::IdSource;
use crate::readiness::Readiness;
use crate::session::SessionHandle;

/// A heartbeat that is not answered within it is tried again: a lease of 25 s then allows four tries.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure, with jitter on top.
const RETRY: Duration = Duration::from_secs(1);
/// What the controller may ask for.
const INTERVALS: std::ops::RangeInclusive<u64> = 1..=60;

/// Another agent has registered with the identity of this node.
#[derive(Debug, thiserror::Error)]
#[error(
    "another agent has registered as node `{node}` with the same key; stop one of the two, or give this one its own --state-dir and --name"
)]
pub struct Superseded {
    /// The node.
    pub node: String,
}

/// The lease keeper's task.
pub(crate) struct LeaseKeeper {
    pub(crate) node: String,
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) held: HeldAttempts,
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) readiness: Readiness,
    pub(crate) slots: watch::Receiver<u32>,
    /// The newest version of the configuration.
    pub(crate) newest: watch::Sender<u64>,
    /// Somebody needs a lease renewed now.
    pub(crate) hurry: Arc<Notify>,
    /// The node has come up as far as being configured; before that only leases are a reason to call.
    pub(crate) up: watch::Receiver<bool>,
}

impl LeaseKeeper {
    /// Beats for ever.
    ///
    /// # Errors
    /// When another agent has taken over this node's identity.
    pub(crate) async fn run(mut self) -> Result<std::convert::Infallible, Superseded> {
        self.first_reason().await;
        let mut trouble = None;
        loop {
            let session = self.session.ready().await;
            let sent = Instant::now();
            let sent_at = self.clock.boottime();
            let request = self.request(sent_at);
            let error = match timeout(TIMEOUT, self.client.heartbeat(&session, &request)).await {
                Ok(Ok(response)) => {
                    if trouble.take().is_some() {
                        tracing::info!("heartbeats reach the controller again");
                    }
                    let interval = self.take_over(&request, &response, sent_at);
                    // Both arms may be dropped at any time: a permit of `notified` is lost only when it has won.
                    tokio::select! {
                        biased;
                        () = self.hurry.notified() => {}
                        () = tokio::time::sleep_until(sent + interval) => {}
                    }
                    continue;
                }
                Ok(Err(error)) if error.is_fenced() => return Err(Superseded { node: self.node }),
                Ok(Err(error)) => {
                    if error.is_unauthorized() {
                        self.session.expired(&session);
                    }
                    (error.kind(), crate::error_chain(&error))
                }
                Err(_) => ("timeout", format!("no answer within {} s", TIMEOUT.as_secs())),
            };
            if trouble != Some(error.0) {
                trouble = Some(error.0);
                tracing::warn!(error = error.1, "heartbeats do not reach the controller; trying again");
            }
            tokio::time::sleep(RETRY + RETRY.mul_f64(self.ids.fraction() / 2.0)).await;
        }
    }

    /// Waits until there is a lease to keep or the node is up.
    async fn first_reason(&mut self) {
        let mut count = self.held.count();
        // Cancel-safe: both only look. Their senders live as long as the agent.
        tokio::select! {
            biased;
            held = count.wait_for(|count| *count > 0) => drop(held),
            up = self.up.wait_for(|up| *up) => drop(up),
        }
    }

    fn request(&self, now: Duration) -> HeartbeatRequest {
        let (held, left_seconds) = self.held.to_renew(now).into_iter().unzip();
        HeartbeatRequest {
            version: VERSION,
            boot_id: self.capabilities.boot_id().to_owned(),
            held,
            left_seconds,
            slots: *self.slots.borrow(),
            capability_hash: self.capabilities.delivered(),
            not_ready: self.readiness.not_ready(),
        }
    }

    /// Does what the controller says. Returns when to beat again.
    fn take_over(
        &self,
        request: &HeartbeatRequest,
        response: &HeartbeatResponse,
        sent_at: Duration,
    ) -> Duration {
        self.held.renew(&response.renewed, sent_at);
        self.held.obey(&response.orders);
        if let Some(version) = parse_config_version(&response.config_version) {
            self.newest.send_if_modified(|newest| {
                let newer = version > *newest;
                *newest = version.max(*newest);
                newer
            });
        }
        if response.send_capability && request.capability_hash.is_some() {
            self.capabilities.wanted();
        }
        Duration::from_secs(response.interval_seconds.clamp(*INTERVALS.start(), *INTERVALS.end()))
    }
}
