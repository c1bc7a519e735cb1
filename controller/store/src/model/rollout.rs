//! Roll-outs: changes of many nodes' configurations, a few nodes at a time.

use jiff::Timestamp;
use serde_json::Value;
use windlass_crds::rollout::{RolloutDirection, RolloutNodeState, RolloutPhase};
use windlass_crds::{NodeConfigSpec, Span};

/// A roll-out to begin.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRollout {
    /// Its name.
    pub name: String,
    /// The labels of its nodes.
    pub selector: String,
    /// What is laid over each node's spec.
    pub patch: Value,
    /// How many of its nodes may be unavailable at once.
    pub max_unavailable: u32,
    /// After how many nodes that are done it pauses.
    pub pause_after: Option<u32>,
    /// How long a node may take.
    pub timeout: Span,
    /// The nodes, in order.
    pub nodes: Vec<String>,
}

/// A roll-out.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRow {
    /// Its name.
    pub name: String,
    /// The labels of its nodes.
    pub selector: String,
    /// What is laid over each node's spec.
    pub patch: Value,
    /// How many of its nodes may be unavailable at once.
    pub max_unavailable: u32,
    /// After how many nodes that are done it pauses.
    pub pause_after: Option<u32>,
    /// How long a node may take.
    pub timeout: Span,
    /// Which way nodes are changed.
    pub direction: RolloutDirection,
    /// Where it is.
    pub phase: RolloutPhase,
    /// Why, as one word.
    pub reason: Option<String>,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it last got further.
    pub updated_at: Timestamp,
    /// Grows with every step.
    pub version: i64,
    /// Its nodes, in order.
    pub nodes: Vec<RolloutNodeRow>,
}

/// A node of a roll-out.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutNodeRow {
    /// The node.
    pub node: String,
    /// How far it is.
    pub state: RolloutNodeState,
    /// The version of its configuration that the roll-out declared.
    pub config_version: Option<u64>,
    /// When.
    pub changed_at: Option<Timestamp>,
    /// The configuration that was there first; `None` while the roll-out has not touched it.
    pub former: Option<NodeConfigSpec>,
    /// What there is to say about it.
    pub message: Option<String>,
}

/// A step of a roll-out. Steps that are handed in together happen together or not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum RolloutStep {
    /// Take a node in, at the end.
    Join {
        /// The node.
        node: String,
    },
    /// Declare a node's configuration.
    Change {
        /// The node.
        node: String,
        /// The configuration.
        spec: Box<NodeConfigSpec>,
        /// The node's `resource_version` that this was decided on.
        expected_version: i64,
    },
    /// Watch a node whose configuration is as it should be, at this version of it.
    Watch {
        /// The node.
        node: String,
        /// The version.
        config_version: u64,
    },
    /// Note how far a node is, with what there is to say.
    Settle {
        /// The node.
        node: String,
        /// How far it is.
        state: RolloutNodeState,
        /// What there is to say.
        message: String,
    },
    /// Note where the roll-out is.
    Turn {
        /// Which way it goes.
        direction: RolloutDirection,
        /// Where it is.
        phase: RolloutPhase,
        /// After how many nodes that are done it pauses.
        pause_after: Option<u32>,
        /// Why, as one word.
        reason: String,
        /// Why, as a sentence.
        message: String,
    },
}
