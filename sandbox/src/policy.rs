//! From specification to plan: which steps make the sandbox of a unit on this host. Pure: everything it needs to know of
//! the host is in [`Host`].

mod system;

use windlass_launcher::plan::{
    Base, Cgroups, Disk, DiskKeeper, Filters, IdMap, LaunchPlan, NetworkSource, Own, Resource, Step, Text,
    VERSION,
};

use crate::egress;
use crate::error::Error;
use crate::identity::Identity;
use crate::image::JOB;
use crate::seccomp;
use crate::spec::{DEFAULT_SCRATCH_BYTES, HANDED, Network, SystemRoot, UnitSpec};
use crate::workspace::DiskMeans;

/// Where programs are looked for if the environment does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The job's private home folder.
const HOME: &str = "/home/job";
/// Where the workspace is.
const WORKSPACE: &str = "/workspace";
/// How much sooner than anything else the host's out-of-memory killer picks a unit.
const OOM_SCORE_ADJ: i32 = 500;
/// Bytes of scratch space for one file of it: bounds the kernel memory that empty files take.
const BYTES_A_FILE: u64 = 4096;
/// Most mounts of one unit.
const MAX_MOUNTS: usize = 64;
/// Landlock before version 2 forbids every rename between folders, which programs need.
const MIN_LANDLOCK: u32 = 2;

/// The first version of Landlock that keeps a program from the abstract sockets of others.
const SOCKET_SCOPE: u32 = 6;
/// Where the host keeps how names are looked up.
pub(crate) const RESOLVER: &str = "/etc/resolv.conf";

/// What is at a host path of the minimal system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A link with this target.
    Link(String),
    /// A folder or file.
    Present,
}

/// What the plan depends on, found out by the driver.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Paths of the minimal system that this host has.
    pub(crate) system: Vec<(&'static str, Place)>,
    /// The kernel's Landlock version.
    pub(crate) landlock: Option<u32>,
    /// Whether cgroup namespaces work.
    pub(crate) cgroup_namespace: bool,
    /// Whether time namespaces work.
    pub(crate) time_namespace: bool,
    /// Whether the host says how names are looked up.
    pub(crate) resolver: bool,
    /// Whether host paths are opened by the supervisor, which is root, and not from inside: then a sandbox can let go of the
    /// host's root before its unit is known, which waits for all processors.
    pub(crate) opened_outside: bool,
    /// Whether what sandboxes have in common can be made outside of them.
    pub(crate) made_outside: bool,
    /// The compiled seccomp policy.
    pub(crate) filters: Filters,
}

/// How a unit's limits are enforced, as the driver has settled it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Enforcement {
    /// Its cgroups.
    pub(crate) cgroups: Option<Cgroups>,
    /// The number of tasks, where no cgroup keeps it.
    pub(crate) tasks: Option<u64>,
    /// What keeps its disk limit.
    pub(crate) disk: Option<DiskMeans>,
}

/// Host paths that make up the minimal system, where they exist. Not in it: the host's accounts, secrets, keys and
/// configuration.
pub(crate) const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
];

/// Devices of the sandbox. There is no terminal.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

/// What the kernel counts for a user namespace, below proc/sys/user, and how much of it a unit may have. All of it counts
/// for the host user that made the namespace, too, whose other programs must not be left without: that user is root, or
/// the ordinary user that the agent runs as, and the kernel's default for it is 128 inotify instances.
const COUNTED: &[(&str, u64)] = &[
    ("max_inotify_instances", 16),
    ("max_inotify_watches", 16_384),
    // Seccomp refuses what follows; this holds should a filter have a gap. Mount namespaces are left: an ordinary user's
    // mounts come out of passing ones, and without a capability nobody makes one.
    ("max_fanotify_groups", 0),
    ("max_fanotify_marks", 0),
    ("max_user_namespaces", 0),
    ("max_pid_namespaces", 0),
    ("max_net_namespaces", 0),
    ("max_ipc_namespaces", 0),
    ("max_uts_namespaces", 0),
    ("max_time_namespaces", 0),
    // The unit's own is made later.
    ("max_cgroup_namespaces", 1),
];
/// Signals and timers that the kernel queues for a unit. They count for the host user as those of [`COUNTED`] do.
const PENDING_SIGNALS: u64 = 4096;

/// Parts of /proc that tell of the host or reach into the kernel.
const MASKED: &[&str] = &[
    "acpi",
    "asound",
    "bus",
    "config.gz",
    "diskstats",
    "driver",
    "fs",
    "interrupts",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "pagetypeinfo",
    "partitions",
    "sched_debug",
    "scsi",
    "swaps",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

/// The plan for a unit.
///
/// # Errors
/// [`Error::InvalidSpec`] for what no plan can be made of.
pub(crate) fn plan(spec: &UnitSpec, host: &Host, enforcement: Enforcement) -> Result<LaunchPlan, Error> {
    let environment = environment(spec);
    let command = match &spec.system {
        Some(system) => system.command(&spec.command),
        None => spec.command.clone(),
    };
    let programs = programs(&command, &environment)?;
    // With a proxy it is used, and each connection would be told of.
    let tells_of_sockets =
        host.filters.telling.is_some() && host.made_outside && spec.network == Network::None;
    let steps = steps(spec, host, &enforcement, tells_of_sockets)?;
    let Enforcement { cgroups, tasks: _, disk } = enforcement;
    let keeper = match disk {
        Some(DiskMeans::ProjectQuota | DiskMeans::Image) => DiskKeeper::FileSystem,
        Some(DiskMeans::Looking) | None => DiskKeeper::Supervisor,
    };
    let texts = |field, words: Vec<String>| -> Result<Vec<Text>, Error> {
        words.into_iter().map(|word| text(field, word)).collect()
    };
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(LaunchPlan {
        base: base(host, spec.identity, inside_ids(spec), spec.network, shows_more(spec)),
        own: Own {
            steps,
            programs: texts("command", programs)?,
            arguments: texts("command", command)?,
            environment: texts(
                "env",
                environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            )?,
        },
        tells_of_sockets,
        cgroups,
        environment_file: spec.handed.environment.clone(),
        lease: spec.lease_file.clone(),
        timeout_ms: spec.timeout.map(millis),
        grace_ms: millis(spec.grace),
        output_cap: spec.output_cap,
        disk: spec.limits.disk_bytes.map(|limit| Disk {
            path: spec.workspace.clone(),
            bytes: limit.value,
            keeper,
        }),
    })
}

/// The steps of the sandbox of a unit, in words, on a host that lacks nothing: what people and tests look at.
///
/// # Errors
/// [`Error::InvalidSpec`] for what no plan can be made of.
pub fn planned_steps(spec: &UnitSpec) -> Result<Vec<String>, Error> {
    spec.validate()?;
    let host = Host {
        system: SYSTEM.iter().map(|path| (*path, Place::Present)).collect(),
        landlock: Some(SOCKET_SCOPE),
        cgroup_namespace: true,
        time_namespace: true,
        resolver: true,
        opened_outside: true,
        made_outside: true,
        filters: seccomp::filters(seccomp::Denial::HandedOn),
    };
    let plan = plan(spec, &host, Enforcement::default())?;
    Ok(plan.steps().map(ToString::to_string).collect())
}

/// User and group inside.
fn inside_ids(spec: &UnitSpec) -> (u32, u32) {
    match &spec.system {
        Some(system) if system.root => (0, 0),
        Some(system) => (system.image.account.uid, system.image.account.gid),
        None => (JOB, JOB),
    }
}

/// The environment with that of the image and the defaults added.
fn environment(spec: &UnitSpec) -> std::collections::BTreeMap<String, String> {
    let mut environment = spec.env.clone();
    // Over what an image says of some other network's proxy, as with engines.
    if spec.network == Network::Restricted {
        for (name, value) in egress::environment() {
            environment.entry(name).or_insert(value);
        }
    }
    let of_image = spec.system.iter().flat_map(|system| &system.image.config.env);
    for (name, value) in of_image.filter_map(|entry| entry.split_once('=')) {
        // The home folder of the image can only be read.
        if name != "HOME" {
            environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", HOME), ("USER", "job"), ("LANG", "C.UTF-8")] {
        environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    environment
}

/// Paths to try for the program, as a shell would.
fn programs(
    command: &[String],
    environment: &std::collections::BTreeMap<String, String>,
) -> Result<Vec<String>, Error> {
    let Some(name) = command.first() else {
        return Err(Error::InvalidSpec { field: "command", problem: "must name a program".to_owned() });
    };
    if name.contains('/') {
        return Ok(vec![name.clone()]);
    }
    let path = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let in_folder = |dir: &str| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
    Ok(path.split(':').map(in_folder).collect())
}

/// Text of a field.
fn text(field: &'static str, value: impl Into<String>) -> Result<Text, Error> {
    Text::new(value).map_err(|_| Error::InvalidSpec { field, problem: "must not contain NUL".to_owned() })
}

/// A path inside: absolute, or below the workspace.
fn inside(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else if path.is_empty() || path == "." {
        WORKSPACE.to_owned()
    } else {
        format!("{WORKSPACE}/{path}")
    }
}

/// A path of the host as text.
fn host_path(field: &'static str, path: &std::path::Path) -> Result<Text, Error> {
    let path =
        path.to_str().ok_or_else(|| Error::InvalidSpec { field, problem: "path is not UTF-8".to_owned() })?;
    text(field, path)
}

/// What all units of an identity begin with, also those that see an image as their system. A restricted network begins as none
/// does: what differs is the unit's own. A `root_of_its_own` is one in which the unit has more to be shown than all others.
pub(crate) fn base(
    host: &Host,
    identity: Identity,
    (uid, gid): (u32, u32),
    network: Network,
    root_of_its_own: bool,
) -> Base {
    let fixed = |value: &str| Text::new(value).expect("a constant without NUL");
    let network = match network {
        Network::None | Network::Restricted if host.made_outside => NetworkSource::Lent,
        Network::None | Network::Restricted => NetworkSource::Sandbox,
        Network::Open => NetworkSource::Host,
    };
    let mut steps = vec![Step::AssumeIdentity { uid, gid }, Step::DieWithSupervisor];
    if network == NetworkSource::Sandbox {
        steps.push(Step::RaiseLoopback);
    }
    let first = steps.len();
    root(&mut steps, host, &fixed);
    let template = (host.made_outside && !root_of_its_own).then_some(first..steps.len());
    if network == NetworkSource::Host && host.resolver {
        steps.push(Step::Show { source: fixed(RESOLVER), target: fixed(RESOLVER.trim_start_matches('/')) });
    }
    let (bytes, files) = scratch_size(DEFAULT_SCRATCH_BYTES);
    steps.push(Step::MountScratch { target: fixed("proc"), bytes, files });
    for (path, mode) in [("tmp", 0o1777), ("run", 0o755), ("dev/shm", 0o1777), ("home/job", 0o700)] {
        steps.push(Step::ShowScratch { target: fixed(path), mode });
    }
    steps.push(Step::MountProc { target: fixed("proc") });
    steps.extend(MASKED.iter().map(|name| Step::Mask { path: fixed(&format!("proc/{name}")) }));
    steps.extend(
        COUNTED
            .iter()
            .map(|(name, value)| Step::Tune { path: fixed(&format!("proc/sys/user/{name}")), value: *value }),
    );
    // All of it: a process could make itself the last that the out-of-memory killer takes, change what its core or its
    // memory is, or name other threads. What a program has to tell the kernel of itself, it tells by prctl.
    steps.extend([Step::Freeze { path: fixed("proc") }, Step::BoundCapabilities]);
    Base {
        version: VERSION,
        steps,
        template,
        network,
        identity: IdMap { host_uid: identity.uid, host_gid: identity.gid, uid, gid },
        time_namespace: host.time_namespace,
        oom_score_adj: OOM_SCORE_ADJ,
        filters: host.filters.clone(),
    }
}

/// The size of what a unit may fill, in bytes and files.
fn scratch_size(bytes: u64) -> (u64, u64) {
    let bytes = bytes.max(1 << 20);
    (bytes, bytes / BYTES_A_FILE)
}

/// The small root with the host's system: no unit's own, and nothing in it to write to.
fn root(steps: &mut Vec<Step>, host: &Host, fixed: &dyn Fn(&str) -> Text) {
    steps.extend([Step::DetachMounts, Step::MakeRoot]);
    for path in ["etc", "dev", "dev/shm", "home", "home/job", "proc", "run", "sys", "tmp", "var", "workspace"]
    {
        steps.push(Step::MakeDir { path: fixed(path), mode: 0o755 });
    }
    system(steps, host, fixed);
    for (path, content) in files() {
        steps.push(Step::MakeFile { path: fixed(path), content });
    }
    for path in ["etc/hostname", "etc/hosts", "etc/resolv.conf"] {
        steps.push(Step::MakeFile { path: fixed(path), content: String::new() });
    }
    for device in DEVICES {
        let source = fixed(&format!("/dev/{device}"));
        steps.push(Step::ShowDevice { source, target: fixed(&format!("dev/{device}")) });
    }
    for (path, target) in [
        ("dev/fd", "/proc/self/fd"),
        ("dev/stdin", "/proc/self/fd/0"),
        ("dev/stdout", "/proc/self/fd/1"),
        ("dev/stderr", "/proc/self/fd/2"),
        ("var/tmp", "../tmp"),
        ("var/run", "../run"),
    ] {
        steps.push(Step::MakeLink { path: fixed(path), target: fixed(target) });
    }
    if host.opened_outside {
        // Without one in sight, the kernel lets no user namespace mount another. In a template it is one of a pid namespace that
        // nobody is in, and each sandbox covers it.
        steps.extend([Step::MountProc { target: fixed("proc") }, Step::EnterRoot]);
    }
}

/// The steps of a unit's own, in order.
fn steps(
    spec: &UnitSpec,
    host: &Host,
    enforcement: &Enforcement,
    tells_of_sockets: bool,
) -> Result<Vec<Step>, Error> {
    if spec.mounts.len() > MAX_MOUNTS {
        return Err(Error::InvalidSpec { field: "mounts", problem: format!("must be at most {MAX_MOUNTS}") });
    }
    let fixed = |value: &str| Text::new(value).expect("a constant without NUL");
    let mut steps = Vec::new();

    // Who and where.
    if enforcement.cgroups.as_ref().is_some_and(|cgroups| !cgroups.v2) {
        steps.push(Step::JoinCgroups);
    }
    if host.cgroup_namespace {
        steps.push(Step::HideCgroups);
    }
    match spec.network {
        Network::None | Network::Open => {}
        Network::Restricted => steps.push(Step::Listen { port: egress::PORT }),
    }
    steps.push(Step::SetHostname { name: text("hostname", &*spec.hostname)? });
    for (path, content) in name_files(&spec.hostname) {
        steps.push(Step::ShowFile { target: fixed(path), content });
    }
    if spec.limits.scratch_bytes != DEFAULT_SCRATCH_BYTES {
        let (bytes, files) = scratch_size(spec.limits.scratch_bytes);
        steps.push(Step::SizeScratch { bytes, files });
    }
    match &spec.system {
        None if host.opened_outside => {}
        None => steps.push(Step::EnterRoot),
        Some(system) => system::lay_out(&mut steps, system)?,
    }

    // What the job brings. Attached from inside, so that no link of a workspace can lead to the host.
    let workspace = host_path("workspace", &spec.workspace)?;
    steps.push(Step::Attach { source: workspace, target: fixed(WORKSPACE), read_only: false });
    for mount in &spec.mounts {
        let target = inside(&mount.target);
        if spec.system.is_some() && !target.starts_with(&format!("{WORKSPACE}/")) {
            return Err(Error::InvalidSpec {
                field: "mounts",
                problem: format!("{target} is not below {WORKSPACE}; other places belong to the image"),
            });
        }
        if target.trim_end_matches('/') == WORKSPACE {
            return Err(Error::InvalidSpec {
                field: "mounts",
                problem: "must not cover the workspace".to_owned(),
            });
        }
        steps.push(Step::Attach {
            source: host_path("mounts", &mount.source)?,
            target: text("mounts", target)?,
            read_only: mount.read_only,
        });
    }
    if let Some(folder) = &spec.handed.folder {
        let source = host_path("handed", folder)?;
        steps.push(Step::Attach { source, target: fixed(HANDED), read_only: true });
    }
    steps.push(Step::SealRoot);

    // What it may not do.
    steps.push(Step::DropCapabilities);
    steps.push(Step::NoNewPrivileges);
    if let Some(abi) = host.landlock.filter(|abi| *abi >= MIN_LANDLOCK) {
        steps.push(landlock(spec, host, abi)?);
    }
    steps.push(Step::Limit { resource: Resource::Core, value: 0 });
    steps.push(Step::Limit { resource: Resource::OpenFiles, value: spec.limits.open_files });
    steps.push(Step::Limit { resource: Resource::PendingSignals, value: PENDING_SIGNALS });
    if let Some(tasks) = enforcement.tasks {
        // The sandbox's own first process counts too.
        steps.push(Step::Limit { resource: Resource::Tasks, value: tasks.saturating_add(1) });
    }
    if let Some(limit) = spec.limits.disk_bytes {
        steps.push(Step::Limit { resource: Resource::FileSize, value: limit.value });
    }
    steps.push(Step::Umask { mask: 0o022 });
    if let Some(system) = &spec.system {
        system::make_working_folder(&mut steps, system, &spec.cwd)?;
    }
    steps.push(Step::WorkIn { path: text("cwd", inside(&spec.cwd))? });
    let scoped = host.landlock.is_some_and(|abi| abi >= SOCKET_SCOPE);
    if spec.network == Network::Open && !scoped {
        // Abstract sockets belong to the network, which is the host's, and a filter cannot see whose one is addressed.
        steps.push(Step::FurtherSeccomp { filter: seccomp::compile_alone(&seccomp::NO_LOCAL_SOCKETS) });
    }
    steps.push(Step::Seccomp { tells_of_sockets });
    Ok(steps)
}

/// Whether a unit is shown something at a place that the small root lacks, so that it needs one of its own.
fn shows_more(spec: &UnitSpec) -> bool {
    let is_below =
        |target: &str, place: &str| target.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
    let places = [WORKSPACE, HOME, "/tmp", "/run", "/dev/shm"];
    spec.mounts
        .iter()
        .map(|mount| inside(&mount.target))
        .any(|target| !places.iter().any(|place| is_below(&target, place)))
}

/// The host's system: links as links, the rest shown read-only, with the folders above it.
fn system(steps: &mut Vec<Step>, host: &Host, fixed: &dyn Fn(&str) -> Text) {
    let mut made = std::collections::BTreeSet::from(["etc".to_owned()]);
    for (path, place) in &host.system {
        let target = path.trim_start_matches('/');
        for (at, _) in target.match_indices('/') {
            if made.insert(target[..at].to_owned()) {
                steps.push(Step::MakeDir { path: fixed(&target[..at]), mode: 0o755 });
            }
        }
        steps.push(match place {
            Place::Link(to) => Step::MakeLink { path: fixed(target), target: fixed(to) },
            Place::Present => Step::Show { source: fixed(path), target: fixed(target) },
        });
    }
}

/// Files of /etc that are made, not shown.
fn files() -> [(&'static str, String); 4] {
    [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\njob:x:{JOB}:{JOB}:job:{HOME}:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("etc/group", format!("root:x:0:\njob:x:{JOB}:\nnogroup:x:65534:\n")),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("etc/shells", "/bin/sh\n/bin/bash\n".to_owned()),
    ]
}

/// Those with the unit's name in them.
fn name_files(hostname: &str) -> [(&'static str, String); 2] {
    [
        (
            "etc/hosts",
            format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback {hostname}\n"),
        ),
        ("etc/hostname", format!("{hostname}\n")),
    ]
}

/// Where the host's programs are.
fn code_of_host(host: &Host) -> impl Iterator<Item = String> {
    let is_code = |path: &str| !path.starts_with("/etc/");
    let code = host.system.iter().filter(move |(path, place)| *place == Place::Present && is_code(path));
    code.map(|(path, _)| (*path).to_owned())
}

/// The Landlock step: writing and executing only where the mounts are meant for it.
fn landlock(spec: &UnitSpec, host: &Host, abi: u32) -> Result<Step, Error> {
    let mut write: Vec<String> = ["/dev", HOME, "/run", "/tmp", WORKSPACE].map(str::to_owned).to_vec();
    let mut execute: Vec<String> = [HOME, "/run", "/tmp", WORKSPACE].map(str::to_owned).to_vec();
    match &spec.system {
        None => execute.extend(code_of_host(host)),
        Some(SystemRoot { image, scratch, .. }) => {
            let own = scratch.iter().cloned().chain(["/var/tmp".to_owned()]);
            write.extend(own.clone());
            execute.extend(own.chain(image.programs.iter().cloned()));
        }
    }
    for mount in &spec.mounts {
        let target = inside(&mount.target);
        if !mount.read_only {
            write.push(target.clone());
        }
        execute.push(target);
    }
    let texts = |paths: Vec<String>| -> Result<Vec<Text>, Error> {
        paths.into_iter().map(|path| text("mounts", path)).collect()
    };
    Ok(Step::Landlock { abi, write: texts(write)?, execute: texts(execute)? })
}

#[cfg(test)]
mod tests;
