//! Rolls changes out over nodes, a few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use windlass_core::placement::labels_in_force;
use windlass_core::rollout::{self, Action, Health, Node, Patch, Selector, Snapshot, Target};
use windlass_crds::conditions::ConditionStatus;
use windlass_crds::protocol::FieldError;
use windlass_crds::rollout::{RolloutDirection, RolloutNodeState, RolloutPhase};
use windlass_store::{EventLevel, NewEvent, NodeRow, RolloutNodeRow, RolloutRow, RolloutStep, Store};

use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::error::ApiError;
use crate::rest::origin::declared_in;

/// Rolls changes out over nodes; cheap to clone.
#[derive(Clone)]
pub struct Rollouts {
    store: Store,
    clock: Arc<dyn Clock>,
    dispatch: Dispatch,
}

impl Rollouts {
    /// A reconciler that works on this store.
    pub fn new(dispatch: &Dispatch, store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, dispatch: dispatch.clone() }
    }

    /// One round.
    pub async fn reconcile(&self) -> Result<(), ApiError> {
        // Of several controllers one does this, and only while it leads.
        let Some(store) = self.store.as_leader() else { return Ok(()) };
        let rollouts = store.list_rollouts().await?;
        if !rollouts.iter().any(|rollout| rollout.phase.is_open()) {
            return Ok(());
        }
        let nodes = store.list_nodes().await?;
        let taken: BTreeSet<&str> = rollouts
            .iter()
            .filter(|rollout| rollout.phase.is_open())
            .flat_map(|rollout| &rollout.nodes)
            .map(|node| node.node.as_str())
            .collect();
        // The oldest first, so that it gets a node that two want.
        for rollout in rollouts.iter().rev().filter(|rollout| rollout.phase.is_open()) {
            self.advance(&store, rollout, &nodes, &taken).await?;
        }
        Ok(())
    }

    async fn advance(
        &self,
        store: &Store,
        row: &RolloutRow,
        nodes: &[NodeRow],
        taken: &BTreeSet<&str>,
    ) -> Result<(), ApiError> {
        let now = self.clock.now();
        let mut seen = Snapshot { heard_since: self.dispatch.heard_since(), ..snapshot(row, nodes) };
        seen.newcomers.retain(|node| !taken.contains(node.as_str()));
        let by_name: BTreeMap<&str, &NodeRow> = nodes.iter().map(|node| (node.name.as_str(), node)).collect();
        let mut native = Vec::with_capacity(seen.newcomers.len());
        for node in std::mem::take(&mut seen.newcomers) {
            // What is declared in Kubernetes is changed there and nowhere else.
            if let Some(row) = by_name.get(node.as_str())
                && declared_in(store, &row.uid).await?.is_none()
            {
                native.push(node);
            }
        }
        seen.newcomers = native;
        let actions = rollout::plan(&seen, now);
        if actions.is_empty() {
            return Ok(());
        }
        let steps = actions.iter().filter_map(|action| step(row, action, &by_name)).collect();
        match store.advance_rollout(now, &row.name, row.version, steps).await {
            Ok(_) => {}
            // Changed meanwhile, or another one was quicker: the next round sees it.
            Err(
                windlass_store::Error::Conflict { .. }
                | windlass_store::Error::NotFound { .. }
                | windlass_store::Error::InUse { .. },
            ) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for action in &actions {
            self.tell(store, now, row, action).await?;
        }
        Ok(())
    }

    /// Notes where a roll-out has got to.
    async fn tell(
        &self,
        store: &Store,
        now: Timestamp,
        row: &RolloutRow,
        action: &Action,
    ) -> Result<(), ApiError> {
        let Action::Turn { phase, reason, message } = action else { return Ok(()) };
        tracing::info!(rollout.name = %row.name, rollout.phase = %phase, rollout.reason = %reason, "roll-out has turned");
        let event = NewEvent {
            job: None,
            node: None,
            level: if *phase == RolloutPhase::Stopped { EventLevel::Warn } else { EventLevel::Info },
            source: "rollouts".to_owned(),
            reason: format!("Rollout{phase}"),
            message: format!("roll-out `{}` is {phase}: {message}", row.name),
            data: None,
        };
        store.append_event(now, event).await?;
        Ok(())
    }
}

/// What an action is in the store; `None` for one about a node that is gone.
fn step(row: &RolloutRow, action: &Action, nodes: &BTreeMap<&str, &NodeRow>) -> Option<RolloutStep> {
    Some(match action {
        Action::Join { node } => RolloutStep::Join { node: node.clone() },
        Action::Change { node, spec } => RolloutStep::Change {
            expected_version: nodes.get(node.as_str())?.resource_version,
            node: node.clone(),
            spec: spec.clone(),
        },
        Action::Watch { node } => RolloutStep::Watch {
            config_version: nodes.get(node.as_str())?.config_version,
            node: node.clone(),
        },
        Action::Retry { node } => {
            let row = nodes.get(node.as_str())?;
            RolloutStep::Change {
                expected_version: row.resource_version,
                node: node.clone(),
                spec: Box::new(row.spec.clone()),
            }
        }
        Action::Settle { node, state, message } => {
            RolloutStep::Settle { node: node.clone(), state: *state, message: message.clone() }
        }
        Action::Turn { phase, reason, message } => RolloutStep::Turn {
            direction: row.direction,
            phase: *phase,
            pause_after: row.pause_after,
            reason: reason.to_string(),
            message: message.clone(),
        },
    })
}

/// A roll-out with what there is to know about its nodes.
pub(crate) fn snapshot(row: &RolloutRow, nodes: &[NodeRow]) -> Snapshot {
    let selector = Selector::parse(&row.selector).ok();
    let patch = Patch::checked(row.patch.clone());
    let matches = |node: &NodeRow| selector.as_ref().is_some_and(|selector| selector.matches(&labels(node)));
    let its: BTreeMap<&str, &RolloutNodeRow> =
        row.nodes.iter().map(|node| (node.node.as_str(), node)).collect();
    let view = |state: &RolloutNodeRow| {
        let node = nodes.iter().find(|node| node.name == state.node)?;
        Some(Node {
            name: node.name.clone(),
            state: state.state,
            declared: state.config_version.zip(state.changed_at),
            config_version: node.config_version,
            acknowledged: node.acked_version.zip(node.ack_status).map(|(version, status)| {
                (version, status, node.ack_error.as_ref().map(|error| error.message.clone()))
            }),
            health: health(node),
            target: match row.direction {
                RolloutDirection::Forward if matches(node) => forward(node, &patch),
                RolloutDirection::Forward => Target::LeaveAlone("it does not match the selector".to_owned()),
                RolloutDirection::Back => back(node, state),
            },
        })
    };
    let newcomers = nodes.iter().filter(|node| !its.contains_key(node.name.as_str()) && matches(node));
    Snapshot {
        direction: row.direction,
        phase: row.phase,
        max_unavailable: row.max_unavailable,
        pause_after: row.pause_after,
        timeout: SignedDuration::try_from(row.timeout.get()).unwrap_or(SignedDuration::MAX),
        heard_since: row.created_at,
        nodes: row.nodes.iter().filter_map(view).collect(),
        newcomers: newcomers.map(|node| node.name.clone()).collect(),
    }
}

/// A node that a roll-out is for, with what is wrong with what it would become.
pub(crate) struct Selected {
    /// The node.
    pub(crate) name: String,
    /// Its object in the store.
    pub(crate) uid: String,
    /// What would break a rule.
    pub(crate) errors: Vec<FieldError>,
}

/// The nodes that a roll-out is for.
pub(crate) fn selected(nodes: &[NodeRow], selector: &Selector, patch: &Patch) -> Vec<Selected> {
    let meant = nodes.iter().filter(|node| selector.matches(&labels(node)));
    meant
        .map(|node| Selected {
            name: node.name.clone(),
            uid: node.uid.clone(),
            errors: patch.apply(&node.name, &node.spec).err().unwrap_or_default(),
        })
        .collect()
}

fn labels(node: &NodeRow) -> BTreeMap<String, String> {
    labels_in_force(&node.name, node.capability.as_ref(), &node.spec)
}

fn forward(node: &NodeRow, patch: &Patch) -> Target {
    match patch.apply(&node.name, &node.spec) {
        Ok(spec) if spec == node.spec => Target::Same,
        Ok(spec) => Target::Other(Box::new(spec)),
        Err(errors) => Target::Invalid(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

/// What a node had before, unless somebody has declared something else since.
fn back(node: &NodeRow, state: &RolloutNodeRow) -> Target {
    match &state.former {
        None => Target::LeaveAlone("it was not changed".to_owned()),
        Some(_) if state.config_version != Some(node.config_version) => {
            Target::LeaveAlone(format!("somebody has declared version {} since", node.config_version))
        }
        Some(former) if *former == node.spec => Target::Same,
        Some(former) => Target::Other(Box::new(former.clone())),
    }
}

fn health(node: &NodeRow) -> Health {
    let ready = node.conditions.iter().find(|condition| condition.condition_type == "Ready");
    match ready {
        _ if node.registered_at.is_none() => Health::Absent,
        Some(ready) => match ready.status {
            ConditionStatus::True => Health::Ready,
            ConditionStatus::False => Health::Unready(ready.message.clone()),
            ConditionStatus::Unknown => Health::Offline(ready.message.clone()),
        },
        None => Health::Unready("it has not been judged yet".to_owned()),
    }
}

/// What a person has asked, as a step.
pub(crate) fn turned(turned: rollout::Turned) -> Vec<RolloutStep> {
    let rollout::Turned { direction, phase, pause_after, nodes } = turned;
    let word = |state| match state {
        RolloutNodeState::Pending => "its turn comes again",
        RolloutNodeState::Skipped => "it was not changed",
        RolloutNodeState::Changing | RolloutNodeState::Done | RolloutNodeState::Failed => "by request",
    };
    let settle = |(node, state)| RolloutStep::Settle { node, state, message: word(state).to_owned() };
    let mut steps: Vec<_> = nodes.into_iter().map(settle).collect();
    steps.push(RolloutStep::Turn {
        direction,
        phase,
        pause_after,
        reason: rollout::Reason::Requested.to_string(),
        message: "somebody has asked for it".to_owned(),
    });
    steps
}
