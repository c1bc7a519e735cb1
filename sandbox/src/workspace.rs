//! Workspaces: the one writable host folder that the steps of an attempt share.
//!
//! Its content is untrusted: a program that ran there may have left symbolic links, unreadable folders or endless trees.
//! So nothing here follows a link inside a workspace, and every path is opened beneath its folder.
//!
//! All calls block; an async caller runs them on a blocking thread.

mod archive;
mod files;
mod mounts;
mod quota;
pub(crate) mod removal;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

pub use archive::{Archive, ArchiveLimits, Unpacked};
pub use files::{FileLimits, Files, Visited};
pub use quota::{DiskMeans, DiskQuota};

use crate::error::Error;
use crate::identity::Identity;

/// Longest path of an input, in bytes: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;
/// How paths inside a workspace are resolved: never out of it, never through a link.
const CONFINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The workspace of one attempt.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    dir: OwnedFd,
    identity: Identity,
    /// Owner to set on what is made here; `None` if the caller is the owner already.
    owner: Option<(Uid, Gid)>,
}

impl Workspace {
    /// Makes the folder `root/name` with mode 0700, owned by `identity`. `root` must exist.
    ///
    /// # Errors
    /// [`Error::UnsafePath`] if `name` is not a plain file name, [`Error::Io`] (also if the folder exists).
    pub fn create(root: &Path, name: &str, identity: Identity) -> Result<Self, Error> {
        Self::create_limited(root, name, identity, None)
    }

    /// As [`Workspace::create`], and lets the host's file system keep it within a quota where it can:
    /// [`Workspace::disk_means`] tells what came of that. `identity` must not have another workspace.
    ///
    /// # Errors
    /// As [`Workspace::create`].
    pub fn create_limited(
        root: &Path,
        name: &str,
        identity: Identity,
        quota: Option<DiskQuota>,
    ) -> Result<Self, Error> {
        let path = folder(root, name)?;
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(|errno| Error::io("create", &path)(errno.into()))?;
        if let Some(quota) = quota {
            quota::put(root, name, identity, quota)?;
        }
        let workspace = Self::open(root, name, identity)?;
        workspace.own_fd(&workspace.dir)?;
        Ok(workspace)
    }

    /// Opens the existing folder `root/name`.
    ///
    /// # Errors
    /// As [`Workspace::create`].
    pub fn open(root: &Path, name: &str, identity: Identity) -> Result<Self, Error> {
        let path = folder(root, name)?;
        let dir = rustix::fs::open(
            &path,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::io("open", &path)(errno.into()))?;
        let owner = (Identity::caller() != identity)
            .then(|| (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid)));
        Ok(Self { path, dir, identity, owner })
    }

    /// What keeps it within `bytes`.
    #[must_use]
    pub fn disk_means(&self, bytes: u64) -> DiskMeans {
        DiskMeans::of(&self.path, bytes)
    }

    /// The names of all workspaces below `root`, whole or half made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn names(root: &Path) -> Result<BTreeSet<String>, Error> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(root).map_err(Error::io("list", root))? {
            let entry = entry.map_err(Error::io("list", root))?.file_name();
            names.extend(entry.to_str().map(|entry| quota::owner(entry).to_owned()));
        }
        Ok(names)
    }

    /// The folder on the host, for [`crate::UnitSpec::workspace`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The owner of what is in it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Writes a file at `path` (relative, no `..`), making its folders and replacing a file that is there. `mode` is cut
    /// to the permission bits.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::Io`].
    pub fn write_file(&self, path: &str, content: &[u8], mode: u32) -> Result<(), Error> {
        let mut content = content;
        self.copy_in(path, &mut content, mode, u64::MAX).map(|_| ())
    }

    /// Copies the host file `source` to `path`. The source is opened without following a link in its last part.
    ///
    /// # Errors
    /// [`Error::UnsafePath`] (also if the source is not a regular file), [`Error::Io`].
    pub fn copy_file(&self, source: &Path, path: &str, mode: u32) -> Result<u64, Error> {
        // NONBLOCK: opening a FIFO must not wait for a writer.
        let opened = rustix::fs::open(
            source,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
        );
        let mut file = File::from(opened.map_err(|errno| Error::io("open", source)(errno.into()))?);
        if !file.metadata().map_err(Error::io("inspect", source))?.is_file() {
            return Err(unsafe_path(&source.to_string_lossy(), "not a regular file"));
        }
        self.copy_in(path, &mut file, mode, u64::MAX)
    }

    /// A folder below (relative, no `..`, any name), made with those above it if it is missing.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::Io`].
    pub fn folder(&self, path: &str) -> Result<Self, Error> {
        let parts = parts_of(path)?;
        let dir = self.open_dir(&parts)?;
        let path = parts.iter().fold(self.path.clone(), |path, part| path.join(part));
        Ok(Self { path, dir, identity: self.identity, owner: self.owner })
    }

    /// Makes a folder and those above it.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::Io`].
    pub fn make_dir(&self, path: &str) -> Result<(), Error> {
        let parts = parts_of(path)?;
        self.open_dir(&parts).map(|_| ())
    }

    /// Unpacks an archive into the workspace. Refused are absolute paths, `..`, devices, FIFOs and links that lead out;
    /// set-user-id bits are dropped. On error the workspace holds what was unpacked so far.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::ArchiveTooLarge`], [`Error::Archive`], [`Error::Io`].
    pub fn unpack(&self, input: impl Read, kind: Archive, limits: ArchiveLimits) -> Result<Unpacked, Error> {
        archive::unpack(self, input, kind, limits)
    }

    /// Removes the folder and everything in it, however deep, unreadable or foreign it is. Post-state: it does not
    /// exist. Nothing may still run in it. Idempotent.
    ///
    /// # Errors
    /// [`Error::UnsafePath`], [`Error::Io`].
    pub fn remove(root: &Path, name: &str) -> Result<(), Error> {
        let path = folder(root, name)?;
        quota::lift(root, name)?;
        removal::remove(root, name).map_err(|errno| Error::io("remove", path)(errno.into()))
    }

    /// Copies at most `limit` bytes of `input` into a new file at `path`; gives the number of bytes. The limit's breach
    /// is the caller's to report, by passing a reader that ends with an error.
    fn copy_in(&self, path: &str, input: &mut dyn Read, mode: u32, limit: u64) -> Result<u64, Error> {
        let parts = parts_of(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(unsafe_path(path, "names no file"));
        };
        let dir = self.open_dir(parents)?;
        self.fill(&dir, name, path, &mut input.take(limit), mode)
    }

    /// Writes a new file `name` in `dir`, replacing a file or link that is there.
    fn fill(
        &self,
        dir: &OwnedFd,
        name: &str,
        path: &str,
        input: &mut dyn Read,
        mode: u32,
    ) -> Result<u64, Error> {
        let failed = |operation: &'static str| move |error: io::Error| Error::io(operation, path)(error);
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("replace")(errno.into())),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(dir, name, flags, Mode::RUSR | Mode::WUSR, CONFINED)
            .map_err(|errno| failed("create")(errno.into()))?;
        let mut file = File::from(fd);
        let copied = io::copy(input, &mut file).map_err(failed("write"))?;
        file.flush().map_err(failed("write"))?;
        self.own_fd(&file)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))
            .map_err(|errno| failed("set mode of")(errno.into()))?;
        Ok(copied)
    }

    /// Opens the folder named by `parts`, making what is missing.
    fn open_dir(&self, parts: &[&str]) -> Result<OwnedFd, Error> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let whole = if parts.is_empty() { ".".to_owned() } else { parts.join("/") };
        match rustix::fs::openat2(&self.dir, &whole, flags, Mode::empty(), CONFINED) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(refused(&whole, errno)),
        }
        let mut current: Option<OwnedFd> = None;
        for part in parts {
            let at = current.as_ref().unwrap_or(&self.dir);
            let made = match rustix::fs::mkdirat(at, *part, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(refused(&whole, errno)),
            };
            let next = rustix::fs::openat2(at, *part, flags, Mode::empty(), CONFINED)
                .map_err(|errno| refused(&whole, errno))?;
            if made {
                self.own_fd(&next)?;
                rustix::fs::fchmod(&next, Mode::from_raw_mode(0o755))
                    .map_err(|errno| refused(&whole, errno))?;
            }
            current = Some(next);
        }
        current.ok_or_else(|| refused(&whole, Errno::NOENT))
    }

    /// Gives an open file to the workspace's owner.
    fn own_fd(&self, fd: impl std::os::fd::AsFd) -> Result<(), Error> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        rustix::fs::fchown(fd, Some(uid), Some(gid))
            .map_err(|errno| Error::io("change the owner below", &self.path)(errno.into()))
    }
}

/// The folder `root/name`, if `name` is a plain file name.
fn folder(root: &Path, name: &str) -> Result<PathBuf, Error> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(unsafe_path(name, "not a plain file name"));
    }
    Ok(root.join(name))
}

/// The parts of a relative path without `..`.
fn parts_of(path: &str) -> Result<Vec<&str>, Error> {
    if path.len() > MAX_PATH {
        return Err(unsafe_path(path.get(..80).unwrap_or_default(), "longer than 4096 bytes"));
    }
    if path.starts_with('/') {
        return Err(unsafe_path(path, "absolute"));
    }
    if path.contains('\0') {
        return Err(unsafe_path(path, "contains NUL"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(unsafe_path(path, "contains '..'"));
    }
    Ok(parts)
}

/// The refusal of a path.
fn unsafe_path(path: &str, problem: &str) -> Error {
    Error::UnsafePath { path: path.to_owned(), problem: problem.to_owned() }
}

/// The error for a path that the kernel refused to resolve.
fn refused(path: &str, errno: Errno) -> Error {
    match errno {
        Errno::LOOP => unsafe_path(path, "goes through a symbolic link"),
        Errno::XDEV => unsafe_path(path, "leads out of the workspace"),
        Errno::NOTDIR => unsafe_path(path, "goes through something that is not a folder"),
        errno => Error::io("open", path)(errno.into()),
    }
}

#[cfg(test)]
mod tests;
