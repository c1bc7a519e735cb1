//! The record of how a unit ended, written by the supervisor as `exit.json` and read back by the driver.
//!
//! Pure data: nothing here touches a process or a file.

use serde::{Deserialize, Serialize};

/// Why a unit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// The program ended by itself with an exit code.
    Exited,
    /// The program was ended by a signal that Windlass did not send.
    Signalled,
    /// The step's own time limit passed.
    Timeout,
    /// The lease's deadline passed without a renewal.
    LeaseExpired,
    /// Somebody asked for the stop.
    Cancelled,
    /// The kernel's out-of-memory killer acted inside the unit's memory limit, and the program failed.
    OOMKilled,
    /// The unit was refused a process by its pids limit, and the program failed.
    PidsLimit,
    /// The workspace reached the disk limit.
    DiskLimit,
    /// The program made a system call that no program in a sandbox makes in good faith; the message names it.
    SeccompDenied,
    /// The sandbox could not be made; the program never ran.
    SetupFailed,
    /// The supervisor vanished; its sandbox died with it.
    SupervisorLost,
    /// The container engine could not be reached; what ran of the unit was killed.
    EngineLost,
}

impl EndReason {
    /// The word for metrics, reports and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "Exited",
            Self::Signalled => "Signalled",
            Self::Timeout => "Timeout",
            Self::LeaseExpired => "LeaseExpired",
            Self::Cancelled => "Cancelled",
            Self::OOMKilled => "OOMKilled",
            Self::PidsLimit => "PidsLimit",
            Self::DiskLimit => "DiskLimit",
            Self::SeccompDenied => "SeccompDenied",
            Self::SetupFailed => "SetupFailed",
            Self::SupervisorLost => "SupervisorLost",
            Self::EngineLost => "EngineLost",
        }
    }
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a unit used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of all processes of the unit, user and system, in nanoseconds.
    pub cpu_ns: u64,
    /// Peak memory in bytes: of the whole unit where it has a memory cgroup, else the largest resident size that any
    /// one of its processes reached.
    pub peak_memory_bytes: Option<u64>,
    /// Most tasks at one time, where the kernel keeps the figure.
    pub peak_pids: Option<u64>,
    /// Bytes read from block devices; what came from the page cache does not count.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices. On cgroup version 1 and without an io cgroup they are counted when they are
    /// written to the page cache, and those of a file that was deleted before are counted too.
    pub io_write_bytes: Option<u64>,
}

/// What became of one output stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Bytes that the program wrote, kept or not.
    pub bytes: u64,
    /// Bytes that were kept in the spool.
    pub kept: u64,
    /// Whether something was discarded.
    pub truncated: bool,
}

/// Evidence that nothing of a unit is left running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillProof {
    /// When TERM went to every process of the unit (milliseconds since the epoch), if it did.
    pub term_sent_at_ms: Option<i64>,
    /// When KILL went to the whole unit, if it had to.
    pub kill_sent_at_ms: Option<i64>,
    /// The first process of the pid namespace was reaped. The kernel lets that happen only after every other process
    /// of the namespace is gone.
    pub namespace_empty: bool,
    /// The unit's cgroups listed no process afterwards; `None` where the unit has no cgroup.
    pub cgroup_empty: Option<bool>,
    /// When emptiness was confirmed (milliseconds since the epoch).
    pub confirmed_at_ms: i64,
}

impl KillProof {
    /// Whether the proof is complete.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.namespace_empty && self.cgroup_empty != Some(false)
    }
}

/// How a unit ended. Final: it never changes once it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: EndReason,
    /// Exit code of the program, if it exited; 127 for a command that was not found, 126 for one that could not be
    /// executed.
    pub code: Option<i32>,
    /// Signal that ended the program, if one did.
    pub signal: Option<i32>,
    /// A sentence for people, where there is something to say beyond reason and code.
    pub message: Option<String>,
    /// Whether the program's first instruction ran.
    pub program_started: bool,
    /// When the program was started (milliseconds since the epoch).
    pub started_at_ms: Option<i64>,
    /// When the end was confirmed (milliseconds since the epoch).
    pub ended_at_ms: i64,
    /// Resources used.
    pub usage: Usage,
    /// Standard output.
    pub stdout: StreamEnd,
    /// Standard error.
    pub stderr: StreamEnd,
    /// Evidence that nothing is left.
    pub proof: Option<KillProof>,
    /// What went wrong while tearing down, beside the reason itself.
    pub teardown: Vec<String>,
}

impl Exit {
    /// Whether the program ran and returned zero.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.reason == EndReason::Exited && self.code == Some(0)
    }
}
