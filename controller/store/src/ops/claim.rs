//! Claims: which jobs a node gets next.
//!
//! # Flow
//! One write transaction: what the node holds is subtracted from what it has; jobs whose time has come become ready; the
//! next ready jobs that fit are chosen and become `Claimed` with a new epoch and an attempt.
//!
//! # Choice
//! Jobs wait in *lanes*: one per requirement class, queue and amount of reserved resources. Within a lane all jobs fit a
//! node or none does, so a lane that is too large for what is free, or not this node's, is passed over as a whole and
//! hides nothing behind it. Jobs that are suspended or not due yet are in no index that is looked at.
//!
//! - A node with few lanes looks at the head of each and merges them.
//! - A node with many lanes walks the front of all ready jobs in order, which finds fitting ones at once when many
//!   lanes fit; after [`FRONT`] jobs it goes over to the heads of the lanes that are in use.
//!
//! Both are descents of an index, so the cost grows with the logarithm of the backlog; neither looks at classes that
//! have no ready job.
//!
//! Where something is set for queues ([`terms`]), those that have reached their limit are passed over like lanes that do
//! not fit. Where queues have weights, each gives its next job in turn, so that what runs is shared by weight; priority
//! and age then order the jobs within a queue. That costs one more descent for each queue.
//!
//! Where room is kept on the node for a job that others have passed over ([`kept`]), what fits depends on a job's place in
//! line too: those that come after it get only what is left beside it.

mod kept;
mod terms;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use windlass_crds::sandbox_job::OfflinePolicy;

use self::kept::Kept;
use self::terms::Terms;
use super::job_rows;
use crate::engine::caches::Lane;
use crate::engine::dialect::{self, Sql};
use crate::engine::value::{Row, Value, after, args, json, ms, truncated, word};
use crate::engine::writer::Tx;
use crate::{Change, ClaimSpec, ClaimedJob, ClassRow, Error, Reserve, Store};

/// Up to this many classes of a node are looked up lane by lane; with more of them the front of the queue is as quick.
const FEW_CLASSES: usize = 128;
/// Up to this many lanes have their heads merged at once: about half a millisecond.
const FEW_LANES: usize = 256;
/// How far the front of all ready jobs is walked before lanes are looked at one by one.
const FRONT: usize = 2048;
/// Milliseconds within which a node that asks again is not noted again: nobody judges liveness more finely.
const LIVENESS: u64 = 1000;
/// How many due jobs a single claim makes ready, so that a great number of them does not hold up everyone.
const PROMOTIONS: i64 = 1000;
/// A rank that no job is before.
const FIRST: i64 = 0;
/// How often a claim chooses again when somebody else has locked what it chose.
const ROUNDS: usize = 4;

impl Store {
    /// Requirement classes with an id above `known`, ascending. Ids only grow, so that a caller that has judged all
    /// classes up to one never needs to look at them again.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn unfitted_classes(&self, known: i64) -> Result<Vec<ClassRow>, Error> {
        self.read("unfitted_classes", move |conn| {
            Box::pin(async move {
                let sql = "SELECT id, hash, predicates FROM classes WHERE id > $1 ORDER BY id";
                let rows = conn.rows(sql, args![known]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("classes");
                    Ok(ClassRow {
                        id: cells.int("id")?,
                        hash: cells.text("hash")?,
                        predicates: cells.json("predicates")?,
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Gives a node its next jobs: highest priority first, then oldest, of the given classes and queues, as many as fit
    /// into what the node has free in slots, cpu, memory and GPUs. Each gets a new epoch and a lease from `now`.
    ///
    /// A repeated `request_id` yields the attempts of the first time that are still live, with new leases, and claims
    /// nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a node that is not registered, [`Error::OtherBoot`] when another run of the agent is.
    pub async fn claim(&self, now: Timestamp, spec: ClaimSpec<'_>) -> Result<Vec<ClaimedJob>, Error> {
        let claim = Claim::new(truncated(now), spec);
        let mut set_aside = 0;
        loop {
            let claim = claim.clone();
            let damaged =
                match self.write("claim", move |tx| Box::pin(async move { claim.run(tx).await })).await {
                    // The claim was taken back as a whole. The job in the way would stop every node's next one too.
                    Err(Error::Corrupt { table: "jobs", row, column }) if set_aside < MAX_SET_ASIDE => {
                        (row, column)
                    }
                    result => return result,
                };
            set_aside += 1;
            let (uid, column) = damaged;
            tracing::error!(
                job.id = uid,
                column,
                "a job cannot be read and is set aside; it is claimed again once it was repaired and changed"
            );
            self.set_aside(uid).await?;
        }
    }

    /// Keeps a queued job from being claimed until its readiness is written anew, as every change of it does.
    async fn set_aside(&self, uid: String) -> Result<(), Error> {
        self.write("set_aside", move |tx| {
            Box::pin(async move {
                let sql =
                    "UPDATE jobs SET ready_rank = NULL, due_at = NULL WHERE uid = $1 AND phase = 'Queued'";
                tx.conn.execute(sql, args![uid]).await.map(drop)
            })
        })
        .await
    }

    /// The time after `now` at which the next delayed job becomes ready, so that those who wait for work wake in time.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn next_ready_at(&self, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        self.read("next_ready_at", move |conn| {
            Box::pin(async move {
                let sql = "SELECT min(due_at) AS due_at FROM jobs WHERE due_at IS NOT NULL AND due_at > $1";
                match conn.row(sql, args![ms(now)]).await? {
                    Some(row) => row.cells("jobs").opt_time("due_at"),
                    None => Ok(None),
                }
            })
        })
        .await
    }
}

/// How many damaged jobs one claim sets aside.
const MAX_SET_ASIDE: u32 = 32;

/// A claim with everything of its own, so that it can travel to the writer.
#[derive(Clone)]
struct Claim {
    now: Timestamp,
    node: String,
    boot_id: String,
    request_id: String,
    max: usize,
    /// Ascending.
    classes: Vec<i64>,
    queues: HashSet<String>,
    slots: u32,
    capacity: Reserve,
    lease: Duration,
    lease_continue: Duration,
    default: OfflinePolicy,
    on_behalf: bool,
}

/// What a node has free.
#[derive(Clone, Copy, Debug)]
struct Room {
    slots: u32,
    free: Reserve,
}

impl Room {
    fn fits(&self, reserve: &Reserve) -> bool {
        self.slots > 0
            && reserve.cpu_millis <= self.free.cpu_millis
            && reserve.memory_bytes <= self.free.memory_bytes
            && reserve.gpus <= self.free.gpus
    }

    fn take(&mut self, reserve: &Reserve) {
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

/// What the node holds already.
struct Held {
    room: Room,
    repeated: bool,
    /// Whether an operator keeps new jobs away from it.
    on_hold: bool,
    next_due: Option<Timestamp>,
    /// Whether something is set for any queue.
    terms: bool,
    /// Whether room is kept for any job on any node.
    reservations: bool,
}

/// Chosen jobs with what they reserve, and what is left for more.
struct Choice<'c> {
    terms: &'c mut Terms,
    room: Room,
    want: usize,
    chosen: Vec<(i64, Reserve)>,
    /// Jobs that could not be had a moment ago.
    passed_over: &'c HashSet<i64>,
    /// The job that room is kept for.
    kept: Option<Kept>,
}

impl Choice<'_> {
    fn is_full(&self) -> bool {
        self.want == 0 || self.room.slots == 0
    }

    /// Whether there is nothing for a job of this rank, however small.
    fn is_full_at(&self, rank: i64) -> bool {
        self.want == 0 || self.room_at(rank).slots == 0
    }

    /// What is free for a job of this rank. The higher the rank, the less it is.
    fn room_at(&self, rank: i64) -> Room {
        match &self.kept {
            Some(kept) if rank > kept.rank => self.room.beside(&kept.reserve),
            Some(_) | None => self.room,
        }
    }

    /// Whether there is room for a job of the lane at this rank, and its queue may have one more running.
    fn fits(&self, lane: &Lane, rank: i64) -> bool {
        self.room_at(rank).fits(&lane.reserve) && self.terms.permit(&lane.queue)
    }

    fn take(&mut self, lane: &Lane, rank: i64) {
        let id = rank & ((1 << job_rows::ID_BITS) - 1);
        if !self.passed_over.contains(&id) {
            self.kept.take_if(|kept| kept.id == id);
            self.terms.take(&lane.queue);
            self.room.take(&lane.reserve);
            self.want -= 1;
            self.chosen.push((id, lane.reserve));
        }
    }
}

impl Claim {
    fn new(now: Timestamp, spec: ClaimSpec<'_>) -> Self {
        let ClaimSpec {
            node,
            boot_id,
            request_id,
            max,
            classes,
            queues,
            slots,
            capacity,
            lease,
            lease_continue,
            node_offline_default,
            on_behalf,
        } = spec;
        let mut classes = classes.to_vec();
        if !classes.is_sorted() {
            classes.sort_unstable();
        }
        Self {
            now,
            node: node.to_owned(),
            boot_id: boot_id.to_owned(),
            request_id: request_id.to_owned(),
            max: max as usize,
            classes,
            queues: queues.iter().cloned().collect(),
            slots,
            capacity,
            lease,
            lease_continue,
            default: node_offline_default,
            on_behalf,
        }
    }

    async fn run(&self, tx: &mut Tx) -> Result<Vec<ClaimedJob>, Error> {
        let held = self.held(tx).await?;
        if held.repeated {
            return self.repeat(tx).await;
        }
        if held.on_hold {
            // Whoever asks may have looked at the node before it was cordoned.
            return Ok(Vec::new());
        }
        if held.next_due.is_some_and(|due| due <= self.now) {
            self.promote(tx).await?;
        }
        let mut terms = if held.terms { Terms::load(tx).await? } else { Terms::default() };
        let (mut room, mut want) = (held.room, self.max);
        let kept = if held.reservations { Kept::load(tx, &self.node).await? } else { None };
        let (mut claimed, mut passed_over) = (Vec::new(), HashSet::new());
        for _ in 0..ROUNDS {
            // Claimed in an earlier round, or not to be claimed here as things are, it needs nothing.
            let kept =
                kept.clone().filter(|kept| self.could_claim(kept, &terms) && !claimed.contains(&kept.id));
            let chosen = Vec::new();
            let mut choice =
                Choice { terms: &mut terms, room, want, chosen, passed_over: &passed_over, kept };
            self.choose(tx, &mut choice).await?;
            let chosen = choice.chosen;
            if chosen.is_empty() {
                break;
            }
            let got = self.assign(tx, &chosen).await?;
            for (id, reserve) in &chosen {
                if got.contains(id) {
                    room.take(reserve);
                    want -= 1;
                    claimed.push(*id);
                } else {
                    passed_over.insert(*id);
                }
            }
            if got.len() < chosen.len() && held.terms {
                // Those that could not be had have taken a place in their queues.
                terms = Terms::load(tx).await?;
            }
            if got.len() == chosen.len() {
                break;
            }
        }
        if held.reservations && !claimed.is_empty() {
            kept::give_back(tx, &claimed, &self.node).await?;
        }
        self.assigned(tx, &claimed).await
    }

    /// Whether the node could claim the job that room is kept for, if it held nothing.
    fn could_claim(&self, kept: &Kept, terms: &Terms) -> bool {
        let all = Room { slots: self.slots, free: self.capacity };
        all.fits(&kept.reserve)
            && terms.permit(&kept.queue)
            && (self.queues.is_empty() || self.queues.contains(&kept.queue))
            && self.classes.binary_search(&kept.class).is_ok()
    }

    /// Checks the node, notes that it asked, and finds out what it holds.
    async fn held(&self, tx: &mut Tx) -> Result<Held, Error> {
        let sql = "
            SELECT n.boot_id, h.repeated, h.busy, h.cpu_millis, h.memory_bytes, h.gpus,
                (SELECT min(j.due_at) FROM jobs AS j WHERE j.due_at IS NOT NULL) AS next_due,
                (SELECT l.last_claim_at FROM node_liveness AS l WHERE l.name = $1) AS last_claim,
                CASE WHEN EXISTS (SELECT 1 FROM node_holds AS k WHERE k.node = $1) THEN 1 ELSE 0 END AS on_hold,
                CASE WHEN EXISTS (SELECT 1 FROM queues) THEN 1 ELSE 0 END AS terms,
                CASE WHEN EXISTS (SELECT 1 FROM reservations) THEN 1 ELSE 0 END AS reservations
            FROM nodes AS n CROSS JOIN (
                SELECT count(*) FILTER (WHERE a.request_id = $2) AS repeated,
                    count(*) FILTER (WHERE a.waiting = 0) AS busy,
                    CAST(coalesce(sum(a.cpu_millis) FILTER (WHERE a.waiting = 0), 0) AS BIGINT) AS cpu_millis,
                    CAST(coalesce(sum(a.memory_bytes), 0) AS BIGINT) AS memory_bytes,
                    CAST(coalesce(sum(a.gpus), 0) AS BIGINT) AS gpus
                FROM attempts AS a WHERE a.node = $1 AND a.ended_at IS NULL) AS h
            WHERE n.name = $1";
        let unknown = || Error::NotFound { object: "registered node", key: self.node.clone() };
        let row = tx
            .conn
            .row(sql, args![self.node.as_str(), self.request_id.as_str()])
            .await?
            .ok_or_else(unknown)?;
        let mut cells = row.cells("nodes");
        let boot_id = cells.opt_text("boot_id")?.ok_or_else(unknown)?;
        if boot_id != self.boot_id {
            return Err(Error::OtherBoot { node: self.node.clone() });
        }
        let repeated = cells.int("repeated")? > 0;
        let busy: u32 = cells.number("busy")?;
        let used = Reserve {
            cpu_millis: cells.number("cpu_millis")?,
            memory_bytes: cells.number("memory_bytes")?,
            gpus: cells.number("gpus")?,
        };
        let next_due = cells.opt_time("next_due")?;
        let last_claim = cells.opt_int("last_claim")?;
        if !self.on_behalf && last_claim.is_none_or(|last| last.abs_diff(ms(self.now)) >= LIVENESS) {
            let sql = "UPDATE node_liveness SET last_claim_at = $2, last_seen_at = $2 WHERE name = $1";
            tx.conn.execute(sql, args![self.node.as_str(), ms(self.now)]).await?;
        }
        let on_hold = cells.flag("on_hold")?;
        let terms = cells.flag("terms")?;
        let reservations = cells.flag("reservations")?;
        let room = Room {
            slots: self.slots.saturating_sub(busy),
            free: Reserve {
                cpu_millis: self.capacity.cpu_millis.saturating_sub(used.cpu_millis),
                memory_bytes: self.capacity.memory_bytes.saturating_sub(used.memory_bytes),
                gpus: self.capacity.gpus.saturating_sub(used.gpus),
            },
        };
        Ok(Held { room, repeated, on_hold, next_due, terms, reservations })
    }

    /// Renews and yields what the same request was given before.
    async fn repeat(&self, tx: &mut Tx) -> Result<Vec<ClaimedJob>, Error> {
        let sql = "
            UPDATE attempts SET lease_until = CASE
                WHEN lease_until > CASE offline WHEN 'Continue' THEN $4 ELSE $3 END THEN lease_until
                WHEN offline = 'Continue' THEN $4 ELSE $3 END
            WHERE node = $1 AND request_id = $2 AND ended_at IS NULL
            RETURNING job_id";
        let rows = tx
            .conn
            .rows(
                sql,
                args![
                    self.node.as_str(),
                    self.request_id.as_str(),
                    after(self.now, self.lease),
                    after(self.now, self.lease_continue)
                ],
            )
            .await?;
        let mut ids = Vec::with_capacity(rows.len());
        for row in &rows {
            ids.push(row.cells("attempts").int("job_id")?);
        }
        self.assigned(tx, &ids).await
    }

    /// Makes jobs ready whose time has come.
    async fn promote(&self, tx: &mut Tx) -> Result<(), Error> {
        let sql = "
            UPDATE jobs SET ready_rank = ((1000 - priority) << 40) + place, due_at = NULL
            WHERE id IN (
                SELECT id FROM jobs WHERE due_at IS NOT NULL AND due_at <= $1 ORDER BY due_at LIMIT $2)";
        tx.conn.execute(sql, args![ms(self.now), PROMOTIONS]).await.map(drop)
    }

    /// Whether a job of the lane at this rank is one for the node.
    fn wants(&self, lane: &Lane, rank: i64, choice: &Choice<'_>) -> bool {
        choice.fits(lane, rank)
            && (self.queues.is_empty() || self.queues.contains(&lane.queue))
            && self.classes.binary_search(&lane.class).is_ok()
    }

    async fn choose(&self, tx: &mut Tx, choice: &mut Choice<'_>) -> Result<(), Error> {
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
        if self.classes.len() > FEW_CLASSES || lanes.len() > FEW_LANES {
            match self.walk_front(tx, choice).await? {
                Front::Settled => return Ok(()),
                Front::Continue { rank } => start = rank,
            }
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

    /// Takes what fits from the front of all ready jobs.
    async fn walk_front(&self, tx: &mut Tx, choice: &mut Choice<'_>) -> Result<Front, Error> {
        let mut start = FIRST - 1;
        let mut seen = 0;
        // A little more than is wanted, for those that do not fit; then twice as many each time.
        let mut window = choice.want * 2 + 32;
        while seen < FRONT {
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
            let want = choice.want.min(choice.room.slots as usize);
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
                if let Some(lane) = tx.caches.lanes().get(lane).filter(|lane| choice.fits(lane, rank)) {
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
            if let Some(lane) = tx.caches.lanes().get(head.lane).filter(|lane| choice.fits(lane, head.rank)) {
                choice.take(lane, head.rank);
            }
        }
        Ok(())
    }

    /// Makes the chosen jobs the node's; yields those that it got.
    async fn assign(&self, tx: &mut Tx, chosen: &[(i64, Reserve)]) -> Result<HashSet<i64>, Error> {
        let version = tx.draw_version();
        let ids: Vec<i64> = chosen.iter().map(|(id, _)| *id).collect();
        let mut got = HashSet::with_capacity(ids.len());
        let above = tx.restored.map_or(0, |restored| restored.number);
        let args = args![json(&ids), self.node.as_str(), version, above];
        for row in tx.conn.rows(dialect::CLAIM, args).await? {
            got.insert(row.cells("jobs").int("id")?);
        }
        if got.is_empty() {
            return Ok(got);
        }
        let sql = "
            INSERT INTO attempts (job_id, epoch, number, node, phase, claimed_at, lease_until, received, offline,
                cpu_millis, memory_bytes, gpus, waiting, request_id)
            SELECT j.id, j.epoch, j.attempts, $2, 'Claimed', $3,
                CASE coalesce(j.offline, $6) WHEN 'Continue' THEN $5 ELSE $4 END,
                0, coalesce(j.offline, $6), j.cpu_millis, j.memory_bytes, j.gpus, 0, $7
            FROM json_each($1) AS e JOIN jobs AS j ON j.id = CAST(e.value AS BIGINT)";
        let args = args![
            json(&got),
            self.node.as_str(),
            ms(self.now),
            after(self.now, self.lease),
            after(self.now, self.lease_continue),
            word(self.default),
            self.request_id.as_str()
        ];
        tx.conn.execute(sql, args).await?;
        Ok(got)
    }

    /// The node's jobs with these ids, in this order.
    async fn assigned(&self, tx: &mut Tx, ids: &[i64]) -> Result<Vec<ClaimedJob>, Error> {
        let mut jobs = job_rows::by_ids(tx, ids).await?;
        let order: HashMap<i64, usize> =
            ids.iter().enumerate().map(|(position, id)| (*id, position)).collect();
        jobs.sort_by_key(|job| order.get(&job.id).copied());
        let mut claimed = Vec::with_capacity(jobs.len());
        for job in jobs {
            // Its node will soon report about it.
            job_rows::remember(tx, &job);
            let job = job.row;
            tx.changed(Change::Job { uid: job.uid.clone() });
            let offline = job.spec.offline.unwrap_or(self.default);
            let lease = match offline {
                OfflinePolicy::Stop => self.lease,
                OfflinePolicy::Continue => self.lease_continue,
            };
            claimed.push(ClaimedJob { epoch: job.epoch, number: job.attempts, lease, offline, job });
        }
        Ok(claimed)
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
            let want = choice.want.min(choice.room.slots as usize);
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

/// Reads `id, class_id, queue, cpu_millis, memory_bytes, gpus`.
pub(crate) fn read_lane(row: &Row) -> Result<(i64, Lane), Error> {
    let mut cells = row.cells("lanes");
    let id = cells.int("id")?;
    let lane = Lane {
        class: cells.int("class_id")?,
        queue: cells.text("queue")?,
        reserve: Reserve {
            cpu_millis: cells.number("cpu_millis")?,
            memory_bytes: cells.number("memory_bytes")?,
            gpus: cells.number("gpus")?,
        },
    };
    Ok((id, lane))
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
