//! Numbers about queues and the whole store.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::JobPhase;

/// How many jobs are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Waiting for a node and ready to be claimed.
    pub queued: u64,
    /// Waiting for their `not_before`.
    pub delayed: u64,
    /// Held back by `suspend`.
    pub suspended: u64,
    /// Waiting for approval.
    pub pending_approval: u64,
    /// Claimed or running.
    pub running: u64,
    /// Waiting for an answer.
    pub waiting: u64,
    /// Failed with all attempts used up.
    pub dead: u64,
}

/// How many jobs of one priority are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriorityRow {
    /// The priority.
    pub priority: u16,
    /// The numbers.
    pub counts: QueueCounts,
}

/// A queue. Queues with no job in them that has not ended and none that is dead are not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// The queue's name.
    pub queue: String,
    /// By priority, highest first.
    pub by_priority: Vec<PriorityRow>,
    /// All priorities together.
    pub totals: QueueCounts,
    /// When the job that waits longest entered the queue, among those counted as `queued`.
    pub oldest_queued_at: Option<Timestamp>,
}

/// Numbers about the whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs by phase; phases without a job are left out.
    pub jobs: BTreeMap<JobPhase, u64>,
    /// When the job that waits longest, and could be claimed, entered its queue.
    pub oldest_queued_at: Option<Timestamp>,
    /// Nodes, the only declared ones included.
    pub nodes: u64,
    /// Nodes that have registered.
    pub registered_nodes: u64,
    /// Attempts that nodes hold.
    pub live_attempts: u64,
    /// Live attempts whose lease has ended.
    pub expired_leases: u64,
}
