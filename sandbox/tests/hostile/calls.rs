//! System calls that lead out, or into parts of the kernel that are often attacked.

use windlass_sandbox::{EndReason, seccomp};

use crate::case::{Node, python, run};

/// Each prints only what it did not expect; the last line says that all were made.
#[tokio::test]
async fn dangerous_calls_are_refused_and_unknown_ones_are_unknown() {
    let program = r#"
CLONE_NEWUSER, SIGCHLD = 0x10000000, 17
child = os.fork()
if child == 0: time.sleep(1000)
refused = [
  ("ptrace attach", 101, 16, child), ("ptrace me", 101, 0), ("process_vm_readv", 310, child), ("process_vm_writev", 311, child),
  ("kcmp", 312, child, child), ("pidfd_getfd", 438, 0, 0), ("process_madvise", 440, 0),
  ("unshare", 272, CLONE_NEWUSER), ("setns", 308, 0, 0), ("clone user", 56, CLONE_NEWUSER | SIGCHLD, 0),
  ("mount", 165, 0, 0, 0, 0, 0), ("umount", 166, 0, 0), ("pivot_root", 155, 0, 0), ("chroot", 161, 0),
  ("fsopen", 430, 0, 0), ("fsconfig", 431, 0), ("fsmount", 432, 0), ("open_tree", 428, 0, 0, 1), ("move_mount", 429, 0),
  ("mount_setattr", 442, 0), ("bpf", 321, 0, 0, 0), ("perf_event_open", 298, 0), ("userfaultfd", 323, 0),
  ("io_uring_setup", 425, 1, 0), ("io_uring_enter", 426, 0), ("io_uring_register", 427, 0), ("memfd_secret", 447, 0),
  ("keyctl", 250, 0), ("add_key", 248, 0), ("request_key", 249, 0), ("name_to_handle_at", 303, 0),
  ("open_by_handle_at", 304, 0), ("fanotify_init", 300, 0, 0), ("quotactl", 179, 0), ("syslog", 103, 3, 0, 0),
  ("sethostname", 170, 0, 0), ("settimeofday", 164, 0, 0), ("clock_settime", 227, 0, 0), ("adjtimex", 159, 0),
  ("vhangup", 153), ("modify_ldt", 154, 0), ("mbind", 237, 0), ("move_pages", 279, 0), ("personality", 135, 0x40000),
  ("TIOCSTI", 16, 0, 0x5412, 0), ("TIOCLINUX", 16, 0, 0x541C, 0), ("socket packet", 41, 17, 3, 0),
]
unknown = [
  ("clone3", 435, 0, 0), ("openat2", 437, 0), ("mq_open", 240, 0), ("msgget", 68, 0, 0o1600), ("vmsplice", 278, 0),
  ("remap_file_pages", 216, 0), ("uselib", 134, 0), ("ustat", 136, 0), ("sysfs", 139, 0), ("999", 999),
  ("x32 getpid", 0x40000000 + 39), ("x32 ptrace", 0x40000000 + 521), ("x32 execve", 0x40000000 + 520),
]
granted = [("personality", 135, 0xffffffff), ("netlink route", 41, 16, 3, 0), ("inet", 41, 2, 1, 0), ("unix", 41, 1, 1, 0)]
for expected, calls in (("EPERM", refused), ("ENOSYS", unknown), ("ok", granted)):
    for name, *arguments in calls:
        answer = call(*arguments)
        if answer != expected: print(name, answer)
os.kill(child, 9)
print(len(refused) + len(unknown) + len(granted))
"#;
    run([python("calls", program).prints("64\n")]).await;
}

#[tokio::test]
async fn calls_that_are_never_legitimate_end_the_job_and_are_named() {
    let node = Node::new().await;
    for denied in seccomp::DENY {
        // A child makes it, of which the program knows nothing.
        let program =
            format!("if os.fork() == 0: print(call({}, 0, 0, 0), flush=True)\ntime.sleep(1000)", denied.call);
        let case = python(denied.name, &program).ends(EndReason::SeccompDenied);
        let outcome = node.run(case).await.unwrap();
        let message = format!("made system call {}, which is never allowed", denied.name);
        assert_eq!((outcome.text(), outcome.exit.message), (String::new(), Some(message)));
    }
}

#[tokio::test]
async fn a_filter_of_the_programs_own_neither_grants_nor_hides_a_call_that_is_denied() {
    // A filter that would tell the program itself of `reboot`, and one that allows it.
    let program = r#"
def install(flags, answer):
    instructions = struct.pack("=HBBIHBBIHBBIHBBI", 0x20,0,0,0, 0x15,0,1,169, 6,0,0,answer, 6,0,0,0x7fff0000)
    text = ctypes.create_string_buffer(instructions)
    filter = ctypes.create_string_buffer(struct.pack("=H6xQ", 4, ctypes.addressof(text)))
    return call(317, 1, flags, ctypes.addressof(filter))
print(install(8, 0x7fc00000), install(0, 0x7fff0000), flush=True)
print(call(169, 0, 0, 0), flush=True)
"#;
    let node = Node::new().await;
    let outcome = node.run(python("own filter", program).ends(EndReason::SeccompDenied)).await.unwrap();
    assert_eq!(outcome.text(), "EBUSY ok\n");
}

#[tokio::test]
async fn the_calls_of_another_architecture_end_the_program() {
    // `mov eax, 20; int 0x80; ret`: getpid of 32-bit programs. A kernel without these faults instead.
    let program = r#"
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
if os.fork() == 0:
    print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))(), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]) in (-signal.SIGSYS, -signal.SIGSEGV))
"#;
    run([python("32-bit", program).prints("True\n")]).await;
}
