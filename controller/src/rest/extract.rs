//! What handlers take from a request: the caller, the body, the query, each with a clear error.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use windlass_crds::manifest::{self, Manifest};
use windlass_store::NodeRow;

use super::App;
use crate::auth;
use crate::error::{ApiError, Code};

/// A caller with an API token.
#[derive(Debug)]
pub(super) struct Operator;

/// A node with its token.
pub(super) struct Node(pub(super) NodeRow);

/// A JSON body of the agent protocol or of a small request: unknown fields are the type's business.
pub(super) struct Json<T>(pub(super) T);

/// A query string.
pub(super) struct Query<T>(pub(super) T);

/// The credentials of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get("authorization").and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            ApiError::new(Code::Unauthenticated, "send `Authorization: Bearer TOKEN` with an API token")
        })
}

impl FromRequestParts<App> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)?;
        let found = app.store.find_api_token(&auth::secret_hash(token)).await?;
        let now = app.clock.now();
        match found {
            Some(row) if row.expires_at.is_none_or(|at| at > now) => Ok(Self),
            Some(_) | None => Err(ApiError::new(
                Code::Unauthenticated,
                "the API token is unknown or has expired; the controller's admin token is in its state folder",
            )),
        }
    }
}

impl FromRequestParts<App> for Node {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        app.dispatch.authenticate(bearer(&parts.headers)?).await.map(Self)
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = body(request, app).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            ApiError::new(Code::BadRequest, format!("the body is not what this path takes: {error}"))
        })
    }
}

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        axum::extract::Query::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| ApiError::new(Code::BadRequest, error.body_text()))
    }
}

async fn body(request: Request, app: &App) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, app).await.map_err(|error| {
        if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::new(Code::TooLarge, format!("the body has more than {} bytes", super::JSON_LIMIT))
        } else {
            ApiError::new(Code::BadRequest, error.body_text())
        }
    })
}

/// A manifest in the body, read as strictly as from a file.
pub(super) struct Body<K>(pub(super) K);

impl<K: Manifest> FromRequest<App> for Body<K> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = body(request, app).await?;
        manifest::parse_one(&body, "body").map(Self).map_err(|errors| {
            if errors.iter().any(manifest::Error::is_syntax) {
                let detail = errors.first().map(ToString::to_string).unwrap_or_default();
                return ApiError::new(Code::BadRequest, detail);
            }
            ApiError::invalid("manifest", errors.iter().map(manifest::Error::to_field_error).collect())
        })
    }
}
