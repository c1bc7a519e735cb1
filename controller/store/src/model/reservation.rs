//! Room that is kept for jobs that others pass over.

use jiff::Timestamp;

use super::Reserve;

/// A job that could be claimed, were there room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRow {
    /// The job's uid.
    pub uid: String,
    /// Its lane: class, queue and what it reserves, as one number.
    pub lane: i64,
    /// Its requirement class.
    pub class: i64,
    /// Its queue.
    pub queue: String,
    /// What it reserves.
    pub reserve: Reserve,
    /// Priority and age as one number: the smaller, the sooner.
    pub rank: i64,
    /// Since when it waits in its queue.
    pub since: Timestamp,
}

/// Room that is kept on a node for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationRow {
    /// The node.
    pub node: String,
    /// The job's uid.
    pub uid: String,
    /// The job's namespace.
    pub namespace: String,
    /// The job's name.
    pub name: String,
    /// The job, while it could be claimed; else nothing is kept.
    pub job: Option<WaitingRow>,
    /// Since when.
    pub since: Timestamp,
    /// How many nodes have kept room for the job in vain.
    pub moves: u32,
}

/// Room to keep on a node for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReservation {
    /// The node.
    pub node: String,
    /// The job's uid.
    pub uid: String,
    /// How many nodes have kept room for the job in vain.
    pub moves: u32,
}
