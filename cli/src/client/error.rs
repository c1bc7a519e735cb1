//! Why a request failed, and what a person reads about it.

use std::path::PathBuf;

use http::StatusCode;
use url::Url;
use windlass_crds::protocol::Problem;

use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::settings::Origin;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody said where the server is.
    #[error("no server is configured")]
    NoServer,
    /// The file with the certificate authority cannot be used.
    #[error("the certificate authority in {} cannot be used", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file with the token cannot be read.
    #[error("the token file {} cannot be read", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file with the token holds something else.
    #[error("the token file {} does not hold a token", path.display())]
    NotAToken {
        /// The file.
        path: PathBuf,
    },
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made")]
    Setup(#[source] reqwest::Error),
    /// Nobody answers at the server's address.
    #[error("the server at {url} cannot be reached")]
    Unreachable {
        /// The server.
        url: Url,
        /// Where the address came from.
        origin: Box<Origin>,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server's certificate is not signed by an authority that we trust.
    #[error("the certificate of {url} is not trusted")]
    Untrusted {
        /// The server.
        url: Url,
        /// Whether an authority was configured.
        has_ca: bool,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server took too long, or the connection broke in the middle.
    #[error("the connection to {url} was lost while waiting for an answer")]
    Lost {
        /// The server.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server accepted a request and never answered.
    #[error("the server at {url} did not answer for {seconds} seconds")]
    Silent {
        /// The server.
        url: Url,
        /// How long.
        seconds: u64,
    },
    /// The server refused, and said why.
    #[error("{}", .0.title)]
    Problem(Box<Problem>),
    /// Somebody answered who is not a Windlass controller.
    #[error("{url} answered {status} in a way that a Windlass controller does not")]
    Foreign {
        /// The server.
        url: Url,
        /// The HTTP status.
        status: StatusCode,
        /// The beginning of the answer.
        excerpt: String,
    },
    /// The server's answer is not what was expected, such as one of a much newer version.
    #[error("the server's answer to {what} cannot be read")]
    Malformed {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A stream broke off and could not be taken up again.
    #[error("the stream of {url} broke off and could not be taken up again for {seconds} seconds")]
    StreamLost {
        /// The server.
        url: Url,
        /// How long it was tried.
        seconds: u64,
        /// What the last try said.
        reason: String,
    },
    /// The stream held something that is not an event.
    #[error("the server's stream cannot be read")]
    Stream(#[source] super::sse::TooLarge),
    /// The file that is uploaded cannot be read.
    #[error("the input cannot be read while it is uploaded")]
    Upload(#[source] std::io::Error),
}

impl Error {
    /// The server's word for its refusal, where it refused.
    pub(crate) fn problem_code(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => Some(&problem.code),
            Self::NoServer
            | Self::CaFile { .. }
            | Self::TokenFile { .. }
            | Self::NotAToken { .. }
            | Self::Setup(_)
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Foreign { .. }
            | Self::Malformed { .. }
            | Self::StreamLost { .. }
            | Self::Stream(_)
            | Self::Upload(_) => None,
        }
    }

    /// Whether the same request may succeed a little later: the server is away, or says that it is not ready.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Silent { .. } => true,
            Self::Problem(problem) => problem.status >= 500 || problem.status == 429,
            Self::Foreign { status, .. } => status.is_server_error(),
            Self::NoServer
            | Self::CaFile { .. }
            | Self::TokenFile { .. }
            | Self::NotAToken { .. }
            | Self::Setup(_)
            | Self::Untrusted { .. }
            | Self::Malformed { .. }
            | Self::StreamLost { .. }
            | Self::Stream(_)
            | Self::Upload(_) => false,
        }
    }

    /// What a person reads.
    pub(crate) fn report(&self) -> Report {
        let new = |exit| Report::new(exit, self.to_string()).causes(self);
        match self {
            Self::NoServer => new(Exit::Usage).hint(
                "start one on this machine with `windlass dev`, or name one with `--server URL`, WINDLASS_SERVER or \
                 `server:` in the configuration file (`windlass config` shows which)",
            ),
            Self::CaFile { .. } => {
                new(Exit::Usage).hint("name a PEM file with the controller's certificate authority: `--ca-file PATH`")
            }
            Self::TokenFile { .. } | Self::NotAToken { .. } => {
                new(Exit::Usage).hint("name the file that holds the API token: `--token-file PATH`")
            }
            Self::Setup(_) | Self::Malformed { .. } | Self::Stream(_) | Self::Upload(_) => new(Exit::Failed),
            Self::Unreachable { origin, .. } => new(Exit::Unreachable).hint(match origin.as_ref() {
                Origin::Dev(file) => format!(
                    "the `windlass dev` that wrote {} is not running any more: start it again with `windlass dev`",
                    file.display()
                ),
                origin => format!(
                    "the address comes from {origin}; start a controller on this machine with `windlass dev`, or \
                     name another one with `--server URL`"
                ),
            }),
            Self::Untrusted { has_ca: true, .. } => new(Exit::Unreachable)
                .hint("the file given by `--ca-file` belongs to another controller, or the address is not in its certificate"),
            Self::Untrusted { has_ca: false, .. } => new(Exit::Unreachable)
                .hint("name the controller's certificate authority with `--ca-file PATH` (pki/ca.crt in its state folder)"),
            Self::Lost { .. } | Self::Silent { .. } => new(Exit::Unreachable).hint("try again; if it stays so, look at the controller's log"),
            Self::StreamLost { reason, .. } => new(Exit::Unreachable).detail(reason.clone()),
            Self::Foreign { excerpt, .. } => new(Exit::Failed)
                .detail(excerpt.clone())
                .hint("check the server's address: `windlass config` shows it and where it came from"),
            Self::Problem(problem) => of_problem(problem),
        }
    }
}

/// A refusal in words: the detail is what happened, the fields come one a line.
fn of_problem(problem: &Problem) -> Report {
    let exit = Exit::of_problem(&problem.code);
    let what = problem.detail.as_deref().unwrap_or(&problem.title);
    let report = Report::new(exit, what.trim_end_matches('.'))
        .details(problem.errors.iter().map(|error| crate::output::human::printable(&error.to_string())));
    let report = match (&problem.request_id, problem.status >= 500) {
        (Some(id), true) => report.detail(format!("the controller's log has more about request {id}")),
        (Some(_) | None, _) => report,
    };
    match problem.code.as_str() {
        "unauthenticated" => report.hint(
            "the token is missing, wrong or expired: name the file that holds a good one with `--token-file PATH`",
        ),
        "forbidden" => report.hint("the token is good, but its role does not allow this"),
        "unavailable" | "rate_limited" => report.hint("try again in a moment"),
        _ => report,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Report(error.report())
    }
}
