//! Uploaded inputs: fetched once by digest, verified, kept on disk for the next job that names them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;

use crate::client::{self, ControllerClient, InputStream};
use crate::clock::Clock;
use crate::ids::IdSource;
use crate::session::Session;

/// Why an input is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its digest is none.
    #[error("`{digest}` is not a digest: it must be `sha256:` and 64 lower-case hexadecimal digits")]
    BadDigest { digest: String },
    /// The controller did not deliver it.
    #[error("input {digest} cannot be fetched")]
    Fetch {
        digest: String,
        #[source]
        source: client::Error,
    },
    /// What the controller delivered is something else.
    #[error("what the controller delivers for input {digest} has digest sha256:{found}")]
    Mismatch { digest: String, found: String },
    /// The cache cannot be written.
    #[error("input {digest} cannot be written to the node's disk")]
    Disk {
        digest: String,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether another try, here or elsewhere, may succeed.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::BadDigest { .. } => false,
            Self::Fetch { source, .. } => !source.is_not_found() && !source.is_about_the_body(),
            Self::Mismatch { .. } | Self::Disk { .. } => true,
        }
    }
}

/// Inputs on disk.
#[derive(Clone)]
pub(crate) struct InputCache {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    cap_bytes: u64,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    /// How many users each file has; it is not evicted while there are any. The lock protects the counts only.
    users: Mutex<BTreeMap<String, usize>>,
}

/// An input that is on disk for as long as this lives.
pub(crate) struct Held {
    path: PathBuf,
    name: String,
    inner: Arc<Inner>,
}

impl Held {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut users = self.inner.users();
        if let Some(count) = users.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.name);
            }
        }
    }
}

impl Inner {
    fn users(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.users.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl InputCache {
    /// Keeps at most `cap_bytes` in `folder`, beyond what is in use.
    pub(crate) fn new(
        folder: PathBuf,
        cap_bytes: u64,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { inner: Arc::new(Inner { folder, cap_bytes, clock, ids, users: Mutex::default() }) }
    }

    /// Removes what a crash has left half fetched. Only before the first use, when the agent has nothing else to do and
    /// may wait for the disk.
    pub(crate) fn remove_leftovers(&self) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&self.inner.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The input with a digest, fetched if it is not here.
    pub(crate) async fn get(
        &self,
        digest: &str,
        client: &dyn ControllerClient,
        session: &Session,
    ) -> Result<Held, Error> {
        let name = file_name(digest)?;
        // In use from now on, so that nobody evicts it between the look and the use.
        let held = self.hold(name);
        let disk = |source| Error::Disk { digest: digest.to_owned(), source };
        if tokio::fs::try_exists(&held.path).await.map_err(disk)? {
            self.touch(&held.path).await.map_err(disk)?;
            return Ok(held);
        }
        let fetch = |source| Error::Fetch { digest: digest.to_owned(), source };
        let stream = client.input(session, digest).await.map_err(fetch)?;
        tokio::fs::create_dir_all(&self.inner.folder).await.map_err(disk)?;
        // Two attempts that fetch the same input do so side by side; the second rename changes nothing.
        let beside = self.inner.folder.join(format!(".{}", self.inner.ids.unique()));
        let received = receive(stream, &beside, digest, name).await;
        let placed = match received {
            Ok(()) => tokio::fs::rename(&beside, &held.path).await.map_err(disk),
            Err(error) => Err(error),
        };
        if let Err(error) = placed {
            // The fetch has failed already; a leftover goes at the next start.
            drop(tokio::fs::remove_file(&beside).await);
            return Err(error);
        }
        self.touch(&held.path).await.map_err(disk)?;
        if let Err(error) = self.evict().await {
            tracing::warn!(error = %error, "the cache of inputs cannot be trimmed");
        }
        Ok(held)
    }

    fn hold(&self, name: &str) -> Held {
        *self.inner.users().entry(name.to_owned()).or_default() += 1;
        Held { path: self.inner.folder.join(name), name: name.to_owned(), inner: Arc::clone(&self.inner) }
    }

    /// Notes that a file was used now.
    async fn touch(&self, path: &Path) -> std::io::Result<()> {
        let file = tokio::fs::OpenOptions::new().append(true).open(path).await?.into_std().await;
        file.set_modified(self.inner.clock.now().into())
    }

    /// Removes what was not used for longest, until the rest fits.
    async fn evict(&self) -> std::io::Result<()> {
        let mut files = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.inner.folder).await?;
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata().await?;
            if metadata.is_file() && !name.starts_with('.') {
                files.push((metadata.modified()?, name, metadata.len()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, _, length)| length).sum();
        for (_, name, length) in files {
            if total <= self.inner.cap_bytes {
                break;
            }
            if !self.inner.users().contains_key(&name) {
                tokio::fs::remove_file(self.inner.folder.join(name)).await?;
                total -= length;
            }
        }
        Ok(())
    }
}

/// The file name of a digest: its hexadecimal digits.
fn file_name(digest: &str) -> Result<&str, Error> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let plain = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if plain { Ok(hex) } else { Err(Error::BadDigest { digest: digest.to_owned() }) }
}

/// Writes a stream to a file and checks its hash.
async fn receive(mut stream: InputStream, to: &Path, digest: &str, hex: &str) -> Result<(), Error> {
    let disk = |source| Error::Disk { digest: digest.to_owned(), source };
    let mut file = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .await
        .map_err(disk)?;
    let mut hash = sha2::Sha256::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|source| Error::Fetch { digest: digest.to_owned(), source })?;
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.sync_all().await.map_err(disk)?;
    let found = hex::encode(hash.finalize());
    if found == hex { Ok(()) } else { Err(Error::Mismatch { digest: digest.to_owned(), found }) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::capabilities::sha256_text;
    use crate::testing::controller::FakeController;
    use crate::testing::{SeededIds, VirtualClock};

    fn session() -> Session {
        let url = String::new;
        Session {
            node_uid: None,
            token: "token".to_owned(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::MAX,
            endpoints: windlass_crds::protocol::Endpoints {
                worker_registration_url: url(),
                node_report_url: url(),
                node_config_url: url(),
                claim_url: url(),
                heartbeat_url: url(),
                report_url: url(),
                inputs_url: url(),
                artifacts_url: Some(url()),
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_for_longest_makes_room_unless_it_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".leftover"), b"x").unwrap();
        let (controller, clock) = (FakeController::default(), VirtualClock::new());
        let cache =
            InputCache::new(folder.path().to_owned(), 2000, Arc::new(clock), Arc::new(SeededIds::new(1)));
        cache.remove_leftovers().unwrap();
        let digests: Vec<String> = (0..4_u8)
            .map(|fill| {
                let content = vec![fill; 1000];
                let digest = sha256_text(&content);
                controller.change(|state| state.inputs.insert(digest.clone(), content));
                digest
            })
            .collect();
        let fetch = |number: usize| {
            let (cache, controller, digest) = (cache.clone(), controller.clone(), digests[number].clone());
            async move {
                // Times of use must differ, by the clock in virtual time.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                cache.get(&digest, &controller, &session()).await.unwrap()
            }
        };
        let kept = || {
            let mut numbers: Vec<usize> = (0..4)
                .filter(|number| {
                    folder.path().join(digests[*number].strip_prefix("sha256:").unwrap()).exists()
                })
                .collect();
            numbers.sort_unstable();
            numbers
        };
        let first = fetch(0).await;
        assert_eq!(std::fs::read(first.path()).unwrap(), vec![0; 1000]);
        drop(first);
        drop(fetch(1).await);
        drop(fetch(0).await);
        drop(fetch(2).await);
        assert_eq!(kept(), [0, 2], "1 was not used for longest");
        let held = fetch(0).await;
        drop(fetch(2).await);
        drop(fetch(3).await);
        assert_eq!(kept(), [0, 3], "0 is older and in use");
        drop(held);
        controller.change(|state| state.inputs.clear());
        drop(fetch(0).await);
        assert!(!folder.path().join(".leftover").exists());
    }
}
