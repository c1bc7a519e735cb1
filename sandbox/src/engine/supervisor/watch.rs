//! The life of a unit: what is looked at, and when it is stopped.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::signal::unix::SignalKind;
use windlass_launcher::deadline::{self, boottime_ns, wall_ms};
use windlass_launcher::exit::{EndReason, Exit, KillProof};
use windlass_launcher::frame::Stream;
use windlass_launcher::measure::{Measure, Walk, deleted_bytes, is_full};
use windlass_launcher::record::{self, StopRequest};
use windlass_launcher::{Handout, Spool};

use super::Disk;
use super::begin::{Made, Unit};
use crate::engine::Output;
use crate::engine::cgroup::{ContainerCgroups, Counts};
use crate::error::Error;
use crate::native::watch::readiness;

/// Between looks at what the container uses and has written, for as long as it is young, and later.
const LOOK: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_millis(500);
/// How long a container is young.
const YOUNG_NS: u64 = 10_000_000_000;
/// What must be left of a workspace that its file system limits, as for native units.
const DISK_ROOM: u64 = 64 << 10;
/// How long the engine may take to hand over what is left of the output, and to tell how it ended.
pub(super) const END_BOUND: Duration = Duration::from_secs(10);
/// How long a stream that has ended is asked about.
const ASK_BOUND: Duration = Duration::from_secs(5);
const MS: u64 = 1_000_000;

/// A container that runs, or has run.
pub(super) struct Running {
    pub(super) attached: Option<Output>,
    pub(super) init: Option<AsyncFd<OwnedFd>>,
    /// When it was started, on the wall and since the boot.
    pub(super) started: (i64, u64),
}

/// A stop under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    pub(super) reason: EndReason,
    kill_at_ns: u64,
}

/// See the module.
pub(super) struct Watch {
    pub(super) unit: Unit,
    pub(super) made: Made,
    pub(super) running: Running,
    pub(super) spool: Spool,
    pub(super) stopping: Option<Stopping>,
    pub(super) proof: KillProof,
    pub(super) cgroups: Option<ContainerCgroups>,
    pub(super) counts: Counts,
    /// Why the engine is given up, if it is.
    pub(super) lost: Option<String>,
    lease_ns: u64,
    killed: bool,
}

/// Stop requests from the control FIFO.
pub(super) struct Requests(Option<Lines<BufReader<pipe::Receiver>>>);

impl Requests {
    /// Takes what is written from now on. Both ends are held, so that it never ends.
    pub(super) fn open(dir: &Path) -> Self {
        let opened = pipe::OpenOptions::new().read_write(true).open_receiver(dir.join(record::CONTROL));
        Self(opened.ok().map(|receiver| BufReader::new(receiver).lines()))
    }

    async fn next(&mut self) -> Option<String> {
        match &mut self.0 {
            Some(lines) => lines.next_line().await.ok().flatten(),
            None => std::future::pending().await,
        }
    }
}

/// What happened.
enum Event {
    Output(Option<Result<(Stream, Vec<u8>), Error>>),
    Ended,
    Request(Option<String>),
    Signal,
    Asked,
    Time,
}

impl Watch {
    pub(super) fn new(unit: Unit, made: Made, running: Running, spool: Spool) -> Self {
        let id = made.containers.first().cloned().unwrap_or_default();
        let cgroups = unit.record.init.map(|init| ContainerCgroups::of(init.pid, &id));
        let lease_ns = read_lease(&unit.launch.lease).unwrap_or(0);
        Self {
            unit,
            made,
            running,
            spool,
            stopping: None,
            proof: KillProof::default(),
            cgroups,
            counts: Counts::default(),
            lost: None,
            lease_ns,
            killed: false,
        }
    }

    /// Serves the unit to its end.
    pub(super) async fn serve(mut self, mut requests: Requests) -> Exit {
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).ok();
        let door = self.made.handout.take().and_then(|handout| {
            let door = handout.door().try_clone().ok().and_then(|door| readiness(door).ok())?;
            Some((handout, door))
        });
        let mut look_at = tokio::time::Instant::now();
        while self.running.init.is_some() {
            self.check_deadlines();
            if tokio::time::Instant::now() >= look_at {
                self.look().await;
                let age = boottime_ns().saturating_sub(self.running.started.1);
                look_at = tokio::time::Instant::now() + if age < YOUNG_NS { LOOK } else { LATER };
            }
            let due = tokio::time::Instant::now() + self.until_next_deadline();
            let wake = due.min(look_at);
            // Every arm is cancel-safe: streams and lines keep what is unfinished, the others only look.
            let event = tokio::select! {
                biased;
                chunk = next_output(&mut self.running.attached) => Event::Output(chunk),
                () = ended(self.running.init.as_ref()) => Event::Ended,
                line = requests.next() => Event::Request(line),
                () = next_signal(&mut terminate) => Event::Signal,
                () = asked(door.as_ref()) => Event::Asked,
                () = tokio::time::sleep_until(wake) => Event::Time,
            };
            match event {
                Event::Output(chunk) => self.take_output(chunk).await,
                Event::Ended => {
                    self.running.init = None;
                    self.proof.namespace_empty = true;
                }
                Event::Request(line) => {
                    let request = line.and_then(|line| serde_json::from_str::<StopRequest>(&line).ok());
                    if let Some(StopRequest { grace_ms, reason }) = request {
                        self.stop(reason, grace_ms);
                    }
                }
                Event::Signal => self.stop(EndReason::Cancelled, self.unit.launch.grace_ms),
                Event::Asked => {
                    if let Some((handout, _)) = &door {
                        handout.answer();
                    }
                }
                Event::Time => {}
            }
        }
        drop(door);
        self.finish().await
    }

    /// Takes a piece of output, or that there is none any more.
    async fn take_output(&mut self, chunk: Option<Result<(Stream, Vec<u8>), Error>>) {
        match chunk {
            Some(Ok((stream, bytes))) => self.spool.push(stream, &bytes, wall_ms()),
            Some(Err(error)) => {
                self.running.attached = None;
                self.output_ended(&error.to_string()).await;
            }
            None => {
                self.running.attached = None;
                self.output_ended("the engine closed it").await;
            }
        }
    }

    /// The stream has ended. That is the end of the program, or its output is closed, or the engine is gone.
    async fn output_ended(&mut self, why: &str) {
        let Some(init) = self.unit.record.init else { return };
        let first_look =
            tokio::time::timeout(Duration::from_millis(500), ended(self.running.init.as_ref())).await;
        if first_look.is_ok() || !can_write(init.pid) {
            return;
        }
        let id = self.made.containers.first().cloned().unwrap_or_default();
        let asked = tokio::time::timeout(ASK_BOUND, self.made.engine.inspect(&id)).await;
        let says = match asked {
            // It was removed by others, which ends its processes.
            Ok(Ok(None)) => return,
            Ok(Ok(Some(state))) if !state.running => return,
            Ok(Ok(Some(_))) => format!("its output cannot be followed any more: {why}"),
            Ok(Err(error)) => super::begin::chain(&error),
            Err(_) => "it does not answer".to_owned(),
        };
        self.lost = Some(says);
        self.stop(EndReason::EngineLost, 0);
    }

    /// Looks at lease, time limit and grace.
    fn check_deadlines(&mut self) {
        let now = boottime_ns();
        if now >= self.lease_ns {
            // A torn record is being written at this moment; the next look sees it whole.
            if let Some(renewed) = read_lease(&self.unit.launch.lease) {
                self.lease_ns = renewed;
            }
            if now >= self.lease_ns {
                self.stop(EndReason::LeaseExpired, 0);
            }
        }
        if self.stopping.is_none() && self.timeout_ns().is_some_and(|due| now >= due) {
            self.stop(EndReason::Timeout, self.unit.launch.grace_ms);
        }
        if self.stopping.is_some_and(|stopping| now >= stopping.kill_at_ns) {
            self.kill();
        }
    }

    fn timeout_ns(&self) -> Option<u64> {
        let timeout = self.unit.launch.timeout_ms?;
        Some(self.running.started.1.saturating_add(timeout.saturating_mul(MS)))
    }

    /// Time to the next of them. The clock that tokio waits by stands still while the host sleeps, so it is never long.
    fn until_next_deadline(&self) -> Duration {
        let mut next = self.lease_ns;
        if let Some(stopping) = self.stopping.filter(|_| !self.killed) {
            next = next.min(stopping.kill_at_ns);
        } else if self.stopping.is_none()
            && let Some(due) = self.timeout_ns()
        {
            next = next.min(due);
        }
        Duration::from_nanos(next.saturating_sub(boottime_ns())).clamp(Duration::from_millis(1), LATER)
    }

    /// Stops the unit. A later order can only make it quicker; the first reason stays.
    fn stop(&mut self, reason: EndReason, grace_ms: u64) {
        let kill_at_ns = boottime_ns().saturating_add(grace_ms.saturating_mul(MS));
        match &mut self.stopping {
            Some(stopping) => stopping.kill_at_ns = stopping.kill_at_ns.min(kill_at_ns),
            None => {
                self.stopping = Some(Stopping { reason, kill_at_ns });
                if grace_ms > 0 {
                    self.proof.term_sent_at_ms = Some(wall_ms());
                    self.terminate();
                }
            }
        }
        if self.stopping.is_some_and(|stopping| boottime_ns() >= stopping.kill_at_ns) {
            self.kill();
        }
    }

    /// TERM to every process of the container. The kernel keeps it from a first process that has not asked for it.
    fn terminate(&self) {
        let Some(init) = self.unit.record.init else { return };
        for pid in processes(init.pid) {
            // The handle is opened first and the namespace looked at again, so that the signal cannot hit a process that
            // got the number in between.
            if let Some(handle) = Pid::from_raw(pid)
                && let Ok(pidfd) = rustix::process::pidfd_open(handle, PidfdFlags::empty())
                && (pid == init.pid || same_namespace(init.pid, pid))
            {
                // It may be dead already.
                let _dead = rustix::process::pidfd_send_signal(&pidfd, Signal::TERM);
            }
        }
    }

    /// KILL to the first process, and by the kernel to all others.
    fn kill(&mut self) {
        if self.killed {
            return;
        }
        self.killed = true;
        self.proof.kill_sent_at_ms = Some(wall_ms());
        if let Some(init) = &self.running.init {
            // It may be dead already.
            let _dead = rustix::process::pidfd_send_signal(init.get_ref().as_fd(), Signal::KILL);
        }
    }

    /// Looks at what the container uses and has written.
    async fn look(&mut self) {
        if let Some(cgroups) = &mut self.cgroups {
            self.counts = cgroups.look();
        }
        if self.counts.oom_kills > 0 {
            // The kernel kills one process, of which the others may know nothing; the whole unit has to end.
            self.stop(EndReason::OOMKilled, 0);
        }
        let (Some(disk), Some(init)) = (self.unit.launch.disk.clone(), self.unit.record.init) else { return };
        if self.stopping.is_some() {
            return;
        }
        let over = tokio::task::spawn_blocking(move || is_over(&disk, init.pid)).await;
        if over.unwrap_or(false) {
            self.stop(EndReason::DiskLimit, 0);
        }
    }
}

/// Whether a workspace has reached its limit.
pub(super) fn is_over(disk: &Disk, init: i32) -> bool {
    if disk.by_file_system {
        return is_full(&disk.path, DISK_ROOM);
    }
    let mut walk = Walk::start(&disk.path, disk.bytes);
    loop {
        match walk.advance() {
            None => {}
            Some(Measure::Over) => return true,
            Some(Measure::Within(bytes)) => {
                let deleted = Pid::from_raw(init).map_or(0, |init| deleted_bytes(init, &disk.path));
                return bytes.saturating_add(deleted) > disk.bytes;
            }
        }
    }
}

fn read_lease(path: &Path) -> Option<u64> {
    deadline::decode(&std::fs::read(path).ok()?)
}

/// Whether a process still has somewhere to write its output to.
fn can_write(pid: i32) -> bool {
    [1, 2].iter().any(|fd| {
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        target.is_ok_and(|target| target != Path::new("/dev/null"))
    })
}

/// The processes of the pid namespace that a process is the first of.
fn processes(init: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid == init || same_namespace(init, *pid)).collect()
}

fn same_namespace(one: i32, other: i32) -> bool {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    namespace(one).is_some_and(|known| namespace(other) == Some(known))
}

async fn next_output(attached: &mut Option<Output>) -> Option<Result<(Stream, Vec<u8>), Error>> {
    match attached {
        Some(output) => Pin::new(output).next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a container's first process.
async fn ended(init: Option<&AsyncFd<OwnedFd>>) {
    let Some(init) = init else { return };
    // It is readable once the process has ended, for ever.
    if init.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn next_signal(terminate: &mut Option<tokio::signal::unix::Signal>) {
    match terminate {
        Some(terminate) => drop(terminate.recv().await),
        None => std::future::pending().await,
    }
}

async fn asked(door: Option<&(Handout, AsyncFd<OwnedFd>)>) {
    match door {
        Some((_, door)) => {
            if let Ok(mut guard) = door.readable().await {
                // Who asks is answered before the next wait.
                guard.clear_ready();
            }
        }
        None => std::future::pending().await,
    }
}
