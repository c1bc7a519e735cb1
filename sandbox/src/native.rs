//! The native driver: Linux namespaces, without any container engine.
//!
//! ```text
//!  prepare ─► units/<id>/plan.json, cgroup        start ─► Spawner ─► supervisor ─► output, exit.json
//!  wait / inventory / signal / output read and write the unit's folder only, so they work after a restart too
//! ```
//!
//! State folder: `lock` · `units/<id>/` (see [`units`]) · `output/<id>` · `identities/` · `images/`. One process at a time
//! uses it.

pub(crate) mod burial;
mod launcher;
pub(crate) mod units;
pub(crate) mod watch;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use windlass_launcher::plan::LaunchPlan;
use windlass_launcher::probe::{Feature, Probes};
use windlass_launcher::record::{self, Reply, StopRequest, SupervisorRecord};

use crate::cgroup::{CgroupHost, Controller, Wanted};
use crate::driver::{
    Driver, EndReason, Exit, OutputReader, Prepared, Stop, StopReason, Unenforced, UnitPhase, UnitState,
};
use crate::error::Error;
use crate::features::Features;
use crate::identity::{DEFAULT_UIDS, Identities, Identity};
use crate::image::{ImageLimits, Images};
use crate::output::SpoolReader;
use crate::policy::{self, Enforcement, Host, Place};
use crate::seccomp;
use crate::spec::{Limit, LimitName, LimitSource, Network, UnitId, UnitSpec};
use crate::workspace::DiskMeans;
use launcher::{Launcher, keep_spare};
use units::Units;
pub(crate) use watch::{Subscription, Watcher};

/// How long a stop request waits for a supervisor that was started a moment ago.
const CONTROL_BOUND: Duration = Duration::from_secs(5);

/// The usual [`SandboxConfig::spare_life`]: single files of the host are replaced seldom, and what is mounted below them stays busy for
/// no longer than this.
const SPARE_LIFE: Duration = Duration::from_secs(60);

/// Where and as whom the driver works.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Folder for everything that must survive a restart. Made with mode 0711 if it is missing.
    pub state_dir: PathBuf,
    /// A folder in memory, for what is of no use once the host was restarted; the state folder if `None`. Made with mode 0711
    /// if it is missing. Whoever runs units must not let it be emptied before they have ended.
    pub runtime_dir: Option<PathBuf>,
    /// The cgroup below which units get theirs; this process's own if `None`. It must allow child cgroups: a service of
    /// systemd sets `Delegate=yes` and `DelegateSubgroup=agent`.
    pub cgroup_parent: Option<String>,
    /// Host uids (and gids) for attempts, where the caller is root.
    pub uid_range: std::ops::RangeInclusive<u32>,
    /// The program to start as launcher. Its `main` begins with `windlass_launcher::run_if_requested`.
    pub launcher: PathBuf,
    /// How large images may be, and how many are kept.
    pub images: ImageLimits,
    /// How long a spare, and what all sandboxes begin with, shows the host's system as it was.
    pub spare_life: Duration,
}

impl SandboxConfig {
    /// The configuration for a state folder: memory where the caller is root and the host has it in /run or /dev/shm, own
    /// cgroup, default uids, this very program as launcher.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            runtime_dir: units::memory(),
            cgroup_parent: None,
            uid_range: DEFAULT_UIDS,
            launcher: PathBuf::from("/proc/self/exe"),
            images: ImageLimits::default(),
            spare_life: SPARE_LIFE,
        }
    }
}

/// What `plan.json` holds, as far as the driver reads it.
#[derive(Debug, Deserialize)]
struct Planned {
    spec: UnitSpec,
    prepared: Prepared,
}

/// The whole of it.
#[derive(Debug, Serialize)]
struct Planning<'a> {
    spec: &'a UnitSpec,
    prepared: &'a Prepared,
    launch: LaunchPlan<&'a RawValue>,
}

/// The native driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Native(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: SandboxConfig,
    units: Units,
    /// Held for the life of the driver.
    _lock: File,
    /// Guards the handle on the spawner, which is replaced when the spawner has died, and what is known of its spare.
    launcher: Mutex<Launcher>,
    /// Wakes the task that makes spares.
    spare_wanted: Arc<Notify>,
    /// Guards which spare each prepared unit can be launched on.
    prepared_for: Mutex<HashMap<UnitId, u64>>,
    probes: Probes,
    cgroups: CgroupHost,
    host: Host,
    identities: Identities,
    images: Images,
    watcher: Watcher,
}

/// How the limits of a unit are enforced.
struct Settled {
    /// By cgroups.
    wanted: Wanted,
    /// The number of tasks, where that is by rlimit.
    tasks: Option<u64>,
    /// What keeps the disk limit.
    disk: Option<DiskMeans>,
    /// What is not enforced.
    unenforced: Vec<Unenforced>,
}

impl Native {
    /// Takes the state folder, finds out what the host allows by trying it, and starts the spawner.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process has the state folder, [`Error::Launcher`], [`Error::Io`]. That the host lacks
    /// something is no error here: [`Driver::prepare`] refuses what cannot be done.
    pub async fn open(config: SandboxConfig) -> Result<Self, Error> {
        let open = move || {
            let inner = Inner::open(config)?;
            inner.ensure_spare(false);
            Ok(Arc::new(inner))
        };
        let inner = blocking(open).await?;
        tokio::spawn(keep_spare(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The host users for attempts.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.0.identities
    }

    /// The images that units can have as their system.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// What this driver can do on this host.
    #[must_use]
    pub fn features(&self) -> Features {
        Features::of(&self.0.probes, &self.0.cgroups, &self.0.host.system)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &SandboxConfig {
        &self.0.config
    }

    /// The answers of the probes.
    pub(crate) fn probes(&self) -> &Probes {
        &self.0.probes
    }

    /// What can be done with cgroups.
    pub(crate) fn cgroups(&self) -> &CgroupHost {
        &self.0.cgroups
    }

    /// Pid of the launcher process, for diagnosis.
    #[must_use]
    pub fn spawner_pid(&self) -> u32 {
        self.0.launcher().spawner.pid()
    }

    /// Runs a blocking piece of the driver.
    async fn run<T: Send + 'static>(
        &self,
        body: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || body(&inner)).await
    }
}

/// Runs something that blocks on a thread made for that.
async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(body).await {
        Ok(result) => result,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

#[async_trait]
impl Driver for Native {
    async fn prepare(&self, unit: &UnitSpec) -> Result<Prepared, Error> {
        let spec = unit.clone();
        self.run(move |inner| inner.prepare(spec)).await
    }

    async fn start(&self, id: &UnitId) -> Result<(), Error> {
        match self.0.phase(id)? {
            Phase::Prepared => {}
            Phase::Running => return Ok(()),
            Phase::Ended(exit) => return setup_result(id, *exit),
            Phase::Lost => return Err(Error::SupervisorLost { id: id.clone() }),
        }
        let mut answer = Vec::new();
        // A spare or a spawner that died before the unit was claimed leaves it untouched, so one more try is safe; the supervisor's
        // claim on the unit makes sure that no two of them run it. The first try can be on the spare, and the last one has a new
        // spawner: a dying one may still take requests.
        for renew in [false, false, true] {
            let pipe = self.0.launch(id, renew)?;
            let launcher = |source| Error::Launcher { operation: "answer", source };
            let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe).map_err(launcher)?;
            pipe.read_to_end(&mut answer).await.map_err(launcher)?;
            if !answer.is_empty() || !matches!(self.0.phase(id)?, Phase::Prepared) {
                break;
            }
        }
        if answer.is_empty() {
            return Err(Error::SupervisorLost { id: id.clone() });
        }
        let reply = serde_json::from_slice(&answer)
            .map_err(|error| Error::Launcher { operation: "answer", source: error.into() })?;
        if self.0.launcher().waiting.is_none() {
            self.0.spare_wanted.notify_one();
        }
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
            let flags = libc::O_NONBLOCK;
            match OpenOptions::new().write(true).custom_flags(flags).open(&path) {
                Ok(mut control) => return control.write_all(&line).map_err(Error::io("write", path)),
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => match self.0.phase(id)? {
                    Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
                    Phase::Ended(_) | Phase::Lost => return Ok(()),
                    // Its supervisor has not made the FIFO yet.
                    Phase::Running if tokio::time::Instant::now() < bound => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Phase::Running => return Err(Error::io("open", path)(error)),
                },
                Err(error) => return Err(Error::io("open", path)(error)),
            }
        }
    }

    async fn wait(&self, id: &UnitId) -> Result<Exit, Error> {
        // The exit is told before the supervisor has taken the unit's mounts apart.
        let mut told = self.0.watcher.subscribe(&self.0.dir(id));
        loop {
            match self.0.phase(id)? {
                Phase::Ended(exit) => return Ok(*exit),
                Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
                Phase::Lost => {
                    let lost = id.clone();
                    return self.run(move |inner| inner.bury(&lost)).await;
                }
                Phase::Running => {
                    let exit = self.0.dir(id).join(record::EXIT);
                    let mut ended = std::pin::pin!(self.0.supervisor_ended(id));
                    // Both are cancel-safe.
                    tokio::select! {
                        () = async {
                            while !exit.exists() {
                                changed(&mut told).await;
                            }
                        } => {}
                        ended = &mut ended => ended?,
                    }
                }
            }
        }
    }

    async fn inventory(&self) -> Result<Vec<UnitState>, Error> {
        self.run(Inner::inventory).await
    }

    async fn cleanup(&self, id: &UnitId) -> Result<(), Error> {
        let id = id.clone();
        self.run(move |inner| inner.cleanup(&id)).await
    }

    async fn egress(&self, id: &UnitId) -> Result<Option<std::net::TcpListener>, Error> {
        let id = id.clone();
        self.run(move |inner| inner.egress(&id)).await
    }

    fn output(&self, id: &UnitId, cursor: u64) -> OutputReader {
        Box::new(SpoolReader::new(self.0.dir(id), cursor, self.0.watcher.clone()))
    }
}

/// Waits for a change that is told; for ever where nothing is.
pub(crate) async fn changed(told: &mut Option<Subscription>) {
    match told {
        Some(told) => told.changed().await,
        None => std::future::pending().await,
    }
}

/// What a start of a unit that has ended gives.
fn setup_result(id: &UnitId, exit: Exit) -> Result<(), Error> {
    if exit.reason == EndReason::SetupFailed {
        let message = exit.message.unwrap_or_default();
        return Err(Error::Setup { id: id.clone(), message });
    }
    Ok(())
}

/// Where a unit is, as its folder tells.
enum Phase {
    Prepared,
    Running,
    Ended(Box<Exit>),
    /// It was started, its supervisor is gone and has left no exit.
    Lost,
}

/// Whether a process holds the lock on a file.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

impl Inner {
    fn open(config: SandboxConfig) -> Result<Self, Error> {
        let state = &config.state_dir;
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(state);
        made.map_err(Error::io("create", state))?;
        let lock_path = state.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(Error::io("open", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(Error::InUse { path: state.clone() }),
            Err(errno) => return Err(Error::io("lock", lock_path)(errno.into())),
        }
        let units = Units::open(state, config.runtime_dir.as_deref())?;
        let probes = windlass_launcher::probe::probe(&config.launcher)
            .map_err(|source| Error::Launcher { operation: "probe the host", source })?;
        let launcher = Launcher::start(&config)?;
        let denial = match probes.failure(Feature::SeccompNotification) {
            None => seccomp::Denial::HandedOn,
            Some(_) => seccomp::Denial::Killed,
        };
        let host = Host {
            system: discover_system(),
            landlock: probes.landlock,
            cgroup_namespace: probes.failure(Feature::CgroupNamespace).is_none(),
            time_namespace: probes.failure(Feature::TimeNamespace).is_none(),
            resolver: Path::new(policy::RESOLVER).exists(),
            opened_outside: Identity::caller().uid == 0,
            made_outside: Identity::caller().uid == 0 && probes.outside,
            filters: seccomp::filters(denial),
        };
        let cgroups = CgroupHost::discover(config.cgroup_parent.as_deref(), state);
        let identities = Identities::open(state.join("identities"), config.uid_range.clone())?;
        let images = Images::open(state.join("images"), units.root().to_owned(), config.images)?;
        Ok(Self {
            units,
            _lock: lock,
            launcher: Mutex::new(launcher),
            spare_wanted: Arc::default(),
            prepared_for: Mutex::default(),
            probes,
            cgroups,
            host,
            identities,
            images,
            watcher: Watcher::start(),
            config,
        })
    }

    /// A unit's folder.
    fn dir(&self, id: &UnitId) -> PathBuf {
        self.units.dir(id)
    }

    fn prepare(&self, spec: UnitSpec) -> Result<Prepared, Error> {
        spec.validate()?;
        self.check_host(&spec)?;
        let dir = self.dir(&spec.id);
        let plan_path = dir.join(record::PLAN);
        match record::read::<Planned>(&plan_path) {
            Ok(Some(planned)) if planned.spec == spec => return Ok(planned.prepared),
            Ok(Some(_)) => return Err(Error::Exists { id: spec.id }),
            Ok(None) => {}
            Err(error) => return Err(Error::Corrupt { path: plan_path, problem: error.to_string() }),
        }
        let Settled { wanted, tasks, disk, unenforced } = self.settle(&spec)?;
        self.units.create(&spec.id)?;
        let made = self.cgroups.create(&spec.id, wanted).and_then(|cgroups| {
            let launch = policy::plan(&spec, &self.host, Enforcement { cgroups, tasks, disk })?;
            let isolation = self.isolation(&spec, wanted, tasks, disk);
            let prepared = Prepared { unenforced, isolation };
            let text = self.note_spare(&spec.id, &launch);
            let launch = launch.with_base(&*text).0;
            let planning = Planning { spec: &spec, prepared: &prepared, launch };
            record::publish(&dir, record::PLAN, &planning).map_err(Error::io("write", &plan_path))?;
            Ok(prepared)
        });
        if made.is_err() {
            // The first error is the one to tell.
            if let Err(left) = self.remove(&spec.id) {
                tracing::warn!(unit.id = %spec.id, error = %left, "unit left behind");
            }
        }
        made
    }

    /// Checks what no unit can do without.
    fn check_host(&self, spec: &UnitSpec) -> Result<(), Error> {
        for feature in Feature::ALL {
            if is_optional(feature) {
                continue;
            }
            if let Some(error) = self.probes.failure(feature) {
                return Err(Error::Unsupported {
                    feature: format!("{} ({error})", crate::doctor::title(feature)),
                    needed: crate::doctor::fix(feature).to_owned(),
                });
            }
        }
        let caller = Identity::caller();
        let problem = if caller.uid == 0 && spec.identity.uid == 0 {
            Some("must not be root; take one from the configured range")
        } else if caller.uid == 0 && spec.identity.gid == 0 {
            Some("must not have the root group; take one from the configured range")
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
        if let Some(system) = &spec.system
            && let Some(place) = system.scratch.iter().find(|place| !system.image.has_folder(place))
        {
            let problem = format!("{place} is not a folder of the image; name one that it has");
            return Err(Error::InvalidSpec { field: "scratch", problem });
        }
        crate::lease::Lease::open(&spec.lease_file)?.read()?;
        Ok(())
    }

    /// Decides how each limit is enforced.
    fn settle(&self, spec: &UnitSpec) -> Result<Settled, Error> {
        let limits = &spec.limits;
        let mut unenforced = Vec::new();
        let mut decide = |name: LimitName, limit: Option<Limit>| -> Result<Option<u64>, Error> {
            let (Some(limit), Some(controller)) = (limit, Controller::of(name)) else { return Ok(None) };
            let Some(problem) = self.cgroups.problem(controller) else { return Ok(Some(limit.value)) };
            if limit.source == LimitSource::Named && !limits.accept_unenforced.contains(&name) {
                return Err(Error::Unenforceable {
                    limit: name,
                    reason: problem.to_owned(),
                    fix: format!(
                        "{}, or accept it with `unenforced: [{name}]`",
                        crate::doctor::cgroup_fix(controller, problem)
                    ),
                });
            }
            let told = Unenforced { limit: name, reason: problem.to_owned() };
            if !unenforced.contains(&told) {
                unenforced.push(told);
            }
            Ok(None)
        };
        let cpu_millis = decide(LimitName::Cpu, limits.cpu_millis)?;
        let cpu_weight = decide(LimitName::Cpu, limits.cpu_weight)?;
        let io_read_bps = decide(LimitName::Io, limits.io_read_bps)?;
        let io_write_bps = decide(LimitName::Io, limits.io_write_bps)?;
        let memory_bytes = decide(LimitName::Memory, limits.memory_bytes)?;
        // The number of tasks can be enforced without a cgroup: the kernel counts the tasks of a user for each user
        // namespace, and each unit has its own.
        let (pids, tasks) = match self.cgroups.problem(Controller::Pids) {
            None => (limits.pids.map(|limit| limit.value), None),
            Some(_) => (None, limits.pids.map(|limit| limit.value)),
        };
        let wanted = Wanted { cpu_millis, cpu_weight, memory_bytes, pids, io_read_bps, io_write_bps };
        let disk = limits.disk_bytes.map(|limit| DiskMeans::of(&spec.workspace, limit.value));
        Ok(Settled { wanted, tasks, disk, unenforced })
    }

    /// What isolates a unit, in words.
    fn isolation(
        &self,
        spec: &UnitSpec,
        wanted: Wanted,
        tasks: Option<u64>,
        disk: Option<DiskMeans>,
    ) -> Vec<String> {
        let mut words: Vec<String> =
            ["user", "mount", "pid", "ipc", "uts"].map(|name| format!("{name} namespace")).to_vec();
        let version = self.cgroups.version();
        let optional = [
            (spec.network != Network::Open, "net namespace".to_owned()),
            (spec.network == Network::Restricted, "egress proxy".to_owned()),
            (self.host.cgroup_namespace, "cgroup namespace".to_owned()),
            (self.host.time_namespace, "time namespace".to_owned()),
            (spec.system.is_some(), "image as its system".to_owned()),
            (true, "no capabilities".to_owned()),
            (true, "no_new_privs".to_owned()),
            (true, "seccomp".to_owned()),
            (
                self.host.landlock.is_some_and(|abi| abi >= 2),
                format!("landlock {}", self.host.landlock.unwrap_or(0)),
            ),
            (wanted.cpu_millis.or(wanted.cpu_weight).is_some(), format!("cpu cgroup {version}")),
            (wanted.memory_bytes.is_some(), format!("memory cgroup {version}")),
            (wanted.pids.is_some(), format!("pids cgroup {version}")),
            (tasks.is_some(), "pids rlimit".to_owned()),
            (wanted.io_read_bps.or(wanted.io_write_bps).is_some(), format!("io cgroup {version}")),
        ];
        words.extend(optional.into_iter().filter_map(|(present, word)| present.then_some(word)));
        words.extend(disk.map(|means| format!("disk by {means}")));
        words
    }

    /// Where a unit is.
    fn phase(&self, id: &UnitId) -> Result<Phase, Error> {
        let dir = self.dir(id);
        let exit_path = dir.join(record::EXIT);
        let exit = || record::read::<Exit>(&exit_path).map(|exit| exit.map(Box::new));
        // An exit record that cannot be read was cut short by a crash of the host: whatever ran then runs no more.
        if let Some(exit) = exit().unwrap_or(None) {
            return Ok(Phase::Ended(exit));
        }
        let supervisor = dir.join(record::SUPERVISOR);
        match is_locked(&supervisor) {
            Ok(true) => Ok(Phase::Running),
            // It may have published its exit between the two looks.
            Ok(false) => Ok(exit().unwrap_or(None).map_or(Phase::Lost, Phase::Ended)),
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

    /// Waits until the supervisor of a unit is gone. Cancel-safe.
    async fn supervisor_ended(&self, id: &UnitId) -> Result<(), Error> {
        let path = self.dir(id).join(record::SUPERVISOR);
        let Ok(Some(record)) = record::read::<SupervisorRecord>(&path) else {
            // It writes the record a moment after it has taken the lock.
            tokio::time::sleep(Duration::from_millis(2)).await;
            return Ok(());
        };
        match burial::pidfd_of(record.supervisor).map_err(Error::io("watch the supervisor of", &path))? {
            None => {
                // Its lock goes a moment before or after it does.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Some(pidfd) => {
                let pidfd = watch::readiness(pidfd).map_err(Error::io("watch the supervisor of", &path))?;
                pidfd.readable().await.map_err(Error::io("watch the supervisor of", &path))?.retain_ready();
            }
        }
        Ok(())
    }

    fn egress(&self, id: &UnitId) -> Result<Option<std::net::TcpListener>, Error> {
        match self.phase(id)? {
            Phase::Running => {}
            Phase::Prepared | Phase::Ended(_) | Phase::Lost => return Ok(None),
        }
        let dir = self.dir(id);
        let listener = windlass_launcher::listener(&dir).map_err(Error::io("ask the supervisor in", dir))?;
        Ok(listener.map(std::net::TcpListener::from))
    }

    fn inventory(&self) -> Result<Vec<UnitState>, Error> {
        let mut units = Vec::new();
        for id in self.units.list()? {
            let mut notes = Vec::new();
            let phase = match self.phase(&id) {
                Ok(Phase::Prepared) => UnitPhase::Prepared,
                Ok(Phase::Running) => UnitPhase::Running,
                Ok(Phase::Ended(exit)) => UnitPhase::Ended(exit),
                Ok(Phase::Lost) => {
                    notes.push("supervisor was gone; what it left was ended".to_owned());
                    UnitPhase::Ended(Box::new(self.bury(&id)?))
                }
                // A crash in the middle of the preparation: nothing was promised, nothing has run.
                Err(Error::NotFound { .. }) => {
                    self.remove(&id)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            units.push(UnitState { id, phase, notes });
        }
        units.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(units)
    }

    fn cleanup(&self, id: &UnitId) -> Result<(), Error> {
        match self.phase(id) {
            Ok(Phase::Running) => return Err(Error::StillRunning { id: id.clone() }),
            Ok(Phase::Lost) => {
                self.bury(id)?;
            }
            Ok(Phase::Prepared | Phase::Ended(_)) => {}
            // Its records may have been removed while it runs.
            Err(Error::NotFound { .. }) if self.cgroups.exists(id) && !self.empty_cgroups(id) => {
                return Err(Error::StillRunning { id: id.clone() });
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.remove(id)
    }

    /// Removes a unit's cgroups and folder.
    fn remove(&self, id: &UnitId) -> Result<(), Error> {
        self.prepared_for().remove(id);
        self.cgroups.remove(id)?;
        self.units.remove(id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.units.close();
    }
}

/// Whether a unit can do without a feature.
pub(crate) fn is_optional(feature: Feature) -> bool {
    match feature {
        Feature::CgroupNamespace | Feature::TimeNamespace | Feature::SeccompNotification => true,
        Feature::UserNamespace
        | Feature::MountNamespace
        | Feature::PidNamespace
        | Feature::NetNamespace
        | Feature::IpcNamespace
        | Feature::UtsNamespace
        | Feature::MountCalls
        | Feature::FreshProc
        | Feature::NoNewPrivileges
        | Feature::Seccomp => false,
    }
}

/// Looks for the parts of the minimal system.
fn discover_system() -> Vec<(&'static str, Place)> {
    policy::SYSTEM
        .iter()
        .filter_map(|path| {
            let meta = fs::symlink_metadata(path).ok()?;
            if !meta.is_symlink() {
                return Some((*path, Place::Present));
            }
            let target = fs::read_link(path).ok()?.to_str()?.to_owned();
            // A link into the part that is shown stays a link; one that leads elsewhere is followed when it is shown.
            let below_usr = target.trim_start_matches("../").trim_start_matches('/').starts_with("usr/");
            if below_usr {
                Some((*path, Place::Link(target)))
            } else {
                Path::new(path).exists().then_some((*path, Place::Present))
            }
        })
        .collect()
}
