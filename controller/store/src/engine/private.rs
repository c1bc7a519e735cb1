//! Keeps the files of a database to their owner: rows hold the secret that node tokens are signed with.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What only the owner may read and write.
pub(crate) const MODE: u32 = 0o600;

/// What SQLite puts beside its file. It gives new ones the mode of the file.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Makes the database file where there is none, and takes the file and those beside it from everybody but their owner.
pub(crate) fn ensure_private(database: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(database)?;
    restrict(database)?;
    for suffix in BESIDE {
        let mut path = OsString::from(database);
        path.push(suffix);
        restrict(&PathBuf::from(path))?;
    }
    Ok(())
}

/// Takes a file from everybody but its owner, where there is one.
pub(crate) fn restrict(path: &Path) -> io::Result<()> {
    let found = match fs::metadata(path) {
        Ok(found) => found.permissions().mode() & 0o7777,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if found & !MODE == 0 { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(found & MODE)) }
}
