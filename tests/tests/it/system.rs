//! Real processes: the `windlass` program as controller, agents and command line, killed and started again.

pub(crate) mod fleet;
mod kills;
mod network;
mod verbs;
