//! The supervisor of a container: one small process for each unit, outside the agent, that holds the unit's output, deadlines
//! and exit record, as the one of a native unit does.
//!
//! ```text
//!  engine ──(attached output)──┐                    ┌─► output (spool)
//!  first process (pidfd) ──────┤                    │
//!  lease, time limit, size ────┼─► select ─► Watch ─┼─► TERM to all, KILL to the first process
//!  control (FIFO) ─────────────┘                    └─► exit.json
//! ```
//!
//! It knows nothing of the agent: it reads its plan from the unit's folder and the deadline from the lease file. It kills the
//! container's first process by the kernel, not by the engine, so that a lease ends also where the engine does not answer;
//! with the first process of a pid namespace the kernel ends all others.

mod begin;
mod ending;
mod watch;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, FileType, FlockOperation, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use windlass_launcher::exit::{EndReason, Exit, StreamEnd, Usage};
use windlass_launcher::record::{self, ProcessName, Reply, Reserved};

use super::{ContainerPlan, EngineKind, holder};

/// The hidden first argument.
pub(crate) const ARGUMENT: &str = "__windlass-container";
/// Mode of the helper that opens a socket in a network namespace.
pub(crate) const LISTENER: &str = "listener";
/// Room for the exit record, many times what it takes.
const EXIT_ROOM: u64 = 16 << 10;

/// What the supervisor has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) engine: EngineKind,
    pub(crate) socket: PathBuf,
    pub(crate) profile: PathBuf,
    pub(crate) container: ContainerPlan,
    /// The image as people know it.
    pub(crate) reference: String,
    /// The program of a restricted unit's holder.
    pub(crate) holder: Option<PathBuf>,
    /// A file with further environment, as in [`crate::spec::Handed::environment`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) environment_file: Option<PathBuf>,
    pub(crate) lease: PathBuf,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) grace_ms: u64,
    pub(crate) output_cap: u64,
    pub(crate) disk: Option<Disk>,
}

/// A limit of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Whether the file system keeps it.
    pub(crate) by_file_system: bool,
}

/// The part of `plan.json` that the supervisor reads.
#[derive(Debug, Deserialize)]
pub(crate) struct Planned {
    pub(crate) container: Launch,
}

/// `supervisor.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) supervisor: ProcessName,
    /// The first process of the container, once there is one.
    pub(crate) init: Option<ProcessName>,
    pub(crate) boot_id: String,
}

/// See [`crate::run_if_requested`].
pub(crate) fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let (Some(first), second) = (arguments.next(), arguments.next()) else { return Some(ExitCode::FAILURE) };
    let ran = match second {
        Some(pid) if first == LISTENER => {
            pid.to_str().ok_or_else(|| io::ErrorKind::InvalidInput.into()).and_then(holder::run)
        }
        _ => run(Path::new(&first)),
    };
    Some(if ran.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the unit of a folder to its end and answers on standard output once.
fn run(dir: &Path) -> io::Result<()> {
    // A session of its own: Ctrl-C in the agent's terminal is for the agent to handle.
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let mut reply = Answer(Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)));
    rustix::thread::set_name(c"windlass-unit")?;
    let told = dir.join("panic");
    std::panic::set_hook(Box::new(move |panic| {
        // There is nowhere else to say it.
        let _lost = std::fs::write(&told, format!("{panic}\n"));
    }));
    let mut lock = match claim(dir) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            reply.give(&Reply::AlreadyStarted);
            return Ok(());
        }
        Err(error) => {
            reply.give(&Reply::Failed { message: format!("claim the unit: {error}") });
            return Err(error);
        }
    };
    let began = (|| {
        let room = Reserved::new(dir, record::EXIT, EXIT_ROOM)?;
        let planned: Option<Planned> = record::read(&dir.join(record::PLAN))?;
        let planned = planned.ok_or(io::ErrorKind::NotFound)?;
        let supervisor = own_name()?;
        let record = ContainerRecord { supervisor, init: None, boot_id: record::boot_id()? };
        write_record(&mut lock, &record)?;
        let control = dir.join(record::CONTROL);
        match rustix::fs::mknodat(CWD, &control, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let output =
            OpenOptions::new().append(true).create_new(true).mode(0o600).open(dir.join(record::OUTPUT))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok((room, planned.container, record, output, runtime))
    })();
    let (room, launch, record, output, runtime) = match began {
        Ok(began) => began,
        Err(error) => {
            reply.give(&Reply::Failed { message: format!("prepare the unit's folder: {error}") });
            return Err(error);
        }
    };
    // Held until this process ends, which is after the exit was published.
    let _held = lock.try_clone()?;
    let unit = begin::Unit { dir: dir.to_owned(), launch, record, lock };
    let exit = runtime.block_on(unit.supervise(output, &mut reply));
    let published = room.publish(&exit);
    match exit.reason {
        EndReason::SetupFailed | EndReason::EngineLost if !exit.program_started => {
            reply.give(&Reply::Failed { message: exit.message.unwrap_or_default() });
        }
        _ => reply.give(&Reply::Ended),
    }
    published
}

/// The one answer to who had the supervisor started: a line. Standard output stays open, so its end tells that there is none.
pub(super) struct Answer(Option<File>);

impl Answer {
    /// Answers, if that was not done before.
    pub(super) fn give(&mut self, with: &Reply) {
        if let Some(mut pipe) = self.0.take() {
            let mut text = serde_json::to_vec(with).expect("a reply has no part that JSON lacks");
            text.push(b'\n');
            // The one who asked may be gone; the unit's folder tells it all the same.
            let _gone = pipe.write_all(&text);
        }
    }
}

/// Takes the unit; `None` if another supervisor has or had it.
fn claim(dir: &Path) -> io::Result<Option<File>> {
    let path = dir.join(record::SUPERVISOR);
    let file = match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn own_name() -> io::Result<ProcessName> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    Ok(ProcessName { pid, start_time: record::start_time(pid)? })
}

/// Writes the record in place: the file is the lock, so it cannot be replaced.
fn write_record(lock: &mut File, record: &ContainerRecord) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let text = serde_json::to_vec(record)?;
    lock.write_all_at(&text, 0)?;
    lock.set_len(text.len() as u64)
}

/// The exit of a unit whose program has never run.
pub(crate) fn never_ran(reason: EndReason, message: String) -> Exit {
    Exit {
        reason,
        code: None,
        signal: None,
        message: Some(message),
        program_started: false,
        started_at_ms: None,
        ended_at_ms: windlass_launcher::deadline::wall_ms(),
        usage: Usage::default(),
        stdout: StreamEnd::default(),
        stderr: StreamEnd::default(),
        proof: None,
        teardown: Vec::new(),
    }
}
