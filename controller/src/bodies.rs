//! Bodies that are too large for a row: log chunks, artifacts and uploaded inputs.
//!
//! Rows hold keys of objects here. An object is written before the row that names it and removed after, so a crash
//! leaves at worst an object that nobody names, which a sweep removes once it is a day old.
//!
//! ```text
//! logs/JOB/EPOCH/SEQUENCE   the output of one record; written again when its report is repeated
//! artifacts/JOB/EPOCH/N.UID one upload of an artifact; never written again
//! inputs/HH/HASH.UID        one upload of an input; never written again
//! damaged/HASH.UID          an upload that was found to be damaged, kept to be looked at until it is swept
//! ```

mod place;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _};
use sha2::{Digest, Sha256};

pub use place::Place;

/// Why a body could not be kept or given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be used.
    #[error("could not open the folder for bodies at {}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bucket cannot be used.
    #[error("could not use the bucket of --bodies {place}")]
    Bucket {
        /// What was given.
        place: String,
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The object store failed.
    #[error("could not {action} the body `{key}`")]
    Store {
        /// `write`, `read`, `find`, `list`, `move` or `remove`.
        action: &'static str,
        /// The key.
        key: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// The upload broke off.
    #[error("the upload of `{key}` broke off")]
    Upload {
        /// The key.
        key: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The content has another digest than named.
    #[error("the content has the digest {found}, not {wanted}")]
    Digest {
        /// What was named.
        wanted: String,
        /// What came.
        found: String,
    },
    /// More content than allowed.
    #[error("the content has more than {limit} bytes")]
    TooLarge {
        /// The most that is allowed.
        limit: u64,
    },
}

impl Error {
    /// Whether there is no such body.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Store { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// A handle to the bodies; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bodies {
    store: Arc<dyn ObjectStore>,
    /// Where the bodies are, if that is a folder.
    folder: Option<PathBuf>,
}

/// A body that was found by listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its key.
    pub key: String,
    /// When it was written last.
    pub written_at: Timestamp,
    /// How large it is.
    pub bytes: u64,
}

/// Parts of an upload; the object store asks for at least 5 MiB a part where it is S3.
pub(crate) const PART: usize = 8 * 1024 * 1024;

impl Bodies {
    /// Bodies at a place, which must be there and writable.
    pub(crate) async fn at(place: &Place) -> Result<Self, Error> {
        match place {
            Place::Folder(path) => Self::folder(path),
            Place::Bucket { name, prefix } => {
                let refused = |source| Error::Bucket { place: place.to_string(), source: Box::new(source) };
                let bodies = Self { store: place::bucket(name, prefix).map_err(refused)?, folder: None };
                match bodies.ping().await {
                    Err(Error::Store { source, .. }) => Err(refused(source)),
                    other => other.map(|()| bodies),
                }
            }
        }
    }

    /// Bodies in a folder, made when missing and closed to everybody but its owner.
    pub fn folder(path: &Path) -> Result<Self, Error> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Open { path: path.to_owned(), source };
        crate::state::ensure_private_folder(path).map_err(|error| failed(error.into()))?;
        let store = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|error| failed(error.into()))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self { store: Arc::new(store), folder: Some(path.to_owned()) })
    }

    /// Bodies in a folder that is made for a restore, which flushes all of it at once.
    pub(crate) fn staging(path: &Path) -> Result<Self, Error> {
        let store = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|source| Error::Open { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { store: Arc::new(store), folder: Some(path.to_owned()) })
    }

    /// Bodies in memory, for tests.
    pub fn memory() -> Self {
        Self { store: Arc::new(object_store::memory::InMemory::new()), folder: None }
    }

    /// Keeps a small body. Writing the same key again replaces it.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), Error> {
        let written = self.store.put(&Key::from(key), body.into()).await;
        written.map(|_| ()).map_err(|source| Error::Store { action: "write", key: key.to_owned(), source })
    }

    /// Gives a body back.
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        let failed = |source| Error::Store { action: "read", key: key.to_owned(), source };
        self.store.get(&Key::from(key)).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    /// How large a body is, if it is there.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.look(key).await?.map(|found| found.bytes))
    }

    /// What is known of a body without reading it, if it is there.
    pub async fn look(&self, key: &str) -> Result<Option<Found>, Error> {
        match self.store.head(&Key::from(key)).await {
            Ok(meta) => Ok(Some(found(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(Error::Store { action: "find", key: key.to_owned(), source }),
        }
    }

    /// Gives a body back in pieces. The last piece comes only if the whole has the named digest (`sha256:…`); otherwise
    /// [`Error::Digest`] comes in its place.
    pub async fn verified(
        &self,
        key: &str,
        digest: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let failed = {
            let key = key.to_owned();
            move |source| Error::Store { action: "read", key: key.clone(), source }
        };
        let content = self.store.get(&Key::from(key)).await.map_err(&failed)?.into_stream();
        let reading =
            Reading { content, hash: Sha256::new(), held: None, wanted: digest.to_owned(), ended: false };
        let pieces = futures::stream::unfold((reading, failed), |(mut reading, failed)| async move {
            let piece = reading.next(&failed).await?;
            Some((piece, (reading, failed)))
        });
        Ok(pieces.boxed())
    }

    /// Gives a part of a body back in pieces, as it is stored.
    pub(crate) async fn part(
        &self,
        key: &str,
        part: std::ops::Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let failed = {
            let key = key.to_owned();
            move |source| Error::Store { action: "read", key: key.clone(), source }
        };
        let options = object_store::GetOptions { range: Some(part.into()), ..Default::default() };
        let found = self.store.get_opts(&Key::from(key), options).await.map_err(&failed)?;
        Ok(found.into_stream().map(move |piece| piece.map_err(&failed)).boxed())
    }

    /// Takes a damaged body out of the way and keeps it to be looked at, until it is swept as one that nobody names.
    /// One that is not there is fine.
    pub async fn set_aside(&self, key: &str) -> Result<(), Error> {
        let name = key.rsplit('/').next().unwrap_or(key);
        let moved = self.store.rename(&Key::from(key), &Key::from(format!("damaged/{name}"))).await;
        match moved {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Store { action: "move", key: key.to_owned(), source }),
        }
    }

    /// Fails when bodies cannot be written. A folder whose disk is full, or that is gone, is found so.
    pub async fn ping(&self) -> Result<(), Error> {
        self.put("ping", Bytes::from_static(b"ping")).await
    }

    /// All bodies, in no order.
    pub fn list(&self) -> BoxStream<'static, Result<Found, Error>> {
        let failed = |source| Error::Store { action: "list", key: String::new(), source };
        self.store.list(None).map(move |meta| meta.map(|meta| found(&meta)).map_err(failed)).boxed()
    }

    /// Removes what uploads have left behind that were cut short before `before`; yields how many. Only a folder keeps
    /// such parts where [`Bodies::list`] does not see them; elsewhere the service removes them by its own rules.
    pub async fn remove_cut_short(&self, before: SystemTime) -> Result<u64, Error> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        let failed = {
            let path = folder.clone();
            move |source: Box<dyn std::error::Error + Send + Sync>| Error::Open { path: path.clone(), source }
        };
        let removed = tokio::task::spawn_blocking(move || remove_parts(&folder, before)).await;
        match removed {
            Ok(removed) => removed.map_err(|error| failed(error.into())),
            Err(panicked) => Err(failed(panicked.into())),
        }
    }

    /// A body's size, and its content in pieces; `None` where there is no such body.
    pub(crate) async fn open(
        &self,
        key: &str,
    ) -> Result<Option<(u64, BoxStream<'static, object_store::Result<Bytes>>)>, Error> {
        match self.store.get(&Key::from(key)).await {
            Ok(found) => Ok(Some((found.meta.size, found.into_stream()))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(Error::Store { action: "read", key: key.to_owned(), source }),
        }
    }

    /// Begins to keep a body that comes in pieces of [`PART`] bytes, but for the last.
    pub(crate) async fn upload(&self, key: &str) -> Result<Upload, Error> {
        let begun = self.store.put_multipart(&Key::from(key)).await;
        let upload = begun.map_err(|source| Error::Store { action: "write", key: key.to_owned(), source })?;
        Ok(Upload { upload, key: key.to_owned() })
    }

    /// Keeps an upload if it has the named digest (`sha256:…`) and at most `limit` bytes; returns its size. Nothing
    /// is kept otherwise.
    pub async fn put_verified<E>(
        &self,
        key: &str,
        digest: &str,
        limit: u64,
        mut content: impl futures::Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<u64, Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let failed = |source| Error::Store { action: "write", key: key.to_owned(), source };
        let mut upload = self.store.put_multipart(&Key::from(key)).await.map_err(failed)?;
        let received = receive(&mut upload, key, limit, &mut content).await;
        let verdict = match received {
            Ok((found, size)) if found == digest => Ok(size),
            Ok((found, _)) => Err(Error::Digest { wanted: digest.to_owned(), found }),
            Err(error) => Err(error),
        };
        match verdict {
            Ok(size) => {
                upload.complete().await.map_err(failed)?;
                Ok(size)
            }
            Err(error) => {
                if let Err(abort) = upload.abort().await {
                    tracing::warn!(key, error = %abort, "a refused upload could not be removed");
                }
                Err(error)
            }
        }
    }

    /// Removes a body; one that is not there is fine.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Store { action: "remove", key: key.to_owned(), source }),
        }
    }
}

/// A body that comes in pieces. It is there once it is complete.
pub(crate) struct Upload {
    upload: Box<dyn MultipartUpload>,
    key: String,
}

impl Upload {
    /// Goes on.
    pub(crate) async fn put(&mut self, piece: Bytes) -> Result<(), Error> {
        let put = self.upload.put_part(piece.into()).await;
        put.map_err(|source| Error::Store { action: "write", key: self.key.clone(), source })
    }

    /// Ends it.
    pub(crate) async fn complete(mut self) -> Result<(), Error> {
        let done = self.upload.complete().await;
        done.map(drop).map_err(|source| Error::Store { action: "write", key: self.key, source })
    }
}

/// A body that is being read, with its hash so far.
struct Reading {
    content: BoxStream<'static, object_store::Result<Bytes>>,
    hash: Sha256,
    /// The piece that is handed on once another has come, or the hash is known to be right.
    held: Option<Bytes>,
    wanted: String,
    ended: bool,
}

impl Reading {
    async fn next(&mut self, failed: &impl Fn(object_store::Error) -> Error) -> Option<Result<Bytes, Error>> {
        while !self.ended {
            match self.content.next().await {
                Some(Ok(piece)) => {
                    self.hash.update(&piece);
                    if let Some(before) = self.held.replace(piece) {
                        return Some(Ok(before));
                    }
                }
                Some(Err(source)) => {
                    self.ended = true;
                    return Some(Err(failed(source)));
                }
                None => {
                    self.ended = true;
                    let found = format!("sha256:{}", hex::encode(std::mem::take(&mut self.hash).finalize()));
                    return if found == self.wanted {
                        self.held.take().map(Ok)
                    } else {
                        Some(Err(Error::Digest { wanted: self.wanted.clone(), found }))
                    };
                }
            }
        }
        None
    }
}

fn found(meta: &object_store::ObjectMeta) -> Found {
    let at = SystemTime::from(meta.last_modified);
    Found {
        key: meta.location.to_string(),
        // A file from beyond all time is a new one: it is not swept.
        written_at: Timestamp::try_from(at).unwrap_or(Timestamp::MAX),
        bytes: meta.size,
    }
}

/// Removes files that are parts of uploads: the library calls them like the body, with `#` and a number behind.
fn remove_parts(folder: &Path, before: SystemTime) -> std::io::Result<u64> {
    let mut removed = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_part = name
                .to_string_lossy()
                .rsplit_once('#')
                .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if is_part && kind.is_file() && entry.metadata()?.modified()? < before {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Sends the content to the upload in parts and returns its digest and size.
async fn receive<E>(
    upload: &mut Box<dyn MultipartUpload>,
    key: &str,
    limit: u64,
    content: &mut (impl futures::Stream<Item = Result<Bytes, E>> + Unpin),
) -> Result<(String, u64), Error>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |source| Error::Store { action: "write", key: key.to_owned(), source };
    let mut hash = Sha256::new();
    let mut size = 0u64;
    let mut part = Vec::new();
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(|error| Error::Upload { key: key.to_owned(), source: error.into() })?;
        size += piece.len() as u64;
        if size > limit {
            return Err(Error::TooLarge { limit });
        }
        hash.update(&piece);
        part.extend_from_slice(&piece);
        if part.len() >= PART {
            upload.put_part(std::mem::take(&mut part).into()).await.map_err(failed)?;
        }
    }
    if !part.is_empty() || size == 0 {
        upload.put_part(part.into()).await.map_err(failed)?;
    }
    Ok((format!("sha256:{}", hex::encode(hash.finalize())), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
        futures::stream::iter([Ok(Bytes::from(text.to_owned()))])
    }

    #[tokio::test]
    async fn an_upload_is_kept_only_with_its_digest_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let bodies = Bodies::folder(folder.path()).unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(b"hello")));
        assert_eq!(bodies.put_verified("inputs/a", &digest, 5, pieces("hello")).await.unwrap(), 5);
        assert_eq!(bodies.get("inputs/a").await.unwrap(), "hello");
        let wrong = bodies.put_verified("inputs/b", &digest, 9, pieces("other")).await.unwrap_err();
        assert!(matches!(wrong, Error::Digest { .. }));
        let large = bodies.put_verified("inputs/c", &digest, 4, pieces("hello")).await.unwrap_err();
        assert!(matches!(large, Error::TooLarge { limit: 4 }));
        assert!(bodies.get("inputs/b").await.is_err());
        bodies.remove("inputs/a").await.unwrap();
        bodies.remove("inputs/a").await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_body_never_comes_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let bodies = Bodies::folder(folder.path()).unwrap();
        // Larger than the pieces in which a file is read.
        let content = "0123456789abcdef".repeat(4096);
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(content.as_bytes())));
        let size = bodies.put_verified("inputs/a.1", &digest, 1 << 20, pieces(&content)).await.unwrap();
        assert_eq!(bodies.size("inputs/a.1").await.unwrap(), Some(size));
        let read = async || {
            let pieces = bodies.verified("inputs/a.1", &digest).await.unwrap();
            pieces.collect::<Vec<_>>().await
        };
        let whole: Vec<Bytes> = read().await.into_iter().map(Result::unwrap).collect();
        assert_eq!(whole.concat(), content.as_bytes());
        let file = folder.path().join("inputs/a.1");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (last, before) =
            read().await.into_iter().rev().fold((None, 0), |(last, length), piece| match piece {
                Ok(piece) => (last, length + piece.len()),
                Err(error) => (Some(error), length),
            });
        assert!(matches!(last, Some(Error::Digest { .. })), "{last:?}");
        assert!(before < content.len(), "the end was held back");
        bodies.set_aside("inputs/a.1").await.unwrap();
        assert_eq!(bodies.size("inputs/a.1").await.unwrap(), None);
        assert_eq!(bodies.size("damaged/a.1").await.unwrap(), Some(size));
        bodies.set_aside("inputs/a.1").await.unwrap();
    }

    #[tokio::test]
    async fn parts_of_uploads_that_were_cut_short_are_removed_once_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let bodies = Bodies::folder(folder.path()).unwrap();
        bodies.put("inputs/ab/whole", "x".into()).await.unwrap();
        let part = folder.path().join("inputs/ab/half#1");
        std::fs::write(&part, "x").unwrap();
        let written = std::fs::metadata(&part).unwrap().modified().unwrap();
        let second = std::time::Duration::from_secs(1);
        assert_eq!(bodies.remove_cut_short(written - second).await.unwrap(), 0);
        assert_eq!(bodies.remove_cut_short(written + second).await.unwrap(), 1);
        assert!(!part.exists());
        assert_eq!(bodies.get("inputs/ab/whole").await.unwrap(), "x");
        assert_eq!(Bodies::memory().remove_cut_short(written).await.unwrap(), 0);
    }
}
