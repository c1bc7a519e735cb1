//! The small, synchronous part of the sandbox: namespaces, mounts, seccomp, and the supervisor that outlives the agent.
//!
//! It takes a [`plan::LaunchPlan`], which is finished policy, and carries it out; it decides nothing itself. This is the
//! only crate of Windlass with unsafe code, and it has neither threads nor an async runtime.
//!
//! ```text
//!                                    ┌── template, networks that can serve again
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
mod network;
pub mod plan;
pub mod probe;
pub mod quota;
pub mod record;
mod spawner;
mod stock;
mod supervisor;
mod sys;
mod template;

use std::process::ExitCode;

pub use handout::{Handout, listener};
pub use spawner::{Spare, Spawner};
pub use supervisor::spool::Spool;

/// Measuring what a unit has written, for supervisors that are not in this crate.
pub mod measure {
    pub use crate::supervisor::disk::{Measure, Walk, deleted_bytes, is_full};
}

/// A unit's turn on a processor, where others want it too. Every unit takes turns of the same length, so one that computes without
/// end keeps one that wakes up waiting for less than with the kernel's own 3 ms (EEVDF's base slice). A running program is only
/// interrupted at the kernel's tick, so it costs no more switches than that has.
const TURN: std::time::Duration = std::time::Duration::from_micros(200);

/// Lets the calling thread, and the threads and processes that it makes, take turns as short as those of units: whoever takes
/// longer ones waits longer too.
///
/// # Errors
/// What `sched_setattr(2)` gives. Before Linux 6.12 nothing changes.
pub fn take_short_turns() -> std::io::Result<()> {
    sys::take_turns_of(TURN, sys::Policy::Normal, sys::Policy::Normal)?;
    Ok(())
}

/// Takes short turns, and interrupts nobody: what is done beforehand must not be in the way of what runs. Gives whether that is so.
fn yield_to_others() -> bool {
    // A kernel that cannot do it runs this process as it runs all others.
    sys::take_turns_of(TURN, sys::Policy::Normal, sys::Policy::Yielding).unwrap_or(false)
}

/// Ends [`yield_to_others`] for this process: there is a unit.
fn yield_no_more() {
    // What could be begun can be ended.
    let _as_before = sys::take_turns_of(TURN, sys::Policy::Yielding, sys::Policy::Normal);
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
