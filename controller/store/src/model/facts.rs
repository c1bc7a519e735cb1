//! Facts of nodes.

use jiff::Timestamp;
use windlass_crds::facts::Facts;

/// A report of a node about its host.
#[derive(Clone, Debug, PartialEq)]
pub struct NewFacts {
    /// The second in which the node's agent was started.
    pub epoch: u64,
    /// The report's number in that run.
    pub sequence: u64,
    /// The report.
    pub facts: Facts,
}

/// A report that was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct FactsRow {
    /// When it arrived.
    pub received_at: Timestamp,
    /// The report.
    pub facts: Facts,
}
