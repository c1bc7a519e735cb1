//! How the socket that a unit's program finds listening gets out of its network namespace: the first process makes it and
//! hands it to the supervisor, which keeps it for as long as the unit runs and gives a copy to every agent that asks.
//!
//! ```text
//!  init ──(control line: 'L', descriptor)──► supervisor ──(Unix socket in the unit's folder)──► agent
//!       ◄──────────────(HELD)───────────────
//! ```
//!
//! While no agent asks, connections wait in the socket's backlog.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// File name of the supervisor's socket in the unit's folder.
const NAME: &str = "egress";
/// How long an agent waits for a supervisor to answer; it does so at its next look at its descriptors.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a message with one descriptor.
pub(crate) fn send(to: impl AsFd, message: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::MSGSIZE);
    }
    match rustix::net::sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)? {
        sent if sent == message.len() => Ok(()),
        _ => Err(Errno::MSGSIZE),
    }
}

/// Receives a message and the descriptor that may come with it; gives the message's length too.
pub(crate) fn receive(
    from: impl AsFd,
    message: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(message)];
    let received = rustix::net::recvmsg(from, &mut parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, fd))
}

/// The supervisor's side.
#[derive(Debug)]
pub struct Handout {
    listener: OwnedFd,
    door: OwnedFd,
}

impl Handout {
    /// Begins to give copies of `listener` to whoever may open the unit's folder.
    ///
    /// # Errors
    /// What making the socket gives.
    pub fn open(dir: &Path, listener: OwnedFd) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let door = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let (_folder, address) = address(dir)?;
        rustix::net::bind(&door, &address)?;
        rustix::net::listen(&door, 16)?;
        Ok(Self { listener, door })
    }

    /// What becomes readable when somebody asks.
    #[must_use]
    pub fn door(&self) -> &OwnedFd {
        &self.door
    }

    /// Answers everybody who asks now.
    pub fn answer(&self) {
        loop {
            match rustix::net::accept_with(&self.door, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // Who asked may be gone, and asks again.
                Ok(asking) => drop(send(asking, b"L", self.listener.as_fd())),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }
}

/// The listening socket of a unit that runs; `None` if it has none or runs no more. Waits for the supervisor's answer.
///
/// # Errors
/// What asking gives.
pub fn listener(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let line = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&line, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let (_folder, address) = match address(dir) {
        Err(Errno::NOENT) => return Ok(None),
        found => found?,
    };
    match rustix::net::connect(&line, &address) {
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        connected => connected?,
    }
    let mut message = [0];
    match receive(&line, &mut message, RecvFlags::empty()) {
        // It ended before it answered.
        Ok((0, _)) | Err(Errno::CONNRESET) => Ok(None),
        Ok((_, Some(listener))) => Ok(Some(listener)),
        Ok((_, None)) => Err(io::ErrorKind::InvalidData.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The address of the socket, by way of a descriptor: a path may be longer than an address has room for.
fn address(dir: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))?;
    Ok((folder, address))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn everybody_who_asks_gets_the_socket_also_below_a_path_longer_than_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        assert!(listener(&deep).unwrap().is_none(), "nobody answers yet");
        let inside = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = inside.local_addr().unwrap();
        let handout = Handout::open(&deep, inside.into()).unwrap();
        for _ in 0..3 {
            let folder = deep.clone();
            let asking = std::thread::spawn(move || listener(&folder).unwrap().unwrap());
            let mut polled = [rustix::event::PollFd::new(handout.door(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, None).unwrap();
            handout.answer();
            let copy = TcpListener::from(asking.join().unwrap());
            let mut client = TcpStream::connect(place).unwrap();
            drop(copy.accept().unwrap());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        drop(handout);
        assert!(listener(&deep).unwrap().is_none(), "the supervisor is gone");
    }
}
