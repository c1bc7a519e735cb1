//! Containers that the node runs for itself, such as a server of models: they belong to no unit and no lease.
//!
//! *Guarantees*: there is at most one container of a name in a state folder. What it was made from is written on it, so that
//! a later run of the agent takes up one that is as it should be, and makes any other anew. It has no capability, a read-only
//! root, and sees of the host the folders and devices that are named, and the network: it is meant to listen on the loopback
//! address, which is reached from sandboxes only through the agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

use super::driver::Containers;
use super::host::most_processes;
use super::{
    ALL_GPUS, Bind, ContainerPlan, LABEL_MADE_FROM, LABEL_SERVICE, Listed, PlannedNetwork, Users, plan,
};
use crate::error::Error;

/// Bytes of output that the engine keeps, for who looks why a service does not work.
const KEPT_OUTPUT: u64 = 1 << 20;
/// Bytes of each memory file system.
const SCRATCH: u64 = 256 << 20;
/// As for the agent itself: rather a job ends than what all jobs use.
const OOM_SCORE_ADJ: i32 = 200;

/// A container that the node runs for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name within the state folder.
    pub name: String,
    /// The image by its id.
    pub image: String,
    /// What it is made from, as a hash: one that was made from something else is not the same.
    pub made_from: String,
    /// Arguments of the image's own entry point; empty for its own.
    pub args: Vec<String>,
    /// Environment over that of the image.
    pub env: BTreeMap<String, String>,
    /// Folders of the host: where they are, and where they are inside.
    pub folders: Vec<(PathBuf, String)>,
    /// What of the host's graphics processors it sees.
    pub gpus: ServiceGpus,
    /// The most memory in bytes.
    pub memory_bytes: Option<u64>,
    /// The most cpu in thousandths of a core.
    pub cpu_millis: Option<u64>,
}

/// What of the host's graphics processors a service sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceGpus {
    /// Nothing.
    None,
    /// All of Nvidia.
    Nvidia,
    /// All of AMD.
    Amd,
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceState {
    /// Whether it runs.
    pub running: bool,
    /// The exit code of its first process, where that has ended.
    pub exit_code: Option<i32>,
    /// Whether it was ended because it used too much memory.
    pub oom_killed: bool,
    /// What the engine says of a start that failed.
    pub error: Option<String>,
    /// What it was made from.
    pub made_from: Option<String>,
}

impl Containers {
    /// How a service is; `None` where there is none of the name.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn service_state(&self, name: &str) -> Result<Option<ServiceState>, Error> {
        let found = self.0.engine.inspect(&self.service_container(name)).await?;
        Ok(found.map(|state| ServiceState {
            running: state.running,
            exit_code: state.exit_code,
            oom_killed: state.oom_killed,
            error: state.error,
            made_from: state.made_from,
        }))
    }

    /// Makes a service anew and starts it. What had its name is gone then. Where the start fails, so is what was made.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn start_service(&self, service: &Service) -> Result<(), Error> {
        self.remove_service(&service.name).await?;
        let plan = self.service_plan(service);
        let engine = &self.0.engine;
        let started = match engine.create(&plan).await {
            Ok(id) => engine.start(&id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            if let Err(left) = self.remove_service(&service.name).await {
                tracing::warn!(service = service.name, error = %left, "a service that did not start is left behind");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Ends a service and removes its container. One that does not exist is fine.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn remove_service(&self, name: &str) -> Result<(), Error> {
        self.0.engine.remove(&self.service_container(name)).await
    }

    /// The last lines that a service has written.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn service_output(&self, name: &str, lines: u32) -> Result<String, Error> {
        self.0.engine.last_output(&self.service_container(name), lines).await
    }

    /// All containers of the engine, whoever made them, running or not.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn all_containers(&self) -> Result<Vec<Listed>, Error> {
        self.0.engine.containers().await
    }

    fn service_container(&self, name: &str) -> String {
        plan::container_name(&self.0.owner, &format!("service-{name}"))
    }

    fn service_plan(&self, service: &Service) -> ContainerPlan {
        let limit_of = |resource| {
            let limit = getrlimit(resource);
            (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
        };
        let (_, open_files) = limit_of(Resource::Nofile);
        let (soft, hard) = limit_of(Resource::Nproc);
        let binds = service.folders.iter().map(|(source, target)| Bind {
            source: source.clone(),
            target: target.clone(),
            read_only: false,
        });
        let mut labels: BTreeMap<String, String> =
            [(LABEL_SERVICE, &self.0.owner), (LABEL_MADE_FROM, &service.made_from)]
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .into();
        labels.insert("dev.windlass.service-name".to_owned(), service.name.clone());
        ContainerPlan {
            name: self.service_container(&service.name),
            image: service.image.clone(),
            entrypoint: None,
            command: service.args.clone(),
            env: service.env.clone(),
            cwd: "/".to_owned(),
            // Without capabilities root is only the owner of the folders that it is given; devices are often its alone.
            user: (0, 0),
            users: Users::Engine,
            hostname: String::new(),
            binds: binds.collect(),
            scratch: ["/tmp", "/run", "/var/tmp"].map(|path| (path.to_owned(), SCRATCH)).into(),
            read_only_root: true,
            network: PlannedNetwork::Host,
            cpu_millis: service.cpu_millis.filter(|_| self.info().can("cpu")),
            cpu_shares: None,
            memory_bytes: service.memory_bytes.filter(|_| self.info().can("memory")),
            pids: None,
            open_files: (open_files, open_files),
            processes: (soft.min(most_processes()), hard.min(most_processes())),
            oom_score_adj: OOM_SCORE_ADJ,
            gpus: if service.gpus == ServiceGpus::Nvidia { ALL_GPUS } else { 0 },
            devices: match service.gpus {
                ServiceGpus::None | ServiceGpus::Nvidia => Vec::new(),
                ServiceGpus::Amd => ["/dev/kfd", "/dev/dri"].map(str::to_owned).into(),
            },
            kept_output: KEPT_OUTPUT,
            labels,
        }
    }
}
