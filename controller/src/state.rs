//! The state folder: everything that makes this controller the one that its nodes know.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("could not use the state folder {}; choose another with --state-dir, or make it writable", path.display())]
    Folder {
        /// What was to be used: the folder, or a part of it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to another user, who could read and change the keys in it.
    #[error(
        "the state folder {} belongs to user {owner}, and this controller runs as user {user}; \
         give it to that user (chown {user}), or name a folder inside it with --state-dir",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs the controller.
        user: u32,
    },
    /// The folder is open to others and used for something else.
    #[error(
        "the state folder {} is open to other users and holds what is not Windlass's, such as `{example}`; \
         name a folder of its own with --state-dir, or close this one (chmod 700)",
        path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
        /// Something in it.
        example: String,
    },
}

/// What only the owner may enter, read and change.
const MODE: u32 = 0o700;
/// Others may put files into a folder with this bit, such as `/tmp`.
const STICKY: u32 = 0o1000;
/// Names, or beginnings of names, of what a controller keeps in its folder.
const OURS: [&str; 4] = ["windlass.db", "pki", "admin.token", "bodies"];

/// Makes the folder where there is none, and closes it to everybody but its owner.
pub(crate) fn secure(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(MODE).create(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(Error::Owner { path: path.to_owned(), owner: found.uid(), user });
    }
    if mode(&found) & !MODE == 0 {
        return Ok(());
    }
    if let Some(example) = foreign(path, &found).map_err(failed)? {
        return Err(Error::Shared { path: path.to_owned(), example });
    }
    fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)
}

/// Something in the folder that tells that closing it would take it from others.
fn foreign(path: &Path, found: &Metadata) -> io::Result<Option<String>> {
    if mode(found) & STICKY != 0 {
        return Ok(Some("files of everybody".to_owned()));
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A file system of its own has one from the start.
        if name != "lost+found" && !OURS.iter().any(|ours| name.starts_with(ours)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Makes a folder inside the state folder where there is none, and closes it to everybody but its owner.
pub(crate) fn ensure_private_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let found = mode(&fs::metadata(path)?);
    if found & !MODE == 0 { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(MODE)) }
}

fn mode(of: &Metadata) -> u32 {
    of.permissions().mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_mode(bits: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(bits)).unwrap();
        folder
    }

    fn mode_of(path: &Path) -> u32 {
        mode(&fs::metadata(path).unwrap())
    }

    #[test]
    fn a_folder_that_was_open_to_others_is_closed() {
        let folder = folder_with_mode(0o755);
        fs::write(folder.path().join("windlass.db-wal"), "").unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        secure(folder.path()).unwrap();
        assert_eq!(mode_of(folder.path()), 0o700);
        let new = folder.path().join("a/b");
        secure(&new).unwrap();
        assert_eq!(mode_of(&new), 0o700);
    }

    #[test]
    fn a_folder_of_others_things_is_left_as_it_is() {
        let folder = folder_with_mode(0o755);
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let error = secure(folder.path()).unwrap_err();
        assert!(error.to_string().contains("such as `notes.txt`"), "{error}");
        assert_eq!(mode_of(folder.path()), 0o755);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        secure(folder.path()).expect("nobody else can enter it");
        let shared = folder_with_mode(0o1777);
        assert!(matches!(secure(shared.path()), Err(Error::Shared { .. })));
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let root = rustix::process::geteuid().is_root();
        let folder = tempfile::tempdir().unwrap();
        let path = if root {
            std::os::unix::fs::chown(folder.path(), Some(12345), None).unwrap();
            folder.path()
        } else {
            Path::new("/")
        };
        let error = secure(path).unwrap_err();
        assert!(matches!(error, Error::Owner { .. }), "{error}");
    }
}
