//! What makes a base a unit's sandbox, on its way from the supervisor to the first process of the namespaces.
//!
//! *Format*: the length of the JSON as four bytes, little-endian, with all descriptors; then the JSON. It travels over the
//! control line, before the first order.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::plan::Own;

/// Most descriptors of one message, by the kernel's SCM_MAX_FD. The policy allows far fewer mounts.
const MAX_FDS: usize = 253;

/// The JSON.
#[derive(Serialize, Deserialize)]
#[serde(bound(deserialize = "O: Deserialize<'de>"))]
struct Message<O> {
    own: O,
    /// Which steps have a source among the descriptors, in order.
    sources: Vec<usize>,
    /// How many descriptors, after the sources, are `tasks` files of cgroups.
    tasks: usize,
}

/// Hands over the unit's own part, its opened sources and the `tasks` files of its cgroups.
pub(crate) fn send(
    line: &OwnedFd,
    own: &Own,
    sources: &[Option<OwnedFd>],
    tasks: &[OwnedFd],
) -> Result<(), Errno> {
    let opened = sources.iter().enumerate().filter(|(_, source)| source.is_some());
    let message = Message { own, sources: opened.map(|(index, _)| index).collect(), tasks: tasks.len() };
    let text = serde_json::to_vec(&message).expect("a plan has no part that JSON lacks");
    let length = u32::try_from(text.len()).map_err(|_| Errno::MSGSIZE)?.to_le_bytes();
    let fds: Vec<BorrowedFd<'_>> = sources.iter().flatten().chain(tasks).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::MSGSIZE);
    }
    // Far smaller than the socket's buffer, so it is taken whole.
    if rustix::net::sendmsg(line, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?
        != length.len()
    {
        return Err(Errno::MSGSIZE);
    }
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        match rustix::net::send(line, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What [`receive`] gives: the unit's own part, the source of each step that has one, and `tasks` files.
pub(crate) type Received = (Own, Vec<Option<OwnedFd>>, Vec<OwnedFd>);

/// Waits for the unit. `PIPE` if the supervisor is gone.
pub(crate) fn receive(line: &OwnedFd) -> Result<Received, Errno> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut length)];
        match rustix::net::recvmsg(line, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes != 4 {
        return Err(Errno::PIPE);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let mut text = vec![0; usize::try_from(u32::from_le_bytes(length)).map_err(|_| Errno::MSGSIZE)?];
    let mut filled = 0;
    while filled < text.len() {
        match rustix::io::read(line, &mut text[filled..]) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let message: Message<Own> = serde_json::from_slice(&text).map_err(|_| Errno::BADMSG)?;
    let mut fds = fds.into_iter();
    let mut sources: Vec<Option<OwnedFd>> = message.own.steps.iter().map(|_| None).collect();
    for index in message.sources {
        let source = fds.next().ok_or(Errno::BADMSG)?;
        *sources.get_mut(index).ok_or(Errno::BADMSG)? = Some(source);
    }
    let tasks: Vec<OwnedFd> = fds.collect();
    if tasks.len() == message.tasks { Ok((message.own, sources, tasks)) } else { Err(Errno::BADMSG) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;
    use crate::plan::{Step, Text};

    fn line() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn own(argument: String) -> Own {
        let name = Text::new("n").unwrap();
        Own {
            steps: vec![Step::SetHostname { name }, Step::SealRoot, Step::EnterRoot],
            programs: Vec::new(),
            arguments: vec![Text::new(argument).unwrap()],
            environment: Vec::new(),
        }
    }

    #[test]
    fn a_unit_larger_than_the_sockets_buffer_arrives_with_its_descriptors_in_place() {
        let (here, there) = line();
        let sent = own("x".repeat(3 << 20));
        let (mut read, write) = std::io::pipe().unwrap();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            let sources = [None, Some(OwnedFd::from(write)), None];
            send(&here, &sent, &sources, &[OwnedFd::from(std::fs::File::open("/dev/null").unwrap())])
        });
        let (received, mut sources, tasks) = receive(&there).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(received, expected);
        assert_eq!(tasks.len(), 1);
        assert!(sources[0].is_none() && sources[2].is_none());
        std::fs::File::from(sources[1].take().unwrap()).write_all(b"here").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
    }

    #[test]
    fn a_supervisor_that_is_gone_is_told_from_a_unit() {
        let (here, there) = line();
        drop(here);
        assert_eq!(receive(&there).err(), Some(Errno::PIPE));
        let (here, there) = line();
        drop(there);
        assert_eq!(send(&here, &own(String::new()), &[], &[]).err(), Some(Errno::PIPE));
    }
}
