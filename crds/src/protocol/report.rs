//! Reports: everything that a node tells about attempts, record by record.
//!
//! Records of an attempt are numbered from 1 without gaps. The controller drops duplicates by (job, epoch, sequence)
//! and accepts any order; a record of an older epoch is stored as superseded and acknowledged, so that no outbox is
//! stuck. An attempt is complete when its terminal record and every sequence up to `last_sequence` have arrived.

use base64::Engine as _;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Artifact, AttemptId, read_lenient};
use crate::facts::Facts;
use crate::sandbox_job::{Limit, StepUsage};

/// A batch of records.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct ReportRequest {
    /// [`super::VERSION`].
    pub version: u32,
    /// The records, of any attempts, in any order.
    pub records: Vec<Record>,
}

impl ReportRequest {
    /// Reads a batch record by record: what cannot be read is answered as rejected and holds up no other record.
    ///
    /// # Errors
    /// Where it is no batch at all, or a record that cannot be read does not say which one it is.
    pub fn read(json: &[u8]) -> Result<(Self, Vec<RecordOutcome>), serde_json::Error> {
        if let Ok(batch) = serde_json::from_slice::<Self>(json) {
            return Ok((batch, Vec::new()));
        }
        #[derive(Deserialize)]
        struct Batch {
            version: u32,
            records: Vec<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Named {
            attempt: AttemptId,
            sequence: u64,
        }
        let Batch { version, records: items } = serde_json::from_slice(json)?;
        let (mut records, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            match read_lenient::<Record, Named>(item)? {
                Ok(record) => records.push(record),
                Err((Named { attempt, sequence }, problem)) => refused.push(RecordOutcome {
                    attempt,
                    sequence,
                    outcome: Outcome::Rejected,
                    detail: Some(problem),
                }),
            }
        }
        Ok((Self { version, records }, refused))
    }
}

/// One thing that happened in an attempt.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Record {
    /// The attempt.
    pub attempt: AttemptId,
    /// The record's number in the attempt, from 1.
    pub sequence: u64,
    /// When it happened, by the node's clock.
    pub at: Timestamp,
    /// What happened.
    pub body: RecordBody,
}

/// What happened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RecordBody {
    /// The node has prepared the workspace and begins with the first step.
    Started {
        /// Limits that are not enforced.
        #[serde(default)]
        unenforced: Vec<Limit>,
    },
    /// A step's program was started.
    StepStarted {
        /// The step's position, from 0.
        step: u32,
    },
    /// A step wrote output.
    Log {
        /// The step's position, from 0.
        step: u32,
        /// Where it wrote.
        stream: Stream,
        /// The position of the first byte in the stream.
        offset: u64,
        /// What it wrote.
        body: LogBody,
    },
    /// A step has ended.
    StepEnded(StepEnded),
    /// A message for people.
    Event {
        /// `debug`, `info`, `warn` or `error`.
        level: String,
        /// A stable word, such as `LimitUnenforced`.
        reason: String,
        /// A sentence.
        message: String,
        /// More, for programs. For `EgressAllowed`, `EgressDenied` and `EgressFailed`: [`EgressAttempts`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<serde_json::Value>,
    },
    /// What the attempt has left in its folder of artifacts, or a part of it: the manifest. It comes before the terminal record,
    /// the bodies come apart from it and later.
    Artifacts {
        /// The entries; their numbers go on where those of the record before have ended.
        items: Vec<Artifact>,
    },
    /// The attempt has ended. Nothing of it runs any more.
    Terminal(Terminal),
    /// Facts of the node. They belong to no attempt: the record's job is [`NODE_RECORDS`], and its epoch the second in which
    /// the agent was started.
    Facts(Box<Facts>),
}

/// Stands for the job in records that are about the node itself.
pub const NODE_RECORDS: &str = "node";

/// Attempts of one kind to get out of a sandbox with a restricted network, counted since the step's proxy was started: a
/// later one of the same step, host, port, address and reason stands for those before it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct EgressAttempts {
    /// The step's name.
    pub step: String,
    /// `CONNECT`, `HTTP` or `SOCKS`.
    pub protocol: String,
    /// Whom it asked for: a name or an address; empty where that could not be read, or stands for many.
    pub host: String,
    /// At which port; 0 as above.
    pub port: u16,
    /// The address that was judged or connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// The rule that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why it was denied or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that would allow what was denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// How many attempts.
    pub attempts: u64,
    /// Bytes from the step.
    pub sent_bytes: u64,
    /// Bytes to the step.
    pub received_bytes: u64,
}

/// Where a step wrote.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that a step wrote: text where they are valid UTF-8, else base64.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogBody {
    /// Valid UTF-8, NUL included.
    Text(String),
    /// Anything else, in standard base64.
    Base64(String),
}

impl LogBody {
    /// Wraps bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Base64(base64::engine::general_purpose::STANDARD.encode(error.into_bytes())),
        }
    }

    /// The bytes again; `None` where the base64 is broken.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.into_bytes()),
            Self::Base64(text) => base64::engine::general_purpose::STANDARD.decode(text).ok(),
        }
    }
}

/// How a step ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct StepEnded {
    /// The step's position, from 0.
    pub step: u32,
    /// Whether it exited with 0.
    pub succeeded: bool,
    /// How it ended, as one word: `Exited`, `OOMKilled`, …
    pub reason: String,
    /// How it ended, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The exit code, where the program exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What it wrote and used.
    #[serde(default)]
    pub usage: StepUsage,
}

/// How an attempt ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Terminal {
    /// The outcome.
    pub phase: TerminalPhase,
    /// Why, as one word: `Completed`, `StepFailed`, `JobTimeout`, `CancelRequested`, `LeaseExpired`, …
    pub reason: String,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The exit code of the step that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The highest sequence of the attempt: this record's own.
    pub last_sequence: u64,
}

/// The outcome of an attempt.
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
    strum::Display,
)]
#[serde(rename_all = "snake_case")]
pub enum TerminalPhase {
    /// Every step that counts succeeded.
    Succeeded,
    /// A step failed, or the job could not be run here.
    Failed,
    /// It was stopped by an order of the controller, because the job was cancelled or the node is to be emptied.
    Cancelled,
    /// It took longer than the job's timeout.
    TimedOut,
    /// It was stopped by the node without a verdict: the lease ended, or the agent was told to stop. Counts as lost.
    Lost,
    /// It never started: nothing of the job ran. Uses up no retry.
    Released,
}

/// The answer to a batch, in the order of its records. A record that is left out is to be sent again: the controller
/// could not yet settle what it means for its job.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ReportResponse {
    /// [`super::VERSION`].
    pub version: u32,
    /// What became of each record.
    pub results: Vec<RecordOutcome>,
}

/// What became of a record.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct RecordOutcome {
    /// The attempt.
    pub attempt: AttemptId,
    /// The record's number.
    pub sequence: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What became of a record. All but `Rejected` mean that it is in the store and may be dropped from the outbox; a
/// rejected one will never be accepted and may be dropped too, with a warning.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Stored now.
    Accepted,
    /// Was stored before.
    Duplicate,
    /// Stored, but the attempt is not current any more, so it changed nothing.
    Superseded,
    /// Malformed, or of an unknown job.
    Rejected,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_survives_the_wire_byte_for_byte() {
        for bytes in [b"hello\n".to_vec(), vec![0, b'a', 0], vec![0xff, 0xfe, 0x00], "žluť".into()] {
            let json = serde_json::to_string(&LogBody::from_bytes(bytes.clone())).unwrap();
            let body: LogBody = serde_json::from_str(&json).unwrap();
            assert_eq!(body.into_bytes(), Some(bytes), "{json}");
        }
    }

    #[test]
    fn a_record_is_flat_and_ignores_what_it_does_not_know() {
        let json = r#"{"attempt":{"job":"j","epoch":2,"x":1},"sequence":3,"at":"2026-01-02T03:04:05Z","later":true,
            "body":{"kind":"log","step":0,"stream":"stderr","offset":0,"body":{"text":"a"},"more":[]}}"#;
        let record: Record = serde_json::from_str(json).unwrap();
        assert_eq!(record.sequence, 3);
        assert!(matches!(record.body, RecordBody::Log { stream: Stream::Stderr, .. }));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_answered_and_holds_up_no_other() {
        let record = |sequence: u64, body: &str| {
            format!(
                r#"{{"attempt":{{"job":"j","epoch":1}},"sequence":{sequence},"at":"2026-01-02T03:04:05Z","body":{body}}}"#
            )
        };
        let batch = |records: &[String]| format!(r#"{{"version":1,"records":[{}]}}"#, records.join(","));
        let good = record(1, r#"{"kind":"step_started","step":0}"#);
        let newer = record(2, r#"{"kind":"step_levitated","step":0}"#);
        let (read, refused) = ReportRequest::read(batch(&[newer, good.clone()]).as_bytes()).unwrap();
        assert_eq!(read.records.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1]);
        assert_eq!((refused.len(), refused[0].sequence, refused[0].outcome), (1, 2, Outcome::Rejected));
        assert!(refused[0].detail.as_ref().unwrap().contains("step_levitated"), "{refused:?}");
        assert!(ReportRequest::read(batch(&[good, "{}".to_owned()]).as_bytes()).is_err());
        assert!(ReportRequest::read(b"[]").is_err());
    }
}
