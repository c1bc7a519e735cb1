//! The one error of the REST API and the agent protocol: problem details with a stable code.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use windlass_crds::protocol::{FieldError, Problem};

/// What went wrong, as programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Code {
    /// The request could not be read.
    BadRequest,
    /// No or no valid credentials.
    Unauthenticated,
    /// Valid credentials that do not permit this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The method is not one of this path's.
    MethodNotAllowed,
    /// Somebody else changed the object first.
    Conflict,
    /// The name belongs to somebody else.
    NameTaken,
    /// An idempotency key came with another request than before.
    IdempotencyKeyReused,
    /// The job has ended.
    AlreadyEnded,
    /// The job has not ended.
    NotEnded,
    /// The thing is still being used.
    InUse,
    /// The same version exists with other content.
    VersionConflict,
    /// The object is not of the version that `If-Match` names.
    PreconditionFailed,
    /// It was declared in Kubernetes, and only changes there.
    DeclaredElsewhere,
    /// A newer instance or attempt has taken over.
    Fenced,
    /// The stored content of an upload is missing or damaged.
    InputDamaged,
    /// The body is too large.
    TooLarge,
    /// The body is of a kind that this path does not take.
    UnsupportedMediaType,
    /// The request's headers are too large.
    HeadersTooLarge,
    /// The object says something that cannot be.
    Invalid,
    /// The content does not have the digest that was named.
    DigestMismatch,
    /// A payload version that this controller does not speak.
    UnsupportedPayloadVersion,
    /// The request took too long.
    Timeout,
    /// The controller has a defect or its host is in trouble; the log says more.
    Internal,
    /// The store cannot be reached or cannot write just now; trying again helps.
    Unavailable,
}

impl Code {
    const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::UnsupportedPayloadVersion => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict
            | Self::NameTaken
            | Self::IdempotencyKeyReused
            | Self::AlreadyEnded
            | Self::NotEnded
            | Self::InUse
            | Self::VersionConflict
            | Self::DeclaredElsewhere
            | Self::Fenced => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::InputDamaged => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Invalid | Self::DigestMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "Malformed request",
            Self::Unauthenticated => "Credentials needed",
            Self::Forbidden => "Not permitted",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Conflict => "Changed meanwhile",
            Self::NameTaken => "Name taken",
            Self::IdempotencyKeyReused => "Idempotency key reused",
            Self::AlreadyEnded => "Already ended",
            Self::NotEnded => "Not ended yet",
            Self::InUse => "Still in use",
            Self::VersionConflict => "Version exists with other content",
            Self::PreconditionFailed => "Another version",
            Self::DeclaredElsewhere => "Declared in Kubernetes",
            Self::Fenced => "Superseded",
            Self::InputDamaged => "Stored content damaged",
            Self::TooLarge => "Too large",
            Self::UnsupportedMediaType => "Unsupported kind of body",
            Self::HeadersTooLarge => "Headers too large",
            Self::Invalid => "Invalid object",
            Self::DigestMismatch => "Digest mismatch",
            Self::UnsupportedPayloadVersion => "Unsupported payload version",
            Self::Timeout => "Timed out",
            Self::Internal => "Internal error",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// An error of a request.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    /// What went wrong, as programs see it.
    pub code: Code,
    /// What is wrong this time and what to do about it.
    pub detail: String,
    /// The fields that are wrong.
    pub errors: Vec<FieldError>,
    /// What caused it; goes to the log, never to the caller.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ApiError {
    /// An error with its explanation.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), source: None }
    }

    /// `404` for a named thing.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no {kind} `{name}`"))
    }

    /// `422` with the fields that are wrong.
    pub fn invalid(kind: &str, errors: Vec<FieldError>) -> Self {
        let count = errors.len();
        let detail = match errors.first() {
            Some(first) if count == 1 => first.to_string(),
            Some(_) | None => format!("the {kind} has {count} errors"),
        };
        Self { errors, ..Self::new(Code::Invalid, detail) }
    }

    /// An error whose cause is for the log.
    pub fn internal(doing: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..Self::new(Code::Internal, doing) }
    }

    /// The body of the answer.
    pub fn problem(&self) -> Problem {
        let code: &'static str = self.code.into();
        let status = self.code.status();
        let detail = if status.is_server_error() && self.source.is_some() {
            "the controller could not do this; its log has the cause under this request's id".to_owned()
        } else {
            self.detail.clone()
        };
        Problem {
            problem_type: format!("urn:windlass:problem:{}", code.replace('_', "-")),
            title: self.code.title().to_owned(),
            status: status.as_u16(),
            detail: Some(detail),
            code: code.to_owned(),
            request_id: None,
            errors: self.errors.clone(),
        }
    }
}

impl From<windlass_store::Error> for ApiError {
    fn from(error: windlass_store::Error) -> Self {
        use windlass_store::Error;
        let code = match &error {
            Error::Conflict { .. } => Code::Conflict,
            Error::NotFound { .. } => Code::NotFound,
            Error::AlreadyExists { .. } => Code::NameTaken,
            Error::InUse { .. } => Code::InUse,
            Error::OtherBoot { .. } => Code::Fenced,
            Error::Invalid { .. } => Code::Invalid,
            Error::Unavailable { .. }
            | Error::DiskFull { .. }
            | Error::NotWritable { .. }
            | Error::NotLeader
            | Error::Unreachable { .. }
            | Error::Refused { .. }
            | Error::NotPermitted { .. }
            | Error::ReadOnly { .. } => Code::Unavailable,
            Error::Corrupt { .. }
            | Error::Damaged { .. }
            | Error::Locked { .. }
            | Error::NewerSchema { .. }
            | Error::SchemaBroken { .. }
            | Error::BadUrl { .. }
            | Error::OldServer { .. } => Code::Internal,
        };
        match code {
            Code::Unavailable | Code::Internal => {
                Self { code, detail: error.to_string(), errors: Vec::new(), source: Some(Box::new(error)) }
            }
            _ => Self::new(code, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        if status.is_server_error() {
            let error = self.source.as_ref().map(|source| chain(source.as_ref()));
            tracing::error!(error.kind = <&str>::from(self.code), error = error, "{}", self.detail);
        }
        let mut response = (status, Json(self.problem())).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// An error and its causes in one line, each of them once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some say their cause themselves.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it broke: {source}")]
    struct Repeats {
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("nothing was done")]
    struct Told(#[source] Repeats);

    #[test]
    fn a_cause_that_was_said_already_is_not_said_again() {
        let told = Told(Repeats { source: std::io::Error::other("no disk") });
        assert_eq!(chain(&told), "nothing was done: it broke: no disk");
    }
}
