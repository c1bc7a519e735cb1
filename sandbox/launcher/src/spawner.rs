//! The spawner: one small process with one thread that forks supervisors, so that the agent never forks from its pool.
//!
//! The agent starts it once, by executing its own program again with a hidden argument and one end of a socket as
//! standard input. A request is one message: the path of a unit's folder, and the pipe that the supervisor answers
//! through. When the agent's end closes, the spawner ends; supervisors live on in sessions of their own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;

use crate::record::{self, Reply};
use crate::supervisor;
use crate::sys::{self, Fork};

/// The hidden first argument.
pub(crate) const ARGUMENT: &str = "__windlass-launcher";
/// Longest path of a unit's folder: the kernel's PATH_MAX.
const MAX_REQUEST: usize = 4096;

/// The agent's handle on its spawner. Dropping it ends the spawner, not the supervisors.
#[derive(Debug)]
pub struct Spawner {
    socket: Option<OwnedFd>,
    process: Child,
}

impl Spawner {
    /// Starts a spawner by executing `program` (normally `/proc/self/exe`), whose `main` begins with
    /// [`crate::run_if_requested`].
    ///
    /// # Errors
    /// What starting a process gives.
    pub fn start(program: &Path) -> io::Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // It gets none of the agent's environment: supervisors and sandboxes are copies of it.
        let process = Command::new(program)
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { socket: Some(ours), process })
    }

    /// Asks for a supervisor of the unit in `dir`; gives the pipe on which one [`Reply`] arrives as JSON. The pipe ends
    /// without one if the supervisor dies first.
    ///
    /// # Errors
    /// `BrokenPipe` if the spawner is gone (start another one).
    pub fn launch(&self, dir: &Path) -> io::Result<OwnedFd> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [write.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = dir.as_os_str().as_bytes();
        if path.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        match rustix::net::sendmsg(socket, &[IoSlice::new(path)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(read),
            Err(Errno::CONNRESET | Errno::PIPE) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Its pid, for tests and diagnosis.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.socket = None;
        // It ends as soon as it sees the closed socket. If waiting fails there is nothing left to wait for.
        let _gone = self.process.wait();
    }
}

/// The spawner's whole life.
pub(crate) fn run() -> ExitCode {
    // What the agent inherited itself and did not mark is not for supervisors and sandboxes.
    // SAFETY: this is the first thing that this program does, so no value owns a descriptor.
    #[expect(unsafe_code, reason = "closing descriptors that nothing here owns")]
    unsafe {
        sys::close_others(3, &mut []);
    }
    // SAFETY: as above, so nothing else uses descriptor 0.
    #[expect(unsafe_code, reason = "the socket arrives as standard input")]
    let socket = unsafe { sys::take_standard_input() };
    // A session of its own: Ctrl-C in the agent's terminal is for the agent to handle.
    if rustix::process::setsid().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(boot_id) = record::boot_id() else { return ExitCode::FAILURE };
    // The agent may have been started with signals ignored; programs in sandboxes must not inherit that.
    sys::default_signals();
    sys::auto_reap(true);
    loop {
        match receive(&socket) {
            Ok(Some((dir, reply))) => fork_supervisor(&socket, &dir, &boot_id, reply),
            Ok(None) => return ExitCode::SUCCESS,
            Err(Errno::INTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// The next request; `None` once the agent is gone.
fn receive(socket: &OwnedFd) -> Result<Option<(PathBuf, OwnedFd)>, Errno> {
    let mut path = [0; MAX_REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut path)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let reply = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let dir = PathBuf::from(OsStr::from_bytes(&path[..received.bytes]));
    reply.map(|reply| Some((dir, reply))).ok_or(Errno::BADMSG)
}

/// Forks a supervisor. The child never comes back.
fn fork_supervisor(socket: &OwnedFd, dir: &Path, boot_id: &str, reply: OwnedFd) {
    // SAFETY: the spawner has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    match unsafe { sys::fork() } {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => {
            sys::auto_reap(false);
            let code = match become_supervisor(socket) {
                Ok(()) => supervisor::run(dir, boot_id, reply),
                Err(_) => 1,
            };
            sys::exit_now(code)
        }
        Err(errno) => {
            let message = format!("fork a supervisor: {errno}");
            let text = serde_json::to_vec(&Reply::Failed { message }).expect("a reply is plain data");
            // The one who asked may be gone.
            let _gone = io::Write::write_all(&mut File::from(reply), &text);
        }
    }
}

/// A session of its own, no terminal, none of the spawner's descriptors.
fn become_supervisor(socket: &OwnedFd) -> Result<(), Errno> {
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open(c"/dev/null", flags, rustix::fs::Mode::empty())?;
    // Descriptor 0 was the socket, whose other holders must be able to see the spawner's end.
    debug_assert_eq!(std::os::fd::AsRawFd::as_raw_fd(socket), 0);
    sys::place(&null, 0)?;
    sys::place(&null, 1)?;
    sys::place(&null, 2)?;
    rustix::thread::set_name(c"windlass-unit")
}
