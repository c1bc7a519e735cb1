//! Secrets and ConfigMaps of the cluster, for the attempts of jobs that come from it.
//!
//! *Guarantees*: only `get` is asked for, of objects that a job of their own namespace names. A value stays in the answer: nothing here
//! keeps, logs or repeats one, also where an answer cannot be read. What is missing is remembered for a few seconds, so that many jobs
//! that wait for one object cost one question.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{GetParams, Request};
use kube::{Client, Resource as _};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::cluster::{Connection, Error, identify, request};
use super::settings::KubeArgs;
use crate::error::chain;

/// How long it is remembered that something could not be read.
const REMEMBER: Duration = Duration::from_secs(5);

/// What kind of object has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The API server has not answered.
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

/// Reads them.
pub(crate) struct ClusterValues {
    client: Client,
    cluster: OnceCell<String>,
    /// What could not be read, and when that was. A lock is held for no await.
    lacking: Mutex<HashMap<Place, (Instant, Lacking)>>,
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
    /// Of the cluster that is bridged.
    ///
    /// # Errors
    /// [`Error::Config`] where certificates or credentials cannot be used.
    pub(crate) fn new(connection: &Connection, args: &KubeArgs) -> Result<Self, Error> {
        let cluster = OnceCell::new_with(args.cluster.clone());
        Ok(Self { client: connection.client()?, cluster, lacking: Mutex::default() })
    }

    /// Whether this is the cluster of an object.
    pub(crate) async fn is(&self, cluster: &str) -> Result<bool, Lacking> {
        let own = self.cluster.get_or_try_init(|| identify(&self.client)).await;
        own.map(|own| own == cluster).map_err(|error| unreachable(&error))
    }

    /// The values of an object.
    pub(crate) async fn read(
        &self,
        source: Source,
        (namespace, name): (&str, &str),
    ) -> Result<Values, Lacking> {
        let key = (source, namespace.to_owned(), name.to_owned());
        if let Some(lacking) = self.remembered(&key) {
            return Err(lacking);
        }
        let read = self.ask(source, (namespace, name)).await;
        if let Err(lacking) = &read {
            let now = Instant::now();
            let mut all = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, (at, _)| now.duration_since(*at) < REMEMBER);
            all.insert(key, (now, lacking.clone()));
        }
        read
    }

    /// What is known to be lacking. An API server that has not answered one question answers no other one either.
    fn remembered(&self, key: &Place) -> Option<Lacking> {
        let all = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(at, _): &&(Instant, Lacking)| at.elapsed() < REMEMBER;
        let own = all.get(key).filter(fresh);
        let away =
            || all.values().filter(fresh).find(|(_, lacking)| lacking.lack == Lack::ClusterUnreachable);
        own.or_else(away).map(|(_, lacking)| lacking.clone())
    }

    async fn ask(&self, source: Source, (namespace, name): (&str, &str)) -> Result<Values, Lacking> {
        let path = match source {
            Source::Secret => Secret::url_path(&(), Some(namespace)),
            Source::ConfigMap => ConfigMap::url_path(&(), Some(namespace)),
        };
        let asked = Request::new(path).get(name, &GetParams::default()).map_err(|error| Lacking {
            lack: Lack::ClusterUnreachable,
            message: format!("the {} `{namespace}/{name}` cannot be asked for: {error}", source.kind()),
        })?;
        // As text: kube's client logs the whole of an answer that it cannot read.
        let operation = match source {
            Source::Secret => "get a Secret",
            Source::ConfigMap => "get a ConfigMap",
        };
        let text = match request(operation, self.client.request_text(asked)).await {
            Ok(text) => text,
            Err(error) if error.is_object_missing(name) => {
                return Err(Lacking::missing(source, (namespace, name), None));
            }
            Err(error) if error.status() == Some(403) => {
                return Err(forbidden(source, namespace, &error));
            }
            Err(error) => return Err(unreachable(&error)),
        };
        let unreadable = || Lacking {
            lack: Lack::ClusterUnreachable,
            message: format!(
                "the API server has answered with what is no {}, for `{namespace}/{name}`",
                source.kind()
            ),
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

fn unreachable(error: &Error) -> Lacking {
    Lacking { lack: Lack::ClusterUnreachable, message: format!("{}; it is asked again", chain(error)) }
}
