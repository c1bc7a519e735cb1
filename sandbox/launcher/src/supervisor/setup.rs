//! The beginning of a unit. First the [`Foundation`]: namespaces, and in them the base, made with or without knowing the
//! unit. Then the unit: claim it, open what it needs, and hand it to the first process in the namespaces.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use rustix::time::{TimerfdClockId, TimerfdFlags};
use serde_json::value::RawValue;

use super::{
    Beginning, DISK_PERIOD_NS, DiskWatch, Error, Program, READ, Supervisor, failed, read_lease, spool,
};
use crate::child::{self, Child, Stage};
use crate::deadline::boottime_ns;
use crate::exit::KillProof;
use crate::handover;
use crate::network::Network;
use crate::plan::{self, Base, Cgroups, LaunchPlan, NetworkSource, Step, Text};
use crate::record::{self, Planned, ProcessName, SupervisorRecord};
use crate::stock::Stock;
use crate::sys::{self, Fork};
use crate::template::Template;

/// Namespaces with a first process that makes the base in them and then waits for its unit.
pub(super) struct Foundation {
    pub(super) init: Pid,
    pub(super) init_fd: OwnedFd,
    pub(super) signals: OwnedFd,
    /// Keeps the mount namespace until the unit's end was told: taking it apart is then nobody's loss of time.
    mounts: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    setup: OwnedFd,
    control: OwnedFd,
    /// This process and the first one of the sandbox.
    names: [ProcessName; 2],
    network: Option<Network>,
    privileged: bool,
    /// What another sandbox can be made from.
    stock: Stock,
}

impl Foundation {
    /// Makes it; in a v2 cgroup if one is given, from a template if it is that of the base. Whether the steps of the base
    /// succeed is told through the set-up pipe.
    pub(super) fn make(base: &Base, cgroup: Option<&OwnedFd>, mut stock: Stock) -> Result<Self, Error> {
        if base.version != plan::VERSION {
            return Err(Error::Version { version: base.version });
        }
        let signals =
            sys::signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(failed("take signals"))?;
        let privileged = rustix::process::geteuid().is_root();
        let (stdout, stdout_end) = output_pipe(base, privileged)?;
        let (stderr, stderr_end) = output_pipe(base, privileged)?;
        let (setup, setup_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make the set-up pipe"))?;
        let (control, control_end) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed("make the control line"))?;
        let network = match base.network {
            NetworkSource::Host | NetworkSource::Sandbox => {
                stock.decline_network();
                None
            }
            NetworkSource::Lent => Some(stock.network().map_err(failed("make the network"))?),
        };
        let template = stock.template.as_ref().filter(|template| template.is_of(base));
        let made = base.template.clone().filter(|_| template.is_some()).unwrap_or_default();
        let sources = open_sources(&base.steps, &made, privileged)?;
        let mut child = Child {
            base: Stage { steps: &base.steps, first: 0, made, sources, tasks: Vec::new() },
            filters: &base.filters,
            yields: stock.yields,
            scratch: None,
            setup: setup_end,
            control: control_end,
            stdout: stdout_end,
            stderr: stderr_end,
            stack: Some(sys::Stack::new()),
            privileged,
            kept: Vec::new(),
        };
        child.keep_own();
        if let Some(template) = template {
            template.enter().map_err(failed("enter what all sandboxes begin with"))?;
        }
        // SAFETY: a supervisor has one thread: it is forked from a process with one thread and makes none.
        #[expect(unsafe_code, reason = "clone of a process with one thread")]
        let cloned = unsafe { sys::clone_into(namespaces(base), cgroup.map(AsFd::as_fd)) };
        if let Ok((Fork::Child, _)) = cloned {
            child::run(child)
        }
        let left = template.map_or(Ok(()), Template::leave);
        let (init, init_fd) = match cloned.map_err(failed("make namespaces"))? {
            (Fork::Parent(init), Some(init_fd)) => (init, init_fd),
            (Fork::Parent(_) | Fork::Child, _) => return Err(failed("make namespaces")(Errno::BADF)),
        };
        // From here on the sandbox's ends must be closed here, or their ends would never be seen.
        drop(child);
        let left = left.map_err(failed("leave what all sandboxes begin with"));
        let released = left.and_then(|()| Ok((release(base, init, &control, privileged)?, names(init)?)));
        match released {
            Ok((mounts, names)) => Ok(Self {
                init,
                init_fd,
                signals,
                mounts,
                stdout,
                stderr,
                setup,
                control,
                names,
                network,
                privileged,
                stock,
            }),
            Err(error) => {
                end(init, &init_fd);
                Err(error)
            }
        }
    }

    /// Whether its first process yields to others until it has a unit, as this one does.
    pub(super) fn yields(&self) -> bool {
        self.stock.yields
    }

    /// Ends it without a unit; gives what another can be made from.
    pub(super) fn abandon(mut self) -> Stock {
        end(self.init, &self.init_fd);
        self.stock.take_back(self.network);
        self.stock
    }
}

/// Kills and reaps a first process that has no unit yet.
fn end(init: Pid, init_fd: &OwnedFd) {
    let _dead_already = rustix::process::pidfd_send_signal(init_fd, Signal::KILL);
    let _reaped = sys::reap(init);
}

/// Reads the plan of a unit.
pub(super) fn read_plan(dir: &Path) -> Result<LaunchPlan<Box<RawValue>>, Error> {
    let planned: Option<Planned> = record::read(&dir.join(record::PLAN)).map_err(failed("read the plan"))?;
    let mut plan = planned.ok_or_else(|| failed("read the plan")(Errno::NOENT))?.launch;
    if let Some(path) = &plan.environment_file {
        let content = std::fs::read(path).map_err(failed("read the environment that was handed over"))?;
        add_environment(&mut plan.own.environment, &content)?;
    }
    Ok(plan)
}

/// Adds what a file of environment holds, in place of what has the same name.
fn add_environment(environment: &mut Vec<Text>, content: &[u8]) -> Result<(), Error> {
    // What is wrong with it is not told: it would tell of the content.
    let unreadable = || failed("understand the environment that was handed over")(Errno::INVAL);
    for entry in content.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        let entry = std::str::from_utf8(entry).map_err(|_| unreadable())?;
        let (name, _) = entry.split_once('=').ok_or_else(unreadable)?;
        let is_other = |known: &Text| known.as_str().split_once('=').is_none_or(|(other, _)| other != name);
        environment.retain(is_other);
        environment.push(Text::new(entry).map_err(|_| unreadable())?);
    }
    Ok(())
}

impl Supervisor {
    /// Makes a foundation for the unit, or takes the one given, and hands the unit over to it.
    pub(super) fn start(
        dir: &Path,
        plan: LaunchPlan,
        beginning: Beginning,
        boot_id: &str,
        lock: &mut File,
    ) -> Result<Self, Error> {
        let (tasks, cgroup) = open_cgroups(plan.cgroups.as_ref())?;
        let foundation = match beginning {
            Beginning::Spare(foundation) => foundation,
            Beginning::Nothing(stock) => Foundation::make(&plan.base, cgroup.as_ref(), stock)?,
        };
        match Self::hand_over(dir, plan, &foundation, &tasks, boot_id, lock) {
            Ok(unit) => Ok(Self::of(dir, foundation, unit)),
            Err(error) => {
                // It knows of no unit, so nothing has run.
                foundation.abandon();
                Err(error)
            }
        }
    }

    /// Opens what the unit needs, and lets it go.
    fn hand_over(
        dir: &Path,
        plan: LaunchPlan,
        foundation: &Foundation,
        tasks: &[OwnedFd],
        boot_id: &str,
        lock: &mut File,
    ) -> Result<Unit, Error> {
        let lease =
            File::open(&plan.lease).map_err(failed(format!("open lease {}", plan.lease.display())))?;
        let lease_ns = read_lease(&lease).ok_or_else(|| failed("read the lease")(Errno::INVAL))?;
        let spool =
            spool::Spool::within(dir, plan.output_cap).map_err(failed("open what tells of the spool"))?;
        let requests = open_requests(dir)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(failed("make a timer"))?;
        let shortage = plan
            .cgroups
            .as_ref()
            .filter(|cgroups| !cgroups.v2)
            .and_then(|cgroups| cgroups.memory.as_deref())
            .map(sys::watch_out_of_memory)
            .transpose()
            .map_err(failed("watch the memory cgroup"))?;
        let sources = open_sources(&plan.own.steps, &(0..0), foundation.privileged)?;
        note(foundation.names, lock, boot_id)?;
        // The last moment: once it is handed over, its program may run before anybody looks at the clock.
        if boottime_ns() >= lease_ns {
            return Err(Error::LeaseExpired);
        }
        match handover::send(&foundation.control, &plan.own, &sources, tasks) {
            Ok(()) => {}
            // It has ended, for a step of the base failed; the set-up pipe tells which.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => return Err(failed("hand the unit over")(errno)),
        }
        Ok(Unit { plan, lease, lease_ns, spool, requests, shortage, timer })
    }

    /// Puts both together.
    fn of(dir: &Path, foundation: Foundation, unit: Unit) -> Self {
        let Foundation { init, init_fd, signals, mounts, stdout, stderr, setup, control, network, .. } =
            foundation;
        let Unit { plan, lease, lease_ns, spool, requests, shortage, timer } = unit;
        let disk = plan.disk.clone().map(|limit| DiskWatch {
            limit,
            walk: None,
            next_ns: boottime_ns() + DISK_PERIOD_NS,
        });
        Self {
            spool,
            plan,
            stdout: Some(stdout),
            stderr: Some(stderr),
            setup: Some(setup),
            setup_bytes: Vec::new(),
            control: Some(control),
            dir: dir.to_owned(),
            handout: None,
            denials: None,
            denied: None,
            counters: None,
            network,
            had_sockets: false,
            requests,
            request_bytes: Vec::new(),
            signals,
            shortage,
            victim: None,
            timer,
            timer_ns: 0,
            lease,
            lease_ns,
            init,
            init_fd,
            mounts,
            program: Program::default(),
            setup_failure: None,
            stopping: None,
            killed: None,
            disk,
            disk_was_full: false,
            proof: KillProof::default(),
            buffer: Vec::with_capacity(READ),
        }
    }
}

/// What is opened for a unit.
struct Unit {
    plan: LaunchPlan,
    lease: File,
    lease_ns: u64,
    spool: spool::Spool,
    requests: OwnedFd,
    shortage: Option<OwnedFd>,
    timer: OwnedFd,
}

/// Makes `supervisor.json` and locks it for the life of this process. The file appears already locked and never replaces
/// one that is there, so a unit has one supervisor in its whole life.
pub(super) fn claim(dir: &Path) -> Result<File, Error> {
    let beside = dir.join(format!(".supervisor-{}", std::process::id()));
    let place = dir.join(record::SUPERVISOR);
    let lock = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed("make the supervisor's record"))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(failed("lock the supervisor's record"))?;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(CWD, &beside, CWD, &place, flags) {
        Ok(()) => Ok(lock),
        Err(errno) => {
            std::fs::remove_file(&beside).map_err(failed("remove a second supervisor's record"))?;
            match errno {
                Errno::EXIST => Err(Error::AlreadyStarted),
                errno => Err(failed("place the supervisor's record")(errno)),
            }
        }
    }
}

/// The namespaces of every unit, and those that the host has.
fn namespaces(base: &Base) -> u64 {
    let mandatory = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let network = match base.network {
        NetworkSource::Sandbox => libc::CLONE_NEWNET,
        NetworkSource::Host | NetworkSource::Lent => 0,
    };
    let time = if base.time_namespace { libc::CLONE_NEWTIME } else { 0 };
    u64::try_from(mandatory | network | time).expect("positive flags")
}

/// Makes the control FIFO. It is opened for both directions, so that it never reports the end of a writer.
fn open_requests(dir: &Path) -> Result<OwnedFd, Error> {
    let path = dir.join(record::CONTROL);
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(failed("make the control FIFO"))?;
    rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the control FIFO"))
}

/// A pipe for one output stream. The job's user owns it, so that `/dev/stdout` can be opened inside.
fn output_pipe(base: &Base, privileged: bool) -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make an output pipe"))?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).map_err(failed("prepare an output pipe"))?;
    if privileged {
        let (uid, gid) = (Uid::from_raw(base.identity.host_uid), Gid::from_raw(base.identity.host_gid));
        rustix::fs::fchown(&write, Some(uid), Some(gid)).map_err(failed("give an output pipe away"))?;
    }
    Ok((read, write))
}

/// The detached mounts that root opens for the child, but of those steps that are `made`.
fn open_sources(
    steps: &[Step],
    made: &Range<usize>,
    privileged: bool,
) -> Result<Vec<Option<OwnedFd>>, Error> {
    steps
        .iter()
        .enumerate()
        .map(|(index, step)| {
            if !privileged || made.contains(&index) {
                return Ok(None);
            }
            child::open_tree_of(step)
                .map_err(|errno| Error::Step { step: step.to_string(), errno: errno.raw_os_error() })
        })
        .collect()
}

/// What the child needs to enter its cgroups: `tasks` files (v1) or the folder itself (v2).
fn open_cgroups(cgroups: Option<&Cgroups>) -> Result<(Vec<OwnedFd>, Option<OwnedFd>), Error> {
    let Some(cgroups) = cgroups else { return Ok((Vec::new(), None)) };
    let open = |path: PathBuf, flags: OFlags| {
        rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed(format!("open cgroup {}", path.display())))
    };
    if cgroups.v2 {
        let dir = cgroups.dirs.first().map(|dir| open(dir.clone(), OFlags::PATH | OFlags::DIRECTORY));
        return Ok((Vec::new(), dir.transpose()?));
    }
    let tasks =
        cgroups.dirs.iter().map(|dir| open(dir.join("tasks"), OFlags::WRONLY)).collect::<Result<_, _>>()?;
    Ok((tasks, None))
}

/// Writes the id maps, and lets the first process go. Gives its mount namespace, which later only root could open.
fn release(base: &Base, init: Pid, control: &OwnedFd, privileged: bool) -> Result<OwnedFd, Error> {
    let pid = init.as_raw_nonzero().get();
    let proc = rustix::fs::open(
        format!("/proc/{pid}"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("find the sandbox's first process"))?;
    let write = |name: &str, content: &str| {
        let file = rustix::fs::openat(&proc, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed(format!("open {name}")))?;
        rustix::io::write(&file, content.as_bytes()).map_err(failed(format!("write {name}")))
    };
    let ids = base.identity;
    if !privileged {
        write("setgroups", "deny")?;
    }
    write("gid_map", &format!("{} {} 1", ids.gid, ids.host_gid))?;
    write("uid_map", &format!("{} {} 1", ids.uid, ids.host_uid))?;
    write("oom_score_adj", &base.oom_score_adj.to_string())?;
    let mounts = rustix::fs::openat(&proc, "ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("hold the mount namespace"))?;
    rustix::io::write(control, &[child::GO]).map_err(failed("let the sandbox go"))?;
    Ok(mounts)
}

/// The names of this process and the first one of its sandbox.
fn names(init: Pid) -> Result<[ProcessName; 2], Error> {
    let name = |pid: Pid| {
        let pid = pid.as_raw_nonzero().get();
        record::start_time(pid)
            .map(|start_time| ProcessName { pid, start_time })
            .map_err(failed("read a start time"))
    };
    Ok([name(rustix::process::getpid())?, name(init)?])
}

/// Writes this supervisor's record.
fn note([supervisor, init]: [ProcessName; 2], lock: &mut File, boot_id: &str) -> Result<(), Error> {
    let entry = SupervisorRecord { supervisor, init, boot_id: boot_id.to_owned() };
    let text = serde_json::to_vec(&entry).map_err(failed("write the supervisor's record"))?;
    lock.write_all(&text).map_err(failed("write the supervisor's record"))
}
