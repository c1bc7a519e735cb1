//! Jobs: what is created, what is read, what may be changed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use windlass_crds::sandbox_job::{Limit, StepStatus};
use windlass_crds::{JobPhase, SandboxJobSpec, Span};

/// What an attempt takes of its node while it is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reserve {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Graphics processors.
    pub gpus: u32,
}

/// A set of static predicates on nodes. Jobs with the same hash are one requirement class.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    /// Names the predicates: the same hash means the same predicates.
    pub hash: String,
    /// The predicates, in the caller's own form.
    pub predicates: Value,
}

/// Makes a repeated creation harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, with the scope in which it is unique.
    pub key: String,
    /// The hash of the request, to tell a repetition from a misuse.
    pub request_hash: String,
    /// Until when the key is remembered.
    pub keep_until: Timestamp,
}

/// A job to create.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// The new job's uid.
    pub uid: String,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The manifest's labels.
    pub labels: BTreeMap<String, String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// What to do. `suspend`, `offline` and `ttlAfterFinished` are taken from here; `queue` and `priority` from the
    /// fields below.
    pub spec: SandboxJobSpec,
    /// Names the content of `spec`, so that applying the same manifest again can be told from a change.
    pub spec_hash: String,
    /// What the job needs of a node. The class is created when it is new.
    pub requirement: Requirement,
    /// What an attempt takes of its node.
    pub reserve: Reserve,
    /// The queue that the job waits in.
    pub queue: String,
    /// The priority from 0 to 1000; higher is claimed first.
    pub priority: u16,
    /// `Queued` or `PendingApproval`.
    pub phase: JobPhase,
    /// Makes a repetition of this request harmless.
    pub idempotency: Option<IdempotencyKey>,
    /// Digests of uploaded inputs; they must be in the store and are kept while the job is.
    pub input_digests: Vec<String>,
}

/// What became of a job to create.
#[derive(Clone, Debug, PartialEq)]
pub enum CreateOutcome {
    /// It is new.
    Created(JobRow),
    /// The same request was answered before; this is its job as it is now.
    Replayed(JobRow),
    /// The idempotency key belongs to another request, or to one whose job was deleted since.
    KeyReused,
    /// A job of that name (or uid) exists; nothing was changed.
    NameTaken(JobRow),
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// The uid: never used again, also after deletion.
    pub uid: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The manifest's labels.
    pub labels: BTreeMap<String, String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// What to do, with `suspend`, `priority`, `ttlAfterFinished` and `cancel` as they are now.
    pub spec: Arc<SandboxJobSpec>,
    /// The hash given at creation.
    pub spec_hash: String,
    /// The queue.
    pub queue: String,
    /// The priority from 0 to 1000.
    pub priority: u16,
    /// The requirement class.
    pub class_id: i64,
    /// What an attempt takes of its node.
    pub reserve: Reserve,
    /// Where the job is in its life.
    pub phase: JobPhase,
    /// Why it is there, as one word.
    pub reason: Option<String>,
    /// Why it is there, as a sentence.
    pub message: Option<String>,
    /// The node of the current or last attempt.
    pub node: Option<String>,
    /// The epoch of the current or last attempt; 0 before the first.
    pub epoch: u64,
    /// How many attempts have been made.
    pub attempts: u32,
    /// How many attempts were lost and count against the retry policy.
    pub lost_attempts: u32,
    /// How many attempts failed and count against the retry policy.
    pub failures: u32,
    /// The exit code of the step that decided the result.
    pub exit_code: Option<i32>,
    /// The steps of the current or last attempt.
    pub steps: Vec<StepStatus>,
    /// Limits that were not enforced.
    pub unenforced: Vec<Limit>,
    /// Whether every record of the last attempt has arrived.
    pub logs_complete: bool,
    /// Whether the job is held back in its queue.
    pub suspend: bool,
    /// When somebody asked to cancel it.
    pub cancel_requested_at: Option<Timestamp>,
    /// When it last entered its queue.
    pub queued_at: Option<Timestamp>,
    /// The earliest time of the next attempt.
    pub not_before: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When the current or last attempt began to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it may be deleted.
    pub ttl_at: Option<Timestamp>,
    /// Grows with every change of what was declared.
    pub generation: i64,
    /// Grows with every change.
    pub resource_version: i64,
    /// The end of the live attempt's lease.
    pub lease_until: Option<Timestamp>,
}

/// Which jobs to list. Empty fields do not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only in this queue.
    pub queue: Option<String>,
    /// Only in one of these phases.
    pub phases: Vec<JobPhase>,
    /// Only with all of these labels.
    pub label_equals: BTreeMap<String, String>,
    /// Only with names that begin so.
    pub name_prefix: Option<String>,
    /// Only created at or after.
    pub created_after: Option<Timestamp>,
    /// Only created before.
    pub created_before: Option<Timestamp>,
}

/// Which part of a list to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The most rows to return; at least 1.
    pub limit: u32,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
}

/// A position in a list of jobs. Jobs that are created later never move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub(crate) i64);

/// The text is not a cursor that this store has given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not one that was given out")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{:x}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let digits = text.strip_prefix('j').ok_or(InvalidCursor)?;
        if digits.is_empty() || digits.starts_with(['+', '-']) {
            return Err(InvalidCursor);
        }
        i64::from_str_radix(digits, 16).map(Self).map_err(|_| InvalidCursor)
    }
}

/// Changes of what may change after creation. `None` keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobPatch {
    /// Whether the job is held back in its queue.
    pub suspend: Option<bool>,
    /// The priority from 0 to 1000.
    pub priority: Option<u16>,
    /// How long the job is kept after it has ended; `Some(None)` keeps it until it is deleted.
    pub ttl_after_finished: Option<Option<Span>>,
    /// All labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// All annotations.
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What became of a request to cancel.
#[derive(Clone, Debug, PartialEq)]
pub enum CancelOutcome {
    /// No node held the job: it has ended.
    Cancelled(JobRow),
    /// A node holds the job: the order goes to the node.
    Requested(JobRow),
    /// The job had ended before; nothing was changed.
    AlreadyEnded(JobRow),
    /// There is no such job.
    NotFound,
}

/// What became of a request to delete.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "an outcome is matched once and never kept")]
pub enum DeleteOutcome {
    /// The job, its attempts and its records are gone.
    Deleted {
        /// Keys to remove from the object store; remembered until confirmed by `confirm_removed`.
        bodies: Vec<String>,
    },
    /// A node holds the job; nothing was changed.
    StillHeld(JobRow),
    /// There is no such job.
    NotFound,
}

/// What became of a request to try again.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryOutcome {
    /// The job is in its queue again.
    Queued(JobRow),
    /// The job has not ended; nothing was changed.
    NotEnded(JobRow),
    /// There is no such job.
    NotFound,
}
