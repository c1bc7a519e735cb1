//! Everything that runs between the clone and the program's first instruction, and the tiny init that stays.
//!
//! *Flow*: the first process of the new namespaces waits until its supervisor has written its id maps, carries out the
//! steps of the base, waits for its unit, carries out the unit's own steps, forks the program, and then only reaps, forwards
//! TERM, and tells the program's status.
//!
//! *Assumptions*: the code here runs in a copy of a process with one thread, so no lock of the allocator can be held by
//! somebody who is not there, and receiving the unit's part may allocate. Nothing here starts a thread or returns. Between
//! the fork of the program and its execution, when memory is shared, nothing is allocated.

use std::ffi::CStr;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::plan::{Filter, Filters, Own, Resource, Step, Text};
use crate::sys::{self, NullTerminated};
use crate::{handout, handover};

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

/// Where a system is laid out, in the small root: over a folder that is of no other use then.
const SYSTEM: &CStr = c"workspace";
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

/// The memory file system that a unit may fill, of which only parts are shown.
pub(crate) struct Scratch {
    root: OwnedFd,
    /// How many there are; they are numbered.
    parts: u64,
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
    // As the supervisor did.
    let _as_all_others = crate::take_short_turns();
    let first = child.base.steps.len();
    child.carry_out_all(Stage { steps: &own.steps, first, made: 0..0, sources, tasks });
    child.start(&own, &deaths)
}

/// Carries out the steps of a template, and makes the root that they made read-only.
pub(crate) fn lay_out(steps: &[Step]) -> Result<(), Errno> {
    let mut sources = steps.iter().map(open_tree_of).collect::<Result<Vec<_>, _>>()?;
    steps.iter().zip(&mut sources).try_for_each(|(step, source)| lay(step, source))?;
    freeze(c"/")
}

/// The forked process becomes the program. It shares the memory of the init, which waits.
extern "C" fn become_program(program: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `fork_sharing` passes on the reference that it was given, and the init waits while this process uses it.
    #[expect(unsafe_code, reason = "the context arrives as a pointer")]
    let program = unsafe { &*program.cast::<Program<'_>>() };
    program.begin()
}

/// Opens what a step shows as a detached mount with its final flags. The supervisor does it for everything if it is root,
/// because the job's user may not be able to reach the path; otherwise the child does it for itself.
pub(crate) fn open_tree_of(step: &Step) -> Result<Option<OwnedFd>, Errno> {
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let (tree, flags) = match step {
        Step::Show { source, .. } => (
            rustix::mount::open_tree(CWD, source.as_c_str(), clone)?,
            harmless | MountAttrFlags::MOUNT_ATTR_RDONLY,
        ),
        Step::ShowDevice { source, .. } => (
            rustix::mount::open_tree(CWD, source.as_c_str(), clone)?,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        ),
        Step::LayOut { source } => {
            // Itself alone: what somebody has mounted in it is no part of it.
            let alone = clone.difference(OpenTreeFlags::AT_RECURSIVE);
            let tree = open_tree_without_links(source, alone)?;
            (tree, harmless | MountAttrFlags::MOUNT_ATTR_RDONLY)
        }
        Step::Attach { source, read_only, .. } => {
            let tree = open_tree_without_links(source, clone)?;
            let flags = if *read_only { harmless | MountAttrFlags::MOUNT_ATTR_RDONLY } else { harmless };
            (tree, flags)
        }
        _ => return Ok(None),
    };
    set_flags(tree.as_fd(), flags)?;
    Ok(Some(tree))
}

/// A detached mount of a path without links.
fn open_tree_without_links(path: &Text, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let place = rustix::fs::openat2(
        CWD,
        path.as_c_str(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?;
    rustix::mount::open_tree(&place, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
}

/// Sets a detached mount's flags and cuts its propagation.
fn set_flags(tree: BorrowedFd<'_>, flags: MountAttrFlags) -> Result<(), Errno> {
    sys::mount_setattr(tree, c"", true, u64::from(flags.bits()), libc::MS_PRIVATE)
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
            | Step::EnterRoot => lay(&stage.steps[index], &mut stage.sources[index]),
            Step::MountScratch { target, bytes, files } => {
                self.scratch = Some(Scratch::mount(target.as_c_str(), *bytes, *files)?);
                Ok(())
            }
            Step::SizeScratch { bytes, files } => self.scratch()?.size(*bytes, *files),
            Step::ShowScratch { target, mode } => {
                mount_at(&self.scratch()?.folder(*mode)?, target.as_c_str())
            }
            Step::ShowFile { target, content } => {
                mount_at(&self.scratch()?.file(content.as_bytes())?, target.as_c_str())
            }
            Step::Mask { path } => mask(path),
            Step::Tune { path, value } => tune(path, *value),
            Step::Freeze { path } => freeze(path.as_c_str()),
            Step::LayOut { .. } => mount_at(&stage.sources[index].take().ok_or(Errno::BADF)?, SYSTEM),
            Step::Cover { part, place, read_only } => {
                let tree = clone_of(part.as_c_str())?;
                if *read_only {
                    freeze_tree(&tree)?;
                }
                cover(&tree, place)
            }
            Step::CoverWithScratch { place, mode } => cover(&self.scratch()?.folder(*mode)?, place),
            Step::EnterSystem => {
                // It goes with the small root; its parts stay.
                self.scratch = None;
                rustix::process::chdir(SYSTEM)?;
                enter_root()
            }
            Step::Attach { target, .. } => {
                let tree = stage.sources[index].take().ok_or(Errno::BADF)?;
                attach(&tree, target)
            }
            Step::SealRoot => {
                if let Some(scratch) = self.scratch.take() {
                    freeze_tree(&scratch.root)?;
                }
                freeze(c"/")
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

/// A filter in the kernel's form.
#[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the number that holds them")]
fn instructions(filter: &Filter) -> Vec<libc::sock_filter> {
    let unpack = |word: &u64| libc::sock_filter {
        code: (word >> 48) as u16,
        jt: (word >> 40) as u8,
        jf: (word >> 32) as u8,
        k: *word as u32,
    };
    filter.0.iter().map(unpack).collect()
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

/// The kind of file that a descriptor refers to.
fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Carries out one of the steps that need nothing but the file tree, which are those that a template may have.
fn lay(step: &Step, source: &mut Option<OwnedFd>) -> Result<(), Errno> {
    match step {
        Step::DetachMounts => {
            // What the host mounts and unmounts is still followed, so that a base that waits for its unit neither keeps a disk
            // of the host busy nor misses one.
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            rustix::mount::mount_change(c"/", slave)
        }
        Step::MakeRoot => make_root(),
        Step::MakeDir { path, mode } => make_dir(path, *mode),
        Step::MakeFile { path, content } => make_file(path, content.as_bytes()),
        Step::MakeLink { path, target } => rustix::fs::symlink(target.as_c_str(), path.as_c_str()),
        Step::Show { target, .. } | Step::ShowDevice { target, .. } => {
            let tree = source.take().ok_or(Errno::BADF)?;
            let made = match file_type(&tree)? {
                FileType::Directory => make_dir(target, 0o755),
                _ => make_file(target, b""),
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => mount_at(&tree, target.as_c_str()),
                Err(errno) => Err(errno),
            }
        }
        Step::MountProc { target } => mount_proc(target.as_c_str()),
        Step::EnterRoot => enter_root(),
        // The policy has put no other into a template.
        _ => Err(Errno::INVAL),
    }
}

/// Makes a folder with exactly this mode; one that is there is fine.
fn make_dir(path: &Text, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdir(path.as_c_str(), Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes a file with mode 0644.
fn make_file(path: &Text, content: &[u8]) -> Result<(), Errno> {
    make_file_at(CWD, path.as_c_str(), content)
}

/// Makes a file with mode 0644 below a folder.
fn make_file_at(folder: impl AsFd, path: &CStr, mut content: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, path, flags, Mode::from_raw_mode(0o644))?;
    while !content.is_empty() {
        let written = rustix::io::write(&file, content)?;
        content = content.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Attaches a detached mount.
fn mount_at(tree: &OwnedFd, target: &CStr) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A detached mount of what is at `path`.
fn clone_of(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
            | OpenTreeFlags::AT_RECURSIVE,
    )
}

/// See [`Step::MakeRoot`]. The new root is laid over the old one and becomes the working directory; absolute paths still
/// begin at the old one.
fn make_root() -> Result<(), Errno> {
    let root = memory_file_system(1 << 20, 256)?;
    mount_at(&root, c"/")?;
    rustix::process::fchdir(&root)
}

/// A detached one.
fn memory_file_system(bytes: u64, files: u64) -> Result<OwnedFd, Errno> {
    let mut digits = [0; 24];
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"windlass")?;
    rustix::mount::fsconfig_set_string(&context, c"size", decimal(bytes, &mut digits))?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", decimal(files, &mut digits))?;
    rustix::mount::fsconfig_set_string(&context, c"mode", c"0755")?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

impl Scratch {
    /// See [`Step::MountScratch`].
    fn mount(target: &CStr, bytes: u64, files: u64) -> Result<Self, Errno> {
        let root = memory_file_system(bytes, files)?;
        mount_at(&root, target)?;
        Ok(Self { root, parts: 0 })
    }

    /// See [`Step::SizeScratch`].
    fn size(&self, bytes: u64, files: u64) -> Result<(), Errno> {
        let mut digits = [0; 24];
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = rustix::mount::fspick(&self.root, c"", flags)?;
        rustix::mount::fsconfig_set_string(&context, c"size", decimal(bytes, &mut digits))?;
        rustix::mount::fsconfig_set_string(&context, c"nr_inodes", decimal(files, &mut digits))?;
        rustix::mount::fsconfig_reconfigure(&context)
    }

    /// A new folder as a detached mount.
    fn folder(&mut self, mode: u32) -> Result<OwnedFd, Errno> {
        self.part(|root, name| rustix::fs::mkdirat(root, name, Mode::from_raw_mode(mode)))
    }

    /// A new file as a detached mount, to be read only.
    fn file(&mut self, content: &[u8]) -> Result<OwnedFd, Errno> {
        let tree = self.part(|root, name| make_file_at(root, name, content))?;
        freeze_tree(&tree)?;
        Ok(tree)
    }

    /// Something new as a detached mount.
    fn part(&mut self, make: impl FnOnce(&OwnedFd, &CStr) -> Result<(), Errno>) -> Result<OwnedFd, Errno> {
        let mut digits = [0; 24];
        let name = decimal(self.parts, &mut digits);
        self.parts += 1;
        make(&self.root, name)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(&self.root, name, flags)
    }
}

/// See [`Step::EnterRoot`].
fn enter_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    // The old root now lies over the new one.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// See [`Step::Cover`].
fn cover(tree: &OwnedFd, place: &Text) -> Result<(), Errno> {
    let through = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let system = rustix::fs::open(SYSTEM, through | OFlags::DIRECTORY, Mode::empty())?;
    let place = rustix::fs::openat2(&system, place.as_c_str(), through, Mode::empty(), confined)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &place, c"", flags)
}

/// Makes the top of a detached mount read-only, but not what is mounted below it.
fn freeze_tree(tree: &OwnedFd) -> Result<(), Errno> {
    let flags = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    sys::mount_setattr(tree.as_fd(), c"", false, flags, 0)
}

/// A number in decimal digits, without allocating.
fn decimal(mut value: u64, digits: &mut [u8; 24]) -> &CStr {
    let mut at = digits.len() - 1;
    digits[at] = 0;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).expect("a digit");
        value /= 10;
        if value == 0 {
            return CStr::from_bytes_with_nul(&digits[at..]).expect("only digits before the NUL");
        }
    }
}

/// See [`Step::MountProc`].
fn mount_proc(target: &CStr) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let proc = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    mount_at(&proc, target)
}

/// See [`Step::Mask`]. The covers are the root's own `dev/null` and `sys`, which is empty. Most are files, and for these the old
/// call does in one what the new ones do in three; nothing of a fresh /proc that is covered is a link. It is looked first which of both
/// it is: taking back a mount that does not fit waits for all processors.
fn mask(path: &Text) -> Result<(), Errno> {
    match rustix::fs::stat(path.as_c_str()) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
            let cover = clone_of(c"sys")?;
            set_flags(cover.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            mount_at(&cover, path.as_c_str())
        }
        Ok(_) => rustix::mount::mount_bind(c"dev/null", path.as_c_str()),
    }
}

/// See [`Step::Tune`].
fn tune(path: &Text, value: u64) -> Result<(), Errno> {
    let file = match rustix::fs::open(path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut digits = [0; 24];
    // The kernel takes such a file's content in one piece.
    rustix::io::write(&file, decimal(value, &mut digits).to_bytes()).map(drop)
}

/// See [`Step::Freeze`].
fn freeze(path: &CStr) -> Result<(), Errno> {
    sys::mount_setattr(CWD, path, false, u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), 0)
}

/// See [`Step::Attach`]. Every part of the target is opened beneath the one before, never through a link, because the
/// target may lie in a workspace that an earlier step has prepared.
fn attach(tree: &OwnedFd, target: &Text) -> Result<(), Errno> {
    let through = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let is_dir = file_type(tree)? == FileType::Directory;
    let mut at = rustix::fs::open(c"/", through | OFlags::DIRECTORY, Mode::empty())?;
    let mut parts =
        target.as_c_str().to_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let mut buffer = [0; 256];
        let name = buffer.get_mut(..part.len()).ok_or(Errno::NAMETOOLONG)?;
        name.copy_from_slice(part);
        let name = CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::NAMETOOLONG)?;
        let made = if parts.peek().is_some() || is_dir {
            rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644)).map(|_| ())
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        at = rustix::fs::openat2(&at, name, through, Mode::empty(), confined)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &at, c"", flags)
}

/// See [`Step::DropCapabilities`].
fn drop_capabilities() -> Result<(), Errno> {
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
}

/// See [`Step::Limit`].
fn limit(resource: Resource, value: u64) -> Result<(), Errno> {
    let resource = match resource {
        Resource::Core => rustix::process::Resource::Core,
        Resource::FileSize => rustix::process::Resource::Fsize,
        Resource::OpenFiles => rustix::process::Resource::Nofile,
        Resource::Tasks => rustix::process::Resource::Nproc,
        Resource::PendingSignals => rustix::process::Resource::Sigpending,
    };
    let hard = rustix::process::getrlimit(resource).maximum;
    let value = Some(hard.map_or(value, |hard| hard.min(value)));
    rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
}

/// Access rights of <linux/landlock.h>.
mod access {
    pub(super) const EXECUTE: u64 = 1;
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    /// Remove and make entries of every kind.
    pub(super) const CHANGE_DIR: u64 = 0b1_1111_1111 << 4;
    /// Device nodes are never made.
    pub(super) const MAKE_DEVICE: u64 = (1 << 6) | (1 << 11);
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
    /// Abstract sockets and signals stay in the domain.
    pub(super) const SCOPES: u64 = 0b11;
}

/// See [`Step::Landlock`]. Reading is not restricted: only what may be read is mounted.
fn landlock(abi: u32, write: &[Text], execute: &[Text]) -> Result<(), Errno> {
    let mut on_file = access::WRITE_FILE;
    if abi >= 3 {
        on_file |= access::TRUNCATE;
    }
    if abi >= 5 {
        on_file |= access::IOCTL_DEV;
    }
    let on_dir = on_file | (access::CHANGE_DIR & !access::MAKE_DEVICE) | access::REFER;
    let ruleset = sys::LandlockRuleset {
        handled_access_fs: on_file | access::CHANGE_DIR | access::REFER | access::EXECUTE,
        handled_access_net: 0,
        scoped: if abi >= 6 { access::SCOPES } else { 0 },
    };
    let size = match abi {
        0..=3 => 8,
        4..=5 => 16,
        6.. => 24,
    };
    let ruleset = sys::landlock_ruleset(&ruleset, size)?;
    for path in write {
        let place = rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let allowed = if file_type(&place)? == FileType::Directory { on_dir } else { on_file };
        sys::landlock_allow(ruleset.as_fd(), place.as_fd(), allowed)?;
    }
    for path in execute {
        let place = rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::landlock_allow(ruleset.as_fd(), place.as_fd(), access::EXECUTE)?;
    }
    sys::landlock_restrict(ruleset.as_fd())
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

    #[test]
    fn numbers_are_written_in_decimal() {
        let mut digits = [0; 24];
        assert_eq!(decimal(0, &mut digits), c"0");
        assert_eq!(decimal(u64::MAX, &mut digits), c"18446744073709551615");
    }
}
