//! Wakes nodes that wait for work when a queue at its limit has room again: the end of a job frees its own node at once,
//! and with a limit it frees the others too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use windlass_store::{QueueSettingsRow, Store};

use crate::error::ApiError;

/// Looks at queues with limits; cheap to clone.
#[derive(Clone)]
pub(super) struct Queues {
    store: Store,
    /// How many jobs of each queue ran when it was looked at last. The lock is held only to exchange it.
    before: Arc<Mutex<HashMap<String, u32>>>,
}

impl Queues {
    pub(super) fn new(store: Store) -> Self {
        Self { store, before: Arc::default() }
    }

    pub(super) async fn reconcile(&self) -> Result<(), ApiError> {
        let rows = self.store.queue_settings().await?;
        let now = rows.iter().map(|row| (row.queue.clone(), row.running)).collect();
        let before = std::mem::replace(&mut *self.before.lock().unwrap_or_else(PoisonError::into_inner), now);
        if rows.iter().any(|row| has_room_again(row, before.get(&row.queue).copied())) {
            self.store.wake_claims().await?;
        }
        Ok(())
    }
}

/// Whether a job of the queue may be claimed now and perhaps could not when `before` of its jobs ran.
fn has_room_again(row: &QueueSettingsRow, before: Option<u32>) -> bool {
    row.settings.concurrency.is_some_and(|limit| row.running < limit)
        && row.has_ready
        && before.is_none_or(|before| row.running < before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_store::QueueSettings;

    #[test]
    fn nodes_are_woken_when_a_limit_has_room_again_and_not_each_second() {
        let row = |concurrency, running, has_ready| QueueSettingsRow {
            queue: "q".to_owned(),
            settings: QueueSettings { weight: 1, concurrency },
            running,
            has_ready,
        };
        assert!(has_room_again(&row(Some(3), 2, true), Some(3)));
        assert!(has_room_again(&row(Some(3), 2, true), None), "the controller has just come up");
        assert!(
            !has_room_again(&row(Some(3), 2, true), Some(2)),
            "nobody can take it, and nothing has changed"
        );
        assert!(!has_room_again(&row(Some(3), 2, false), Some(3)), "nothing is ready");
        assert!(!has_room_again(&row(Some(3), 3, true), Some(4)), "it is at its limit still");
        assert!(!has_room_again(&row(None, 2, true), Some(3)), "it has no limit");
    }
}
