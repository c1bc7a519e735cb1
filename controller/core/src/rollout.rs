//! Rolling a change out over nodes: what has to happen next.
//!
//! ```text
//! Pending ─► Changing ─► Done      a batch at a time; the next one only when all of this one are Done
//!               │
//!               └──────► Failed ─► the roll-out stops, and a person decides: resume, undo, abort
//! ```
//!
//! *Guarantees.* No more than `max_unavailable` nodes are being changed at once, and a node that is available is changed
//! only while fewer than that are unavailable, whatever the reason; nodes that are offline count and are not changed
//! before they are back. Nothing is changed after a failure, nor while the roll-out is paused. Nodes that are being changed
//! are watched to their end in either case. The plan depends on nothing but what is there, so a controller that dies
//! anywhere goes on with the same.
//!
//! *Undoing* is the same way back: nodes get what they had before, unless somebody has declared something else since.

mod patch;

use jiff::{SignedDuration, Timestamp};
use windlass_crds::NodeConfigSpec;
use windlass_crds::protocol::AckStatus;
use windlass_crds::rollout::{RolloutDirection, RolloutNodeState, RolloutPhase};

pub use patch::{Patch, Selector};

/// A roll-out as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Which way nodes are changed.
    pub direction: RolloutDirection,
    /// Where it is.
    pub phase: RolloutPhase,
    /// How many of its nodes may be unavailable at once.
    pub max_unavailable: u32,
    /// After how many nodes that are done it pauses.
    pub pause_after: Option<u32>,
    /// How long a node may take.
    pub timeout: SignedDuration,
    /// From when on all nodes that live have been heard of. What came before is no time that a node has let pass.
    pub heard_since: Timestamp,
    /// Its nodes, in order.
    pub nodes: Vec<Node>,
    /// Nodes that match the selector and are not among them.
    pub newcomers: Vec<String>,
}

/// A node of a roll-out.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: RolloutNodeState,
    /// The version of its configuration that the roll-out declared, and when.
    pub declared: Option<(u64, Timestamp)>,
    /// The version of its configuration that it should run now.
    pub config_version: u64,
    /// What it has last said about which version, with why it failed.
    pub acknowledged: Option<(u64, AckStatus, Option<String>)>,
    /// Whether it can be used.
    pub health: Health,
    /// What its configuration should become.
    pub target: Target,
}

/// Whether a node can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is ready.
    Ready,
    /// It is there and cannot work, for this reason.
    Unready(String),
    /// Nothing is heard from it.
    Offline(String),
    /// It is declared, and its agent has never registered: there is nothing to lose and nobody to wait for.
    Absent,
}

/// What a node's configuration should become.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// What it is already.
    Same,
    /// This.
    Other(Box<NodeConfigSpec>),
    /// It should be left alone, for this reason.
    LeaveAlone(String),
    /// Something that breaks a rule.
    Invalid(String),
}

/// What has to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Take a node in, at the end.
    Join {
        /// The node.
        node: String,
    },
    /// Declare a node's new configuration, and watch it.
    Change {
        /// The node.
        node: String,
        /// The configuration.
        spec: Box<NodeConfigSpec>,
    },
    /// Watch a node whose configuration is as it should be already.
    Watch {
        /// The node.
        node: String,
    },
    /// Declare a node's configuration again, as it is and as a new version, and watch it: the node could not apply it,
    /// and says so only once of a version.
    Retry {
        /// The node.
        node: String,
    },
    /// Note that a node has come to an end.
    Settle {
        /// The node.
        node: String,
        /// How.
        state: RolloutNodeState,
        /// Why.
        message: String,
    },
    /// Note that the roll-out is somewhere else now.
    Turn {
        /// Where.
        phase: RolloutPhase,
        /// Why, as one word.
        reason: Reason,
        /// Why, as a sentence.
        message: String,
    },
}

/// Why a roll-out is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::Display)]
pub enum Reason {
    /// A node could not apply its configuration.
    AcknowledgementFailed,
    /// A node has not become ready in time.
    Timeout,
    /// A node's configuration would break a rule.
    Invalid,
    /// As many nodes are done as were asked for before a pause.
    PauseAfter,
    /// Everything is done.
    Finished,
    /// The node that it had stopped at is no more.
    Deregistered,
    /// Somebody has asked for it.
    Requested,
}

/// What has to happen now. A roll-out has stopped at nodes that have failed; where they are gone, it goes on.
pub fn plan(rollout: &Snapshot, now: Timestamp) -> Vec<Action> {
    if !rollout.phase.is_open() {
        return Vec::new();
    }
    let mut actions = Vec::new();
    let mut failure = None;
    let mut changing = false;
    let mut done = rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Done).count();
    for node in rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Changing) {
        let Some((state, reason, message)) = verdict(node, rollout, now) else {
            changing = true;
            continue;
        };
        done += usize::from(state == RolloutNodeState::Done);
        if let Some(reason) = reason {
            failure.get_or_insert((reason, format!("node `{}`: {message}", node.name)));
        }
        actions.push(Action::Settle { node: node.name.clone(), state, message });
    }
    if let Some((reason, message)) = failure {
        if rollout.phase != RolloutPhase::Stopped {
            actions.push(Action::Turn { phase: RolloutPhase::Stopped, reason, message });
        }
        return actions;
    }
    if rollout.phase == RolloutPhase::Stopped
        && rollout.nodes.iter().all(|node| node.state != RolloutNodeState::Failed)
    {
        let (phase, reason) = (RolloutPhase::Rolling, Reason::Deregistered);
        let message = "the node that it had stopped at was deregistered".to_owned();
        actions.push(Action::Turn { phase, reason, message });
        return actions;
    }
    if rollout.phase != RolloutPhase::Rolling || changing {
        return actions;
    }
    if rollout.direction == RolloutDirection::Forward && !rollout.newcomers.is_empty() {
        actions.extend(rollout.newcomers.iter().map(|node| Action::Join { node: node.clone() }));
        return actions;
    }
    next_batch(rollout, done, actions)
}

/// What has become of a node that is being changed; `None` while that is open. With the reason why the roll-out stops.
fn verdict(
    node: &Node,
    rollout: &Snapshot,
    now: Timestamp,
) -> Option<(RolloutNodeState, Option<Reason>, String)> {
    let (version, since) = node.declared?;
    if node.config_version != version {
        let message = format!("somebody has declared version {} since", node.config_version);
        return Some((RolloutNodeState::Skipped, None, message));
    }
    if node.health == Health::Absent {
        let message = format!("version {version} is declared; no agent has registered yet");
        return Some((RolloutNodeState::Done, None, message));
    }
    let late = now.duration_since(since.max(rollout.heard_since)) >= rollout.timeout;
    let failed = |reason, message: String| Some((RolloutNodeState::Failed, Some(reason), message));
    match &node.acknowledged {
        Some((acknowledged, AckStatus::Failed, why)) if *acknowledged >= version => {
            let why = why.as_deref().unwrap_or("it gives no reason");
            failed(Reason::AcknowledgementFailed, format!("version {version} could not be applied: {why}"))
        }
        Some((acknowledged, AckStatus::Applied, _)) if *acknowledged >= version => match &node.health {
            Health::Ready | Health::Absent => {
                Some((RolloutNodeState::Done, None, format!("version {version} is in force")))
            }
            Health::Unready(why) | Health::Offline(why) if late => failed(
                Reason::Timeout,
                format!("version {version} is in force and the node was not ready in time: {why}"),
            ),
            Health::Unready(_) | Health::Offline(_) => None,
        },
        Some(_) | None if late => {
            failed(Reason::Timeout, format!("version {version} was not acknowledged in time"))
        }
        Some(_) | None => None,
    }
}

/// The next nodes to change, or the end, while none is being changed; after what is settled already.
fn next_batch(rollout: &Snapshot, done: usize, mut actions: Vec<Action>) -> Vec<Action> {
    let pending = || rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Pending);
    let mut open = 0;
    let mut candidates = Vec::new();
    for node in pending() {
        let settle = |state, message: String| Action::Settle { node: node.name.clone(), state, message };
        match &node.target {
            Target::LeaveAlone(why) => actions.push(settle(RolloutNodeState::Skipped, why.clone())),
            Target::Invalid(why) => {
                let message = format!("node `{}`: {why}", node.name);
                actions.push(settle(RolloutNodeState::Failed, why.clone()));
                let (phase, reason) = (RolloutPhase::Stopped, Reason::Invalid);
                actions.push(Action::Turn { phase, reason, message });
                return actions;
            }
            Target::Same | Target::Other(_) => {
                open += 1;
                candidates.push(node);
            }
        }
    }
    if open == 0 {
        let (phase, reason) = (RolloutPhase::Complete, Reason::Finished);
        actions.push(Action::Turn { phase, reason, message: summary(rollout, &actions) });
        return actions;
    }
    let before_pause = rollout
        .pause_after
        .map_or(usize::MAX, |after| usize::try_from(after).unwrap_or(usize::MAX).saturating_sub(done));
    if before_pause == 0 {
        let (phase, reason) = (RolloutPhase::Paused, Reason::PauseAfter);
        let message = format!("{done} done, {open} to come");
        actions.push(Action::Turn { phase, reason, message });
        return actions;
    }
    let most = usize::try_from(rollout.max_unavailable).unwrap_or(usize::MAX);
    let unavailable = unavailable(rollout).count();
    // What does not work already is made worse by nothing.
    let (unready, ready): (Vec<&Node>, Vec<&Node>) = candidates
        .into_iter()
        .filter(|node| !matches!(node.health, Health::Offline(_)))
        .partition(|node| node.health != Health::Ready);
    let batch = unready.into_iter().chain(ready.into_iter().take(most.saturating_sub(unavailable)));
    for node in batch.take(most.min(before_pause)) {
        let name = node.name.clone();
        actions.push(match &node.target {
            Target::Other(spec) => Action::Change { node: name, spec: spec.clone() },
            Target::Same if has_refused(node) => Action::Retry { node: name },
            Target::Same | Target::LeaveAlone(_) | Target::Invalid(_) => Action::Watch { node: name },
        });
    }
    actions
}

/// Whether the node has said that it cannot apply the configuration that it should run.
fn has_refused(node: &Node) -> bool {
    matches!(&node.acknowledged, Some((version, AckStatus::Failed, _)) if *version >= node.config_version)
}

/// The nodes that cannot be used.
fn unavailable(rollout: &Snapshot) -> impl Iterator<Item = &Node> {
    rollout.nodes.iter().filter(|node| matches!(node.health, Health::Unready(_) | Health::Offline(_)))
}

/// How it has ended, with what is settled just now.
fn summary(rollout: &Snapshot, actions: &[Action]) -> String {
    let now = actions.iter().filter_map(|action| match action {
        Action::Settle { state, .. } => Some(*state),
        Action::Join { .. }
        | Action::Change { .. }
        | Action::Watch { .. }
        | Action::Retry { .. }
        | Action::Turn { .. } => None,
    });
    let count = |state| {
        rollout.nodes.iter().filter(|node| node.state == state).count()
            + now.clone().filter(|settled| *settled == state).count()
    };
    let verb = match rollout.direction {
        RolloutDirection::Forward => "changed",
        RolloutDirection::Back => "changed back",
    };
    let done = count(RolloutNodeState::Done);
    let nodes = if done == 1 { "node" } else { "nodes" };
    match count(RolloutNodeState::Skipped) {
        0 => format!("{done} {nodes} {verb}"),
        skipped => format!("{done} {nodes} {verb}, {skipped} left out"),
    }
}

/// What keeps a roll-out that rolls from getting further just now, if anything does.
pub fn waits_for(rollout: &Snapshot) -> Option<String> {
    if rollout.phase != RolloutPhase::Rolling {
        return None;
    }
    let names = |nodes: Vec<&Node>| {
        let all = nodes.len();
        let mut names: Vec<_> = nodes.iter().take(NAMED).map(|node| format!("`{}`", node.name)).collect();
        if all > NAMED {
            names.push(format!("{} more", all - NAMED));
        }
        names.join(", ")
    };
    let changing: Vec<&Node> =
        rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Changing).collect();
    if !changing.is_empty() {
        return Some(format!("{} to apply the configuration and be ready", names(changing)));
    }
    let unavailable: Vec<&Node> = unavailable(rollout).collect();
    let blocked = unavailable.len() >= usize::try_from(rollout.max_unavailable).unwrap_or(usize::MAX);
    let offline: Vec<&Node> = rollout
        .nodes
        .iter()
        .filter(|node| node.state == RolloutNodeState::Pending && matches!(node.health, Health::Offline(_)))
        .collect();
    let pending = rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Pending).count();
    if pending == 0 {
        None
    } else if offline.len() == pending {
        Some(format!("{}, which are offline", names(offline)))
    } else if blocked {
        let (count, most) = (unavailable.len(), rollout.max_unavailable);
        Some(format!("{}: {count} not available, and at most {most} may be", names(unavailable)))
    } else {
        None
    }
}

/// How many nodes are named.
const NAMED: usize = 3;

/// What a person may ask of a roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Command {
    /// Change no further nodes for now.
    Pause,
    /// Go on, and try again what has failed.
    Resume,
    /// End it; nodes stay as they are.
    Abort,
    /// Give the nodes back what they had before.
    Undo,
}

/// What a command makes of a roll-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turned {
    /// Which way it goes.
    pub direction: RolloutDirection,
    /// Where it is.
    pub phase: RolloutPhase,
    /// After how many nodes that are done it pauses.
    pub pause_after: Option<u32>,
    /// Nodes that are somewhere else now.
    pub nodes: Vec<(String, RolloutNodeState)>,
}

/// Why a command means nothing to a roll-out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not where the command would mean something.
    #[error("it is {phase}; {command} is for one that is {expected}")]
    Phase {
        /// The command.
        command: Command,
        /// Where it is.
        phase: RolloutPhase,
        /// Where it would have to be.
        expected: &'static str,
    },
    /// It is being undone, or was.
    #[error("it was undone already, or is on its way back; start another one")]
    Undone,
    /// It has changed no node.
    #[error("it has changed no node, so there is nothing to undo; abort ends it")]
    NothingToUndo,
}

/// What a command makes of a roll-out.
///
/// # Errors
/// Where the command means nothing to it.
pub fn turn(rollout: &Snapshot, command: Command) -> Result<Turned, Refusal> {
    let Snapshot { direction, phase, pause_after, nodes, .. } = rollout;
    let refused = |expected| Refusal::Phase { command, phase: *phase, expected };
    let as_it_is =
        |phase| Turned { direction: *direction, phase, pause_after: *pause_after, nodes: Vec::new() };
    match command {
        Command::Pause if *phase == RolloutPhase::Rolling => Ok(as_it_is(RolloutPhase::Paused)),
        Command::Pause => Err(refused("Rolling")),
        Command::Resume if matches!(phase, RolloutPhase::Paused | RolloutPhase::Stopped) => {
            let done = nodes.iter().filter(|node| node.state == RolloutNodeState::Done).count();
            let passed =
                pause_after.is_some_and(|after| usize::try_from(after).is_ok_and(|after| done >= after));
            let failed = nodes.iter().filter(|node| node.state == RolloutNodeState::Failed);
            Ok(Turned {
                pause_after: pause_after.filter(|_| !passed),
                nodes: failed.map(|node| (node.name.clone(), RolloutNodeState::Pending)).collect(),
                ..as_it_is(RolloutPhase::Rolling)
            })
        }
        Command::Resume => Err(refused("Paused or Stopped")),
        Command::Abort if phase.is_open() => Ok(as_it_is(RolloutPhase::Aborted)),
        Command::Abort => Err(refused("Rolling, Paused or Stopped")),
        Command::Undo if *direction == RolloutDirection::Back => Err(Refusal::Undone),
        Command::Undo if nodes.iter().all(|node| node.declared.is_none()) => Err(Refusal::NothingToUndo),
        Command::Undo => {
            let back = |node: &Node| match node.declared {
                Some(_) => (node.name.clone(), RolloutNodeState::Pending),
                None => (node.name.clone(), RolloutNodeState::Skipped),
            };
            Ok(Turned {
                direction: RolloutDirection::Back,
                phase: RolloutPhase::Rolling,
                pause_after: None,
                nodes: nodes.iter().map(back).collect(),
            })
        }
    }
}

#[cfg(test)]
mod tests;
