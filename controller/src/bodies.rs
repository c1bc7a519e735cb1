//! Bodies that are too large for a row: log chunks and uploaded inputs.
//!
//! Rows hold keys of objects here. An object is written before the row that names it and removed after, so a crash
//! leaves at worst an object that nobody names, which the pruner removes.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _};
use sha2::{Digest, Sha256};

/// Why a body could not be kept or given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be used.
    #[error("could not open the folder for bodies at {}", path.display())]
    Open {
        /// The folder.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object store failed.
    #[error("could not {action} the body `{key}`")]
    Store {
        /// `write`, `read` or `remove`.
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

/// A handle to the bodies; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bodies {
    store: Arc<dyn ObjectStore>,
}

/// Parts of an upload; the object store asks for at least 5 MiB a part where it is S3.
pub(crate) const PART: usize = 8 * 1024 * 1024;

impl Bodies {
    /// Bodies in a folder, made when missing and closed to everybody but its owner.
    pub fn folder(path: &Path) -> Result<Self, Error> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Open { path: path.to_owned(), source };
        crate::state::ensure_private_folder(path).map_err(|error| failed(error.into()))?;
        let store = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|error| failed(error.into()))?
            .with_automatic_cleanup(true)
            .with_fsync(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// Bodies in a folder that is made for a restore, which flushes all of it at once.
    pub(crate) fn staging(path: &Path) -> Result<Self, Error> {
        let store = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|source| Error::Open { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { store: Arc::new(store) })
    }

    /// Bodies in memory, for tests.
    pub fn memory() -> Self {
        Self { store: Arc::new(object_store::memory::InMemory::new()) }
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

    /// Gives a body back in pieces.
    pub async fn stream(&self, key: &str) -> Result<BoxStream<'static, object_store::Result<Bytes>>, Error> {
        let found = self.store.get(&Key::from(key)).await;
        let found = found.map_err(|source| Error::Store { action: "read", key: key.to_owned(), source })?;
        Ok(found.into_stream())
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
}
