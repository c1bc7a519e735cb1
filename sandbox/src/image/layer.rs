//! Laying layers over each other in a folder, entry by entry.
//!
//! A layer is read twice: first for what it takes away of those below, then for what it brings, so that it never takes away what
//! it brings itself. Both times its digests are checked.
//!
//! *Assumptions*: nobody else changes the folder.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::blobs::{Blobs, uncompressed, unreadable};
use super::manifest::Layer;
use super::room::Room;
use super::{ImageLimits, Trouble};
use crate::error::{Error, ImageProblem};
use crate::tarball::{Entry, Tarball};
use crate::workspace::removal;

/// In front of the name of what is taken away.
const WHITEOUT: &[u8] = b".wh.";
/// Takes everything of a folder away.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// In front of notes of a file system that was used once.
const NOTES: &[u8] = b".wh..wh.";
/// Bytes of the names of what a layer takes away: they are kept in memory.
const MAX_WHITEOUTS: usize = 16 << 20;
/// Longest path and longest target of a link: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;
/// How often a path is resolved again that the kernel gives up on because folders were renamed somewhere.
const TRIES: usize = 100;

/// A folder that layers are laid into.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    limits: ImageLimits,
    stop: &'a AtomicBool,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// Bytes that may still be read of layers, each of which is read twice. Headers and padding of entries without data count too:
    /// archives of a billion empty records must end, however many name the same one.
    unread: u64,
    room: Room<'a>,
}

/// Bytes of the disk that an entry takes up by itself, as a folder does.
const ENTRY_BYTES: u64 = 4096;

/// What is done with each entry of a layer, by its path.
type ForEntry<'f, T> = dyn FnMut(&mut T, &[u8], &mut Entry<'_, '_>) -> Result<(), Trouble> + 'f;

/// The parts of a path.
type Parts<'p> = [&'p [u8]];

impl<'a> Tree<'a> {
    pub(super) fn new(root: OwnedFd, limits: ImageLimits, room: Room<'a>, stop: &'a AtomicBool) -> Self {
        let unread =
            limits.bytes.saturating_add(limits.entries.saturating_mul(ENTRY_BYTES)).saturating_mul(2);
        Self { root, limits, stop, entries: 0, bytes: 0, unread, room }
    }

    /// Lays a layer over those that are there.
    pub(super) fn lay(&mut self, blobs: &Blobs, layer: &Layer) -> Result<(), Trouble> {
        let mut whiteouts: Vec<Vec<u8>> = Vec::new();
        let mut kept = 0;
        self.read(blobs, layer, &mut |_, path, _| {
            if path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(WHITEOUT)) {
                kept += path.len();
                if kept > MAX_WHITEOUTS {
                    return Err(Trouble::unusable("has a layer that takes too many files away"));
                }
                whiteouts.push(path.to_vec());
            }
            Ok(())
        })?;
        for path in &whiteouts {
            self.take_away(path)?;
        }
        self.read(blobs, layer, &mut |tree, path, entry| tree.put(path, entry))
    }

    /// Reads a layer whole, and checks that it is what it is said to be.
    fn read(&mut self, blobs: &Blobs, layer: &Layer, each: &mut ForEntry<'_, Self>) -> Result<(), Trouble> {
        let (mut packed, mut plain) = (Sha256::new(), Sha256::new());
        let limits = self.limits;
        let stop = self.stop;
        let wrap = |error: io::Error| match error.kind() {
            ErrorKind::FileTooLarge => too_large(limits),
            _ if stop.load(Ordering::Relaxed) => Trouble::Stopped,
            _ => unreadable(&layer.part, &error),
        };
        {
            let input = Hashed { input: blobs.reader(&layer.part)?, hash: &mut packed, stop };
            let input = Hashed { input: uncompressed(input).map_err(wrap)?, hash: &mut plain, stop };
            let mut tarball = Tarball::new(input, self.unread);
            tarball.for_each(wrap, |entry| {
                let path = entry.path_bytes().into_owned();
                each(self, &path, entry)
            })?;
            self.unread = tarball.finish().map_err(wrap)?;
        }
        let digests = [(layer.digest.as_ref(), packed), (Some(&layer.plain_digest), plain)];
        for (expected, hash) in digests {
            let real = format!("sha256:{}", hex::encode(hash.finalize()));
            if let Some(expected) = expected
                && *expected != real
            {
                let message =
                    format!("has a layer that should be {expected} and is {real}; it was damaged or changed");
                return Err(Trouble::Image(ImageProblem::Digest, message));
            }
        }
        Ok(())
    }

    /// Takes away what a whiteout names.
    fn take_away(&self, path: &[u8]) -> Result<(), Trouble> {
        let parts = parts_of(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(unsafe_path(path, "names nothing"));
        };
        let dir = match self.resolve(parents) {
            Ok(dir) => dir,
            // There is nothing to take away.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(refused(path, errno)),
        };
        if *name == OPAQUE {
            return removal::empty(&dir).map_err(|errno| refused(path, errno));
        }
        if name.starts_with(NOTES) {
            return Ok(());
        }
        match &name[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(unsafe_path(path, "takes away what is no entry")),
            hidden => clear(&dir, hidden).map_err(|errno| refused(path, errno)),
        }
    }

    /// Makes an entry.
    fn put(&mut self, path: &[u8], entry: &mut Entry<'_, '_>) -> Result<(), Trouble> {
        self.count()?;
        let parts = parts_of(path)?;
        let kind = entry.header().entry_type();
        let Some((name, parents)) = parts.split_last() else {
            return match kind {
                // The root itself is there.
                EntryType::Directory | EntryType::XGlobalHeader => Ok(()),
                _ => Err(unsafe_path(path, "would replace the root")),
            };
        };
        if name.starts_with(WHITEOUT) || kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let dir = self.folder(parents, path)?;
        let done = match kind {
            EntryType::Directory => make_dir(&dir, name),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.fill(&dir, name, path, entry);
            }
            EntryType::Symlink => {
                let target = link_target(entry, path)?;
                clear(&dir, name).and_then(|()| rustix::fs::symlinkat(&*target, &dir, *name))
            }
            EntryType::Link => return self.link(&dir, name, path, entry),
            EntryType::Fifo => clear(&dir, name).and_then(|()| {
                rustix::fs::mknodat(&dir, *name, FileType::Fifo, Mode::from_raw_mode(0o644), 0)
            }),
            // Devices are the sandbox's own, whatever an image says.
            EntryType::Char | EntryType::Block => clear(&dir, name),
            _ => return Err(unsafe_path(path, "is of an unknown kind")),
        };
        done.map_err(|errno| refused(path, errno))
    }

    /// Writes a file anew, so that no other name of what was there changes.
    fn fill(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &mut Entry<'_, '_>,
    ) -> Result<(), Trouble> {
        let header = entry.header();
        let program = header.mode().unwrap_or(0o644) & 0o111 != 0;
        let modified = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        clear(dir, name).map_err(|errno| refused(path, errno))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| refused(path, errno))?;
        let mut file = File::from(file);
        let left = self.limits.bytes.saturating_sub(self.bytes);
        let mut copied = 0;
        let mut buffer = [0; 64 << 10];
        loop {
            let got = match entry.read(&mut buffer) {
                Ok(got) => got,
                Err(_) if self.stop.load(Ordering::Relaxed) => return Err(Trouble::Stopped),
                Err(error) if error.kind() == ErrorKind::FileTooLarge => return Err(too_large(self.limits)),
                Err(error) => return Err(unreadable(&shown(path), &error)),
            };
            if got == 0 {
                break;
            }
            copied += got as u64;
            if copied > left {
                return Err(too_large(self.limits));
            }
            self.room.take(got as u64)?;
            io::Write::write_all(&mut file, &buffer[..got]).map_err(Error::io("write", shown(path)))?;
        }
        self.bytes += copied;
        let mode = Mode::from_raw_mode(if program { 0o555 } else { 0o444 });
        rustix::fs::fchmod(&file, mode).map_err(|errno| refused(path, errno))?;
        let time = Timespec { tv_sec: modified, tv_nsec: 0 };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
            .map_err(|errno| refused(path, errno))
    }

    /// Makes a folder and those above it, as engines do with the working directory that an image names.
    pub(super) fn make_folder(&mut self, path: &str) -> Result<(), Trouble> {
        let parts = parts_of(path.as_bytes())?;
        self.folder(&parts, path.as_bytes()).map(drop)
    }

    /// Gives a file that is there another name.
    fn link(&self, dir: &OwnedFd, name: &[u8], path: &[u8], entry: &Entry<'_, '_>) -> Result<(), Trouble> {
        let target = link_target(entry, path)?;
        let target_parts = parts_of(&target)?;
        let Some((target_name, target_parents)) = target_parts.split_last() else {
            return Err(unsafe_path(path, "is a hard link to the root"));
        };
        let missing = || unsafe_path(path, "is a hard link to what the image does not have");
        let from = match self.resolve(target_parents) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(errno) => return Err(refused(path, errno)),
        };
        let stat = |at: &OwnedFd, name: &[u8]| rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = match stat(&from, target_name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(refused(path, errno)),
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(unsafe_path(path, "is a hard link to a folder"));
        }
        if stat(dir, name).is_ok_and(|own| (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        clear(dir, name)
            .and_then(|()| rustix::fs::linkat(&from, *target_name, dir, name, AtFlags::empty()))
            .map_err(|errno| refused(path, errno))
    }

    /// Opens a folder, through links as they are below the root.
    fn resolve(&self, parts: &Parts<'_>) -> Result<OwnedFd, Errno> {
        let whole = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match rustix::fs::openat2(&self.root, &*whole, flags, Mode::empty(), within) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The same, and makes what is missing: each such folder counts as an entry.
    fn folder(&mut self, parts: &Parts<'_>, path: &[u8]) -> Result<OwnedFd, Trouble> {
        let refused = |errno| refused(path, errno);
        match self.resolve(parts) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(refused),
        }
        // What is above a folder that is there is there too.
        let (mut there, mut missing) = (0, parts.len());
        while missing - there > 1 {
            let middle = usize::midpoint(there, missing);
            match self.resolve(&parts[..middle]) {
                Ok(_) => there = middle,
                Err(Errno::NOENT) => missing = middle,
                Err(errno) => return Err(refused(errno)),
            }
        }
        let mut dir = self.resolve(&parts[..there]).map_err(refused)?;
        for part in &parts[there..] {
            self.count()?;
            dir = new_dir(&dir, part).map_err(refused)?;
        }
        Ok(dir)
    }

    /// Counts one more entry, which takes up a little of the disk whatever is in it.
    fn count(&mut self) -> Result<(), Trouble> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Trouble::Stopped);
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Trouble::unusable(format!("has more than {} entries", self.limits.entries)));
        }
        self.room.take(ENTRY_BYTES)
    }
}

/// Makes a folder in place of what is no folder.
fn make_dir(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
        return Ok(());
    }
    clear(dir, name)?;
    new_dir(dir, name).map(drop)
}

/// Makes a folder that everybody can look into, whatever is kept from others by default.
pub(super) fn new_dir(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
    Ok(made)
}

/// Removes what has a name, with all that is in it.
pub(super) fn clear(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => removal::remove_at(dir, name),
        Err(errno) => Err(errno),
    }
}

/// The parts of a path in an image, which begins at its root.
fn parts_of(path: &[u8]) -> Result<Vec<&[u8]>, Trouble> {
    if path.len() > MAX_PATH {
        return Err(unsafe_path(&path[..80], "is longer than 4096 bytes"));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(unsafe_path(path, "contains '..'"));
    }
    if path.contains(&0) {
        return Err(unsafe_path(path, "contains NUL"));
    }
    Ok(parts)
}

/// The target of a link.
fn link_target(entry: &Entry<'_, '_>, path: &[u8]) -> Result<Vec<u8>, Trouble> {
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
        return Err(unsafe_path(path, "is a link whose target is empty, too long, or contains NUL"));
    }
    Ok(target)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The trouble of a path that means no good.
fn unsafe_path(path: &[u8], problem: &str) -> Trouble {
    Trouble::unusable(format!("has an entry {:?} that {problem}", shown(path)))
}

/// The trouble of a path that the kernel refuses.
fn refused(path: &[u8], errno: Errno) -> Trouble {
    match errno {
        Errno::LOOP => unsafe_path(path, "goes through too many symbolic links"),
        Errno::NOTDIR => unsafe_path(path, "goes through something that is not a folder"),
        Errno::EXIST => unsafe_path(path, "goes through a symbolic link to nothing"),
        Errno::NAMETOOLONG => unsafe_path(path, "has a name that is too long"),
        errno => Error::io("unpack", shown(path))(errno.into()).into(),
    }
}

fn too_large(limits: ImageLimits) -> Trouble {
    Trouble::unusable(format!("holds more than {} bytes", limits.bytes))
}

/// A reader that notes the digest of what goes through, and ends when nobody waits for it.
struct Hashed<'h, R> {
    input: R,
    hash: &'h mut Sha256,
    stop: &'h AtomicBool,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it"));
        }
        let got = self.input.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}

/// Opens a folder that was made for an image.
pub(super) fn open_dir(path: &std::path::Path) -> Result<OwnedFd, Trouble> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| Error::io("open", path)(errno.into()).into())
}
