//! What a job needs of a node, apart from room: its static predicates.
//!
//! Jobs with equal predicates form a *requirement class*. Whether a node fits is decided once per class and node
//! profile ([`crate::placement`]), not once per job, so that claiming does not grow with the backlog.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use windlass_crds::sandbox_job::{
    Arch, LabelRequirement, Limit, Network, Resources, Runtime, SandboxJobSpec,
};
use windlass_crds::service::ContainerEngine;
use windlass_crds::{EgressRule, HostImage, ImageName};

/// The static predicates of a job.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The runtime that the job is written for.
    pub runtime: Runtime,
    /// What the steps may reach.
    pub network: Network,
    /// Whom they may reach, with a restricted network.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub egress: BTreeSet<EgressRule>,
    /// The architecture, where it matters.
    pub arch: Option<Arch>,
    /// Labels by equality.
    pub selector: BTreeMap<String, String>,
    /// Labels by other comparisons.
    pub labels: Vec<LabelRequirement>,
    /// What each graphics processor must be.
    pub gpu: Option<GpuPredicate>,
    /// Limits that the node must be able to enforce.
    pub enforced: BTreeSet<Limit>,
    /// The limits that the job names; none may be above the node's ceiling.
    pub named: Resources,
    /// Paths of the host that the job uses, and whether it writes to them.
    pub host_paths: BTreeMap<String, Access>,
    /// Images of containers, without their tags: what a policy looks at.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<ImageNeed>,
    /// Images that lie on the node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub host_images: BTreeSet<HostImageNeed>,
    /// What the job needs of a server of models, where it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<ModelNeed>,
    /// Whether a step tells facts of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub facts: bool,
    /// The containers of the node that steps start, stop or restart.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<ServiceNeed>,
}

/// An image, as far as a policy looks at it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageNeed {
    /// Registry and repository.
    pub name: String,
    /// Whether it is named by its digest.
    pub by_digest: bool,
}

/// An image that lies on the node, as far as a policy looks at it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostImageNeed {
    /// Where it lies.
    pub path: String,
    /// Whether it is named by its digest.
    pub by_digest: bool,
}

/// What a job needs of a server of models.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ModelNeed {
    /// The model, where it matters.
    pub model: Option<String>,
}

/// A container of the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceNeed {
    /// Its name.
    pub name: String,
    /// The engine that has it, where that is said.
    pub runtime: Option<ContainerEngine>,
}

/// What each graphics processor must be.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GpuPredicate {
    /// The vendor, where it matters.
    pub vendor: Option<String>,
    /// The least memory in bytes.
    pub memory_bytes: u64,
}

/// How a job uses a path.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// It only reads.
    Read,
    /// It also writes.
    Write,
}

/// Room on a node that a job takes while it runs.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Room {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Graphics processors.
    pub gpus: u32,
}

impl Room {
    /// Whether `self` fits into `free`.
    pub const fn fits(self, free: Self) -> bool {
        self.cpu_millis <= free.cpu_millis && self.memory_bytes <= free.memory_bytes && self.gpus <= free.gpus
    }
}

impl Requirement {
    /// The predicates of a job.
    pub fn of(spec: &SandboxJobSpec) -> Self {
        let resources = &spec.sandbox.resources;
        let named_limits = [
            (Limit::Cpu, resources.cpu.is_some() || resources.cpu_weight.is_some()),
            (Limit::Memory, resources.memory.is_some()),
            (Limit::Pids, resources.pids.is_some()),
            (Limit::Disk, resources.disk.is_some()),
            (Limit::Io, resources.io_read.is_some() || resources.io_write.is_some()),
            (Limit::Files, resources.files.is_some()),
        ];
        let enforced = named_limits
            .into_iter()
            .filter(|(limit, named)| *named && !spec.sandbox.unenforced.contains(limit))
            .map(|(limit, _)| limit)
            .collect();
        let mut labels = spec.requires.labels.clone();
        for requirement in &mut labels {
            requirement.values.sort();
        }
        labels.sort_by(|a, b| (&a.key, a.operator, &a.values).cmp(&(&b.key, b.operator, &b.values)));
        labels.dedup();
        let mut host_paths = BTreeMap::new();
        for host_path in spec.workspace.inputs.iter().filter_map(|input| input.host_path.as_ref()) {
            let access = if host_path.read_only { Access::Read } else { Access::Write };
            let entry = host_paths.entry(host_path.path.clone()).or_insert(access);
            *entry = access.max(*entry);
        }
        Self {
            runtime: spec.requires.runtime.unwrap_or(spec.sandbox.runtime),
            network: spec.sandbox.network,
            egress: spec.sandbox.egress.iter().cloned().collect(),
            arch: spec.requires.arch,
            selector: spec.node_selector.clone(),
            labels,
            gpu: spec.requires.gpu.as_ref().map(|gpu| GpuPredicate {
                vendor: gpu.vendor.clone(),
                memory_bytes: gpu.memory.map_or(0, windlass_crds::Bytes::get),
            }),
            enforced,
            named: resources.clone(),
            host_paths,
            images: images(spec),
            host_images: host_images(spec),
            facts: spec.steps.iter().any(|step| step.facts.is_some()),
            services: spec
                .steps
                .iter()
                .filter_map(|step| step.service.as_ref())
                .map(|service| ServiceNeed { name: service.name.clone(), runtime: service.runtime })
                .collect(),
            inference: spec.sandbox.inference.then(|| ModelNeed { model: spec.requires.model.clone() }),
        }
    }

    /// The name of the class: equal predicates have equal names.
    pub fn class(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("a requirement is plain data with string keys");
        hex::encode(Sha256::digest(canonical))
    }
}

/// The images of a job's containers. What is no image is the agent's to refuse.
fn images(spec: &SandboxJobSpec) -> BTreeSet<ImageNeed> {
    if spec.sandbox.runtime == Runtime::Native {
        return BTreeSet::new();
    }
    let named = named_images(spec).filter_map(|image| image.parse::<ImageName>().ok());
    named.map(|image| ImageNeed { by_digest: image.digest.is_some(), name: image.name }).collect()
}

/// The images that are a system of the job's native steps.
fn host_images(spec: &SandboxJobSpec) -> BTreeSet<HostImageNeed> {
    if spec.sandbox.runtime != Runtime::Native {
        return BTreeSet::new();
    }
    let named = named_images(spec).filter_map(|image| image.parse::<HostImage>().ok());
    named.map(|image| HostImageNeed { by_digest: image.digest.is_some(), path: image.path }).collect()
}

/// The images that steps of a job use, as it writes them.
fn named_images(spec: &SandboxJobSpec) -> impl Iterator<Item = &str> {
    let of_steps = spec.steps.iter().filter_map(|step| step.container.as_ref()?.image.as_deref());
    // The job's own image is used by the steps that name none.
    let own_is_used = spec.steps.is_empty()
        || spec
            .steps
            .iter()
            .any(|step| step.container.as_ref().is_none_or(|container| container.image.is_none()));
    of_steps.chain(spec.sandbox.image.as_deref().filter(|_| own_is_used))
}

/// The room that a job takes: what it requires, else its limits.
pub fn room(spec: &SandboxJobSpec) -> Room {
    let cpu = spec.requires.cpu.or(spec.sandbox.resources.cpu);
    let memory = spec.requires.memory.or(spec.sandbox.resources.memory);
    Room {
        cpu_millis: cpu.map_or(0, windlass_crds::Cpu::millis),
        memory_bytes: memory.map_or(0, windlass_crds::Bytes::get),
        gpus: spec.requires.gpu.as_ref().map_or(0, |gpu| gpu.count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_crds::sandbox_job::{LabelOperator, Requirements};
    use windlass_crds::{Bytes, Cpu};

    fn label(key: &str, values: &[&str]) -> LabelRequirement {
        LabelRequirement {
            key: key.into(),
            operator: LabelOperator::In,
            values: values.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn spelling_and_order_do_not_make_a_new_class() {
        let spec = |labels| SandboxJobSpec {
            requires: Requirements { labels, ..Default::default() },
            ..Default::default()
        };
        let one = spec(vec![label("zone", &["b", "a"]), label("disk", &["ssd"])]);
        let other = spec(vec![label("disk", &["ssd"]), label("zone", &["a", "b"]), label("disk", &["ssd"])]);
        assert_eq!(Requirement::of(&one).class(), Requirement::of(&other).class());
    }

    #[test]
    fn a_job_without_rules_for_egress_is_of_the_class_that_it_was_before_there_were_any() {
        let requirement = Requirement::of(&SandboxJobSpec::default());
        let stored = serde_json::to_value(&requirement).unwrap();
        assert!(stored.get("egress").is_none(), "{stored}");
        assert_eq!(serde_json::from_value::<Requirement>(stored).unwrap(), requirement);
    }

    #[test]
    fn what_the_steps_do_does_not_make_a_new_class() {
        let mut one = SandboxJobSpec::default();
        let mut other = SandboxJobSpec::default();
        one.command = Some(vec!["true".into()]);
        other.command = Some(vec!["false".into()]);
        other.priority = windlass_crds::Priority::HIGH;
        other.requires.cpu = Some(Cpu::from_millis(250));
        assert_eq!(Requirement::of(&one).class(), Requirement::of(&other).class());
    }

    #[test]
    fn a_named_limit_must_be_enforceable_unless_the_job_says_otherwise() {
        let mut spec = SandboxJobSpec::default();
        spec.sandbox.resources.memory = Some(Bytes::from_mib(64));
        spec.sandbox.resources.pids = Some(10);
        spec.sandbox.unenforced = vec![Limit::Pids];
        assert_eq!(Requirement::of(&spec).enforced, BTreeSet::from([Limit::Memory]));
    }

    #[test]
    fn room_is_what_is_required_else_the_limit() {
        let mut spec = SandboxJobSpec::default();
        spec.sandbox.resources.cpu = Some(Cpu::from_millis(2000));
        spec.sandbox.resources.memory = Some(Bytes::from_mib(64));
        spec.requires.cpu = Some(Cpu::from_millis(500));
        assert_eq!(room(&spec), Room { cpu_millis: 500, memory_bytes: 64 << 20, gpus: 0 });
    }
}
