//! Fakes on the agent's seams: a clock in virtual time, seeded chance, files in memory that a crash cuts off, and a
//! sandbox that is a little state machine. With them whole fleets run on one thread under a paused tokio runtime, the
//! same way for the same seed.
//!
//! What lives outside of the agent in reality (files, units, leases, the clock) outlives it here: make them once, give
//! them to [`crate::Agent::build`], drop the agent's future to crash it, and build the next one on the same parts.

mod clock;
#[cfg(test)]
pub(crate) mod controller;
mod files;
mod sandbox;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use windlass_crds::protocol::{
    Assignment, AttemptId, Compute, ConfigEndpoints, ConfigOrchestrator, Configuration, Constraints,
    NodeSettings, Platform, Policy, SandboxCapability, VERSION,
};
use windlass_crds::sandbox_job::{OfflinePolicy, SandboxJobSpec, Script, Step};
use windlass_sandbox::driver::{EndReason, Exit, StreamEnd, Usage};

pub use self::clock::{SeededIds, VirtualClock};
pub use self::files::{Crash, MemoryFs};
pub use self::sandbox::{FakeSandbox, OnStart};
use crate::capabilities::{HostFacts, HostProbe};
use crate::vault::NodeKey;

/// A host that never changes: four cores, 8 GiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedHost;

#[async_trait::async_trait]
impl HostProbe for FixedHost {
    async fn look(&self) -> HostFacts {
        HostFacts {
            platform: Platform {
                os: "linux".to_owned(),
                distro: None,
                arch: "amd64".to_owned(),
                kernel_version: None,
            },
            compute: Compute { cpu_model: None, cpu_cores: 4, ram_mb: 8192, storage_free_mb: None },
            gpu: None,
            problems: Vec::new(),
        }
    }
}

/// What [`FakeSandbox`] can do: `native`, no network, limits of cpu, memory and processes.
pub fn capability() -> SandboxCapability {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    SandboxCapability {
        supported: true,
        features: words(&["userns", "seccomp"]),
        max_concurrency: None,
        runtimes: words(&["native"]),
        networks: words(&["None"]),
        limits: words(&["cpu", "memory", "pids"]),
        engines: Vec::new(),
        lacks: Vec::new(),
    }
}

/// A configuration without rules.
pub fn configuration(node: &str, version: u64) -> Configuration {
    Configuration {
        version: VERSION,
        config_version: version.to_string(),
        issued_at: Timestamp::UNIX_EPOCH,
        node_slug: node.to_owned(),
        node_uid: Some("uid-1".to_owned()),
        orchestrator: ConfigOrchestrator {
            base_url: "https://controller".to_owned(),
            endpoints: ConfigEndpoints {
                node_report_url: "https://controller/v1/nodes/capability".to_owned(),
                worker_api_target_url: None,
            },
        },
        node: NodeSettings::default(),
        policy: Policy::default(),
        inference_backend: None,
        facts: None,
        constraints: Constraints::default(),
        worker_api: None,
    }
}

/// A node's key.
pub fn node_key() -> NodeKey {
    NodeKey::new(&[5; 32], Arc::new(SeededIds::new(5)))
}

/// An assignment of a job with one step; the name is `job-` and the uid, the lease 25 s.
pub fn assignment(job: &str, epoch: u64, command: &[&str]) -> Assignment {
    let step = Step {
        name: "main".to_owned(),
        command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        ..Step::default()
    };
    Assignment {
        attempt: AttemptId { job: job.to_owned(), epoch },
        namespace: "default".to_owned(),
        name: format!("job-{job}"),
        number: 1,
        spec: SandboxJobSpec { steps: vec![step], ..SandboxJobSpec::default() },
        offline: OfflinePolicy::Stop,
        lease_seconds: 25,
        claimed_at: Timestamp::UNIX_EPOCH,
        task_id: None,
        secrets: Vec::new(),
    }
}

/// A bash script.
pub fn script(source: &str) -> Script {
    Script { interpreter: "bash".to_owned(), source: source.to_owned(), args: Vec::new() }
}

/// The end of a program that exited.
pub fn exit(code: i32) -> Exit {
    Exit {
        reason: EndReason::Exited,
        code: Some(code),
        signal: None,
        message: None,
        program_started: true,
        started_at_ms: Some(0),
        ended_at_ms: 0,
        usage: Usage::default(),
        stdout: StreamEnd::default(),
        stderr: StreamEnd::default(),
        proof: None,
        teardown: Vec::new(),
    }
}

/// A runner for plugins that runs nothing and says that it ended in a given way.
#[derive(Debug)]
pub struct FakeRunner {
    end: Exit,
    ran: Vec<crate::plugins::Program>,
}

impl FakeRunner {
    /// A runner whose programs end so.
    pub const fn ending(end: Exit) -> Self {
        Self { end, ran: Vec::new() }
    }

    /// The program that was run.
    ///
    /// # Panics
    /// When not exactly one was.
    pub fn ran(&self) -> &crate::plugins::Program {
        let [program] = self.ran.as_slice() else { panic!("{} programs were run", self.ran.len()) };
        program
    }
}

#[async_trait::async_trait]
impl crate::plugins::StepRunner for FakeRunner {
    fn script_path(&self) -> String {
        crate::workspaces::script_path(0)
    }

    async fn run(&mut self, program: crate::plugins::Program) -> Result<Exit, crate::plugins::Error> {
        self.ran.push(program);
        Ok(self.end.clone())
    }

    async fn facts(&mut self, _: &windlass_crds::facts::FactsStep) -> Result<Exit, crate::plugins::Error> {
        Ok(self.end.clone())
    }

    async fn service(
        &mut self,
        _: &windlass_crds::service::ServiceStep,
    ) -> Result<Exit, crate::plugins::Error> {
        Ok(self.end.clone())
    }

    async fn undo_service(
        &mut self,
        _: &windlass_crds::service::ServiceStep,
    ) -> Result<crate::plugins::RolledBack, crate::plugins::Error> {
        Ok(crate::plugins::RolledBack::Undone { how: "put back".to_owned() })
    }
}

/// Labels from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
