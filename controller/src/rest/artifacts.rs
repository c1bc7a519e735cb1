//! Bodies of artifacts: taken from nodes, and given to whoever may have them.
//!
//! *Guarantees.* A body is taken of the node that has the attempt, and only one that has the size and the digest of the
//! manifest. It is acknowledged when it is in the object store and its row names it; one that comes again is acknowledged
//! and not stored again. What is given away is a download: nothing of it is shown or run by a browser, whatever it is.

use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use windlass_crds::protocol::{
    Artifact, ArtifactKind, ArtifactsLost, AttemptId, LostArtifact, MAX_ARTIFACTS_BYTES,
};
use windlass_store::{ArtifactOutcome, ArtifactRow, NodeRow};

use super::App;
use super::pace::TooSlow;
use crate::bodies;
use crate::error::{ApiError, Code, chain};

/// A body on its way from a node.
pub(super) type Content = BoxStream<'static, Result<Bytes, axum::Error>>;

/// Takes the body of an artifact. Tells whether it is new.
pub(super) async fn take(
    app: &App,
    node: &NodeRow,
    attempt: &AttemptId,
    number: u32,
    content: Content,
) -> Result<bool, ApiError> {
    let found = app.store.artifact_of_node(&node.name, attempt, number).await?;
    let unknown = || ApiError::not_found("artifact of a job on this node", &format!("{attempt}/{number}"));
    let (row, stored) = found.ok_or_else(unknown)?;
    let ArtifactRow { artifact: Artifact { size, sha256, .. }, object_key, .. } = row;
    let sha256 = sha256.ok_or_else(unknown)?;
    if object_key.is_some() {
        // Read to its end, so that the answer is heard.
        pass_over(content, attempt, number, size).await?;
        return Ok(false);
    }
    // Asked before anything is written; what decides is asked again with the row.
    if stored.saturating_add(size) > MAX_ARTIFACTS_BYTES {
        return Err(full(attempt));
    }
    // Each upload has a key of its own, so that of two at the same time neither writes over the other.
    let now = app.clock.now();
    let AttemptId { job, epoch } = attempt;
    let key = format!("artifacts/{job}/{epoch}/{number}.{}", app.ids.uid(now));
    let kept = app.bodies.put_verified(&key, &format!("sha256:{sha256}"), size, content).await;
    kept.map_err(not_kept)?;
    match app.store.store_artifact(app.clock.now(), &node.name, attempt, number, &key).await? {
        ArtifactOutcome::Stored => Ok(true),
        ArtifactOutcome::Known => {
            forget(app, &key).await;
            Ok(false)
        }
        // Others of the attempt have come meanwhile.
        ArtifactOutcome::Full => {
            forget(app, &key).await;
            Err(full(attempt))
        }
        // Its job was deleted while the body came.
        ArtifactOutcome::Gone => {
            forget(app, &key).await;
            Err(unknown())
        }
    }
}

/// Reads a body that nobody needs, and no more than it may have.
async fn pass_over(
    mut content: Content,
    attempt: &AttemptId,
    number: u32,
    size: u64,
) -> Result<(), ApiError> {
    let mut left = size;
    while let Some(piece) = content.try_next().await.map_err(|error| broken_off(&error))? {
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
            let detail = format!("the body of artifact {attempt}/{number} has more than its {size} bytes");
            ApiError::new(Code::TooLarge, detail)
        })?;
    }
    Ok(())
}

fn full(attempt: &AttemptId) -> ApiError {
    let detail = format!("the artifacts of attempt {attempt} have more than {MAX_ARTIFACTS_BYTES} bytes");
    ApiError::new(Code::TooLarge, detail)
}

/// Notes which bodies will never come.
pub(super) async fn lose(app: &App, node: &NodeRow, lost: ArtifactsLost) -> Result<(), ApiError> {
    let ArtifactsLost { version, attempt, lost } = lost;
    crate::dispatch::check_version(version)?;
    let lost: Vec<_> = lost.into_iter().map(|LostArtifact { number, reason }| (number, reason)).collect();
    Ok(app.store.lose_artifacts(&node.name, &attempt, &lost).await?)
}

/// Removes a body that no row names. One that stays is swept later.
async fn forget(app: &App, key: &str) {
    if let Err(error) = app.bodies.remove(key).await {
        tracing::warn!(key, error = %chain(&error), "the body of an artifact that is not needed could not be removed");
    }
}

fn not_kept(error: bodies::Error) -> ApiError {
    match error {
        bodies::Error::Digest { .. } => ApiError::new(Code::DigestMismatch, error.to_string()),
        bodies::Error::TooLarge { .. } => ApiError::new(Code::TooLarge, error.to_string()),
        bodies::Error::Upload { .. } => broken_off(&error),
        bodies::Error::Open { .. } | bodies::Error::Bucket { .. } | bodies::Error::Store { .. } => ApiError {
            source: Some(Box::new(error)),
            ..ApiError::new(Code::Unavailable, "could not store the artifact")
        },
    }
}

fn broken_off(error: &(dyn std::error::Error + 'static)) -> ApiError {
    match TooSlow::find(error) {
        Some(slow) => ApiError::new(Code::Timeout, slow.to_string()),
        None => ApiError::new(Code::BadRequest, chain(error)),
    }
}

/// Gives the body of an artifact as a download: all of it, or the one range that is asked for.
pub(super) async fn give(app: &App, row: &ArtifactRow, headers: &HeaderMap) -> Result<Response, ApiError> {
    let ArtifactRow { artifact, object_key, .. } = row;
    let Artifact { name, kind, size, sha256, .. } = artifact;
    let (Some(key), Some(sha256)) = (object_key, sha256) else { return Err(not_there(row)) };
    let tag = format!("\"{sha256}\"");
    let mut answer = match range(headers, *size, &tag) {
        Ranged::All => {
            // A body that is damaged breaks off before its end.
            let content = app.bodies.verified(key, &format!("sha256:{sha256}")).await;
            let content = content.map_err(|error| gone(row, key, error))?;
            (StatusCode::OK, [(CONTENT_LENGTH, size.to_string())], Body::from_stream(content)).into_response()
        }
        Ranged::Part(part) => {
            let content = app.bodies.part(key, part.clone()).await.map_err(|error| gone(row, key, error))?;
            let shown = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let length = (part.end - part.start).to_string();
            let headers = [(CONTENT_LENGTH, length), (CONTENT_RANGE, shown)];
            (StatusCode::PARTIAL_CONTENT, headers, Body::from_stream(content)).into_response()
        }
        Ranged::Nothing => {
            let shown = [(CONTENT_RANGE, format!("bytes */{size}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, shown).into_response()
        }
    };
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type(name, *kind)));
    headers.insert(CONTENT_DISPOSITION, disposition(name));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    Ok(answer)
}

/// Why there is nothing to give.
fn not_there(row: &ArtifactRow) -> ApiError {
    let ArtifactRow { node, artifact, lost, .. } = row;
    let Artifact { name, refused, .. } = artifact;
    let detail = match (refused, lost) {
        (Some(reason), _) => format!("`{name}` was not collected: {reason}"),
        (None, Some(reason)) => format!("node `{node}` does not have `{name}` any more: {reason}"),
        (None, None) => {
            format!("node `{node}` has not sent `{name}` yet; it does so by itself as soon as it can")
        }
    };
    ApiError::new(Code::NotFound, detail)
}

fn gone(row: &ArtifactRow, key: &str, error: bodies::Error) -> ApiError {
    if error.is_missing() {
        tracing::error!(body.key = key, "the body of an artifact is missing");
        let detail = format!("the stored content of `{}` is missing", row.artifact.name);
        return ApiError::new(Code::NotFound, detail);
    }
    ApiError {
        source: Some(Box::new(error)),
        ..ApiError::new(Code::Unavailable, "could not read the artifact")
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Ranged {
    All,
    Part(Range<u64>),
    /// A range in which there is nothing.
    Nothing,
}

/// The one range of bytes that is asked for. Several, and what cannot be read, count as if nothing was asked (RFC 9110, 14.2);
/// so does a range of something else than what has this tag (13.1.5).
fn range(headers: &HeaderMap, size: u64, tag: &str) -> Ranged {
    if headers.get(IF_RANGE).is_some_and(|wanted| wanted.as_bytes() != tag.as_bytes()) {
        return Ranged::All;
    }
    let text = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some((from, to)) = text.and_then(|text| text.strip_prefix("bytes=")?.split_once('-')) else {
        return Ranged::All;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let part = match (from.trim(), to.trim()) {
        ("", last) => number(last).map(|last| size.saturating_sub(last)..size),
        (from, "") => number(from).map(|from| from..size),
        (from, to) => match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Some(from..size.min(to.saturating_add(1))),
            _ => None,
        },
    };
    match part {
        None => Ranged::All,
        Some(part) if part.start >= part.end => Ranged::Nothing,
        Some(part) => Ranged::Part(part),
    }
}

/// What the content is, as far as that cannot make a browser run it.
fn media_type(name: &str, kind: ArtifactKind) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match (kind, extension.as_str()) {
        (ArtifactKind::Markdown, _) => "text/markdown; charset=utf-8",
        (ArtifactKind::Json, _) => "application/json",
        (ArtifactKind::Diff, _) => "text/x-diff; charset=utf-8",
        (ArtifactKind::Zip, _) => "application/zip",
        (ArtifactKind::Image, "png") => "image/png",
        (ArtifactKind::Image, "jpg" | "jpeg") => "image/jpeg",
        (ArtifactKind::Image, "gif") => "image/gif",
        (ArtifactKind::Image, "webp") => "image/webp",
        (ArtifactKind::Link, _) | (ArtifactKind::File, "txt" | "log") => "text/plain; charset=utf-8",
        (ArtifactKind::File, "csv") => "text/csv; charset=utf-8",
        (ArtifactKind::File, "yaml" | "yml") => "application/yaml",
        (ArtifactKind::File, "pdf") => "application/pdf",
        (ArtifactKind::File, "tar") => "application/x-tar",
        (ArtifactKind::File, "gz" | "tgz") => "application/gzip",
        (ArtifactKind::Image | ArtifactKind::File, _) => "application/octet-stream",
    }
}

/// A download of this name (RFC 6266), which is the last part of the artifact's.
fn disposition(name: &str) -> HeaderValue {
    let name = name.rsplit('/').next().unwrap_or(name);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let value = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}");
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_and_what_makes_no_sense_asks_for_everything() {
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_str(text).unwrap());
            range(&headers, 100, "\"tag\"")
        };
        for (text, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=10-19", 10..20),
            ("bytes=90-", 90..100),
            ("bytes=-5", 95..100),
            ("bytes=-500", 0..100),
            ("bytes=50-18446744073709551615", 50..100),
        ] {
            assert_eq!(asked(text), Ranged::Part(part), "{text}");
        }
        for text in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert_eq!(asked(text), Ranged::Nothing, "{text}");
        }
        for text in ["bytes=", "bytes=a-b", "lines=1-2", "bytes=5-4", "bytes=0-1,5-6", "bytes=-"] {
            assert_eq!(asked(text), Ranged::All, "{text}");
        }
        assert_eq!(range(&HeaderMap::new(), 100, "\"tag\""), Ranged::All);
    }

    #[test]
    fn a_range_counts_only_of_what_was_meant() {
        for (wanted, part) in [
            ("\"tag\"", Ranged::Part(1..3)),
            ("\"other\"", Ranged::All),
            ("W/\"tag\"", Ranged::All),
            ("tag", Ranged::All),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Ranged::All),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_static("bytes=1-2"));
            headers.insert(IF_RANGE, HeaderValue::from_static(wanted));
            assert_eq!(range(&headers, 100, "\"tag\""), part, "{wanted}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        for (name, expected) in [
            ("a/b/report.md", "attachment; filename=\"report.md\"; filename*=UTF-8''report.md"),
            ("x\"; evil=\"1", "attachment; filename=\"x__ evil__1\"; filename*=UTF-8''x%22%3B%20evil%3D%221"),
            ("ž.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C5%BE.txt"),
            ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
        ] {
            assert_eq!(disposition(name).to_str().unwrap(), expected);
        }
    }

    #[test]
    fn no_content_is_called_something_that_a_browser_runs() {
        for name in ["index.html", "a.svg", "a.xhtml", "a.xml", "a.js", "a", "png", "a.htm"] {
            for kind in [ArtifactKind::File, ArtifactKind::Image] {
                assert_eq!(media_type(name, kind), "application/octet-stream", "{name}");
            }
        }
        assert_eq!(media_type("A.PNG", ArtifactKind::Image), "image/png");
        assert_eq!(media_type("a.html", ArtifactKind::Link), "text/plain; charset=utf-8");
    }
}
