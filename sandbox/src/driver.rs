//! The contract that every runtime fulfils, and that a fake can fulfil too.
//!
//! All verbs are idempotent and safe to call again after a crash of the caller. The verbs never run a unit twice.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
pub use windlass_launcher::exit::{EndReason, Exit, KillProof, StreamEnd, Usage};
pub use windlass_launcher::frame::Stream;

use crate::error::Error;
use crate::spec::{LimitName, UnitId, UnitSpec};

/// A limit that is not enforced, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unenforced {
    /// The limit.
    pub limit: LimitName,
    /// Why, in words.
    pub reason: String,
}

/// What [`Driver::prepare`] found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Limits that will not be enforced, or only by a weaker means.
    pub unenforced: Vec<Unenforced>,
    /// What isolates the unit, in words: `pid namespace`, `seccomp`, `landlock 6`, `memory cgroup v1`, …
    pub isolation: Vec<String>,
}

/// Why a caller stops a unit; becomes the [`EndReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// Somebody asked.
    Cancelled,
    /// A time limit that the caller watches has passed.
    Timeout,
    /// The caller knows that the lease is gone.
    LeaseExpired,
}

/// How to stop a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Time between TERM and KILL; zero kills at once.
    pub grace: Duration,
    /// Why.
    pub reason: StopReason,
}

/// What is known of a unit on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// The unit.
    pub id: UnitId,
    /// Where it is in its life.
    pub phase: UnitPhase,
    /// What was found and cleaned up on the way, in words.
    pub notes: Vec<String>,
}

/// Where a unit is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitPhase {
    /// Prepared, never started.
    Prepared,
    /// Its supervisor lives.
    Running,
    /// It has ended.
    Ended(Box<Exit>),
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Which stream.
    pub stream: Stream,
    /// Position of the first byte in that stream.
    pub offset: u64,
    /// When it was read from the program (milliseconds since the epoch).
    pub time_ms: i64,
    /// The bytes, untouched.
    pub bytes: Vec<u8>,
    /// Pass this to [`Driver::output`] to go on after this chunk.
    pub next_cursor: u64,
}

/// A stream of output chunks.
#[async_trait]
pub trait OutputSource: Send {
    /// The next chunk, in the order in which the supervisor saw it; waits for one while the unit runs; `None` once the
    /// unit has ended and everything was read. Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged spool, [`Error::Io`].
    async fn next(&mut self) -> Result<Option<OutputChunk>, Error>;
}

/// What [`Driver::output`] gives.
pub type OutputReader = Box<dyn OutputSource>;

/// A runtime: policy in, supervised process out.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Checks the unit against the host and makes what it needs (state folder, cgroup). Starts nothing.
    ///
    /// Post-state: the unit is on disk as prepared. Repeating it with the same specification gives the same answer.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], [`Error::Unsupported`], [`Error::Unenforceable`], [`Error::Exists`] for another
    /// specification under the same id, [`Error::Io`], [`Error::Cgroup`]. Nothing is left behind on error.
    async fn prepare(&self, unit: &UnitSpec) -> Result<Prepared, Error>;

    /// Starts a prepared unit; returns when its program has been executed, or could not be (that is an end with code
    /// 127 or 126, not an error).
    ///
    /// Post-state: the unit runs or has ended. A unit that was started before is left as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Setup`] if the sandbox could not be made (the unit has then ended with
    /// `SetupFailed`), [`Error::SupervisorLost`], [`Error::Launcher`].
    async fn start(&self, id: &UnitId) -> Result<(), Error>;

    /// Asks for a stop: TERM to every process, the grace, KILL of all. Returns when the supervisor was told, not when
    /// the unit has ended. A second call may only shorten the grace; a unit that has ended is left as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotStarted`], [`Error::Io`].
    async fn signal(&self, id: &UnitId, stop: Stop) -> Result<(), Error>;

    /// Waits for the end. Works for units that an earlier process started. Cancel-safe.
    ///
    /// Post-state: nothing of the unit runs, and its exit record is on disk.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotStarted`], [`Error::Corrupt`], [`Error::Io`].
    async fn wait(&self, id: &UnitId) -> Result<Exit, Error>;

    /// All units on this host. Units whose supervisor died are cleaned up and shown as ended with `SupervisorLost`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    async fn inventory(&self) -> Result<Vec<UnitState>, Error>;

    /// Removes what is left of a unit that is not running: cgroup, output, records.
    ///
    /// Post-state: the unit does not exist.
    ///
    /// # Errors
    /// [`Error::StillRunning`], [`Error::Io`], [`Error::Cgroup`].
    async fn cleanup(&self, id: &UnitId) -> Result<(), Error>;

    /// The socket of a running unit with [`crate::Network::Restricted`] on which its program expects the egress proxy, for
    /// [`crate::egress::Proxy::serve`]; `None` for other units and for one that runs no more. Works for units that an earlier
    /// process started. Connections wait while nobody serves them.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`].
    async fn egress(&self, id: &UnitId) -> Result<Option<std::net::TcpListener>, Error>;

    /// The output of a unit from `cursor` on (0 is the beginning). Reading disturbs neither the unit nor other readers.
    fn output(&self, id: &UnitId, cursor: u64) -> OutputReader;
}
