//! What all units see of the host, made once: the small root with the host's system in it, in a mount namespace of its own. A
//! sandbox that is cloned from within it begins with a copy of its mounts, in place of making each of them, and never sees the
//! host's. Only root can make one: an ordinary user's sandboxes carry out the same steps each for itself.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::plan::{Base, Step};
use crate::sys::{self, Fork};
use crate::{child, handout};

const NAMESPACE: &str = "/proc/self/ns/mnt";

/// See the head of this file.
pub(crate) struct Template {
    steps: Vec<Step>,
    mounts: OwnedFd,
    /// Where this process belongs: its mount namespace, and its root in that.
    home: (OwnedFd, OwnedFd),
}

impl Template {
    /// Makes it, in a process of its own, so that a step that fails half-way leaves nothing.
    ///
    /// # Errors
    /// What making a process gives; `PIPE` if a step failed. Why it did is told by a unit that carries it out for itself.
    pub(crate) fn make(steps: &[Step]) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(c"/", flags, Mode::empty())?;
        let home = (mount_namespace()?, root);
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let namespaces = u64::try_from(libc::CLONE_NEWNS | libc::CLONE_NEWPID).expect("positive flags");
        // SAFETY: the spawner has one thread.
        #[expect(unsafe_code, reason = "clone of a process with one thread")]
        if let (Fork::Child, _) = unsafe { sys::clone_into(namespaces, None) }? {
            drop(ours);
            let made = lay_out(steps).and_then(|mounts| handout::send(&theirs, b"T", mounts.as_fd()));
            sys::exit_now(i32::from(made.is_err()))
        }
        drop(theirs);
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
        rustix::thread::move_into_link_name_space(self.mounts.as_fd(), Some(LinkNameSpaceType::Mount))
    }

    /// Brings this process back to where it belongs, at its root.
    pub(crate) fn leave(&self) -> Result<(), Errno> {
        let (mounts, root) = &self.home;
        rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        // The namespace's root is not where an agent is that was started in a root of its own.
        rustix::process::fchdir(root)?;
        rustix::process::chroot(c".")
    }
}

/// This process's.
fn mount_namespace() -> Result<OwnedFd, Errno> {
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
