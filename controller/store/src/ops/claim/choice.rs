//! Which jobs a claim takes, of all that are ready: see [the choice](super#choice).

use std::collections::{HashMap, HashSet, VecDeque};

use super::kept::Kept;
use super::terms::Terms;
use super::{Claim, read_lane};
use crate::engine::caches::Lane;
use crate::engine::dialect::{self, Sql};
use crate::engine::value::{Value, args, json};
use crate::engine::writer::Tx;
use crate::ops::job_rows;
use crate::{Error, Reserve};

/// Up to this many classes of a node are looked up lane by lane; with more of them the front of the queue is as quick.
const FEW_CLASSES: usize = 128;
/// Up to this many lanes have their heads merged at once: about half a millisecond.
const FEW_LANES: usize = 256;
/// Up to this many lanes their heads cost no more than a look at the front of all ready jobs.
const HANDFUL: usize = 8;
/// How far the front of all ready jobs is walked before lanes are looked at one by one.
const FRONT: usize = 2048;

/// A rank that no job is before.
const FIRST: i64 = 0;

/// What a node has free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) slots: u32,
    pub(super) free: Reserve,
}

impl Room {
    pub(super) fn fits(&self, reserve: &Reserve) -> bool {
        self.slots > 0
            && reserve.cpu_millis <= self.free.cpu_millis
            && reserve.memory_bytes <= self.free.memory_bytes
            && reserve.gpus <= self.free.gpus
    }

    pub(super) fn take(&mut self, reserve: &Reserve) {
        self.slots -= 1;
        self.free.cpu_millis -= reserve.cpu_millis;
        self.free.memory_bytes -= reserve.memory_bytes;
        self.free.gpus -= reserve.gpus;
    }

    /// What is left beside a job that has not come yet.
    fn beside(&self, reserve: &Reserve) -> Self {
        Self {
            slots: self.slots.saturating_sub(1),
            free: Reserve {
                cpu_millis: self.free.cpu_millis.saturating_sub(reserve.cpu_millis),
                memory_bytes: self.free.memory_bytes.saturating_sub(reserve.memory_bytes),
                gpus: self.free.gpus.saturating_sub(reserve.gpus),
            },
        }
    }
}

/// One of those who claim together.
pub(super) struct Seat {
    pub(super) room: Room,
    /// How many more jobs it takes.
    pub(super) want: usize,
}

impl Seat {
    fn left(&self) -> usize {
        self.want.min(self.room.slots as usize)
    }
}

/// A job that was chosen.
pub(super) struct Chosen {
    pub(super) id: i64,
    pub(super) reserve: Reserve,
    /// Whom it was chosen for.
    pub(super) seat: usize,
}

/// Chosen jobs, and what is left for more.
pub(super) struct Choice<'c> {
    pub(super) terms: &'c mut Terms,
    /// Nodes that want the same jobs. Each in turn gets the next that fits it.
    pub(super) seats: Vec<Seat>,
    /// Whose turn it is.
    pub(super) turn: usize,
    pub(super) chosen: Vec<Chosen>,
    /// Jobs that could not be had a moment ago.
    pub(super) passed_over: &'c HashSet<i64>,
    /// The job that room is kept for on the node of the only seat.
    pub(super) kept: Option<Kept>,
}

impl Choice<'_> {
    /// How many more jobs there is a place for.
    fn left(&self) -> usize {
        self.seats.iter().map(Seat::left).sum()
    }

    fn is_full(&self) -> bool {
        self.seats.iter().all(|seat| seat.left() == 0)
    }

    /// Whether there is nothing for a job of this rank, however small.
    fn is_full_at(&self, rank: i64) -> bool {
        self.seats.iter().all(|seat| seat.want == 0 || self.room_at(seat, rank).slots == 0)
    }

    /// What a node has free for a job of this rank. The higher the rank, the less it is.
    fn room_at(&self, seat: &Seat, rank: i64) -> Room {
        match &self.kept {
            Some(kept) if rank > kept.rank => seat.room.beside(&kept.reserve),
            Some(_) | None => seat.room,
        }
    }

    /// Who gets a job of the lane at this rank: the next in turn that has room for it, if its queue may have one more
    /// running.
    fn seat_for(&self, lane: &Lane, rank: i64) -> Option<usize> {
        if !self.terms.permit(&lane.queue) {
            return None;
        }
        let count = self.seats.len();
        (self.turn..self.turn + count).map(|number| number % count).find(|number| {
            let seat = &self.seats[*number];
            seat.want > 0 && self.room_at(seat, rank).fits(&lane.reserve)
        })
    }

    fn fits(&self, lane: &Lane, rank: i64) -> bool {
        self.seat_for(lane, rank).is_some()
    }

    /// Takes a job, if there is a place for it.
    fn take(&mut self, lane: &Lane, rank: i64) {
        let id = rank & ((1 << job_rows::ID_BITS) - 1);
        if self.passed_over.contains(&id) {
            return;
        }
        if let Some(number) = self.seat_for(lane, rank) {
            self.kept.take_if(|kept| kept.id == id);
            self.terms.take(&lane.queue);
            let seat = &mut self.seats[number];
            seat.room.take(&lane.reserve);
            seat.want -= 1;
            self.turn = number + 1;
            self.chosen.push(Chosen { id, reserve: lane.reserve, seat: number });
        }
    }
}

impl Claim {
    /// Whether a job of the lane at this rank is one for the node.
    fn wants(&self, lane: &Lane, rank: i64, choice: &Choice<'_>) -> bool {
        choice.fits(lane, rank)
            && (self.queues.is_empty() || self.queues.contains(&lane.queue))
            && self.classes.binary_search(&lane.class).is_ok()
    }

    /// Chooses jobs for all seats.
    pub(super) async fn choose(&self, tx: &mut Tx, choice: &mut Choice<'_>) -> Result<(), Error> {
        if choice.is_full() || self.classes.is_empty() {
            return Ok(());
        }
        load_lanes(tx).await?;
        if choice.terms.share {
            return self.share(tx, choice).await;
        }
        let mut start = FIRST - 1;
        let mut lanes = Vec::new();
        if self.classes.len() <= FEW_CLASSES {
            lanes = self.lanes_of_classes(tx, choice);
            if lanes.is_empty() {
                return Ok(());
            }
        }
        let many = self.classes.len() > FEW_CLASSES || lanes.len() > FEW_LANES;
        if many || lanes.len() > HANDFUL {
            match self.walk_front(tx, choice, if many { FRONT } else { 1 }).await? {
                Front::Settled => return Ok(()),
                Front::Continue { rank } => start = rank,
            }
        }
        if many {
            lanes = self.lanes_in_use(tx, start + 1, choice).await?;
        }
        self.merge_lanes(tx, choice, lanes, start).await
    }

    fn lanes_of_classes(&self, tx: &Tx, choice: &Choice<'_>) -> Vec<i64> {
        let known = tx.caches.lanes();
        let of_classes = self.classes.iter().flat_map(|class| known.of_class(*class));
        of_classes
            .filter(|id| known.get(**id).is_some_and(|lane| self.wants(lane, FIRST, choice)))
            .copied()
            .collect()
    }

    /// Lanes with ready jobs that have room from this rank on.
    async fn lanes_in_use(&self, tx: &mut Tx, rank: i64, choice: &Choice<'_>) -> Result<Vec<i64>, Error> {
        let mut lanes = Vec::new();
        for row in tx.conn.packed(dialect::LANES_IN_USE, args![]).await? {
            let id = row.cells("jobs").int("lane")?;
            if tx.caches.lanes().get(id).is_some_and(|lane| self.wants(lane, rank, choice)) {
                lanes.push(id);
            }
        }
        Ok(lanes)
    }

    /// Takes what fits from the front of all ready jobs, until `far` of them were looked at.
    async fn walk_front(&self, tx: &mut Tx, choice: &mut Choice<'_>, far: usize) -> Result<Front, Error> {
        let mut start = FIRST - 1;
        let mut seen = 0;
        // A little more than is wanted, for those that do not fit; then twice as many each time.
        let mut window = choice.left() * 2 + 32;
        while seen < far {
            let limit = i64::try_from(window).unwrap_or(i64::MAX);
            let heads = heads(tx, dialect::READY_HEADS, args![start, limit]).await?;
            for Head { lane, rank } in &heads {
                if choice.is_full_at(*rank) {
                    return Ok(Front::Settled);
                }
                let lane = tx.caches.lanes().get(*lane);
                if let Some(lane) = lane.filter(|lane| self.wants(lane, *rank, choice)) {
                    choice.take(lane, *rank);
                    if choice.is_full() {
                        return Ok(Front::Settled);
                    }
                }
                start = *rank;
            }
            if heads.len() < window {
                return Ok(Front::Settled);
            }
            seen += heads.len();
            window = (window * 2).min(FRONT / 2);
        }
        Ok(Front::Continue { rank: start })
    }

    /// Takes what fits from the heads of the given lanes, after rank `start`, in order of rank.
    ///
    /// Each round asks for a few jobs of every lane. What comes back is complete up to the smallest of the last ranks of
    /// lanes that may have more, so that is how far the round goes; the next one begins there.
    async fn merge_lanes(
        &self,
        tx: &mut Tx,
        choice: &mut Choice<'_>,
        mut lanes: Vec<i64>,
        start: i64,
    ) -> Result<(), Error> {
        let mut start = start;
        loop {
            let known = tx.caches.lanes();
            lanes.retain(|id| known.get(*id).is_some_and(|lane| choice.fits(lane, start + 1)));
            if lanes.is_empty() || choice.is_full() {
                return Ok(());
            }
            let want = choice.left();
            let per_lane = (want / lanes.len() + 1).min(want);
            let limits = (per_lane as i64, want as i64);
            let heads =
                heads(tx, dialect::LANE_HEADS, args![json(&lanes), start, limits.0, limits.1]).await?;
            let mut lane_ends: HashMap<i64, (usize, i64)> = HashMap::new();
            for Head { lane, rank } in &heads {
                let end = lane_ends.entry(*lane).or_insert((0, *rank));
                *end = (end.0 + 1, *rank);
            }
            let more_in_lanes =
                lane_ends.values().filter(|(count, _)| *count == per_lane).map(|(_, rank)| *rank).min();
            let more_in_all = (heads.len() == want).then(|| heads.last().map(|head| head.rank)).flatten();
            let bound = [more_in_lanes, more_in_all].into_iter().flatten().min();
            for Head { lane, rank } in heads {
                if bound.is_some_and(|bound| rank > bound) || choice.is_full() {
                    break;
                }
                if let Some(lane) = tx.caches.lanes().get(lane) {
                    choice.take(lane, rank);
                }
            }
            match bound {
                Some(bound) => start = bound,
                None => return Ok(()),
            }
            if more_in_all.is_none() {
                // Every head of every lane was in the answer: lanes without one are empty.
                lanes.retain(|lane| lane_ends.contains_key(lane));
            }
        }
    }

    /// Takes what fits from each queue in turn, so that what runs is shared by the queues' weights.
    async fn share(&self, tx: &mut Tx, choice: &mut Choice<'_>) -> Result<(), Error> {
        let mut lanes = Vec::new();
        if self.classes.len() <= FEW_CLASSES {
            lanes = self.lanes_of_classes(tx, choice);
        }
        if self.classes.len() > FEW_CLASSES || lanes.len() > FEW_LANES {
            lanes = self.lanes_in_use(tx, FIRST, choice).await?;
        }
        let mut queues: HashMap<String, Line> = HashMap::new();
        for id in lanes {
            if let Some(lane) = tx.caches.lanes().get(id) {
                queues.entry(lane.queue.clone()).or_default().lanes.push(id);
            }
        }
        let uncounted: Vec<String> =
            queues.keys().filter(|queue| !choice.terms.knows(queue)).cloned().collect();
        choice.terms.count(tx, &uncounted).await?;
        while !choice.is_full() {
            for line in queues.values_mut() {
                line.fill(tx, choice).await?;
            }
            let contenders = queues.iter().filter_map(|(queue, line)| {
                line.heads.front().map(|head| (queue, choice.terms.contender(queue, head.rank)))
            });
            let turn = contenders.min_by(|(_, a), (_, b)| a.cmp(b)).map(|(queue, _)| queue.clone());
            let Some(line) = turn.and_then(|queue| queues.get_mut(&queue)) else { return Ok(()) };
            let Some(head) = line.heads.pop_front() else { return Ok(()) };
            if let Some(lane) = tx.caches.lanes().get(head.lane) {
                choice.take(lane, head.rank);
            }
        }
        Ok(())
    }
}

/// The ready jobs of one queue, read on as they are needed.
struct Line {
    lanes: Vec<i64>,
    heads: VecDeque<Head>,
    /// Everything up to this rank was read.
    read: i64,
    /// Whether there is nothing more to read.
    ended: bool,
}

impl Default for Line {
    fn default() -> Self {
        Self { lanes: Vec::new(), heads: VecDeque::new(), read: FIRST - 1, ended: false }
    }
}

impl Line {
    /// Sees to it that the next job is known, unless there is none that fits. Lanes that do not fit any more are left out
    /// from now on: within a claim room only shrinks.
    async fn fill(&mut self, tx: &mut Tx, choice: &Choice<'_>) -> Result<(), Error> {
        loop {
            let known = tx.caches.lanes();
            let fits = |lane: i64, rank| known.get(lane).is_some_and(|lane| choice.fits(lane, rank));
            self.lanes.retain(|lane| fits(*lane, self.read + 1));
            self.heads.retain(|head| fits(head.lane, head.rank));
            if !self.heads.is_empty() || self.ended || self.lanes.is_empty() {
                return Ok(());
            }
            let want = choice.left();
            let args = args![json(&self.lanes), self.read, want as i64, want as i64];
            let heads = heads(tx, dialect::LANE_HEADS, args).await?;
            self.ended = heads.len() < want;
            self.read = heads.last().map_or(self.read, |head| head.rank);
            self.heads = heads.into();
        }
    }
}

/// A ready job.
struct Head {
    lane: i64,
    rank: i64,
}

/// Ready jobs in order of rank.
async fn heads(tx: &mut Tx, sql: Sql, args: Vec<Value>) -> Result<Vec<Head>, Error> {
    let mut heads = Vec::new();
    for row in tx.conn.packed(sql, args).await? {
        let mut cells = row.cells("jobs");
        heads.push(Head { lane: cells.int("lane_id")?, rank: cells.int("ready_rank")? });
    }
    heads.sort_unstable_by_key(|head| head.rank);
    Ok(heads)
}

/// Where the walk over the front has ended.
enum Front {
    /// There is nothing more to choose.
    Settled,
    /// Everything up to this rank was looked at.
    Continue {
        /// The rank.
        rank: i64,
    },
}

async fn load_lanes(tx: &mut Tx) -> Result<(), Error> {
    let Some(after) = tx.caches.lanes().missing_after() else { return Ok(()) };
    let sql =
        "SELECT id, class_id, queue, cpu_millis, memory_bytes, gpus FROM lanes WHERE id > $1 ORDER BY id";
    let mut last = after;
    for row in tx.conn.rows(sql, args![after]).await? {
        let (id, lane) = read_lane(&row)?;
        tx.caches.insert_lane(id, lane);
        last = id;
    }
    tx.caches.lanes_are_loaded(last);
    Ok(())
}
