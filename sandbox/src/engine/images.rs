//! Images on the node: whether one is there, and fetching it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::Engine;
use crate::error::{Error, ImageProblem};

/// The registry of images that were made on the node itself: nothing is ever fetched from it.
pub const LOCAL: &str = "localhost";

/// An image by its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Registry and repository: `docker.io/library/debian`.
    pub name: String,
    /// The tag; not used where there is a digest.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.name.split_once('/').map_or(&*self.name, |(registry, _)| registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.digest, &self.tag) {
            // Engines refuse both together.
            (Some(digest), _) => write!(f, "{}@{digest}", self.name),
            (None, Some(tag)) => write!(f, "{}:{tag}", self.name),
            (None, None) => f.write_str(&self.name),
        }
    }
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pull {
    /// If it is not there.
    #[default]
    IfMissing,
    /// Every time.
    Always,
    /// Never.
    Never,
}

/// An image that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Which.
    pub reference: Reference,
    /// When it is fetched.
    pub pull: Pull,
    /// Where the credentials for registries are, as containers-auth.json(5) has them.
    pub auth_file: Option<PathBuf>,
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Its names with digest, `name@sha256:…`.
    pub digests: Vec<String>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory that it names; `None` for the root.
    pub working_dir: Option<String>,
}

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Sees to it that an image is there, and that it is the one that its digest names.
pub(super) async fn ensure(
    engine: &dyn Engine,
    request: &ImageRequest,
    progress: &mut (dyn FnMut(String) + Send),
) -> Result<Image, Error> {
    let reference = &request.reference;
    let trouble =
        |problem, message: String| Error::Image { reference: reference.to_string(), problem, message };
    let name = reference.to_string();
    let present = engine.image(&name).await?;
    let local = reference.registry() == LOCAL;
    let image = match (request.pull, present) {
        (Pull::IfMissing | Pull::Never, Some(image)) => image,
        (Pull::Always, Some(image)) if local => image,
        (Pull::Never, None) => {
            let message =
                "is not on the node, whose policy forbids to fetch images (sandbox.images.pull: Never)";
            return Err(trouble(ImageProblem::NotFound, message.to_owned()));
        }
        (_, None) if local => {
            let message = "is not on the node; images of `localhost` are made there and never fetched";
            return Err(trouble(ImageProblem::NotFound, message.to_owned()));
        }
        (Pull::IfMissing | Pull::Always, _) => {
            let credentials = match &request.auth_file {
                Some(path) => credentials(path, reference).map_err(|message| {
                    trouble(ImageProblem::Credentials, format!("{}: {message}", path.display()))
                })?,
                None => None,
            };
            engine.pull(reference, credentials.as_ref(), progress).await.map_err(|error| match error {
                Error::Engine { message, .. } => trouble(
                    problem_of(&message),
                    advice(problem_of(&message), credentials.is_some(), &message),
                ),
                error => error,
            })?;
            let fetched = engine.image(&name).await?;
            fetched
                .ok_or_else(|| trouble(ImageProblem::NotFound, "was fetched and is gone again".to_owned()))?
        }
    };
    if let Some(digest) = &reference.digest
        && !image.digests.iter().any(|known| known.ends_with(&format!("@{digest}")))
    {
        let known = image.digests.join(", ");
        return Err(trouble(ImageProblem::Digest, format!("the image on the node is another one: {known}")));
    }
    Ok(image)
}

/// What kind of trouble an engine speaks of. Their sentences are all that there is to go by.
fn problem_of(message: &str) -> ImageProblem {
    let message = message.to_ascii_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if any(&[
        "verification failed",
        "did not match",
        "does not match",
        "digest mismatch",
        "mismatched digest",
    ]) {
        ImageProblem::Digest
    } else if any(&["manifest unknown", "name unknown", "not found", "does not exist", "no such image"]) {
        ImageProblem::NotFound
    } else if any(&[
        "unauthorized",
        "authentication required",
        "access denied",
        "denied:",
        "no basic auth",
        "forbidden",
    ]) {
        ImageProblem::Unauthorized
    } else if any(&["invalid reference"]) {
        ImageProblem::Invalid
    } else {
        ImageProblem::Unavailable
    }
}

/// What the engine says, and what to do about it.
fn advice(problem: ImageProblem, with_credentials: bool, said: &str) -> String {
    let advice = match problem {
        ImageProblem::Unauthorized if with_credentials => {
            "the registry refuses the credentials in the node's sandbox.images.authFile; correct them"
        }
        ImageProblem::Unauthorized => {
            "the registry wants credentials; name a file with them in the node's sandbox.images.authFile"
        }
        ImageProblem::NotFound => "the registry has no such image; check its name and tag",
        ImageProblem::Digest => "what the registry sends is not what the digest names",
        ImageProblem::Unavailable => "the registry cannot be used now",
        ImageProblem::Invalid | ImageProblem::Credentials | ImageProblem::Unusable => {
            "the name is not accepted"
        }
    };
    format!("{advice} ({})", said.trim())
}

/// The file of containers-auth.json(5), as far as it is read.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
}

/// The credentials for an image: those of the longest name that it lies below. `None` where there are none. The error is
/// for people, and holds nothing of the file.
fn credentials(path: &Path, reference: &Reference) -> Result<Option<Credentials>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let file: AuthFile =
        serde_json::from_slice(&text).map_err(|_| "is no JSON of the form {\"auths\": {…}}".to_owned())?;
    let holds = |name: &str| {
        let rest = reference.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let Some((name, auth)) =
        file.auths.iter().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len())
    else {
        return Ok(None);
    };
    let decoded = auth.auth.as_deref().and_then(|auth| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Credentials { user: user.to_owned(), password: password.to_owned() })
    });
    let wrong = || format!("`auth` of {name} must be `user:password` in base64");
    decoded.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Reference {
        Reference { name: name.to_owned(), tag: Some("1".to_owned()), digest: None }
    }

    #[test]
    fn the_words_of_the_engines_become_kinds_of_trouble() {
        for (message, expected) in [
            ("manifest for x:1 not found: manifest unknown: manifest unknown", ImageProblem::NotFound),
            (
                "initializing source docker://x: reading manifest 1 in x: manifest unknown",
                ImageProblem::NotFound,
            ),
            (
                "Get \"http://x/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                ImageProblem::Unavailable,
            ),
            ("pinging container registry x: Get \"http://x/v2/\": i/o timeout", ImageProblem::Unavailable),
            ("unauthorized: authentication required", ImageProblem::Unauthorized),
            ("reading manifest: unauthorized: access to the resource is denied", ImageProblem::Unauthorized),
            ("manifest verification failed for digest sha256:1", ImageProblem::Digest),
            ("Manifest does not match provided manifest digest sha256:1", ImageProblem::Digest),
        ] {
            assert_eq!(problem_of(message), expected, "{message}");
        }
    }

    #[test]
    fn the_nearest_credentials_are_taken_and_wrong_ones_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"auths": {"r.example": {"auth": "YTpi"}, "r.example/team": {"auth": "YzpkOmU="}, "s.example": {"auth": "c2VjcmV0"}}}"#;
        std::fs::write(file.path(), text).unwrap();
        let found = |name: &str| credentials(file.path(), &reference(name));
        let user = |name: &str| found(name).unwrap().map(|found| (found.user, found.password));
        assert_eq!(user("r.example/x"), Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(user("r.example/team/x"), Some(("c".to_owned(), "d:e".to_owned())));
        assert_eq!(user("r.example/teams/x"), Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(user("other.example/x"), None);
        let error = found("s.example/x").unwrap_err();
        assert!(error.contains("s.example") && !error.contains("secret"), "{error}");
        assert!(
            credentials(Path::new("/nonexistent"), &reference("x/y")).unwrap_err().contains("cannot be read")
        );
        let shown = format!("{:?}", Credentials { user: "a".to_owned(), password: "b-word".to_owned() });
        assert!(!shown.contains("b-word"), "{shown}");
    }
}
