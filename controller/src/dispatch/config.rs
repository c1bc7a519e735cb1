//! The node's configuration: delivered when it is newer, acknowledged when it was tried.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use windlass_crds::inference::InferenceSpec;
use windlass_crds::node_config::{NodeConfigSpec, WorkerApi};
use windlass_crds::protocol::{
    self, ConfigAck, ConfigEndpoints, ConfigOrchestrator, Configuration, Constraints, FactsSettings,
    ImageRules, InferenceBackend, NodeSettings, Policy, ResourceLimits, SandboxRules, WorkerApiSettings,
    parse_config_version,
};
use windlass_crds::sandbox_job::Resources;
use windlass_store::{Ack, NodeRow};

use super::push::{Push, is_pushed};
use super::register::check_slug;
use super::{Dispatch, check_version};
use crate::error::{ApiError, Code};

impl Dispatch {
    /// The node's configuration if it is newer than `after`, waiting for that at most `wait`.
    pub async fn configuration(
        &self,
        name: &str,
        after: u64,
        wait: Duration,
    ) -> Result<Option<Configuration>, ApiError> {
        let deadline = Instant::now() + wait;
        let mut changes = self.parts.store.changes();
        loop {
            let node = self.parts.store.get_node(name).await?;
            let node = node.ok_or_else(|| ApiError::not_found("node", name))?;
            let node = Push::with_token(self, node).await?;
            if node.config_version > after {
                return Ok(Some(self.payload(&node)));
            }
            // Any wake-up, and also a missed one (`Lagged`), leads to another look.
            let woken = async {
                loop {
                    match changes.recv().await {
                        Ok(windlass_store::Change::Node { name: changed }) if changed == name => break true,
                        Ok(windlass_store::Change::Any)
                        | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => break true,
                        Ok(_) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => break false,
                    }
                }
            };
            tokio::select! {
                biased;
                // Cancel-safe: nothing is held.
                () = self.parts.stopping.cancelled() => return Ok(None),
                // Cancel-safe: a change that is lost with the future only means one more look at the next poll.
                woken = timeout_at(deadline, woken) => if woken != Ok(true) { return Ok(None) },
            }
        }
    }

    fn payload(&self, node: &NodeRow) -> Configuration {
        let base_url = self.parts.base_url.clone();
        let worker_api = node.spec.worker_api();
        Configuration {
            version: protocol::VERSION,
            config_version: node.config_version.to_string(),
            issued_at: self.now(),
            node_slug: node.name.clone(),
            node_uid: Some(node.uid.clone()),
            orchestrator: ConfigOrchestrator {
                endpoints: ConfigEndpoints {
                    node_report_url: format!("{base_url}/v1/nodes/capability"),
                    worker_api_target_url: worker_api.as_ref().and_then(|api| api.url.clone()),
                },
                base_url,
            },
            node: NodeSettings {
                labels: node.spec.labels.clone(),
                concurrency: node.spec.concurrency,
                dispatch: node.spec.dispatch,
            },
            policy: Policy { sandbox: rules(&node.spec) },
            constraints: Constraints {
                max_job_timeout_seconds: node
                    .spec
                    .sandbox
                    .max_timeout
                    .map(|span| span.millis().div_ceil(1000)),
                max_request_bytes: worker_api.as_ref().and_then(|api| Some(api.max_request?.get())),
            },
            inference_backend: node.spec.inference.as_ref().map(inference),
            facts: node.spec.facts.as_ref().map(|facts| FactsSettings {
                every_seconds: facts.every.map(|every| every.millis().div_ceil(1000)),
                steps: facts.steps,
                logs: facts.logs.clone(),
                proxmox: facts.proxmox.clone(),
            }),
            worker_api: worker_api.map(|api| self.worker_api(node, &api)),
        }
    }

    /// The node's Worker API, with the token by which the controller calls it.
    fn worker_api(&self, node: &NodeRow, api: &WorkerApi) -> WorkerApiSettings {
        let token = self.parts.worker_tokens.newest(node).filter(|_| is_pushed(node));
        WorkerApiSettings {
            listen: api.address().to_owned(),
            orchestrator_bearer_token_expires_at: token.as_ref().map(|token| token.expires_at),
            orchestrator_bearer_token: token.map(|token| token.text),
            token_file: api.token_file.clone(),
        }
    }

    /// Takes the acknowledgement of a configuration in.
    pub async fn acknowledge(&self, node: &NodeRow, ack: ConfigAck) -> Result<(), ApiError> {
        check_version(ack.version)?;
        check_slug(node, &ack.node_slug)?;
        let version = parse_config_version(&ack.config_version).ok_or_else(|| {
            ApiError::new(
                Code::BadRequest,
                format!("config_version: `{}` is not a whole number", ack.config_version),
            )
        })?;
        if version > node.config_version {
            return Err(ApiError::new(
                Code::BadRequest,
                format!(
                    "config_version: {version} was never issued; the newest of node `{}` is {}",
                    node.name, node.config_version
                ),
            ));
        }
        tracing::info!(node.name = %node.name, config.version = version, config.status = %ack.status, "configuration acknowledged");
        let ack = Ack { version, status: ack.status, error: ack.error, hash: ack.effective_config_hash };
        self.parts.store.record_ack(self.now(), &node.name, ack).await?;
        Ok(())
    }
}

/// The policy of a manifest in the protocol's plain numbers.
fn rules(spec: &NodeConfigSpec) -> SandboxRules {
    let policy = &spec.sandbox;
    SandboxRules {
        runtimes: policy.runtimes.clone(),
        networks: policy.networks.clone(),
        egress: policy.egress.clone(),
        max_transfer_bytes: policy.max_transfer.map(windlass_crds::Bytes::get),
        images: ImageRules {
            allowed: policy.images.allowed.clone(),
            folders: policy.images.folders.clone(),
            require_digest: policy.images.require_digest,
            pull: policy.images.pull,
            auth_file: policy.images.auth_file.clone(),
            keep_bytes: policy.images.keep.map(windlass_crds::Bytes::get),
        },
        defaults: limits(&policy.defaults),
        max: limits(&policy.max),
        host_paths: policy.host_paths.clone(),
        services: policy.services.clone(),
        blocked_commands: policy.blocked_commands.clone(),
        allowed_commands: policy.allowed_commands.clone(),
        external_models: policy.external_models,
        output_cap_bytes: policy.output_cap.map(windlass_crds::Bytes::get),
    }
}

/// The server of models in the protocol's plain numbers.
fn inference(spec: &InferenceSpec) -> InferenceBackend {
    InferenceBackend {
        enabled: spec.enabled,
        required: spec.required,
        engine: spec.engine,
        url: spec.url.clone(),
        ca_file: spec.ca_file.clone(),
        api_key_file: spec.api_key_file.clone(),
        runtime: spec.runtime,
        image: spec.image.clone(),
        args: spec.args.clone(),
        port: spec.port,
        env: spec.env.clone(),
        model_volume: spec.model_volume.clone(),
        variant: spec.variant,
        models: spec.models.clone(),
        prune_models: spec.prune_models,
        memory_bytes: spec.memory.map(windlass_crds::Bytes::get),
        cpu_millis: spec.cpu.map(windlass_crds::Cpu::millis),
    }
}

fn limits(resources: &Resources) -> ResourceLimits {
    ResourceLimits {
        cpu_millis: resources.cpu.map(windlass_crds::Cpu::millis),
        memory_bytes: resources.memory.map(windlass_crds::Bytes::get),
        pids: resources.pids,
        disk_bytes: resources.disk.map(windlass_crds::Bytes::get),
        cpu_weight: resources.cpu_weight,
        io_read_bps: resources.io_read.map(windlass_crds::Bytes::get),
        io_write_bps: resources.io_write.map(windlass_crds::Bytes::get),
        files: resources.files,
    }
}
