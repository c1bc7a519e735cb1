//! Ends of log files: what is new in each since the last look, over rotations.
//!
//! A file is known by its device and number. When another has taken its place, what was left of the old one is read from
//! `PATH.1`, where it usually goes; a file that has become shorter was cut and begins anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use windlass_crds::facts::{LogFile, LogTail};

/// Bytes of a file in one report where nobody says otherwise.
const USUAL: u64 = 16 << 10;
/// The most, whatever is said.
const MOST: u64 = 64 << 10;

/// The most bytes of a file of one's own, such as certificates; a host's whole list of authorities takes some 220 KiB.
const MOST_SMALL: u64 = 1 << 20;

/// How far each file was read.
#[derive(Debug, Default)]
pub(super) struct Tails {
    places: BTreeMap<String, Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
    offset: u64,
}

impl Tails {
    /// Reads what is new. What cannot be read is noted, and looked for again the next time.
    pub(super) fn read(&mut self, files: &[LogFile], problems: &mut Vec<String>) -> Vec<LogTail> {
        self.places.retain(|path, _| files.iter().any(|file| file.path == *path));
        let mut tails = Vec::new();
        for LogFile { path, max_bytes } in files {
            let most = max_bytes.map_or(USUAL, windlass_crds::Bytes::get).clamp(1, MOST);
            match read_one(path, self.places.get(path).copied(), most) {
                Ok((tail, place)) => {
                    self.places.insert(path.clone(), place);
                    tails.push(tail);
                }
                Err(error) => problems.push(format!("facts.logs: {path} cannot be read: {error}")),
            }
        }
        tails
    }
}

fn read_one(path: &str, before: Option<Place>, most: u64) -> io::Result<(LogTail, Place)> {
    let mut file = open(path, ResolveFlags::NO_SYMLINKS)?;
    let found = file.metadata()?;
    let (device, inode, size) = (found.dev(), found.ino(), found.len());
    let same = |before: &Place| (before.device, before.inode) == (device, inode);
    let (old, from, rotated) = match before {
        // At first the end is told, and nothing is counted as left out.
        None => (Vec::new(), size.saturating_sub(most), false),
        Some(before) if same(&before) && before.offset <= size => (Vec::new(), before.offset, false),
        Some(before) if same(&before) => (Vec::new(), 0, true),
        Some(before) => (rest_of(path, before), 0, true),
    };
    // Of much only the end is read at all.
    let begin = from.max(size.saturating_sub(most)).min(size);
    file.seek(SeekFrom::Start(begin))?;
    let mut new = if begin > from { Vec::new() } else { old.clone() };
    let unread = begin.saturating_sub(from) + if begin > from { old.len() as u64 } else { 0 };
    // No more than was there at the look: a file that grows all the time has an end all the same.
    file.take(size - begin).read_to_end(&mut new)?;
    let over = (new.len() as u64).saturating_sub(most);
    let cut = usize::try_from(over).unwrap_or(usize::MAX).min(new.len());
    let skipped = unread + over;
    let text = String::from_utf8_lossy(&new[cut..]).into_owned();
    let tail = LogTail { path: path.to_owned(), text, size_bytes: size, skipped_bytes: skipped, rotated };
    Ok((tail, Place { device, inode, offset: size }))
}

/// What an earlier file of the path still had, if it is where it usually goes.
fn rest_of(path: &str, before: Place) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open(&format!("{path}.1"), ResolveFlags::NO_SYMLINKS)?;
        let found = file.metadata()?;
        let mut rest = Vec::new();
        if (found.dev(), found.ino()) == (before.device, before.inode) {
            file.seek(SeekFrom::Start(before.offset))?;
            file.take(MOST).read_to_end(&mut rest)?;
        }
        Ok(rest)
    };
    // It may have been removed or compressed; then what was left of it is lost, which `rotated` tells.
    read().unwrap_or_default()
}

/// Reads a small text, such as a token or certificates, without waiting for anybody.
pub(crate) async fn small_text(path: &str) -> io::Result<String> {
    let path = path.to_owned();
    let read = move || {
        let mut text = String::new();
        // Whoever mounts tokens does so by links; nobody but the operator can change what lies there.
        let read = open(&path, ResolveFlags::empty())?.take(MOST_SMALL + 1).read_to_string(&mut text)?;
        if read as u64 > MOST_SMALL {
            let longest = format!("it is longer than {} KiB", MOST_SMALL >> 10);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, longest));
        }
        Ok(text)
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Opens a plain file; does not wait for a writer where somebody has put a pipe there.
fn open(path: &str, resolve: ResolveFlags) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::LOOP => io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is a symbolic link on its way, which whoever owns the folder could lead elsewhere; name the file itself, as \
             `readlink -f` shows it",
        ),
        errno => errno.into(),
    })?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    struct World {
        folder: tempfile::TempDir,
        tails: Tails,
    }

    impl World {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), tails: Tails::default() }
        }

        fn path(&self) -> String {
            self.folder.path().join("log").display().to_string()
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn read(&mut self, most: u64) -> LogTail {
            let file = LogFile { path: self.path(), max_bytes: Some(windlass_crds::Bytes::new(most)) };
            let mut problems = Vec::new();
            let tails = self.tails.read(&[file], &mut problems);
            tails.into_iter().next().unwrap_or_else(|| panic!("{problems:?}"))
        }
    }

    #[test]
    fn each_line_is_told_once_and_what_does_not_fit_is_counted() {
        let mut world = World::new();
        world.append("one\n");
        assert_eq!(world.read(100).text, "one\n");
        assert_eq!(world.read(100).text, "");
        world.append("two\nthree\n");
        let tail = world.read(6);
        assert_eq!((tail.text.as_str(), tail.skipped_bytes, tail.rotated), ("three\n", 4, false));
    }

    #[test]
    fn of_a_file_that_has_grown_by_more_than_memory_only_the_end_is_read() {
        let mut world = World::new();
        world.append("one\n");
        world.read(100);
        let huge = 1 << 40;
        std::fs::OpenOptions::new().write(true).open(world.path()).unwrap().set_len(huge).unwrap();
        world.append("end\n");
        let tail = world.read(4);
        assert_eq!((tail.text.as_str(), tail.skipped_bytes, tail.size_bytes), ("end\n", huge - 4, huge + 4));
    }

    #[test]
    fn the_end_of_a_file_that_was_rotated_away_is_not_lost() {
        let mut world = World::new();
        world.append("a\n");
        world.read(100);
        world.append("b\n");
        std::fs::rename(world.path(), format!("{}.1", world.path())).unwrap();
        world.append("c\n");
        let tail = world.read(100);
        assert_eq!((tail.text.as_str(), tail.rotated), ("b\nc\n", true));
        assert_eq!(world.read(100).text, "");
    }

    #[test]
    fn a_file_that_was_cut_begins_anew() {
        let mut world = World::new();
        world.append("long line\n");
        world.read(100);
        std::fs::write(world.path(), "x\n").unwrap();
        let tail = world.read(100);
        assert_eq!((tail.text.as_str(), tail.rotated, tail.size_bytes), ("x\n", true, 2));
    }

    #[test]
    fn symbolic_links_are_not_followed_wherever_on_the_way_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("log"), "secret\n").unwrap();
        std::os::unix::fs::symlink(real.join("log"), folder.path().join("file")).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("folder")).unwrap();
        let file =
            |path: &str| LogFile { path: folder.path().join(path).display().to_string(), max_bytes: None };
        let (mut tails, mut problems) = (Tails::default(), Vec::new());
        assert!(tails.read(&[file("file"), file("folder/log")], &mut problems).is_empty());
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains("symbolic link")), "{problems:?}");
        assert_eq!(tails.read(&[file("real/log")], &mut problems)[0].text, "secret\n");
        // Nor is what has taken the place of a file that was rotated away.
        let mut world = World::new();
        world.append("a\n");
        world.read(100);
        std::fs::remove_file(world.path()).unwrap();
        std::os::unix::fs::symlink(real.join("log"), format!("{}.1", world.path())).unwrap();
        world.append("b\n");
        assert_eq!(world.read(100).text, "b\n");
    }

    #[test]
    fn a_pipe_or_a_folder_is_a_problem_and_no_wait() {
        let mut tails = Tails::default();
        let mut problems = Vec::new();
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let file = |path: &Path| LogFile { path: path.display().to_string(), max_bytes: None };
        assert!(tails.read(&[file(&pipe), file(folder.path())], &mut problems).is_empty());
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
