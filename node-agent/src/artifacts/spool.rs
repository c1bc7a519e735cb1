//! Where collected artifacts wait for the controller.
//!
//! ```text
//!  STATE/artifacts/.ID          a collection that is being made; goes at the next start
//!  STATE/artifacts/ATTEMPT/manifest.json
//!                          N    the body with the number N, until the controller has it
//!                          lost.json   what is here no more, until the controller knows
//! ```
//!
//! What is on disk is the only account; what is in memory follows from it at the start.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_crds::protocol::{Artifact, AttemptId, LostArtifact, MAX_ARTIFACTS_BYTES};

use super::FileSecrets;
use super::collect::{Collector, Halt};
use crate::ids::IdSource;
use crate::names::attempt_name;
use crate::watch;

const MANIFEST: &str = "manifest.json";
const LOST: &str = "lost.json";
/// Why bodies are gone for which there was no room.
const NO_ROOM: &str =
    "the controller was away for so long that the node had no room to keep it (agent --artifacts-mib)";

/// A collection as its manifest has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    attempt: AttemptId,
    collected_at: Timestamp,
    items: Vec<Artifact>,
}

/// A collection that waits.
struct Kept {
    collected_at: Timestamp,
    /// The records that tell of it are on their way to the controller, or there.
    released: bool,
    /// The bodies that are here, with their sizes.
    bodies: BTreeMap<u32, u64>,
    /// The bodies that are not, until the controller knows.
    lost: BTreeMap<u32, String>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// A body is to be sent.
    Send { attempt: AttemptId, number: u32, size: u64, path: PathBuf },
    /// The controller is to be told what will never come.
    Tell { attempt: AttemptId, lost: Vec<LostArtifact> },
}

/// Room on the disk that a collection counts on, for as long as it is being made.
pub(super) struct Room {
    bytes: u64,
    reserved: Reserved,
}

/// Bytes that the collections that are being made may still write.
pub(super) type Reserved = Arc<Mutex<u64>>;

impl Room {
    /// Takes as much as one collection may need of what is free and no other counts on. Nobody gives anything back between the
    /// look at the disk and the taking.
    pub(super) fn take(reserved: &Reserved, free: impl FnOnce() -> io::Result<u64>) -> io::Result<Self> {
        let mut taken = reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = free()?.saturating_sub(*taken).min(MAX_ARTIFACTS_BYTES);
        *taken += bytes;
        Ok(Self { bytes, reserved: Arc::clone(reserved) })
    }

    /// How many bytes that is.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So much of it was written: the disk says so itself from now on.
    pub(super) fn use_up(&mut self, bytes: u64) {
        let used = bytes.min(self.bytes);
        self.bytes -= used;
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) -= used;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.use_up(self.bytes);
    }
}

/// Collected artifacts on disk.
pub(crate) struct Spool {
    folder: PathBuf,
    /// The most bytes of bodies that wait.
    cap_bytes: u64,
    /// What the disk must have left.
    least_free_bytes: u64,
    ids: Arc<dyn IdSource>,
    /// Protects what is known in memory; no file is touched under it.
    kept: Mutex<BTreeMap<AttemptId, Kept>>,
    /// Protects that two collections do not count on the same room.
    reserved: Reserved,
    /// How many collections there are, and counts what happens to them.
    news: watch::Sender<(usize, u64)>,
}

impl Spool {
    /// Reads what an earlier run has left, and removes what it has not finished. Only before the first use, when the agent has
    /// nothing else to do and may wait for the disk.
    ///
    /// # Errors
    /// When the folder cannot be listed. What in it cannot be read, or is not the spool's, is warned of and stays.
    pub(crate) fn open(
        folder: PathBuf,
        cap_bytes: u64,
        least_free_bytes: u64,
        ids: Arc<dyn IdSource>,
    ) -> io::Result<Self> {
        let mut kept = BTreeMap::new();
        for entry in entries(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if is_unfinished(&entry.file_name()) {
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    tracing::warn!(path = %path.display(), error = %error, "an unfinished collection cannot be removed yet");
                }
                continue;
            }
            match read(&path) {
                Ok(Some((attempt, found))) if entry.file_name() == *attempt_name(&attempt) => {
                    kept.insert(attempt, found);
                }
                // What a crash in the middle of removing an attempt's folder has left.
                Ok(None) if is_of_attempt(&entry.file_name()) => {
                    if let Err(error) = remove_rest(&path) {
                        tracing::warn!(path = %path.display(), error = %error, "the rest of artifacts that were sent cannot be removed");
                    }
                }
                Ok(Some(_) | None) => tracing::warn!(
                    path = %path.display(),
                    "what is among the collected artifacts is not of this agent and stays; move it away"
                ),
                Err(error) => tracing::error!(
                    path = %path.display(),
                    error = %error,
                    "collected artifacts cannot be read and are not sent; remove the folder"
                ),
            }
        }
        let news = watch::Sender::new((kept.len(), 0));
        let (kept, reserved) = (Mutex::new(kept), Arc::default());
        Ok(Self { folder, cap_bytes, least_free_bytes, ids, kept, reserved, news })
    }

    /// The attempts of which something waits.
    pub(crate) fn attempts(&self) -> Vec<AttemptId> {
        self.kept().keys().cloned().collect()
    }

    /// Begins a collection. Nothing of it counts before it is committed.
    ///
    /// # Errors
    /// When the disk cannot be used.
    pub(crate) async fn begin(&self, secrets: FileSecrets, halt: Halt) -> io::Result<Collector> {
        let folder = self.folder.join(format!(".{}", self.ids.unique()));
        let (root, least) = (self.folder.clone(), self.least_free_bytes);
        let reserved = Arc::clone(&self.reserved);
        blocking(move || {
            make_folder(&root)?;
            make_folder(&folder)?;
            let room = Room::take(&reserved, || {
                let stat = rustix::fs::statvfs(&root)?;
                Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(least))
            })?;
            Ok(Collector::new(folder, secrets, room, halt))
        })
        .await
    }

    /// Keeps a collection. Its manifest, which is empty where nothing was found, is on disk when this returns, and so are the
    /// bodies. Where there is no room for all, the oldest bodies go.
    ///
    /// # Errors
    /// When the disk cannot be used; nothing is kept then.
    pub(crate) async fn commit(
        &self,
        attempt: &AttemptId,
        collected_at: Timestamp,
        collector: Collector,
    ) -> io::Result<Vec<Artifact>> {
        let unfinished = collector.folder().to_owned();
        let items = collector.items();
        if items.is_empty() {
            blocking(move || std::fs::remove_dir_all(unfinished)).await?;
            return Ok(items);
        }
        let manifest = Manifest { attempt: attempt.clone(), collected_at, items };
        let (root, place) = (self.folder.clone(), self.place(attempt));
        let manifest = blocking(move || {
            let kept = keep(&unfinished, &manifest, &place);
            if kept.is_err()
                && let Err(error) = std::fs::remove_dir_all(&unfinished)
            {
                tracing::warn!(path = %unfinished.display(), error = %error, "a collection that cannot be kept cannot be removed yet");
            }
            kept?;
            flush_folder(&root)?;
            Ok(manifest)
        })
        .await?;
        let Manifest { attempt, collected_at, items } = manifest;
        let bodies = items.iter().filter(|item| item.refused.is_none());
        let bodies: BTreeMap<u32, u64> = bodies.map(|item| (item.number, item.size)).collect();
        let kept = Kept { collected_at, released: false, bodies, lost: BTreeMap::new() };
        self.kept().insert(attempt.clone(), kept);
        self.changed();
        self.make_room(&attempt).await;
        Ok(items)
    }

    /// The manifest of a collection that was committed; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn manifest(&self, attempt: &AttemptId) -> io::Result<Option<Vec<Artifact>>> {
        if !self.kept().contains_key(attempt) {
            return Ok(None);
        }
        let place = self.place(attempt).join(MANIFEST);
        blocking(move || Ok(read_manifest(&place)?.map(|manifest| manifest.items))).await
    }

    /// Lets bodies of an attempt go whose terminal record is durable: everything that tells of them is.
    pub(crate) async fn release(&self, attempt: &AttemptId) {
        let is_here = match self.kept().get_mut(attempt) {
            Some(kept) => {
                kept.released = true;
                true
            }
            None => false,
        };
        if is_here {
            self.tidy(attempt).await;
        }
    }

    /// Waits until nothing waits any more.
    pub(crate) async fn drained(&self) {
        let mut news = self.news.subscribe();
        // The sender lives as long as `self`.
        drop(news.wait_for(|(count, _)| *count == 0).await);
    }

    /// Follows what happens.
    pub(super) fn news(&self) -> watch::Receiver<(usize, u64)> {
        self.news.subscribe()
    }

    /// What is to be done next for attempts that are `ready`, the oldest first.
    pub(super) fn next(&self, ready: impl Fn(&AttemptId) -> bool) -> Option<Task> {
        let kept = self.kept();
        let ready = kept.iter().filter(|(attempt, kept)| kept.released && ready(attempt));
        let (attempt, oldest) = ready.min_by_key(|(_, kept)| kept.collected_at)?;
        if !oldest.lost.is_empty() {
            let lost = oldest.lost.iter();
            let lost = lost.map(|(number, reason)| LostArtifact { number: *number, reason: reason.clone() });
            return Some(Task::Tell { attempt: attempt.clone(), lost: lost.collect() });
        }
        let (number, size) = oldest.bodies.first_key_value().map(|(number, size)| (*number, *size))?;
        let path = self.place(attempt).join(number.to_string());
        Some(Task::Send { attempt: attempt.clone(), number, size, path })
    }

    /// Forgets a body that the controller has.
    pub(super) async fn sent(&self, attempt: &AttemptId, number: u32) {
        let path = self.place(attempt).join(number.to_string());
        self.try_to("remove a body that was sent", attempt, move || remove_file(&path)).await;
        if let Some(kept) = self.kept().get_mut(attempt) {
            kept.bodies.remove(&number);
        }
        self.tidy(attempt).await;
    }

    /// Removes a body that nobody will get; the controller is to be told.
    pub(super) async fn lose(&self, attempt: &AttemptId, number: u32, reason: &str) {
        self.lose_all(attempt, vec![number], reason).await;
    }

    /// Forgets what the controller knows to be lost.
    pub(super) async fn told(&self, attempt: &AttemptId) {
        let path = self.place(attempt).join(LOST);
        self.try_to("remove what was told to be lost", attempt, move || remove_file(&path)).await;
        if let Some(kept) = self.kept().get_mut(attempt) {
            kept.lost.clear();
        }
        self.tidy(attempt).await;
    }

    /// Removes all of an attempt of which the controller wants nothing.
    pub(super) async fn forget(&self, attempt: &AttemptId) {
        if let Some(kept) = self.kept().get_mut(attempt) {
            kept.bodies.clear();
            kept.lost.clear();
        }
        self.tidy(attempt).await;
    }

    /// Removes the folder of an attempt of which nothing waits. A crash before that leaves one that is removed at the start.
    async fn tidy(&self, attempt: &AttemptId) {
        let is_done = |kept: &Kept| kept.released && kept.bodies.is_empty() && kept.lost.is_empty();
        if self.kept().get(attempt).is_some_and(is_done) {
            let place = self.place(attempt);
            self.try_to("remove artifacts that were sent", attempt, move || std::fs::remove_dir_all(place))
                .await;
            self.kept().remove(attempt);
        }
        self.changed();
    }

    /// Drops the oldest bodies until the rest fits; those of `newest` last.
    async fn make_room(&self, newest: &AttemptId) {
        loop {
            let victim = {
                let kept = self.kept();
                let total: u64 = kept.values().flat_map(|kept| kept.bodies.values()).sum();
                if total <= self.cap_bytes {
                    return;
                }
                let with_bodies = kept.iter().filter(|(_, kept)| !kept.bodies.is_empty());
                let oldest =
                    with_bodies.min_by_key(|(attempt, kept)| (*attempt == newest, kept.collected_at));
                oldest.map(|(attempt, kept)| (attempt.clone(), kept.bodies.keys().copied().collect()))
            };
            let Some((attempt, numbers)) = victim else { return };
            tracing::warn!(
                job.id = attempt.job,
                attempt.epoch = attempt.epoch,
                "artifacts that were not sent yet are dropped: there is no room for them"
            );
            self.lose_all(&attempt, numbers, NO_ROOM).await;
        }
    }

    async fn lose_all(&self, attempt: &AttemptId, numbers: Vec<u32>, reason: &str) {
        let lost = {
            let mut kept = self.kept();
            let Some(kept) = kept.get_mut(attempt) else { return };
            for number in &numbers {
                kept.bodies.remove(number);
                kept.lost.insert(*number, reason.to_owned());
            }
            kept.lost.clone()
        };
        let place = self.place(attempt);
        // First noted, then removed: after a crash in between the bodies are here and are sent. On a disk that is so full that
        // nothing can be noted they go all the same, which makes room for the note.
        self.try_to("drop artifacts", attempt, move || {
            let noted = replace(&place.join(LOST), &lost);
            let removed = numbers.iter().map(|number| remove_file(&place.join(number.to_string())));
            let removed = removed.fold(Ok(()), Result::and);
            noted.or_else(|_| replace(&place.join(LOST), &lost)).and(removed)
        })
        .await;
        self.changed();
    }

    /// Does something on the disk that is tried again at the next start where it fails.
    async fn try_to(
        &self,
        what: &'static str,
        attempt: &AttemptId,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        if let Err(error) = blocking(work).await {
            tracing::warn!(job.id = attempt.job, attempt.epoch = attempt.epoch, error = %error, "cannot {what}");
        }
    }

    fn place(&self, attempt: &AttemptId) -> PathBuf {
        self.folder.join(attempt_name(attempt))
    }

    fn changed(&self) {
        let count = self.kept().len();
        self.news.send_modify(|(known, events)| {
            *known = count;
            *events += 1;
        });
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Works on the disk. The work goes on where the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is going down, and this task with it.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Gives a collection its manifest and its place.
fn keep(unfinished: &Path, manifest: &Manifest, place: &Path) -> io::Result<()> {
    write_new(&unfinished.join(MANIFEST), manifest)?;
    flush_folder(unfinished)?;
    std::fs::rename(unfinished, place)
}

/// Whether this is the name of a collection that is being made.
fn is_unfinished(name: &OsStr) -> bool {
    let id = name.as_encoded_bytes().strip_prefix(b".");
    id.is_some_and(|id| id.len() >= 32 && id.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-'))
}

/// Whether a folder of an attempt can have this name.
fn is_of_attempt(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.rsplit_once('-'));
    let is_plain = |job: &str| {
        job.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    parts.is_some_and(|(job, epoch)| !job.is_empty() && is_plain(job) && epoch.parse::<u64>().is_ok())
}

/// Removes a folder with nothing but what a collection without its manifest has in it.
fn remove_rest(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let name = entry?.file_name();
        let is_body = name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if is_body || name == LOST || name == "lost.tmp" {
            remove_file(&folder.join(name))?;
        }
    }
    std::fs::remove_dir(folder)
}

/// What waits in the folder of an attempt; `None` where there is no manifest.
fn read(place: &Path) -> io::Result<Option<(AttemptId, Kept)>> {
    let Some(Manifest { attempt, collected_at, items }) = read_manifest(&place.join(MANIFEST))? else {
        return Ok(None);
    };
    let mut bodies = BTreeMap::new();
    for item in items.iter().filter(|item| item.refused.is_none()) {
        if place.join(item.number.to_string()).try_exists()? {
            bodies.insert(item.number, item.size);
        }
    }
    let mut lost: BTreeMap<u32, String> = read_json(&place.join(LOST))?.unwrap_or_default();
    lost.retain(|number, _| !bodies.contains_key(number));
    // One of which nothing is left to send stays until it is released: its attempt may still have to tell of it.
    Ok(Some((attempt, Kept { collected_at, released: false, bodies, lost })))
}

fn read_manifest(path: &Path) -> io::Result<Option<Manifest>> {
    read_json(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn entries(folder: &Path) -> io::Result<Vec<io::Result<std::fs::DirEntry>>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Nobody else may look into it.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_new(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let content = serde_json::to_vec(value)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&content)?;
    file.sync_data()
}

/// Puts a file in the place of another. A crash leaves the one or the other.
fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    remove_file(&beside)?;
    write_new(&beside, value)?;
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), flush_folder)
}

/// Removes a file; one that is gone is fine.
fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn flush_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
