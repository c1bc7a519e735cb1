//! Windlass's sandbox: policy in, supervised process out. It knows nothing of jobs, nodes or the controller.
//!
//! A [`Driver`] runs *units*. A unit is one process tree with a workspace, limits, a lease and an output spool.
//! [`Native`] is the driver made of Linux namespaces, [`engine::Containers`] the one of a container engine, and [`Drivers`] all
//! that a host has.

#![forbid(unsafe_code)]

mod cgroup;
pub mod doctor;
pub mod driver;
mod drivers;
pub mod egress;
pub mod engine;
mod error;
mod features;
mod identity;
pub mod image;
mod lease;
mod native;
mod output;
mod policy;
pub mod seccomp;
pub mod spec;
mod tarball;
mod workspace;

pub use cgroup::CgroupVersion;
pub use driver::{
    Driver, EndReason, Exit, KillProof, OutputChunk, OutputReader, OutputSource, Prepared, Stop, StopReason,
    Stream, StreamEnd, Unenforced, UnitPhase, UnitState, Usage,
};
pub use drivers::Drivers;
pub use error::{Error, ImageProblem};
pub use features::Features;
pub use identity::{DEFAULT_UIDS, Identities, Identity};
pub use image::{Images, LocalImage};
pub use lease::{Deadline, Lease};
pub use native::{Native, SandboxConfig};
pub use policy::planned_steps;
pub use spec::{
    Container, Entrypoint, HANDED, Handed, Limit, LimitName, LimitSource, Limits, Mount, Network, SystemRoot,
    UnitId, UnitSpec,
};
pub use windlass_launcher::take_short_turns;
pub use workspace::{
    Archive, ArchiveLimits, DiskMeans, DiskQuota, FileLimits, Files, Unpacked, Visited, Workspace,
};

/// For programs that use the sandbox: must be the first call of `main`, before any thread, runtime, or use of the standard
/// descriptors. If this process was started as a launcher, or as the supervisor of a container, it runs that and gives the
/// code that `main` has to return; otherwise `None`.
#[must_use]
pub fn run_if_requested() -> Option<std::process::ExitCode> {
    windlass_launcher::run_if_requested().or_else(engine::supervisor::run_if_requested)
}
