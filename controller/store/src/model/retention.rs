//! What is forgotten, and when.

use std::time::Duration;

/// How long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Events that are about no job, or whose job is gone; a job's events go with the job.
    pub events: Duration,
    /// Records of fenced attempts.
    pub superseded: Duration,
    /// Join tokens that are revoked, expired or used up.
    pub join_tokens: Duration,
}

/// What was forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Expired idempotency keys.
    pub idempotency_keys: u64,
    /// Superseded records.
    pub records: u64,
    /// Events.
    pub events: u64,
    /// Join tokens.
    pub join_tokens: u64,
    /// Keys to remove from the object store; remembered until confirmed by `confirm_removed`.
    pub bodies: Vec<String>,
    /// Whether the limit was reached, so that there may be more.
    pub more: bool,
}
