//! The operations, one file per kind. Each is a single named method of [`crate::Store`].

mod apply;
mod change;
mod claim;
mod create;
mod events;
mod fleet;
mod inputs;
pub(crate) mod job_rows;
mod leases;
mod logs;
mod lookup;
mod nodes;
mod placement;
mod queues;
mod registration;
mod reportable;
mod retention;
mod settings;
mod stats;
mod templates;
mod tokens;
