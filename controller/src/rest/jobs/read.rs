//! Reading jobs: one, many, or as they change.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use windlass_crds::{JobPhase, SandboxJob};
use windlass_store::{Change, JobFilter, JobRow, Page};

use super::super::App;
use super::super::extract::{Operator, Path, Query};
use super::super::{present, sse};
use super::find;
use crate::error::{ApiError, Code};

pub(in crate::rest) async fn get(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<SandboxJob>, ApiError> {
    find(&app, &namespace, &name).await.map(|row| Json(present::job(&row)))
}

#[derive(Deserialize)]
pub(in crate::rest) struct ListQuery {
    queue: Option<String>,
    phase: Option<String>,
    selector: Option<String>,
    name: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
    #[serde(default)]
    watch: bool,
}

pub(in crate::rest) async fn list_all(
    State(app): State<App>,
    _: Operator,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    answer(app, None, query, &headers).await
}

pub(in crate::rest) async fn list(
    State(app): State<App>,
    _: Operator,
    Path(namespace): Path<String>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    answer(app, Some(namespace), query, &headers).await
}

async fn answer(
    app: App,
    namespace: Option<String>,
    query: ListQuery,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let filter = Filter::new(namespace, &query)?;
    if query.watch || sse::wanted(headers) {
        return Ok(sse::stream(move |sender| watch(app, filter, sender)));
    }
    let page = page(query.limit, query.cursor.as_deref(), 500)?;
    let (rows, next) = match &filter.name {
        Some(_) => (filter.one(&app).await?, None),
        None => app.store.list_jobs(filter.rows.clone(), page).await?,
    };
    let items: Vec<_> = rows.iter().map(present::job).collect();
    Ok(Json(present::list("SandboxJobList", &items, next.map(|next| next.to_string()))).into_response())
}

/// The page that a query asks for.
pub(in crate::rest) fn page(limit: Option<u32>, cursor: Option<&str>, max: u32) -> Result<Page, ApiError> {
    let limit = limit.unwrap_or(100);
    if limit == 0 || limit > max {
        return Err(ApiError::new(Code::BadRequest, format!("limit: {limit} is not between 1 and {max}")));
    }
    let cursor = cursor
        .map(str::parse)
        .transpose()
        .map_err(|_| ApiError::new(Code::BadRequest, "cursor: not one that a list has returned"))?;
    Ok(Page { limit, cursor })
}

/// Which jobs a caller wants to see.
struct Filter {
    rows: JobFilter,
    name: Option<String>,
}

impl Filter {
    fn new(namespace: Option<String>, query: &ListQuery) -> Result<Self, ApiError> {
        let refused = |detail: String| ApiError::new(Code::BadRequest, detail);
        let phases = query.phase.iter().flat_map(|phases| phases.split(',')).filter(|word| !word.is_empty());
        let phases = phases
            .map(|word| {
                word.parse::<JobPhase>().map_err(|_| {
                    let known: Vec<&str> =
                        <JobPhase as strum::IntoEnumIterator>::iter().map(Into::into).collect();
                    refused(format!("phase: `{word}` is none of {}", known.join(", ")))
                })
            })
            .collect::<Result<_, _>>()?;
        let mut label_equals = BTreeMap::new();
        for term in query.selector.iter().flat_map(|terms| terms.split(',')).filter(|term| !term.is_empty()) {
            let (key, value) = term
                .split_once('=')
                .ok_or_else(|| refused(format!("selector: `{term}` is not `key=value`")))?;
            label_equals.insert(key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned());
        }
        let rows =
            JobFilter { namespace, queue: query.queue.clone(), phases, label_equals, ..JobFilter::default() };
        Ok(Self { rows, name: query.name.clone() })
    }

    async fn one(&self, app: &App) -> Result<Vec<JobRow>, ApiError> {
        let (Some(namespace), Some(name)) = (&self.rows.namespace, &self.name) else {
            return Err(ApiError::new(Code::BadRequest, "name: only together with a namespace"));
        };
        let row = app.store.get_job(namespace, name).await?;
        Ok(row.into_iter().filter(|row| self.shows(row)).collect())
    }

    fn shows(&self, row: &JobRow) -> bool {
        let JobFilter {
            namespace,
            queue,
            phases,
            label_equals,
            name_prefix: _,
            created_after: _,
            created_before: _,
        } = &self.rows;
        namespace.as_ref().is_none_or(|namespace| *namespace == row.namespace)
            && queue.as_ref().is_none_or(|queue| *queue == row.queue)
            && (phases.is_empty() || phases.contains(&row.phase))
            && label_equals.iter().all(|(key, value)| row.labels.get(key) == Some(value))
            && self.name.as_ref().is_none_or(|name| *name == row.name)
    }
}

/// Sends every job that the filter shows, then each change.
async fn watch(app: App, filter: Filter, sender: std::sync::Arc<sse::Sender>) -> Result<(), ApiError> {
    // Subscribed before the first read, so that nothing falls between the two.
    let mut changes = app.store.changes();
    let mut shown: HashMap<String, (i64, SandboxJob)> = HashMap::new();
    let rows = all(&app, &filter).await?;
    for row in rows.iter().rev() {
        let object = present::job(row);
        if sender.send("added", None, &object).await.is_err() {
            return Ok(());
        }
        shown.insert(row.uid.clone(), (row.resource_version, object));
    }
    if sender.send("synced", None, &json!({})).await.is_err() {
        return Ok(());
    }
    loop {
        let changed = tokio::select! {
            biased;
            // Cancel-safe: nothing is held.
            () = app.stopping.cancelled() => return Ok(()),
            // Cancel-safe: the stream ends with this future.
            change = changes.recv() => change,
        };
        let uids = match changed {
            Ok(Change::Job { uid }) => vec![uid],
            Ok(Change::Any) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                // Some changes were missed: look at everything that is or was shown.
                let mut uids: Vec<_> = shown.keys().cloned().collect();
                uids.extend(all(&app, &filter).await?.into_iter().map(|row| row.uid));
                uids.sort();
                uids.dedup();
                uids
            }
            Ok(_) => continue,
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
        };
        let mut rows: HashMap<_, _> = app
            .store
            .get_jobs(&uids)
            .await?
            .into_iter()
            .filter(|row| filter.shows(row))
            .map(|row| (row.uid.clone(), row))
            .collect();
        for uid in uids {
            let sent = match rows.remove(&uid) {
                Some(row) => {
                    let object = present::job(&row);
                    let event = match shown.get(&uid) {
                        Some((version, _)) if *version >= row.resource_version => continue,
                        Some(_) => "modified",
                        None => "added",
                    };
                    let sent = sender.send(event, None, &object).await;
                    shown.insert(uid, (row.resource_version, object));
                    sent
                }
                None => match shown.remove(&uid) {
                    Some((_, last)) => sender.send("deleted", None, &last).await,
                    None => continue,
                },
            };
            if sent.is_err() {
                return Ok(());
            }
        }
    }
}

/// Every job that the filter shows, newest first.
async fn all(app: &App, filter: &Filter) -> Result<Vec<JobRow>, ApiError> {
    if filter.name.is_some() {
        return filter.one(app).await;
    }
    let mut rows = Vec::new();
    let mut page = Page { limit: 500, cursor: None };
    loop {
        let (mut some, next) = app.store.list_jobs(filter.rows.clone(), page).await?;
        rows.append(&mut some);
        match next {
            Some(cursor) => page = Page { limit: 500, cursor: Some(cursor) },
            None => return Ok(rows),
        }
    }
}
