//! The beginning of a unit: claim it, open what it needs, clone its first process and let that go.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use rustix::time::{TimerfdClockId, TimerfdFlags};

use super::{DISK_PERIOD_NS, DiskWatch, Error, Program, READ, Supervisor, failed, read_lease, spool};
use crate::child::{self, Child};
use crate::deadline::boottime_ns;
use crate::exit::KillProof;
use crate::plan::{self, Cgroups, LaunchPlan, Step};
use crate::record::{self, Planned, ProcessName, SupervisorRecord};
use crate::sys::{self, Fork, NullTerminated};

impl Supervisor {
    /// Makes everything, clones the sandbox's first process, and lets it go.
    pub(super) fn start(dir: &Path, boot_id: &str, lock: &mut File) -> Result<Self, Error> {
        let planned: Option<Planned> =
            record::read(&dir.join(record::PLAN)).map_err(failed("read the plan"))?;
        let plan = planned.ok_or_else(|| failed("read the plan")(Errno::NOENT))?.launch;
        if plan.version != plan::VERSION {
            return Err(Error::Version { version: plan.version });
        }
        let lease =
            File::open(&plan.lease).map_err(failed(format!("open lease {}", plan.lease.display())))?;
        let lease_ns = read_lease(&lease).ok_or_else(|| failed("read the lease")(Errno::INVAL))?;
        let spool = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.join(record::OUTPUT))
            .map_err(failed("open the output spool"))?;
        let requests = open_requests(dir)?;
        let signals =
            sys::signal_fd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(failed("take signals"))?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(failed("make a timer"))?;

        let privileged = rustix::process::geteuid().is_root();
        let (stdout, stdout_end) = output_pipe(&plan, privileged)?;
        let (stderr, stderr_end) = output_pipe(&plan, privileged)?;
        let (setup, setup_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make the set-up pipe"))?;
        let (control, control_end) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed("make the control line"))?;
        let (tasks, cgroup) = open_cgroups(plan.cgroups.as_ref())?;
        let mut child = Child {
            plan: &plan,
            sources: open_sources(&plan, privileged)?,
            filters: plan.steps.iter().map(filter_of).collect(),
            tasks,
            arguments: NullTerminated::new(plan.arguments.iter().map(plan::Text::as_c_str)),
            environment: NullTerminated::new(plan.environment.iter().map(plan::Text::as_c_str)),
            setup: setup_end,
            control: control_end,
            stdout: stdout_end,
            stderr: stderr_end,
            stack: Some(sys::Stack::new()),
            privileged,
            kept: Vec::new(),
        };
        child.keep_own();
        // SAFETY: a supervisor has one thread: it is forked from a process with one thread and makes none.
        #[expect(unsafe_code, reason = "clone of a process with one thread")]
        let cloned = unsafe { sys::clone_into(namespaces(&plan), cgroup.as_ref().map(AsFd::as_fd)) };
        let (init, init_fd) = match cloned.map_err(failed("make namespaces"))? {
            (Fork::Child, _) => child::run(child),
            (Fork::Parent(init), Some(init_fd)) => (init, init_fd),
            (Fork::Parent(_), None) => return Err(failed("make namespaces")(Errno::BADF)),
        };
        // From here on the sandbox's ends must be closed here, or their ends would never be seen.
        drop(child);
        if let Err(error) = release(&plan, init, &control, lock, boot_id, privileged) {
            // It was not let go, so nothing has run.
            let _dead_already = rustix::process::pidfd_send_signal(&init_fd, Signal::KILL);
            let _reaped = sys::reap(init);
            return Err(error);
        }
        let disk = plan.disk.clone().map(|limit| DiskWatch {
            limit,
            walk: None,
            next_ns: boottime_ns() + DISK_PERIOD_NS,
        });
        Ok(Self {
            spool: spool::Spool::new(spool, plan.output_cap),
            plan,
            stdout: Some(stdout),
            stderr: Some(stderr),
            setup: Some(setup),
            setup_bytes: Vec::new(),
            control: Some(control),
            requests,
            request_bytes: Vec::new(),
            signals,
            timer,
            timer_ns: 0,
            lease,
            lease_ns,
            init,
            init_fd,
            program: Program::default(),
            setup_failure: None,
            stopping: None,
            killed: None,
            disk,
            proof: KillProof::default(),
            buffer: vec![0; READ],
        })
    }
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
fn namespaces(plan: &LaunchPlan) -> u64 {
    let mandatory = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let time = if plan.time_namespace { libc::CLONE_NEWTIME } else { 0 };
    u64::try_from(mandatory | time).expect("positive flags")
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
fn output_pipe(plan: &LaunchPlan, privileged: bool) -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make an output pipe"))?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).map_err(failed("prepare an output pipe"))?;
    if privileged {
        let (uid, gid) = (Uid::from_raw(plan.identity.host_uid), Gid::from_raw(plan.identity.host_gid));
        rustix::fs::fchown(&write, Some(uid), Some(gid)).map_err(failed("give an output pipe away"))?;
    }
    Ok((read, write))
}

/// The detached mounts that root opens for the child.
fn open_sources(plan: &LaunchPlan, privileged: bool) -> Result<Vec<Option<OwnedFd>>, Error> {
    plan.steps
        .iter()
        .map(|step| {
            if !privileged {
                return Ok(None);
            }
            child::open_tree_of(step)
                .map_err(|errno| Error::Step { step: step.to_string(), errno: errno.raw_os_error() })
        })
        .collect()
}

/// A step's filter in the kernel's form.
#[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the number that holds them")]
fn filter_of(step: &Step) -> Vec<libc::sock_filter> {
    let Step::Seccomp { filter } = step else { return Vec::new() };
    let unpack = |word: &u64| libc::sock_filter {
        code: (word >> 48) as u16,
        jt: (word >> 40) as u8,
        jf: (word >> 32) as u8,
        k: *word as u32,
    };
    filter.0.iter().map(unpack).collect()
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

/// Writes the id maps and this supervisor's record, then lets the sandbox go.
fn release(
    plan: &LaunchPlan,
    init: Pid,
    control: &OwnedFd,
    lock: &mut File,
    boot_id: &str,
    privileged: bool,
) -> Result<(), Error> {
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
    let ids = plan.identity;
    if !privileged {
        write("setgroups", "deny")?;
    }
    write("gid_map", &format!("{} {} 1", ids.gid, ids.host_gid))?;
    write("uid_map", &format!("{} {} 1", ids.uid, ids.host_uid))?;
    write("oom_score_adj", &plan.oom_score_adj.to_string())?;
    let name = |pid: i32| {
        record::start_time(pid)
            .map(|start_time| ProcessName { pid, start_time })
            .map_err(failed("read a start time"))
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let entry = SupervisorRecord { supervisor: name(own)?, init: name(pid)?, boot_id: boot_id.to_owned() };
    let text = serde_json::to_vec(&entry).map_err(failed("write the supervisor's record"))?;
    lock.write_all(&text).map_err(failed("write the supervisor's record"))?;
    rustix::io::write(control, &[child::GO]).map_err(failed("let the sandbox go"))?;
    Ok(())
}
