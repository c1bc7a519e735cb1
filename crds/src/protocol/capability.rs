//! The capability report: what a host is and can do.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a host is and can do. Sent at registration and whenever its content changes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct CapabilityReport {
    /// [`super::VERSION`].
    pub version: u32,
    /// When the report was made. Not part of the report's hash.
    pub reported_at: Timestamp,
    /// Who reports.
    pub node: NodeIdentity,
    /// The operating system.
    pub platform: Platform,
    /// Processor, memory and disk.
    pub compute: Compute,
    /// The container engine, where one was found to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<ContainerRuntime>,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// What the sandbox can do here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxCapability>,
    /// The server of models; absent where the configuration has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceCapability>,
    /// The agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentCapability>,
    /// The node's Worker API, where it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api: Option<WorkerApiCapability>,
    /// Whom to trust to be the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsCapability>,
}

/// A Worker API that is served.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct WorkerApiCapability {
    /// Where it is reached, as `https://HOST:PORT`.
    pub base_url: String,
}

/// Whom to trust to be the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct TlsCapability {
    /// `ok`, `missing` or `invalid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_material_status: Option<String>,
    /// The certificate of the Worker API, in PEM. It, and no other, proves the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api_server_cert_pem: Option<String>,
}

/// The server of models of a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct InferenceCapability {
    /// Whether the node can have one.
    pub supported: bool,
    /// `allow`, or `require` where the node is not ready without it.
    #[serde(default)]
    pub mode: String,
    /// Whether it was there before.
    #[serde(default)]
    pub existing_service: bool,
    /// Whether it answers and has the models that are wanted.
    #[serde(default)]
    pub running: bool,
    /// The names of the models that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub available_models: Vec<String>,
    /// All that is found.
    #[serde(default)]
    pub status: crate::inference::InferenceStatus,
}

/// Who reports.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct NodeIdentity {
    /// The node's name.
    pub node_slug: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels from the agent's own settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The operating system.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// The distribution, such as `debian 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// `amd64` or `arm64`.
    pub arch: String,
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
}

/// Processor, memory and disk.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Compute {
    /// The processor's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Cores that jobs can use.
    pub cpu_cores: u32,
    /// Memory in MiB.
    pub ram_mb: u64,
    /// Free space of the state folder's file system in MiB, rounded down to whole GiB so that the report's hash is
    /// steady.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_free_mb: Option<u64>,
}

/// A container engine.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ContainerRuntime {
    /// `podman` or `docker`.
    pub runtime: String,
    /// The engine's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it can run without root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_supported: Option<bool>,
    /// Whether it runs without root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_enabled: Option<bool>,
}

/// Graphics processors.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct Gpu {
    /// Whether there is any.
    pub present: bool,
    /// The devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<GpuDevice>,
}

/// A graphics processor.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct GpuDevice {
    /// Such as `nvidia` or `amd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The device's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The device's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
    /// What its driver says beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<GpuFeatures>,
}

/// What the driver of a graphics processor says of it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct GpuFeatures {
    /// The device's own name, such as `GPU-` and a UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The driver's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// The newest version of CUDA that the driver speaks, such as `12.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
}

/// What the sandbox can do on this host, found by trying.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct SandboxCapability {
    /// Whether any runtime works.
    pub supported: bool,
    /// What isolates: `userns`, `netns`, `seccomp`, `landlock`, `cgroup_v1`, `cgroup_v2`, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Attempts that can run at once by the agent's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// Runtimes that work: `native`, `podman`, `docker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<String>,
    /// Network words that work, such as `None`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Limits that can be enforced: `cpu`, `memory`, `pids`, `disk`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Container engines that work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineCapability>,
    /// Why what is missing is missing; read by people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// A container engine that works.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct EngineCapability {
    /// `podman` or `docker`.
    pub engine: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Whether it works without root.
    #[serde(default)]
    pub rootless: bool,
    /// How it stores images, such as `overlay`.
    #[serde(default)]
    pub storage: String,
    /// The OCI runtimes that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<String>,
    /// Limits that it can enforce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
}

/// The agent itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct AgentCapability {
    /// The agent's version.
    pub version: String,
    /// Names this run of the agent: a second live one with the same identity is fenced.
    pub boot_id: String,
    /// Kinds of steps that the agent can run, such as `command` and `script`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step_kinds: Vec<String>,
}
