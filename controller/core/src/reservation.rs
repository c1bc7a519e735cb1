//! Room that is kept for jobs that others pass over, so that large jobs do not starve behind small ones.
//!
//! *Flow.* A job is *short of room* when there are nodes that it fits and none of them has what it needs free. Of each
//! lane (jobs that are alike in what they need) the first in line is looked at. When a lane has been short for a while,
//! and its first job has waited that long too, room is kept for that job on one node: from then on the node gives jobs
//! that come later in line only what is left beside it. Running jobs end, so what is free there only grows, until the
//! job fits.
//!
//! *Guarantees.* At most one job has room kept on a node, and at most one node keeps room for a job. Jobs are served in
//! order of rank, so the first in line always gets a node, and a job never blocks one that comes before it. A plan that
//! was carried out is not planned again. What is kept is given back when its job does not wait any more, cannot be
//! claimed because of a limit of its queue, or does not fit the node as it is now.
//!
//! *Liveness.* A node may be held by something that never ends. A job that has waited for a node in vain moves on to the
//! next in order of names, and each time has twice the patience; so it comes to every node that it fits, and stays long
//! enough at one whose jobs end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::requirement::Room;
use crate::why::Used;

/// How many times longer than it waited for the reservation a job waits on the first node that keeps room for it.
const PATIENCE: u32 = 10;
/// Patience is doubled at most so often: ten minutes become some weeks.
const DOUBLINGS: u32 = 12;
/// The most lanes that are short and looked at in one round; further ones come later in line and wait for these.
const LOOKED_AT: usize = 256;

/// A job that waits for a node: the first of its lane, or one for which room is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The job's uid.
    pub uid: String,
    /// The lane: all of its jobs need the same.
    pub lane: i64,
    /// The requirement class.
    pub class: i64,
    /// The queue.
    pub queue: String,
    /// Whether its queue may have one more running.
    pub permitted: bool,
    /// Priority and age as one number: the smaller, the sooner.
    pub rank: i64,
    /// What it needs.
    pub room: Room,
    /// Since when it waits in its queue.
    pub since: Timestamp,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it takes jobs: it is there, ready, and nobody keeps jobs away.
    pub open: bool,
    /// The classes that it fits, ascending.
    pub classes: &'a [i64],
    /// The queues that it serves; empty for all.
    pub queues: &'a [String],
    /// How many attempts it can hold.
    pub slots: u32,
    /// What it has in all.
    pub capacity: Room,
    /// What its attempts take.
    pub used: Used,
}

/// Room that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The node.
    pub node: String,
    /// The job's uid.
    pub uid: String,
    /// The job, while it waits.
    pub job: Option<Waiting>,
    /// Since when.
    pub since: Timestamp,
    /// How many nodes have kept room for it in vain.
    pub moves: u32,
}

/// Everything that matters.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot<'a> {
    /// The nodes, by name.
    pub nodes: Vec<Node<'a>>,
    /// The first job of each lane that has any that could be claimed.
    pub waiting: Vec<Waiting>,
    /// What is kept.
    pub kept: Vec<Kept>,
}

/// Since when lanes have been short of room.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Shortages(BTreeMap<i64, Timestamp>);

/// Room to keep from now on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keep {
    /// The node.
    pub node: String,
    /// The job's uid.
    pub uid: String,
    /// How many nodes have kept room for it in vain.
    pub moves: u32,
}

/// Room to give back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GiveBack {
    /// The node.
    pub node: String,
    /// The job's uid.
    pub uid: String,
}

/// What has to happen: first what is given back, then what is kept.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// What is given back.
    pub give_back: Vec<GiveBack>,
    /// What is kept.
    pub keep: Vec<Keep>,
    /// To be handed in the next time.
    pub shortages: Shortages,
}

/// What has to happen now. `after` is how long a job is passed over before room is kept for it.
pub fn plan(snapshot: &Snapshot<'_>, shortages: &Shortages, after: Duration, now: Timestamp) -> Plan {
    let mut round = Round {
        snapshot,
        earlier: shortages,
        after: signed(after),
        now,
        pending: snapshot.kept.iter().map(|kept| kept.node.as_str()).collect(),
        given: BTreeMap::new(),
        shortages: Shortages::default(),
    };
    let mut short = 0;
    for (job, kept) in candidates(snapshot) {
        if short < LOOKED_AT || kept.is_some() {
            short += usize::from(round.serve(job, kept));
        }
    }
    let keep: BTreeSet<Keep> = round
        .given
        .iter()
        .map(|(node, given)| Keep {
            node: (*node).to_owned(),
            uid: given.job.uid.clone(),
            moves: given.moves,
        })
        .collect();
    let as_it_is: BTreeSet<Keep> = snapshot
        .kept
        .iter()
        .map(|kept| Keep { node: kept.node.clone(), uid: kept.uid.clone(), moves: kept.moves })
        .collect();
    Plan {
        give_back: as_it_is
            .difference(&keep)
            .map(|kept| GiveBack { node: kept.node.clone(), uid: kept.uid.clone() })
            .collect(),
        keep: keep.difference(&as_it_is).cloned().collect(),
        shortages: round.shortages,
    }
}

/// The jobs to look at in order of rank: of each lane those for which room is kept, else the first.
fn candidates<'s>(snapshot: &'s Snapshot<'_>) -> Vec<(&'s Waiting, Option<&'s Kept>)> {
    let kept = snapshot.kept.iter().filter_map(|kept| kept.job.as_ref().map(|job| (job, Some(kept))));
    let mut candidates: Vec<_> = kept.collect();
    let lanes: BTreeSet<i64> = candidates.iter().map(|(job, _)| job.lane).collect();
    let first = snapshot.waiting.iter().filter(|job| !lanes.contains(&job.lane));
    candidates.extend(first.map(|job| (job, None)));
    candidates.retain(|(job, _)| job.permitted);
    candidates.sort_by_key(|(job, _)| job.rank);
    candidates
}

/// What a node is to keep.
struct Given<'s> {
    job: &'s Waiting,
    moves: u32,
}

/// A plan in the making.
struct Round<'s> {
    snapshot: &'s Snapshot<'s>,
    earlier: &'s Shortages,
    after: SignedDuration,
    now: Timestamp,
    /// Nodes that keep room for a job that has not been looked at yet.
    pending: BTreeSet<&'s str>,
    given: BTreeMap<&'s str, Given<'s>>,
    shortages: Shortages,
}

impl<'s> Round<'s> {
    /// Looks at the next job in line; yields whether it is short of room.
    fn serve(&mut self, job: &'s Waiting, kept: Option<&'s Kept>) -> bool {
        if let Some(kept) = kept {
            self.pending.remove(kept.node.as_str());
        }
        let fitting: Vec<&Node<'s>> = self.snapshot.nodes.iter().filter(|node| fits(job, node)).collect();
        if fitting.is_empty() {
            return false;
        }
        if kept.is_none() && fitting.iter().any(|node| self.has_room(node, job)) {
            // It will be claimed, and with it what is next in the lane may be.
            return false;
        }
        let since = self.earlier.0.get(&job.lane).copied().unwrap_or(self.now);
        self.shortages.0.insert(job.lane, since);
        let open: Vec<&Node<'s>> =
            fitting.into_iter().filter(|node| !self.given.contains_key(node.name)).collect();
        let (node, moves) = match kept {
            None if self.now.duration_since(since.max(job.since)) < self.after => return true,
            None => (self.best(job, &open), 0),
            Some(kept) => match open.iter().find(|node| node.name == kept.node) {
                Some(node) if self.now.duration_since(kept.since) < self.patience(kept.moves) => {
                    (Some(*node), kept.moves)
                }
                Some(node) => match next(&open, &kept.node) {
                    Some(next) => (Some(next), kept.moves.saturating_add(1)),
                    None => (Some(*node), kept.moves),
                },
                None => (self.best(job, &open), kept.moves),
            },
        };
        if let Some(node) = node {
            self.given.insert(node.name, Given { job, moves });
        }
        true
    }

    /// Whether the job would be given to the node now: beside what the node is to keep for those before it.
    fn has_room(&self, node: &Node<'_>, job: &Waiting) -> bool {
        let (mut slots, mut free) = free(node);
        if let Some(given) = self.given.get(node.name) {
            slots = slots.saturating_sub(1);
            free = beside(free, given.job.room);
        }
        slots > 0 && job.room.fits(free)
    }

    /// Where the least is missing, rather on a node that keeps nothing.
    fn best<'n>(&self, job: &Waiting, open: &[&'n Node<'s>]) -> Option<&'n Node<'s>> {
        open.iter()
            .copied()
            .min_by_key(|node| (self.pending.contains(node.name), missing(job, node), node.name))
    }

    fn patience(&self, moves: u32) -> SignedDuration {
        let factor = PATIENCE << moves.min(DOUBLINGS);
        self.after.saturating_mul(i32::try_from(factor).unwrap_or(i32::MAX))
    }
}

/// The next node in order of names, round and round; `None` where there is no other.
fn next<'n, 's>(open: &[&'n Node<'s>], node: &str) -> Option<&'n Node<'s>> {
    let others = || open.iter().copied().filter(|other| other.name != node);
    others()
        .filter(|other| other.name > node)
        .min_by_key(|other| other.name)
        .or_else(|| others().min_by_key(|other| other.name))
}

/// Whether the node could run the job if it were idle.
fn fits(job: &Waiting, node: &Node<'_>) -> bool {
    node.open
        && node.slots > 0
        && job.room.fits(node.capacity)
        && node.classes.binary_search(&job.class).is_ok()
        && (node.queues.is_empty() || node.queues.contains(&job.queue))
}

/// Slots and room that are free.
const fn free(node: &Node<'_>) -> (u32, Room) {
    (node.slots.saturating_sub(node.used.slots), beside(node.capacity, node.used.room))
}

/// What is left of `all` beside `taken`.
const fn beside(all: Room, taken: Room) -> Room {
    Room {
        cpu_millis: all.cpu_millis.saturating_sub(taken.cpu_millis),
        memory_bytes: all.memory_bytes.saturating_sub(taken.memory_bytes),
        gpus: all.gpus.saturating_sub(taken.gpus),
    }
}

/// How much of the node has still to become free for the job, in thousandths of what is most wanting.
fn missing(job: &Waiting, node: &Node<'_>) -> u64 {
    let (slots, free) = free(node);
    let share = |wanted: u64, free: u64, all: u64| {
        let missing = u128::from(wanted.saturating_sub(free)) * 1000;
        u64::try_from(missing / u128::from(all.max(1))).unwrap_or(u64::MAX)
    };
    let Room { cpu_millis, memory_bytes, gpus } = job.room;
    [
        share(1, slots.into(), node.slots.into()),
        share(cpu_millis, free.cpu_millis, node.capacity.cpu_millis),
        share(memory_bytes, free.memory_bytes, node.capacity.memory_bytes),
        share(gpus.into(), free.gpus.into(), node.capacity.gpus.into()),
    ]
    .into_iter()
    .max()
    .unwrap_or(0)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests;
