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
use crate::engine::dialect::packed;
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
            Box::pin(async move { apply(tx, now, &node, &records, &transitions).await })
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
            Box::pin(async move { Ok(apply(tx, now, "", &[], &transitions).await?.transitions) })
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

/// What is known of an attempt that is reported about or to be changed.
struct Reported {
    job_id: i64,
    node: String,
    ended: bool,
    last_sequence: Option<u64>,
    /// How many records were there before this batch.
    received: u64,
    /// The highest sequence that was there before this batch; looked up only where the end is to be learned.
    highest: Option<u64>,
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
    node: &str,
    records: &[NewRecord],
    transitions: &[Transition],
) -> Result<Applied, Error> {
    let attempts = attempts(tx, records, transitions).await?;
    let (outcomes, arrived) = store(tx, now, node, records, &attempts).await?;
    let transitions = transit(tx, now, transitions, &attempts, &arrived).await?;
    Ok(Applied { records: outcomes, transitions })
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
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pos: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    klen: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    len: Option<usize>,
}

const KNOWN_RECORDS: &str = packed!(
    "e.position",
    "(SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
        CAST(value->>2 AS BIGINT) AS sequence, CAST(value->>3 AS BIGINT) AS position FROM json_each($1)) AS e
    JOIN records AS r ON r.job_id = e.job_id AND r.epoch = e.epoch AND r.sequence = e.sequence"
);

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
    ON CONFLICT (job_id, epoch, sequence) DO NOTHING";

/// Stores the records that are new.
async fn store<'r>(
    tx: &mut Tx,
    now: Timestamp,
    node: &str,
    records: &'r [NewRecord],
    attempts: &Attempts<'r>,
) -> Result<(Vec<Outcome>, Arrived<'r>), Error> {
    let mut outcomes = vec![Outcome::Rejected; records.len()];
    let mut seen = HashSet::with_capacity(records.len());
    let mut candidates = Vec::with_capacity(records.len());
    for (position, record) in records.iter().enumerate() {
        let id = (record.attempt.job.as_str(), record.attempt.epoch);
        let Some(attempt) = attempts.get(&id).filter(|attempt| admits(attempt, node, record)) else {
            continue;
        };
        outcomes[position] = Outcome::Duplicate;
        if seen.insert((id, record.sequence)) {
            candidates.push((attempt.job_id, int(record.attempt.epoch), int(record.sequence), position));
        }
    }
    let mut known = HashSet::new();
    if !candidates.is_empty() {
        for row in tx.conn.packed(KNOWN_RECORDS, args![json(&candidates)]).await? {
            known.insert(row.cells("records").number::<usize>("position")?);
        }
    }
    let mut rows = Vec::with_capacity(candidates.len());
    let mut bytes = Vec::new();
    let mut arrived = Arrived::new();
    let mut told = Vec::new();
    for (_, _, _, position) in candidates {
        let record = &records[position];
        let id = (record.attempt.job.as_str(), record.attempt.epoch);
        let Some(attempt) = attempts.get(&id).filter(|_| !known.contains(&position)) else { continue };
        rows.push(row(record, attempt, &mut bytes));
        arrived.entry(id).or_default().push(record.sequence);
        outcomes[position] = if attempt.is_fenced() { Outcome::Superseded } else { Outcome::Accepted };
        if record.kind == RecordKind::Event && !attempt.is_fenced() {
            told.push(event(node, record));
        }
    }
    if rows.is_empty() {
        return Ok((outcomes, arrived));
    }
    if tx.conn.execute(INSERT_RECORDS, args![json(&rows), bytes, ms(now)]).await? != rows.len() as u64 {
        // They were not there a statement ago in this very transaction.
        return Err(Error::Unavailable { operation: "apply", source: None });
    }
    events::append(tx, now, told).await?;
    let uids: HashSet<&str> = arrived.keys().map(|(uid, _)| *uid).collect();
    for uid in uids {
        tx.changed(Change::Records { uid: uid.to_owned() });
    }
    Ok((outcomes, arrived))
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

const ATTEMPTS: &str = packed!(
    "e.position, a.job_id, a.node, CASE WHEN a.ended_at IS NULL THEN 0 ELSE 1 END, a.last_sequence, a.received, \
     CASE e.ends WHEN 1 THEN (SELECT max(r.sequence) FROM records AS r \
     WHERE r.job_id = a.job_id AND r.epoch = a.epoch) END",
    "(SELECT CAST(value->>0 AS BIGINT) AS position, value->>1 AS uid, CAST(value->>2 AS BIGINT) AS epoch,
        CAST(value->>3 AS BIGINT) AS ends FROM json_each($1)) AS e
    JOIN jobs AS j ON j.uid = e.uid JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch"
);

/// Looks up every attempt that the batch speaks of.
async fn attempts<'r>(
    tx: &mut Tx,
    records: &'r [NewRecord],
    transitions: &'r [Transition],
) -> Result<Attempts<'r>, Error> {
    let mut ends: BTreeMap<(&str, u64), bool> = BTreeMap::new();
    for record in records {
        ends.entry((&record.attempt.job, record.attempt.epoch)).or_default();
    }
    for transition in transitions {
        *ends.entry((&transition.job, transition.epoch)).or_default() |= last_sequence(transition).is_some();
    }
    let rows: Vec<(usize, &str, i64, u8)> = ends
        .iter()
        .enumerate()
        .map(|(position, ((uid, epoch), ends))| (position, *uid, int(*epoch), u8::from(*ends)))
        .collect();
    let ids: Vec<(&str, u64)> = ends.keys().copied().collect();
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
    let version = tx.version().await?;
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

/// A transition as it is handed to its statement.
#[derive(Serialize)]
struct JobRecord<'t> {
    uid: &'t str,
    #[serde(skip)]
    epoch_key: u64,
    epoch: i64,
    expect: i64,
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unenf: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notbefore: Option<i64>,
    lost: u32,
    fail: u32,
    clear: u8,
    complete: u8,
}

const UPDATE_JOBS: &str = "
    WITH e AS MATERIALIZED (
        SELECT v->>'uid' AS uid, CAST(v->>'epoch' AS BIGINT) AS epoch, CAST(v->>'expect' AS BIGINT) AS expect,
            v->>'phase' AS phase, v->>'reason' AS reason, v->>'message' AS message,
            CAST(v->>'exit' AS BIGINT) AS exit_code, v->>'steps' AS steps, v->>'unenf' AS unenforced,
            CAST(v->>'started' AS BIGINT) AS started_at, CAST(v->>'finished' AS BIGINT) AS finished_at,
            CAST(v->>'notbefore' AS BIGINT) AS not_before, CAST(v->>'lost' AS BIGINT) AS lost,
            CAST(v->>'fail' AS BIGINT) AS failed, CAST(v->>'clear' AS BIGINT) AS clear_node,
            CAST(v->>'complete' AS BIGINT) AS complete
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
        logs_complete = e.complete, resource_version = $3
    FROM e
    WHERE jobs.uid = e.uid AND jobs.epoch = e.epoch AND jobs.resource_version = e.expect
        AND jobs.finished_at IS NULL
        AND (e.phase NOT IN ('Claimed', 'PendingApproval') OR jobs.phase = e.phase)
        AND (e.phase NOT IN ('Running', 'Waiting') OR jobs.phase IN ('Claimed', 'Running', 'Waiting'))";

/// The jobs of a batch that this very batch has changed: nobody else has drawn that version.
const CHANGED_JOBS: &str = packed!(
    "j.uid, j.id",
    "json_each($1) AS e JOIN jobs AS j ON j.uid = e.value->>0 WHERE j.resource_version = $2"
);

/// A change of an attempt as it is handed to its statement.
#[derive(Serialize)]
struct AttemptRecord {
    job: i64,
    epoch: i64,
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<i64>,
    waiting: u8,
    received: i64,
}

const UPDATE_ATTEMPTS: &str = "
    WITH e AS MATERIALIZED (
        SELECT CAST(v->>'job' AS BIGINT) AS job_id, CAST(v->>'epoch' AS BIGINT) AS epoch, v->>'phase' AS phase,
            v->>'reason' AS reason, v->>'message' AS message, CAST(v->>'exit' AS BIGINT) AS exit_code,
            CAST(v->>'started' AS BIGINT) AS started_at, CAST(v->>'ended' AS BIGINT) AS ended_at,
            CAST(v->>'last' AS BIGINT) AS last, CAST(v->>'waiting' AS BIGINT) AS waiting,
            CAST(v->>'received' AS BIGINT) AS received
        FROM (SELECT value AS v FROM json_each($1)) AS rows)
    UPDATE attempts SET
        phase = e.phase, reason = e.reason, message = e.message, exit_code = e.exit_code,
        started_at = coalesce(e.started_at, attempts.started_at), ended_at = e.ended_at,
        last_sequence = coalesce(e.last, attempts.last_sequence), waiting = e.waiting, received = e.received
    FROM e
    WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch AND attempts.ended_at IS NULL";

const COUNT_RECORDS: &str = "
    WITH e AS MATERIALIZED (
        SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
            CAST(value->>2 AS BIGINT) AS received
        FROM json_each($1))
    UPDATE attempts SET received = e.received
    FROM e WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch";

/// Carries out the transitions and counts what has arrived.
async fn transit(
    tx: &mut Tx,
    now: Timestamp,
    transitions: &[Transition],
    attempts: &Attempts<'_>,
    arrived: &Arrived<'_>,
) -> Result<Vec<TransitionOutcome>, Error> {
    // A second transition of the same job was decided on a version that the first one ends.
    let mut first: HashMap<&str, &Transition> = HashMap::with_capacity(transitions.len());
    let mut rows = Vec::with_capacity(transitions.len());
    let mut counts: HashMap<(&str, u64), u64> = HashMap::with_capacity(transitions.len());
    for transition in transitions {
        if first.contains_key(transition.job.as_str()) {
            continue;
        }
        first.insert(&transition.job, transition);
        let id = (transition.job.as_str(), transition.epoch);
        let last = last_sequence(transition);
        let count = match attempts.get(&id) {
            Some(attempt) => {
                let sequences = arrived.get(&id).map_or(&[][..], Vec::as_slice);
                received(tx, attempt, id.1, sequences, last).await?
            }
            None => 0,
        };
        counts.insert(id, count);
        rows.push(job_change(now, transition, last == Some(count)));
    }
    let changed = change_jobs(tx, now, &rows, attempts).await?;
    let mut ends = Vec::with_capacity(changed.len());
    for (uid, transition) in &first {
        if !changed.contains_key(*uid) {
            continue;
        }
        let id = (*uid, transition.epoch);
        if let Some(attempt) = attempts.get(&id).filter(|attempt| !attempt.ended) {
            let count = counts.get(&id).copied().unwrap_or(attempt.received);
            ends.push(attempt_change(now, attempt.job_id, count, transition));
        }
        if transition.set.phase == JobPhase::Queued {
            tx.changed(Change::Queued);
        }
        tx.changed(Change::Job { uid: (*uid).to_owned() });
    }
    if !ends.is_empty() && tx.conn.execute(UPDATE_ATTEMPTS, args![json(&ends)]).await? != ends.len() as u64 {
        // They were live when the batch began, in this very transaction.
        return Err(Error::Unavailable { operation: "apply", source: None });
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
    let ids: Vec<i64> = changed.values().copied().collect();
    let jobs = job_rows::by_ids(tx, &ids).await?;
    let mut jobs: HashMap<String, JobRow> =
        jobs.into_iter().map(|job| (job.row.uid.clone(), job.row)).collect();
    let outcomes = transitions.iter().map(|transition| match jobs.remove(&transition.job) {
        Some(job) => TransitionOutcome::Done(job),
        None => TransitionOutcome::Stale,
    });
    Ok(outcomes.collect())
}

/// Changes the jobs that are still what was decided on; yields which, and their ids.
async fn change_jobs(
    tx: &mut Tx,
    now: Timestamp,
    rows: &[JobRecord<'_>],
    attempts: &Attempts<'_>,
) -> Result<HashMap<String, i64>, Error> {
    let mut changed = HashMap::with_capacity(rows.len());
    if rows.is_empty() {
        return Ok(changed);
    }
    let version = tx.version().await?;
    let done = tx.conn.execute(UPDATE_JOBS, args![json(rows), ms(now), version, last_ms()]).await?;
    if done == 0 {
        return Ok(changed);
    }
    let known = rows.iter().filter_map(|row| {
        let attempt = attempts.get(&(row.uid, row.epoch_key))?;
        Some((row.uid.to_owned(), attempt.job_id))
    });
    if done == rows.len() as u64 {
        changed.extend(known);
        if changed.len() == rows.len() {
            return Ok(changed);
        }
    }
    let uids: Vec<[&str; 1]> = rows.iter().map(|row| [row.uid]).collect();
    for row in tx.conn.packed(CHANGED_JOBS, args![json(&uids), version]).await? {
        let mut cells = row.cells("jobs");
        changed.insert(cells.text("uid")?, cells.int("id")?);
    }
    Ok(changed)
}

fn job_change<'t>(now: Timestamp, transition: &'t Transition, all_arrived: bool) -> JobRecord<'t> {
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
        attempt: _,
        node,
        logs_complete,
    } = set;
    JobRecord {
        uid: job,
        epoch_key: *epoch,
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
        complete: u8::from(logs_complete.unwrap_or(all_arrived && phase.is_terminal())),
    }
}

fn attempt_change(now: Timestamp, job_id: i64, received: u64, transition: &Transition) -> AttemptRecord {
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
        received: int(received),
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
