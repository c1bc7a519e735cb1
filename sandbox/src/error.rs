//! The errors of the sandbox. One enum for the whole driver contract, because its callers treat the drivers alike.

use std::path::PathBuf;

use crate::engine::EngineKind;
use crate::spec::{LimitName, UnitId};

/// What kind of trouble there is with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageProblem {
    /// It is no reference.
    Invalid,
    /// It does not exist, or only where it may not be fetched from.
    NotFound,
    /// The registry does not let in whoever asks.
    Unauthorized,
    /// It is not what its digest says.
    Digest,
    /// The registry cannot be reached; it may be later.
    Unavailable,
    /// The credentials on the node cannot be used.
    Credentials,
    /// It is there, and nothing that could run here: of another kind, for other hosts, too large, or made to do harm.
    Unusable,
}

/// What can go wrong in a driver.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Error {
    /// The unit id is not made of `[a-z0-9.-]`, or is empty, too long, or starts with a dot.
    #[error("invalid unit id {id:?}: use 1 to 100 of a-z, 0-9, '-' and '.', not starting with '.'")]
    InvalidId {
        /// What was given.
        id: String,
    },
    /// A field of the unit's specification cannot be carried out.
    #[error("invalid {field}: {problem}")]
    InvalidSpec {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The driver or the host lacks something that the unit asks for.
    #[error("{feature} is not supported here, it needs {needed}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What would make it work.
        needed: String,
    },
    /// A limit that the job or the node's policy names cannot be enforced on this host.
    #[error("limit {limit} cannot be enforced: {reason}; {fix}")]
    Unenforceable {
        /// The limit.
        limit: LimitName,
        /// Why not.
        reason: String,
        /// What to do about it.
        fix: String,
    },
    /// Another unit with this id exists and was prepared from a different specification.
    #[error("unit {id} exists with another specification")]
    Exists {
        /// The unit.
        id: UnitId,
    },
    /// There is no such unit.
    #[error("unit {id} does not exist")]
    NotFound {
        /// The unit.
        id: UnitId,
    },
    /// The unit was prepared but never started.
    #[error("unit {id} was not started")]
    NotStarted {
        /// The unit.
        id: UnitId,
    },
    /// The unit is running, so it cannot be removed.
    #[error("unit {id} is still running")]
    StillRunning {
        /// The unit.
        id: UnitId,
    },
    /// The sandbox could not be made; the unit has ended with `SetupFailed`.
    #[error("sandbox of unit {id} could not be made: {message}")]
    Setup {
        /// The unit.
        id: UnitId,
        /// The step that failed, and why.
        message: String,
    },
    /// The supervisor vanished before it reported.
    #[error("supervisor of unit {id} vanished before it reported")]
    SupervisorLost {
        /// The unit.
        id: UnitId,
    },
    /// The helper process that starts supervisors could not be started or reached.
    #[error("launcher process failed to {operation}")]
    Launcher {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses the state folder.
    #[error("state folder {} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// No host uid is left for another attempt.
    #[error("no uid is left in {first}..={last}")]
    IdentitiesExhausted {
        /// First uid of the range.
        first: u32,
        /// Last uid of the range.
        last: u32,
    },
    /// A path of an input or an archive would leave the workspace or is otherwise refused.
    #[error("refused workspace path {path:?}: {problem}")]
    UnsafePath {
        /// The path as given.
        path: String,
        /// Why it is refused.
        problem: String,
    },
    /// An archive has more entries or bytes than allowed.
    #[error("archive exceeds its limit of {limit} {unit}")]
    ArchiveTooLarge {
        /// The limit.
        limit: u64,
        /// `entries` or `bytes`.
        unit: &'static str,
    },
    /// An archive cannot be read.
    #[error("failed to read archive")]
    Archive {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A record on disk cannot be understood.
    #[error("corrupt record {}: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A cgroup operation failed.
    #[error("failed to {operation} cgroup {path}")]
    Cgroup {
        /// What was attempted.
        operation: &'static str,
        /// The cgroup.
        path: String,
        /// Why it failed.
        #[source]
        source: cgroups_rs::fs::error::Error,
    },
    /// A container engine cannot be reached.
    #[error("{engine} does not answer on {}", socket.display())]
    EngineUnreachable {
        /// The engine.
        engine: EngineKind,
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A container engine does not do what it was asked for.
    #[error("{engine} failed to {operation}: {message}")]
    Engine {
        /// The engine.
        engine: EngineKind,
        /// What was attempted.
        operation: &'static str,
        /// What the engine says.
        message: String,
    },
    /// An image cannot be used.
    #[error("image {reference}: {message}")]
    Image {
        /// The image.
        reference: String,
        /// What kind of trouble it is.
        problem: ImageProblem,
        /// What is wrong, and what to do about it.
        message: String,
    },
    /// A file operation failed.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A stable word for metrics and reports: the variant in snake case.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.into()
    }

    /// Wraps an I/O failure of `operation` on `path`.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}
