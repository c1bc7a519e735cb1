//! A job's artifacts: which there are and are not, downloads, and links to them.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use windlass_crds::Span;
use windlass_crds::protocol::{Artifact, ArtifactKind, AttemptId};
use windlass_store::ArtifactRow;

use super::super::App;
use super::super::artifacts::give;
use super::super::extract::{self, Operator, Path, Query};
use super::find;
use crate::error::{ApiError, Code};

/// How long a link works that does not say.
const LINK: Span = Span::from_secs(15 * 60);
/// The longest that a link may work.
const LONGEST_LINK: Span = Span::from_secs(7 * 24 * 3600);

/// The artifacts of a job.
#[derive(Serialize, JsonSchema)]
pub(in crate::rest) struct ArtifactList {
    /// In the order of attempts and of their manifests.
    items: Vec<ArtifactItem>,
}

/// An artifact, or a file that was refused as one.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ArtifactItem {
    /// Its path below the folder of artifacts.
    name: String,
    /// What it is.
    kind: ArtifactKind,
    /// Its length in bytes.
    size: u64,
    /// The SHA-256 of its content, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Whether its content is here.
    state: ArtifactState,
    /// Why it was refused or is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The number of its attempt, from 1.
    attempt: u32,
    /// The epoch of its attempt.
    epoch: u64,
    /// Its place in the attempt's manifest.
    number: u32,
    /// The node that has collected it.
    node: String,
    /// When it was collected, by the node's clock.
    collected_at: Timestamp,
    /// When its content came.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_at: Option<Timestamp>,
    /// Whether its attempt was not the job's any more when it came; such artifacts are kept for a day.
    superseded: bool,
}

/// Whether the content of an artifact is here.
#[derive(Serialize, JsonSchema)]
enum ArtifactState {
    /// It is.
    Stored,
    /// Its node still has to send it.
    Pending,
    /// It was not collected.
    Refused,
    /// It will never come.
    Lost,
}

impl From<ArtifactRow> for ArtifactItem {
    fn from(row: ArtifactRow) -> Self {
        let ArtifactRow {
            epoch,
            attempt,
            node,
            artifact,
            collected_at,
            superseded,
            object_key,
            stored_at,
            lost,
        } = row;
        let Artifact { number, name, kind, size, sha256, refused } = artifact;
        let state = match (&refused, &object_key, &lost) {
            (Some(_), _, _) => ArtifactState::Refused,
            (None, Some(_), _) => ArtifactState::Stored,
            (None, None, Some(_)) => ArtifactState::Lost,
            (None, None, None) => ArtifactState::Pending,
        };
        let reason = refused.or(lost);
        Self {
            name,
            kind,
            size,
            sha256,
            state,
            reason,
            attempt,
            epoch,
            number,
            node,
            collected_at,
            stored_at,
            superseded,
        }
    }
}

#[derive(Deserialize)]
pub(in crate::rest) struct ArtifactQuery {
    epoch: Option<u64>,
}

pub(in crate::rest) async fn artifacts(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    Query(ArtifactQuery { epoch }): Query<ArtifactQuery>,
) -> Result<Json<ArtifactList>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    let rows = app.store.artifacts(&job.uid).await?;
    let wanted = rows.into_iter().filter(|row| epoch.is_none_or(|epoch| row.epoch == epoch));
    Ok(Json(ArtifactList { items: wanted.map(ArtifactItem::from).collect() }))
}

pub(in crate::rest) async fn artifact(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name, artifact)): Path<(String, String, String)>,
    Query(query): Query<ArtifactQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (_, row) = named(&app, &namespace, &name, &artifact, &query).await?;
    give(&app, &row, &headers).await
}

/// The artifact of this name, of the attempt that is asked for, else of the job's last; with that attempt.
async fn named(
    app: &App,
    namespace: &str,
    job: &str,
    name: &str,
    query: &ArtifactQuery,
) -> Result<(AttemptId, ArtifactRow), ApiError> {
    let job = find(app, namespace, job).await?;
    let attempt = AttemptId { epoch: query.epoch.unwrap_or(job.epoch), job: job.uid };
    let rows = app.store.artifacts_named(&attempt, name).await?;
    // One that was collected counts before one that was refused under the same readable name.
    if let Some(row) = rows.into_iter().max_by_key(|row| row.artifact.refused.is_none()) {
        return Ok((attempt, row));
    }
    let job = format!("job `{namespace}/{}`", job.name);
    let others = app.store.attempts_with_artifact(&attempt.job, name).await?;
    let detail = match (query.epoch, others.first()) {
        (None, Some((epoch, number))) => format!(
            "the last attempt of {job} has left no artifact `{name}`; attempt {number} has: ask for it by `epoch={epoch}`"
        ),
        (Some(epoch), Some(_)) => {
            format!("the attempt of {job} with epoch {epoch} has left no artifact `{name}`; others have")
        }
        (_, None) => format!("{job} has no artifact `{name}`; its list of artifacts names them"),
    };
    Err(ApiError::new(Code::NotFound, detail))
}

/// Asks for a link.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) struct LinkRequest {
    /// How long it works; 15 minutes where nothing is said, 7 days at most.
    expires_in: Option<Span>,
}

/// A link.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) struct ArtifactLink {
    /// The artifact under this URL, for everybody who knows it.
    url: String,
    /// When it stops working.
    expires_at: Timestamp,
}

pub(in crate::rest) async fn link(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name, artifact)): Path<(String, String, String)>,
    Query(query): Query<ArtifactQuery>,
    extract::Json(LinkRequest { expires_in }): extract::Json<LinkRequest>,
) -> Result<Json<ArtifactLink>, ApiError> {
    let life = expires_in.unwrap_or(LINK);
    if life > LONGEST_LINK || life.get().is_zero() {
        let detail = format!("expiresIn: {life} is not between 1s and {LONGEST_LINK}");
        return Err(ApiError::new(Code::BadRequest, detail));
    }
    let (attempt, row) = named(&app, &namespace, &name, &artifact, &query).await?;
    let seconds = i64::try_from(life.get().as_secs()).unwrap_or(i64::MAX).max(1);
    let expires_at = app.clock.now().saturating_add(SignedDuration::from_secs(seconds));
    let expires_at = expires_at.unwrap_or(Timestamp::MAX);
    let expires = expires_at.as_second();
    let number = row.artifact.number;
    let signature = app.links.sign(&attempt, number, expires);
    let url = format!(
        "{}/v1/artifacts/{}/{}/{number}?expires={expires}&signature={signature}",
        app.base_url, attempt.job, attempt.epoch
    );
    Ok(Json(ArtifactLink { url, expires_at }))
}

#[derive(Deserialize)]
pub(in crate::rest) struct LinkQuery {
    expires: i64,
    signature: String,
}

/// What a link leads to.
pub(in crate::rest) async fn linked(
    State(app): State<App>,
    Path((job, epoch, number)): Path<(String, u64, u32)>,
    Query(LinkQuery { expires, signature }): Query<LinkQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let attempt = AttemptId { job, epoch };
    if !app.links.holds(&attempt, number, expires, &signature, app.clock.now()) {
        let detail = "the link is not one of this controller's, or has expired; ask for another one";
        return Err(ApiError::new(Code::Forbidden, detail));
    }
    let found = app.store.artifact(&attempt, number).await?;
    let row = found.ok_or_else(|| ApiError::not_found("artifact", &format!("{attempt}/{number}")))?;
    give(&app, &row, &headers).await
}
