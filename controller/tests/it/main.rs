//! The API as its callers meet it: the whole router over an in-memory store, a clock that stands still and seeded ids.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than it expects ends there")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "values made in place read best when they are handed over"
)]

mod agents;
mod artifacts;
mod backups;
mod batches;
mod cluster_values;
mod database;
mod fleet;
mod generated;
mod hardening;
mod inputs;
mod jobs;
mod nodes;
mod origins;
mod push;
mod queues;
mod rollouts;
mod secrets;
mod shared;
mod startup;
mod streams;
mod templates;
mod tokens;
mod why;
mod world;
