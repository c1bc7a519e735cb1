//! The writer of SQLite: the only one there is, in one transaction for a group, with a savepoint for each operation.

use std::collections::HashSet;

use tokio::sync::{broadcast, mpsc};

use super::error::keeps_transaction;
use crate::engine::conn::Conn;
use crate::engine::lock::Lock;
use crate::engine::value::args;
use crate::engine::writer::{Operation, Run, Tx, merge, run_together};
use crate::transfer::read_restored;
use crate::{Change, Error};

/// Opens a write transaction at once, so that no statement in it can fail for want of the lock.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// Ends a write transaction.
const COMMIT: &str = "COMMIT";

/// Ends a write transaction in which versions up to `$1` were drawn: two statements in one message to SQLite's thread.
/// There is one writer, so the counter lives with it and is written once a commit.
const COMMIT_VERSIONS: &str = "UPDATE counters SET value = $1 WHERE name = 'resource_version'; COMMIT";

/// How many operations one commit serves. Beyond this the wait of the first is longer than a flush takes.
const GROUP: usize = 128;

/// What the writer works on: it begins with the versions where the database has left off.
pub(super) async fn begin_with(mut conn: Conn) -> Result<Tx, Error> {
    let sql = "SELECT value FROM counters WHERE name = 'resource_version'";
    let row = conn.row(sql, args![]).await?;
    match row {
        Some(row) => {
            let version = row.cells("counters").int("value")?;
            let restored = read_restored(&mut conn).await?;
            Ok(Tx::new(conn, version, restored))
        }
        None => {
            Err(Error::Corrupt { table: "counters", column: "value", row: "resource_version".to_owned() })
        }
    }
}

/// Serves the queue until every sender is gone, then closes the connection and lets go of the lock.
pub(super) async fn serve(
    mut tx: Tx,
    mut queue: mpsc::Receiver<Box<dyn Operation>>,
    wake_ups: broadcast::Sender<Change>,
    lock: Option<Lock>,
) -> Result<(), Error> {
    let mut group = Vec::with_capacity(GROUP);
    while queue.recv_many(&mut group, GROUP).await > 0 {
        commit(&mut tx, std::mem::take(&mut group), &wake_ups).await;
    }
    let closed = tx.conn.close().await;
    drop(lock);
    closed
}

/// Runs a group in one transaction, sends its wake-ups and answers all of it.
async fn commit(tx: &mut Tx, mut group: Vec<Box<dyn Operation>>, wake_ups: &broadcast::Sender<Change>) {
    let mut failures: Vec<Option<Error>> = Vec::with_capacity(group.len());
    let mut changes = HashSet::new();
    let mut together = merge(&mut group);
    together.reverse();
    let mut savepoint = if group.len() > 1 { Savepoint::First } else { Savepoint::None };
    let mut failure = begin(tx).await.err();
    while failure.is_none()
        && let Some(range) = together.pop()
    {
        let result = run(tx, &mut group[range.clone()], savepoint).await;
        if let Savepoint::First = savepoint {
            savepoint = Savepoint::Next;
        }
        let Err(error) = result else {
            changes.extend(tx.take_changes());
            failures.resize(range.end, None);
            continue;
        };
        tx.take_changes().for_each(drop);
        tx.caches.rolled_back();
        if !keeps_transaction(&error) {
            failure = Some(error);
        } else if range.len() == 1 {
            failures.push(Some(error));
        } else {
            // One of them is in the others' way, and only that one fails.
            together.extend(range.rev().map(|number| number..number + 1));
        }
    }
    if failure.is_none() && failures.iter().any(Option::is_none) {
        failure = write_down(tx).await.err();
        if failure.is_none() {
            tx.committed();
        }
    } else {
        roll_back(tx).await;
    }
    if let Some(error) = &failure {
        roll_back(tx).await;
        tx.caches.rolled_back();
        changes.clear();
        tracing::warn!(kind = error.kind(), operations = group.len(), "a group of writes was taken back");
    }
    tx.caches.committed();
    // Before the answers, so that whoever has one need not wonder whether others have heard of it yet.
    for change in changes {
        // An error means that nobody listens just now.
        wake_ups.send(change).ok();
    }
    // Where the transaction is gone, what has not run has failed with the rest.
    failures.resize(group.len(), None);
    for (operation, own) in group.into_iter().zip(failures) {
        operation.answer(own.as_ref().or(failure.as_ref()));
    }
}

async fn write_down(tx: &mut Tx) -> Result<(), Error> {
    tx.conn.begin_operation("commit");
    match tx.drawn_version() {
        Some(version) => tx.conn.execute(COMMIT_VERSIONS, args![version]).await.map(drop),
        None => tx.conn.execute(COMMIT, args![]).await.map(drop),
    }
}

async fn begin(tx: &mut Tx) -> Result<(), Error> {
    tx.conn.begin_operation("begin");
    if tx.conn.execute(BEGIN, args![]).await.is_ok() {
        return Ok(());
    }
    // A transaction may have been left open by a rollback that failed.
    roll_back(tx).await;
    tx.conn.execute(BEGIN, args![]).await.map(drop)
}

async fn roll_back(tx: &mut Tx) {
    // The engine may have rolled back by itself, which makes this an error without meaning.
    if let Err(error) = tx.conn.execute("ROLLBACK", args![]).await {
        tracing::debug!(kind = error.kind(), "there was nothing to roll back");
    }
}

/// Runs operations that are done together; on an error their writes are taken back.
async fn run(tx: &mut Tx, operations: &mut [Box<dyn Operation>], savepoint: Savepoint) -> Result<(), Error> {
    tx.conn.begin_operation("savepoint");
    match savepoint {
        Savepoint::None => return run_together(tx, operations, Run::Once).await,
        Savepoint::First => tx.conn.execute("SAVEPOINT operation", args![]).await?,
        Savepoint::Next => tx.conn.execute("RELEASE operation; SAVEPOINT operation", args![]).await?,
    };
    let result = run_together(tx, operations, Run::Once).await;
    if let Err(error) = &result
        && keeps_transaction(error)
    {
        tx.conn.execute("ROLLBACK TO operation", args![]).await?;
    }
    result
}

/// How what is done together is kept apart from the others of its group. The savepoint of the last one ends with the commit.
#[derive(Clone, Copy)]
enum Savepoint {
    /// It is alone.
    None,
    /// It is the first of several.
    First,
    /// Its savepoint takes the place of the one before.
    Next,
}
