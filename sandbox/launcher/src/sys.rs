//! System calls that have no safe wrapper elsewhere, each with one.

#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::{CStr, c_char};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Pid;

/// `CLONE_INTO_CGROUP` of <linux/sched.h>; the crate's constant has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Turns the result of a raw system call into a `Result`.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The calling thread's errno.
fn last_errno() -> Errno {
    // SAFETY: __errno_location always returns a valid pointer to this thread's errno.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// What a clone or fork gave.
pub(crate) enum Fork {
    /// This is the child.
    Child,
    /// This is the parent.
    Parent(Pid),
}

/// Forks this process.
///
/// # Safety
/// The process must have only one thread; then the child may use everything that the parent may.
pub(crate) unsafe fn fork() -> Result<Fork, Errno> {
    // SAFETY: the caller vouches for a single thread, so no lock can be held by a thread that the child lacks.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Forks this process into new namespaces (and a v2 cgroup); the parent gets the pid and a pidfd.
///
/// # Safety
/// As [`fork`].
pub(crate) unsafe fn clone_into(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Fork, Option<OwnedFd>), Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a plain struct of integers, for which zero is valid and means "not used".
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = namespaces | u64::try_from(libc::CLONE_PIDFD).expect("a positive flag");
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).expect("an open descriptor is not negative");
    }
    // SAFETY: without CLONE_VM and a stack this is a fork; `args` is initialised and its pidfd points to a live i32. The
    // caller vouches for a single thread.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), mem::size_of::<libc::clone_args>()) };
    let pid = check(result)?;
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        None => Ok((Fork::Child, None)),
        Some(pid) => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Fork::Parent(pid), Some(pidfd)))
        }
    }
}

/// A stack for [`fork_sharing`].
pub(crate) struct Stack(Box<[mem::MaybeUninit<u8>]>);

impl Stack {
    /// What the code up to `execve` needs, many times over.
    const SIZE: usize = 64 << 10;

    pub(crate) fn new() -> Self {
        Self(Box::new_uninit_slice(Self::SIZE))
    }
}

/// Forks a child that shares this process's memory and runs `body` on a stack of its own, while this process waits until
/// the child has executed a program or ended: a fork without a copy of the page tables.
///
/// # Safety
/// The process must have only one thread. `body` must not return and must leave the shared memory such that this process
/// can go on; in particular it must not free anything.
pub(crate) unsafe fn fork_sharing<T>(
    stack: &mut Stack,
    context: &T,
    body: extern "C" fn(*mut libc::c_void) -> libc::c_int,
) -> Result<Pid, Errno> {
    let top = stack.0.as_mut_ptr_range().end;
    // The ABI wants the stack's top aligned to 16 bytes.
    let top = top.wrapping_sub(top as usize % 16);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is alive and large enough while this process waits, which CLONE_VFORK makes it do; `context` is
    // alive for as long; the caller vouches for the rest.
    let pid = unsafe { libc::clone(body, top.cast(), flags, ptr::from_ref(context).cast_mut().cast()) };
    let pid = check(libc::c_long::from(pid))?;
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)
}

/// Waits for a child to end and reaps it; gives its wait status and its usage with that of its reaped children.
pub(crate) fn reap(pid: Pid) -> Result<(i32, libc::rusage), Errno> {
    let mut status = 0;
    // SAFETY: rusage is a plain struct of integers, for which zero is valid.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live, writable values of the right type.
        let result = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &mut status, 0, &mut usage) };
        match check(libc::c_long::from(result)) {
            Ok(_) => return Ok((status, usage)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps any one child that has ended, waiting for one if asked to.
pub(crate) fn reap_any(wait: bool) -> Result<Option<(Pid, i32)>, Errno> {
    let mut status = 0;
    let options = if wait { 0 } else { libc::WNOHANG };
    // SAFETY: the pointer is to a live i32.
    let result = unsafe { libc::waitpid(-1, &mut status, options) };
    let pid = check(libc::c_long::from(result))?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| (pid, status)))
}

/// Signals every process of the caller's pid namespace but itself and the first.
pub(crate) fn kill_all(signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes no pointers.
    check(libc::c_long::from(unsafe { libc::kill(-1, signal) })).map(|_| ())
}

/// Ends this process at once: no destructors, no exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// The signals that a supervisor and an init take through a descriptor.
pub(crate) fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: sigset_t is plain data and sigemptyset initialises it; the pointers are to live values; the descriptor that
    // signalfd returns is new.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut())))?;
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives every signal its default action, but ignores SIGPIPE: a closed pipe is an error to handle.
pub(crate) fn default_signals() {
    // SAFETY: SIG_DFL and SIG_IGN are valid handlers for every signal. Signals whose action cannot be changed answer with
    // an error that does no harm.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Undoes what [`default_signals`] and [`signal_fd`] did, for a program that is to be executed.
pub(crate) fn release_signals() {
    // SAFETY: sigset_t is plain data and sigemptyset initialises it; SIG_DFL is a valid handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Lets the kernel reap this process's children by itself (`true`), or keeps them until they are waited for.
pub(crate) fn auto_reap(enable: bool) {
    let action = if enable { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: both actions are valid for SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, action) };
}

/// Changes the flags and the propagation of a mount (and, if asked, of those below it).
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    set: u64,
    propagation: u64,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let mut flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { libc::AT_SYMLINK_NOFOLLOW };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path is a NUL-terminated string and attributes a live struct whose size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            path.as_ptr(),
            flags,
            ptr::from_ref(&attributes),
            mem::size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(|_| ())
}

/// Joins new namespaces.
pub(crate) fn unshare(namespaces: i32) -> Result<(), Errno> {
    debug_assert!(namespaces & (libc::CLONE_FILES | libc::CLONE_VM) == 0, "namespaces only");
    // SAFETY: unshare takes no pointers, and a namespace changes no memory or descriptor of this process.
    check(libc::c_long::from(unsafe { libc::unshare(namespaces) })).map(|_| ())
}

/// Brings an interface up.
pub(crate) fn interface_up(name: &CStr) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data; the name is copied with its NUL within the array's bounds; both requests read and write
    // only that struct; the descriptor is new and owned here.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(libc::c_long::from(fd))?;
        let socket = OwnedFd::from_raw_fd(fd);
        let mut request: libc::ifreq = mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.to_bytes()) {
            *to = *from as c_char;
        }
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)))?;
        Ok(())
    }
}

/// Installs a seccomp filter for this thread. `no_new_privs` must be set.
pub(crate) fn install_filter(program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program points to `len` live instructions; the kernel copies and checks them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program))
    };
    check(result).map(|_| ())
}

/// As [`install_filter`]; gives the descriptor on which the kernel tells of calls that the filter hands on.
pub(crate) fn install_filter_with_listener(program: &mut [libc::sock_filter]) -> Result<OwnedFd, Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the program points to `len` live instructions; the kernel copies and checks them. With this flag it returns
        // a new descriptor, closed on execution, that nobody else owns.
        unsafe {
            let fd = check(libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                ptr::from_ref(&program),
            ))?;
            Ok(OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")))
        }
    };
    // A caller that the supervisor has heard of waits for its answer, whatever signals come. Before Linux 5.19 they interrupt it.
    match install(libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::INVAL) => install(0),
        result => result,
    }
}

/// `SECCOMP_IOCTL_NOTIF_RECV`, `_IOWR('!', 0, struct seccomp_notif)`.
const RECEIVE_NOTIFICATION: libc::c_ulong = 0xc050_2100;

/// `SECCOMP_IOCTL_NOTIF_SEND`, `_IOWR('!', 1, struct seccomp_notif_resp)`.
const ANSWER_NOTIFICATION: libc::c_ulong = 0xc018_2101;

/// A system call that a filter handed on.
pub(crate) struct HandedOn {
    /// Its number.
    pub(crate) number: u32,
    id: u64,
}

/// The next one. Waits for it; fails if its process has ended meanwhile.
pub(crate) fn receive_handed_on(listener: BorrowedFd<'_>) -> Result<HandedOn, Errno> {
    // SAFETY: seccomp_notif is a plain struct of integers, for which zero is valid and what the kernel asks for.
    let mut notification: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills exactly the structure that the request's number names.
    check(libc::c_long::from(unsafe {
        libc::ioctl(listener.as_raw_fd(), RECEIVE_NOTIFICATION, ptr::from_mut(&mut notification))
    }))?;
    Ok(HandedOn { number: notification.data.nr.cast_unsigned(), id: notification.id })
}

/// Lets the kernel carry out a call that a filter handed on. Its process may have ended meanwhile.
pub(crate) fn let_go_on(listener: BorrowedFd<'_>, call: &HandedOn) -> Result<(), Errno> {
    let answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: 0,
        flags: u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("the lowest bit"),
    };
    // SAFETY: the kernel reads exactly the structure that the request's number names, which is alive.
    check(libc::c_long::from(unsafe {
        libc::ioctl(listener.as_raw_fd(), ANSWER_NOTIFICATION, ptr::from_ref(&answer))
    }))
    .map(drop)
}

/// Replaces this process's program. Returns only on failure.
pub(crate) fn execute(
    path: &CStr,
    arguments: &NullTerminated<'_>,
    environment: &NullTerminated<'_>,
) -> Errno {
    // SAFETY: path is NUL-terminated; both arrays are NULL-terminated arrays of NUL-terminated strings that are alive.
    unsafe { libc::execve(path.as_ptr(), arguments.0.as_ptr(), environment.0.as_ptr()) };
    last_errno()
}

/// An array of strings as `execve` takes it.
pub(crate) struct NullTerminated<'a>(Vec<*const c_char>, std::marker::PhantomData<&'a CStr>);

impl<'a> NullTerminated<'a> {
    /// Collects the strings' addresses; they stay borrowed.
    pub(crate) fn new(strings: impl Iterator<Item = &'a CStr>) -> Self {
        let pointers = strings.map(CStr::as_ptr).chain([ptr::null()]).collect();
        Self(pointers, std::marker::PhantomData)
    }
}

/// Makes a descriptor number refer to what `fd` refers to; it stays open across `execve`.
pub(crate) fn place(fd: impl AsFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 takes no pointers; the numbers placed by callers are the three standard ones, which nobody here owns.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) })).map(|_| ())
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range takes no pointers, and with CLOEXEC it closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(|_| ())
}

/// The Landlock version of the kernel; an error where there is none.
pub(crate) fn landlock_version() -> Result<u32, Errno> {
    // SAFETY: with the VERSION flag the kernel expects no attributes.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0usize, 1u32) };
    check(result).map(|version| u32::try_from(version).expect("versions are small and positive"))
}

/// `struct landlock_ruleset_attr` of <linux/landlock.h>, up to version 6.
#[repr(C)]
pub(crate) struct LandlockRuleset {
    pub(crate) handled_access_fs: u64,
    pub(crate) handled_access_net: u64,
    pub(crate) scoped: u64,
}

/// Makes a Landlock ruleset; `size` is how much of the struct this version of the kernel knows.
pub(crate) fn landlock_ruleset(attributes: &LandlockRuleset, size: usize) -> Result<OwnedFd, Errno> {
    debug_assert!(size <= mem::size_of::<LandlockRuleset>());
    // SAFETY: the struct is alive and at least `size` bytes long; the descriptor is new.
    unsafe {
        let fd =
            check(libc::syscall(libc::SYS_landlock_create_ruleset, ptr::from_ref(attributes), size, 0u32))?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")))
    }
}

/// Allows `access` below `path` in a ruleset.
pub(crate) fn landlock_allow(
    ruleset: BorrowedFd<'_>,
    path: BorrowedFd<'_>,
    access: u64,
) -> Result<(), Errno> {
    /// `struct landlock_path_beneath_attr` of <linux/landlock.h>.
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    const RULE_PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { allowed_access: access, parent_fd: path.as_raw_fd() };
    // SAFETY: the rule is alive and of the layout that this rule type has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            ptr::from_ref(&rule),
            0u32,
        )
    };
    check(result).map(|_| ())
}

/// Puts this thread under a ruleset.
pub(crate) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    check(result).map(|_| ())
}

/// Takes every capability out of the bounding set.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64u64 {
        // SAFETY: PR_CAPBSET_DROP takes one number and no pointers.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(libc::c_long::from(result)) {
            Ok(_) => {}
            // Past the last capability that this kernel knows.
            Err(Errno::INVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes over the standard input as an owned descriptor.
///
/// # Safety
/// Nothing else in this process may use or own descriptor 0.
pub(crate) unsafe fn take_standard_input() -> OwnedFd {
    // SAFETY: the caller vouches for sole ownership; a process is started with descriptor 0 open.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Closes every descriptor from `first` on, except those in `keep`.
///
/// # Safety
/// No value of this process that owns one of the closed descriptors may be used or dropped afterwards.
pub(crate) unsafe fn close_others(first: RawFd, keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut from = first;
    for kept in keep.iter().copied().filter(|kept| *kept >= first).chain([RawFd::MAX]) {
        if kept > from {
            // SAFETY: close_range takes no pointers; the caller vouches for the owners.
            unsafe { libc::syscall(libc::SYS_close_range, from, kept - 1, 0) };
        }
        from = kept.saturating_add(1);
    }
}

/// `struct fsxattr` of <linux/fs.h>.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FileAttributes {
    pub(crate) flags: u32,
    pub(crate) extent_size: u32,
    pub(crate) extents: u32,
    pub(crate) project: u32,
    pub(crate) cow_extent_size: u32,
    pub(crate) padding: [u8; 8],
}

/// How a thread with the kernel's usual policy takes its turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// As others do.
    Normal,
    /// It interrupts nobody when it wakes up.
    Yielding,
}

/// Gives the calling thread, and what it forks, turns of this length where others want the processor too (Linux 6.12; before, only the
/// policy changes), and the policy `to` in place of `from`. Gives whether it had that; nothing changes where it has another one.
pub(crate) fn take_turns_of(length: std::time::Duration, from: Policy, to: Policy) -> Result<bool, Errno> {
    // SAFETY: sched_attr is a plain struct of integers, for which zero is valid.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let size = u32::try_from(mem::size_of::<libc::sched_attr>()).expect("a few dozen bytes");
    // SAFETY: the kernel writes at most `size` bytes to the structure, which is alive.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, ptr::from_mut(&mut attributes), size, 0) })?;
    let number = |policy| match policy {
        Policy::Normal => u32::try_from(libc::SCHED_OTHER).expect("it is 0"),
        Policy::Yielding => u32::try_from(libc::SCHED_BATCH).expect("it is 3"),
    };
    if attributes.sched_policy != number(from) {
        return Ok(false);
    }
    attributes.size = size;
    attributes.sched_policy = number(to);
    attributes.sched_runtime = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `size` bytes of the structure, which is alive.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(&attributes), 0) }).map(|_| true)
}

/// `FS_IOC_FSGETXATTR`, `_IOR('X', 31, struct fsxattr)`.
const GET_FILE_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`, `_IOW('X', 32, struct fsxattr)`.
const SET_FILE_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// `PRJQUOTA` of <linux/quota.h>.
const PROJECT_QUOTA: libc::c_int = 2;

/// A file's project and flags.
pub(crate) fn file_attributes(file: BorrowedFd<'_>) -> Result<FileAttributes, Errno> {
    let mut attributes = FileAttributes::default();
    // SAFETY: the kernel fills exactly the structure that the request's number names, whose layout this one has.
    check(libc::c_long::from(unsafe {
        libc::ioctl(file.as_raw_fd(), GET_FILE_ATTRIBUTES, ptr::from_mut(&mut attributes))
    }))?;
    Ok(attributes)
}

/// Sets a file's project and flags.
pub(crate) fn set_file_attributes(file: BorrowedFd<'_>, attributes: FileAttributes) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly the structure that the request's number names, whose layout this one has.
    check(libc::c_long::from(unsafe {
        libc::ioctl(file.as_raw_fd(), SET_FILE_ATTRIBUTES, ptr::from_ref(&attributes))
    }))
    .map(drop)
}

/// Sets the hard limits of a project on the file system of `file`: blocks of 1 KiB, and files; 0 is no limit.
pub(crate) fn set_project_limits(
    file: BorrowedFd<'_>,
    project: u32,
    blocks: u64,
    files: u64,
) -> Result<(), Errno> {
    // SAFETY: dqblk is a plain struct of integers, for which zero is valid.
    let mut limits: libc::dqblk = unsafe { mem::zeroed() };
    limits.dqb_bhardlimit = blocks;
    limits.dqb_ihardlimit = files;
    limits.dqb_valid = libc::QIF_LIMITS;
    // `QCMD` of <linux/quota.h>; the kernel takes the 32 bits as unsigned.
    let command = (libc::Q_SETQUOTA << 8) | PROJECT_QUOTA;
    // SAFETY: the kernel reads one dqblk, which is alive, for this command.
    check(unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, ptr::from_ref(&limits))
    })
    .map(drop)
}

/// A descriptor that becomes readable when the memory cgroup (version 1) of `folder` is out of memory.
pub(crate) fn watch_out_of_memory(folder: &std::path::Path) -> std::io::Result<OwnedFd> {
    // SAFETY: eventfd takes two integers.
    let event =
        check(libc::c_long::from(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }))?;
    let event = RawFd::try_from(event).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    let event = unsafe { OwnedFd::from_raw_fd(event) };
    let control = std::fs::File::open(folder.join("memory.oom_control"))?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    std::fs::write(folder.join("cgroup.event_control"), line)?;
    Ok(event)
}
