//! Uploaded inputs, named by the hash of their content.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use futures::StreamExt as _;
use windlass_store::{InputRow, Store};

use super::App;
use super::extract::{Operator, Path};
use super::pace::TooSlow;
use crate::bodies::{self, Bodies};
use crate::error::{ApiError, Code};

/// The most bytes of one input.
const LIMIT: u64 = 1 << 30;

pub(super) async fn head(
    State(app): State<App>,
    _: Operator,
    Path(digest): Path<String>,
) -> Result<StatusCode, ApiError> {
    check(&digest)?;
    let found = find_whole(&app.store, &app.bodies, &digest).await?;
    found.map(|_| StatusCode::OK).ok_or_else(|| ApiError::not_found("input", &digest))
}

/// An input whose body is there in its full size. One whose body is gone is as if it had never been uploaded, so that
/// uploading it again repairs it.
pub(crate) async fn find_whole(
    store: &Store,
    bodies: &Bodies,
    digest: &str,
) -> Result<Option<InputRow>, ApiError> {
    let Some(row) = store.get_input(digest).await? else { return Ok(None) };
    let size = bodies.size(&row.object_key).await.map_err(unavailable)?;
    Ok((size == Some(row.size)).then_some(row))
}

fn unavailable(error: bodies::Error) -> ApiError {
    ApiError {
        source: Some(Box::new(error)),
        ..ApiError::new(Code::Unavailable, "could not look for an input")
    }
}

/// The answer where the stored content of an input is not what was uploaded.
pub(super) fn damaged(digest: &str) -> ApiError {
    ApiError::new(
        Code::InputDamaged,
        format!(
            "the stored content of input `{digest}` is missing or damaged; upload it again (`windlass run --input PATH`, \
             or PUT /v1/inputs/{digest}) and run the job again"
        ),
    )
}

pub(super) async fn put(
    State(app): State<App>,
    _: Operator,
    Path(digest): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let hash = check(&digest)?;
    if let Some(row) = find_whole(&app.store, &app.bodies, &digest).await? {
        // Uploading again keeps it from being pruned as unused.
        app.store.put_input(app.clock.now(), row).await?;
        return Ok(StatusCode::OK);
    }
    // Each upload has a key of its own, so that removing an old one can never hit a new one.
    let object_key = format!("inputs/{}/{hash}.{}", &hash[..2], app.ids.uid(app.clock.now()));
    let stored = app.bodies.put_verified(&object_key, &digest, LIMIT, body.into_data_stream().boxed()).await;
    let size = stored.map_err(|error| match error {
        bodies::Error::Digest { .. } => ApiError::new(Code::DigestMismatch, error.to_string()),
        bodies::Error::TooLarge { .. } => ApiError::new(Code::TooLarge, error.to_string()),
        bodies::Error::Upload { .. } => match TooSlow::find(&error) {
            Some(slow) => ApiError::new(Code::Timeout, slow.to_string()),
            None => ApiError::new(Code::BadRequest, crate::error::chain(&error)),
        },
        bodies::Error::Open { .. } | bodies::Error::Bucket { .. } | bodies::Error::Store { .. } => ApiError {
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
