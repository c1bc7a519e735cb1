//! The store: desired and observed state of jobs, attempts, nodes, tokens and templates. The only place with SQL.
//!
//! [`Store`] is a cheap handle on one engine. Every operation is a single named method that either happens as a
//! whole or not at all; once it returns, what it wrote is on disk. There is no clock and no source of ids in here:
//! times and ids are arguments, and times are kept to the millisecond.
//!
//! ```text
//!  callers ── operation (closure) ──► writer task ── one transaction, one savepoint each ──► commit ──► answers
//!     │                                                                                         └─► Change wake-ups
//!     └────── lookups ──► pool of read connections
//! ```
//!
//! # Guarantees
//! - A transition is checked in the statement that makes it: epoch, version, phase. What lost a race is told apart
//!   ([`TransitionOutcome::Stale`], [`Error::Conflict`]) from what failed.
//! - A job is held exactly while it has one live attempt, and that attempt has the job's epoch. Epochs only grow.
//! - `resource_version` is one store-wide growing number: whatever changes gets a higher one than anything before.
//!   Objects that change together share it.
//!
//! # Caveats
//! - Dropping the future of an operation does not take the operation back: it may still be carried out.
//! - [`Change`] is a wake-up, not a log. A receiver that lags re-reads.

mod engine;
mod error;
mod model;
mod ops;
mod store;
pub mod transfer;

pub use engine::postgres::PostgresUrl;
pub use error::Error;
pub use model::*;
pub use store::{Store, StoreOptions, StoreUrl};
