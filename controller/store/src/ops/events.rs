//! Events: writing and reading.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::value::{Cells, args, clean, json, ms, word};
use crate::engine::writer::Tx;
use crate::{Change, Error, EventRow, NewEvent, Store};

impl Store {
    /// Writes an event.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn append_event(&self, now: Timestamp, event: NewEvent) -> Result<(), Error> {
        self.append_events(now, vec![event]).await
    }

    /// Writes events, in order.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn append_events(&self, now: Timestamp, events: Vec<NewEvent>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        self.write("append_events", move |tx| Box::pin(append(tx, now, events))).await
    }

    /// Events after the position `after`, oldest first: those of a job, or all.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn events(
        &self,
        job: Option<&str>,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<EventRow>, Error> {
        const OF_JOB: &str = "SELECT id, at, job_uid, node, level, source, reason, message, data FROM events
            WHERE job_uid = $3 AND id > $1 ORDER BY id LIMIT $2";
        const ALL: &str = "SELECT id, at, job_uid, node, level, source, reason, message, data FROM events
            WHERE id > $1 ORDER BY id LIMIT $2";
        let mut args = args![after.unwrap_or(0), i64::from(limit)];
        let sql = match job {
            Some(uid) => {
                args.push(uid.into());
                OF_JOB
            }
            None => ALL,
        };
        self.read("events", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(sql, args).await?;
                rows.iter().map(|row| read(&mut row.cells("events"))).collect()
            })
        })
        .await
    }
}

fn read(cells: &mut Cells<'_>) -> Result<EventRow, Error> {
    Ok(EventRow {
        id: cells.int("id")?,
        at: cells.time("at")?,
        job: cells.opt_text("job_uid")?,
        node: cells.opt_text("node")?,
        level: cells.word("level")?,
        source: cells.text("source")?,
        reason: cells.text("reason")?,
        message: cells.text("message")?,
        data: cells.opt_json("data")?,
    })
}

/// An event as it is handed to its statement.
#[derive(Serialize)]
struct EventRecord {
    job: Option<String>,
    node: Option<String>,
    level: &'static str,
    source: String,
    reason: String,
    message: String,
    data: Option<String>,
}

/// Writes events inside a transaction.
pub(crate) async fn append(tx: &mut Tx, now: Timestamp, events: Vec<NewEvent>) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let jobs: HashSet<Option<String>> = events.iter().map(|event| event.job.clone()).collect();
    let rows: Vec<EventRecord> = events
        .into_iter()
        .map(|event| EventRecord {
            job: event.job,
            node: event.node,
            level: word(event.level),
            source: clean(&event.source),
            reason: clean(&event.reason),
            message: clean(&event.message),
            data: event.data.map(|data| json(&data)),
        })
        .collect();
    let sql = "
        WITH e AS MATERIALIZED (SELECT value AS v FROM json_each($1))
        INSERT INTO events (at, job_uid, node, level, source, reason, message, data, owned)
        SELECT $2, v->>'job', v->>'node', v->>'level', v->>'source', v->>'reason', v->>'message', v->>'data',
            CASE WHEN EXISTS (SELECT 1 FROM jobs AS j WHERE j.uid = e.v->>'job') THEN 1 ELSE 0 END
        FROM e";
    tx.conn.execute(sql, args![json(&rows), ms(now)]).await?;
    for job in jobs {
        tx.changed(Change::Event { job });
    }
    Ok(())
}
