//! Jobs that take all that they can get.

use std::time::{Duration, Instant};

use windlass_sandbox::{Deadline, EndReason, Lease, Limit, LimitName};

use crate::case::{Case, Node, bash, python, run};

/// Small enough for a memory limit of 48 MiB, if its program keeps nothing else.
const MEMORY: u64 = 48 << 20;

fn memory(case: Case) -> Case {
    let limited = case.with(|unit| unit.limits.memory_bytes = Some(Limit::named(MEMORY)));
    limited.needs(LimitName::Memory).ends(EndReason::OOMKilled)
}

fn disk(case: Case) -> Case {
    case.with(|unit| unit.limits.disk_bytes = Some(Limit::named(20 << 20))).ends(EndReason::DiskLimit)
}

#[tokio::test]
async fn bombs_of_processes_and_memory_are_ended() {
    run([
        python("fork bomb", "try:\n    while True: os.fork()\nexcept OSError: os._exit(1)")
            .with(|unit| unit.limits.pids = Some(Limit::named(40)))
            .ends(EndReason::PidsLimit)
            .without_cgroup(EndReason::Exited),
        python(
            "thread bomb",
            "import threading\nwhile True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        )
        .with(|unit| unit.limits.pids = Some(Limit::named(40)))
        .ends(EndReason::PidsLimit)
        .without_cgroup(EndReason::Exited),
        memory(python("memory bomb", "hold = []\nwhile True: hold.append(bytearray(8 << 20))")),
        memory(bash("files in memory", "head -c 100M /dev/zero >/dev/shm/file; sleep 100")),
        memory(bash("many small programs", "for i in $(seq 30); do (x=$(head -c 8M /dev/zero | tr '\\0' x); sleep 100) & done; wait")),
        memory(python(
            "shared memory",
            "libc.shmat.restype = ctypes.c_void_p
for _ in range(50):
    place = libc.shmat(libc.shmget(0, 4 << 20, 0o1600), None, 0)
    ctypes.memset(place, 1, 4 << 20)
time.sleep(100)",
        )),
        memory(python(
            "pipes that nobody reads",
            "while True:\n    reader, writer = os.pipe()\n    os.set_blocking(writer, False)\n    os.write(writer, bytes(65536))",
        )),
        memory(python(
            "sockets that nobody reads",
            "hold = []
while True:
    pair = socket.socketpair()
    pair[0].setblocking(False)
    hold.append(pair)
    try:
        while True: pair[0].send(bytes(4096))
    except BlockingIOError: pass",
        )),
    ])
    .await;
}

#[tokio::test]
async fn fillers_of_disks_files_and_logs_are_ended_or_refused() {
    run([
        disk(bash("disk", "i=0; while head -c 1M /dev/zero >f$i; do i=$((i + 1)); done; sleep 100")),
        disk(bash("inodes", "mkdir e && cd e && touch $(seq 6000); sleep 100")),
        // Deeper than anybody counts.
        disk(bash("deep folders", "for i in $(seq 300); do mkdir d && cd d; done; sleep 100")),
        bash(
            "scratch",
            "head -c 64M /dev/zero >/tmp/file; [ $(stat -c %s /tmp/file) -le 8388608 ] && echo full; rm /tmp/file
             touch /tmp/$(seq -s ' /tmp/' 4000) 2>/dev/null || echo no more files; [ $(ls /tmp | wc -l) -lt 2048 ] && echo few",
        )
        .with(|unit| unit.limits.scratch_bytes = 8 << 20)
        .prints("full\nno more files\nfew\n"),
        python(
            "descriptors",
            "try:
    while True: os.dup(0)
except OSError as error: print(errno.errorcode[error.errno])",
        )
        .with(|unit| unit.limits.open_files = 256)
        .prints("EMFILE\n"),
    ])
    .await;
    let node = Node::new().await;
    let flood = bash("log", "head -c 200M /dev/zero | tee /dev/stderr")
        .with(|unit| unit.output_cap = 1 << 20)
        .ends(EndReason::Exited);
    let outcome = node.run(flood).await.unwrap();
    for (kept, end) in [(outcome.stdout, outcome.exit.stdout), (outcome.stderr, outcome.exit.stderr)] {
        assert_eq!((kept.len(), end.bytes, end.truncated), (1 << 20, 200 << 20, true));
    }
}

#[tokio::test]
async fn spinners_hinder_neither_the_end_of_a_lease_nor_a_neighbour() {
    let node = Node::new().await;
    let program = r#"
attempt("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
for _ in range(7): os.fork()
while True: pass
"#;
    let path = node.fixture.dir.path().join("short-lease");
    let lease = Lease::create(&path, Deadline::after(Duration::from_secs(2))).unwrap();
    let began = Instant::now();
    let spinner = python("spinner", program)
        .knowing(move |unit, _| unit.lease_file.clone_from(&path))
        .ends(EndReason::LeaseExpired);
    let outcome = node.run(spinner).await.unwrap();
    // 128 programs that compute are ended together; how late that is depends on the machine, not on them.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    for line in outcome.text().lines() {
        assert!(["realtime refused", "nice refused"].contains(&line), "{line}");
    }
    drop(lease);
}
