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

pub(crate) mod disk;
mod ending;
mod setup;
pub(crate) mod spool;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec};
use serde_json::value::RawValue;

use self::setup::Foundation;
use crate::child::{self, Report};
use crate::deadline::{self, boottime_ns, wall_ms};
use crate::exit::{EndReason, KillProof};
use crate::frame::Stream;
use crate::handout::{self, Handout};
use crate::network::Network;
use crate::plan::{self, Base, Cgroups, DiskKeeper, LaunchPlan, NetworkSource};
use crate::record::{self, Reply, Reserved, StopRequest};
use crate::spawner;
use crate::stock::Stock;
use crate::sys;

/// Shortest time between two looks at the workspace's size.
const DISK_PERIOD_NS: u64 = 250_000_000;
/// A look takes at most this share of the time: after one that took t, the next comes t × this later, within
/// [`DISK_PERIOD_MAX_NS`].
const DISK_REST: u64 = 20;
/// Longest time between two looks, however long they take: what a unit can write unseen.
const DISK_PERIOD_MAX_NS: u64 = 1_000_000_000;
/// How long the init may take to kill and reap everything before it is killed itself.
const INIT_PATIENCE_NS: u64 = 250_000_000;
/// Room for the exit record, many times what it takes.
const EXIT_ROOM: u64 = 16 << 10;
/// What must be left of a workspace that the file system limits: less cannot take a file of any use, and how full a file
/// system is can be told wrong by what it has not yet put in its place.
const DISK_ROOM: u64 = 64 << 10;
/// Between two looks for the victim of a cgroup that is out of memory: its kernel tells of the lack before the kill.
const OOM_PERIOD_NS: u64 = 5_000_000;
/// How long the victim is looked for: a lack that memory was found for in the end has none.
const OOM_BOUND_NS: u64 = 1_000_000_000;
/// One read of a pipe.
const READ: usize = 64 << 10;
const MS: u64 = 1_000_000;

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Another supervisor has or had this unit.
    #[error("unit was started before")]
    AlreadyStarted,
    /// The lease is over before anything was begun.
    #[error("{}", ending::LEASE_EXPIRED)]
    LeaseExpired,
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
pub(crate) fn run(dir: &Path, boot_id: &str, stock: Stock, reply: OwnedFd) -> i32 {
    run_on(Err(stock), dir, boot_id, reply)
}

/// Makes the base of a unit that is yet to come, and then runs the one that arrives on `requests`. Ends without one when
/// the spawner drops its end.
pub(crate) fn run_spare(base: Spare, boot_id: &str, stock: Stock, requests: &OwnedFd) -> i32 {
    // Why it cannot be made is told to the unit that then tries the same for itself.
    let Ok(foundation) = Foundation::make(&base.base, None, stock) else { return 1 };
    let mut polled = [
        PollFd::new(requests, PollFlags::IN),
        PollFd::new(&foundation.init_fd, PollFlags::IN),
        PollFd::new(&foundation.signals, PollFlags::IN),
    ];
    while matches!(rustix::event::poll(&mut polled, None), Err(Errno::INTR)) {}
    let waiting = polled[1..].iter().all(|other| other.revents().is_empty());
    match if waiting { spawner::receive_unit(requests) } else { Ok(None) } {
        Ok(Some((dir, reply))) => run_on(Ok((foundation, base)), &dir, boot_id, reply),
        Ok(None) | Err(_) => {
            foundation.abandon();
            0
        }
    }
}

/// What a spare is made of: the base, and the text that it was read from.
pub(crate) struct Spare {
    pub(crate) base: Base,
    pub(crate) text: Vec<u8>,
}

/// What a supervisor has of a sandbox when it is to begin its unit's.
enum Beginning {
    Nothing(Stock),
    Spare(Foundation),
}

fn run_on(made: Result<(Foundation, Spare), Stock>, dir: &Path, boot_id: &str, reply: OwnedFd) -> i32 {
    let yields = match &made {
        Ok((foundation, _)) => foundation.yields(),
        Err(stock) => stock.yields,
    };
    if yields {
        crate::yield_no_more();
    }
    // The agent's standard error is not held open; what a panic has to say stays with the unit.
    let told = dir.join("panic");
    std::panic::set_hook(Box::new(move |panic| {
        // There is nowhere else to say it.
        let _lost = std::fs::write(&told, format!("{panic}\n"));
    }));
    let mut reply = Some(File::from(reply));
    // Held until this process ends, which is after the exit was published.
    let mut lock = match setup::claim(dir) {
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
    let room = Reserved::new(dir, record::EXIT, EXIT_ROOM).map_err(failed("take room for the exit record"));
    let room = match room {
        Ok(room) => room,
        Err(error) => {
            answer(&mut reply, &Reply::Failed { message: error.to_string() });
            return 1;
        }
    };
    let started = setup::read_plan(dir).and_then(|plan| {
        let (plan, beginning) = begin(plan, made)?;
        Supervisor::start(dir, plan, beginning, boot_id, &mut lock)
    });
    match started {
        Ok(mut supervisor) => {
            supervisor.attend(&mut reply);
            let (exit, failure) = supervisor.finish();
            let published = room.publish(&exit);
            match failure {
                Some(message) => answer(&mut reply, &Reply::Failed { message }),
                None => answer(&mut reply, &Reply::Ended),
            }
            supervisor.give_network_back();
            i32::from(published.is_err())
        }
        Err(error @ Error::LeaseExpired) => {
            let exit = ending::not_begun(EndReason::LeaseExpired, error.to_string());
            let published = room.publish(&exit);
            answer(&mut reply, &Reply::Ended);
            i32::from(published.is_err())
        }
        Err(error) => {
            let message = error.to_string();
            let exit = ending::not_begun(EndReason::SetupFailed, message.clone());
            let published = room.publish(&exit);
            answer(&mut reply, &Reply::Failed { message });
            i32::from(published.is_err())
        }
    }
}

/// The whole plan, and what of its sandbox is there: the spare, if it has the plan's base.
fn begin(
    plan: LaunchPlan<Box<RawValue>>,
    made: Result<(Foundation, Spare), Stock>,
) -> Result<(LaunchPlan, Beginning), Error> {
    let takes_spare = plan.takes_spare();
    let spare_was_there = made.is_ok();
    let stock = match made {
        Ok((foundation, spare)) if takes_spare && plan.base.get().as_bytes() == spare.text => {
            return Ok((plan.with_base(spare.base).0, Beginning::Spare(foundation)));
        }
        Ok((foundation, _)) => foundation.abandon(),
        Err(stock) => stock,
    };
    let (plan, text) = plan.with_base(());
    let base: Base = serde_json::from_str(text.get()).map_err(failed("understand the plan's base"))?;
    if spare_was_there && base.network == NetworkSource::Host {
        // This process is in another network by now.
        return Err(failed("take a unit of the host's network for a spare")(Errno::INVAL));
    }
    Ok((plan.with_base(base).0, Beginning::Nothing(stock)))
}

/// Answers, if that was not done before.
fn answer(reply: &mut Option<File>, with: &Reply) {
    if let Some(mut pipe) = reply.take() {
        let text = serde_json::to_vec(with).expect("a reply has no part that JSON lacks");
        // The one who asked may be gone; the unit's folder tells it all the same.
        let _gone = pipe.write_all(&text);
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
    /// The unit's folder.
    dir: PathBuf,
    /// The unit's listening socket, if it has one.
    handout: Option<Handout>,
    /// Tells of system calls that are denied, once there is a filter that hands them on.
    denials: Option<OwnedFd>,
    /// The name of the first one.
    denied: Option<String>,
    /// What the cgroups have counted, once the program's end was told.
    counters: Option<ending::Counters>,
    /// Its network, where it was lent one.
    network: Option<Network>,
    /// Whether it may have had a socket of that network.
    had_sockets: bool,
    requests: OwnedFd,
    request_bytes: Vec<u8>,
    signals: OwnedFd,
    /// Tells that the memory limit was reached, on cgroup version 1.
    shortage: Option<OwnedFd>,
    /// While a victim is looked for: when next, and until when.
    victim: Option<(u64, u64)>,
    timer: OwnedFd,
    timer_ns: u64,
    lease: File,
    lease_ns: u64,
    init: Pid,
    init_fd: OwnedFd,
    /// Held until this process ends.
    #[expect(dead_code, reason = "it is held, not used: see `Foundation`")]
    mounts: OwnedFd,
    program: Program,
    setup_failure: Option<Error>,
    stopping: Option<Stopping>,
    /// Once everything was killed: when the init itself is killed, [`u64::MAX`] once it was.
    killed: Option<u64>,
    disk: Option<DiskWatch>,
    /// The workspace's file system was seen full.
    disk_was_full: bool,
    proof: KillProof,
    buffer: Vec<u8>,
}

impl Supervisor {
    /// Serves the unit until the first process of its pid namespace has ended.
    fn attend(&mut self, reply: &mut Option<File>) {
        loop {
            self.check_deadlines();
            let measuring = self.measure();
            self.arm_timer();
            let [ended, setup, stdout, stderr, control, requests, signals, asked, shortage, denied] =
                self.wait(measuring);
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
                self.read_control();
            }
            if requests {
                self.read_requests();
            }
            if asked && let Some(handout) = &self.handout {
                handout.answer();
            }
            if signals {
                let mut siginfo = [0; 128];
                while rustix::io::read(&self.signals, &mut siginfo).is_ok() {}
                let grace = self.plan.grace_ms;
                self.stop(EndReason::Cancelled, grace);
            }
            if shortage {
                self.note_shortage();
            }
            if denied {
                self.read_denials();
            }
            if ended {
                return;
            }
        }
    }

    /// Waits for the next event; gives which descriptors have one.
    fn wait(&self, measuring: bool) -> [bool; 10] {
        let mut polled = [
            PollFd::new(&self.init_fd, PollFlags::IN),
            self.watched(self.setup.as_ref()),
            self.watched(self.stdout.as_ref()),
            self.watched(self.stderr.as_ref()),
            self.watched(self.control.as_ref()),
            PollFd::new(&self.requests, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            self.watched(self.handout.as_ref().map(Handout::door)),
            self.watched(self.shortage.as_ref()),
            self.watched(self.denials.as_ref()),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = measuring.then_some(&now);
        match rustix::event::poll(&mut polled, timeout) {
            Ok(_) => {}
            // Nothing is known to be ready, so the loop looks at the deadlines and waits again.
            Err(_) => return [false; 10],
        }
        let mut expired = [0; 8];
        if !polled[10].revents().is_empty() {
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
        self.look_for_victim(now);
        self.kill_init_when_due(now);
    }

    /// Takes the news that the memory limit was reached. The kernel kills one process then, of which the others may know
    /// nothing; the whole unit has to end.
    fn note_shortage(&mut self) {
        let mut count = [0; 8];
        if let Some(shortage) = &self.shortage {
            // Only to clear it.
            let _cleared = rustix::io::read(shortage, &mut count);
        }
        let now = boottime_ns();
        self.victim = Some((now, now + OOM_BOUND_NS));
        self.look_for_victim(now);
    }

    /// Ends the unit once the kernel has killed a process of it for want of memory.
    fn look_for_victim(&mut self, now: u64) {
        let Some((due, until)) = self.victim else { return };
        if now < due {
            return;
        }
        let killed = self.plan.cgroups.as_ref().is_some_and(ending::has_oom_kills);
        self.victim = (!killed && now < until).then_some((now + OOM_PERIOD_NS, until));
        if killed {
            self.stop(EndReason::OOMKilled, 0);
        }
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
        if let Some((due, _)) = self.victim {
            next = next.min(due);
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
            if disk.limit.keeper == DiskKeeper::FileSystem {
                disk.next_ns = now + DISK_PERIOD_NS;
                if disk::is_full(&disk.limit.path, DISK_ROOM) {
                    self.disk_was_full = true;
                    self.stop(EndReason::DiskLimit, 0);
                }
                return false;
            }
            disk.walk = Some((disk::Walk::start(&disk.limit.path, disk.limit.bytes), now));
        }
        let Some((walk, began)) = &mut disk.walk else { return false };
        let Some(measure) = walk.advance() else { return true };
        let over = match measure {
            disk::Measure::Over => true,
            disk::Measure::Within(bytes) => {
                let deleted = disk::deleted_bytes(self.init, &disk.limit.path);
                bytes.saturating_add(deleted) > disk.limit.bytes
            }
        };
        let took = boottime_ns().saturating_sub(*began);
        disk.walk = None;
        let rest = took.saturating_mul(DISK_REST).clamp(DISK_PERIOD_NS, DISK_PERIOD_MAX_NS);
        disk.next_ns = boottime_ns() + rest;
        if over {
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
                    let step = self.plan.steps().nth(index);
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
        self.buffer.clear();
        match rustix::io::read(&*fd, rustix::buffer::spare_capacity(&mut self.buffer)) {
            Ok(0) => {
                *end = None;
                self.spool.close(stream, wall_ms());
            }
            Ok(_) => self.spool.push(stream, &self.buffer, wall_ms()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => *end = None,
        }
    }

    /// Reads one thing that the init says: the program's status, or that a descriptor comes with it. Gives whether there
    /// was one.
    fn read_control(&mut self) -> bool {
        let Some(control) = &self.control else { return false };
        let mut message = [0; 5];
        match handout::receive(control, &mut message, rustix::net::RecvFlags::DONTWAIT) {
            Ok((5, None)) if message[0] == child::STATUS => {
                if let Some(status) = message[1..].first_chunk::<4>() {
                    self.program.status = Some(i32::from_le_bytes(*status));
                }
                // All others are gone, and the init is busy with its own end.
                self.counters = self.plan.cgroups.as_ref().map(ending::Counters::read);
            }
            // Without an answer the init would wait for ever; closing its line makes its step fail.
            Ok((5, Some(listener))) if message[0] == child::LISTENER => {
                match Handout::open(&self.dir, listener) {
                    Ok(handout) if rustix::io::write(control, &[child::HELD]).is_ok() => {
                        self.handout = Some(handout);
                    }
                    Ok(_) | Err(_) => self.control = None,
                }
            }
            Ok((5, Some(denials))) if message[0] == child::DENIALS => self.denials = Some(denials),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Ok(_) | Err(_) => self.control = None,
        }
        true
    }

    /// Gives the unit's network back if nothing in it tells of the unit.
    fn give_network_back(&self) {
        if let Some(network) = &self.network
            && self.plan.tells_of_sockets
            && !self.had_sockets
            && self.proof.namespace_empty
        {
            network.give_back();
        }
    }

    /// Takes a system call that the filter hands on. One that is denied ends the unit, and is never answered: its process is killed
    /// while it waits. Any other makes a socket, which is only noted.
    fn read_denials(&mut self) {
        let Some(denials) = &self.denials else { return };
        // Reading would wait for ever once nobody is left who could make a call.
        let mut polled = [PollFd::new(denials, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let told = rustix::event::poll(&mut polled, Some(&now));
        if told != Ok(1) || !polled[0].revents().contains(PollFlags::IN) {
            self.denials = None;
            return;
        }
        // It fails if the process was killed meanwhile.
        let Ok(call) = sys::receive_handed_on(denials.as_fd()) else { return };
        match self.plan.base.denied(call.number) {
            None if self.plan.tells_of_sockets => {
                self.had_sockets = true;
                // Its process may have been killed.
                let _gone = sys::let_go_on(denials.as_fd(), &call);
            }
            name => {
                let name = name.map_or_else(|| call.number.to_string(), |name| name.as_str().to_owned());
                self.denied.get_or_insert(name);
                self.stop(EndReason::SeccompDenied, 0);
            }
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
