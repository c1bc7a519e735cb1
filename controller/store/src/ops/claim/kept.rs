//! Room that is kept on the node for a job that others have passed over, as a claim has to honour it.
//!
//! Jobs that come before it in line, and the job itself, may use all that is free; jobs that come later only what is left
//! beside it. So what is free of what the job needs never becomes less through jobs that come later, and grows as
//! running jobs end.

use crate::engine::value::{args, json};
use crate::engine::writer::Tx;
use crate::{Change, Error, Reserve};

/// The job that room is kept for.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) id: i64,
    pub(super) rank: i64,
    pub(super) class: i64,
    pub(super) queue: String,
    pub(super) reserve: Reserve,
}

impl Kept {
    /// What is kept on the node, while its job can be claimed.
    pub(super) async fn load(tx: &mut Tx, node: &str) -> Result<Option<Self>, Error> {
        let sql = "
            SELECT r.job_id, j.ready_rank, j.class_id, j.queue, j.cpu_millis, j.memory_bytes, j.gpus
            FROM reservations AS r JOIN jobs AS j ON j.id = r.job_id AND j.ready_rank IS NOT NULL
            WHERE r.node = $1";
        let Some(row) = tx.conn.row(sql, args![node]).await? else { return Ok(None) };
        let mut cells = row.cells("reservations");
        Ok(Some(Self {
            id: cells.int("job_id")?,
            rank: cells.int("ready_rank")?,
            class: cells.int("class_id")?,
            queue: cells.text("queue")?,
            reserve: Reserve {
                cpu_millis: cells.number("cpu_millis")?,
                memory_bytes: cells.number("memory_bytes")?,
                gpus: cells.number("gpus")?,
            },
        }))
    }
}

/// Gives back what is kept for jobs that have been claimed, wherever it is. Other nodes may then take what waits.
pub(super) async fn give_back(tx: &mut Tx, claimed: &[i64], node: &str) -> Result<(), Error> {
    let sql = "
        DELETE FROM reservations WHERE job_id IN (SELECT CAST(value AS BIGINT) FROM json_each($1))
        RETURNING node";
    let mut elsewhere = false;
    for row in tx.conn.rows(sql, args![json(claimed)]).await? {
        elsewhere |= row.cells("reservations").text("node")? != node;
    }
    if elsewhere {
        tx.changed(Change::Queued);
    }
    Ok(())
}
