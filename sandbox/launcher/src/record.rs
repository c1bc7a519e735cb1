//! The files of a unit's folder, as the supervisor and the driver share them.
//!
//! `plan.json` what was asked (exists: prepared) · `supervisor.json` who runs it (exists: was started; locked: runs) ·
//! `output` the spool, made with its first frame · `grown` written to when the spool has grown · `control` a FIFO that takes stop requests · `exit.json` how it ended (exists: has ended).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::exit::EndReason;
use crate::plan::LaunchPlan;

/// File name of the plan.
pub const PLAN: &str = "plan.json";
/// File name of the supervisor's record and lock.
pub const SUPERVISOR: &str = "supervisor.json";
/// File name of the output spool.
pub const OUTPUT: &str = "output";
/// File name of what is written to when the spool has grown, if it is there: the spool may be a link to another folder, which
/// nobody watches.
pub const GROWN: &str = "grown";
/// File name of the control FIFO.
pub const CONTROL: &str = "control";
/// File name of the exit record.
pub const EXIT: &str = "exit.json";

/// The part of `plan.json` that the supervisor reads; the driver keeps more in it.
#[derive(Debug, Deserialize)]
pub struct Planned {
    /// The plan.
    pub launch: LaunchPlan<Box<RawValue>>,
}

/// Names a process beyond doubt: a pid alone is given again to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in clock ticks since the boot, as the kernel tells it.
    pub start_time: u64,
}

/// `supervisor.json`: written after the clone and before the sandbox is let go, so that no unit ever runs without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorRecord {
    /// The supervisor.
    pub supervisor: ProcessName,
    /// The first process of the unit's pid namespace.
    pub init: ProcessName,
    /// The boot during which they run.
    pub boot_id: String,
}

/// A stop request, one line of JSON in the control FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Time between TERM and KILL in milliseconds.
    pub grace_ms: u64,
    /// Why.
    pub reason: EndReason,
}

/// What a supervisor answers to the one who had it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The program's first instruction runs, or has run.
    Started,
    /// The unit has ended without a program; `exit.json` says why.
    Ended,
    /// The unit was started before.
    AlreadyStarted,
    /// There is no sandbox; `exit.json` says so too where it could be written.
    Failed {
        /// The step that failed, and why.
        message: String,
    },
}

/// The identity of this boot.
///
/// # Errors
/// If /proc is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process was started, in clock ticks since the boot.
///
/// # Errors
/// `NotFound` if there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, in parentheses, may hold anything; the rest has no parenthesis. Field 22 is the 20th after it.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected form of /proc/PID/stat"))
}

/// Reads a record, `None` if it does not exist.
///
/// # Errors
/// `InvalidData` if it cannot be understood, and what reading gives.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A record whose room on the disk is taken before it is known, so that a disk that fills up meanwhile cannot keep it out.
#[derive(Debug)]
pub struct Reserved {
    file: File,
    beside: PathBuf,
    place: PathBuf,
}

impl Reserved {
    /// Takes the room for a record of up to `bytes`.
    ///
    /// # Errors
    /// `StorageFull`, and what else writing gives.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> io::Result<Self> {
        let beside = dir.join(format!(".{name}"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) => {}
            // A file system that cannot promise room: what is written later may find none.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self { file, beside, place: dir.join(name) })
    }

    /// Writes the record, which appears whole or not at all.
    ///
    /// # Errors
    /// What writing gives.
    pub fn publish(&self, record: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        self.file.write_all_at(&text, 0)?;
        fs::rename(&self.beside, &self.place)
    }
}

/// Writes a record so that it appears whole or not at all; one that is there already is replaced.
///
/// # Errors
/// What writing gives.
pub fn publish(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<File> {
    let beside = dir.join(format!(".{name}"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(&beside, dir.join(name))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_time_and_pid_zero_has_none() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).unwrap() > 0);
        assert_eq!(start_time(own).unwrap(), start_time(own).unwrap());
        assert_eq!(start_time(0).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn a_record_with_room_of_its_own_is_not_there_before_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = Reserved::new(dir.path(), "x.json", 4096).unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<StopRequest>(&path).unwrap(), None);
        let request = StopRequest { grace_ms: 5, reason: EndReason::Cancelled };
        reserved.publish(&request).unwrap();
        assert_eq!(read::<StopRequest>(&path).unwrap(), Some(request));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn records_are_read_back_and_damage_is_told_from_absence() {
        let dir = tempfile::tempdir().unwrap();
        let request = StopRequest { grace_ms: 5, reason: EndReason::Cancelled };
        publish(dir.path(), "x.json", &request).unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<StopRequest>(&path).unwrap(), Some(request));
        fs::write(&path, "{").unwrap();
        assert!(read::<StopRequest>(&path).is_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(read::<StopRequest>(&path).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
