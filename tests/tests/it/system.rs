//! Real processes: the `windlass` program as controller, agents and command line, killed and started again.

mod fleet;
mod kills;
mod network;
mod verbs;
