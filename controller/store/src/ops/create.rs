//! Creating jobs, in batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_crds::{JobPhase, Priority};

use super::job_rows::{self, job_columns, place, readiness};
use crate::engine::caches::Lane;
use crate::engine::dialect::Batch;
use crate::engine::value::{args, int, json, listed, ms, truncated, word};
use crate::engine::writer::{Answers, BoxFuture, Merge, Tx};
use crate::{Change, CreateOutcome, Error, IdempotencyKey, JobRow, NewJob, Requirement, Store};

impl Store {
    /// Creates jobs: one outcome per item, in order, all in one transaction. An item that repeats a name or an
    /// idempotency key of an earlier item of the same batch is treated as if that one had been created before.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an input that was not put before, [`Error::Invalid`] for a priority above 1000, a
    /// reserve above 2^53 or a phase other than `Queued` and `PendingApproval`; then nothing is created.
    pub async fn create_jobs(&self, now: Timestamp, jobs: Vec<NewJob>) -> Result<Vec<CreateOutcome>, Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        for job in &jobs {
            check(job)?;
        }
        self.write_with_others(Creation { now: truncated(now), jobs }).await
    }
}

/// What one caller creates.
#[derive(Clone)]
struct Creation {
    now: Timestamp,
    jobs: Vec<NewJob>,
}

impl Merge for Creation {
    type Answer = Vec<CreateOutcome>;

    const NAME: &'static str = "create_jobs";

    fn weight(&self) -> usize {
        self.jobs.len()
    }

    fn run<'t>(tx: &'t mut Tx, creations: Vec<Self>) -> BoxFuture<'t, Result<Answers<Self::Answer>, Error>> {
        Box::pin(async move {
            // The writer's time, as for those who waited for it longest.
            let Some(now) = creations.iter().map(|creation| creation.now).max() else {
                return Ok(Vec::new());
            };
            let counts: Vec<usize> = creations.iter().map(Self::weight).collect();
            let jobs = creations.into_iter().flat_map(|creation| creation.jobs).collect();
            let mut outcomes = create(tx, now, jobs).await?.into_iter();
            Ok(counts.into_iter().map(|count| Ok(outcomes.by_ref().take(count).collect())).collect())
        })
    }
}

/// No node has this much of anything, and the sum over a thousand attempts still fits.
const MAX_RESERVE: u64 = 1 << 53;

pub(super) fn check(job: &NewJob) -> Result<(), Error> {
    let invalid = |problem: String| Err(Error::Invalid { operation: "create_jobs", problem });
    if job.priority > Priority::MAX {
        return invalid(format!("priority {} for job `{}`", job.priority, job.name));
    }
    if job.reserve.cpu_millis.max(job.reserve.memory_bytes) > MAX_RESERVE {
        return invalid(format!("a reserve beyond every node for job `{}`", job.name));
    }
    match job.phase {
        JobPhase::Queued | JobPhase::PendingApproval => Ok(()),
        JobPhase::Claimed
        | JobPhase::Running
        | JobPhase::Waiting
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::TimedOut => invalid(format!("phase {} for new job `{}`", job.phase, job.name)),
    }
}

/// What is to be done with an item of the batch.
enum Plan {
    /// Answer this.
    Answer(Box<CreateOutcome>),
    /// Insert it, as the n-th.
    Insert(usize),
    /// Repeat the answer for an earlier item, as a replay or as a taken name.
    Replay(usize),
    NameTaken(usize),
}

pub(super) async fn create(
    tx: &mut Tx,
    now: Timestamp,
    jobs: Vec<NewJob>,
) -> Result<Vec<CreateOutcome>, Error> {
    let keys = known_keys(tx, now, &jobs).await?;
    let taken = taken_names(tx, &jobs).await?;
    let mut plans = Vec::with_capacity(jobs.len());
    let mut inserts: Vec<NewJob> = Vec::with_capacity(jobs.len());
    let mut names: HashMap<(String, String), usize> = HashMap::with_capacity(jobs.len());
    let mut uids: HashMap<String, usize> = HashMap::with_capacity(jobs.len());
    let mut fresh_keys: HashMap<String, (String, usize)> = HashMap::new();
    for job in jobs {
        let plan = if let Some(answer) = replay(job.idempotency.as_ref(), &keys) {
            Plan::Answer(Box::new(answer))
        } else if let Some((hash, n)) = job.idempotency.as_ref().and_then(|key| fresh_keys.get(&key.key)) {
            let same = job.idempotency.as_ref().is_some_and(|key| key.request_hash == *hash);
            if same { Plan::Replay(*n) } else { Plan::Answer(Box::new(CreateOutcome::KeyReused)) }
        } else if let Some(existing) = taken.find(&job) {
            Plan::Answer(Box::new(CreateOutcome::NameTaken(existing.clone())))
        } else if let Some(n) = names.get(&(job.namespace.clone(), job.name.clone())).or(uids.get(&job.uid)) {
            Plan::NameTaken(*n)
        } else {
            let n = inserts.len();
            names.insert((job.namespace.clone(), job.name.clone()), n);
            uids.insert(job.uid.clone(), n);
            if let Some(key) = &job.idempotency {
                fresh_keys.insert(key.key.clone(), (key.request_hash.clone(), n));
            }
            inserts.push(job);
            Plan::Insert(n)
        };
        plans.push(plan);
    }
    let created = if inserts.is_empty() { Vec::new() } else { insert(tx, now, inserts).await? };
    let outcomes = plans.into_iter().map(|plan| match plan {
        Plan::Answer(outcome) => *outcome,
        Plan::Insert(n) => CreateOutcome::Created(created[n].clone()),
        Plan::Replay(n) => CreateOutcome::Replayed(created[n].clone()),
        Plan::NameTaken(n) => CreateOutcome::NameTaken(created[n].clone()),
    });
    Ok(outcomes.collect())
}

/// A remembered request.
struct KnownKey {
    request_hash: String,
    job: Option<JobRow>,
}

async fn known_keys(
    tx: &mut Tx,
    now: Timestamp,
    jobs: &[NewJob],
) -> Result<HashMap<String, KnownKey>, Error> {
    let keys: Vec<[&str; 1]> =
        jobs.iter().filter_map(|job| job.idempotency.as_ref()).map(|key| [key.key.as_str()]).collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "
        SELECT i.key, i.request_hash, i.job_uid
        FROM json_each($1) AS e JOIN idempotency AS i ON i.key = e.value->>0
        WHERE i.keep_until > $2";
    let mut found = Vec::new();
    for row in tx.conn.rows(sql, args![json(&keys), ms(now)]).await? {
        let mut cells = row.cells("idempotency");
        found.push((cells.text("key")?, cells.text("request_hash")?, cells.text("job_uid")?));
    }
    let uids: Vec<String> = found.iter().map(|(_, _, uid)| uid.clone()).collect();
    let jobs = job_rows::by_uids(&mut tx.conn, &uids).await?;
    let jobs: HashMap<String, JobRow> = jobs.into_iter().map(|job| (job.row.uid.clone(), job.row)).collect();
    let known = found
        .into_iter()
        .map(|(key, request_hash, uid)| (key, KnownKey { request_hash, job: jobs.get(&uid).cloned() }));
    Ok(known.collect())
}

fn replay(key: Option<&IdempotencyKey>, known: &HashMap<String, KnownKey>) -> Option<CreateOutcome> {
    let key = key?;
    let known = known.get(&key.key)?;
    match &known.job {
        Some(job) if known.request_hash == key.request_hash => Some(CreateOutcome::Replayed(job.clone())),
        // Also when the job was deleted since: doing the work a second time is worse than saying so.
        Some(_) | None => Some(CreateOutcome::KeyReused),
    }
}

/// Jobs in the store that stand in the way of new ones.
struct Taken {
    names: HashMap<(String, String), JobRow>,
    uids: HashMap<String, JobRow>,
}

impl Taken {
    fn find(&self, job: &NewJob) -> Option<&JobRow> {
        if self.names.is_empty() && self.uids.is_empty() {
            return None;
        }
        self.names.get(&(job.namespace.clone(), job.name.clone())).or_else(|| self.uids.get(&job.uid))
    }
}

async fn taken_names(tx: &mut Tx, jobs: &[NewJob]) -> Result<Taken, Error> {
    const SQL: &str = concat!(
        "WITH e AS MATERIALIZED (SELECT value->>0 AS namespace, value->>1 AS name, value->>2 AS uid FROM json_each($1)) ",
        "SELECT ",
        job_columns!(),
        " FROM e JOIN jobs AS j ON j.namespace = e.namespace AND j.name = e.name",
        " JOIN job_bodies AS b ON b.job_id = j.id UNION ALL SELECT ",
        job_columns!(),
        " FROM e JOIN jobs AS j ON j.uid = e.uid JOIN job_bodies AS b ON b.job_id = j.id"
    );
    let names: Vec<[&str; 3]> =
        jobs.iter().map(|job| [job.namespace.as_str(), job.name.as_str(), job.uid.as_str()]).collect();
    let mut taken = Taken { names: HashMap::new(), uids: HashMap::new() };
    for row in tx.conn.rows(SQL, args![json(&names)]).await? {
        let job = job_rows::read(&row)?.row;
        taken.names.insert((job.namespace.clone(), job.name.clone()), job.clone());
        taken.uids.insert(job.uid.clone(), job);
    }
    Ok(taken)
}

static INSERT_JOBS: Batch = Batch {
    columns: &[
        "id", "uid", "namespace", "name", "spec_hash", "queue", "priority", "class_id", "lane_id", "cpu_millis",
        "memory_bytes", "gpus", "offline", "ttl_ms", "suspend", "ready_rank", "phase", "queued_at",
    ],
    statement: "
        INSERT INTO jobs (id, uid, namespace, name, spec_hash, queue, priority, class_id, lane_id, cpu_millis,
            memory_bytes, gpus, offline, ttl_ms, suspend, ready_rank, phase, queued_at, place,
            created_at, generation, resource_version, epoch, attempts, lost_attempts, failures, logs_complete,
            steps, unenforced)
        SELECT e.id, e.uid, e.namespace, e.name, e.spec_hash, e.queue, e.priority, e.class_id, e.lane_id, e.cpu_millis,
            e.memory_bytes, e.gpus, e.offline, e.ttl_ms, e.suspend, e.ready_rank, e.phase, e.queued_at,
            $2 + e.id, $1, 1, e.id, 0, 0, 0, 0, 0, '[]', '[]'
        FROM e WHERE e.id IS NOT NULL",
};

static INSERT_BODIES: Batch = Batch {
    columns: &["job_id", "spec", "labels", "annotations"],
    statement: "
        INSERT INTO job_bodies (job_id, spec, labels, annotations)
        SELECT e.job_id, e.spec, e.labels, e.annotations FROM e WHERE e.job_id IS NOT NULL",
};

async fn insert(tx: &mut Tx, now: Timestamp, jobs: Vec<NewJob>) -> Result<Vec<JobRow>, Error> {
    let classes = ensure_classes(tx, jobs.iter().map(|job| &job.requirement)).await?;
    let lanes_of_jobs: Vec<Lane> = jobs
        .iter()
        .map(|job| Lane {
            class: classes[&job.requirement.hash],
            queue: job.queue.clone(),
            reserve: job.reserve,
        })
        .collect();
    let lanes = ensure_lanes(tx, &lanes_of_jobs).await?;
    check_inputs(tx, &jobs).await?;
    let last = tx.draw_versions(jobs.len());
    let first = last + 1 - int(jobs.len() as u64);
    let ids: Vec<i64> = (first..=last).collect();

    let mut bodies = Vec::with_capacity(jobs.len() * INSERT_BODIES.columns.len());
    let mut labels = Vec::new();
    let mut inputs = BTreeSet::new();
    let mut keys = Vec::new();
    let mut rows = Vec::with_capacity(jobs.len());
    for ((job, lane), id) in jobs.into_iter().zip(&lanes_of_jobs).zip(&ids) {
        bodies.extend(args![*id, json(&job.spec), json(&job.labels), json(&job.annotations)]);
        labels.extend(job.labels.iter().map(|(key, value)| (key.clone(), value.clone(), *id)));
        inputs.extend(job.input_digests.iter().map(|digest| (*id, digest.clone())));
        if let Some(key) = &job.idempotency {
            keys.push((key.key.clone(), key.request_hash.clone(), job.uid.clone(), ms(key.keep_until)));
        }
        rows.push(new_row(job, lane.class, *id, now));
    }
    let mut values = Vec::with_capacity(rows.len() * INSERT_JOBS.columns.len());
    for ((row, lane), id) in rows.iter().zip(&lanes_of_jobs).zip(&ids) {
        values.extend(args![
            *id,
            row.uid.as_str(),
            row.namespace.as_str(),
            row.name.as_str(),
            row.spec_hash.as_str(),
            row.queue.as_str(),
            i64::from(row.priority),
            row.class_id,
            lanes[lane],
            int(row.reserve.cpu_millis),
            int(row.reserve.memory_bytes),
            i64::from(row.reserve.gpus),
            row.spec.offline.map(word::<OfflinePolicy>),
            row.spec.ttl_after_finished.map(|ttl| int(ttl.millis())),
            row.suspend,
            readiness(row, place(now, *id), now).0,
            word(row.phase),
            row.queued_at.map(ms)
        ]);
    }
    tx.conn.execute_batch(&INSERT_JOBS, values, args![ms(now), place(now, 0)]).await?;
    tx.conn.execute_batch(&INSERT_BODIES, bodies, args![]).await?;
    if !labels.is_empty() {
        let sql = "INSERT INTO job_labels (key, value, job_id)
            SELECT e.value->>0, e.value->>1, CAST(e.value->>2 AS BIGINT) FROM json_each($1) AS e";
        tx.conn.execute(sql, args![json(&labels)]).await?;
    }
    if !inputs.is_empty() {
        let sql = "INSERT INTO job_inputs (job_id, digest)
            SELECT CAST(e.value->>0 AS BIGINT), e.value->>1 FROM json_each($1) AS e";
        tx.conn.execute(sql, args![json(&inputs)]).await?;
    }
    if !keys.is_empty() {
        // A key that is there has expired: it would have been found otherwise.
        let sql = "INSERT INTO idempotency (key, request_hash, job_uid, keep_until)
            SELECT e.value->>0, e.value->>1, e.value->>2, CAST(e.value->>3 AS BIGINT) FROM json_each($1) AS e WHERE true
            ON CONFLICT (key) DO UPDATE SET request_hash = excluded.request_hash, job_uid = excluded.job_uid,
                keep_until = excluded.keep_until";
        tx.conn.execute(sql, args![json(&keys)]).await?;
    }
    for row in &rows {
        tx.changed(Change::Job { uid: row.uid.clone() });
    }
    tx.changed(Change::Queued);
    Ok(rows)
}

fn new_row(job: NewJob, class_id: i64, id: i64, now: Timestamp) -> JobRow {
    let NewJob {
        uid,
        namespace,
        name,
        labels,
        annotations,
        spec,
        spec_hash,
        requirement: _,
        reserve,
        queue,
        priority,
        phase,
        idempotency: _,
        input_digests: _,
    } = job;
    let ttl = spec.ttl_after_finished;
    let mut row = JobRow {
        uid,
        namespace,
        name,
        labels,
        annotations,
        suspend: spec.suspend,
        spec: Arc::new(spec),
        spec_hash,
        queue,
        priority,
        class_id,
        reserve,
        phase,
        reason: None,
        message: None,
        node: None,
        epoch: 0,
        attempts: 0,
        lost_attempts: 0,
        failures: 0,
        exit_code: None,
        steps: Vec::new(),
        unenforced: Vec::new(),
        logs_complete: false,
        cancel_requested_at: None,
        queued_at: (phase == JobPhase::Queued).then_some(now),
        not_before: None,
        created_at: now,
        started_at: None,
        finished_at: None,
        ttl_at: None,
        generation: 1,
        resource_version: id,
        lease_until: None,
    };
    job_rows::settle_spec(&mut row, ttl);
    row
}

/// The ids of classes; those that are new are written.
async fn ensure_classes<'r>(
    tx: &mut Tx,
    requirements: impl Iterator<Item = &'r Requirement>,
) -> Result<HashMap<String, i64>, Error> {
    let mut ids = HashMap::new();
    let mut unknown = BTreeMap::new();
    for requirement in requirements {
        match tx.caches.class(&requirement.hash) {
            Some(id) => {
                if !ids.contains_key(&requirement.hash) {
                    ids.insert(requirement.hash.clone(), id);
                }
            }
            None => {
                unknown.entry(requirement.hash.clone()).or_insert_with(|| json(&requirement.predicates));
            }
        }
    }
    if !unknown.is_empty() {
        // The update changes nothing; it makes RETURNING yield classes that were there.
        let sql = "INSERT INTO classes (hash, predicates)
            SELECT e.value->>0, e.value->>1 FROM json_each($1) AS e WHERE true
            ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash
            RETURNING id, hash";
        let unknown: Vec<(String, String)> = unknown.into_iter().collect();
        for row in tx.conn.rows(sql, args![json(&unknown)]).await? {
            let mut cells = row.cells("classes");
            let (id, hash) = (cells.int("id")?, cells.text("hash")?);
            tx.caches.insert_class(hash.clone(), id);
            ids.insert(hash, id);
        }
    }
    Ok(ids)
}

/// The ids of lanes; those that are new are written.
async fn ensure_lanes(tx: &mut Tx, lanes: &[Lane]) -> Result<HashMap<Lane, i64>, Error> {
    let mut ids = HashMap::new();
    let mut unknown = HashMap::new();
    for lane in lanes {
        match tx.caches.lanes().id_of(lane) {
            Some(id) => {
                if !ids.contains_key(lane) {
                    ids.insert(lane.clone(), id);
                }
            }
            None => {
                unknown.entry(lane).or_insert_with(|| {
                    let reserve = &lane.reserve;
                    let (cpu, memory) = (int(reserve.cpu_millis), int(reserve.memory_bytes));
                    (lane.class, lane.queue.as_str(), cpu, memory, i64::from(reserve.gpus))
                });
            }
        }
    }
    if !unknown.is_empty() {
        let sql = "INSERT INTO lanes (class_id, queue, cpu_millis, memory_bytes, gpus)
            SELECT CAST(e.value->>0 AS BIGINT), e.value->>1, CAST(e.value->>2 AS BIGINT), CAST(e.value->>3 AS BIGINT),
                CAST(e.value->>4 AS BIGINT)
            FROM json_each($1) AS e WHERE true
            ON CONFLICT (class_id, queue, cpu_millis, memory_bytes, gpus) DO UPDATE SET class_id = excluded.class_id
            RETURNING id, class_id, queue, cpu_millis, memory_bytes, gpus";
        let unknown: Vec<_> = unknown.into_values().collect();
        for row in tx.conn.rows(sql, args![json(&unknown)]).await? {
            let (id, lane) = super::claim::read_lane(&row)?;
            tx.caches.insert_lane(id, lane.clone());
            ids.insert(lane, id);
        }
    }
    Ok(ids)
}

/// Refuses jobs whose inputs are not there.
async fn check_inputs(tx: &mut Tx, jobs: &[NewJob]) -> Result<(), Error> {
    let mut wanted: BTreeSet<&str> =
        jobs.iter().flat_map(|job| &job.input_digests).map(String::as_str).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let sql = "SELECT i.digest FROM json_each($1) AS e JOIN inputs AS i ON i.digest = e.value->>0";
    let digests: Vec<[&str; 1]> = wanted.iter().map(|digest| [*digest]).collect();
    for row in tx.conn.rows(sql, args![json(&digests)]).await? {
        wanted.remove(row.cells("inputs").text("digest")?.as_str());
    }
    if wanted.is_empty() { Ok(()) } else { Err(Error::NotFound { object: "input", key: listed(wanted) }) }
}
