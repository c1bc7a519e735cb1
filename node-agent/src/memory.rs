//! A folder in memory: for what must not reach a disk, and is gone with a reboot.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

/// `statfs` names of file systems in memory; see `linux/magic.h`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The place of a folder in memory that only the agent's user can enter. It is made when something is put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryFolder(PathBuf);

impl MemoryFolder {
    /// The agent's part of the first of these places that is in memory, or why there is none. The same state folder gets the same one
    /// each time.
    pub(crate) fn choose(places: &[PathBuf], state: &Path) -> Result<Self, String> {
        let hash = hex::encode(sha2::Sha256::digest(state.as_os_str().as_encoded_bytes()));
        let name = format!("windlass-agent-{}-{}", rustix::process::geteuid().as_raw(), &hash[..12]);
        let mut reasons = Vec::new();
        for place in places {
            match in_memory(place) {
                Ok(place) => return Ok(Self(place.join(name))),
                Err(error) => reasons.push(format!("{}: {error}", place.display())),
            }
        }
        Err(format!(
            "there is no folder in memory for secrets ({}); name one with --runtime-dir",
            reasons.join("; ")
        ))
    }

    /// Where secrets of attempts are.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    /// The file with the node's own key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.0.join("node.key")
    }
}

/// Makes a folder that only this user can enter, and nobody else has made, and yields whether it is one.
pub(crate) fn claim(folder: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // In a place where everybody can make things, somebody else may have been quicker.
    let found = std::fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it belongs to somebody else"));
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// The real path of a folder, if it is in memory.
fn in_memory(place: &Path) -> io::Result<PathBuf> {
    let place = place.canonicalize()?;
    if !IN_MEMORY.contains(&rustix::fs::statfs(&place)?.f_type) {
        return Err(io::Error::other("is not in memory"));
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_in_memory_is_taken_and_made_when_it_is_needed() {
        let state = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let places = [PathBuf::from("/proc"), PathBuf::from("/nowhere"), memory.path().to_owned()];
        let folder = MemoryFolder::choose(&places, state.path()).unwrap();
        assert_eq!(MemoryFolder::choose(&places, state.path()).unwrap(), folder);
        assert!(folder.0.starts_with(memory.path()) && !folder.0.exists());
        claim(&folder.0).unwrap();
        claim(&folder.0).unwrap();
        assert_eq!(folder.0.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let error = MemoryFolder::choose(&places[..2], state.path()).unwrap_err();
        assert!(error.contains("/proc: is not in memory") && error.contains("--runtime-dir"), "{error}");
    }

    #[test]
    fn what_somebody_else_has_made_is_not_taken() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let link = memory.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(claim(&link).unwrap_err().to_string().contains("somebody else"));
    }
}
