//! Bringing the schema up to date, beside other controllers that work on it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Executor as _;
use sqlx::Row as _;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::Instant;

use super::error;
use super::session::{self, Purpose};
use crate::Error;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The oldest server whose features are used.
const OLDEST_SERVER: i64 = 130_000;

/// How long it is tried to get the locks that a step needs. Each time only for two seconds, because whoever waits for a
/// lock holds up everyone behind.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long others have the locks for themselves in between.
const PAUSE: Duration = Duration::from_millis(500);

/// Brings the schema up to what this program knows, or leaves it alone where it is newer and this program can work with it.
pub(super) async fn migrate(to: &PgConnectOptions, server: &Arc<str>) -> Result<(), Error> {
    let known = MIGRATIONS.iter().map(|step| step.version).max().expect("there is at least one step");
    let until = Instant::now() + PATIENCE;
    loop {
        // With the session go the locks of an attempt that has failed.
        let mut connection = session::connect(to, server, Purpose::Migrate).await?;
        session::require_primary(&mut connection, server).await?;
        let done = attempt(&mut connection, server, known).await;
        sqlx::Connection::close(connection)
            .await
            .map_err(|source| error::error(server, "migrate", source))?;
        match done {
            Ok(()) => return Ok(()),
            Err(error) if error::waited_in_vain(&error) && Instant::now() < until => {
                tracing::info!(kind = error.kind(), "the schema is locked; it will be tried again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Refuses a server that is too old.
pub(super) async fn require_version(connection: &mut PgConnection, server: &Arc<str>) -> Result<(), Error> {
    let sql = "SELECT current_setting('server_version_num')::BIGINT";
    let found = number(connection, sql).await.map_err(|source| error::error(server, "migrate", source))?;
    match found {
        Some(found) if found < OLDEST_SERVER => {
            Err(Error::OldServer { server: server.to_string(), found, oldest: OLDEST_SERVER })
        }
        Some(_) | None => Ok(()),
    }
}

async fn attempt(connection: &mut PgConnection, server: &Arc<str>, known: i64) -> Result<(), Error> {
    let failed = |source| error::error(server, "migrate", source);
    require_version(connection, server).await?;
    let schema = "SELECT CASE WHEN to_regclass('_sqlx_migrations') IS NULL THEN 0 ELSE 1 END::BIGINT";
    if number(connection, schema).await.map_err(failed)? == Some(1)
        && let Some(found) =
            number(connection, "SELECT max(version) FROM _sqlx_migrations").await.map_err(failed)?
        && found > known
    {
        let oldest = number(connection, "SELECT oldest FROM compatibility").await.map_err(failed)?;
        if oldest.is_some_and(|oldest| oldest <= known) {
            tracing::info!(schema.found = found, schema.known = known, "working with a newer schema");
            return Ok(());
        }
        return Err(Error::NewerSchema { found, known });
    }
    migrate_to(connection, server, None).await
}

/// Takes the steps of the schema up to this version, or all.
pub(crate) async fn migrate_to(
    connection: &mut PgConnection,
    server: &Arc<str>,
    target: Option<i64>,
) -> Result<(), Error> {
    let failed = |source| error::error(server, "migrate", source);
    MIGRATIONS.run_direct(target, connection, false).await.map_err(|error| match error {
        MigrateError::Dirty(version)
        | MigrateError::VersionMismatch(version)
        | MigrateError::VersionMissing(version) => Error::SchemaBroken { version },
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => failed(source),
        other => failed(sqlx::Error::Migrate(Box::new(other))),
    })
}

/// The one number that a statement yields, if it yields one.
async fn number(connection: &mut PgConnection, sql: &'static str) -> Result<Option<i64>, sqlx::Error> {
    let row = connection.fetch_optional(sqlx::query(sql)).await?;
    row.map_or(Ok(None), |row| row.try_get(0))
}
