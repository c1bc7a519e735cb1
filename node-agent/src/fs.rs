//! The files that must survive a crash: what the ledger and the outbox ask of a file system.
//!
//! Every operation is durable when it returns, so that what follows it may rely on it after a loss of power. Paths are
//! relative to the state folder. The real one does its blocking work on tokio's blocking threads; a simulation keeps
//! files in memory and loses what was not finished.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

/// Durable files under the state folder.
#[async_trait]
pub trait AgentFs: Send + Sync + 'static {
    /// The names of the files in a folder, sorted; none where the folder is missing.
    async fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// A file's content, `None` where it is missing.
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

/// The host's file system.
#[derive(Clone, Debug)]
pub struct DiskFs {
    inner: Arc<Disk>,
}

#[derive(Debug)]
struct Disk {
    root: PathBuf,
    /// Files that are appended to, kept open: opening one anew for every record would double the cost of a record.
    /// The lock protects the map only; a file is written by one caller at a time because the outbox has one writer.
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl DiskFs {
    /// Keeps files under `root`, an existing folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { inner: Arc::new(Disk { root: root.into(), open: Mutex::new(HashMap::new()) }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(io::Error::other)?
    }
}

impl Disk {
    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<File>>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn append(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let known = self.open().get(path).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                let full = self.path(path);
                let folder = parent(&full)?;
                make_folder(folder)?;
                let fresh = !full.exists();
                let file = Arc::new(private().append(true).create(true).open(&full)?);
                if fresh {
                    file.sync_all()?;
                    sync_folder(folder)?;
                }
                self.open().insert(path.to_owned(), Arc::clone(&file));
                file
            }
        };
        (&*file).write_all(content)?;
        file.sync_data()
    }

    /// Writes a file beside its place, makes it durable, and moves it there by `place`.
    fn place(
        &self,
        path: &str,
        content: &[u8],
        place: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let full = self.path(path);
        let folder = parent(&full)?;
        make_folder(folder)?;
        let name = full.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // A leading dot keeps a leftover of a crash out of `list`.
        let beside = folder.join(format!(".{}.tmp", name.to_string_lossy()));
        let mut file = private().write(true).create(true).truncate(true).open(&beside)?;
        let written =
            file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| place(&beside, &full));
        if let Err(error) = written {
            // The write has failed already; a leftover is truncated by the next try.
            drop(std::fs::remove_file(&beside));
            return Err(error);
        }
        sync_folder(folder)
    }
}

/// Files of the agent are for nobody else to read.
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[async_trait]
impl AgentFs for DiskFs {
    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let folder = folder.to_owned();
        self.blocking(move |disk| {
            let entries = match std::fs::read_dir(disk.path(&folder)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string()
                    && !name.starts_with('.')
                    && entry.file_type()?.is_file()
                {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let path = path.to_owned();
        self.blocking(move |disk| match std::fs::read(disk.path(&path)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn create_new(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| {
            disk.place(&path, &content, |beside, full| {
                // A link, unlike a rename, refuses to replace what is there; and unlike writing in place it never
                // shows a half-written file.
                std::fs::hard_link(beside, full)?;
                std::fs::remove_file(beside)
            })
        })
        .await
    }

    async fn replace(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.place(&path, &content, |beside, full| std::fs::rename(beside, full)))
            .await
    }

    async fn append(&self, path: &str, content: Vec<u8>) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| disk.append(&path, &content)).await
    }

    async fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| {
            let file = OpenOptions::new().write(true).open(disk.path(&path))?;
            file.set_len(length)?;
            file.sync_all()
        })
        .await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move |disk| {
            disk.open().remove(&path);
            let full = disk.path(&path);
            match std::fs::remove_file(&full) {
                Ok(()) => sync_folder(parent(&full)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.blocking(|disk| {
            let stat = rustix::fs::statvfs(&disk.root)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
        .await
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
