//! Records of attempts, and the transitions that are decided on them.

use jiff::Timestamp;
use serde_json::Value;
use windlass_crds::JobPhase;
use windlass_crds::protocol::{AttemptId, Outcome, Stream};
use windlass_crds::sandbox_job::{Limit, StepStatus};

use super::{AttemptPhase, JobRow};

/// The highest sequence that a record can have. Beyond it is nonsense: a node that writes a million records a second
/// gets there in 285 years.
pub const MAX_SEQUENCE: u64 = 1 << 53;

/// What a record tells.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString, strum::Display,
)]
#[strum(serialize_all = "snake_case")]
pub enum RecordKind {
    /// The attempt began.
    Started,
    /// A step began.
    StepStarted,
    /// Output of a step.
    Log,
    /// A step ended.
    StepEnded,
    /// A message for people. Its body is JSON with `level`, `reason` and `message`; when it is accepted it also
    /// becomes an event of the job.
    Event,
    /// What the attempt has left as artifacts. Its body is JSON with `items`; when it is stored each becomes a row of its own.
    Artifacts,
    /// The attempt ended.
    Terminal,
}

/// Where the content of a record is.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordStore {
    /// In the row, as bytes.
    Inline(Vec<u8>),
    /// In the object store.
    Object {
        /// The key.
        key: String,
        /// The length in bytes.
        len: u64,
    },
    /// In the row, as JSON.
    Json(Value),
    /// There is none.
    None,
}

/// A record to store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// The attempt.
    pub attempt: AttemptId,
    /// The record's number in the attempt, from 1.
    pub sequence: u64,
    /// When it happened, by the node's clock.
    pub at: Timestamp,
    /// What it tells.
    pub kind: RecordKind,
    /// The step that it is about.
    pub step: Option<u32>,
    /// Where a log was written.
    pub stream: Option<Stream>,
    /// The position of a log's first byte in its stream.
    pub offset: Option<u64>,
    /// The content.
    pub body: RecordStore,
}

/// What would become of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reportable {
    /// It would be stored.
    New,
    /// It was stored before.
    Known,
    /// It would be rejected.
    Refused,
}

/// A change of a job, valid only against the state that it was decided on.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The job's uid.
    pub job: String,
    /// The epoch that the decision is about.
    pub epoch: u64,
    /// The job's `resource_version` that the decision was made on.
    pub expect_version: i64,
    /// What the job becomes.
    pub set: JobChange,
}

/// What a job becomes. All fields are set as they are here; begin with [`JobChange::of`] to keep what is.
///
/// A job that leaves `Claimed`, `Running` and `Waiting` gives up its attempt: `attempt` tells how that ended; without
/// it the attempt's end follows from `phase` (`Queued` → `Released`).
#[derive(Clone, Debug, PartialEq)]
pub struct JobChange {
    /// Where the job is in its life. `Claimed` only where it is so already; `Running` and `Waiting` only while the
    /// job is held.
    pub phase: JobPhase,
    /// Why, as one word.
    pub reason: Option<String>,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// The exit code of the step that decided.
    pub exit_code: Option<i32>,
    /// The steps; `None` keeps them.
    pub steps: Option<Vec<StepStatus>>,
    /// Limits that were not enforced; `None` keeps them.
    pub unenforced: Option<Vec<Limit>>,
    /// When the attempt began to run.
    pub started_at: Option<Timestamp>,
    /// When the job ended; `None` with a terminal phase means now, and any other phase clears it.
    pub finished_at: Option<Timestamp>,
    /// The earliest time of the next attempt.
    pub not_before: Option<Timestamp>,
    /// How many attempts were lost and count.
    pub lost_attempts: u32,
    /// How many attempts failed and count.
    pub failures: u32,
    /// What becomes of the attempt; `None` lets it follow from `phase`.
    pub attempt: Option<AttemptChange>,
    /// What becomes of the job's node.
    pub node: NodeChange,
    /// Sets whether all records have arrived; `None` lets the store count them.
    pub logs_complete: Option<bool>,
}

impl JobChange {
    /// The change that changes nothing.
    pub fn of(job: &JobRow) -> Self {
        Self {
            phase: job.phase,
            reason: job.reason.clone(),
            message: job.message.clone(),
            exit_code: job.exit_code,
            steps: None,
            unenforced: None,
            started_at: job.started_at,
            finished_at: job.finished_at,
            not_before: job.not_before,
            lost_attempts: job.lost_attempts,
            failures: job.failures,
            attempt: None,
            node: NodeChange::Keep,
            logs_complete: None,
        }
    }
}

/// What becomes of a job's node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeChange {
    /// It stays.
    #[default]
    Keep,
    /// The job has none.
    Clear,
}

/// What becomes of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptChange {
    /// Where it is in its life. Live exactly while the job is held.
    pub phase: AttemptPhase,
    /// Why, as one word.
    pub reason: Option<String>,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// The exit code of the step that decided.
    pub exit_code: Option<i32>,
    /// When it ended; `None` with an ended phase means now.
    pub ended_at: Option<Timestamp>,
    /// The sequence of its terminal record. Without one an ended attempt is fenced: what it still reports is
    /// superseded.
    pub last_sequence: Option<u64>,
}

/// What is learned of an attempt after it has ended its job, valid only against the state that it was decided on. It
/// completes the picture and moves nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct LateSteps {
    /// The job's uid.
    pub job: String,
    /// The attempt's epoch, which is the job's.
    pub epoch: u64,
    /// The job's `resource_version` that this was decided on.
    pub expect_version: i64,
    /// The steps as they are known now.
    pub steps: Vec<StepStatus>,
    /// Limits that were not enforced.
    pub unenforced: Vec<Limit>,
    /// When the attempt began to run; one that is known already stays.
    pub started_at: Option<Timestamp>,
}

/// What became of [`LateSteps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateOutcome {
    /// The picture is complete with them.
    Done,
    /// The attempt was ended by somebody else than its node: what that says changes nothing.
    Fenced,
    /// The job is not any more what this was decided on (or is gone): read again, decide again.
    Stale,
}

/// What became of a transition.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "an outcome is matched once and holds a row in nearly every case"
)]
pub enum TransitionOutcome {
    /// It happened; this is the job as it is now.
    Done(JobRow),
    /// The job is not any more what the decision was made on (or is gone): read again, decide again.
    Stale,
}

/// What became of a report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// One outcome per record, in order. `Rejected`: the attempt is unknown or was never this node's, or the
    /// sequence is 0 or lies beyond the terminal record.
    pub records: Vec<Outcome>,
    /// One outcome per transition, in order.
    pub transitions: Vec<TransitionOutcome>,
}

/// Which logs to read. Empty fields do not restrict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only of this attempt.
    pub epoch: Option<u64>,
    /// Only of this step.
    pub step: Option<u32>,
    /// Only from here.
    pub stream: Option<Stream>,
}

/// A position in a job's logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogCursor {
    /// The attempt.
    pub epoch: u64,
    /// The record.
    pub sequence: u64,
}

/// A piece of a job's logs.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRow {
    /// The attempt.
    pub epoch: u64,
    /// The record's number.
    pub sequence: u64,
    /// When it was written, by the node's clock.
    pub at: Timestamp,
    /// The step.
    pub step: Option<u32>,
    /// Where the step wrote.
    pub stream: Option<Stream>,
    /// The position of the first byte in the stream.
    pub offset: Option<u64>,
    /// The bytes.
    pub body: RecordStore,
    /// Whether the attempt was fenced when it arrived.
    pub superseded: bool,
}

impl LogRow {
    /// The row's position.
    pub const fn cursor(&self) -> LogCursor {
        LogCursor { epoch: self.epoch, sequence: self.sequence }
    }
}
