//! What handlers take from a request: the caller, the body, the query, each with a clear error.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, IF_MATCH};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use windlass_crds::manifest::{self, Document, Manifest};
use windlass_crds::protocol::bounds::Bounded;
use windlass_store::NodeRow;

use super::App;
use super::pace::TooSlow;
use crate::auth;
use crate::error::{ApiError, Code};

/// A caller with an API token.
#[derive(Debug)]
pub(super) struct Operator;

/// A node with its token.
pub(super) struct Node(pub(super) NodeRow);

/// A JSON body of the agent protocol or of a small request: unknown fields are the type's business.
pub(super) struct Json<T>(pub(super) T);

/// A message of the agent protocol, within its bounds.
pub(super) struct Message<T>(pub(super) T);

/// A body as it came.
pub(super) struct Raw(pub(super) Bytes);

/// A query string.
pub(super) struct Query<T>(pub(super) T);

/// The variable parts of a path.
pub(super) struct Path<T>(pub(super) T);

/// The version that an object must have for a change to be made: the `resourceVersion` in `If-Match`, as it is or in
/// quotes; `*` is any version, and nothing is said where the header is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// Nothing is asked.
    Anything,
    /// The object must exist.
    Exists,
    /// The object must be of this version.
    Version(i64),
}

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

impl IfMatch {
    /// Refuses a change of an object that is of another version than was asked for. `found` is the version that there
    /// is, if there is any.
    pub(super) fn check(self, kind: &str, name: &str, found: Option<i64>) -> Result<(), ApiError> {
        let refused = |detail: String| Err(ApiError::new(Code::PreconditionFailed, detail));
        match (self, found) {
            (Self::Anything, _) | (Self::Exists, Some(_)) => Ok(()),
            (Self::Exists | Self::Version(_), None) => {
                refused(format!("If-Match asks for a {kind} `{name}`, and there is none"))
            }
            (Self::Version(wanted), Some(found)) if wanted == found => Ok(()),
            (Self::Version(wanted), Some(found)) => refused(format!(
                "{kind} `{name}` has the resourceVersion {found}, not {wanted} as If-Match says; read it again and decide \
                 anew"
            )),
        }
    }

    /// What a change came to that the store made on condition of [`IfMatch::version`].
    pub(super) fn settle<T>(self, result: Result<T, windlass_store::Error>) -> Result<T, ApiError> {
        match (self, result) {
            (Self::Version(_), Err(windlass_store::Error::Conflict { object, key, found, .. })) => {
                // It differs from what was asked for, so this is always an error.
                self.check(object, &key, (found > 0).then_some(found))?;
                Err(ApiError::new(
                    Code::PreconditionFailed,
                    format!("{object} `{key}` has changed meanwhile"),
                ))
            }
            (_, result) => Ok(result?),
        }
    }

    /// The version that the store must find, where one is named.
    pub(super) const fn version(self) -> Option<i64> {
        match self {
            Self::Anything | Self::Exists => None,
            Self::Version(version) => Some(version),
        }
    }
}

impl FromRequestParts<App> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(IF_MATCH) else { return Ok(Self::Anything) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self::Exists);
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        version.parse().map(Self::Version).map_err(|_| {
            let detail = format!("If-Match: `{text}` is neither `*` nor the resourceVersion of an object");
            ApiError::new(Code::BadRequest, detail)
        })
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = body(request, app).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| not_taken(&error))
    }
}

impl<T: DeserializeOwned + Bounded> FromRequest<App> for Message<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let Json(mut message) = Json::<T>::from_request(request, app).await?;
        let errors = message.bound("");
        if errors.is_empty() { Ok(Self(message)) } else { Err(ApiError::invalid("message", errors)) }
    }
}

impl FromRequest<App> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        body(request, app).await.map(Self)
    }
}

/// The body is JSON of another kind than was expected, or none.
pub(super) fn not_taken(error: &serde_json::Error) -> ApiError {
    ApiError::new(Code::BadRequest, format!("the body is not what this path takes: {error}"))
}

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        axum::extract::Path::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            .map_err(|error| ApiError::new(Code::BadRequest, error.body_text()))
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
    check_kind(request.headers())?;
    Bytes::from_request(request, app).await.map_err(|error| {
        if let Some(slow) = TooSlow::find(&error) {
            ApiError::new(Code::Timeout, slow.to_string())
        } else if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::new(Code::TooLarge, format!("the body has more than {} bytes", super::JSON_LIMIT))
        } else {
            ApiError::new(Code::BadRequest, error.body_text())
        }
    })
}

/// Refuses a body that says it is something else than JSON or YAML. What says nothing, or what tools send that know no
/// better, is read as it is.
fn check_kind(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
    let refused = |detail: String| Err(ApiError::new(Code::UnsupportedMediaType, detail));
    if let Some(encoding) = text(CONTENT_ENCODING).filter(|encoding| encoding != "identity") {
        return refused(format!(
            "Content-Encoding: `{encoding}` is not decoded here; send the body as it is"
        ));
    }
    let Some(kind) = text(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_known = ["json", "yaml"].iter().any(|word| kind.contains(word))
        || ["", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"]
            .contains(&kind);
    if is_known { Ok(()) } else { refused(format!("Content-Type: `{kind}` is not taken; send JSON or YAML")) }
}

/// A manifest in the body, read as strictly as from a file.
pub(super) struct Body<K>(pub(super) K);

impl<K: Manifest> FromRequest<App> for Body<K> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = body(request, app).await?;
        manifest::parse_one(&body, "body").map(Self).map_err(|errors| unreadable(&errors))
    }
}

/// All manifests in the body, a list of them or one after the other.
pub(super) struct Documents(pub(super) Vec<Document>);

impl FromRequest<App> for Documents {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = body(request, app).await?;
        manifest::parse_bytes(&body, "body").map(Self).map_err(|errors| unreadable(&errors))
    }
}

fn unreadable(errors: &[manifest::Error]) -> ApiError {
    if errors.iter().any(manifest::Error::is_syntax) {
        let detail = errors.first().map(ToString::to_string).unwrap_or_default();
        return ApiError::new(Code::BadRequest, detail);
    }
    ApiError::invalid("manifest", errors.iter().map(manifest::Error::to_field_error).collect())
}
