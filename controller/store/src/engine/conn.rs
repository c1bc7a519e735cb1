//! A connection: statements in, rows out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Executor as _, SqlSafeStr as _, SqlStr, Sqlite};

use super::dialect::{BATCH_SIZES, Batch, Sql};
use super::value::{Row, Value};
use super::{postgres, sqlite};
use crate::Error;

/// Where a database is, for errors. Never holds a secret.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In this file, or in memory.
    File(Arc<Path>),
    /// On a server: user, host, port and database.
    Server(Arc<str>),
}

impl Place {
    /// Tells apart what the engine reports.
    pub(crate) fn error(&self, operation: &'static str, source: sqlx::Error) -> Error {
        match self {
            Self::File(path) => sqlite::error(path, operation, source),
            Self::Server(server) => postgres::error(server, operation, source),
        }
    }
}

/// A connection to the database.
pub(crate) struct Conn {
    raw: Raw,
    place: Place,
    operation: &'static str,
    wrote: bool,
    /// The texts of batches, by the address of the batch and the number of rows.
    batches: HashMap<(usize, usize), Arc<str>>,
}

enum Raw {
    Sqlite(SqliteConnection),
    PooledSqlite(PoolConnection<Sqlite>),
    Postgres(PgConnection),
}

enum Handle<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

impl Conn {
    /// A connection to SQLite of one's own.
    pub(crate) fn sqlite(connection: SqliteConnection, place: Place) -> Self {
        Self::new(Raw::Sqlite(connection), place, "open")
    }

    /// A connection to SQLite that goes back to its pool.
    pub(crate) fn pooled_sqlite(
        connection: PoolConnection<Sqlite>,
        place: Place,
        operation: &'static str,
    ) -> Self {
        Self::new(Raw::PooledSqlite(connection), place, operation)
    }

    /// A connection to PostgreSQL of one's own.
    pub(crate) fn postgres(connection: PgConnection, place: Place) -> Self {
        Self::new(Raw::Postgres(connection), place, "open")
    }

    fn new(raw: Raw, place: Place, operation: &'static str) -> Self {
        Self { raw, place, operation, wrote: false, batches: HashMap::new() }
    }

    /// Names the operation that the next statements belong to, for errors; it has written nothing yet.
    pub(crate) fn begin_operation(&mut self, operation: &'static str) {
        self.operation = operation;
        self.wrote = false;
    }

    /// Whether a statement since [`Conn::begin_operation`] may have written.
    pub(crate) const fn wrote(&self) -> bool {
        self.wrote
    }

    fn handle(&mut self) -> Handle<'_> {
        match &mut self.raw {
            Raw::Sqlite(connection) => Handle::Sqlite(connection),
            Raw::PooledSqlite(connection) => Handle::Sqlite(connection),
            Raw::Postgres(connection) => Handle::Postgres(connection),
        }
    }

    /// Closes a connection of one's own, so that its files are settled.
    pub(crate) async fn close(self) -> Result<(), Error> {
        let closed = match self.raw {
            Raw::Sqlite(connection) => sqlx::Connection::close(connection).await,
            Raw::Postgres(connection) => sqlx::Connection::close(connection).await,
            Raw::PooledSqlite(_) => Ok(()),
        };
        closed.map_err(|source| self.place.error("close", source))
    }

    /// Runs a statement and yields how many rows it wrote.
    pub(crate) async fn execute(&mut self, sql: impl Into<Sql>, args: Vec<Value>) -> Result<u64, Error> {
        let sql = sql.into();
        self.wrote = true;
        let done = match self.handle() {
            Handle::Sqlite(connection) => connection
                .execute(sqlx::query_with(sql.sqlite, bind_sqlite(args)))
                .await
                .map(|done| done.rows_affected()),
            Handle::Postgres(connection) => connection
                .execute(sqlx::query_with(sql.postgres, bind_postgres(args)))
                .await
                .map(|done| done.rows_affected()),
        };
        done.map_err(|source| self.place.error(self.operation, source))
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
        if rows.is_empty() {
            return Ok(0);
        }
        self.wrote = true;
        let done = match self.handle() {
            Handle::Sqlite(_) => self.execute_values(batch, rows, args).await,
            Handle::Postgres(_) => self.execute_arrays(batch, rows, args).await,
        };
        done.map_err(|source| self.place.error(self.operation, source))
    }

    async fn execute_values(
        &mut self,
        batch: &'static Batch,
        rows: Vec<Value>,
        args: Vec<Value>,
    ) -> Result<u64, sqlx::Error> {
        let width = batch.columns.len();
        let largest = BATCH_SIZES[BATCH_SIZES.len() - 1];
        let mut rows = rows.into_iter();
        let mut written = 0;
        while rows.len() > 0 {
            let count = (rows.len() / width).min(largest);
            let size = BATCH_SIZES.into_iter().find(|size| *size >= count).unwrap_or(largest);
            let sql = self.batch_text(batch, size, || batch.render_sqlite(size));
            let mut bound: Vec<Value> = rows.by_ref().take(count * width).collect();
            bound.resize(size * width, Value::Int(None));
            bound.extend(args.iter().cloned());
            if let Handle::Sqlite(connection) = self.handle() {
                let done = connection.execute(sqlx::query_with(sql, bind_sqlite(bound))).await?;
                written += done.rows_affected();
            }
        }
        Ok(written)
    }

    async fn execute_arrays(
        &mut self,
        batch: &'static Batch,
        rows: Vec<Value>,
        args: Vec<Value>,
    ) -> Result<u64, sqlx::Error> {
        let sql = self.batch_text(batch, 0, || batch.render_postgres());
        let bound = bind_arrays(batch.columns.len(), rows, args);
        match self.handle() {
            Handle::Postgres(connection) => {
                Ok(connection.execute(sqlx::query_with(sql, bound)).await?.rows_affected())
            }
            Handle::Sqlite(_) => Ok(0),
        }
    }

    fn batch_text(&mut self, batch: &'static Batch, size: usize, render: impl FnOnce() -> String) -> SqlStr {
        let key = (std::ptr::from_ref(batch).addr(), size);
        let text = self.batches.entry(key).or_insert_with(|| render().into());
        sqlx::AssertSqlSafe(Arc::clone(text)).into_sql_str()
    }

    /// Runs a statement and yields its rows.
    pub(crate) async fn rows(&mut self, sql: impl Into<Sql>, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        let sql = sql.into();
        self.fetched(sql.sqlite.into_sql_str(), sql.postgres.into_sql_str(), args).await
    }

    /// [`Conn::rows`] for a statement made by `packed!`, which yields all its rows as one document from SQLite: a list of
    /// lists.
    ///
    /// The driver hands every row from SQLite's thread to ours, and every value of it in an allocation of its own. For
    /// the hundreds of rows of a batch that costs more than the statement itself.
    pub(crate) async fn packed(&mut self, sql: Sql, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        match self.handle() {
            Handle::Sqlite(_) => {
                let Some(row) = self.row(sql, args).await? else { return Ok(Vec::new()) };
                let rows: Vec<Vec<serde_json::Value>> = row.cells("batch").json("rows")?;
                Ok(rows.into_iter().map(Row::Packed).collect())
            }
            Handle::Postgres(_) => self.rows(sql, args).await,
        }
    }

    /// [`Conn::rows`] for a statement that was put together. Only its fixed parts may be in `sql`; every value is an
    /// argument.
    pub(crate) async fn rows_of(&mut self, sql: String, args: Vec<Value>) -> Result<Vec<Row>, Error> {
        let sql = sqlx::AssertSqlSafe(sql).into_sql_str();
        self.fetched(sql.clone(), sql, args).await
    }

    async fn fetched(
        &mut self,
        sqlite: SqlStr,
        postgres: SqlStr,
        args: Vec<Value>,
    ) -> Result<Vec<Row>, Error> {
        self.wrote |= !sqlite.as_str().trim_start().starts_with("SELECT");
        let rows = match self.handle() {
            Handle::Sqlite(connection) => connection
                .fetch_all(sqlx::query_with(sqlite, bind_sqlite(args)))
                .await
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Handle::Postgres(connection) => connection
                .fetch_all(sqlx::query_with(postgres, bind_postgres(args)))
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        };
        rows.map_err(|source| self.place.error(self.operation, source))
    }

    /// Runs a statement and yields its first row.
    pub(crate) async fn row(&mut self, sql: impl Into<Sql>, args: Vec<Value>) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// Sends statements without parameters to PostgreSQL, all in one message, and yields the rows of all of them.
    pub(crate) async fn script(&mut self, sql: String) -> Result<Vec<Row>, Error> {
        let rows = match self.handle() {
            Handle::Postgres(connection) => {
                connection.fetch_all(sqlx::raw_sql(sqlx::AssertSqlSafe(sql).into_sql_str())).await
            }
            Handle::Sqlite(_) => Ok(Vec::new()),
        };
        match rows {
            Ok(rows) => Ok(rows.into_iter().map(Row::Postgres).collect()),
            Err(source) => Err(self.place.error(self.operation, source)),
        }
    }
}

fn bind_sqlite(args: Vec<Value>) -> SqliteArguments {
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

fn bind_postgres(args: Vec<Value>) -> PgArguments {
    let mut bound = PgArguments::default();
    for value in args {
        add_postgres(&mut bound, value);
    }
    bound
}

fn add_postgres(bound: &mut PgArguments, value: Value) {
    let added = match value {
        Value::Int(value) => sqlx::Arguments::add(bound, value),
        Value::Text(value) => sqlx::Arguments::add(bound, value),
        Value::Bytes(value) => sqlx::Arguments::add(bound, value),
    };
    added.expect("numbers, text and bytes always encode");
}

/// The rows as one array for each of `width` columns, then `args`. All values of a column have one type.
fn bind_arrays(width: usize, rows: Vec<Value>, args: Vec<Value>) -> PgArguments {
    enum Column {
        Int(Vec<Option<i64>>),
        Text(Vec<Option<String>>),
        Bytes(Vec<Option<Vec<u8>>>),
    }
    let count = rows.len() / width;
    let mut columns: Vec<Column> = Vec::with_capacity(width);
    for (position, value) in rows.into_iter().enumerate() {
        if position < width {
            columns.push(match value {
                Value::Int(value) => Column::Int(with_room(count, value)),
                Value::Text(value) => Column::Text(with_room(count, value)),
                Value::Bytes(value) => Column::Bytes(with_room(count, value)),
            });
            continue;
        }
        match (&mut columns[position % width], value) {
            (Column::Int(column), Value::Int(value)) => column.push(value),
            (Column::Text(column), Value::Text(value)) => column.push(value),
            (Column::Bytes(column), Value::Bytes(value)) => column.push(value),
            (Column::Int(_) | Column::Text(_) | Column::Bytes(_), _) => {
                unreachable!("the values of a column are made by one expression, of one type")
            }
        }
    }
    let mut bound = PgArguments::default();
    for column in columns {
        let added = match column {
            Column::Int(column) => sqlx::Arguments::add(&mut bound, column),
            Column::Text(column) => sqlx::Arguments::add(&mut bound, column),
            Column::Bytes(column) => sqlx::Arguments::add(&mut bound, column),
        };
        added.expect("arrays of numbers, text and bytes always encode");
    }
    for value in args {
        add_postgres(&mut bound, value);
    }
    bound
}

fn with_room<T>(count: usize, first: T) -> Vec<T> {
    let mut column = Vec::with_capacity(count);
    column.push(first);
    column
}
