//! The file by which other invocations find a running `windlass dev`.
//!
//! It lies at one fixed place for a user, whatever state folder `dev` uses, and names the token's file, never the token.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::folders::Folders;

/// How to reach a running `windlass dev`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DevFile {
    /// The controller's URL.
    pub(crate) server: String,
    /// The file with its certificate authority.
    pub(crate) ca_file: PathBuf,
    /// The file with its admin token.
    pub(crate) token_file: PathBuf,
    /// The process that wrote this file.
    pub(crate) pid: u32,
}

impl DevFile {
    /// Where the file lies.
    pub(crate) fn path(folders: &Folders) -> Option<PathBuf> {
        folders.state.as_ref().map(|folder| folder.join("windlass/dev.yaml"))
    }

    /// The file, where there is one.
    pub(crate) fn find(folders: &Folders) -> Result<Option<(PathBuf, Self)>, Error> {
        let Some(path) = Self::path(folders) else { return Ok(None) };
        Ok(Self::read(&path)?.map(|file| (path, file)))
    }

    fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Unreadable { path: path.to_owned(), source }),
        };
        serde_saphyr::from_str(&text).map(Some).map_err(|error| Error::syntax(path, &error))
    }

    /// Writes the file for this user only, whole or not at all, in place of any other.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().ok_or_else(|| std::io::Error::other("the path has no folder"))?;
        fs::create_dir_all(folder)?;
        let new = path.with_extension(format!("{}.new", self.pid));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // The mode of `open` is only for a file that was not there.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(crate::output::yaml::format(self).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    }

    /// Removes the file if it is still this one, and not that of a `windlass dev` that was started later.
    pub(crate) fn remove(&self, path: &Path) -> std::io::Result<()> {
        match Self::read(path) {
            Ok(Some(file)) if file == *self => fs::remove_file(path),
            Ok(Some(_) | None) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pid: u32) -> DevFile {
        DevFile {
            server: "https://127.0.0.1:12082".into(),
            ca_file: "/state/ca.pem".into(),
            token_file: "/state/admin.token".into(),
            pid,
        }
    }

    #[test]
    fn it_is_for_one_user_only_and_the_last_writer_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders { state: Some(folder.path().to_owned()), ..Folders::default() };
        let path = DevFile::path(&folders).unwrap();
        assert_eq!(DevFile::find(&folders).unwrap(), None);

        file(1).write(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        file(2).write(&path).unwrap();
        assert_eq!(DevFile::find(&folders).unwrap(), Some((path.clone(), file(2))));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        file(1).remove(&path).unwrap();
        assert!(path.exists());
        file(2).remove(&path).unwrap();
        assert!(!path.exists());
        file(2).remove(&path).unwrap();
    }
}
