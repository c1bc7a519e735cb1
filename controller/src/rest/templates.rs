//! Job templates.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use windlass_core::validate;
use windlass_crds::JobTemplate;
use windlass_crds::protocol::FieldError;
use windlass_store::PutTemplate;

use super::App;
use super::extract::{Body, IfMatch, Operator, Path};
use super::origin::require_native;
use super::present;
use crate::error::{ApiError, Code};

pub(super) async fn list_all(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    answer(&app, None).await
}

pub(super) async fn list(
    State(app): State<App>,
    _: Operator,
    Path(namespace): Path<String>,
) -> Result<Json<Value>, ApiError> {
    answer(&app, Some(&namespace)).await
}

async fn answer(app: &App, namespace: Option<&str>) -> Result<Json<Value>, ApiError> {
    let rows = app.store.list_templates(namespace).await?;
    let items: Vec<_> = rows.iter().map(present::template).collect();
    Ok(Json(present::list("JobTemplateList", &items, None)))
}

pub(super) async fn get(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<JobTemplate>, ApiError> {
    let row = app.store.get_template(&namespace, &name).await?;
    row.map(|row| Json(present::template(&row)))
        .ok_or_else(|| ApiError::not_found("template", &format!("{namespace}/{name}")))
}

pub(super) async fn apply(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    if_match: IfMatch,
    Body(template): Body<JobTemplate>,
) -> Result<Response, ApiError> {
    for (field, found, wanted) in [
        ("metadata.name", &template.metadata.name, &name),
        ("metadata.namespace", &template.metadata.namespace, &namespace),
    ] {
        if let Some(found) = found.as_ref().filter(|found| *found != wanted) {
            let message = format!("`{found}` differs from `{wanted}` in the path");
            let error = FieldError { field: field.to_owned(), message };
            return Err(ApiError::invalid("template", vec![error]));
        }
    }
    validate::validate_template(&template).map_err(|errors| ApiError::invalid("template", errors))?;
    if let Some(row) = app.store.get_template(&namespace, &name).await?
        && row.spec != template.spec
    {
        require_native(&app, &row.uid, &format!("template `{namespace}/{name}`")).await?;
    }
    let now = app.clock.now();
    let uid = app.ids.uid(now);
    if if_match == IfMatch::Exists {
        let found = app.store.get_template(&namespace, &name).await?;
        if_match.check("template", &name, found.map(|row| row.resource_version))?;
    }
    let place = (namespace.as_str(), name.as_str());
    let put = app.store.put_template(now, place, &uid, template.spec, if_match.version()).await;
    let (status, word, row) = match if_match.settle(put)? {
        PutTemplate::Created(row) => (StatusCode::CREATED, "created", row),
        PutTemplate::Updated(row) => (StatusCode::OK, "configured", row),
        PutTemplate::Unchanged(row) => (StatusCode::OK, "unchanged", row),
        PutTemplate::VersionConflict { existing } => {
            return Err(ApiError::new(
                Code::VersionConflict,
                format!(
                    "template `{namespace}/{name}` has a version `{}` with other content; raise spec.version",
                    existing.spec.version
                ),
            ));
        }
    };
    Ok((status, [("windlass-outcome", word)], Json(present::template(&row))).into_response())
}

pub(super) async fn remove(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    if_match: IfMatch,
) -> Result<Json<JobTemplate>, ApiError> {
    if let Some(row) = app.store.get_template(&namespace, &name).await? {
        require_native(&app, &row.uid, &format!("template `{namespace}/{name}`")).await?;
    }
    let row = if_match.settle(app.store.delete_template(&namespace, &name, if_match.version()).await)?;
    row.map(|row| Json(present::template(&row)))
        .ok_or_else(|| ApiError::not_found("template", &format!("{namespace}/{name}")))
}
