//! Artifacts: what attempts have left, and where their bodies are.
//!
//! # Guarantees
//! - An artifact has a row from when its manifest is stored: a body that does not come is a gap that shows.
//! - It has one body at most. The first that comes stays.
//! - The bodies of an attempt have [`MAX_ARTIFACTS_BYTES`] together at most, however many come at the same time.
//! - A body whose node is gone is not waited for.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_crds::protocol::{Artifact, ArtifactKind, AttemptId, MAX_ARTIFACTS_BYTES};

use crate::engine::value::{Cells, Value, args, clean, clean_opt, int, json, ms};
use crate::engine::writer::Tx;
use crate::{ArtifactOutcome, ArtifactRow, Change, Error, NewRecord, RecordStore, Store};

/// The columns of an artifact, of `artifacts AS f` and `attempts AS a`.
macro_rules! columns {
    () => {
        "f.epoch, a.number AS attempt, a.node, f.number, f.name, f.kind, f.size, f.sha256, f.refused, f.collected_at,
            f.superseded, f.object_key, f.stored_at, f.lost"
    };
}

/// The statement that reads the artifacts of which this holds, with `jobs AS j` too.
macro_rules! where_artifacts {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM jobs AS j JOIN artifacts AS f ON f.job_id = j.id
            JOIN attempts AS a ON a.job_id = f.job_id AND a.epoch = f.epoch
            WHERE ",
            $condition,
            " ORDER BY f.epoch, f.number"
        )
    };
}

/// An entry of a manifest as it is handed to its statement.
#[derive(Serialize)]
pub(super) struct Told {
    job_id: i64,
    epoch: i64,
    number: u32,
    name: String,
    kind: ArtifactKind,
    size: i64,
    sha256: Option<String>,
    refused: Option<String>,
    at: i64,
    superseded: i64,
}

/// The entries of a record that is new.
///
/// # Errors
/// [`Error::Invalid`] where the record's body is no manifest.
pub(super) fn told(job_id: i64, superseded: bool, record: &NewRecord) -> Result<Vec<Told>, Error> {
    #[derive(Deserialize)]
    struct Manifest {
        items: Vec<Artifact>,
    }
    let invalid = |problem: String| Error::Invalid { operation: "apply", problem };
    let body = match &record.body {
        RecordStore::Json(body) => body.clone(),
        RecordStore::Inline(_) | RecordStore::Object { .. } | RecordStore::None => {
            return Err(invalid("a manifest of artifacts that is not JSON".to_owned()));
        }
    };
    let Manifest { items } = serde_json::from_value(body)
        .map_err(|error| invalid(format!("a manifest of artifacts that cannot be read: {error}")))?;
    let entry = |Artifact { number, name, kind, size, sha256, refused }: Artifact| Told {
        job_id,
        epoch: int(record.attempt.epoch),
        number,
        name: clean(&name),
        kind,
        size: int(size),
        sha256,
        refused: clean_opt(refused.as_ref()),
        at: ms(record.at),
        superseded: i64::from(superseded),
    };
    Ok(items.into_iter().map(entry).collect())
}

/// Makes rows of entries. A number that is taken, and a second artifact of one name, is left out.
pub(super) async fn note(tx: &mut Tx, now: Timestamp, told: &[Told]) -> Result<(), Error> {
    if told.is_empty() {
        return Ok(());
    }
    let sql = "
        WITH f AS MATERIALIZED (SELECT value AS v FROM json_each($1))
        INSERT INTO artifacts (job_id, epoch, number, name, kind, size, sha256, refused, collected_at, superseded,
            received_at)
        SELECT CAST(f.v->>'job_id' AS BIGINT), CAST(f.v->>'epoch' AS BIGINT), CAST(f.v->>'number' AS BIGINT),
            f.v->>'name', f.v->>'kind', CAST(f.v->>'size' AS BIGINT), f.v->>'sha256', f.v->>'refused',
            CAST(f.v->>'at' AS BIGINT), CAST(f.v->>'superseded' AS BIGINT), $2
        FROM f WHERE true ON CONFLICT DO NOTHING";
    tx.conn.execute(sql, args![json(told), ms(now)]).await.map(drop)
}

/// Notes of everything that a node still had to send why it will never come. What comes all the same is taken.
pub(super) async fn abandon(tx: &mut Tx, node: &str, reason: &str) -> Result<(), Error> {
    let sql = "
        UPDATE artifacts SET lost = $2
        WHERE object_key IS NULL AND refused IS NULL AND lost IS NULL AND EXISTS (
            SELECT 1 FROM attempts AS a
            WHERE a.job_id = artifacts.job_id AND a.epoch = artifacts.epoch AND a.node = $1)
        RETURNING (SELECT j.uid FROM jobs AS j WHERE j.id = artifacts.job_id) AS uid";
    let mut jobs = BTreeSet::new();
    for row in tx.conn.rows(sql, args![node, reason]).await? {
        jobs.insert(row.cells("artifacts").text("uid")?);
    }
    for uid in jobs {
        tx.changed(Change::Records { uid });
    }
    Ok(())
}

impl Store {
    /// The artifacts of a job, in the order of attempts and of their manifests.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn artifacts(&self, uid: &str) -> Result<Vec<ArtifactRow>, Error> {
        self.select(where_artifacts!("j.uid = $1"), args![uid]).await
    }

    /// The artifacts of this name that an attempt of a job has left, in the order of its manifest: one at most that was not
    /// refused.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn artifacts_named(&self, attempt: &AttemptId, name: &str) -> Result<Vec<ArtifactRow>, Error> {
        let args = args![attempt.job.as_str(), int(attempt.epoch), name];
        self.select(where_artifacts!("j.uid = $1 AND f.epoch = $2 AND f.name = $3"), args).await
    }

    /// The epochs of a job's attempts, with their numbers, of which there is an artifact of this name, the last one first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn attempts_with_artifact(&self, uid: &str, name: &str) -> Result<Vec<(u64, u32)>, Error> {
        let found = self.select(where_artifacts!("j.uid = $1 AND f.name = $2"), args![uid, name]).await?;
        let mut attempts: Vec<_> = found.into_iter().map(|row| (row.epoch, row.attempt)).collect();
        attempts.dedup();
        attempts.reverse();
        Ok(attempts)
    }

    /// The artifact that has this number in the manifest of an attempt.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn artifact(&self, attempt: &AttemptId, number: u32) -> Result<Option<ArtifactRow>, Error> {
        let args = args![attempt.job.as_str(), int(attempt.epoch), i64::from(number)];
        let found = self.select(where_artifacts!("j.uid = $1 AND f.epoch = $2 AND f.number = $3"), args);
        Ok(found.await?.pop())
    }

    async fn select(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<ArtifactRow>, Error> {
        self.read("artifacts", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(sql, args).await?;
                rows.iter().map(|row| read(&mut row.cells("artifacts"))).collect()
            })
        })
        .await
    }

    /// An artifact of an attempt that `node` has or had, and how many bytes of that attempt's artifacts there are already;
    /// `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn artifact_of_node(
        &self,
        node: &str,
        attempt: &AttemptId,
        number: u32,
    ) -> Result<Option<(ArtifactRow, u64)>, Error> {
        let args = args![attempt.job.as_str(), int(attempt.epoch), i64::from(number), node];
        self.read("artifact_of_node", move |conn| {
            Box::pin(async move {
                const SQL: &str = concat!(
                    "SELECT ",
                    columns!(),
                    ", (SELECT CAST(coalesce(sum(o.size), 0) AS BIGINT) FROM artifacts AS o
                        WHERE o.job_id = f.job_id AND o.epoch = f.epoch AND o.object_key IS NOT NULL) AS stored
                    FROM jobs AS j JOIN artifacts AS f ON f.job_id = j.id
                    JOIN attempts AS a ON a.job_id = f.job_id AND a.epoch = f.epoch
                    WHERE j.uid = $1 AND f.epoch = $2 AND f.number = $3 AND a.node = $4"
                );
                let Some(row) = conn.row(SQL, args).await? else { return Ok(None) };
                let mut cells = row.cells("artifacts");
                let artifact = read(&mut cells)?;
                Ok(Some((artifact, cells.number("stored")?)))
            })
        })
        .await
    }

    /// Notes that the body of an artifact is in the object store under this key. Unless the answer is
    /// [`ArtifactOutcome::Stored`], that object stays the caller's to remove.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn store_artifact(
        &self,
        now: Timestamp,
        node: &str,
        attempt: &AttemptId,
        number: u32,
        key: &str,
    ) -> Result<ArtifactOutcome, Error> {
        let (node, attempt, key) = (node.to_owned(), attempt.clone(), key.to_owned());
        self.write("store_artifact", move |tx| {
            Box::pin(async move {
                let sql = "
                    UPDATE artifacts SET object_key = $5, stored_at = $6, lost = NULL
                    WHERE epoch = $2 AND number = $3 AND object_key IS NULL AND refused IS NULL
                        AND job_id = (
                            SELECT a.job_id FROM jobs AS j JOIN attempts AS a ON a.job_id = j.id
                            WHERE j.uid = $1 AND a.epoch = $2 AND a.node = $4)
                        AND size + (
                            SELECT coalesce(sum(o.size), 0) FROM artifacts AS o
                            WHERE o.job_id = artifacts.job_id AND o.epoch = artifacts.epoch
                                AND o.object_key IS NOT NULL) <= $7";
                let id = args![attempt.job.as_str(), int(attempt.epoch), i64::from(number), node.as_str()];
                let mut args = id.clone();
                args.extend(args![key, ms(now), int(MAX_ARTIFACTS_BYTES)]);
                if tx.conn.execute(sql, args).await? == 1 {
                    tx.changed(Change::Records { uid: attempt.job });
                    return Ok(ArtifactOutcome::Stored);
                }
                let sql = "
                    SELECT f.object_key FROM jobs AS j JOIN artifacts AS f ON f.job_id = j.id
                    JOIN attempts AS a ON a.job_id = f.job_id AND a.epoch = f.epoch
                    WHERE j.uid = $1 AND f.epoch = $2 AND f.number = $3 AND a.node = $4 AND f.refused IS NULL";
                let Some(row) = tx.conn.row(sql, id).await? else { return Ok(ArtifactOutcome::Gone) };
                let key = row.cells("artifacts").opt_text("object_key")?;
                Ok(if key.is_some() { ArtifactOutcome::Known } else { ArtifactOutcome::Full })
            })
        })
        .await
    }

    /// Notes of artifacts, by their numbers, why their bodies will never come. One that has a body keeps it.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn lose_artifacts(
        &self,
        node: &str,
        attempt: &AttemptId,
        lost: &[(u32, String)],
    ) -> Result<(), Error> {
        let rows: Vec<_> = lost.iter().map(|(number, reason)| (i64::from(*number), clean(reason))).collect();
        let (node, attempt) = (node.to_owned(), attempt.clone());
        self.write("lose_artifacts", move |tx| {
            Box::pin(async move {
                let sql = "
                    WITH e AS MATERIALIZED (
                        SELECT CAST(value->>0 AS BIGINT) AS number, value->>1 AS reason FROM json_each($1))
                    UPDATE artifacts SET lost = e.reason FROM e
                    WHERE artifacts.number = e.number AND artifacts.epoch = $3 AND artifacts.object_key IS NULL
                        AND artifacts.refused IS NULL
                        AND artifacts.job_id = (
                            SELECT a.job_id FROM jobs AS j JOIN attempts AS a ON a.job_id = j.id
                            WHERE j.uid = $2 AND a.epoch = $3 AND a.node = $4)";
                let args = args![json(&rows), attempt.job.as_str(), int(attempt.epoch), node.as_str()];
                if tx.conn.execute(sql, args).await? > 0 {
                    tx.changed(Change::Records { uid: attempt.job });
                }
                Ok(())
            })
        })
        .await
    }
}

fn read(cells: &mut Cells<'_>) -> Result<ArtifactRow, Error> {
    let epoch = cells.number("epoch")?;
    let attempt = cells.number("attempt")?;
    let node = cells.text("node")?;
    let artifact = Artifact {
        number: cells.number("number")?,
        name: cells.text("name")?,
        kind: cells.word("kind")?,
        size: cells.number("size")?,
        sha256: cells.opt_text("sha256")?,
        refused: cells.opt_text("refused")?,
    };
    Ok(ArtifactRow {
        epoch,
        attempt,
        node,
        artifact,
        collected_at: cells.time("collected_at")?,
        superseded: cells.flag("superseded")?,
        object_key: cells.opt_text("object_key")?,
        stored_at: cells.opt_time("stored_at")?,
        lost: cells.opt_text("lost")?,
    })
}
