//! The files that must survive a crash: what the ledger and the outbox ask of a file system.
//!
//! ```text
//! AgentFs (durable operations) ──► Durable (in which order what is written and flushed) ──► Volume (what a kernel does)
//! ```
//!
//! Every operation is durable when it returns, so that what follows it may rely on it after a loss of power; what is
//! read is durable too, for an earlier agent may have been killed between writing and flushing it. Paths are relative to
//! the state folder. The real volume is the host's, used on tokio's blocking threads; a simulation keeps files in memory
//! and loses what was not flushed.

mod host;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use self::host::HostVolume;

/// Durable files under the state folder.
#[async_trait]
pub trait AgentFs: Send + Sync + 'static {
    /// The names of the files in a folder, sorted; none where the folder is missing. From then on a crash does not bring
    /// back what was removed.
    async fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// A file's content, `None` where it is missing. From then on a crash does not change it.
    async fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;

    /// Makes a new file; fails with `AlreadyExists` where there is one. A crash leaves all of it or none.
    async fn create_new(&self, path: &str, content: Vec<u8>) -> io::Result<()>;

    /// Puts a file in place of another, or makes it. A crash leaves the old or the new content.
    async fn replace(&self, path: &str, content: Vec<u8>) -> io::Result<()>;

    /// Adds to the end of a file, which it makes where it is missing. A crash or an error may leave a part of it.
    async fn append(&self, path: &str, content: Vec<u8>) -> io::Result<()>;

    /// Cuts a file to a length. A missing one is an error.
    async fn truncate(&self, path: &str, length: u64) -> io::Result<()>;

    /// Removes a file; a missing one is fine.
    async fn remove(&self, path: &str) -> io::Result<()>;

    /// Bytes that are free for the agent.
    async fn free_bytes(&self) -> io::Result<u64>;
}

/// What a kernel does with files. Nothing is durable before it was flushed: of a file's content any part may be lost,
/// and of a folder's entries any that was made, moved or removed since.
pub trait Volume: Send + Sync + 'static {
    /// The names of the files in a folder, sorted, without those that begin with a dot; none where it is missing.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// A file's content, `None` where it is missing.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>>;
    /// Makes a file with this content, in place of what it had. An error may leave a part.
    fn write(&self, path: &str, content: &[u8]) -> io::Result<()>;
    /// Adds to the end of a file, which it makes where it is missing. An error may leave a part.
    fn append(&self, path: &str, content: &[u8]) -> io::Result<()>;
    /// Cuts a file to a length. A missing one is an error.
    fn truncate(&self, path: &str, length: u64) -> io::Result<()>;
    /// Gives a file a second name; fails with `AlreadyExists` where there is one of that name.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Moves a file in place of another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a name away; a missing one is an error.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Flushes the content of a file.
    fn flush(&self, path: &str) -> io::Result<()>;
    /// Flushes the entries of a folder.
    fn flush_folder(&self, folder: &str) -> io::Result<()>;
    /// Bytes that are free for the agent.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// Durable operations on a volume: the order in which things are written and flushed.
#[derive(Debug)]
pub struct Durable<V> {
    volume: V,
    /// The files that were appended to in this run, whose entries are flushed. The lock protects the set only; a file is
    /// written by one caller at a time because the outbox has one writer.
    appended: Mutex<HashSet<String>>,
}

impl<V: Volume> Durable<V> {
    /// Works on a volume.
    pub fn new(volume: V) -> Self {
        Self { volume, appended: Mutex::new(HashSet::new()) }
    }

    /// [`AgentFs::list`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let names = self.volume.list(folder)?;
        match self.volume.flush_folder(folder) {
            Ok(()) => Ok(names),
            // There never was one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(names),
            Err(error) => Err(error),
        }
    }

    /// [`AgentFs::read`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(content) = self.volume.read(path)? else { return Ok(None) };
        self.volume.flush(path)?;
        self.volume.flush_folder(parent(path))?;
        Ok(Some(content))
    }

    /// [`AgentFs::create_new`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn create_new(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.place(path, content, |beside| {
            // A link, unlike a rename, refuses to replace what is there; and unlike writing in place it never shows a
            // half-written file.
            self.volume.link(beside, path)?;
            self.volume.unlink(beside)
        })
    }

    /// [`AgentFs::replace`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn replace(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.place(path, content, |beside| self.volume.rename(beside, path))
    }

    /// Writes a file beside its place, makes it durable, and moves it there by `place`.
    fn place(
        &self,
        path: &str,
        content: &[u8],
        place: impl FnOnce(&str) -> io::Result<()>,
    ) -> io::Result<()> {
        let folder = parent(path);
        let name = path.strip_prefix(folder).unwrap_or(path).trim_start_matches('/');
        let slash = if folder.is_empty() { "" } else { "/" };
        // A leading dot keeps a leftover of a crash out of `list`.
        let beside = format!("{folder}{slash}.{name}.tmp");
        let written = self
            .volume
            .write(&beside, content)
            .and_then(|()| self.volume.flush(&beside))
            .and_then(|()| place(&beside));
        if let Err(error) = written {
            // The write has failed already; a leftover is truncated by the next try.
            drop(self.volume.unlink(&beside));
            return Err(error);
        }
        self.volume.flush_folder(folder)
    }

    /// [`AgentFs::append`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn append(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.volume.append(path, content)?;
        self.volume.flush(path)?;
        if !self.appended().contains(path) {
            self.volume.flush_folder(parent(path))?;
            self.appended().insert(path.to_owned());
        }
        Ok(())
    }

    /// [`AgentFs::truncate`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        self.volume.truncate(path, length)?;
        self.volume.flush(path)
    }

    /// [`AgentFs::remove`].
    ///
    /// # Errors
    /// What the volume reports.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.appended().remove(path);
        match self.volume.unlink(path) {
            Ok(()) => self.volume.flush_folder(parent(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The volume.
    pub const fn volume(&self) -> &V {
        &self.volume
    }

    fn appended(&self) -> MutexGuard<'_, HashSet<String>> {
        self.appended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The folder of a path; empty for the state folder itself.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The host's file system.
#[derive(Clone, Debug)]
pub struct DiskFs {
    inner: Arc<Durable<HostVolume>>,
}

impl DiskFs {
    /// Keeps files under `root`, an existing folder.
    pub fn new(root: impl Into<std::path::PathBuf>) -> Self {
        Self { inner: Arc::new(Durable::new(HostVolume::new(root.into()))) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Durable<HostVolume>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(io::Error::other)?
    }
}

#[async_trait]
impl AgentFs for DiskFs {
    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let folder = folder.to_owned();
        self.blocking(move |disk| disk.list(&folder)).await
    }

    async fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.read(&path)).await
    }

    async fn create_new(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.create_new(&path, &content)).await
    }

    async fn replace(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.replace(&path, &content)).await
    }

    async fn append(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.append(&path, &content)).await
    }

    async fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.truncate(&path, length)).await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.remove(&path)).await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.blocking(|disk| disk.volume().free_bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_on_disk_keep_their_promises() {
        let folder = tempfile::tempdir().unwrap();
        let fs = DiskFs::new(folder.path());
        assert!(fs.list("ledger").await.unwrap().is_empty());
        assert_eq!(fs.read("ledger/a").await.unwrap(), None);
        fs.create_new("ledger/a", b"one".to_vec()).await.unwrap();
        let again = fs.create_new("ledger/a", b"two".to_vec()).await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs.read("ledger/a").await.unwrap().as_deref(), Some(&b"one"[..]));
        fs.replace("ledger/a", b"three".to_vec()).await.unwrap();
        fs.append("ledger/a", b"!?".to_vec()).await.unwrap();
        fs.truncate("ledger/a", 6).await.unwrap();
        fs.append("ledger/a", b".".to_vec()).await.unwrap();
        assert_eq!(fs.read("ledger/a").await.unwrap().as_deref(), Some(&b"three!."[..]));
        assert_eq!(fs.list("ledger").await.unwrap(), ["a"]);
        fs.remove("ledger/a").await.unwrap();
        fs.remove("ledger/a").await.unwrap();
        assert!(fs.list("ledger").await.unwrap().is_empty());
        assert!(fs.free_bytes().await.unwrap() > 0);
        let leftovers: Vec<_> = std::fs::read_dir(folder.path().join("ledger")).unwrap().collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
    }

    #[tokio::test]
    async fn files_are_for_nobody_else_to_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let fs = DiskFs::new(folder.path());
        fs.create_new("a", vec![]).await.unwrap();
        fs.append("b", vec![1]).await.unwrap();
        for name in ["a", "b"] {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
