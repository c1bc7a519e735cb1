//! Heartbeats, leases and attempts.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use windlass_crds::protocol::AttemptId;
use windlass_crds::sandbox_job::OfflinePolicy;

use super::job_rows::{self, job_columns};
use crate::engine::conn::Conn;
use crate::engine::value::{Cells, Row, Value, after, args, clean_opt, int, json, last_ms, ms};
use crate::engine::writer::Tx;
use crate::{AttemptPhase, AttemptRow, Beat, BeatOutcome, Error, JobRow, Readable, Reserve, Store};

/// The columns of an attempt, of `attempts AS a` and its job's uid.
macro_rules! attempt_columns {
    () => {
        "j.uid AS job, a.epoch, a.number, a.node, a.phase, a.reason, a.message, a.exit_code, a.claimed_at, \
         a.started_at, a.ended_at, a.lease_until, a.last_sequence, a.received, a.offline, a.cpu_millis, \
         a.memory_bytes, a.gpus"
    };
}

fn read_attempt(cells: &mut Cells<'_>) -> Result<AttemptRow, Error> {
    Ok(AttemptRow {
        job: cells.text("job")?,
        epoch: cells.number("epoch")?,
        number: cells.number("number")?,
        node: cells.text("node")?,
        phase: cells.word::<AttemptPhase>("phase")?,
        reason: cells.opt_text("reason")?,
        message: cells.opt_text("message")?,
        exit_code: cells.opt_number("exit_code")?,
        claimed_at: cells.time("claimed_at")?,
        started_at: cells.opt_time("started_at")?,
        ended_at: cells.opt_time("ended_at")?,
        lease_until: cells.time("lease_until")?,
        last_sequence: cells.opt_number("last_sequence")?,
        received: cells.number("received")?,
        offline: read_offline(cells)?,
        reserve: Reserve {
            cpu_millis: cells.number("cpu_millis")?,
            memory_bytes: cells.number("memory_bytes")?,
            gpus: cells.number("gpus")?,
        },
    })
}

fn read_offline(cells: &mut Cells<'_>) -> Result<OfflinePolicy, Error> {
    cells.one_of("offline", [OfflinePolicy::Stop, OfflinePolicy::Continue])
}

async fn attempts_of(conn: &mut Conn, sql: &'static str, args: Vec<Value>) -> Result<Vec<AttemptRow>, Error> {
    let rows = conn.rows(sql, args).await?;
    rows.iter().map(|row: &Row| read_attempt(&mut row.cells("attempts"))).collect()
}

impl Store {
    /// Carries out heartbeats: one outcome per beat, in order, all in one transaction.
    ///
    /// Only listed attempts that are live and the node's are renewed; their lease runs from `now`. One that was granted
    /// for longer is cut short only as far as the node says that it keeps to: it may never hear of this answer. A beat of
    /// a run of the agent that is not the registered one changes nothing and says so.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn beat(&self, now: Timestamp, beats: Vec<Beat>) -> Result<Vec<BeatOutcome>, Error> {
        if beats.is_empty() {
            return Ok(Vec::new());
        }
        self.write("beat", move |tx| Box::pin(beat(tx, now, beats))).await
    }

    /// The attempts that a node holds, oldest first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn live_attempts(&self, node: &str) -> Result<Vec<AttemptRow>, Error> {
        const SQL: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM attempts AS a JOIN jobs AS j ON j.id = a.job_id",
            " WHERE a.node = $1 AND a.ended_at IS NULL ORDER BY a.claimed_at, a.job_id"
        );
        let node = node.to_owned();
        self.read("live_attempts", move |conn| Box::pin(attempts_of(conn, SQL, args![node]))).await
    }

    /// The attempts of a job, first to last.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn attempts(&self, uid: &str) -> Result<Vec<AttemptRow>, Error> {
        const SQL: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM jobs AS j JOIN attempts AS a ON a.job_id = j.id WHERE j.uid = $1 ORDER BY a.epoch"
        );
        let uid = uid.to_owned();
        self.read("attempts", move |conn| Box::pin(attempts_of(conn, SQL, args![uid]))).await
    }

    /// Live attempts whose lease has ended by `now`, with their jobs, longest ended first. A row that cannot be read hides
    /// no other.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn expired_leases(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Readable<(JobRow, AttemptRow)>, Error> {
        const ATTEMPTS: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM attempts AS a JOIN jobs AS j ON j.id = a.job_id",
            " WHERE a.ended_at IS NULL AND a.lease_until <= $1 ORDER BY a.lease_until LIMIT $2"
        );
        self.read("expired_leases", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(ATTEMPTS, args![ms(now), i64::from(limit)]).await?;
                let attempts = Readable::of(rows.iter().map(|row| read_attempt(&mut row.cells("attempts"))))?;
                let uids: Vec<String> = attempts.rows.iter().map(|attempt| attempt.job.clone()).collect();
                let jobs = job_rows::readable_by_uids(conn, &uids).await?;
                let mut found: HashMap<String, JobRow> =
                    jobs.rows.into_iter().map(|job| (job.row.uid.clone(), job.row)).collect();
                // A job that is gone, or has moved on, between the two statements needs nothing any more.
                let pairs = attempts.rows.into_iter().filter_map(|attempt| {
                    let job = found.remove(&attempt.job)?;
                    (job.epoch == attempt.epoch && job.phase.is_held()).then_some((job, attempt))
                });
                let damaged = [attempts.damaged, jobs.damaged].concat();
                Ok(Readable { rows: pairs.collect(), damaged })
            })
        })
        .await
    }

    /// Lets every live attempt go on until `until`, where its lease ends before that; yields how many. For a planned
    /// stop of the controller.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn extend_all_leases(&self, now: Timestamp, until: Timestamp) -> Result<u64, Error> {
        if until <= now {
            return Ok(0);
        }
        self.write("extend_all_leases", move |tx| {
            Box::pin(async move {
                let sql = "UPDATE attempts SET lease_until = $1 WHERE ended_at IS NULL AND lease_until < $1";
                tx.conn.execute(sql, args![ms(until)]).await
            })
        })
        .await
    }

    /// Lets the lease of every live attempt end later by so much; yields how many. For a clock that was put forward.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn move_leases(&self, by: Duration) -> Result<u64, Error> {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.write("move_leases", move |tx| {
            Box::pin(async move {
                let sql = "
                    UPDATE attempts SET lease_until = lease_until + $1 WHERE ended_at IS NULL AND lease_until <= $2";
                // A lease that would end after all time is there for ever as it is.
                tx.conn.execute(sql, args![by, last_ms().saturating_sub(by)]).await
            })
        })
        .await
    }

    /// Ended jobs that may be deleted by `now`, longest due first. A row that cannot be read hides no other.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn ttl_due(&self, now: Timestamp, limit: u32) -> Result<Readable<JobRow>, Error> {
        const SQL: &str = concat!(
            "SELECT ",
            job_columns!(),
            " FROM jobs AS j JOIN job_bodies AS b ON b.job_id = j.id",
            " WHERE j.ttl_at IS NOT NULL AND j.ttl_at <= $1 ORDER BY j.ttl_at LIMIT $2"
        );
        self.read("ttl_due", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(SQL, args![ms(now), i64::from(limit)]).await?;
                Readable::of(rows.iter().map(|row| Ok(job_rows::read(row)?.row)))
            })
        })
        .await
    }
}

/// What is known of a node that beats.
struct Registered {
    boot_id: Option<String>,
    config_version: u64,
    capability_hash: Option<String>,
}

/// An attempt that a beat may renew.
struct Renewable {
    job_id: i64,
    offline: OfflinePolicy,
    cancel: bool,
}

async fn beat(tx: &mut Tx, now: Timestamp, beats: Vec<Beat>) -> Result<Vec<BeatOutcome>, Error> {
    let nodes = registered(tx, &beats).await?;
    let alive: Vec<bool> = beats
        .iter()
        .map(|beat| {
            nodes.get(&beat.node).is_some_and(|node| node.boot_id.as_deref() == Some(beat.boot_id.as_str()))
        })
        .collect();
    let live =
        renewable(tx, beats.iter().zip(&alive).filter(|(_, alive)| **alive).map(|(beat, _)| beat)).await?;
    let mut outcomes = Vec::with_capacity(beats.len());
    let mut liveness = Vec::new();
    let mut renewals: HashMap<(i64, u64), (i64, Option<i64>)> = HashMap::new();
    for (beat, alive) in beats.iter().zip(alive) {
        let node = nodes.get(&beat.node);
        let mut outcome = BeatOutcome {
            config_version: node.map_or(0, |node| node.config_version),
            capability_hash: node.and_then(|node| node.capability_hash.clone()),
            other_boot: !alive,
            ..BeatOutcome::default()
        };
        if alive {
            liveness.push((beat.node.as_str(), beat.slots, clean_opt(beat.not_ready.as_ref())));
            let mut seen = HashSet::new();
            for attempt in beat.held.iter().filter(|attempt| seen.insert(*attempt)) {
                let Some(found) = live.get(&(beat.node.as_str(), attempt)) else {
                    outcome.fenced.push(attempt.clone());
                    continue;
                };
                let lease = lease_of(beat, found.offline);
                let left = beat.left.get(attempt).map(|left| after(now, *left));
                renewals.insert((found.job_id, attempt.epoch), (after(now, lease), left));
                outcome.renewed.push((attempt.clone(), lease));
                if found.cancel {
                    outcome.cancel.push(attempt.clone());
                }
            }
        }
        outcomes.push(outcome);
    }
    if !liveness.is_empty() {
        let sql = "
            WITH e AS MATERIALIZED (
                SELECT value->>0 AS name, CAST(value->>1 AS BIGINT) AS slots, value->>2 AS not_ready FROM json_each($1))
            UPDATE node_liveness SET last_seen_at = $2, slots = e.slots, not_ready = e.not_ready
            FROM e WHERE node_liveness.name = e.name";
        tx.conn.execute(sql, args![json(&liveness), ms(now)]).await?;
    }
    if !renewals.is_empty() {
        let count = renewals.len() as u64;
        let rows: Vec<_> =
            renewals.into_iter().map(|((job, epoch), (until, left))| (job, epoch, until, left)).collect();
        let sql = "
            WITH e AS MATERIALIZED (
                SELECT CAST(value->>0 AS BIGINT) AS job_id, CAST(value->>1 AS BIGINT) AS epoch,
                    CAST(value->>2 AS BIGINT) AS until, CAST(value->>3 AS BIGINT) AS node_until
                FROM json_each($1))
            UPDATE attempts SET lease_until = CASE
                WHEN attempts.lease_until <= e.until OR e.node_until <= e.until THEN e.until
                WHEN e.node_until < attempts.lease_until THEN e.node_until
                ELSE attempts.lease_until END
            FROM e WHERE attempts.job_id = e.job_id AND attempts.epoch = e.epoch
                AND coalesce(attempts.ended_at, -1) = -1";
        if tx.conn.execute(sql, args![json(&rows)]).await? != count {
            // They were live a statement ago in this very transaction.
            return Err(Error::Unavailable { operation: "beat", source: None });
        }
    }
    Ok(outcomes)
}

fn lease_of(beat: &Beat, offline: OfflinePolicy) -> Duration {
    match offline {
        OfflinePolicy::Stop => beat.lease,
        OfflinePolicy::Continue => beat.lease_continue,
    }
}

async fn registered(tx: &mut Tx, beats: &[Beat]) -> Result<HashMap<String, Registered>, Error> {
    let names: HashSet<[&str; 1]> = beats.iter().map(|beat| [beat.node.as_str()]).collect();
    let sql = "
        SELECT n.name, n.boot_id, n.config_version, n.capability_hash
        FROM json_each($1) AS e JOIN nodes AS n ON n.name = e.value->>0";
    let mut nodes = HashMap::new();
    for row in tx.conn.rows(sql, args![json(&names)]).await? {
        let mut cells = row.cells("nodes");
        let name = cells.text("name")?;
        let node = Registered {
            boot_id: cells.opt_text("boot_id")?,
            config_version: cells.number("config_version")?,
            capability_hash: cells.opt_text("capability_hash")?,
        };
        nodes.insert(name, node);
    }
    Ok(nodes)
}

async fn renewable<'b>(
    tx: &mut Tx,
    beats: impl Iterator<Item = &'b Beat>,
) -> Result<HashMap<(&'b str, &'b AttemptId), Renewable>, Error> {
    let held: Vec<(&str, &AttemptId)> =
        beats.flat_map(|beat| beat.held.iter().map(|attempt| (beat.node.as_str(), attempt))).collect();
    let mut live = HashMap::with_capacity(held.len());
    if held.is_empty() {
        return Ok(live);
    }
    let rows: Vec<_> = held
        .iter()
        .enumerate()
        .map(|(position, (_, attempt))| (position, attempt.job.as_str(), int(attempt.epoch)))
        .collect();
    // Whose attempt it is, and whether it is live, is no condition: the database would go through all that the node holds.
    let sql = "
        WITH e AS MATERIALIZED (
            SELECT CAST(value->>0 AS BIGINT) AS position, value->>1 AS uid, CAST(value->>2 AS BIGINT) AS epoch
            FROM json_each($1))
        SELECT e.position, a.node, CASE WHEN a.ended_at IS NULL THEN 1 ELSE 0 END AS live, a.job_id, a.offline,
            CASE WHEN j.cancel_requested_at IS NULL THEN 0 ELSE 1 END AS cancel
        FROM e JOIN jobs AS j ON j.uid = e.uid JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch";
    for row in tx.conn.rows(sql, args![json(&rows)]).await? {
        let mut cells = row.cells("attempts");
        let position: usize = cells.number("position")?;
        let (node, is_live) = (cells.text("node")?, cells.flag("live")?);
        let Some(key) = held.get(position).filter(|(of, _)| is_live && *of == node) else { continue };
        let found = Renewable {
            job_id: cells.int("job_id")?,
            offline: read_offline(&mut cells)?,
            cancel: cells.flag("cancel")?,
        };
        live.insert(*key, found);
    }
    Ok(live)
}
