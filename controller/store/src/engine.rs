//! How statements reach a database: connections, rows, the writer task, opening and closing.
//!
//! Everything above this module speaks of [`conn::Conn`] and [`writer::Tx`] and of one SQL text per operation; what
//! differs between databases is in here.

pub(crate) mod caches;
pub(crate) mod conn;
pub(crate) mod dialect;
pub(crate) mod lock;
pub(crate) mod postgres;
pub(crate) mod private;
pub(crate) mod sqlite;
pub(crate) mod value;
pub(crate) mod writer;
