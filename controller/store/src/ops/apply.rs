//! Reports: records in, and the transitions that were decided on them.
//!
//! # Guarantees
//! - A record is stored once, by (job, epoch, sequence), in whatever order it comes; only the first of a kind counts.
//! - A record of a fenced attempt (ended without its terminal record) is stored as superseded. It changes no job.
//! - A transition happens only on the version that it was decided on, in the epoch that it is about, and never to a job
//!   that has ended. It brings the attempt with it: a job is held exactly while its attempt is live.
//! - `logs_complete` is counted, not guessed: it becomes true when every sequence from 1 to the terminal record's is
//!   there, also when the last of them comes long after the job has ended.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value as Json;
use windlass_crds::JobPhase;
use windlass_crds::protocol::Outcome;

use super::{artifacts, events, job_rows};
use crate::engine::dialect::{Batch, Sql, packed};
use crate::engine::value::{Value, args, clean, clean_opt, int, json, last_ms, later, ms, truncated, word};
use crate::engine::writer::{Answers, BoxFuture, Merge, Tx};
use crate::{
    Applied, AttemptChange, AttemptPhase, Change, Error, EventLevel, JobChange, JobRow, LateOutcome,
    LateSteps, MAX_SEQUENCE, NewEvent, NewRecord, NodeChange, RecordKind, RecordStore, Store, Transition,
    TransitionOutcome,
};

impl Store {
    /// Stores the records that `node` reports and carries out the transitions that were decided on them, all in one
    /// transaction.
    ///
    /// Records are stored also where a transition turns out stale: decide again on the job as it is, also when the
    /// record then is a duplicate. An accepted record of kind [`RecordKind::Event`] becomes an event of the job. The
    /// object of a record that is not stored (duplicate, rejected) stays the caller's to remove.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a transition whose attempt is live where its job is not held, or the reverse; then nothing
    /// is stored.
    pub async fn apply(
        &self,
        now: Timestamp,
        node: &str,
        records: Vec<NewRecord>,
        transitions: Vec<Transition>,
    ) -> Result<Applied, Error> {
        transitions.iter().try_for_each(check)?;
        if records.is_empty() && transitions.is_empty() {
            return Ok(Applied::default());
        }
        self.write_with_others(Report { now, node: node.to_owned(), records, transitions }).await
    }

    /// [`Store::apply`] without records, for decisions that are made on time or on a person's word.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub async fn apply_transitions(
        &self,
        now: Timestamp,
        transitions: Vec<Transition>,
    ) -> Result<Vec<TransitionOutcome>, Error> {
        transitions.iter().try_for_each(check)?;
        if transitions.is_empty() {
            return Ok(Vec::new());
        }
        self.write("apply_transitions", move |tx| {
            Box::pin(async move {
                let transitions: Vec<&Transition> = transitions.iter().collect();
                Ok(apply(tx, now, &[], &transitions).await?.transitions)
            })
        })
        .await
    }

    /// Completes the picture of jobs that have ended, at most one [`LateSteps`] per job: nothing but what it names
    /// changes. One outcome each, in order.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn complete_pictures(&self, pictures: Vec<LateSteps>) -> Result<Vec<LateOutcome>, Error> {
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        self.write("complete_pictures", move |tx| {
            Box::pin(async move { complete_pictures(tx, &pictures).await })
        })
        .await
    }
}

/// What one node reports.
#[derive(Clone)]
struct Report {
    now: Timestamp,
    node: String,
    records: Vec<NewRecord>,
    transitions: Vec<Transition>,
}

impl Report {
    fn jobs(&self) -> impl Iterator<Item = &str> {
        let told = self.records.iter().map(|record| record.attempt.job.as_str());
        told.chain(self.transitions.iter().map(|transition| transition.job.as_str()))
    }
}

/// A record and the node that tells it.
type Told<'r> = (&'r str, &'r NewRecord);

impl Merge for Report {
    type Answer = Applied;

    const NAME: &'static str = "apply";

    fn weight(&self) -> usize {
        self.records.len().max(self.transitions.len())
    }

    fn run<'t>(tx: &'t mut Tx, reports: Vec<Self>) -> BoxFuture<'t, Result<Answers<Self::Answer>, Error>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(reports.len());
            let mut rest = reports.as_slice();
            while !rest.is_empty() {
                let (disjoint, others) = rest.split_at(of_different_jobs(rest));
                answers.extend(apply_all(tx, disjoint).await?.into_iter().map(Ok));
                rest = others;
            }
            Ok(answers)
        })
    }
}

/// How many of the reports, from the first on, are about different jobs: what is decided on one hangs on no other.
fn of_different_jobs(reports: &[Report]) -> usize {
    let mut seen = HashSet::new();
    let mut count = 0;
    for report in reports {
        if report.jobs().any(|job| seen.contains(job)) {
            break;
        }
        seen.extend(report.jobs());
        count += 1;
    }
    count
}

/// Applies reports about different jobs.
async fn apply_all(tx: &mut Tx, reports: &[Report]) -> Result<Vec<Applied>, Error> {
    let Some(now) = reports.iter().map(|report| report.now).max() else { return Ok(Vec::new()) };
    let records: Vec<Told<'_>> = reports
        .iter()
        .flat_map(|report| report.records.iter().map(|record| (report.node.as_str(), record)))
        .collect();
    let transitions: Vec<&Transition> = reports.iter().flat_map(|report| &report.transitions).collect();
    let Applied { records, transitions } = apply(tx, now, &records, &transitions).await?;
    let (mut records, mut transitions) = (records.into_iter(), transitions.into_iter());
    let of = |report: &Report| Applied {
        records: records.by_ref().take(report.records.len()).collect(),
        transitions: transitions.by_ref().take(report.transitions.len()).collect(),
    };
    Ok(reports.iter().map(of).collect())
}

/// Completes the picture of ended jobs.
async fn complete_pictures(tx: &mut Tx, pictures: &[LateSteps]) -> Result<Vec<LateOutcome>, Error> {
    let ids: Vec<_> = pictures.iter().map(|late| (late.job.as_str(), int(late.epoch))).collect();
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT value->>0 AS job, CAST(value->>1 AS BIGINT) AS epoch FROM json_each($1))
        SELECT j.uid FROM e JOIN jobs AS j ON j.uid = e.job
        JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch
        WHERE a.ended_at IS NOT NULL AND a.last_sequence IS NULL";
    let mut fenced = HashSet::new();
    for row in tx.conn.rows(sql, args![json(&ids)]).await? {
        fenced.insert(row.cells("jobs").text("uid")?);
    }
    let rows: Vec<_> = pictures
        .iter()
        .filter(|late| !fenced.contains(&late.job))
        .map(|late| {
            let LateSteps { job, epoch, expect_version, steps, unenforced, started_at } = late;
            (job.as_str(), int(*epoch), *expect_version, json(steps), json(unenforced), started_at.map(ms))
        })
        .collect();
    let version = tx.draw_version();
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT value->>0 AS job, CAST(value->>1 AS BIGINT) AS epoch, CAST(value->>2 AS BIGINT) AS expect,
                value->>3 AS steps, value->>4 AS unenforced, CAST(value->>5 AS BIGINT) AS started_at
            FROM json_each($1))
        UPDATE jobs SET steps = e.steps, unenforced = e.unenforced,
            started_at = coalesce(jobs.started_at, e.started_at), resource_version = $2
        FROM e
        WHERE jobs.uid = e.job AND jobs.epoch = e.epoch AND jobs.resource_version = e.expect
            AND jobs.finished_at IS NOT NULL
        RETURNING uid";
    let mut done = HashSet::with_capacity(pictures.len());
    for row in tx.conn.rows(sql, args![json(&rows), version]).await? {
        let uid = row.cells("jobs").text("uid")?;
        tx.caches.jobs.remove(&uid);
        tx.changed(Change::Job { uid: uid.clone() });
        done.insert(uid);
    }
    let started: Vec<_> = pictures
        .iter()
        .filter(|late| done.contains(&late.job))
        .filter_map(|late| Some((late.job.as_str(), int(late.epoch), ms(late.started_at?))))
        .collect();
    if !started.is_empty() {
        let sql = "
            WITH e AS MATERIALIZED (
                SELECT value->>0 AS job, CAST(value->>1 AS BIGINT) AS epoch, CAST(value->>2 AS BIGINT) AS started_at
                FROM json_each($1))
            UPDATE attempts SET started_at = e.started_at
            FROM e JOIN jobs AS j ON j.uid = e.job
            WHERE attempts.job_id = j.id AND attempts.epoch = e.epoch AND attempts.started_at IS NULL";
        tx.conn.execute(sql, args![json(&started)]).await?;
    }
    let outcomes = pictures.iter().map(|late| match &late.job {
        job if fenced.contains(job) => LateOutcome::Fenced,
        job if done.contains(job) => LateOutcome::Done,
        _ => LateOutcome::Stale,
    });
    Ok(outcomes.collect())
}

fn check(transition: &Transition) -> Result<(), Error> {
    let set = &transition.set;
    match &set.attempt {
        Some(attempt) if attempt.phase.is_live() != set.phase.is_held() => Err(Error::Invalid {
            operation: "apply",
            problem: format!(
                "phase {} and attempt phase {} for job `{}`",
                set.phase, attempt.phase, transition.job
            ),
        }),
        Some(_) | None => Ok(()),
    }
}

/// What is known of an attempt that is reported about or to be changed.
struct Reported {
    job_id: i64,
    node: String,
    ended: bool,
    last_sequence: Option<u64>,
    /// How many records were there before this batch.
    received: u64,
    /// The highest sequence that was there before this batch.
    highest: Option<u64>,
    lease_until: Timestamp,
}

impl Reported {
    /// Whether it was ended by somebody else than its node.
    fn is_fenced(&self) -> bool {
        self.ended && self.last_sequence.is_none()
    }
}

/// The attempts of a batch, by job and epoch.
type Attempts<'r> = HashMap<(&'r str, u64), Reported>;

/// The sequences that a batch has brought, by job and epoch.
type Arrived<'r> = HashMap<(&'r str, u64), Vec<u64>>;

async fn apply(
    tx: &mut Tx,
    now: Timestamp,
    records: &[Told<'_>],
    transitions: &[&Transition],
) -> Result<Applied, Error> {
    let attempts = attempts(tx, records, transitions).await?;
    let (outcomes, arrived) = store(tx, now, records, &attempts).await?;
    let transitions = transit(tx, now, transitions, &attempts, &arrived).await?;
    Ok(Applied { records: outcomes, transitions })
}

const KNOWN_RECORDS: Sql = packed!(
    "e.position",
    "(SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
        CAST(value->>2 AS BIGINT) AS sequence, CAST(value->>3 AS BIGINT) AS position FROM json_each($1)) AS e
    JOIN records AS r ON r.job_id = e.job_id AND r.epoch = e.epoch AND r.sequence = e.sequence"
);

static INSERT_RECORDS: Batch = Batch {
    columns: &[
        "job_id",
        "epoch",
        "sequence",
        "kind",
        "at",
        "superseded",
        "step",
        "stream",
        "position",
        "object_key",
        "object_len",
        "json",
        "bytes",
    ],
    statement: "
        INSERT INTO records (job_id, epoch, sequence, kind, at, superseded, step, stream, position,
            object_key, object_len, json, bytes, received_at)
        SELECT e.job_id, e.epoch, e.sequence, e.kind, e.at, e.superseded, e.step, e.stream, e.position,
            e.object_key, e.object_len, e.json, e.bytes, $1
        FROM e WHERE e.job_id IS NOT NULL
        ON CONFLICT (job_id, epoch, sequence) DO NOTHING",
};

/// Stores the records that are new.
async fn store<'r>(
    tx: &mut Tx,
    now: Timestamp,
    records: &[Told<'r>],
    attempts: &Attempts<'r>,
) -> Result<(Vec<Outcome>, Arrived<'r>), Error> {
    let mut outcomes = vec![Outcome::Rejected; records.len()];
    let mut seen = HashSet::with_capacity(records.len());
    let mut candidates = Vec::with_capacity(records.len());
    let mut doubtful = Vec::new();
    for (position, (node, record)) in records.iter().enumerate() {
        let id = (record.attempt.job.as_str(), record.attempt.epoch);
        let Some(attempt) = attempts.get(&id).filter(|attempt| admits(attempt, node, record)) else {
            continue;
        };
        outcomes[position] = Outcome::Duplicate;
        if seen.insert((id, record.sequence)) {
            candidates.push(position);
            // A record above all that are there is new.
            if attempt.highest.is_some_and(|highest| record.sequence <= highest) {
                doubtful.push((attempt.job_id, int(record.attempt.epoch), int(record.sequence), position));
            }
        }
    }
    let mut known = HashSet::new();
    if !doubtful.is_empty() {
        for row in tx.conn.packed(KNOWN_RECORDS, args![json(&doubtful)]).await? {
            known.insert(row.cells("records").number::<usize>("position")?);
        }
    }
    let mut new = 0;
    let mut rows = Vec::with_capacity(candidates.len() * INSERT_RECORDS.columns.len());
    let mut arrived = Arrived::new();
    let (mut told, mut left) = (Vec::new(), Vec::new());
    for position in candidates {
        let (node, record) = records[position];
        let id = (record.attempt.job.as_str(), record.attempt.epoch);
        let Some(attempt) = attempts.get(&id).filter(|_| !known.contains(&position)) else { continue };
        rows.extend(row(record, attempt));
        new += 1;
        arrived.entry(id).or_default().push(record.sequence);
        outcomes[position] = if attempt.is_fenced() { Outcome::Superseded } else { Outcome::Accepted };
        if record.kind == RecordKind::Event && !attempt.is_fenced() {
            told.push(event(node, record));
        }
        if record.kind == RecordKind::Artifacts {
            left.extend(artifacts::told(attempt.job_id, attempt.is_fenced(), record)?);
        }
    }
    if rows.is_empty() {
        return Ok((outcomes, arrived));
    }
    if tx.conn.execute_batch(&INSERT_RECORDS, rows, args![ms(now)]).await? != new {
        // They were not there a statement ago in this very transaction.
        return Err(Error::Unavailable { operation: "apply", source: None });
    }
    events::append(tx, now, told).await?;
    artifacts::note(tx, now, &left).await?;
    let uids: HashSet<&str> = arrived.keys().map(|(uid, _)| *uid).collect();
    for uid in uids {
        tx.changed(Change::Records { uid: uid.to_owned() });
    }
    Ok((outcomes, arrived))
}

fn admits(attempt: &Reported, node: &str, record: &NewRecord) -> bool {
    attempt.node == node && (1..=attempt.last_sequence.unwrap_or(MAX_SEQUENCE)).contains(&record.sequence)
}

/// The values of a record, in the order of [`INSERT_RECORDS`].
fn row(record: &NewRecord, attempt: &Reported) -> Vec<Value> {
    let (mut key, mut len, mut document, mut bytes) = (None, None, None, None);
    match &record.body {
        RecordStore::Inline(body) => bytes = Some(body.clone()),
        RecordStore::Object { key: object, len: length } => {
            key = Some(object.clone());
            len = Some(int(*length));
        }
        RecordStore::Json(value) => document = Some(json(value)),
        RecordStore::None => {}
    }
    args![
        attempt.job_id,
        int(record.attempt.epoch),
        int(record.sequence),
        word(record.kind),
        ms(record.at),
        attempt.is_fenced(),
        record.step.map(i64::from),
        record.stream.map(word),
        record.offset.map(int),
        key,
        len,
        document,
        bytes
    ]
}

fn event(node: &str, record: &NewRecord) -> NewEvent {
    let told = match &record.body {
        RecordStore::Json(told) => Some(told),
        RecordStore::Inline(_) | RecordStore::Object { .. } | RecordStore::None => None,
    };
    let text = |field: &str| told.and_then(|told| told.get(field)).and_then(Json::as_str).map(clean);
    NewEvent {
        job: Some(record.attempt.job.clone()),
        node: Some(node.to_owned()),
        level: text("level").and_then(|level| level.parse().ok()).unwrap_or(EventLevel::Info),
        source: "node".to_owned(),
        reason: text("reason").unwrap_or_else(|| "Unknown".to_owned()),
        message: text("message").unwrap_or_default(),
        data: told.and_then(|told| told.get("data")).filter(|data| !data.is_null()).cloned(),
    }
}

const ATTEMPTS: Sql = packed!(
    "e.position, a.job_id, a.node, CASE WHEN a.ended_at IS NULL THEN 0 ELSE 1 END, a.last_sequence, a.received, \
     (SELECT max(r.sequence) FROM records AS r WHERE r.job_id = a.job_id AND r.epoch = a.epoch), \
     a.lease_until",
    "(SELECT CAST(value->>0 AS BIGINT) AS position, value->>1 AS uid, CAST(value->>2 AS BIGINT) AS epoch
        FROM json_each($1)) AS e
    JOIN jobs AS j ON j.uid = e.uid JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch"
);

/// Looks up every attempt that the batch speaks of.
async fn attempts<'r>(
    tx: &mut Tx,
    records: &[Told<'r>],
    transitions: &[&'r Transition],
) -> Result<Attempts<'r>, Error> {
    let mut ids: Vec<(&str, u64)> =
        records.iter().map(|(_, record)| (record.attempt.job.as_str(), record.attempt.epoch)).collect();
    ids.extend(transitions.iter().map(|transition| (transition.job.as_str(), transition.epoch)));
    ids.sort_unstable();
    ids.dedup();
    let rows: Vec<(usize, &str, i64)> =
        ids.iter().enumerate().map(|(position, (uid, epoch))| (position, *uid, int(*epoch))).collect();
    let mut found = HashMap::with_capacity(ids.len());
    for row in tx.conn.packed(ATTEMPTS, args![json(&rows)]).await? {
        let mut cells = row.cells("attempts");
        let position: usize = cells.number("position")?;
        let attempt = Reported {
            job_id: cells.int("job_id")?,
            node: cells.text("node")?,
            ended: cells.flag("ended")?,
            last_sequence: cells.opt_number("last_sequence")?,
            received: cells.number("received")?,
            highest: cells.opt_number("highest")?,
            lease_until: cells.time("lease_until")?,
        };
        if let Some(id) = ids.get(position) {
            found.insert(*id, attempt);
        }
    }
    Ok(found)
}

/// The sequence of the terminal record, where a transition brings it.
fn last_sequence(transition: &Transition) -> Option<u64> {
    transition.set.attempt.as_ref().and_then(|attempt| attempt.last_sequence)
}

/// How many records of an attempt there are, this batch included; up to `last` where the transition brings it.
async fn received(
    tx: &mut Tx,
    attempt: &Reported,
    epoch: u64,
    arrived: &[u64],
    last: Option<u64>,
) -> Result<u64, Error> {
    let Some(last) = last else { return Ok(attempt.received + arrived.len() as u64) };
    if attempt.highest.is_none_or(|highest| highest <= last) {
        let counted = arrived.iter().filter(|sequence| **sequence <= last).count();
        return Ok(attempt.received + counted as u64);
    }
    // The node has broken the protocol: there are records beyond the last one.
    let sql = "
        SELECT count(*) AS received FROM records
        WHERE job_id = $1 AND epoch = $2 AND sequence BETWEEN 1 AND $3";
    let row = tx.conn.row(sql, args![attempt.job_id, int(epoch), int(last)]).await?;
    row.map_or(Ok(0), |row| row.cells("records").number("received"))
}

/// Completes ended jobs whose last record has come after their end.
async fn complete_late(tx: &mut Tx, jobs: &[(i64, i64)]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let version = tx.draw_version();
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch FROM json_each($1))
        UPDATE jobs SET logs_complete = 1, resource_version = $2
        FROM e WHERE jobs.id = e.job_id AND jobs.epoch = e.epoch AND jobs.finished_at IS NOT NULL
            AND jobs.logs_complete = 0
        RETURNING uid";
    for row in tx.conn.rows(sql, args![json(jobs), version]).await? {
        let uid = row.cells("jobs").text("uid")?;
        tx.changed(Change::Job { uid });
    }
    Ok(())
}

// Conditions on what has not ended are written so that they match no partial index: each row is found by its key. Going
// through all that is live, and past all that was, looks as cheap to PostgreSQL while there is little of it.
static UPDATE_JOBS: Batch = Batch {
    columns: &[
        "uid", "epoch", "expect", "phase", "reason", "message", "exit_code", "steps", "unenforced", "started_at",
        "finished_at", "not_before", "lost", "failed", "clear_node", "complete",
    ],
    statement: "
        UPDATE jobs SET
            phase = e.phase, reason = e.reason, message = e.message, exit_code = e.exit_code,
            steps = coalesce(e.steps, jobs.steps), unenforced = coalesce(e.unenforced, jobs.unenforced),
            started_at = e.started_at, finished_at = e.finished_at, not_before = e.not_before,
            lost_attempts = e.lost, failures = e.failed,
            node = CASE e.clear_node WHEN 1 THEN NULL ELSE jobs.node END,
            queued_at = CASE WHEN e.phase = 'Queued' AND jobs.phase <> 'Queued' THEN $1 ELSE jobs.queued_at END,
            ready_rank = CASE
                WHEN e.phase = 'Queued' AND jobs.suspend = 0 AND (e.not_before IS NULL OR e.not_before <= $1)
                THEN ((1000 - jobs.priority) << 40) + jobs.place END,
            due_at = CASE WHEN e.phase = 'Queued' AND jobs.suspend = 0 AND e.not_before > $1 THEN e.not_before END,
            ttl_at = CASE WHEN jobs.ttl_ms > $3 - e.finished_at THEN $3 ELSE e.finished_at + jobs.ttl_ms END,
            logs_complete = e.complete, resource_version = $2
        FROM e
        WHERE jobs.uid = e.uid AND jobs.epoch = e.epoch AND jobs.resource_version = e.expect
            AND coalesce(jobs.finished_at, -1) = -1
            AND (e.phase NOT IN ('Claimed', 'PendingApproval') OR jobs.phase = e.phase)
            AND (e.phase NOT IN ('Running', 'Waiting') OR jobs.phase IN ('Claimed', 'Running', 'Waiting'))",
};

/// The jobs of a batch that this very batch has changed: nobody else has drawn that version.
const CHANGED_JOBS: Sql = packed!(
    "j.uid, j.id",
    "json_each($1) AS e JOIN jobs AS j ON j.uid = e.value->>0 WHERE j.resource_version = $2"
);

static UPDATE_ATTEMPTS: Batch = Batch {
    columns: &[
        "job_id", "epoch", "phase", "reason", "message", "exit_code", "started_at", "ended_at", "last", "waiting",
        "received",
    ],
    statement: "
        UPDATE attempts SET
            phase = e.phase, reason = e.reason, message = e.message, exit_code = e.exit_code,
            started_at = coalesce(e.started_at, attempts.started_at), ended_at = e.ended_at,
            last_sequence = coalesce(e.last, attempts.last_sequence), waiting = e.waiting, received = e.received
        FROM e
        WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch AND coalesce(attempts.ended_at, -1) = -1",
};

const COUNT_RECORDS: &str = "
    WITH e AS MATERIALIZED (
        SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
            CAST(value->>2 AS BIGINT) AS received
        FROM json_each($1))
    UPDATE attempts SET received = e.received
    FROM e WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch";

const LIMITED_QUEUES: &str = "SELECT name FROM queues WHERE concurrency IS NOT NULL LIMIT 1";

/// Whether an attempt holds less than before, so that there is room for another one.
fn frees_room(transition: &Transition) -> bool {
    match transition.set.phase {
        JobPhase::PendingApproval | JobPhase::Claimed | JobPhase::Running => false,
        JobPhase::Queued
        | JobPhase::Waiting
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::TimedOut => true,
    }
}

/// Carries out the transitions and counts what has arrived.
async fn transit(
    tx: &mut Tx,
    now: Timestamp,
    transitions: &[&Transition],
    attempts: &Attempts<'_>,
    arrived: &Arrived<'_>,
) -> Result<Vec<TransitionOutcome>, Error> {
    // A second transition of the same job was decided on a version that the first one ends.
    let mut first: HashMap<&str, &Transition> = HashMap::with_capacity(transitions.len());
    let mut rows = Vec::with_capacity(transitions.len() * UPDATE_JOBS.columns.len());
    let mut counts: HashMap<(&str, u64), u64> = HashMap::with_capacity(transitions.len());
    for transition in transitions {
        if first.contains_key(transition.job.as_str()) {
            continue;
        }
        first.insert(&transition.job, transition);
        let id = (transition.job.as_str(), transition.epoch);
        let last = last_sequence(transition);
        let not_before = not_before(tx, now, transition, attempts.get(&id));
        let count = match attempts.get(&id) {
            Some(attempt) => {
                let sequences = arrived.get(&id).map_or(&[][..], Vec::as_slice);
                received(tx, attempt, id.1, sequences, last).await?
            }
            None => 0,
        };
        counts.insert(id, count);
        rows.extend(job_change(now, transition, not_before, last == Some(count)));
    }
    let version = tx.draw_version();
    let changed = change_jobs(tx, now, version, rows, &first, attempts).await?;
    let (mut ended, mut freed) = (0, false);
    let mut ends = Vec::with_capacity(changed.len() * UPDATE_ATTEMPTS.columns.len());
    for (uid, transition) in &first {
        if !changed.contains_key(*uid) {
            continue;
        }
        let id = (*uid, transition.epoch);
        if let Some(attempt) = attempts.get(&id).filter(|attempt| !attempt.ended) {
            let count = counts.get(&id).copied().unwrap_or(attempt.received);
            ends.extend(attempt_change(now, attempt.job_id, count, transition));
            ended += 1;
        }
        if transition.set.phase == JobPhase::Queued {
            tx.changed(Change::Queued);
        }
        if let Some(attempt) = attempts.get(&id).filter(|_| frees_room(transition)) {
            tx.changed(Change::Freed { node: attempt.node.clone() });
            freed = true;
        }
        tx.changed(Change::Job { uid: (*uid).to_owned() });
    }
    if tx.conn.execute_batch(&UPDATE_ATTEMPTS, ends, args![]).await? != ended {
        // They were live when the batch began, in this very transaction.
        return Err(Error::Unavailable { operation: "apply", source: None });
    }
    if freed && tx.conn.row(LIMITED_QUEUES, args![]).await?.is_some() {
        // Another node may have waited for the place in the queue.
        tx.changed(Change::Queued);
    }
    // What came without the end of its attempt.
    let mut counted = Vec::new();
    let mut complete = Vec::new();
    for (id, sequences) in arrived {
        let Some(attempt) = attempts.get(id) else { continue };
        if !attempt.ended && changed.contains_key(id.0) && first.get(id.0).is_some_and(|t| t.epoch == id.1) {
            continue;
        }
        let count = attempt.received + sequences.len() as u64;
        counted.push((attempt.job_id, int(id.1), count));
        if attempt.last_sequence == Some(count) {
            complete.push((attempt.job_id, int(id.1)));
        }
    }
    if !counted.is_empty() {
        tx.conn.execute(COUNT_RECORDS, args![json(&counted)]).await?;
    }
    complete_late(tx, &complete).await?;
    let mut jobs = HashMap::with_capacity(changed.len());
    let mut unknown = Vec::new();
    for (uid, id) in changed {
        let Some(transition) = first.get(uid.as_str()) else { continue };
        let known = tx.caches.jobs.remove(&uid);
        let known = known.filter(|known| known.row.resource_version == transition.expect_version);
        match known {
            Some(mut known) => {
                let epoch_id = (transition.job.as_str(), transition.epoch);
                let all_arrived =
                    last_sequence(transition).is_some_and(|last| counts.get(&epoch_id) == Some(&last));
                let lease = attempts.get(&epoch_id).map(|attempt| attempt.lease_until);
                let not_before = not_before(tx, now, transition, attempts.get(&epoch_id));
                known.row = follow(known.row, now, version, transition, all_arrived, not_before, lease);
                jobs.insert(uid, known);
            }
            None => unknown.push(id),
        }
    }
    for job in job_rows::by_ids(tx, &unknown).await? {
        jobs.insert(job.row.uid.clone(), job);
    }
    for job in jobs.values().filter(|job| job.row.phase.is_held()) {
        job_rows::remember(tx, job);
    }
    let outcomes = transitions.iter().map(|transition| match jobs.remove(&transition.job) {
        Some(job) => TransitionOutcome::Done(job.row),
        None => TransitionOutcome::Stale,
    });
    Ok(outcomes.collect())
}

/// Until when a job waits that goes back to its queue.
fn not_before(
    tx: &Tx,
    now: Timestamp,
    transition: &Transition,
    attempt: Option<&Reported>,
) -> Option<Timestamp> {
    let JobChange { phase, not_before, .. } = &transition.set;
    match (tx.restored, attempt) {
        (Some(restored), Some(attempt)) => restored.not_before(attempt.job_id, *phase, now, *not_before),
        // A job that nobody has had waits by its row.
        (Some(_) | None, _) => *not_before,
    }
}

/// What a job is after a transition that has happened: the same as [`UPDATE_JOBS`] writes.
fn follow(
    before: JobRow,
    now: Timestamp,
    version: i64,
    transition: &Transition,
    all_arrived: bool,
    not_before: Option<Timestamp>,
    lease: Option<Timestamp>,
) -> JobRow {
    let JobChange {
        phase,
        reason,
        message,
        exit_code,
        steps,
        unenforced,
        started_at,
        finished_at,
        not_before: _,
        lost_attempts,
        failures,
        attempt: _,
        node,
        logs_complete,
    } = &transition.set;
    let finished_at = phase.is_terminal().then(|| truncated(finished_at.unwrap_or(now)));
    let ttl = before.spec.ttl_after_finished;
    let mut job = before;
    if *phase == JobPhase::Queued && job.phase != JobPhase::Queued {
        job.queued_at = Some(truncated(now));
    }
    job.phase = *phase;
    job.reason = clean_opt(reason.as_ref());
    job.message = clean_opt(message.as_ref());
    job.exit_code = *exit_code;
    if let Some(steps) = steps {
        job.steps.clone_from(steps);
    }
    if let Some(unenforced) = unenforced {
        job.unenforced.clone_from(unenforced);
    }
    job.started_at = started_at.map(truncated);
    job.finished_at = finished_at;
    job.not_before = not_before.map(truncated);
    job.lost_attempts = *lost_attempts;
    job.failures = *failures;
    if *node == NodeChange::Clear {
        job.node = None;
    }
    job.ttl_at = finished_at.zip(ttl).map(|(finished_at, ttl)| later(finished_at, ttl.get()));
    job.logs_complete = logs_complete.unwrap_or(all_arrived && phase.is_terminal());
    job.lease_until = lease.filter(|_| phase.is_held());
    job.resource_version = version;
    job
}

/// Changes the jobs that are still what was decided on; yields which, and their ids.
async fn change_jobs(
    tx: &mut Tx,
    now: Timestamp,
    version: i64,
    rows: Vec<Value>,
    transitions: &HashMap<&str, &Transition>,
    attempts: &Attempts<'_>,
) -> Result<HashMap<String, i64>, Error> {
    let mut changed = HashMap::with_capacity(transitions.len());
    if rows.is_empty() {
        return Ok(changed);
    }
    let done = tx.conn.execute_batch(&UPDATE_JOBS, rows, args![ms(now), version, last_ms()]).await?;
    if done == transitions.len() as u64 {
        for (uid, transition) in transitions {
            let attempt = attempts.get(&(*uid, transition.epoch));
            changed.extend(attempt.map(|attempt| ((*uid).to_owned(), attempt.job_id)));
        }
    }
    if done == changed.len() as u64 {
        return Ok(changed);
    }
    let uids: Vec<[&str; 1]> = transitions.keys().map(|uid| [*uid]).collect();
    for row in tx.conn.packed(CHANGED_JOBS, args![json(&uids), version]).await? {
        let mut cells = row.cells("jobs");
        changed.insert(cells.text("uid")?, cells.int("id")?);
    }
    Ok(changed)
}

/// The values of a transition, in the order of [`UPDATE_JOBS`].
fn job_change(
    now: Timestamp,
    transition: &Transition,
    not_before: Option<Timestamp>,
    all_arrived: bool,
) -> Vec<Value> {
    let Transition { job, epoch, expect_version, set } = transition;
    let JobChange {
        phase,
        reason,
        message,
        exit_code,
        steps,
        unenforced,
        started_at,
        finished_at,
        not_before: _,
        lost_attempts,
        failures,
        attempt: _,
        node,
        logs_complete,
    } = set;
    args![
        job.as_str(),
        int(*epoch),
        *expect_version,
        word(*phase),
        clean_opt(reason.as_ref()),
        clean_opt(message.as_ref()),
        exit_code.map(i64::from),
        steps.as_ref().map(json),
        unenforced.as_ref().map(json),
        started_at.map(ms),
        phase.is_terminal().then(|| ms(finished_at.unwrap_or(now))),
        not_before.map(ms),
        i64::from(*lost_attempts),
        i64::from(*failures),
        *node == NodeChange::Clear,
        logs_complete.unwrap_or(all_arrived && phase.is_terminal())
    ]
}

/// The values of a change of an attempt, in the order of [`UPDATE_ATTEMPTS`].
fn attempt_change(now: Timestamp, job_id: i64, received: u64, transition: &Transition) -> Vec<Value> {
    let set = &transition.set;
    let followed = AttemptChange {
        phase: followed_phase(set.phase),
        reason: set.reason.clone(),
        message: set.message.clone(),
        exit_code: set.exit_code,
        ended_at: set.finished_at,
        last_sequence: None,
    };
    let change = set.attempt.as_ref().unwrap_or(&followed);
    args![
        job_id,
        int(transition.epoch),
        word(change.phase),
        clean_opt(change.reason.as_ref()),
        clean_opt(change.message.as_ref()),
        change.exit_code.map(i64::from),
        set.started_at.map(ms),
        (!change.phase.is_live()).then(|| ms(change.ended_at.unwrap_or(now))),
        change.last_sequence.map(int),
        set.phase == JobPhase::Waiting,
        int(received)
    ]
}

/// What becomes of the attempt where the decision does not say.
const fn followed_phase(phase: JobPhase) -> AttemptPhase {
    match phase {
        JobPhase::PendingApproval | JobPhase::Queued => AttemptPhase::Released,
        JobPhase::Claimed => AttemptPhase::Claimed,
        JobPhase::Running | JobPhase::Waiting => AttemptPhase::Running,
        JobPhase::Succeeded => AttemptPhase::Succeeded,
        JobPhase::Failed => AttemptPhase::Failed,
        JobPhase::Cancelled => AttemptPhase::Cancelled,
        JobPhase::TimedOut => AttemptPhase::TimedOut,
    }
}
