//! Host users for attempts. A caller that is root gives every attempt a uid of its own, so that attempts which run at
//! the same time can neither signal nor read each other; an ordinary caller has only itself to give.
//!
//! The allocation lives on disk, one link per uid, so that it outlives the caller and the host's run: files of an attempt do
//! too. A link appears with its content, and never replaces another one.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Default uids: above systemd's container range (which ends at 0x6FFF_FFFF = 1,879,048,191), below 2^31, and so
/// outside the ranges of login users, `DynamicUser=` and `/etc/subuid`.
pub const DEFAULT_UIDS: RangeInclusive<u32> = 1_900_000_000..=1_900_065_535;

/// The host user and group that a unit's processes and files belong to. Inside it is always 1000 `job`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Host uid.
    pub uid: u32,
    /// Host gid.
    pub gid: u32,
}

impl Identity {
    /// The caller's own effective user.
    #[must_use]
    pub fn caller() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// Hands out identities.
#[derive(Debug, Clone)]
pub struct Identities {
    dir: PathBuf,
    range: RangeInclusive<u32>,
    /// The uid that the next new owner gets if it is still free; 0 for none.
    next: Arc<AtomicU32>,
}

impl Identities {
    /// Keeps its records below `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InvalidSpec`] for a range that is empty or contains a system user.
    pub fn open(dir: impl Into<PathBuf>, range: RangeInclusive<u32>) -> Result<Self, Error> {
        let dir = dir.into();
        if range.is_empty() || *range.start() < 1000 || *range.end() > i32::MAX as u32 {
            return Err(Error::InvalidSpec {
                field: "uid_range",
                problem: "must be a range within 1000..=2147483647".to_owned(),
            });
        }
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        Ok(Self { dir, range, next: Arc::default() })
    }

    /// The identity of `owner` (an attempt's name): the one it has, or a free one. Idempotent.
    ///
    /// # Errors
    /// [`Error::IdentitiesExhausted`], [`Error::Io`].
    pub fn acquire(&self, owner: &str) -> Result<Identity, Error> {
        let caller = Identity::caller();
        if caller.uid != 0 {
            return Ok(caller);
        }
        if let Some(uid) = self.held(owner)? {
            return Ok(Identity { uid, gid: uid });
        }
        let next = Some(self.next.swap(0, Ordering::Relaxed)).filter(|uid| *uid != 0);
        for uid in next.into_iter().chain(self.range.clone()) {
            let path = self.dir.join(uid.to_string());
            match symlink(owner, &path) {
                Ok(()) => return Ok(Identity { uid, gid: uid }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
        Err(Error::IdentitiesExhausted { first: *self.range.start(), last: *self.range.end() })
    }

    /// Chooses the identity that the next new owner gets, so that its sandbox can be begun before. Nothing is reserved: if
    /// there is no such owner, or somebody else takes it, nothing is lost.
    ///
    /// # Errors
    /// [`Error::IdentitiesExhausted`], [`Error::Io`].
    pub fn choose_next(&self) -> Result<Identity, Error> {
        let caller = Identity::caller();
        if caller.uid != 0 {
            return Ok(caller);
        }
        let is_free = |uid: &u32| fs::symlink_metadata(self.dir.join(uid.to_string())).is_err();
        let free = self.range.clone().find(is_free);
        let exhausted = Error::IdentitiesExhausted { first: *self.range.start(), last: *self.range.end() };
        let uid = free.ok_or(exhausted)?;
        self.next.store(uid, Ordering::Relaxed);
        Ok(Identity { uid, gid: uid })
    }

    /// Frees the identity of `owner`. Post-state: `owner` holds none. Call it only when no process and no file of the
    /// attempt is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn release(&self, owner: &str) -> Result<(), Error> {
        let Some(uid) = self.held(owner)? else { return Ok(()) };
        let path = self.dir.join(uid.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The uid that `owner` holds.
    fn held(&self, owner: &str) -> Result<Option<u32>, Error> {
        if owner.is_empty() || owner.contains('/') {
            return Err(Error::InvalidSpec { field: "owner", problem: "must be a file name".to_owned() });
        }
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            let Some(uid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            match owner_of(&entry.path()) {
                Ok(of) if of == owner => return Ok(Some(uid)),
                Ok(_) => {}
                // Released between listing and reading.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", entry.path())(error)),
            }
        }
        Ok(None)
    }

    /// Where the records are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Whose record this is. Earlier versions kept files.
fn owner_of(record: &Path) -> io::Result<OsString> {
    match fs::read_link(record) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(OsString::from_vec(fs::read(record)?)),
        link => Ok(link?.into_os_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_get_different_uids_and_keep_theirs() {
        if Identity::caller().uid != 0 {
            // An ordinary user has only itself to give; the root run of this suite covers the allocation.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let identities = Identities::open(dir.path(), 70_000..=70_001).unwrap();
        let one = identities.acquire("one").unwrap();
        let two = identities.acquire("two").unwrap();
        assert_ne!(one, two);
        assert_eq!(identities.acquire("one").unwrap(), one);
        assert!(matches!(identities.acquire("three"), Err(Error::IdentitiesExhausted { .. })));
        identities.release("one").unwrap();
        identities.release("one").unwrap();
        assert_eq!(identities.acquire("three").unwrap(), one);
    }

    #[test]
    fn records_of_earlier_versions_are_understood() {
        if Identity::caller().uid != 0 {
            // See above.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("70000"), "old").unwrap();
        let identities = Identities::open(dir.path(), 70_000..=70_001).unwrap();
        assert_eq!(identities.acquire("old").unwrap().uid, 70_000);
        assert_eq!(identities.acquire("new").unwrap().uid, 70_001);
        identities.release("old").unwrap();
        assert_eq!(identities.acquire("newer").unwrap().uid, 70_000);
    }

    #[test]
    fn the_next_owner_gets_what_was_chosen_for_it_and_others_get_others() {
        if Identity::caller().uid != 0 {
            // See above.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let identities = Identities::open(dir.path(), 70_000..=70_009).unwrap();
        let one = identities.acquire("one").unwrap();
        let chosen = identities.clone().choose_next().unwrap();
        assert_ne!(chosen, one);
        identities.release("one").unwrap();
        assert_eq!(identities.acquire("two").unwrap(), chosen);
        assert_eq!(identities.acquire("three").unwrap(), one);
    }

    #[test]
    fn a_range_with_system_users_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Identities::open(dir.path(), 0..=10), Err(Error::InvalidSpec { .. })));
    }
}
