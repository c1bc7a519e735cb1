//! Steps that take something away from a sandbox: capabilities, limits, Landlock, system calls.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Rlimit;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::tree::file_type;
use crate::plan::{Filter, Resource, Text};
use crate::sys;

/// A filter in the kernel's form.
#[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the number that holds them")]
pub(super) fn instructions(filter: &Filter) -> Vec<libc::sock_filter> {
    let unpack = |word: &u64| libc::sock_filter {
        code: (word >> 48) as u16,
        jt: (word >> 40) as u8,
        jf: (word >> 32) as u8,
        k: *word as u32,
    };
    filter.0.iter().map(unpack).collect()
}

/// See [`Step::DropCapabilities`](crate::plan::Step::DropCapabilities).
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
}

/// See [`Step::Limit`](crate::plan::Step::Limit).
pub(super) fn limit(resource: Resource, value: u64) -> Result<(), Errno> {
    let resource = match resource {
        Resource::Core => rustix::process::Resource::Core,
        Resource::FileSize => rustix::process::Resource::Fsize,
        Resource::OpenFiles => rustix::process::Resource::Nofile,
        Resource::Tasks => rustix::process::Resource::Nproc,
        Resource::PendingSignals => rustix::process::Resource::Sigpending,
    };
    let hard = rustix::process::getrlimit(resource).maximum;
    let value = Some(hard.map_or(value, |hard| hard.min(value)));
    rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
}

/// Access rights of <linux/landlock.h>.
mod access {
    pub(super) const EXECUTE: u64 = 1;
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    /// Remove and make entries of every kind.
    pub(super) const CHANGE_DIR: u64 = 0b1_1111_1111 << 4;
    /// Device nodes are never made.
    pub(super) const MAKE_DEVICE: u64 = (1 << 6) | (1 << 11);
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
    /// Abstract sockets and signals stay in the domain.
    pub(super) const SCOPES: u64 = 0b11;
}

/// See [`Step::Landlock`](crate::plan::Step::Landlock). Reading is not restricted: only what may be read is mounted.
pub(super) fn landlock(abi: u32, write: &[Text], execute: &[Text]) -> Result<(), Errno> {
    let mut on_file = access::WRITE_FILE;
    if abi >= 3 {
        on_file |= access::TRUNCATE;
    }
    if abi >= 5 {
        on_file |= access::IOCTL_DEV;
    }
    let on_dir = on_file | (access::CHANGE_DIR & !access::MAKE_DEVICE) | access::REFER;
    let ruleset = sys::LandlockRuleset {
        handled_access_fs: on_file | access::CHANGE_DIR | access::REFER | access::EXECUTE,
        handled_access_net: 0,
        scoped: if abi >= 6 { access::SCOPES } else { 0 },
    };
    let size = match abi {
        0..=3 => 8,
        4..=5 => 16,
        6.. => 24,
    };
    let ruleset = sys::landlock_ruleset(&ruleset, size)?;
    for path in write {
        let place = rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let allowed = if file_type(&place)? == FileType::Directory { on_dir } else { on_file };
        sys::landlock_allow(ruleset.as_fd(), place.as_fd(), allowed)?;
    }
    for path in execute {
        let place = rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::landlock_allow(ruleset.as_fd(), place.as_fd(), access::EXECUTE)?;
    }
    sys::landlock_restrict(ruleset.as_fd())
}
