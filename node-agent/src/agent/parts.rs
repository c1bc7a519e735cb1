//! What an agent is made of and can be told, and why it ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use windlass_crds::protocol::SandboxCapability;
use windlass_sandbox::engine::Engines;
use windlass_sandbox::{Driver, Images};

use crate::capabilities::HostProbe;
use crate::client::ControllerClient;
use crate::clock::Clock;
use crate::executor::egress::Egress;
use crate::fs::AgentFs;
use crate::heartbeat::Superseded;
use crate::identity::Identity;
use crate::ids::IdSource;
use crate::plugins::Registry;
use crate::registration::{self, JoinSecret, OnRegistered};
use crate::vault::NodeKey;
use crate::worker_api::ApiHost;
use crate::workspaces::Workspaces;
use crate::{ledger, outbox};

/// What the outside wants of a running agent. It only ever goes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It runs.
    #[default]
    Run,
    /// It takes no more work, lets what runs finish, sends what is left and ends.
    Drain,
    /// It stops what runs, sends what is left and ends.
    Cancel,
}

/// Where the lease keeper runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeeperHost {
    /// On a thread and runtime of its own.
    OwnThread,
    /// On the agent's runtime, for simulations in virtual time.
    AgentRuntime,
}

/// What can be set about an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// How many attempts run at once where the configuration does not say.
    pub concurrency: u32,
    /// Free bytes below which no work is taken on.
    pub least_free_bytes: u64,
    /// Where fetched inputs are kept.
    pub inputs: PathBuf,
    /// How many bytes of inputs are kept beyond what is in use.
    pub input_cache_bytes: u64,
    /// Where artifacts wait for the controller.
    pub artifacts: PathBuf,
    /// How many bytes of artifacts may wait.
    pub artifact_bytes: u64,
    /// Where models of the node's server are kept that has no folder of its own.
    pub models: PathBuf,
    /// Where the lease keeper runs.
    pub keeper: KeeperHost,
}

/// What an agent is made of: the seams, and what the real ones found at start.
pub struct AgentParts {
    /// Who the node is.
    pub identity: Identity,
    /// The join token's secret, if there is one.
    pub join: Option<JoinSecret>,
    /// What is done with the answer to a registration before it is used.
    pub on_registered: Option<OnRegistered>,
    /// The controller.
    pub client: Arc<dyn ControllerClient>,
    /// The controller, for the lease keeper alone.
    pub lease_client: Arc<dyn ControllerClient>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Names and chance.
    pub ids: Arc<dyn IdSource>,
    /// Durable files.
    pub fs: Arc<dyn AgentFs>,
    /// The host.
    pub host: Arc<dyn HostProbe>,
    /// The sandbox.
    pub driver: Arc<dyn Driver>,
    /// What the sandbox can do here.
    pub sandbox: SandboxCapability,
    /// Seals secrets in durable files.
    pub node_key: NodeKey,
    /// Where attempts live.
    pub workspaces: Arc<dyn Workspaces>,
    /// What can be done for a step.
    pub plugins: Registry,
    /// How steps with a restricted network get out.
    pub egress: Egress,
    /// The container engines of the host, for their images.
    pub engines: Engines,
    /// What serves the Worker API; without it a configuration that asks for one cannot be applied.
    pub worker_api: Option<Arc<dyn ApiHost>>,
    /// The images that native steps can see as their system; `None` without a native sandbox.
    pub images: Option<Images>,
    /// The rest.
    pub settings: Settings,
}

/// Why an agent ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node cannot register.
    #[error(transparent)]
    Registration(#[from] registration::Error),
    /// Another agent has this node's identity.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The outbox cannot be read.
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// The last good configuration cannot be read.
    #[error(transparent)]
    Configuration(#[from] crate::config_sync::Error),
    /// The sandbox does not tell what runs.
    #[error("the sandbox does not tell what runs on this host")]
    Inventory(#[source] windlass_sandbox::Error),
    /// The results of the Worker API cannot be read.
    #[error("cannot read the results of the Worker API")]
    Results(#[source] std::io::Error),
    /// What waits of artifacts cannot be read.
    #[error("cannot read the artifacts that wait for the controller")]
    Artifacts(#[source] std::io::Error),
    /// The lease keeper's thread cannot be made.
    #[error("the lease keeper's thread cannot be made")]
    KeeperThread(#[source] std::io::Error),
    /// The lease keeper's thread has panicked.
    #[error("the lease keeper has panicked")]
    KeeperPanicked,
    /// A task has panicked.
    #[error("a task of the agent has panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Registration(error) => error.kind(),
            Self::Superseded(_) => "superseded",
            Self::Ledger(error) => error.kind(),
            Self::Outbox(error) => error.kind(),
            Self::Configuration(error) => error.kind(),
            Self::Inventory(_) => "inventory",
            Self::Results(_) => "results",
            Self::Artifacts(_) => "artifacts",
            Self::KeeperThread(_) => "keeper_thread",
            Self::KeeperPanicked => "keeper_panicked",
            Self::Panicked(_) => "panicked",
        }
    }
}

impl Stop {
    pub(super) const fn announcement(self) -> &'static str {
        match self {
            Self::Run => "running",
            Self::Drain => "draining: no more work is taken on, what runs may finish",
            Self::Cancel => "cancelling what runs",
        }
    }
}
