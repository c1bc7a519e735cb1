//! The writer task: group commit.
//!
//! # Flow
//! Operations wait in a bounded queue. The task takes all that wait, opens one transaction, runs each inside a savepoint,
//! commits once, and only then sends their wake-ups and answers all of them. While one group is being committed the next
//! one gathers, so that under load one flush to disk serves many callers and an idle store answers at once.
//!
//! # Guarantees
//! An operation that fails takes back its own writes and nobody else's. An answer is sent after its commit is on disk.
//! When the engine gives up the whole transaction (a full disk), all operations of the group fail with that error and
//! none of them has happened.
//!
//! # Caveats
//! An operation runs to its end also when nobody waits for the answer any more.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::caches::Caches;
use super::conn::{Conn, keeps_transaction};
use super::dialect;
use super::lock::Lock;
use super::value::args;
use crate::{Change, Error};

/// A future that borrows and can move between threads.
pub(crate) type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// How many operations one commit serves. Beyond this the wait of the first is longer than a flush takes.
const GROUP: usize = 128;

/// What an operation works on: the connection inside the transaction, and what goes with it.
pub(crate) struct Tx {
    pub(crate) conn: Conn,
    pub(crate) caches: Caches,
    changes: Vec<Change>,
    /// The last version that was drawn. It stays drawn when the transaction is taken back.
    version: i64,
    /// The last version that is known to be on disk.
    committed_version: i64,
}

impl Tx {
    /// Begins with the versions where the database has left off.
    pub(crate) async fn new(mut conn: Conn) -> Result<Self, Error> {
        let sql = "SELECT value FROM counters WHERE name = 'resource_version'";
        let row = conn.row(sql, args![]).await?;
        let version = match row {
            Some(row) => row.cells("counters").int("value")?,
            None => {
                let row = "resource_version".to_owned();
                return Err(Error::Corrupt { table: "counters", column: "value", row });
            }
        };
        let caches = Caches::default();
        Ok(Self { conn, caches, changes: Vec::new(), version, committed_version: version })
    }

    /// Sends a wake-up after the commit.
    pub(crate) fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Draws a version that is higher than all before.
    pub(crate) fn draw_version(&mut self) -> i64 {
        self.draw_versions(1)
    }

    /// Draws `count` consecutive versions and yields the last.
    pub(crate) fn draw_versions(&mut self, count: usize) -> i64 {
        self.version += i64::try_from(count).expect("a batch fits into memory");
        self.version
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.conn.begin_operation("commit");
        if self.version == self.committed_version {
            self.conn.execute(dialect::COMMIT, args![]).await?;
        } else {
            self.conn.execute(dialect::COMMIT_VERSIONS, args![self.version]).await?;
            self.committed_version = self.version;
        }
        Ok(())
    }
}

/// Something for the writer task to do.
pub(crate) trait Operation: Send {
    /// Does it inside the transaction (or, for a lookup, just on the connection); keeps the result.
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Result<(), Error>>;

    /// Answers the caller: the result, or `failure` in place of it.
    fn answer(self: Box<Self>, failure: Option<&Error>);
}

/// An operation made of a closure.
pub(crate) struct Queued<T, F> {
    name: &'static str,
    body: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Queued<T, F>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
{
    pub(crate) fn new(name: &'static str, body: F) -> (Box<Self>, oneshot::Receiver<Result<T, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { name, body: Some(body), result: None, reply }), answer)
    }
}

impl<T, F> Operation for Queued<T, F>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Result<(), Error>> {
        Box::pin(async move {
            tx.conn.begin_operation(self.name);
            let body = self.body.take().expect("the writer runs an operation once");
            self.result = Some(body(tx).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, failure: Option<&Error>) {
        let answer = match failure {
            Some(error) => Err(error.clone()),
            None => Ok(self.result.expect("an operation without failure has its result")),
        };
        if self.reply.send(answer).is_err() {
            tracing::debug!(operation = self.name, "nobody waits for the answer any more");
        }
    }
}

/// Serves the queue until every sender is gone, then closes the connection and lets go of the lock.
pub(crate) async fn serve(
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
async fn commit(tx: &mut Tx, group: Vec<Box<dyn Operation>>, wake_ups: &broadcast::Sender<Change>) {
    let mut done: Vec<Box<dyn Operation>> = Vec::with_capacity(group.len());
    let mut changes = HashSet::new();
    let mut savepoint = if group.len() > 1 { Savepoint::First } else { Savepoint::None };
    let mut failure = begin(tx).await.err();
    for mut operation in group {
        if failure.is_some() {
            // The transaction is gone: what has not run yet fails with the rest.
            done.push(operation);
            continue;
        }
        let result = run(tx, operation.as_mut(), savepoint).await;
        if let Savepoint::First = savepoint {
            savepoint = Savepoint::Next;
        }
        match result {
            Ok(()) => {
                changes.extend(tx.changes.drain(..));
                done.push(operation);
            }
            Err(error) => {
                tx.changes.clear();
                tx.caches.rolled_back();
                if !keeps_transaction(&error) {
                    failure = Some(error.clone());
                }
                operation.answer(Some(&error));
            }
        }
    }
    if failure.is_none() && !done.is_empty() {
        failure = tx.commit().await.err();
    } else {
        roll_back(tx).await;
    }
    if let Some(error) = &failure {
        roll_back(tx).await;
        tx.caches.rolled_back();
        changes.clear();
        tracing::warn!(kind = error.kind(), operations = done.len(), "a group of writes was taken back");
    }
    tx.caches.committed();
    // Before the answers, so that whoever has one need not wonder whether others have heard of it yet.
    for change in changes {
        // An error means that nobody listens just now.
        wake_ups.send(change).ok();
    }
    for operation in done {
        operation.answer(failure.as_ref());
    }
}

async fn begin(tx: &mut Tx) -> Result<(), Error> {
    tx.conn.begin_operation("begin");
    if tx.conn.execute(dialect::BEGIN, args![]).await.is_ok() {
        return Ok(());
    }
    // A transaction may have been left open by a rollback that failed.
    roll_back(tx).await;
    tx.conn.execute(dialect::BEGIN, args![]).await.map(drop)
}

async fn roll_back(tx: &mut Tx) {
    // The engine may have rolled back by itself, which makes this an error without meaning.
    if let Err(error) = tx.conn.execute("ROLLBACK", args![]).await {
        tracing::debug!(kind = error.kind(), "there was nothing to roll back");
    }
}

/// Runs one operation; on an error its writes are taken back.
async fn run(tx: &mut Tx, operation: &mut dyn Operation, savepoint: Savepoint) -> Result<(), Error> {
    tx.conn.begin_operation("savepoint");
    match savepoint {
        Savepoint::None => return operation.run(tx).await,
        Savepoint::First => tx.conn.execute("SAVEPOINT operation", args![]).await?,
        Savepoint::Next => tx.conn.execute("RELEASE operation; SAVEPOINT operation", args![]).await?,
    };
    let result = operation.run(tx).await;
    if let Err(error) = &result
        && keeps_transaction(error)
    {
        tx.conn.execute("ROLLBACK TO operation", args![]).await?;
    }
    result
}

/// How an operation is kept apart from the others of its group. The savepoint of the last one ends with the commit.
#[derive(Clone, Copy)]
enum Savepoint {
    /// It is alone.
    None,
    /// It is the first of several.
    First,
    /// Its savepoint takes the place of the one before.
    Next,
}
