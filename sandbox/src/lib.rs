//! Windlass's sandbox: policy in, supervised process out. It knows nothing of jobs, nodes or the controller.
//!
//! A [`Driver`] runs *units*. A unit is one process tree with a workspace, limits, a lease and an output spool.

#![forbid(unsafe_code)]

pub mod driver;
mod error;
mod identity;
mod lease;

pub mod spec;
mod workspace;

pub use driver::{
    Driver, EndReason, Exit, OutputChunk, OutputReader, OutputSource, Prepared, Stop, StopReason, Stream,
};
pub use error::Error;
pub use identity::{DEFAULT_UIDS, Identities, Identity};
pub use lease::{Deadline, Lease};
pub use spec::{Limit, LimitName, Limits, Mount, Network, UnitId, UnitSpec};
pub use workspace::{Archive, ArchiveLimits, Unpacked, Workspace};
