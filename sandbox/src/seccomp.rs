//! Which system calls a unit may make: policy as data, with a reason for each group.
//!
//! Each call has one of four answers:
//! - *allowed*: named in [`ALLOW`];
//! - *refused*: named in [`REFUSE`], or in [`CONDITIONAL`] with such arguments: EPERM, as without privileges;
//! - *denied*: named in [`DENY`]: no program in a sandbox makes it in good faith, so it is told to the supervisor, which
//!   ends the unit and names the call; where the kernel cannot tell (a listener of the host's own is installed already), it
//!   ends the program;
//! - *unknown*: everything else: ENOSYS, so that a C library that tries a newer call falls back to an older one.
//!
//! System calls of other architectures end the program; those of the x32 kind are unknown.

mod compile;
mod export;

pub(crate) use compile::{Denial, compile_alone};
use compile::{compile, compile_telling};
pub use export::oci_profile;

use windlass_launcher::plan::{DeniedCall, Filters, Text};

/// A system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// Its name with the path of its constant before it, such as `libc::SYS_read`.
    constant: &'static str,
}

impl Call {
    /// Its name, as in the manual.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.rsplit("SYS_").next().unwrap_or(self.constant)
    }
}

/// System calls by their constants.
macro_rules! calls {
    ($($number:path),* $(,)?) => {
        &[$(Call { number: $number, constant: stringify!($number) }),*]
    };
}

/// System calls with a reason.
pub struct Group {
    /// Why they are in this list.
    pub reason: &'static str,
    /// Which.
    pub calls: &'static [Call],
}

/// What works.
pub const ALLOW: &[Group] = &[
    Group {
        reason: "read and write files; the mounts decide which",
        calls: calls![
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_preadv2,
            libc::SYS_pwritev2,
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_creat,
            libc::SYS_close,
            libc::SYS_close_range,
            libc::SYS_lseek,
            libc::SYS_truncate,
            libc::SYS_ftruncate,
            libc::SYS_fallocate,
            libc::SYS_fadvise64,
            libc::SYS_readahead,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_sync_file_range,
            libc::SYS_sendfile,
            libc::SYS_copy_file_range,
            libc::SYS_splice,
            libc::SYS_tee,
            libc::SYS_dup,
            libc::SYS_dup2,
            libc::SYS_dup3,
            libc::SYS_fcntl,
            libc::SYS_flock,
            libc::SYS_ioctl,
            libc::SYS_pipe,
            libc::SYS_pipe2,
            libc::SYS_memfd_create,
        ],
    },
    Group {
        reason: "look at and change names, modes, times and attributes of files",
        calls: calls![
            libc::SYS_stat,
            libc::SYS_fstat,
            libc::SYS_lstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_statfs,
            libc::SYS_fstatfs,
            libc::SYS_access,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlink,
            libc::SYS_readlinkat,
            libc::SYS_getdents,
            libc::SYS_getdents64,
            libc::SYS_getcwd,
            libc::SYS_chdir,
            libc::SYS_fchdir,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_rmdir,
            libc::SYS_link,
            libc::SYS_linkat,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_symlink,
            libc::SYS_symlinkat,
            libc::SYS_mknod,
            libc::SYS_mknodat,
            libc::SYS_chmod,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchmodat2,
            libc::SYS_chown,
            libc::SYS_fchown,
            libc::SYS_lchown,
            libc::SYS_fchownat,
            libc::SYS_umask,
            libc::SYS_utime,
            libc::SYS_utimes,
            libc::SYS_futimesat,
            libc::SYS_utimensat,
            libc::SYS_getxattr,
            libc::SYS_lgetxattr,
            libc::SYS_fgetxattr,
            libc::SYS_listxattr,
            libc::SYS_llistxattr,
            libc::SYS_flistxattr,
            libc::SYS_setxattr,
            libc::SYS_lsetxattr,
            libc::SYS_fsetxattr,
            libc::SYS_removexattr,
            libc::SYS_lremovexattr,
            libc::SYS_fremovexattr,
            libc::SYS_inotify_init,
            libc::SYS_inotify_init1,
            libc::SYS_inotify_add_watch,
            libc::SYS_inotify_rm_watch,
        ],
    },
    Group {
        reason: "wait for events",
        calls: calls![
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_select,
            libc::SYS_pselect6,
            libc::SYS_epoll_create,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_eventfd,
            libc::SYS_eventfd2,
            libc::SYS_signalfd,
            libc::SYS_signalfd4,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_timerfd_gettime,
        ],
    },
    Group {
        reason: "manage its own memory",
        calls: calls![
            libc::SYS_brk,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mprotect,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_mincore,
            libc::SYS_msync,
            libc::SYS_mlock,
            libc::SYS_mlock2,
            libc::SYS_munlock,
            libc::SYS_mlockall,
            libc::SYS_munlockall,
            libc::SYS_membarrier,
            libc::SYS_pkey_alloc,
            libc::SYS_pkey_free,
            libc::SYS_pkey_mprotect,
            libc::SYS_get_mempolicy,
            libc::SYS_mseal,
        ],
    },
    Group {
        reason: "start, run and end processes and threads; the pid namespace decides which are seen",
        calls: calls![
            libc::SYS_clone,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_wait4,
            libc::SYS_waitid,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_tgkill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
            libc::SYS_getpid,
            libc::SYS_getppid,
            libc::SYS_gettid,
            libc::SYS_getpgid,
            libc::SYS_setpgid,
            libc::SYS_getpgrp,
            libc::SYS_getsid,
            libc::SYS_setsid,
            libc::SYS_set_tid_address,
            libc::SYS_set_robust_list,
            libc::SYS_get_robust_list,
            libc::SYS_rseq,
            libc::SYS_futex,
            libc::SYS_futex_waitv,
            libc::SYS_arch_prctl,
            libc::SYS_prctl,
            libc::SYS_restart_syscall,
        ],
    },
    Group {
        reason: "schedule itself; raising priority needs a capability",
        calls: calls![
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_getparam,
            libc::SYS_sched_setparam,
            libc::SYS_sched_getscheduler,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_getattr,
            libc::SYS_sched_get_priority_max,
            libc::SYS_sched_get_priority_min,
            libc::SYS_sched_rr_get_interval,
            libc::SYS_getpriority,
            libc::SYS_setpriority,
            libc::SYS_ioprio_get,
            libc::SYS_ioprio_set,
            libc::SYS_getcpu,
        ],
    },
    Group {
        reason: "handle signals",
        calls: calls![
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigpending,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_rt_sigsuspend,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_sigaltstack,
            libc::SYS_pause,
            libc::SYS_alarm,
            libc::SYS_getitimer,
            libc::SYS_setitimer,
        ],
    },
    Group {
        reason: "ask and give up identity; there is only one to have",
        calls: calls![
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getegid,
            libc::SYS_getresuid,
            libc::SYS_getresgid,
            libc::SYS_getgroups,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setreuid,
            libc::SYS_setregid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_setgroups,
            libc::SYS_setfsuid,
            libc::SYS_setfsgid,
            libc::SYS_capget,
            libc::SYS_capset,
        ],
    },
    Group {
        reason: "tell the time and sleep",
        calls: calls![
            libc::SYS_clock_gettime,
            libc::SYS_clock_getres,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_time,
            libc::SYS_times,
            libc::SYS_timer_create,
            libc::SYS_timer_settime,
            libc::SYS_timer_gettime,
            libc::SYS_timer_getoverrun,
            libc::SYS_timer_delete,
        ],
    },
    Group {
        reason: "share memory and semaphores within its own IPC namespace, as databases do",
        calls: calls![
            libc::SYS_shmget,
            libc::SYS_shmat,
            libc::SYS_shmctl,
            libc::SYS_shmdt,
            libc::SYS_semget,
            libc::SYS_semop,
            libc::SYS_semctl,
            libc::SYS_semtimedop,
        ],
    },
    Group {
        reason: "use sockets of the families that `refuse` leaves; the network namespace decides what they reach",
        calls: calls![
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_connect,
            libc::SYS_getsockname,
            libc::SYS_getpeername,
            libc::SYS_getsockopt,
            libc::SYS_setsockopt,
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_sendmmsg,
            libc::SYS_recvmmsg,
            libc::SYS_shutdown,
        ],
    },
    Group {
        reason: "ask for limits, usage, randomness and the system's name",
        calls: calls![
            libc::SYS_getrlimit,
            libc::SYS_setrlimit,
            libc::SYS_prlimit64,
            libc::SYS_getrusage,
            libc::SYS_uname,
            libc::SYS_sysinfo,
            libc::SYS_getrandom,
        ],
    },
    Group {
        reason: "restrict itself further, as browsers and package tools do",
        calls: calls![
            libc::SYS_seccomp,
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_restrict_self,
        ],
    },
    Group {
        reason: "ask for the execution domain; `refuse` forbids to change it",
        calls: calls![libc::SYS_personality],
    },
];

/// What answers EPERM whatever its arguments.
pub const REFUSE: &[Group] = &[
    Group {
        reason: "take longer turns on a processor than other units do",
        calls: calls![libc::SYS_sched_setattr],
    },
    Group {
        reason: "reach into other processes; a frequent start of kernel exploits",
        calls: calls![
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_process_madvise,
        ],
    },
    Group {
        reason: "change what is mounted or which namespaces are used",
        calls: calls![
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
        ],
    },
    Group {
        reason: "large and often attacked parts of the kernel that ordinary programs live without",
        calls: calls![
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_memfd_secret,
        ],
    },
    Group {
        reason: "key rings are not bound to a namespace",
        calls: calls![libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key],
    },
    Group {
        reason: "open files past the mounts, or watch whole file systems",
        calls: calls![
            libc::SYS_name_to_handle_at,
            libc::SYS_open_by_handle_at,
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
            libc::SYS_lookup_dcookie,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
        ],
    },
    Group {
        reason: "change or read the state of the host",
        calls: calls![
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_syslog,
            libc::SYS_vhangup,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
        ],
    },
    Group {
        reason: "place memory on chosen nodes or change segment descriptors",
        calls: calls![
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
            libc::SYS_migrate_pages,
            libc::SYS_move_pages,
            libc::SYS_modify_ldt,
        ],
    },
];

/// A system call that ends the unit.
pub struct Denied {
    /// Its number.
    pub call: libc::c_long,
    /// Its name.
    pub name: &'static str,
    /// Why nobody makes it in good faith.
    pub reason: &'static str,
}

const CODE: &str = "loads or unloads code of the kernel";
const HALT: &str = "restarts or halts the host, or a container whose first process it is not";
const PORTS: &str = "opens the ports of devices";
const ADMINISTRATION: &str =
    "gives the kernel a file of the administrator's: swap space, or a record of processes";

/// What ends the unit, and is named. A call is here only if no kernel has ever granted it to a user without privileges, no
/// library tries it to find out what there is, and it is of use only to one who wants the host. That is why others
/// are only refused: `bpf`, `perf_event_open`, `keyctl`, `userfaultfd`, `open_by_handle_at` and the mounts are tried in good
/// faith by tools that do without.
pub const DENY: &[Denied] = &[
    Denied { call: libc::SYS_kexec_load, name: "kexec_load", reason: CODE },
    Denied { call: libc::SYS_kexec_file_load, name: "kexec_file_load", reason: CODE },
    Denied { call: libc::SYS_init_module, name: "init_module", reason: CODE },
    Denied { call: libc::SYS_finit_module, name: "finit_module", reason: CODE },
    Denied { call: libc::SYS_delete_module, name: "delete_module", reason: CODE },
    Denied { call: libc::SYS_reboot, name: "reboot", reason: HALT },
    Denied { call: libc::SYS_iopl, name: "iopl", reason: PORTS },
    Denied { call: libc::SYS_ioperm, name: "ioperm", reason: PORTS },
    Denied { call: libc::SYS_swapon, name: "swapon", reason: ADMINISTRATION },
    Denied { call: libc::SYS_swapoff, name: "swapoff", reason: ADMINISTRATION },
    Denied { call: libc::SYS_acct, name: "acct", reason: ADMINISTRATION },
];

/// The policy for a plan.
pub(crate) fn filters(denial: Denial) -> Filters {
    let hands_on = denial == Denial::HandedOn;
    Filters {
        policy: compile(denial),
        telling: hands_on.then(compile_telling),
        denied: if hands_on { denied() } else { Vec::new() },
    }
}

/// [`DENY`] for a plan.
fn denied() -> Vec<DeniedCall> {
    let told = |denied: &Denied| DeniedCall {
        number: u32::try_from(denied.call).expect("system calls are numbered from zero"),
        name: Text::new(denied.name).expect("a constant without NUL"),
    };
    DENY.iter().map(told).collect()
}

/// A comparison of an argument's low half, which is all that the kernel looks at in the calls concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Equal in the bits of a mask.
    MaskedEq(u32),
}

/// A test of one argument: its number, the operation and the value.
pub type Test = (u8, Op, u32);

/// A call that answers EPERM for some arguments: all tests of an entry must hold.
pub struct Conditional {
    /// Why.
    pub reason: &'static str,
    /// Which call.
    pub call: libc::c_long,
    /// When.
    pub tests: fn() -> Vec<Vec<Test>>,
}

/// Values of <sys/socket.h>.
const AF_UNIX: u32 = libc::AF_UNIX as u32;
const AF_INET: u32 = libc::AF_INET as u32;
const AF_INET6: u32 = libc::AF_INET6 as u32;
const AF_NETLINK: u32 = libc::AF_NETLINK as u32;
const SOCK_STREAM: u32 = libc::SOCK_STREAM as u32;
/// The socket type without its flags.
const TYPE_MASK: u32 = 0xf;

/// Modes that run a file as its owner or group, or pass a folder's group on.
const SET_ID: [u32; 2] = [libc::S_ISUID, libc::S_ISGID];
/// Why nothing inside gets such a mode.
const SET_ID_REASON: &str =
    "outside the sandbox's mounts, a set-id file would give its user away to whoever reaches it";
/// The flags with which `open` looks at its mode: `O_CREAT`, and `O_TMPFILE` without the `O_DIRECTORY` in it.
const CREATING: [u32; 2] = [libc::O_CREAT as u32, (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32];

/// A mode, in this argument, with a set-id bit.
fn set_id(mode: u8) -> Vec<Vec<Test>> {
    SET_ID.map(|bit| vec![(mode, Op::MaskedEq(bit), bit)]).to_vec()
}

/// Flags, in the argument before the mode's, that make a file, and a mode with a set-id bit.
fn creates_set_id(mode: u8) -> Vec<Vec<Test>> {
    let with =
        |flag| SET_ID.map(|bit| vec![(mode - 1, Op::MaskedEq(flag), flag), (mode, Op::MaskedEq(bit), bit)]);
    CREATING.map(with).concat()
}

/// What answers EPERM for some arguments.
pub const CONDITIONAL: &[Conditional] = &[
    Conditional {
        reason: "new namespaces give back capabilities; clone3, whose flags a filter cannot see, answers ENOSYS",
        call: libc::SYS_clone,
        tests: || {
            [
                libc::CLONE_NEWUSER,
                libc::CLONE_NEWNS,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWNET,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWCGROUP,
            ]
            .map(|flag| {
                let flag = flag.unsigned_abs();
                vec![(0, Op::MaskedEq(flag), flag)]
            })
            .to_vec()
        },
    },
    Conditional {
        reason: "only local, internet and route (getifaddrs) sockets, and no raw packets",
        call: libc::SYS_socket,
        tests: || {
            let raw = libc::SOCK_RAW as u32;
            vec![
                [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK].map(|family| (0, Op::Ne, family)).to_vec(),
                vec![(0, Op::Eq, AF_NETLINK), (2, Op::Ne, libc::NETLINK_ROUTE as u32)],
                vec![(0, Op::Eq, AF_INET), (1, Op::MaskedEq(TYPE_MASK), raw)],
                vec![(0, Op::Eq, AF_INET6), (1, Op::MaskedEq(TYPE_MASK), raw)],
                vec![(1, Op::MaskedEq(TYPE_MASK), 10)],
            ]
        },
    },
    Conditional {
        reason: "children that take longer turns on a processor than other units do",
        call: libc::SYS_sched_setscheduler,
        tests: || {
            let reset = libc::SCHED_RESET_ON_FORK.unsigned_abs();
            vec![vec![(1, Op::MaskedEq(reset), reset)]]
        },
    },
    Conditional {
        reason: "typing into or pasting on a terminal from inside",
        call: libc::SYS_ioctl,
        tests: || vec![vec![(1, Op::Eq, libc::TIOCSTI as u32)], vec![(1, Op::Eq, libc::TIOCLINUX as u32)]],
    },
    Conditional {
        reason: "other execution domains switch off address space randomisation; asking and the default stay",
        call: libc::SYS_personality,
        tests: || vec![vec![(0, Op::Ne, 0), (0, Op::Ne, 0xffff_ffff)]],
    },
    // `mkdir` ignores these bits; `openat2`, whose mode a filter cannot see, answers ENOSYS.
    Conditional { reason: SET_ID_REASON, call: libc::SYS_chmod, tests: || set_id(1) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_fchmod, tests: || set_id(1) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_fchmodat, tests: || set_id(2) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_fchmodat2, tests: || set_id(2) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_mknod, tests: || set_id(1) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_mknodat, tests: || set_id(2) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_creat, tests: || set_id(1) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_open, tests: || creates_set_id(2) },
    Conditional { reason: SET_ID_REASON, call: libc::SYS_openat, tests: || creates_set_id(3) },
];

/// An addition where the network is the host's and its abstract sockets cannot be kept out of reach in another way. A pair
/// of connected sockets reaches nobody else and still works.
pub const NO_LOCAL_SOCKETS: Conditional = Conditional {
    reason: "abstract local sockets of the host belong to its network, and a filter cannot see which one is addressed",
    call: libc::SYS_socket,
    tests: || vec![vec![(0, Op::Eq, AF_UNIX)]],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_group_has_a_reason_and_no_call_is_in_two() {
        let mut seen = BTreeSet::new();
        for group in ALLOW.iter().chain(REFUSE) {
            assert!(!group.reason.is_empty());
            for call in group.calls {
                assert!(seen.insert(call.number), "system call {} is named twice", call.name());
            }
        }
        for denied in DENY {
            assert!(!denied.reason.is_empty() && !denied.name.is_empty());
            assert!(seen.insert(denied.call), "system call {} is named twice", denied.name);
        }
        for conditional in CONDITIONAL {
            assert!(!conditional.reason.is_empty());
            assert!(ALLOW.iter().any(|group| group.calls.iter().any(|call| call.number == conditional.call)));
        }
    }
}
