//! Why an operation of the store was not carried out.

use std::path::PathBuf;
use std::sync::Arc;

/// Why an operation of the store was not carried out. Nothing of it happened, except after
/// [`Error::Unavailable`], where it may have.
#[derive(Clone, Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// Somebody else changed the object first.
    #[error("{object} `{key}` has changed: expected version {expected}, found {found}")]
    Conflict {
        /// The kind of object.
        object: &'static str,
        /// Which one.
        key: String,
        /// The version that the change was based on.
        expected: i64,
        /// The version as it is; 0 where there is none.
        found: i64,
    },
    /// There is no such object.
    #[error("{object} `{key}` does not exist")]
    NotFound {
        /// The kind of object.
        object: &'static str,
        /// Which one.
        key: String,
    },
    /// The object exists already.
    #[error("{object} `{key}` exists already")]
    AlreadyExists {
        /// The kind of object.
        object: &'static str,
        /// Which one.
        key: String,
    },
    /// Something still needs the object.
    #[error("{object} `{key}` is in use by {by}")]
    InUse {
        /// The kind of object.
        object: &'static str,
        /// Which one.
        key: String,
        /// What needs it.
        by: String,
    },
    /// Another run of the node's agent is registered.
    #[error("node `{node}` is registered by another run of its agent")]
    OtherBoot {
        /// The node.
        node: String,
    },
    /// The caller asked for something that can never be right: a defect of the caller.
    #[error("{operation} was called with {problem}")]
    Invalid {
        /// The operation.
        operation: &'static str,
        /// What is wrong with its arguments.
        problem: String,
    },
    /// A value in the database is not what this version of the program writes.
    #[error("column {column} of table {table} holds a value that cannot be read, in row {row}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        row: String,
    },
    /// The database file itself is damaged, or is no database.
    #[error("{} is damaged or is no Windlass database: restore it from a backup, or move it away to start empty", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The engine did not carry it out, and it may help to try again.
    #[error("the database did not carry out {operation}")]
    Unavailable {
        /// The operation or statement.
        operation: &'static str,
        /// What the engine said, where it said something.
        #[source]
        source: Option<Arc<sqlx::Error>>,
    },
    /// The file system is full.
    #[error("the file system of {} is full: free space there, nothing that was acknowledged is lost", path.display())]
    DiskFull {
        /// The database's file.
        path: PathBuf,
        /// What the engine said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The file or its folder cannot be written.
    #[error("{} cannot be written: check its owner, its permissions and that its file system is not read-only", path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system or the engine said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database was written by a newer version of the program.
    #[error(
        "the database has schema version {found} and this program knows only up to {known}: \
         run the newer program, or restore a backup from before the upgrade"
    )]
    NewerSchema {
        /// The schema version of the database.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// An upgrade of the database was cut short, or its steps are not those that this program knows.
    #[error(
        "step {version} of the database's schema was left half-done or does not belong to this program: \
         restore a backup from before the upgrade"
    )]
    SchemaBroken {
        /// The step.
        version: i64,
    },
    /// Another controller has taken the lead since.
    #[error("another controller has taken the lead")]
    NotLeader,
    /// The URL of the database cannot be read.
    #[error("the store's URL has {problem}: it must be postgres://USER@HOST[:PORT]/DATABASE[?OPTION=VALUE]")]
    BadUrl {
        /// What is wrong with it, without its password.
        problem: String,
    },
    /// The server cannot be reached.
    #[error("PostgreSQL cannot be reached as {server}: check that it runs, and host and port")]
    Unreachable {
        /// User, host, port and database.
        server: String,
        /// What the system or the server said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The server refuses the login.
    #[error("PostgreSQL refuses the login as {server}: check user, password, database and its pg_hba.conf")]
    Refused {
        /// User, host, port and database.
        server: String,
        /// What the server said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The server lets the user in, but not do this.
    #[error(
        "PostgreSQL does not permit {server} to do this: the user must own the database or may create in its schema"
    )]
    NotPermitted {
        /// User, host, port and database.
        server: String,
        /// What the server said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The server is a replica.
    #[error(
        "PostgreSQL, reached as {server}, is read-only: it is a replica, or set so; connect to the primary"
    )]
    ReadOnly {
        /// User, host, port and database.
        server: String,
    },
    /// The server is too old.
    #[error("PostgreSQL, reached as {server}, has version number {found}: {oldest} or newer is needed")]
    OldServer {
        /// User, host, port and database.
        server: String,
        /// The server's version number.
        found: i64,
        /// The oldest that works.
        oldest: i64,
    },
    /// Another process has the database open.
    #[error("{} is held by another process: stop it first, or use another folder", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

impl Error {
    /// The error's kind as a stable word, for metrics, reasons and codes.
    pub fn kind(&self) -> &'static str {
        self.into()
    }
}

/// An error and its causes in one line, each of them once, for the log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some say their cause themselves.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_says_of_its_cause_is_said_once() {
        let refused = std::io::Error::other("Connection refused");
        let error =
            Error::Unreachable { server: "u@h:1/d".into(), source: Arc::new(sqlx::Error::Io(refused)) };
        let said = chain(&error);
        assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    }
}
