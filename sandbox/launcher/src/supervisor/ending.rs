//! The end of a unit: confirm that nothing is left, and tell how it was.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::Supervisor;
use crate::child;
use crate::deadline::{boottime_ns, wall_ms};
use crate::exit::{EndReason, Exit, Usage};
use crate::frame::Stream;
use crate::plan::{self, Cgroups};
use crate::sys;

/// How long to wait for cgroups to empty once the pid namespace is gone.
const EMPTY_BOUND_NS: u64 = 5_000_000_000;

impl Supervisor {
    /// Confirms that nothing is left, and tells how it was. Gives the exit and, if there was no sandbox, why.
    pub(super) fn finish(&mut self) -> (Exit, Option<String>) {
        let mut teardown = Vec::new();
        self.read_control();
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
            proof: Some(self.proof.clone()),
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
            let name = self.plan.own.arguments.first().map_or("", plan::Text::as_str);
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

/// The exit of a unit whose sandbox could not be made.
pub(super) fn setup_failed(message: String) -> Exit {
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

/// How the program ended.
struct Ending {
    reason: EndReason,
    code: Option<i32>,
    signal: Option<i32>,
    message: Option<String>,
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
