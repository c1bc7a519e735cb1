//! The handle, opening and closing, and the two ways to the database: writes and lookups.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};

use crate::engine::conn::Conn;
use crate::engine::postgres::{self, Postgres, PostgresUrl};
use crate::engine::sqlite::{self, Sqlite};
use crate::engine::value::args;
use crate::engine::writer::{BoxFuture, Merge, Mergeable, Operation, Queued, Tx, run_alone};
use crate::transfer::Restored;
use crate::{Change, Error};

/// How many wake-ups a receiver may be behind before it lags and re-reads everything.
const WAKE_UPS: usize = 4096;

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// In this SQLite file; it is created if it does not exist, its folder is not.
    Sqlite(PathBuf),
    /// In memory, for tests: gone with the last handle.
    SqliteMemory,
    /// On a PostgreSQL server, which several controllers may share.
    Postgres(PostgresUrl),
}

/// How to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Where the database is.
    pub url: StoreUrl,
    /// How many lookups run at once; at least 1.
    pub read_connections: u32,
}

/// The handle of an open store. Clones share it; when the last one is gone the store closes.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// The term in which this handle may write, where it is a leader's.
    term: Option<i64>,
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    wake_ups: broadcast::Sender<Change>,
}

#[derive(Debug)]
enum Backend {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl Store {
    /// Opens the database and brings its schema up to date. Waits for a server that cannot be reached, for a bounded time.
    ///
    /// # Errors
    /// Of a server [`Error::Unreachable`], [`Error::Refused`], [`Error::NotPermitted`], [`Error::ReadOnly`] and
    /// [`Error::OldServer`]; of a file [`Error::Locked`] while another process has it; [`Error::NewerSchema`] and [`Error::SchemaBroken`] where the
    /// schema is not one that this program can bring up to date; [`Error::NotWritable`], [`Error::DiskFull`] and
    /// [`Error::Damaged`] where the file system or the file do not permit it.
    pub async fn open(options: StoreOptions) -> Result<Self, Error> {
        let (wake_ups, _) = broadcast::channel(WAKE_UPS);
        let StoreOptions { url, read_connections } = options;
        let backend = match url {
            StoreUrl::Sqlite(path) => {
                Backend::Sqlite(sqlite::open(Some(path), read_connections, wake_ups.clone()).await?)
            }
            StoreUrl::SqliteMemory => {
                Backend::Sqlite(sqlite::open(None, read_connections, wake_ups.clone()).await?)
            }
            StoreUrl::Postgres(url) => {
                Backend::Postgres(postgres::open(&url, read_connections, wake_ups.clone()).await?)
            }
        };
        Ok(Self { inner: Arc::new(Inner { backend, wake_ups }), term: None })
    }

    /// Closes the store once every other handle is gone and everything that was handed in is done; then the file can be
    /// opened again at once. With other handles left this only gives up this one.
    ///
    /// # Errors
    /// What the engine reports while it settles its files; acknowledged writes are on disk regardless.
    pub async fn close(self) -> Result<(), Error> {
        let Some(inner) = Arc::into_inner(self.inner) else { return Ok(()) };
        match inner.backend {
            Backend::Postgres(postgres) => postgres.close().await,
            Backend::Sqlite(Sqlite { queue, readers, closed, place: _, restored: _ }) => {
                if let Some(readers) = readers {
                    readers.close().await;
                }
                drop(queue);
                closed.await.unwrap_or(Err(stopped("close")))
            }
        }
    }

    /// How the database came to be, where it was restored from a backup.
    pub fn restored(&self) -> Option<Restored> {
        match &self.inner.backend {
            Backend::Sqlite(sqlite) => sqlite.restored,
            Backend::Postgres(postgres) => postgres.restored,
        }
    }

    /// A handle for what only one controller does, such as ending leases; `None` while another one does it. What it writes
    /// fails with [`Error::NotLeader`] once another controller has taken the lead.
    pub fn as_leader(&self) -> Option<Self> {
        let term = match &self.inner.backend {
            // The only process that has the file.
            Backend::Sqlite(_) => None,
            Backend::Postgres(postgres) => Some(postgres.term()?),
        };
        Some(Self { inner: Arc::clone(&self.inner), term })
    }

    /// A round trip that writes, so that it fails when writes would.
    ///
    /// # Errors
    /// Whatever keeps the store from writing.
    pub async fn ping(&self) -> Result<(), Error> {
        self.write("ping", |tx| {
            Box::pin(async move {
                let sql = "UPDATE counters SET value = value + 1 WHERE name = 'ping'";
                tx.conn.execute(sql, args![]).await.map(drop)
            })
        })
        .await
    }

    /// The time of day by the server that keeps the database; `None` where the database is a file, and so nobody's but this
    /// process's.
    ///
    /// # Errors
    /// Whatever keeps the store from being read.
    pub async fn server_time(&self) -> Result<Option<Timestamp>, Error> {
        match &self.inner.backend {
            Backend::Sqlite(_) => Ok(None),
            Backend::Postgres(postgres) => {
                postgres.read("server_time", |conn| Box::pin(server_time(conn))).await.map(Some)
            }
        }
    }

    /// Wake-ups, sent after the commit. They tell that something may have changed, not what: a receiver that lags
    /// behind re-reads.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.wake_ups.subscribe()
    }

    /// Runs `body` in a transaction of its own or of a group; answers when it is on disk. It may run more than once, and
    /// then only the last time counts.
    pub(crate) async fn write<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Clone + Send + 'static,
    {
        let (queued, answer) = Queued::new(operation, self.term, body);
        self.queue().send(queued).await.map_err(|_| stopped(operation))?;
        answer.await.unwrap_or(Err(stopped(operation)))
    }

    /// [`Store::write`] for something that shares its statements with others of its kind that wait at the same time.
    pub(crate) async fn write_with_others<M: Merge>(&self, part: M) -> Result<M::Answer, Error> {
        if self.term.is_some() {
            // A leader's writes hang on its term.
            return self.write(M::NAME, move |tx| Box::pin(run_alone(tx, part))).await;
        }
        let (queued, answer) = Mergeable::new(part);
        self.queue().send(queued).await.map_err(|_| stopped(M::NAME))?;
        answer.await.unwrap_or(Err(stopped(M::NAME)))
    }

    fn queue(&self) -> &mpsc::Sender<Box<dyn Operation>> {
        match &self.inner.backend {
            Backend::Sqlite(sqlite) => &sqlite.queue,
            Backend::Postgres(postgres) => &postgres.queue,
        }
    }

    /// Runs `body` on a connection that only reads. It sees everything that was answered before. It may run more than
    /// once.
    pub(crate) async fn read<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Conn) -> BoxFuture<'t, Result<T, Error>> + Clone + Send + 'static,
    {
        let sqlite = match &self.inner.backend {
            Backend::Sqlite(sqlite) => sqlite,
            Backend::Postgres(postgres) => return postgres.read(operation, body).await,
        };
        match &sqlite.readers {
            Some(pool) => {
                let connection =
                    pool.acquire().await.map_err(|source| sqlite.place.error(operation, source))?;
                let mut conn = Conn::pooled_sqlite(connection, sqlite.place.clone(), operation);
                body(&mut conn).await
            }
            None => self.write(operation, |tx| body(&mut tx.conn)).await,
        }
    }
}

async fn server_time(conn: &mut Conn) -> Result<Timestamp, Error> {
    let sql = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT AS now";
    let missing = || Error::Corrupt { table: "clock_timestamp", column: "now", row: String::new() };
    conn.row(sql, args![]).await?.ok_or_else(missing)?.cells("clock_timestamp").time("now")
}

/// The writer task has ended, which it does only with the last handle or by a defect.
fn stopped(operation: &'static str) -> Error {
    Error::Unavailable { operation, source: None }
}
