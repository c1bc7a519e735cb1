//! What the node keeps of secrets in durable files, sealed with a key of the node.
//!
//! The key is a file that the operator gives, or a systemd credential; without either it is made in memory that a reboot clears,
//! and attempts with secrets are then not carried on after one.

use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Digest as _;

use crate::ids::IdSource;
use crate::memory;

const KEY_BYTES: usize = 32;

/// The node's key. Cheap to clone; it is never shown.
#[derive(Clone)]
pub struct NodeKey {
    key: Arc<OnceLock<LessSafeKey>>,
    /// Where the key is that lasts until the reboot, if it is made only when it is needed.
    file: Option<PathBuf>,
    ids: Arc<dyn IdSource>,
}

/// Why a file is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the node's key in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error(
        "{} is not a node's key: its first line must be the base64 of 32 bytes, as `windlass secret new-key FILE` writes it",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// This key; nonces are made from what `ids` gives, which never comes twice.
    pub fn new(bytes: &[u8; KEY_BYTES], ids: Arc<dyn IdSource>) -> Self {
        Self { key: Arc::new(OnceLock::from(key_of(bytes))), file: None, ids }
    }

    /// A key in a file in memory, which is made when something is sealed; without a file one that lasts as long as the process.
    pub(crate) fn until_reboot(file: Option<PathBuf>, ids: Arc<dyn IdSource>) -> Self {
        Self { key: Arc::default(), file, ids }
    }

    /// The key in a file: its first line that is not empty or a comment.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) fn read(path: &Path, ids: Arc<dyn IdSource>) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        if is_open(path).map_err(|source| Error::Read { path: path.to_owned(), source })? {
            tracing::warn!(
                file = %path.display(),
                "every user of the host can read or change the node's key; take that away: chmod o= FILE"
            );
        }
        let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let key = lines.find(|line| !line.is_empty()).and_then(|line| STANDARD.decode(line).ok());
        let key = key.and_then(|key| <[u8; KEY_BYTES]>::try_from(key).ok());
        let key = key.ok_or_else(|| Error::NoKey { path: path.to_owned() })?;
        Ok(Self::new(&key, ids))
    }

    /// Seals a text for one place, in base64.
    pub(crate) fn seal(&self, place: &str, text: &[u8]) -> String {
        let hash = sha2::Sha256::digest(self.ids.unique().as_bytes());
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hash[..NONCE_LEN]);
        let mut content = text.to_vec();
        let aad = Aad::from(place.as_bytes());
        let sealed = Nonce::assume_unique_for_key(nonce);
        let key = self.key.get_or_init(|| self.make());
        key.seal_in_place_append_tag(sealed, aad, &mut content).expect("a text of this size can be sealed");
        STANDARD.encode([&nonce[..], &content].concat())
    }

    /// Opens what this key has sealed for this place; `None` for anything else.
    pub(crate) fn open(&self, place: &str, sealed: &str) -> Option<Vec<u8>> {
        let key = self.known()?;
        let sealed = STANDARD.decode(sealed).ok()?;
        let (nonce, content) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let length = key.open_in_place(nonce, Aad::from(place.as_bytes()), &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }

    /// The key, if there is one already.
    fn known(&self) -> Option<&LessSafeKey> {
        if self.key.get().is_none()
            && let Some(bytes) = self.file.as_deref().and_then(read_bytes)
        {
            return Some(self.key.get_or_init(|| key_of(&bytes)));
        }
        self.key.get()
    }

    /// The key in the file, or a new one. Where that cannot be kept, it lasts as long as the process.
    fn make(&self) -> LessSafeKey {
        if let Some(bytes) = self.file.as_deref().and_then(read_bytes) {
            return key_of(&bytes);
        }
        let mut bytes = [0; KEY_BYTES];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).expect(
            "a system that gives no random bytes has no TLS either, without which nothing would be here",
        );
        let kept = self.file.as_deref().map_or(Ok(()), |file| keep(file, &bytes));
        if let Err(error) = kept {
            tracing::warn!(error = %error, "the node's key cannot be kept; jobs with secrets do not survive a restart of the agent");
        }
        key_of(&bytes)
    }
}

fn key_of(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the key has the length that the algorithm takes");
    LessSafeKey::new(key)
}

/// The key in a file, unless somebody else has made the folder that it is in.
fn read_bytes(file: &Path) -> Option<[u8; KEY_BYTES]> {
    let folder = std::fs::symlink_metadata(file.parent()?).ok()?;
    let ours = folder.is_dir() && folder.uid() == rustix::process::geteuid().as_raw();
    if ours { std::fs::read(file).ok()?.try_into().ok() } else { None }
}

/// Whether others than a file's owner and group can read or change it.
fn is_open(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.mode() & 0o006 != 0)
}

fn keep(file: &Path, bytes: &[u8]) -> io::Result<()> {
    memory::claim(file.parent().unwrap_or(file))?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
    io::Write::write_all(&mut file, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SystemIds;

    #[test]
    fn a_key_that_every_user_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, open) in [(0o600, false), (0o440, false), (0o644, true), (0o602, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open(file.path()).unwrap(), open, "{mode:o}");
        }
    }

    #[test]
    fn only_the_key_opens_and_only_in_its_place() {
        let key = NodeKey::new(&[1; KEY_BYTES], Arc::new(SystemIds));
        let sealed = key.seal("here", b"swordfish");
        assert_ne!(sealed, key.seal("here", b"swordfish"), "each time with another nonce");
        assert_eq!(key.open("here", &sealed).as_deref(), Some(b"swordfish".as_slice()));
        assert_eq!(key.open("there", &sealed), None);
        assert_eq!(NodeKey::new(&[2; KEY_BYTES], Arc::new(SystemIds)).open("here", &sealed), None);
        assert_eq!(key.open("here", "AAAA"), None);
        assert!(!format!("{key:?}").contains('1'));
    }

    #[test]
    fn a_key_is_read_from_a_file_and_what_is_none_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = || NodeKey::read(&path, Arc::new(SystemIds));
        assert!(matches!(read(), Err(Error::Read { .. })));
        std::fs::write(&path, "hunter2\n").unwrap();
        let error = read().unwrap_err().to_string();
        assert!(error.contains("new-key") && !error.contains("hunter2"), "{error}");
        let text = STANDARD.encode([7; KEY_BYTES]);
        std::fs::write(&path, format!("# the node's\n{text} # id\nolder\n")).unwrap();
        let sealed = NodeKey::new(&[7; KEY_BYTES], Arc::new(SystemIds)).seal("a", b"b");
        assert_eq!(read().unwrap().open("a", &sealed).as_deref(), Some(b"b".as_slice()));
    }

    #[test]
    fn a_key_in_memory_is_made_when_it_is_needed_and_found_again() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = memory.path().join("agent/node.key");
        let key = || NodeKey::until_reboot(Some(file.clone()), Arc::new(SystemIds));
        let sealed = NodeKey::new(&[1; KEY_BYTES], Arc::new(SystemIds)).seal("a", b"b");
        assert_eq!(key().open("a", &sealed), None);
        assert!(!file.exists(), "nothing was sealed");
        let sealed = key().seal("a", b"b");
        assert_eq!(key().open("a", &sealed).as_deref(), Some(b"b".as_slice()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(key().open("a", &sealed), None, "after a reboot");
        let alone = NodeKey::until_reboot(None, Arc::new(SystemIds));
        let sealed = alone.seal("a", b"b");
        assert!(alone.open("a", &sealed).is_some());
    }
}
