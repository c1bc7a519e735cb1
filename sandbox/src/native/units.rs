//! Where the folders of units are: in memory, where the host's administrator runs the agent, else in the state folder.
//!
//! A unit does not outlive the host's run, and neither need its records: whoever finds none after a restart of the host knows
//! that nothing of it runs. A disk takes up to a third of a short unit's time for some small files. What a program prints
//! may be large, so it goes to the state folder in any case:
//!
//! ```text
//!  STATE/units ─► MEMORY/windlass-units-XXXXXX/units/ID/{plan,supervisor,exit}.json, control, grown
//!                                              units/ID/output ─► STATE/output/ID
//!                                              state ─► STATE
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use windlass_launcher::record;

use super::is_locked;
use crate::error::Error;
use crate::identity::Identity;
use crate::spec::UnitId;

/// Folder of the units below the state folder, or the link to it.
const UNITS: &str = "units";
/// Folder of what units have printed, below the state folder.
const OUTPUT: &str = "output";
/// Prefix of folders that are being removed; no unit id starts with a dot.
const GONE: &str = ".gone-";
/// Prefix of the folders in memory.
const PREFIX: &str = "windlass-units-";
/// Link in a folder in memory that leads back to the state folder.
const STATE: &str = "state";
/// File systems in memory that only an administrator can empty, the better one first. That of an ordinary user is emptied when
/// the user logs out, which its units outlive.
const IN_MEMORY: [&str; 2] = ["/run", "/dev/shm"];
/// The kernel's number of the file system in memory.
const TMPFS: u64 = 0x0102_1994;
/// Size of a file system in memory that has room for the records of a thousand units.
const ROOM: u64 = 64 << 20;

/// The folders of this driver's units.
#[derive(Debug)]
pub(crate) struct Units {
    state: PathBuf,
    root: PathBuf,
    /// Where new folders in memory are made.
    memory: Option<PathBuf>,
    /// Guards the lock on the folder in memory, which keeps others from sweeping it away; `None` if all is on the disk.
    in_memory: Mutex<Option<File>>,
}

/// The best folder of this host for what is in memory; `None` if the caller is not root or there is none.
pub(crate) fn memory() -> Option<PathBuf> {
    if Identity::caller().uid != 0 {
        return None;
    }
    IN_MEMORY.iter().map(Path::new).find(|path| has_room(path)).map(Path::to_owned)
}

/// Whether a folder is in memory and large enough.
fn has_room(path: &Path) -> bool {
    let Ok(found) = rustix::fs::statfs(path) else { return false };
    let (kind, block) = (u64::try_from(found.f_type), u64::try_from(found.f_bsize));
    kind == Ok(TMPFS) && block.is_ok_and(|block| found.f_blocks.saturating_mul(block) >= ROOM)
}

impl Units {
    /// Finds the folder below `state`, or makes it, in `memory` where one is given. Units that an earlier run has left are found
    /// wherever they are.
    pub(crate) fn open(state: &Path, memory: Option<&Path>) -> Result<Self, Error> {
        let root = state.join(UNITS);
        let found = match fs::symlink_metadata(&root) {
            Ok(meta) if meta.is_symlink() => own_folder(&root).map(Some).ok(),
            // Those of a run without memory stay, until none is left.
            Ok(_) if memory.is_some() => match fs::remove_dir(&root) {
                Ok(()) => None,
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Some(None),
                Err(error) => return Err(Error::io("remove", root)(error)),
            },
            Ok(_) => Some(None),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("inspect", root)(error)),
        };
        let in_memory = match found {
            Some(Some(folder)) => Some(take(&folder, state).map_err(Error::io("take", folder))?),
            Some(None) => None,
            None => make(state, &root, memory).map_err(Error::io("create", &root))?,
        };
        let memory = memory.map(Path::to_owned);
        let units = Self { state: state.to_owned(), root, memory, in_memory: Mutex::new(in_memory) };
        units.remove_orphans()?;
        Ok(units)
    }

    /// Where what units print is, if not with the rest. The folder is there.
    fn output(&self) -> Result<Option<PathBuf>, Error> {
        if self.in_memory().is_none() {
            return Ok(None);
        }
        let output = self.state.join(OUTPUT);
        match fs::DirBuilder::new().mode(0o700).create(&output) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::io("create", output)(error)),
            Ok(()) | Err(_) => Ok(Some(output)),
        }
    }

    fn in_memory(&self) -> MutexGuard<'_, Option<File>> {
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the folder anew that somebody has removed, if it is gone.
    fn make_again(&self) -> Result<(), Error> {
        let mut in_memory = self.in_memory();
        if self.root.is_dir() {
            return Ok(());
        }
        tracing::error!(path = %self.root.display(), "the records of all steps were removed; their folder is made again");
        *in_memory =
            make(&self.state, &self.root, self.memory.as_deref()).map_err(Error::io("create", &self.root))?;
        Ok(())
    }

    /// Their folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A unit's folder.
    pub(crate) fn dir(&self, id: &UnitId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Makes a unit's folder. One that is there already was left in the middle of this: without a plan it is nothing yet.
    pub(crate) fn create(&self, id: &UnitId) -> Result<PathBuf, Error> {
        let dir = self.dir(id);
        let create = || fs::DirBuilder::new().mode(0o700).create(&dir);
        let mut made = create();
        if matches!(&made, Err(error) if error.kind() == ErrorKind::NotFound) {
            self.make_again()?;
            made = create();
        }
        match made {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io("create", dir)(error));
            }
            Ok(()) | Err(_) => {}
        }
        if let Some(output) = self.output()? {
            let (file, link) = (output.join(id.as_str()), dir.join(record::OUTPUT));
            // An end of the agent in the middle of a removal may have left it.
            absent(fs::remove_file(&file)).map_err(Error::io("remove", &file))?;
            absent(fs::remove_file(&link)).map_err(Error::io("remove", &link))?;
            symlink(&file, &link).map_err(Error::io("create", link))?;
            let grown = dir.join(record::GROWN);
            fs::write(&grown, []).map_err(Error::io("create", grown))?;
        }
        Ok(dir)
    }

    /// Removes a unit's folder, which is renamed before, so that a crash leaves no half unit. One that is gone already is fine.
    pub(crate) fn remove(&self, id: &UnitId) -> Result<(), Error> {
        let dir = self.dir(id);
        let gone = self.root.join(format!("{GONE}{id}"));
        match fs::rename(&dir, &gone) {
            Ok(()) => fs::remove_dir_all(&gone).map_err(Error::io("remove", gone))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", dir)(error)),
        }
        let Some(output) = self.output()? else { return Ok(()) };
        let output = output.join(id.as_str());
        absent(fs::remove_file(&output)).map_err(Error::io("remove", output))
    }

    /// The units that there are. Folders that were being removed are removed.
    pub(crate) fn list(&self) -> Result<Vec<UnitId>, Error> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("list", &self.root))? {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(GONE) {
                fs::remove_dir_all(entry.path()).map_err(Error::io("remove", entry.path()))?;
            } else {
                ids.push(UnitId::new(name)?);
            }
        }
        Ok(ids)
    }

    /// Removes what units have printed that are no more.
    fn remove_orphans(&self) -> Result<(), Error> {
        let Some(output) = self.output()? else { return Ok(()) };
        for entry in fs::read_dir(&output).map_err(Error::io("list", &output))? {
            let entry = entry.map_err(Error::io("list", &output))?;
            if !self.root.join(entry.file_name()).exists() {
                absent(fs::remove_file(entry.path())).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Gives the memory back, if no unit is left.
    pub(crate) fn close(&self) {
        if self.in_memory().is_some()
            && let Ok(units) = fs::read_link(&self.root)
            && let Some(folder) = units.parent()
            && fs::remove_dir(&units).is_ok()
        {
            // A link that leads nowhere is replaced by the next run, which also removes what is left in memory of others.
            let _left = fs::remove_dir_all(folder).and_then(|()| fs::remove_file(&self.root));
        }
    }
}

/// Removes what is in memory of state folders that are no more, or have another one now. What cannot be removed is only room.
///
/// A folder whose driver or any of whose units runs is left: its state folder may be one that only they can see.
fn sweep(memory: &Path) {
    for entry in fs::read_dir(memory).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || check_own(&folder).is_err() {
            continue;
        }
        let leads_back = match fs::read_link(folder.join(STATE)) {
            Ok(state) => fs::read_link(state.join(UNITS)).is_ok_and(|units| units == folder.join(UNITS)),
            // It is being made, or whoever made it was killed.
            Err(_) => entry.metadata().and_then(|meta| meta.modified()).is_ok_and(is_young),
        };
        if leads_back || has_running_unit(&folder) {
            continue;
        }
        if let Ok(_lock) = lock(&folder) {
            let _left = fs::remove_dir_all(&folder);
        }
    }
}

/// Whether something was made so lately that it may not be finished.
fn is_young(made: SystemTime) -> bool {
    made.elapsed().map_or(true, |age| age < Duration::from_secs(3600))
}

/// Whether a unit below a folder in memory has a supervisor; one that cannot be looked at counts as running.
fn has_running_unit(folder: &Path) -> bool {
    let units = match fs::read_dir(folder.join(UNITS)) {
        Ok(units) => units,
        Err(error) => return error.kind() != ErrorKind::NotFound,
    };
    let runs = |entry: fs::DirEntry| match is_locked(&entry.path().join(record::SUPERVISOR)) {
        Ok(locked) => locked,
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    units.flatten().any(runs)
}

/// Makes the folder of all units, or a link to one in memory, whose lock it gives. The link appears when its folder is there.
fn make(state: &Path, root: &Path, memory: Option<&Path>) -> io::Result<Option<File>> {
    absent(fs::remove_file(root))?;
    let Some(memory) = memory else {
        fs::DirBuilder::new().mode(0o700).create(root)?;
        return Ok(None);
    };
    sweep(memory);
    fs::DirBuilder::new().recursive(true).mode(0o711).create(memory)?;
    let folder = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(memory)?;
    let units = folder.path().join(UNITS);
    fs::DirBuilder::new().mode(0o700).create(&units)?;
    let lock = take(folder.path(), state)?;
    symlink(units, root)?;
    let _kept = folder.keep();
    Ok(Some(lock))
}

/// Locks a folder in memory for this driver, and has it lead to the state folder, wherever that was moved.
fn take(folder: &Path, state: &Path) -> io::Result<File> {
    let lock = lock(folder)?;
    let (link, state) = (folder.join(STATE), fs::canonicalize(state)?);
    if fs::read_link(&link).ok().as_ref() != Some(&state) {
        absent(fs::remove_file(&link))?;
        symlink(state, link)?;
    }
    Ok(lock)
}

fn lock(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder)?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

/// The folder in memory that the link `root` leads to, if it is the caller's and nobody else's. The memory may be everybody's, so no
/// other link is followed: whoever knows the name of a folder that is gone could make one in its place.
fn own_folder(root: &Path) -> io::Result<PathBuf> {
    let units = fs::read_link(root)?;
    let folder = units.parent().ok_or(ErrorKind::InvalidInput)?;
    check_own(folder)?;
    check_own(&units)?;
    Ok(folder.to_owned())
}

fn check_own(folder: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(folder)?;
    let own = meta.is_dir() && meta.uid() == Identity::caller().uid && meta.mode() & 0o077 == 0;
    if own { Ok(()) } else { Err(io::Error::other("it belongs to somebody else")) }
}

/// Takes it that there is nothing for success.
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> UnitId {
        UnitId::new(name).unwrap()
    }

    /// A state folder, and one that stands for memory.
    fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
    }

    #[test]
    fn records_are_in_memory_and_output_is_on_the_disk_and_nothing_is_left() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        let dir = units.create(&id("a-1")).unwrap();
        fs::write(dir.join(record::PLAN), "{}").unwrap();
        fs::write(dir.join(record::OUTPUT), "hello").unwrap();
        assert_eq!(fs::read(state.path().join("output/a-1")).unwrap(), b"hello");
        assert!(fs::canonicalize(&dir).unwrap().starts_with(fs::canonicalize(memory.path()).unwrap()));
        drop(units);
        let again = Units::open(state.path(), Some(memory.path())).unwrap();
        assert_eq!(again.list().unwrap(), [id("a-1")]);
        assert_eq!(fs::read(dir.join(record::OUTPUT)).unwrap(), b"hello");
        again.close();
        assert!(dir.exists());
        again.remove(&id("a-1")).unwrap();
        again.remove(&id("a-1")).unwrap();
        assert_eq!(fs::read_dir(state.path().join("output")).unwrap().count(), 0);
        again.close();
        assert_eq!(fs::read_dir(memory.path()).unwrap().count(), 0);
        assert!(fs::symlink_metadata(state.path().join("units")).is_err());
    }

    #[test]
    fn after_a_restart_of_the_host_there_are_no_units_and_no_output_of_theirs() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        let dir = units.create(&id("a-1")).unwrap();
        fs::write(dir.join(record::OUTPUT), "hello").unwrap();
        fs::remove_dir_all(fs::read_link(state.path().join("units")).unwrap()).unwrap();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        assert!(units.list().unwrap().is_empty());
        assert!(!state.path().join("output/a-1").exists());
        units.create(&id("a-1")).unwrap();
    }

    #[test]
    fn output_that_was_left_is_not_taken_for_that_of_a_new_unit() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        fs::write(state.path().join("output/a-1"), "old").unwrap();
        let dir = units.create(&id("a-1")).unwrap();
        assert!(!dir.join(record::OUTPUT).exists());
    }

    #[test]
    fn units_of_a_run_without_memory_are_kept_where_they_are() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), None).unwrap();
        units.create(&id("a-1")).unwrap();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        assert_eq!(units.list().unwrap(), [id("a-1")]);
        units.remove(&id("a-1")).unwrap();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        units.create(&id("a-2")).unwrap();
        drop(units);
        assert_eq!(fs::read_dir(memory.path()).unwrap().count(), 1);
        // And the other way round.
        let units = Units::open(state.path(), None).unwrap();
        assert_eq!(units.list().unwrap(), [id("a-2")]);
    }

    #[test]
    fn what_is_in_memory_of_a_removed_state_folder_is_removed_by_the_next_one_that_is_made() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        units.create(&id("a-1")).unwrap();
        drop(units);
        state.close().unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for state in [&one, &other] {
            Units::open(state.path(), Some(memory.path())).unwrap();
        }
        assert_eq!(fs::read_dir(memory.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_in_memory_stays_while_its_driver_or_a_unit_runs_wherever_the_state_folder_is() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        let dir = fs::canonicalize(units.create(&id("a-1")).unwrap()).unwrap();
        let supervisor = File::create(dir.join(record::SUPERVISOR)).unwrap();
        let other = || Units::open(tempfile::tempdir().unwrap().path(), Some(memory.path())).unwrap();
        state.close().unwrap();
        other();
        assert!(dir.exists(), "the driver runs");
        rustix::fs::flock(&supervisor, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(units);
        other();
        assert!(dir.exists(), "the unit runs");
        drop(supervisor);
        other();
        assert!(!dir.exists());
    }

    #[test]
    fn a_state_folder_that_was_moved_keeps_what_is_in_memory() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        units.create(&id("a-1")).unwrap();
        drop(units);
        let moved = state.path().with_extension("moved");
        fs::rename(state.path(), &moved).unwrap();
        drop(Units::open(&moved, Some(memory.path())).unwrap());
        let other = tempfile::tempdir().unwrap();
        Units::open(other.path(), Some(memory.path())).unwrap();
        assert_eq!(Units::open(&moved, Some(memory.path())).unwrap().list().unwrap(), [id("a-1")]);
        fs::remove_dir_all(moved).unwrap();
    }

    #[test]
    fn what_is_removed_from_memory_is_made_again() {
        let (state, memory) = folders();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        units.create(&id("a-1")).unwrap();
        for entry in fs::read_dir(memory.path()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        units.create(&id("a-2")).unwrap();
        assert_eq!(units.list().unwrap(), [id("a-2")]);
        assert!(lock(fs::read_link(units.root()).unwrap().parent().unwrap()).is_err(), "it is locked");
    }

    #[test]
    fn no_link_is_followed_but_the_one_to_a_folder_of_ones_own() {
        let (state, memory) = folders();
        let precious = tempfile::tempdir().unwrap();
        let victim = precious.path().join("units");
        fs::DirBuilder::new().mode(0o700).create(&victim).unwrap();
        fs::write(victim.join("kept"), "").unwrap();
        // Somebody has made a link where the folder was.
        let gone = memory.path().join("windlass-units-gone");
        symlink(gone.join("units"), state.path().join("units")).unwrap();
        for (link, target) in [(gone.clone(), precious.path()), (gone.join("units"), &*victim)] {
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target, &link).unwrap();
            let units = Units::open(state.path(), Some(memory.path())).unwrap();
            units.create(&id("a-1")).unwrap();
            assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
            units.remove(&id("a-1")).unwrap();
            fs::remove_file(link).unwrap();
            fs::remove_file(state.path().join("units")).unwrap();
            symlink(gone.join("units"), state.path().join("units")).unwrap();
        }
    }

    #[test]
    fn a_link_to_a_folder_that_others_can_enter_is_not_followed() {
        let (state, memory) = folders();
        let strange = tempfile::tempdir().unwrap();
        fs::set_permissions(strange.path(), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(strange.path(), state.path().join("units")).unwrap();
        let units = Units::open(state.path(), Some(memory.path())).unwrap();
        units.create(&id("a-1")).unwrap();
        assert_eq!(fs::read_dir(strange.path()).unwrap().count(), 0);
    }
}
