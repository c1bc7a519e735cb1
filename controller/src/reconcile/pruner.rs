//! Removes what has outlived its keep: old events and keys, and bodies that nobody names any more.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use windlass_store::{RetentionPolicy, Store};

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::error::{ApiError, Code};

/// How long an uploaded input stays that no job names.
const UNUSED_INPUT: SignedDuration = SignedDuration::from_hours(24);
/// The most rows of a kind in one round.
const BATCH: u32 = 500;

/// How long history is kept that no object needs.
const KEEP: RetentionPolicy = RetentionPolicy {
    events: Duration::from_secs(7 * 24 * 3600),
    superseded: Duration::from_secs(24 * 3600),
    join_tokens: Duration::from_secs(30 * 24 * 3600),
};

#[derive(Clone)]
pub(super) struct Pruner {
    store: Store,
    bodies: Bodies,
    clock: Arc<dyn Clock>,
}

impl Pruner {
    pub(super) fn new(store: Store, bodies: Bodies, clock: Arc<dyn Clock>) -> Self {
        Self { store, bodies, clock }
    }

    pub(super) async fn prune(&self) -> Result<(), ApiError> {
        // Of several controllers one does this, and only while it leads.
        let Some(store) = self.store.as_leader() else { return Ok(()) };
        let now = self.clock.now();
        let pruned = store.prune(now, KEEP, BATCH).await?;
        remove_bodies(&store, &self.bodies, pruned.bodies).await?;
        // What a crash has left behind.
        let pending = store.pending_removals(BATCH).await?;
        remove_bodies(&store, &self.bodies, pending).await?;
        let old = now.checked_sub(UNUSED_INPUT).unwrap_or(jiff::Timestamp::MIN);
        for input in store.unreferenced_inputs(old, BATCH).await? {
            // None where a job has begun to use it meanwhile.
            if let Some(key) = store.delete_input(now, &input.digest).await? {
                remove_bodies(&store, &self.bodies, vec![key]).await?;
            }
        }
        Ok(())
    }
}

/// Removes bodies and confirms it, so that a crash in between leaves them on the store's list.
pub(crate) async fn remove_bodies(store: &Store, bodies: &Bodies, keys: Vec<String>) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    for key in &keys {
        bodies.remove(key).await.map_err(|error| ApiError {
            source: Some(Box::new(error)),
            ..ApiError::new(Code::Unavailable, "could not remove a body")
        })?;
    }
    store.confirm_removed(&keys).await?;
    Ok(())
}
