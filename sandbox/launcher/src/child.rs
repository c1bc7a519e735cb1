//! Everything that runs between the clone and the program's first instruction, and the tiny init that stays.
//!
//! *Flow*: the first process of the new namespaces waits until its supervisor has written its id maps, carries out the
//! steps of the base, waits for its unit, carries out the unit's own steps, forks the program, and then only reaps, forwards
//! TERM, and tells the program's status.
//!
//! *Assumptions*: the code here runs in a copy of a process with one thread, so no lock of the allocator can be held by
//! somebody who is not there, and receiving the unit's part may allocate. Nothing here starts a thread or returns. Between
//! the fork of the program and its execution, when memory is shared, nothing is allocated.

mod restrict;
mod tree;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use rustix::thread::{Gid, Uid};

use crate::plan::{Filters, Own, Step, Text};
use crate::sys::{self, NullTerminated};
use crate::{handout, handover};
use restrict::{drop_capabilities, instructions, landlock, limit};
use tree::Scratch;
pub(crate) use tree::{lay_out, open_tree_of};

/// Supervisor to init: the id maps are written.
pub(crate) const GO: u8 = b'G';
/// Supervisor to init: send TERM to everything.
pub(crate) const TERM: u8 = b'T';
/// Init to supervisor: the program's status follows.
pub(crate) const STATUS: u8 = b'X';
/// Init to supervisor: the listening socket comes with it.
pub(crate) const LISTENER: u8 = b'L';
/// Init to supervisor: the line comes with it on which the kernel tells of system calls that are denied.
pub(crate) const DENIALS: u8 = b'D';
/// Supervisor to init: the listening socket can be asked for.
pub(crate) const HELD: u8 = b'H';
/// Supervisor to init: kill everything.
pub(crate) const KILL: u8 = b'K';
/// Exit code of a program that was not found, as shells have it.
pub(crate) const NOT_FOUND: i32 = 127;
/// Exit code of a program that could not be executed, as shells have it.
pub(crate) const NOT_EXECUTABLE: i32 = 126;

/// Connections that wait while no agent serves them.
const BACKLOG: i32 = 128;

/// What comes back through the set-up pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// A step failed; there is no sandbox.
    StepFailed {
        /// Its place in the plan.
        index: u32,
        /// Why.
        errno: i32,
    },
    /// The program's process could not be made.
    ForkFailed {
        /// Why.
        errno: i32,
    },
    /// The sandbox is complete and the program's process exists.
    Forked,
    /// The program could not be executed.
    ExecFailed {
        /// Why.
        errno: i32,
    },
}

impl Report {
    /// Length of the encoded form.
    pub(crate) const LENGTH: usize = 9;

    fn encode(self) -> [u8; Self::LENGTH] {
        let (kind, index, errno) = match self {
            Self::StepFailed { index, errno } => (b'S', index, errno),
            Self::ForkFailed { errno } => (b'K', 0, errno),
            Self::Forked => (b'F', 0, 0),
            Self::ExecFailed { errno } => (b'E', 0, errno),
        };
        let mut bytes = [kind; Self::LENGTH];
        bytes[1..5].copy_from_slice(&index.to_le_bytes());
        bytes[5..9].copy_from_slice(&errno.to_le_bytes());
        bytes
    }

    /// The report of an encoded form.
    pub(crate) fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let index = u32::from_le_bytes(bytes[1..5].try_into().expect("four bytes"));
        let errno = i32::from_le_bytes(bytes[5..9].try_into().expect("four bytes"));
        match bytes[0] {
            b'S' => Some(Self::StepFailed { index, errno }),
            b'K' => Some(Self::ForkFailed { errno }),
            b'F' => Some(Self::Forked),
            b'E' => Some(Self::ExecFailed { errno }),
            _ => None,
        }
    }
}

/// What the child needs until it knows its unit, all made before the clone.
pub(crate) struct Child<'a> {
    /// The base's steps.
    pub(crate) base: Stage<'a>,
    /// Whether this process yields to others until it has its unit.
    pub(crate) yields: bool,
    /// What programs may ask of the kernel.
    pub(crate) filters: &'a Filters,
    /// What the unit may fill, until all parts of it are shown. It is not left open for what the job names, which could be the
    /// descriptor.
    pub(crate) scratch: Option<Scratch>,
    /// Write end of the set-up pipe.
    pub(crate) setup: OwnedFd,
    /// The line to the supervisor.
    pub(crate) control: OwnedFd,
    /// Write end of standard output.
    pub(crate) stdout: OwnedFd,
    /// Write end of standard error.
    pub(crate) stderr: OwnedFd,
    /// The stack of the program's process until it executes; taken when it is used.
    pub(crate) stack: Option<sys::Stack>,
    /// Whether the supervisor is root, so that nothing may be left of its groups.
    pub(crate) privileged: bool,
    /// The numbers of all descriptors above, see [`Child::keep_own`].
    pub(crate) kept: Vec<RawFd>,
}

/// Steps that are carried out one after the other, and what they need.
pub(crate) struct Stage<'a> {
    /// The steps.
    pub(crate) steps: &'a [Step],
    /// The place of the first of them in the whole plan.
    pub(crate) first: usize,
    /// Which of them were carried out before, for all units at once.
    pub(crate) made: Range<usize>,
    /// For each step, the detached mount of its source where the supervisor could open it.
    pub(crate) sources: Vec<Option<OwnedFd>>,
    /// The `tasks` files of the unit's v1 cgroups.
    pub(crate) tasks: Vec<OwnedFd>,
}

/// What is executed in the end.
struct Program<'a> {
    child: &'a Child<'a>,
    programs: &'a [Text],
    arguments: NullTerminated<'a>,
    environment: NullTerminated<'a>,
}

/// The first process of the namespaces. Runs in the clone.
pub(crate) fn run(mut child: Child<'_>) -> ! {
    child.close_foreign_descriptors();
    if !child.await_go() {
        sys::exit_now(0);
    }
    let Ok(deaths) = sys::signal_fd(&[libc::SIGCHLD]) else { sys::exit_now(0) };
    // What is made gets exactly the mode that is named.
    rustix::process::umask(Mode::empty());
    let base = Stage {
        steps: child.base.steps,
        first: 0,
        made: child.base.made.clone(),
        sources: std::mem::take(&mut child.base.sources),
        tasks: Vec::new(),
    };
    child.carry_out_all(base);

    // There is nobody to tell why not: the other end is gone, and this process goes too.
    let Ok((own, sources, tasks)) = handover::receive(&child.control) else { sys::exit_now(0) };
    if child.yields {
        crate::yield_no_more();
    }
    let first = child.base.steps.len();
    child.carry_out_all(Stage { steps: &own.steps, first, made: 0..0, sources, tasks });
    child.start(&own, &deaths)
}

/// The forked process becomes the program. It shares the memory of the init, which waits.
extern "C" fn become_program(program: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `fork_sharing` passes on the reference that it was given, and the init waits while this process uses it.
    #[expect(unsafe_code, reason = "the context arrives as a pointer")]
    let program = unsafe { &*program.cast::<Program<'_>>() };
    program.begin()
}

impl Child<'_> {
    /// Notes which descriptors the sandbox needs, before the clone, because the clone may not allocate.
    pub(crate) fn keep_own(&mut self) {
        let ends = [&self.setup, &self.control, &self.stdout, &self.stderr];
        let own = ends.into_iter().chain(self.base.sources.iter().flatten());
        self.kept = own.map(AsRawFd::as_raw_fd).collect();
    }

    /// Closes what the clone inherited and the sandbox does not need: the supervisor's files, above all its lock.
    fn close_foreign_descriptors(&mut self) {
        // SAFETY: the values that own the closed descriptors belong to the supervisor's code, which never runs in this
        // process: `run` does not return.
        #[expect(unsafe_code, reason = "closing descriptors of values that are never used again")]
        unsafe {
            sys::close_others(3, &mut self.kept);
        }
    }

    /// Waits until the supervisor has written the id maps; `false` if it is gone.
    fn await_go(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.control, &mut byte) {
                Ok(1) => return byte[0] == GO,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// Tells the supervisor something through the set-up pipe.
    fn report(&self, report: Report) {
        // A report is smaller than PIPE_BUF, so it is written whole; if the supervisor is gone there is nobody to tell,
        // and this process ends with it.
        let _gone = rustix::io::write(&self.setup, &report.encode());
    }

    /// Ends this process, for a step failed; the supervisor is told which.
    fn give_up(&self, index: usize, errno: Errno) -> ! {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.report(Report::StepFailed { index, errno: errno.raw_os_error() });
        sys::exit_now(0);
    }

    /// Carries out a stage, or ends this process.
    fn carry_out_all(&mut self, mut stage: Stage<'_>) {
        // All sources first: once the new root is entered, the host's paths are out of reach.
        for (index, step) in stage.steps.iter().enumerate() {
            if stage.sources[index].is_none() && !stage.made.contains(&index) {
                match open_tree_of(step) {
                    Ok(source) => stage.sources[index] = source,
                    Err(errno) => self.give_up(stage.first + index, errno),
                }
            }
        }
        for index in 0..stage.steps.len() {
            if !stage.made.contains(&index)
                && let Err(errno) = self.carry_out(&mut stage, index)
            {
                self.give_up(stage.first + index, errno);
            }
        }
    }

    /// Carries out one step.
    fn carry_out(&mut self, stage: &mut Stage<'_>, index: usize) -> Result<(), Errno> {
        match &stage.steps[index] {
            Step::JoinCgroups => {
                // Writing 0 means the caller. Through `tasks` it needs no lock on all processes of the host, which
                // through `cgroup.procs` costs milliseconds.
                for tasks in &stage.tasks {
                    rustix::io::write(tasks, b"0")?;
                }
                Ok(())
            }
            Step::HideCgroups => sys::unshare(libc::CLONE_NEWCGROUP),
            Step::AssumeIdentity { uid, gid } => self.assume_identity(*uid, *gid),
            Step::DieWithSupervisor => self.die_with_supervisor(),
            Step::SetHostname { name } => rustix::system::sethostname(name.as_c_str().to_bytes()),
            Step::RaiseLoopback => sys::interface_up(c"lo"),
            Step::Listen { port } => self.listen(*port),
            Step::DetachMounts
            | Step::MakeRoot
            | Step::MakeDir { .. }
            | Step::MakeFile { .. }
            | Step::MakeLink { .. }
            | Step::Show { .. }
            | Step::ShowDevice { .. }
            | Step::MountProc { .. }
            | Step::EnterRoot => tree::lay(&stage.steps[index], &mut stage.sources[index]),
            Step::MountScratch { target, bytes, files } => {
                self.scratch = Some(Scratch::mount(target.as_c_str(), *bytes, *files)?);
                Ok(())
            }
            Step::SizeScratch { bytes, files } => self.scratch()?.size(*bytes, *files),
            Step::ShowScratch { target, mode } => {
                tree::mount_at(&self.scratch()?.folder(*mode)?, target.as_c_str())
            }
            Step::ShowFile { target, content } => {
                tree::mount_at(&self.scratch()?.file(content.as_bytes())?, target.as_c_str())
            }
            Step::Mask { path } => tree::mask(path),
            Step::Tune { path, value } => tree::tune(path, *value),
            Step::Freeze { path } => tree::freeze(path.as_c_str()),
            Step::LayOut { .. } => {
                tree::mount_at(&stage.sources[index].take().ok_or(Errno::BADF)?, tree::SYSTEM)
            }
            Step::Cover { part, place, read_only } => {
                let part = tree::clone_of(part.as_c_str())?;
                if *read_only {
                    tree::freeze_tree(&part)?;
                }
                tree::cover(&part, place)
            }
            Step::CoverWithScratch { place, mode } => tree::cover(&self.scratch()?.folder(*mode)?, place),
            Step::EnterSystem => {
                // It goes with the small root; its parts stay.
                self.scratch = None;
                rustix::process::chdir(tree::SYSTEM)?;
                tree::enter_root()
            }
            Step::Attach { target, .. } => {
                tree::attach(&stage.sources[index].take().ok_or(Errno::BADF)?, target)
            }
            Step::SealRoot => {
                if let Some(scratch) = self.scratch.take() {
                    scratch.seal()?;
                }
                tree::freeze(c"/")
            }
            Step::BoundCapabilities => sys::drop_bounding_set(),
            Step::DropCapabilities => drop_capabilities(),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Landlock { abi, write, execute } => landlock(*abi, write, execute),
            Step::Limit { resource, value } => limit(*resource, *value),
            Step::Umask { mask } => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::WorkIn { path } => rustix::process::chdir(path.as_c_str()),
            Step::FurtherSeccomp { filter } => sys::install_filter(&mut instructions(filter)),
            Step::Seccomp { tells_of_sockets: false } if self.filters.denied.is_empty() => {
                sys::install_filter(&mut instructions(&self.filters.policy))
            }
            Step::Seccomp { tells_of_sockets } => {
                let filter = match tells_of_sockets {
                    true => self.filters.telling.as_ref().ok_or(Errno::INVAL)?,
                    false => &self.filters.policy,
                };
                let denials = sys::install_filter_with_listener(&mut instructions(filter))?;
                // Nothing is awaited: what is denied before the supervisor has the line waits for it.
                handout::send(&self.control, &[DENIALS, 0, 0, 0, 0], denials.as_fd())
            }
        }
    }

    /// What the unit may fill.
    fn scratch(&mut self) -> Result<&mut Scratch, Errno> {
        self.scratch.as_mut().ok_or(Errno::BADF)
    }

    /// See [`Step::AssumeIdentity`].
    fn assume_identity(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        match rustix::thread::set_thread_groups(&[]) {
            // An ordinary user's namespace may not change groups; what its groups reach is not shown inside.
            Err(Errno::PERM) if !self.privileged => {}
            result => result?,
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        // Capabilities stay: user 0 is not mapped, so this is not a change away from root.
        rustix::thread::set_thread_res_uid(uid, uid, uid)
    }

    /// See [`Step::DieWithSupervisor`]. It comes after the change of user, which would undo it.
    fn die_with_supervisor(&self) -> Result<(), Errno> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The job may not trace or read this process, though both have one user.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        // The supervisor alone holds the other end; if that is closed, it died before the signal was set.
        let mut polled = [PollFd::new(&self.control, PollFlags::empty())];
        rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if polled[0].revents().contains(PollFlags::HUP) { Err(Errno::SRCH) } else { Ok(()) }
    }

    /// See [`Step::Listen`]. Returns once the supervisor has it, so that the program's first instruction finds it served
    /// or waiting to be.
    fn listen(&self, port: u16) -> Result<(), Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        rustix::net::listen(&socket, BACKLOG)?;
        handout::send(&self.control, &[LISTENER, 0, 0, 0, 0], socket.as_fd())?;
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.control, &mut byte) {
                Ok(1) if byte[0] == HELD => return Ok(()),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return Err(Errno::PIPE),
            }
        }
    }

    /// Forks the program and becomes the init.
    fn start(mut self, own: &Own, deaths: &OwnedFd) -> ! {
        let mut stack = self.stack.take();
        let program = Program {
            child: &self,
            programs: &own.programs,
            arguments: NullTerminated::new(own.arguments.iter().map(Text::as_c_str)),
            environment: NullTerminated::new(own.environment.iter().map(Text::as_c_str)),
        };
        let forked = match &mut stack {
            // SAFETY: this process is the copy of a process with one thread and has made none. `become_program` ends in an
            // execution or an exit, and changes nothing but its own process's descriptors and signals.
            #[expect(unsafe_code, reason = "fork of a process with one thread")]
            Some(stack) => unsafe { sys::fork_sharing(stack, &program, become_program) },
            None => Err(Errno::NOMEM),
        };
        match forked {
            Ok(program) => {
                let Self { control, setup, stdout, stderr, .. } = self;
                drop((setup, stdout, stderr));
                attend(program, &control, deaths)
            }
            Err(errno) => {
                self.report(Report::ForkFailed { errno: errno.raw_os_error() });
                sys::exit_now(0)
            }
        }
    }
}

impl Program<'_> {
    /// The forked process becomes the program.
    fn begin(&self) -> ! {
        // The memory is shared, the descriptors are not: the init's own copies stay as they are.
        self.child.report(Report::Forked);
        sys::release_signals();
        let failed = match self.prepare() {
            Err(errno) => errno,
            Ok(()) => {
                let mut failed = Errno::NOENT;
                for program in self.programs {
                    match sys::execute(program.as_c_str(), &self.arguments, &self.environment) {
                        Errno::NOENT | Errno::NOTDIR => {}
                        // Another folder of PATH may have one that may be executed.
                        Errno::ACCESS => failed = Errno::ACCESS,
                        errno => {
                            failed = errno;
                            break;
                        }
                    }
                }
                failed
            }
        };
        self.child.report(Report::ExecFailed { errno: failed.raw_os_error() });
        sys::exit_now(exec_failure_code(failed.raw_os_error()))
    }

    /// Session, standard descriptors, no others.
    fn prepare(&self) -> Result<(), Errno> {
        rustix::process::setsid()?;
        let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::place(&null, 0)?;
        sys::place(&self.child.stdout, 1)?;
        sys::place(&self.child.stderr, 2)?;
        sys::close_on_exec_from(3)
    }
}

/// The exit code that shells use for a failed execution.
pub(crate) fn exec_failure_code(errno: i32) -> i32 {
    if errno == Errno::NOENT.raw_os_error() || errno == Errno::NOTDIR.raw_os_error() {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

/// The init: reaps, forwards TERM and KILL. When the program ends, or on KILL, it ends all other processes of the namespace
/// and reaps them, so that what they used is counted, then tells the program's status and ends.
fn attend(program: Pid, control: &OwnedFd, deaths: &OwnedFd) -> ! {
    let mut status = None;
    while status.is_none() {
        let mut polled = [PollFd::new(deaths, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => sys::exit_now(1),
        }
        let [died, told] = polled.map(|entry| entry.revents());
        if !died.is_empty() {
            let mut siginfo = [0; 128];
            while rustix::io::read(deaths, &mut siginfo).is_ok() {}
        }
        // Looked at every time: it costs one call, and no death can be missed.
        while let Ok(Some((pid, ended))) = sys::reap_any(false) {
            if pid == program {
                status = Some(ended);
            }
        }
        if !told.is_empty() && !obey(control) {
            break;
        }
    }
    // A process with a pending KILL cannot fork, so one round reaches all. No process left is no failure.
    let _none_left = sys::kill_all(libc::SIGKILL);
    loop {
        match sys::reap_any(true) {
            Ok(Some((pid, ended))) if pid == program => status = Some(ended),
            Ok(_) | Err(Errno::INTR) => {}
            // No child is left.
            Err(_) => break,
        }
    }
    if let Some(status) = status {
        let mut message = [STATUS; 5];
        message[1..].copy_from_slice(&status.to_le_bytes());
        // If the supervisor is gone, so is this process at once.
        let _gone = rustix::io::write(control, &message);
    }
    sys::exit_now(0)
}

/// Does what the supervisor says; `false` if everything has to end.
fn obey(control: &OwnedFd) -> bool {
    let mut byte = [0];
    match rustix::io::read(control, &mut byte) {
        Ok(1) if byte[0] == TERM => {
            // A stopped process takes TERM only once it goes on. No process left is no failure.
            let _none_left = sys::kill_all(libc::SIGTERM);
            let _none_left = sys::kill_all(libc::SIGCONT);
            true
        }
        Ok(1) => byte[0] != KILL,
        Err(Errno::INTR | Errno::AGAIN) => true,
        // The supervisor is gone.
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_pipe() {
        for report in [
            Report::StepFailed { index: 7, errno: 13 },
            Report::ForkFailed { errno: 11 },
            Report::Forked,
            Report::ExecFailed { errno: -1 },
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(Report::decode(&[0; Report::LENGTH]), None);
    }
}
