//! Taking everything out of a database and putting it into another one, of either kind: for backups.
//!
//! ```text
//!  Snapshot ── one view of the database, beside controllers that go on ──► tables, rows ──► (a file; see the controller)
//!  Loader   ◄── tables, rows ── the schema as it was, then the steps since, then what a restore changes ──► commit
//! ```
//!
//! Rows are plain values under the names of their columns, so that what was taken from SQLite fits PostgreSQL and the
//! reverse. What is of one database alone (the steps that were taken, who leads, where numbers were left off) is not taken:
//! the target has its own.
//!
//! # Guarantees
//! A snapshot is one moment of the database. A loader changes nothing that anybody sees until [`Settled::commit`]: a file is
//! a new one, and a server is filled in one transaction. What is loaded is fit to be served: see [`Restored`].

mod catalog;
mod loader;
mod restored;
mod snapshot;

use serde::{Deserialize, Serialize};

pub use loader::{FileHold, Loader, Restoring, Settled, check_tables};
pub use restored::Restored;
pub use snapshot::Snapshot;

pub(crate) use restored::read as read_restored;

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// Whole numbers.
    Int,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
}

/// A table and its columns, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableShape {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<Column>,
}

/// A value in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// None.
    Null,
    /// A whole number.
    Int(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// Why a database was not read or not filled. Nothing of a target has changed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// The database could not be opened, or did not carry something out.
    #[error(transparent)]
    Store(#[from] crate::Error),
    /// There is no database to read.
    #[error(
        "{place} holds no Windlass database: name the state folder or the store of a controller that has run"
    )]
    Nothing {
        /// The file, or user, host, port and database.
        place: String,
    },
    /// There is something in the target already.
    #[error("{place} holds a Windlass database already")]
    NotEmpty {
        /// User, host, port and database.
        place: String,
    },
    /// Controllers work on the target.
    #[error("{place} is in use by {by}: stop every controller of this database first")]
    InUse {
        /// User, host, port and database.
        place: String,
        /// Who.
        by: String,
    },
    /// The target holds tables that are not ours or that a newer program has made.
    #[error(
        "{place} holds tables that are not this program's ({tables}): restore into an empty database, or remove them first"
    )]
    UnknownTables {
        /// User, host, port and database.
        place: String,
        /// Their names.
        tables: String,
    },
    /// The backup has a newer schema than this program knows.
    #[error(
        "the backup has schema version {found} and this program knows only up to {known}: run the newer program"
    )]
    NewerSchema {
        /// The schema version of the backup.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// The backup's tables are not those of its schema version.
    #[error("the backup does not fit its schema version: table `{table}` {problem}")]
    Unfit {
        /// The table.
        table: String,
        /// What is wrong.
        problem: String,
    },
    /// The clock is so wrong that numbers drawn from it could not be used.
    #[error("the clock of this host shows {shown}, from which no new numbers can be drawn: set it right")]
    Clock {
        /// What it shows.
        shown: jiff::Timestamp,
    },
}

impl Error {
    /// The error's kind as a stable word.
    pub fn kind(&self) -> &'static str {
        self.into()
    }
}

/// The newest schema version that this program knows.
pub fn newest_schema() -> i64 {
    crate::engine::sqlite::newest_schema()
}
