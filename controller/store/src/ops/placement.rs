//! Lookups that tell why a job waits. None of them grows with the backlog.

use crate::engine::value::{Row, args, json};
use crate::{Error, HolderRow, NodeUsage, QueuePosition, Reserve, Store};

/// How many ready jobs are looked at to find a job's position: a few milliseconds.
const LOOKED_AT: i64 = 10_000;

impl Store {
    /// What live attempts take of each node that holds any. Reads every live attempt once.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn node_usage(&self) -> Result<Vec<NodeUsage>, Error> {
        self.read("node_usage", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT a.node, count(*) FILTER (WHERE a.waiting = 0) AS slots,
                        CAST(coalesce(sum(a.cpu_millis) FILTER (WHERE a.waiting = 0), 0) AS BIGINT) AS cpu_millis,
                        CAST(coalesce(sum(a.memory_bytes), 0) AS BIGINT) AS memory_bytes,
                        CAST(coalesce(sum(a.gpus), 0) AS BIGINT) AS gpus
                    FROM attempts AS a WHERE a.ended_at IS NULL GROUP BY a.node ORDER BY a.node";
                let rows = conn.rows(sql, args![]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("attempts");
                    Ok(NodeUsage {
                        node: cells.text("node")?,
                        slots: cells.number("slots")?,
                        reserve: Reserve {
                            cpu_millis: cells.number("cpu_millis")?,
                            memory_bytes: cells.number("memory_bytes")?,
                            gpus: cells.number("gpus")?,
                        },
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// The jobs that these nodes hold, at most `limit` in all: node by node, the oldest attempts first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn holders(&self, nodes: &[&str], limit: u32) -> Result<Vec<HolderRow>, Error> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let nodes = json(&nodes.iter().map(|node| [node]).collect::<Vec<_>>());
        self.read("holders", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT a.node, j.namespace, j.name, a.waiting, a.cpu_millis, a.memory_bytes, a.gpus
                    FROM json_each($1) AS e
                    JOIN attempts AS a ON a.node = e.value->>0 AND a.ended_at IS NULL
                    JOIN jobs AS j ON j.id = a.job_id
                    ORDER BY a.node, a.claimed_at, a.job_id LIMIT $2";
                let rows = conn.rows(sql, args![nodes, i64::from(limit)]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("attempts");
                    Ok(HolderRow {
                        node: cells.text("node")?,
                        namespace: cells.text("namespace")?,
                        name: cells.text("name")?,
                        waiting: cells.flag("waiting")?,
                        reserve: Reserve {
                            cpu_millis: cells.number("cpu_millis")?,
                            memory_bytes: cells.number("memory_bytes")?,
                            gpus: cells.number("gpus")?,
                        },
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// How many ready jobs of its queue are claimed before this one, as things stand; `None` where the job is not
    /// ready. At most 10,000 ready jobs of all queues are looked at, from the job towards the front.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn queue_position(&self, uid: &str) -> Result<Option<QueuePosition>, Error> {
        let uid = uid.to_owned();
        self.read("queue_position", move |conn| {
            Box::pin(async move {
                let sql = "SELECT queue, ready_rank FROM jobs WHERE uid = $1 AND ready_rank IS NOT NULL";
                let Some(row) = conn.row(sql, args![uid]).await? else { return Ok(None) };
                let mut cells = row.cells("jobs");
                let (queue, rank) = (cells.text("queue")?, cells.int("ready_rank")?);
                let sql = "
                    SELECT count(*) AS seen, count(*) FILTER (WHERE l.queue = $2) AS ahead
                    FROM (SELECT lane_id FROM jobs WHERE ready_rank IS NOT NULL AND ready_rank < $1
                        ORDER BY ready_rank DESC LIMIT $3) AS h
                    JOIN lanes AS l ON l.id = h.lane_id";
                let Some(row) = conn.row(sql, args![rank, queue, LOOKED_AT]).await? else { return Ok(None) };
                let mut cells = row.cells("jobs");
                let at_least = cells.int("seen")? >= LOOKED_AT;
                Ok(Some(QueuePosition { ahead: cells.number("ahead")?, at_least }))
            })
        })
        .await
    }
}
