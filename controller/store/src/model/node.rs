//! Nodes: registration, configuration, acknowledgement, capability.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::NodeConfigSpec;
use windlass_crds::conditions::Condition;
use windlass_crds::protocol::{AckError, AckStatus, CapabilityReport};

use super::{NodeHold, PushRow};

/// A node that wants to register.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRegistration {
    /// The node's name.
    pub name: String,
    /// The uid of the node if it is new.
    pub uid: String,
    /// This run of the agent. From now on beats and claims of any other run are refused.
    pub boot_id: String,
    /// The key that the node presents.
    pub public_key: Option<Vec<u8>>,
    /// Whether the node has proven to hold `public_key`.
    pub proven: bool,
    /// The join token that the node presents, found by its secret. Its use is counted only where it is needed.
    pub token: Option<RedeemedToken>,
    /// What the host can do.
    pub capability: CapabilityReport,
    /// The report's hash.
    pub capability_hash: String,
    /// The agent's own labels.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub agent_version: String,
}

/// A join token that was presented with its right secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeemedToken {
    /// The token's id.
    pub id: String,
    /// Whether it admits nodes that are not known yet.
    pub allows_new: bool,
    /// The known node that it may replace.
    pub replaces: Option<String>,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq)]
pub enum RegisterOutcome {
    /// The node is new (or was only declared until now).
    Created(NodeRow),
    /// The node was known: it proved its key, or a token replaced it.
    Known(NodeRow),
    /// Another key holds the name.
    NameTaken,
    /// The name is known and nothing proves that this is the same node; or the presented key is not proven.
    NeedsProof,
    /// A token is needed and there is none, or it is unknown, revoked, expired, used up or for something else.
    TokenInvalid,
    /// The agent's node was deregistered, and the token is not newer than that.
    Departed {
        /// When.
        at: Timestamp,
    },
}

/// A configuration to declare.
#[derive(Clone, Debug, PartialEq)]
pub struct NewNodeConfig {
    /// The node's name.
    pub name: String,
    /// The uid of the node if it is new.
    pub uid: String,
    /// The configuration.
    pub spec: NodeConfigSpec,
    /// The manifest's labels.
    pub labels: BTreeMap<String, String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The version that the change is based on; `Some(0)` demands that the node does not exist.
    pub expected_version: Option<i64>,
}

/// What became of something declared.
#[derive(Clone, Debug, PartialEq)]
pub enum Put<T> {
    /// It is new.
    Created(T),
    /// It changed.
    Updated(T),
    /// It was so before.
    Unchanged(T),
}

impl<T> Put<T> {
    /// The row as it is now.
    pub fn into_inner(self) -> T {
        match self {
            Self::Created(row) | Self::Updated(row) | Self::Unchanged(row) => row,
        }
    }
}

/// What a node says about a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    /// The configuration's version.
    pub version: u64,
    /// Whether it is in force.
    pub status: AckStatus,
    /// Why it is not.
    pub error: Option<AckError>,
    /// The hash of what is in force.
    pub hash: Option<String>,
}

/// What a host can do, when it has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct CapabilityUpdate {
    /// The report's hash.
    pub hash: String,
    /// The report.
    pub report: CapabilityReport,
    /// The agent's own labels.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub agent_version: String,
}

/// A capability report that a node has made.
#[derive(Clone, Debug, PartialEq)]
pub struct CapabilitySnapshot {
    /// When it came.
    pub at: Timestamp,
    /// Its hash.
    pub hash: String,
    /// The version of the agent that made it.
    pub agent_version: String,
    /// The report.
    pub report: CapabilityReport,
}

/// A node: what is declared for it and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
    /// The declared configuration.
    pub spec: NodeConfigSpec,
    /// The manifest's labels.
    pub meta_labels: BTreeMap<String, String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Grows with every change of `spec`, from 1.
    pub generation: i64,
    /// The version of the configuration that the node is given: grows with every change of `spec`, from 1.
    pub config_version: u64,
    /// Grows with every change; heartbeats and claims are none.
    pub resource_version: i64,
    /// When the node last registered; `None` for one that is only declared.
    pub registered_at: Option<Timestamp>,
    /// The key that proves the node.
    pub public_key: Option<Vec<u8>>,
    /// The registered run of the agent.
    pub boot_id: Option<String>,
    /// What the host can do.
    pub capability: Option<CapabilityReport>,
    /// The report's hash.
    pub capability_hash: Option<String>,
    /// The agent's own labels.
    pub agent_labels: BTreeMap<String, String>,
    /// The agent's version.
    pub agent_version: Option<String>,
    /// The newest version that the node has acknowledged.
    pub acked_version: Option<u64>,
    /// The newest version that the node has applied.
    pub applied_version: Option<u64>,
    /// Whether the acknowledged version is in force.
    pub ack_status: Option<AckStatus>,
    /// Why it is not.
    pub ack_error: Option<AckError>,
    /// The hash of what is in force.
    pub effective_hash: Option<String>,
    /// When the node was last heard of.
    pub last_seen_at: Option<Timestamp>,
    /// When it last asked for work.
    pub last_claim_at: Option<Timestamp>,
    /// How many attempts it can hold, as it last said.
    pub slots: u32,
    /// Why it cannot take jobs, as it last said.
    pub not_ready: Option<String>,
    /// The conditions that the controller has set.
    pub conditions: Vec<Condition>,
    /// When it was first declared or registered.
    pub created_at: Timestamp,
    /// How many live attempts it holds.
    pub running: u32,
    /// What an operator has asked by a command; lasts until it is lifted.
    pub hold: Option<NodeHold>,
    /// What calls to it need, where it is given its jobs or was.
    pub push: Option<PushRow>,
}
