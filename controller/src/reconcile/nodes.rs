//! Keeps the conditions of nodes true, and brings drains to their end.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::drain::{self, Action, Drain, Held};
use windlass_core::node::{self, ModelServerView, NodeView, Staleness};
use windlass_crds::node_config::{HoldPhase, NodeState};
use windlass_store::{
    DrainRow, DrainStep, EventLevel, NewEvent, NewNodeEvent, NodeEventKind, NodeHold, NodeRow, Overdue, Store,
};

use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::error::ApiError;

/// A claim may be silent for one long poll of 30 s and its retries.
const CLAIM_STALENESS: Duration = Duration::from_secs(75);

/// Keeps the conditions of nodes true, and brings drains to their end; cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    store: Store,
    clock: Arc<dyn Clock>,
    staleness: Staleness,
    dispatch: Dispatch,
}

impl Nodes {
    /// A reconciler that works on this store.
    pub fn new(dispatch: &Dispatch, store: Store, clock: Arc<dyn Clock>) -> Self {
        let heartbeat = dispatch.lease();
        let staleness = Staleness { heartbeat, claim: CLAIM_STALENESS };
        Self { store, clock, staleness, dispatch: dispatch.clone() }
    }

    /// One round.
    pub async fn reconcile(&self) -> Result<(), ApiError> {
        let now = self.clock.now();
        for node in self.store.list_nodes().await? {
            self.drain(now, &node).await?;
            let mut conditions = node::conditions(&view(&node), now, self.staleness);
            if now < self.dispatch.heard_since() {
                // Freshly up, or back: nobody has had the time to send a heartbeat, so keep what was known.
                let stale =
                    |condition: &windlass_crds::conditions::Condition| condition.reason == "HeartbeatStale";
                if conditions.iter().any(stale) && !node.conditions.is_empty() {
                    conditions.clone_from(&node.conditions);
                }
            }
            if conditions == node.conditions {
                continue;
            }
            let ready = |conditions: &[windlass_crds::conditions::Condition]| {
                conditions.iter().find(|condition| condition.condition_type == "Ready").cloned()
            };
            let (before, after) = (ready(&node.conditions), ready(&conditions));
            let event = state_event(&node, &conditions);
            let version = node.resource_version;
            match self.store.set_node_conditions(now, &node.name, conditions, event, version).await {
                // Changed meanwhile: the next round sees the newer row.
                Err(windlass_store::Error::Conflict { .. } | windlass_store::Error::NotFound { .. }) => {
                    continue;
                }
                result => result?,
            };
            if let Some(after) = after
                && before.as_ref().map(|before| (before.status, &before.reason))
                    != Some((after.status, &after.reason))
            {
                tracing::info!(node.name = %node.name, node.ready = %after.status, node.reason = %after.reason, "node readiness changed");
                let event = NewEvent {
                    job: None,
                    node: Some(node.name.clone()),
                    level: if after.reason == "Healthy" { EventLevel::Info } else { EventLevel::Warn },
                    source: "nodes".to_owned(),
                    reason: after.reason,
                    message: after.message,
                    data: None,
                };
                self.store.append_event(now, event).await?;
            }
        }
        Ok(())
    }

    /// Brings a drain one step further.
    async fn drain(&self, now: jiff::Timestamp, node: &NodeRow) -> Result<(), ApiError> {
        let Some(row) = node.hold.and_then(|hold| hold.drain).filter(|row| row.drained_at.is_none()) else {
            return Ok(());
        };
        let uids: Vec<_> =
            self.store.live_attempts(&node.name).await?.into_iter().map(|attempt| attempt.job).collect();
        let held = self
            .store
            .get_jobs(&uids)
            .await?
            .into_iter()
            .map(|job| Held { uid: job.uid, cancel_requested: job.cancel_requested_at.is_some() });
        let drain = Drain {
            deadline_at: row.deadline_at,
            cancels: row.overdue == Overdue::Cancel,
            stopping: row.stopping_at.is_some(),
            drained: false,
            held: held.collect(),
        };
        for action in drain::plan(&drain, now) {
            let step = match action {
                Action::Stop => DrainStep::Stop,
                Action::Finish => DrainStep::Finish,
                Action::Cancel { uid } => {
                    tracing::info!(node.name = %node.name, job.id = %uid, "a job is cancelled to empty its node");
                    self.store.request_cancel(now, &uid).await?;
                    continue;
                }
            };
            match self.store.advance_drain(now, &node.name, step, node.resource_version).await {
                // Changed meanwhile: the next round sees the newer row.
                Err(windlass_store::Error::Conflict { .. } | windlass_store::Error::NotFound { .. }) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// What new conditions mean for the node, where that is something else than before.
fn state_event(node: &NodeRow, conditions: &[windlass_crds::conditions::Condition]) -> Option<NewNodeEvent> {
    let (before, after) = (node::state(&node.conditions), node::state(conditions));
    let kind = match after {
        NodeState::Pending => return None,
        NodeState::Online => NodeEventKind::Online,
        NodeState::Degraded => NodeEventKind::Degraded,
        NodeState::Offline => NodeEventKind::Offline,
    };
    (before != after).then(|| NewNodeEvent { kind, message: node::state_message(conditions) })
}

/// How far it is with what an operator has asked.
pub(crate) const fn hold_phase(hold: &NodeHold) -> HoldPhase {
    match hold.drain {
        None => HoldPhase::Cordoned,
        Some(DrainRow { drained_at: Some(_), .. }) => HoldPhase::Drained,
        Some(DrainRow { stopping_at: Some(_), .. }) => HoldPhase::Stopping,
        Some(DrainRow { .. }) => HoldPhase::Draining,
    }
}

fn view(node: &NodeRow) -> NodeView<'_> {
    let sandbox = node.capability.as_ref().and_then(|capability| capability.sandbox.as_ref());
    NodeView {
        conditions: &node.conditions,
        generation: node.generation,
        registered_at: node.registered_at,
        last_seen_at: node.last_seen_at,
        last_claim_at: node.last_claim_at,
        not_ready: node.not_ready.as_deref(),
        sandbox_lack: sandbox
            .filter(|sandbox| !sandbox.supported)
            .map(|sandbox| sandbox.lacks.first().map_or("no runtime works on the host", String::as_str)),
        unschedulable: node.spec.unschedulable,
        hold: node.hold.map(|hold| hold_phase(&hold)),
        config_version: node.config_version,
        acknowledged: node.acked_version.zip(node.ack_status).map(|(version, status)| {
            (version, status, node.ack_error.as_ref().map(|error| error.message.as_str()))
        }),
        inference: node.spec.inference.as_ref().filter(|inference| inference.enabled).map(|_| {
            let reported = node.capability.as_ref().and_then(|capability| capability.inference.as_ref());
            ModelServerView { reported }
        }),
    }
}
