//! A connection to the server, set up for what it is for.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};

use super::error::connecting;
use crate::Error;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Whether acknowledged writes survive the server: some set it otherwise for all that log in.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// Every statement descends indexes. Plans that do not are right for small tables only, and the server may not know that
/// a table has grown since it made its plan, or its statistics.
const PLANS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
    SET random_page_cost = 1; SET jit = off";

/// What is expected of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It writes. Sitting idle in a transaction, which holds up every other writer, ends the session. A lock on a row is
    /// never held by another writer, but by people and by changes of the schema: they are not waited for long.
    Write,
    /// It only reads, whatever its statements say.
    Read,
    /// It waits for notifications and holds the lock of the leader.
    Listen,
    /// It brings the schema up to date. A lock that it waits for holds up everyone behind it.
    Migrate,
    /// It reads everything once, for as long as that takes.
    Backup,
    /// It fills a database that nobody else uses, for as long as that takes.
    Restore,
}

impl Purpose {
    /// What is shown in the server's list of sessions.
    const fn application(self) -> &'static str {
        match self {
            Self::Write => "windlass writer",
            Self::Read => "windlass reader",
            Self::Listen => "windlass listener",
            Self::Migrate => "windlass migration",
            Self::Backup => "windlass backup",
            Self::Restore => "windlass restore",
        }
    }

    const fn settings(self) -> &'static str {
        match self {
            // One plan per statement: the writer has it made anew as tables grow.
            Self::Write => {
                "SET statement_timeout = '10s'; SET lock_timeout = '1s'; \
                 SET idle_in_transaction_session_timeout = '5s'; SET plan_cache_mode = force_generic_plan"
            }
            Self::Read => {
                "SET statement_timeout = '30s'; SET lock_timeout = '5s'; SET default_transaction_read_only = on; \
                 SET plan_cache_mode = force_custom_plan"
            }
            Self::Listen => "SET statement_timeout = '30s'; SET lock_timeout = '5s'",
            Self::Migrate => "SET lock_timeout = '2s'",
            Self::Backup => {
                "SET statement_timeout = 0; SET lock_timeout = '5s'; SET default_transaction_read_only = on; \
                 SET idle_in_transaction_session_timeout = 0; SET enable_seqscan = on"
            }
            Self::Restore => {
                "SET statement_timeout = 0; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = 0; \
                 SET enable_seqscan = on"
            }
        }
    }
}

/// The driver's options for a purpose.
pub(super) fn options(options: &PgConnectOptions, purpose: Purpose) -> PgConnectOptions {
    options.clone().application_name(purpose.application())
}

/// Sets up a new connection.
pub(super) async fn set_up(connection: &mut PgConnection, purpose: Purpose) -> Result<(), sqlx::Error> {
    let sql = format!("{PLANS}; {}; {DURABLE}", purpose.settings());
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.map(drop)
}

/// Opens a connection of one's own.
pub(super) async fn connect(
    to: &PgConnectOptions,
    server: &Arc<str>,
    purpose: Purpose,
) -> Result<PgConnection, Error> {
    let opening = async {
        let mut connection = options(to, purpose).connect().await?;
        set_up(&mut connection, purpose).await?;
        Ok(connection)
    };
    let connection = match tokio::time::timeout(CONNECT, opening).await {
        Ok(connection) => connection,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    };
    connection.map_err(|source| connecting(server, source))
}

/// Refuses a server that cannot be written to.
pub(super) async fn require_primary(connection: &mut PgConnection, server: &Arc<str>) -> Result<(), Error> {
    let sql = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::BOOLEAN AS read_only";
    let row = connection.fetch_one(sqlx::raw_sql(sql)).await.map_err(|source| connecting(server, source))?;
    match row.try_get::<bool, _>("read_only") {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::ReadOnly { server: server.to_string() }),
        Err(source) => Err(connecting(server, source)),
    }
}
