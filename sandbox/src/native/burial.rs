//! What remains to be done for a unit whose supervisor died without a word: make sure that nothing of it runs, and write
//! the exit record that the supervisor could not write.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::Timespec;
use windlass_launcher::deadline::{boottime_ns, wall_ms};
use windlass_launcher::frame::{self, Stream};
use windlass_launcher::record::{self, ProcessName, SupervisorRecord};

use super::Inner;
use crate::driver::{EndReason, Exit, KillProof, StreamEnd, Usage};
use crate::error::Error;
use crate::spec::UnitId;

/// How long killed processes may take to vanish.
const BOUND: Duration = Duration::from_secs(10);
/// Between two looks at a cgroup that is being killed.
const PAUSE: Duration = Duration::from_millis(5);

/// A handle on exactly this process, `None` if it is gone. A pid that was given to another process is told by its start
/// time, which is read after the handle was opened.
pub(crate) fn pidfd_of(name: ProcessName) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(name.pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // The last two are the kernel's word for a number that leads no process: that of a thread, or of a process that is
        // being reaped at this moment.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match record::start_time(name.pid) {
        Ok(start_time) => Ok((start_time == name.start_time).then_some(pidfd)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound) => Ok(None),
        // The process ended while its entry was read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Inner {
    /// Ends what a dead supervisor left and writes the exit. Post-state: nothing runs, the unit has ended with
    /// `SupervisorLost`.
    pub(super) fn bury(&self, id: &UnitId) -> Result<Exit, Error> {
        let dir = self.dir(id);
        let path = dir.join(record::SUPERVISOR);
        // One at a time: whoever comes second finds the exit written.
        let lock = fs::File::open(&path).map_err(Error::io("open", &path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| Error::io("lock", &path)(errno.into()))?;
        if let Ok(Some(exit)) = record::read::<Exit>(&dir.join(record::EXIT)) {
            return Ok(exit);
        }
        // Without a whole record the sandbox was never let go.
        let record = record::read::<SupervisorRecord>(&path).unwrap_or(None);
        let this_boot = record::boot_id().map_err(Error::io("read", "/proc/sys/kernel/random/boot_id"))?;
        let mut proof = KillProof::default();
        proof.namespace_empty = match &record {
            Some(record) if record.boot_id == this_boot => {
                end_init(record.init, &mut proof).map_err(Error::io("end the sandbox of", &dir))?
            }
            Some(_) | None => true,
        };
        if self.cgroups.exists(id) {
            proof.cgroup_empty = Some(self.empty_cgroups(id));
        }
        proof.confirmed_at_ms = wall_ms();
        let (stdout, stderr) = kept_output(&fs::read(dir.join(record::OUTPUT)).unwrap_or_default());
        let exit = Exit {
            reason: EndReason::SupervisorLost,
            code: None,
            signal: None,
            message: Some(
                "the supervisor was killed or the host was restarted; the sandbox ended with it".to_owned(),
            ),
            program_started: record.is_some(),
            started_at_ms: None,
            ended_at_ms: proof.confirmed_at_ms,
            usage: Usage::default(),
            stdout,
            stderr,
            proof: Some(proof),
            teardown: Vec::new(),
        };
        record::publish(&dir, record::EXIT, &exit).map_err(Error::io("write", dir.join(record::EXIT)))?;
        Ok(exit)
    }

    /// Kills whatever is in a unit's cgroups until nothing is; gives whether they are empty.
    pub(super) fn empty_cgroups(&self, id: &UnitId) -> bool {
        let bound = boottime_ns() + u64::try_from(BOUND.as_nanos()).expect("seconds");
        loop {
            let pids = self.cgroups.processes(id);
            if pids.is_empty() {
                return true;
            }
            if boottime_ns() >= bound {
                return false;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                // The handle is opened first and membership looked at again, so that the signal cannot hit a process that
                // got the pid in between.
                if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                    && self.cgroups.processes(id).contains(&pid.as_raw_nonzero().get())
                {
                    // It may be dead already.
                    let _dead = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Kills the first process of the unit's pid namespace, which dies with its supervisor anyway, and waits until it is gone:
/// then the kernel has ended all others of the namespace.
pub(crate) fn end_init(init: ProcessName, proof: &mut KillProof) -> io::Result<bool> {
    let Some(pidfd) = pidfd_of(init)? else { return Ok(true) };
    proof.kill_sent_at_ms = Some(wall_ms());
    match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    let bound = Timespec { tv_sec: i64::try_from(BOUND.as_secs()).expect("seconds"), tv_nsec: 0 };
    loop {
        match rustix::event::poll(&mut polled, Some(&bound)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a spool holds of each stream. What was still in the pipes is lost, so both count as truncated.
pub(crate) fn kept_output(spool: &[u8]) -> (StreamEnd, StreamEnd) {
    let mut ends = [StreamEnd { truncated: true, ..StreamEnd::default() }; 2];
    let mut at = 0;
    while let Ok(Some((frame, length))) = frame::decode(&spool[at..]) {
        let end = match frame.stream {
            Stream::Stdout => &mut ends[0],
            Stream::Stderr => &mut ends[1],
        };
        end.bytes += frame.payload.len() as u64;
        end.kept = end.bytes;
        at += length;
    }
    let [stdout, stderr] = ends;
    (stdout, stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_given_only_on_the_process_that_is_meant() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start_time = record::start_time(pid).unwrap();
        assert!(pidfd_of(ProcessName { pid, start_time }).unwrap().is_some());
        assert!(pidfd_of(ProcessName { pid, start_time: start_time + 1 }).unwrap().is_none());
        assert!(pidfd_of(ProcessName { pid: i32::MAX, start_time }).unwrap().is_none());
    }

    #[test]
    fn a_number_that_leads_no_process_is_no_process() {
        std::thread::scope(|scope| {
            let found = scope.spawn(|| {
                let pid = rustix::thread::gettid().as_raw_nonzero().get();
                pidfd_of(ProcessName { pid, start_time: record::start_time(pid).unwrap() }).unwrap()
            });
            assert!(found.join().unwrap().is_none());
        });
    }

    #[test]
    fn a_spool_that_was_cut_short_is_counted_up_to_its_last_whole_frame() {
        let mut spool = Vec::new();
        for (stream, payload) in
            [(Stream::Stdout, "one"), (Stream::Stderr, "two!"), (Stream::Stdout, "three")]
        {
            frame::Frame { stream, offset: 0, time_ms: 0, payload: payload.as_bytes() }.encode(&mut spool);
        }
        spool.truncate(spool.len() - 1);
        let (stdout, stderr) = kept_output(&spool);
        assert_eq!((stdout.kept, stderr.kept, stdout.truncated), (3, 4, true));
    }
}
