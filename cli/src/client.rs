//! The REST API as typed calls.
//!
//! Every call answers with what the server said or with an [`Error`] that a person can read; none prints anything and
//! none retries what the server may already have done, except [`Client::create_job`], which carries an idempotency
//! key.

mod causes;
mod credentials;
mod error;
pub(crate) mod model;
mod secret;
pub(crate) mod sse;
mod stream;

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;
use windlass_crds::protocol::Problem;
use windlass_crds::rollout::{NewRollout, Rollout};
use windlass_crds::{SandboxJob, Span};

use causes::{is_certificate_error, upload_error};
use credentials::{read_ca, read_token};
pub(crate) use error::Error;
pub(crate) use stream::{Followed, Stream};

use crate::kind::Kind;
use crate::settings::{Origin, Resolved, Settings, is_loopback};
use model::{
    ArtifactLink, CreatedJoinToken, Items, Job, JoinToken, LogPage, NewJoinToken, Node, Outcome, Page,
    QueueSettings, Rotated, Secret, SecretRequest, Version,
};

/// How long the server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take for an answer that is not a stream and not an upload.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 32 * 1024;
/// The most objects of one page of a list.
const PAGE: usize = 500;
/// The most text of a foreign answer that is shown.
const EXCERPT: usize = 200;
/// How often a job is created again when the connection broke before the answer came.
const CREATE_TRIES: u32 = 3;

/// A connection to the REST API. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    origin: Origin,
    has_ca: bool,
    authorization: Option<HeaderValue>,
}

/// Which jobs are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// The queue.
    pub(crate) queue: Option<String>,
    /// The phases, separated by commas.
    pub(crate) phase: Option<String>,
    /// The labels, as `k=v,k2=v2`.
    pub(crate) selector: Option<String>,
    /// The only job that is wanted.
    pub(crate) name: Option<String>,
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// The object is gone.
    Done,
    /// A node still holds the job; it is deleted once it has stopped.
    Pending,
}

impl Client {
    /// A client for the server of these settings. Nothing is sent yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let Resolved { value: base, origin } = settings.server.clone().ok_or(Error::NoServer)?;
        // The only way to fail is that a provider was installed before, which is just as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("windlass/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            // A proxy cannot reach this machine's own loopback.
            http = http.no_proxy();
        }
        let ca_file = settings.ca_file.as_ref().filter(|_| base.scheme() == "https");
        if let Some(ca_file) = ca_file {
            http = http.tls_certs_only(read_ca(&ca_file.value)?);
        }
        let authorization = settings.token_file.as_ref().map(|file| read_token(&file.value)).transpose()?;
        let http = http.build().map_err(Error::Setup)?;
        Ok(Self { http, base, origin, has_ca: ca_file.is_some(), authorization })
    }

    /// The objects of a kind, page by page until the last one.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        filter: &Filter,
    ) -> Result<Vec<T>, Error> {
        let mut objects = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut url = self.collection(kind, namespace);
            filter.append_to(&mut url);
            if kind != Kind::Queue {
                url.query_pairs_mut().append_pair("limit", &PAGE.to_string());
            }
            if let Some(cursor) = &cursor {
                url.query_pairs_mut().append_pair("cursor", cursor);
            }
            let page: Page<T> = self.json(self.request(Method::GET, url), "a list").await?;
            objects.extend(page.items);
            match page.metadata.next {
                // The same cursor twice would never end.
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                Some(_) | None => return Ok(objects),
            }
        }
    }

    /// Watches the objects of a kind: first all that there are, then every change.
    pub(crate) fn watch(&self, kind: Kind, namespace: Option<&str>, filter: &Filter) -> Stream {
        let mut url = self.collection(kind, namespace);
        filter.append_to(&mut url);
        url.query_pairs_mut().append_pair("watch", "true");
        Stream::open(self.clone(), url)
    }

    /// One object.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<T, Error> {
        self.json(self.request(Method::GET, self.object(kind, namespace, name)), "an object").await
    }

    /// Makes an object be like this one.
    pub(crate) async fn apply(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        body: &impl Serialize,
    ) -> Result<Outcome, Error> {
        let request = self.request(Method::PUT, self.object(kind, namespace, name)).json(body);
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        let outcome = response.headers().get("windlass-outcome").map(HeaderValue::as_bytes);
        Ok(match outcome {
            Some(b"unchanged") => Outcome::Unchanged,
            Some(b"created") => Outcome::Created,
            Some(_) | None if response.status() == StatusCode::CREATED => Outcome::Created,
            Some(_) | None => Outcome::Configured,
        })
    }

    /// Creates a job. The request is repeated when the connection breaks; the key makes that one job.
    pub(crate) async fn create_job(
        &self,
        namespace: &str,
        job: &SandboxJob,
        idempotency_key: &str,
    ) -> Result<Job, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let request = self
                .request(Method::POST, self.url(&["namespaces", namespace, "jobs"]))
                .header("idempotency-key", idempotency_key)
                .json(job);
            match self.json(request, "a new job").await {
                Err(Error::Lost { .. }) if tries < CREATE_TRIES => {}
                result => return result,
            }
        }
    }

    /// Asks for a job to be cancelled.
    pub(crate) async fn cancel(&self, namespace: &str, name: &str) -> Result<Job, Error> {
        self.act(namespace, name, "cancel").await
    }

    /// Runs a job that has ended again.
    pub(crate) async fn retry(&self, namespace: &str, name: &str) -> Result<Job, Error> {
        self.act(namespace, name, "retry").await
    }

    async fn act(&self, namespace: &str, name: &str, action: &str) -> Result<Job, Error> {
        let url = self.job_part(namespace, name, action);
        self.json(self.request(Method::POST, url), "an action").await
    }

    /// Asks something of a node: `cordon`, `uncordon`, `drain`.
    pub(crate) async fn act_on_node(
        &self,
        name: &str,
        verb: &str,
        body: &impl Serialize,
    ) -> Result<Node, Error> {
        let url = self.url(&["nodes", name, verb]);
        self.json(self.request(Method::POST, url).json(body), "a node").await
    }

    /// Something that belongs to a node: `attempts`, `facts`, `history`.
    pub(crate) async fn node_detail<T: DeserializeOwned>(&self, name: &str, part: &str) -> Result<T, Error> {
        self.json(self.request(Method::GET, self.url(&["nodes", name, part])), "a part of a node").await
    }

    /// Starts a roll-out.
    pub(crate) async fn start_rollout(&self, new: &NewRollout) -> Result<Rollout, Error> {
        self.json(self.request(Method::POST, self.url(&["rollouts"])).json(new), "a roll-out").await
    }

    /// A roll-out with its nodes.
    pub(crate) async fn rollout(&self, name: &str) -> Result<Rollout, Error> {
        self.json(self.request(Method::GET, self.url(&["rollouts", name])), "a roll-out").await
    }

    /// Asks something of a roll-out: `pause`, `resume`, `abort`, `undo`.
    pub(crate) async fn turn_rollout(&self, name: &str, command: &str) -> Result<Rollout, Error> {
        self.json(self.request(Method::POST, self.url(&["rollouts", name, command])), "a roll-out").await
    }

    /// The roll-outs, the newest first.
    pub(crate) async fn rollouts(&self) -> Result<Vec<Rollout>, Error> {
        let request = self.request(Method::GET, self.url(&["rollouts"]));
        Ok(self.json::<Items<Rollout>>(request, "the roll-outs").await?.items)
    }

    /// Sets a queue.
    pub(crate) async fn set_queue(&self, name: &str, settings: &QueueSettings) -> Result<(), Error> {
        let request = self.request(Method::PUT, self.url(&["queues", name])).json(settings);
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Forgets a node; with `force` also one that holds attempts. Yields it as it was.
    pub(crate) async fn deregister(&self, name: &str, force: bool) -> Result<Node, Error> {
        let mut url = self.url(&["nodes", name]);
        if force {
            url.query_pairs_mut().append_pair("force", "true");
        }
        self.json(self.request(Method::DELETE, url), "a node").await
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<Deletion, Error> {
        let request = self.request(Method::DELETE, self.object(kind, namespace, name));
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        Ok(if response.status() == StatusCode::ACCEPTED { Deletion::Pending } else { Deletion::Done })
    }

    /// A page of a job's output.
    pub(crate) async fn logs(
        &self,
        namespace: &str,
        name: &str,
        query: &[(&str, String)],
    ) -> Result<LogPage, Error> {
        let mut url = self.job_part(namespace, name, "logs");
        url.query_pairs_mut().extend_pairs(query);
        self.json(self.request(Method::GET, url), "a job's output").await
    }

    /// Follows a job's output to its end.
    pub(crate) fn follow_logs(&self, namespace: &str, name: &str, query: &[(&str, String)]) -> Stream {
        let mut url = self.job_part(namespace, name, "logs");
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Stream::open(self.clone(), url)
    }

    /// Something that belongs to a job: `attempts`, `placement`, `events`, …
    pub(crate) async fn job_detail<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        part: &str,
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        let mut url = self.job_part(namespace, name, part);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.json(self.request(Method::GET, url), "a part of a job").await
    }

    /// The content of an artifact. How long it takes depends on its size.
    pub(crate) async fn artifact(
        &self,
        namespace: &str,
        job: &str,
        name: &str,
        epoch: u64,
    ) -> Result<Response, Error> {
        let url = self.artifact_url(&["namespaces", namespace, "jobs", job, "artifacts", name], epoch);
        // The time is only for the head of the answer.
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, self.send(self.request(Method::GET, url)));
        sent.await.unwrap_or_else(|_| {
            Err(Error::Silent { url: self.base.clone(), seconds: ANSWER_TIMEOUT.as_secs() })
        })
    }

    /// Makes a link to an artifact.
    pub(crate) async fn link_artifact(
        &self,
        namespace: &str,
        job: &str,
        name: &str,
        epoch: u64,
        expires_in: Span,
    ) -> Result<ArtifactLink, Error> {
        let url =
            self.artifact_url(&["namespaces", namespace, "jobs", job, "artifacts", name, "link"], epoch);
        let body = serde_json::json!({"expiresIn": expires_in});
        self.json(self.request(Method::POST, url).json(&body), "a link").await
    }

    fn artifact_url(&self, segments: &[&str], epoch: u64) -> Url {
        let mut url = self.url(segments);
        url.query_pairs_mut().append_pair("epoch", &epoch.to_string());
        url
    }

    /// What it means that an answer broke off.
    pub(crate) fn broken(&self, error: reqwest::Error) -> Error {
        self.network(error)
    }

    /// What happened anywhere.
    pub(crate) async fn events<T: DeserializeOwned>(&self, query: &[(&str, String)]) -> Result<T, Error> {
        let mut url = self.url(&["events"]);
        url.query_pairs_mut().extend_pairs(query);
        self.json(self.request(Method::GET, url), "events").await
    }

    /// Makes a join token.
    pub(crate) async fn create_join_token(&self, new: &NewJoinToken) -> Result<CreatedJoinToken, Error> {
        self.json(self.request(Method::POST, self.url(&["join-tokens"])).json(new), "a join token").await
    }

    /// The join tokens, without their secrets.
    pub(crate) async fn join_tokens(&self) -> Result<Vec<JoinToken>, Error> {
        let request = self.request(Method::GET, self.url(&["join-tokens"]));
        Ok(self.json::<Items<JoinToken>>(request, "the join tokens").await?.items)
    }

    /// Makes a join token useless.
    pub(crate) async fn revoke_join_token(&self, id: &str) -> Result<(), Error> {
        let request = self.request(Method::DELETE, self.url(&["join-tokens", id]));
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Sets values of a Secret.
    pub(crate) async fn set_secret(
        &self,
        namespace: &str,
        name: &str,
        request: &SecretRequest,
    ) -> Result<Secret, Error> {
        let url = self.url(&["namespaces", namespace, "secrets", name]);
        self.json(self.request(Method::PUT, url).json(request), "a Secret").await
    }

    /// The Secrets of a namespace, or of all, without their values.
    pub(crate) async fn secrets(&self, namespace: Option<&str>) -> Result<Vec<Secret>, Error> {
        let url = match namespace {
            Some(namespace) => self.url(&["namespaces", namespace, "secrets"]),
            None => self.url(&["secrets"]),
        };
        Ok(self.json::<Items<Secret>>(self.request(Method::GET, url), "the Secrets").await?.items)
    }

    /// Deletes a Secret, or one of its keys.
    pub(crate) async fn delete_secret(
        &self,
        namespace: &str,
        name: &str,
        key: Option<&str>,
    ) -> Result<(), Error> {
        let mut path = vec!["namespaces", namespace, "secrets", name];
        path.extend(key.iter().flat_map(|key| ["keys", key]));
        let request = self.request(Method::DELETE, self.url(&path));
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Puts all secrets under the first key of the controller's key file.
    pub(crate) async fn rotate_secrets(&self) -> Result<Rotated, Error> {
        self.json(self.request(Method::POST, self.url(&["secrets", "rotate"])), "a rotation").await
    }

    /// Whether the server has an input already.
    pub(crate) async fn has_input(&self, digest: &str) -> Result<bool, Error> {
        let request = self.request(Method::HEAD, self.url(&["inputs", digest])).timeout(ANSWER_TIMEOUT);
        let response = self.transmit(request).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Uploads an input. How long it may take depends on its size.
    pub(crate) async fn upload(&self, digest: &str, length: u64, body: reqwest::Body) -> Result<(), Error> {
        let request = self
            .request(Method::PUT, self.url(&["inputs", digest]))
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, length)
            .timeout(ANSWER_TIMEOUT + Duration::from_secs(length / SLOWEST_UPLOAD))
            .body(body);
        self.send(request).await.map(drop)
    }

    /// The server's version.
    pub(crate) async fn version(&self) -> Result<Version, Error> {
        self.json(self.request(Method::GET, self.url(&["version"])), "its version").await
    }

    /// The server's URL.
    pub(crate) const fn base(&self) -> &Url {
        &self.base
    }

    /// Opens a stream of events.
    async fn open_stream(&self, url: Url, last_id: Option<&str>) -> Result<Response, Error> {
        let mut request = self.request(Method::GET, url).header(ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header(HeaderName::from_static("last-event-id"), id);
        }
        // The time is only for the head of the answer: the stream itself has no end.
        let response =
            tokio::time::timeout(ANSWER_TIMEOUT, self.send(request)).await.unwrap_or_else(|_| {
                Err(Error::Silent { url: self.base.clone(), seconds: ANSWER_TIMEOUT.as_secs() })
            })?;
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        if content_type.starts_with("text/event-stream") {
            return Ok(response);
        }
        let excerpt =
            format!("it sent `{}` where a stream of events was asked for", excerpt(content_type.as_bytes()));
        Err(Error::Foreign { url: self.base.clone(), status: response.status(), excerpt })
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("a server's URL was checked to be a base")
            .pop_if_empty()
            .push("v1")
            .extend(segments);
        url
    }

    fn collection(&self, kind: Kind, namespace: Option<&str>) -> Url {
        match namespace {
            Some(namespace) if kind.is_namespaced() => self.url(&["namespaces", namespace, kind.plural()]),
            Some(_) | None => self.url(&[kind.plural()]),
        }
    }

    fn object(&self, kind: Kind, namespace: &str, name: &str) -> Url {
        if kind.is_namespaced() {
            self.url(&["namespaces", namespace, kind.plural(), name])
        } else {
            self.url(&[kind.plural(), name])
        }
    }

    fn job_part(&self, namespace: &str, name: &str, part: &str) -> Url {
        self.url(&["namespaces", namespace, "jobs", name, part])
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    /// Sends a request and reads the JSON of the answer.
    async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        what: &'static str,
    ) -> Result<T, Error> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.network(error))?;
        serde_json::from_slice(&body).map_err(|source| match serde_json::from_slice::<Value>(&body) {
            Ok(_) => Error::Malformed { what, source },
            Err(_) => Error::Foreign { url: self.base.clone(), status, excerpt: excerpt(&body) },
        })
    }

    /// Sends a request; an answer that is not a success becomes an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = self.transmit(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn transmit(&self, request: RequestBuilder) -> Result<Response, Error> {
        request.send().await.map_err(|error| self.network(error))
    }

    /// What an answer says that is not a success.
    async fn refusal(&self, response: Response) -> Error {
        let status = response.status();
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return self.network(error),
        };
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Error::Problem(Box::new(problem)),
            Err(_) => Error::Foreign { url: self.base.clone(), status, excerpt: excerpt(&body) },
        }
    }

    /// What an error of the network means.
    fn network(&self, error: reqwest::Error) -> Error {
        // The address is in our own message, and its path only distracts.
        let error = error.without_url();
        let url = self.base.clone();
        if is_certificate_error(&error) {
            Error::Untrusted { url, has_ca: self.has_ca, source: error }
        } else if let Some(source) = upload_error(&error) {
            Error::Upload(std::io::Error::new(source.kind(), source.to_string()))
        } else if error.is_connect() {
            Error::Unreachable { url, origin: Box::new(self.origin.clone()), source: error }
        } else {
            Error::Lost { url, source: error }
        }
    }
}

impl Filter {
    fn append_to(&self, url: &mut Url) {
        let Self { queue, phase, selector, name } = self;
        for (name, value) in [("queue", queue), ("phase", phase), ("selector", selector), ("name", name)] {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(EXCERPT * 4)]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    crate::output::human::printable(&line).chars().take(EXCERPT).collect()
}
