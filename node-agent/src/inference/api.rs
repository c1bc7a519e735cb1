//! What is said to a server of models: Ollama's own interface, and OpenAI's.

use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use windlass_crds::inference::{InferenceEngine, Model};
use windlass_crds::protocol::bounds::{MAX_MODELS, MAX_WORD};

use super::{Endpoint, Trouble};

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

/// A client of servers of models. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    client: reqwest::Client,
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
    pub(super) fn new() -> Result<Self, String> {
        // Plain HTTP only; the library wants to know who would be trusted all the same: nobody.
        let tls = crate::client::plain_config(Vec::new()).map_err(|error| error.to_string())?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("windlass-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| crate::error_chain(&error))?;
        Ok(Self { client })
    }

    /// Whether the server is up, and its version where it tells one.
    pub(super) async fn probe(
        &self,
        at: &Endpoint,
        engine: InferenceEngine,
    ) -> Result<Option<String>, Trouble> {
        match engine {
            InferenceEngine::Ollama => {
                let Version { version } = self.get(at, "/api/version").await?;
                Ok(Some(version))
            }
            InferenceEngine::OpenaiCompatible => {
                let response = self.call(at, Method::GET, "/health", None).await?;
                match response.status() {
                    StatusCode::SERVICE_UNAVAILABLE => {
                        Err(Trouble::passing("Starting", "the server loads its model"))
                    }
                    // Not every server has it; then its list of models has to do.
                    status if status.is_success() || status.is_client_error() => Ok(None),
                    status => Err(Trouble::new(
                        "Unhealthy",
                        format!("the server at {} answers {status} to GET /health", at.url()),
                    )),
                }
            }
        }
    }

    /// The models that the server has, by name.
    pub(super) async fn models(&self, at: &Endpoint, engine: InferenceEngine) -> Result<Vec<Model>, Trouble> {
        let mut models: Vec<Model> = match engine {
            InferenceEngine::Ollama => {
                let Tags { models } = self.get(at, "/api/tags").await?;
                let digest = |digest: String| match digest.contains(':') {
                    true => digest,
                    false => format!("sha256:{digest}"),
                };
                let model =
                    |tag: Tag| Model { name: tag.name, digest: tag.digest.map(digest), size: tag.size };
                models.into_iter().map(model).collect()
            }
            InferenceEngine::OpenaiCompatible => {
                let Served { data } = self.get(at, "/v1/models").await?;
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
        at: &Endpoint,
        model: &str,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), Trouble> {
        let url = format!("{}/api/pull", at.url());
        let body = serde_json::json!({"model": model, "stream": true});
        let sent = self.client.post(&url).json(&body).send().await;
        let response = sent.map_err(|error| unreachable(at, &error))?;
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
    pub(super) async fn delete(&self, at: &Endpoint, model: &str) -> Result<(), Trouble> {
        let body = serde_json::json!({"model": model});
        let response = self.call(at, Method::DELETE, "/api/delete", Some(&body)).await?;
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
        at: &Endpoint,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<reqwest::Response, Trouble> {
        let mut request = self.client.request(method, format!("{}{path}", at.url())).timeout(CALL_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| unreachable(at, &error))
    }

    async fn get<T: DeserializeOwned>(&self, at: &Endpoint, path: &str) -> Result<T, Trouble> {
        let response = self.call(at, Method::GET, path, None).await?;
        let status = response.status();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| unreachable(at, &error))?;
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(odd(at, path, "its answer is too long"));
            }
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Trouble::passing("Starting", "the server loads its model"));
        }
        if !status.is_success() {
            return Err(odd(at, path, &format!("it answers {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|error| odd(at, path, &format!("its answer cannot be read: {error}")))
    }
}

fn odd(at: &Endpoint, path: &str, why: &str) -> Trouble {
    Trouble::new(
        "Unhealthy",
        format!(
            "the server at {} is no server of models as inference.engine names it: GET {path}: {why}",
            at.url()
        ),
    )
}

fn unreachable(at: &Endpoint, error: &reqwest::Error) -> Trouble {
    // Its own words hold the address; the cause is what counts.
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Trouble::new("Unreachable", format!("the server at {} does not answer: {cause}", at.url()))
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
    use super::*;

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
