//! Reports: records in, and the transitions that were decided on them.
//!
//! # Guarantees
//! - A record is stored once, by (job, epoch, sequence), in whatever order it comes; only the first of a kind counts.
//! - A record of a fenced attempt (ended without its terminal record) is stored as superseded. It changes no job.
//! - A transition happens only on the version that it was decided on, in the epoch that it is about, and never to a job
//!   that has ended. It brings the attempt with it: a job is held exactly while its attempt is live.
//! - `logs_complete` is counted, not guessed: it becomes true when every sequence from 1 to the terminal record's is
//!   there, also when the last of them comes long after the job has ended.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value as Json;
use windlass_crds::JobPhase;
use windlass_crds::protocol::Outcome;

use super::{events, job_rows};
use crate::engine::value::{args, clean, clean_opt, int, json, last_ms, ms, word};
use crate::engine::writer::Tx;
use crate::{
    Applied, AttemptChange, AttemptPhase, Change, Error, EventLevel, JobChange, JobRow, NewEvent, NewRecord,
    NodeChange, RecordKind, RecordStore, Store, Transition, TransitionOutcome,
};

/// Sequences beyond this are nonsense; a node that writes a million records a second gets there in 285 years.
const MAX_SEQUENCE: u64 = 1 << 53;

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
        let node = node.to_owned();
        self.write("apply", move |tx| {
            Box::pin(async move {
                let records =
                    if records.is_empty() { Vec::new() } else { store(tx, now, &node, &records).await? };
                let transitions = transit(tx, now, &transitions).await?;
                Ok(Applied { records, transitions })
            })
        })
        .await
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
            Box::pin(async move { transit(tx, now, &transitions).await })
        })
        .await
    }
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

/// What is known of an attempt that is reported about.
struct Reported {
    job_id: i64,
    node: String,
    ended: bool,
    last_sequence: Option<u64>,
}

impl Reported {
    /// Whether it was ended by somebody else than its node.
    fn is_fenced(&self) -> bool {
        self.ended && self.last_sequence.is_none()
    }
}

/// A record as it is handed to the statement that inserts it. Its bytes travel apart, all in one value.
#[derive(Serialize)]
struct Inserted<'r> {
    job: i64,
    epoch: i64,
    seq: i64,
    kind: &'static str,
    at: i64,
    sup: u8,
    step: Option<u32>,
    stream: Option<&'static str>,
    pos: Option<i64>,
    key: Option<&'r str>,
    klen: Option<i64>,
    json: Option<String>,
    from: Option<usize>,
    len: Option<usize>,
}

const INSERT_RECORDS: &str = "
    WITH e AS MATERIALIZED (SELECT value AS v FROM json_each($1))
    INSERT INTO records (job_id, epoch, sequence, kind, at, received_at, superseded, step, stream, position,
        object_key, object_len, json, bytes)
    SELECT CAST(v->>'job' AS BIGINT), CAST(v->>'epoch' AS BIGINT), CAST(v->>'seq' AS BIGINT), v->>'kind',
        CAST(v->>'at' AS BIGINT), $3, CAST(v->>'sup' AS BIGINT), CAST(v->>'step' AS BIGINT), v->>'stream',
        CAST(v->>'pos' AS BIGINT), v->>'key', CAST(v->>'klen' AS BIGINT), v->>'json',
        CASE WHEN v->>'from' IS NOT NULL
            THEN substr($2, CAST(v->>'from' AS BIGINT) + 1, CAST(v->>'len' AS BIGINT)) END
    FROM e WHERE true
    ON CONFLICT (job_id, epoch, sequence) DO NOTHING
    RETURNING job_id, epoch, sequence";

async fn store(
    tx: &mut Tx,
    now: Timestamp,
    node: &str,
    records: &[NewRecord],
) -> Result<Vec<Outcome>, Error> {
    let attempts = reported(tx, records).await?;
    let mut outcomes = Vec::with_capacity(records.len());
    let mut rows = Vec::with_capacity(records.len());
    let mut bytes = Vec::new();
    let mut positions = HashMap::with_capacity(records.len());
    for (position, record) in records.iter().enumerate() {
        let id = (record.attempt.job.as_str(), record.attempt.epoch);
        let Some(attempt) = attempts.get(&id).filter(|attempt| admits(attempt, node, record)) else {
            outcomes.push(Outcome::Rejected);
            continue;
        };
        // Until the insertion says that it is new.
        outcomes.push(Outcome::Duplicate);
        let key = (attempt.job_id, int(record.attempt.epoch), int(record.sequence));
        if positions.contains_key(&key) {
            continue;
        }
        positions.insert(key, position);
        rows.push(row(record, attempt, &mut bytes));
    }
    if rows.is_empty() {
        return Ok(outcomes);
    }
    let mut arrived: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    let mut told = Vec::new();
    let mut uids = HashSet::new();
    for row in tx.conn.rows(INSERT_RECORDS, args![json(&rows), bytes, ms(now)]).await? {
        let mut cells = row.cells("records");
        let key = (cells.int("job_id")?, cells.int("epoch")?, cells.int("sequence")?);
        let Some(position) = positions.get(&key) else { continue };
        *arrived.entry((key.0, key.1)).or_insert(0) += 1;
        let record = &records[*position];
        uids.insert(record.attempt.job.as_str());
        let fenced = attempts
            .get(&(record.attempt.job.as_str(), record.attempt.epoch))
            .is_some_and(Reported::is_fenced);
        outcomes[*position] = if fenced { Outcome::Superseded } else { Outcome::Accepted };
        if record.kind == RecordKind::Event && !fenced {
            told.push(event(node, record));
        }
    }
    count(tx, &arrived).await?;
    events::append(tx, now, told).await?;
    for uid in uids {
        tx.changed(Change::Records { uid: uid.to_owned() });
    }
    Ok(outcomes)
}

fn admits(attempt: &Reported, node: &str, record: &NewRecord) -> bool {
    attempt.node == node && (1..=attempt.last_sequence.unwrap_or(MAX_SEQUENCE)).contains(&record.sequence)
}

fn row<'r>(record: &'r NewRecord, attempt: &Reported, bytes: &mut Vec<u8>) -> Inserted<'r> {
    let mut row = Inserted {
        job: attempt.job_id,
        epoch: int(record.attempt.epoch),
        seq: int(record.sequence),
        kind: word(record.kind),
        at: ms(record.at),
        sup: u8::from(attempt.is_fenced()),
        step: record.step,
        stream: record.stream.map(word),
        pos: record.offset.map(int),
        key: None,
        klen: None,
        json: None,
        from: None,
        len: None,
    };
    match &record.body {
        RecordStore::Inline(body) => {
            row.from = Some(bytes.len());
            row.len = Some(body.len());
            bytes.extend_from_slice(body);
        }
        RecordStore::Object { key, len } => {
            row.key = Some(key);
            row.klen = Some(int(*len));
        }
        RecordStore::Json(document) => row.json = Some(json(document)),
        RecordStore::None => {}
    }
    row
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
        data: None,
    }
}

async fn reported<'r>(
    tx: &mut Tx,
    records: &'r [NewRecord],
) -> Result<HashMap<(&'r str, u64), Reported>, Error> {
    let mut ids: Vec<(&str, u64)> =
        records.iter().map(|record| (record.attempt.job.as_str(), record.attempt.epoch)).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows: Vec<(usize, &str, i64)> =
        ids.iter().enumerate().map(|(position, (uid, epoch))| (position, *uid, int(*epoch))).collect();
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT CAST(value->>0 AS BIGINT) AS position, value->>1 AS uid, CAST(value->>2 AS BIGINT) AS epoch
            FROM json_each($1))
        SELECT e.position, a.job_id, a.node, CASE WHEN a.ended_at IS NULL THEN 0 ELSE 1 END AS ended, a.last_sequence
        FROM e JOIN jobs AS j ON j.uid = e.uid JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch";
    let mut found = HashMap::with_capacity(ids.len());
    for row in tx.conn.rows(sql, args![json(&rows)]).await? {
        let mut cells = row.cells("attempts");
        let position: usize = cells.number("position")?;
        let attempt = Reported {
            job_id: cells.int("job_id")?,
            node: cells.text("node")?,
            ended: cells.flag("ended")?,
            last_sequence: cells.opt_number("last_sequence")?,
        };
        if let Some(id) = ids.get(position) {
            found.insert(*id, attempt);
        }
    }
    Ok(found)
}

/// Counts what has arrived, and completes ended jobs whose last record this was.
async fn count(tx: &mut Tx, arrived: &BTreeMap<(i64, i64), i64>) -> Result<(), Error> {
    let rows: Vec<_> = arrived.iter().map(|((job, epoch), count)| (job, epoch, count)).collect();
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
                CAST(value->>2 AS BIGINT) AS arrived
            FROM json_each($1))
        UPDATE attempts SET received = received + e.arrived
        FROM e WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch
        RETURNING job_id, epoch, received, last_sequence";
    let mut complete = Vec::new();
    for row in tx.conn.rows(sql, args![json(&rows)]).await? {
        let mut cells = row.cells("attempts");
        let id = (cells.int("job_id")?, cells.int("epoch")?);
        if Some(cells.int("received")?) == cells.opt_int("last_sequence")? {
            complete.push(id);
        }
    }
    if complete.is_empty() {
        return Ok(());
    }
    let version = tx.version().await?;
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch FROM json_each($1))
        UPDATE jobs SET logs_complete = 1, resource_version = $2
        FROM e WHERE jobs.id = e.job_id AND jobs.epoch = e.epoch AND jobs.finished_at IS NOT NULL
            AND jobs.logs_complete = 0
        RETURNING uid";
    for row in tx.conn.rows(sql, args![json(&complete), version]).await? {
        let uid = row.cells("jobs").text("uid")?;
        tx.changed(Change::Job { uid });
    }
    Ok(())
}

/// A transition as it is handed to its statement.
#[derive(Serialize)]
struct JobRecord<'t> {
    uid: &'t str,
    epoch: i64,
    expect: i64,
    phase: &'static str,
    reason: Option<String>,
    message: Option<String>,
    exit: Option<i32>,
    steps: Option<String>,
    unenf: Option<String>,
    started: Option<i64>,
    finished: Option<i64>,
    notbefore: Option<i64>,
    lost: u32,
    fail: u32,
    clear: u8,
    complete: Option<u8>,
    last: Option<i64>,
}

/// Records from 1 to `e.last`: what was counted, unless a node that breaks the protocol has sent any beyond.
macro_rules! received {
    ($job:literal, $epoch:literal, $counted:literal) => {
        concat!(
            "CASE WHEN EXISTS (SELECT 1 FROM records AS r WHERE r.job_id = ",
            $job,
            " AND r.epoch = ",
            $epoch,
            " AND r.sequence > e.last) THEN (SELECT count(*) FROM records AS r WHERE r.job_id = ",
            $job,
            " AND r.epoch = ",
            $epoch,
            " AND r.sequence BETWEEN 1 AND e.last) ELSE ",
            $counted,
            " END"
        )
    };
}

const UPDATE_JOBS: &str = concat!(
    "
    WITH e AS MATERIALIZED (
        SELECT v->>'uid' AS uid, CAST(v->>'epoch' AS BIGINT) AS epoch, CAST(v->>'expect' AS BIGINT) AS expect,
            v->>'phase' AS phase, v->>'reason' AS reason, v->>'message' AS message,
            CAST(v->>'exit' AS BIGINT) AS exit_code, v->>'steps' AS steps, v->>'unenf' AS unenforced,
            CAST(v->>'started' AS BIGINT) AS started_at, CAST(v->>'finished' AS BIGINT) AS finished_at,
            CAST(v->>'notbefore' AS BIGINT) AS not_before, CAST(v->>'lost' AS BIGINT) AS lost,
            CAST(v->>'fail' AS BIGINT) AS failed, CAST(v->>'clear' AS BIGINT) AS clear_node,
            CAST(v->>'complete' AS BIGINT) AS complete, CAST(v->>'last' AS BIGINT) AS last
        FROM (SELECT value AS v FROM json_each($1)) AS rows)
    UPDATE jobs SET
        phase = e.phase, reason = e.reason, message = e.message, exit_code = e.exit_code,
        steps = coalesce(e.steps, jobs.steps), unenforced = coalesce(e.unenforced, jobs.unenforced),
        started_at = e.started_at, finished_at = e.finished_at, not_before = e.not_before,
        lost_attempts = e.lost, failures = e.failed,
        node = CASE e.clear_node WHEN 1 THEN NULL ELSE jobs.node END,
        queued_at = CASE WHEN e.phase = 'Queued' AND jobs.phase <> 'Queued' THEN $2 ELSE jobs.queued_at END,
        ready_rank = CASE WHEN e.phase = 'Queued' AND jobs.suspend = 0 AND (e.not_before IS NULL OR e.not_before <= $2)
            THEN ((1000 - jobs.priority) << 50) + jobs.id END,
        due_at = CASE WHEN e.phase = 'Queued' AND jobs.suspend = 0 AND e.not_before > $2 THEN e.not_before END,
        ttl_at = CASE WHEN jobs.ttl_ms > $4 - e.finished_at THEN $4 ELSE e.finished_at + jobs.ttl_ms END,
        logs_complete = CASE
            WHEN e.complete IS NOT NULL THEN e.complete
            WHEN e.finished_at IS NULL OR e.last IS NULL THEN 0
            WHEN e.last = (",
    "SELECT ",
    received!("a.job_id", "a.epoch", "a.received"),
    " FROM attempts AS a WHERE a.job_id = jobs.id AND a.epoch = jobs.epoch) THEN 1
            ELSE 0 END,
        resource_version = $3
    FROM e
    WHERE jobs.uid = e.uid AND jobs.epoch = e.epoch AND jobs.resource_version = e.expect
        AND jobs.finished_at IS NULL
        AND (e.phase NOT IN ('Claimed', 'PendingApproval') OR jobs.phase = e.phase)
        AND (e.phase NOT IN ('Running', 'Waiting') OR jobs.phase IN ('Claimed', 'Running', 'Waiting'))
    RETURNING id, uid"
);

/// A change of an attempt as it is handed to its statement.
#[derive(Serialize)]
struct AttemptRecord {
    job: i64,
    epoch: i64,
    phase: &'static str,
    reason: Option<String>,
    message: Option<String>,
    exit: Option<i32>,
    started: Option<i64>,
    ended: Option<i64>,
    last: Option<i64>,
    waiting: u8,
}

const UPDATE_ATTEMPTS: &str = concat!(
    "
    WITH e AS MATERIALIZED (
        SELECT CAST(v->>'job' AS BIGINT) AS job_id, CAST(v->>'epoch' AS BIGINT) AS epoch, v->>'phase' AS phase,
            v->>'reason' AS reason, v->>'message' AS message, CAST(v->>'exit' AS BIGINT) AS exit_code,
            CAST(v->>'started' AS BIGINT) AS started_at, CAST(v->>'ended' AS BIGINT) AS ended_at,
            CAST(v->>'last' AS BIGINT) AS last, CAST(v->>'waiting' AS BIGINT) AS waiting
        FROM (SELECT value AS v FROM json_each($1)) AS rows)
    UPDATE attempts SET
        phase = e.phase, reason = e.reason, message = e.message, exit_code = e.exit_code,
        started_at = coalesce(e.started_at, attempts.started_at), ended_at = e.ended_at,
        last_sequence = coalesce(e.last, attempts.last_sequence), waiting = e.waiting,
        received = CASE WHEN e.last IS NULL THEN attempts.received ELSE ",
    received!("attempts.job_id", "attempts.epoch", "attempts.received"),
    " END
    FROM e
    WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch AND attempts.ended_at IS NULL"
);

async fn transit(
    tx: &mut Tx,
    now: Timestamp,
    transitions: &[Transition],
) -> Result<Vec<TransitionOutcome>, Error> {
    if transitions.is_empty() {
        return Ok(Vec::new());
    }
    // A second transition of the same job was decided on a version that the first one ends.
    let mut first: HashMap<&str, &Transition> = HashMap::with_capacity(transitions.len());
    let mut rows = Vec::with_capacity(transitions.len());
    for transition in transitions {
        if !first.contains_key(transition.job.as_str()) {
            first.insert(&transition.job, transition);
            rows.push(job_change(now, transition));
        }
    }
    let version = tx.version().await?;
    let max = last_ms();
    let done = tx.conn.rows(UPDATE_JOBS, args![json(&rows), ms(now), version, max]).await?;
    let mut ids = Vec::with_capacity(done.len());
    let mut changes = Vec::with_capacity(done.len());
    for row in &done {
        let mut cells = row.cells("jobs");
        let (id, uid) = (cells.int("id")?, cells.text("uid")?);
        ids.push(id);
        if let Some(transition) = first.get(uid.as_str()) {
            changes.push(attempt_change(now, id, transition));
            if transition.set.phase == JobPhase::Queued {
                tx.changed(Change::Queued);
            }
        }
        tx.changed(Change::Job { uid });
    }
    if !changes.is_empty() {
        tx.conn.execute(UPDATE_ATTEMPTS, args![json(&changes)]).await?;
    }
    let jobs = job_rows::by_ids(tx, &ids).await?;
    let mut jobs: HashMap<String, JobRow> =
        jobs.into_iter().map(|job| (job.row.uid.clone(), job.row)).collect();
    let outcomes = transitions.iter().map(|transition| match jobs.remove(&transition.job) {
        Some(job) => TransitionOutcome::Done(job),
        None => TransitionOutcome::Stale,
    });
    Ok(outcomes.collect())
}

fn job_change<'t>(now: Timestamp, transition: &'t Transition) -> JobRecord<'t> {
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
        not_before,
        lost_attempts,
        failures,
        attempt,
        node,
        logs_complete,
    } = set;
    JobRecord {
        uid: job,
        epoch: int(*epoch),
        expect: *expect_version,
        phase: word(*phase),
        reason: clean_opt(reason.as_ref()),
        message: clean_opt(message.as_ref()),
        exit: *exit_code,
        steps: steps.as_ref().map(json),
        unenf: unenforced.as_ref().map(json),
        started: started_at.map(ms),
        finished: phase.is_terminal().then(|| ms(finished_at.unwrap_or(now))),
        notbefore: not_before.map(ms),
        lost: *lost_attempts,
        fail: *failures,
        clear: u8::from(*node == NodeChange::Clear),
        complete: logs_complete.map(u8::from),
        last: attempt.as_ref().and_then(|attempt| attempt.last_sequence).map(int),
    }
}

fn attempt_change(now: Timestamp, job_id: i64, transition: &Transition) -> AttemptRecord {
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
    AttemptRecord {
        job: job_id,
        epoch: int(transition.epoch),
        phase: word(change.phase),
        reason: clean_opt(change.reason.as_ref()),
        message: clean_opt(change.message.as_ref()),
        exit: change.exit_code,
        started: set.started_at.map(ms),
        ended: (!change.phase.is_live()).then(|| ms(change.ended_at.unwrap_or(now))),
        last: change.last_sequence.map(int),
        waiting: u8::from(set.phase == JobPhase::Waiting),
    }
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
