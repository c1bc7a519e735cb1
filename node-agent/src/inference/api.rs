//! What is said to a server of models: Ollama's own interface, and OpenAI's.

use std::time::Duration;

use futures::StreamExt as _;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, StatusCode};
use rustls::CertificateError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use windlass_crds::inference::{InferenceEngine, Model};
use windlass_crds::protocol::bounds::{MAX_MODELS, MAX_WORD};

use super::Trouble;
use super::place::Endpoint;

/// A server on the host or its network is reached within it or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to say something; one that loads a model answers that it does.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a download may make no progress.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Of an answer no more than this is read: some hundreds of models.
const MAX_ANSWER: usize = 4 << 20;
/// Bytes of a line of progress.
const MAX_LINE: usize = 64 << 10;

/// A client of a server of models. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    client: reqwest::Client,
    at: Endpoint,
}

/// How far a download is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) status: String,
    /// Bytes that are there and bytes in all, where they are known.
    pub(super) bytes: Option<(u64, u64)>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Served {
    #[serde(default)]
    data: Vec<ServedModel>,
}

#[derive(Deserialize)]
struct ServedModel {
    id: String,
}

/// One line of a download.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PullLine {
    status: Option<String>,
    digest: Option<String>,
    total: Option<u64>,
    completed: Option<u64>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    error: serde_json::Value,
}

impl Api {
    /// # Errors
    /// When the HTTP library refuses its settings.
    pub(super) fn new(at: &Endpoint) -> Result<Self, Trouble> {
        let refused = |why: String| {
            Trouble::new("Unreachable", format!("the client of {} cannot be set up: {why}", at.url()))
        };
        let tls = match &at.tls {
            Some(tls) => tls.config().clone(),
            // The library wants to know who would be trusted all the same: nobody.
            None => crate::client::plain_config(Vec::new()).map_err(|error| refused(error.to_string()))?,
        };
        let mut headers = HeaderMap::new();
        headers.extend(at.authorization.clone().map(|key| (AUTHORIZATION, key)));
        // The address that was judged is the one that is spoken to.
        let name = at.host.rsplit_once(':').map_or(&*at.host, |(name, _)| name);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .default_headers(headers)
            .resolve(name, at.address)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("windlass-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| refused(crate::error_chain(&error)))?;
        Ok(Self { client, at: at.clone() })
    }

    /// The server that it speaks to.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.at
    }

    /// Whether the server is up, and its version where it tells one.
    pub(super) async fn probe(&self, engine: InferenceEngine) -> Result<Option<String>, Trouble> {
        match engine {
            InferenceEngine::Ollama => {
                let Version { version } = self.get("/api/version").await?;
                Ok(Some(version))
            }
            InferenceEngine::OpenaiCompatible => {
                let response = self.call(Method::GET, "/health", None).await?;
                match response.status() {
                    StatusCode::SERVICE_UNAVAILABLE => {
                        Err(Trouble::passing("Starting", "the server loads its model"))
                    }
                    // Not every server has it; then its list of models has to do.
                    status if status.is_success() || status.is_client_error() => Ok(None),
                    status => Err(Trouble::new(
                        "Unhealthy",
                        format!("the server at {} answers {status} to GET /health", self.at.url()),
                    )),
                }
            }
        }
    }

    /// The models that the server has, by name.
    pub(super) async fn models(&self, engine: InferenceEngine) -> Result<Vec<Model>, Trouble> {
        let mut models: Vec<Model> = match engine {
            InferenceEngine::Ollama => {
                let Tags { models } = self.get("/api/tags").await?;
                let digest = |digest: String| match digest.contains(':') {
                    true => digest,
                    false => format!("sha256:{digest}"),
                };
                let model =
                    |tag: Tag| Model { name: tag.name, digest: tag.digest.map(digest), size: tag.size };
                models.into_iter().map(model).collect()
            }
            InferenceEngine::OpenaiCompatible => {
                let Served { data } = self.get("/v1/models").await?;
                data.into_iter().map(|model| Model { name: model.id, digest: None, size: None }).collect()
            }
        };
        models.sort_by(|one, other| one.name.cmp(&other.name));
        models.dedup_by(|one, other| one.name == other.name);
        // What the controller would refuse is of no use to anybody.
        models.retain(|model| model.name.len() <= MAX_WORD && !model.name.chars().any(char::is_control));
        models.truncate(MAX_MODELS);
        Ok(models)
    }

    /// Tells Ollama to fetch a model, and how that goes.
    pub(super) async fn pull(
        &self,
        model: &str,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), Trouble> {
        let url = format!("{}/api/pull", self.at.url());
        let body = serde_json::json!({"model": model, "stream": true});
        let sent = self.client.post(&url).json(&body).send().await;
        let response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let mut chunks = response.bytes_stream();
        let mut buffer: Vec<u8> = Vec::new();
        let mut layers: std::collections::BTreeMap<String, (u64, u64)> = std::collections::BTreeMap::new();
        let mut done = false;
        let interrupted = |why: &str| {
            Trouble::new(
                "ModelPullFailed",
                format!("fetching the model `{model}` was interrupted: {why}; it is tried again"),
            )
        };
        loop {
            let chunk = match chunks.next().await {
                None => break,
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(interrupted(&crate::error_chain(&error))),
            };
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                done |= take_line(model, &line, &mut layers, progress)?;
            }
            if buffer.len() > MAX_LINE {
                return Err(interrupted("the server sends no lines"));
            }
        }
        if !buffer.is_empty() {
            done |= take_line(model, &buffer, &mut layers, progress)?;
        }
        match (done, status.is_success()) {
            (true, true) => Ok(()),
            (_, false) => Err(Trouble::new(
                "ModelPullFailed",
                format!("the server answers {status} to fetching the model `{model}`"),
            )),
            (false, true) => Err(interrupted("the server ended before it said `success`")),
        }
    }

    /// Tells Ollama to remove a model. One that it does not have is fine.
    pub(super) async fn delete(&self, model: &str) -> Result<(), Trouble> {
        let body = serde_json::json!({"model": model});
        let response = self.call(Method::DELETE, "/api/delete", Some(&body)).await?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status => Err(Trouble::new(
                "PruneFailed",
                format!("the server answers {status} to removing the model `{model}`"),
            )),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<reqwest::Response, Trouble> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.at.url())).timeout(CALL_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        let response = self.call(Method::GET, path, None).await?;
        let status = response.status();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| self.unreachable(&error))?;
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(self.odd(path, "its answer is too long"));
            }
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Trouble::passing("Starting", "the server loads its model"));
        }
        if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
            let given = match &self.at.authorization {
                Some(_) => "it wants another key than the one of inference.apiKeyFile",
                None => "it wants a key; name a file of the node that has it in inference.apiKeyFile",
            };
            let message = format!("the server at {} answers {status} to GET {path}: {given}", self.at.url());
            return Err(Trouble::new("KeyRefused", message));
        }
        if !status.is_success() {
            return Err(self.odd(path, &format!("it answers {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|error| self.odd(path, &format!("its answer cannot be read: {error}")))
    }

    fn odd(&self, path: &str, why: &str) -> Trouble {
        let url = self.at.url();
        let message = format!(
            "the server at {url} is no server of models as inference.engine names it: GET {path}: {why}"
        );
        Trouble::new("Unhealthy", message)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Trouble {
        let url = self.at.url();
        if let Some(why) = refused_certificate(error) {
            let message = format!("the certificate of the server at {url} is not accepted: {why}");
            return Trouble::new("CertificateRefused", message);
        }
        // Its own words hold the address; the cause is what counts.
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Trouble::new("Unreachable", format!("the server at {url} does not answer: {cause}"))
    }
}

/// What is wrong with the certificate of a server, if that is what an error is about.
fn refused_certificate(error: &reqwest::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(match why {
                // Another authority of the same name is another one.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "none of the authorities in inference.caFile has signed it".to_owned()
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "it has expired; renew it, or set the clock of this host right".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "it is not valid yet; set the clock of this host right".to_owned()
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("it is for another name than inference.url has: {why}")
                }
                other => other.to_string(),
            });
        }
        // An I/O error does not count what it wraps among its sources.
        cause = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.get_ref().map(|error| error as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Takes a line of a download; gives whether it is the last one.
fn take_line(
    model: &str,
    line: &[u8],
    layers: &mut std::collections::BTreeMap<String, (u64, u64)>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<bool, Trouble> {
    if line.trim_ascii().is_empty() {
        return Ok(false);
    }
    let Ok(PullLine { status, digest, total, completed, error }) = serde_json::from_slice(line) else {
        // An error that is not about the download itself may have another shape.
        let said = serde_json::from_slice::<Refused>(line).map(|refused| refused.error.to_string());
        let said = said.unwrap_or_else(|_| String::from_utf8_lossy(line).trim().chars().take(200).collect());
        return Err(Trouble::new("ModelPullFailed", format!("fetching the model `{model}` failed: {said}")));
    };
    if let Some(error) = error {
        let unknown =
            ["file does not exist", "not found", "manifest unknown"].iter().any(|word| error.contains(word));
        let (reason, advice) = match unknown {
            true => ("ModelUnknown", "; check its name in inference.models"),
            false => ("ModelPullFailed", "; it is tried again"),
        };
        return Err(Trouble::new(reason, format!("fetching the model `{model}` failed: {error}{advice}")));
    }
    if let (Some(digest), Some(total)) = (digest, total) {
        layers.insert(digest, (completed.unwrap_or(0).min(total), total));
    }
    let status = status.unwrap_or_default();
    let done = status == "success";
    let bytes = (!layers.is_empty()).then(|| {
        layers.values().fold((0, 0), |(have, all), (completed, total)| (have + completed, all + total))
    });
    progress(Progress { status, bytes });
    Ok(done)
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use axum::routing::get;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use windlass_crds::protocol::InferenceBackend;

    use super::super::place::Place;
    use super::super::{is_near, tests::backend};
    use super::*;

    /// An authority, and servers that it vouches for.
    struct Authority {
        folder: tempfile::TempDir,
        issuer: CertifiedIssuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
            Self { folder, issuer }
        }

        /// Serves a model named `tiny` to whoever has the key, by a certificate for `name`, which ends in the year `until`. Gives the port.
        async fn serve(&self, name: &str, until: i32) -> u16 {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let tls = axum_server::tls_rustls::RustlsConfig::from_config(std::sync::Arc::new(
                rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(
                    rustls::crypto::ring::default_provider(),
                ))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
                )
                .unwrap(),
            ));
            let answer = |request: Request| async move {
                match request.headers().get(AUTHORIZATION) {
                    Some(key) if key == "Bearer k1" => Ok(r#"{"data": [{"id": "tiny"}]}"#),
                    Some(_) | None => Err(StatusCode::UNAUTHORIZED),
                }
            };
            let router = axum::Router::new().route("/v1/models", get(answer));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = axum_server::from_tcp_rustls(listener, tls).unwrap();
            tokio::spawn(async move { server.serve(router.into_make_service()).await.unwrap() });
            port
        }

        /// The models of a server that this authority is to vouch for.
        async fn ask(&self, port: u16, key: Option<&str>) -> Result<Vec<Model>, Trouble> {
            let file = self.folder.path().join("key");
            let api_key_file = key.map(|key| {
                std::fs::write(&file, key).unwrap();
                file.display().to_string()
            });
            let place = Place::of(&InferenceBackend {
                url: Some(format!("https://localhost:{port}")),
                ca_file: Some(self.folder.path().join("ca.pem").display().to_string()),
                api_key_file,
                ..backend()
            });
            let api = Api::new(&place.find(is_near).await?)?;
            api.probe(InferenceEngine::OpenaiCompatible).await?;
            api.models(InferenceEngine::OpenaiCompatible).await
        }
    }

    #[tokio::test]
    async fn a_server_by_tls_is_asked_with_its_key_if_its_certificate_is_right() {
        let authority = Authority::new();
        let port = authority.serve("localhost", 4000).await;
        let models = authority.ask(port, Some("k1\n")).await.unwrap();
        assert_eq!(models.len(), 1);
        assert_eq!(models[0].name, "tiny");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_certificate_or_a_key_is_said() {
        let (authority, other) = (Authority::new(), Authority::new());
        let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::thread::spawn({
            let plain = plain.try_clone().unwrap();
            move || {
                let (mut stream, _) = plain.accept().unwrap();
                std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            }
        });
        for (port, key, reason, words) in [
            (
                other.serve("localhost", 4000).await,
                "k1",
                "CertificateRefused",
                "none of the authorities in inference.caFile",
            ),
            (
                authority.serve("other.test", 4000).await,
                "k1",
                "CertificateRefused",
                "another name than inference.url has",
            ),
            (authority.serve("localhost", 2001).await, "k1", "CertificateRefused", "it has expired"),
            (
                authority.serve("localhost", 4000).await,
                "k2",
                "KeyRefused",
                "another key than the one of inference.apiKeyFile",
            ),
            (plain.local_addr().unwrap().port(), "k1", "Unreachable", "does not answer"),
        ] {
            let trouble = authority.ask(port, Some(key)).await.unwrap_err();
            assert_eq!(trouble.reason, reason, "{trouble:?}");
            assert!(
                trouble.message.contains(words) && !trouble.message.contains("k1"),
                "{words}: {trouble:?}"
            );
        }
        let trouble = authority.ask(authority.serve("localhost", 4000).await, None).await.unwrap_err();
        assert!(
            trouble.reason == "KeyRefused" && trouble.message.contains("it wants a key; name a file"),
            "{trouble:?}"
        );
    }

    #[test]
    fn lines_of_a_download_add_up_over_its_layers() {
        let mut layers = std::collections::BTreeMap::new();
        let mut seen = Vec::new();
        let mut take = |line: &str| {
            take_line("m", line.as_bytes(), &mut layers, &mut |progress| seen.push(progress)).unwrap()
        };
        assert!(!take(r#"{"status": "pulling manifest"}"#));
        assert!(!take(r#"{"status": "pulling a", "digest": "sha256:a", "total": 100}"#));
        assert!(!take(r#"{"status": "pulling b", "digest": "sha256:b", "total": 300, "completed": 300}"#));
        assert!(!take(r#"{"status": "pulling a", "digest": "sha256:a", "total": 100, "completed": 50}"#));
        assert!(!take("\n"));
        assert!(take(r#"{"status": "success"}"#));
        let bytes: Vec<_> = seen.iter().map(|progress| progress.bytes).collect();
        assert_eq!(bytes, [None, Some((0, 100)), Some((300, 400)), Some((350, 400)), Some((350, 400))]);
    }

    #[test]
    fn what_goes_wrong_in_a_download_says_whether_the_name_is_to_blame() {
        let reason = |line: &str| {
            take_line("m", line.as_bytes(), &mut std::collections::BTreeMap::new(), &mut |_| {})
                .unwrap_err()
                .reason
        };
        assert_eq!(reason(r#"{"error": "pull model manifest: file does not exist"}"#), "ModelUnknown");
        assert_eq!(reason(r#"{"error": "dial tcp: connection refused"}"#), "ModelPullFailed");
        assert_eq!(reason("<html>"), "ModelPullFailed");
    }
}
