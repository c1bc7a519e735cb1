//! Nodes that are given their jobs by the controller.

use jiff::Timestamp;

/// What the controller needs to call a node, and how that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRow {
    /// The number of the token that the newest configuration holds, from 1.
    pub serial: u64,
    /// The version of the node's configuration that holds it first.
    pub since_version: u64,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When the one before it was issued.
    pub former_issued_at: Option<Timestamp>,
    /// When the node last took a job.
    pub delivered_at: Option<Timestamp>,
    /// Why the last job could not be given to it.
    pub error: Option<String>,
    /// Since when that is so.
    pub error_since: Option<Timestamp>,
}

impl PushRow {
    /// The number of the token that is in force on a node that has applied this version, and when it was issued.
    pub fn token_at(&self, applied_version: Option<u64>) -> Option<(u64, Timestamp)> {
        if applied_version? >= self.since_version {
            return Some((self.serial, self.issued_at));
        }
        self.former_issued_at.map(|issued_at| (self.serial - 1, issued_at))
    }
}
