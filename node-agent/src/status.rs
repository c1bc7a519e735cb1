//! What the agent says of itself: for `windlass dev` and whoever else embeds it. Only published, never read back.

use crate::outbox::Backlog;

/// The agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// The node's name.
    pub node: String,
    /// Whether it has a session with the controller.
    pub registered: bool,
    /// The version of the configuration in force.
    pub config_version: Option<u64>,
    /// Whether it has come up as far as asking for work.
    pub up: bool,
    /// Why it cannot take jobs just now.
    pub not_ready: Option<String>,
    /// How many attempts can run at once.
    pub slots: u32,
    /// How many attempts it holds.
    pub held: usize,
    /// What waits to be sent.
    pub backlog: Backlog,
    /// Whether it takes no more work.
    pub draining: bool,
}
