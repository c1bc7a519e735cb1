//! Creating many jobs at once.
//!
//! What is wrong with the request refuses all of it, with every error by its place. What stands in the way of a job, such as
//! a name that is taken, is told for that job and keeps no other from being made. All that are made are made in one
//! transaction.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use schemars::JsonSchema;
use serde::Serialize;
use windlass_crds::SandboxJob;
use windlass_crds::manifest::{Document, Manifest as _};
use windlass_crds::protocol::{FieldError, Problem};
use windlass_store::{CreateOutcome, NewJob};

use super::super::App;
use super::super::extract::{Documents, Operator, Path, Query};
use super::create::{
    WriteQuery, check_place, idempotency_of, is_taken, key_reused, name_taken, no_free_name,
};
use crate::error::{ApiError, Code};

/// How many jobs a batch may have.
const MOST: usize = 1000;

/// How often another name is made for jobs whose generated names were taken.
const NAMES: usize = 8;

/// What became of the jobs of a batch, in their order.
#[derive(Serialize, JsonSchema)]
pub(in crate::rest) struct BatchResult {
    /// One for each job of the request.
    items: Vec<ItemResult>,
}

/// What became of one job.
#[derive(Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) struct ItemResult {
    /// The job's name; a generated one where the manifest has none.
    name: String,
    /// What became of it.
    outcome: ItemOutcome,
    /// The uid of the job that was made, by this request or by the one that it repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// What became of one job, as a word.
#[derive(Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::rest) enum ItemOutcome {
    /// It was made.
    Created,
    /// It was made by an earlier request with this Idempotency-Key.
    Replayed,
    /// It was not made, or would not be; `problem` tells why.
    Refused,
    /// It would be made; nothing was done, as `dryRun` asks.
    Checked,
}

/// A job that is not made yet, with what is needed to make it with another name.
struct Item {
    position: usize,
    job: SandboxJob,
    generated: bool,
}

pub(in crate::rest) async fn create_many(
    State(app): State<App>,
    _: Operator,
    Path(namespace): Path<String>,
    Query(query): Query<WriteQuery>,
    headers: HeaderMap,
    Documents(documents): Documents,
) -> Result<Json<BatchResult>, ApiError> {
    check_count(documents.len())?;
    let (items, mut new) = checked(&app, &namespace, &headers, documents).await?;
    let mut results: Vec<Option<ItemResult>> = vec![None; items.len()];
    if query.dry_run {
        return preview(&app, &items, new).await;
    }
    let mut open = items;
    for _ in 0..NAMES {
        let names: Vec<String> = new.iter().map(|new| new.name.clone()).collect();
        let keys: Vec<_> = new.iter().map(|new| new.idempotency.clone()).collect();
        let outcomes = app.store.create_jobs(app.clock.now(), new).await?;
        let mut again = Vec::new();
        for ((item, name), (outcome, key)) in open.into_iter().zip(names).zip(outcomes.into_iter().zip(keys))
        {
            let result = match outcome {
                CreateOutcome::Created(row) => ItemResult::made(row.name, ItemOutcome::Created, row.uid),
                CreateOutcome::Replayed(row) => ItemResult::made(row.name, ItemOutcome::Replayed, row.uid),
                CreateOutcome::KeyReused => ItemResult::refused(name, &key_reused()),
                CreateOutcome::NameTaken(_) if item.generated => {
                    again.push((item, key));
                    continue;
                }
                CreateOutcome::NameTaken(_) => {
                    let problem = name_taken(&namespace, &name);
                    ItemResult::refused(name, &problem)
                }
            };
            results[item.position] = Some(result);
        }
        (open, new) = (Vec::with_capacity(again.len()), Vec::with_capacity(again.len()));
        for (item, key) in again {
            new.push(app.submission().prepare(item.job.clone(), key).await?);
            open.push(item);
        }
        if open.is_empty() {
            break;
        }
    }
    for (item, new) in open.iter().zip(new) {
        results[item.position] = Some(ItemResult::refused(new.name, &no_free_name()));
    }
    Ok(Json(BatchResult { items: results.into_iter().flatten().collect() }))
}

/// What would become of the jobs, each after those before it.
async fn preview(app: &App, items: &[Item], new: Vec<NewJob>) -> Result<Json<BatchResult>, ApiError> {
    let mut names = HashSet::with_capacity(new.len());
    let mut results = Vec::with_capacity(new.len());
    for (item, new) in items.iter().zip(new) {
        // A generated name that is taken is made again.
        let free = item.generated || (!is_taken(app, &new).await? && names.insert(new.name.clone()));
        results.push(if free {
            ItemResult::new(new.name, ItemOutcome::Checked)
        } else {
            let problem = name_taken(&new.namespace, &new.name);
            ItemResult::refused(new.name, &problem)
        });
    }
    Ok(Json(BatchResult { items: results }))
}

impl ItemResult {
    const fn new(name: String, outcome: ItemOutcome) -> Self {
        Self { name, outcome, uid: None, problem: None }
    }

    const fn made(name: String, outcome: ItemOutcome, uid: String) -> Self {
        Self { name, outcome, uid: Some(uid), problem: None }
    }

    fn refused(name: String, error: &ApiError) -> Self {
        Self { problem: Some(error.problem()), ..Self::new(name, ItemOutcome::Refused) }
    }
}

fn check_count(count: usize) -> Result<(), ApiError> {
    let message = match count {
        0 => format!("there is no job; send 1 to {MOST}"),
        1..=MOST => return Ok(()),
        _ => format!("{count} jobs are more than a batch may have; send {MOST} at most"),
    };
    Err(ApiError::invalid("batch", vec![FieldError { field: "items".to_owned(), message }]))
}

/// All jobs of a batch, or everything that is wrong with them.
async fn checked(
    app: &App,
    namespace: &str,
    headers: &HeaderMap,
    documents: Vec<Document>,
) -> Result<(Vec<Item>, Vec<NewJob>), ApiError> {
    let mut items = Vec::with_capacity(documents.len());
    let mut new = Vec::with_capacity(documents.len());
    let mut errors = Vec::new();
    for (position, document) in documents.into_iter().enumerate() {
        let mut located = |error: ApiError| {
            if error.code != Code::Invalid {
                return Err(error);
            }
            errors.extend(error.errors.iter().map(|error| document.locate(error).to_field_error()));
            Ok(())
        };
        let Some(mut job) = SandboxJob::from_object(document.object.clone()) else {
            let message =
                format!("found `{}` where `{}` is expected", document.object.kind(), SandboxJob::KIND);
            located(ApiError::invalid("job", vec![FieldError { field: "kind".to_owned(), message }]))?;
            continue;
        };
        let prepared = async {
            check_place(&mut job, namespace, None)?;
            let key = idempotency_of(app, namespace, headers, &job, Some(position))?;
            app.submission().prepare(job.clone(), key).await
        };
        match prepared.await {
            Ok(prepared) => {
                new.push(prepared);
                let generated = job.metadata.name.is_none();
                items.push(Item { position, job, generated });
            }
            Err(error) => located(error)?,
        }
    }
    if errors.is_empty() { Ok((items, new)) } else { Err(ApiError::invalid("batch", errors)) }
}
