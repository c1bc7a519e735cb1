//! Everything in a database, as it is at one moment, while controllers go on working on it.

use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Executor as _, Row as _, SqliteConnection};

use super::{Cell, ColumnKind, Error, TableShape, catalog, newest_schema};
use crate::StoreUrl;
use crate::engine::conn::Place;
use crate::engine::{postgres, sqlite};

/// A view of a database that does not change. On SQLite the database's log grows while it is open; on PostgreSQL old
/// versions of rows are kept.
#[derive(Debug)]
pub struct Snapshot {
    raw: Raw,
    place: Place,
    schema: i64,
    version: i64,
    tables: Vec<TableShape>,
}

#[derive(Debug)]
enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Snapshot {
    /// Opens a view of the database as it is now. Takes no lock that anybody waits for.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no database; [`crate::Error::NewerSchema`] and [`crate::Error::SchemaBroken`] for a
    /// schema that this program does not know; what keeps the database from being opened.
    pub async fn open(url: &StoreUrl) -> Result<Self, Error> {
        match url {
            StoreUrl::Sqlite(file) => Self::of_file(file).await,
            StoreUrl::SqliteMemory => Err(Error::Nothing { place: ":memory:".to_owned() }),
            StoreUrl::Postgres(url) => {
                let (mut connection, server) = postgres::open_snapshot(url).await?;
                let place = Place::Server(Arc::clone(&server));
                let failed = |source| place.error("begin a backup", source);
                let steps = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
                let exists: bool =
                    sqlx::query_scalar(steps).fetch_one(&mut connection).await.map_err(failed)?;
                if !exists {
                    return Err(Error::Nothing { place: server.to_string() });
                }
                let schema = schema_of(
                    &sqlx::query_as("SELECT version, success FROM _sqlx_migrations ORDER BY version")
                        .fetch_all(&mut connection)
                        .await
                        .map_err(failed)?,
                    &server,
                )?;
                let sql = "SELECT last_value FROM resource_versions";
                let version = sqlx::query_scalar(sql).fetch_one(&mut connection).await.map_err(failed)?;
                let tables = catalog::of_postgres(&mut connection, &place).await?;
                Ok(Self { raw: Raw::Postgres(connection), place, schema, version, tables })
            }
        }
    }

    async fn of_file(file: &Path) -> Result<Self, Error> {
        let place = Place::File(file.into());
        let nothing = || Error::Nothing { place: file.display().to_string() };
        // An empty file is what a start leaves that was killed at once.
        if !file.metadata().is_ok_and(|found| found.len() > 0) {
            return Err(nothing());
        }
        let mut connection = sqlite::open_snapshot(file).await?;
        let failed = |source| place.error("begin a backup", source);
        let steps = "SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'";
        let exists: i64 = sqlx::query_scalar(steps).fetch_one(&mut connection).await.map_err(failed)?;
        if exists == 0 {
            return Err(nothing());
        }
        let schema = schema_of(
            &sqlx::query_as("SELECT version, success FROM _sqlx_migrations ORDER BY version")
                .fetch_all(&mut connection)
                .await
                .map_err(failed)?,
            &file.display().to_string(),
        )?;
        let sql = "SELECT value FROM counters WHERE name = 'resource_version'";
        let version = sqlx::query_scalar(sql).fetch_one(&mut connection).await.map_err(failed)?;
        let tables = catalog::of_sqlite(&mut connection, &place).await?;
        Ok(Self { raw: Raw::Sqlite(connection), place, schema, version, tables })
    }

    /// The schema version.
    pub const fn schema(&self) -> i64 {
        self.schema
    }

    /// The last version that was drawn for a change.
    pub const fn version(&self) -> i64 {
        self.version
    }

    /// The tables, each after those that it refers to.
    pub fn tables(&self) -> &[TableShape] {
        &self.tables
    }

    /// Hands every row of a table to `each`, in no order, until that fails.
    ///
    /// # Errors
    /// What `each` says; [`Error::Unfit`] for a value that is not of its column's kind; what the engine reports.
    pub async fn read<E: From<Error>>(
        &mut self,
        shape: &TableShape,
        mut each: impl FnMut(Vec<Cell>) -> Result<(), E>,
    ) -> Result<(), E> {
        let columns: Vec<String> =
            shape.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let sql = AssertSqlSafe(format!("SELECT {} FROM \"{}\"", columns.join(", "), shape.name));
        let place = self.place.clone();
        let failed = |source| E::from(Error::from(place.error("read for a backup", source)));
        match &mut self.raw {
            Raw::Sqlite(connection) => {
                let mut rows = connection.fetch(sqlx::query(sql));
                while let Some(row) = rows.try_next().await.map_err(failed)? {
                    each(of_sqlite(&row, shape).map_err(E::from)?)?;
                }
            }
            Raw::Postgres(connection) => {
                let mut rows = connection.fetch(sqlx::query(sql));
                while let Some(row) = rows.try_next().await.map_err(failed)? {
                    each(of_postgres(&row, shape).map_err(E::from)?)?;
                }
            }
        }
        Ok(())
    }
}

fn schema_of(steps: &[(i64, bool)], place: &str) -> Result<i64, Error> {
    if let Some((version, _)) = steps.iter().find(|(_, done)| !done) {
        return Err(crate::Error::SchemaBroken { version: *version }.into());
    }
    let known = newest_schema();
    match steps.last() {
        None => Err(Error::Nothing { place: place.to_owned() }),
        Some((found, _)) if *found > known => Err(crate::Error::NewerSchema { found: *found, known }.into()),
        Some((found, _)) => Ok(*found),
    }
}

macro_rules! cells {
    ($name:ident, $row:ty) => {
        fn $name(row: &$row, shape: &TableShape) -> Result<Vec<Cell>, Error> {
            let mut cells = Vec::with_capacity(shape.columns.len());
            for (index, column) in shape.columns.iter().enumerate() {
                let cell = match column.kind {
                    ColumnKind::Int => row.try_get::<Option<i64>, _>(index).map(|value| value.map(Cell::Int)),
                    ColumnKind::Text => {
                        row.try_get::<Option<String>, _>(index).map(|value| value.map(Cell::Text))
                    }
                    ColumnKind::Bytes => {
                        row.try_get::<Option<Vec<u8>>, _>(index).map(|value| value.map(Cell::Bytes))
                    }
                };
                let cell = cell.map_err(|_| Error::Unfit {
                    table: shape.name.clone(),
                    problem: format!("holds a value in column `{}` that cannot be read", column.name),
                })?;
                cells.push(cell.unwrap_or(Cell::Null));
            }
            Ok(cells)
        }
    };
}

cells!(of_sqlite, SqliteRow);
cells!(of_postgres, PgRow);
