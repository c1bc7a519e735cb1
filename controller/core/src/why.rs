//! Why a job is not running: for each node the first reason that excludes it, and one sentence about all of them.
//!
//! Reasons that only a change of the job or of the node removes come first, because nothing else matters on such a
//! node; then those that pass by themselves or by an operator's hand. What keeps the job from every node alike (it is
//! suspended, delayed, not approved) is said once, not once for each node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::node_config::HoldPhase;
use windlass_crds::{Bytes, Cpu, JobPhase};

use crate::placement::{self, Exclusion, Offer};
use crate::requirement::{Requirement, Room};

/// What has to be known of the job.
#[derive(Clone, Copy, Debug)]
pub struct JobView<'a> {
    /// Where it is in its life.
    pub phase: JobPhase,
    /// The node that holds it.
    pub node: Option<&'a str>,
    /// The queue that it waits in.
    pub queue: &'a str,
    /// How many jobs of the queue may run and how many do, where there is a limit.
    pub queue_limit: Option<(u32, u32)>,
    /// Whether it is held back.
    pub suspend: bool,
    /// The earliest time of the next attempt.
    pub not_before: Option<Timestamp>,
    /// Until when a restore of the store holds its jobs, where there was one.
    pub hold_until: Option<Timestamp>,
    /// Its static predicates.
    pub requirement: &'a Requirement,
    /// The room that it takes.
    pub room: Room,
    /// Its place in line, the smaller the sooner; `None` while it could not be claimed.
    pub rank: Option<i64>,
}

/// What has to be known of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// What it offers; `None` while it has never registered.
    pub offer: Option<&'a Offer>,
    /// Its conditions.
    pub conditions: &'a [Condition],
    /// Whether its manifest keeps jobs away.
    pub unschedulable: bool,
    /// What an operator has asked by a command.
    pub hold: Option<HoldPhase>,
    /// Whether any configuration is in force on it.
    pub configured: bool,
    /// Why it cannot be given jobs, where it is to be given them.
    pub unreachable: Option<&'a str>,
    /// The queues that it serves; empty for all.
    pub queues: &'a [String],
    /// How many attempts it can hold.
    pub slots: u32,
    /// What its attempts take.
    pub used: Used,
    /// What it keeps for a job that others passed over.
    pub kept: Option<KeptView<'a>>,
}

/// Room that a node keeps for a job that others passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptView<'a> {
    /// The job, as `namespace/name`.
    pub job: &'a str,
    /// Its place in line.
    pub rank: i64,
    /// The room.
    pub room: Room,
}

/// What the attempts of a node take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Slots.
    pub slots: u32,
    /// Room.
    pub room: Room,
}

/// Something that attempts take of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Resource {
    /// Slots: one for each attempt.
    Slots,
    /// Cores.
    Cpu,
    /// Memory.
    Memory,
    /// Graphics processors.
    Gpus,
}

/// What keeps the job from every node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
pub enum Block {
    /// It has ended.
    #[error("it has ended as {phase}")]
    Ended {
        /// How.
        phase: JobPhase,
    },
    /// A node holds it already.
    #[error("it is {phase} on node `{node}`")]
    Held {
        /// Where it is in its life.
        phase: JobPhase,
        /// The node.
        node: String,
    },
    /// Nobody has approved it.
    #[error("it waits for approval")]
    Approval,
    /// It is held back.
    #[error("it is suspended (spec.suspend)")]
    Suspended,
    /// As many jobs of its queue run as may.
    #[error("queue `{queue}` has reached its limit of {limit} running jobs")]
    QueueLimit {
        /// The queue.
        queue: String,
        /// How many may run.
        limit: u32,
    },
    /// It may be running where a store that was restored from a backup does not know of it.
    #[error(
        "the store was restored from a backup, and the job may be running since on a node: it is held until {until:.0}"
    )]
    Restored {
        /// When every lease has ended that it can have been given.
        until: Timestamp,
    },
    /// Its time has not come.
    #[error("it is tried again at {at:.0}")]
    NotBefore {
        /// When it comes.
        at: Timestamp,
    },
}

impl Block {
    /// Whether the job still waits for a node.
    pub const fn waits(&self) -> bool {
        match self {
            Self::Ended { .. } | Self::Held { .. } => false,
            Self::Approval
            | Self::Suspended
            | Self::QueueLimit { .. }
            | Self::Restored { .. }
            | Self::NotBefore { .. } => true,
        }
    }
}

/// Why a node does not take the job now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// It never will, as the job and the node are.
    #[error(transparent)]
    Lasting(Exclusion),
    /// The node does not serve the job's queue.
    #[error("the node does not serve the queue `{queue}`")]
    Queue {
        /// The queue.
        queue: String,
    },
    /// Nothing is heard from the node.
    #[error("the node is offline: {message}")]
    Offline {
        /// Since when.
        message: String,
    },
    /// The node is there and cannot work.
    #[error("the node is not ready: {message}")]
    NotReady {
        /// The reason of the condition.
        reason: String,
        /// Its message.
        message: String,
    },
    /// An operator keeps jobs away.
    #[error("{}", held_back(*hold))]
    Held {
        /// In which way.
        hold: HoldPhase,
    },
    /// Its manifest keeps jobs away.
    #[error("the node's manifest says `unschedulable: true`")]
    Unschedulable,
    /// No configuration is in force on it.
    #[error("the node has not applied its configuration yet")]
    Unconfigured,
    /// The controller cannot call it.
    #[error("the controller cannot give it jobs: {message}")]
    Unreachable {
        /// Why.
        message: String,
    },
    /// It holds as many attempts as it can.
    #[error("all {slots} slots are taken")]
    Full {
        /// How many it has.
        slots: u32,
    },
    /// Other jobs have what the job needs.
    #[error("{wanted} of {resource} are needed and {free} of {capacity} are free")]
    Busy {
        /// What is short.
        resource: Resource,
        /// How much the job needs.
        wanted: String,
        /// How much is free.
        free: String,
        /// How much there is.
        capacity: String,
    },
    /// What is free is kept for a job that comes before it.
    #[error("room is kept for {job}, which others passed over")]
    Kept {
        /// The job, as `namespace/name`.
        job: String,
    },
}

const fn held_back(hold: HoldPhase) -> &'static str {
    match hold {
        HoldPhase::Cordoned => "the node is cordoned; `windlass uncordon` lifts that",
        HoldPhase::Draining | HoldPhase::Stopping => "the node is being drained",
        HoldPhase::Drained => "the node was drained; `windlass uncordon` lifts that",
    }
}

impl Obstacle {
    /// As one stable word.
    pub fn reason(&self) -> &str {
        match self {
            Self::Lasting(exclusion) => exclusion.into(),
            Self::Queue { .. } => "Queue",
            Self::Offline { .. } => "Offline",
            Self::NotReady { reason, .. } => reason,
            Self::Held { hold } => (*hold).into(),
            Self::Unschedulable => "Unschedulable",
            Self::Unconfigured => "Unconfigured",
            Self::Unreachable { .. } => "Unreachable",
            Self::Full { .. } => "Full",
            Self::Busy { .. } => "Busy",
            Self::Kept { .. } => "Kept",
        }
    }

    /// What other jobs have that this one needs.
    pub const fn shortage(&self) -> Option<Resource> {
        match self {
            Self::Full { .. } => Some(Resource::Slots),
            Self::Busy { resource, .. } => Some(*resource),
            Self::Lasting(_)
            | Self::Queue { .. }
            | Self::Offline { .. }
            | Self::NotReady { .. }
            | Self::Held { .. }
            | Self::Unschedulable
            | Self::Unconfigured
            | Self::Unreachable { .. }
            | Self::Kept { .. } => None,
        }
    }

    /// Whether only a change of the job or of the node's configuration removes it.
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::Lasting(Exclusion::NotRegistered) => false,
            Self::Lasting(_) | Self::Queue { .. } => true,
            Self::Offline { .. }
            | Self::NotReady { .. }
            | Self::Held { .. }
            | Self::Unschedulable
            | Self::Unconfigured
            | Self::Unreachable { .. }
            | Self::Full { .. }
            | Self::Busy { .. }
            | Self::Kept { .. } => false,
        }
    }
}

/// What keeps the job from every node, if anything does.
pub fn block(job: &JobView<'_>, now: Timestamp) -> Option<Block> {
    match job.phase {
        JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled | JobPhase::TimedOut => {
            Some(Block::Ended { phase: job.phase })
        }
        JobPhase::Claimed | JobPhase::Running | JobPhase::Waiting => {
            let node = job.node.unwrap_or_default().to_owned();
            Some(Block::Held { phase: job.phase, node })
        }
        JobPhase::PendingApproval => Some(Block::Approval),
        JobPhase::Queued if job.suspend => Some(Block::Suspended),
        JobPhase::Queued => {
            let delayed = job.not_before.filter(|at| *at > now).map(|at| match job.hold_until {
                Some(until) if until == at => Block::Restored { until },
                Some(_) | None => Block::NotBefore { at },
            });
            delayed.or_else(|| {
                let (limit, running) = job.queue_limit?;
                (running >= limit).then(|| Block::QueueLimit { queue: job.queue.to_owned(), limit })
            })
        }
    }
}

/// The first reason why the node does not take the job now; `None` where it could.
pub fn obstacle(job: &JobView<'_>, node: &NodeView<'_>) -> Option<Obstacle> {
    let Some(offer) = node.offer else { return Some(Obstacle::Lasting(Exclusion::NotRegistered)) };
    if let Some(exclusion) = placement::exclusion_with_room(job.requirement, job.room, offer) {
        return Some(Obstacle::Lasting(exclusion));
    }
    if !node.queues.is_empty() && !node.queues.iter().any(|queue| queue == job.queue) {
        return Some(Obstacle::Queue { queue: job.queue.to_owned() });
    }
    let ready = node.conditions.iter().find(|condition| condition.condition_type == "Ready");
    match ready.map(|ready| (ready.status, ready)) {
        Some((ConditionStatus::Unknown, ready)) => {
            return Some(Obstacle::Offline { message: ready.message.clone() });
        }
        Some((ConditionStatus::False, ready)) => {
            let (reason, message) = (ready.reason.clone(), ready.message.clone());
            return Some(Obstacle::NotReady { reason, message });
        }
        // Without the condition the controller has not judged the node yet, and the node may well claim before it has.
        Some((ConditionStatus::True, _)) | None => {}
    }
    if let Some(hold) = node.hold {
        return Some(Obstacle::Held { hold });
    }
    if node.unschedulable {
        return Some(Obstacle::Unschedulable);
    }
    if !node.configured {
        return Some(Obstacle::Unconfigured);
    }
    if let Some(message) = node.unreachable {
        return Some(Obstacle::Unreachable { message: message.to_owned() });
    }
    shortage(job.room, node, offer.capacity).or_else(|| {
        let kept = node.kept.filter(|kept| job.rank.is_none_or(|rank| rank > kept.rank))?;
        let Used { slots, room } = node.used;
        let used = Used {
            slots: slots.saturating_add(1),
            room: Room {
                cpu_millis: room.cpu_millis.saturating_add(kept.room.cpu_millis),
                memory_bytes: room.memory_bytes.saturating_add(kept.room.memory_bytes),
                gpus: room.gpus.saturating_add(kept.room.gpus),
            },
        };
        let beside = NodeView { used, ..*node };
        shortage(job.room, &beside, offer.capacity).map(|_| Obstacle::Kept { job: kept.job.to_owned() })
    })
}

/// How far the room is that the node keeps for the job itself, such as ``room is kept on `n2`: 2 of 4 cpu free so far``.
pub fn so_far(job: &JobView<'_>, name: &str, node: &NodeView<'_>) -> String {
    let Used { slots, room: used } = node.used;
    let capacity = node.offer.map(|offer| offer.capacity).unwrap_or_default();
    let part = |wanted: u64, used: u64, capacity: u64, text: &dyn Fn(u64) -> String, what: Resource| {
        let free = capacity.saturating_sub(used).min(wanted);
        (free < wanted).then(|| format!("{} of {} {what} free so far", text(free), text(wanted)))
    };
    let plain = |number: u64| number.to_string();
    let wanted = job.room;
    let parts: Vec<String> = [
        part(1, slots.into(), node.slots.into(), &plain, Resource::Slots),
        part(
            wanted.cpu_millis,
            used.cpu_millis,
            capacity.cpu_millis,
            &|millis| Cpu::from_millis(millis).to_string(),
            Resource::Cpu,
        ),
        part(
            wanted.memory_bytes,
            used.memory_bytes,
            capacity.memory_bytes,
            &|bytes| Bytes::new(bytes).to_string(),
            Resource::Memory,
        ),
        part(wanted.gpus.into(), used.gpus.into(), capacity.gpus.into(), &plain, Resource::Gpus),
    ]
    .into_iter()
    .flatten()
    .collect();
    let parts = if parts.is_empty() { "all of it is free now".to_owned() } else { parts.join(", ") };
    format!("room is kept on `{name}`: {parts}")
}

/// What other jobs have that this one needs.
fn shortage(wanted: Room, node: &NodeView<'_>, capacity: Room) -> Option<Obstacle> {
    let Used { slots, room: used } = node.used;
    let plain = |number: u64| number.to_string();
    let cpu = |millis: u64| Cpu::from_millis(millis).to_string();
    let memory = |bytes: u64| Bytes::new(bytes).to_string();
    let short = |resource, wanted: u64, used: u64, capacity: u64, text: &dyn Fn(u64) -> String| {
        let free = capacity.saturating_sub(used);
        (wanted > free).then(|| Obstacle::Busy {
            resource,
            wanted: text(wanted),
            free: text(free),
            capacity: text(capacity),
        })
    };
    (slots >= node.slots)
        .then_some(Obstacle::Full { slots: node.slots })
        .or_else(|| short(Resource::Cpu, wanted.cpu_millis, used.cpu_millis, capacity.cpu_millis, &cpu))
        .or_else(|| {
            let (wanted, used, all) = (wanted.memory_bytes, used.memory_bytes, capacity.memory_bytes);
            short(Resource::Memory, wanted, used, all, &memory)
        })
        .or_else(|| short(Resource::Gpus, wanted.gpus.into(), used.gpus.into(), capacity.gpus.into(), &plain))
}

/// A job that holds something of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The job, as `namespace/name`.
    pub job: String,
    /// What it holds.
    pub used: Used,
}

/// How many holders are named.
const NAMED: usize = 3;

/// Who holds what is short, the largest share first, in words; `None` where nobody holds any of it.
pub fn held_by(resource: Resource, holders: &[Holder]) -> Option<String> {
    let amount = |holder: &Holder| match resource {
        Resource::Slots => u64::from(holder.used.slots),
        Resource::Cpu => holder.used.room.cpu_millis,
        Resource::Memory => holder.used.room.memory_bytes,
        Resource::Gpus => u64::from(holder.used.room.gpus),
    };
    let mut holding: Vec<&Holder> = holders.iter().filter(|holder| amount(holder) > 0).collect();
    holding.sort_by(|a, b| amount(b).cmp(&amount(a)).then_with(|| a.job.cmp(&b.job)));
    let mut names: Vec<String> = holding.iter().take(NAMED).map(|holder| holder.job.clone()).collect();
    if holding.len() > NAMED {
        names.push(format!("{} more", holding.len() - NAMED));
    }
    let last = names.pop()?;
    Some(if names.is_empty() {
        format!("held by {last}")
    } else {
        format!("held by {} and {last}", names.join(", "))
    })
}

/// How many jobs are before this one in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Those that were counted.
    pub ahead: u64,
    /// Whether there may be more: counting ends somewhere.
    pub at_least: bool,
}

/// One sentence, without a period, that says why the job waits. `verdicts` are those of all nodes.
pub fn summary(
    job: &JobView<'_>,
    block: Option<&Block>,
    position: Option<Position>,
    verdicts: &[Option<Obstacle>],
) -> String {
    if let Some(block) = block {
        return block.to_string();
    }
    let all = verdicts.len();
    if all == 0 {
        return "there is no node yet; `windlass join-token create` makes a token for one".to_owned();
    }
    let open = verdicts.iter().filter(|verdict| verdict.is_none()).count();
    let obstacles = || verdicts.iter().flatten();
    let later = obstacles().filter(|obstacle| !obstacle.is_lasting()).count();
    let of =
        if all == 1 { "the only node".to_owned() } else { format!("{} of {all} nodes", open.max(later)) };
    if open > 0 {
        let verb = if open == 1 { "has" } else { "have" };
        return format!("{of} {verb} room for it{}", line(job.queue, position));
    }
    if later > 0 {
        let passing = counted(obstacles().filter(|obstacle| !obstacle.is_lasting()));
        return format!("no node takes it now; {of} could later ({passing}){}", line(job.queue, position));
    }
    format!("it fits no node ({})", counted(obstacles()))
}

fn line(queue: &str, position: Option<Position>) -> String {
    match position {
        None => String::new(),
        Some(Position { ahead: 0, at_least: false }) => format!("; it is the next of queue `{queue}`"),
        Some(Position { ahead, at_least }) => {
            let (more, jobs) =
                (if at_least { "at least " } else { "" }, if ahead == 1 { "job is" } else { "jobs are" });
            format!("; {more}{ahead} {jobs} before it in queue `{queue}`")
        }
    }
}

/// Such as `Offline 2, Busy 1`, the most frequent first.
fn counted<'o>(obstacles: impl Iterator<Item = &'o Obstacle>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for obstacle in obstacles {
        *counts.entry(obstacle.reason()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
