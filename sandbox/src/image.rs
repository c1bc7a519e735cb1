//! Images as the system of native units: from an archive or a layout of the host, unpacked once into a cache, without any
//! engine.
//!
//! ```text
//!  archive, layout ─► blobs ─► manifest ─► layers ─► .unpack-<n>/root ─► <id>/root     (renamed when it is whole)
//!                                                         record.json ─┘ └► SystemRoot of a unit
//! ```
//!
//! *Guarantees*: what is unpacked is what its digests say. Nothing of an archive is ever a path of the host: names are resolved
//! below the new root by the kernel. Owners, set-id bits, devices and extended attributes are left out; every file can be read,
//! and executed where anybody could execute it, for all of an image belongs to the job that names it.

mod blobs;
mod cache;
mod layer;
mod manifest;
mod packed;
mod places;
mod room;
mod users;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use cache::{Held, Images};
use serde::{Deserialize, Serialize};
pub use users::Account;
pub(crate) use users::JOB;

use crate::error::{Error, ImageProblem};

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// What `docker save` and `podman save` write.
    DockerArchive,
    /// An archive of an OCI layout.
    OciArchive,
    /// A folder with an OCI layout.
    OciLayout,
    /// A folder that holds a system.
    RootFolder,
}

impl Source {
    /// The word in front of the path.
    const fn word(self) -> &'static str {
        match self {
            Self::DockerArchive => "docker-archive",
            Self::OciArchive => "oci-archive",
            Self::OciLayout => "oci",
            Self::RootFolder => "rootfs",
        }
    }
}

/// An image of the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalImage {
    /// What is at the path.
    pub source: Source,
    /// Where it is, without links: the caller has resolved it and checked it against the node's policy.
    pub path: PathBuf,
    /// Which one, where there are several.
    pub name: Option<String>,
    /// `sha256:…` of its manifest, index or configuration.
    pub digest: Option<String>,
}

impl fmt::Display for LocalImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.word(), self.path.display())?;
        if let Some(name) = &self.name {
            write!(f, ":{name}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// What an image says of its program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The further arguments where nobody gives others.
    pub command: Vec<String>,
    /// The environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory; `None` for the root.
    pub working_dir: Option<String>,
    /// The user, as the image writes it.
    pub user: String,
}

/// The working directory that an image names, as an absolute path, which it need not be; `None` for the root.
pub(crate) fn working_dir(named: Option<&str>) -> Option<String> {
    let mut parts = Vec::new();
    for part in named?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
}

/// An image that can be a unit's system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemImage {
    /// `sha256:…` of its configuration, which names all of its layers; empty for a root folder, which has none.
    pub id: String,
    /// The folder that holds the system.
    pub dir: PathBuf,
    /// What it says of its program.
    pub config: ImageConfig,
    /// Its accounts, with the job's among them.
    pub account: Account,
    /// What of its root programs may be executed from.
    pub programs: Vec<String>,
}

/// How much an image may hold once unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all files of all layers together.
    pub bytes: u64,
    /// Bytes of all images that are kept, beyond those in use.
    pub kept: u64,
    /// Bytes of the disk that are left free: idle images go for that too, before unpacking fails.
    pub leave_free: u64,
}

impl Default for ImageLimits {
    /// A million entries, 16 GiB, and as much that is kept: images for machine learning fit, a bomb does not. As much free as an
    /// agent wants to take on work.
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 16 << 30, kept: 16 << 30, leave_free: 256 << 20 }
    }
}

impl SystemImage {
    /// Whether it has a folder at an absolute path that the sandbox can lay something over.
    pub(crate) fn has_folder(&self, path: &str) -> bool {
        layer::open_dir(&self.dir).is_ok_and(|root| places::is_folder(&root, path.trim_start_matches('/')))
    }
}

/// What is wrong with an image, before anybody has said which one. Told to all who wait for it.
#[derive(Debug, Clone)]
enum Trouble {
    /// With the image.
    Image(ImageProblem, String),
    /// With the host.
    Host(Arc<Error>),
    /// Nobody waits for it any more.
    Stopped,
}

impl Trouble {
    fn unusable(message: impl Into<String>) -> Self {
        Self::Image(ImageProblem::Unusable, message.into())
    }

    /// The error of an image.
    fn of(self, image: &LocalImage) -> Error {
        match self {
            Self::Image(problem, message) => Error::Image { reference: image.to_string(), problem, message },
            Self::Host(error) => Arc::try_unwrap(error).unwrap_or_else(|shared| Error::Io {
                operation: "unpack",
                path: image.path.clone(),
                source: std::io::Error::other(shared),
            }),
            Self::Stopped => Error::Image {
                reference: image.to_string(),
                problem: ImageProblem::Unavailable,
                message: "was not unpacked, for nobody waits for it any more".to_owned(),
            },
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Host(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_of_an_image_begins_at_its_root() {
        for (named, expected) in [
            (None, None),
            (Some(""), None),
            (Some("//"), None),
            (Some("."), None),
            (Some("../.."), None),
            (Some("srv/app"), Some("/srv/app")),
            (Some("/srv//app/./"), Some("/srv/app")),
            (Some("/srv/../../app"), Some("/app")),
        ] {
            assert_eq!(working_dir(named).as_deref(), expected, "{named:?}");
        }
    }
}
