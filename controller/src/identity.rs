//! What controllers that share a database have in common, made apart from them: a certificate authority and an admin token.

use std::fs;
use std::path::{Path, PathBuf};

use crate::auth;
use crate::clock::IdSource;
use crate::state::{self, Part};
use crate::tls::{self, Authority};

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder holds something.
    #[error("{} exists: name a folder that does not, or an empty one; an identity is never written over another", path.display())]
    Exists {
        /// The folder, or what is in it.
        path: PathBuf,
    },
    /// The folder cannot be used.
    #[error("could not make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be made.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// Makes `ca.crt`, `ca.key` and `admin.token` in a folder that is empty or not there; only its owner can read them.
///
/// # Errors
/// As [`Error`] says. What was made by then stays, and is refused next time.
pub fn create(folder: &Path, ids: &dyn IdSource) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: folder.to_owned(), source };
    state::ensure_private_folder(folder).map_err(failed)?;
    if let Some(entry) = fs::read_dir(folder).map_err(failed)?.next() {
        return Err(Error::Exists { path: entry.map_err(failed)?.path() });
    }
    Authority::make(folder)?;
    let token = auth::secret_text("wlt_", ids.secret());
    tls::write_private(&folder.join(Part::AdminToken.name()), format!("{token}\n").as_bytes())?;
    Ok(())
}
