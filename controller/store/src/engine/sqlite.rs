//! SQLite: lock, schema, one writer and several readers.

mod error;
mod writer;

pub(crate) use error::error;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::Instrument as _;

use super::conn::{Conn, Place};
use super::lock;
use super::writer::{Operation, QUEUE};
use crate::{Change, Error};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The table in which the migrator keeps which steps were taken.
const STEPS_TABLE: &str = "_sqlx_migrations";

/// How long a connection waits for another one's lock. The writer is alone, so that this only covers checkpoints and
/// tools that people point at the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// An open database.
#[derive(Debug)]
pub(crate) struct Sqlite {
    /// Operations for the writer.
    pub(crate) queue: mpsc::Sender<Box<dyn Operation>>,
    /// Connections for lookups; a database in memory has only the writer's.
    pub(crate) readers: Option<SqlitePool>,
    /// Yields how closing went, once every sender of `queue` is gone.
    pub(crate) closed: oneshot::Receiver<Result<(), Error>>,
    /// The file, for errors.
    pub(crate) place: Place,
}

/// Opens a file, or a database in memory for `None`.
pub(crate) async fn open(
    file: Option<PathBuf>,
    read_connections: u32,
    wake_ups: broadcast::Sender<Change>,
) -> Result<Sqlite, Error> {
    let path: Arc<Path> = file.clone().unwrap_or_else(|| PathBuf::from(":memory:")).into();
    let place = Place::File(Arc::clone(&path));
    let lock = match &file {
        Some(file) => Some(lock::acquire(file)?),
        None => None,
    };
    let options = match &file {
        Some(file) => on_disk(file),
        None => common(SqliteConnectOptions::new().in_memory(true).journal_mode(SqliteJournalMode::Memory)),
    };
    let failed = |source| error(&path, "open", source);
    let mut connection = options.connect().await.map_err(failed)?;
    migrate(&mut connection, &path).await?;
    let readers = match &file {
        Some(file) => {
            let options = on_disk(file)
                .create_if_missing(false)
                // Lookups cannot write, whatever their statement says.
                .pragma("query_only", "1")
                .pragma("cache_size", "-16384");
            let pool = SqlitePoolOptions::new()
                .max_connections(read_connections.max(1))
                .min_connections(1)
                // Connections to a file do not go stale.
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_with(options)
                .await
                .map_err(failed)?;
            Some(pool)
        }
        None => None,
    };
    let (queue, waiting) = mpsc::channel(QUEUE);
    let tx = writer::begin_with(Conn::sqlite(connection, place.clone())).await?;
    let (settled, closed) = oneshot::channel();
    // The writer talks to SQLite's thread and to nobody else, a dozen times a transaction. On a thread of its own, with a
    // runtime that drives nothing, each answer is a plain wake-up, however busy the process is otherwise.
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().map_err(|source| failed(source.into()))?;
    let span = tracing::info_span!("store.writer");
    let serve = move || {
        let result = runtime.block_on(writer::serve(tx, waiting, wake_ups, lock).instrument(span));
        if settled.send(result).is_err() {
            tracing::debug!("nobody waited for the store to close");
        }
    };
    std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(serve)
        .map_err(|source| failed(source.into()))?;
    Ok(Sqlite { queue, readers, closed, place })
}

fn on_disk(file: &Path) -> SqliteConnectOptions {
    common(
        SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write is on disk: the log is flushed at every commit.
            .synchronous(SqliteSynchronous::Full)
            // A checkpoint flushes twice more; every 16 MiB of log it is lost in the noise, and the log stays small.
            .pragma("wal_autocheckpoint", "4096")
            .pragma("journal_size_limit", "67108864"),
    )
}

fn common(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // The working set of a busy queue: some 100,000 jobs with their indexes.
        .pragma("cache_size", "-65536")
        // The rows of batches are sorted and joined in memory.
        .pragma("temp_store", "memory")
        // There are fewer statements than this; all stay prepared.
        .statement_cache_capacity(256)
        // Whole batches travel between SQLite's thread and ours without either waiting for the other.
        .row_buffer_size(1024)
        // The statements are timed by the operations' spans.
        .disable_statement_logging()
}

/// Brings the schema up to what this program knows, and refuses one that it does not.
async fn migrate(connection: &mut sqlx::SqliteConnection, path: &Path) -> Result<(), Error> {
    let failed = |source| error(path, "migrate", source);
    let known = MIGRATIONS.iter().map(|step| step.version).max().expect("there is at least one step");
    let exists = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1")
        .bind(STEPS_TABLE)
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?;
    if exists.is_some() {
        let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if let Some(found) = found.filter(|found| *found > known) {
            return Err(Error::NewerSchema { found, known });
        }
    }
    connection.ping().await.map_err(failed)?;
    MIGRATIONS.run_direct(None, connection, false).await.map_err(|error| match error {
        MigrateError::Dirty(version)
        | MigrateError::VersionMismatch(version)
        | MigrateError::VersionMissing(version) => Error::SchemaBroken { version },
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => failed(source),
        other => failed(sqlx::Error::Migrate(Box::new(other))),
    })
}
