//! What SQLite reports, told apart.

use std::path::Path;
use std::sync::Arc;

use crate::Error;

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
pub(crate) fn error(path: &Path, operation: &'static str, source: sqlx::Error) -> Error {
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
pub(super) fn keeps_transaction(error: &Error) -> bool {
    match error {
        Error::Conflict { .. }
        | Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::InUse { .. }
        | Error::OtherBoot { .. }
        | Error::Invalid { .. }
        | Error::Corrupt { .. }
        | Error::NotLeader => true,
        Error::Unavailable { source: Some(source), .. } => primary_code(source) == Some(code::CONSTRAINT),
        Error::Unavailable { source: None, .. }
        | Error::Damaged { .. }
        | Error::DiskFull { .. }
        | Error::NotWritable { .. }
        | Error::NewerSchema { .. }
        | Error::SchemaBroken { .. }
        | Error::BadUrl { .. }
        | Error::Unreachable { .. }
        | Error::Refused { .. }
        | Error::NotPermitted { .. }
        | Error::ReadOnly { .. }
        | Error::OldServer { .. }
        | Error::Locked { .. } => false,
    }
}
