//! PostgreSQL: one writer among those of all controllers, readers, and a listener.
//!
//! ```text
//!  operations ──► writer (own thread, own connection) ──► commit ──► answers, wake-ups here, NOTIFY to the others
//!  lookups ─────► connections that only read
//!  listener ────► wake-ups from the others; the lead
//! ```

mod error;
mod listener;
mod migrate;
mod readers;
mod session;
mod url;
mod wake;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Executor as _, Transaction};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument as _;

use self::readers::Readers;
use self::session::Purpose;
use super::conn::Conn;
use super::value::args;
use super::writer::{BoxFuture, Operation, QUEUE, Tx};
use crate::transfer::{Restored, read_restored};
use crate::{Change, Error};

pub(crate) use error::error;
pub(crate) use migrate::migrate_to;
pub use url::PostgresUrl;

/// The pauses between attempts to open begin with this and double up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An open database.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// Operations for the writer.
    pub(crate) queue: mpsc::Sender<Box<dyn Operation>>,
    readers: Arc<Readers>,
    /// How the database came to be.
    pub(crate) restored: Option<Restored>,
    /// Yields how closing went, once every sender of `queue` is gone.
    closed: oneshot::Receiver<Result<(), Error>>,
    /// The term of the lead; 0 while another controller has it.
    term: Arc<AtomicI64>,
    /// The listener ends when this is dropped.
    listening: oneshot::Sender<()>,
}

/// Opens a database: waits for the server, brings the schema up to date, and starts writer and listener.
pub(crate) async fn open(
    url: &PostgresUrl,
    read_connections: u32,
    wake_ups: broadcast::Sender<Change>,
) -> Result<Postgres, Error> {
    let options = url.options()?;
    let server: Arc<str> = url::label(&options).into();
    wait(&options, &server, url.patience()).await?;
    migrate::migrate(&options, &server).await?;
    let readers = Arc::new(Readers::new(options.clone(), Arc::clone(&server), read_connections));
    // It stays as it is while any controller is up.
    let restored = readers.read("open", |conn| Box::pin(read_restored(conn))).await?;
    let name = wake::Name::new();
    let term = Arc::new(AtomicI64::new(0));
    let (queue, waiting) = mpsc::channel(QUEUE);
    let writer = writer::Writer {
        options: options.clone(),
        server: Arc::clone(&server),
        name: name.clone(),
        wake_ups: wake_ups.clone(),
        readers: Arc::clone(&readers),
        restored,
    };
    let closed = spawn_writer(writer, waiting, &server)?;
    let (listening, stop) = oneshot::channel();
    let listener =
        listener::Listener { options, server: Arc::clone(&server), name, wake_ups, term: Arc::clone(&term) };
    tokio::spawn(listener.serve(stop).instrument(tracing::info_span!("store.listener")));
    Ok(Postgres { queue, readers, restored, closed, term, listening })
}

/// Opens a connection and begins a transaction that sees the database as it is now. It takes no lock that writers or
/// readers wait for.
pub(crate) async fn open_snapshot(url: &PostgresUrl) -> Result<(PgConnection, Arc<str>), Error> {
    let options = url.options()?;
    let server: Arc<str> = url::label(&options).into();
    wait(&options, &server, url.patience()).await?;
    let mut connection = session::connect(&options, &server, Purpose::Backup).await?;
    let begin = sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1");
    connection.execute(begin).await.map_err(|source| error::error(&server, "begin a backup", source))?;
    Ok((connection, server))
}

/// Opens a connection and begins a transaction in which a database is filled.
pub(crate) async fn begin_restore(
    url: &PostgresUrl,
) -> Result<(Transaction<'static, sqlx::Postgres>, Arc<str>), Error> {
    let options = url.options()?;
    let server: Arc<str> = url::label(&options).into();
    wait(&options, &server, url.patience()).await?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(session::set_up(connection, Purpose::Restore)))
        .connect_lazy_with(session::options(&options, Purpose::Restore));
    let mut tx = pool.begin().await.map_err(|source| error::connecting(&server, source))?;
    session::require_primary(&mut tx, &server).await?;
    migrate::require_version(&mut tx, &server).await?;
    Ok((tx, server))
}

/// Waits until the server takes connections, or says why it will not.
async fn wait(options: &PgConnectOptions, server: &Arc<str>, patience: Duration) -> Result<(), Error> {
    let until = Instant::now() + patience;
    let mut pause = PAUSE;
    let mut told = false;
    loop {
        let error = match session::connect(options, server, Purpose::Migrate).await {
            Ok(connection) => {
                return sqlx::Connection::close(connection)
                    .await
                    .map_err(|source| error::error(server, "open", source));
            }
            Err(error @ Error::Unreachable { .. }) if Instant::now() < until => error,
            Err(error) => return Err(error),
        };
        if !told {
            let cause = crate::error::chain(&error);
            tracing::warn!(error = cause, "waiting for the database");
            told = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Starts the writer on a thread of its own: it talks to the server a dozen times a transaction, and with a runtime of its
/// own each answer is a plain wake-up, however busy the process is otherwise.
fn spawn_writer(
    writer: writer::Writer,
    waiting: mpsc::Receiver<Box<dyn Operation>>,
    server: &Arc<str>,
) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
    let failed = |source: std::io::Error| error::error(server, "open", source.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (settled, closed) = oneshot::channel();
    let span = tracing::info_span!("store.writer");
    let serve = move || {
        let result = runtime.block_on(writer.serve(waiting).instrument(span));
        if settled.send(result).is_err() {
            tracing::debug!("nobody waited for the store to close");
        }
    };
    std::thread::Builder::new().name("store-writer".to_owned()).spawn(serve).map_err(failed)?;
    Ok(closed)
}

impl Postgres {
    /// The term of the lead, while this controller has it.
    pub(crate) fn term(&self) -> Option<i64> {
        Some(self.term.load(Ordering::Acquire)).filter(|term| *term > 0)
    }

    /// Runs a lookup; once more on another connection where it meets a dead one.
    pub(crate) async fn read<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        F: for<'t> FnOnce(&'t mut Conn) -> BoxFuture<'t, Result<T, Error>> + Clone,
    {
        self.readers.read(operation, body).await
    }

    /// Closes all connections once everything that was handed in is done.
    pub(crate) async fn close(self) -> Result<(), Error> {
        let Self { queue, readers, restored: _, closed, term: _, listening } = self;
        drop(listening);
        drop(queue);
        readers.shed();
        closed.await.unwrap_or(Err(Error::Unavailable { operation: "close", source: None }))
    }
}

/// Refuses a write of a leader that is not the leader any more.
pub(crate) async fn check_term(tx: &mut Tx, term: i64) -> Result<(), Error> {
    let row = tx.conn.row("SELECT term FROM leadership WHERE role = 'housekeeping'", args![]).await?;
    match row {
        Some(row) if row.cells("leadership").int("term")? == term => Ok(()),
        Some(_) | None => Err(Error::NotLeader),
    }
}
