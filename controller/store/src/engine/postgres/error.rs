//! What PostgreSQL reports, told apart.

use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::Error;

/// SQLSTATE codes; see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
mod code {
    pub(super) const SERIALIZATION_FAILURE: &str = "40001";
    pub(super) const DEADLOCK_DETECTED: &str = "40P01";
    pub(super) const READ_ONLY_TRANSACTION: &str = "25006";
    pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub(super) const INVALID_CATALOG_NAME: &str = "3D000";
    pub(super) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// Class 28: invalid authorization.
    pub(super) const AUTHORIZATION: &str = "28";
}

/// Tells apart what the server reports about an operation.
pub(crate) fn error(server: &str, operation: &'static str, source: sqlx::Error) -> Error {
    let code = source.as_database_error().and_then(DatabaseError::code);
    match code.as_deref() {
        Some(code::READ_ONLY_TRANSACTION) => Error::ReadOnly { server: server.to_owned() },
        Some(code::INSUFFICIENT_PRIVILEGE) => {
            Error::NotPermitted { server: server.to_owned(), source: Arc::new(source) }
        }
        Some(_) | None => Error::Unavailable { operation, source: Some(Arc::new(source)) },
    }
}

/// Tells apart why there is no connection.
pub(super) fn connecting(server: &str, source: sqlx::Error) -> Error {
    let code = source.as_database_error().and_then(DatabaseError::code);
    let server = server.to_owned();
    match code.as_deref() {
        Some(refused)
            if refused == code::INVALID_CATALOG_NAME || refused.starts_with(code::AUTHORIZATION) =>
        {
            Error::Refused { server, source: Arc::new(source) }
        }
        Some(code::INSUFFICIENT_PRIVILEGE) => Error::NotPermitted { server, source: Arc::new(source) },
        Some(_) | None => Error::Unreachable { server, source: Arc::new(source) },
    }
}

/// What an error means for the transaction that it happened in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The operation said no, and the transaction is as it was.
    Answer,
    /// A statement failed, and the transaction can only go back.
    Statement,
    /// The transaction stood in the way of another one: once more, and it may pass.
    Conflict,
    /// The connection is gone, or of no use any more.
    Lost,
}

/// What an error means for the transaction that it happened in.
pub(super) fn effect(error: &Error) -> Effect {
    match error {
        Error::Conflict { .. }
        | Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::InUse { .. }
        | Error::OtherBoot { .. }
        | Error::Invalid { .. }
        | Error::Corrupt { .. }
        | Error::NotLeader
        | Error::Unavailable { source: None, .. } => Effect::Answer,
        Error::Unavailable { source: Some(source), .. } => effect_of(source),
        Error::NotPermitted { .. } => Effect::Statement,
        // The server has become a replica: the primary may be reached by a new connection.
        Error::ReadOnly { .. } | Error::Unreachable { .. } | Error::Refused { .. } => Effect::Lost,
        Error::Damaged { .. }
        | Error::DiskFull { .. }
        | Error::NotWritable { .. }
        | Error::NewerSchema { .. }
        | Error::SchemaBroken { .. }
        | Error::Locked { .. }
        | Error::BadUrl { .. }
        | Error::OldServer { .. } => Effect::Statement,
    }
}

fn effect_of(source: &sqlx::Error) -> Effect {
    match source {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some(code::SERIALIZATION_FAILURE | code::DEADLOCK_DETECTED) => Effect::Conflict,
            // A terminated session says so as its last words.
            _ if database.try_downcast_ref::<PgDatabaseError>().is_some_and(is_fatal) => Effect::Lost,
            Some(_) | None => Effect::Statement,
        },
        // A value that cannot be read or written: the connection is as good as before.
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::RowNotFound => Effect::Statement,
        _ => Effect::Lost,
    }
}

fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

/// What the caller of an operation is told when there is no connection any more: that it may help to try again.
pub(super) fn meanwhile(operation: &'static str, error: Error) -> Error {
    match error {
        Error::Unreachable { source, .. } | Error::Refused { source, .. } => {
            Error::Unavailable { operation, source: Some(source) }
        }
        told => told,
    }
}

/// Whether there is no connection because others have them all.
pub(super) fn has_no_connections_left(error: &Error) -> bool {
    match error {
        Error::Unreachable { source, .. } => {
            source.as_database_error().and_then(DatabaseError::code).as_deref()
                == Some(code::TOO_MANY_CONNECTIONS)
        }
        _ => false,
    }
}

/// Whether a lock was not to be had in time.
pub(super) fn is_lock_timeout(source: &sqlx::Error) -> bool {
    source.as_database_error().and_then(DatabaseError::code).as_deref() == Some(code::LOCK_NOT_AVAILABLE)
}

/// [`is_lock_timeout`] of an error of ours.
pub(super) fn waited_in_vain(error: &Error) -> bool {
    match error {
        Error::Unavailable { source: Some(source), .. } => is_lock_timeout(source),
        _ => false,
    }
}
