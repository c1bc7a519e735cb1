//! Calls to Worker APIs: over TLS, to the one certificate that the node has reported.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use windlass_crds::protocol::worker_api::{RUN_PATH, RunJobRequest, RunSandbox, attempt_path};
use windlass_crds::protocol::{Assignment, AttemptId, Problem, VERSION};

/// A connection is made within it or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of an answer that is an error no more than this is read.
const MAX_PROBLEM: usize = 16 << 10;
/// Connections to one node that are kept though nothing is asked.
const IDLE: usize = 2;

/// Where and how a node is called.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The node.
    pub node: String,
    /// The Worker API, without a path.
    pub url: String,
    /// Its certificate, in PEM.
    pub certificate: String,
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("node", &self.node).field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It did not reach the node.
    #[error("{url} cannot be reached")]
    Unsent {
        /// Where the node should be.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It may have reached the node, and its answer did not come.
    #[error("{url} has not answered")]
    Unanswered {
        /// Where the node is.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The node refused.
    #[error("the node answered {status}: {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why.
        detail: String,
    },
}

/// Calls nodes: over HTTPS, or a test.
pub trait WorkerClient: Send + Sync + 'static {
    /// Gives an attempt to a node. It returns once the node has taken it on.
    fn run<'a>(
        &'a self,
        target: &'a Target,
        assignment: &'a Assignment,
    ) -> BoxFuture<'a, Result<(), CallError>>;

    /// Asks whether a node has an attempt.
    fn has<'a>(
        &'a self,
        target: &'a Target,
        attempt: &'a AttemptId,
    ) -> BoxFuture<'a, Result<bool, CallError>>;
}

/// Calls nodes over HTTPS. A client belongs to one node, whose connections it keeps.
pub(crate) struct HttpsClient {
    timeout: Duration,
    /// The client for the certificate that was called last. Protects a handle that is cloned out at once.
    current: std::sync::Mutex<Option<(String, reqwest::Client)>>,
}

impl HttpsClient {
    /// A client that waits so long for an answer.
    pub(crate) const fn new(timeout: Duration) -> Self {
        Self { timeout, current: std::sync::Mutex::new(None) }
    }

    fn client(&self, target: &Target) -> Result<reqwest::Client, CallError> {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((certificate, client)) = &*current
            && *certificate == target.certificate
        {
            return Ok(client.clone());
        }
        let client = build(&target.certificate, self.timeout)
            .map_err(|source| CallError::Unsent { url: target.url.clone(), source })?;
        *current = Some((target.certificate.clone(), client.clone()));
        Ok(client)
    }

    async fn send(
        &self,
        target: &Target,
        request: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<(), CallError> {
        let url = || target.url.clone();
        let request = request(&self.client(target)?).bearer_auth(&target.token);
        let response = request.send().await.map_err(|error| {
            // Without a connection nothing was sent; after that nobody can tell.
            let unsent = error.is_connect() || error.is_builder();
            let source = error.without_url().into();
            match unsent {
                true => CallError::Unsent { url: url(), source },
                false => CallError::Unanswered { url: url(), source },
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let detail = detail(response).await;
        Err(CallError::Refused { status: status.as_u16(), detail })
    }
}

impl WorkerClient for HttpsClient {
    fn run<'a>(
        &'a self,
        target: &'a Target,
        assignment: &'a Assignment,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let body = request(assignment);
            self.send(target, |client| {
                client.post(format!("{}{RUN_PATH}", target.url)).header("prefer", "respond-async").json(&body)
            })
            .await
        })
    }

    fn has<'a>(
        &'a self,
        target: &'a Target,
        attempt: &'a AttemptId,
    ) -> BoxFuture<'a, Result<bool, CallError>> {
        Box::pin(async move {
            let path = attempt_path(&attempt.job, attempt.epoch);
            match self.send(target, |client| client.get(format!("{}{path}", target.url))).await {
                Ok(()) => Ok(true),
                Err(CallError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(false),
                Err(error) => Err(error),
            }
        })
    }
}

/// A whole attempt in the words of the Worker API.
fn request(assignment: &Assignment) -> RunJobRequest {
    let job = &assignment.attempt.job;
    let text =
        serde_json::to_string(assignment).expect("an assignment has only string keys and becomes JSON");
    RunJobRequest {
        version: VERSION,
        task_id: assignment.task_id.clone().unwrap_or_else(|| job.clone()),
        job_id: job.clone(),
        sandbox: RunSandbox { job_spec_json: Some(text), ..RunSandbox::default() },
    }
}

/// What an answer says that is an error.
async fn detail(response: reqwest::Response) -> String {
    let mut body = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        body.extend_from_slice(&piece);
        if body.len() > MAX_PROBLEM {
            return "it is none of a Worker API".to_owned();
        }
    }
    let problem: Result<Problem, _> = serde_json::from_slice(&body);
    match problem {
        Ok(problem) => problem.detail.unwrap_or(problem.title),
        Err(_) => "it is none of a Worker API".to_owned(),
    }
}

fn build(pem: &str, timeout: Duration) -> Result<reqwest::Client, Box<dyn std::error::Error + Send + Sync>> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("the node reports a certificate that cannot be read: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { certificate, provider: Arc::clone(&provider) };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .pool_max_idle_per_host(IDLE)
        .tcp_nodelay(true)
        .user_agent(concat!("windlass-controller/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// Trusts one certificate. What it says of names and times does not matter: the node itself has named it.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
