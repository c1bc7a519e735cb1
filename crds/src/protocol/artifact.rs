//! Artifacts: files that an attempt leaves behind for people and for what comes after it.
//!
//! ```text
//!  report:  RecordBody::Artifacts ── the manifest, before the terminal record ──► one row each
//!  PUT artifacts/JOB/EPOCH/NUMBER ── a body, any time later, in any order ──────► the row names it
//!  POST artifacts: ArtifactsLost ── bodies that the node has no more ───────────► the row says so
//! ```
//!
//! A body is taken only where its manifest came before, with the size and the digest that the manifest names. Each call
//! may be repeated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AttemptId;

/// The most artifacts that are collected of one attempt.
pub const MAX_ARTIFACTS: u32 = 1000;
/// The most entries of an attempt's manifest: what was collected, and what was refused.
pub const MAX_ARTIFACT_ENTRIES: u32 = 2 * MAX_ARTIFACTS;
/// The most entries in one record, so that a batch of records stays small.
pub const MAX_ARTIFACTS_IN_RECORD: usize = 64;
/// The most bytes of one artifact.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;
/// The most bytes of all artifacts of one attempt.
pub const MAX_ARTIFACTS_BYTES: u64 = 1 << 30;
/// The most bytes of an artifact's name, folders included.
pub const MAX_ARTIFACT_NAME: usize = 512;

/// An entry of an attempt's manifest: a file that was collected, or one that was refused. Together with the attempt and its
/// node it says where the artifact comes from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Artifact {
    /// Its place in the manifest, from 1.
    pub number: u32,
    /// Its path below the attempt's folder of artifacts, with `/`. Of one that was refused a readable form of it.
    pub name: String,
    /// What it is, by its name and its content.
    pub kind: ArtifactKind,
    /// Its length in bytes.
    pub size: u64,
    /// The SHA-256 of its content in lower-case hexadecimal digits; of one that was refused there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What an artifact is.
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
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ArtifactKind {
    /// A text in Markdown.
    Markdown,
    /// A JSON document.
    Json,
    /// Differences between texts.
    Diff,
    /// A picture.
    Image,
    /// A file that leads to somewhere else.
    Link,
    /// A ZIP archive.
    Zip,
    /// Anything else.
    File,
}

/// Says that bodies of an attempt's artifacts will never come: the node has them no more.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ArtifactsLost {
    /// [`super::VERSION`].
    pub version: u32,
    /// The attempt.
    pub attempt: AttemptId,
    /// The artifacts.
    pub lost: Vec<LostArtifact>,
}

/// An artifact whose body will never come.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct LostArtifact {
    /// Its place in the manifest.
    pub number: u32,
    /// Why.
    pub reason: String,
}
