//! How a job is read from its rows.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use windlass_crds::{JobPhase, Priority, SandboxJobSpec, Span};

use crate::engine::caches::KnownSpec;
use crate::engine::conn::Conn;
use crate::engine::dialect::{Sql, packed};
use crate::engine::value::{Cells, Row, args, json, ms};
use crate::engine::writer::Tx;
use crate::{Error, JobRow, Readable, Reserve};

/// The columns of a job but its spec, of `jobs AS j` and `job_bodies AS b`. The live attempt is found by its key: the condition
/// matches no partial index, or the database might go through everything that is live.
macro_rules! narrow_columns {
    ($lease_name:literal) => {
        concat!("j.uid, j.id, j.place, j.namespace, j.name, j.spec_hash, j.queue, j.priority, j.class_id, \
         j.cpu_millis, j.memory_bytes, j.gpus, j.ttl_ms, j.suspend, j.created_at, j.generation, \
         j.resource_version, j.phase, j.epoch, j.attempts, j.lost_attempts, j.failures, j.logs_complete, \
         j.queued_at, j.not_before, j.started_at, j.finished_at, j.ttl_at, j.cancel_requested_at, j.exit_code, \
         j.node, j.reason, j.message, j.steps, j.unenforced, \
         (SELECT a.lease_until FROM attempts AS a \
          WHERE a.job_id = j.id AND a.epoch = j.epoch AND coalesce(a.ended_at, -1) = -1)", $lease_name, ", b.labels, b.annotations")
    };
}

/// The columns that [`read`] expects, of `jobs AS j` and `job_bodies AS b`.
macro_rules! job_columns {
    () => {
        concat!($crate::ops::job_rows::narrow_columns!(" AS lease_until"), ", b.spec")
    };
}
pub(crate) use {job_columns, narrow_columns};

/// A job with its key inside the database.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) id: i64,
    /// See [`place`].
    pub(crate) place: i64,
    pub(crate) row: JobRow,
}

/// How many bits of a rank and of a place are the job's id. A thousand changes a second use them up in 34 years.
pub(crate) const ID_BITS: u32 = 40;
/// Where minutes are counted from: the first of 2026. What is older counts as that old.
const FIRST_MINUTE: i64 = 1_767_225_600_000 / 60_000;
/// The last minute that ranks can tell apart, in 2041, so that with the priority below it the sign is not touched.
const LAST_MINUTE: i64 = (1 << (63 - ID_BITS)) - 1 - 1024;

/// The milliseconds since [`FIRST_MINUTE`]: a number that grows as fast as versions may at most, and a job's id still holds.
pub(crate) fn since_first_minute(time: Timestamp) -> i64 {
    ms(time) - FIRST_MINUTE * 60_000
}

/// A job's age as one number: the minute from which it counts as waiting, and its id, which orders the jobs of a minute.
pub(crate) fn place(since: Timestamp, id: i64) -> i64 {
    let minute = (ms(since) / 60_000 - FIRST_MINUTE).clamp(0, LAST_MINUTE);
    (minute << ID_BITS) + id
}

/// Priority and age as one number: the smaller, the sooner. A point of priority is worth a minute of waiting, so that a
/// job is overtaken by those of a priority `p` points higher only if they come within `p` minutes: its wait is bounded,
/// and no rank has to be written again because time goes by.
fn rank(priority: u16, place: i64) -> i64 {
    (i64::from(Priority::MAX.saturating_sub(priority)) << ID_BITS) + place
}

/// When a job can be claimed: its rank if it can be now, or else the time that alone keeps it from that.
pub(crate) fn readiness(job: &JobRow, place: i64, now: Timestamp) -> (Option<i64>, Option<i64>) {
    if job.phase != JobPhase::Queued || job.suspend {
        return (None, None);
    }
    match job.not_before {
        Some(not_before) if not_before > now => (None, Some(ms(not_before))),
        Some(_) | None => (Some(rank(job.priority, place)), None),
    }
}

/// The spec with what may have changed since it was written.
fn current_spec(spec: Arc<SandboxJobSpec>, job: &Mutable<'_>) -> Arc<SandboxJobSpec> {
    let same = spec.suspend == job.suspend
        && spec.priority == job.priority
        && spec.ttl_after_finished == job.ttl
        && spec.queue == job.queue
        && (spec.cancel || !job.cancel);
    if same {
        return spec;
    }
    let mut spec = Arc::unwrap_or_clone(spec);
    spec.suspend = job.suspend;
    spec.priority = job.priority;
    spec.ttl_after_finished = job.ttl;
    job.queue.clone_into(&mut spec.queue);
    spec.cancel |= job.cancel;
    Arc::new(spec)
}

/// What of a spec is kept in columns.
struct Mutable<'j> {
    suspend: bool,
    priority: Priority,
    ttl: Option<Span>,
    queue: &'j str,
    cancel: bool,
}

/// Brings `row.spec` in line with the row's columns.
pub(crate) fn settle_spec(row: &mut JobRow, ttl: Option<Span>) {
    let current = Mutable {
        suspend: row.suspend,
        priority: Priority::new(row.priority).unwrap_or_default(),
        ttl,
        queue: &row.queue,
        cancel: row.cancel_requested_at.is_some(),
    };
    row.spec = current_spec(Arc::clone(&row.spec), &current);
}

/// A job as [`narrow_columns`] have it.
struct Unspecified {
    id: i64,
    place: i64,
    ttl: Option<Span>,
    /// The job with no spec worth the name.
    row: JobRow,
}

impl Unspecified {
    fn with(self, spec: Arc<SandboxJobSpec>) -> Stored {
        let Self { id, place, ttl, mut row } = self;
        row.spec = spec;
        settle_spec(&mut row, ttl);
        Stored { id, place, row }
    }
}

/// Stands in for a spec that is read later.
static NO_SPEC: LazyLock<Arc<SandboxJobSpec>> = LazyLock::new(Arc::default);

/// Reads a job from [`job_columns`].
pub(crate) fn read(row: &Row) -> Result<Stored, Error> {
    let mut cells = row.cells("jobs");
    let job = read_narrow(&mut cells)?;
    Ok(job.with(Arc::new(cells.json("spec")?)))
}

fn read_narrow(cells: &mut Cells<'_>) -> Result<Unspecified, Error> {
    let uid = cells.text("uid")?;
    let id = cells.int("id")?;
    let place = cells.int("place")?;
    let namespace = cells.text("namespace")?;
    let name = cells.text("name")?;
    let spec_hash = cells.text("spec_hash")?;
    let queue = cells.text("queue")?;
    let priority: u16 = cells.number("priority")?;
    let class_id = cells.int("class_id")?;
    let reserve = Reserve {
        cpu_millis: cells.number("cpu_millis")?,
        memory_bytes: cells.number("memory_bytes")?,
        gpus: cells.number("gpus")?,
    };
    let ttl = cells.opt_number("ttl_ms")?.map(Span::from_millis);
    let suspend = cells.flag("suspend")?;
    let created_at = cells.time("created_at")?;
    let generation = cells.int("generation")?;
    let resource_version = cells.int("resource_version")?;
    let phase = cells.word("phase")?;
    let epoch = cells.number("epoch")?;
    let attempts = cells.number("attempts")?;
    let lost_attempts = cells.number("lost_attempts")?;
    let failures = cells.number("failures")?;
    let logs_complete = cells.flag("logs_complete")?;
    let queued_at = cells.opt_time("queued_at")?;
    let not_before = cells.opt_time("not_before")?;
    let started_at = cells.opt_time("started_at")?;
    let finished_at = cells.opt_time("finished_at")?;
    let ttl_at = cells.opt_time("ttl_at")?;
    let cancel_requested_at = cells.opt_time("cancel_requested_at")?;
    let exit_code = cells.opt_number("exit_code")?;
    let node = cells.opt_text("node")?;
    let reason = cells.opt_text("reason")?;
    let message = cells.opt_text("message")?;
    let steps = cells.json_or_default("steps")?;
    let unenforced = cells.json_or_default("unenforced")?;
    let lease_until = cells.opt_time("lease_until")?;
    let labels = cells.json_or_default("labels")?;
    let annotations = cells.json_or_default("annotations")?;
    let row = JobRow {
        uid,
        namespace,
        name,
        labels,
        annotations,
        spec: Arc::clone(&NO_SPEC),
        spec_hash,
        queue,
        priority,
        class_id,
        reserve,
        phase,
        reason,
        message,
        node,
        epoch,
        attempts,
        lost_attempts,
        failures,
        exit_code,
        steps,
        unenforced,
        logs_complete,
        suspend,
        cancel_requested_at,
        queued_at,
        not_before,
        created_at,
        started_at,
        finished_at,
        ttl_at,
        generation,
        resource_version,
        lease_until,
    };
    Ok(Unspecified { id, place, ttl, row })
}

const BY_UID: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs AS j JOIN job_bodies AS b ON b.job_id = j.id WHERE j.uid = $1"
);

const BY_UIDS: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM json_each($1) AS e JOIN jobs AS j ON j.uid = e.value->>0 JOIN job_bodies AS b ON b.job_id = j.id"
);

/// Small specs come with their rows; a large one would be copied once more, and a hundred of them do not fit into one
/// document.
const BY_IDS: Sql = packed!(
    concat!(narrow_columns!(""), ", CASE WHEN octet_length(b.spec) < 16384 THEN b.spec END"),
    "json_each($1) AS e JOIN jobs AS j ON j.id = CAST(e.value AS BIGINT) JOIN job_bodies AS b ON b.job_id = j.id"
);

const LARGE_SPECS: &str = "
    SELECT b.job_id, b.spec FROM json_each($1) AS e JOIN job_bodies AS b ON b.job_id = CAST(e.value AS BIGINT)";

/// The job with a uid.
pub(crate) async fn by_uid(conn: &mut Conn, uid: &str) -> Result<Option<Stored>, Error> {
    conn.row(BY_UID, args![uid]).await?.map(|row| read(&row)).transpose()
}

/// The jobs with these uids that exist, in no order.
pub(crate) async fn by_uids(conn: &mut Conn, uids: &[String]) -> Result<Vec<Stored>, Error> {
    if uids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = conn.rows(BY_UIDS, args![json(&uids.iter().map(|uid| [uid]).collect::<Vec<_>>())]).await?;
    rows.iter().map(read).collect()
}

/// The jobs with these uids that exist and can be read, in no order.
pub(crate) async fn readable_by_uids(conn: &mut Conn, uids: &[String]) -> Result<Readable<Stored>, Error> {
    if uids.is_empty() {
        return Ok(Readable::default());
    }
    let rows = conn.rows(BY_UIDS, args![json(&uids.iter().map(|uid| [uid]).collect::<Vec<_>>())]).await?;
    Readable::of(rows.iter().map(read))
}

/// The jobs with these ids, in no order.
pub(crate) async fn by_ids(tx: &mut Tx, ids: &[i64]) -> Result<Vec<Stored>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut jobs = Vec::with_capacity(ids.len());
    let mut large = HashMap::new();
    for row in tx.conn.packed(BY_IDS, args![json(ids)]).await? {
        let mut cells = row.cells("jobs");
        let job = read_narrow(&mut cells)?;
        let (uid, hash) = (&job.row.uid, &job.row.spec_hash);
        let known = tx.caches.specs.get(uid).filter(|known| known.hash == *hash);
        if let Some(known) = known {
            let spec = Arc::clone(&known.spec);
            jobs.push(job.with(spec));
        } else if let Some((spec, bytes)) = cells.opt_sized_json("spec")? {
            let spec = Arc::new(spec);
            remember_spec(tx, &job.row, &spec, bytes);
            jobs.push(job.with(spec));
        } else {
            large.insert(job.id, job);
        }
    }
    if !large.is_empty() {
        let ids: Vec<i64> = large.keys().copied().collect();
        for row in tx.conn.rows(LARGE_SPECS, args![json(&ids)]).await? {
            let mut cells = row.cells("job_bodies");
            let id = cells.int("job_id")?;
            let Some((spec, bytes)) = cells.opt_sized_json("spec")? else { continue };
            if let Some(job) = large.remove(&id) {
                let spec = Arc::new(spec);
                remember_spec(tx, &job.row, &spec, bytes);
                jobs.push(job.with(spec));
            }
        }
    }
    Ok(jobs)
}

fn remember_spec(tx: &mut Tx, job: &JobRow, spec: &Arc<SandboxJobSpec>, bytes: usize) {
    let known = KnownSpec { hash: job.spec_hash.clone(), spec: Arc::clone(spec) };
    tx.caches.specs.insert(&job.uid, known, bytes);
}

/// Remembers a job that is likely to change again soon.
pub(crate) fn remember(tx: &mut Tx, job: &Stored) {
    let row = &job.row;
    // A row has some twenty texts; a step and a label are each about as large as the measure says.
    let bytes = 512 + 256 * row.steps.len() + 64 * (row.labels.len() + row.annotations.len());
    tx.caches.jobs.insert(&row.uid, job.clone(), bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second((FIRST_MINUTE + minute) * 60).expect("a time in this century")
    }

    proptest! {
        #[test]
        fn a_point_of_priority_is_a_minute_of_waiting(
            old in 0..10_000_000i64, new in 0..10_000_000i64, low in 0..=1000u16, high in 0..=1000u16,
        ) {
            let (older, newer) = (rank(low, place(at(old), 1)), rank(high, place(at(new), 2)));
            let (old, new) = (old.min(LAST_MINUTE), new.min(LAST_MINUTE));
            let before = old - i64::from(low) <= new - i64::from(high);
            prop_assert_eq!(older < newer, before);
            for rank in [older, newer] {
                prop_assert!(rank > 0);
            }
            prop_assert_eq!(newer & ((1 << ID_BITS) - 1), 2);
        }
    }

    #[test]
    fn clocks_that_are_wrong_by_decades_break_nothing() {
        for since in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            for priority in [0, 500, 1000, u16::MAX] {
                let rank = rank(priority, place(since, 7));
                assert!(rank > 0, "{since} {priority}");
                assert_eq!(rank & ((1 << ID_BITS) - 1), 7);
            }
        }
    }
}
