//! The driver of a container engine.
//!
//! ```text
//!  prepare ─► units/<id>/plan.json        start ─► supervisor (a process of its own) ─► engine, output, exit.json
//!  wait / inventory / signal / output read and write the unit's folder only, so they work after a restart too
//! ```
//!
//! State folder: `owner` · `seccomp.json` · `holder` · `units/<id>/`. The files of a unit's folder are those of a native one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncBufReadExt;
use windlass_launcher::deadline::wall_ms;
use windlass_launcher::exit::{EndReason, Exit, KillProof, Usage};
use windlass_launcher::record::{self, Reply, StopRequest};

use super::host::{most_processes, mount_points, owner};
use super::images::{Image, ImageRequest};
use super::supervisor::{ARGUMENT, ContainerRecord, Disk, Launch};
use super::{Engine, EngineInfo, EngineKind, holder, images, plan};
use crate::driver::{Driver, OutputReader, Prepared, Stop, StopReason, Unenforced, UnitPhase, UnitState};
use crate::error::{Error, ImageProblem};
use crate::identity::Identity;
use crate::native::burial::{end_init, kept_output, pidfd_of};
use crate::native::is_locked;
use crate::native::watch::{self, Watcher};
use crate::output::SpoolReader;
use crate::seccomp;
use crate::spec::{Container, Limit, LimitName, LimitSource, Network, UnitId, UnitSpec};
use crate::workspace::DiskMeans;

/// Prefix of folders that are being removed; no unit id starts with a dot.
const GONE: &str = ".gone-";
/// How long an engine may take for what is cleaned up on the way.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stop request waits for a supervisor that was started a moment ago.
const CONTROL_BOUND: Duration = Duration::from_secs(5);

/// Which engine, and where the driver works.
#[derive(Debug, Clone)]
pub struct ContainersConfig {
    /// The engine.
    pub kind: EngineKind,
    /// Its socket.
    pub socket: PathBuf,
    /// Folder for everything that must survive a restart, for this engine alone. Made with mode 0711 if it is missing.
    pub state_dir: PathBuf,
    /// The program to start as supervisor. Its `main` begins with [`crate::run_if_requested`].
    pub launcher: PathBuf,
}

/// What `plan.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Planned {
    spec: UnitSpec,
    prepared: Prepared,
    container: Launch,
}

/// The driver of a container engine. Cheap to clone.
#[derive(Clone)]
pub struct Containers(pub(super) Arc<Inner>);

impl std::fmt::Debug for Containers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Containers").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// The drivers of all container engines of a host. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Engines(Arc<Vec<Containers>>);

impl Engines {
    /// These. There is at most one driver for an engine.
    #[must_use]
    pub fn new(engines: Vec<Containers>) -> Self {
        Self(Arc::new(engines))
    }

    /// The driver of an engine.
    #[must_use]
    pub fn get(&self, kind: EngineKind) -> Option<&Containers> {
        self.0.iter().find(|engine| engine.kind() == kind)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Containers> {
        self.0.iter()
    }
}

pub(super) struct Inner {
    pub(super) config: ContainersConfig,
    info: EngineInfo,
    units: PathBuf,
    profile: PathBuf,
    holder: PathBuf,
    /// The value of [`super::LABEL_OWNER`].
    pub(super) owner: String,
    pub(super) engine: Arc<dyn Engine>,
    watcher: Watcher,
}

/// Where a unit is, as its folder tells.
enum Phase {
    Prepared,
    Running,
    Ended(Box<Exit>),
    /// It was started, its supervisor is gone and has left no exit.
    Lost,
}

impl Containers {
    /// Takes the state folder. `info` is what the engine said of itself.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::EngineUnreachable`].
    pub fn open(config: ContainersConfig, info: EngineInfo) -> Result<Self, Error> {
        let state = &config.state_dir;
        let units = state.join("units");
        for (dir, mode) in [(state, 0o711), (&units, 0o700)] {
            fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(Error::io("create", dir))?;
        }
        let profile = state.join("seccomp.json");
        fs::write(&profile, seccomp::oci_profile()).map_err(Error::io("write", &profile))?;
        let holder = holder::install(state).map_err(Error::io("write", state.join("holder")))?;
        let owner = owner(state)?;
        let engine = super::open(config.kind, &config.socket, &profile)?;
        let watcher = Watcher::start();
        Ok(Self(Arc::new(Inner { config, info, units, profile, holder, owner, engine, watcher })))
    }

    /// The engine.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        self.0.config.kind
    }

    /// What it said of itself.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.0.info
    }

    /// Sees to it that an image is there, and tells how fetching it goes. Cancel-safe: what was fetched by then stays with the
    /// engine.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn ensure_image(
        &self,
        request: &ImageRequest,
        progress: &mut (dyn FnMut(String) + Send),
    ) -> Result<Image, Error> {
        images::ensure(&*self.0.engine, request, progress).await
    }

    /// Whether this driver knows a unit.
    pub(crate) fn has(&self, id: &UnitId) -> bool {
        self.0.dir(id).exists()
    }
}

impl Inner {
    fn dir(&self, id: &UnitId) -> PathBuf {
        self.units.join(id.as_str())
    }

    /// Where a unit is.
    fn phase(&self, id: &UnitId) -> Result<Phase, Error> {
        let dir = self.dir(id);
        let exit = || record::read::<Exit>(&dir.join(record::EXIT)).unwrap_or(None).map(Box::new);
        if let Some(exit) = exit() {
            return Ok(Phase::Ended(exit));
        }
        let supervisor = dir.join(record::SUPERVISOR);
        match is_locked(&supervisor) {
            Ok(true) => Ok(Phase::Running),
            // It may have published its exit between the two looks.
            Ok(false) => Ok(exit().map_or(Phase::Lost, Phase::Ended)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if dir.join(record::PLAN).exists() {
                    Ok(Phase::Prepared)
                } else {
                    Err(Error::NotFound { id: id.clone() })
                }
            }
            Err(error) => Err(Error::io("lock", supervisor)(error)),
        }
    }

    fn check(&self, spec: &UnitSpec) -> Result<Container, Error> {
        spec.validate()?;
        let Some(container) = spec.container.clone().filter(|container| container.engine == self.config.kind)
        else {
            let problem = format!("is not for {}", self.config.kind);
            return Err(Error::InvalidSpec { field: "container", problem });
        };
        let caller = Identity::caller();
        let problem = if caller.uid == 0 && (spec.identity.uid == 0 || spec.identity.gid == 0) {
            Some("must be neither root nor of the root group; take one from the configured range")
        } else if caller.uid != 0 && spec.identity != caller {
            Some("must be the caller's own, for the caller is not root")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Error::InvalidSpec { field: "identity", problem: problem.to_owned() });
        }
        if !spec.workspace.is_dir() {
            let problem = format!("{} is not a folder", spec.workspace.display());
            return Err(Error::InvalidSpec { field: "workspace", problem });
        }
        if spec.network == Network::Restricted && !cfg!(target_arch = "x86_64") {
            return Err(Error::Unsupported {
                feature: format!("network Restricted with {}", self.config.kind),
                needed: "a node of architecture amd64, or the runtime `native`".to_owned(),
            });
        }
        crate::lease::Lease::open(&spec.lease_file)?.read()?;
        Ok(container)
    }

    /// Which limits are not enforced; refuses those that must be. Takes away from the unit what the engine would refuse.
    fn settle(&self, spec: &mut UnitSpec, container: &Container) -> Result<Vec<Unenforced>, Error> {
        let kind = self.config.kind;
        let accepted = spec.limits.accept_unenforced.clone();
        let mut unenforced: Vec<Unenforced> = Vec::new();
        let mut lacks = |name: LimitName, limit: &mut Option<Limit>, reason: &str, fix: &str| {
            let Some(asked) = limit.take() else { return Ok(()) };
            if asked.source == LimitSource::Named && !accepted.contains(&name) {
                let fix = format!("{fix}, or accept it with `unenforced: [{name}]`");
                return Err(Error::Unenforceable { limit: name, reason: reason.to_owned(), fix });
            }
            let told = Unenforced { limit: name, reason: reason.to_owned() };
            if !unenforced.contains(&told) {
                unenforced.push(told);
            }
            Ok(())
        };
        let without = |controller: &str| {
            format!("{kind} works without root here and has no cgroup controller `{controller}`")
        };
        let fix = "delegate it to the user (cgroup version 2), or use an engine of root";
        let limits = &mut spec.limits;
        if !self.info.can("cpu") {
            lacks(LimitName::Cpu, &mut limits.cpu_millis, &without("cpu"), fix)?;
            lacks(LimitName::Cpu, &mut limits.cpu_weight, &without("cpu"), fix)?;
        }
        if !self.info.can("memory") {
            lacks(LimitName::Memory, &mut limits.memory_bytes, &without("memory"), fix)?;
        }
        let no_io = format!("{kind} limits no bytes a second of the workspace's disk");
        lacks(LimitName::Io, &mut limits.io_read_bps, &no_io, "use the runtime `native`")?;
        lacks(LimitName::Io, &mut limits.io_write_bps, &no_io, "use the runtime `native`")?;
        if !container.read_only_root {
            let reason = "what is written to the container's root is not in the workspace";
            let mut disk = limits.disk_bytes;
            lacks(LimitName::Disk, &mut disk, reason, "leave out `readOnlyRoot: false`")?;
        }
        Ok(unenforced)
    }

    async fn prepare(&self, unit: &UnitSpec) -> Result<Prepared, Error> {
        let container = self.check(unit)?;
        let dir = self.dir(&unit.id);
        let plan_path = dir.join(record::PLAN);
        match record::read::<Planned>(&plan_path) {
            Ok(Some(planned)) if planned.spec == *unit => return Ok(planned.prepared),
            Ok(Some(_)) => return Err(Error::Exists { id: unit.id.clone() }),
            Ok(None) => {}
            Err(error) => return Err(Error::Corrupt { path: plan_path, problem: error.to_string() }),
        }
        let image = self.engine.image(&container.image).await?;
        let image = image.ok_or_else(|| Error::Image {
            reference: container.reference.clone(),
            problem: ImageProblem::NotFound,
            message: "was removed from the node after it was found there".to_owned(),
        })?;
        let mut spec = unit.clone();
        let unenforced = self.settle(&mut spec, &container)?;
        let limit_of = |resource| {
            let limit = getrlimit(resource);
            (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
        };
        let by_cgroup = self.info.can("pids");
        let tasks = spec.limits.pids.take_if(|_| !by_cgroup).map(|limit| (limit.value, limit.value));
        let host = plan::Host {
            owner: self.owner.clone(),
            rootless: self.info.rootless,
            open_files: limit_of(Resource::Nofile).1,
            processes: tasks.unwrap_or_else(|| {
                let (soft, hard) = limit_of(Resource::Nproc);
                // Podman lowers its own limit to the number of processes that the kernel has, and cannot give more away.
                (soft.min(most_processes()), hard.min(most_processes()))
            }),
            image_env: image.env,
        };
        let planned = plan::plan(&spec, &container, &host)?;
        let disk = spec.limits.disk_bytes.map(|limit| {
            let means = DiskMeans::of(&spec.workspace, limit.value);
            let by_file_system = match means {
                DiskMeans::ProjectQuota | DiskMeans::Image => true,
                DiskMeans::Looking => false,
            };
            (means, Disk { path: spec.workspace.clone(), bytes: limit.value, by_file_system })
        });
        let isolation = self.isolation(&spec, tasks.is_some(), disk.as_ref().map(|(means, _)| *means));
        mount_points(&spec)?;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let launch = Launch {
            engine: self.config.kind,
            socket: self.config.socket.clone(),
            profile: self.profile.clone(),
            container: planned,
            reference: container.reference,
            holder: (spec.network == Network::Restricted).then(|| self.holder.clone()),
            environment_file: spec.handed.environment.clone(),
            lease: spec.lease_file.clone(),
            timeout_ms: spec.timeout.map(millis),
            grace_ms: millis(spec.grace),
            output_cap: spec.output_cap,
            disk: disk.map(|(_, disk)| disk),
        };
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            // Left by a crash in the middle of this very function: without a plan it is nothing yet.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", dir)(error)),
        }
        let planned =
            Planned { spec: unit.clone(), prepared: Prepared { unenforced, isolation }, container: launch };
        if let Err(error) = record::publish(&dir, record::PLAN, &planned) {
            // The first error is the one to tell.
            if let Err(left) = fs::remove_dir_all(&dir) {
                tracing::warn!(unit.id = %unit.id, error = %left, "unit left behind");
            }
            return Err(Error::io("write", plan_path)(error));
        }
        Ok(planned.prepared)
    }

    /// What isolates a unit, in words.
    fn isolation(&self, spec: &UnitSpec, tasks: bool, disk: Option<DiskMeans>) -> Vec<String> {
        let limits = &spec.limits;
        let cgroup = &self.info.cgroup;
        let rootless = if self.info.rootless { " without root" } else { "" };
        let words = [
            (true, format!("{} container{rootless}", self.config.kind)),
            (spec.network != Network::Open, "net namespace".to_owned()),
            (spec.network == Network::Restricted, "egress proxy".to_owned()),
            (true, "no capabilities".to_owned()),
            (true, "no_new_privs".to_owned()),
            (true, "seccomp".to_owned()),
            (limits.cpu_millis.or(limits.cpu_weight).is_some(), format!("cpu cgroup {cgroup}")),
            (limits.memory_bytes.is_some(), format!("memory cgroup {cgroup}")),
            (limits.pids.is_some(), format!("pids cgroup {cgroup}")),
            (tasks, "pids rlimit".to_owned()),
        ];
        let disk = disk.map(|means| format!("disk by {means}"));
        words.into_iter().filter_map(|(present, word)| present.then_some(word)).chain(disk).collect()
    }

    /// Starts the supervisor; gives its answer, or nothing if it died without one.
    async fn launch(&self, id: &UnitId) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Launcher { operation: "start a supervisor", source };
        // It gets none of the agent's environment.
        let mut child = tokio::process::Command::new(&self.config.launcher)
            .arg(ARGUMENT)
            .arg(self.dir(id))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut answer = Vec::new();
        let pipe = child.stdout.take();
        // It lives longer than this call; somebody has to take note of its end.
        tokio::spawn(async move {
            if let Err(error) = child.wait().await {
                tracing::debug!(%error, "the end of a supervisor was not seen");
            }
        });
        if let Some(pipe) = pipe {
            tokio::io::BufReader::new(pipe).read_until(b'\n', &mut answer).await.map_err(failed)?;
        }
        Ok(answer)
    }

    /// Ends what a supervisor that died without a word has left, and writes the exit that it could not write.
    async fn bury(&self, id: &UnitId) -> Result<Exit, Error> {
        let dir = self.dir(id);
        let path = dir.join(record::SUPERVISOR);
        let lock = File::open(&path).map_err(Error::io("open", &path))?;
        // One at a time: whoever comes second finds the exit written.
        let lock = tokio::task::spawn_blocking(move || {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map(|()| lock)
        });
        let lock = lock.await.map_err(|error| Error::io("lock", &path)(error.into()))?;
        let _lock = lock.map_err(|errno| Error::io("lock", &path)(errno.into()))?;
        if let Ok(Some(exit)) = record::read::<Exit>(&dir.join(record::EXIT)) {
            return Ok(exit);
        }
        let known = record::read::<ContainerRecord>(&path).unwrap_or(None);
        let this_boot = record::boot_id().map_err(Error::io("read", "/proc/sys/kernel/random/boot_id"))?;
        let init = known.filter(|known| known.boot_id == this_boot).and_then(|known| known.init);
        let started = init.is_some();
        let mut proof = KillProof::default();
        let mut teardown = Vec::new();
        proof.namespace_empty = match init {
            Some(init) => end_init(init, &mut proof).map_err(Error::io("end the container of", &dir))?,
            None => true,
        };
        self.remove_containers(id, &mut teardown).await;
        proof.confirmed_at_ms = wall_ms();
        let (stdout, stderr) = kept_output(&fs::read(dir.join(record::OUTPUT)).unwrap_or_default());
        let exit = Exit {
            reason: EndReason::SupervisorLost,
            code: None,
            signal: None,
            message: Some(
                "the supervisor was killed or the host was restarted; the container was ended".to_owned(),
            ),
            program_started: started,
            started_at_ms: None,
            ended_at_ms: proof.confirmed_at_ms,
            usage: Usage::default(),
            stdout,
            stderr,
            proof: Some(proof),
            teardown,
        };
        record::publish(&dir, record::EXIT, &exit).map_err(Error::io("write", dir.join(record::EXIT)))?;
        Ok(exit)
    }

    /// Removes the containers of a unit by their names.
    async fn remove_containers(&self, id: &UnitId, teardown: &mut Vec<String>) {
        let name = plan::container_name(&self.owner, id.as_str());
        for name in [name.clone(), format!("{name}-net")] {
            match tokio::time::timeout(PATIENCE, self.engine.remove(&name)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => teardown.push(format!("remove container {name}: {error}")),
                Err(_) => teardown.push(format!("remove container {name}: the engine does not answer")),
            }
        }
    }

    /// Removes containers of this state folder that no running unit has.
    async fn sweep(&self, running: &[UnitId]) {
        let found = match tokio::time::timeout(PATIENCE, self.engine.owned(&self.owner)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(engine = %self.config.kind, %error, "cannot look for containers that were left behind");
                return;
            }
            Err(_) => {
                tracing::warn!(engine = %self.config.kind, "cannot look for containers that were left behind: no answer");
                return;
            }
        };
        for container in found {
            let runs = |unit: &String| running.iter().any(|id| id.as_str() == unit);
            if container.unit.as_ref().is_some_and(runs) {
                continue;
            }
            match tokio::time::timeout(PATIENCE, self.engine.remove(&container.id)).await {
                Ok(Ok(())) => {
                    tracing::info!(container = container.id, "removed a container that was left behind");
                }
                Ok(Err(error)) => {
                    tracing::warn!(container = container.id, %error, "cannot remove a container that was left behind");
                }
                Err(_) => {
                    tracing::warn!(
                        container = container.id,
                        "cannot remove a container that was left behind"
                    );
                }
            }
        }
    }

    /// Removes a unit's folder. It is first renamed, so that a crash leaves no half unit.
    fn remove(&self, id: &UnitId) -> Result<(), Error> {
        let dir = self.dir(id);
        let gone = self.units.join(format!("{GONE}{id}"));
        match fs::rename(&dir, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("remove", dir)(error)),
        }
        fs::remove_dir_all(&gone).map_err(Error::io("remove", gone))
    }

    /// Waits until the supervisor of a unit is gone. Cancel-safe.
    async fn supervisor_ended(&self, id: &UnitId) -> Result<(), Error> {
        let path = self.dir(id).join(record::SUPERVISOR);
        let known = record::read::<ContainerRecord>(&path);
        let handle = match known {
            Ok(Some(known)) => {
                pidfd_of(known.supervisor).map_err(Error::io("watch the supervisor of", &path))?
            }
            // It is written at this moment.
            Ok(None) | Err(_) => None,
        };
        match handle {
            None => tokio::time::sleep(Duration::from_millis(5)).await,
            Some(handle) => {
                let handle = watch::readiness(handle).map_err(Error::io("watch the supervisor of", &path))?;
                handle.readable().await.map_err(Error::io("watch the supervisor of", &path))?.retain_ready();
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Driver for Containers {
    async fn prepare(&self, unit: &UnitSpec) -> Result<Prepared, Error> {
        self.0.prepare(unit).await
    }

    async fn start(&self, id: &UnitId) -> Result<(), Error> {
        match self.0.phase(id)? {
            Phase::Prepared => {}
            Phase::Running => return Ok(()),
            Phase::Ended(exit) => return setup_result(id, *exit),
            Phase::Lost => return Err(Error::SupervisorLost { id: id.clone() }),
        }
        let answer = self.0.launch(id).await?;
        if answer.is_empty() {
            return Err(Error::SupervisorLost { id: id.clone() });
        }
        let reply = serde_json::from_slice(&answer)
            .map_err(|error| Error::Launcher { operation: "answer", source: error.into() })?;
        match reply {
            Reply::Started | Reply::Ended => Ok(()),
            Reply::AlreadyStarted => match self.0.phase(id)? {
                Phase::Ended(exit) => setup_result(id, *exit),
                Phase::Prepared | Phase::Running | Phase::Lost => Ok(()),
            },
            Reply::Failed { message } => Err(Error::Setup { id: id.clone(), message }),
        }
    }

    async fn signal(&self, id: &UnitId, stop: Stop) -> Result<(), Error> {
        let reason = match stop.reason {
            StopReason::Cancelled => EndReason::Cancelled,
            StopReason::Timeout => EndReason::Timeout,
            StopReason::LeaseExpired => EndReason::LeaseExpired,
        };
        let grace_ms = u64::try_from(stop.grace.as_millis()).unwrap_or(u64::MAX);
        let mut line = serde_json::to_vec(&StopRequest { grace_ms, reason })
            .expect("a stop request has no part that JSON lacks");
        line.push(b'\n');
        let path = self.0.dir(id).join(record::CONTROL);
        let bound = tokio::time::Instant::now() + CONTROL_BOUND;
        loop {
            // Written whole: it is shorter than PIPE_BUF. NONBLOCK: without a reader the opening fails at once.
            let opened = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let waits = match opened {
                Ok(mut control) => return control.write_all(&line).map_err(Error::io("write", path)),
                Err(error) => {
                    let expected =
                        error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENXIO);
                    if !expected {
                        return Err(Error::io("open", path)(error));
                    }
                    error
                }
            };
            match self.0.phase(id)? {
                Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
                Phase::Ended(_) | Phase::Lost => return Ok(()),
                // Its supervisor is about to open the FIFO, or about to end.
                Phase::Running if tokio::time::Instant::now() < bound => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Phase::Running => return Err(Error::io("open", path)(waits)),
            }
        }
    }

    async fn wait(&self, id: &UnitId) -> Result<Exit, Error> {
        let mut told = self.0.watcher.subscribe(&self.0.dir(id));
        loop {
            match self.0.phase(id)? {
                Phase::Ended(exit) => return Ok(*exit),
                Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
                Phase::Lost => return self.0.bury(id).await,
                // Both are cancel-safe.
                Phase::Running => tokio::select! {
                    () = crate::native::changed(&mut told) => {}
                    ended = self.0.supervisor_ended(id) => ended?,
                },
            }
        }
    }

    async fn inventory(&self) -> Result<Vec<UnitState>, Error> {
        let (mut units, mut running) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.0.units).map_err(Error::io("list", &self.0.units))? {
            let entry = entry.map_err(Error::io("list", &self.0.units))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(GONE) {
                fs::remove_dir_all(entry.path()).map_err(Error::io("remove", entry.path()))?;
                continue;
            }
            let id = UnitId::new(name)?;
            let mut notes = Vec::new();
            let phase = match self.0.phase(&id) {
                Ok(Phase::Prepared) => UnitPhase::Prepared,
                Ok(Phase::Running) => {
                    running.push(id.clone());
                    UnitPhase::Running
                }
                Ok(Phase::Ended(exit)) => UnitPhase::Ended(exit),
                Ok(Phase::Lost) => {
                    notes.push("supervisor was gone; what it left was ended".to_owned());
                    UnitPhase::Ended(Box::new(self.0.bury(&id).await?))
                }
                // A crash in the middle of the preparation: nothing was promised, nothing has run.
                Err(Error::NotFound { .. }) => {
                    self.0.remove(&id)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            units.push(UnitState { id, phase, notes });
        }
        self.0.sweep(&running).await;
        units.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(units)
    }

    async fn cleanup(&self, id: &UnitId) -> Result<(), Error> {
        let exit = match self.0.phase(id) {
            Ok(Phase::Running) => return Err(Error::StillRunning { id: id.clone() }),
            Ok(Phase::Lost) => Some(self.0.bury(id).await?),
            Ok(Phase::Ended(exit)) => Some(*exit),
            Ok(Phase::Prepared) | Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if exit.is_some_and(|exit| !exit.teardown.is_empty()) {
            // What could not be removed then may be removed now; what cannot is looked for at the next start.
            let mut left = Vec::new();
            self.0.remove_containers(id, &mut left).await;
            for trouble in left {
                tracing::warn!(unit.id = %id, trouble, "a container stays until the next start");
            }
        }
        self.0.remove(id)
    }

    async fn egress(&self, id: &UnitId) -> Result<Option<std::net::TcpListener>, Error> {
        match self.0.phase(id)? {
            Phase::Running => {}
            Phase::Prepared | Phase::Ended(_) | Phase::Lost => return Ok(None),
        }
        let dir = self.0.dir(id);
        let asked = dir.clone();
        let listener = tokio::task::spawn_blocking(move || windlass_launcher::listener(&asked)).await;
        let listener = listener.map_err(|error| Error::io("ask the supervisor in", &dir)(error.into()))?;
        let listener = listener.map_err(Error::io("ask the supervisor in", dir))?;
        Ok(listener.map(std::net::TcpListener::from))
    }

    fn output(&self, id: &UnitId, cursor: u64) -> OutputReader {
        Box::new(SpoolReader::new(self.0.dir(id), cursor, self.0.watcher.clone()))
    }
}

/// What a start of a unit that has ended gives.
fn setup_result(id: &UnitId, exit: Exit) -> Result<(), Error> {
    match exit.reason {
        EndReason::SetupFailed | EndReason::EngineLost if !exit.program_started => {
            Err(Error::Setup { id: id.clone(), message: exit.message.unwrap_or_default() })
        }
        _ => Ok(()),
    }
}
