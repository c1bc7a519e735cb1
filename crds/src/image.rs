//! Names of container images: short ones written out, as every part of Windlass means them.

use std::fmt;
use std::str::FromStr;

/// The registry of a name without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry keeps the images without a folder.
const DEFAULT_FOLDER: &str = "library";
/// The tag of a name without tag and digest.
const DEFAULT_TAG: &str = "latest";
/// Longest tag.
const MAX_TAG: usize = 128;

/// What a node allows that says nothing of images: Docker's registry, and what was made on the node itself.
pub const ALLOWED_BY_DEFAULT: [&str; 2] = [DEFAULT_REGISTRY, "localhost"];

/// The full name of an image: `docker.io/library/debian:12`, or with a digest in place of the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// Registry and repository.
    pub name: String,
    /// The tag; `latest` where neither tag nor digest is given.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

/// Why a text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// Nothing is named.
    #[error("names no image; write it as `registry/name:tag` or `name@sha256:…`")]
    Empty,
    /// A part is empty or has other characters than names have.
    #[error("has the part {part:?}; parts are made of lower-case letters, digits, `.`, `_` and `-`")]
    Part {
        /// The part.
        part: String,
    },
    /// The registry is no host.
    #[error("has the registry {registry:?}; write `host` or `host:port`")]
    Registry {
        /// The registry.
        registry: String,
    },
    /// The tag is none.
    #[error(
        "has the tag {tag:?}; a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and does not begin with `.` or `-`"
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The digest is none.
    #[error("has the digest {digest:?}; write `sha256:` and 64 lower-case hexadecimal digits")]
    Digest {
        /// The digest.
        digest: String,
    },
}

impl ImageName {
    /// Whether this image is one of, or lies below, the names of a policy: a registry, a folder of one, or an image.
    pub fn is_within<'a>(&self, mut allowed: impl Iterator<Item = &'a str>) -> bool {
        allowed.any(|allowed| {
            let rest = self.name.strip_prefix(allowed.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// Checks an entry of a policy: a registry, a folder of one, or an image, without tag and digest.
///
/// # Errors
/// [`BadImage`].
pub fn check_allowed(entry: &str) -> Result<(), BadImage> {
    let (registry, path) = match entry.split_once('/') {
        Some((registry, path)) => (registry, Some(path)),
        None => (entry, None),
    };
    check_registry(registry)?;
    path.map_or(Ok(()), check_path)
}

impl FromStr for ImageName {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, BadImage> {
        if text.is_empty() {
            return Err(BadImage::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(BadImage::Digest { digest: digest.to_owned() });
            }
        }
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let of_tag = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            if tag.is_empty()
                || tag.len() > MAX_TAG
                || tag.starts_with(['.', '-'])
                || !tag.bytes().all(of_tag)
            {
                return Err(BadImage::Tag { tag: tag.to_owned() });
            }
        }
        // The first part is a registry if it cannot be anything else.
        let is_registry = |first: &str| first == "localhost" || first.contains(['.', ':']);
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
            None => (DEFAULT_REGISTRY, format!("{DEFAULT_FOLDER}/{name}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        check_registry(registry)?;
        check_path(&path)?;
        let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{DEFAULT_FOLDER}/{path}")
        } else {
            path
        };
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { name: format!("{registry}/{path}"), tag, digest: digest.map(str::to_owned) })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn check_registry(registry: &str) -> Result<(), BadImage> {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let of_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    let good_port = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if host.is_empty() || !host.bytes().all(of_host) || host.split('.').any(str::is_empty) || !good_port {
        return Err(BadImage::Registry { registry: registry.to_owned() });
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), BadImage> {
    let of_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let bad = |part: &&str| {
        part.is_empty()
            || !part.bytes().all(of_part)
            || part.starts_with(['.', '_', '-'])
            || part.ends_with(['.', '_', '-'])
    };
    match path.split('/').find(bad) {
        Some(part) => Err(BadImage::Part { part: part.to_owned() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_written_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("localhost/app:1", "localhost/app:1".to_owned()),
            ("registry.example/a/b/c:v1.2_x", "registry.example/a/b/c:v1.2_x".to_owned()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            (&format!("debian@{digest}"), format!("docker.io/library/debian@{digest}")),
            (&format!("debian:12@{digest}"), format!("docker.io/library/debian:12@{digest}")),
        ] {
            assert_eq!(text.parse::<ImageName>().map(|name| name.to_string()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_part_that_is_wrong() {
        let wrong = |text: &str| text.parse::<ImageName>().unwrap_err().to_string();
        for (text, expected) in [
            ("", "names no image"),
            ("a b", "a b"),
            ("Debian", "Debian"),
            ("debian:", "tag \"\""),
            ("debian:-1", "tag \"-1\""),
            ("debian@sha256:12", "digest \"sha256:12\""),
            ("debian@md5:12", "digest"),
            ("a//b", "part \"\""),
            ("../etc/passwd", "registry \"..\""),
            ("registry.example:port/a", "registry \"registry.example:port\""),
            ("registry.example:0/a", "registry"),
            ("-x/a", "part \"-x\""),
        ] {
            assert!(wrong(text).contains(expected), "{text}: {}", wrong(text));
        }
    }

    #[test]
    fn an_image_is_within_a_registry_a_folder_or_its_own_name() {
        let image: ImageName = "registry.example/team/app:1".parse().unwrap();
        let within = |allowed: &[&str]| image.is_within(allowed.iter().copied());
        assert!(
            within(&["registry.example"])
                && within(&["registry.example/team"])
                && within(&["registry.example/team/app"])
        );
        assert!(
            !within(&["registry.example/tea"])
                && !within(&["registry"])
                && !within(&[])
                && !within(&["docker.io"])
        );
        assert!(!within(&ALLOWED_BY_DEFAULT));
        check_allowed("registry.example/team").unwrap();
        check_allowed("127.0.0.1:5000").unwrap();
        for wrong in [
            "",
            "registry.example/",
            "registry.example/team:1",
            "REGISTRY.example",
            "https://registry.example",
            "registry.example/*",
        ] {
            assert!(check_allowed(wrong).is_err(), "{wrong}");
        }
    }
}
