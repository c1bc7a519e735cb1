//! Heartbeats: a sign of life and the renewal of leases, many nodes in one write.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use windlass_crds::protocol::{self, HeartbeatRequest, HeartbeatResponse, Order, Renewal};
use windlass_store::{Beat, BeatOutcome, NodeRow, Store};

use super::{Dispatch, Service, check_version};
use crate::clock::Clock;
use crate::error::{ApiError, Code};

/// The most beats in one write: enough for a fleet of thousands, small enough for a short transaction.
const MAX_BATCH: usize = 512;

/// Collects the beats that arrive while the previous write is under way, and writes them together.
#[derive(Clone, Debug)]
pub(super) struct Beats {
    sender: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    beat: Beat,
    answer: oneshot::Sender<Result<BeatOutcome, Arc<windlass_store::Error>>>,
}

impl Beats {
    pub(super) fn start(store: Store, clock: Arc<dyn Clock>, service: Arc<Service>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Waiting>(MAX_BATCH);
        tokio::spawn(async move {
            let mut waiting = Vec::new();
            while receiver.recv_many(&mut waiting, MAX_BATCH).await > 0 {
                let (beats, answers): (Vec<_>, Vec<_>) =
                    waiting.drain(..).map(|waiting| (waiting.beat, waiting.answer)).unzip();
                let written = store.beat(clock.now(), beats).await;
                service.note(written.is_ok(), clock.now());
                match written {
                    Ok(outcomes) => {
                        for (answer, outcome) in answers.into_iter().zip(outcomes) {
                            // A node that hung up meanwhile has no use for the answer.
                            drop(answer.send(Ok(outcome)));
                        }
                    }
                    Err(error) => {
                        let error = Arc::new(error);
                        for answer in answers {
                            drop(answer.send(Err(error.clone())));
                        }
                    }
                }
            }
        });
        Self { sender }
    }

    async fn beat(&self, beat: Beat) -> Result<BeatOutcome, ApiError> {
        let gone = || ApiError::new(Code::Unavailable, "the controller is stopping");
        let (answer, outcome) = oneshot::channel();
        self.sender.send(Waiting { beat, answer }).await.map_err(|_| gone())?;
        match outcome.await.map_err(|_| gone())? {
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(ApiError {
                source: Some(Box::new(error)),
                ..ApiError::new(Code::Unavailable, "could not store the heartbeat")
            }),
        }
    }
}

impl Dispatch {
    /// Notes that a node lives and renews the leases of the attempts that it lists.
    pub async fn heartbeat(
        &self,
        node: &NodeRow,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, ApiError> {
        check_version(request.version)?;
        self.check_boot(node, &request.boot_id).await?;
        let leases = &self.parts.leases;
        // A controller that is about to stop grants what outlasts its absence, whatever a job does offline.
        let least = if self.parts.stopping.is_cancelled() { leases.grace } else { Duration::ZERO };
        let offline_grace = node.spec.offline_grace.map_or(leases.grace, windlass_crds::Span::get);
        let capability_hash = request.capability_hash;
        let left = request.left_seconds.into_iter().map(Duration::from_secs);
        let beat = Beat {
            node: node.name.clone(),
            boot_id: request.boot_id,
            left: request.held.iter().cloned().zip(left).collect(),
            held: request.held,
            slots: request.slots,
            not_ready: request.not_ready,
            lease: leases.lease.max(least),
            lease_continue: offline_grace.max(least),
        };
        let outcome = self.beats.beat(beat).await?;
        if outcome.other_boot {
            return Err(ApiError::new(
                Code::Fenced,
                format!("another agent has registered as node `{}` since; stop one of them", node.name),
            ));
        }
        let cancels = outcome.cancel.into_iter().map(|attempt| Order::Cancel { attempt });
        let fenced = outcome.fenced.into_iter().map(|attempt| Order::Fenced { attempt });
        Ok(HeartbeatResponse {
            version: protocol::VERSION,
            renewed: outcome
                .renewed
                .into_iter()
                .map(|(attempt, lease)| Renewal { attempt, lease_seconds: lease.as_secs() })
                .collect(),
            orders: cancels.chain(fenced).collect(),
            interval_seconds: leases.beat.as_secs(),
            config_version: outcome.config_version.to_string(),
            send_capability: outcome.capability_hash != capability_hash,
        })
    }
}
