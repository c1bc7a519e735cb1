//! Uploaded inputs, named by the hash of their content.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures::StreamExt as _;
use windlass_store::InputRow;

use super::App;
use super::extract::Operator;
use crate::bodies;
use crate::error::{ApiError, Code};

/// The most bytes of one input.
const LIMIT: u64 = 1 << 30;

pub(super) async fn head(
    State(app): State<App>,
    _: Operator,
    Path(digest): Path<String>,
) -> Result<StatusCode, ApiError> {
    check(&digest)?;
    let found = app.store.get_input(&digest).await?;
    found.map(|_| StatusCode::OK).ok_or_else(|| ApiError::not_found("input", &digest))
}

pub(super) async fn put(
    State(app): State<App>,
    _: Operator,
    Path(digest): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let hash = check(&digest)?;
    if let Some(row) = app.store.get_input(&digest).await? {
        // Uploading again keeps it from being pruned as unused.
        app.store.put_input(app.clock.now(), row).await?;
        return Ok(StatusCode::OK);
    }
    let object_key = format!("inputs/{}/{hash}", &hash[..2]);
    let stored = app.bodies.put_verified(&object_key, &digest, LIMIT, body.into_data_stream().boxed()).await;
    let size = stored.map_err(|error| match error {
        bodies::Error::Digest { .. } => ApiError::new(Code::DigestMismatch, error.to_string()),
        bodies::Error::TooLarge { .. } => ApiError::new(Code::TooLarge, error.to_string()),
        bodies::Error::Upload { .. } => ApiError::new(Code::BadRequest, crate::error::chain(&error)),
        bodies::Error::Open { .. } | bodies::Error::Store { .. } => ApiError {
            source: Some(Box::new(error)),
            ..ApiError::new(Code::Unavailable, "could not store the input")
        },
    })?;
    app.store.put_input(app.clock.now(), InputRow { digest, size, object_key }).await?;
    Ok(StatusCode::CREATED)
}

/// The hexadecimal part of a digest.
fn check(digest: &str) -> Result<&str, ApiError> {
    digest
        .strip_prefix("sha256:")
        .filter(|hash| hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| {
            let detail = format!("`{digest}` is not `sha256:` and 64 lower-case hexadecimal digits");
            ApiError::new(Code::BadRequest, detail)
        })
}
