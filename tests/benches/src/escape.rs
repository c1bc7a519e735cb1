//! S1: what published escapes from containers and sandboxes begin with, tried inside, and a neighbour's latency while bombs go off
//! beside it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use windlass_sandbox::{Driver as _, EndReason, Limit, Stop, StopReason};

use crate::bench::{Bench, run};
use crate::e2e::Docker;
use crate::rounds::{interleave, reason, subject};
use crate::sandbox::Ours;
use crate::table::{Aim, Comparison, Table, Unit};

/// Prints the name of each class that is within reach of an ordinary program. Calls that end a sandbox by design are not made
/// here: `sandbox/tests/hostile` makes them.
const CLASSES: &str = r#"
import ctypes, errno, os, signal, socket, stat, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]) >= 0
def apart(action):
    child = os.fork()
    if child == 0:
        signal.alarm(2)
        try: os._exit(0 if action() else 1)
        except BaseException: os._exit(1)
    return os.waitpid(child, 0)[1] == 0
def write(path):
    def action():
        descriptor = os.open(path, os.O_WRONLY)
        return descriptor >= 0
    return action
def read(path, least=1):
    return lambda: len(open(path, "rb").read(4096).strip(b"\0 \n")) >= least
def opens(*arguments):
    return lambda: socket.socket(*arguments) is not None
def device():
    os.mknod("/tmp/device", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    return True
def handle():
    # Whoever may open by handle finds the root of any file system by its number.
    buffer = struct.pack("IiII", 8, 1, 2, 0) + bytes(120)
    root = os.open("/", os.O_RDONLY)
    ctypes.set_errno(0)
    return libc.syscall(304, root, buffer, 0) >= 0 or ctypes.get_errno() == errno.ESTALE
def status(field):
    return dict(line.split(":", 1) for line in open("/proc/self/status"))[field].strip()
def others():
    own = {os.getpid(), os.getppid(), 1}
    return any(name.isdigit() and int(name) not in own for name in os.listdir("/proc"))
classes = {
    "new user namespace": lambda: call(272, 0x10000000),
    "new mount namespace": lambda: call(272, 0x20000),
    "new network namespace": lambda: call(272, 0x40000000),
    "new cgroup namespace": lambda: call(272, 0x2000000),
    "user namespace by clone": lambda: libc.syscall(56, ctypes.c_long(0x10000011), *[ctypes.c_long(0)] * 4) == 0 or False,
    "mount of a file system": lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "mount of cgroups (release_agent)": lambda: call(165, b"none", b"/tmp", b"cgroup", 0, b"memory"),
    "new mount calls (fsopen)": lambda: call(430, b"ext4", 0),
    "change of the root": lambda: call(161, b"/tmp"),
    "namespaces of the first process": lambda: call(308, os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "core_pattern": write("/proc/sys/kernel/core_pattern"),
    "modprobe": write("/proc/sys/kernel/modprobe"),
    "sysrq": write("/proc/sysrq-trigger"),
    "uevent_helper": write("/sys/kernel/uevent_helper"),
    "program of the runtime (/proc/1/exe)": write("/proc/1/exe"),
    "memory of the first process": read("/proc/1/mem"),
    "environment of the first process": lambda: os.getpid() != 1 and read("/proc/1/environ")(),
    "ptrace of the first process": lambda: call(101, 0x4206, 1, 0, 0),
    "descriptor from outside": lambda: any(os.path.isdir(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if int(n) > 2 and os.path.exists(f"/proc/self/fd/{n}") and "/proc/" not in os.readlink(f"/proc/self/fd/{n}")),
    "files by handle": handle,
    "device node": device,
    "memory of the kernel": read("/proc/kcore"),
    "memory of the host": read("/dev/mem"),
    "log of the kernel": lambda: call(103, 3, ctypes.addressof(ctypes.create_string_buffer(64)), 64),
    "raw socket": opens(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet socket": opens(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": opens(40, socket.SOCK_STREAM),
    "netfilter (nf_tables)": opens(socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "crypto of the kernel (AF_ALG)": opens(38, socket.SOCK_SEQPACKET),
    "abstract sockets of others": lambda: any(line.rstrip().rpartition(" ")[2].startswith("@") for line in open("/proc/net/unix")),
    "socket of an engine": lambda: any(os.path.exists(p) for p in ("/var/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock")),
    "key ring": lambda: call(248, b"user", b"name", b"data", 4, -3),
    "bpf": lambda: call(321, 0, ctypes.addressof(ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1) + bytes(112))), 128),
    "userfaultfd": lambda: call(323, 1),
    "io_uring": lambda: call(425, 1, ctypes.addressof(ctypes.create_string_buffer(256))),
    "perf events": lambda: call(298, ctypes.addressof(ctypes.create_string_buffer(struct.pack("II", 1, 112) + bytes(104))), 0, -1, -1, 0),
    "accounts of the host": read("/etc/shadow"),
    "home of root": lambda: os.listdir("/root") is not None and os.access("/root", os.W_OK),
    "other processes": others,
    "capabilities": lambda: int(status("CapEff"), 16) != 0,
    "capabilities to come": lambda: int(status("CapBnd"), 16) != 0,
    "privileges by executing": lambda: status("NoNewPrivs") != "1",
    "host name": lambda: call(170, b"x", 1),
    "time of the host": lambda: call(227, 0, ctypes.addressof(ctypes.create_string_buffer(struct.pack("qq", 1 << 62, 0)))) ,
    "writing to the system": lambda: any(os.access(p, os.W_OK) for p in ("/", "/usr", "/etc", "/bin")),
}
print("tried", len(classes))
for name, action in classes.items():
    if apart(action):
        print("reached", name)
"#;

/// A program whose work takes about a millisecond, a few hundred times; prints the 99th percentile of what it took in ms.
const NEIGHBOUR: &str = r#"
import hashlib, time
took = []
data = b"x" * 300_000
for _ in range(400):
    began = time.monotonic()
    hashlib.sha256(data).digest()
    time.sleep(0.001)
    took.append(time.monotonic() - began)
took.sort()
print(took[len(took) * 99 // 100] * 1000)
"#;

/// What goes off beside it, each in a sandbox of its own.
const BOMBS: [(&str, &str); 4] = [
    ("forks", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    ("memory", "kept = []\nwhile True: kept.append(bytearray(1 << 20))"),
    (
        "disk",
        "import itertools\nfor n in itertools.count():\n    open(f'/workspace/f{n}', 'wb').write(b'x' * (1 << 20))",
    ),
    ("processor", "while True: pass"),
];

/// Adds S1.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    eprintln!("S1: trying what escapes begin with");
    let ours =
        Ours::open(bench, "s1").and_then(|ours| Reached::of(&ours.output(&["python3", "-c", CLASSES])?));
    let ours = ours.map_err(reason);
    let docker = Docker::start(bench).and_then(|docker| {
        Reached::of(&run(&mut docker.host_program(&["/usr/bin/python3", "-c", CLASSES]))?)
    });
    let docker = docker.map_err(reason);
    let tried = ours.as_ref().map_or(0, |ours| ours.tried);
    let mut comparison = Comparison {
        row: "S1",
        metric: "beginnings of escapes within reach",
        peer: "docker run",
        unit: Unit::Count,
        aim: Aim::AtMost(0.0),
        note: format!("of {tried} tried; the peer as it is by default, with root inside"),
    };
    if let Ok(Reached { names, .. }) = &ours
        && !names.is_empty()
    {
        comparison.note = format!("{}; reached: {}", comparison.note, names.join(", "));
    }
    #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
    let count = |side: &Reached| side.names.len() as f64;
    table.values(
        &comparison,
        &ours.as_ref().map(count).map_err(Clone::clone),
        &docker.as_ref().map(count).map_err(Clone::clone),
    );

    let quiet = Ours::open(bench, "s1-quiet").map_err(reason);
    let loud = Ours::open(bench, "s1-loud").and_then(|ours| ours.share_workspace().map(|()| ours));
    let loud = loud.map_err(reason);
    let [beside, alone] = interleave(
        "S1",
        [
            loud.as_ref().map(|ours| subject(|| Ok(vec![beside_bombs(ours)?]))).map_err(Clone::clone),
            quiet.as_ref().map(|ours| subject(|| Ok(vec![neighbour(ours)?]))).map_err(Clone::clone),
        ],
    );
    let comparison = Comparison {
        row: "S1",
        metric: "a neighbour's p99 beside four bombs",
        peer: "without them",
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(1.5),
        note: "forks, memory, disk and processor, each in a sandbox with the usual limits and a quarter of a core".to_owned(),
    };
    table.rounds(&comparison, &beside, &alone);
}

/// What [`CLASSES`] found.
struct Reached {
    tried: usize,
    names: Vec<String>,
}

impl Reached {
    fn of(printed: &str) -> anyhow::Result<Self> {
        let (first, rest) = printed.split_once('\n').unwrap_or_default();
        let tried = first.strip_prefix("tried ").and_then(|count| count.parse().ok());
        let tried = tried.with_context(|| format!("the probe printed {printed:?}"))?;
        let names =
            rest.lines().filter_map(|line| line.strip_prefix("reached ")).map(str::to_owned).collect();
        Ok(Self { tried, names })
    }
}

fn neighbour(ours: &Ours<'_>) -> anyhow::Result<f64> {
    let printed = ours.output(&["python3", "-c", NEIGHBOUR])?;
    printed.trim().parse().with_context(|| format!("the neighbour printed {printed:?}"))
}

fn beside_bombs(ours: &Ours<'_>) -> anyhow::Result<f64> {
    let mut bombs = Vec::new();
    for (name, program) in BOMBS {
        let mut unit = ours.unit(&["python3", "-c", program])?;
        unit.limits.cpu_millis = Some(Limit::default_value(250));
        if name == "disk" {
            // All are in one workspace, and what is in it counts for whoever has a limit.
            unit.limits.disk_bytes = Some(Limit::default_value(64 << 20));
        }
        ours.block_on(async {
            ours.native.prepare(&unit).await?;
            ours.native.start(&unit.id).await
        })?;
        bombs.push((name, unit));
    }
    let took = neighbour(ours);
    for (name, unit) in bombs {
        let exit = ours.block_on(async {
            let stop = Stop { grace: Duration::ZERO, reason: StopReason::Cancelled };
            ours.native.signal(&unit.id, stop).await?;
            let exit = ours.native.wait(&unit.id).await?;
            ours.native.cleanup(&unit.id).await?;
            anyhow::Ok(exit)
        })?;
        ours.native.identities().release(unit.id.as_str())?;
        let expected = match name {
            "memory" => &[EndReason::OOMKilled, EndReason::Cancelled][..],
            "disk" => &[EndReason::DiskLimit, EndReason::Cancelled],
            _ => &[EndReason::Cancelled, EndReason::PidsLimit],
        };
        ensure!(expected.contains(&exit.reason), "the bomb of {name} ended as {}", exit.reason);
    }
    ours.empty_workspace()?;
    took
}
