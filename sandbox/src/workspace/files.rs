//! Looking through a folder of a workspace for files that may leave it.
//!
//! What is there was put there by a program that nobody trusts. So every name is opened beneath its own folder, no link is
//! followed, no other file system is entered, and nothing is opened for reading that was not seen to be a regular file with
//! one name: opening never waits, and never does anything to a device. Whatever is not taken is told, with the reason.
//!
//! *Cost*: one open folder for each level, and the names of one folder for each level, both within [`FileLimits`].

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{CONFINED, Workspace, parts_of};
use crate::error::Error;

/// As everywhere in a workspace, and never into something that is mounted there.
const WITHIN: ResolveFlags = CONFINED.union(ResolveFlags::NO_XDEV);

/// How far a folder is looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// The most entries of all folders that are looked at.
    pub entries: u64,
    /// The most folders that a file is in, below the one that is looked through.
    pub depth: usize,
    /// The most bytes of a path.
    pub path_bytes: usize,
}

/// Something that was found.
#[derive(Debug)]
pub enum Visited {
    /// A regular file with one name, open for reading. It may still be changed by a program that runs.
    File {
        /// Its path below the folder, in UTF-8 and without control characters.
        path: String,
        /// The file.
        file: File,
        /// How long it was when it was opened.
        size: u64,
    },
    /// Something that is not taken.
    Refused {
        /// Its path below the folder as it is: of any bytes and any length, not to be shown as it is. Empty for the folder itself.
        path: Vec<u8>,
        /// How long it is, where that says something.
        size: u64,
        /// What is wrong with it, such as `it is a named pipe`.
        problem: String,
    },
}

impl Visited {
    fn refused(path: impl Into<Vec<u8>>, problem: impl Into<String>) -> Self {
        Self::Refused { path: path.into(), size: 0, problem: problem.into() }
    }
}

/// Looks through a folder, each folder's entries in the order of their names, one thing at a time. Blocks.
#[derive(Debug)]
pub struct Files {
    limits: FileLimits,
    /// The folders that are being looked through, each in the one before.
    levels: Vec<Level>,
    /// Entries that may still be looked at.
    left: u64,
    /// Told next, and after it nothing more where that is an end.
    told: Option<Visited>,
}

#[derive(Debug)]
struct Level {
    dir: OwnedFd,
    /// Its path below the first folder, with a slash at its end; empty for that.
    prefix: String,
    names: std::vec::IntoIter<CString>,
    /// There are more names than may be looked at.
    cut: bool,
}

impl Workspace {
    /// Looks through the folder at `path` (relative, no `..`); `None` where there is none.
    ///
    /// # Errors
    /// [`Error::UnsafePath`] for `path` itself. What is wrong with the folder is told as [`Visited::Refused`].
    pub fn files(&self, path: &str, limits: FileLimits) -> Result<Option<Files>, Error> {
        let whole = parts_of(path)?.join("/");
        let mut files = Files { limits, levels: Vec::new(), left: limits.entries, told: None };
        match rustix::fs::openat2(&self.dir, &whole, FOLDER, Mode::empty(), WITHIN) {
            Ok(dir) => files.told = files.enter(dir, String::new()),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => files.told = Some(Visited::refused("", unopened(errno))),
        }
        Ok(Some(files))
    }
}

/// How folders are opened.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How files are opened: a named pipe that has taken the place of one does not make us wait for its writer.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl Iterator for Files {
    type Item = Visited;

    fn next(&mut self) -> Option<Visited> {
        loop {
            if let Some(told) = self.told.take() {
                return Some(told);
            }
            let level = self.levels.last_mut()?;
            match level.names.next() {
                Some(name) if self.left > 0 => {
                    self.left -= 1;
                    self.told = self.look(&name);
                }
                None if !level.cut => drop(self.levels.pop()),
                Some(_) | None => {
                    let prefix = std::mem::take(&mut level.prefix);
                    self.levels.clear();
                    let problem = format!(
                        "there are more than {} entries; what comes after these was not looked at",
                        self.limits.entries
                    );
                    return Some(Visited::refused(prefix.trim_end_matches('/'), problem));
                }
            }
        }
    }
}

impl Files {
    /// Begins with a folder. Tells what is wrong with it, if anything is.
    fn enter(&mut self, dir: OwnedFd, prefix: String) -> Option<Visited> {
        let mut names = Vec::new();
        let mut cut = false;
        let entries = Dir::read_from(&dir).and_then(|mut entries| {
            while let Some(entry) = entries.read() {
                let entry = entry?;
                if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    continue;
                }
                if names.len() as u64 == self.left {
                    cut = true;
                    break;
                }
                names.push(entry.file_name().to_owned());
            }
            Ok(())
        });
        if let Err(errno) = entries {
            return Some(Visited::refused(prefix.trim_end_matches('/'), unopened(errno)));
        }
        names.sort();
        self.levels.push(Level { dir, prefix, names: names.into_iter(), cut });
        None
    }

    /// Looks at one name of the folder that is looked through.
    fn look(&mut self, name: &CString) -> Option<Visited> {
        let Level { dir, prefix, .. } = self.levels.last()?;
        let path = match String::from_utf8([prefix.as_bytes(), name.as_bytes()].concat()) {
            Ok(path) => path,
            Err(error) => return Some(Visited::refused(error.into_bytes(), "its name is not UTF-8")),
        };
        if path.chars().any(char::is_control) {
            return Some(Visited::refused(path, "its name has control characters"));
        }
        if path.len() > self.limits.path_bytes {
            let problem = format!("its path has more than {} bytes", self.limits.path_bytes);
            return Some(Visited::refused(path, problem));
        }
        // Seen before it is opened, so that nothing is opened that could wait or that opening does something to.
        let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let seen = rustix::fs::openat2(dir, name, place, Mode::empty(), WITHIN)
            .and_then(|place| rustix::fs::fstat(&place));
        let seen = match seen {
            Ok(seen) => seen,
            Err(errno) => return Some(Visited::refused(path, unopened(errno))),
        };
        let problem = match FileType::from_raw_mode(seen.st_mode) {
            FileType::Directory => return self.descend(name, path),
            FileType::RegularFile => return Some(open(dir, name, path, &seen)),
            FileType::Symlink => "it is a symbolic link",
            FileType::Fifo => "it is a named pipe",
            FileType::Socket => "it is a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "it is a device",
            FileType::Unknown => "it is not a regular file",
        };
        Some(Visited::refused(path, problem))
    }

    fn descend(&mut self, name: &CString, path: String) -> Option<Visited> {
        let depth = self.levels.len();
        if depth > self.limits.depth {
            let problem = format!("it is deeper than {} folders", self.limits.depth);
            return Some(Visited::refused(path, problem));
        }
        let level = self.levels.last()?;
        match rustix::fs::openat2(&level.dir, name, FOLDER, Mode::empty(), WITHIN) {
            Ok(dir) => self.enter(dir, path + "/"),
            Err(errno) => Some(Visited::refused(path, unopened(errno))),
        }
    }
}

/// Opens what was seen to be a regular file, if it may be taken and still is the same.
fn open(dir: &OwnedFd, name: &CString, path: String, seen: &Stat) -> Visited {
    let size = u64::try_from(seen.st_size).unwrap_or_default();
    let refused = |problem: String| Visited::Refused { path: path.clone().into_bytes(), size, problem };
    if seen.st_nlink != 1 {
        let problem = format!("it is a file with {} names (hard links); leave a copy", seen.st_nlink);
        return refused(problem);
    }
    if Mode::from_raw_mode(seen.st_mode).intersects(Mode::SUID | Mode::SGID) {
        return refused(
            "it is a program that runs as somebody else (set-user-id or set-group-id)".to_owned(),
        );
    }
    let file = match rustix::fs::openat2(dir, name, FILE, Mode::empty(), WITHIN) {
        Ok(file) => file,
        Err(errno) => return refused(unopened(errno)),
    };
    match rustix::fs::fstat(&file) {
        Ok(stat) if (stat.st_dev, stat.st_ino, stat.st_size) == (seen.st_dev, seen.st_ino, seen.st_size) => {
            Visited::File { path, file: File::from(file), size }
        }
        Ok(_) => refused("it was changed while it was looked at".to_owned()),
        Err(errno) => refused(unopened(errno)),
    }
}

/// Why something could not be opened.
fn unopened(errno: Errno) -> String {
    match errno {
        Errno::LOOP => "it is a symbolic link, or leads through one".to_owned(),
        Errno::XDEV => "something is mounted there".to_owned(),
        Errno::NOTDIR => "it is not a folder".to_owned(),
        Errno::NOENT => "it was removed while it was looked at".to_owned(),
        errno => format!("it cannot be opened: {}", std::io::Error::from(errno)),
    }
}
