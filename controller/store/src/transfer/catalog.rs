//! What tables a database has, in the order in which they can be filled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _, SqliteConnection};

use super::{Column, ColumnKind, Error, TableShape};
use crate::engine::conn::Place;
use crate::engine::sqlite;

/// The tables of one database alone: the steps of the schema that were taken, which programs can live with it, who leads,
/// and counters, of which only the version matters, which a snapshot tells.
const OWN: [&str; 4] = ["_sqlx_migrations", "compatibility", "leadership", "counters"];

/// A column, or a table that must be filled before, as the catalog tells it.
struct Found {
    table: String,
    name: String,
    kind: String,
}

/// The tables of an SQLite database.
pub(super) async fn of_sqlite(
    connection: &mut SqliteConnection,
    place: &Place,
) -> Result<Vec<TableShape>, Error> {
    const COLUMNS: &str = "
        SELECT t.name AS tab, c.name AS name, c.type AS kind
        FROM sqlite_master AS t JOIN pragma_table_info(t.name) AS c
        WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY t.name, c.cid";
    const BEFORE: &str = "
        SELECT t.name AS tab, f.\"table\" AS name, '' AS kind
        FROM sqlite_master AS t JOIN pragma_foreign_key_list(t.name) AS f WHERE t.type = 'table'";
    let failed = |source| place.error("list the tables", source);
    let mut found = Vec::new();
    for sql in [COLUMNS, BEFORE] {
        let rows = connection.fetch_all(sqlx::query(sql)).await.map_err(failed)?;
        let read = |row: &sqlx::sqlite::SqliteRow| -> Result<Found, sqlx::Error> {
            Ok(Found { table: row.try_get(0)?, name: row.try_get(1)?, kind: row.try_get(2)? })
        };
        found.push(rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?);
    }
    let before = found.pop().unwrap_or_default();
    shapes(found.pop().unwrap_or_default(), before)
}

/// The tables that Windlass has with a schema of this version.
///
/// # Errors
/// What keeps a database in memory from being made.
pub(super) async fn of_schema(version: i64) -> Result<Vec<TableShape>, Error> {
    let mut connection = sqlite::open_schema(Some(version)).await?;
    of_sqlite(&mut connection, &Place::File(Path::new(":memory:").into())).await
}

/// The tables of Windlass in a PostgreSQL database. Whatever else somebody has put beside them is none of them.
pub(super) async fn of_postgres(
    connection: &mut PgConnection,
    place: &Place,
) -> Result<Vec<TableShape>, Error> {
    const COLUMNS: &str = "
        SELECT t.relname::TEXT, c.attname::TEXT, format_type(c.atttypid, NULL)
        FROM pg_class AS t JOIN pg_attribute AS c ON c.attrelid = t.oid
        WHERE t.relkind = 'r' AND t.relname = ANY($1) AND c.attnum > 0 AND NOT c.attisdropped
            AND t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('_sqlx_migrations'))
        ORDER BY t.relname, c.attnum";
    const BEFORE: &str = "
        SELECT t.relname::TEXT, b.relname::TEXT, ''
        FROM pg_constraint AS f JOIN pg_class AS t ON t.oid = f.conrelid JOIN pg_class AS b ON b.oid = f.confrelid
        WHERE f.contype = 'f' AND t.relname = ANY($1)
            AND t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('_sqlx_migrations'))";
    let failed = |source| place.error("list the tables", source);
    let ours = sqlite::tables().await?;
    let mut found = Vec::new();
    for sql in [COLUMNS, BEFORE] {
        let rows = connection.fetch_all(sqlx::query(sql).bind(&ours)).await.map_err(failed)?;
        let read = |row: &sqlx::postgres::PgRow| -> Result<Found, sqlx::Error> {
            Ok(Found { table: row.try_get(0)?, name: row.try_get(1)?, kind: row.try_get(2)? })
        };
        found.push(rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(failed)?);
    }
    let before = found.pop().unwrap_or_default();
    shapes(found.pop().unwrap_or_default(), before)
}

/// Tables with their columns, each after those that it refers to.
fn shapes(columns: Vec<Found>, references: Vec<Found>) -> Result<Vec<TableShape>, Error> {
    let mut tables: BTreeMap<String, TableShape> = BTreeMap::new();
    for Found { table, name, kind } in columns {
        if OWN.contains(&table.as_str()) {
            continue;
        }
        let kind = match kind.to_ascii_uppercase().as_str() {
            "BIGINT" | "INTEGER" => ColumnKind::Int,
            "TEXT" => ColumnKind::Text,
            "BLOB" | "BYTEA" => ColumnKind::Bytes,
            other => {
                let problem = format!("has column `{name}` of the unknown type {other}");
                return Err(Error::Unfit { table, problem });
            }
        };
        let shape =
            tables.entry(table.clone()).or_insert_with(|| TableShape { name: table, columns: Vec::new() });
        shape.columns.push(Column { name, kind });
    }
    let mut before: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Found { table, name, .. } in references {
        if table != name {
            before.entry(table).or_default().insert(name);
        }
    }
    let mut ordered: Vec<TableShape> = Vec::with_capacity(tables.len());
    while !tables.is_empty() {
        let free = tables.keys().find(|table| {
            before.get(*table).is_none_or(|before| before.iter().all(|other| !tables.contains_key(other)))
        });
        let Some(next) = free.or_else(|| tables.keys().next()).cloned() else { break };
        ordered.extend(tables.remove(&next));
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &str, name: &str, kind: &str) -> Found {
        Found { table: table.to_owned(), name: name.to_owned(), kind: kind.to_owned() }
    }

    #[test]
    fn a_table_comes_after_those_that_it_refers_to() {
        let columns = ["a", "b", "c", "counters"].map(|table| found(table, "id", "BIGINT"));
        let references = vec![found("a", "c", ""), found("c", "b", ""), found("b", "b", "")];
        let ordered = shapes(columns.into(), references).unwrap();
        let names: Vec<&str> = ordered.iter().map(|shape| shape.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }

    #[test]
    fn a_type_that_no_backup_can_hold_is_named() {
        let error = shapes(vec![found("jobs", "weight", "REAL")], Vec::new()).unwrap_err();
        assert!(error.to_string().contains("`weight` of the unknown type REAL"), "{error}");
    }
}
