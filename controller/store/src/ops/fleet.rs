//! What operators do to nodes by a command, and the history of nodes.
//!
//! A hold is apart from the node's declared configuration: applying a manifest does not lift it, and lifting it does not
//! change the manifest. Every operation here is idempotent, and notes in the history only what changed.

use jiff::Timestamp;

use super::nodes;
use crate::engine::value::{Cells, Row, args, clean, ms, truncated, word};
use crate::engine::writer::Tx;
use crate::{
    Change, DrainRow, DrainStep, Error, NewDrain, NewNodeEvent, NodeEventKind, NodeEventRow, NodeHold,
    NodeRow, Overdue, Store,
};

/// How much of a node's history is kept: months of a node that comes and goes once a day.
const KEPT: i64 = 200;

impl Store {
    /// Keeps new jobs away from a node, from now on. A node that is held already stays as it is, a drain included.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn cordon_node(&self, now: Timestamp, name: &str) -> Result<NodeRow, Error> {
        let name = name.to_owned();
        self.write("cordon_node", move |tx| {
            Box::pin(async move {
                let row = nodes::require(tx, &name).await?;
                if row.hold.is_some() {
                    return Ok(row);
                }
                let sql = "INSERT INTO node_holds (node, since, drain, overdue) VALUES ($1, $2, 0, $3)";
                tx.conn.execute(sql, args![name.as_str(), ms(now), word(Overdue::default())]).await?;
                changed(tx, now, &name, NodeEventKind::Cordoned, "no new jobs").await
            })
        })
        .await
    }

    /// Keeps new jobs away from a node and has it emptied. A drain that is under way begins anew with these terms.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn drain_node(&self, now: Timestamp, name: &str, drain: NewDrain) -> Result<NodeRow, Error> {
        let name = name.to_owned();
        self.write("drain_node", move |tx| {
            Box::pin(async move {
                nodes::require(tx, &name).await?;
                let NewDrain { deadline_at, overdue } = drain;
                let sql = "
                    INSERT INTO node_holds (node, since, drain, deadline_at, overdue) VALUES ($1, $2, 1, $3, $4)
                    ON CONFLICT (node) DO UPDATE SET drain = 1, deadline_at = excluded.deadline_at,
                        overdue = excluded.overdue, stopping_at = NULL, drained_at = NULL";
                let args = args![name.as_str(), ms(now), deadline_at.map(ms), word(overdue)];
                tx.conn.execute(sql, args).await?;
                let message = match (deadline_at, overdue) {
                    (None, _) => "no new jobs; running ones are waited for".to_owned(),
                    (Some(at), Overdue::Requeue) => {
                        format!("no new jobs; at {at:.0} what may start again is requeued")
                    }
                    (Some(at), Overdue::Cancel) => format!("no new jobs; at {at:.0} what is left is cancelled"),
                };
                changed(tx, now, &name, NodeEventKind::DrainStarted, &message).await
            })
        })
        .await
    }

    /// Lifts what keeps new jobs away from a node, a drain included. What its manifest says stays.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn uncordon_node(&self, now: Timestamp, name: &str) -> Result<NodeRow, Error> {
        let name = name.to_owned();
        self.write("uncordon_node", move |tx| {
            Box::pin(async move {
                let row = nodes::require(tx, &name).await?;
                if row.hold.is_none() {
                    return Ok(row);
                }
                tx.conn.execute("DELETE FROM node_holds WHERE node = $1", args![name.as_str()]).await?;
                changed(tx, now, &name, NodeEventKind::Uncordoned, "new jobs again").await
            })
        })
        .await
    }

    /// Notes that a drain goes on, where it has not done so already; that it has finished only of a node that holds nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the node is not at `expected_version`.
    pub async fn advance_drain(
        &self,
        now: Timestamp,
        name: &str,
        step: DrainStep,
        expected_version: i64,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("advance_drain", move |tx| {
            Box::pin(async move {
                let row = nodes::require(tx, &name).await?;
                let (expected, found) = (expected_version, row.resource_version);
                if expected != found {
                    return Err(Error::Conflict { object: "node", key: name, expected, found });
                }
                let (sql, kind, message) = match step {
                    DrainStep::Stop => (
                        "UPDATE node_holds SET stopping_at = $2
                        WHERE node = $1 AND drain = 1 AND stopping_at IS NULL AND drained_at IS NULL",
                        NodeEventKind::DrainOverdue,
                        format!("the deadline has passed with {} attempts left", row.running),
                    ),
                    DrainStep::Finish => (
                        "UPDATE node_holds SET drained_at = $2
                        WHERE node = $1 AND drain = 1 AND drained_at IS NULL
                            AND NOT EXISTS (SELECT 1 FROM attempts WHERE node = $1 AND ended_at IS NULL)",
                        NodeEventKind::Drained,
                        "nothing runs on the node any more".to_owned(),
                    ),
                };
                if tx.conn.execute(sql, args![name.as_str(), ms(now)]).await? > 0 {
                    changed(tx, now, &name, kind, &message).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes something in a node's history, unless its last entry says the same. A node that is gone has no history.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn note_node(&self, now: Timestamp, name: &str, event: NewNodeEvent) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("note_node", move |tx| {
            Box::pin(async move {
                if nodes::get(&mut tx.conn, &name).await?.is_none() {
                    return Ok(());
                }
                let sql =
                    "SELECT kind, message FROM node_history WHERE node = $1 ORDER BY number DESC LIMIT 1";
                if let Some(last) = tx.conn.row(sql, args![name.as_str()]).await? {
                    let mut cells = last.cells("node_history");
                    let kind: NodeEventKind = cells.word("kind")?;
                    if kind == event.kind && cells.text("message")? == clean(&event.message) {
                        return Ok(());
                    }
                }
                note(tx, now, &name, event.kind, &event.message).await
            })
        })
        .await
    }

    /// What happened to a node, newest first: the last two hundred entries.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn node_history(&self, name: &str) -> Result<Vec<NodeEventRow>, Error> {
        let name = name.to_owned();
        self.read("node_history", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT number, at, kind, message FROM node_history WHERE node = $1 ORDER BY number DESC";
                let rows = conn.rows(sql, args![name]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("node_history");
                    Ok(NodeEventRow {
                        number: cells.int("number")?,
                        at: cells.time("at")?,
                        kind: cells.word("kind")?,
                        message: cells.text("message")?,
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }
}

/// Gives the node a new version, notes what happened, and wakes those who watch it.
async fn changed(
    tx: &mut Tx,
    now: Timestamp,
    name: &str,
    kind: NodeEventKind,
    message: &str,
) -> Result<NodeRow, Error> {
    note(tx, now, name, kind, message).await?;
    let version = tx.draw_version();
    tx.conn.execute("UPDATE nodes SET resource_version = $2 WHERE name = $1", args![name, version]).await?;
    tx.changed(Change::Node { name: name.to_owned() });
    nodes::require(tx, name).await
}

/// Notes something about a node that exists, and forgets the oldest entries.
pub(crate) async fn note(
    tx: &mut Tx,
    now: Timestamp,
    node: &str,
    kind: NodeEventKind,
    message: &str,
) -> Result<(), Error> {
    let sql = "SELECT number FROM node_history WHERE node = $1 ORDER BY number DESC LIMIT 1";
    let last = tx.conn.row(sql, args![node]).await?;
    let number =
        last.map(|row| row.cells("node_history").int("number")).transpose()?.map_or(1, |last| last + 1);
    let sql = "INSERT INTO node_history (node, number, at, kind, message) VALUES ($1, $2, $3, $4, $5)";
    let args = args![node, number, ms(truncated(now)), word(kind), clean(message)];
    tx.conn.execute(sql, args).await?;
    let sql = "DELETE FROM node_history WHERE node = $1 AND number <= $2";
    tx.conn.execute(sql, args![node, number - KEPT]).await.map(drop)
}

/// The columns of a hold, of `node_holds AS h`, which may be missing.
macro_rules! hold_columns {
    () => {
        "h.since, h.drain, h.deadline_at, h.overdue, h.stopping_at, h.drained_at"
    };
}
pub(crate) use hold_columns;

/// Reads a hold from [`hold_columns`].
pub(crate) fn read_hold(cells: &mut Cells<'_>) -> Result<Option<NodeHold>, Error> {
    let since = cells.opt_time("since")?;
    let drain = cells.opt_int("drain")?;
    let deadline_at = cells.opt_time("deadline_at")?;
    let overdue = cells.opt_word::<Overdue>("overdue")?;
    let stopping_at = cells.opt_time("stopping_at")?;
    let drained_at = cells.opt_time("drained_at")?;
    Ok(since.map(|since| NodeHold {
        since,
        drain: (drain == Some(1)).then_some(DrainRow {
            deadline_at,
            overdue: overdue.unwrap_or_default(),
            stopping_at,
            drained_at,
        }),
    }))
}
