//! What a caller asks for: the unit's specification. Plain data, checked by [`UnitSpec::validate`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::EngineKind;
use crate::error::Error;
use crate::identity::Identity;
use crate::image::SystemImage;

/// Longest unit id: it becomes one folder name and one cgroup name.
const MAX_ID: usize = 100;
/// The weights that cgroup version 2 takes.
const CPU_WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 63;

/// Name of a unit: one step of one attempt. `[a-z0-9.-]`, 1 to 100 characters, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitId(String);

impl UnitId {
    /// Checks and wraps an id.
    ///
    /// # Errors
    /// [`Error::InvalidId`].
    pub fn new(id: impl Into<String>) -> Result<Self, Error> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(allowed) {
            return Err(Error::InvalidId { id });
        }
        Ok(Self(id))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UnitId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl TryFrom<String> for UnitId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl From<UnitId> for String {
    fn from(id: UnitId) -> Self {
        id.0
    }
}

/// What of the network a unit sees. The words mean the same on every driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
pub enum Network {
    /// No interface but loopback.
    None,
    /// No interface but loopback, and a proxy to the hosts that the policy names.
    Restricted,
    /// The runtime's normal network.
    Open,
}

/// A limit by name, as in `unenforced: [memory]` of a manifest.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::EnumIter,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum LimitName {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Number of tasks.
    Pids,
    /// Size of the workspace.
    Disk,
    /// Bytes a second to and from the disk.
    Io,
    /// Open files of a process.
    Files,
}

/// Who asked for a limit; decides what happens where the host cannot enforce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitSource {
    /// The job or the node's policy: mandatory, the unit is refused where it cannot be enforced.
    Named,
    /// Only a default: falls back to a weaker means or is listed as unenforced.
    Default,
}

/// A limit and who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The value, in the unit that the field of [`Limits`] says.
    pub value: u64,
    /// Who asked.
    pub source: LimitSource,
}

impl Limit {
    /// A limit that the job or the node's policy names.
    #[must_use]
    pub fn named(value: u64) -> Self {
        Self { value, source: LimitSource::Named }
    }

    /// A limit that is only a default.
    #[must_use]
    pub fn default_value(value: u64) -> Self {
        Self { value, source: LimitSource::Default }
    }
}

/// The limits of a unit. `None` means no limit and costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time in thousandths of one core.
    pub cpu_millis: Option<Limit>,
    /// Share of the processor where units compete for it, 1 to 10000; 100 is that of a unit without one. Goes by the name
    /// of [`LimitName::Cpu`].
    pub cpu_weight: Option<Limit>,
    /// Memory in bytes; swap is not added to it.
    pub memory_bytes: Option<Limit>,
    /// Tasks (processes and threads) at one time.
    pub pids: Option<Limit>,
    /// Size of the workspace in bytes. Kept by the file system of the workspace where that was made with a limit (see
    /// [`crate::Workspace::create_limited`]), else by RLIMIT_FSIZE and by looking at most every 250 ms.
    pub disk_bytes: Option<Limit>,
    /// Bytes a second that are read from the disk that holds the workspace. Goes by the name of [`LimitName::Io`].
    pub io_read_bps: Option<Limit>,
    /// Bytes a second that are written to it. Goes by the name of [`LimitName::Io`].
    pub io_write_bps: Option<Limit>,
    /// Size in bytes of the private memory file system behind /tmp, /run, /dev/shm and the home folder together.
    pub scratch_bytes: u64,
    /// Open files of one process. Lowered to the host's own hard limit.
    pub open_files: u64,
    /// Named limits that are accepted as unenforced where the host cannot enforce them.
    pub accept_unenforced: BTreeSet<LimitName>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_millis: None,
            cpu_weight: None,
            memory_bytes: None,
            pids: None,
            disk_bytes: None,
            io_read_bps: None,
            io_write_bps: None,
            scratch_bytes: DEFAULT_SCRATCH_BYTES,
            open_files: 65_536,
            accept_unenforced: BTreeSet::new(),
        }
    }
}

/// A host folder or file shown inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute host path without symbolic links; the caller has checked it against the node's policy.
    pub source: PathBuf,
    /// Where it appears: absolute, or relative to `/workspace`.
    pub target: String,
    /// Whether the sandbox may only read it.
    pub read_only: bool,
}

/// What a unit may fill of /tmp, /run, /dev/shm and its home folder where nothing else is said.
pub(crate) const DEFAULT_SCRATCH_BYTES: u64 = 512 << 20;

/// Where a unit finds the files of [`Handed::folder`].
pub const HANDED: &str = "/run/windlass/secrets";

/// What a unit is given and no record of it holds: its specification only says where it is. The caller removes it when the unit
/// has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Handed {
    /// A host folder that is shown at [`HANDED`], to be read only. Absolute, without symbolic links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// A host file with further environment, over that of the unit: `NAME=value` in UTF-8, each with a NUL behind it. It is read when
    /// the unit is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<PathBuf>,
}

impl Handed {
    /// Whether nothing is handed over.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.folder.is_none() && self.environment.is_none()
    }
}

/// What runs inside a container, beside the unit's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entrypoint {
    /// The unit's command alone; the image's entry point and command are not used.
    Replaced,
    /// The image's entry point with the unit's command, or with the image's own if the unit has none.
    Image,
    /// This one with the unit's command.
    Given(Vec<String>),
}

/// The container that a unit runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine.
    pub engine: EngineKind,
    /// The image's id, as [`crate::engine::Containers::ensure_image`] gave it.
    pub image: String,
    /// The image as people know it.
    pub reference: String,
    /// What runs.
    pub entrypoint: Entrypoint,
    /// Whether nothing can be written but the workspace and scratch space.
    pub read_only_root: bool,
    /// Further folders of scratch space, absolute.
    pub scratch: Vec<String>,
    /// Whether the program is root inside. Only engines that work without root can do that.
    pub root: bool,
    /// How many graphics processors of Nvidia it sees.
    pub gpus: u32,
    /// Further devices by the names of the container device interface, such as `amd.com/gpu=0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Further labels.
    pub labels: BTreeMap<String, String>,
}

impl Container {
    /// A container with the defaults: the unit's command, a read-only root.
    #[must_use]
    pub fn new(engine: EngineKind, image: impl Into<String>, reference: impl Into<String>) -> Self {
        Self {
            engine,
            image: image.into(),
            reference: reference.into(),
            entrypoint: Entrypoint::Replaced,
            read_only_root: true,
            scratch: Vec::new(),
            root: false,
            gpus: 0,
            devices: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// The image that is the system of a native unit, in place of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRoot {
    /// The image, as [`crate::Images::ensure`] gave it.
    pub image: SystemImage,
    /// What runs.
    pub entrypoint: Entrypoint,
    /// Further folders of scratch space, absolute; the image must have them.
    pub scratch: Vec<String>,
    /// Whether the program is root inside, which outside is the unit's host user as ever.
    pub root: bool,
}

impl SystemRoot {
    /// A system with the defaults: the unit's command, as the image's user.
    #[must_use]
    pub fn new(image: SystemImage) -> Self {
        Self { image, entrypoint: Entrypoint::Replaced, scratch: Vec::new(), root: false }
    }

    /// What runs for a unit's command.
    #[must_use]
    pub fn command(&self, command: &[String]) -> Vec<String> {
        let config = &self.image.config;
        match &self.entrypoint {
            Entrypoint::Replaced => command.to_vec(),
            Entrypoint::Given(entrypoint) => entrypoint.iter().chain(command).cloned().collect(),
            Entrypoint::Image => {
                let arguments = if command.is_empty() { &config.command } else { command };
                config.entrypoint.iter().chain(arguments).cloned().collect()
            }
        }
    }
}

/// One supervised process tree: one step of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSpec {
    /// Its name.
    pub id: UnitId,
    /// Program and arguments. A program without a slash is looked up in `PATH`.
    pub command: Vec<String>,
    /// The environment, exactly; only `PATH`, `HOME`, `USER` and `LANG` are added where they are not given.
    pub env: BTreeMap<String, String>,
    /// Working directory inside the sandbox: absolute, or relative to `/workspace`.
    pub cwd: String,
    /// Host path of the workspace, as made by [`crate::Workspace`].
    pub workspace: PathBuf,
    /// Host user that the unit runs as.
    pub identity: Identity,
    /// Further host paths.
    pub mounts: Vec<Mount>,
    /// What no record holds.
    #[serde(default, skip_serializing_if = "Handed::is_nothing")]
    pub handed: Handed,
    /// The network that it sees.
    pub network: Network,
    /// Its limits.
    pub limits: Limits,
    /// The lease file of the attempt, as made by [`crate::Lease`]; the unit dies at its deadline.
    pub lease_file: PathBuf,
    /// Time limit, counted from the program's start.
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL when the time limit passes.
    pub grace: Duration,
    /// Bytes of each output stream that are kept.
    pub output_cap: u64,
    /// Host name inside.
    pub hostname: String,
    /// The container that it runs in; `None` for a native unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The image that a native unit sees as its system; `None` for the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemRoot>,
}

impl UnitSpec {
    /// A specification with the defaults: no mounts, no network, no limits but scratch and open files, no time limit,
    /// 10 s grace, 10 MiB of each stream.
    #[must_use]
    pub fn new(
        id: UnitId,
        command: Vec<String>,
        workspace: PathBuf,
        identity: Identity,
        lease_file: PathBuf,
    ) -> Self {
        Self {
            id,
            command,
            env: BTreeMap::new(),
            cwd: "/workspace".to_owned(),
            workspace,
            identity,
            mounts: Vec::new(),
            handed: Handed::default(),
            network: Network::None,
            limits: Limits::default(),
            lease_file,
            timeout: None,
            grace: Duration::from_secs(10),
            output_cap: 10 << 20,
            hostname: "windlass".to_owned(),
            container: None,
            system: None,
        }
    }

    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |field, problem: &str| Err(Error::InvalidSpec { field, problem: problem.to_owned() });
        if self.container.is_some() && self.system.is_some() {
            return invalid("system", "is a container's own matter");
        }
        let with_program = match (&self.container, &self.system) {
            (Some(container), _) => match &container.entrypoint {
                Entrypoint::Replaced => false,
                Entrypoint::Image => true,
                Entrypoint::Given(entrypoint) => {
                    entrypoint.first().is_some_and(|program| !program.is_empty())
                }
            },
            (None, Some(system)) => {
                system.command(&self.command).first().is_some_and(|program| !program.is_empty())
            }
            (None, None) => false,
        };
        if !with_program && self.command.first().is_none_or(String::is_empty) {
            return invalid("command", "must name a program");
        }
        let container = self.container.as_ref().map(|container| &container.scratch);
        if let Some(scratch) = container.or(self.system.as_ref().map(|system| &system.scratch)) {
            let odd = |path: &String| {
                let parts = path
                    .strip_prefix('/')
                    .map(|rest| rest.split('/').any(|part| matches!(part, "" | "." | "..")));
                parts != Some(false) || path.contains([':', ',', '\0'])
            };
            if scratch.iter().any(odd) {
                return invalid("scratch", "must be absolute paths without `.`, `..`, ':' and ','");
            }
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return invalid("command", "must not contain NUL");
        }
        if self.env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return invalid("env", "names must not be empty or contain '=' or NUL");
        }
        if self.env.values().any(|value| value.contains('\0')) {
            return invalid("env", "values must not contain NUL");
        }
        if self.cwd.contains('\0') {
            return invalid("cwd", "must not contain NUL");
        }
        let host_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if self.hostname.is_empty()
            || self.hostname.len() > MAX_HOSTNAME
            || !self.hostname.bytes().all(host_char)
        {
            return invalid("hostname", "must be 1 to 63 of letters, digits, '-' and '.'");
        }
        let handed = self.handed.folder.iter().chain(&self.handed.environment);
        for path in [&self.workspace, &self.lease_file].into_iter().chain(handed) {
            if !path.is_absolute() {
                return invalid("workspace", "host paths must be absolute");
            }
        }
        for mount in &self.mounts {
            if !mount.source.is_absolute() {
                return invalid("mounts", "source must be absolute");
            }
            if mount.target.contains('\0') || mount.target.split('/').any(|part| part == "..") {
                return invalid("mounts", "target must not contain '..' or NUL");
            }
            if mount.target.trim_matches('/').is_empty() {
                return invalid("mounts", "target must name a place below / or /workspace");
            }
        }
        let Limits { cpu_millis, memory_bytes, pids, io_read_bps, io_write_bps, cpu_weight, .. } =
            self.limits;
        let zero = |limit: Option<Limit>| limit.is_some_and(|limit| limit.value == 0);
        if [cpu_millis, memory_bytes, pids, io_read_bps, io_write_bps].into_iter().any(zero) {
            return invalid("limits", "must be greater than zero");
        }
        if cpu_weight.is_some_and(|weight| !CPU_WEIGHTS.contains(&weight.value)) {
            return invalid("limits", "cpu_weight must be 1 to 10000");
        }
        Ok(())
    }
}
