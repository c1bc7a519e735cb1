//! Tells readers that something in a unit's folder has changed: one inotify descriptor for all of them, because a user has
//! few (128 by default).
//!
//! ```text
//!  inotify ─► task ─► one `watch` channel for each folder ─► readers
//! ```
//!
//! Where inotify is not to be had, readers look by themselves.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// What wakes a reader: growth of the spool, and the exit record put in place.
const EVENTS: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::MOVED_TO);

/// Hands out subscriptions. Cheap to clone. The task ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Watcher(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    inotify: Arc<AsyncFd<OwnedFd>>,
    /// Guards which folders are watched, by inotify's number.
    folders: Mutex<HashMap<i32, Folder>>,
}

/// A watched folder.
#[derive(Debug)]
struct Folder {
    changed: watch::Sender<()>,
    subscribers: usize,
}

/// A reader's interest in a folder.
#[derive(Debug)]
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    number: i32,
    changed: watch::Receiver<()>,
}

impl Watcher {
    /// Starts watching. Must be called within a runtime.
    pub(crate) fn start() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(readiness);
        let inotify = match inotify {
            Ok(inotify) => Arc::new(inotify),
            Err(error) => {
                tracing::warn!(%error, "inotify is not available; output is polled");
                return Self(None);
            }
        };
        let shared = Arc::new(Shared { inotify: Arc::clone(&inotify), folders: Mutex::default() });
        tokio::spawn(distribute(inotify, Arc::downgrade(&shared)));
        Self(Some(shared))
    }

    /// Subscribes to a folder; `None` where the reader must look by itself. What changed before is not told, so look after
    /// subscribing.
    pub(crate) fn subscribe(&self, dir: &Path) -> Option<Subscription> {
        let shared = self.0.as_ref()?;
        // The lock is held while the watch is added: the task must not miss its first event.
        let mut folders = shared.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let number = inotify::add_watch(&*shared.inotify, dir, EVENTS).ok()?;
        let folder = folders
            .entry(number)
            .or_insert_with(|| Folder { changed: watch::Sender::new(()), subscribers: 0 });
        folder.subscribers += 1;
        let changed = folder.changed.subscribe();
        Some(Subscription { shared: Arc::clone(shared), number, changed })
    }
}

impl Subscription {
    /// Waits for the next change. Cancel-safe: a change during a dropped call is told by the next.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as this subscription.
        let _sender_is_there = self.changed.changed().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut folders = self.shared.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = folders.get_mut(&self.number) {
            folder.subscribers -= 1;
            if folder.subscribers == 0 {
                folders.remove(&self.number);
                // The folder may be gone, and the watch with it.
                let _gone = inotify::remove_watch(&*self.shared.inotify, self.number);
            }
        }
    }
}

/// A descriptor whose readiness for reading can be awaited.
#[expect(
    deprecated,
    reason = "the unsafe successor asks for what an OwnedFd has: it stays the same open descriptor"
)]
pub(crate) fn readiness(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

/// Reads events until the last [`Watcher`] and [`Subscription`] are gone.
async fn distribute(inotify: Arc<AsyncFd<OwnedFd>>, shared: Weak<Shared>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        // The shared part holds a copy of the descriptor too, so its end is seen by looking now and then.
        let ready = tokio::time::timeout(std::time::Duration::from_secs(5), inotify.readable()).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut guard = match ready {
            Err(_elapsed) => continue,
            Ok(Ok(guard)) => guard,
            Ok(Err(error)) => {
                tracing::warn!(%error, "inotify failed; output is polled");
                return;
            }
        };
        let mut events = inotify::Reader::new(inotify.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(event) => {
                    // A record has such a name until it is whole.
                    if event.file_name().is_some_and(|name| name.to_bytes().starts_with(b".")) {
                        continue;
                    }
                    let folders = shared.folders.lock().unwrap_or_else(PoisonError::into_inner);
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        folders.values().for_each(|folder| folder.changed.send_replace(()));
                    } else if let Some(folder) = folders.get(&event.wd()) {
                        folder.changed.send_replace(());
                    }
                }
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "inotify failed; output is polled");
                    return;
                }
            }
        }
    }
}
