//! The small, synchronous part of the sandbox: namespaces, mounts, seccomp, and the supervisor that outlives the agent.
//!
//! It takes a [`plan::LaunchPlan`], which is finished policy, and carries it out; it decides nothing itself. This is the
//! only crate of Windlass with unsafe code, and it has neither threads nor an async runtime.

pub mod deadline;
pub mod exit;
pub mod frame;
