//! Roll-outs: a change of many nodes' configurations, a few nodes at a time.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::Span;

/// Where a roll-out is.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::EnumIter,
    strum::Display,
)]
pub enum RolloutPhase {
    /// Nodes are changed.
    Rolling,
    /// It waits for a person: somebody has paused it, or it was to be paused here.
    Paused,
    /// Something went wrong; no further node is changed until a person decides.
    Stopped,
    /// Every node was changed, or left out for a reason.
    Complete,
    /// Somebody ended it; nodes stay as they are.
    Aborted,
}

impl RolloutPhase {
    /// Whether it still has hold of its nodes, so that no other roll-out may.
    pub const fn is_open(self) -> bool {
        match self {
            Self::Rolling | Self::Paused | Self::Stopped => true,
            Self::Complete | Self::Aborted => false,
        }
    }
}

/// Which way nodes are changed.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::EnumIter,
    strum::Display,
)]
pub enum RolloutDirection {
    /// They get the patch.
    Forward,
    /// They get back what they had before.
    Back,
}

/// How far a node is.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::EnumIter,
    strum::Display,
)]
pub enum RolloutNodeState {
    /// Its turn has not come.
    Pending,
    /// Its configuration was declared; it has not acknowledged it, or is not ready.
    Changing,
    /// It has applied its configuration and is ready.
    Done,
    /// It could not apply its configuration, or was not ready in time.
    Failed,
    /// It is left as it is, for the reason that is told.
    Skipped,
}

/// A roll-out to start.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRollout {
    /// Its name; without it one is made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The nodes: labels in force on them, as `key=value`, separated by commas.
    pub selector: String,
    /// Part of a NodeConfig to lay over each node's own: a map with `spec`. Maps are merged, `null` takes a field away,
    /// everything else replaces what was.
    pub patch: Value,
    /// How many of its nodes may be unavailable at once: being changed, not ready or offline.
    #[serde(default = "one")]
    pub max_unavailable: u32,
    /// Pause once so many nodes are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<u32>,
    /// How long a node may take to acknowledge and to be ready. Default 5m.
    #[serde(default = "five_minutes")]
    pub node_timeout: Span,
}

const fn one() -> u32 {
    1
}

const fn five_minutes() -> Span {
    Span::from_secs(300)
}

/// A roll-out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// `Rollout`.
    #[serde(default)]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The nodes, as `key=value`, separated by commas.
    pub selector: String,
    /// What is laid over each node's configuration.
    pub patch: Value,
    /// How many of its nodes may be unavailable at once.
    pub max_unavailable: u32,
    /// After how many nodes that are done it pauses, while that has not happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<u32>,
    /// How long a node may take to acknowledge and to be ready.
    pub node_timeout: Span,
    /// Which way nodes are changed.
    pub direction: RolloutDirection,
    /// Where it is.
    pub phase: RolloutPhase,
    /// Why it is there, as one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is there, or what it waits for, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it last got further.
    pub updated_at: Timestamp,
    /// Its nodes, in the order in which they are changed.
    pub nodes: Vec<RolloutNode>,
}

/// A node of a roll-out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutNode {
    /// The node.
    pub node: String,
    /// How far it is.
    pub state: RolloutNodeState,
    /// The version of its configuration that the roll-out declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_version: Option<u64>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// What there is to say about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
