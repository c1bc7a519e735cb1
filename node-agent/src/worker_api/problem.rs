//! Errors of the Worker API: problem details of RFC 9457, with the codes of the controller's API where they mean the same.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use windlass_crds::protocol::{FieldError, Problem};

/// What went wrong, as programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Code {
    /// The request cannot be read, or asks for what cannot be.
    BadRequest,
    /// A payload version that this agent does not speak.
    UnsupportedPayloadVersion,
    /// No or no valid token.
    Unauthenticated,
    /// The node's rules, or the caller's rights, do not permit this.
    Forbidden,
    /// There is no such path, or no such run.
    NotFound,
    /// The method is not one of this path's.
    MethodNotAllowed,
    /// The request took too long to arrive.
    Timeout,
    /// The job's name was used for something else.
    Conflict,
    /// It ran, and its result is not kept any more.
    Gone,
    /// The body is too large.
    TooLarge,
    /// The node cannot take a job just now.
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
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Gone => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "Malformed request",
            Self::UnsupportedPayloadVersion => "Unsupported payload version",
            Self::Unauthenticated => "Credentials needed",
            Self::Forbidden => "Not permitted",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Timeout => "Timed out",
            Self::Conflict => "Name used for another job",
            Self::Gone => "Result not kept",
            Self::TooLarge => "Too large",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) detail: String,
    /// The fields that are wrong.
    pub(super) errors: Vec<FieldError>,
}

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new() }
    }

    /// A field of the request that is wrong.
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        let error = FieldError { field: field.to_owned(), message: message.into() };
        Self { errors: vec![error.clone()], ..Self::new(Code::BadRequest, error.to_string()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { code, detail, errors } = self;
        let word: &'static str = code.into();
        let status = code.status();
        let problem = Problem {
            problem_type: format!("urn:windlass:problem:{}", word.replace('_', "-")),
            title: code.title().to_owned(),
            status: status.as_u16(),
            detail: Some(detail),
            code: word.to_owned(),
            request_id: None,
            errors,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if code == Code::Unavailable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
