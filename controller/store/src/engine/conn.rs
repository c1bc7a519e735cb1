//! A connection: statements in, rows out, errors told apart.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Executor as _, SqlSafeStr as _, Sqlite};

use super::dialect::{BATCH_SIZES, Batch};
use super::value::{Row, Value};
use crate::Error;

/// A connection to the database.
pub(crate) struct Conn {
    raw: Raw,
    path: Arc<Path>,
    operation: &'static str,
    /// The texts of batches, by the address of the batch and the number of rows.
    batches: HashMap<(usize, usize), Arc<str>>,
}

enum Raw {
    Own(SqliteConnection),
    Pooled(PoolConnection<Sqlite>),
}

impl Conn {
    /// Wraps a connection of one's own.
    pub(crate) fn own(connection: SqliteConnection, path: Arc<Path>) -> Self {
        Self { raw: Raw::Own(connection), path, operation: "open", batches: HashMap::new() }
    }

    /// Wraps a connection that goes back to its pool.
    pub(crate) fn pooled(
        connection: PoolConnection<Sqlite>,
        path: Arc<Path>,
        operation: &'static str,
    ) -> Self {
        Self { raw: Raw::Pooled(connection), path, operation, batches: HashMap::new() }
    }

    /// Names the operation that the next statements belong to, for errors.
    pub(crate) fn begin_operation(&mut self, operation: &'static str) {
        self.operation = operation;
    }

    pub(crate) fn raw(&mut self) -> &mut SqliteConnection {
        match &mut self.raw {
            Raw::Own(connection) => connection,
            Raw::Pooled(connection) => connection,
        }
    }

    /// Closes a connection of one's own, so that its files are settled.
    pub(crate) async fn close(self) -> Result<(), Error> {
        match self.raw {
            Raw::Own(connection) => sqlx::Connection::close(connection)
                .await
                .map_err(|source| engine_error(&self.path, "close", source)),
            Raw::Pooled(_) => Ok(()),
        }
    }

    /// Runs a statement and yields how many rows it wrote.
    pub(crate) async fn execute(&mut self, sql: &'static str, args: Vec<Value>) -> Result<u64, Error> {
        let query = sqlx::query_with(sql, bind(args));
        match self.raw().execute(query).await {
            Ok(done) => Ok(done.rows_affected()),
            Err(source) => Err(engine_error(&self.path, self.operation, source)),
        }
    }

    /// Runs a statement over `rows` (the values of all rows, one after the other), in pieces where they are many, and
    /// yields how many rows it wrote. `args` are the statement's own parameters.
    pub(crate) async fn execute_batch(
        &mut self,
        batch: &'static Batch,
        rows: Vec<Value>,
        args: Vec<Value>,
    ) -> Result<u64, Error> {
        let width = batch.columns.len();
        debug_assert!(rows.len().is_multiple_of(width), "rows are complete");
        let largest = BATCH_SIZES[BATCH_SIZES.len() - 1];
        let mut rows = rows.into_iter();
        let mut written = 0;
        while rows.len() > 0 {
            let count = (rows.len() / width).min(largest);
            let size = BATCH_SIZES.into_iter().find(|size| *size >= count).unwrap_or(largest);
            let key = (std::ptr::from_ref(batch).addr(), size);
            let text = self.batches.entry(key).or_insert_with(|| batch.render(size).into());
            let sql = sqlx::AssertSqlSafe(Arc::clone(text)).into_sql_str();
            let mut bound: Vec<Value> = rows.by_ref().take(count * width).collect();
            bound.resize(size * width, Value::Int(None));
            bound.extend(args.iter().cloned());
            match self.raw().execute(sqlx::query_with(sql, bind(bound))).await {
                Ok(done) => written += done.rows_affected(),
                Err(source) => return Err(engine_error(&self.path, self.operation, source)),
            }
        }
        Ok(written)
    }

    /// Runs a statement and yields its rows.
    pub(crate) async fn rows(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        let query = sqlx::query_with(sql, bind(args));
        self.fetched(query).await
    }

    /// [`Conn::rows`] for a statement that yields all its rows as one document: a list of lists, made by `packed!`.
    ///
    /// The driver hands every row from SQLite's thread to ours, and every value of it in an allocation of its own. For
    /// the hundreds of rows of a batch that costs more than the statement itself.
    pub(crate) async fn packed(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        let Some(row) = self.row(sql, args).await? else { return Ok(Vec::new()) };
        let rows: Vec<Vec<serde_json::Value>> = row.cells("batch").json("rows")?;
        Ok(rows.into_iter().map(Row::Packed).collect())
    }

    /// [`Conn::rows`] for a statement that was put together. Only its fixed parts may be in `sql`; every value is an
    /// argument.
    pub(crate) async fn rows_of(&mut self, sql: String, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        let query = sqlx::query_with(sqlx::AssertSqlSafe(sql).into_sql_str(), bind(args));
        self.fetched(query).await
    }

    async fn fetched(
        &mut self,
        query: sqlx::query::Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<Row>, Error> {
        match self.raw().fetch_all(query).await {
            Ok(rows) => Ok(rows.into_iter().map(Row::Native).collect()),
            Err(source) => Err(engine_error(&self.path, self.operation, source)),
        }
    }

    /// Runs a statement and yields its first row.
    pub(crate) async fn row(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }
}

fn bind(args: Vec<Value>) -> SqliteArguments {
    let mut bound = SqliteArguments::default();
    for value in args {
        let added = match value {
            Value::Int(value) => sqlx::Arguments::add(&mut bound, value),
            Value::Text(value) => sqlx::Arguments::add(&mut bound, value),
            Value::Bytes(value) => sqlx::Arguments::add(&mut bound, value),
        };
        added.expect("numbers, text and bytes always encode");
    }
    bound
}

/// Primary result codes of SQLite; see <https://sqlite.org/rescode.html>.
mod code {
    pub(super) const READONLY: i32 = 8;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const CONSTRAINT: i32 = 19;
    pub(super) const NOTADB: i32 = 26;
}

fn primary_code(source: &sqlx::Error) -> Option<i32> {
    let code = source.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|extended| extended & 0xff)
}

/// Tells apart what the engine reports.
pub(crate) fn engine_error(path: &Path, operation: &'static str, source: sqlx::Error) -> Error {
    let path = path.to_owned();
    match primary_code(&source) {
        Some(code::FULL) => Error::DiskFull { path, source: Arc::new(source) },
        // A write-ahead log or its index that cannot grow is reported as an I/O error.
        Some(code::IOERR) if is_full(&path) => Error::DiskFull { path, source: Arc::new(source) },
        Some(code::READONLY | code::CANTOPEN) => Error::NotWritable { path, source: Arc::new(source) },
        Some(code::CORRUPT | code::NOTADB) => Error::Damaged { path, source: Arc::new(source) },
        Some(_) | None => Error::Unavailable { operation, source: Some(Arc::new(source)) },
    }
}

/// Whether the file system of the database has no room left.
fn is_full(database: &Path) -> bool {
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // 32 KiB is the step in which SQLite grows the log's index.
    rustix::fs::statvfs(folder).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < 32 * 1024)
}

/// Whether an error leaves the transaction that it happened in as it was before the failed statement.
pub(crate) fn keeps_transaction(error: &Error) -> bool {
    match error {
        Error::Conflict { .. }
        | Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::InUse { .. }
        | Error::OtherBoot { .. }
        | Error::Invalid { .. }
        | Error::Corrupt { .. } => true,
        Error::Unavailable { source: Some(source), .. } => primary_code(source) == Some(code::CONSTRAINT),
        Error::Unavailable { source: None, .. }
        | Error::Damaged { .. }
        | Error::DiskFull { .. }
        | Error::NotWritable { .. }
        | Error::NewerSchema { .. }
        | Error::SchemaBroken { .. }
        | Error::Locked { .. } => false,
    }
}
