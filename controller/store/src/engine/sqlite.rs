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
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, SqliteConnection};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::Instrument as _;

use super::conn::{Conn, Place};
use super::writer::{Operation, QUEUE};
use super::{lock, private};
use crate::transfer::Restored;
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
    /// How the database came to be.
    pub(crate) restored: Option<Restored>,
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
    let restored = tx.restored;
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
    Ok(Sqlite { queue, readers, closed, place, restored })
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

/// Opens a file that somebody else may work on, and begins a transaction that sees it as it is now.
pub(crate) async fn open_snapshot(file: &Path) -> Result<SqliteConnection, Error> {
    let failed = |source| error(file, "begin a backup", source);
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("query_only", "1")
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(failed)?;
    // The view is taken by the first statement that reads.
    connection.execute("BEGIN; SELECT count(*) FROM sqlite_master").await.map_err(failed)?;
    Ok(connection)
}

/// Makes a new file that nobody else looks at before it is whole. Its user flushes it.
pub(crate) async fn open_new(file: &Path) -> Result<SqliteConnection, Error> {
    private::ensure_private(file)
        .map_err(|source| Error::NotWritable { path: file.to_owned(), source: Arc::new(source) })?;
    let options = common(
        SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Memory)
            .synchronous(SqliteSynchronous::Off),
    )
    // Rows come in an order that suits another database; what they refer to is checked at the end.
    .foreign_keys(false);
    options.connect().await.map_err(|source| error(file, "make a database", source))
}

/// The newest schema version that there is.
pub(crate) fn newest_schema() -> i64 {
    MIGRATIONS.iter().map(|step| step.version).max().expect("there is at least one step")
}

/// A database in memory with a schema of this version, or the newest, and no rows.
pub(crate) async fn open_schema(version: Option<i64>) -> Result<SqliteConnection, Error> {
    let path = Path::new(":memory:");
    let options = SqliteConnectOptions::new().in_memory(true).disable_statement_logging();
    let mut connection = options.connect().await.map_err(|source| error(path, "make a database", source))?;
    migrate_to(&mut connection, path, version).await?;
    Ok(connection)
}

/// The tables of the newest schema, with that of the steps.
pub(crate) async fn tables() -> Result<Vec<String>, Error> {
    let failed = |source| error(Path::new(":memory:"), "list the tables", source);
    let mut connection = open_schema(None).await?;
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'";
    sqlx::query_scalar(sql).fetch_all(&mut connection).await.map_err(failed)
}

/// Brings the schema up to what this program knows, and refuses one that it does not.
async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), Error> {
    let failed = |source| error(path, "migrate", source);
    let known = newest_schema();
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
    migrate_to(connection, path, None).await
}

/// Takes the steps of the schema up to this version, or all.
pub(crate) async fn migrate_to(
    connection: &mut SqliteConnection,
    path: &Path,
    target: Option<i64>,
) -> Result<(), Error> {
    let failed = |source| error(path, "migrate", source);
    MIGRATIONS.run_direct(target, connection, false).await.map_err(|error| match error {
        MigrateError::Dirty(version)
        | MigrateError::VersionMismatch(version)
        | MigrateError::VersionMissing(version) => Error::SchemaBroken { version },
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => failed(source),
        other => failed(sqlx::Error::Migrate(Box::new(other))),
    })
}
