//! Real processes: the `windlass` program as controller, agents and command line, killed and started again.

mod artifacts;
mod backups;
pub(crate) mod clocks;
mod containers;
mod egress;
mod facts;
pub(crate) mod fleet;
mod inference;
mod kills;
mod network;
mod once;
mod push;
pub(crate) mod secrets;
mod service;
mod shared;
mod verbs;
