//! Unpacking of tar archives into a workspace, entry by entry, never through a link.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use rustix::fs::{AtFlags, FileType, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

use super::{Workspace, parts_of, refused, unsafe_path};
use crate::error::Error;
use crate::tarball::Tarball;

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// Plain tar.
    Tar,
    /// tar, compressed with gzip.
    TarGz,
}

/// How much an archive may hold once unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

impl Default for ArchiveLimits {
    /// A million entries and 8 GiB: a large source tree fits, a bomb does not.
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 8 << 30 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// See [`Workspace::unpack`].
pub(super) fn unpack(
    workspace: &Workspace,
    input: impl Read,
    kind: Archive,
    limits: ArchiveLimits,
) -> Result<Unpacked, Error> {
    let input: Box<dyn Read + '_> = match kind {
        Archive::Tar => Box::new(input),
        Archive::TarGz => Box::new(MultiGzDecoder::new(input)),
    };
    // Headers, padding and long names of entries that carry no data count too: an archive of a billion empty records
    // must end. 4 KiB an entry is far more than any honest one needs.
    let ceiling = limits.bytes.saturating_add(limits.entries.saturating_mul(4096)).saturating_add(1 << 20);
    let mut done = Unpacked::default();
    let wrap = |source| too_large(source, limits);
    Tarball::new(input, ceiling).for_each(wrap, |entry| {
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(Error::ArchiveTooLarge { limit: limits.entries, unit: "entries" });
        }
        let path = text(&entry.path_bytes())?;
        let parts = parts_of(&path)?;
        let header = entry.header();
        let mode = header.mode().unwrap_or(0o644);
        match header.entry_type() {
            EntryType::Directory => {
                workspace.open_dir(&parts)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let left = limits.bytes - done.bytes;
                let modified = header.mtime().unwrap_or(0);
                let (name, parents) =
                    parts.split_last().ok_or_else(|| unsafe_path(&path, "names no file"))?;
                let dir = workspace.open_dir(parents)?;
                // One byte more than allowed is enough to know.
                let mut content = (&mut *entry).take(left.saturating_add(1));
                let copied = workspace
                    .fill(&dir, name, &path, &mut content, mode)
                    .map_err(|error| reading(error, limits))?;
                if copied > left {
                    return Err(Error::ArchiveTooLarge { limit: limits.bytes, unit: "bytes" });
                }
                done.bytes += copied;
                let time = Timespec { tv_sec: i64::try_from(modified).unwrap_or(0), tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(&dir, *name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| refused(&path, errno))?;
            }
            EntryType::Symlink => {
                let target = link_target(entry, &path)?;
                symlink(workspace, &path, &parts, &target)?;
            }
            EntryType::Link => {
                let target = link_target(entry, &path)?;
                hard_link(workspace, &path, &parts, &target)?;
            }
            EntryType::XGlobalHeader => {}
            EntryType::Char | EntryType::Block => return Err(unsafe_path(&path, "is a device")),
            EntryType::Fifo => return Err(unsafe_path(&path, "is a FIFO")),
            _ => return Err(unsafe_path(&path, "is of an unknown kind")),
        }
        Ok(())
    })?;
    Ok(done)
}

/// Makes a symbolic link whose target stays inside the workspace.
///
/// Allowed are relative targets whose `..` parts all come first and are no more than the link is deep. The folders above
/// the link are real ones (links are never followed while unpacking), so the `..` parts stay inside; each link that the
/// rest passes through obeys the same rule. A `..` after a name could climb out of where such a link leads.
fn symlink(workspace: &Workspace, path: &str, parts: &[&str], target: &str) -> Result<(), Error> {
    let (name, parents) = parts.split_last().ok_or_else(|| unsafe_path(path, "names no file"))?;
    if target.starts_with('/') || target.is_empty() {
        return Err(unsafe_path(path, "links to an absolute path"));
    }
    let mut steps = target.split('/').filter(|part| !part.is_empty() && *part != ".").peekable();
    let mut up = 0;
    while steps.next_if_eq(&"..").is_some() {
        up += 1;
    }
    if up > parents.len() || steps.any(|part| part == "..") {
        return Err(unsafe_path(path, "links out of the workspace"));
    }
    let dir = workspace.open_dir(parents)?;
    clear(&dir, name, path)?;
    rustix::fs::symlinkat(target, &dir, *name).map_err(|errno| refused(path, errno))?;
    if let Some((uid, gid)) = workspace.owner {
        rustix::fs::chownat(&dir, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| refused(path, errno))?;
    }
    Ok(())
}

/// Makes a hard link to a file that is in the workspace already.
fn hard_link(workspace: &Workspace, path: &str, parts: &[&str], target: &str) -> Result<(), Error> {
    let (name, parents) = parts.split_last().ok_or_else(|| unsafe_path(path, "names no file"))?;
    let target_parts = parts_of(target)?;
    let (target_name, target_parents) =
        target_parts.split_last().ok_or_else(|| unsafe_path(path, "links to nothing"))?;
    let from = workspace.open_dir(target_parents)?;
    // Another name for a symbolic link could be deeper or less deep than the link was checked for.
    let stat = rustix::fs::statat(&from, *target_name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| refused(path, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(unsafe_path(path, "is a hard link to something that is not a file"));
    }
    let to = workspace.open_dir(parents)?;
    if target_parts == parts {
        return Err(unsafe_path(path, "links to itself"));
    }
    clear(&to, name, path)?;
    rustix::fs::linkat(&from, *target_name, &to, *name, AtFlags::empty())
        .map_err(|errno| refused(path, errno))
}

/// Removes a file or link that is in the way.
fn clear(dir: &std::os::fd::OwnedFd, name: &str, path: &str) -> Result<(), Error> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(refused(path, errno)),
    }
}

/// The target of a link entry.
fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &str) -> Result<String, Error> {
    let Some(target) = entry.link_name_bytes() else {
        return Err(unsafe_path(path, "links to nothing"));
    };
    text(&target)
}

/// A path of an archive as text.
fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec())
        .map_err(|error| unsafe_path(&String::from_utf8_lossy(error.as_bytes()), "is not UTF-8"))
}

/// Tells the ceiling's breach from other read errors.
fn too_large(source: io::Error, limits: ArchiveLimits) -> Error {
    if source.kind() == io::ErrorKind::FileTooLarge {
        return Error::ArchiveTooLarge { limit: limits.bytes, unit: "bytes" };
    }
    Error::Archive { source }
}

/// As [`too_large`], for an error that came out of writing a file.
fn reading(error: Error, limits: ArchiveLimits) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
            Error::ArchiveTooLarge { limit: limits.bytes, unit: "bytes" }
        }
        error => error,
    }
}
