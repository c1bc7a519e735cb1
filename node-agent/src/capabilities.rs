//! The capability report: what this host is and can do, and when the controller needs to hear it again.

mod gpu;
mod host;
pub(crate) mod nvml;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::Digest as _;
use tokio::sync::Notify;
use windlass_crds::protocol::{
    AgentCapability, CapabilityReport, NodeIdentity, SandboxCapability, TlsCapability, VERSION,
    WorkerApiCapability,
};

pub use self::gpu::GpuProbe;
pub use self::host::{HostFacts, HostProbe, SystemHost};
use crate::backoff::Backoff;
use crate::client::ControllerClient;
use crate::clock::Clock;
use crate::ids::IdSource;
use crate::inference::InferenceHandle;
use crate::session::SessionHandle;
use crate::watch;

/// Between looks at the host: hardware and free space change slowly, and a look costs a few file reads.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Reasons of one report; a host with more of them has other troubles.
const MOST_LACKS: usize = 64;

/// Makes capability reports.
pub(crate) struct Capabilities {
    node: NodeIdentity,
    agent: AgentCapability,
    sandbox: SandboxCapability,
    host: Arc<dyn HostProbe>,
    clock: Arc<dyn Clock>,
    /// The hash of the report that the controller has.
    delivered: Mutex<Option<String>>,
    wanted: Notify,
    inference: InferenceHandle,
    served: watch::Receiver<Option<Served>>,
}

/// The Worker API, while it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) api: WorkerApiCapability,
    pub(crate) tls: TlsCapability,
}

/// What is known of the node from its settings.
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) boot_id: String,
    pub(crate) step_kinds: Vec<String>,
    pub(crate) sandbox: SandboxCapability,
    pub(crate) inference: InferenceHandle,
}

impl Capabilities {
    pub(crate) fn new(
        facts: NodeFacts,
        host: Arc<dyn HostProbe>,
        clock: Arc<dyn Clock>,
        served: watch::Receiver<Option<Served>>,
    ) -> Self {
        let NodeFacts { name, labels, boot_id, step_kinds, sandbox, inference } = facts;
        let agent = AgentCapability { version: env!("CARGO_PKG_VERSION").to_owned(), boot_id, step_kinds };
        Self {
            node: NodeIdentity { node_slug: name, name: None, labels },
            agent,
            sandbox,
            host,
            clock,
            delivered: Mutex::new(None),
            wanted: Notify::new(),
            served,
            inference,
        }
    }

    /// This run of the agent.
    pub(crate) fn boot_id(&self) -> &str {
        &self.agent.boot_id
    }

    /// Looks at the host.
    pub(crate) async fn report(&self) -> CapabilityReport {
        let HostFacts { platform, compute, gpu, problems } = self.host.look().await;
        let mut sandbox = self.sandbox.clone();
        sandbox.lacks.extend(problems);
        sandbox.lacks.truncate(MOST_LACKS);
        let (worker_api, tls) = self.served.borrow().clone().map(|served| (served.api, served.tls)).unzip();
        CapabilityReport {
            version: VERSION,
            reported_at: self.clock.now(),
            node: self.node.clone(),
            platform,
            compute,
            container_runtime: crate::start::engines::first(&self.sandbox),
            gpu,
            sandbox: Some(sandbox),
            inference: self.inference.capability(),
            agent: Some(self.agent.clone()),
            worker_api,
            tls,
        }
    }

    /// The hash of the report that the controller has.
    pub(crate) fn delivered(&self) -> Option<String> {
        self.delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The controller asks for the report.
    pub(crate) fn wanted(&self) {
        self.set_delivered(None);
        self.wanted.notify_one();
    }

    /// Something that is reported has changed.
    pub(crate) fn changed(&self) {
        self.wanted.notify_one();
    }

    /// The controller has this report.
    pub(crate) fn delivered_with(&self, report: &CapabilityReport) {
        self.set_delivered(Some(report_hash(report)));
    }

    fn set_delivered(&self, hash: Option<String>) {
        *self.delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = hash;
    }

    /// Delivers the report if the controller does not have it. Tries until it arrives.
    pub(crate) async fn deliver(
        &self,
        client: &dyn ControllerClient,
        session: &SessionHandle,
        ids: &dyn IdSource,
    ) {
        let mut backoff = Backoff::for_controller();
        let mut trouble = None;
        loop {
            let report = self.report().await;
            let hash = report_hash(&report);
            if self.delivered().as_ref() == Some(&hash) {
                return;
            }
            let current = session.ready().await;
            match client.capability(&current, &report).await {
                Ok(()) => {
                    tracing::info!(capability.hash = hash, "capabilities reported");
                    self.set_delivered(Some(hash));
                    return;
                }
                Err(error) => {
                    if error.is_unauthorized() {
                        session.expired(&current);
                    }
                    if trouble != Some(error.kind()) {
                        trouble = Some(error.kind());
                        tracing::warn!(error = %crate::error_chain(&error), "cannot report capabilities; trying again");
                    }
                    tokio::time::sleep(backoff.next(ids)).await;
                }
            }
        }
    }

    /// Looks again and again, and delivers what has changed, for ever.
    pub(crate) async fn keep_delivered(
        &self,
        client: &dyn ControllerClient,
        session: &SessionHandle,
        ids: &dyn IdSource,
    ) -> std::convert::Infallible {
        let mut served = self.served.clone();
        loop {
            // All arms may be dropped at any time: a permit of `notified` is lost only when the arm has won.
            tokio::select! {
                biased;
                () = self.wanted.notified() => {}
                // Its sender lives as long as the configuration's task.
                Ok(()) = served.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.deliver(client, session, ids).await;
        }
    }
}

/// `sha256:` and the hash of a report's JSON, in which the time of the report is set to the beginning of 1970. The
/// controller calculates the same, which is how it knows whether its report is current.
pub(crate) fn report_hash(report: &CapabilityReport) -> String {
    let steady = CapabilityReport { reported_at: jiff::Timestamp::UNIX_EPOCH, ..report.clone() };
    sha256_text(&serde_json::to_vec(&steady).expect("a report has only string keys and so becomes JSON"))
}

/// `sha256:` and 64 hexadecimal digits.
pub(crate) fn sha256_text(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
