//! A folder that is filled with files whose names somebody else has chosen: nothing gets out of it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::clock;

/// Never out of the folder, and through no link, also none that was there before.
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What becomes of files that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// They stay, and what has their name is not saved.
    Stays,
    /// They are replaced.
    Goes,
}

/// The folder. A file that was saved in it is not replaced by another one, also where a file system takes two names for one.
pub(super) struct Folder {
    dir: OwnedFd,
    existing: Existing,
    /// Device and inode of what was saved.
    saved: HashSet<(u64, u64)>,
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
    pub(super) fn make(path: &Path, existing: Existing) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let dir = rustix::fs::open(path, FOLDER, Mode::empty())?;
        Ok(Self { dir, existing, saved: HashSet::new() })
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
        self.check(&dir, &name)?;
        let beside = format!(".windlass-{}", clock::unique());
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&dir, beside.as_str(), new, Mode::from_raw_mode(0o666), WITHIN)?;
        Ok(Place { dir, name, beside, file: File::from(file), kept: false })
    }

    /// Gives the file of a place its name; where files may be replaced also in the place of a file or link that has it.
    pub(super) fn keep(&mut self, mut place: Place) -> io::Result<()> {
        self.check(&place.dir, &place.name)?;
        match self.existing {
            Existing::Stays => place.rename_to_new()?,
            Existing::Goes => {
                rustix::fs::renameat(&place.dir, place.beside.as_str(), &place.dir, place.name.as_str())?;
            }
        }
        place.kept = true;
        let found = rustix::fs::fstat(&place.file)?;
        self.saved.insert((found.st_dev, found.st_ino));
        Ok(())
    }

    /// Whether a name may be given to a file.
    fn check(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let found = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        if self.saved.contains(&(found.st_dev, found.st_ino)) {
            let problem = "another artifact was saved under a name that is the same on this file system";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        match self.existing {
            Existing::Stays => Err(is_there()),
            Existing::Goes => Ok(()),
        }
    }
}

fn is_there() -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        "there is something of this name already, which is not replaced",
    )
}

impl Place {
    /// The file, which is empty at first.
    pub(super) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name unless something has it.
    fn rename_to_new(&self) -> io::Result<()> {
        let Self { dir, name, beside, .. } = self;
        let renamed =
            rustix::fs::renameat_with(dir, beside.as_str(), dir, name.as_str(), RenameFlags::NOREPLACE);
        let named = match renamed {
            // Not every file system can do that; those that cannot have links.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(dir, beside.as_str(), dir, name.as_str(), AtFlags::empty())
                    .and_then(|()| rustix::fs::unlinkat(dir, beside.as_str(), AtFlags::empty()))
            }
            renamed => renamed,
        };
        named.map_err(|errno| if errno == Errno::EXIST { is_there() } else { errno.into() })
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

    fn save(folder: &mut Folder, name: &str, content: &str) -> io::Result<()> {
        let mut place = folder.place(name)?;
        place.file().write_all(content.as_bytes())?;
        folder.keep(place)
    }

    #[test]
    fn files_go_below_and_replace_what_is_there_if_they_may() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/out");
        let mut folder = Folder::make(&path, Existing::Goes).unwrap();
        save(&mut folder, "a", "one").unwrap();
        save(&mut folder, "b/c/d", "two").unwrap();
        let mut folder = Folder::make(&path, Existing::Goes).unwrap();
        save(&mut folder, "b/c/d", "three").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "one");
        assert_eq!(std::fs::read_to_string(path.join("b/c/d")).unwrap(), "three");
        assert!(save(&mut folder, "a/b", "x").is_err(), "a file is in the way");
        drop(folder.place("e").unwrap());
        let names: Vec<_> =
            std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left of what was not kept: {names:?}");
    }

    #[test]
    fn what_is_there_stays_unless_it_may_be_replaced() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("mine"), "mine").unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("link")).unwrap();
        let mut folder = Folder::make(root.path(), Existing::Stays).unwrap();
        for name in ["mine", "link"] {
            let refused = save(&mut folder, name, "theirs").unwrap_err();
            assert!(refused.to_string().contains("not replaced"), "{refused}");
        }
        // It may come while the content does.
        let place = folder.place("late").unwrap();
        std::fs::write(root.path().join("late"), "mine").unwrap();
        assert!(place.rename_to_new().unwrap_err().to_string().contains("not replaced"));
        drop(place);
        for name in ["mine", "late"] {
            assert_eq!(std::fs::read_to_string(root.path().join(name)).unwrap(), "mine");
        }
        save(&mut folder, "new", "theirs").unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 4, "nothing else is left");
    }

    #[test]
    fn what_was_saved_is_not_replaced_by_something_else() {
        let root = tempfile::tempdir().unwrap();
        for existing in [Existing::Stays, Existing::Goes] {
            let mut folder = Folder::make(&root.path().join(format!("{existing:?}")), existing).unwrap();
            save(&mut folder, "a", "one").unwrap();
            // As `A` would be where case makes no difference.
            let same = save(&mut folder, "a", "two").unwrap_err();
            assert!(same.to_string().contains("another artifact"), "{same}");
        }
    }

    #[test]
    fn nothing_gets_out_by_a_name_or_by_a_link() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let mut folder = Folder::make(&path, Existing::Goes).unwrap();
        for name in ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/", "/x", "a\0b"] {
            assert!(save(&mut folder, name, "x").is_err(), "{name:?}");
        }
        std::os::unix::fs::symlink(root.path(), path.join("link")).unwrap();
        let through = save(&mut folder, "link/x", "x").unwrap_err();
        assert!(through.to_string().contains("link"), "{through}");
        std::fs::write(root.path().join("target"), "mine").unwrap();
        std::os::unix::fs::symlink(root.path().join("target"), path.join("file")).unwrap();
        save(&mut folder, "file", "theirs").unwrap();
        assert_eq!(
            std::fs::read_to_string(root.path().join("target")).unwrap(),
            "mine",
            "the link is replaced"
        );
        let outside: Vec<_> = std::fs::read_dir(root.path()).unwrap().collect();
        assert_eq!(outside.len(), 2, "{outside:?}");
    }
}
