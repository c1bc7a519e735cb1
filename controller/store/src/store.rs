//! The handle, opening and closing, and the two ways to the database: writes and lookups.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::engine::conn::Conn;
use crate::engine::sqlite::{self, Sqlite};
use crate::engine::value::args;
use crate::engine::writer::{BoxFuture, Queued, Tx};
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
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    wake_ups: broadcast::Sender<Change>,
}

#[derive(Debug)]
enum Backend {
    Sqlite(Sqlite),
}

impl Store {
    /// Opens the database and brings its schema up to date.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it; [`Error::NewerSchema`] and [`Error::SchemaBroken`] where the
    /// schema is not one that this program can bring up to date; [`Error::NotWritable`], [`Error::DiskFull`] and
    /// [`Error::Damaged`] where the file system or the file do not permit it.
    pub async fn open(options: StoreOptions) -> Result<Self, Error> {
        let (wake_ups, _) = broadcast::channel(WAKE_UPS);
        let file = match options.url {
            StoreUrl::Sqlite(path) => Some(path),
            StoreUrl::SqliteMemory => None,
        };
        let backend = sqlite::open(file, options.read_connections, wake_ups.clone()).await?;
        Ok(Self { inner: Arc::new(Inner { backend: Backend::Sqlite(backend), wake_ups }) })
    }

    /// Closes the store once every other handle is gone and everything that was handed in is done; then the file can be
    /// opened again at once. With other handles left this only gives up this one.
    ///
    /// # Errors
    /// What the engine reports while it settles its files; acknowledged writes are on disk regardless.
    pub async fn close(self) -> Result<(), Error> {
        let Some(inner) = Arc::into_inner(self.inner) else { return Ok(()) };
        match inner.backend {
            Backend::Sqlite(Sqlite { queue, readers, closed, path: _ }) => {
                if let Some(readers) = readers {
                    readers.close().await;
                }
                drop(queue);
                closed.await.unwrap_or(Err(stopped("close")))
            }
        }
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

    /// Wake-ups, sent after the commit. They tell that something may have changed, not what: a receiver that lags
    /// behind re-reads.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.wake_ups.subscribe()
    }

    /// Runs `body` in a transaction of its own or of a group; answers when it is on disk.
    pub(crate) async fn write<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
    {
        let Backend::Sqlite(sqlite) = &self.inner.backend;
        let (queued, answer) = Queued::new(operation, body);
        sqlite.queue.send(queued).await.map_err(|_| stopped(operation))?;
        answer.await.unwrap_or(Err(stopped(operation)))
    }

    /// Runs `body` on a connection that only reads. It sees everything that was answered before.
    pub(crate) async fn read<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Conn) -> BoxFuture<'t, Result<T, Error>> + Send + 'static,
    {
        let Backend::Sqlite(sqlite) = &self.inner.backend;
        match &sqlite.readers {
            Some(pool) => {
                let connection = pool
                    .acquire()
                    .await
                    .map_err(|source| crate::engine::conn::engine_error(&sqlite.path, operation, source))?;
                let mut conn = Conn::pooled(connection, Arc::clone(&sqlite.path), operation);
                body(&mut conn).await
            }
            None => self.write(operation, |tx| body(&mut tx.conn)).await,
        }
    }
}

/// The writer task has ended, which it does only with the last handle or by a defect.
fn stopped(operation: &'static str) -> Error {
    Error::Unavailable { operation, source: None }
}
