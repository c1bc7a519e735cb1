//! Secrets, sealed.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::engine::value::{Cells, args, int, ms};
use crate::{Error, PutSecret, SealedValue, SecretEntryRow, SecretValueRow, Store};

impl Store {
    /// Sets values of a Secret, all or none; its other keys stay. A Secret may have at most `most` keys.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn put_secret(
        &self,
        now: Timestamp,
        (namespace, name): (&str, &str),
        values: Vec<SealedValue>,
        most: usize,
    ) -> Result<PutSecret, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.write("put_secret", move |tx| {
            Box::pin(async move {
                let sql = "SELECT entry FROM secret_values WHERE namespace = $1 AND name = $2";
                let rows = tx.conn.rows(sql, args![namespace.as_str(), name.as_str()]).await?;
                let known: Result<BTreeSet<String>, Error> =
                    rows.iter().map(|row| row.cells("secret_values").text("entry")).collect();
                let known = known?;
                let mut all = known.clone();
                all.extend(values.iter().map(|value| value.entry.clone()));
                if all.len() > most {
                    return Ok(PutSecret::TooManyKeys(all.len()));
                }
                let version = tx.draw_version();
                for value in values {
                    let SealedValue { entry, key_id, wrapped_key, sealed, size } = value;
                    let sql = "
                        INSERT INTO secret_values
                            (namespace, name, entry, key_id, wrapped_key, sealed, size, created_at, updated_at, version)
                        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)
                        ON CONFLICT (namespace, name, entry) DO UPDATE SET
                            key_id = excluded.key_id, wrapped_key = excluded.wrapped_key, sealed = excluded.sealed,
                            size = excluded.size, updated_at = excluded.updated_at, version = excluded.version";
                    let args = args![
                        namespace.as_str(),
                        name.as_str(),
                        entry,
                        key_id,
                        wrapped_key,
                        sealed,
                        int(size),
                        ms(now),
                        version
                    ];
                    tx.conn.execute(sql, args).await?;
                }
                Ok(if known.is_empty() { PutSecret::Created } else { PutSecret::Updated })
            })
        })
        .await
    }

    /// The values of a Secret by key; none where there is no such Secret.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn secret_values(&self, namespace: &str, name: &str) -> Result<Vec<SecretValueRow>, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.read("secret_values", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT namespace, name, entry, key_id, wrapped_key, sealed, size, version
                    FROM secret_values WHERE namespace = $1 AND name = $2 ORDER BY entry";
                let rows = conn.rows(sql, args![namespace, name]).await?;
                rows.iter().map(|row| read_value(&mut row.cells("secret_values"))).collect()
            })
        })
        .await
    }

    /// What there is of Secrets in a namespace, or in all, by namespace, name and key; without the values.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_secrets(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<Vec<SecretEntryRow>, Error> {
        let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
        self.read("list_secrets", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT namespace, name, entry, size, key_id, created_at, updated_at FROM secret_values
                    WHERE ($1 IS NULL OR namespace = $1) AND ($2 IS NULL OR name = $2)
                    ORDER BY namespace, name, entry";
                let rows = conn.rows(sql, args![namespace, name]).await?;
                rows.iter().map(|row| read_entry(&mut row.cells("secret_values"))).collect()
            })
        })
        .await
    }

    /// Deletes a Secret, or one key of it; yields how many values that were.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn delete_secret(
        &self,
        namespace: &str,
        name: &str,
        entry: Option<&str>,
    ) -> Result<u64, Error> {
        let (namespace, name, entry) = (namespace.to_owned(), name.to_owned(), entry.map(str::to_owned));
        self.write("delete_secret", move |tx| {
            Box::pin(async move {
                let sql = "
                    DELETE FROM secret_values
                    WHERE namespace = $1 AND name = $2 AND ($3 IS NULL OR entry = $3)";
                tx.conn.execute(sql, args![namespace, name, entry]).await
            })
        })
        .await
    }

    /// The keys that wrap values, each with the number of those.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn secret_keys(&self) -> Result<Vec<(String, u64)>, Error> {
        self.read("secret_keys", move |conn| {
            Box::pin(async move {
                let sql =
                    "SELECT key_id, count(*) AS uses FROM secret_values GROUP BY key_id ORDER BY key_id";
                let rows = conn.rows(sql, args![]).await?;
                let read = |cells: &mut Cells<'_>| Ok((cells.text("key_id")?, cells.number("uses")?));
                rows.iter().map(|row| read(&mut row.cells("secret_values"))).collect()
            })
        })
        .await
    }

    /// Values that another key than this one wraps, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn secrets_under_other_keys(
        &self,
        key_id: &str,
        limit: u32,
    ) -> Result<Vec<SecretValueRow>, Error> {
        let key_id = key_id.to_owned();
        self.read("secrets_under_other_keys", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT namespace, name, entry, key_id, wrapped_key, sealed, size, version
                    FROM secret_values WHERE key_id <> $1 ORDER BY namespace, name, entry LIMIT $2";
                let rows = conn.rows(sql, args![key_id, i64::from(limit)]).await?;
                rows.iter().map(|row| read_value(&mut row.cells("secret_values"))).collect()
            })
        })
        .await
    }

    /// Puts the keys of values, newly wrapped, in place of the former; yields how many were. One whose row has changed since
    /// it was read stays as it is.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn rewrap_secrets(&self, rows: Vec<SecretValueRow>) -> Result<u64, Error> {
        self.write("rewrap_secrets", move |tx| {
            Box::pin(async move {
                let version = tx.draw_version();
                let mut changed = 0;
                for row in rows {
                    let sql = "
                        UPDATE secret_values SET key_id = $5, wrapped_key = $6, version = $7
                        WHERE namespace = $1 AND name = $2 AND entry = $3 AND version = $4";
                    let SealedValue { entry, key_id, wrapped_key, .. } = row.value;
                    let args =
                        args![row.namespace, row.name, entry, row.version, key_id, wrapped_key, version];
                    changed += tx.conn.execute(sql, args).await?;
                }
                Ok(changed)
            })
        })
        .await
    }

    /// Removes the values that this key wraps; yields how many there were.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn discard_secrets(&self, key_id: &str) -> Result<u64, Error> {
        let key_id = key_id.to_owned();
        self.write("discard_secrets", move |tx| {
            Box::pin(async move {
                tx.conn.execute("DELETE FROM secret_values WHERE key_id = $1", args![key_id]).await
            })
        })
        .await
    }
}

fn read_value(cells: &mut Cells<'_>) -> Result<SecretValueRow, Error> {
    let (namespace, name) = (cells.text("namespace")?, cells.text("name")?);
    let value = SealedValue {
        entry: cells.text("entry")?,
        key_id: cells.text("key_id")?,
        wrapped_key: cells.bytes("wrapped_key")?,
        sealed: cells.bytes("sealed")?,
        size: cells.number("size")?,
    };
    Ok(SecretValueRow { namespace, name, value, version: cells.int("version")? })
}

fn read_entry(cells: &mut Cells<'_>) -> Result<SecretEntryRow, Error> {
    Ok(SecretEntryRow {
        namespace: cells.text("namespace")?,
        name: cells.text("name")?,
        entry: cells.text("entry")?,
        size: cells.number("size")?,
        key_id: cells.text("key_id")?,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
    })
}
