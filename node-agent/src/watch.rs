//! A value that others follow, like `tokio::sync::watch`, with one promise more: those who wait are woken in the order
//! in which they began to wait.
//!
//! Tokio's channel spreads its waiters over several lists by chance. What the agent's tasks do first after a change
//! would then differ from run to run, and a seed of the simulation would not lead to the same interleaving again.
//!
//! *Guarantees*: a receiver never misses that the value has changed since it looked; it may miss values in between.
//! *Cancellation*: a dropped wait loses nothing.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

/// The side that changes the value. Clones change the same one.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    owner: Arc<Owner<T>>,
}

/// Closes the channel when the last sender is gone.
#[derive(Debug)]
struct Owner<T> {
    shared: Arc<Shared<T>>,
}

/// A side that follows the value. A clone has seen what its original has seen.
#[derive(Clone, Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, borrowed. Not to be held over an await or a change.
pub(crate) struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

/// The sender is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

#[derive(Debug)]
struct Shared<T> {
    /// Protects the value and its version together; held for a look or a change at a time.
    state: RwLock<State<T>>,
    /// Told after every change. It wakes in the order of waiting.
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    /// Counts changes.
    version: u64,
    closed: bool,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        let state = RwLock::new(State { value, version: 0, closed: false });
        let shared = Arc::new(Shared { state, changed: Notify::new() });
        Self { owner: Arc::new(Owner { shared }) }
    }

    /// A receiver that has seen the present value.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        let seen = self.owner.shared.read().version;
        Receiver { shared: Arc::clone(&self.owner.shared), seen }
    }

    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.owner.shared.read())
    }

    /// Puts a value in place and yields the one before.
    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|current| std::mem::swap(current, &mut value));
        value
    }

    /// Changes the value in place.
    pub(crate) fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value in place; receivers hear of it where `modify` says that it did. Yields what `modify` said.
    pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = {
            let mut state = self.owner.shared.write();
            let modified = modify(&mut state.value);
            if modified {
                state.version += 1;
            }
            modified
        };
        if modified {
            self.owner.shared.changed.notify_waiters();
        }
        modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { owner: Arc::clone(&self.owner) }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        self.shared.write().closed = true;
        self.shared.changed.notify_waiters();
    }
}

impl<T> Receiver<T> {
    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The present value, which counts as seen from now on.
    pub(crate) fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.read();
        self.seen = state.version;
        Ref(state)
    }

    /// Returns when there is a value that was not seen, and marks it as seen.
    ///
    /// # Errors
    /// [`Closed`] when there is none and will be none.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Made before the look: it hears of every change that comes after.
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.read();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            changed.await;
        }
    }

    /// Returns when the value is a wanted one, at once if it is, and marks it as seen.
    ///
    /// # Errors
    /// [`Closed`] when it is not and will not become one.
    pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        loop {
            if wanted(&self.borrow_and_update()) {
                return Ok(());
            }
            self.changed().await?;
        }
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_receiver_hears_of_every_change_once_and_of_the_end() {
        let sender = Sender::new(1);
        let mut receiver = sender.subscribe();
        let mut late = receiver.clone();
        assert_eq!(sender.send_replace(2), 1);
        assert!(!sender.send_if_modified(|_| false));
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), 2);
        late.wait_for(|value| *value == 2).await.unwrap();
        sender.send_modify(|value| *value += 1);
        assert_eq!(*late.borrow_and_update(), 3);
        drop(sender);
        receiver.changed().await.unwrap();
        assert_eq!((receiver.changed().await, late.changed().await), (Err(Closed), Err(Closed)));
        assert_eq!(late.wait_for(|value| *value == 4).await, Err(Closed));
        assert_eq!(late.wait_for(|value| *value == 3).await, Ok(()));
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_began() {
        let sender = Sender::new(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (mut receiver, woken) = (sender.subscribe(), Arc::clone(&woken));
            tasks.spawn(async move {
                receiver.changed().await.unwrap();
                woken.lock().unwrap().push(number);
            });
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        tasks.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }
}
