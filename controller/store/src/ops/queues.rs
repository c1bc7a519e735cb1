//! Settings of queues.

use jiff::Timestamp;

use crate::engine::value::{Row, args, ms};
use crate::{Change, Error, QueueSettings, QueueSettingsRow, Store};

impl Store {
    /// Sets a queue's settings; yields whether they are other than before.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn set_queue(
        &self,
        now: Timestamp,
        queue: &str,
        settings: QueueSettings,
    ) -> Result<bool, Error> {
        let queue = queue.to_owned();
        self.write("set_queue", move |tx| {
            Box::pin(async move {
                let QueueSettings { weight, concurrency } = settings;
                let sql = "
                    INSERT INTO queues (name, weight, concurrency, turns, updated_at) VALUES ($1, $2, $3, 0, $4)
                    ON CONFLICT (name) DO UPDATE SET weight = excluded.weight, concurrency = excluded.concurrency,
                        updated_at = excluded.updated_at
                    WHERE queues.weight <> excluded.weight OR queues.concurrency IS DISTINCT FROM excluded.concurrency";
                let args = args![queue, i64::from(weight), concurrency.map(i64::from), ms(now)];
                let changed = tx.conn.execute(sql, args).await? > 0;
                if changed {
                    // A limit may have been raised.
                    tx.changed(Change::Queued);
                }
                Ok(changed)
            })
        })
        .await
    }

    /// Takes a queue's settings back; yields whether there were any. Its jobs stay.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn unset_queue(&self, queue: &str) -> Result<bool, Error> {
        let queue = queue.to_owned();
        self.write("unset_queue", move |tx| {
            Box::pin(async move {
                let sql = "DELETE FROM queues WHERE name = $1";
                let changed = tx.conn.execute(sql, args![queue]).await? > 0;
                if changed {
                    tx.changed(Change::Queued);
                }
                Ok(changed)
            })
        })
        .await
    }

    /// The queues for which something is set, by name. Reads an index entry for each of their running jobs.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn queue_settings(&self) -> Result<Vec<QueueSettingsRow>, Error> {
        self.read("queue_settings", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT q.name, q.weight, q.concurrency,
                        (SELECT count(*) FROM jobs AS j
                        WHERE j.finished_at IS NULL AND j.phase = 'Claimed' AND j.queue = q.name)
                        + (SELECT count(*) FROM jobs AS j
                        WHERE j.finished_at IS NULL AND j.phase = 'Running' AND j.queue = q.name) AS running,
                        CASE WHEN EXISTS (SELECT 1 FROM lanes AS l WHERE l.queue = q.name AND EXISTS (
                            SELECT 1 FROM jobs AS j WHERE j.lane_id = l.id AND j.ready_rank IS NOT NULL))
                        THEN 1 ELSE 0 END AS ready
                    FROM queues AS q ORDER BY q.name";
                let rows = conn.rows(sql, args![]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("queues");
                    let queue = cells.text("name")?;
                    let weight = cells.number("weight")?;
                    let concurrency = cells.opt_number("concurrency")?;
                    Ok(QueueSettingsRow {
                        queue,
                        settings: QueueSettings { weight, concurrency },
                        running: cells.number("running")?,
                        has_ready: cells.flag("ready")?,
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Wakes those who wait for work, because a job that was ready before may be claimed now.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn wake_claims(&self) -> Result<(), Error> {
        self.write("wake_claims", |tx| {
            Box::pin(async move {
                tx.changed(Change::Queued);
                Ok(())
            })
        })
        .await
    }
}
