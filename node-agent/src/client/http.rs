//! The agent protocol over HTTPS.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use http::StatusCode;
use reqwest::RequestBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;
use windlass_crds::protocol::{
    ArtifactsLost, AttemptId, Bootstrap, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck,
    HeartbeatRequest, HeartbeatResponse, Problem, RegisterRequest, ReportRequest, ReportResponse,
};

use super::tls::Tls;
use super::{ArtifactBody, Authority, ControllerClient, Error, InputStream, TlsError, check_version};
use crate::session::Session;

/// A connection is made within it or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A call that does not wait for anything is answered within it, or the network is considered broken.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// An input makes some progress within it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// An artifact that is sent makes some progress within it, and is answered for within it once all of it was sent.
const STALL: Duration = Duration::from_secs(60);
/// A dead peer is noticed within two of these, so that a long poll does not hang on a connection that is gone.
const PING: Duration = Duration::from_secs(10);
/// Of an answer that is an error no more than this is read.
const MAX_PROBLEM: usize = 64 << 10;

/// The controller over HTTPS. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    /// For bodies that take their time: on connections of their own, so that they hold up nothing else.
    uploads: reqwest::Client,
    register_url: Url,
    found: Arc<Mutex<Option<Vec<u8>>>>,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The authority cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP library refuses its settings.
    #[error("the HTTP client cannot be set up")]
    Http(#[source] reqwest::Error),
    /// The controller's URL cannot be extended.
    #[error("`{url}` is not the URL of a controller")]
    Url {
        /// The URL.
        url: String,
    },
}

impl HttpClient {
    /// A client of the controller at `url`, which must present a certificate of `authority`.
    ///
    /// # Errors
    /// When the authority or the URL cannot be used.
    pub fn new(url: &Url, authority: &Authority) -> Result<Self, BuildError> {
        let Tls { config, found } = Tls::new(authority)?;
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(config.clone())
                .https_only(true)
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(PING)
                .http2_keep_alive_timeout(PING)
                .http2_keep_alive_while_idle(false)
                .tcp_nodelay(true)
                .user_agent(concat!("windlass-agent/", env!("CARGO_PKG_VERSION")))
        };
        let client = builder().read_timeout(READ_TIMEOUT + CALL_TIMEOUT).build().map_err(BuildError::Http)?;
        // Silence counts from the beginning of a request: an upload has a time of its own.
        let uploads = builder().build().map_err(BuildError::Http)?;
        let register_url =
            url.join("v1/nodes/register").map_err(|_| BuildError::Url { url: url.to_string() })?;
        Ok(Self { client, uploads, register_url, found })
    }

    /// The authority's certificate in DER, once a handshake has found the one with the pinned hash.
    pub fn found_authority(&self) -> Option<Vec<u8>> {
        self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn post<T: Serialize + Sync>(
        &self,
        session: &Session,
        url: &str,
        body: &T,
        timeout: Duration,
    ) -> Result<reqwest::Response, Error> {
        send(url, self.client.post(url).bearer_auth(&session.token).timeout(timeout).json(body)).await
    }
}

/// Sends a request and turns an answer that is no success into an error.
async fn send(url: &str, request: RequestBuilder) -> Result<reqwest::Response, Error> {
    let response = request.send().await.map_err(|source| unreachable(url, source))?;
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_PROBLEM {
            break;
        }
    }
    let (code, detail) = match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => (problem.code, problem.detail.unwrap_or(problem.title)),
        Err(_) => ("unknown".to_owned(), status.canonical_reason().unwrap_or("no reason given").to_owned()),
    };
    Err(Error::Refused { status: status.as_u16(), code, detail })
}

fn unreachable(url: &str, source: reqwest::Error) -> Error {
    Error::Unreachable { url: url.to_owned(), source: Box::new(source.without_url()) }
}

async fn json<T: DeserializeOwned>(what: &'static str, response: reqwest::Response) -> Result<T, Error> {
    let url = response.url().to_string();
    let body = response.bytes().await.map_err(|source| unreachable(&url, source))?;
    serde_json::from_slice(&body).map_err(|source| Error::Malformed { what, source })
}

#[async_trait]
impl ControllerClient for HttpClient {
    async fn register(&self, request: &RegisterRequest) -> Result<Bootstrap, Error> {
        let call = self.client.post(self.register_url.clone()).timeout(CALL_TIMEOUT).json(request);
        let answer: Bootstrap = json("register", send(self.register_url.as_str(), call).await?).await?;
        check_version("register", answer.version)?;
        Ok(answer)
    }

    async fn configuration(
        &self,
        session: &Session,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<Option<serde_json::Value>, Error> {
        let url = &session.endpoints.node_config_url;
        let mut call = self
            .client
            .get(url)
            .bearer_auth(&session.token)
            .timeout(CALL_TIMEOUT + wait)
            .query(&[("wait", wait.as_secs())]);
        if let Some(after) = after {
            call = call.query(&[("after", after)]);
        }
        let response = send(url, call).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Ok(None),
            _ => json("config", response).await.map(Some),
        }
    }

    async fn acknowledge(&self, session: &Session, ack: &ConfigAck) -> Result<(), Error> {
        self.post(session, &session.endpoints.node_config_url, ack, CALL_TIMEOUT).await.map(drop)
    }

    async fn capability(&self, session: &Session, report: &CapabilityReport) -> Result<(), Error> {
        self.post(session, &session.endpoints.node_report_url, report, CALL_TIMEOUT).await.map(drop)
    }

    async fn claim(&self, session: &Session, request: &ClaimRequest) -> Result<ClaimResponse, Error> {
        let timeout = CALL_TIMEOUT + Duration::from_secs(request.wait_seconds.into());
        let response = self.post(session, &session.endpoints.claim_url, request, timeout).await?;
        let url = response.url().to_string();
        let body = response.bytes().await.map_err(|source| unreachable(&url, source))?;
        let answer =
            ClaimResponse::read(&body).map_err(|source| Error::Malformed { what: "claim", source })?;
        check_version("claim", answer.version)?;
        Ok(answer)
    }

    async fn heartbeat(
        &self,
        session: &Session,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Error> {
        let response = self.post(session, &session.endpoints.heartbeat_url, request, CALL_TIMEOUT).await?;
        let answer: HeartbeatResponse = json("heartbeat", response).await?;
        check_version("heartbeat", answer.version)?;
        Ok(answer)
    }

    async fn report(&self, session: &Session, request: &ReportRequest) -> Result<ReportResponse, Error> {
        let response = self.post(session, &session.endpoints.report_url, request, CALL_TIMEOUT).await?;
        let answer: ReportResponse = json("report", response).await?;
        check_version("report", answer.version)?;
        Ok(answer)
    }

    async fn input(&self, session: &Session, digest: &str) -> Result<InputStream, Error> {
        let url = format!("{}/{digest}", session.endpoints.inputs_url.trim_end_matches('/'));
        // No limit for the whole: an input may be a gigabyte over a slow line. The client's own limit for silence
        // stands.
        let response = send(&url, self.client.get(&url).bearer_auth(&session.token)).await?;
        let bytes =
            response.bytes_stream().map(move |chunk| chunk.map_err(|source| unreachable(&url, source)));
        Ok(Box::pin(bytes))
    }

    async fn artifact(
        &self,
        session: &Session,
        attempt: &AttemptId,
        number: u32,
        body: ArtifactBody,
    ) -> Result<(), Error> {
        let AttemptId { job, epoch } = attempt;
        let url = format!("{}/{job}/{epoch}/{number}", artifacts_url(session)?.trim_end_matches('/'));
        let ArtifactBody { size, content } = body;
        let (progress, taken) = tokio::sync::watch::channel(());
        let content = content.inspect(move |_| {
            // Whoever watches may have given up.
            progress.send(()).ok();
        });
        let request = self
            .uploads
            .put(&url)
            .bearer_auth(&session.token)
            .header(http::header::CONTENT_LENGTH, size)
            .header(http::header::CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(content));
        // Both may be dropped: a body that breaks off is sent again.
        tokio::select! {
            biased;
            sent = send(&url, request) => sent.map(drop),
            () = stalled(taken) => {
                let source = format!("nothing was taken for {} s", STALL.as_secs());
                Err(Error::Unreachable { url: url.clone(), source: source.into() })
            }
        }
    }

    async fn artifacts_lost(&self, session: &Session, lost: &ArtifactsLost) -> Result<(), Error> {
        self.post(session, artifacts_url(session)?, lost, CALL_TIMEOUT).await.map(drop)
    }
}

/// Returns when nothing was taken of an upload for [`STALL`], or no answer came for as long after all of it was.
async fn stalled(mut taken: tokio::sync::watch::Receiver<()>) {
    loop {
        match tokio::time::timeout(STALL, taken.changed()).await {
            Ok(Ok(())) => {}
            // Who takes is gone: that was all.
            Ok(Err(_)) => return tokio::time::sleep(STALL).await,
            Err(_) => return,
        }
    }
}

/// Where artifacts go.
fn artifacts_url(session: &Session) -> Result<&str, Error> {
    session.endpoints.artifacts_url.as_deref().ok_or(Error::Incomplete { what: "register (artifacts_url)" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_given_up_when_it_gets_no_further() {
        let (progress, taken) = tokio::sync::watch::channel(());
        let began = tokio::time::Instant::now();
        let sends = async {
            for _ in 0..10 {
                tokio::time::sleep(STALL / 2).await;
                progress.send(()).unwrap();
            }
            progress
        };
        let (_progress, ()) = tokio::join!(sends, stalled(taken));
        assert_eq!(began.elapsed(), STALL * 6, "as long as it gets on, and a while more");

        let (progress, taken) = tokio::sync::watch::channel(());
        drop(progress);
        let began = tokio::time::Instant::now();
        stalled(taken).await;
        assert_eq!(began.elapsed(), STALL, "the answer has its time");
    }
}
