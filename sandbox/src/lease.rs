//! Leases: how long the units of an attempt may live. The supervisor of each unit reads the lease file by itself, so a
//! unit dies at its deadline also when the process that renewed it is gone.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_launcher::deadline;

use crate::error::Error;

/// A point in time on CLOCK_BOOTTIME, which counts suspended time and which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// `duration` from now. Take it when the request that grants the lease is *sent*.
    #[must_use]
    pub fn after(duration: Duration) -> Self {
        Self::from_boottime_ns(
            deadline::boottime_ns().saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// Absolute nanoseconds of CLOCK_BOOTTIME.
    #[must_use]
    pub fn from_boottime_ns(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Absolute nanoseconds of CLOCK_BOOTTIME.
    #[must_use]
    pub fn boottime_ns(self) -> u64 {
        self.0
    }

    /// Time left; zero once it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(deadline::boottime_ns()))
    }
}

/// The lease of one attempt, shared by its units.
///
/// *Guarantees*: a renewal is one write of 16 bytes; a reader that sees half of it can tell. *Caveats*: supervisors look
/// again only when the deadline they know has passed, so a deadline may only grow; to end a unit earlier, stop it.
#[derive(Debug)]
pub struct Lease {
    file: File,
    path: PathBuf,
}

impl Lease {
    /// Makes the lease file, or takes over the one that exists, and sets its deadline.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: impl Into<PathBuf>, deadline: Deadline) -> Result<Self, Error> {
        let path = path.into();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let lease = Self { file, path };
        lease.renew(deadline)?;
        Ok(lease)
    }

    /// Opens an existing lease file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { file, path })
    }

    /// Sets a new deadline. It does not block on anything but the file and takes microseconds.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn renew(&self, deadline: Deadline) -> Result<(), Error> {
        self.file.write_all_at(&deadline::encode(deadline.0), 0).map_err(Error::io("write", &self.path))
    }

    /// The deadline in force.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file holds no deadline, [`Error::Io`].
    pub fn read(&self) -> Result<Deadline, Error> {
        let mut record = [0; deadline::LENGTH];
        self.file.read_exact_at(&mut record, 0).map_err(Error::io("read", &self.path))?;
        deadline::decode(&record)
            .map(Deadline)
            .ok_or_else(|| Error::Corrupt { path: self.path.clone(), problem: "not a lease".to_owned() })
    }

    /// Where the lease file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_lease_is_read_back_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::create(dir.path().join("lease"), Deadline::from_boottime_ns(1)).unwrap();
        assert_eq!(lease.read().unwrap().remaining(), Duration::ZERO);
        let later = Deadline::after(Duration::from_secs(60));
        lease.renew(later).unwrap();
        assert_eq!(Lease::open(lease.path()).unwrap().read().unwrap(), later);
        std::fs::write(lease.path(), [7; 16]).unwrap();
        assert!(matches!(lease.read(), Err(Error::Corrupt { .. })));
    }
}
