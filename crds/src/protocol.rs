//! The agent protocol: what a node and the controller say to each other under `/v1/nodes/*`.
//!
//! JSON in snake_case. Every payload carries `version` (now [`VERSION`]); unknown fields are ignored, so that a
//! controller of version N serves agents of N and N−1. All calls go out from the node.
//!
//! ```text
//! POST register   -> RegisterRequest   => Bootstrap        who the node is; yields its token and the URLs
//! GET  config     -> ?after=V&wait=S   => Configuration    long poll for a configuration newer than V
//! POST config     -> ConfigAck                             applied or failed, with the reason
//! POST capability -> CapabilityReport                      what the host can do, when it changes
//! POST claim      -> ClaimRequest      => ClaimResponse    long poll for work and orders
//! POST heartbeat  -> HeartbeatRequest  => HeartbeatResponse renews the listed attempts
//! POST report     -> ReportRequest     => ReportResponse   logs, step changes, results; answered per record
//! GET  inputs/D                                            a job's uploaded input by digest
//! PUT  artifacts/J/E/N                                     the body of an artifact: job, epoch, number in the manifest
//! POST artifacts  -> ArtifactsLost                         bodies that will never come
//! ```

mod artifact;
mod bootstrap;
pub mod bounds;
mod capability;
mod claim;
mod config;
mod problem;
mod report;
mod secret;
pub mod worker_api;

pub use artifact::{
    Artifact, ArtifactKind, ArtifactsLost, LostArtifact, MAX_ARTIFACT_BYTES, MAX_ARTIFACT_ENTRIES,
    MAX_ARTIFACT_NAME, MAX_ARTIFACTS, MAX_ARTIFACTS_BYTES, MAX_ARTIFACTS_IN_RECORD,
};
pub use bootstrap::{
    Bootstrap, BootstrapAuth, Endpoints, NodeProof, Orchestrator, RegisterRequest, Trust,
    registration_message,
};
pub use capability::{
    AgentCapability, CapabilityReport, Compute, ContainerRuntime, EngineCapability, Gpu, GpuDevice,
    GpuFeatures, InferenceCapability, NodeIdentity, Platform, SandboxCapability, TlsCapability,
    WorkerApiCapability,
};
pub use claim::{
    Assignment, AttemptId, ClaimRequest, ClaimResponse, HeartbeatRequest, HeartbeatResponse, Order, Renewal,
    Unreadable,
};
pub use config::{
    AckError, AckStatus, ConfigAck, ConfigEndpoints, ConfigOrchestrator, Configuration, Constraints,
    FactsSettings, ImageRules, InferenceBackend, NodeSettings, Policy, ResourceLimits, SandboxRules,
    WorkerApiSettings, parse_config_version,
};
pub use problem::{FieldError, Problem};
pub use report::{
    EgressAttempts, LogBody, NODE_RECORDS, Outcome, Record, RecordBody, RecordOutcome, ReportRequest,
    ReportResponse, StepEnded, Stream, Terminal, TerminalPhase,
};
pub use secret::{SecretBytes, SecretValue};

/// The version that every payload carries.
pub const VERSION: u32 = 1;

/// Names that a node cannot have, because they are paths of the protocol.
pub const RESERVED_NODE_NAMES: [&str; 8] =
    ["register", "config", "capability", "claim", "heartbeat", "report", "inputs", "artifacts"];

/// Reads a part of a message; where that fails, what names the part, and why it failed.
fn read_lenient<T: serde::de::DeserializeOwned, N: serde::de::DeserializeOwned>(
    part: serde_json::Value,
) -> Result<Result<T, (N, String)>, serde_json::Error> {
    match serde_path_to_error::deserialize(&part) {
        Ok(read) => Ok(Ok(read)),
        Err(error) => {
            let problem = error.to_string();
            serde_json::from_value(part).map(|name| Err((name, problem)))
        }
    }
}
