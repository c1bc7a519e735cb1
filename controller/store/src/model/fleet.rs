//! What operators ask of nodes by a command, and what happened to nodes.

use jiff::Timestamp;

/// What becomes of the attempts that are left when a drain's deadline has passed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, strum::IntoStaticStr, strum::EnumString, strum::Display,
)]
pub enum Overdue {
    /// Those that may be started again are stopped and go back to their queue; others go on.
    #[default]
    Requeue,
    /// Their jobs are cancelled.
    Cancel,
}

/// A request of an operator that keeps new jobs away from a node until it is lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHold {
    /// Since when jobs are kept away.
    pub since: Timestamp,
    /// The drain, where the node is to be emptied too.
    pub drain: Option<DrainRow>,
}

/// A drain and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainRow {
    /// When attempts that are left are stopped; `None` for never.
    pub deadline_at: Option<Timestamp>,
    /// What becomes of them.
    pub overdue: Overdue,
    /// When stopping them began.
    pub stopping_at: Option<Timestamp>,
    /// When the node held nothing any more.
    pub drained_at: Option<Timestamp>,
}

/// A drain to begin, or to take the place of the one that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NewDrain {
    /// When attempts that are left are stopped; `None` for never.
    pub deadline_at: Option<Timestamp>,
    /// What becomes of them.
    pub overdue: Overdue,
}

/// How a drain goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// The deadline has passed: what is left is stopped.
    Stop,
    /// The node holds nothing any more.
    Finish,
}

/// What to do about attempts of a node that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveAttempts {
    /// The node stays.
    Refuse,
    /// The node goes; they end with their leases, which nobody renews any more.
    Abandon,
}

/// What happened to a node.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::Display,
    strum::EnumIter,
)]
pub enum NodeEventKind {
    /// It registered for the first time.
    Registered,
    /// Its agent registered again.
    Returned,
    /// A token gave the name to another key.
    Replaced,
    /// Its agent has another version than before.
    AgentVersion,
    /// A configuration was declared.
    ConfigDeclared,
    /// A configuration is in force.
    ConfigApplied,
    /// A configuration could not be applied.
    ConfigFailed,
    /// It has come up as far as taking jobs.
    Online,
    /// It lives and something about it does not work.
    Degraded,
    /// Nothing is heard from it.
    Offline,
    /// Jobs are kept away.
    Cordoned,
    /// Jobs are kept away no more.
    Uncordoned,
    /// It is to be emptied.
    DrainStarted,
    /// The drain's deadline has passed.
    DrainOverdue,
    /// It has been emptied.
    Drained,
    /// A second instance of its agent was refused.
    Fenced,
    /// A roll-out has changed its configuration, or is done with it.
    Rollout,
    /// The controller cannot give it a job.
    Unreached,
    /// The controller can give it jobs again.
    Reached,
}

/// Something to be noted about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNodeEvent {
    /// What happened.
    pub kind: NodeEventKind,
    /// As a sentence.
    pub message: String,
}

/// Something that happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEventRow {
    /// Grows with each entry of the node.
    pub number: i64,
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub kind: NodeEventKind,
    /// As a sentence.
    pub message: String,
}
