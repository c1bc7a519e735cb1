//! Turns at the containers of the node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;
use windlass_sandbox::engine::EngineKind;

/// Lets one step at a time have to do with a container, so that none takes back what another has done.
#[derive(Default)]
pub(crate) struct Turns {
    /// The containers that a step has to do with or waits for. Locked only to look one up.
    taken: Mutex<HashMap<(EngineKind, String), Taken>>,
}

/// A container while a step has to do with it or waits for it.
type Taken = Weak<tokio::sync::Mutex<()>>;

impl Turns {
    /// Waits for the turn at a container, which lasts as long as what is returned. Cancel-safe: whoever gives up waits no more.
    pub(super) async fn wait(&self, engine: EngineKind, id: &str) -> Turn {
        let turn = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|_, turn| turn.strong_count() > 0);
            let known = taken.entry((engine, id.to_owned())).or_default();
            known.upgrade().unwrap_or_else(|| {
                let turn = Arc::default();
                *known = Arc::downgrade(&turn);
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// The turn of a step.
pub(super) type Turn = OwnedMutexGuard<()>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn steps_take_turns_at_a_container_and_not_at_others() {
        let turns = Turns::default();
        let mine = turns.wait(EngineKind::Docker, "a").await;
        let soon = Duration::from_secs(1);
        assert!(timeout(soon, turns.wait(EngineKind::Docker, "a")).await.is_err());
        for (engine, id) in [(EngineKind::Docker, "b"), (EngineKind::Podman, "a")] {
            timeout(soon, turns.wait(engine, id)).await.unwrap();
        }
        drop(mine);
        let again = timeout(soon, turns.wait(EngineKind::Docker, "a")).await.unwrap();
        assert_eq!(turns.taken.lock().unwrap().len(), 1, "those that nobody has are forgotten");
        drop(again);
    }
}
