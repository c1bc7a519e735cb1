//! The published classes of escapes from containers, each by the way that it went.

use std::fs;

use windlass_sandbox::{Driver, EndReason, Error};

use crate::case::{Node, bash, python, run};

/// Settings of the host that make the kernel start a program, and others that a job would like to change.
const SETTINGS: [&str; 6] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/binfmt_misc/register",
];

#[tokio::test]
async fn no_setting_of_the_host_can_be_changed() {
    let read = || SETTINGS.map(|path| fs::read_to_string(path).ok());
    let before = read();
    // CVE-2022-0492 (release_agent), core_pattern, uevent_helper, binfmt_misc, sysrq.
    let program = format!(
        r#"
for path in {SETTINGS:?}:
    try: write(path, "|/workspace/program")
    except OSError: continue
    print("wrote", path)
for path in ("/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent", "/sys/power/state",
             "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/loop-control", "/dev/fuse", "/dev/kvm",
             "/dev/net/tun", "/dev/mapper/control", "/dev/userfaultfd", "/dev/ptmx", "/dev/pts/0", "/dev/tty", "/dev/console",
             "/dev/vhost-vsock", "/dev/uinput"):
    try: os.close(os.open(path, os.O_RDWR))
    except OSError: continue
    print("opened", path)
# The way that the kernel would be told to halt is a device that swallows everything.
for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg"):
    if os.path.exists(path) and os.stat(path).st_rdev != os.makedev(1, 3): print("not masked", path)
print(os.listdir("/proc/fs"))
for place, kind in (("/tmp/c", "cgroup"), ("/tmp/c", "cgroup2"), ("/tmp/c", "sysfs"), ("/tmp/c", "proc"), ("/tmp/c", "overlay")):
    os.makedirs(place, exist_ok=True)
    text = [ctypes.create_string_buffer(word.encode()) for word in (kind, place, kind)]
    if (answer := call(165, *[ctypes.addressof(word) for word in text], 0, 0)) != "EPERM": print(kind, answer)
"#
    );
    run([python("settings", &program).prints("[]\n")]).await;
    assert_eq!(read(), before);
}

#[tokio::test]
async fn programs_of_the_host_cannot_be_overwritten_through_the_process_that_runs_them() {
    // CVE-2019-5736: the program behind /proc/self/exe, and behind that of the first process, is opened for writing.
    let python_before = fs::read(fs::canonicalize("/usr/bin/python3").unwrap()).unwrap();
    let program = r#"
for path in ("/proc/self/exe", "/proc/1/exe", os.readlink("/proc/self/exe"), "/usr/bin/env", "/proc/self/root/usr/bin/env",
             f"/proc/self/task/{os.getpid()}/exe", "/lib64/ld-linux-x86-64.so.2", "/proc/self/map_files"):
    for flags in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        try: os.close(os.open(path, flags))
        except OSError: continue
        print("opened", path)
held = os.open("/proc/self/exe", os.O_PATH)
try: os.open(f"/proc/self/fd/{held}", os.O_WRONLY); print("opened again")
except OSError: pass
# Dirty COW went through /proc/self/mem, Dirty Pipe through splice into a pipe with a page of the file.
attempt("mem", lambda: os.open("/proc/self/mem", os.O_RDWR))
reader, writer = os.pipe()
os.write(writer, bytes(65536)); os.read(reader, 65536)
file = os.open("/etc/passwd", os.O_RDONLY)
os.splice(file, writer, 1, offset_src=0)
os.write(writer, b"X" * 16)
print(open("/etc/passwd").read().startswith("root:x:0:0"))
"#;
    run([python("overwrites", program).prints("mem refused\nTrue\n")]).await;
    assert!(fs::read(fs::canonicalize("/usr/bin/python3").unwrap()).unwrap() == python_before);
}

#[tokio::test]
async fn no_descriptor_leaks_and_none_is_a_way_out() {
    // CVE-2024-21626: a descriptor of a folder of the host that was left open, by way of the working directory too.
    let program = r#"
import fcntl
for number in range(3, 4096):
    try: fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError: continue
    print("leaked", number, os.readlink(f"/proc/self/fd/{number}"))
print(os.path.realpath("/proc/self/cwd"), os.path.realpath("/proc/self/root"), os.path.realpath("../../../../.."))
print([os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in range(3)])
"#;
    run([python("descriptors", program).prints("/workspace / /\n['/dev/null', 'pipe', 'pipe']\n")]).await;
    let node = Node::new().await;
    for number in 0..24 {
        for below in ["", "/..", "/../../../.."] {
            let mut unit = node.fixture.unit("cwd", &["sh", "-c", "pwd -P; ls /proc/self/cwd/"]);
            unit.cwd = format!("/proc/self/fd/{number}{below}");
            let error = node.fixture.refusal(&unit).await;
            assert!(matches!(error, Error::Setup { .. }), "{}: {error}", unit.cwd);
            node.fixture.native.cleanup(&unit.id).await.unwrap();
        }
    }
}

#[tokio::test]
async fn known_programs_of_escapes_fail() {
    run([
        // Shocker: any file of the host by its number.
        python("shocker", "handle = ctypes.create_string_buffer(struct.pack('=IiQ', 8, 1, 2))\nprint(call(304, 0, ctypes.addressof(handle), 0))")
            .prints("EPERM\n"),
        // CVE-2022-0185 and its kin begin with capabilities in a user namespace.
        python("fsconfig", "name = ctypes.create_string_buffer(b'ext4')\nprint(call(272, 0x10020000), call(430, ctypes.addressof(name), 0))")
            .prints("EPERM EPERM\n"),
        // Looney Tunables, sudo, pkexec: programs with set-user-id gain nothing.
        python(
            "set-user-id programs",
            r#"
programs = [entry.path for entry in os.scandir("/usr/bin") if entry.is_file() and entry.stat().st_mode & 0o6000]
for path in programs:
    if not os.statvfs(path).f_flag & os.ST_NOSUID: print("set-id", path)
for path in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd"):
    if path in programs:
        status = subprocess.Popen([path, "--help"], stdout=subprocess.PIPE)
        uids = open(f"/proc/{status.pid}/status").read().split("Uid:")[1].split("\n")[0].split()
        if uids and set(uids) != {"1000"}: print(path, uids)
        status.communicate()
print("none")
"#,
        )
        .prints("none\n"),
        // A tracer of another process, of its own child, and of the first process.
        python("ptrace", "child = os.fork() or time.sleep(1000)\nprint(call(101, 16, child), call(101, 16, 1), call(101, 0x4206, child))\nos.kill(child, 9)")
            .prints("EPERM EPERM EPERM\n"),
        // What is typed into the terminal of whoever watches.
        bash("terminal", "(: </dev/tty) 2>/dev/null && echo terminal; test -t 0 || test -t 1 || test -t 2 || echo none").prints("none\n"),
        // Kernel pointers and logs, which most exploits need first.
        python(
            "kernel's secrets",
            "print(open('/proc/kallsyms').read(), open('/proc/keys').read(), open('/proc/timer_list').read(), call(103, 10, 0, 0))",
        )
        .prints("   EPERM\n"),
        // A library that is put before others, and a name of a program that is a folder of the workspace.
        bash("environment", "env -i /usr/bin/env -u LD_PRELOAD true && echo fine").prints("fine\n"),
        // Code of the kernel.
        python("module", "call(313, 0, 0, 0)").ends(EndReason::SeccompDenied),
    ])
    .await;
}
