//! Files in memory that a crash cuts off in the middle of an operation.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard};

use crate::watch;
use async_trait::async_trait;

use crate::fs::AgentFs;

/// What of the operation that a crash hits gets onto the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing.
    Before,
    /// A part of what an append writes; nothing of the others, which are atomic.
    Within,
    /// All of it, but nobody hears of it.
    After,
}

/// Files in memory. What an operation has finished stays; an operation that a crash hits is cut off, and all later ones
/// hang until [`MemoryFs::restart`].
#[derive(Debug)]
pub struct MemoryFs {
    state: Mutex<State>,
    crashed: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    operations: u64,
    crash_at: Option<(u64, Crash)>,
    crashed: bool,
    full: bool,
    free: u64,
}

impl Default for MemoryFs {
    fn default() -> Self {
        let state = State {
            files: BTreeMap::new(),
            operations: 0,
            crash_at: None,
            crashed: false,
            full: false,
            free: 1 << 40,
        };
        Self { state: Mutex::new(state), crashed: watch::Sender::new(false) }
    }
}

impl MemoryFs {
    /// How many changing operations there were.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Crashes at the changing operation with this number, counted from 1 over the life of this file system.
    pub fn crash_at(&self, operation: u64, crash: Crash) {
        self.state().crash_at = Some((operation, crash));
    }

    /// Returns when the crash has come.
    pub async fn crashed(&self) {
        let mut crashed = self.crashed.subscribe();
        // The sender lives as long as `self`.
        drop(crashed.wait_for(|crashed| *crashed).await);
    }

    /// Works again, after the agent was dropped.
    pub fn restart(&self) {
        let mut state = self.state();
        state.crashed = false;
        state.crash_at = None;
        self.crashed.send_replace(false);
    }

    /// Makes the disk full, or not. A write to a full disk fails; an append leaves a part behind.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Sets how much space is said to be free.
    pub fn set_free_bytes(&self, free: u64) {
        self.state().free = free;
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<String> {
        self.state().files.keys().cloned().collect()
    }

    /// Changes a file's content without an operation, as damage does. Makes it where it is missing.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.state().files.entry(path.to_owned()).or_default());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Carries out a changing operation, or the part of it that a crash lets through.
    async fn change(
        &self,
        change: impl FnOnce(&mut State, Extent) -> io::Result<()> + Send,
    ) -> io::Result<()> {
        let done = {
            let mut state = self.state();
            if state.crashed {
                None
            } else {
                state.operations += 1;
                match state.crash_at {
                    Some((at, crash)) if at == state.operations => {
                        state.crashed = true;
                        let extent = match crash {
                            Crash::Before => None,
                            Crash::Within => Some(Extent::Part),
                            Crash::After => Some(Extent::All),
                        };
                        if let Some(extent) = extent {
                            // Nobody hears whether it worked.
                            drop(change(&mut state, extent));
                        }
                        None
                    }
                    _ => Some(change(&mut state, Extent::All)),
                }
            }
        };
        match done {
            Some(result) => result,
            None => {
                self.crashed.send_replace(true);
                std::future::pending().await
            }
        }
    }
}

/// How much of an operation is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Part,
    All,
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

#[async_trait]
impl AgentFs for MemoryFs {
    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{folder}/");
        Ok(self
            .state()
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect())
    }

    async fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().files.get(path).cloned())
    }

    async fn create_new(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.change(|state, extent| {
            if state.full {
                return Err(full());
            }
            if state.files.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if extent == Extent::All {
                state.files.insert(path.to_owned(), content);
            }
            Ok(())
        })
        .await
    }

    async fn replace(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.change(|state, extent| {
            if state.full {
                return Err(full());
            }
            if extent == Extent::All {
                state.files.insert(path.to_owned(), content);
            }
            Ok(())
        })
        .await
    }

    async fn append(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.change(|state, extent| {
            let cut = extent == Extent::Part || state.full;
            let written = if cut { &content[..content.len() / 2] } else { &content[..] };
            state.files.entry(path.to_owned()).or_default().extend_from_slice(written);
            if state.full { Err(full()) } else { Ok(()) }
        })
        .await
    }

    async fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        self.change(|state, extent| {
            let file = state.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
            if extent == Extent::All {
                file.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            }
            Ok(())
        })
        .await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        self.change(|state, extent| {
            if extent == Extent::All {
                state.files.remove(path);
            }
            Ok(())
        })
        .await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state().free)
    }
}
