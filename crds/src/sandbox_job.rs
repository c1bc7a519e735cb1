//! SandboxJob: a piece of work made of steps that share one workspace and run on one node.
//!
//! The field documentation here is what `kubectl explain` and `windlass explain` print.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;
use crate::duration::Span;
use crate::egress::EgressRule;
use crate::facts::FactsStep;
use crate::priority::Priority;
use crate::quantity::{Bytes, Cpu};
use crate::secret::{ConfigMapUse, SecretUse};
use crate::service::ServiceStep;

/// A piece of work: one or more steps with one workspace, run on one node in a sandbox.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[kube(
    group = "windlass.dev",
    version = "v1alpha1",
    kind = "SandboxJob",
    namespaced,
    status = "SandboxJobStatus",
    derive = "PartialEq",
    shortname = "sj",
    category = "windlass",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Step","type":"string","jsonPath":".status.step"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.node"}"#,
    printcolumn = r#"{"name":"Attempts","type":"integer","jsonPath":".status.attempts"}"#,
    printcolumn = r#"{"name":"Started","type":"date","jsonPath":".status.startedAt"}"#,
    printcolumn = r#"{"name":"Duration","type":"string","jsonPath":".status.duration"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Queue","type":"string","priority":1,"jsonPath":".spec.queue"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.reason"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.message"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxJobSpec {
    /// A short human title, shown in lists instead of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub title: Option<String>,

    /// What the job is for, in Markdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub description: Option<String>,

    /// The kind of work, for filters and reports; it does not change how the job runs.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,

    /// The queue that the job waits in.
    #[serde(default = "default_queue")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub queue: String,

    /// The priority inside the queue.
    #[serde(default)]
    pub priority: Priority,

    /// Labels that a node must carry, all of them, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub node_selector: BTreeMap<String, String>,

    /// What the job needs of a node beyond labels: architecture, runtime, cpu, memory, GPUs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requires: Requirements,

    /// How the steps are isolated and limited.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sandbox: SandboxSpec,

    /// How long one attempt may take in all; the job ends as `TimedOut` after it. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,

    /// What happens when an attempt fails or its node is lost.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry: RetryPolicy,

    /// What the node does when it cannot reach the controller; without it the node's own default applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<OfflinePolicy>,

    /// How long the job and its logs are kept after it has ended; without it they stay until deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Span>,

    /// What the workspace holds before the first step.
    #[serde(default, skip_serializing_if = "is_default")]
    pub workspace: WorkspaceSpec,

    /// The steps, run in order. Either this, or one `command` or `script` beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub steps: Vec<Step>,

    /// Shorthand for a job of one step: the program and its arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), inner(length(max = 131_072)))]
    pub command: Option<Vec<String>>,

    /// Shorthand for a job of one step: a script and its interpreter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,

    /// Secrets of the one step in shorthand; `steps` have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub secrets: Vec<SecretUse>,

    /// Values of ConfigMaps for the one step in shorthand; `steps` have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub config_maps: Vec<ConfigMapUse>,

    /// Holds the job back in its queue while true. A running attempt is not touched.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suspend: bool,

    /// Asks for the job to be cancelled. It cannot be taken back.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cancel: bool,
}

/// The kind of work that a job does.
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
    strum::EnumIter,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum JobType {
    /// New behaviour.
    Feature,
    /// A defect is mended.
    Bugfix,
    /// Tests are written or run.
    Test,
    /// Documentation.
    Docs,
    /// The same behaviour in better code.
    Refactor,
    /// Somebody's work is reviewed.
    Review,
    /// A system is changed or repaired.
    Ops,
    /// Anything else.
    Other,
}

/// What a node must offer before the job may run there.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirements {
    /// The processor architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<Arch>,

    /// A runtime that the node must offer; without it the one of `sandbox.runtime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,

    /// Cpu that is reserved on the node while the job runs; without it the limit of `sandbox.resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,

    /// Memory that is reserved on the node while the job runs; without it the limit of `sandbox.resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,

    /// Graphics processors that are reserved while the job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequirement>,

    /// A model that the node's server must have, such as `gemma3:270m`. Needs `sandbox.inference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub model: Option<String>,

    /// Conditions on labels that equality cannot express; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub labels: Vec<LabelRequirement>,
}

/// Graphics processors that a job needs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuRequirement {
    /// How many devices.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,

    /// The vendor of every device, such as `nvidia` or `amd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub vendor: Option<String>,

    /// The least memory of every device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

/// One condition on a label of the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 316))]
    pub key: String,

    /// How the label's value is compared.
    pub operator: LabelOperator,

    /// The values to compare with: one or more for `In` and `NotIn`, one whole number for `Gt` and `Lt`, none
    /// for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label's value is compared.
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
)]
pub enum LabelOperator {
    /// The label is present and its value is one of `values`.
    In,
    /// The label is absent or its value is none of `values`.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label's value is a whole number greater than the given one.
    Gt,
    /// The label's value is a whole number less than the given one.
    Lt,
}

/// A processor architecture, in the names of OCI images.
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
    strum::EnumIter,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

/// What isolates a step.
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
    Hash,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumIter,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Runtime {
    /// Namespaces of the kernel, with nothing installed.
    #[default]
    Native,
    /// A container by Podman.
    Podman,
    /// A container by Docker.
    Docker,
}

/// What a step can reach over the network.
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
    Hash,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumIter,
    strum::Display,
    strum::EnumString,
)]
pub enum Network {
    /// Nothing: there is no interface but loopback.
    #[default]
    None,
    /// Only what the rules of `egress` name, through a proxy.
    Restricted,
    /// The runtime's normal network; the node's policy must permit it.
    Open,
}

/// How the steps of a job are isolated and limited.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxSpec {
    /// What isolates the steps.
    #[serde(default)]
    pub runtime: Runtime,

    /// The container image that the steps see as their system. The runtimes `podman` and `docker` take one by name; `native` takes
    /// one that lies on the node (`docker-archive:/path`, `oci-archive:/path`, `oci:/folder` or `rootfs:/folder`, then `:name`
    /// where there are several, and `@sha256:…`), in a folder that the node allows, and without one shows the node's own `/usr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// What the steps can reach.
    #[serde(default)]
    pub network: Network,

    /// Whom the steps can reach with the network `Restricted`: `example.com:443`, `*.example.com:80,443` (names below, not
    /// `example.com` itself), `*:443` (every name), or addresses: `10.1.0.0/16:5432`, `192.0.2.7`. Without a rule nobody.
    ///
    /// Names are looked up on the node. What a name leads to must be a public address, or one that another rule names as an
    /// address: private and link-local networks, loopback, metadata services and the node itself are not reached by name
    /// alone. A network opens such addresses only if it lies within theirs: `0.0.0.0/0` is the public internet. Addresses must
    /// be allowed by the node's `sandbox.egress` too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub egress: Vec<EgressRule>,

    /// Gives the steps the node's server of models, at the addresses in `OPENAI_BASE_URL`, `OLLAMA_HOST` and
    /// `WINDLASS_INFERENCE_URL`. Needs the network `Restricted`; no rule of `egress` is needed for it. The job then runs only
    /// where a server is ready.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inference: bool,

    /// The most that each step may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,

    /// Environment of every step. Names that start with `WINDLASS_` are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = {"type": "string", "maxLength": 131_072}))]
    pub env: BTreeMap<String, String>,

    /// Limits that may go unenforced where the node cannot enforce them; any other limit that is named then
    /// keeps the job from running there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub unenforced: Vec<Limit>,
}

/// The most that a step may use. What is not named here comes from the node's defaults.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Cpu time per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,

    /// Share of the processors where steps compete for them, 1 to 10000. A step without a weight counts 100. Goes by
    /// the name `cpu` in `unenforced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub cpu_weight: Option<u32>,

    /// Memory, page cache included; swap is off. A step that goes beyond it is ended whole, as `OOMKilled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,

    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pids: Option<u32>,

    /// Bytes that the workspace may hold. A step that reaches it is ended, as `DiskLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,

    /// Bytes per second that are read from the disk that holds the workspace. What is in memory already is free. Goes
    /// by the name `io` in `unenforced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read: Option<Bytes>,

    /// Bytes per second that are written to the disk that holds the workspace. Goes by the name `io` in `unenforced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write: Option<Bytes>,

    /// Files that one process may hold open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_048_576))]
    pub files: Option<u32>,
}

/// A limit by name.
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
    Hash,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumIter,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Limit {
    /// Cpu time per second.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Bytes in the workspace.
    Disk,
    /// Bytes per second to and from the disk.
    Io,
    /// Open files of a process.
    Files,
}

/// What happens when an attempt does not succeed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryPolicy {
    /// How many attempts may be lost with their node before the job fails as `AttemptsExhausted`. An attempt
    /// that never started, or was lost while the controller was down, does not count.
    #[serde(default = "default_lost_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub lost_attempts: u32,

    /// How often the job is run again after a step has failed or the job has timed out.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub failures: u32,

    /// How long the job waits before it is tried again.
    #[serde(default)]
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { lost_attempts: default_lost_attempts(), failures: 0, backoff: Backoff::default() }
    }
}

/// A wait that doubles with each retry, with jitter, up to a limit.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// The wait before the first retry.
    #[serde(default = "default_backoff_initial")]
    pub initial: Span,

    /// The longest wait.
    #[serde(default = "default_backoff_max")]
    pub max: Span,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: default_backoff_initial(), max: default_backoff_max() }
    }
}

/// What a node does with a running job while it cannot reach the controller.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
pub enum OfflinePolicy {
    /// Stops it when the lease ends, so that another node can take over at once.
    #[default]
    Stop,
    /// Goes on for the node's `offlineGrace`; the job is not given to another node before that.
    Continue,
}

/// What the workspace holds before the first step.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkspaceSpec {
    /// Files and folders that are placed in the workspace, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub inputs: Vec<Input>,
}

/// One thing that is placed in the workspace: exactly one of `inline`, `upload` and `hostPath`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// Where it is placed, relative to `/workspace`; `.` is the workspace itself.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,

    /// The text of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub inline: Option<String>,

    /// Content that was uploaded before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,

    /// A path of the node itself, where the node's policy allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,

    /// Makes an `inline` file, or an `upload` that is not unpacked, executable.
    #[serde(default, skip_serializing_if = "is_default")]
    pub executable: bool,
}

/// Uploaded content, named by its hash.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upload {
    /// The content's SHA-256 as `sha256:` and 64 lower-case hexadecimal digits.
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: String,

    /// Whether the content is a tar archive (plain or gzip) whose members are placed under `path`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unpack: bool,
}

/// A file or folder of the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPath {
    /// The absolute path on the node.
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub path: String,

    /// Whether the step may only read it.
    #[serde(default = "yes")]
    pub read_only: bool,
}

/// One unit of a job: exactly one of `command`, `script`, `container`, `facts` and `service`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// The step's name, unique in the job.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// A program and its arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), inner(length(max = 131_072)))]
    pub command: Option<Vec<String>>,

    /// A script and its interpreter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,

    /// The program of a container image. With the runtime `native` that is an image that lies on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerStep>,

    /// Tells facts of the node. Nothing of it runs in the sandbox; the node must allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsStep>,

    /// Starts, stops or restarts a container of the node. Nothing of it runs in the sandbox; the node must allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceStep>,

    /// Environment of this step, over that of the sandbox.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = {"type": "string", "maxLength": 131_072}))]
    pub env: BTreeMap<String, String>,

    /// Values of Secrets that this step is given, and no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub secrets: Vec<SecretUse>,

    /// Values of ConfigMaps that this step is given, where the job comes from a cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub config_maps: Vec<ConfigMapUse>,

    /// The working directory, relative to `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub working_dir: Option<String>,

    /// How long the step may take; never longer than what is left of the job's `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,

    /// Whether the job goes on, and may succeed, when this step fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub continue_on_error: bool,
}

/// The program of a container image. It sees the workspace, scratch space in `/tmp`, `/var/tmp`, `/run` and its home folder, and
/// the image, which it cannot change. It runs as the job's own user, which has no rights of root, whatever the image says; with the
/// runtime `native` under the number that the image names. Its working directory is that of the image, else `/workspace`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerStep {
    /// The image; without it that of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// What runs in place of the image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 131_072)))]
    pub entrypoint: Option<Vec<String>>,

    /// What the entry point gets in place of the image's command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 131_072)))]
    pub args: Vec<String>,

    /// Who the program is inside: `Job`, a user without rights who owns the workspace, or `Root`, which outside is that same
    /// user. An engine that works with root cannot give it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub user: ContainerUser,

    /// Whether the image's files can be changed by nobody. What is written to them with `false` is gone after the step. With the
    /// runtime `native` they never can.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub read_only_root: bool,

    /// Further folders of scratch space, absolute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 1024), regex(pattern = r"^/[^:,]+$")))]
    pub tmpfs: Vec<String>,
}

/// Who a program is inside a container.
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
pub enum ContainerUser {
    /// The job's own user.
    #[default]
    Job,
    /// Root.
    Root,
}

/// A script and what runs it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Script {
    /// The program that runs the script: `bash`, `sh`, `python`, or any name or absolute path in the sandbox. It
    /// gets the script's path as its last argument.
    #[serde(default = "default_interpreter")]
    #[schemars(length(min = 1, max = 255))]
    pub interpreter: String,

    /// The script's text.
    #[schemars(length(min = 1, max = 262_144))]
    pub source: String,

    /// Arguments after the script's path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 131_072)))]
    pub args: Vec<String>,
}

/// Where a job is in its life.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::EnumIter,
    strum::Display,
    strum::EnumString,
)]
pub enum JobPhase {
    /// A person must approve it first.
    PendingApproval,
    /// It waits for a node.
    #[default]
    Queued,
    /// A node has it and has not started yet.
    Claimed,
    /// A step runs.
    Running,
    /// A question is open; cpu and slot are free for others.
    Waiting,
    /// Every step that counts succeeded.
    Succeeded,
    /// It ended without success, and will not be tried again by itself.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It took longer than its timeout.
    TimedOut,
}

impl JobPhase {
    /// Whether the job has ended: nothing but a manual retry moves it again.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::PendingApproval | Self::Queued | Self::Claimed | Self::Running | Self::Waiting => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut => true,
        }
    }

    /// Whether a node holds an attempt of the job.
    pub const fn is_held(self) -> bool {
        match self {
            Self::Claimed | Self::Running | Self::Waiting => true,
            Self::PendingApproval
            | Self::Queued
            | Self::Succeeded
            | Self::Failed
            | Self::Cancelled
            | Self::TimedOut => false,
        }
    }
}

/// What has become of a job.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxJobStatus {
    /// Where the job is in its life.
    #[serde(default)]
    pub phase: JobPhase,

    /// Why it is there, as one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// Why it is there, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// The node of the current or last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,

    /// How many attempts have been made.
    #[serde(default)]
    pub attempts: u32,

    /// The fencing number of the current or last attempt; reports of a lower one are refused.
    #[serde(default)]
    pub epoch: u64,

    /// The exit code of the step that decided the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,

    /// The step that runs, or the last one that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,

    /// The steps of the current or last attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepStatus>,

    /// How many steps are left out of `steps`, which Kubernetes keeps only a few of: those that failed or run, then the
    /// first ones. `windlass get job` shows all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub steps_omitted: u32,

    /// Limits that were not enforced, because the node cannot and nobody insisted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<Limit>,

    /// Whether every log record of the last attempt has arrived.
    #[serde(default)]
    pub logs_complete: bool,

    /// When the job was accepted, or last went back to its queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Timestamp>,

    /// The earliest time of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,

    /// When the current or last attempt began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,

    /// When the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,

    /// How long the last attempt ran, once the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,

    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Complete` and `Failed`, for `wait`; in Kubernetes also `Accepted`, which tells whether the spec is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a step is in its life.
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
pub enum StepPhase {
    /// It has not started.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// It exited with 0.
    Succeeded,
    /// It ended in any other way.
    Failed,
    /// It was not run, because an earlier step failed or the job was stopped.
    Skipped,
}

/// What has become of a step.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The step's name.
    pub name: String,

    /// Where the step is in its life.
    #[serde(default)]
    pub phase: StepPhase,

    /// How it ended, as one word: `Exited`, `Signalled`, `OOMKilled`, `PidsLimit`, `DiskLimit`, `SeccompDenied`, `Timeout`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// How it ended, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// The program's exit code, where it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,

    /// The signal that ended the program, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,

    /// When the program was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,

    /// When everything of the step had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,

    /// What it wrote and used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<StepUsage>,
}

/// What a step wrote and used.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepUsage {
    /// Bytes written to standard output, the dropped ones included.
    #[serde(default)]
    pub stdout_bytes: u64,

    /// Whether standard output went beyond its cap and the rest was dropped.
    #[serde(default)]
    pub stdout_truncated: bool,

    /// Bytes written to standard error, the dropped ones included.
    #[serde(default)]
    pub stderr_bytes: u64,

    /// Whether standard error went beyond its cap and the rest was dropped.
    #[serde(default)]
    pub stderr_truncated: bool,

    /// Cpu time in milliseconds, where the node can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,

    /// The most memory in bytes, where the node can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,

    /// The most processes and threads at one time, where the node can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_peak: Option<u64>,

    /// Bytes read from disks, where the node can measure it. What was in memory already does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,

    /// Bytes written to disks, where the node can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write_bytes: Option<u64>,
}

fn default_queue() -> String {
    "default".to_owned()
}

fn default_interpreter() -> String {
    "bash".to_owned()
}

const fn default_lost_attempts() -> u32 {
    3
}

const fn default_backoff_initial() -> Span {
    Span::from_secs(10)
}

const fn default_backoff_max() -> Span {
    Span::from_secs(600)
}

const fn one() -> u32 {
    1
}

/// Whether a flag has its default.
fn is_true(flag: &bool) -> bool {
    *flag
}

const fn yes() -> bool {
    true
}

/// Whether a value is its type's default, and so need not be written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
