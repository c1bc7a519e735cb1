//! The network of a restricted unit: the namespace of a container that does nothing, made before the unit's own, so that the
//! program's first instruction finds the proxy listening.
//!
//! The holder is a container of the unit's own image with one program of ours in it, which waits for ever. The unit's container
//! joins its network namespace. Nothing but loopback is in there, and a socket that is opened from outside.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::LinkNameSpaceType;

use super::{Bind, ContainerPlan, PlannedNetwork};
use crate::egress::PORT;

/// Where the program is inside.
const INSIDE: &str = "/.windlass-holder";
/// Memory of the holder: the kernel counts a container's own set-up too.
const MEMORY: u64 = 32 << 20;

/// An ELF file for x86-64 that calls pause(2) for ever: a header, one segment, nine bytes of code.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    // The ELF header: 64 bits, little-endian, an executable for x86-64 that begins at 0x400078.
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 0x3e, 0, 1, 0, 0, 0, 0x78, 0, 0x40, 0, 0, 0, 0, 0,
    0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0x40, 0, 0x38, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    // Its one segment: the whole file, to be read and executed.
    1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
    0x81, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 0, 0, 0, 0,
    0, 0x10, 0, 0, 0, 0, 0, 0,
    // mov eax, 34 (pause); syscall; jmp to the beginning.
    0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7,
];

/// Writes the program into the state folder.
pub(super) fn install(state: &Path) -> io::Result<PathBuf> {
    let path = state.join("holder");
    if std::fs::read(&path).is_ok_and(|present| present == PROGRAM) {
        return Ok(path);
    }
    let beside = state.join(".holder");
    let mut file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o755).open(&beside)?;
    io::Write::write_all(&mut file, PROGRAM)?;
    drop(file);
    // A mask may have taken bits away.
    std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::rename(&beside, &path)?;
    Ok(path)
}

/// The holder's plan, for the container of `unit`.
pub(super) fn plan(unit: &ContainerPlan, program: &Path) -> ContainerPlan {
    ContainerPlan {
        name: format!("{}-net", unit.name),
        entrypoint: Some(vec![INSIDE.to_owned()]),
        command: Vec::new(),
        env: [("PATH".to_owned(), "/".to_owned())].into(),
        cwd: "/".to_owned(),
        binds: vec![Bind { source: program.to_owned(), target: INSIDE.to_owned(), read_only: true }],
        scratch: Vec::new(),
        read_only_root: true,
        network: PlannedNetwork::None,
        cpu_millis: None,
        cpu_shares: None,
        memory_bytes: unit.memory_bytes.map(|_| MEMORY),
        pids: None,
        gpus: 0,
        ..unit.clone()
    }
}

/// Opens the proxy's socket in the network namespace of a process. A process of its own does it: only one with a single
/// thread may enter a user namespace.
pub(super) fn listener(pid: i32, mode: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut child = Command::new("/proc/self/exe")
        .arg(super::supervisor::ARGUMENT)
        .arg(mode)
        .arg(pid.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let received = receive(&ours);
    child.wait()?;
    received
}

fn receive(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut text = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = rustix::net::recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| {
        let said = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
        io::Error::other(if said.is_empty() { "its helper ended without a word".to_owned() } else { said })
    })
}

/// The life of that process: standard input is the line to the supervisor.
pub(super) fn run(pid: &str) -> io::Result<()> {
    let stdin = io::stdin();
    match open_inside(pid) {
        Ok(listener) => send(stdin.as_fd(), b"L", Some(&listener)),
        Err(error) => send(stdin.as_fd(), error.to_string().as_bytes(), None),
    }
}

fn open_inside(pid: &str) -> io::Result<OwnedFd> {
    let namespace = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        std::fs::File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("open {path}: {error}")))
    };
    let (user, network) = (namespace("user")?, namespace("net")?);
    let own = std::fs::metadata("/proc/self/ns/user")?;
    let enter = |file: &std::fs::File, kind, name: &str| {
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))
            .map_err(|errno| io::Error::other(format!("enter the {name} namespace of {pid}: {errno}")))
    };
    if user.metadata()?.ino() != own.ino() {
        enter(&user, LinkNameSpaceType::User, "user")?;
    }
    enter(&network, LinkNameSpaceType::Network, "network")?;
    let listener = TcpListener::bind(("127.0.0.1", PORT))
        .map_err(|error| io::Error::new(error.kind(), format!("listen on port {PORT}: {error}")))?;
    Ok(listener.into())
}

fn send(to: impl AsFd, text: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(to, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
