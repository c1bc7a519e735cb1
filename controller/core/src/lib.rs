//! Pure decisions of the controller.
//!
//! Nothing here reads a clock, a store or the network: every function maps what was observed, and the time, to what
//! should happen. That is what makes the rules testable exhaustively and the same in production and simulation.
//!
//! - [`validate`]: what a manifest must satisfy beyond its schema;
//! - [`requirement`] and [`placement`]: which nodes a job fits, and the first reason why one does not;
//! - [`life`]: what follows when an attempt ends;
//! - [`progress`]: how the records of an attempt change the job's picture;
//! - [`drain`]: how a node is emptied;
//! - [`push`]: whether a node can be given jobs by calling it;
//! - [`reservation`]: room that is kept for jobs that others pass over;
//! - [`rollout`]: how a change is rolled out over nodes;
//! - [`node`]: the conditions of a node;
//! - [`why`]: why a job is not running.

pub mod drain;
pub mod life;
pub mod node;
pub mod placement;
pub mod progress;
pub mod push;
pub mod requirement;
pub mod reservation;
pub mod rollout;
pub mod validate;
pub mod why;
