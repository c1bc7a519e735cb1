//! The state folder in a restore: what is in it, what is staged beside it, and the swap of the two.
//!
//! ```text
//!  restoring/, bodies/restoring/      the new parts, while they are made; the old ones are whole
//!  restore-incomplete                 the swap is under way: no controller starts
//!  before-restore-TIME/, in bodies/   the old parts, afterwards
//! ```
//!
//! Bodies are staged in their own folder, which may be a file system of its own.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Error, file_error};
use crate::bodies::Place;
use crate::state::{self, Part};

/// While this file is in a state folder, a restore into it is not complete.
pub(crate) const MARK: &str = "restore-incomplete";
/// The folder for what is not in its place yet.
const STAGING: &str = "restoring";
/// The beginning of the name of folders for what was there before.
const BEFORE: &str = "before-restore-";

/// Whether a name in a state folder is one of a restore.
pub(crate) fn is_ours(name: &str) -> bool {
    name == MARK || name == STAGING || name.starts_with(BEFORE)
}

/// A state folder that nobody else works on.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The folder of bodies; it may be elsewhere.
    bodies: PathBuf,
    /// Whether the database is a file in there.
    has_database: bool,
    /// Held while a restore is under way; a controller that starts waits for it.
    _lock: File,
}

/// Something that is moved by a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    from: PathBuf,
    to: PathBuf,
}

impl Folder {
    /// Takes a state folder; makes it where there is none.
    pub(super) fn take(path: &Path, bodies: PathBuf, has_database: bool) -> Result<Self, Error> {
        state::secure(path)?;
        let lock = path.join(state::LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock);
        let file = file.map_err(file_error("open", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), bodies, has_database, _lock: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path: lock }),
            Err(fs::TryLockError::Error(source)) => Err(file_error("lock", &lock)(source)),
        }
    }

    /// The database in the folder.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(Part::Database.name())
    }

    /// Whether a restore was cut short here, so that there is nothing whole to lose.
    pub(super) fn is_marked(&self) -> Result<bool, Error> {
        exists(&self.path.join(MARK))
    }

    /// Something in the folder that a restore would put something else in the place of.
    pub(super) fn occupied(&self, with_secrets: bool) -> Result<Option<PathBuf>, Error> {
        let mut parts = Vec::new();
        if self.has_database {
            parts.push(self.database());
        }
        if with_secrets {
            parts.extend(
                [Part::Key, Part::Certificate, Part::AdminToken].map(|part| self.path.join(part.name())),
            );
        }
        for part in parts {
            if exists(&part)? {
                return Ok(Some(part));
            }
        }
        let bodies = self.bodies.clone();
        Ok(if self.old_bodies()?.is_empty() { None } else { Some(bodies) })
    }

    /// The folders in `bodies`, apart from those of restores.
    fn old_bodies(&self) -> Result<Vec<String>, Error> {
        let bodies = &self.bodies;
        let failed = || file_error("read", bodies);
        let entries = match fs::read_dir(bodies) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed()(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name().to_string_lossy().into_owned();
            if !is_ours(&name) && name != "lost+found" {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes empty folders to stage in, in place of those of a restore that was killed.
    pub(super) fn stage(&self) -> Result<Staging, Error> {
        let bodies = &self.bodies;
        Place::Folder(bodies.clone()).ensure()?;
        let staging = Staging { state: self.path.join(STAGING), bodies: bodies.join(STAGING) };
        for folder in [&staging.state, &staging.bodies] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(file_error("remove", folder)(error));
                }
                Ok(()) | Err(_) => {}
            }
            DirBuilder::new().mode(0o700).create(folder).map_err(file_error("make", folder))?;
        }
        Ok(staging)
    }

    /// Says that from now on the folder is neither what it was nor what it will be.
    pub(super) fn mark(&self) -> Result<(), Error> {
        let mark = self.path.join(MARK);
        let failed = || file_error("write", &mark);
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&mark);
        let mut file = file.map_err(failed())?;
        let text =
            "A restore into this folder was cut short: run it again. No controller starts on it before.\n";
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed())?;
        sync(&self.path)
    }

    /// What the swap moves: first what is there, out of the way, then what is staged, into its place.
    pub(super) fn moves(&self, staging: &Staging, time: &str) -> Result<Vec<Move>, Error> {
        let (state_before, bodies_before) = self.unused(time)?;
        let mut out = Vec::new();
        let mut into = Vec::new();
        let mut parts = vec!["pki".to_owned(), Part::AdminToken.name().to_owned()];
        if self.has_database {
            let database = Part::Database.name();
            parts.extend(["", "-wal", "-shm", "-journal"].map(|suffix| format!("{database}{suffix}")));
        }
        for part in parts {
            let (there, staged) = (self.path.join(&part), staging.state.join(&part));
            let is_staged = exists(&staged)?;
            // What the backup does not hold stays, but for what SQLite keeps beside the database.
            let goes = is_staged || part.starts_with(Part::Database.name());
            if goes && exists(&there)? {
                out.push(Move { from: there.clone(), to: state_before.join(&part) });
            }
            if is_staged {
                into.push(Move { from: staged, to: there });
            }
        }
        for name in self.old_bodies()? {
            out.push(Move { from: self.bodies.join(&name), to: bodies_before.join(&name) });
        }
        for entry in fs::read_dir(&staging.bodies).map_err(file_error("read", &staging.bodies))? {
            let name = entry.map_err(file_error("read", &staging.bodies))?.file_name();
            into.push(Move { from: staging.bodies.join(&name), to: self.bodies.join(&name) });
        }
        out.extend(into);
        Ok(out)
    }

    /// Folders for the old parts that are not there yet: another restore may have been cut short in this very second.
    fn unused(&self, time: &str) -> Result<(PathBuf, PathBuf), Error> {
        let mut name = format!("{BEFORE}{time}");
        let mut number = 1;
        loop {
            let folders = (self.path.join(&name), self.bodies.join(&name));
            if !exists(&folders.0)? && !exists(&folders.1)? {
                return Ok(folders);
            }
            number += 1;
            name = format!("{BEFORE}{time}-{number}");
        }
    }

    /// Says that all is in its place; what was staged is gone.
    pub(super) fn unmark(&self, staging: &Staging) -> Result<(), Error> {
        sync(&self.path)?;
        sync(&self.bodies)?;
        for folder in [&staging.state, &staging.bodies] {
            fs::remove_dir_all(folder).map_err(file_error("remove", folder))?;
        }
        let mark = self.path.join(MARK);
        fs::remove_file(&mark).map_err(file_error("remove", &mark))?;
        sync(&self.path)
    }
}

/// Carries out a move.
pub(super) fn perform(step: &Move) -> Result<(), Error> {
    let Move { from, to } = step;
    if let Some(folder) = to.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(file_error("make", folder))?;
    }
    fs::rename(from, to).map_err(file_error("move", from))
}

/// Where the old parts went, if any did.
pub(super) fn kept(moves: &[Move]) -> Option<PathBuf> {
    let mut kept = moves.iter().filter_map(|step| step.to.parent());
    kept.find(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(BEFORE)))
        .map(Path::to_owned)
}

/// Folders for what is not in its place yet. They stay behind when a restore fails, and go with the next one.
#[derive(Debug)]
pub(super) struct Staging {
    state: PathBuf,
    /// For bodies.
    pub(super) bodies: PathBuf,
}

impl Staging {
    /// The database that is being made.
    pub(super) fn database(&self) -> PathBuf {
        self.state.join(Part::Database.name())
    }

    /// Keeps a file of the state folder.
    pub(super) fn keep(&self, part: Part, content: &[u8]) -> Result<(), Error> {
        let path = self.state.join(part.name());
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(file_error("make", folder))?;
        }
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(content));
        written.map_err(file_error("write", &path))
    }

    /// Brings everything that is staged to disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        for folder in [&self.state, &self.bodies] {
            let opened = File::open(folder).map_err(file_error("read", folder))?;
            rustix::fs::syncfs(&opened).map_err(io::Error::from).map_err(file_error("flush", folder))?;
        }
        Ok(())
    }

    /// Removes what was staged for a restore that does not take place.
    pub(super) fn discard(&self) {
        for folder in [&self.state, &self.bodies] {
            if let Err(error) = fs::remove_dir_all(folder) {
                tracing::warn!(folder = %folder.display(), error = %error, "what was staged could not be removed");
            }
        }
    }
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(file_error("look at", path))
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error("flush", folder))
}
