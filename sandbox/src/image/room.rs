//! Leaving some of the disk to others while an image is written.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Trouble;
use crate::error::Error;

/// Bytes that are written between two looks at the disk.
const LOOK_EVERY: u64 = 16 << 20;

/// The disk that an image is written to.
pub(super) struct Room<'a> {
    disk: OwnedFd,
    leave_free: u64,
    /// Makes room on it, or says why there is none.
    make: &'a dyn Fn(&OwnedFd) -> Result<(), Trouble>,
    /// Written since it was last looked at.
    unseen: u64,
}

impl<'a> Room<'a> {
    /// The disk of a folder. It is looked at before anything is written.
    pub(super) fn of(
        disk: OwnedFd,
        leave_free: u64,
        make: &'a dyn Fn(&OwnedFd) -> Result<(), Trouble>,
    ) -> Self {
        Self { disk, leave_free, make, unseen: LOOK_EVERY }
    }

    /// Counts what is about to be written.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Trouble> {
        self.unseen += bytes;
        if self.unseen < LOOK_EVERY {
            return Ok(());
        }
        self.unseen = 0;
        if is_free(&self.disk, self.leave_free)? { Ok(()) } else { (self.make)(&self.disk) }
    }
}

/// Whether so much of a disk is free.
pub(super) fn is_free(disk: &OwnedFd, bytes: u64) -> Result<bool, Trouble> {
    let failed = |errno: Errno| Error::io("inspect", "the disk of images")(errno.into());
    let found = rustix::fs::fstatvfs(disk).map_err(failed)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize) >= bytes)
}
