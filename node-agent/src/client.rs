//! What the agent asks of the controller: the agent protocol as a trait, so that a simulation can stand in for it.

mod http;
mod tls;

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use windlass_crds::protocol::{
    ArtifactsLost, AttemptId, Bootstrap, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck,
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, ReportRequest, ReportResponse,
};

pub use self::http::{BuildError, HttpClient};
pub(crate) use self::tls::plain_config;
pub use self::tls::{Authority, Error as TlsError};
use crate::session::Session;

/// The bytes of an input as they arrive.
pub type InputStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// The content of an artifact as it is read.
pub struct ArtifactBody {
    /// How many bytes it has.
    pub size: u64,
    /// The bytes.
    pub content: Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>,
}

/// The agent protocol. Each call is one request: who calls decides about retries.
#[async_trait]
pub trait ControllerClient: Send + Sync + 'static {
    /// Registers the node.
    async fn register(&self, request: &RegisterRequest) -> Result<Bootstrap, Error>;

    /// Waits up to `wait` for a configuration newer than `after`; `None` when there is none. The configuration is not
    /// interpreted, so that one that this agent cannot read can be acknowledged as failed.
    async fn configuration(
        &self,
        session: &Session,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<Option<serde_json::Value>, Error>;

    /// Says what became of a configuration.
    async fn acknowledge(&self, session: &Session, ack: &ConfigAck) -> Result<(), Error>;

    /// Says what the host can do.
    async fn capability(&self, session: &Session, report: &CapabilityReport) -> Result<(), Error>;

    /// Waits for work and orders.
    async fn claim(&self, session: &Session, request: &ClaimRequest) -> Result<ClaimResponse, Error>;

    /// Renews leases.
    async fn heartbeat(
        &self,
        session: &Session,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Error>;

    /// Delivers records.
    async fn report(&self, session: &Session, request: &ReportRequest) -> Result<ReportResponse, Error>;

    /// Fetches an uploaded input.
    async fn input(&self, session: &Session, digest: &str) -> Result<InputStream, Error>;

    /// Sends the body of an artifact, by its number in the attempt's manifest. [`Error::Incomplete`] where the controller takes
    /// none.
    async fn artifact(
        &self,
        session: &Session,
        attempt: &AttemptId,
        number: u32,
        body: ArtifactBody,
    ) -> Result<(), Error>;

    /// Says which bodies will never come.
    async fn artifacts_lost(&self, session: &Session, lost: &ArtifactsLost) -> Result<(), Error>;
}

/// Why a call to the controller failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer came.
    #[error("the controller at {url} does not answer")]
    Unreachable {
        /// What was called.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The controller refused.
    #[error("the controller refused ({status} {code}): {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code of the problem.
        code: String,
        /// What is wrong, for people.
        detail: String,
    },
    /// The answer cannot be understood.
    #[error("the controller's answer to {what} cannot be understood")]
    Malformed {
        /// What was asked.
        what: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The answer is of a version that this agent does not know.
    #[error("the controller's answer to {what} has version {version}, this agent knows 1; update the agent")]
    UnsupportedVersion {
        /// What was asked.
        what: &'static str,
        /// The version.
        version: u32,
    },
    /// The answer leaves out what was asked.
    #[error("the controller's answer to {what} is incomplete")]
    Incomplete {
        /// What was asked.
        what: &'static str,
    },
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { status: 401, .. } => "unauthenticated",
            Self::Refused { status: 500.., .. } => "unavailable",
            Self::Refused { .. } => "refused",
            Self::Malformed { .. } => "malformed",
            Self::UnsupportedVersion { .. } => "unsupported_version",
            Self::Incomplete { .. } => "incomplete",
        }
    }

    /// Whether the node's token is not accepted (any more).
    pub const fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }

    /// Whether another agent uses this node's identity.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Refused { status: 409, code, .. } if code == "fenced")
    }

    /// Whether the controller does not have what was asked for, or has it no more.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404 | 410, .. })
    }

    /// Whether a controller that knows the call says that it does not have what the call is about. What answers for a controller that
    /// is away has no such code, and a controller of before the call says that it has no such path.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status: 404 | 410, code, detail }
            if code == "not_found" && !detail.starts_with("there is no path"))
    }

    /// Whether the request's body will be refused however often it is sent.
    pub const fn is_about_the_body(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 413 | 422, .. })
    }
}

/// Refuses an answer of an unknown version.
pub(crate) fn check_version(what: &'static str, version: u32) -> Result<(), Error> {
    if version == windlass_crds::protocol::VERSION {
        Ok(())
    } else {
        Err(Error::UnsupportedVersion { what, version })
    }
}
