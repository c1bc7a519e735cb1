//! What people do to jobs: change, cancel, retry, delete.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::JobPhase;

use super::expect_version;
use super::job_rows::{self, Stored, place, readiness};
use super::retention::remember_bodies;
use crate::engine::value::{args, int, json, last_ms, ms, truncated};
use crate::engine::writer::Tx;
use crate::{CancelOutcome, Change, DeleteOutcome, Error, JobPatch, JobRow, RetryOutcome, Store};

impl Store {
    /// Changes what may change after creation; a patch that changes nothing leaves the version as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the job is not at `expected_version`; [`Error::Invalid`] for a
    /// priority above 1000.
    pub async fn update_job(
        &self,
        now: Timestamp,
        uid: &str,
        patch: JobPatch,
        expected_version: Option<i64>,
    ) -> Result<JobRow, Error> {
        if let Some(priority) = patch.priority.filter(|priority| *priority > windlass_crds::Priority::MAX) {
            return Err(Error::Invalid { operation: "update_job", problem: format!("priority {priority}") });
        }
        let uid = uid.to_owned();
        self.write("update_job", move |tx| {
            Box::pin(async move { update(tx, truncated(now), &uid, patch, expected_version).await })
        })
        .await
    }

    /// Asks for a job to be cancelled. One that no node holds ends at once as `Cancelled`; one that a node holds ends
    /// when the node reports it. Asking again changes nothing.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn request_cancel(&self, now: Timestamp, uid: &str) -> Result<CancelOutcome, Error> {
        let uid = uid.to_owned();
        self.write("request_cancel", move |tx| {
            Box::pin(async move { cancel(tx, truncated(now), &uid).await })
        })
        .await
    }

    /// Puts an ended job back into its queue as if it had just been created, except that epochs and the number of
    /// attempts go on and earlier attempts and their logs stay.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn retry_job(&self, now: Timestamp, uid: &str) -> Result<RetryOutcome, Error> {
        let uid = uid.to_owned();
        self.write("retry_job", move |tx| Box::pin(async move { retry(tx, truncated(now), &uid).await }))
            .await
    }

    /// Deletes a job that no node holds, with its attempts, records and events. The bodies in the object store are
    /// yielded, and remembered until [`Store::confirm_removed`].
    ///
    /// # Errors
    /// [`Error::Conflict`] when the job is not at the version that is expected.
    pub async fn delete_job(
        &self,
        now: Timestamp,
        uid: &str,
        expected: Option<i64>,
    ) -> Result<DeleteOutcome, Error> {
        let uid = uid.to_owned();
        self.write("delete_job", move |tx| Box::pin(async move { delete(tx, now, &uid, expected).await }))
            .await
    }
}

/// The job as it is after a statement of this transaction.
async fn reread(tx: &mut Tx, uid: &str) -> Result<JobRow, Error> {
    let job = job_rows::by_uid(&mut tx.conn, uid).await?;
    job.map(|job| job.row).ok_or_else(|| Error::NotFound { object: "job", key: uid.to_owned() })
}

async fn update(
    tx: &mut Tx,
    now: Timestamp,
    uid: &str,
    patch: JobPatch,
    expected: Option<i64>,
) -> Result<JobRow, Error> {
    let Stored { id, place, row: job } = job_rows::by_uid(&mut tx.conn, uid)
        .await?
        .ok_or_else(|| Error::NotFound { object: "job", key: uid.to_owned() })?;
    expect_version("job", uid, expected, job.resource_version)?;
    let mut new = job.clone();
    new.suspend = patch.suspend.unwrap_or(job.suspend);
    new.priority = patch.priority.unwrap_or(job.priority);
    let ttl = patch.ttl_after_finished.unwrap_or(job.spec.ttl_after_finished);
    new.labels = patch.labels.unwrap_or(new.labels);
    new.annotations = patch.annotations.unwrap_or(new.annotations);
    let respecified =
        (new.suspend, new.priority, ttl) != (job.suspend, job.priority, job.spec.ttl_after_finished);
    let relabelled = new.labels != job.labels;
    if !respecified && !relabelled && new.annotations == job.annotations {
        return Ok(job);
    }
    let (ready_rank, due_at) = readiness(&new, place, now);
    let version = tx.draw_version();
    let sql = "
        UPDATE jobs SET suspend = $2, priority = $3, ttl_ms = $4, ready_rank = $5, due_at = $10,
            ttl_at = CASE WHEN $4 > $9 - finished_at THEN $9 ELSE finished_at + $4 END,
            generation = generation + $6, resource_version = $7
        WHERE id = $1 AND resource_version = $8";
    let args = args![
        id,
        i64::from(new.suspend),
        i64::from(new.priority),
        ttl.map(|ttl| int(ttl.millis())),
        ready_rank,
        i64::from(respecified),
        version,
        job.resource_version,
        last_ms(),
        due_at
    ];
    if tx.conn.execute(sql, args).await? != 1 {
        let (expected, found) = (job.resource_version, version);
        return Err(Error::Conflict { object: "job", key: uid.to_owned(), expected, found });
    }
    let sql = "UPDATE job_bodies SET labels = $2, annotations = $3 WHERE job_id = $1";
    tx.conn.execute(sql, args![id, json(&new.labels), json(&new.annotations)]).await?;
    if relabelled {
        unlabel(tx, id, &job.labels).await?;
        let sql = "INSERT INTO job_labels (key, value, job_id)
            SELECT e.value->>0, e.value->>1, $2 FROM json_each($1) AS e";
        let labels: Vec<_> = new.labels.iter().collect();
        tx.conn.execute(sql, args![json(&labels), id]).await?;
    }
    tx.changed(Change::Job { uid: uid.to_owned() });
    tx.changed(Change::Queued);
    reread(tx, uid).await
}

async fn unlabel(tx: &mut Tx, id: i64, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.is_empty() {
        return Ok(());
    }
    let sql = "
        DELETE FROM job_labels WHERE job_id = $2
            AND (key, value) IN (SELECT e.value->>0, e.value->>1 FROM json_each($1) AS e)";
    let labels: Vec<_> = labels.iter().collect();
    tx.conn.execute(sql, args![json(&labels), id]).await.map(drop)
}

async fn cancel(tx: &mut Tx, now: Timestamp, uid: &str) -> Result<CancelOutcome, Error> {
    let Some(Stored { id, row: job, .. }) = job_rows::by_uid(&mut tx.conn, uid).await? else {
        return Ok(CancelOutcome::NotFound);
    };
    if job.phase.is_terminal() {
        return Ok(CancelOutcome::AlreadyEnded(job));
    }
    if job.phase.is_held() {
        if job.cancel_requested_at.is_some() {
            return Ok(CancelOutcome::Requested(job));
        }
        let version = tx.draw_version();
        let sql = "
            UPDATE jobs SET cancel_requested_at = $2, resource_version = $3
            WHERE id = $1 AND phase IN ('Claimed', 'Running', 'Waiting') AND cancel_requested_at IS NULL";
        tx.conn.execute(sql, args![id, ms(now), version]).await?;
        tx.changed(Change::Job { uid: uid.to_owned() });
        if let Some(name) = job.node {
            tx.changed(Change::Node { name });
        }
        return Ok(CancelOutcome::Requested(reread(tx, uid).await?));
    }
    let version = tx.draw_version();
    // The logs of a job that never ran, or whose last attempt is all there, are complete.
    let sql = "
        UPDATE jobs SET phase = 'Cancelled', reason = 'CancelRequested', message = NULL,
            cancel_requested_at = $2, finished_at = $2, not_before = NULL, ready_rank = NULL, due_at = NULL,
            ttl_at = CASE WHEN ttl_ms > $4 - $2 THEN $4 ELSE $2 + ttl_ms END,
            logs_complete = CASE
                WHEN epoch = 0 THEN 1
                WHEN EXISTS (SELECT 1 FROM attempts AS a WHERE a.job_id = jobs.id AND a.epoch = jobs.epoch
                    AND a.received = a.last_sequence) THEN 1
                ELSE 0 END,
            resource_version = $3
        WHERE id = $1 AND phase IN ('PendingApproval', 'Queued')";
    tx.conn.execute(sql, args![id, ms(now), version, last_ms()]).await?;
    tx.changed(Change::Job { uid: uid.to_owned() });
    Ok(CancelOutcome::Cancelled(reread(tx, uid).await?))
}

async fn retry(tx: &mut Tx, now: Timestamp, uid: &str) -> Result<RetryOutcome, Error> {
    let Some(Stored { id, row: job, .. }) = job_rows::by_uid(&mut tx.conn, uid).await? else {
        return Ok(RetryOutcome::NotFound);
    };
    if !job.phase.is_terminal() {
        return Ok(RetryOutcome::NotEnded(job));
    }
    let version = tx.draw_version();
    let not_before = tx.restored.and_then(|restored| restored.not_before(id, JobPhase::Queued, now, None));
    let queued = JobRow { phase: JobPhase::Queued, not_before, ..job };
    // It waits anew: many jobs that are opened again long after must not push back everything that waits now.
    let place = place(now, id);
    let (ready_rank, due_at) = readiness(&queued, place, now);
    let sql = "
        UPDATE jobs SET phase = 'Queued', reason = NULL, message = NULL, exit_code = NULL, node = NULL,
            steps = '[]', unenforced = '[]', logs_complete = 0, lost_attempts = 0, failures = 0,
            cancel_requested_at = NULL, queued_at = $2, not_before = $6, started_at = NULL, finished_at = NULL,
            ttl_at = NULL, ready_rank = $4, due_at = $7, place = $5, resource_version = $3
        WHERE id = $1 AND finished_at IS NOT NULL";
    let args = args![id, ms(now), version, ready_rank, place, not_before.map(ms), due_at];
    tx.conn.execute(sql, args).await?;
    tx.changed(Change::Job { uid: uid.to_owned() });
    tx.changed(Change::Queued);
    Ok(RetryOutcome::Queued(reread(tx, uid).await?))
}

async fn delete(
    tx: &mut Tx,
    now: Timestamp,
    uid: &str,
    expected: Option<i64>,
) -> Result<DeleteOutcome, Error> {
    let Some(Stored { id, row: job, .. }) = job_rows::by_uid(&mut tx.conn, uid).await? else {
        return Ok(DeleteOutcome::NotFound);
    };
    expect_version("job", uid, expected, job.resource_version)?;
    match job.phase {
        JobPhase::Claimed | JobPhase::Running | JobPhase::Waiting => {
            return Ok(DeleteOutcome::StillHeld(job));
        }
        JobPhase::PendingApproval
        | JobPhase::Queued
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::TimedOut => {}
    }
    let mut bodies = Vec::new();
    for (table, sql) in [
        ("records", "SELECT object_key FROM records WHERE job_id = $1 AND object_key IS NOT NULL"),
        ("artifacts", "SELECT object_key FROM artifacts WHERE job_id = $1 AND object_key IS NOT NULL"),
    ] {
        for row in tx.conn.rows(sql, args![id]).await? {
            bodies.push(row.cells(table).text("object_key")?);
        }
    }
    remember_bodies(tx, now, &bodies).await?;
    unlabel(tx, id, &job.labels).await?;
    tx.conn.execute("DELETE FROM events WHERE job_uid = $1", args![uid]).await?;
    // Attempts, records, artifacts, bodies and the use of inputs go with the row.
    let sql = "DELETE FROM jobs WHERE id = $1 AND phase NOT IN ('Claimed', 'Running', 'Waiting')";
    if tx.conn.execute(sql, args![id]).await? != 1 {
        return Ok(DeleteOutcome::StillHeld(job));
    }
    tx.caches.specs.remove(uid);
    tx.caches.jobs.remove(uid);
    tx.changed(Change::Job { uid: uid.to_owned() });
    Ok(DeleteOutcome::Deleted { bodies })
}
