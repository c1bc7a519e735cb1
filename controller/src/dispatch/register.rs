//! Registration: who a node is, and whether it may be that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::SignedDuration;
use sha2::{Digest, Sha256};
use windlass_crds::protocol::{
    self, Bootstrap, BootstrapAuth, CapabilityReport, Endpoints, NodeProof, Orchestrator, RegisterRequest,
    Trust, registration_message,
};
use windlass_store::{CapabilityUpdate, NodeRegistration, NodeRow, RedeemedToken, RegisterOutcome};

use super::{Dispatch, check_version, identity};
use crate::auth;
use crate::error::{ApiError, Code};

/// How far a node's clock may be off when it proves its key.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(10);

impl Dispatch {
    /// Registers a node; the flag is true when it is new.
    pub async fn register(&self, request: RegisterRequest) -> Result<(Bootstrap, bool), ApiError> {
        let report = request.capability;
        check_version(report.version)?;
        let name = report.node.node_slug.clone();
        check_name(&name)?;
        let agent = report.agent.clone().unwrap_or_default();
        let public_key =
            request.proof.map(|proof| self.check_proof(&name, &agent.boot_id, &proof)).transpose()?;
        let token = self.redeem(request.psk.as_deref()).await?;
        if token.is_none() && public_key.is_none() {
            return Err(ApiError::new(
                Code::Unauthenticated,
                "a registration needs a join token or proof of the node's key",
            ));
        }
        let now = self.now();
        let registration = NodeRegistration {
            name: name.clone(),
            uid: self.parts.ids.uid(now),
            boot_id: agent.boot_id,
            proven: public_key.is_some(),
            public_key,
            token,
            capability_hash: capability_hash(&report)?,
            labels: report.node.labels.clone(),
            agent_version: agent.version,
            capability: report,
        };
        let (node, created) = match self.parts.store.register_node(now, registration).await? {
            RegisterOutcome::Created(node) => (node, true),
            RegisterOutcome::Known(node) => (node, false),
            RegisterOutcome::NameTaken => {
                return Err(ApiError::new(
                    Code::NameTaken,
                    format!(
                        "node `{name}` exists with another key; give this agent another --name, or let it take over \
                         with a token from `windlass join-token create --replace {name}`"
                    ),
                ));
            }
            RegisterOutcome::NeedsProof => {
                return Err(ApiError::new(
                    Code::Unauthenticated,
                    format!(
                        "node `{name}` is not known here; join it with a token from `windlass join-token create`"
                    ),
                ));
            }
            RegisterOutcome::TokenInvalid => return Err(token_refused()),
            RegisterOutcome::Departed { at } => {
                return Err(ApiError::new(
                    Code::Unauthenticated,
                    format!(
                        "this agent's node was deregistered at {at:.0}; to have it back, join it with a token made \
                         since, from `windlass join-token create`"
                    ),
                ));
            }
        };
        tracing::info!(node.name = %name, node.new = created, "node registered");
        Ok((self.bootstrap(&node), created))
    }

    /// What a node proves about its key; the key, if the proof holds.
    fn check_proof(&self, name: &str, boot_id: &str, proof: &NodeProof) -> Result<Vec<u8>, ApiError> {
        let off = self.now().duration_since(proof.signed_at);
        if off.abs() > MAX_SKEW {
            return Err(ApiError::new(
                Code::Unauthenticated,
                format!(
                    "proof.signed_at is {}: {} s off this controller's clock ({}); set the node's clock",
                    proof.signed_at,
                    off.as_secs().abs(),
                    self.now()
                ),
            ));
        }
        let decode = |field: &str, text: &str| {
            BASE64.decode(text).map_err(|_| {
                ApiError::new(Code::BadRequest, format!("proof.{field}: `{text}` is not standard base64"))
            })
        };
        let public_key = decode("public_key", &proof.public_key)?;
        let signature = decode("signature", &proof.signature)?;
        let message = registration_message(name, boot_id, proof.signed_at);
        if auth::signature_holds(&public_key, &message, &signature) {
            Ok(public_key)
        } else {
            Err(ApiError::new(Code::Unauthenticated, "proof.signature does not fit the key and the message"))
        }
    }

    async fn redeem(&self, psk: Option<&str>) -> Result<Option<RedeemedToken>, ApiError> {
        let Some(secret) = psk else { return Ok(None) };
        let found = self.parts.store.find_join_token(&auth::secret_hash(secret)).await?;
        let token = found.ok_or_else(token_refused)?;
        Ok(Some(RedeemedToken {
            id: token.id,
            allows_new: token.replaces.is_none(),
            replaces: token.replaces,
        }))
    }

    fn bootstrap(&self, node: &NodeRow) -> Bootstrap {
        let now = self.now();
        let (node_jwt, expires_at) = self.parts.tokens.issue(identity(node), self.parts.ids.uid(now), now);
        let base_url = self.parts.base_url.clone();
        let url = |verb: &str| format!("{base_url}/v1/nodes/{verb}");
        Bootstrap {
            version: protocol::VERSION,
            issued_at: now,
            node_uid: Some(node.uid.clone()),
            orchestrator: Orchestrator {
                endpoints: Endpoints {
                    worker_registration_url: url("register"),
                    node_report_url: url("capability"),
                    node_config_url: url("config"),
                    claim_url: url("claim"),
                    heartbeat_url: url("heartbeat"),
                    report_url: url("report"),
                    inputs_url: url("inputs"),
                    artifacts_url: Some(url("artifacts")),
                },
                base_url,
            },
            auth: BootstrapAuth { node_jwt, expires_at },
            trust: self.parts.ca_pem.clone().map(|pem| Trust { ca_bundle_pem: Some(pem) }),
            initial_config_version: Some(node.config_version.to_string()),
        }
    }

    /// Takes a capability report in.
    pub async fn capability(&self, node: &NodeRow, report: CapabilityReport) -> Result<(), ApiError> {
        check_version(report.version)?;
        check_slug(node, &report.node.node_slug)?;
        let update = CapabilityUpdate {
            hash: capability_hash(&report)?,
            labels: report.node.labels.clone(),
            agent_version: report.agent.as_ref().map(|agent| agent.version.clone()).unwrap_or_default(),
            report,
        };
        self.parts.store.record_capability(self.now(), &node.name, update).await?;
        Ok(())
    }
}

/// The hash of a report: of everything but the time at which it was made.
pub(crate) fn capability_hash(report: &CapabilityReport) -> Result<String, ApiError> {
    let mut steady = report.clone();
    steady.reported_at = jiff::Timestamp::UNIX_EPOCH;
    let json =
        serde_json::to_vec(&steady).map_err(|error| ApiError::internal("hash a capability report", error))?;
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(json))))
}

fn token_refused() -> ApiError {
    ApiError::new(
        Code::Unauthenticated,
        "the join token is unknown, expired, revoked or used up; make a new one with `windlass join-token create`",
    )
}

/// Refuses a payload that names another node than the token does.
pub(super) fn check_slug(node: &NodeRow, slug: &str) -> Result<(), ApiError> {
    if node.name == slug {
        return Ok(());
    }
    Err(ApiError::new(
        Code::BadRequest,
        format!("node_slug is `{slug}`, but the token was issued to node `{}`", node.name),
    ))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if protocol::RESERVED_NODE_NAMES.contains(&name) {
        return Err(ApiError::new(
            Code::BadRequest,
            format!("capability.node.node_slug: `{name}` is reserved; choose another --name"),
        ));
    }
    windlass_crds::names::check_subdomain(name).map_err(|error| {
        ApiError::new(Code::BadRequest, format!("capability.node.node_slug: {error}; choose another --name"))
    })
}
