//! Filling an empty database with what was taken from another one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::sqlite::SqliteArguments;
use sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, Executor as _, Postgres, SqliteConnection, Transaction,
};

use super::{Cell, Column, ColumnKind, Error, Restored, TableShape, catalog, newest_schema, restored};
use crate::PostgresUrl;
use crate::engine::conn::Place;
use crate::engine::value::{last_ms, ms, truncated};
use crate::engine::{lock, postgres, sqlite};
use crate::ops::job_rows::{ID_BITS, since_first_minute};

/// What else PostgreSQL has of ours, beside the tables that SQLite has too.
const POSTGRES_TABLES: [&str; 2] = ["compatibility", "leadership"];
const POSTGRES_OTHERS: &str = "
    DROP SEQUENCE IF EXISTS resource_versions;
    DROP FUNCTION IF EXISTS json_each(TEXT);
    DROP FUNCTION IF EXISTS forget_job();";

/// The most values in one statement; SQLite takes 32,766.
const PARAMETERS: usize = 16_000;

/// How far numbers jump where the clock alone would not bring them above all that are there.
const GAP: i64 = 1 << 20;

/// Keeps every controller away from a database file.
#[derive(Debug)]
pub struct FileHold {
    _lock: lock::Lock,
}

impl FileHold {
    /// Takes the lock of a database file, which need not exist.
    ///
    /// # Errors
    /// [`crate::Error::Locked`] while a controller has the database.
    pub fn take(database: &Path) -> Result<Self, Error> {
        Ok(Self { _lock: lock::take(database)? })
    }
}

/// What a restore decides.
#[derive(Clone, Debug)]
pub struct Restoring {
    /// The time now.
    pub now: Timestamp,
    /// How long jobs of the backup may still run somewhere.
    pub hold: Duration,
    /// The last version that was drawn in the database that was backed up.
    pub version: i64,
    /// Settings to make, in place of those of the backup.
    pub settings: Vec<(String, Vec<u8>)>,
}

/// A database that is being filled. Dropping it leaves a server as it was, and a file incomplete.
#[derive(Debug)]
pub struct Loader {
    raw: Raw,
    place: Place,
    tables: Vec<TableShape>,
    filled: BTreeSet<String>,
}

#[derive(Debug)]
enum Raw {
    Sqlite(SqliteConnection),
    Postgres(Transaction<'static, Postgres>),
}

impl Loader {
    /// Makes a new database file with a schema as it was at this version.
    ///
    /// # Errors
    /// [`Error::NewerSchema`], and what keeps the file from being made.
    pub async fn into_file(file: &Path, schema: i64) -> Result<Self, Error> {
        check(schema)?;
        let place = Place::File(file.into());
        let mut connection = sqlite::open_new(file).await?;
        sqlite::migrate_to(&mut connection, file, Some(schema)).await?;
        let tables = catalog::of_sqlite(&mut connection, &place).await?;
        // In one transaction, which no other process sees; the file is flushed as a whole by its user.
        connection.execute("BEGIN").await.map_err(|source| place.error("restore", source))?;
        Ok(Self { raw: Raw::Sqlite(connection), place, tables, filled: BTreeSet::new() })
    }

    /// Makes the schema as it was at this version on a server, in place of what is there where `replace` says so.
    ///
    /// # Errors
    /// [`Error::NewerSchema`], [`Error::NotEmpty`], [`Error::InUse`], [`Error::UnknownTables`], and what keeps the
    /// server from being used.
    pub async fn into_server(url: &PostgresUrl, schema: i64, replace: bool) -> Result<Self, Error> {
        check(schema)?;
        let (mut tx, server) = postgres::begin_restore(url).await?;
        let place = Place::Server(Arc::clone(&server));
        let failed = |source| place.error("restore", source);
        let steps = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
        if sqlx::query_scalar(steps).fetch_one(&mut *tx).await.map_err(failed)? {
            if !replace {
                return Err(Error::NotEmpty { place: server.to_string() });
            }
            refuse_users(&mut tx, &place, &server).await?;
            drop_all(&mut tx, &place, &server).await?;
        } else {
            refuse_namesakes(&mut tx, &place, &server).await?;
        }
        postgres::migrate_to(&mut tx, &server, Some(schema)).await?;
        let tables = catalog::of_postgres(&mut tx, &place).await?;
        Ok(Self { raw: Raw::Postgres(tx), place, tables, filled: BTreeSet::new() })
    }

    /// The tables of the schema, each after those that it refers to.
    pub fn tables(&self) -> &[TableShape] {
        &self.tables
    }

    /// Puts rows into a table.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the schema has no such table or columns, a value is not of its column's kind, or a row belongs
    /// to one that is not there; what the engine reports.
    pub async fn insert(&mut self, shape: &TableShape, rows: Vec<Vec<Cell>>) -> Result<(), Error> {
        check_shape(&self.tables, shape)?;
        let unfit = |problem: String| Error::Unfit { table: shape.name.clone(), problem };
        for row in &rows {
            let fits = row.len() == shape.columns.len()
                && row.iter().zip(&shape.columns).all(|(cell, column)| fits(cell, column.kind));
            if !fits {
                return Err(unfit("holds a row of other columns or kinds than it says".to_owned()));
            }
        }
        self.filled.insert(shape.name.clone());
        let names: Vec<String> = shape.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let into = format!("INSERT INTO \"{}\" ({}) ", shape.name, names.join(", "));
        match &mut self.raw {
            Raw::Sqlite(connection) => {
                let width = shape.columns.len().max(1);
                let values = format!("({})", vec!["?"; width].join(","));
                let mut rows = rows.into_iter().peekable();
                while rows.peek().is_some() {
                    let piece: Vec<Vec<Cell>> = rows.by_ref().take((PARAMETERS / width).max(1)).collect();
                    let sql = format!("{into} VALUES {}", vec![values.as_str(); piece.len()].join(","));
                    let mut bound = SqliteArguments::default();
                    for cell in piece.into_iter().flatten() {
                        let added = match cell {
                            Cell::Null => bound.add(None::<i64>),
                            Cell::Int(value) => bound.add(value),
                            Cell::Text(value) => bound.add(value),
                            Cell::Bytes(value) => bound.add(value),
                        };
                        added.expect("numbers, text and bytes always encode");
                    }
                    let query = sqlx::query_with(AssertSqlSafe(sql), bound).persistent(false);
                    let done = connection.execute(query).await;
                    done.map_err(|source| self.place.error("restore", source))?;
                }
            }
            Raw::Postgres(tx) => {
                let arrays: Vec<String> =
                    shape.columns.iter().enumerate().map(|(n, column)| array(n + 1, column)).collect();
                let sql = format!("{into} SELECT * FROM unnest({})", arrays.join(", "));
                let bound = columns(&shape.columns, rows);
                let done = tx.execute(sqlx::query_with(AssertSqlSafe(sql), bound)).await;
                done.map_err(|source| match source.as_database_error() {
                    // The server looks at each row as it comes, and SQLite at all of them in the end.
                    Some(error) if error.is_foreign_key_violation() => {
                        unfit("holds a row that belongs to one that is missing".to_owned())
                    }
                    Some(_) | None => self.place.error("restore", source).into(),
                })?;
            }
        }
        Ok(())
    }

    /// Brings what was loaded up to date, and makes of it a database that can be served: see [`Restored`]. A file is
    /// complete then, and closed; a server shows it after [`Settled::commit`].
    ///
    /// # Errors
    /// [`Error::Unfit`] where rows are missing that others need, or a whole table; [`Error::Clock`]; what the engine reports.
    pub async fn settle(mut self, restoring: &Restoring) -> Result<(Restored, Settled), Error> {
        check_complete(&self.tables, &self.filled)?;
        match &mut self.raw {
            Raw::Sqlite(connection) => {
                let failed = |source| self.place.error("restore", source);
                let broken: Option<(String, String)> =
                    sqlx::query_as("SELECT \"table\", parent FROM pragma_foreign_key_check LIMIT 1")
                        .fetch_optional(&mut *connection)
                        .await
                        .map_err(failed)?;
                if let Some((table, parent)) = broken {
                    let problem = format!("holds a row that belongs to one of `{parent}` that is missing");
                    return Err(Error::Unfit { table, problem });
                }
                connection.execute("COMMIT").await.map_err(failed)?;
                let Place::File(file) = &self.place else { unreachable!("SQLite is opened in a file") };
                sqlite::migrate_to(connection, file, None).await?;
            }
            Raw::Postgres(tx) => {
                let Place::Server(server) = &self.place else { unreachable!("PostgreSQL is on a server") };
                advance_identities(tx, &self.place).await?;
                postgres::migrate_to(tx, server, None).await?;
            }
        }
        let number = self.number(restoring).await?;
        let restored = self.restore(restoring, number).await?;
        let settled = match self.raw {
            Raw::Sqlite(connection) => {
                connection.close().await.map_err(|source| self.place.error("restore", source))?;
                Settled { tx: None, place: self.place }
            }
            Raw::Postgres(tx) => Settled { tx: Some(tx), place: self.place },
        };
        Ok((restored, settled))
    }

    /// A number above all that were ever handed out.
    async fn number(&mut self, restoring: &Restoring) -> Result<i64, Error> {
        let highest = self
            .int(
                "SELECT max(n) FROM (
                    SELECT max(epoch) AS n FROM jobs UNION ALL SELECT max(epoch) FROM attempts
                    UNION ALL SELECT max(config_version) FROM nodes UNION ALL SELECT max(id) FROM events
                    UNION ALL SELECT max(id) FROM jobs UNION ALL SELECT max(resource_version) FROM jobs
                    UNION ALL SELECT max(resource_version) FROM nodes
                    UNION ALL SELECT max(resource_version) FROM templates) AS numbers",
            )
            .await?;
        let highest = highest.unwrap_or(0).max(restoring.version);
        let number = since_first_minute(restoring.now).max(highest.saturating_add(GAP));
        // Jobs get their ids from it.
        if number >= 1 << ID_BITS {
            return Err(Error::Clock { shown: restoring.now });
        }
        Ok(number)
    }

    async fn restore(&mut self, restoring: &Restoring, number: i64) -> Result<Restored, Error> {
        let now = truncated(restoring.now);
        let hold = i64::try_from(restoring.hold.as_millis()).unwrap_or(i64::MAX);
        let until = ms(now).saturating_add(hold).min(last_ms());
        let hold_until = Timestamp::from_millisecond(until).unwrap_or(now);
        let restored = Restored { at: now, number, hold_until };
        if hold_until > now {
            let later = format!("CASE WHEN not_before > {until} THEN not_before ELSE {until} END");
            self.run(format!(
                "UPDATE jobs SET not_before = {later}, ready_rank = NULL,
                    due_at = CASE WHEN phase = 'Queued' AND suspend = 0 THEN {later} END, resource_version = {number}
                WHERE phase IN ('Queued', 'PendingApproval')"
            ))
            .await?;
        }
        self.run(format!(
            "UPDATE attempts SET lease_until = {until} WHERE ended_at IS NULL AND lease_until < {until}"
        ))
        .await?;
        // A roll-out goes on with what it has declared, and gives nodes that are at it their whole time again.
        let at = ms(now);
        self.run(format!(
            "UPDATE rollout_nodes SET config_version = {number},
                changed_at = CASE state WHEN 'Changing' THEN {at} ELSE changed_at END
            WHERE config_version = (SELECT n.config_version FROM nodes AS n WHERE n.name = rollout_nodes.node)"
        ))
        .await?;
        self.run(format!("UPDATE nodes SET config_version = {number}, resource_version = {number}")).await?;
        let known = serde_json::to_vec(&restored).expect("times and a number");
        let settings = restoring.settings.iter().map(|(key, value)| (key.as_str(), value.clone()));
        for (key, value) in settings.chain([(restored::SETTING, known)]) {
            self.set(key, value).await?;
        }
        match &self.raw {
            Raw::Sqlite(_) => {
                self.run(format!("UPDATE counters SET value = {number} WHERE name = 'resource_version'"))
                    .await?;
                self.run("DELETE FROM sqlite_sequence WHERE name = 'events'".to_owned()).await?;
                self.run(format!("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', {number})"))
                    .await?;
            }
            Raw::Postgres(_) => {
                self.run(format!("SELECT setval('resource_versions', {number})")).await?;
                self.run(format!("SELECT setval(pg_get_serial_sequence('events', 'id'), {number})")).await?;
            }
        }
        Ok(restored)
    }

    async fn set(&mut self, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let sql = "INSERT INTO settings (key, value) VALUES ($1, $2)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let done = match &mut self.raw {
            Raw::Sqlite(connection) => {
                connection.execute(sqlx::query(sql).bind(key).bind(value)).await.map(drop)
            }
            Raw::Postgres(tx) => tx.execute(sqlx::query(sql).bind(key).bind(value)).await.map(drop),
        };
        done.map_err(|source| self.place.error("restore", source).into())
    }

    /// Runs a statement that has only numbers in it.
    async fn run(&mut self, sql: String) -> Result<(), Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        let done = match &mut self.raw {
            Raw::Sqlite(connection) => connection.execute(sql).await.map(drop),
            Raw::Postgres(tx) => tx.execute(sql).await.map(drop),
        };
        done.map_err(|source| self.place.error("restore", source).into())
    }

    async fn int(&mut self, sql: &'static str) -> Result<Option<i64>, Error> {
        let found = match &mut self.raw {
            Raw::Sqlite(connection) => sqlx::query_scalar(sql).fetch_one(connection).await,
            Raw::Postgres(tx) => sqlx::query_scalar(sql).fetch_one(&mut **tx).await,
        };
        found.map_err(|source| self.place.error("restore", source).into())
    }
}

/// A filled database that only waits to be shown.
#[derive(Debug)]
pub struct Settled {
    tx: Option<Transaction<'static, Postgres>>,
    place: Place,
}

impl Settled {
    /// Shows it to everybody, for a server; a file is up to its user.
    ///
    /// # Errors
    /// What the server reports: then it may have happened.
    pub async fn commit(self) -> Result<(), Error> {
        let Some(tx) = self.tx else { return Ok(()) };
        tx.commit().await.map_err(|source| self.place.error("commit", source).into())
    }
}

fn check(schema: i64) -> Result<(), Error> {
    let known = newest_schema();
    if schema > known { Err(Error::NewerSchema { found: schema, known }) } else { Ok(()) }
}

/// Checks that tables are those of a schema of this version, each with its columns, so that they can be restored.
///
/// # Errors
/// [`Error::NewerSchema`]; [`Error::Unfit`] with the first one that is not; what keeps a database in memory from being made.
pub async fn check_tables(schema: i64, tables: &[TableShape]) -> Result<(), Error> {
    check(schema)?;
    let expected = catalog::of_schema(schema).await?;
    tables.iter().try_for_each(|shape| check_shape(&expected, shape))?;
    check_complete(&expected, &tables.iter().map(|shape| shape.name.clone()).collect())
}

fn check_shape(expected: &[TableShape], shape: &TableShape) -> Result<(), Error> {
    let unfit = |problem: String| Error::Unfit { table: shape.name.clone(), problem };
    let target = expected.iter().find(|table| table.name == shape.name);
    let target = target.ok_or_else(|| unfit("is none of it".to_owned()))?;
    for column in &shape.columns {
        if !target.columns.contains(column) {
            return Err(unfit(format!("has no column `{}` that holds {:?}", column.name, column.kind)));
        }
    }
    match target.columns.iter().find(|column| !shape.columns.contains(column)) {
        Some(missing) => Err(unfit(format!("lacks column `{}`", missing.name))),
        None => Ok(()),
    }
}

fn check_complete(expected: &[TableShape], found: &BTreeSet<String>) -> Result<(), Error> {
    match expected.iter().find(|table| !found.contains(&table.name)) {
        Some(missing) => Err(Error::Unfit { table: missing.name.clone(), problem: "is missing".to_owned() }),
        None => Ok(()),
    }
}

const fn fits(cell: &Cell, kind: ColumnKind) -> bool {
    match (cell, kind) {
        (Cell::Null, ColumnKind::Int | ColumnKind::Text | ColumnKind::Bytes)
        | (Cell::Int(_), ColumnKind::Int)
        | (Cell::Text(_), ColumnKind::Text)
        | (Cell::Bytes(_), ColumnKind::Bytes) => true,
        (Cell::Int(_), ColumnKind::Text | ColumnKind::Bytes)
        | (Cell::Text(_), ColumnKind::Int | ColumnKind::Bytes)
        | (Cell::Bytes(_), ColumnKind::Int | ColumnKind::Text) => false,
    }
}

fn array(number: usize, column: &Column) -> String {
    let kind = match column.kind {
        ColumnKind::Int => "BIGINT",
        ColumnKind::Text => "TEXT",
        ColumnKind::Bytes => "BYTEA",
    };
    format!("${number}::{kind}[]")
}

/// The rows as one array for each column. Every cell fits its column.
fn columns(shape: &[Column], rows: Vec<Vec<Cell>>) -> PgArguments {
    let count = rows.len();
    let mut ints: Vec<Vec<Option<i64>>> = Vec::new();
    let mut texts: Vec<Vec<Option<String>>> = Vec::new();
    let mut bytes: Vec<Vec<Option<Vec<u8>>>> = Vec::new();
    let places: Vec<usize> = shape
        .iter()
        .map(|column| match column.kind {
            ColumnKind::Int => {
                ints.push(Vec::with_capacity(count));
                ints.len() - 1
            }
            ColumnKind::Text => {
                texts.push(Vec::with_capacity(count));
                texts.len() - 1
            }
            ColumnKind::Bytes => {
                bytes.push(Vec::with_capacity(count));
                bytes.len() - 1
            }
        })
        .collect();
    for row in rows {
        for ((cell, column), place) in row.into_iter().zip(shape).zip(&places) {
            match column.kind {
                ColumnKind::Int => {
                    ints[*place].push(if let Cell::Int(value) = cell { Some(value) } else { None });
                }
                ColumnKind::Text => {
                    texts[*place].push(if let Cell::Text(value) = cell { Some(value) } else { None });
                }
                ColumnKind::Bytes => {
                    bytes[*place].push(if let Cell::Bytes(value) = cell { Some(value) } else { None });
                }
            }
        }
    }
    let (mut ints, mut texts, mut bytes) = (ints.into_iter(), texts.into_iter(), bytes.into_iter());
    let mut bound = PgArguments::default();
    for column in shape {
        let added = match column.kind {
            ColumnKind::Int => bound.add(ints.next()),
            ColumnKind::Text => bound.add(texts.next()),
            ColumnKind::Bytes => bound.add(bytes.next()),
        };
        added.expect("arrays of numbers, text and bytes always encode");
    }
    bound
}

/// Refuses a database that controllers work on. One of them leads, and holds the lock of that; all show in the server's
/// list of sessions, unless several fleets share the database, whose controllers cannot be told apart there.
async fn refuse_users(tx: &mut PgConnection, place: &Place, server: &str) -> Result<(), Error> {
    const LED: &str = "
        SELECT to_regclass('leadership') IS NULL
            OR pg_try_advisory_xact_lock(1464421957, to_regclass('leadership')::OID::INT)";
    const USERS: &str = "
        SELECT string_agg(DISTINCT format('%s (process %s, %s)', application_name, pid,
            coalesce(host(client_addr), 'this host')), ', ')
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND application_name IN ('windlass writer', 'windlass reader', 'windlass listener', 'windlass migration')
            AND (SELECT count(*) FROM pg_class WHERE relname = 'leadership' AND relkind = 'r') <= 1";
    let failed = |source| place.error("restore", source);
    let by: Option<String> = sqlx::query_scalar(USERS).fetch_one(&mut *tx).await.map_err(failed)?;
    let free: bool = sqlx::query_scalar(LED).fetch_one(&mut *tx).await.map_err(failed)?;
    match by {
        Some(by) => Err(Error::InUse { place: server.to_owned(), by }),
        None if free => Ok(()),
        None => Err(Error::InUse { place: server.to_owned(), by: "a controller that leads".to_owned() }),
    }
}

/// Refuses a database in which somebody else's tables have the names of ours.
async fn refuse_namesakes(tx: &mut PgConnection, place: &Place, server: &str) -> Result<(), Error> {
    let sql = "
        SELECT string_agg(relname::TEXT, ', ' ORDER BY relname) FROM pg_class
        WHERE relname = ANY($1) AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())";
    let found: Option<String> = sqlx::query_scalar(sql)
        .bind(our_tables().await?)
        .fetch_one(&mut *tx)
        .await
        .map_err(|source| place.error("restore", source))?;
    found.map_or(Ok(()), |tables| Err(Error::UnknownTables { place: server.to_owned(), tables }))
}

/// All tables that Windlass has on PostgreSQL.
async fn our_tables() -> Result<Vec<String>, Error> {
    let mut ours = sqlite::tables().await?;
    ours.extend(POSTGRES_TABLES.map(str::to_owned));
    Ok(ours)
}

/// Removes everything that Windlass has made, and nothing else.
async fn drop_all(tx: &mut PgConnection, place: &Place, server: &str) -> Result<(), Error> {
    let failed = |source| place.error("restore", source);
    let there: Vec<String> = sqlx::query_scalar(
        "SELECT relname::TEXT FROM pg_class WHERE relkind IN ('r', 'p')
            AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('_sqlx_migrations'))
        ORDER BY relname",
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    let ours: BTreeSet<String> = our_tables().await?.into_iter().collect();
    let unknown: Vec<&str> = there.iter().filter(|name| !ours.contains(*name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(Error::UnknownTables { place: server.to_owned(), tables: unknown.join(", ") });
    }
    let names: Vec<String> = there.iter().map(|name| format!("\"{name}\"")).collect();
    let sql = format!("DROP TABLE {} CASCADE; {POSTGRES_OTHERS}", names.join(", "));
    tx.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(failed)?;
    Ok(())
}

/// Has columns that number their rows go on after the rows that were put in.
async fn advance_identities(tx: &mut PgConnection, place: &Place) -> Result<(), Error> {
    let failed = |source| place.error("restore", source);
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT t.relname::TEXT, c.attname::TEXT FROM pg_class AS t JOIN pg_attribute AS c ON c.attrelid = t.oid
        WHERE c.attidentity <> '' AND t.relkind = 'r' AND t.relname = ANY($1)
            AND t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('_sqlx_migrations'))",
    )
    .bind(our_tables().await?)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    for (table, column) in columns {
        let sql = format!(
            "SELECT setval(pg_get_serial_sequence('{table}', '{column}'),
                coalesce((SELECT max(\"{column}\") FROM \"{table}\"), 0) + 1, false)"
        );
        tx.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(failed)?;
    }
    Ok(())
}
