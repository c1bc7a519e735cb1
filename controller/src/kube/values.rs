//! Secrets and ConfigMaps of the cluster, for the attempts of jobs that come from it.
//!
//! *Guarantees*: only `get` is asked for, of objects that a job of their own namespace names. A value stays in the answer: nothing here
//! keeps, logs or repeats one, also where an answer cannot be read. What is missing is remembered for a few seconds, so that many jobs
//! that wait for one object cost one question. An API server that cannot be reached or does not answer is asked nothing else for as long; an
//! answer counts for nothing but what it was asked about.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{GetParams, Request};
use kube::{Client, Resource as _};
use serde::Deserialize;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::{Error, REQUEST, identify, request};
use crate::error::chain;

/// How long it is remembered that something could not be read.
const REMEMBER: Duration = Duration::from_secs(5);
/// How long the jobs of one claim wait for the cluster together. What a single question says of the server is known before, and remembered.
const PATIENCE: Duration = REQUEST.saturating_add(Duration::from_millis(500));
/// The most questions to the API server at a time, from all claims.
const AT_ONCE: usize = 32;
/// How long a job waits until what the cluster lacks is looked for again. A look costs a question, which many jobs share.
pub(crate) const LOOK: Duration = Duration::from_secs(15);

/// What kind of object has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Secret,
    ConfigMap,
}

impl Source {
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
        }
    }
}

/// Why a value cannot be given just now. The job waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
pub(crate) enum Lack {
    /// There is no such Secret, or it has no such key.
    SecretNotFound,
    /// The value is too short or too long.
    SecretUnsuitable,
    /// There is no such ConfigMap, or it has no such key.
    ConfigMapNotFound,
    /// The value is no text, or too long.
    ConfigMapUnsuitable,
    /// The controller may not read it.
    ReadForbidden,
    /// The API server has not answered, or not with what was asked for.
    ClusterUnreachable,
}

/// What is lacking, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    pub(crate) lack: Lack,
    /// For people.
    pub(crate) message: String,
}

impl Lacking {
    /// An object that is not there, or not with this key.
    pub(crate) fn missing(source: Source, (namespace, name): (&str, &str), key: Option<&str>) -> Self {
        let kind = source.kind();
        let message = match key {
            None => format!("there is no {kind} `{namespace}/{name}` in the cluster; the job waits for it"),
            Some(key) => format!("{kind} `{namespace}/{name}` has no key `{key}`; the job waits for it"),
        };
        let lack = match source {
            Source::Secret => Lack::SecretNotFound,
            Source::ConfigMap => Lack::ConfigMapNotFound,
        };
        Self { lack, message }
    }

    /// A value that no job can be given.
    pub(crate) fn unsuitable(source: Source, (namespace, name): (&str, &str), problem: &str) -> Self {
        let lack = match source {
            Source::Secret => Lack::SecretUnsuitable,
            Source::ConfigMap => Lack::ConfigMapUnsuitable,
        };
        Self { lack, message: format!("{} `{namespace}/{name}`: {problem}", source.kind()) }
    }
}

/// The values of an object by key. It has no `Debug`.
pub(crate) type Values = BTreeMap<String, Vec<u8>>;

/// An object: what it is, its namespace and its name.
type Place = (Source, String, String);

/// What an answer, or that there was none, says.
enum Failed {
    /// The server cannot be reached, or does not answer.
    Server(Lacking),
    /// Nothing about other questions.
    Alone(Lacking),
}

/// What could not be read, and when that was.
#[derive(Default)]
struct Known {
    /// Whether anything is answered.
    server: Option<(Instant, Lacking)>,
    /// Which cluster it is.
    cluster: Option<(Instant, Lacking)>,
    objects: HashMap<Place, (Instant, Lacking)>,
}

/// Reads the Secrets and ConfigMaps of a cluster.
pub struct ClusterValues {
    client: Client,
    cluster: OnceCell<String>,
    /// A lock is held for no await.
    known: Mutex<Known>,
    questions: Semaphore,
}

impl std::fmt::Debug for ClusterValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterValues")
    }
}

/// What one claim reads: each object once for all of its jobs, and for no longer than a few seconds.
pub struct Reading<'a> {
    stopping: &'a CancellationToken,
    until: Instant,
    /// A lock is held for no await.
    objects: Mutex<HashMap<Place, Arc<OnceCell<Read>>>>,
}

impl std::fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("until", &self.until).finish_non_exhaustive()
    }
}

/// What became of reading an object.
type Read = Result<Arc<Values>, Lacking>;

impl<'a> Reading<'a> {
    /// Begins now; ends early when the controller is about to stop.
    pub fn new(stopping: &'a CancellationToken) -> Self {
        Self { stopping, until: Instant::now() + PATIENCE, objects: Mutex::default() }
    }

    /// Waits for what is asked of the cluster, as long as this may take.
    pub(crate) async fn within<T>(&self, asked: impl Future<Output = T>) -> Result<T, Lacking> {
        let late = |message: &str| Lacking { lack: Lack::ClusterUnreachable, message: message.to_owned() };
        tokio::select! {
            biased;
            // Cancel-safe, as the others: what is not known by then is asked again.
            asked = asked => Ok(asked),
            () = self.stopping.cancelled() => Err(late("the controller stops; the next one asks the API server")),
            () = tokio::time::sleep_until(self.until) => {
                Err(late("the API server has not answered all questions in time; it is asked again"))
            }
        }
    }

    /// The values of an object.
    pub(crate) async fn read(&self, cluster: &ClusterValues, source: Source, place: (&str, &str)) -> Read {
        let key = (source, place.0.to_owned(), place.1.to_owned());
        let object = {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(objects.entry(key).or_default())
        };
        object.get_or_init(async || cluster.read(source, place).await.map(Arc::new)).await.clone()
    }
}

/// What of an answer is looked at. Nothing that stands there can be wrong but its form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, String>>,
}

impl ClusterValues {
    /// Of the cluster behind a client, whose name is asked for where it is not given.
    pub fn new(client: Client, cluster: Option<String>) -> Self {
        let cluster = OnceCell::new_with(cluster);
        Self { client, cluster, known: Mutex::default(), questions: Semaphore::new(AT_ONCE) }
    }

    /// Whether this is the cluster of an object.
    pub(crate) async fn is(&self, cluster: &str) -> Result<bool, Lacking> {
        let of = |known: &Known| known.cluster.clone();
        // Whoever has waited for somebody else's question knows what became of it.
        let ask = || {
            self.once(of, |known, failed| known.cluster = Some(failed), async {
                identify(&self.client).await.map_err(|error| unreachable(&error))
            })
        };
        self.cluster.get_or_try_init(ask).await.map(|own| own == cluster)
    }

    async fn read(&self, source: Source, place: (&str, &str)) -> Result<Values, Lacking> {
        let key = (source, place.0.to_owned(), place.1.to_owned());
        let of = |known: &Known| known.objects.get(&key).cloned();
        let keep = |known: &mut Known, failed| {
            known.objects.retain(|_, (at, _)| at.elapsed() < REMEMBER);
            known.objects.insert(key.clone(), failed);
        };
        self.once(of, keep, self.ask(source, place)).await
    }

    /// Asks, unless it is known what would become of it.
    async fn once<T>(
        &self,
        of: impl Fn(&Known) -> Option<(Instant, Lacking)>,
        keep: impl FnOnce(&mut Known, (Instant, Lacking)),
        ask: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Lacking> {
        let known = || {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |failed: &(Instant, Lacking)| failed.0.elapsed() < REMEMBER;
            let failed = of(&known).filter(fresh).or_else(|| known.server.clone().filter(fresh));
            failed.map_or(Ok(()), |(_, lacking)| Err(lacking))
        };
        known()?;
        let _turn = self.questions.acquire().await.expect("it is never closed");
        // It may have become known by a question that was asked meanwhile.
        known()?;
        let failed = match ask.await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = match failed {
            Failed::Server(lacking) => {
                known.server = Some((Instant::now(), lacking.clone()));
                lacking
            }
            Failed::Alone(lacking) => {
                keep(&mut known, (Instant::now(), lacking.clone()));
                lacking
            }
        };
        Err(lacking)
    }

    async fn ask(&self, source: Source, (namespace, name): (&str, &str)) -> Result<Values, Failed> {
        let path = match source {
            Source::Secret => Secret::url_path(&(), Some(namespace)),
            Source::ConfigMap => ConfigMap::url_path(&(), Some(namespace)),
        };
        let asked = Request::new(path).get(name, &GetParams::default()).map_err(|error| {
            let message = format!("the {} `{namespace}/{name}` cannot be asked for: {error}", source.kind());
            Failed::Alone(Lacking { lack: Lack::ClusterUnreachable, message })
        })?;
        // As text: kube's client logs the whole of an answer that it cannot read.
        let operation = match source {
            Source::Secret => "get a Secret",
            Source::ConfigMap => "get a ConfigMap",
        };
        let text = match request(operation, self.client.request_text(asked)).await {
            Ok(text) => text,
            Err(error) if error.is_object_missing(name) => {
                return Err(Failed::Alone(Lacking::missing(source, (namespace, name), None)));
            }
            Err(error) if error.status() == Some(403) => {
                return Err(Failed::Alone(forbidden(source, namespace, &error)));
            }
            Err(error) => return Err(unreachable(&error)),
        };
        let unreadable = || {
            let kind = source.kind();
            let message =
                format!("the API server has answered with what is no {kind}, for `{namespace}/{name}`");
            Failed::Alone(Lacking { lack: Lack::ClusterUnreachable, message })
        };
        let Answer { data, binary_data } = serde_json::from_str(&text).map_err(|_| unreadable())?;
        let data = data.unwrap_or_default();
        let encoded = match source {
            Source::Secret => data,
            Source::ConfigMap => {
                let mut values: Values =
                    data.into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
                for (key, text) in binary_data.unwrap_or_default() {
                    values.insert(key, STANDARD.decode(text).map_err(|_| unreadable())?);
                }
                return Ok(values);
            }
        };
        let decoded =
            encoded.into_iter().map(|(key, text)| Some((key, STANDARD.decode(text).ok()?))).collect();
        let decoded: Option<Values> = decoded;
        decoded.ok_or_else(unreadable)
    }
}

/// The right that is missing, and how it is granted.
fn forbidden(source: Source, namespace: &str, error: &Error) -> Lacking {
    let resource = source.resource();
    let said = error.answer().map_or("", |status| &status.message);
    let message = format!(
        "the controller may not `get` `{resource}` in the namespace `{namespace}`; add it to `kube.secrets.namespaces` of the chart, or \
         kubectl -n {namespace} create role windlass-values --verb=get --resource=secrets,configmaps, and bind it ({said})"
    );
    Lacking { lack: Lack::ReadForbidden, message }
}

/// Only silence says something of the whole server: one that is asked for an object may fail at that one alone.
fn unreachable(error: &Error) -> Failed {
    let lacking =
        Lacking { lack: Lack::ClusterUnreachable, message: format!("{}; it is asked again", chain(error)) };
    if error.is_silence() { Failed::Server(lacking) } else { Failed::Alone(lacking) }
}

#[cfg(test)]
mod tests;
