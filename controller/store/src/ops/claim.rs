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
//! - A node with few lanes looks at the head of each and merges them. With more than a handful it looks first whether the
//!   next ready jobs of all happen to be its own.
//! - A node with many lanes walks the front of all ready jobs in order, which finds fitting ones at once when many
//!   lanes fit; after some thousand jobs it goes over to the heads of the lanes that are in use.
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
//!
//! # Many nodes
//! Claims that wait for the writer at the same time are carried out together: one look at what all the nodes hold, one
//! choice for those that want the same classes and queues, in which each in turn gets the next job that fits it, and one
//! assignment. Queues with settings and kept rooms make what one may have depend on what others got: then each claims
//! by itself.

mod choice;
mod kept;
mod terms;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use windlass_crds::sandbox_job::OfflinePolicy;

use self::choice::{Choice, Chosen, Room, Seat};
use self::kept::Kept;
use self::terms::Terms;
use super::job_rows;
use crate::engine::caches::Lane;
use crate::engine::dialect;
use crate::engine::value::{Row, after, args, json, ms, truncated, word};
use crate::engine::writer::{Answers, BoxFuture, Merge, Tx};
use crate::{Change, ClaimSpec, ClaimedJob, ClassRow, Error, Reserve, Store};

/// Milliseconds within which a node that asks again is not noted again: nobody judges liveness more finely.
const LIVENESS: u64 = 1000;
/// How many due jobs a single claim makes ready, so that a great number of them does not hold up everyone.
const PROMOTIONS: i64 = 1000;
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
            let damaged = match self.write_with_others(claim.clone()).await {
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
    classes: Arc<[i64]>,
    queues: Arc<HashSet<String>>,
    slots: u32,
    capacity: Reserve,
    lease: Duration,
    lease_continue: Duration,
    default: OfflinePolicy,
    on_behalf: bool,
}

/// What a node holds already, and what else a claim depends on.
struct Held {
    room: Room,
    repeated: bool,
    /// Whether an operator keeps new jobs away from it.
    on_hold: bool,
    last_claim: Option<i64>,
    next_due: Option<Timestamp>,
    /// Whether something is set for any queue.
    terms: bool,
    /// Whether room is kept for any job on any node.
    reservations: bool,
}

/// A claim that is served.
struct Claimant<'c> {
    claim: &'c Claim,
    room: Room,
    want: usize,
    claimed: Vec<i64>,
}

impl Merge for Claim {
    type Answer = Vec<ClaimedJob>;

    const NAME: &'static str = "claim";

    fn weight(&self) -> usize {
        self.max
    }

    fn run<'t>(tx: &'t mut Tx, claims: Vec<Self>) -> BoxFuture<'t, Result<Answers<Self::Answer>, Error>> {
        Box::pin(async move { run(tx, &claims).await })
    }
}

/// Carries out claims; one answer each, in order.
async fn run(tx: &mut Tx, claims: &[Claim]) -> Result<Answers<Vec<ClaimedJob>>, Error> {
    let mut answers: Answers<Vec<ClaimedJob>> = claims.iter().map(|_| Ok(Vec::new())).collect();
    let mut waiting: Vec<usize> = (0..claims.len()).collect();
    while !waiting.is_empty() {
        // What a node's second claim may have depends on what its first one got.
        let mut nodes = HashSet::new();
        let (now, later): (Vec<usize>, Vec<usize>) =
            waiting.into_iter().partition(|number| nodes.insert(claims[*number].node.as_str()));
        for (number, answer) in claim_once(tx, claims, &now).await? {
            answers[number] = answer;
        }
        waiting = later;
    }
    Ok(answers)
}

/// Carries out claims of different nodes: those with these numbers.
async fn claim_once(
    tx: &mut Tx,
    claims: &[Claim],
    numbers: &[usize],
) -> Result<Vec<(usize, Result<Vec<ClaimedJob>, Error>)>, Error> {
    let mut answers = Vec::with_capacity(numbers.len());
    let mut claimants: Vec<(usize, Claimant<'_>)> = Vec::with_capacity(numbers.len());
    let mut repeated = Vec::new();
    let (mut asked, mut due) = (Vec::new(), None);
    let (mut terms, mut reservations) = (false, false);
    for (number, held) in held(tx, claims, numbers).await? {
        let claim = &claims[number];
        let held = match held {
            Ok(held) => held,
            Err(error) => {
                answers.push((number, Err(error)));
                continue;
            }
        };
        let ms_now = ms(claim.now);
        if !claim.on_behalf && held.last_claim.is_none_or(|last| last.abs_diff(ms_now) >= LIVENESS) {
            asked.push((claim.node.as_str(), ms_now));
        }
        if held.repeated {
            repeated.push(number);
        } else if held.on_hold {
            // Whoever asks may have looked at the node before it was cordoned.
            answers.push((number, Ok(Vec::new())));
        } else {
            if held.next_due.is_some_and(|due| due <= claim.now) {
                due = due.max(Some(claim.now));
            }
            terms |= held.terms;
            reservations |= held.reservations;
            claimants
                .push((number, Claimant { claim, room: held.room, want: claim.max, claimed: Vec::new() }));
        }
    }
    if !asked.is_empty() {
        let sql = "
            WITH e AS MATERIALIZED (
                SELECT value->>0 AS node, CAST(value->>1 AS BIGINT) AS at FROM json_each($1))
            UPDATE node_liveness SET last_claim_at = e.at, last_seen_at = e.at FROM e WHERE name = e.node";
        tx.conn.execute(sql, args![json(&asked)]).await?;
    }
    for number in repeated {
        answers.push((number, Ok(claims[number].repeat(tx).await?)));
    }
    if let Some(now) = due {
        promote(tx, now).await?;
    }
    // Those that want the same are served together.
    let alone = terms || reservations;
    let mut groups: Vec<Vec<(usize, Claimant<'_>)>> = Vec::new();
    for claimant in claimants {
        match groups.iter_mut().find(|group| !alone && group[0].1.claim.wants_what(claimant.1.claim)) {
            Some(group) => group.push(claimant),
            None => groups.push(vec![claimant]),
        }
    }
    for group in groups {
        let (numbers, mut claimants): (Vec<usize>, Vec<Claimant<'_>>) = group.into_iter().unzip();
        serve(tx, &mut claimants, terms, reservations).await?;
        for (number, claimed) in numbers.into_iter().zip(assigned(tx, &claimants).await?) {
            answers.push((number, Ok(claimed)));
        }
    }
    Ok(answers)
}

/// Checks the nodes and finds out what they hold.
async fn held(
    tx: &mut Tx,
    claims: &[Claim],
    numbers: &[usize],
) -> Result<Vec<(usize, Result<Held, Error>)>, Error> {
    let asked: Vec<(usize, &str, &str)> = numbers
        .iter()
        .map(|number| (*number, claims[*number].node.as_str(), claims[*number].request_id.as_str()))
        .collect();
    let mut found = HashMap::with_capacity(numbers.len());
    for row in tx.conn.rows(dialect::HELD, args![json(&asked)]).await? {
        let mut cells = row.cells("nodes");
        let number: usize = cells.number("number")?;
        let boot_id = cells.opt_text("boot_id")?;
        let last_claim = cells.opt_int("last_claim_at")?;
        let repeated = cells.int("repeated")? > 0;
        let busy: u32 = cells.number("busy")?;
        let used = Reserve {
            cpu_millis: cells.number("cpu_millis")?,
            memory_bytes: cells.number("memory_bytes")?,
            gpus: cells.number("gpus")?,
        };
        let on_hold = cells.flag("on_hold")?;
        let next_due = cells.opt_time("next_due")?;
        let terms = cells.flag("terms")?;
        let reservations = cells.flag("reservations")?;
        let room = claims[number].room(busy, &used);
        found.insert(
            number,
            (boot_id, Held { room, repeated, on_hold, last_claim, next_due, terms, reservations }),
        );
    }
    let of = |number: &usize| {
        let claim = &claims[*number];
        let held = match found.remove(number) {
            Some((Some(boot_id), held)) if boot_id == claim.boot_id => Ok(held),
            Some((Some(_), _)) => Err(Error::OtherBoot { node: claim.node.clone() }),
            Some((None, _)) | None => {
                Err(Error::NotFound { object: "registered node", key: claim.node.clone() })
            }
        };
        (*number, held)
    };
    Ok(numbers.iter().map(of).collect())
}

/// Makes jobs ready whose time has come.
async fn promote(tx: &mut Tx, now: Timestamp) -> Result<(), Error> {
    let sql = "
        UPDATE jobs SET ready_rank = ((1000 - priority) << 40) + place, due_at = NULL
        WHERE id IN (
            SELECT id FROM jobs WHERE due_at IS NOT NULL AND due_at <= $1 ORDER BY due_at LIMIT $2)";
    tx.conn.execute(sql, args![ms(now), PROMOTIONS]).await.map(drop)
}

/// Gives jobs to those who want the same; to a single one where there are terms or reservations.
async fn serve(
    tx: &mut Tx,
    claimants: &mut [Claimant<'_>],
    terms_are_set: bool,
    reservations: bool,
) -> Result<(), Error> {
    let first = claimants[0].claim;
    let mut terms = if terms_are_set { Terms::load(tx).await? } else { Terms::default() };
    let kept = if reservations { Kept::load(tx, &first.node).await? } else { None };
    let mut passed_over = HashSet::new();
    for _ in 0..ROUNDS {
        // Claimed in an earlier round, or not to be claimed here as things are, it needs nothing.
        let kept = kept
            .clone()
            .filter(|kept| first.could_claim(kept, &terms) && !claimants[0].claimed.contains(&kept.id));
        let seats =
            claimants.iter().map(|claimant| Seat { room: claimant.room, want: claimant.want }).collect();
        let mut choice =
            Choice { terms: &mut terms, seats, turn: 0, chosen: Vec::new(), passed_over: &passed_over, kept };
        first.choose(tx, &mut choice).await?;
        let chosen = choice.chosen;
        if chosen.is_empty() {
            break;
        }
        let got = assign(tx, claimants, &chosen).await?;
        for Chosen { id, reserve, seat } in &chosen {
            if got.contains(id) {
                let claimant = &mut claimants[*seat];
                claimant.room.take(reserve);
                claimant.want -= 1;
                claimant.claimed.push(*id);
            } else {
                passed_over.insert(*id);
            }
        }
        if got.len() == chosen.len() {
            break;
        }
        if terms_are_set {
            // Those that could not be had have taken a place in their queues.
            terms = Terms::load(tx).await?;
        }
    }
    if reservations && !claimants[0].claimed.is_empty() {
        kept::give_back(tx, &claimants[0].claimed, &first.node).await?;
    }
    Ok(())
}

/// Makes the chosen jobs the nodes'; yields those that could be had.
async fn assign(tx: &mut Tx, claimants: &[Claimant<'_>], chosen: &[Chosen]) -> Result<HashSet<i64>, Error> {
    let version = tx.draw_version();
    let above = tx.restored.map_or(0, |restored| restored.number);
    let nodes: Vec<(i64, &str)> =
        chosen.iter().map(|chosen| (chosen.id, claimants[chosen.seat].claim.node.as_str())).collect();
    let mut got = HashSet::with_capacity(chosen.len());
    for row in tx.conn.rows(dialect::CLAIM, args![json(&nodes), version, above]).await? {
        got.insert(row.cells("jobs").int("id")?);
    }
    if got.is_empty() {
        return Ok(got);
    }
    // Who claims is taken apart once, not for every job.
    let sql = "
        WITH c AS MATERIALIZED (SELECT value, CAST(value->>6 AS BIGINT) AS seat FROM json_each($2))
        INSERT INTO attempts (job_id, epoch, number, node, phase, claimed_at, lease_until, received, offline,
            cpu_millis, memory_bytes, gpus, waiting, request_id)
        SELECT j.id, j.epoch, j.attempts, c.value->>0, 'Claimed', CAST(c.value->>1 AS BIGINT),
            CAST(CASE coalesce(j.offline, c.value->>4) WHEN 'Continue' THEN c.value->>3 ELSE c.value->>2 END AS BIGINT),
            0, coalesce(j.offline, c.value->>4), j.cpu_millis, j.memory_bytes, j.gpus, 0, c.value->>5
        FROM json_each($1) AS e JOIN jobs AS j ON j.id = CAST(e.value->>0 AS BIGINT)
        JOIN c ON c.seat = CAST(e.value->>1 AS BIGINT)";
    let of_whom: Vec<(i64, usize)> = chosen
        .iter()
        .filter(|chosen| got.contains(&chosen.id))
        .map(|chosen| (chosen.id, chosen.seat))
        .collect();
    let whose: Vec<_> = claimants
        .iter()
        .enumerate()
        .map(|(seat, Claimant { claim, .. })| {
            let stop = after(claim.now, claim.lease);
            let go_on = after(claim.now, claim.lease_continue);
            (&claim.node, ms(claim.now), stop, go_on, word(claim.default), &claim.request_id, seat)
        })
        .collect();
    tx.conn.execute(sql, args![json(&of_whom), json(&whose)]).await?;
    Ok(got)
}

/// What each of those who claim has got, in order.
async fn assigned(tx: &mut Tx, claimants: &[Claimant<'_>]) -> Result<Vec<Vec<ClaimedJob>>, Error> {
    let ids: Vec<i64> = claimants.iter().flat_map(|claimant| claimant.claimed.iter().copied()).collect();
    let mut jobs: HashMap<i64, job_rows::Stored> =
        job_rows::by_ids(tx, &ids).await?.into_iter().map(|job| (job.id, job)).collect();
    let mut answers = Vec::with_capacity(claimants.len());
    for Claimant { claim, claimed, .. } in claimants {
        let jobs = claimed.iter().filter_map(|id| jobs.remove(id));
        answers.push(jobs.map(|job| claim.claimed(tx, job)).collect());
    }
    Ok(answers)
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
            classes: classes.into(),
            queues: Arc::new(queues.iter().cloned().collect()),
            slots,
            capacity,
            lease,
            lease_continue,
            default: node_offline_default,
            on_behalf,
        }
    }

    /// Whether a job that is one for this claim's node is one for the other's too, but for the room that they have.
    fn wants_what(&self, other: &Self) -> bool {
        self.classes == other.classes && self.queues == other.queues
    }

    /// What the node has free.
    fn room(&self, busy: u32, used: &Reserve) -> Room {
        Room {
            slots: self.slots.saturating_sub(busy),
            free: Reserve {
                cpu_millis: self.capacity.cpu_millis.saturating_sub(used.cpu_millis),
                memory_bytes: self.capacity.memory_bytes.saturating_sub(used.memory_bytes),
                gpus: self.capacity.gpus.saturating_sub(used.gpus),
            },
        }
    }

    /// Whether the node could claim the job that room is kept for, if it held nothing.
    fn could_claim(&self, kept: &Kept, terms: &Terms) -> bool {
        let all = Room { slots: self.slots, free: self.capacity };
        all.fits(&kept.reserve)
            && terms.permit(&kept.queue)
            && (self.queues.is_empty() || self.queues.contains(&kept.queue))
            && self.classes.binary_search(&kept.class).is_ok()
    }

    /// Renews and yields what the same request was given before. The jobs get a new version: whoever was given them before cannot give
    /// back any more what may be begun by this answer.
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
        let version = tx.draw_version();
        let sql = "
            UPDATE jobs SET resource_version = $2
            WHERE id IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";
        tx.conn.execute(sql, args![json(&ids), version]).await?;
        let jobs = job_rows::by_ids(tx, &ids).await?;
        let again = |job| ClaimedJob { repeated: true, ..self.claimed(tx, job) };
        Ok(jobs.into_iter().map(again).collect())
    }

    /// What the node is told of a job that is now its own.
    fn claimed(&self, tx: &mut Tx, job: job_rows::Stored) -> ClaimedJob {
        // Its node will soon report about it.
        job_rows::remember(tx, &job);
        let job = job.row;
        tx.changed(Change::Job { uid: job.uid.clone() });
        let offline = job.spec.offline.unwrap_or(self.default);
        let lease = match offline {
            OfflinePolicy::Stop => self.lease,
            OfflinePolicy::Continue => self.lease_continue,
        };
        ClaimedJob { epoch: job.epoch, number: job.attempts, lease, offline, repeated: false, job }
    }
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
