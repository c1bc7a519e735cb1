//! Keeps the conditions of nodes true.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::node::{self, NodeView, Staleness};
use windlass_store::{EventLevel, NewEvent, NodeRow, Store};

use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::error::ApiError;

/// A claim may be silent for one long poll of 30 s and its retries.
const CLAIM_STALENESS: Duration = Duration::from_secs(75);

/// Keeps the conditions of nodes true; cheap to clone.
#[derive(Clone)]
pub(super) struct Nodes {
    store: Store,
    clock: Arc<dyn Clock>,
    staleness: Staleness,
    settled_at: jiff::Timestamp,
}

impl Nodes {
    pub(super) fn new(dispatch: &Dispatch, store: Store, clock: Arc<dyn Clock>) -> Self {
        let heartbeat = dispatch.lease();
        let settled_at = dispatch.started_at().checked_add(heartbeat).unwrap_or(jiff::Timestamp::MAX);
        Self { store, clock, staleness: Staleness { heartbeat, claim: CLAIM_STALENESS }, settled_at }
    }

    pub(super) async fn reconcile(&self) -> Result<(), ApiError> {
        let now = self.clock.now();
        for node in self.store.list_nodes().await? {
            let mut conditions = node::conditions(&view(&node), now, self.staleness);
            if now < self.settled_at {
                // Freshly up: nobody has had the time to send a heartbeat, so keep what was known.
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
            match self.store.set_node_conditions(now, &node.name, conditions, node.resource_version).await {
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
        config_version: node.config_version,
        acknowledged: node.acked_version.zip(node.ack_status).map(|(version, status)| {
            (version, status, node.ack_error.as_ref().map(|error| error.message.as_str()))
        }),
    }
}
