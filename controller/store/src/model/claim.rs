//! Claims, leases and attempts.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use windlass_crds::protocol::AttemptId;
use windlass_crds::sandbox_job::OfflinePolicy;

use super::{JobRow, Reserve};

/// A requirement class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassRow {
    /// The id. Ids only grow.
    pub id: i64,
    /// Names the predicates.
    pub hash: String,
    /// The predicates, in the caller's own form.
    pub predicates: Value,
}

/// A request for work.
#[derive(Clone, Copy, Debug)]
pub struct ClaimSpec<'a> {
    /// The node.
    pub node: &'a str,
    /// The run of the agent that asks.
    pub boot_id: &'a str,
    /// Names the request: the same id yields the same attempts again while any of them is live.
    pub request_id: &'a str,
    /// The most jobs to claim.
    pub max: u32,
    /// The classes that the node fits; quickest in ascending order.
    pub classes: &'a [i64],
    /// The queues that the node serves; empty means all.
    pub queues: &'a [String],
    /// How many attempts the node can hold in all.
    pub slots: u32,
    /// What the node has in all.
    pub capacity: Reserve,
    /// The lease of jobs that stop offline.
    pub lease: Duration,
    /// The lease of jobs that continue offline.
    pub lease_continue: Duration,
    /// The policy of jobs that say nothing.
    pub node_offline_default: OfflinePolicy,
    /// Whether somebody else asks for the node, so that nothing is heard of it by that.
    pub on_behalf: bool,
}

/// A job that is now the node's.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedJob {
    /// The job, already `Claimed`.
    pub job: JobRow,
    /// The attempt's epoch.
    pub epoch: u64,
    /// The attempt's number, from 1.
    pub number: u32,
    /// The lease, counted from `now`.
    pub lease: Duration,
    /// The policy in force.
    pub offline: OfflinePolicy,
    /// Whether an earlier answer to the same request may have brought it to the node.
    pub repeated: bool,
}

/// Where an attempt is in its life.
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
pub enum AttemptPhase {
    /// A node has it and has not started.
    Claimed,
    /// It runs.
    Running,
    /// It succeeded.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It took too long.
    TimedOut,
    /// Its lease ended, or its node gave it up without a verdict.
    Lost,
    /// It never started; it uses up no retry.
    Released,
}

impl AttemptPhase {
    /// Whether the node still holds it.
    pub const fn is_live(self) -> bool {
        match self {
            Self::Claimed | Self::Running => true,
            Self::Succeeded
            | Self::Failed
            | Self::Cancelled
            | Self::TimedOut
            | Self::Lost
            | Self::Released => false,
        }
    }
}

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// The job's uid.
    pub job: String,
    /// The epoch.
    pub epoch: u64,
    /// The number, from 1.
    pub number: u32,
    /// The node.
    pub node: String,
    /// Where it is in its life.
    pub phase: AttemptPhase,
    /// Why, as one word.
    pub reason: Option<String>,
    /// Why, as a sentence.
    pub message: Option<String>,
    /// The exit code of the step that decided.
    pub exit_code: Option<i32>,
    /// When it was made.
    pub claimed_at: Timestamp,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The end of its lease.
    pub lease_until: Timestamp,
    /// The sequence of its terminal record.
    pub last_sequence: Option<u64>,
    /// How many of its records have arrived.
    pub received: u64,
    /// The policy in force.
    pub offline: OfflinePolicy,
    /// What it takes of the node.
    pub reserve: Reserve,
}

impl AttemptRow {
    /// The attempt's id.
    pub fn id(&self) -> AttemptId {
        AttemptId { job: self.job.clone(), epoch: self.epoch }
    }
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The node.
    pub node: String,
    /// The run of the agent that beats.
    pub boot_id: String,
    /// The attempts to renew.
    pub held: Vec<AttemptId>,
    /// For how long the node lets them go on by itself, where it says so. A lease is never cut below that.
    pub left: HashMap<AttemptId, Duration>,
    /// How many attempts the node can hold.
    pub slots: u32,
    /// Why the node cannot take jobs.
    pub not_ready: Option<String>,
    /// The lease of attempts that stop offline.
    pub lease: Duration,
    /// The lease of attempts that continue offline.
    pub lease_continue: Duration,
}

/// What became of a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeatOutcome {
    /// Renewed attempts with their lease, counted from `now`.
    pub renewed: Vec<(AttemptId, Duration)>,
    /// Renewed attempts whose job is to be cancelled.
    pub cancel: Vec<AttemptId>,
    /// Attempts that are not this node's, or not any more.
    pub fenced: Vec<AttemptId>,
    /// The newest version of the node's configuration.
    pub config_version: u64,
    /// The hash of the capability report that the store has.
    pub capability_hash: Option<String>,
    /// Another run of the agent is registered (or none): nothing was renewed.
    pub other_boot: bool,
}
