//! The command as people use it: the built binary against a real controller, with a node that is played by hand, and
//! against servers that misbehave.

mod artifacts;
mod errors;
mod fake;
mod fleet;
mod follow;
mod local;
mod nodes;
mod objects;
mod offline;
mod queues;
mod rollouts;
mod run;
mod secrets;
mod terminal;
mod wait;
mod why;
mod world;
