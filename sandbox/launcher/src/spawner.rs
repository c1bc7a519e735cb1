//! The spawner: one small process with one thread that forks supervisors, so that the agent never forks from its pool.
//!
//! The agent starts it once, by executing its own program again with a hidden argument and one end of a socket as
//! standard input. When the agent's end closes, the spawner ends; supervisors live on in sessions of their own.
//!
//! *Messages*: one byte says which, with one descriptor. `L` launches the unit whose folder's path follows; with it comes the pipe
//! that its supervisor answers through. `S` makes a *spare* of the base that follows as JSON: a supervisor that has made its
//! namespaces and waits for a unit; with it comes the line on which the agent tells the spare itself of its unit, by an `L`. The
//! first spare has the template made that all sandboxes begin with; `A` does the same as `S`, but makes that anew. Supervisors send
//! networks that can serve again, over a line of theirs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;

use crate::handout;
use crate::record::{self, Reply};
use crate::stock::Store;
use crate::supervisor;
use crate::sys::{self, Fork};

/// The hidden first argument.
pub(crate) const ARGUMENT: &str = "__windlass-launcher";
const LAUNCH: u8 = b'L';
const SPARE: u8 = b'S';
const ANEW: u8 = b'A';
/// Longest message: a base has some hundred steps of some hundred bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest message to a spare: the path of a folder, of PATH_MAX.
const MAX_LAUNCH: usize = 8 << 10;

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

    /// Asks for a supervisor of the unit in `dir`; gives the pipe on which one [`Reply`] arrives as JSON. The pipe ends without one
    /// if the supervisor dies first.
    ///
    /// # Errors
    /// `BrokenPipe` if the spawner is gone (start another one).
    pub fn launch(&self, dir: &Path) -> io::Result<OwnedFd> {
        launch(self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?, dir)
    }

    /// Asks for a spare of the base that `text` is the JSON of; one that shows the host as it is now if it is to be `anew`, which
    /// goes for all sandboxes that are made from then on.
    ///
    /// # Errors
    /// `BrokenPipe` if the spawner is gone.
    pub fn make_spare(&self, text: &str, anew: bool) -> io::Result<Spare> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        send(socket, if anew { ANEW } else { SPARE }, text.as_bytes(), theirs.as_fd())?;
        Ok(Spare { line: ours })
    }

    /// Its pid, for tests and diagnosis.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// The agent's handle on a spare. Dropping it ends a spare that has no unit.
#[derive(Debug)]
pub struct Spare {
    line: OwnedFd,
}

impl Spare {
    /// Asks it to be the supervisor of the unit in `dir`, as [`Spawner::launch`] does a new one. One whose plan has another base
    /// than it was made of makes another sandbox.
    ///
    /// # Errors
    /// `BrokenPipe` if it is gone.
    pub fn launch(self, dir: &Path) -> io::Result<OwnedFd> {
        launch(&self.line, dir)
    }
}

fn launch(line: &OwnedFd, dir: &Path) -> io::Result<OwnedFd> {
    if dir.as_os_str().len() >= MAX_LAUNCH {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    send(line, LAUNCH, dir.as_os_str().as_bytes(), write.as_fd())?;
    Ok(read)
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
    // Supervisors and units are copies of this process.
    let yields = crate::yield_to_others();
    sys::auto_reap(true);
    let Ok(mut store) = Store::new(yields) else { return ExitCode::FAILURE };
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        store.await_message(&socket);
        match receive(&socket, &mut buffer) {
            Ok(Some(Message { kind: kind @ (SPARE | ANEW), body, fd: line })) => {
                let Ok(base) = serde_json::from_slice(&body) else { return ExitCode::FAILURE };
                store.prepare_template(&base, kind == ANEW);
                fork_spare(&socket, supervisor::Spare { base, text: body }, &boot_id, &mut store, &line);
            }
            Ok(Some(Message { kind: LAUNCH, body, fd: reply })) => {
                fork_supervisor(&socket, Path::new(OsStr::from_bytes(&body)), &boot_id, &mut store, reply);
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
    body: Vec<u8>,
    fd: OwnedFd,
}

fn send(line: &OwnedFd, kind: u8, body: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    if body.len() >= MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(body)];
    match rustix::net::sendmsg(line, &parts, &mut control, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::CONNRESET | Errno::PIPE) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The next message; `None` once the other side is gone.
fn receive(line: &OwnedFd, buffer: &mut [u8]) -> Result<Option<Message>, Errno> {
    let (length, fd) = handout::receive(line, buffer, RecvFlags::empty())?;
    match buffer.get(..length) {
        Some([kind, body @ ..]) => {
            Ok(Some(Message { kind: *kind, body: body.to_vec(), fd: fd.ok_or(Errno::BADMSG)? }))
        }
        _ => Ok(None),
    }
}

/// What a spare is sent: the folder of its unit, and the pipe to answer through. `None` if there will be no unit.
pub(crate) fn receive_unit(line: &OwnedFd) -> Result<Option<(PathBuf, OwnedFd)>, Errno> {
    let mut buffer = [0; MAX_LAUNCH];
    let Some(Message { body, fd, .. }) = receive(line, &mut buffer)? else { return Ok(None) };
    Ok(Some((PathBuf::from(OsStr::from_bytes(&body)), fd)))
}

/// Forks a spare. If it cannot be, its line is closed: units are then launched without.
fn fork_spare(socket: &OwnedFd, spare: supervisor::Spare, boot_id: &str, store: &mut Store, line: &OwnedFd) {
    let lent = store.lend();
    // SAFETY: the spawner has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    if let Ok(Fork::Child) = unsafe { sys::fork() } {
        sys::auto_reap(false);
        let code = match become_supervisor(socket) {
            Ok(()) => supervisor::run_spare(spare, boot_id, store.stock(lent), line),
            Err(_) => 1,
        };
        sys::exit_now(code)
    }
}

/// Forks a supervisor. The child never comes back.
fn fork_supervisor(socket: &OwnedFd, dir: &Path, boot_id: &str, store: &mut Store, reply: OwnedFd) {
    let lent = store.lend();
    // SAFETY: the spawner has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    match unsafe { sys::fork() } {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => {
            sys::auto_reap(false);
            let code = match become_supervisor(socket) {
                Ok(()) => supervisor::run(dir, boot_id, store.stock(lent), reply),
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
