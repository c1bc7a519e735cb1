//! What is forgotten, and when.

use std::time::Duration;

use windlass_crds::protocol::AttemptId;

/// How long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Events that are about no job, or whose job is gone; a job's events go with the job.
    pub events: Duration,
    /// Records and artifacts of fenced attempts.
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
    /// Artifacts of fenced attempts.
    pub artifacts: u64,
    /// Events.
    pub events: u64,
    /// Join tokens.
    pub join_tokens: u64,
    /// Keys to remove from the object store; remembered until confirmed by `confirm_removed`.
    pub bodies: Vec<String>,
    /// Whether the limit was reached, so that there may be more.
    pub more: bool,
}

/// A body that was found in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    /// Its key.
    pub key: String,
    /// Whose body it is, by its key.
    pub of: BodyOf,
}

/// What a body belongs to, if the row of that still names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyOf {
    /// A record of an attempt.
    Record {
        /// The attempt.
        attempt: AttemptId,
        /// The record's number.
        sequence: u64,
    },
    /// An artifact of an attempt.
    Artifact {
        /// The attempt.
        attempt: AttemptId,
        /// Its place in the manifest.
        number: u32,
    },
    /// An uploaded input.
    Input {
        /// Its digest.
        digest: String,
    },
    /// Nothing that a row could name.
    Nothing,
}
