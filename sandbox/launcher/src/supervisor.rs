//! The supervisor: one small process for each unit, outside the agent, that holds the unit's output, deadlines and exit
//! record, and that the unit cannot outlive.
//!
//! ```text
//!  stdout ─┐                       ┌─► output (spool)
//!  stderr ─┤                       │
//!  set-up ─┼─► poll ─► Supervisor ─┼─► init: TERM, KILL
//!  init   ─┤                       │
//!  control┤                        └─► exit.json
//!  timer  ─┘
//! ```
//!
//! It knows nothing of the agent: it reads its plan from the unit's folder and the deadline from the lease file.

mod disk;
mod spool;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::child::{self, Child, Report};
use crate::deadline::{self, boottime_ns, wall_ms};
use crate::exit::{EndReason, Exit, KillProof, Usage};
use crate::frame::Stream;
use crate::plan::{self, Cgroups, LaunchPlan, Step};
use crate::record::{self, Planned, ProcessName, Reply, StopRequest, SupervisorRecord};
use crate::sys::{self, Fork, NullTerminated};

/// Shortest time between two looks at the workspace's size.
const DISK_PERIOD_NS: u64 = 250_000_000;
/// A look takes at most this share of the time: after one that took t, the next comes t × this later.
const DISK_REST: u64 = 20;
/// How long the init may take to kill and reap everything before it is killed itself.
const INIT_PATIENCE_NS: u64 = 250_000_000;
/// How long to wait for cgroups to empty once the pid namespace is gone.
const EMPTY_BOUND_NS: u64 = 5_000_000_000;
/// One read of a pipe.
const READ: usize = 64 << 10;
const MS: u64 = 1_000_000;

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Another supervisor has or had this unit.
    #[error("unit was started before")]
    AlreadyStarted,
    /// Something that the supervisor itself needs failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A step of the plan failed.
    #[error("{step}: {}", io::Error::from_raw_os_error(*errno))]
    Step {
        /// The step, in words.
        step: String,
        /// Why it failed.
        errno: i32,
    },
    /// The plan is of another version of this program.
    #[error("plan has version {version}, expected {}", plan::VERSION)]
    Version {
        /// The plan's version.
        version: u32,
    },
}

/// Wraps a failure of `what`.
fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source: source.into() }
}

/// Runs the unit of a folder to its end and answers through `reply` once. Gives this process's exit code.
pub(crate) fn run(dir: &Path, boot_id: &str, reply: OwnedFd) -> i32 {
    // The agent's standard error is not held open; what a panic has to say stays with the unit.
    let told = dir.join("panic");
    std::panic::set_hook(Box::new(move |panic| {
        // There is nowhere else to say it.
        let _lost = std::fs::write(&told, format!("{panic}\n"));
    }));
    let mut reply = Some(File::from(reply));
    // Held until this process ends, which is after the exit was published.
    let mut lock = match claim(dir) {
        Ok(lock) => lock,
        Err(Error::AlreadyStarted) => {
            answer(&mut reply, &Reply::AlreadyStarted);
            return 0;
        }
        Err(error) => {
            answer(&mut reply, &Reply::Failed { message: error.to_string() });
            return 1;
        }
    };
    match Supervisor::start(dir, boot_id, &mut lock) {
        Ok(mut supervisor) => {
            supervisor.attend(&mut reply);
            let (exit, failure) = supervisor.finish();
            let published = record::publish(dir, record::EXIT, &exit);
            match failure {
                Some(message) => answer(&mut reply, &Reply::Failed { message }),
                None => answer(&mut reply, &Reply::Ended),
            }
            i32::from(published.is_err())
        }
        Err(error) => {
            let message = error.to_string();
            let exit = setup_failed(message.clone());
            let published = record::publish(dir, record::EXIT, &exit);
            answer(&mut reply, &Reply::Failed { message });
            i32::from(published.is_err())
        }
    }
}

/// Answers, if that was not done before.
fn answer(reply: &mut Option<File>, with: &Reply) {
    if let Some(mut pipe) = reply.take() {
        let text = serde_json::to_vec(with).expect("a reply has no part that JSON lacks");
        // The one who asked may be gone; the unit's folder tells it all the same.
        let _gone = pipe.write_all(&text);
    }
}

/// Makes `supervisor.json` and locks it for the life of this process. The file appears already locked and never replaces
/// one that is there, so a unit has one supervisor in its whole life.
fn claim(dir: &Path) -> Result<File, Error> {
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

/// The exit of a unit whose sandbox could not be made.
fn setup_failed(message: String) -> Exit {
    Exit {
        reason: EndReason::SetupFailed,
        code: None,
        signal: None,
        message: Some(message),
        program_started: false,
        started_at_ms: None,
        ended_at_ms: wall_ms(),
        usage: Usage::default(),
        stdout: Default::default(),
        stderr: Default::default(),
        proof: None,
        teardown: Vec::new(),
    }
}

/// A stop under way.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    reason: EndReason,
    /// When KILL goes out.
    kill_at_ns: u64,
}

/// A disk limit and where its measuring is.
struct DiskWatch {
    limit: plan::Disk,
    walk: Option<(disk::Walk, u64)>,
    next_ns: u64,
}

/// What became of the program so far.
#[derive(Debug, Clone, Copy, Default)]
struct Program {
    /// Its process exists.
    forked: bool,
    /// Its first instruction ran: the set-up pipe closed without a failure.
    started_at_ms: Option<i64>,
    started_ns: u64,
    /// Why it could not be executed.
    exec_failure: Option<i32>,
    /// Its wait status.
    status: Option<i32>,
}

/// A running unit.
struct Supervisor {
    plan: LaunchPlan,
    spool: spool::Spool,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    setup: Option<OwnedFd>,
    setup_bytes: Vec<u8>,
    /// The line to the init; `None` once that has closed it.
    control: Option<OwnedFd>,
    requests: OwnedFd,
    request_bytes: Vec<u8>,
    signals: OwnedFd,
    timer: OwnedFd,
    timer_ns: u64,
    lease: File,
    lease_ns: u64,
    init: Pid,
    init_fd: OwnedFd,
    program: Program,
    setup_failure: Option<Error>,
    stopping: Option<Stopping>,
    /// Once everything was killed: when the init itself is killed, [`u64::MAX`] once it was.
    killed: Option<u64>,
    disk: Option<DiskWatch>,
    proof: KillProof,
    buffer: Vec<u8>,
}

impl Supervisor {
    /// Makes everything, clones the sandbox's first process, and lets it go.
    fn start(dir: &Path, boot_id: &str, lock: &mut File) -> Result<Self, Error> {
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
        let child = Child {
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
            privileged,
        };
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

    /// Serves the unit until the first process of its pid namespace has ended.
    fn attend(&mut self, reply: &mut Option<File>) {
        loop {
            self.check_deadlines();
            let measuring = self.measure();
            self.arm_timer();
            let [ended, setup, stdout, stderr, control, requests, signals] = self.wait(measuring);
            if setup {
                self.read_setup(reply);
            }
            if stdout {
                self.read_output(Stream::Stdout);
            }
            if stderr {
                self.read_output(Stream::Stderr);
            }
            if control {
                self.read_status();
            }
            if requests {
                self.read_requests();
            }
            if signals {
                let mut siginfo = [0; 128];
                while rustix::io::read(&self.signals, &mut siginfo).is_ok() {}
                let grace = self.plan.grace_ms;
                self.stop(EndReason::Cancelled, grace);
            }
            if ended {
                return;
            }
        }
    }

    /// Waits for the next event; gives which descriptors have one.
    fn wait(&self, measuring: bool) -> [bool; 7] {
        let mut polled = [
            PollFd::new(&self.init_fd, PollFlags::IN),
            self.watched(self.setup.as_ref()),
            self.watched(self.stdout.as_ref()),
            self.watched(self.stderr.as_ref()),
            self.watched(self.control.as_ref()),
            PollFd::new(&self.requests, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = measuring.then_some(&now);
        match rustix::event::poll(&mut polled, timeout) {
            Ok(_) => {}
            // Nothing is known to be ready, so the loop looks at the deadlines and waits again.
            Err(_) => return [false; 7],
        }
        let mut expired = [0; 8];
        if !polled[7].revents().is_empty() {
            // Only to clear it; the deadlines are looked at every time.
            let _cleared = rustix::io::read(&self.timer, &mut expired);
        }
        std::array::from_fn(|index| !polled[index].revents().is_empty())
    }

    /// Watches a descriptor for input; for one that is closed, the timer stands in and is watched for nothing.
    fn watched<'a>(&'a self, fd: Option<&'a OwnedFd>) -> PollFd<'a> {
        match fd {
            Some(fd) => PollFd::new(fd, PollFlags::IN),
            None => PollFd::new(&self.timer, PollFlags::empty()),
        }
    }

    /// Looks at lease, time limit and grace.
    fn check_deadlines(&mut self) {
        let now = boottime_ns();
        if now >= self.lease_ns {
            // A torn record is being written at this moment; the next look sees it whole.
            if let Some(renewed) = read_lease(&self.lease) {
                self.lease_ns = renewed;
            }
            if now >= self.lease_ns {
                self.stop(EndReason::LeaseExpired, 0);
            }
        }
        if let Some(timeout) = self.plan.timeout_ms
            && self.program.started_at_ms.is_some()
            && self.program.exec_failure.is_none()
            && now >= self.program.started_ns.saturating_add(timeout.saturating_mul(MS))
        {
            self.stop_once(EndReason::Timeout, self.plan.grace_ms);
        }
        if self.stopping.is_some_and(|stopping| now >= stopping.kill_at_ns) {
            self.kill();
        }
        self.kill_init_when_due(now);
    }

    /// Sets the timer to the next deadline.
    fn arm_timer(&mut self) {
        let mut next = self.lease_ns;
        if let Some(due) = self.killed {
            next = due;
        } else if let Some(stopping) = self.stopping {
            next = next.min(stopping.kill_at_ns);
        } else if let Some(timeout) = self.plan.timeout_ms
            && self.program.started_at_ms.is_some()
        {
            next = next.min(self.program.started_ns.saturating_add(timeout.saturating_mul(MS)));
        }
        if let Some(disk) = &self.disk
            && self.killed.is_none()
            && disk.walk.is_none()
        {
            next = next.min(disk.next_ns);
        }
        if next == self.timer_ns {
            return;
        }
        self.timer_ns = next;
        // An absolute time of zero would disarm the timer.
        let at = next.max(1);
        let value = Timespec {
            tv_sec: i64::try_from(at / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at % 1_000_000_000).expect("below a second"),
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: never, it_value: value };
        if rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec).is_err() {
            // Without a timer no deadline could be kept, and an unsupervised unit must not run.
            self.kill();
        }
    }

    /// Measures the workspace when it is time; gives whether a measurement is under way.
    fn measure(&mut self) -> bool {
        if self.killed.is_some() {
            return false;
        }
        let Some(disk) = &mut self.disk else { return false };
        let now = boottime_ns();
        if disk.walk.is_none() {
            if now < disk.next_ns {
                return false;
            }
            disk.walk = Some((disk::Walk::start(&disk.limit.path), now));
        }
        let Some((walk, began)) = &mut disk.walk else { return false };
        let Some(bytes) = walk.advance() else { return true };
        let took = boottime_ns().saturating_sub(*began);
        disk.walk = None;
        disk.next_ns = boottime_ns() + DISK_PERIOD_NS.max(took.saturating_mul(DISK_REST));
        if bytes > disk.limit.bytes {
            self.stop(EndReason::DiskLimit, 0);
        }
        false
    }

    /// Stops for a reason that must not repeat its TERM.
    fn stop_once(&mut self, reason: EndReason, grace_ms: u64) {
        if self.stopping.is_none() {
            self.stop(reason, grace_ms);
        }
    }

    /// TERM now and KILL after the grace. A stop that is under way keeps its reason and can only come sooner.
    fn stop(&mut self, reason: EndReason, grace_ms: u64) {
        if self.killed.is_some() {
            return;
        }
        let kill_at_ns = boottime_ns().saturating_add(grace_ms.saturating_mul(MS));
        match &mut self.stopping {
            Some(stopping) => stopping.kill_at_ns = stopping.kill_at_ns.min(kill_at_ns),
            None => {
                self.stopping = Some(Stopping { reason, kill_at_ns });
                if grace_ms > 0 && self.program.forked {
                    self.proof.term_sent_at_ms = Some(wall_ms());
                    if let Some(control) = &self.control {
                        // If the line is closed, the sandbox is ending already.
                        let _ending = rustix::io::write(control, &[child::TERM]);
                    }
                }
            }
        }
        // A sandbox that is still being made has nobody to be polite to.
        if grace_ms == 0 || !self.program.forked {
            self.kill();
        }
    }

    /// KILL of everything. The init is asked first, because it can reap what it kills, which the kernel needs to count
    /// the processor time; killing the init itself follows, and takes all others with it.
    fn kill(&mut self) {
        if self.killed.is_some() {
            return;
        }
        let now = boottime_ns();
        self.proof.kill_sent_at_ms = Some(wall_ms());
        let asked = self.program.forked
            && self.control.as_ref().is_some_and(|line| rustix::io::write(line, &[child::KILL]).is_ok());
        self.killed = Some(if asked { now + INIT_PATIENCE_NS } else { now });
        self.kill_init_when_due(now);
    }

    /// Kills the init once it has had its time.
    fn kill_init_when_due(&mut self, now: u64) {
        if self.killed.is_none_or(|due| now < due) {
            return;
        }
        self.killed = Some(u64::MAX);
        // It may have ended by itself a moment ago.
        let _dead_already = rustix::process::pidfd_send_signal(&self.init_fd, Signal::KILL);
        if let Some(Cgroups { v2: true, dirs, .. }) = &self.plan.cgroups {
            for dir in dirs {
                // Only an addition: kernels before 5.14 do not have it.
                let _unavailable = std::fs::write(dir.join("cgroup.kill"), "1");
            }
        }
    }

    /// Reads the set-up pipe; answers the one who asked once the program runs.
    fn read_setup(&mut self, reply: &mut Option<File>) {
        let Some(setup) = &self.setup else { return };
        let mut bytes = [0; 64];
        match rustix::io::read(setup, &mut bytes) {
            Ok(0) => self.setup = None,
            Ok(count) => {
                self.setup_bytes.extend_from_slice(&bytes[..count]);
                self.take_reports();
                return;
            }
            Err(Errno::INTR | Errno::AGAIN) => return,
            Err(_) => self.setup = None,
        }
        // Closed by all: the program was executed, or could not be, or the sandbox is gone.
        if self.program.forked {
            self.program.started_at_ms = Some(wall_ms());
            self.program.started_ns = boottime_ns();
            answer(reply, &Reply::Started);
        }
    }

    /// Takes whole reports out of what was read from the set-up pipe.
    fn take_reports(&mut self) {
        while let Some((report, rest)) = self.setup_bytes.split_first_chunk::<{ Report::LENGTH }>() {
            let report = Report::decode(report);
            self.setup_bytes = rest.to_vec();
            match report {
                Some(Report::Forked) => self.program.forked = true,
                Some(Report::ExecFailed { errno }) => self.program.exec_failure = Some(errno),
                Some(Report::ForkFailed { errno }) => {
                    self.setup_failure = Some(Error::Step { step: "fork the program".to_owned(), errno });
                }
                Some(Report::StepFailed { index, errno }) => {
                    let index = usize::try_from(index).unwrap_or(usize::MAX);
                    let step = self.plan.steps.get(index);
                    let step = step.map_or_else(|| format!("step {index}"), ToString::to_string);
                    self.setup_failure = Some(Error::Step { step, errno });
                }
                None => {}
            }
        }
    }

    /// Reads what a stream has now.
    fn read_output(&mut self, stream: Stream) {
        let end = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(fd) = end else { return };
        match rustix::io::read(&*fd, &mut self.buffer) {
            Ok(0) => {
                *end = None;
                self.spool.close(stream, wall_ms());
            }
            Ok(count) => self.spool.push(stream, &self.buffer[..count], wall_ms()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => *end = None,
        }
    }

    /// Reads the program's status from the init.
    fn read_status(&mut self) {
        let Some(control) = &self.control else { return };
        let mut message = [0; 5];
        match rustix::net::recv(control, &mut message, rustix::net::RecvFlags::DONTWAIT) {
            Ok((5, _)) => {
                if let Some(status) = message[1..].first_chunk::<4>() {
                    self.program.status = Some(i32::from_le_bytes(*status));
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => self.control = None,
        }
    }

    /// Reads stop requests.
    fn read_requests(&mut self) {
        let mut bytes = [0; 4096];
        if let Ok(count) = rustix::io::read(&self.requests, &mut bytes) {
            self.request_bytes.extend_from_slice(&bytes[..count]);
        }
        while let Some(end) = self.request_bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.request_bytes.drain(..=end).collect();
            // Only the agent's user can write here; a line that is no request asks for nothing.
            if let Ok(request) = serde_json::from_slice::<StopRequest>(&line) {
                self.stop(request.reason, request.grace_ms);
            }
        }
    }

    /// Confirms that nothing is left, and tells how it was. Gives the exit and, if there was no sandbox, why.
    fn finish(mut self) -> (Exit, Option<String>) {
        let mut teardown = Vec::new();
        self.read_status();
        let (init_status, usage) = match sys::reap(self.init) {
            Ok((status, usage)) => {
                self.proof.namespace_empty = true;
                (Some(status), Some(usage))
            }
            Err(errno) => {
                teardown.push(format!("reap the sandbox's first process: {errno}"));
                (None, None)
            }
        };
        // All writers are dead; what they wrote is still in the pipes.
        while self.setup.is_some() {
            self.read_setup(&mut None);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.drain(stream);
        }
        let counters = self.plan.cgroups.as_ref().map(|cgroups| {
            self.proof.cgroup_empty = Some(confirm_empty(cgroups, &mut teardown));
            Counters::read(cgroups)
        });
        let counters = counters.unwrap_or_default();
        self.proof.confirmed_at_ms = wall_ms();
        if let Some(error) = self.spool.failure() {
            teardown.push(format!("write the output spool: {error}"));
        }
        let ending = self.ending(init_status, &counters);
        let failure = (ending.reason == EndReason::SetupFailed).then(|| {
            ending.message.clone().unwrap_or_else(|| "the sandbox ended while it was made".to_owned())
        });
        let program_started = self.program.started_at_ms.is_some() && self.program.exec_failure.is_none();
        let exit = Exit {
            reason: ending.reason,
            code: ending.code,
            signal: ending.signal,
            message: ending.message,
            program_started,
            started_at_ms: self.program.started_at_ms.filter(|_| program_started),
            ended_at_ms: self.proof.confirmed_at_ms,
            usage: usage_of(usage.as_ref(), &counters),
            stdout: self.spool.end(Stream::Stdout),
            stderr: self.spool.end(Stream::Stderr),
            proof: Some(self.proof),
            teardown,
        };
        (exit, failure)
    }

    /// Reads what is left in a stream's pipe; never waits for a writer.
    fn drain(&mut self, stream: Stream) {
        loop {
            let end = match stream {
                Stream::Stdout => &self.stdout,
                Stream::Stderr => &self.stderr,
            };
            let Some(fd) = end else { return };
            let mut polled = [PollFd::new(fd, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match rustix::event::poll(&mut polled, Some(&now)) {
                Ok(0) => {
                    // Somebody outside holds the pipe; nothing of the unit does.
                    self.spool.close(stream, wall_ms());
                    return;
                }
                Ok(_) | Err(Errno::INTR) => self.read_output(stream),
                Err(_) => return,
            }
        }
    }

    /// Decides the reason.
    fn ending(&self, init_status: Option<i32>, counters: &Counters) -> Ending {
        let plain = |reason, message: Option<String>| Ending { reason, code: None, signal: None, message };
        if let Some(error) = &self.setup_failure {
            return plain(EndReason::SetupFailed, Some(error.to_string()));
        }
        if let Some(errno) = self.program.exec_failure {
            let name = self.plan.arguments.first().map_or("", plan::Text::as_str);
            let code = child::exec_failure_code(errno);
            let message = if code == child::NOT_FOUND {
                format!("{name}: command not found")
            } else {
                format!("{name}: cannot be executed: {}", io::Error::from_raw_os_error(errno))
            };
            return Ending { code: Some(code), ..plain(EndReason::Exited, Some(message)) };
        }
        let status = self.program.status;
        let code = status.filter(|status| libc::WIFEXITED(*status)).map(|status| libc::WEXITSTATUS(status));
        let mut signal =
            status.filter(|status| libc::WIFSIGNALED(*status)).map(|status| libc::WTERMSIG(status));
        if status.is_none() && init_status.is_some_and(|status| libc::WIFSIGNALED(status)) {
            // The init was killed and took the program with it.
            signal = self.program.forked.then_some(libc::SIGKILL);
        }
        let with = |reason, message| Ending { code, signal, ..plain(reason, message) };
        if let Some(stopping) = self.stopping {
            let message = match stopping.reason {
                EndReason::Timeout => {
                    self.plan.timeout_ms.map(|limit| format!("time limit of {limit} ms passed"))
                }
                EndReason::DiskLimit => self
                    .plan
                    .disk
                    .as_ref()
                    .map(|disk| format!("workspace grew past its limit of {} bytes", disk.bytes)),
                EndReason::LeaseExpired => Some("lease expired without a renewal".to_owned()),
                _ => None,
            };
            return with(stopping.reason, message);
        }
        let succeeded = code == Some(0);
        if counters.oom_kills > 0 && !succeeded {
            return with(EndReason::OOMKilled, Some("memory limit exceeded".to_owned()));
        }
        if !self.program.forked {
            return plain(EndReason::SetupFailed, Some("the sandbox ended while it was made".to_owned()));
        }
        if counters.pids_refused > 0 && !succeeded {
            return with(EndReason::PidsLimit, Some("pids limit reached".to_owned()));
        }
        match signal {
            Some(_) => with(EndReason::Signalled, None),
            None => with(EndReason::Exited, None),
        }
    }
}

/// How the program ended.
struct Ending {
    reason: EndReason,
    code: Option<i32>,
    signal: Option<i32>,
    message: Option<String>,
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

/// Reads a lease, looking a few times if it is being written.
fn read_lease(file: &File) -> Option<u64> {
    for _ in 0..100 {
        let mut bytes = [0; deadline::LENGTH];
        if file.read_exact_at(&mut bytes, 0).is_ok()
            && let Some(deadline) = deadline::decode(&bytes)
        {
            return Some(deadline);
        }
    }
    None
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
    let Step::Seccomp { filter, .. } = step else { return Vec::new() };
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

/// Counts of the unit's cgroups, zero where there is none.
#[derive(Debug, Default)]
struct Counters {
    oom_kills: u64,
    pids_refused: u64,
    peak_memory: Option<u64>,
    peak_pids: Option<u64>,
    cpu_ns: Option<u64>,
}

impl Counters {
    /// Reads them. A file that this kernel does not have is a figure that it does not keep.
    fn read(cgroups: &Cgroups) -> Self {
        let text = |dir: &Option<PathBuf>, file: &str| {
            dir.as_ref().and_then(|dir| std::fs::read_to_string(dir.join(file)).ok())
        };
        let number = |dir: &Option<PathBuf>, file: &str| text(dir, file)?.trim().parse().ok();
        let field = |dir: &Option<PathBuf>, file: &str, key: &str| -> Option<u64> {
            text(dir, file)?.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        let (events, peak) = if cgroups.v2 {
            ("memory.events", "memory.peak")
        } else {
            ("memory.oom_control", "memory.max_usage_in_bytes")
        };
        let unified = cgroups.v2.then(|| cgroups.dirs.first().cloned()).flatten();
        Self {
            oom_kills: field(&cgroups.memory, events, "oom_kill ").unwrap_or(0),
            pids_refused: field(&cgroups.pids, "pids.events", "max ").unwrap_or(0),
            peak_memory: number(&cgroups.memory, peak),
            peak_pids: number(&cgroups.pids, "pids.peak"),
            cpu_ns: field(&unified, "cpu.stat", "usage_usec ").map(|micros| micros * 1000),
        }
    }
}

/// The usage of a unit, from its cgroups where they count, else from what the kernel tells at the reaping.
fn usage_of(usage: Option<&libc::rusage>, counters: &Counters) -> Usage {
    let nanos = |time: &libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0) * 1000
    };
    let reaped = usage.map_or(0, |usage| nanos(&usage.ru_utime) + nanos(&usage.ru_stime));
    let largest = usage.and_then(|usage| u64::try_from(usage.ru_maxrss).ok()).map(|kib| kib * 1024);
    Usage {
        cpu_ns: counters.cpu_ns.unwrap_or(reaped),
        peak_memory_bytes: counters.peak_memory.or(largest),
        peak_pids: counters.peak_pids,
    }
}

/// Whether the unit's cgroups list no process. They are empty once the namespace is gone, unless somebody outside moved
/// a process in; that one is waited for, not killed, and told.
fn confirm_empty(cgroups: &Cgroups, teardown: &mut Vec<String>) -> bool {
    let bound = boottime_ns() + EMPTY_BOUND_NS;
    for dir in &cgroups.dirs {
        loop {
            let mut processes = String::new();
            let read =
                File::open(dir.join("cgroup.procs")).and_then(|mut file| file.read_to_string(&mut processes));
            match read {
                Ok(_) if processes.is_empty() => break,
                Ok(_) if boottime_ns() < bound => {
                    let nap = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
                    let _interrupted = rustix::thread::nanosleep(&nap);
                }
                Ok(_) => {
                    teardown.push(format!("cgroup {} still lists {}", dir.display(), processes.trim()));
                    return false;
                }
                Err(error) => {
                    teardown.push(format!("read cgroup {}: {error}", dir.display()));
                    return false;
                }
            }
        }
    }
    true
}
