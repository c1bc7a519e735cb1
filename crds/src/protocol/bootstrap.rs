//! Registration: a node proves who it is and learns where everything else is.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CapabilityReport;

/// What a node sends to register.
#[derive(Serialize, Deserialize, Clone, PartialEq, JsonSchema)]
pub struct RegisterRequest {
    /// The join token's secret. May be left out by a node that is known and proves its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
    /// What the host can do; names the node.
    pub capability: CapabilityReport,
    /// Proof that the node holds its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<NodeProof>,
}

impl std::fmt::Debug for RegisterRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterRequest")
            .field("psk", &self.psk.as_ref().map(|_| "…"))
            .field("capability", &self.capability)
            .field("proof", &self.proof)
            .finish()
    }
}

/// Proof that a node holds its Ed25519 key: a signature over [`registration_message`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct NodeProof {
    /// The public key, 32 bytes in standard base64.
    pub public_key: String,
    /// When the signature was made; the controller refuses one that is more than ten minutes off its own clock.
    pub signed_at: Timestamp,
    /// The signature, 64 bytes in standard base64.
    pub signature: String,
}

/// The text that a node signs when it registers.
pub fn registration_message(node: &str, boot_id: &str, signed_at: Timestamp) -> String {
    format!("windlass-register-v1\n{node}\n{boot_id}\n{signed_at}")
}

/// The answer to a registration: `201` for a new node, `200` for a known one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Bootstrap {
    /// [`super::VERSION`].
    pub version: u32,
    /// When the answer was made.
    pub issued_at: Timestamp,
    /// The uid of the node's object. A node that was deleted and joins again has another one, and what it knew of the one
    /// before counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_uid: Option<String>,
    /// Where the controller is.
    pub orchestrator: Orchestrator,
    /// The node's token.
    pub auth: BootstrapAuth,
    /// What to trust from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// The version of the configuration that waits at `node_config_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_config_version: Option<String>,
}

/// Where the controller is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Orchestrator {
    /// The URL that every path is relative to.
    pub base_url: String,
    /// Absolute URLs.
    pub endpoints: Endpoints,
}

/// Absolute URLs of the agent protocol.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Endpoints {
    /// `POST` [`RegisterRequest`].
    pub worker_registration_url: String,
    /// `POST` [`CapabilityReport`].
    pub node_report_url: String,
    /// `GET` for the configuration, `POST` for its acknowledgement.
    pub node_config_url: String,
    /// `POST` [`super::ClaimRequest`].
    pub claim_url: String,
    /// `POST` [`super::HeartbeatRequest`].
    pub heartbeat_url: String,
    /// `POST` [`super::ReportRequest`].
    pub report_url: String,
    /// `GET` with the digest appended after a slash.
    pub inputs_url: String,
    /// `PUT` of a body with job, epoch and number appended, each after a slash; `POST` [`super::ArtifactsLost`]. A controller
    /// of before takes no artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts_url: Option<String>,
}

/// The node's token.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, JsonSchema)]
pub struct BootstrapAuth {
    /// A JWT for the `Authorization: Bearer` header of every further call.
    pub node_jwt: String,
    /// When it stops working; the node registers again before that.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for BootstrapAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootstrapAuth").field("node_jwt", &"…").field("expires_at", &self.expires_at).finish()
    }
}

/// What to trust.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Trust {
    /// The authorities that sign the controller's certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_pem: Option<String>,
}
