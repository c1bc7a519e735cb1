//! The plan of a launch: finished policy as data. Whoever reads a plan knows what a sandbox is made of; the launcher adds
//! nothing and leaves nothing out.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

/// Version of the plan's shape. A supervisor refuses a plan of another version.
pub const VERSION: u32 = 5;

/// Text without NUL, kept in the form that system calls take, so that carrying out a step allocates nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(CString);

/// The text contains NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text contains NUL")]
pub struct ContainsNul;

impl Text {
    /// Checks and wraps a text.
    ///
    /// # Errors
    /// [`ContainsNul`].
    pub fn new(text: impl Into<String>) -> Result<Self, ContainsNul> {
        CString::new(text.into()).map(Self).map_err(|_| ContainsNul)
    }

    /// For system calls.
    #[must_use]
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// For people.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("a Text is made of a String")
    }
}

impl TryFrom<String> for Text {
    type Error = ContainsNul;
    fn try_from(text: String) -> Result<Self, ContainsNul> {
        Self::new(text)
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.as_str().to_owned()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A compiled seccomp filter: one number an instruction, `code << 48 | jt << 40 | jf << 32 | k`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Cow<'_, str>")]
pub struct Filter(pub Vec<u64>);

/// The text is not a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a filter is a multiple of 16 hexadecimal digits")]
pub struct NotAFilter;

impl TryFrom<Cow<'_, str>> for Filter {
    type Error = NotAFilter;
    fn try_from(text: Cow<'_, str>) -> Result<Self, NotAFilter> {
        let (words, []) = text.as_bytes().as_chunks::<16>() else { return Err(NotAFilter) };
        let word = |digits: &[u8; 16]| {
            digits.iter().try_fold(0, |word, digit| {
                char::from(*digit).to_digit(16).map(|value| word << 4 | u64::from(value)).ok_or(NotAFilter)
            })
        };
        words.iter().map(word).collect::<Result<_, _>>().map(Self)
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = |word: &u64| {
            let word = *word;
            (0..16).rev().map(move |at| {
                let digit = u32::try_from(word >> (4 * at) & 0xf).expect("four bits");
                char::from_digit(digit, 16).expect("a digit")
            })
        };
        serializer.serialize_str(&self.0.iter().flat_map(digits).collect::<String>())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions", self.0.len())
    }
}

/// A system call that a filter does not answer itself: the supervisor ends the unit and names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedCall {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: Text,
}

/// The compiled seccomp policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// The policy.
    pub policy: Filter,
    /// The same, which also hands on the making of each socket that is allowed and not local; `None` where the kernel cannot hand on
    /// a call.
    pub telling: Option<Filter>,
    /// The calls that both hand to the supervisor. If there are none, it is not told of the first one.
    pub denied: Vec<DeniedCall>,
}

/// A resource limit of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// Size of a core file.
    Core,
    /// Size of one file.
    FileSize,
    /// Open files.
    OpenFiles,
    /// Tasks of this user in this user namespace.
    Tasks,
    /// Queued signals and timers of this user in this user namespace.
    PendingSignals,
}

/// One step of making a sandbox, carried out in order by the first process of the new namespaces. Until
/// [`Step::EnterRoot`] relative paths are below the new root and absolute ones on the host; after it all paths are inside. Where
/// the supervisor opens host paths, it can come before the unit is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Moves into the unit's cgroups.
    JoinCgroups,
    /// Makes the cgroup just joined the root of what is visible of cgroups.
    HideCgroups,
    /// Becomes the job's user and group, without supplementary groups where the host allows to drop them.
    AssumeIdentity {
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
    },
    /// Dies when the supervisor does, also if it is gone already.
    DieWithSupervisor,
    /// Sets the host name.
    SetHostname {
        /// The name.
        name: Text,
    },
    /// Brings the loopback interface up.
    RaiseLoopback,
    /// Opens a socket that listens on 127.0.0.1 of the sandbox's own network, and gives it to the supervisor, which keeps
    /// it for those outside that serve it.
    Listen {
        /// The port.
        port: u16,
    },
    /// Cuts mount propagation in both directions.
    DetachMounts,
    /// Mounts the memory file system that becomes the root, just large enough for what is made in it.
    MakeRoot,
    /// Mounts the memory file system that the unit may fill, at a place that something else will cover: only parts of it are
    /// shown.
    MountScratch {
        /// Where.
        target: Text,
        /// Its size in bytes.
        bytes: u64,
        /// Its size in files.
        files: u64,
    },
    /// Gives that file system another size.
    SizeScratch {
        /// In bytes.
        bytes: u64,
        /// In files.
        files: u64,
    },
    /// Makes a folder.
    MakeDir {
        /// Where.
        path: Text,
        /// Its mode.
        mode: u32,
    },
    /// Makes a small file.
    MakeFile {
        /// Where.
        path: Text,
        /// What is in it.
        content: String,
    },
    /// Makes a symbolic link.
    MakeLink {
        /// Where.
        path: Text,
        /// Where it points.
        target: Text,
    },
    /// Shows a folder or file of the host's system, read-only, without devices and set-user-id.
    Show {
        /// Host path; links are followed, for it belongs to the system.
        source: Text,
        /// Where it appears; made if it is missing.
        target: Text,
    },
    /// Shows a harmless device of the host.
    ShowDevice {
        /// Host path.
        source: Text,
        /// Where it appears.
        target: Text,
    },
    /// Mounts a fresh /proc of the new pid namespace.
    MountProc {
        /// Where.
        target: Text,
    },
    /// Covers a file with an empty device or a folder with an empty read-only folder, if it is there.
    Mask {
        /// What is covered.
        path: Text,
    },
    /// Sets a number that the kernel keeps for the sandbox's own namespaces, if this kernel has it.
    Tune {
        /// The file below the fresh /proc.
        path: Text,
        /// The number.
        value: u64,
    },
    /// Makes what is mounted at a path read-only, but not what is mounted below it.
    Freeze {
        /// Where it is mounted.
        path: Text,
    },
    /// Shows an empty folder that the unit may fill.
    ShowScratch {
        /// Over which folder.
        target: Text,
        /// Its mode.
        mode: u32,
    },
    /// Shows a small file of the unit's own, read-only.
    ShowFile {
        /// Over which file.
        target: Text,
        /// What is in it.
        content: String,
    },
    /// Changes into the new root and lets go of the host's.
    EnterRoot,
    /// Lays a folder with a whole system out, read-only, without devices and set-user-id, to become the root in place of the
    /// small one.
    LayOut {
        /// Host path; a link anywhere in it is refused.
        source: Text,
    },
    /// Lays a part of the small root over a place of the system that was laid out.
    Cover {
        /// The part.
        part: Text,
        /// The place; a link anywhere in it is refused, and it must be there.
        place: Text,
        /// Whether what is itself in the part, not mounted in it, may only be read.
        read_only: bool,
    },
    /// Lays an empty folder that the unit may fill over a place of the system that was laid out.
    CoverWithScratch {
        /// The place; a link anywhere in it is refused, and it must be there.
        place: Text,
        /// Its mode.
        mode: u32,
    },
    /// Changes into the system that was laid out and lets go of the host's and of the small root.
    EnterSystem,
    /// Attaches a host path inside the new root, without devices and set-user-id.
    Attach {
        /// Host path; a link anywhere in it is refused.
        source: Text,
        /// Where it appears; a link anywhere in it is refused, missing folders are made.
        target: Text,
        /// Whether it may only be read.
        read_only: bool,
    },
    /// Makes the root itself read-only, and ends the making of what the unit may fill.
    SealRoot,
    /// Keeps every capability out of the reach of programs that are executed.
    BoundCapabilities,
    /// Gives up every capability, now and for ever.
    DropCapabilities,
    /// Makes gaining privileges by executing a file impossible.
    NoNewPrivileges,
    /// Restricts writing and executing to these paths by Landlock.
    Landlock {
        /// The Landlock version to use.
        abi: u32,
        /// Paths below which files may be changed.
        write: Vec<Text>,
        /// Paths below which files may be executed.
        execute: Vec<Text>,
    },
    /// Sets a resource limit.
    Limit {
        /// Which.
        resource: Resource,
        /// Soft and hard value; lowered to the hard value in force.
        value: u64,
    },
    /// Sets the mode bits that new files do not get.
    Umask {
        /// The bits.
        mask: u32,
    },
    /// Changes into the working directory.
    WorkIn {
        /// Where.
        path: Text,
    },
    /// Installs the seccomp filter of the base.
    Seccomp {
        /// Whether it is the one that tells of sockets.
        tells_of_sockets: bool,
    },
    /// Installs a further seccomp filter, which hands no call to the supervisor.
    FurtherSeccomp {
        /// The filter.
        filter: Filter,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroups => f.write_str("join the unit's cgroups"),
            Self::HideCgroups => f.write_str("hide the host's cgroups"),
            Self::AssumeIdentity { uid, gid } => write!(f, "become user {uid} and group {gid}"),
            Self::DieWithSupervisor => f.write_str("tie the sandbox's life to its supervisor"),
            Self::SetHostname { name } => write!(f, "set the host name to {name}"),
            Self::RaiseLoopback => f.write_str("bring the loopback interface up"),
            Self::Listen { port } => write!(f, "listen on 127.0.0.1:{port} for those outside"),
            Self::DetachMounts => f.write_str("cut mount propagation"),
            Self::MakeRoot => f.write_str("mount a small root"),
            Self::MountScratch { target, bytes, files } => {
                write!(f, "mount what the unit may fill at {target}, {bytes} bytes and {files} files")
            }
            Self::SizeScratch { bytes, files } => {
                write!(f, "size what the unit may fill to {bytes} bytes and {files} files")
            }
            Self::MakeDir { path, mode } => write!(f, "make folder {path} with mode {mode:o}"),
            Self::MakeFile { path, content } => write!(f, "make file {path} of {} bytes", content.len()),
            Self::MakeLink { path, target } => write!(f, "link {path} to {target}"),
            Self::Show { source, target } => write!(f, "show host {source} at {target}, read-only"),
            Self::ShowDevice { source, target } => write!(f, "show device {source} at {target}"),
            Self::MountProc { target } => write!(f, "mount a fresh proc at {target}"),
            Self::Mask { path } => write!(f, "mask {path}"),
            Self::Tune { path, value } => write!(f, "set {path} to {value}"),
            Self::Freeze { path } => write!(f, "make {path} read-only"),
            Self::ShowScratch { target, mode } => write!(f, "show a writable {target} with mode {mode:o}"),
            Self::ShowFile { target, content } => {
                write!(f, "show a file of {} bytes at {target}, read-only", content.len())
            }
            Self::EnterRoot => f.write_str("enter the new root"),
            Self::LayOut { source } => write!(f, "lay out the system in {source}, read-only"),
            Self::Cover { part, place, read_only } => {
                let how = if *read_only { ", read-only" } else { "" };
                write!(f, "lay {part} over {place} of the system{how}")
            }
            Self::CoverWithScratch { place, mode } => {
                write!(f, "lay a writable folder with mode {mode:o} over {place} of the system")
            }
            Self::EnterSystem => f.write_str("enter the system"),
            Self::Attach { source, target, read_only } => {
                write!(
                    f,
                    "attach {source} at {target}, {}",
                    if *read_only { "read-only" } else { "writable" }
                )
            }
            Self::SealRoot => f.write_str("make the root read-only"),
            Self::BoundCapabilities => f.write_str("let no program gain a capability"),
            Self::DropCapabilities => f.write_str("drop all capabilities"),
            Self::NoNewPrivileges => f.write_str("forbid new privileges"),
            Self::Landlock { abi, write, execute } => {
                write!(f, "restrict by landlock {abi}: write below")?;
                write.iter().try_for_each(|path| write!(f, " {path}"))?;
                f.write_str("; execute below")?;
                execute.iter().try_for_each(|path| write!(f, " {path}"))
            }
            Self::Limit { resource, value } => write!(f, "limit {resource:?} to {value}"),
            Self::Umask { mask } => write!(f, "set the umask to {mask:03o}"),
            Self::WorkIn { path } => write!(f, "change into {path}"),
            Self::Seccomp { tells_of_sockets } => {
                f.write_str("install the seccomp filter")?;
                if *tells_of_sockets { f.write_str(", which tells of sockets") } else { Ok(()) }
            }
            Self::FurtherSeccomp { filter } => write!(f, "install a seccomp filter of {filter:?}"),
        }
    }
}

/// Host and inner identity of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Host user.
    pub host_uid: u32,
    /// Host group.
    pub host_gid: u32,
    /// User inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

/// Where the network of a unit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkSource {
    /// It is the host's.
    Host,
    /// It is made with the sandbox's other namespaces.
    Sandbox,
    /// The supervisor makes it, or was lent it by the spawner. Only root can do that.
    Lent,
}

/// The cgroups of a unit: made and removed by the driver, entered by the sandbox, read by the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// Whether `dirs` is one folder of the unified hierarchy.
    pub v2: bool,
    /// The unit's folder in every hierarchy that it is in.
    pub dirs: Vec<PathBuf>,
    /// The one with the memory controller.
    pub memory: Option<PathBuf>,
    /// The one with the pids controller.
    pub pids: Option<PathBuf>,
    /// The one with the io controller.
    pub io: Option<PathBuf>,
}

/// What keeps a workspace from growing past its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKeeper {
    /// The file system that it is in, which tells no more room of it than the limit: a full one is the limit reached.
    FileSystem,
    /// The supervisor, by looking: what is written between two looks can be too much.
    Supervisor,
}

/// What the supervisor keeps from growing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The folder that is measured.
    pub path: PathBuf,
    /// The size at which the unit is killed.
    pub bytes: u64,
    /// What keeps to it.
    pub keeper: DiskKeeper,
}

/// The part of a sandbox that does not depend on its unit, so that it can be made before there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// [`VERSION`].
    pub version: u32,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Which of them make what all units see of the host, where that can be made once for all of them.
    pub template: Option<Range<usize>>,
    /// Who the unit is.
    pub identity: IdMap,
    /// Where its network comes from.
    pub network: NetworkSource,
    /// Whether to make a time namespace.
    pub time_namespace: bool,
    /// How much sooner than others the unit is picked by the host's out-of-memory killer, 0 to 1000.
    pub oom_score_adj: i32,
    /// What its programs may ask of the kernel.
    pub filters: Filters,
}

impl Base {
    /// The name of a system call that the filters hand to the supervisor.
    #[must_use]
    pub fn denied(&self, number: u32) -> Option<&Text> {
        self.filters.denied.iter().find(|call| call.number == number).map(|call| &call.name)
    }

    /// The steps that make what all units see of the host, where that can be made once for all of them.
    #[must_use]
    pub fn template(&self) -> Option<&[Step]> {
        self.steps.get(self.template.clone()?)
    }
}

/// The part of a sandbox that makes it one unit's: what the supervisor hands to the first process in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Steps in order, after those of the base.
    pub steps: Vec<Step>,
    /// Paths to try as the program, in order.
    pub programs: Vec<Text>,
    /// Arguments, the program's name first.
    pub arguments: Vec<Text>,
    /// `NAME=value`, exactly what the program gets.
    pub environment: Vec<Text>,
}

/// Everything that a supervisor has to know about its unit. The base can be the text that it is written as: whoever knows the base
/// of such a text need not read it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan<B = Base> {
    /// What it has in common with others.
    pub base: B,
    /// What is its own.
    pub own: Own,
    /// Whether the filter hands on the making of each socket that could reach a network. Where none was made, a lent network can
    /// be given back.
    #[serde(default)]
    pub tells_of_sockets: bool,
    /// A file with further environment that is in no plan: `NAME=value`, each with a NUL behind it. Read when the unit begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_file: Option<PathBuf>,
    /// The unit's cgroups, if it needs any.
    pub cgroups: Option<Cgroups>,
    /// The lease file.
    pub lease: PathBuf,
    /// Time limit in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Time between TERM and KILL in milliseconds, where the supervisor itself stops the unit.
    pub grace_ms: u64,
    /// Bytes of each stream that are kept.
    pub output_cap: u64,
    /// Disk limit.
    pub disk: Option<Disk>,
}

impl LaunchPlan {
    /// The steps of the whole sandbox in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.base.steps.iter().chain(&self.own.steps)
    }
}

impl<B> LaunchPlan<B> {
    /// Whether a base that was made before the unit was known can serve: on cgroup v2 the first process is cloned right
    /// into its cgroup, because moving it there later waits for all processors of the host.
    #[must_use]
    pub fn takes_spare(&self) -> bool {
        self.cgroups.as_ref().is_none_or(|cgroups| !cgroups.v2)
    }

    /// The same with the base in another form; gives the one that it had.
    pub fn with_base<C>(self, base: C) -> (LaunchPlan<C>, B) {
        let plan = LaunchPlan {
            base,
            own: self.own,
            tells_of_sockets: self.tells_of_sockets,
            environment_file: self.environment_file,
            cgroups: self.cgroups,
            lease: self.lease,
            timeout_ms: self.timeout_ms,
            grace_ms: self.grace_ms,
            output_cap: self.output_cap,
            disk: self.disk,
        };
        (plan, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_filters_survive_the_round_trip_and_bad_ones_are_refused() {
        let step = Step::FurtherSeccomp { filter: Filter(vec![0x0020_0000_0000_0004, u64::MAX]) };
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step);
        assert!(serde_json::from_str::<Text>(r#""a\u0000b""#).is_err());
        assert!(serde_json::from_str::<Filter>(r#""00""#).is_err());
        assert!(serde_json::from_str::<Filter>(r#""00000000000000é""#).is_err());
    }
}
