//! The files of the host.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Volume, parent};

/// A folder of the host.
#[derive(Debug)]
pub(super) struct HostVolume {
    root: PathBuf,
    /// Files that are appended to, kept open: opening one anew for every record would double the cost of a record.
    /// The lock protects the map only.
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl HostVolume {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, open: Mutex::new(HashMap::new()) }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn make_folder_of(&self, path: &str) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.path(parent(path)))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files of the agent are for nobody else to read.
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Volume for HostVolume {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.path(folder)) {
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
    }

    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path(path)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.make_folder_of(path)?;
        private().write(true).create(true).truncate(true).open(self.path(path))?.write_all(content)
    }

    fn append(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let known = self.open().get(path).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                self.make_folder_of(path)?;
                let file = Arc::new(private().append(true).create(true).open(self.path(path))?);
                self.open().insert(path.to_owned(), Arc::clone(&file));
                file
            }
        };
        (&*file).write_all(content)
    }

    fn truncate(&self, path: &str, length: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(path))?.set_len(length)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.path(from), self.path(to))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.open().remove(path);
        std::fs::remove_file(self.path(path))
    }

    fn flush(&self, path: &str) -> io::Result<()> {
        let known = self.open().get(path).cloned();
        match known {
            // Its length is flushed too; nobody needs the rest of what is said about it.
            Some(file) => file.sync_data(),
            None => File::open(self.path(path))?.sync_all(),
        }
    }

    fn flush_folder(&self, folder: &str) -> io::Result<()> {
        File::open(self.path(folder))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(Path::new(&self.root))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
