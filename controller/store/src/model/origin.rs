//! Origins: objects of other systems that something in the store was declared by.

use super::JobRow;

/// An object of a Kubernetes cluster. An object that is deleted and made again is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Names the cluster, whatever address it is reached under.
    pub cluster: String,
    /// The object's uid.
    pub object: String,
}

/// What an object declares.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString, strum::Display,
)]
#[strum(serialize_all = "lowercase")]
pub enum OriginKind {
    /// A job.
    Job,
    /// A node's configuration.
    Node,
    /// A template.
    Template,
}

/// What the store holds for an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginRow {
    /// The object.
    pub origin: Origin,
    /// What it declares.
    pub kind: OriginKind,
    /// The uid of the job, node or template, which may have been deleted since.
    pub subject: String,
    /// Whether the subject belongs to the store alone, because the object was lost.
    pub released: bool,
}

/// What became of an object's job.
#[derive(Clone, Debug, PartialEq)]
pub enum OriginOutcome {
    /// It is new.
    Created(JobRow),
    /// The object had a job already; this is it as it is now.
    Known(JobRow),
    /// The object had a job that was deleted since. It is not made a second time.
    Ended,
    /// Another job has the name; nothing was changed.
    NameTaken(JobRow),
}

/// What became of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The subject belongs to the object now, or did so before.
    Bound,
    /// The subject belongs to another object, or the object has another subject; nothing was changed.
    Taken(OriginRow),
}
