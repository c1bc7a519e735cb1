//! Forgetting: what has expired, and bodies in the object store that nothing names any more.

use jiff::Timestamp;

use crate::engine::value::{Row, args, int, json, millis, ms};
use crate::engine::writer::Tx;
use crate::{BodyOf, Error, Pruned, RetentionPolicy, Store, StoredBody};

impl Store {
    /// Forgets at most `limit` things of each kind. Call it again while the answer says that there may be more.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn prune(&self, now: Timestamp, policy: RetentionPolicy, limit: u32) -> Result<Pruned, Error> {
        self.write("prune", move |tx| Box::pin(prune(tx, now, policy, limit))).await
    }

    /// Keys of bodies that are to be removed from the object store, oldest first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn pending_removals(&self, limit: u32) -> Result<Vec<String>, Error> {
        self.read("pending_removals", move |conn| {
            Box::pin(async move {
                let sql = "SELECT key FROM body_removals ORDER BY added_at, key LIMIT $1";
                let rows = conn.rows(sql, args![i64::from(limit)]).await?;
                rows.iter().map(|row| row.cells("body_removals").text("key")).collect()
            })
        })
        .await
    }

    /// Of these bodies the keys of those that no row names.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn unnamed_bodies(&self, bodies: Vec<StoredBody>) -> Result<Vec<String>, Error> {
        if bodies.is_empty() {
            return Ok(Vec::new());
        }
        self.read("unnamed_bodies", move |conn| {
            Box::pin(async move {
                let asked = bodies.iter().map(|StoredBody { key, of }| match of {
                    BodyOf::Record { attempt, sequence } => {
                        (key, Some(&attempt.job), int(attempt.epoch), int(*sequence), None, 0)
                    }
                    BodyOf::Artifact { attempt, number } => {
                        (key, Some(&attempt.job), int(attempt.epoch), 0, None, i64::from(*number))
                    }
                    BodyOf::Input { digest } => (key, None, 0, 0, Some(digest), 0),
                    BodyOf::Nothing => (key, None, 0, 0, None, 0),
                });
                // Rows are found by their own keys: no table has an index of bodies.
                let sql = "
                    WITH e AS MATERIALIZED (
                        SELECT value->>0 AS key, value->>1 AS job, CAST(value->>2 AS BIGINT) AS epoch,
                            CAST(value->>3 AS BIGINT) AS sequence, value->>4 AS digest,
                            CAST(value->>5 AS BIGINT) AS number
                        FROM json_each($1))
                    SELECT e.key FROM e
                    WHERE NOT EXISTS (
                            SELECT 1 FROM jobs AS j JOIN records AS r
                                ON r.job_id = j.id AND r.epoch = e.epoch AND r.sequence = e.sequence
                            WHERE j.uid = e.job AND r.object_key = e.key)
                        AND NOT EXISTS (
                            SELECT 1 FROM jobs AS j JOIN artifacts AS a
                                ON a.job_id = j.id AND a.epoch = e.epoch AND a.number = e.number
                            WHERE j.uid = e.job AND a.object_key = e.key)
                        AND NOT EXISTS (
                            SELECT 1 FROM inputs AS i WHERE i.digest = e.digest AND i.object_key = e.key)";
                let rows = conn.rows(sql, args![json(&asked.collect::<Vec<_>>())]).await?;
                rows.iter().map(|row| row.cells("records").text("key")).collect()
            })
        })
        .await
    }

    /// Forgets keys whose bodies are gone from the object store; yields how many it knew.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn confirm_removed(&self, keys: &[String]) -> Result<u64, Error> {
        if keys.is_empty() {
            return Ok(0);
        }
        let keys: Vec<[String; 1]> = keys.iter().map(|key| [key.clone()]).collect();
        self.write("confirm_removed", move |tx| {
            Box::pin(async move {
                let sql =
                    "DELETE FROM body_removals WHERE key IN (SELECT e.value->>0 FROM json_each($1) AS e)";
                tx.conn.execute(sql, args![json(&keys)]).await
            })
        })
        .await
    }
}

/// Remembers keys until they are confirmed to be gone.
pub(crate) async fn remember_bodies(tx: &mut Tx, now: Timestamp, keys: &[String]) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<[&str; 1]> = keys.iter().map(|key| [key.as_str()]).collect();
    let sql = "
        INSERT INTO body_removals (key, added_at) SELECT e.value->>0, $2 FROM json_each($1) AS e WHERE true
        ON CONFLICT (key) DO NOTHING";
    tx.conn.execute(sql, args![json(&keys), ms(now)]).await.map(drop)
}

/// The bodies of rows that were deleted, which give their job and the key of their body.
fn bodies_of(rows: &[Row], table: &'static str) -> Result<Vec<String>, Error> {
    let keys = rows.iter().map(|row| {
        let mut cells = row.cells(table);
        cells.int("job_id")?;
        cells.opt_text("object_key")
    });
    keys.filter_map(Result::transpose).collect()
}

async fn prune(tx: &mut Tx, now: Timestamp, policy: RetentionPolicy, limit: u32) -> Result<Pruned, Error> {
    let RetentionPolicy { events, superseded, join_tokens } = policy;
    let before = |age| ms(now).saturating_sub(millis(age));
    let at_most = i64::from(limit);
    let mut pruned = Pruned::default();
    let sql = "
        DELETE FROM idempotency WHERE key IN (
            SELECT key FROM idempotency WHERE keep_until <= $1 ORDER BY keep_until LIMIT $2)";
    pruned.idempotency_keys = tx.conn.execute(sql, args![ms(now), at_most]).await?;
    let sql = "
        DELETE FROM records WHERE (job_id, epoch, sequence) IN (
            SELECT job_id, epoch, sequence FROM records
            WHERE superseded = 1 AND received_at < $1 ORDER BY received_at LIMIT $2)
        RETURNING job_id, object_key";
    let rows = tx.conn.rows(sql, args![before(superseded), at_most]).await?;
    pruned.records = rows.len() as u64;
    pruned.bodies.extend(bodies_of(&rows, "records")?);
    let sql = "
        DELETE FROM artifacts WHERE (job_id, epoch, number) IN (
            SELECT job_id, epoch, number FROM artifacts
            WHERE superseded = 1 AND received_at < $1 ORDER BY received_at LIMIT $2)
        RETURNING job_id, object_key";
    let rows = tx.conn.rows(sql, args![before(superseded), at_most]).await?;
    pruned.artifacts = rows.len() as u64;
    pruned.bodies.extend(bodies_of(&rows, "artifacts")?);
    remember_bodies(tx, now, &pruned.bodies).await?;
    let sql = "
        DELETE FROM events WHERE id IN (
            SELECT id FROM events WHERE owned = 0 AND at < $1 ORDER BY at LIMIT $2)";
    pruned.events = tx.conn.execute(sql, args![before(events), at_most]).await?;
    let sql = "
        DELETE FROM join_tokens WHERE id IN (
            SELECT id FROM join_tokens
            WHERE created_at < $1 AND (revoked_at < $1 OR expires_at < $1 OR uses >= max_uses)
            LIMIT $2)";
    pruned.join_tokens = tx.conn.execute(sql, args![before(join_tokens), at_most]).await?;
    let counts =
        [pruned.idempotency_keys, pruned.records, pruned.artifacts, pruned.events, pruned.join_tokens];
    let most = counts.into_iter().max();
    pruned.more = most.is_some_and(|most| most >= u64::from(limit));
    Ok(pruned)
}
