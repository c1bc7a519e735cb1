//! A folder that is filled with files whose names somebody else has chosen: nothing gets out of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::clock;

/// Never out of the folder, and through no link, also none that was there before.
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The folder.
pub(super) struct Folder {
    dir: OwnedFd,
}

/// A place for a file. Unless the file is kept, nothing is left of it.
pub(super) struct Place {
    dir: OwnedFd,
    name: String,
    beside: String,
    file: File,
    kept: bool,
}

impl Folder {
    /// Makes the folder, where it is missing.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { dir: rustix::fs::open(path, FOLDER, Mode::empty())? })
    }

    /// A place for a file below, whose folders are made.
    pub(super) fn place(&self, path: &str) -> io::Result<Place> {
        let mut folders: Vec<&str> = path.split('/').collect();
        let is_plain = |part: &&str| !matches!(*part, "" | "." | "..") && !part.contains('\0');
        if !folders.iter().all(is_plain) {
            let problem = "its name leads out of the folder; it is left out";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let name = folders.pop().unwrap_or_default().to_owned();
        let mut dir = self.dir.try_clone()?;
        for folder in folders {
            match rustix::fs::mkdirat(&dir, folder, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            dir = rustix::fs::openat2(&dir, folder, FOLDER, Mode::empty(), WITHIN).map_err(explained)?;
        }
        let beside = format!(".windlass-{}", clock::unique());
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&dir, beside.as_str(), new, Mode::from_raw_mode(0o666), WITHIN)?;
        Ok(Place { dir, name, beside, file: File::from(file), kept: false })
    }
}

impl Place {
    /// The file, which is empty at first.
    pub(super) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, in the place of a file or link that has it.
    pub(super) fn keep(mut self) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, self.beside.as_str(), &self.dir, self.name.as_str())?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            // What was to be saved has failed already.
            rustix::fs::unlinkat(&self.dir, self.beside.as_str(), AtFlags::empty()).ok();
        }
    }
}

fn explained(errno: Errno) -> io::Error {
    match errno {
        Errno::LOOP | Errno::XDEV => {
            io::Error::other("a link is in its way, which may lead out of the folder")
        }
        errno => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn save(folder: &Folder, name: &str, content: &str) -> io::Result<()> {
        let mut place = folder.place(name)?;
        place.file().write_all(content.as_bytes())?;
        place.keep()
    }

    #[test]
    fn files_go_below_and_replace_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/out");
        let folder = Folder::make(&path).unwrap();
        save(&folder, "a", "one").unwrap();
        save(&folder, "b/c/d", "two").unwrap();
        save(&folder, "b/c/d", "three").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "one");
        assert_eq!(std::fs::read_to_string(path.join("b/c/d")).unwrap(), "three");
        assert!(save(&folder, "a/b", "x").is_err(), "a file is in the way");
        drop(folder.place("e").unwrap());
        let names: Vec<_> =
            std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left of what was not kept: {names:?}");
    }

    #[test]
    fn nothing_gets_out_by_a_name_or_by_a_link() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let folder = Folder::make(&path).unwrap();
        for name in ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/", "/x", "a\0b"] {
            assert!(save(&folder, name, "x").is_err(), "{name:?}");
        }
        std::os::unix::fs::symlink(root.path(), path.join("link")).unwrap();
        let through = save(&folder, "link/x", "x").unwrap_err();
        assert!(through.to_string().contains("link"), "{through}");
        std::fs::write(root.path().join("target"), "mine").unwrap();
        std::os::unix::fs::symlink(root.path().join("target"), path.join("file")).unwrap();
        save(&folder, "file", "theirs").unwrap();
        assert_eq!(
            std::fs::read_to_string(root.path().join("target")).unwrap(),
            "mine",
            "the link is replaced"
        );
        let outside: Vec<_> = std::fs::read_dir(root.path()).unwrap().collect();
        assert_eq!(outside.len(), 2, "{outside:?}");
    }
}
