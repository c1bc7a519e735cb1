//! The network of a sandbox that root makes: a namespace of its own with nothing but the loopback interface in it. To make one
//! and to take it apart costs more than anything else of a sandbox, so one in which no unit has ever had a socket (but local pairs,
//! connected for good) serves the next unit: nothing in it tells of the one before, and nobody else holds anything of it. It belongs to
//! root and not to the sandbox, which has no power over it.
//!
//! ```text
//!  spawner ──(lent)──► supervisor ──clone──► init …
//!     ▲                    │ given back, unless the filter told of a socket
//!     └────────────────────┘
//! ```

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

use crate::handout;
use crate::sys;

/// A network namespace, and where to give it back.
pub(crate) struct Network {
    namespace: OwnedFd,
    back: Option<OwnedFd>,
}

impl Network {
    /// Brings this process into the network that it was lent, or into a new one.
    pub(crate) fn enter(lent: Option<OwnedFd>, back: Option<OwnedFd>) -> Result<Self, Errno> {
        let namespace = match lent {
            Some(namespace) => {
                rustix::thread::move_into_link_name_space(
                    namespace.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )?;
                namespace
            }
            None => {
                sys::unshare(libc::CLONE_NEWNET)?;
                sys::interface_up(c"lo")?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                rustix::fs::openat(CWD, c"/proc/self/ns/net", flags, Mode::empty())?
            }
        };
        Ok(Self { namespace, back })
    }

    /// Gives it back, once no process of the unit is left and none has had a socket that counts. One with a socket in it that the kernel
    /// has yet to collect is not for others.
    pub(crate) fn give_back(&self) {
        let sockets = fs::read_to_string("/proc/self/net/sockstat");
        let is_empty = sockets.is_ok_and(|text| text.lines().next() == Some("sockets: used 0"));
        if let Some(back) = self.back.as_ref().filter(|_| is_empty) {
            // Without a spawner there is nobody who could lend it, and it goes as it would have gone.
            let _gone = handout::send(back, b"N", self.namespace.as_fd());
        }
    }

    /// The namespace alone, for another sandbox of this process.
    pub(crate) fn into_namespace(self) -> OwnedFd {
        self.namespace
    }
}
