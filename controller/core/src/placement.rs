//! Which nodes a job fits, and the first reason why one does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use windlass_crds::egress::{self, EgressRule};
use windlass_crds::image::{self, ImageName};
use windlass_crds::inference::is_same_model;
use windlass_crds::node_config::NodeConfigSpec;
use windlass_crds::protocol::CapabilityReport;
use windlass_crds::sandbox_job::{
    Arch, HostPath, LabelOperator, LabelRequirement, Limit, Network, Resources, Runtime,
};
use windlass_crds::service::ContainerEngine;

use crate::requirement::{Access, Requirement, Room, ServiceNeed};

/// What a node offers: the intersection of what its host can do and what its policy permits.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Offer {
    /// The architecture; `None` where the report names one that is not known.
    pub arch: Option<Arch>,
    /// Runtimes that work.
    pub working_runtimes: BTreeSet<Runtime>,
    /// Runtimes that the policy permits; empty for all.
    pub permitted_runtimes: BTreeSet<Runtime>,
    /// Network words that work.
    pub working_networks: BTreeSet<Network>,
    /// Network words that the policy permits.
    pub permitted_networks: BTreeSet<Network>,
    /// The rules within which those of jobs for egress must lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// The labels in force.
    pub labels: BTreeMap<String, String>,
    /// Limits that the host can enforce.
    pub enforceable: BTreeSet<Limit>,
    /// The ceiling of the policy.
    pub max: Resources,
    /// Paths of the host that jobs may use.
    pub host_paths: Vec<HostPath>,
    /// Graphics processors: vendor and memory in bytes.
    pub gpus: Vec<(Option<String>, u64)>,
    /// All the room that the host has.
    pub capacity: Room,
    /// Registries, folders and images that the policy allows; empty for the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Whether the policy wants images named by their digest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub images_by_digest: bool,
    /// Folders whose images native jobs may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_folders: Vec<String>,
    /// The server of models, where one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<ModelServer>,
    /// Whether jobs may tell facts of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub facts: bool,
    /// Containers of the node that jobs may start, stop and restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

/// A node's server of models.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct ModelServer {
    /// Why jobs cannot use it; `None` where they can.
    pub unusable: Option<String>,
    /// The models that it has.
    pub models: BTreeSet<String>,
}

/// Why a node is out of the question for a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
pub enum Exclusion {
    /// The node has never reported what it can do.
    #[error("the node has not registered yet")]
    NotRegistered,
    /// The runtime does not work there.
    #[error("runtime {wanted} does not work on the node")]
    RuntimeMissing {
        /// What the job needs.
        wanted: Runtime,
    },
    /// The policy forbids the runtime.
    #[error("runtime {wanted} is not among the node's sandbox.runtimes")]
    RuntimeForbidden {
        /// What the job needs.
        wanted: Runtime,
    },
    /// The network word does not work there.
    #[error("network {wanted} does not work on the node")]
    NetworkMissing {
        /// What the job needs.
        wanted: Network,
    },
    /// The policy forbids the network word.
    #[error("network {wanted} is not among the node's sandbox.networks")]
    NetworkForbidden {
        /// What the job needs.
        wanted: Network,
    },
    /// A rule for egress goes beyond the policy.
    #[error("egress rule {rule} is not within the node's sandbox.egress{}", if *unnamed { ", which names none: addresses need one" } else { "" })]
    EgressForbidden {
        /// The job's rule.
        rule: String,
        /// Whether the node has no rules.
        unnamed: bool,
    },
    /// Another architecture.
    #[error("the node is not {wanted}")]
    Arch {
        /// What the job needs.
        wanted: Arch,
    },
    /// A label differs or is absent.
    #[error("nodeSelector {key}={wanted}: the node has {}", found.as_deref().unwrap_or("no such label"))]
    Selector {
        /// The label.
        key: String,
        /// What the job wants.
        wanted: String,
        /// What the node has.
        found: Option<String>,
    },
    /// A condition on a label does not hold.
    #[error("requires.labels {key} {operator} [{}]: the node has {}", values.join(", "), found.as_deref().unwrap_or("no such label"))]
    Label {
        /// The label.
        key: String,
        /// The comparison.
        operator: &'static str,
        /// What it compares with.
        values: Vec<String>,
        /// What the node has.
        found: Option<String>,
    },
    /// A limit that the job names cannot be enforced.
    #[error(
        "the node cannot enforce the {limit} limit that the job names; sandbox.unenforced: [{limit}] would accept that"
    )]
    Unenforceable {
        /// The limit.
        limit: Limit,
    },
    /// A limit that the job names is above the ceiling.
    #[error("the job names {wanted} of {limit}, above the node's sandbox.max of {max}")]
    AboveMax {
        /// The limit.
        limit: Limit,
        /// What the job names.
        wanted: String,
        /// The ceiling.
        max: String,
    },
    /// A path of the host is not open to jobs, or only for reading.
    #[error("host path {path} is not {} by the node's sandbox.hostPaths", if *write { "writable" } else { "allowed" })]
    HostPath {
        /// The path.
        path: String,
        /// Whether the job wants to write.
        write: bool,
    },
    /// The policy forbids the image.
    #[error("image {name} is not within the node's sandbox.images.allowed, which allows {}", allowed.join(", "))]
    ImageForbidden {
        /// The image.
        name: String,
        /// What is allowed.
        allowed: Vec<String>,
    },
    /// The policy wants the image to be named by its digest.
    #[error("image {name} is not named by its digest, which the node's sandbox.images.requireDigest wants")]
    ImageWithoutDigest {
        /// The image.
        name: String,
    },
    /// The policy does not allow the folder of an image that lies on the node.
    #[error(
        "image {path} is not within the node's sandbox.images.folders, which allows {}",
        if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") }
    )]
    ImageFolderForbidden {
        /// Where the image lies.
        path: String,
        /// What is allowed.
        allowed: Vec<String>,
    },
    /// The policy forbids to tell facts.
    #[error("steps of kind `facts` are not allowed by the node's facts.steps")]
    FactsForbidden,
    /// The policy forbids to touch the container.
    #[error("container {name} is not among the node's sandbox.services, which lists {}", if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") })]
    ServiceForbidden {
        /// The container.
        name: String,
        /// What is allowed.
        allowed: Vec<String>,
    },
    /// No engine works there that could have the container.
    #[error("a step of kind `service` needs {wanted}, which does not work on the node")]
    ServiceEngineMissing {
        /// What the job needs.
        wanted: String,
    },
    /// The node has no server of models.
    #[error("sandbox.inference needs a server of models and the node's inference is not configured")]
    NoInference,
    /// The server of models cannot be used.
    #[error("sandbox.inference needs a server of models and the node's is not ready: {why}")]
    InferenceNotReady {
        /// Why not.
        why: String,
    },
    /// The server of models does not have the model.
    #[error("requires.model {wanted}: the node has {}", if found.is_empty() { "no model".to_owned() } else { found.join(", ") })]
    ModelMissing {
        /// What the job needs.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Too few fitting graphics processors.
    #[error("{wanted} fitting GPUs are needed and the node has {found}")]
    Gpu {
        /// How many the job needs.
        wanted: u32,
        /// How many fit.
        found: u32,
    },
    /// The host is too small, even when it is idle.
    #[error("{wanted} of {resource} are needed and the whole node has {capacity}")]
    TooSmall {
        /// `cpu` or `memory`.
        resource: &'static str,
        /// What the job needs.
        wanted: String,
        /// All that the node has.
        capacity: String,
    },
}

impl Offer {
    /// What a node with this report and this configuration offers.
    pub fn new(name: &str, report: &CapabilityReport, spec: &NodeConfigSpec) -> Self {
        let sandbox = report.sandbox.clone().unwrap_or_default();
        let arch: Option<Arch> = report.platform.arch.parse().ok();
        let permitted_networks = if spec.sandbox.networks.is_empty() {
            BTreeSet::from([Network::None, Network::Restricted])
        } else {
            spec.sandbox.networks.iter().copied().collect()
        };
        let gpus: Vec<_> = report
            .gpu
            .iter()
            .flat_map(|gpu| &gpu.devices)
            .map(|device| (device.vendor.clone(), device.vram_mb.unwrap_or(0) << 20))
            .collect();
        Self {
            arch,
            working_runtimes: known(&sandbox.runtimes),
            permitted_runtimes: spec.sandbox.runtimes.iter().copied().collect(),
            working_networks: known(&sandbox.networks),
            permitted_networks,
            egress: spec.sandbox.egress.clone(),
            labels: labels_in_force(name, Some(report), spec),
            enforceable: known(&sandbox.limits),
            max: spec.sandbox.max.clone(),
            host_paths: spec.sandbox.host_paths.clone(),
            capacity: Room {
                cpu_millis: u64::from(report.compute.cpu_cores) * 1000,
                memory_bytes: report.compute.ram_mb << 20,
                gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
            },
            gpus,
            images: spec.sandbox.images.allowed.clone(),
            images_by_digest: spec.sandbox.images.require_digest,
            image_folders: spec.sandbox.images.folders.clone(),
            facts: spec.facts.as_ref().is_some_and(|facts| facts.steps),
            services: spec.sandbox.services.clone(),
            inference: spec
                .inference
                .as_ref()
                .filter(|inference| inference.enabled)
                .map(|_| model_server(report)),
        }
    }

    /// Names the offer: nodes with equal offers fit the same classes.
    pub fn profile(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("an offer is plain data with string keys");
        hex::encode(Sha256::digest(canonical))
    }
}

/// The labels of a node: what its agent says, over that what is declared, and over both its name and what its host is, so
/// that nobody can give himself the name of another node.
pub fn labels_in_force(
    name: &str,
    report: Option<&CapabilityReport>,
    spec: &NodeConfigSpec,
) -> BTreeMap<String, String> {
    let mut labels = report.map(|report| report.node.labels.clone()).unwrap_or_default();
    labels.extend(spec.labels.clone());
    labels.insert("windlass.dev/node".to_owned(), name.to_owned());
    if let Some(report) = report {
        labels.insert("windlass.dev/os".to_owned(), report.platform.os.clone());
        labels.insert("windlass.dev/arch".to_owned(), report.platform.arch.clone());
    }
    labels
}

/// What a node says of its server of models, without what changes from moment to moment: an offer of its own for each step of
/// a download would be one too many.
fn model_server(report: &CapabilityReport) -> ModelServer {
    match &report.inference {
        Some(inference) if inference.running => {
            let models = inference.available_models.iter().cloned().collect();
            ModelServer { unusable: None, models }
        }
        Some(inference) if !inference.status.reason.is_empty() => {
            ModelServer { unusable: Some(inference.status.reason.clone()), models: BTreeSet::new() }
        }
        Some(_) | None => ModelServer { unusable: Some("NotReported".to_owned()), models: BTreeSet::new() },
    }
}

/// The words that this version knows; a newer agent may report others.
fn known<T: std::str::FromStr + Ord>(words: &[String]) -> BTreeSet<T> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

/// The first reason why a node with this offer can never run jobs of this class; `None` where it can.
pub fn exclusion(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    runtime(requirement, offer)
        .or_else(|| labels(requirement, offer))
        .or_else(|| limits(requirement, offer))
        .or_else(|| host_paths(requirement, offer))
        .or_else(|| images(requirement, offer))
        .or_else(|| host_images(requirement, offer))
        .or_else(|| inference(requirement, offer))
        .or_else(|| facts(requirement, offer))
        .or_else(|| services(requirement, offer))
        .or_else(|| gpus(requirement, offer, 1))
}

/// The first reason why one job can never run on the node, the size of the host included.
pub fn exclusion_with_room(requirement: &Requirement, room: Room, offer: &Offer) -> Option<Exclusion> {
    exclusion(requirement, offer).or_else(|| gpus(requirement, offer, room.gpus)).or_else(|| {
        let capacity = offer.capacity;
        if room.cpu_millis > capacity.cpu_millis {
            Some(Exclusion::TooSmall {
                resource: "cpu",
                wanted: windlass_crds::Cpu::from_millis(room.cpu_millis).to_string(),
                capacity: windlass_crds::Cpu::from_millis(capacity.cpu_millis).to_string(),
            })
        } else if room.memory_bytes > capacity.memory_bytes {
            Some(Exclusion::TooSmall {
                resource: "memory",
                wanted: windlass_crds::Bytes::new(room.memory_bytes).to_string(),
                capacity: windlass_crds::Bytes::new(capacity.memory_bytes).to_string(),
            })
        } else {
            None
        }
    })
}

fn runtime(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    let wanted = requirement.runtime;
    if !offer.working_runtimes.contains(&wanted) {
        return Some(Exclusion::RuntimeMissing { wanted });
    }
    if !offer.permitted_runtimes.is_empty() && !offer.permitted_runtimes.contains(&wanted) {
        return Some(Exclusion::RuntimeForbidden { wanted });
    }
    let wanted = requirement.network;
    if !offer.permitted_networks.contains(&wanted) {
        return Some(Exclusion::NetworkForbidden { wanted });
    }
    if !offer.working_networks.contains(&wanted) {
        return Some(Exclusion::NetworkMissing { wanted });
    }
    let rules: Vec<EgressRule> = requirement.egress.iter().cloned().collect();
    if let Some(rule) = egress::beyond(&rules, &offer.egress) {
        return Some(Exclusion::EgressForbidden { rule: rule.to_string(), unnamed: offer.egress.is_empty() });
    }
    match requirement.arch {
        Some(wanted) if offer.arch != Some(wanted) => Some(Exclusion::Arch { wanted }),
        Some(_) | None => None,
    }
}

fn labels(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    for (key, wanted) in &requirement.selector {
        let found = offer.labels.get(key);
        if found != Some(wanted) {
            return Some(Exclusion::Selector {
                key: key.clone(),
                wanted: wanted.clone(),
                found: found.cloned(),
            });
        }
    }
    let failing = requirement
        .labels
        .iter()
        .find(|requirement| !holds(requirement, offer.labels.get(&requirement.key).map(String::as_str)))?;
    Some(Exclusion::Label {
        key: failing.key.clone(),
        operator: failing.operator.into(),
        values: failing.values.clone(),
        found: offer.labels.get(&failing.key).cloned(),
    })
}

/// Whether a condition on a label holds for the label's value.
fn holds(requirement: &LabelRequirement, value: Option<&str>) -> bool {
    let listed = || value.is_some_and(|value| requirement.values.iter().any(|listed| listed == value));
    let compared = |compare: fn(i64, i64) -> bool| {
        let bound = requirement.values.first().and_then(|bound| bound.parse().ok());
        let value = value.and_then(|value| value.parse().ok());
        matches!((value, bound), (Some(value), Some(bound)) if compare(value, bound))
    };
    match requirement.operator {
        LabelOperator::In => listed(),
        LabelOperator::NotIn => !listed(),
        LabelOperator::Exists => value.is_some(),
        LabelOperator::DoesNotExist => value.is_none(),
        LabelOperator::Gt => compared(|value, bound| value > bound),
        LabelOperator::Lt => compared(|value, bound| value < bound),
    }
}

fn limits(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    if let Some(limit) = requirement.enforced.iter().find(|limit| !offer.enforceable.contains(limit)) {
        return Some(Exclusion::Unenforceable { limit: *limit });
    }
    fn above<T: PartialOrd + ToString>(limit: Limit, named: Option<T>, max: Option<T>) -> Option<Exclusion> {
        match (named, max) {
            (Some(named), Some(max)) if named > max => {
                Some(Exclusion::AboveMax { limit, wanted: named.to_string(), max: max.to_string() })
            }
            (Some(_) | None, Some(_) | None) => None,
        }
    }
    let (named, max) = (&requirement.named, &offer.max);
    above(Limit::Cpu, named.cpu, max.cpu)
        .or_else(|| above(Limit::Memory, named.memory, max.memory))
        .or_else(|| above(Limit::Pids, named.pids, max.pids))
        .or_else(|| above(Limit::Disk, named.disk, max.disk))
        .or_else(|| above(Limit::Cpu, named.cpu_weight, max.cpu_weight))
        .or_else(|| above(Limit::Io, named.io_read, max.io_read))
        .or_else(|| above(Limit::Io, named.io_write, max.io_write))
        .or_else(|| above(Limit::Files, named.files, max.files))
}

fn host_paths(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    requirement.host_paths.iter().find_map(|(path, access)| {
        let write = *access == Access::Write;
        let allowed =
            offer.host_paths.iter().any(|open| covers(&open.path, path) && (!write || !open.read_only));
        (!allowed).then(|| Exclusion::HostPath { path: path.clone(), write })
    })
}

/// Whether `path` is `open` or lies below it. Both are absolute and free of `..` (validation sees to it); the agent
/// checks again on the real file system, where links count.
fn covers(open: &str, path: &str) -> bool {
    Path::new(path).starts_with(open)
}

fn images(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    let allowed: Vec<&str> = match offer.images.is_empty() {
        true => image::ALLOWED_BY_DEFAULT.to_vec(),
        false => offer.images.iter().map(String::as_str).collect(),
    };
    requirement.images.iter().find_map(|need| {
        let name = ImageName { name: need.name.clone(), tag: None, digest: None };
        if !name.is_within(allowed.iter().copied()) {
            let allowed = allowed.iter().map(|entry| (*entry).to_owned()).collect();
            return Some(Exclusion::ImageForbidden { name: name.name, allowed });
        }
        (offer.images_by_digest && !need.by_digest)
            .then_some(Exclusion::ImageWithoutDigest { name: name.name })
    })
}

/// The agent checks again on the real file system, where links count.
fn host_images(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    requirement.host_images.iter().find_map(|need| {
        if !offer.image_folders.iter().any(|folder| covers(folder, &need.path)) {
            let allowed = offer.image_folders.clone();
            return Some(Exclusion::ImageFolderForbidden { path: need.path.clone(), allowed });
        }
        (offer.images_by_digest && !need.by_digest)
            .then(|| Exclusion::ImageWithoutDigest { name: need.path.clone() })
    })
}

fn facts(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    (requirement.facts && !offer.facts).then_some(Exclusion::FactsForbidden)
}

fn services(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    let works = |engine| match engine {
        ContainerEngine::Podman => offer.working_runtimes.contains(&Runtime::Podman),
        ContainerEngine::Docker => offer.working_runtimes.contains(&Runtime::Docker),
    };
    requirement.services.iter().find_map(|ServiceNeed { name, runtime }| {
        if !offer.services.contains(name) {
            return Some(Exclusion::ServiceForbidden { name: name.clone(), allowed: offer.services.clone() });
        }
        let (fits, wanted) = match runtime {
            Some(engine) => (works(*engine), engine.to_string()),
            None => {
                let any = works(ContainerEngine::Podman) || works(ContainerEngine::Docker);
                (any, "podman or docker".to_owned())
            }
        };
        (!fits).then_some(Exclusion::ServiceEngineMissing { wanted })
    })
}

fn inference(requirement: &Requirement, offer: &Offer) -> Option<Exclusion> {
    let need = requirement.inference.as_ref()?;
    let Some(server) = &offer.inference else { return Some(Exclusion::NoInference) };
    if let Some(why) = &server.unusable {
        return Some(Exclusion::InferenceNotReady { why: why.clone() });
    }
    let wanted = need.model.as_ref()?;
    let has = server.models.iter().any(|known| is_same_model(wanted, known));
    (!has).then(|| Exclusion::ModelMissing {
        wanted: wanted.clone(),
        found: server.models.iter().cloned().collect(),
    })
}

fn gpus(requirement: &Requirement, offer: &Offer, wanted: u32) -> Option<Exclusion> {
    let predicate = requirement.gpu.as_ref()?;
    let fitting = offer.gpus.iter().filter(|(vendor, memory)| {
        *memory >= predicate.memory_bytes
            && predicate.vendor.as_ref().is_none_or(|wanted| vendor.as_ref() == Some(wanted))
    });
    let found = u32::try_from(fitting.count()).unwrap_or(u32::MAX);
    (found < wanted).then_some(Exclusion::Gpu { wanted, found })
}

#[cfg(test)]
mod tests;
