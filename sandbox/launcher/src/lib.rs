//! The small, synchronous part of the sandbox: namespaces, mounts, seccomp, and the supervisor that outlives the agent.
//!
//! It takes a [`plan::LaunchPlan`], which is finished policy, and carries it out; it decides nothing itself. This is the
//! only crate of Windlass with unsafe code, and it has neither threads nor an async runtime.
//!
//! ```text
//!  agent ── Spawner ──(socket)──► spawner ──fork──► supervisor ──clone──► init ──fork──► program
//!    │                               │                 │ output, exit.json, deadlines
//!    └──────────────── unit's folder ┼─────────────────┘
//!                                    └──fork──► spare: the same, up to where the unit matters
//! ```

mod child;
pub mod deadline;
pub mod exit;
pub mod frame;
mod handout;
mod handover;
pub mod plan;
pub mod probe;
pub mod quota;
pub mod record;
mod spawner;
mod supervisor;
mod sys;

use std::process::ExitCode;

pub use handout::{Handout, listener};
pub use spawner::Spawner;
pub use supervisor::spool::Spool;

/// Measuring what a unit has written, for supervisors that are not in this crate.
pub mod measure {
    pub use crate::supervisor::disk::{Measure, Walk, deleted_bytes, is_full};
}

/// Must be the first call of every program that uses the sandbox: before any thread, runtime, or use of the standard
/// descriptors. If this process was started as a launcher, it runs that and gives the code that `main` has to return;
/// otherwise `None`.
#[must_use]
pub fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != spawner::ARGUMENT {
        return None;
    }
    Some(match arguments.next() {
        None => spawner::run(),
        Some(mode) if mode == probe::ARGUMENT => probe::run(),
        Some(_) => ExitCode::FAILURE,
    })
}
