//! What all units see of the host, made once: the small root with the host's system in it, in a mount namespace of its own. A
//! sandbox that is cloned from within it begins with a copy of its mounts, in place of making each of them, and never sees the
//! host's. Only root can make one: an ordinary user's sandboxes carry out the same steps each for itself.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;
use rustix::time::Timespec;

use crate::plan::{Base, Step};
use crate::sys::{self, Fork};
use crate::{child, handout};

const NAMESPACE: &str = "/proc/self/ns/mnt";

/// See the head of this file.
pub(crate) struct Template {
    steps: Vec<Step>,
    mounts: OwnedFd,
    /// The mount namespace where this process belongs.
    home: OwnedFd,
}

/// How long a template may take, which opens files of the host: one on a file system that does not answer keeps no unit waiting.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

impl Template {
    /// Makes it, in a process of its own, so that a step that fails half-way leaves nothing.
    ///
    /// # Errors
    /// What making a process gives; `PIPE` if a step failed, `TIMEDOUT` if they take too long. Why is told by a unit that carries them
    /// out for itself.
    pub(crate) fn make(steps: &[Step]) -> Result<Self, Errno> {
        let home = mount_namespace()?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let namespaces = u64::try_from(libc::CLONE_NEWNS | libc::CLONE_NEWPID).expect("positive flags");
        // SAFETY: the spawner has one thread.
        #[expect(unsafe_code, reason = "clone of a process with one thread")]
        let (fork, maker) = unsafe { sys::clone_into(namespaces, None) }?;
        if let Fork::Child = fork {
            drop(ours);
            let made = lay_out(steps).and_then(|mounts| handout::send(&theirs, b"T", mounts.as_fd()));
            sys::exit_now(i32::from(made.is_err()))
        }
        drop(theirs);
        let mut polled = [PollFd::new(&ours, PollFlags::IN)];
        if rustix::event::poll(&mut polled, Some(&PATIENCE)) == Ok(0) {
            if let Some(maker) = maker {
                // If it is gone after all, it is too late all the same.
                let _gone = rustix::process::pidfd_send_signal(maker, Signal::KILL);
            }
            return Err(Errno::TIMEDOUT);
        }
        let mut message = [0];
        let mounts = loop {
            match handout::receive(&ours, &mut message, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received?.1.ok_or(Errno::PIPE)?,
            }
        };
        Ok(Self { steps: steps.to_vec(), mounts, home })
    }

    /// Whether it is that of a base.
    pub(crate) fn is_of(&self, base: &Base) -> bool {
        base.template() == Some(&self.steps)
    }

    /// Brings this process into it, at its root.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        enter(&self.mounts)
    }

    /// Brings this process back to where it belongs, at its root. It had no other one: in a root of its own it could have made no user
    /// namespace.
    pub(crate) fn leave(&self) -> Result<(), Errno> {
        enter(&self.home)
    }
}

/// Brings this process into a mount namespace, at its root.
pub(crate) fn enter(mounts: &OwnedFd) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
}

/// This process's.
pub(crate) fn mount_namespace() -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, NAMESPACE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Leaves nothing in this process's mount namespace but what the steps make.
fn lay_out(steps: &[Step]) -> Result<OwnedFd, Errno> {
    // What is made gets exactly the mode that is named.
    rustix::process::umask(Mode::empty());
    // Inside there is no /proc.
    let mounts = mount_namespace()?;
    child::lay_out(steps)?;
    Ok(mounts)
}
