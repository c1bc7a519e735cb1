//! What the REST API says, beyond the manifests themselves. Unknown fields are ignored: the server may be newer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use super::secret::{Rotated, Secret, SecretKey, SecretRequest};
use windlass_crds::node_config::AtDeadline;
use windlass_crds::protocol::{LogBody, Stream};
use windlass_crds::{JobPhase, NodeConfigStatus, Priority, SandboxJobStatus, Span};

/// One page of a list.
#[derive(Deserialize, Debug)]
pub(crate) struct Page<T> {
    /// The objects.
    pub(crate) items: Vec<T>,
    /// Where the next page is.
    #[serde(default)]
    pub(crate) metadata: PageMetadata,
}

/// Where the next page is.
#[derive(Deserialize, Debug, Default)]
pub(crate) struct PageMetadata {
    /// The cursor of the next page; `None` on the last one.
    #[serde(default, rename = "continue")]
    pub(crate) next: Option<String>,
}

/// Who an object is.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    /// The name.
    pub(crate) name: String,
    /// The namespace, for kinds that live in one.
    pub(crate) namespace: Option<String>,
    /// The id that a later object of the same name does not have.
    pub(crate) uid: Option<String>,
    /// Changes with every change of the object.
    pub(crate) resource_version: Option<String>,
    /// When it was made.
    pub(crate) creation_timestamp: Option<Timestamp>,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its annotations.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A job as it is shown: of its spec only what is shown, so that a newer server may say more.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Job {
    /// Who it is.
    pub(crate) metadata: Metadata,
    /// What it is to do.
    #[serde(default)]
    pub(crate) spec: JobSummary,
    /// What has become of it.
    #[serde(default)]
    pub(crate) status: SandboxJobStatus,
}

/// What is shown of a job's spec.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct JobSummary {
    /// A short human title.
    pub(crate) title: Option<String>,
    /// The queue.
    pub(crate) queue: Option<String>,
    /// The priority inside the queue.
    pub(crate) priority: Priority,
    /// How long an attempt may take.
    pub(crate) timeout: Option<Span>,
    /// Labels that a node must carry.
    pub(crate) node_selector: BTreeMap<String, String>,
    /// Whether it is held back.
    pub(crate) suspend: bool,
    /// Whether somebody has asked for it to be cancelled.
    pub(crate) cancel: bool,
}

/// A node as it is shown.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Node {
    /// Who it is.
    pub(crate) metadata: Metadata,
    /// What it is to be.
    #[serde(default)]
    pub(crate) spec: NodeSummary,
    /// What has become of it.
    #[serde(default)]
    pub(crate) status: NodeConfigStatus,
}

/// What is shown of a node's spec.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeSummary {
    /// Whether new jobs are kept away.
    pub(crate) unschedulable: bool,
    /// The queues that it serves; empty for all.
    pub(crate) queues: Vec<String>,
}

/// A template as it is shown.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Template {
    /// Who it is.
    pub(crate) metadata: Metadata,
    /// What it says.
    pub(crate) spec: TemplateSummary,
}

/// What is shown of a template's spec.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct TemplateSummary {
    /// The version of the content.
    pub(crate) version: String,
    /// What it is for.
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// What a run may or must be given.
    #[serde(default)]
    pub(crate) parameters: Vec<ParameterSummary>,
    /// The job.
    #[serde(default)]
    pub(crate) job: serde_json::Value,
}

/// What is shown of a template's parameter.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct ParameterSummary {
    /// The name.
    pub(crate) name: String,
    /// The type of its value.
    #[serde(default, rename = "type")]
    pub(crate) parameter_type: Option<String>,
    /// Whether a run must give it.
    #[serde(default)]
    pub(crate) required: bool,
    /// The value of a run that does not give it.
    #[serde(default)]
    pub(crate) default: Option<serde_json::Value>,
    /// What it means.
    #[serde(default)]
    pub(crate) description: Option<String>,
}

/// A piece of a job's output.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogItem {
    /// The fencing number of the attempt that wrote it.
    pub(crate) epoch: u64,
    /// When it was written.
    pub(crate) at: Timestamp,
    /// The step's name.
    #[serde(default)]
    pub(crate) step: Option<String>,
    /// Where it was written.
    pub(crate) stream: Stream,
    /// What was written, where that is UTF-8.
    #[serde(default)]
    pub(crate) text: Option<String>,
    /// What was written, where it is not.
    #[serde(default)]
    pub(crate) base64: Option<String>,
    /// What is missing here, where the server cannot read it any more.
    #[serde(default)]
    pub(crate) gap: Option<LogGap>,
}

/// Output that the server has taken in and cannot read any more.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogGap {
    /// How much it is.
    pub(crate) bytes: u64,
    /// Why, in words.
    pub(crate) reason: String,
}

impl LogItem {
    /// The bytes that were written; `None` where the server's answer is broken.
    pub(crate) fn into_bytes(self) -> Option<Vec<u8>> {
        match (self.text, self.base64) {
            (Some(text), _) => Some(text.into_bytes()),
            (None, Some(base64)) => LogBody::Base64(base64).into_bytes(),
            (None, None) => Some(Vec::new()),
        }
    }
}

/// One page of a job's output.
#[derive(Deserialize, Debug)]
pub(crate) struct LogPage {
    /// The pieces.
    pub(crate) items: Vec<LogItem>,
    /// Where the next page begins.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
    /// Whether every record has arrived.
    #[serde(default)]
    pub(crate) complete: bool,
}

/// The end of a followed job's output.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogEnd {
    /// How the job ended; `None` where it was deleted.
    #[serde(default)]
    pub(crate) phase: Option<JobPhase>,
    /// Why, as one word.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// The exit code that decided.
    #[serde(default)]
    pub(crate) exit_code: Option<i32>,
    /// Whether every record has arrived.
    #[serde(default)]
    pub(crate) logs_complete: bool,
}

/// Something that happened.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventItem {
    /// When.
    pub(crate) at: Timestamp,
    /// `debug`, `info`, `warn` or `error`.
    pub(crate) level: String,
    /// As one word.
    pub(crate) reason: String,
    /// As a sentence.
    pub(crate) message: String,
    /// More, for some reasons.
    #[serde(default)]
    pub(crate) data: Option<serde_json::Value>,
}

/// One page of what happened.
#[derive(Deserialize, Debug)]
pub(crate) struct EventPage {
    /// The events, the oldest first.
    pub(crate) items: Vec<EventItem>,
    /// Where the next page begins.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
}

/// One attempt of a job.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttemptItem {
    /// The fencing number.
    pub(crate) epoch: u64,
    /// The number of the attempt, from 1.
    pub(crate) number: u32,
    /// The node that has or had it.
    pub(crate) node: String,
    /// Where it is in its life.
    pub(crate) phase: String,
    /// Why, as one word.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// Why, as a sentence.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// The exit code that decided.
    #[serde(default)]
    pub(crate) exit_code: Option<i32>,
    /// When the node took it.
    pub(crate) claimed_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub(crate) ended_at: Option<Timestamp>,
}

/// An artifact of a job, or a file that was refused as one.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ArtifactItem {
    /// Its path below the folder of artifacts.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: String,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// The SHA-256 of its content.
    #[serde(default)]
    pub(crate) sha256: Option<String>,
    /// Whether the server has its content.
    pub(crate) state: ArtifactState,
    /// Why it was refused or is lost.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// The number of its attempt, from 1.
    pub(crate) attempt: u32,
    /// The fencing number of its attempt.
    pub(crate) epoch: u64,
    /// Whether its attempt was not the job's any more.
    #[serde(default)]
    pub(crate) superseded: bool,
}

/// Whether the server has the content of an artifact.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub(crate) enum ArtifactState {
    /// It has.
    Stored,
    /// The node still has to send it.
    Pending,
    /// It was not collected.
    Refused,
    /// It will never come.
    Lost,
    /// A newer server says more.
    #[serde(other)]
    Unknown,
}

/// A link to an artifact.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct ArtifactLink {
    /// The URL.
    pub(crate) url: String,
}

/// An attempt that a node holds.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldItem {
    /// The job's namespace.
    pub(crate) namespace: String,
    /// The job's name.
    pub(crate) job: String,
    /// When the node took it.
    pub(crate) claimed_at: Timestamp,
    /// Whether the job may be started again elsewhere.
    #[serde(default)]
    pub(crate) interruptible: bool,
    /// Whether the job is being cancelled.
    #[serde(default)]
    pub(crate) cancelling: bool,
}

/// Something that happened to a node.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct HistoryItem {
    /// When.
    pub(crate) at: Timestamp,
    /// As one word.
    pub(crate) kind: String,
    /// As a sentence.
    pub(crate) message: String,
}

/// How a node is to be emptied.
#[derive(Serialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewDrain {
    /// How long running jobs are waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<Span>,
    /// What then becomes of those that are left.
    pub(crate) at_deadline: AtDeadline,
}

/// The attempts of a job.
#[derive(Deserialize, Debug)]
pub(crate) struct Items<T> {
    /// The items.
    pub(crate) items: Vec<T>,
}

/// Whether a node could take a job.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlacementItem {
    /// The node.
    pub(crate) node: String,
    /// Whether it could.
    pub(crate) fits: bool,
    /// Whether only a change of the job or of the node would let it.
    #[serde(default)]
    pub(crate) lasting: bool,
    /// Why it could not, as one word.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// Why it could not, as a sentence.
    #[serde(default)]
    pub(crate) message: Option<String>,
}

/// Why a job is not running.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Placement {
    /// The job's phase.
    pub(crate) phase: JobPhase,
    /// Everything in one sentence, without a period.
    pub(crate) summary: String,
    /// What keeps the job itself from running, whatever the nodes say.
    #[serde(default)]
    pub(crate) job: Option<String>,
    /// What each node says; nothing where the job does not wait.
    pub(crate) items: Vec<PlacementItem>,
    /// The queue.
    #[serde(default)]
    pub(crate) queue: String,
    /// How many jobs are before it in its queue.
    #[serde(default)]
    pub(crate) queue_position: Option<u64>,
    /// Whether there may be more.
    #[serde(default)]
    pub(crate) queue_position_is_least: bool,
}

/// A queue and what waits in it.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Queue {
    /// The queue's name.
    pub(crate) name: String,
    /// Its share of what runs, against the weights of the others.
    #[serde(default = "one")]
    pub(crate) weight: u32,
    /// How many of its jobs may run at once.
    #[serde(default)]
    pub(crate) concurrency: Option<u32>,
    /// Jobs that could start now.
    #[serde(default)]
    pub(crate) queued: u64,
    /// Jobs that wait for their time.
    #[serde(default)]
    pub(crate) delayed: u64,
    /// Jobs that run.
    #[serde(default)]
    pub(crate) running: u64,
    /// Jobs with an open question.
    #[serde(default)]
    pub(crate) waiting: u64,
    /// Jobs whose attempts are used up.
    #[serde(default)]
    pub(crate) dead: u64,
    /// Since when the oldest queued job waits.
    #[serde(default)]
    pub(crate) oldest_queued_at: Option<Timestamp>,
    /// The same for each priority that occurs.
    #[serde(default)]
    pub(crate) priorities: Vec<QueuePriority>,
}

/// What is set for a queue.
#[derive(Serialize, Clone, Copy, Debug)]
pub(crate) struct QueueSettings {
    /// Its share of what runs.
    pub(crate) weight: u32,
    /// How many of its jobs may run at once.
    pub(crate) concurrency: Option<u32>,
}

const fn one() -> u32 {
    1
}

/// The jobs of one priority in a queue.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QueuePriority {
    /// The priority.
    pub(crate) priority: u16,
    /// Jobs that could start now.
    #[serde(default)]
    pub(crate) queued: u64,
    /// Jobs that run.
    #[serde(default)]
    pub(crate) running: u64,
}

/// What is asked of a new join token.
#[derive(Serialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewJoinToken {
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// How long it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_in: Option<Span>,
    /// How many nodes may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_uses: Option<u32>,
    /// The node whose place the new one takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replace_node: Option<String>,
}

/// A join token that was just made. The only time that its secret is shown.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreatedJoinToken {
    /// Names it.
    pub(crate) id: String,
    /// The secret.
    pub(crate) token: String,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    /// How many nodes may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_uses: Option<u32>,
    /// The node whose place the new one takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replace_node: Option<String>,
    /// Where it leads nodes to; servers of before do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
}

impl std::fmt::Debug for CreatedJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedJoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A join token without its secret.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinToken {
    /// Names it.
    pub(crate) id: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    /// How many nodes may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_uses: Option<u32>,
    /// How many nodes have used it.
    #[serde(default)]
    pub(crate) uses: u32,
    /// The node whose place the new one takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replace_node: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<Timestamp>,
}

/// The server's version.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Version {
    /// The version.
    pub(crate) version: String,
}

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The object is new.
    Created,
    /// The object has changed.
    Configured,
    /// The object was so already.
    Unchanged,
}

impl Outcome {
    /// As one word.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}
