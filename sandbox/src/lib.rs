//! Windlass's sandbox: policy in, supervised process out. It knows nothing of jobs, nodes or the controller.
//!
//! A [`Driver`] runs *units*. A unit is one process tree with a workspace, limits, a lease and an output spool.
//! [`Native`] is the driver made of Linux namespaces.

#![forbid(unsafe_code)]

mod cgroup;
pub mod doctor;
pub mod driver;
pub mod egress;
mod error;
mod features;
mod identity;
mod lease;
mod native;
mod output;
mod policy;
pub mod seccomp;
pub mod spec;
mod workspace;

pub use cgroup::CgroupVersion;
pub use driver::{
    Driver, EndReason, Exit, KillProof, OutputChunk, OutputReader, OutputSource, Prepared, Stop, StopReason,
    Stream, StreamEnd, Unenforced, UnitPhase, UnitState, Usage,
};
pub use error::Error;
pub use features::Features;
pub use identity::{DEFAULT_UIDS, Identities, Identity};
pub use lease::{Deadline, Lease};
pub use native::{Native, SandboxConfig};
pub use spec::{Limit, LimitName, LimitSource, Limits, Mount, Network, UnitId, UnitSpec};
pub use workspace::{Archive, ArchiveLimits, DiskMeans, DiskQuota, Unpacked, Workspace};

/// For programs that use the sandbox: must be the first call of `main`. See the launcher's documentation.
pub use windlass_launcher::run_if_requested;
