//! What has to be known to say why a job waits.

use super::Reserve;

/// What the live attempts of a node take of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUsage {
    /// The node.
    pub node: String,
    /// Attempts that take a slot: all but those that wait for an answer.
    pub slots: u32,
    /// The resources that are taken.
    pub reserve: Reserve,
}

/// A job that a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderRow {
    /// The node.
    pub node: String,
    /// The job's namespace.
    pub namespace: String,
    /// The job's name.
    pub name: String,
    /// Whether its attempt waits for an answer, and so takes neither a slot nor processors.
    pub waiting: bool,
    /// What its attempt takes.
    pub reserve: Reserve,
}

/// Where a ready job stands in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// How many ready jobs of the queue are before it, as far as they were counted.
    pub ahead: u64,
    /// Whether counting ended before the front of the queue.
    pub at_least: bool,
}
