//! Jobs: create, read, apply, act, and what became of them.

mod act;
mod artifacts;
mod batch;
mod create;
mod logs;
mod placement;
mod read;
mod result;

pub(super) use act::{cancel, remove, retry};
pub(super) use artifacts::{ArtifactLink, ArtifactList, LinkRequest, artifact, artifacts, link, linked};
pub(super) use batch::{BatchResult, create_many};
pub(super) use create::{apply, create};
pub(super) use logs::{events, logs};
pub(super) use placement::placement;
pub(super) use read::{get, list, list_all};
pub(super) use result::{attempts, result};

use windlass_store::JobRow;

use super::App;
use crate::error::ApiError;

/// The job of this name.
async fn find(app: &App, namespace: &str, name: &str) -> Result<JobRow, ApiError> {
    let found = app.store.get_job(namespace, name).await?;
    found.ok_or_else(|| ApiError::not_found("job", &format!("{namespace}/{name}")))
}
