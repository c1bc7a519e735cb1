//! Nodes that are given their jobs by the controller: the tokens for that, and how it went.

use jiff::{SignedDuration, Timestamp};

use super::{fleet, nodes};
use crate::engine::value::{Cells, args, clean, int, ms, truncated};
use crate::engine::writer::Tx;
use crate::{Change, Error, NodeEventKind, NodeRow, PushRow, Store};

/// How often it is noted that a node takes jobs: people look at it, and each note is a write.
const NOTE_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// The columns of what is known of calls, of `node_push AS p`, which may be missing.
macro_rules! push_columns {
    () => {
        "p.serial, p.since_version, p.issued_at, p.former_issued_at, p.delivered_at, p.error, p.error_since"
    };
}
pub(crate) use push_columns;

/// Reads [`push_columns`].
pub(crate) fn read_push(cells: &mut Cells<'_>) -> Result<Option<PushRow>, Error> {
    let serial = cells.opt_number("serial")?;
    let since_version = cells.opt_number("since_version")?;
    let issued_at = cells.opt_time("issued_at")?;
    let former_issued_at = cells.opt_time("former_issued_at")?;
    let delivered_at = cells.opt_time("delivered_at")?;
    let error = cells.opt_text("error")?;
    let error_since = cells.opt_time("error_since")?;
    let token = serial.zip(since_version).zip(issued_at);
    Ok(token.map(|((serial, since_version), issued_at)| PushRow {
        serial,
        since_version,
        issued_at,
        former_issued_at,
        delivered_at,
        error,
        error_since,
    }))
}

impl Store {
    /// Issues another token for calls to a node, in place of the one with the number `expected`, 0 where there is none. Its
    /// configuration becomes a newer one by that, unless it holds no token yet and the node has not answered for it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where somebody else was quicker.
    pub async fn issue_worker_token(
        &self,
        now: Timestamp,
        name: &str,
        expected: u64,
    ) -> Result<NodeRow, Error> {
        let name = name.to_owned();
        self.write("issue_worker_token", move |tx| {
            Box::pin(async move { issue(tx, truncated(now), &name, expected).await })
        })
        .await
    }

    /// Notes that a node has taken a job, or why it could not be given one. What is known already is not written again.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn note_delivery(
        &self,
        now: Timestamp,
        name: &str,
        outcome: Result<(), String>,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("note_delivery", move |tx| {
            Box::pin(async move { note(tx, truncated(now), &name, outcome).await })
        })
        .await
    }
}

async fn issue(tx: &mut Tx, now: Timestamp, name: &str, expected: u64) -> Result<NodeRow, Error> {
    let node = nodes::require(tx, name).await?;
    let found = node.push.as_ref().map_or(0, |push| push.serial);
    if found != expected {
        let number = |serial: u64| i64::try_from(serial).unwrap_or(i64::MAX);
        let (expected, found) = (number(expected), number(found));
        return Err(Error::Conflict { object: "worker token", key: name.to_owned(), expected, found });
    }
    let answered = node.acked_version.is_some_and(|acked| acked >= node.config_version);
    let version = if found > 0 || answered {
        let version = nodes::declare_again(tx, now, &node).await?;
        follow(tx, name, node.config_version, version).await?;
        version
    } else {
        node.config_version
    };
    let sql = "
        INSERT INTO node_push (node, serial, since_version, issued_at) VALUES ($1, 1, $2, $3)
        ON CONFLICT (node) DO UPDATE SET serial = node_push.serial + 1, since_version = excluded.since_version,
            issued_at = excluded.issued_at, former_issued_at = node_push.issued_at";
    tx.conn.execute(sql, args![name, int(version), ms(now)]).await?;
    tx.changed(Change::Node { name: name.to_owned() });
    nodes::require(tx, name).await
}

/// Lets roll-outs know that the version which they have declared is now another one: nobody has changed the node's
/// configuration. What was decided on the one before is decided again.
async fn follow(tx: &mut Tx, name: &str, before: u64, version: u64) -> Result<(), Error> {
    let sql = "
        UPDATE rollouts SET version = version + 1 WHERE id IN (
            SELECT n.rollout_id FROM rollout_nodes AS n WHERE n.node = $1 AND n.config_version = $2)";
    if tx.conn.execute(sql, args![name, int(before)]).await? > 0 {
        let sql = "UPDATE rollout_nodes SET config_version = $3 WHERE node = $1 AND config_version = $2";
        tx.conn.execute(sql, args![name, int(before), int(version)]).await?;
    }
    Ok(())
}

async fn note(tx: &mut Tx, now: Timestamp, name: &str, outcome: Result<(), String>) -> Result<(), Error> {
    let Some(node) = nodes::get(&mut tx.conn, name).await? else { return Ok(()) };
    let Some(push) = node.push else { return Ok(()) };
    match outcome {
        Ok(()) => {
            let fresh = push.delivered_at.is_some_and(|at| now.duration_since(at).abs() < NOTE_EVERY);
            if push.error.is_none() && fresh {
                return Ok(());
            }
            let sql =
                "UPDATE node_push SET delivered_at = $2, error = NULL, error_since = NULL WHERE node = $1";
            tx.conn.execute(sql, args![name, ms(now)]).await?;
            if push.error.is_some() {
                fleet::note(tx, now, name, NodeEventKind::Reached, "jobs can be given to it again").await?;
            }
        }
        Err(error) => {
            let error = clean(&error);
            if push.error.as_ref() == Some(&error) {
                return Ok(());
            }
            let since = push.error_since.unwrap_or(now);
            let sql = "UPDATE node_push SET error = $2, error_since = $3 WHERE node = $1";
            tx.conn.execute(sql, args![name, error.as_str(), ms(since)]).await?;
            if push.error.is_none() {
                fleet::note(tx, now, name, NodeEventKind::Unreached, &error).await?;
            }
        }
    }
    let version = tx.draw_version();
    let sql = "UPDATE nodes SET resource_version = $2 WHERE name = $1";
    tx.conn.execute(sql, args![name, version]).await?;
    tx.changed(Change::Node { name: name.to_owned() });
    Ok(())
}
