//! The end of a unit: confirm that nothing is left, and tell how it was.

use std::io;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::Supervisor;
use crate::child;
use crate::deadline::{boottime_ns, wall_ms};
use crate::exit::{EndReason, Exit, Usage};
use crate::frame::Stream;
use crate::plan::{self, Cgroups, DiskKeeper};
use crate::sys;

/// How long to wait for cgroups to empty once the pid namespace is gone.
const EMPTY_BOUND_NS: u64 = 5_000_000_000;

impl Supervisor {
    /// Confirms that nothing is left, and tells how it was. Gives the exit and, if there was no sandbox, why.
    pub(super) fn finish(&mut self) -> (Exit, Option<String>) {
        let mut teardown = Vec::new();
        // It may have said several things in its short life.
        while self.read_control() {}
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
            self.counters.take().unwrap_or_else(|| Counters::read(cgroups))
        });
        let counters = counters.unwrap_or_default();
        self.proof.confirmed_at_ms = wall_ms();
        if let Some(error) = self.spool.failure() {
            teardown.push(format!("write the output spool: {error}"));
        }
        let ending = self.ending(init_status);
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
    fn ending(&self, init_status: Option<i32>) -> Ending {
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
                EndReason::DiskLimit => self.disk_limit_reached(),
                EndReason::OOMKilled => Some(MEMORY_LIMIT.to_owned()),
                EndReason::SeccompDenied => self
                    .denied
                    .as_ref()
                    .map(|name| format!("made system call {name}, which is never allowed")),
                EndReason::LeaseExpired => Some(LEASE_EXPIRED.to_owned()),
                _ => None,
            };
            return with(stopping.reason, message);
        }
        let succeeded = code == Some(0);
        if !succeeded && self.plan.cgroups.as_ref().is_some_and(has_oom_kills) {
            return with(EndReason::OOMKilled, Some(MEMORY_LIMIT.to_owned()));
        }
        if !self.program.forked {
            return plain(EndReason::SetupFailed, Some("the sandbox ended while it was made".to_owned()));
        }
        if !succeeded && self.plan.cgroups.as_ref().is_some_and(has_refused_tasks) {
            return with(EndReason::PidsLimit, Some("pids limit reached".to_owned()));
        }
        // No file may be larger than the disk limit, and a program that tries is killed if it does not care for the error.
        let too_large = self.plan.disk.is_some() && signal == Some(libc::SIGXFSZ);
        if !succeeded && (too_large || self.disk_is_full()) {
            return with(EndReason::DiskLimit, self.disk_limit_reached());
        }
        match signal {
            Some(_) => with(EndReason::Signalled, None),
            None => with(EndReason::Exited, None),
        }
    }

    /// Whether the file system that keeps the disk limit is or was full.
    fn disk_is_full(&self) -> bool {
        self.plan.disk.as_ref().is_some_and(|disk| {
            disk.keeper == DiskKeeper::FileSystem
                && (self.disk_was_full || super::disk::is_full(&disk.path, super::DISK_ROOM))
        })
    }

    fn disk_limit_reached(&self) -> Option<String> {
        let disk = self.plan.disk.as_ref()?;
        Some(format!("workspace reached its limit of {} bytes", disk.bytes))
    }
}

/// The exit of a unit of which nothing was begun.
pub(super) fn not_begun(reason: EndReason, message: String) -> Exit {
    Exit {
        reason,
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
pub(super) struct Counters {
    peak_memory: Option<u64>,
    peak_pids: Option<u64>,
    cpu_ns: Option<u64>,
    io: Option<(u64, u64)>,
}

/// What is said of a unit whose lease is over.
pub(super) const LEASE_EXPIRED: &str = "lease expired without a renewal";
/// What is said of a unit that the kernel's out-of-memory killer has ended.
const MEMORY_LIMIT: &str = "memory limit exceeded";

/// Whether the kernel has killed a process of the cgroups for want of memory.
pub(super) fn has_oom_kills(cgroups: &Cgroups) -> bool {
    let events = if cgroups.v2 { "memory.events" } else { "memory.oom_control" };
    field(cgroups.memory.as_ref(), events, "oom_kill ").is_some_and(|kills| kills > 0)
}

/// Whether the kernel has refused the cgroups a task for its number.
fn has_refused_tasks(cgroups: &Cgroups) -> bool {
    field(cgroups.pids.as_ref(), "pids.events", "max ").is_some_and(|refused| refused > 0)
}

/// A file of a cgroup. One that this kernel does not have is a figure that it does not keep.
fn text(dir: Option<&PathBuf>, file: &str) -> Option<String> {
    std::fs::read_to_string(dir?.join(file)).ok()
}

/// A number in a file of a cgroup.
fn field(dir: Option<&PathBuf>, file: &str, key: &str) -> Option<u64> {
    text(dir, file)?.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

impl Counters {
    /// Reads them.
    pub(super) fn read(cgroups: &Cgroups) -> Self {
        let number = |dir: &Option<PathBuf>, file: &str| text(dir.as_ref(), file)?.trim().parse().ok();
        let peak = if cgroups.v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let unified = cgroups.v2.then(|| cgroups.dirs.first()).flatten();
        let io = cgroups.io.as_ref();
        Self {
            peak_memory: number(&cgroups.memory, peak),
            peak_pids: number(&cgroups.pids, "pids.peak"),
            cpu_ns: field(unified, "cpu.stat", "usage_usec ").map(|micros| micros * 1000),
            io: if cgroups.v2 {
                text(io, "io.stat").map(|stat| io_of_v2(&stat))
            } else {
                text(io, "blkio.throttle.io_service_bytes").map(|stat| io_of_v1(&stat))
            },
        }
    }
}

/// Bytes read and written, of all devices of an `io.stat`: `8:0 rbytes=1 wbytes=2 rios=…`. What goes through a loop device
/// (major number 7) is told once more of the device below it.
fn io_of_v2(stat: &str) -> (u64, u64) {
    let sum = |key: &str| {
        stat.lines()
            .filter(|line| !line.starts_with("7:"))
            .flat_map(str::split_ascii_whitespace)
            .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// The same of a `blkio.throttle.io_service_bytes`: `8:0 Read 1`, `8:0 Write 2`, …, `Total 3`.
fn io_of_v1(stat: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        stat.lines()
            .filter_map(|line| line.split_once(' ')?.1.strip_prefix(kind)?.trim().parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("Read "), sum("Write "))
}

/// The usage of a unit, from its cgroups where they count, else from what the kernel tells at the reaping.
fn usage_of(usage: Option<&libc::rusage>, counters: &Counters) -> Usage {
    let nanos = |time: &libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0) * 1000
    };
    // getrusage(2) counts in blocks of 512 bytes.
    let blocks = |count: libc::c_long| u64::try_from(count).unwrap_or(0).saturating_mul(512);
    let reaped = usage.map_or(0, |usage| nanos(&usage.ru_utime) + nanos(&usage.ru_stime));
    let largest = usage.and_then(|usage| u64::try_from(usage.ru_maxrss).ok()).map(|kib| kib * 1024);
    Usage {
        cpu_ns: counters.cpu_ns.unwrap_or(reaped),
        peak_memory_bytes: counters.peak_memory.or(largest),
        peak_pids: counters.peak_pids,
        io_read_bytes: counters
            .io
            .map(|(read, _)| read)
            .or_else(|| usage.map(|usage| blocks(usage.ru_inblock))),
        io_write_bytes: counters
            .io
            .map(|(_, written)| written)
            .or_else(|| usage.map(|usage| blocks(usage.ru_oublock))),
    }
}

/// Whether the unit's cgroups list no process. They are empty once the namespace is gone, unless somebody outside moved
/// a process in; that one is waited for, not killed, and told.
fn confirm_empty(cgroups: &Cgroups, teardown: &mut Vec<String>) -> bool {
    let bound = boottime_ns() + EMPTY_BOUND_NS;
    // Where processes are counted on version 1, all of the unit's are, and nobody needs to list those of each hierarchy: the kernel
    // keeps such a list for a while, and takes longest to remove a cgroup that has one.
    let (dirs, file) = match &cgroups.pids {
        Some(counted) if !cgroups.v2 => (std::slice::from_ref(counted), "pids.current"),
        _ => (&*cgroups.dirs, "cgroup.procs"),
    };
    for dir in dirs {
        loop {
            match std::fs::read_to_string(dir.join(file)) {
                Ok(text) if matches!(text.trim(), "" | "0") => break,
                Ok(_) if boottime_ns() < bound => {
                    let nap = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
                    let _interrupted = rustix::thread::nanosleep(&nap);
                }
                Ok(_) => {
                    let processes = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_summed_over_devices_in_both_generations() {
        let v2 = "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=9 dios=9\n\
                  8:16 rbytes=1 wbytes=2 rios=1 wios=1\n7:0 rbytes=1 wbytes=2 rios=1 wios=1\n";
        assert_eq!(io_of_v2(v2), (4097, 8194));
        let v1 = "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 1\n254:0 Total 12289\n\
                  8:16 Read 1\n8:16 Write 2\nTotal 5\n";
        assert_eq!(io_of_v1(v1), (4097, 8194));
        assert_eq!((io_of_v2(""), io_of_v1("")), ((0, 0), (0, 0)));
    }
}
