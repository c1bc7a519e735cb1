//! Uploaded inputs.

use jiff::Timestamp;

use crate::engine::value::{Cells, args, int, ms};
use crate::{Error, InputRow, Store};

impl Store {
    /// Notes that an input's body is in the object store. Putting one again keeps it from being taken for unreferenced
    /// for as long as a new one would be.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn put_input(&self, now: Timestamp, input: InputRow) -> Result<(), Error> {
        self.write("put_input", move |tx| {
            Box::pin(async move {
                // An upload brings back a body that was about to be removed.
                let sql = "DELETE FROM body_removals WHERE key = $1";
                tx.conn.execute(sql, args![input.object_key.as_str()]).await?;
                let sql = "
                    INSERT INTO inputs (digest, size, object_key, put_at) VALUES ($1, $2, $3, $4)
                    ON CONFLICT (digest) DO UPDATE SET put_at = excluded.put_at, object_key = excluded.object_key,
                        size = excluded.size";
                tx.conn
                    .execute(sql, args![input.digest, int(input.size), input.object_key, ms(now)])
                    .await
                    .map(drop)
            })
        })
        .await
    }

    /// The input with this digest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_input(&self, digest: &str) -> Result<Option<InputRow>, Error> {
        let digest = digest.to_owned();
        self.read("get_input", move |conn| {
            Box::pin(async move {
                let sql = "SELECT digest, size, object_key FROM inputs WHERE digest = $1";
                let row = conn.row(sql, args![digest]).await?;
                row.map(|row| read(&mut row.cells("inputs"))).transpose()
            })
        })
        .await
    }

    /// Inputs that no job names and that were last put before `older_than`, oldest first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn unreferenced_inputs(
        &self,
        older_than: Timestamp,
        limit: u32,
    ) -> Result<Vec<InputRow>, Error> {
        self.read("unreferenced_inputs", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT i.digest, i.size, i.object_key FROM inputs AS i
                    WHERE i.put_at < $1 AND NOT EXISTS (SELECT 1 FROM job_inputs AS u WHERE u.digest = i.digest)
                    ORDER BY i.put_at LIMIT $2";
                let rows = conn.rows(sql, args![ms(older_than), i64::from(limit)]).await?;
                rows.iter().map(|row| read(&mut row.cells("inputs"))).collect()
            })
        })
        .await
    }

    /// Forgets an input; yields the key of its body, which is remembered until [`Store::confirm_removed`]. `None` where
    /// there is no such input.
    ///
    /// # Errors
    /// [`Error::InUse`] while a job names it.
    pub async fn delete_input(&self, now: Timestamp, digest: &str) -> Result<Option<String>, Error> {
        let digest = digest.to_owned();
        self.write("delete_input", move |tx| {
            Box::pin(async move {
                let sql = "
                    SELECT j.uid FROM job_inputs AS u JOIN jobs AS j ON j.id = u.job_id WHERE u.digest = $1 LIMIT 1";
                if let Some(row) = tx.conn.row(sql, args![digest.as_str()]).await? {
                    let by = format!("job {}", row.cells("jobs").text("uid")?);
                    return Err(Error::InUse { object: "input", key: digest, by });
                }
                let sql = "DELETE FROM inputs WHERE digest = $1 RETURNING object_key";
                let Some(row) = tx.conn.row(sql, args![digest]).await? else { return Ok(None) };
                let key = row.cells("inputs").text("object_key")?;
                super::retention::remember_bodies(tx, now, std::slice::from_ref(&key)).await?;
                Ok(Some(key))
            })
        })
        .await
    }
}

fn read(cells: &mut Cells<'_>) -> Result<InputRow, Error> {
    Ok(InputRow {
        digest: cells.text("digest")?,
        size: cells.number("size")?,
        object_key: cells.text("object_key")?,
    })
}
