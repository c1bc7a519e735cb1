//! A host of the simulation: what outlives its agent, and the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use windlass_agent::plugins::Registry;
use windlass_agent::testing::{Crash, FakeSandbox, MemoryFs, SeededIds, VirtualClock, capability};
use windlass_agent::{
    Agent, AgentParts, Egress, HostFacts, HostProbe, Identity, JoinSecret, KeeperHost, Settings, Stop,
};
use windlass_crds::protocol::{Compute, Platform};

use super::controller::JOIN_SECRET;
use super::link::Link;
use super::network::Network;
use super::plan::{NodePlan, Plan};
use super::wire::Wire;

/// A host: its disk and its sandbox live on when its agent crashes.
pub(crate) struct Node {
    pub(crate) name: String,
    number: usize,
    plan: NodePlan,
    seed: u64,
    runs: u64,
    boots: u64,
    link: Link,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) fs: Arc<MemoryFs>,
    pub(crate) sandbox: FakeSandbox,
    agent: Option<Running>,
}

/// An agent that runs. Dropping `stop` tells it nothing.
struct Running {
    agent: JoinHandle<Result<(), windlass_agent::Error>>,
    stop: watch::Sender<Stop>,
}

impl Node {
    pub(crate) fn new(network: &Arc<Network>, number: usize, plan: &Plan) -> Self {
        let name = format!("n{number}");
        let clock = Arc::new(VirtualClock::new());
        let sandbox = FakeSandbox::new(clock.clone());
        let weak = Arc::downgrade(network);
        sandbox.on_start(Arc::new(move |unit| {
            if let Some(network) = Weak::upgrade(&weak) {
                network.oracle.started(&network, number, unit.as_str());
            }
        }));
        network.oracle.watch(sandbox.clone());
        let node = plan.nodes[number].clone();
        let wire = Wire { peer: node.peer, newer_controller: plan.newer_controller };
        Self {
            link: Link { network: network.clone(), node: number, name: name.clone(), wire },
            number,
            plan: node,
            seed: plan.seed.wrapping_mul(31).wrapping_add(number as u64),
            runs: 0,
            boots: 1,
            sandbox,
            fs: Arc::new(MemoryFs::default()),
            clock,
            agent: None,
            name,
        }
    }

    /// Starts an agent on what the last one left.
    pub(crate) fn start(&mut self) {
        self.fs.restart();
        self.runs += 1;
        let seed: [u8; 32] =
            std::array::from_fn(|at| u8::try_from((self.seed >> (at % 8 * 8)) & 0xff).expect("a byte"));
        let client = Arc::new(self.link.clone());
        let parts = AgentParts {
            identity: Identity::ephemeral(&self.name, &seed).expect("the name is valid"),
            join: Some(JoinSecret { secret: JOIN_SECRET.into(), used: self.runs > 1 }),
            on_registered: None,
            client: client.clone(),
            lease_client: client,
            clock: self.clock.clone(),
            ids: Arc::new(SeededIds::new(self.seed ^ (self.runs << 32))),
            fs: self.fs.clone(),
            host: Arc::new(Host(self.plan.clone())),
            driver: Arc::new(self.sandbox.clone()),
            sandbox: capability(),
            node_key: windlass_agent::testing::node_key(),
            workspaces: Arc::new(self.sandbox.clone()),
            plugins: Registry::built_in(),
            egress: Egress::system(None),
            engines: windlass_agent::Engines::default(),
            worker_api: None,
            images: None,
            settings: Settings {
                labels: BTreeMap::new(),
                concurrency: self.plan.slots,
                least_free_bytes: 0,
                inputs: "/nowhere".into(),
                artifacts: "/nowhere".into(),
                artifact_bytes: 1 << 30,
                input_cache_bytes: 0,
                models: "/nonexistent/models".into(),
                keeper: KeeperHost::AgentRuntime,
            },
        };
        let (stop, stopped) = watch::channel(Stop::Run);
        self.agent = Some(Running { agent: tokio::spawn(Agent::build(parts).run(stopped)), stop });
        self.link.network.note(format!("{} agent starts", self.name));
    }

    /// kill -9, at once or in the middle of one of the next writes to the disk.
    pub(crate) async fn crash(&mut self, within: Option<(u64, Crash)>) {
        let Some(Running { agent, stop }) = self.agent.take() else { return };
        if let Some((writes, how)) = within {
            self.fs.crash_at(self.fs.operations() + writes, how);
            // A node that has nothing to write crashes all the same. Cancel-safe: both only wait.
            tokio::select! {
                biased;
                () = self.fs.crashed() => {}
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
        agent.abort();
        if let Ok(ended) = agent.await {
            self.link.network.note(format!("{} agent had ended: {ended:?}", self.name));
        }
        drop(stop);
        self.link.network.note(format!("{} agent crashes", self.name));
    }

    /// The host loses power, at once or in the middle of one of the next writes, and comes up again, without its agent
    /// for now.
    pub(crate) async fn reboot(&mut self, within: Option<(u64, Crash)>) {
        self.crash(within).await;
        self.boots += 1;
        self.fs.lose_power(self.seed ^ (self.boots << 16));
        self.sandbox.reboot();
        self.clock.reboot_now(&format!("boot-{}", self.boots));
        self.link.network.note(format!("{} was booted", self.name));
    }

    /// Tells the agent to stop.
    pub(crate) fn tell(&self, stop: Stop) {
        if let Some(running) = &self.agent {
            running.stop.send_replace(stop);
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.agent.as_ref().is_some_and(|running| !running.agent.is_finished())
    }

    /// What the agent ended with, if it ended by itself; the flag says whether it was told to.
    pub(crate) async fn ended(&mut self) -> Option<(bool, String)> {
        if !self.agent.as_ref().is_some_and(|running| running.agent.is_finished()) {
            return None;
        }
        let Running { agent, stop } = self.agent.take()?;
        let ended = agent.await;
        let told = *stop.borrow() != Stop::Run && matches!(ended, Ok(Ok(())));
        Some((told, format!("agent n{} has ended: {ended:?}", self.number)))
    }
}

/// The hardware of a host.
struct Host(NodePlan);

#[async_trait]
impl HostProbe for Host {
    async fn look(&self) -> HostFacts {
        HostFacts {
            platform: Platform {
                os: "linux".to_owned(),
                distro: None,
                arch: "amd64".to_owned(),
                kernel_version: None,
            },
            compute: Compute {
                cpu_model: None,
                cpu_cores: self.0.cores,
                ram_mb: self.0.ram_mb,
                storage_free_mb: None,
            },
            gpu: None,
            problems: Vec::new(),
        }
    }
}
