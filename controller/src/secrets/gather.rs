//! Gathers what an attempt is given: Windlass's own secrets, and those of the cluster that the job comes from.
//!
//! A name is of Windlass where it has a Secret of that name in the job's namespace, whatever keys that has; else of the cluster, if the job
//! comes from one. What the cluster lacks keeps the whole attempt back, and so does a cluster that this controller does not read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use windlass_core::validate::MAX_ARGUMENT_BYTES;
use windlass_crds::protocol::{SecretBytes, SecretValue};
use windlass_crds::sandbox_job::Input;
use windlass_crds::secret::{MAX_ATTEMPT_BYTES, MAX_CONFIG_BYTES, MAX_VALUE_BYTES, MIN_VALUE_BYTES};
use windlass_crds::{ConfigMapUse, SandboxJobSpec};
use windlass_store::SecretValueRow;

use super::Secrets;
use crate::error::ApiError;
use crate::kube::values::{ClusterValues, Lack, Lacking, Reading, Source};
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
#[derive(Clone, Copy)]
pub(super) struct Gathering<'a> {
    pub(super) secrets: &'a Secrets,
    pub(super) namespace: &'a str,
    pub(super) whence: Whence<'a>,
    pub(super) reading: &'a Reading<'a>,
}

/// Who has what Windlass itself does not have.
#[derive(Clone, Copy)]
enum Others<'a> {
    /// Nobody: the job comes from no cluster.
    Nobody,
    /// This cluster, which the job comes from.
    Cluster(&'a ClusterValues),
    /// A cluster that this controller does not read.
    Unread,
}

impl Gathering<'_> {
    pub(super) async fn gather(self, spec: &SandboxJobSpec) -> Result<Gathered, Obstacle> {
        let uses = spec.steps.iter().flat_map(|step| &step.secrets).chain(&spec.secrets);
        let wanted: BTreeSet<(&str, &str)> =
            uses.map(|secret| (secret.name.as_str(), secret.key.as_str())).collect();
        let mut known: BTreeMap<&str, Vec<SecretValueRow>> = BTreeMap::new();
        for (name, _) in &wanted {
            if let Entry::Vacant(place) = known.entry(name) {
                place.insert(self.secrets.store.secret_values(self.namespace, name).await?);
            }
        }
        let unknown =
            known.iter().filter(|(_, rows)| rows.is_empty()).map(|(name, _)| (Source::Secret, *name));
        let config_maps = spec.steps.iter().flat_map(|step| &step.config_maps);
        let config_maps = config_maps.map(|config_map| (Source::ConfigMap, config_map.name.as_str()));
        let others = self.others(unknown.chain(config_maps).collect()).await?;
        let (mut secrets, mut outcomes, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, key) in wanted {
            let rows = &known[name];
            let (outcome, value) = match others {
                Others::Cluster(cluster) if rows.is_empty() => {
                    (SecretDelivery::Given, Ok(self.secret(cluster, name, key, bytes).await?))
                }
                Others::Unread if rows.is_empty() => {
                    let own =
                        format!("; or set it with `windlass secret set -n {} {name} {key}`", self.namespace);
                    return Err(self.unread(Source::Secret, name, &own).into());
                }
                Others::Nobody | Others::Cluster(_) | Others::Unread => self.own(rows, name, key, bytes),
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
        Ok(Gathered { secrets, spec: self.configured(others, spec).await?, outcomes })
    }

    /// Who has these objects, which then have been read, if anybody can.
    async fn others(&self, objects: BTreeSet<(Source, &str)>) -> Result<Others<'_>, Obstacle> {
        if objects.is_empty() {
            return Ok(Others::Nobody);
        }
        let cluster = match self.whence {
            Whence::Cluster => None,
            Whence::Job(uid) => {
                let origin = self.secrets.store.origin_of(uid).await?.filter(|origin| !origin.released);
                let Some(origin) = origin else { return Ok(Others::Nobody) };
                Some(origin.origin.cluster)
            }
        };
        let Some(values) = self.secrets.cluster.as_deref() else { return Ok(Others::Unread) };
        let reading = self.reading;
        if let Some(cluster) = cluster
            && !reading.within(values.is(&cluster)).await??
        {
            return Ok(Others::Unread);
        }
        let all =
            objects.into_iter().map(|(source, name)| reading.read(values, source, (self.namespace, name)));
        // What is lacking is told where it is used.
        drop(reading.within(join_all(all)).await?);
        Ok(Others::Cluster(values))
    }

    /// A name that only another controller can look up.
    fn unread(&self, source: Source, name: &str, else_do: &str) -> Lacking {
        let message = format!(
            "{} `{}/{name}` can only be read by a controller of the cluster that the job comes from, with --kube-secrets \
             (`kube.secrets.enabled` of the chart){else_do}",
            source.kind(),
            self.namespace
        );
        Lacking { lack: Lack::ReadForbidden, message }
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
        &self,
        cluster: &ClusterValues,
        name: &str,
        key: &str,
        bytes: usize,
    ) -> Result<Vec<u8>, Lacking> {
        let value = self.value(cluster, Source::Secret, name, key).await?;
        let size = value.len();
        // A value is masked without the white space around it, too.
        let masked = value.trim_ascii().len();
        let problem = if masked < MIN_VALUE_BYTES || size > MAX_VALUE_BYTES {
            let (size, around) =
                if size > MAX_VALUE_BYTES { (size, "") } else { (masked, " besides white space around it") };
            format!(
                "the value `{key}` has {size} bytes{around}; a job can be given {MIN_VALUE_BYTES} to {MAX_VALUE_BYTES}, because \
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
        &self,
        cluster: &ClusterValues,
        source: Source,
        name: &str,
        key: &str,
    ) -> Result<Vec<u8>, Lacking> {
        let place = (self.namespace, name);
        let values = self.reading.read(cluster, source, place).await?;
        values.get(key).cloned().ok_or_else(|| Lacking::missing(source, place, Some(key)))
    }

    /// The spec with the values of ConfigMaps in the place of their names.
    async fn configured(&self, others: Others<'_>, spec: &SandboxJobSpec) -> Result<SandboxJobSpec, Lacking> {
        let mut spec = spec.clone();
        let (mut placed, mut bytes) = (BTreeSet::new(), 0);
        for step in &mut spec.steps {
            for config_map in std::mem::take(&mut step.config_maps) {
                let value = self.config_value(others, &config_map, &mut bytes).await?;
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
        &self,
        others: Others<'_>,
        config_map: &ConfigMapUse,
        bytes: &mut usize,
    ) -> Result<String, Lacking> {
        let ConfigMapUse { name, key, env, file: _ } = config_map;
        let Others::Cluster(cluster) = others else {
            return Err(self.unread(Source::ConfigMap, name, ""));
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
        Err(Lacking::unsuitable(Source::ConfigMap, (self.namespace, name), &problem))
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
