//! The lock that keeps a second process away from a database file.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::private;
use crate::Error;

/// Held while the store is open; the kernel releases it when the process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The lock belongs to this open file description and goes with it.
    _file: File,
}

/// Locks `<database>.lock` and keeps the database's files to their owner. The lock file stays behind: removing it would let two processes lock two different files.
pub(crate) fn acquire(database: &Path) -> Result<Lock, Error> {
    let lock = take(database)?;
    private::ensure_private(database).map_err(|source| failed(database, source))?;
    Ok(lock)
}

/// Locks `<database>.lock`, whether there is a database or not.
pub(crate) fn take(database: &Path) -> Result<Lock, Error> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(private::MODE)
        .open(&path)
        .map_err(|source| failed(&path, source))?;
    match file.try_lock() {
        Ok(()) => {
            private::restrict(&path).map_err(|source| failed(&path, source))?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
        Err(TryLockError::Error(source)) => Err(failed(&path, source)),
    }
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::StorageFull {
        Error::DiskFull { path: path.to_owned(), source: Arc::new(source) }
    } else {
        Error::NotWritable { path: path.to_owned(), source: Arc::new(source) }
    }
}
