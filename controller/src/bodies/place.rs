//! Where bodies are kept, as it is said on the command line.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

use super::Error;

/// Where bodies are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder.
    Folder(PathBuf),
    /// A bucket of S3, or of what speaks its language. Where it is served and who may enter stands in the environment.
    Bucket {
        /// Its name.
        name: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
}

/// Why a place was refused.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It is no URL, or one of another kind.
    #[error("write file:///FOLDER or s3://BUCKET[/PREFIX]")]
    Form,
    /// It carries what belongs into the environment.
    #[error(
        "leave user, port and query away: keys and endpoint stand in the environment as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT"
    )]
    Extra,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let url = Url::parse(text).map_err(|_| PlaceError::Form)?;
        if url.query().is_some()
            || url.fragment().is_some()
            || url.port().is_some()
            || !url.username().is_empty()
        {
            return Err(PlaceError::Extra);
        }
        match (url.scheme(), url.host_str()) {
            ("file", None) => match url.to_file_path() {
                Ok(path) if path.parent().is_some() => Ok(Self::Folder(path)),
                Ok(_) | Err(()) => Err(PlaceError::Form),
            },
            ("s3", Some(name)) => {
                Ok(Self::Bucket { name: name.to_owned(), prefix: url.path().trim_matches('/').to_owned() })
            }
            _ => Err(PlaceError::Form),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket { name, prefix } if prefix.is_empty() => write!(f, "s3://{name}"),
            Self::Bucket { name, prefix } => write!(f, "s3://{name}/{prefix}"),
        }
    }
}

/// How long a request to a bucket is tried again: half of what a request to the controller may take.
const PATIENCE: Duration = Duration::from_secs(15);

impl Place {
    /// Makes the folder and those that it is in, where they are missing. Buckets are made by their owners.
    pub(crate) fn ensure(&self) -> Result<(), Error> {
        let Self::Folder(path) = self else { return Ok(()) };
        let failed = |source: std::io::Error| Error::Open { path: path.clone(), source: Box::new(source) };
        let parent = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        crate::state::ensure_private_folder(path).map_err(failed)
    }
}

/// The client of a bucket; nothing is asked yet.
pub(super) fn bucket(name: &str, prefix: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    // The client takes the provider of the process. It may be set already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let retry = RetryConfig { max_retries: 3, retry_timeout: PATIENCE, ..RetryConfig::default() };
    let store = AmazonS3Builder::from_env().with_bucket_name(name).with_retry(retry).build()?;
    Ok(match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown_as_they_are_written() {
        let bucket = |name: &str, prefix: &str| Place::Bucket { name: name.into(), prefix: prefix.into() };
        for (text, place) in [
            ("file:///srv/bodies", Place::Folder("/srv/bodies".into())),
            ("s3://fleet", bucket("fleet", "")),
            ("s3://fleet/windlass/bodies", bucket("fleet", "windlass/bodies")),
        ] {
            assert_eq!(text.parse::<Place>().unwrap(), place);
            assert_eq!(place.to_string(), text);
        }
        assert_eq!("s3://fleet/a/".parse::<Place>().unwrap(), bucket("fleet", "a"));
    }

    #[test]
    fn other_places_are_refused_with_what_to_write() {
        for text in [
            "",
            "bodies",
            "/srv/bodies",
            "file://host/srv",
            "file:///",
            "s3:bucket",
            "gs://bucket",
            "https://b",
        ] {
            let refused = text.parse::<Place>().unwrap_err().to_string();
            assert!(refused.contains("write file:///FOLDER or s3://BUCKET"), "{text}: {refused}");
        }
        for text in ["s3://key:secret@bucket", "s3://bucket?region=x", "s3://bucket:9000/a"] {
            let refused = text.parse::<Place>().unwrap_err().to_string();
            assert!(refused.contains("AWS_ENDPOINT") && !refused.contains("secret@"), "{text}: {refused}");
        }
    }
}
