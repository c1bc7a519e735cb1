//! Who calls: the controller, by the token that it has put into the configuration, or somebody else, by the one in a file.

use std::path::Path;

use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use windlass_crds::protocol::WorkerApiSettings;

use super::is_over;
use super::problem::{Code, Refusal};

/// How long a token in a file may be: long enough that nobody guesses it.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// This node's controller.
    Controller,
    /// Anybody who has the token of the file.
    Other,
}

/// Finds out who calls.
///
/// # Errors
/// `401` for a token that is missing, wrong or has expired.
pub(super) async fn identify(
    headers: &HeaderMap,
    settings: &WorkerApiSettings,
    now: Timestamp,
) -> Result<Caller, Refusal> {
    let refused = |detail: &str| Refusal::new(Code::Unauthenticated, detail);
    let given = bearer(headers).ok_or_else(|| {
        refused("send `Authorization: Bearer TOKEN` with a token of this node's Worker API")
    })?;
    if let Some(token) = &settings.orchestrator_bearer_token
        && same(token, given)
    {
        if is_over(settings.orchestrator_bearer_token_expires_at, now) {
            return Err(refused(
                "the token has expired; the controller issues another one with the node's next configuration",
            ));
        }
        return Ok(Caller::Controller);
    }
    if let Some(path) = &settings.token_file {
        match read_token(Path::new(path)).await {
            Ok(token) if same(&token, given) => return Ok(Caller::Other),
            Ok(_) => {}
            Err(problem) => {
                tracing::warn!(path, error = problem, "the Worker API's token file cannot be used");
            }
        }
    }
    Err(refused("the token is not one of this node's Worker API"))
}

/// The token in a file.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence.
pub(super) async fn read_token(path: &Path) -> Result<String, String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = tokio::fs::metadata(path).await.map_err(|error| format!("cannot be read ({error})"))?;
    if found.mode() & 0o007 != 0 {
        return Err(format!("can be used by every user (mode {:o})", found.mode() & 0o777));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| format!("cannot be read ({error})"))?;
    let token = text.trim_end_matches(['\r', '\n']);
    if !LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds no token".to_owned());
    }
    Ok(token.to_owned())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in the same time whatever the two are: their hashes have one length and tell nothing of where they differ.
fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a).ct_eq(&Sha256::digest(b)).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn settings(token: Option<&str>, file: Option<&Path>) -> WorkerApiSettings {
        WorkerApiSettings {
            listen: "127.0.0.1:0".to_owned(),
            orchestrator_bearer_token: token.map(str::to_owned),
            orchestrator_bearer_token_expires_at: Some(Timestamp::from_second(100).unwrap()),
            token_file: file.map(|file| file.display().to_string()),
        }
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[tokio::test]
    async fn the_controllers_token_works_until_it_expires_and_no_other_does() {
        let settings = settings(Some("secret"), None);
        let at = |second| Timestamp::from_second(second).unwrap();
        for value in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            let caller = identify(&headers(value), &settings, at(99)).await;
            assert_eq!(caller.unwrap(), Caller::Controller, "{value}");
        }
        let expired = identify(&headers("Bearer secret"), &settings, at(100)).await.unwrap_err();
        assert!(expired.detail.contains("expired"), "{expired}");
        for value in ["Bearer secret2", "Bearer ", "Basic secret", "secret", "Bearer secre"] {
            let refused = identify(&headers(value), &settings, at(99)).await.unwrap_err();
            assert_eq!(refused.code, Code::Unauthenticated, "{value}");
        }
        assert!(identify(&HeaderMap::new(), &settings, at(99)).await.is_err());
    }

    #[tokio::test]
    async fn another_callers_token_is_what_the_file_holds_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let settings = settings(None, Some(&file));
        let (old, new) = ("a".repeat(32), "b".repeat(32));
        let asks = async |token: &str| {
            identify(&headers(&format!("Bearer {token}")), &settings, Timestamp::UNIX_EPOCH).await
        };
        assert!(asks(&old).await.is_err(), "there is no file");
        std::fs::write(&file, format!("{old}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(asks(&old).await.unwrap(), Caller::Other);
        std::fs::write(&file, &new).unwrap();
        assert!(asks(&old).await.is_err());
        assert_eq!(asks(&new).await.unwrap(), Caller::Other);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_token(&file).await.unwrap_err().contains("every user"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, "short").unwrap();
        assert_eq!(read_token(&file).await.unwrap_err(), "holds no token");
    }
}
