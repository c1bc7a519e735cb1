//! Files in memory: a crash of the agent cuts off what it was doing, a loss of power takes what was not flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::SeededIds;
use crate::fs::{AgentFs, Durable, Volume, parent};
use crate::ids::IdSource as _;
use crate::watch;

/// What of the operation that a crash hits gets onto the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing.
    Before,
    /// A part of what is written; nothing of what is atomic.
    Within,
    /// All of it, but nobody hears of it.
    After,
}

/// The files of a host in memory. What was done when an agent crashes stays, flushed or not; the operation that the
/// crash hits is cut off, and all later ones hang until [`MemoryFs::restart`].
#[derive(Debug)]
pub struct MemoryFs {
    volume: MemoryVolume,
    /// What the present agent uses. Protects which one that is.
    files: Mutex<Arc<Durable<MemoryVolume>>>,
    crashed: watch::Sender<bool>,
}

/// What the kernel and the disk hold. Clones are the same.
#[derive(Clone, Debug)]
struct MemoryVolume {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    /// The entries that are on the disk.
    flushed_names: BTreeMap<String, u64>,
    next_file: u64,
    operations: u64,
    crash_at: Option<(u64, Crash)>,
    crashed: bool,
    full: bool,
    free: u64,
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    flushed: Vec<u8>,
}

impl Default for MemoryFs {
    fn default() -> Self {
        let state = State {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            flushed_names: BTreeMap::new(),
            next_file: 0,
            operations: 0,
            crash_at: None,
            crashed: false,
            full: false,
            free: 1 << 40,
        };
        let volume = MemoryVolume { state: Arc::new(Mutex::new(state)) };
        let files = Mutex::new(Arc::new(Durable::new(volume.clone())));
        Self { volume, files, crashed: watch::Sender::new(false) }
    }
}

impl MemoryFs {
    /// How many changing operations there were.
    pub fn operations(&self) -> u64 {
        self.volume.state().operations
    }

    /// Crashes at the changing operation with this number, counted from 1 over the life of this file system.
    pub fn crash_at(&self, operation: u64, crash: Crash) {
        self.volume.state().crash_at = Some((operation, crash));
    }

    /// Returns when the crash has come.
    pub async fn crashed(&self) {
        let mut crashed = self.crashed.subscribe();
        // The sender lives as long as `self`.
        drop(crashed.wait_for(|crashed| *crashed).await);
    }

    /// Works again, for another agent, after the one before was dropped.
    pub fn restart(&self) {
        {
            let mut state = self.volume.state();
            state.crashed = false;
            state.crash_at = None;
        }
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Durable::new(self.volume.clone()));
        self.crashed.send_replace(false);
    }

    /// The host loses power: of what was not flushed, chance decides what is on the disk.
    pub fn lose_power(&self, seed: u64) {
        let chance = SeededIds::new(seed);
        let mut state = self.volume.state();
        let State { files, names, flushed_names, .. } = &mut *state;
        for content in files.values_mut() {
            let lost = std::mem::take(&mut content.now);
            content.now.clone_from(&content.flushed);
            if let Some(added) = lost.strip_prefix(content.flushed.as_slice()) {
                // What was added gets there from its beginning on.
                let kept = (added.len() as f64 * chance.fraction() * 1.2) as usize;
                content.now.extend_from_slice(&added[..kept.min(added.len())]);
            } else if chance.fraction() < 0.5 {
                content.now = lost;
            }
            content.flushed.clone_from(&content.now);
        }
        let both: BTreeSet<String> = names.keys().chain(flushed_names.keys()).cloned().collect();
        for name in both {
            let (new, old) = (names.get(&name).copied(), flushed_names.get(&name).copied());
            let kept = if new == old || chance.fraction() < 0.5 { new } else { old };
            match kept {
                Some(file) => names.insert(name, file),
                None => names.remove(&name),
            };
        }
        flushed_names.clone_from(names);
    }

    /// Makes the disk full, or not. A write to a full disk fails and leaves a part behind.
    pub fn set_full(&self, full: bool) {
        self.volume.state().full = full;
    }

    /// Sets how much space is said to be free.
    pub fn set_free_bytes(&self, free: u64) {
        self.volume.state().free = free;
    }

    /// The paths of all files, but for those that were being written when an agent crashed.
    pub fn paths(&self) -> Vec<String> {
        let state = self.volume.state();
        state.names.keys().filter(|path| !is_hidden(path)).cloned().collect()
    }

    /// Changes a file's content without an operation, as damage does. Makes it where it is missing.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.volume.state();
        let content = state.file(path);
        change(&mut content.now);
        content.flushed = content.now.clone();
    }

    /// Carries out what the present agent asks for; hangs where it has crashed.
    async fn carry_out<T>(
        &self,
        work: impl FnOnce(&Durable<MemoryVolume>) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let files = Arc::clone(&self.files.lock().unwrap_or_else(PoisonError::into_inner));
        let result = work(&files);
        if self.volume.state().crashed {
            self.crashed.send_replace(true);
            std::future::pending::<()>().await;
        }
        result
    }
}

fn is_hidden(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with('.'))
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// Nobody hears of it: the agent that asked is dead.
fn dead() -> io::Error {
    io::ErrorKind::Interrupted.into()
}

/// How much of an operation is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Part,
    All,
}

impl State {
    /// The content of a file, which is made where it is missing.
    fn file(&mut self, path: &str) -> &mut Content {
        let next = &mut self.next_file;
        let number = *self.names.entry(path.to_owned()).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.files.entry(number).or_default()
    }

    fn add(&mut self, path: &str, content: &[u8], extent: Extent) -> io::Result<()> {
        let full = self.full;
        let written = if full || extent == Extent::Part { &content[..content.len() / 2] } else { content };
        self.file(path).now.extend_from_slice(written);
        if full { Err(self::full()) } else { Ok(()) }
    }
}

impl MemoryVolume {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a changing operation, or the part of it that a crash lets through.
    fn change(&self, change: impl FnOnce(&mut State, Extent) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state();
        if state.crashed {
            return Err(dead());
        }
        state.operations += 1;
        let Some((_, crash)) = state.crash_at.filter(|(at, _)| *at == state.operations) else {
            return change(&mut state, Extent::All);
        };
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
        Err(dead())
    }

    /// Looks, or flushes. No crash hits it that would not be the same before or after it.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        if state.crashed { Err(dead()) } else { look(&mut state) }
    }
}

impl Volume for MemoryVolume {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{folder}/");
        self.look(|state| {
            let names = state.names.keys().filter(|path| !is_hidden(path));
            Ok(names.filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect())
        })
    }

    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.look(|state| Ok(state.names.get(path).map(|number| state.files[number].now.clone())))
    }

    fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.change(|state, extent| {
            state.file(path).now.clear();
            state.add(path, content, extent)
        })
    }

    fn append(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.change(|state, extent| state.add(path, content, extent))
    }

    fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        self.change(|state, extent| {
            if !state.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if extent == Extent::All {
                state.file(path).now.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            }
            Ok(())
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state, extent| {
            if state.names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            if extent == Extent::All {
                state.names.insert(to.to_owned(), file);
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state, extent| {
            if extent == Extent::All {
                let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
                state.names.insert(to.to_owned(), file);
            }
            Ok(())
        })
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.change(|state, extent| {
            if extent == Extent::All {
                state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
            }
            Ok(())
        })
    }

    fn flush(&self, path: &str) -> io::Result<()> {
        self.look(|state| {
            if !state.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let content = state.file(path);
            content.flushed.clone_from(&content.now);
            Ok(())
        })
    }

    fn flush_folder(&self, folder: &str) -> io::Result<()> {
        self.look(|state| {
            let State { names, flushed_names, .. } = state;
            flushed_names.retain(|path, _| parent(path) != folder || names.contains_key(path));
            let here = names.iter().filter(|(path, _)| parent(path) == folder);
            flushed_names.extend(here.map(|(path, file)| (path.clone(), *file)));
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.look(|state| Ok(state.free))
    }
}

#[async_trait]
impl AgentFs for MemoryFs {
    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.carry_out(|files| files.list(folder)).await
    }

    async fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.carry_out(|files| files.read(path)).await
    }

    async fn create_new(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.carry_out(|files| files.create_new(path, &content)).await
    }

    async fn replace(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.carry_out(|files| files.replace(path, &content)).await
    }

    async fn append(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        self.carry_out(|files| files.append(path, &content)).await
    }

    async fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        self.carry_out(|files| files.truncate(path, length)).await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        self.carry_out(|files| files.remove(path)).await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.carry_out(|files| files.volume().free_bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_answered_survives_a_loss_of_power_whatever_chance_decides() {
        for seed in 0..50 {
            let fs = MemoryFs::default();
            fs.create_new("ledger/a", b"one".to_vec()).await.unwrap();
            fs.replace("config/c", b"old".to_vec()).await.unwrap();
            fs.append("outbox/1", b"first".to_vec()).await.unwrap();
            fs.append("outbox/1", b" second".to_vec()).await.unwrap();
            fs.create_new("ledger/gone", b"gone".to_vec()).await.unwrap();
            fs.remove("ledger/gone").await.unwrap();
            fs.replace("config/c", b"new".to_vec()).await.unwrap();
            fs.lose_power(seed);
            fs.restart();
            assert_eq!(fs.read("ledger/a").await.unwrap().as_deref(), Some(&b"one"[..]));
            assert_eq!(fs.read("config/c").await.unwrap().as_deref(), Some(&b"new"[..]));
            assert_eq!(fs.read("outbox/1").await.unwrap().as_deref(), Some(&b"first second"[..]));
            assert_eq!(fs.list("ledger").await.unwrap(), ["a"]);
        }
    }

    #[tokio::test]
    async fn what_was_read_after_a_crash_survives_a_loss_of_power() {
        for seed in 0..50 {
            let fs = Arc::new(MemoryFs::default());
            fs.append("outbox/1", b"first".to_vec()).await.unwrap();
            fs.crash_at(fs.operations() + 1, Crash::After);
            let writer = Arc::clone(&fs);
            let writing = tokio::spawn(async move { writer.append("outbox/1", b" second".to_vec()).await });
            fs.crashed().await;
            writing.abort();
            fs.restart();
            let read = fs.read("outbox/1").await.unwrap();
            fs.lose_power(seed);
            assert_eq!(read.as_deref(), Some(&b"first second"[..]));
            assert_eq!(fs.read("outbox/1").await.unwrap(), read, "seed {seed}");
        }
    }
}
