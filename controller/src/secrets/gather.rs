//! Gathers what an attempt is given: Windlass's own secrets, and those of the cluster that the job comes from.
//!
//! A name is of Windlass where it has a Secret of that name in the job's namespace, whatever keys that has; else of the cluster, if the job
//! comes from one that this controller may read. What the cluster lacks keeps the whole attempt back.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use windlass_core::validate::MAX_ARGUMENT_BYTES;
use windlass_crds::protocol::{SecretBytes, SecretValue};
use windlass_crds::sandbox_job::Input;
use windlass_crds::secret::{MAX_ATTEMPT_BYTES, MAX_CONFIG_BYTES, MAX_VALUE_BYTES, MIN_VALUE_BYTES};
use windlass_crds::{ConfigMapUse, SandboxJobSpec};
use windlass_store::SecretValueRow;

use super::Secrets;
use crate::error::ApiError;
use crate::kube::values::{ClusterValues, Lack, Lacking, Source, Values};
use crate::metrics::SecretDelivery;

/// Where a job comes from.
#[derive(Clone, Copy)]
pub(super) enum Whence<'a> {
    /// The cluster that is bridged: it is about to be created for an object.
    Cluster,
    /// What the store says of the job with this uid.
    Job(&'a str),
}

/// Why nothing can be given.
pub(super) enum Obstacle {
    Api(ApiError),
    Lacking(Lacking),
}

impl From<windlass_store::Error> for Obstacle {
    fn from(error: windlass_store::Error) -> Self {
        Self::Api(error.into())
    }
}

impl From<Lacking> for Obstacle {
    fn from(lacking: Lacking) -> Self {
        Self::Lacking(lacking)
    }
}

/// What was found.
pub(super) struct Gathered {
    pub(super) secrets: Vec<SecretValue>,
    /// The spec, in which the values of ConfigMaps stand.
    pub(super) spec: SandboxJobSpec,
    /// One for each secret.
    pub(super) outcomes: Vec<SecretDelivery>,
}

/// One look for the values of one job.
pub(super) struct Gathering<'a> {
    secrets: &'a Secrets,
    namespace: &'a str,
    whence: Whence<'a>,
    /// The cluster of the job, once it was looked for.
    cluster: Option<Option<&'a ClusterValues>>,
    /// What was read of it.
    read: BTreeMap<(&'static str, String), Values>,
}

impl<'a> Gathering<'a> {
    pub(super) const fn new(secrets: &'a Secrets, namespace: &'a str, whence: Whence<'a>) -> Self {
        Self { secrets, namespace, whence, cluster: None, read: BTreeMap::new() }
    }

    pub(super) async fn gather(mut self, spec: &SandboxJobSpec) -> Result<Gathered, Obstacle> {
        let uses = spec.steps.iter().flat_map(|step| &step.secrets).chain(&spec.secrets);
        let wanted: BTreeSet<(&str, &str)> =
            uses.map(|secret| (secret.name.as_str(), secret.key.as_str())).collect();
        let mut known: BTreeMap<&str, Vec<SecretValueRow>> = BTreeMap::new();
        let (mut secrets, mut outcomes, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, key) in wanted {
            let rows = match known.entry(name) {
                Entry::Occupied(rows) => rows.into_mut(),
                Entry::Vacant(place) => {
                    place.insert(self.secrets.store.secret_values(self.namespace, name).await?)
                }
            };
            let of_cluster = if rows.is_empty() { self.cluster().await? } else { None };
            let (outcome, value) = match of_cluster {
                Some(cluster) => (SecretDelivery::Given, Ok(self.secret(cluster, name, key, bytes).await?)),
                None => self.own(rows, name, key, bytes),
            };
            let (value, problem) = match value {
                Ok(value) => (Some(value), None),
                Err(problem) => (None, Some(problem)),
            };
            bytes += value.as_ref().map_or(0, Vec::len);
            let value = value.map(SecretBytes::new);
            secrets.push(SecretValue { name: name.to_owned(), key: key.to_owned(), value, problem });
            outcomes.push(outcome);
        }
        Ok(Gathered { secrets, spec: self.configured(spec).await?, outcomes })
    }

    /// A value that the store has, or why there is none, beside as many bytes of others.
    fn own(
        &self,
        rows: &[SecretValueRow],
        name: &str,
        key: &str,
        bytes: usize,
    ) -> (SecretDelivery, Result<Vec<u8>, String>) {
        let namespace = self.namespace;
        let Some(row) = rows.iter().find(|row| row.value.entry == key) else {
            return (SecretDelivery::Missing, Err(missing(namespace, name, key, rows.is_empty())));
        };
        match self.secrets.open_value(row) {
            Err(problem) => (SecretDelivery::Unreadable, Err(problem)),
            Ok(value) if bytes + value.len() > MAX_ATTEMPT_BYTES => {
                let problem = format!(
                    "with the value `{key}` of Secret `{namespace}/{name}` the job's secrets have {}",
                    too_many()
                );
                (SecretDelivery::TooLarge, Err(problem))
            }
            Ok(value) => (SecretDelivery::Given, Ok(value)),
        }
    }

    /// A value of a Secret of the cluster, beside as many bytes of others.
    async fn secret(
        &mut self,
        cluster: &ClusterValues,
        name: &str,
        key: &str,
        bytes: usize,
    ) -> Result<Vec<u8>, Lacking> {
        let value = self.value(cluster, Source::Secret, name, key).await?;
        let size = value.len();
        let problem = if !(MIN_VALUE_BYTES..=MAX_VALUE_BYTES).contains(&size) {
            format!(
                "the value `{key}` has {size} bytes; a job can be given {MIN_VALUE_BYTES} to {MAX_VALUE_BYTES}, because \
                 a shorter one cannot be masked in logs"
            )
        } else if bytes + size > MAX_ATTEMPT_BYTES {
            format!("with the value `{key}` the job's secrets have {}", too_many())
        } else {
            return Ok(value);
        };
        Err(Lacking::unsuitable(Source::Secret, (self.namespace, name), &problem))
    }

    async fn value(
        &mut self,
        cluster: &ClusterValues,
        source: Source,
        name: &str,
        key: &str,
    ) -> Result<Vec<u8>, Lacking> {
        let place = (self.namespace, name);
        let values = match self.read.entry((source.kind(), name.to_owned())) {
            Entry::Occupied(values) => values.into_mut(),
            Entry::Vacant(entry) => entry.insert(cluster.read(source, place).await?),
        };
        values.get(key).cloned().ok_or_else(|| Lacking::missing(source, place, Some(key)))
    }

    /// The cluster that the job comes from, where its values can be read.
    async fn cluster(&mut self) -> Result<Option<&'a ClusterValues>, Obstacle> {
        if let Some(cluster) = self.cluster {
            return Ok(cluster);
        }
        let found = match (self.secrets.cluster.as_deref(), self.whence) {
            (None, _) => None,
            (Some(values), Whence::Cluster) => Some(values),
            (Some(values), Whence::Job(uid)) => {
                let origin = self.secrets.store.origin_of(uid).await?.filter(|origin| !origin.released);
                match origin {
                    Some(origin) if values.is(&origin.origin.cluster).await? => Some(values),
                    Some(_) | None => None,
                }
            }
        };
        self.cluster = Some(found);
        Ok(found)
    }

    /// The spec with the values of ConfigMaps in the place of their names.
    async fn configured(&mut self, spec: &SandboxJobSpec) -> Result<SandboxJobSpec, Obstacle> {
        let mut spec = spec.clone();
        let (mut placed, mut bytes) = (BTreeSet::new(), 0);
        for step in &mut spec.steps {
            for config_map in std::mem::take(&mut step.config_maps) {
                let value = self.config_value(&config_map, &mut bytes).await?;
                let ConfigMapUse { name: _, key: _, env, file } = config_map;
                if let Some(variable) = env {
                    step.env.insert(variable, value);
                } else if let Some(path) = file
                    && placed.insert(path.clone())
                {
                    let inline = Some(value);
                    let input = Input { path, inline, upload: None, host_path: None, executable: false };
                    spec.workspace.inputs.push(input);
                }
            }
        }
        Ok(spec)
    }

    async fn config_value(
        &mut self,
        config_map: &ConfigMapUse,
        bytes: &mut usize,
    ) -> Result<String, Obstacle> {
        let ConfigMapUse { name, key, env, file: _ } = config_map;
        let Some(cluster) = self.cluster().await? else {
            let message = format!(
                "ConfigMap `{}/{name}` can only be read by a controller of the cluster that the job comes from, with --kube-secrets \
                 (`kube.secrets.enabled` of the chart)",
                self.namespace
            );
            return Err(Lacking { lack: Lack::ReadForbidden, message }.into());
        };
        let value = self.value(cluster, Source::ConfigMap, name, key).await?;
        *bytes += value.len();
        let problem = match String::from_utf8(value) {
            Err(_) => format!("the value `{key}` is no text; put it into a Secret, and take that as a file"),
            Ok(_) if *bytes > MAX_CONFIG_BYTES => format!(
                "with the value `{key}` the job's values have more than the {MAX_CONFIG_BYTES} bytes that one job is given"
            ),
            Ok(text) => match env {
                Some(_) if text.contains('\0') => {
                    format!("the value `{key}` has a NUL in it, and so fits no variable; take it as `file`")
                }
                Some(variable) if variable.len() + text.len() + 2 > MAX_ARGUMENT_BYTES => format!(
                    "the value `{key}` has {} bytes, and so fits no variable; take it as `file`",
                    text.len()
                ),
                Some(_) | None => return Ok(text),
            },
        };
        Err(Lacking::unsuitable(Source::ConfigMap, (self.namespace, name), &problem).into())
    }
}

fn too_many() -> String {
    format!(
        "more than the {MAX_ATTEMPT_BYTES} bytes that one job is given; put large content into an upload that is encrypted, and its \
         key into the Secret"
    )
}

fn missing(namespace: &str, name: &str, key: &str, all: bool) -> String {
    let what = if all {
        format!("there is no Secret `{namespace}/{name}`")
    } else {
        format!("Secret `{namespace}/{name}` has no key `{key}`")
    };
    format!("{what}; set it with `windlass secret set -n {namespace} {name} {key}`, and run the job again")
}
