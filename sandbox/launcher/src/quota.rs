//! Project quotas: a limit on everything below a folder, kept by the file system itself (ext4 and XFS).
//!
//! A job cannot leave its project: outside of the host's first user namespace the kernel refuses to change a file's
//! project, and what is moved or linked in from another project is refused too.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::sys::{self, FileAttributes};

/// `FS_XFLAG_PROJINHERIT` of <linux/fs.h>: what is made in a folder belongs to the folder's project.
const INHERIT: u32 = 0x200;
/// The unit of block limits, `QIF_DQBLKSIZE` of <linux/quota.h>.
const BLOCK: u64 = 1024;

/// What a project may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders.
    pub files: u64,
}

/// Makes an empty folder, and all that is made below it later, part of a project.
///
/// # Errors
/// What the file system says; one without projects has `ENOTTY` or `EOPNOTSUPP`.
pub fn join(folder: &File, project: u32) -> io::Result<()> {
    let attributes = sys::file_attributes(folder.as_fd())?;
    let flags = attributes.flags | INHERIT;
    Ok(sys::set_file_attributes(folder.as_fd(), FileAttributes { project, flags, ..attributes })?)
}

/// The project of a folder whose content inherits it.
///
/// # Errors
/// As [`join`].
pub fn project_of(folder: &File) -> io::Result<Option<u32>> {
    let attributes = sys::file_attributes(folder.as_fd())?;
    Ok((attributes.flags & INHERIT != 0 && attributes.project != 0).then_some(attributes.project))
}

/// Sets what a project may hold; without an allowance it is not limited. Whether the file system keeps to it shows in the
/// size that it tells of the project's folder.
///
/// # Errors
/// What the file system says: `ESRCH` without project quota, `EPERM` for an ordinary user.
pub fn allow(folder: &File, project: u32, allowance: Option<Allowance>) -> io::Result<()> {
    let Allowance { bytes, files } = allowance.unwrap_or(Allowance { bytes: 0, files: 0 });
    Ok(sys::set_project_limits(folder.as_fd(), project, bytes / BLOCK, files)?)
}
