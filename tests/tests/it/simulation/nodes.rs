//! A host of the simulation: what outlives its agent, and the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use windlass_agent::plugins::Registry;
use windlass_agent::testing::{FakeSandbox, FixedHost, MemoryFs, SeededIds, VirtualClock, capability};
use windlass_agent::{Agent, AgentParts, Identity, JoinSecret, KeeperHost, Settings, Stop};

use super::controller::JOIN_SECRET;
use super::network::{Link, Network};

/// How many attempts a node runs at once.
pub(crate) const SLOTS: u32 = 2;

/// A host: its disk and its sandbox live on when its agent crashes.
pub(crate) struct Node {
    pub(crate) name: String,
    seed: u64,
    runs: u64,
    link: Link,
    clock: Arc<VirtualClock>,
    fs: Arc<MemoryFs>,
    pub(crate) sandbox: FakeSandbox,
    agent: Option<Running>,
}

/// An agent that runs. Dropping `stop` tells it nothing.
struct Running {
    agent: JoinHandle<Result<(), windlass_agent::Error>>,
    stop: watch::Sender<Stop>,
}

impl Node {
    pub(crate) fn new(network: &Arc<Network>, number: usize, seed: u64) -> Self {
        let name = format!("n{number}");
        let clock = Arc::new(VirtualClock::new());
        Self {
            link: Link { network: network.clone(), node: number, name: name.clone() },
            seed: seed.wrapping_mul(31).wrapping_add(number as u64),
            runs: 0,
            sandbox: FakeSandbox::new(clock.clone()),
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
            host: Arc::new(FixedHost),
            driver: Arc::new(self.sandbox.clone()),
            sandbox: capability(),
            workspaces: Arc::new(self.sandbox.clone()),
            plugins: Registry::built_in(),
            settings: Settings {
                labels: BTreeMap::new(),
                concurrency: SLOTS,
                least_free_bytes: 0,
                inputs: "/nowhere".into(),
                input_cache_bytes: 0,
                keeper: KeeperHost::AgentRuntime,
            },
        };
        let (stop, stopped) = watch::channel(Stop::Run);
        self.agent = Some(Running { agent: tokio::spawn(Agent::build(parts).run(stopped)), stop });
        self.link.network.note(format!("{} agent starts", self.name));
    }

    /// kill -9, at once or in the middle of one of the next writes to the disk.
    pub(crate) async fn crash(&mut self, within: Option<(u64, windlass_agent::testing::Crash)>) {
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

    pub(crate) fn is_up(&self) -> bool {
        self.agent.as_ref().is_some_and(|running| !running.agent.is_finished())
    }

    /// What the agent ended with, if it ended by itself.
    pub(crate) async fn gave_up(&mut self) -> Option<String> {
        if !self.agent.as_ref().is_some_and(|running| running.agent.is_finished()) {
            return None;
        }
        let Running { agent, stop: _ } = self.agent.take()?;
        Some(format!("{:?}", agent.await))
    }
}
