//! The Worker API: what a node offers to those who give it work by calling it.
//!
//! ```text
//! POST /v1/worker/jobs:run                    -> RunJobRequest => RunJobResponse   runs a job, or joins its run
//! GET  /v1/worker/jobs/{id}/attempts/{epoch}                   => RunJobResponse   the run, or its result while it is kept
//! DELETE /v1/worker/jobs/{id}/attempts/{epoch}                                     the result was stored elsewhere
//! GET  /healthz, /readyz
//! ```
//!
//! JSON in snake_case over TLS with a bearer token, unknown fields are ignored, `version` is checked. A run is named by
//! its job and epoch: calling again with the same name never starts a second one. A caller that knows no epochs gets
//! [`BARE_EPOCH`], which no controller gives.

mod openapi;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::openapi::openapi;
use super::TerminalPhase;

/// Where jobs are run.
pub const RUN_PATH: &str = "/v1/worker/jobs:run";
/// The epoch of a run whose caller names none. Epochs of attempts begin at 1.
pub const BARE_EPOCH: u64 = 0;
/// Bytes of standard output, and of standard error, that a response carries.
pub const MAX_OUTPUT: usize = 256 << 10;
/// The largest request where nothing else is set, and the most that can be set, in bytes.
pub const MAX_REQUEST: u64 = 10 << 20;

/// The path of a run.
pub fn attempt_path(job: &str, epoch: u64) -> String {
    format!("/v1/worker/jobs/{job}/attempts/{epoch}")
}

/// Runs a job. With `Prefer: respond-async` the answer comes as soon as the run is taken on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct RunJobRequest {
    /// [`super::VERSION`].
    pub version: u32,
    /// The task that the job belongs to: a UUID, which the job sees as `WINDLASS_TASK_ID`.
    pub task_id: String,
    /// The job: a UUID, which the job sees as `WINDLASS_JOB_ID` and which names the run.
    pub job_id: String,
    /// What to run and how.
    pub sandbox: RunSandbox,
}

/// What to run and how.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
pub struct RunSandbox {
    /// The image, run by the node's Podman or Docker; empty for the node's own system in a sandbox of the kernel.
    #[serde(default)]
    pub image: String,
    /// The program and its arguments, run without a shell. May be empty only beside `job_spec_json`.
    #[serde(default)]
    pub command: Vec<String>,
    /// The environment. Names that start with `WINDLASS_` are reserved and refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// How long the job may take; an hour where nothing is said, and never longer than the node allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// `none` or `restricted`. Without rules for egress both let nothing through; nothing said is `none`, or `restricted`
    /// with `use_inference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<String>,
    /// Whether the job needs the node's model: it is then at `OPENAI_BASE_URL`, and a node without one refuses the job.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_inference: bool,
    /// What Windlass's own controller sends: an [`super::Assignment`] as JSON text, in place of all of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_spec_json: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A run: what has become of it so far.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct RunJobResponse {
    /// [`super::VERSION`].
    pub version: u32,
    /// As in the request.
    pub task_id: String,
    /// As in the request.
    pub job_id: String,
    /// The epoch of the run; 0 where the request named none.
    #[serde(default)]
    pub epoch: u64,
    /// Where the run is.
    pub status: RunStatus,
    /// The exit code of the program, or of the step that decided; −1 where none exited, as after a timeout. Of a run that
    /// goes on −1 too.
    pub exit_code: i32,
    /// Standard output, at most [`MAX_OUTPUT`] bytes from its beginning. Bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, as `stdout`.
    pub stderr: String,
    /// When the program began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Which output is not all there.
    pub truncated: Truncated,
    /// Why the run ended so, as one word, such as `Completed` or `PolicyRefused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Which output is not all there.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema)]
pub struct Truncated {
    /// Of standard output.
    pub stdout: bool,
    /// Of standard error.
    pub stderr: bool,
}

/// Where a run is.
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
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RunStatus {
    /// It goes on, or is about to begin.
    Running,
    /// The program exited with 0.
    Completed,
    /// It ended in any other way.
    Failed,
    /// It took longer than it may.
    Timeout,
}

impl From<TerminalPhase> for RunStatus {
    fn from(phase: TerminalPhase) -> Self {
        match phase {
            TerminalPhase::Succeeded => Self::Completed,
            TerminalPhase::TimedOut => Self::Timeout,
            TerminalPhase::Failed
            | TerminalPhase::Cancelled
            | TerminalPhase::Lost
            | TerminalPhase::Released => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_of_somebody_else_is_read_with_what_it_does_not_say_and_what_nobody_knows() {
        let request: RunJobRequest = serde_json::from_value(json!({
            "version": 1, "task_id": "t", "job_id": "j", "later": true,
            "sandbox": {"image": "alpine:latest", "command": ["true"], "runtime_class": "x"},
        }))
        .unwrap();
        let RunSandbox { image, command, env, timeout_seconds, network_policy, use_inference, job_spec_json } =
            request.sandbox;
        assert_eq!((image.as_str(), command), ("alpine:latest", vec!["true".to_owned()]));
        assert!(env.is_empty() && timeout_seconds.is_none() && network_policy.is_none());
        assert!(!use_inference && job_spec_json.is_none());
    }

    #[test]
    fn an_exit_code_of_zero_is_said() {
        let response = RunJobResponse {
            version: 1,
            task_id: "t".to_owned(),
            job_id: "j".to_owned(),
            epoch: BARE_EPOCH,
            status: RunStatus::Completed,
            exit_code: 0,
            stdout: "hello\n".to_owned(),
            stderr: String::new(),
            started_at: None,
            ended_at: None,
            truncated: Truncated::default(),
            reason: None,
            message: None,
        };
        let json = serde_json::to_value(&response).unwrap();
        assert_eq!(json["exit_code"], 0);
        assert_eq!(json["truncated"], json!({"stdout": false, "stderr": false}));
        assert_eq!(json["status"], "completed");
    }
}
