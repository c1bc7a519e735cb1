//! Numbers about queues and the whole store.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::engine::conn::Conn;
use crate::engine::value::{args, ms};
use crate::{Counts, Error, PriorityRow, QueueCounts, QueueRow, Store};

impl Store {
    /// Every queue with jobs that have not ended or are dead, by name.
    ///
    /// Reads one index entry for each such job: about 0.1 s for a million.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn queue_stats(&self, now: Timestamp) -> Result<Vec<QueueRow>, Error> {
        self.read("queue_stats", move |conn| Box::pin(queue_stats(conn, now))).await
    }

    /// Numbers about the whole store, for metrics.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn counts(&self, now: Timestamp) -> Result<Counts, Error> {
        self.read("counts", move |conn| Box::pin(counts(conn, now))).await
    }
}

impl QueueCounts {
    fn add(&mut self, other: &Self) {
        let Self { queued, delayed, suspended, pending_approval, running, waiting, dead } = other;
        self.queued += queued;
        self.delayed += delayed;
        self.suspended += suspended;
        self.pending_approval += pending_approval;
        self.running += running;
        self.waiting += waiting;
        self.dead += dead;
    }
}

async fn queue_stats(conn: &mut Conn, now: Timestamp) -> Result<Vec<QueueRow>, Error> {
    let sql = "
        SELECT queue, priority,
            count(*) FILTER (WHERE phase = 'Queued' AND suspend = 0 AND (not_before IS NULL OR not_before <= $1))
                AS queued,
            count(*) FILTER (WHERE phase = 'Queued' AND suspend = 0 AND not_before > $1) AS delayed,
            count(*) FILTER (WHERE phase = 'Queued' AND suspend = 1) AS suspended,
            count(*) FILTER (WHERE phase = 'PendingApproval') AS pending_approval,
            count(*) FILTER (WHERE phase IN ('Claimed', 'Running')) AS running,
            count(*) FILTER (WHERE phase = 'Waiting') AS waiting,
            0 AS dead,
            min(queued_at) FILTER (WHERE phase = 'Queued' AND suspend = 0
                AND (not_before IS NULL OR not_before <= $1)) AS oldest
        FROM jobs WHERE finished_at IS NULL GROUP BY phase, queue, priority
        UNION ALL
        SELECT queue, priority, 0, 0, 0, 0, 0, 0, count(*) FILTER (WHERE phase = 'Failed'), NULL
        FROM jobs WHERE reason = 'AttemptsExhausted' GROUP BY queue, priority
        HAVING count(*) FILTER (WHERE phase = 'Failed') > 0";
    let mut queues: BTreeMap<String, (BTreeMap<u16, QueueCounts>, Option<Timestamp>)> = BTreeMap::new();
    for row in &conn.rows(sql, args![ms(now)]).await? {
        let mut cells = row.cells("jobs");
        let queue = cells.text("queue")?;
        let priority = cells.number("priority")?;
        let counts = QueueCounts {
            queued: cells.number("queued")?,
            delayed: cells.number("delayed")?,
            suspended: cells.number("suspended")?,
            pending_approval: cells.number("pending_approval")?,
            running: cells.number("running")?,
            waiting: cells.number("waiting")?,
            dead: cells.number("dead")?,
        };
        let oldest = cells.opt_time("oldest")?;
        let entry = queues.entry(queue).or_default();
        entry.0.entry(priority).or_default().add(&counts);
        entry.1 = [entry.1, oldest].into_iter().flatten().min();
    }
    let rows = queues.into_iter().map(|(queue, (priorities, oldest_queued_at))| {
        let by_priority: Vec<PriorityRow> =
            priorities.into_iter().rev().map(|(priority, counts)| PriorityRow { priority, counts }).collect();
        let mut totals = QueueCounts::default();
        for row in &by_priority {
            totals.add(&row.counts);
        }
        QueueRow { queue, by_priority, totals, oldest_queued_at }
    });
    Ok(rows.collect())
}

async fn counts(conn: &mut Conn, now: Timestamp) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for row in &conn
        .rows(
            "SELECT phase, count(*) AS jobs FROM jobs WHERE finished_at IS NULL GROUP BY phase
        UNION ALL SELECT phase, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY phase",
            args![],
        )
        .await?
    {
        let mut cells = row.cells("jobs");
        counts.jobs.insert(cells.word("phase")?, cells.number("jobs")?);
    }
    let sql = "
        SELECT
            (SELECT min(queued_at) FILTER (WHERE phase = 'Queued' AND suspend = 0
                AND (not_before IS NULL OR not_before <= $1)) FROM jobs WHERE finished_at IS NULL) AS oldest,
            (SELECT count(*) FROM nodes) AS nodes,
            (SELECT count(*) FROM nodes WHERE registered_at IS NOT NULL) AS registered,
            (SELECT count(*) FROM attempts WHERE ended_at IS NULL) AS live,
            (SELECT count(*) FROM attempts WHERE ended_at IS NULL AND lease_until <= $1) AS expired";
    if let Some(row) = conn.row(sql, args![ms(now)]).await? {
        let mut cells = row.cells("jobs");
        counts.oldest_queued_at = cells.opt_time("oldest")?;
        counts.nodes = cells.number("nodes")?;
        counts.registered_nodes = cells.number("registered")?;
        counts.live_attempts = cells.number("live")?;
        counts.expired_leases = cells.number("expired")?;
    }
    Ok(counts)
}
