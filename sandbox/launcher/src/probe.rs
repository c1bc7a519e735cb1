//! Finds out what this host allows, by trying it in throw-away processes.
//!
//! The tries run in a helper process with one thread, as the spawner does; the agent only reads the answers.

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use serde::{Deserialize, Serialize};

use crate::spawner;
use crate::sys::{self, Fork};
use crate::template;

/// The hidden second argument.
pub(crate) const ARGUMENT: &str = "probe";

/// Something that a sandbox is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// A user namespace, made by this user.
    UserNamespace,
    /// A mount namespace.
    MountNamespace,
    /// A pid namespace.
    PidNamespace,
    /// A network namespace.
    NetNamespace,
    /// A namespace for System V IPC and message queues.
    IpcNamespace,
    /// A namespace for host names.
    UtsNamespace,
    /// A cgroup namespace.
    CgroupNamespace,
    /// A time namespace.
    TimeNamespace,
    /// The mount calls of Linux 5.12 (`fsopen`, `open_tree`, `mount_setattr`).
    MountCalls,
    /// A fresh /proc in a new pid namespace.
    FreshProc,
    /// `no_new_privs`.
    NoNewPrivileges,
    /// Seccomp filters.
    Seccomp,
    /// Seccomp filters that hand calls to a supervisor.
    SeccompNotification,
}

impl Feature {
    /// All of them, in the order in which they build upon each other.
    pub const ALL: [Self; 13] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::TimeNamespace,
        Self::MountCalls,
        Self::FreshProc,
        Self::NoNewPrivileges,
        Self::Seccomp,
        Self::SeccompNotification,
    ];
}

/// The answer for one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What was tried.
    pub feature: Feature,
    /// The error number that it failed with, `None` if it worked.
    pub errno: Option<i32>,
}

/// All answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// One for each feature.
    pub features: Vec<Probe>,
    /// The kernel's Landlock version, `None` where there is none.
    pub landlock: Option<u32>,
    /// Whether the caller can make outside of sandboxes what they have in common: mounts to begin with, and networks that are lent. Root
    /// can, unless a container keeps CAP_NET_ADMIN or CAP_SYS_CHROOT from it.
    pub outside: bool,
}

impl Probes {
    /// Why a feature does not work, `None` if it does.
    #[must_use]
    pub fn failure(&self, feature: Feature) -> Option<io::Error> {
        let probe = self.features.iter().find(|probe| probe.feature == feature);
        match probe {
            Some(probe) => probe.errno.map(io::Error::from_raw_os_error),
            None => Some(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Runs the probes in a helper process made of `program` (normally `/proc/self/exe`).
///
/// # Errors
/// If the helper cannot be started or does not answer.
pub fn probe(program: &Path) -> io::Result<Probes> {
    let output = Command::new(program)
        .args([spawner::ARGUMENT, ARGUMENT])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The helper's whole life.
pub(crate) fn run() -> ExitCode {
    let features = Feature::ALL.map(|feature| Probe { feature, errno: attempt(feature) }).to_vec();
    let probes = Probes { features, landlock: sys::landlock_version().ok(), outside: outside() };
    match serde_json::to_writer(io::stdout(), &probes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Tries one feature in a child.
fn attempt(feature: Feature) -> Option<i32> {
    in_child(|| match feature {
        Feature::UserNamespace => unshare(0),
        Feature::MountNamespace => unshare(libc::CLONE_NEWNS),
        Feature::PidNamespace => unshare(libc::CLONE_NEWPID),
        Feature::NetNamespace => unshare(libc::CLONE_NEWNET),
        Feature::IpcNamespace => unshare(libc::CLONE_NEWIPC),
        Feature::UtsNamespace => unshare(libc::CLONE_NEWUTS),
        Feature::CgroupNamespace => unshare(libc::CLONE_NEWCGROUP),
        Feature::TimeNamespace => unshare(libc::CLONE_NEWTIME),
        Feature::MountCalls => {
            unshare(libc::CLONE_NEWNS)?;
            mount_detached(c"tmpfs")
        }
        Feature::FreshProc => {
            unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID)?;
            match in_child(|| mount_detached(c"proc")) {
                None => Ok(()),
                Some(errno) => Err(Errno::from_raw_os_error(errno)),
            }
        }
        Feature::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
        Feature::Seccomp => {
            rustix::thread::set_no_new_privs(true)?;
            sys::install_filter(&mut [allow()])
        }
        Feature::SeccompNotification => {
            rustix::thread::set_no_new_privs(true)?;
            sys::install_filter_with_listener(&mut [allow()]).map(drop)
        }
    })
}

/// See [`Probes::outside`].
fn outside() -> bool {
    let failure = in_child(|| {
        let home = template::mount_namespace()?;
        sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)?;
        sys::interface_up(c"lo")?;
        template::enter(&home)
    });
    failure.is_none()
}

/// A filter that allows everything.
fn allow() -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).expect("a small code"),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }
}

/// Runs something in a child; gives the error number that it failed with.
fn in_child(body: impl FnOnce() -> Result<(), Errno>) -> Option<i32> {
    // SAFETY: the helper has one thread.
    #[expect(unsafe_code, reason = "fork of a process with one thread")]
    match unsafe { sys::fork() } {
        Ok(Fork::Child) => sys::exit_now(match body() {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        }),
        Ok(Fork::Parent(pid)) => match sys::reap(pid) {
            Ok((0, _)) => None,
            Ok((status, _)) if libc::WIFEXITED(status) => Some(libc::WEXITSTATUS(status)),
            Ok(_) => Some(Errno::INTR.raw_os_error()),
            Err(errno) => Some(errno.raw_os_error()),
        },
        Err(errno) => Some(errno.raw_os_error()),
    }
}

/// Joins a new user namespace and those of `flags`.
fn unshare(flags: i32) -> Result<(), Errno> {
    sys::unshare(libc::CLONE_NEWUSER | flags)
}

/// Makes a mount of a file system and changes its flags.
fn mount_detached(kind: &std::ffi::CStr) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let mount =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    sys::mount_setattr(std::os::fd::AsFd::as_fd(&mount), c"", true, read_only, libc::MS_PRIVATE)
}
