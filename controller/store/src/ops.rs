//! The operations, one file per kind. Each is a single named method of [`crate::Store`].

mod apply;
mod artifacts;
mod change;
mod claim;
mod create;
mod events;
mod facts;
mod fleet;
mod inputs;
pub(crate) mod job_rows;
mod leases;
mod logs;
mod lookup;
mod nodes;
mod origins;
mod placement;
mod push;
mod queues;
mod registration;
mod reportable;
mod reservations;
mod retention;
mod rollouts;
mod secrets;
mod settings;
mod stats;
mod templates;
mod tokens;

use crate::Error;

/// Refuses a change of an object that is not at the version on which it was decided. `found` is 0 where there is none.
fn expect_version(object: &'static str, key: &str, expected: Option<i64>, found: i64) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != found => {
            Err(Error::Conflict { object, key: key.to_owned(), expected, found })
        }
        Some(_) | None => Ok(()),
    }
}
