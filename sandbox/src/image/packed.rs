//! Compressed archives, and what tells that one is still the same. It reads nothing of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::time::{ClockId, clock_gettime};

/// An archive that is compressed as a whole.
pub(super) struct Packed {
    pub(super) file: File,
    pub(super) seen: Seen,
    /// Whether every later change of it shows: the clock that files are marked by was past the last change when it was opened.
    pub(super) settled: bool,
}

/// What changes when a file does, and differs from all other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// As `modified`; nobody can set it back.
    changed: (i64, i64),
}

impl Packed {
    pub(super) fn of(file: File) -> io::Result<Self> {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let found = file.metadata()?;
        let seen = Seen {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        let settled = (now.tv_sec, now.tv_nsec) > seen.changed;
        Ok(Self { file, seen, settled })
    }
}
