//! Creating jobs, and applying manifests.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::SignedDuration;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use windlass_core::validate;
use windlass_crds::SandboxJob;
use windlass_crds::protocol::FieldError;
use windlass_store::{CancelOutcome, CreateOutcome, IdempotencyKey, JobPatch, NewJob};

use super::super::App;
use super::super::extract::{Body, IfMatch, Operator, Path, Query};
use super::super::origin::require_native;
use super::super::present;
use crate::error::{ApiError, Code};
use crate::submit;

/// How long an idempotency key is remembered.
const KEY_LIFE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) struct WriteQuery {
    #[serde(default)]
    pub(super) dry_run: bool,
}

pub(in crate::rest) async fn create(
    State(app): State<App>,
    _: Operator,
    Path(namespace): Path<String>,
    Query(query): Query<WriteQuery>,
    headers: HeaderMap,
    Body(mut job): Body<SandboxJob>,
) -> Result<Response, ApiError> {
    check_place(&mut job, &namespace, None)?;
    let generated = job.metadata.name.is_none();
    // The hash is of what was sent: a generated name must not make a repeated request another one.
    let idempotency = idempotency_of(&app, &namespace, &headers, &job, None)?;
    for _ in 0..8 {
        let new = app.submission().prepare(job.clone(), idempotency.clone()).await?;
        if query.dry_run {
            let taken = is_taken(&app, &new).await?;
            match taken {
                true if generated => continue,
                true => return Err(name_taken(&namespace, &new.name)),
                false => return Ok((StatusCode::OK, Json(preview(job, &new))).into_response()),
            }
        }
        let name = new.name.clone();
        match insert(&app, new).await? {
            CreateOutcome::Created(row) => {
                return Ok((StatusCode::CREATED, Json(present::job(&row))).into_response());
            }
            CreateOutcome::Replayed(row) => {
                return Ok((StatusCode::OK, Json(present::job(&row))).into_response());
            }
            CreateOutcome::KeyReused => return Err(key_reused()),
            CreateOutcome::NameTaken(_) if generated => {}
            CreateOutcome::NameTaken(_) => return Err(name_taken(&namespace, &name)),
        }
    }
    Err(no_free_name())
}

pub(super) fn key_reused() -> ApiError {
    ApiError::new(
        Code::IdempotencyKeyReused,
        "the Idempotency-Key was used within the last day for another request, or for a job that was deleted since \
         and is not run a second time; use a new one",
    )
}

pub(super) fn name_taken(namespace: &str, name: &str) -> ApiError {
    let detail = format!("job `{namespace}/{name}` exists; use another name, or metadata.generateName");
    ApiError::new(Code::NameTaken, detail)
}

pub(super) fn no_free_name() -> ApiError {
    ApiError::new(Code::NameTaken, "no free name was found for metadata.generateName; make it longer")
}

pub(in crate::rest) async fn apply(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<WriteQuery>,
    if_match: IfMatch,
    Body(mut job): Body<SandboxJob>,
) -> Result<Response, ApiError> {
    check_place(&mut job, &namespace, Some(&name))?;
    // A job that is created or changed in between leads to another look.
    for _ in 0..8 {
        let found = app.store.get_job(&namespace, &name).await?;
        if_match.check("job", &name, found.as_ref().map(|row| row.resource_version))?;
        let Some(row) = found else {
            let new = app.submission().prepare(job.clone(), None).await?;
            if query.dry_run {
                return Ok(outcome(StatusCode::OK, "created", preview(job, &new)));
            }
            match insert(&app, new).await? {
                CreateOutcome::Created(row) | CreateOutcome::Replayed(row) => {
                    return Ok(outcome(StatusCode::CREATED, "created", present::job(&row)));
                }
                CreateOutcome::NameTaken(_) | CreateOutcome::KeyReused => continue,
            }
        };
        let current = present::job(&row);
        validate::validate_job(&job).map_err(|errors| ApiError::invalid("job", errors))?;
        validate::validate_job_update(&current.spec, &validate::normalised(&job.spec))
            .map_err(|errors| ApiError::invalid("job", errors))?;
        let patch = submit::changes(&row, &job);
        let wants_cancel = job.spec.cancel && row.cancel_requested_at.is_none() && !row.phase.is_terminal();
        if patch == JobPatch::default() && !wants_cancel {
            return Ok(outcome(StatusCode::OK, "unchanged", current));
        }
        require_native(&app, &row.uid, &format!("job `{namespace}/{name}`")).await?;
        if query.dry_run {
            return Ok(outcome(StatusCode::OK, "configured", job));
        }
        let mut updated = row.clone();
        if patch != JobPatch::default() {
            match app.store.update_job(app.clock.now(), &row.uid, patch, Some(row.resource_version)).await {
                Err(windlass_store::Error::Conflict { .. } | windlass_store::Error::NotFound { .. }) => {
                    continue;
                }
                result => updated = result?,
            }
        }
        if wants_cancel {
            match app.store.request_cancel(app.clock.now(), &row.uid).await? {
                CancelOutcome::Cancelled(row)
                | CancelOutcome::Requested(row)
                | CancelOutcome::AlreadyEnded(row) => {
                    updated = row;
                }
                CancelOutcome::NotFound => continue,
            }
        }
        return Ok(outcome(StatusCode::OK, "configured", present::job(&updated)));
    }
    Err(ApiError::new(Code::Conflict, format!("job `{namespace}/{name}` keeps changing; try again")))
}

fn outcome(status: StatusCode, word: &'static str, job: SandboxJob) -> Response {
    (status, [("windlass-outcome", word)], Json(job)).into_response()
}

async fn insert(app: &App, new: NewJob) -> Result<CreateOutcome, ApiError> {
    let mut outcomes = app.store.create_jobs(app.clock.now(), vec![new]).await?;
    outcomes.pop().ok_or_else(|| ApiError::new(Code::Internal, "the store gave no outcome for a job"))
}

/// Whether the name of a job stands in its way, as far as a look tells. A request that is repeated with its key is answered
/// as before, so the job that it has made does not.
pub(super) async fn is_taken(app: &App, new: &NewJob) -> Result<bool, ApiError> {
    let found = app.store.get_job(&new.namespace, &new.name).await?;
    Ok(found.is_some_and(|row| new.idempotency.is_none() || row.spec_hash != new.spec_hash))
}

/// The job as it would be made.
fn preview(mut job: SandboxJob, new: &NewJob) -> SandboxJob {
    job.metadata.name = Some(new.name.clone());
    job.metadata.namespace = Some(new.namespace.clone());
    job.spec = new.spec.clone();
    job
}

/// Makes the manifest agree with the path, or refuses it.
pub(super) fn check_place(job: &mut SandboxJob, namespace: &str, name: Option<&str>) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let mut differs = |field: &str, found: &Option<String>, wanted: &str| {
        if let Some(found) = found
            && found != wanted
        {
            errors.push(FieldError {
                field: field.to_owned(),
                message: format!("`{found}` differs from `{wanted}` in the path"),
            });
        }
    };
    // A manifest that names no namespace is read as one of the default namespace; the path says which it is.
    differs("metadata.namespace", &job.metadata.namespace, namespace);
    if let Some(name) = name {
        differs("metadata.name", &job.metadata.name, name);
        job.metadata.name = Some(name.to_owned());
    }
    job.metadata.namespace = Some(namespace.to_owned());
    if let Err(error) = windlass_crds::names::check_label(namespace) {
        errors.push(FieldError { field: "metadata.namespace".to_owned(), message: error.to_string() });
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("job", errors)) }
}

/// What makes a repeated request harmless, where it has a key; in a batch that holds for each position by itself.
pub(super) fn idempotency_of(
    app: &App,
    namespace: &str,
    headers: &HeaderMap,
    job: &SandboxJob,
    position: Option<usize>,
) -> Result<Option<IdempotencyKey>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=255).contains(&key.len())).ok_or_else(|| {
        ApiError::new(Code::BadRequest, "Idempotency-Key must have 1 to 255 printable ASCII characters")
    })?;
    let json = serde_json::to_vec(job).map_err(|error| ApiError::internal("hash a job", error))?;
    Ok(Some(IdempotencyKey {
        // No namespace has a space in its name.
        key: match position {
            Some(position) => format!("{namespace} {position}/{key}"),
            None => format!("{namespace}/{key}"),
        },
        request_hash: hex::encode(Sha256::digest(json)),
        keep_until: app.clock.now().checked_add(KEY_LIFE).unwrap_or(jiff::Timestamp::MAX),
    }))
}
