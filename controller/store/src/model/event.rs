//! Events: messages for people about jobs and nodes.

use jiff::Timestamp;
use serde_json::Value;

/// How much an event matters.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::Display,
)]
#[strum(serialize_all = "lowercase")]
pub enum EventLevel {
    /// For those who look closely.
    Debug,
    /// Something happened as it should.
    Info,
    /// Something is not as it should be, and mends itself or can wait.
    Warn,
    /// Somebody must look.
    Error,
}

/// An event to write.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// The uid of the job that it is about.
    pub job: Option<String>,
    /// The name of the node that it is about.
    pub node: Option<String>,
    /// How much it matters.
    pub level: EventLevel,
    /// Who says it: `controller`, `node`, …
    pub source: String,
    /// A stable word in CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// More, for programs.
    pub data: Option<Value>,
}

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// The position, which only grows: the cursor for the next read.
    pub id: i64,
    /// When it was written.
    pub at: Timestamp,
    /// The uid of the job that it is about.
    pub job: Option<String>,
    /// The name of the node that it is about.
    pub node: Option<String>,
    /// How much it matters.
    pub level: EventLevel,
    /// Who says it.
    pub source: String,
    /// A stable word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// More, for programs.
    pub data: Option<Value>,
}
