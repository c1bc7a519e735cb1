//! Room that is kept for jobs that others pass over: what there is to decide on, and what was decided. Claims honour it.

use jiff::Timestamp;

use crate::engine::value::{Cells, Row, args, ms};
use crate::{Change, Error, NewReservation, ReservationRow, Reserve, Store, WaitingRow};

/// The columns of a job that waits, of `jobs AS j`.
macro_rules! waiting_columns {
    () => {
        "j.uid, j.lane_id, j.class_id, j.queue, j.cpu_millis, j.memory_bytes, j.gpus, \
         CASE WHEN j.not_before > j.queued_at THEN j.not_before ELSE coalesce(j.queued_at, j.created_at) END \
         AS since, j.ready_rank"
    };
}

/// The first ready job of each lane: two steps down an index for each.
const FIRST_OF_LANES: &str = concat!(
    "WITH RECURSIVE used (lane) AS (
        SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL
        UNION ALL
        SELECT (SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL AND lane_id > used.lane)
        FROM used WHERE used.lane IS NOT NULL)
    SELECT ",
    waiting_columns!(),
    " FROM used JOIN jobs AS j ON j.lane_id = used.lane AND j.ready_rank = (
        SELECT min(h.ready_rank) FROM jobs AS h WHERE h.lane_id = used.lane AND h.ready_rank IS NOT NULL)
    WHERE used.lane IS NOT NULL
    ORDER BY j.ready_rank LIMIT $1"
);

impl Store {
    /// The first ready job of each lane, at most `limit`, in the order in which they are claimed. The cost grows with the
    /// number of lanes that have ready jobs, not with the number of jobs.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn first_of_lanes(&self, limit: u32) -> Result<Vec<WaitingRow>, Error> {
        self.read("first_of_lanes", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(FIRST_OF_LANES, args![i64::from(limit)]).await?;
                rows.iter().map(read_waiting).collect()
            })
        })
        .await
    }

    /// What is kept, by node. A job that cannot be claimed any more, because it was, was held back or has ended, has
    /// nothing kept; its row is there until somebody gives it back.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn reservations(&self) -> Result<Vec<ReservationRow>, Error> {
        self.read("reservations", move |conn| {
            Box::pin(async move {
                let sql = concat!(
                    "SELECT r.node, j.namespace, j.name, r.since AS kept_since, r.moves, ",
                    waiting_columns!(),
                    " FROM reservations AS r JOIN jobs AS j ON j.id = r.job_id ORDER BY r.node"
                );
                conn.rows(sql, args![]).await?.iter().map(read_reservation).collect()
            })
        })
        .await
    }

    /// The job's place in line as one number, the smaller the sooner; `None` while it could not be claimed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn rank(&self, uid: &str) -> Result<Option<i64>, Error> {
        let uid = uid.to_owned();
        self.read("rank", move |conn| {
            Box::pin(async move {
                let sql = "SELECT ready_rank FROM jobs WHERE uid = $1";
                match conn.row(sql, args![uid]).await? {
                    Some(row) => row.cells("jobs").opt_int("ready_rank"),
                    None => Ok(None),
                }
            })
        })
        .await
    }

    /// Gives back what the nodes in `give_back` keep for those jobs, and then keeps room anew, for jobs that still wait, on
    /// nodes that keep nothing. Yields what is kept now that was not before.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn keep_room(
        &self,
        now: Timestamp,
        give_back: Vec<(String, String)>,
        keep: Vec<NewReservation>,
    ) -> Result<Vec<NewReservation>, Error> {
        self.write("keep_room", move |tx| {
            Box::pin(async move {
                let mut given_back = 0;
                for (node, uid) in &give_back {
                    let sql = "
                        DELETE FROM reservations
                        WHERE node = $1 AND job_id = (SELECT j.id FROM jobs AS j WHERE j.uid = $2)";
                    given_back += tx.conn.execute(sql, args![node.as_str(), uid.as_str()]).await?;
                }
                let mut kept = Vec::new();
                for new in keep {
                    let sql = "
                        INSERT INTO reservations (node, job_id, since, moves)
                        SELECT n.name, j.id, $3, $4 FROM nodes AS n, jobs AS j
                        WHERE n.name = $1 AND j.uid = $2 AND j.ready_rank IS NOT NULL
                        ON CONFLICT DO NOTHING";
                    let args = args![new.node.as_str(), new.uid.as_str(), ms(now), i64::from(new.moves)];
                    if tx.conn.execute(sql, args).await? > 0 {
                        kept.push(new);
                    }
                }
                if given_back > 0 {
                    // Somebody may have been refused that room.
                    tx.changed(Change::Queued);
                }
                Ok(kept)
            })
        })
        .await
    }
}

fn read_reservation(row: &Row) -> Result<ReservationRow, Error> {
    let mut cells = row.cells("reservations");
    let node = cells.text("node")?;
    let namespace = cells.text("namespace")?;
    let name = cells.text("name")?;
    let since = cells.time("kept_since")?;
    let moves = cells.number("moves")?;
    let job = read_unranked(&mut cells)?;
    let uid = job.uid.clone();
    let job = cells.opt_int("ready_rank")?.map(|rank| WaitingRow { rank, ..job });
    Ok(ReservationRow { node, uid, namespace, name, job, since, moves })
}

fn read_waiting(row: &Row) -> Result<WaitingRow, Error> {
    let mut cells = row.cells("jobs");
    let job = read_unranked(&mut cells)?;
    Ok(WaitingRow { rank: cells.int("ready_rank")?, ..job })
}

/// A job but for its rank, which is the next column.
fn read_unranked(cells: &mut Cells<'_>) -> Result<WaitingRow, Error> {
    Ok(WaitingRow {
        uid: cells.text("uid")?,
        lane: cells.int("lane_id")?,
        class: cells.int("class_id")?,
        queue: cells.text("queue")?,
        reserve: Reserve {
            cpu_millis: cells.number("cpu_millis")?,
            memory_bytes: cells.number("memory_bytes")?,
            gpus: cells.number("gpus")?,
        },
        since: cells.time("since")?,
        rank: 0,
    })
}
