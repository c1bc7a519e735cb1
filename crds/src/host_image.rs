//! Images that lie on a node, as the runtime `native` takes them: `oci-archive:/srv/images/app.tar:app:1@sha256:…`.

use std::fmt;
use std::str::FromStr;

/// Longest path: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;

/// What is at the path of an image.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    strum::IntoStaticStr,
    strum::Display,
    strum::EnumString,
    strum::EnumIter,
)]
pub enum HostImageKind {
    /// What `docker save` and `podman save` write.
    #[strum(serialize = "docker-archive")]
    DockerArchive,
    /// An archive of an OCI layout.
    #[strum(serialize = "oci-archive")]
    OciArchive,
    /// A folder with an OCI layout.
    #[strum(serialize = "oci")]
    OciLayout,
    /// A folder that holds a system.
    #[strum(serialize = "rootfs")]
    RootFolder,
}

/// An image on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostImage {
    /// What is at the path.
    pub kind: HostImageKind,
    /// An absolute path without `..` and `:`.
    pub path: String,
    /// Which image, where there are several.
    pub name: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

/// Why a text names no image on a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHostImage {
    /// It does not begin with what it is.
    #[error(
        "is not on the node; the runtime `native` takes `docker-archive:/path`, `oci-archive:/path`, `oci:/folder` or \
         `rootfs:/folder`"
    )]
    Kind,
    /// The path is none.
    #[error("has the path {path:?}; write an absolute one without `..`, `:` and control characters")]
    Path {
        /// The path.
        path: String,
    },
    /// The name is none.
    #[error("has nothing behind the `:` after its path; write the image's name, or remove the `:`")]
    Name,
    /// The digest is none.
    #[error("has the digest {digest:?}; write `sha256:` and 64 lower-case hexadecimal digits")]
    Digest {
        /// The digest.
        digest: String,
    },
}

impl HostImage {
    /// Whether a text is meant to be one, right or wrong.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.split_once(':')
            .is_some_and(|(kind, rest)| kind.parse::<HostImageKind>().is_ok() && rest.starts_with('/'))
    }
}

/// Whether a text is a digest as images have them.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a text is an absolute path that means the same everywhere: without `..`, and without what has a meaning of its own.
#[must_use]
pub fn is_plain_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= MAX_PATH
        && !text.split('/').any(|part| part == "..")
        && !text.chars().any(|letter| letter.is_control() || letter == ':')
}

impl FromStr for HostImage {
    type Err = BadHostImage;

    fn from_str(text: &str) -> Result<Self, BadHostImage> {
        let (kind, rest) = text.split_once(':').ok_or(BadHostImage::Kind)?;
        let kind: HostImageKind = kind.parse().map_err(|_| BadHostImage::Kind)?;
        // Only what looks like a digest is one: a path may hold an `@`.
        let (rest, digest) = match rest.rsplit_once('@') {
            Some((rest, digest)) if digest.contains(':') => (rest, Some(digest)),
            _ => (rest, None),
        };
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return Err(BadHostImage::Digest { digest: digest.to_owned() });
        }
        let (path, name) = match rest.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (rest, None),
        };
        if !is_plain_path(path) {
            return Err(BadHostImage::Path { path: path.to_owned() });
        }
        if name.is_some_and(|name| name.trim().is_empty()) {
            return Err(BadHostImage::Name);
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { kind, path: path.to_owned(), name: owned(name), digest: owned(digest) })
    }
}

impl fmt::Display for HostImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.path)?;
        if let Some(name) = &self.name {
            write!(f, ":{name}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_node_are_read_and_written_the_same() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for text in [
            "docker-archive:/srv/app.tar".to_owned(),
            "oci-archive:/srv/app.tar:localhost/app:1".to_owned(),
            format!("oci:/srv/layout@{digest}"),
            format!("oci:/srv/lay@out:app@{digest}"),
            "rootfs:/srv/a@b".to_owned(),
        ] {
            assert_eq!(text.parse::<HostImage>().map(|image| image.to_string()), Ok(text.clone()));
            assert!(HostImage::is_meant(&text));
        }
        let image: HostImage = "oci-archive:/srv/app.tar:localhost/app:1".parse().unwrap();
        assert_eq!((image.path.as_str(), image.name.as_deref()), ("/srv/app.tar", Some("localhost/app:1")));
    }

    #[test]
    fn what_is_no_image_of_a_node_is_refused_with_the_part_that_is_wrong() {
        for (text, expected) in [
            ("debian:12", "the runtime `native` takes"),
            ("registry.example/a", "the runtime `native` takes"),
            ("oci:relative", "path \"relative\""),
            ("oci:/a/../etc", "path \"/a/../etc\""),
            ("oci:", "path \"\""),
            ("oci:/a:", "behind the `:`"),
            ("oci:/a@sha256:12", "digest \"sha256:12\""),
            ("dir:/a", "the runtime `native` takes"),
        ] {
            let error = text.parse::<HostImage>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(!HostImage::is_meant("oci:12") && !HostImage::is_meant("debian:12"));
    }
}
