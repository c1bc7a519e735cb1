//! The keys that seal secrets: where they are kept, and how they are read and made.
//!
//! A file has one key a line, in base64; `#` begins a comment. The first key seals, all of them open. Where no file is named and
//! the database is a file of this controller alone, the file is in the state folder and is made there.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::seal::{KEY_BYTES, Key};
use crate::clock::IdSource;
use crate::tls;

/// The file in the state folder.
pub(crate) const FILE: &str = "secrets.key";
/// The name of the credential with which systemd gives the file.
pub(crate) const CREDENTIAL: &str = "windlass-secrets-key";
/// The most keys of a file.
const MOST_KEYS: usize = 64;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("could not read the keys of secrets in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} has no key of secrets in line {line}: each line is the base64 of 32 bytes, as `windlass secret new-key FILE` \
         writes it",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The file holds nothing.
    #[error("{} holds no key; `windlass secret new-key FILE` puts one there", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file holds too many keys.
    #[error("{} holds more than {MOST_KEYS} keys; remove those that `windlass secret rotate` has made useless", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] tls::Error),
}

/// Where keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a file that somebody else keeps.
    Given(PathBuf),
    /// In the state folder, where one is made if there is none and none is needed.
    StateFolder(PathBuf),
    /// Nowhere: secrets cannot be used.
    Nowhere,
}

impl KeyPlace {
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Given(path) | Self::StateFolder(path) => Some(path),
            Self::Nowhere => None,
        }
    }
}

/// The keys of a file, the one that seals first.
#[derive(Debug, Default)]
struct Keys(Vec<Arc<Key>>);

/// The keys of a controller; cheap to clone.
#[derive(Clone, Debug)]
pub struct Keyring {
    place: KeyPlace,
    /// What the file said when it was last read. The lock is held for a look and never over a call.
    keys: Arc<RwLock<Arc<Keys>>>,
}

impl Keyring {
    /// No keys.
    pub fn none() -> Self {
        Self { place: KeyPlace::Nowhere, keys: Arc::default() }
    }

    /// The keys that this text holds, which is as a file has it.
    ///
    /// # Errors
    /// As for a file that has it.
    pub fn of_text(text: &str) -> Result<Self, Error> {
        let keys = parse(Path::new("text"), text)?;
        Ok(Self { place: KeyPlace::Nowhere, keys: Arc::new(RwLock::new(Arc::new(keys))) })
    }

    /// Reads the keys. Of the state folder's own file `make` says whether it is made where there is none.
    pub(super) fn open(place: KeyPlace, make: Option<&dyn IdSource>) -> Result<Self, Error> {
        if let (KeyPlace::StateFolder(path), Some(ids)) = (&place, make)
            && matches!(path.try_exists(), Ok(false))
        {
            add(path, ids)?;
            tracing::info!(
                file = %path.display(),
                "a key for secrets was made; backups do not hold it, so keep a copy of it apart from them"
            );
        }
        let keys = match &place {
            KeyPlace::Given(path) => read(path)?,
            KeyPlace::StateFolder(path) if path.exists() => read(path)?,
            KeyPlace::StateFolder(_) | KeyPlace::Nowhere => Keys::default(),
        };
        Ok(Self { place, keys: Arc::new(RwLock::new(Arc::new(keys))) })
    }

    /// Where they are kept.
    pub(super) const fn place(&self) -> &KeyPlace {
        &self.place
    }

    /// Reads the file again. What was known stays known where it cannot be read.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn reload(&self) -> Result<(), Error> {
        let Some(path) = self.place.path() else { return Ok(()) };
        let keys = Arc::new(read(path)?);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// The key that seals, if there is one.
    pub(super) fn sealing(&self) -> Option<Arc<Key>> {
        self.known().0.first().cloned()
    }

    /// The key of this id. One that is not known may have been added since the file was read.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Key>> {
        let look = || self.known().0.iter().find(|key| key.id() == id).cloned();
        look().or_else(|| {
            if let Err(error) = self.reload() {
                tracing::warn!(error = %error, "the keys of secrets cannot be read again");
            }
            look()
        })
    }

    fn known(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(path: &Path) -> Result<Keys, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    if is_open(path).map_err(failed)? {
        tracing::warn!(
            file = %path.display(),
            "every user of the host can read or change the keys of secrets; take that away: chmod o= FILE"
        );
    }
    parse(path, &text)
}

/// Whether others than a file's owner and group can read or change it.
fn is_open(path: &Path) -> std::io::Result<bool> {
    Ok(fs::metadata(path)?.mode() & 0o006 != 0)
}

fn parse(path: &Path, text: &str) -> Result<Keys, Error> {
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let bytes = STANDARD.decode(line).ok().and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| Error::NoKey { path: path.to_owned(), line: index + 1 })?;
        keys.push(Arc::new(Key::new(&bytes)));
    }
    if keys.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    if keys.len() > MOST_KEYS {
        return Err(Error::TooMany { path: path.to_owned() });
    }
    Ok(Keys(keys))
}

/// Puts a new key at the head of a file, which is made where it is missing; yields the key's id. Only the owner can read the file.
///
/// # Errors
/// When the file holds something else, or cannot be written.
pub fn add(path: &Path, ids: &dyn IdSource) -> Result<String, Error> {
    let absolute =
        std::path::absolute(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let path = absolute.as_path();
    let before = match fs::read_to_string(path) {
        Ok(text) => {
            parse(path, &text)?;
            text
        }
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    let bytes = ids.secret();
    let key = Key::new(&bytes);
    let text = format!("{} # {}\n{before}", STANDARD.encode(bytes), key.id());
    tls::write_private(path, text.as_bytes())?;
    Ok(key.id().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::RandomIds;

    #[test]
    fn keys_that_every_user_can_read_are_noticed() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, open) in [(0o600, false), (0o440, false), (0o644, true), (0o602, true)] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open(file.path()).unwrap(), open, "{mode:o}");
        }
    }

    #[test]
    fn a_new_key_comes_first_and_the_old_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let ids = RandomIds::seeded(1);
        let first = add(&path, &ids).unwrap();
        let ring = Keyring::open(KeyPlace::Given(path.clone()), None).unwrap();
        assert_eq!(ring.sealing().unwrap().id(), first);
        let second = add(&path, &ids).unwrap();
        assert_eq!(ring.sealing().unwrap().id(), first, "until it is read again");
        assert_eq!(ring.find(&second).unwrap().id(), second, "an unknown one makes it so");
        assert_eq!(ring.sealing().unwrap().id(), second);
        assert_eq!(ring.find(&first).unwrap().id(), first);
        assert!(ring.find("unknown").is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        assert!(ring.reload().is_err());
        assert!(ring.find(&first).is_some(), "what was known stays known");
    }

    #[test]
    fn what_is_no_key_is_refused_by_its_line_and_not_shown() {
        let refused = |text: &str| parse(Path::new("f"), text).unwrap_err().to_string();
        assert!(refused("# none\n\n").contains("holds no key"));
        let good = STANDARD.encode([1; KEY_BYTES]);
        let error = refused(&format!("{good}\nhunter2\n"));
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
        assert!(refused(&STANDARD.encode([1; 16])).contains("line 1"));
        assert!(refused(&format!("{good}\n").repeat(MOST_KEYS + 1)).contains("more than"));
        assert!(Keyring::none().sealing().is_none());
    }
}
