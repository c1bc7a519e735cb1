//! Measures a folder's size bit by bit, so that a large tree never keeps the supervisor from its output and deadlines.
//!
//! *Assumption*: what is measured is hostile. What cannot be looked at counts as too large, never as empty.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::Pid;

/// Entries looked at in one go: about a millisecond.
const SLICE: usize = 1000;
/// Folders held open at one time; a deeper tree counts as too large.
const MAX_DEPTH: usize = 200;
/// What an entry costs at least, so that empty files are not free: a file system's inodes are as finite as its blocks.
const ENTRY_BYTES: u64 = 4096;
/// Processes and descriptors looked at for deleted files in one look: some milliseconds at most.
const MAX_PROCESSES: usize = 256;
const MAX_DESCRIPTORS: usize = 2048;

/// What a walk has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// All was seen, and is this many bytes: no more than the limit.
    Within(u64),
    /// More than the limit, or not measurable.
    Over,
}

/// A walk over a folder. Links are not followed.
#[derive(Debug)]
pub struct Walk {
    levels: Vec<Dir>,
    bytes: u64,
    limit: u64,
    over: bool,
}

impl Walk {
    /// Starts a walk that ends once more than `limit` bytes were seen.
    #[must_use]
    pub fn start(path: &PathBuf, limit: u64) -> Self {
        let top = open_folder(CWD, path);
        let over = top.is_err();
        Self { levels: top.into_iter().collect(), bytes: 0, limit, over }
    }

    /// Goes on for a while; gives what was found once that is known.
    pub fn advance(&mut self) -> Option<Measure> {
        for _ in 0..SLICE {
            if self.over || self.bytes > self.limit {
                return Some(Measure::Over);
            }
            if self.levels.is_empty() {
                return Some(Measure::Within(self.bytes));
            }
            self.over = self.look().is_err();
        }
        None
    }

    /// Looks at the next entry. Fails if what is there cannot be measured.
    fn look(&mut self) -> Result<(), Errno> {
        let depth = self.levels.len();
        let Some(entries) = self.levels.last_mut() else { return Ok(()) };
        let entry = match entries.read() {
            // Seen to its end, or removed meanwhile.
            None | Some(Err(Errno::NOENT)) => {
                self.levels.pop();
                return Ok(());
            }
            Some(entry) => entry?,
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            return Ok(());
        }
        let dir = entries.fd()?;
        let look = || rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let looked = match look() {
            // The folder was closed since it was opened.
            Err(Errno::ACCESS) => open_up(dir).and_then(|()| look()),
            looked => looked,
        };
        let stat = match looked {
            Ok(stat) => stat,
            // Gone between listing and looking: it has no size any more.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        self.bytes = self.bytes.saturating_add(size_of(&stat).max(ENTRY_BYTES));
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        match open_folder(dir, name) {
            Ok(below) => self.levels.push(below),
            // It was removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

/// Bytes of disk that a file has.
fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// Opens a folder for listing. One whose permissions are in the way is opened up for its owner: only an ordinary user's
/// supervisor meets those, and it is the owner.
fn open_folder(at: impl AsFd, name: impl rustix::path::Arg + Copy) -> Result<Dir, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(&at, name, flags | OFlags::RDONLY, Mode::empty());
    let dir = match open() {
        Err(Errno::ACCESS) => {
            // An O_PATH descriptor needs no permission on the folder itself, and changing the mode through it cannot
            // hit another file.
            open_up(&rustix::fs::openat(&at, name, flags | OFlags::PATH, Mode::empty())?)?;
            open()?
        }
        dir => dir?,
    };
    Dir::new(dir)
}

/// Lets the owner of an open folder list it and look at what is in it.
fn open_up(dir: impl AsFd) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode) | Mode::RWXU;
    rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()), mode)
}

/// Whether the file system of a folder has less than `room` bytes or no file left. What cannot be asked counts as full.
#[must_use]
pub fn is_full(path: &Path, room: u64) -> bool {
    rustix::fs::statvfs(path).map_or(true, |space| {
        space.f_bavail.saturating_mul(space.f_frsize) < room || (space.f_files > 0 && space.f_favail == 0)
    })
}

/// Bytes of the deleted files on the device of `path` that the process `init` and its descendants hold open: no walk
/// sees them. What a process hides of itself, or holds only mapped, is not found; nor is what goes beyond the bounds.
#[must_use]
pub fn deleted_bytes(init: Pid, path: &Path) -> u64 {
    let Ok(device) = rustix::fs::stat(path).map(|stat| stat.st_dev) else { return 0 };
    let (mut seen, mut bytes, mut left) = (BTreeSet::new(), 0, MAX_DESCRIPTORS);
    for process in family(init.as_raw_nonzero().get()) {
        // It may have ended, or hide its descriptors.
        let Ok(Ok(folder)) = open_proc(process, "fd").map(Dir::new) else { continue };
        let Ok(at) = folder.fd().and_then(|fd| fd.try_clone_to_owned().map_err(|_| Errno::MFILE)) else {
            continue;
        };
        for entry in folder.flatten() {
            if left == 0 {
                return bytes;
            }
            left -= 1;
            let Ok(stat) = rustix::fs::statat(&at, entry.file_name(), AtFlags::empty()) else { continue };
            if stat.st_nlink == 0
                && stat.st_dev == device
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && seen.insert(stat.st_ino)
            {
                bytes += size_of(&stat).max(ENTRY_BYTES);
            }
        }
    }
    bytes
}

/// A folder of a process below `/proc`.
fn open_proc(process: i32, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{process}/{name}"), flags, Mode::empty())
}

/// A process and its descendants, in which the orphans of a pid namespace are its init's children.
fn family(first: i32) -> Vec<i32> {
    let mut family = vec![first];
    let mut next = 0;
    while let Some(process) = family.get(next).copied() {
        next += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            if family.len() >= MAX_PROCESSES {
                family.truncate(MAX_PROCESSES);
                return family;
            }
        }
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(path: &Path, limit: u64) -> (Measure, usize) {
        let mut walk = Walk::start(&path.to_path_buf(), limit);
        let mut slices = 1;
        loop {
            match walk.advance() {
                Some(measure) => return (measure, slices),
                None => slices += 1,
            }
        }
    }

    #[test]
    fn a_walk_stays_inside_and_charges_every_entry() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("away")).unwrap();
        for index in 0..2500 {
            std::fs::write(dir.path().join(format!("small-{index}")), "").unwrap();
        }
        let (measure, slices) = measure(dir.path(), u64::MAX);
        let Measure::Within(bytes) = measure else { panic!("{measure:?}") };
        let entries = 2500 * ENTRY_BYTES;
        assert!((entries + (1 << 20)..entries + (2 << 20)).contains(&bytes), "{bytes}");
        assert!(slices > 2, "{slices}");
    }

    #[test]
    fn a_walk_ends_as_soon_as_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        for index in 0..2500 {
            std::fs::write(dir.path().join(format!("small-{index}")), "").unwrap();
        }
        assert_eq!(measure(dir.path(), 100 * ENTRY_BYTES), (Measure::Over, 1));
    }

    #[test]
    fn a_tree_that_is_too_deep_counts_as_over() {
        let dir = tempfile::tempdir().unwrap();
        let deep = |levels| dir.path().join(vec!["d"; levels].join("/"));
        std::fs::create_dir_all(deep(MAX_DEPTH - 1)).unwrap();
        assert!(matches!(measure(dir.path(), u64::MAX), (Measure::Within(_), _)));
        std::fs::create_dir_all(deep(MAX_DEPTH)).unwrap();
        assert_eq!(measure(dir.path(), u64::MAX).0, Measure::Over);
    }

    #[test]
    fn what_cannot_be_opened_counts_as_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure(&dir.path().join("missing"), u64::MAX).0, Measure::Over);
    }

    #[test]
    fn deleted_files_that_are_open_are_counted_once() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getpid();
        let before = deleted_bytes(own, dir.path());
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all(&vec![1; 8 << 20]).unwrap();
        file.sync_all().unwrap();
        let _again = file.try_clone().unwrap();
        let found = deleted_bytes(own, dir.path()) - before;
        assert!((8 << 20..9 << 20).contains(&found), "{found}");
    }
}
