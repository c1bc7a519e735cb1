//! Artifacts of attempts.

use jiff::Timestamp;
use windlass_crds::protocol::Artifact;

/// What is known of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactRow {
    /// The epoch of its attempt.
    pub epoch: u64,
    /// The number of its attempt, from 1.
    pub attempt: u32,
    /// The node that has collected it.
    pub node: String,
    /// What the node says of it.
    pub artifact: Artifact,
    /// When it was collected, by the node's clock.
    pub collected_at: Timestamp,
    /// Whether the attempt was fenced when it was told of.
    pub superseded: bool,
    /// The key of its body in the object store, once that is there.
    pub object_key: Option<String>,
    /// When its body came.
    pub stored_at: Option<Timestamp>,
    /// Why its body will never come.
    pub lost: Option<String>,
}

/// What became of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtifactOutcome {
    /// The artifact has it now.
    Stored,
    /// The artifact had one before, and keeps that.
    Known,
    /// The attempt would have more bytes of artifacts with it than it may.
    Full,
    /// There is no such artifact of this node, or none any more.
    Gone,
}
