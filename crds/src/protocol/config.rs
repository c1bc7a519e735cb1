//! The node's configuration and its acknowledgement.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{LogFile, ProxmoxSpec};
use crate::inference::{InferenceEngine, InferenceVariant};
use crate::service::ContainerEngine;

/// What a node shall be. Versions are numbers that only grow, written as strings: `10` is newer than `9`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Configuration {
    /// [`super::VERSION`].
    pub version: u32,
    /// The configuration's version.
    pub config_version: String,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// The node that it is for.
    pub node_slug: String,
    /// The uid of the node's object, within which versions grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_uid: Option<String>,
    /// Where the controller is.
    pub orchestrator: ConfigOrchestrator,
    /// Settings of the node as a whole.
    #[serde(default)]
    pub node: NodeSettings,
    /// What sandboxes may be and do.
    #[serde(default)]
    pub policy: Policy,
    /// Upper bounds.
    #[serde(default)]
    pub constraints: Constraints,
    /// The server of models; absent where there is to be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_backend: Option<InferenceBackend>,
    /// What is looked at on the host and told; absent for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsSettings>,
    /// The node's Worker API; without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api: Option<WorkerApiSettings>,
}

/// A node's Worker API.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, JsonSchema)]
pub struct WorkerApiSettings {
    /// Where it listens, as `ADDRESS:PORT`.
    pub listen: String,
    /// The token that the controller calls with; without one the controller does not call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_bearer_token: Option<String>,
    /// When that token stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_bearer_token_expires_at: Option<Timestamp>,
    /// A file on the node with the token of other callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

impl std::fmt::Debug for WorkerApiSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerApiSettings")
            .field("listen", &self.listen)
            .field("orchestrator_bearer_token", &self.orchestrator_bearer_token.as_ref().map(|_| "…"))
            .field("orchestrator_bearer_token_expires_at", &self.orchestrator_bearer_token_expires_at)
            .field("token_file", &self.token_file)
            .finish()
    }
}

/// What is looked at on the host and told.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct FactsSettings {
    /// Seconds between reports; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Whether jobs may have steps that tell facts.
    #[serde(default)]
    pub steps: bool,
    /// Log files, and the most bytes of each in a report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogFile>,
    /// A Proxmox VE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxmox: Option<ProxmoxSpec>,
}

/// The server of models of a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct InferenceBackend {
    /// Whether it is to run or to be used.
    #[serde(default)]
    pub enabled: bool,
    /// Whether the node is not ready without it.
    #[serde(default)]
    pub required: bool,
    /// What it speaks.
    #[serde(default)]
    pub engine: InferenceEngine,
    /// A server that runs already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A file of the node with the authorities that vouch for the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// A file of the node with the key that the server wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// The container engine; absent for the first that works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ContainerEngine>,
    /// The image; absent for the engine's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Arguments of the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The port on the loopback address; absent for the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Environment of the server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// A folder of the host; absent for one of the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_volume: Option<String>,
    /// What computes.
    #[serde(default)]
    pub variant: InferenceVariant,
    /// Models that it must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Whether other models are removed; absent for: if the folder is the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune_models: Option<bool>,
    /// The most memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most cpu in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
}

/// Reads the number in a configuration's version.
pub fn parse_config_version(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Where the controller is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ConfigOrchestrator {
    /// The URL that every path is relative to.
    pub base_url: String,
    /// Absolute URLs.
    pub endpoints: ConfigEndpoints,
}

/// Absolute URLs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ConfigEndpoints {
    /// Where capability reports go.
    pub node_report_url: String,
    /// Where the controller and others reach the node's Worker API; without it the agent finds out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api_target_url: Option<String>,
}

/// Settings of the node as a whole.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct NodeSettings {
    /// Labels over those of the agent's own settings.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many attempts run at once; without it the agent's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// How jobs reach the node. One that is called does not ask for jobs itself.
    #[serde(default, skip_serializing_if = "crate::sandbox_job::is_default")]
    pub dispatch: crate::node_config::DispatchMode,
}

/// What sandboxes may be and do.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct Policy {
    /// The rules.
    #[serde(default)]
    pub sandbox: SandboxRules,
}

/// Rules for sandboxes: the ceiling for every job.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct SandboxRules {
    /// Runtimes that jobs may use; empty for every one that works.
    #[serde(default)]
    pub runtimes: Vec<crate::sandbox_job::Runtime>,
    /// Network words that jobs may use; empty for `None` and `Restricted`.
    #[serde(default)]
    pub networks: Vec<crate::sandbox_job::Network>,
    /// Within which the rules of jobs for egress must lie; empty for every name and no address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<crate::egress::EgressRule>,
    /// Bytes that a step may send through the proxy, and as many that it may receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_transfer_bytes: Option<u64>,
    /// Which images steps may use.
    #[serde(default, skip_serializing_if = "crate::sandbox_job::is_default")]
    pub images: ImageRules,
    /// Limits of a step that names none; not mandatory.
    #[serde(default)]
    pub defaults: ResourceLimits,
    /// The most that a step may have; mandatory.
    #[serde(default)]
    pub max: ResourceLimits,
    /// Paths of the host that jobs may use.
    #[serde(default)]
    pub host_paths: Vec<crate::sandbox_job::HostPath>,
    /// Containers of the host that steps may start, stop and restart; empty for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Words that commands and scripts must not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_commands: Vec<String>,
    /// Programs and interpreters that steps may name; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_commands: Vec<String>,
    /// Whether models outside of the host and its private networks may be used.
    #[serde(default, skip_serializing_if = "crate::sandbox_job::is_default")]
    pub external_models: bool,
    /// Bytes of each output stream that a step may keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_cap_bytes: Option<u64>,
}

/// Which images steps may use, and how they come to the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct ImageRules {
    /// Registries, folders and images; empty for `docker.io` and `localhost`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
    /// Folders of the node with images for the runtime `native`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<String>,
    /// Whether every image must be named by its digest.
    #[serde(default)]
    pub require_digest: bool,
    /// When an image is fetched.
    #[serde(default)]
    pub pull: crate::node_config::ImagePull,
    /// A file on the node with credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<String>,
    /// Bytes of unpacked images that are kept, beyond those in use; absent for what is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
}

/// Limits in plain numbers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct ResourceLimits {
    /// Thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes in the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Share of the processors, 1 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Bytes per second read from the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bps: Option<u64>,
    /// Bytes per second written to the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write_bps: Option<u64>,
    /// Open files of a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u32>,
}

/// Upper bounds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct Constraints {
    /// The longest time of an attempt in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_job_timeout_seconds: Option<u64>,
    /// The largest request to the Worker API in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request_bytes: Option<u64>,
}

/// What became of a configuration on the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ConfigAck {
    /// [`super::VERSION`].
    pub version: u32,
    /// The node; must be the one that the token names.
    pub node_slug: String,
    /// The configuration's version.
    pub config_version: String,
    /// When it was tried.
    pub ack_at: Timestamp,
    /// Whether it is in force.
    pub status: AckStatus,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AckError>,
    /// The hash of what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_config_hash: Option<String>,
}

/// Whether a configuration is in force.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AckStatus {
    /// It is in force.
    Applied,
    /// It is not; the one before stays in force.
    Failed,
}

/// Why a configuration is not in force.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct AckError {
    /// A stable word, such as `RuntimeUnavailable`.
    #[serde(rename = "type")]
    pub error_type: String,
    /// A sentence that names the field, the value and the fix.
    pub message: String,
}
