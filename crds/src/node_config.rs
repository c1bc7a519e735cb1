//! NodeConfig: the desired configuration of one node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;
use crate::duration::Span;
use crate::egress::EgressRule;
use crate::facts::FactsSpec;
use crate::inference::{InferenceSpec, InferenceStatus};
use crate::sandbox_job::{HostPath, Network, OfflinePolicy, Resources, Runtime, is_default};

/// The desired configuration of a node. The object's name is the node's name.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[kube(
    group = "windlass.dev",
    version = "v1alpha1",
    kind = "NodeConfig",
    status = "NodeConfigStatus",
    derive = "PartialEq",
    shortname = "nc",
    category = "windlass",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Jobs","type":"integer","jsonPath":".status.runningJobs"}"#,
    printcolumn = r#"{"name":"Last-Seen","type":"date","jsonPath":".status.lastSeenAt"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"State","type":"string","priority":1,"jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Labels","type":"string","priority":1,"jsonPath":".status.labels"}"#,
    printcolumn = r#"{"name":"GPU","type":"integer","priority":1,"jsonPath":".status.host.gpus"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type=='Ready')].message"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfigSpec {
    /// Labels that jobs can select the node by, over those that the agent reports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub labels: BTreeMap<String, String>,

    /// Keeps new jobs away from the node while true. Running jobs go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unschedulable: bool,

    /// How many jobs run at once; without it the agent's own setting (its number of cores).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub concurrency: Option<u32>,

    /// The queues that the node serves; without it all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    pub queues: Vec<String>,

    /// What happens to running jobs that do not say it themselves when the controller cannot be reached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub offline: OfflinePolicy,

    /// How long jobs with `offline: continue` go on without the controller. Default 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_grace: Option<Span>,

    /// What sandboxes on this node may be and do: the ceiling for every job.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sandbox: SandboxPolicy,

    /// The server of models that the node runs or uses; without it none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceSpec>,

    /// What the node looks at on its host and tells; without it nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsSpec>,

    /// How jobs reach the node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dispatch: DispatchMode,

    /// The node's Worker API, by which others give it work over HTTPS. Without it there is none, unless `dispatch` is `Push`,
    /// which needs one and then has it with the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api: Option<WorkerApi>,
}

/// How jobs reach a node.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
pub enum DispatchMode {
    /// The node asks the controller for them, which works from behind NAT and firewalls.
    #[default]
    Pull,
    /// The controller calls the node's Worker API. The node does not ask by itself.
    Push,
}

/// A node's Worker API.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerApi {
    /// Where it listens, as `ADDRESS:PORT`; port 0 takes a free one. Default `0.0.0.0:12090`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub listen: Option<String>,

    /// Where the controller and others reach it, such as `https://node-1.example:12090`. Without it the address of the node
    /// that leads to the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https://"))]
    pub url: Option<String>,

    /// The largest request; larger ones are answered with 413. Default and maximum 10 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request: Option<crate::quantity::Bytes>,

    /// A file on the node with a token, one line of 32 to 512 characters, for callers other than the controller. It is read
    /// anew for each call. Only the agent's user should be able to read it. Without it only the controller may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub token_file: Option<String>,
}

impl WorkerApi {
    /// Where a Worker API listens that does not say.
    pub const LISTEN: &str = "0.0.0.0:12090";

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.listen.as_deref().unwrap_or(Self::LISTEN)
    }
}

impl NodeConfigSpec {
    /// The Worker API that the node is to have.
    pub fn worker_api(&self) -> Option<WorkerApi> {
        match (self.dispatch, &self.worker_api) {
            (_, Some(declared)) => Some(declared.clone()),
            (DispatchMode::Push, None) => Some(WorkerApi::default()),
            (DispatchMode::Pull, None) => None,
        }
    }
}

/// What sandboxes on a node may be and do.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxPolicy {
    /// Runtimes that jobs may use; without it every runtime that works on the node. A runtime that is named here
    /// and does not work makes the configuration fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub runtimes: Vec<Runtime>,

    /// Network words that jobs may use; without it `None` and `Restricted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub networks: Vec<Network>,

    /// Whom jobs with the network `Restricted` may be allowed to reach: each rule of a job must lie within these. Without it
    /// every name at every port, and no addresses: so no private network, whatever its names are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub egress: Vec<EgressRule>,

    /// Bytes that a step with the network `Restricted` may send, and as many that it may receive. Without it there is no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_transfer: Option<crate::quantity::Bytes>,

    /// Which container images jobs may use, and how they come to the node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub images: ImagePolicy,

    /// Limits of a step that names none itself. They are not mandatory: what the host cannot enforce is listed in
    /// the job's `status.unenforced`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub defaults: Resources,

    /// The most that a job may ask for, and the limit of a job that asks for nothing. Mandatory: a host that
    /// cannot enforce one of them makes the configuration fail.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max: Resources,

    /// The longest time that an attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timeout: Option<Span>,

    /// Paths of the host that jobs may use, with everything below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub host_paths: Vec<HostPath>,

    /// Names of containers of the node that `service` steps of jobs may start, stop and restart; without it none. Containers that
    /// Windlass has made are never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 128), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"))
    )]
    pub services: Vec<String>,

    /// Words that the commands and scripts of a job must not hold, such as `rm -rf`, `mkfs`, `dd`, `shutdown`,
    /// `reboot`, `poweroff` or `init 0`. Upper and lower case are the same, and so is any space between words. This
    /// keeps people from mistakes; it is no wall, for what a command does can be written in many ways. The sandbox is
    /// the wall.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub blocked_commands: Vec<String>,

    /// Programs and interpreters that the steps of a job may name, such as `bash` or `/usr/bin/make`; a name without a
    /// slash allows the program in every folder. Without it every program. This is no wall either: an allowed shell
    /// starts any other program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    pub allowed_commands: Vec<String>,

    /// Allows models outside of this host and its private networks: what is sent to them leaves your hands.
    #[serde(default, skip_serializing_if = "is_default")]
    pub external_models: bool,

    /// Bytes of standard output and of standard error that a step may keep, each. Default 10 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_cap: Option<crate::quantity::Bytes>,
}

/// Which container images jobs may use, and how they come to the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePolicy {
    /// Registries (`registry.example`), folders of registries (`registry.example/team`) and images (`registry.example/team/app`) that jobs may use, each
    /// with everything below it. Names are meant in full: `debian` is `docker.io/library/debian`. Without it `docker.io`, and
    /// `localhost`, which is what was made on the node itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 512)))]
    pub allowed: Vec<String>,

    /// Folders of the node whose archives, layouts and root folders jobs with the runtime `native` may use as images; without it
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 4096), regex(pattern = r"^/")))]
    pub folders: Vec<String>,

    /// Refuses images that are not named by their digest (`name@sha256:…`), which alone says what will run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub require_digest: bool,

    /// When an image is fetched. Images of `localhost` never are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull: ImagePull,

    /// A file on the node with the credentials for registries, in the form of containers-auth.json(5), as `podman login` and
    /// `docker login` write it. Only the agent's user should be able to read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub auth_file: Option<String>,

    /// Bytes of unpacked images of the runtime `native` that are kept for later, beyond those in use. Default 16Gi; `0` keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<crate::quantity::Bytes>,
}

/// When an image is fetched.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
pub enum ImagePull {
    /// If it is not on the node.
    #[default]
    IfMissing,
    /// Before each job, so that a tag that was moved is followed.
    Always,
    /// Never: it must be on the node.
    Never,
}

/// How a node is, in one word.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
pub enum NodeState {
    /// Its agent has never registered, or the controller has not judged it yet.
    #[default]
    Pending,
    /// It lives and can take jobs.
    Online,
    /// It lives, and something about it does not work: it does not ask for work, its sandbox or a runtime does not
    /// work, or its configuration is not in force.
    Degraded,
    /// Nothing is heard from it.
    Offline,
}

/// What an operator has asked of a node by a command. It lasts until `windlass uncordon`, whatever the manifest says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeHold {
    /// How far it is.
    pub phase: HoldPhase,
    /// Since when new jobs are kept away.
    pub since: Timestamp,
    /// When a drain stops what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// What then becomes of the jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_deadline: Option<AtDeadline>,
    /// When the node was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_at: Option<Timestamp>,
}

/// How far it is with what an operator has asked.
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
)]
pub enum HoldPhase {
    /// New jobs are kept away.
    Cordoned,
    /// New jobs are kept away, and running ones are waited for.
    Draining,
    /// The deadline has passed, and what is left is stopped.
    Stopping,
    /// New jobs are kept away, and the node was emptied.
    Drained,
}

/// What becomes of jobs that are left when a drain's deadline passes.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
pub enum AtDeadline {
    /// Those that may be started again (`retry.lostAttempts` above 1) are stopped and go back to their queue; nothing is
    /// charged for it. Others are waited for.
    #[default]
    Requeue,
    /// They are cancelled.
    Cancel,
}

/// What has become of a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfigStatus {
    /// How the node is, in one word.
    #[serde(default)]
    pub state: NodeState,

    /// What an operator has asked by a command; the manifest does not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<NodeHold>,

    /// `Registered`, `Ready`, `ConfigApplied`, `Schedulable`; `InferenceReady` where inference is configured; in Kubernetes also `Accepted`, which tells whether the spec is
    /// in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,

    /// The version of the configuration that the node should run: a number that only grows.
    #[serde(default)]
    pub config_version: u64,

    /// The version that the node has last acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_version: Option<u64>,

    /// The version that is in force on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_version: Option<u64>,

    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,

    /// When the controller last heard from the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,

    /// How many attempts the node holds.
    #[serde(default)]
    pub running_jobs: u32,

    /// How many attempts the node can hold.
    #[serde(default)]
    pub slots: u32,

    /// What the host is and can do, in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostSummary>,

    /// How jobs reach the node, where it has a Worker API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<DispatchStatus>,
    /// The server of models and what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceStatus>,

    /// Labels in force: the agent's own with those of the spec over them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,

    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How jobs reach a node that has a Worker API.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DispatchStatus {
    /// The way in force.
    #[serde(default)]
    pub mode: DispatchMode,
    /// Where the Worker API is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The SHA-256 of the Worker API's certificate, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// When the token was issued by which the controller calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_issued_at: Option<Timestamp>,
    /// When the node last took a job that it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Timestamp>,
    /// Why the last job could not be given to it, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When that was first so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_since: Option<Timestamp>,
}

/// What a host is and can do, in short.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostSummary {
    /// Operating system and distribution.
    #[serde(default)]
    pub os: String,
    /// Architecture, in the names of OCI images.
    #[serde(default)]
    pub arch: String,
    /// Kernel version.
    #[serde(default)]
    pub kernel: String,
    /// Cores.
    #[serde(default)]
    pub cpus: u32,
    /// Memory in MiB.
    #[serde(default)]
    pub memory_mib: u64,
    /// Runtimes that work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<String>,
    /// Graphics processors.
    #[serde(default)]
    pub gpus: u32,
    /// The same, each with vendor, model and memory as far as they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Container engines: version, how they store images, their OCI runtimes, and whether they work without root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<String>,
    /// Why what is missing is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}
