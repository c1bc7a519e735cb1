//! Facts: what a node looks at on its host and tells, by its configuration or by a step.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Span;
use crate::quantity::Bytes;
use crate::sandbox_job::is_default;

/// What a node looks at on its host, and who may see it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FactsSpec {
    /// How often the node reports its facts, 10s or more; without it only steps of jobs lead to a report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,

    /// Lets jobs have `facts` steps here: they then see all that is looked at, the ends of the log files included.
    #[serde(default, skip_serializing_if = "is_default")]
    pub steps: bool,

    /// Files whose ends are reported, and what is new in them since the last report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub logs: Vec<LogFile>,

    /// A Proxmox VE whose nodes, guests and storages are reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxmox: Option<ProxmoxSpec>,
}

/// A log file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogFile {
    /// The absolute path.
    #[schemars(length(min = 2, max = 4096), regex(pattern = r"^/"))]
    pub path: String,

    /// The most bytes of one report, 1 to 64Ki; what is older is left out and counted. Default 16Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
}

/// A Proxmox VE.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxmoxSpec {
    /// Where its API is, such as `https://pve.example:8006`. Plain HTTP is spoken with the host itself alone.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://"))]
    pub url: String,

    /// A file on the node with an API token as `USER@REALM!NAME=SECRET`. Only the agent's user should be able to read it.
    #[schemars(length(min = 2, max = 4096), regex(pattern = r"^/"))]
    pub token_file: String,

    /// A file on the node with the certificate authority in PEM, such as a copy of `/etc/pve/pve-root-ca.pem`. Needed with
    /// `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 4096), regex(pattern = r"^/"))]
    pub ca_file: Option<String>,
}

/// Tells facts of the node, as JSON on standard output. The node must allow it with `facts.steps`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FactsStep {
    /// What is looked at; without it everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub include: Vec<FactsPart>,
}

/// A part of the facts.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
    strum::EnumIter,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum FactsPart {
    /// The host itself.
    Host,
    /// Containers of every engine.
    Containers,
    /// Ends of the log files that the configuration names.
    Logs,
    /// The Proxmox VE that the configuration names.
    Proxmox,
}

/// Facts of a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// When they were looked at, by the node's clock.
    pub collected_at: Timestamp,
    /// The node.
    pub node: String,
    /// The node's labels by its agent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The uid of the job whose step asked; absent for those that are reported from time to time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// How many there are of each thing.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFacts>,
    /// Containers of every engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerFacts>,
    /// Ends of log files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogTail>,
    /// The Proxmox VE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxmox: Option<ProxmoxFacts>,
    /// What could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What the operating system says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// The distribution and its version.
    pub os: String,
    /// The kernel's release.
    pub kernel: String,
    /// Seconds since it was booted.
    pub uptime_seconds: u64,
    /// Cores.
    pub cpus: u32,
    /// The load of the last minute, five minutes and fifteen.
    pub load: [f64; 3],
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of it that programs could have.
    pub memory_available_bytes: u64,
    /// Bytes of swap.
    pub swap_bytes: u64,
    /// Bytes of it that are used.
    pub swap_used_bytes: u64,
    /// File systems on disks.
    #[serde(default)]
    pub disks: Vec<DiskFacts>,
}

/// A file system.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskFacts {
    /// Where it is mounted.
    pub mount: String,
    /// Such as `ext4`.
    pub file_system: String,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
}

/// A container.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerFacts {
    /// `podman` or `docker`.
    pub engine: String,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// Such as `running` or `exited`.
    pub state: String,
    /// The same with how long, as the engine says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

/// The end of a log file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogTail {
    /// The file.
    pub path: String,
    /// What is new since the last report, or the end of the file; what is no UTF-8 is replaced.
    pub text: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Bytes that are new too and were left out before `text`.
    #[serde(default)]
    pub skipped_bytes: u64,
    /// Whether another file has taken its place since the last report, or it was cut.
    #[serde(default)]
    pub rotated: bool,
}

/// What a Proxmox VE says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxmoxFacts {
    /// Where it is.
    pub url: String,
    /// Its version.
    pub version: String,
    /// Nodes, guests and storages.
    #[serde(default)]
    pub resources: Vec<ProxmoxResource>,
}

/// A node, guest or storage of a Proxmox VE.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxmoxResource {
    /// `node`, `qemu`, `lxc` or `storage`.
    pub kind: String,
    /// Its id, such as `qemu/100`.
    pub id: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The node that it is on.
    #[serde(default)]
    pub node: String,
    /// Such as `running`, `online` or `available`.
    #[serde(default)]
    pub status: String,
    /// The share of its cores that is used, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Bytes of memory that are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_bytes: Option<u64>,
    /// Bytes of disk that are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Bytes of disk that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_disk_bytes: Option<u64>,
    /// Seconds since it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<u64>,
}
