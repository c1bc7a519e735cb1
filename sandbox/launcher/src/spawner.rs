//! The spawner: one small process with one thread that forks supervisors, so that the agent never forks from its pool.
//!
//! The agent starts it once, by executing its own program again with a hidden argument and one end of a socket as
//! standard input. When the agent's end closes, the spawner ends; supervisors live on in sessions of their own.
//!
//! *Messages*: one byte says which, eight a number, little-endian. `L` launches the unit whose folder's path follows; the
//! pipe that its supervisor answers through comes with it. `S` makes a *spare* of the base that follows as JSON: a
//! supervisor that has made its namespaces and waits for a unit. There is one spare, known by the number; a launch with that
//! number goes to it, and to a new supervisor if it is gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;

use crate::plan::Base;
use crate::record::{self, Reply};
use crate::supervisor;
use crate::sys::{self, Fork};

/// The hidden first argument.
pub(crate) const ARGUMENT: &str = "__windlass-launcher";
/// Kind and number.
const HEADER: usize = 9;
const LAUNCH: u8 = b'L';
const SPARE: u8 = b'S';
/// Longest message: a base has some hundred steps of some hundred bytes.
const MAX_MESSAGE: usize = 64 << 10;

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

    /// Asks for a supervisor of the unit in `dir`, the spare of that number if there still is one; gives the pipe on which
    /// one [`Reply`] arrives as JSON. The pipe ends without one if the supervisor dies first.
    ///
    /// # Errors
    /// `BrokenPipe` if the spawner is gone (start another one).
    pub fn launch(&self, dir: &Path, spare: Option<u64>) -> io::Result<OwnedFd> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // No spare has the number 0.
        send(socket, LAUNCH, spare.unwrap_or(0), dir.as_os_str().as_bytes(), Some(write.as_fd()))?;
        Ok(read)
    }

    /// Asks for a spare, in place of the one that there may be.
    ///
    /// # Errors
    /// `BrokenPipe` if the spawner is gone.
    pub fn make_spare(&self, number: NonZeroU64, base: &Base) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let base = serde_json::to_vec(base).expect("a base has no part that JSON lacks");
        send(socket, SPARE, number.get(), &base, None)
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
    // Supervisors and units are copies of this process. A kernel that cannot do it runs them as it runs all others.
    let _as_all_others = crate::take_short_turns();
    sys::auto_reap(true);
    let mut spare = None;
    loop {
        match receive(&socket) {
            Ok(Some(Message { kind: SPARE, number, body, .. })) => {
                // The one before sees its line closed and ends.
                drop(spare.take());
                spare = fork_spare(&socket, &body, &boot_id).map(|line| (number, line));
            }
            Ok(Some(Message { kind: LAUNCH, number, body, reply: Some(reply) })) => {
                let made = spare.take_if(|(known, _)| *known == number);
                let taken = made
                    .is_some_and(|(_, line)| send(&line, LAUNCH, number, &body, Some(reply.as_fd())).is_ok());
                if !taken {
                    let dir = Path::new(OsStr::from_bytes(&body));
                    // A supervisor must not keep the spare's line open.
                    let line = spare.as_ref().map(|(_, line)| line);
                    fork_supervisor(&socket, line, dir, &boot_id, reply);
                }
            }
            // The agent is gone, or is not ours.
            Ok(None | Some(_)) => return ExitCode::SUCCESS,
            Err(Errno::INTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// A message, see the head of this file.
struct Message {
    kind: u8,
    number: u64,
    body: Vec<u8>,
    reply: Option<OwnedFd>,
}

fn send(
    socket: &OwnedFd,
    kind: u8,
    number: u64,
    body: &[u8],
    reply: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    if body.len() > MAX_MESSAGE - HEADER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = reply.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let number = number.to_le_bytes();
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(&number), IoSlice::new(body)];
    match rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::CONNRESET | Errno::PIPE) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The next message; `None` once the other side is gone.
fn receive(socket: &OwnedFd) -> Result<Option<Message>, Errno> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let reply = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let (header, body) = bytes.split_first_chunk::<HEADER>().ok_or(Errno::BADMSG)?;
    let [kind, number @ ..] = *header;
    Ok(Some(Message { kind, number: u64::from_le_bytes(number), body: body.to_vec(), reply }))
}

/// What a spare is sent: the folder of its unit, and the pipe to answer through. `None` if there will be no unit.
pub(crate) fn receive_unit(line: &OwnedFd) -> Result<Option<(PathBuf, OwnedFd)>, Errno> {
    let Some(Message { body, reply: Some(reply), .. }) = receive(line)? else { return Ok(None) };
    Ok(Some((PathBuf::from(OsStr::from_bytes(&body)), reply)))
}

/// Forks a spare; gives the line to it. `None` if it cannot be: units are then launched without.
fn fork_spare(socket: &OwnedFd, base: &[u8], boot_id: &str) -> Option<OwnedFd> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .ok()?;
    // SAFETY: the spawner has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    match unsafe { sys::fork() } {
        Ok(Fork::Parent(_)) => Some(ours),
        Ok(Fork::Child) => {
            drop(ours);
            sys::auto_reap(false);
            let code = match become_supervisor(socket) {
                Ok(()) => supervisor::run_spare(base, boot_id, &theirs),
                Err(_) => 1,
            };
            sys::exit_now(code)
        }
        Err(_) => None,
    }
}

/// Forks a supervisor. The child never comes back.
fn fork_supervisor(socket: &OwnedFd, spare: Option<&OwnedFd>, dir: &Path, boot_id: &str, reply: OwnedFd) {
    // SAFETY: the spawner has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    match unsafe { sys::fork() } {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => {
            sys::auto_reap(false);
            if let Some(line) = spare {
                // SAFETY: the value that owns it belongs to the spawner's code, which never runs in this process.
                #[expect(unsafe_code, reason = "closing the copy of a descriptor")]
                unsafe {
                    sys::close(line.as_fd());
                }
            }
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
