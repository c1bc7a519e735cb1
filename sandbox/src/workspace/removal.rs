//! Removal of untrusted trees: no recursion, bounded descriptors, no link followed, permissions repaired on the way.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Folders held open at one time. A folder deeper than that is first moved up, so that a tree of any depth is removed
/// with few descriptors and without long paths.
const MAX_DEPTH: usize = 48;

/// See [`super::Workspace::remove`].
pub(crate) fn remove(root: &Path, name: &str) -> Result<(), Errno> {
    let root =
        match rustix::fs::open(root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
    remove_at(&root, name)
}

/// Removes the folder `name` of `dir` with everything in it; one that is not there is fine.
pub(crate) fn remove_at(dir: &OwnedFd, name: impl rustix::path::Arg + Copy) -> Result<(), Errno> {
    let top = match open_folder(dir, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    empty(&top)?;
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A folder on the way down.
struct Level {
    dir: OwnedFd,
    /// Its name in the folder above it; `None` for the top.
    name: Option<CString>,
}

/// Removes everything below `top`.
pub(crate) fn empty(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved: u64 = 0;
    let mut levels = vec![Level { dir: top.try_clone().map_err(|_| Errno::MFILE)?, name: None }];
    while let Some(level) = levels.last() {
        match clear_files(&level.dir)? {
            None => {
                let done = levels.pop().expect("the loop saw a last level");
                if let (Some(name), Some(parent)) = (done.name, levels.last()) {
                    remove_entry(&parent.dir, &name, AtFlags::REMOVEDIR)?;
                }
            }
            Some(name) if levels.len() < MAX_DEPTH => {
                let dir = open_folder(&level.dir, name.as_c_str())?;
                levels.push(Level { dir, name: Some(name) });
            }
            Some(name) => {
                // Opening repairs the permissions that moving a folder needs.
                open_folder(&level.dir, name.as_c_str())?;
                loop {
                    let place = format!(".removed-{moved}");
                    moved += 1;
                    let flags = rustix::fs::RenameFlags::NOREPLACE;
                    match rustix::fs::renameat_with(&level.dir, name.as_c_str(), top, &place, flags) {
                        Ok(()) => break,
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Removes files and empty folders of `dir`; gives a folder that is not empty, or `None` once `dir` is.
fn clear_files(dir: &OwnedFd) -> Result<Option<CString>, Errno> {
    loop {
        let mut removed = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_folder = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => {
                    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                _ => false,
            };
            let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match remove_entry(dir, name, flags) {
                Ok(()) => removed = true,
                Err(Errno::NOTEMPTY | Errno::EXIST) if is_folder => return Ok(Some(name.to_owned())),
                Err(errno) => return Err(errno),
            }
        }
        // Entries may be skipped while others are removed, so look until a whole pass finds none.
        if !removed {
            return Ok(None);
        }
    }
}

/// Removes one entry; one that is gone already is fine.
fn remove_entry(dir: &OwnedFd, name: &std::ffi::CStr, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens a folder for reading and makes it writable for its owner, whatever permissions it has; a link is refused.
fn open_folder(at: &OwnedFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::ACCESS) => {
            // An O_PATH descriptor needs no permission on the folder itself, and changing the mode through it cannot
            // hit another file.
            let handle = rustix::fs::openat(at, name, flags | OFlags::PATH, Mode::empty())?;
            let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
            rustix::fs::chmod(&path, Mode::RWXU)?;
            rustix::fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty())?
        }
        Err(errno) => return Err(errno),
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
    }
    Ok(dir)
}
