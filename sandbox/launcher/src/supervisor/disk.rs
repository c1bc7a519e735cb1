//! Measures a folder's size bit by bit, so that a large tree never keeps the supervisor from its output and deadlines.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

/// Entries looked at in one go: about a millisecond.
const SLICE: usize = 1000;
/// Folders held open at one time; what is deeper is not measured (such a tree hits the file limits first).
const MAX_DEPTH: usize = 200;

/// A walk over a folder. Links are not followed; what cannot be read counts as empty.
#[derive(Debug)]
pub(super) struct Walk {
    levels: Vec<(OwnedFd, Dir)>,
    bytes: u64,
}

impl Walk {
    /// Starts a walk.
    pub(super) fn start(path: &PathBuf) -> Self {
        let mut walk = Self { levels: Vec::new(), bytes: 0 };
        walk.descend(CWD, path);
        walk
    }

    /// Goes on for a while; gives the size in bytes once everything was seen.
    pub(super) fn advance(&mut self) -> Option<u64> {
        for _ in 0..SLICE {
            let Some((dir, entries)) = self.levels.last_mut() else { return Some(self.bytes) };
            let Some(Ok(entry)) = entries.read() else {
                self.levels.pop();
                continue;
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            // Gone between listing and looking: it has no size any more.
            let Ok(stat) = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && self.levels.len() < MAX_DEPTH {
                let Some((dir, _)) = self.levels.last() else { return Some(self.bytes) };
                let Ok(dir) = dir.try_clone() else { continue };
                self.descend(dir.as_fd(), name);
            }
        }
        None
    }

    /// Opens a folder below.
    fn descend(&mut self, at: impl AsFd, name: impl rustix::path::Arg) {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(at, name, flags, Mode::empty());
        if let Ok(dir) = opened
            && let Ok(entries) = Dir::read_from(&dir)
        {
            self.levels.push((dir, entries));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_counts_files_once_and_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("away")).unwrap();
        for index in 0..2500 {
            std::fs::write(dir.path().join(format!("small-{index}")), "").unwrap();
        }
        let mut walk = Walk::start(&dir.path().to_path_buf());
        let mut slices = 1;
        let bytes = loop {
            match walk.advance() {
                Some(bytes) => break bytes,
                None => slices += 1,
            }
        };
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        assert!(slices > 2, "{slices}");
    }
}
