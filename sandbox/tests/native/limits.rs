//! Limits: enforced where the host can, refused or told where it cannot.

use std::time::Duration;

use windlass_sandbox::{Driver, EndReason, Error, Limit, LimitName, UnitSpec};

use crate::fixture::{Fixture, is_root};

/// A program that takes memory until it dies.
const MEMORY_BOMB: &str = "hold = []\nwhile True: hold.append(bytearray(8 << 20))";

/// A fixture whose host cannot enforce limits by cgroup: a file is no cgroup, also for root.
async fn without_cgroups() -> Fixture {
    Fixture::with(|config| config.cgroup_parent = Some("/cgroup.procs/none".to_owned())).await
}

#[tokio::test]
async fn a_memory_bomb_is_killed_and_named() {
    let fixture = Fixture::new().await;
    if !fixture.enforces(LimitName::Memory) {
        return;
    }
    let mut unit = fixture.unit("bomb", &["python3", "-c", MEMORY_BOMB]);
    unit.limits.memory_bytes = Some(Limit::named(64 << 20));
    let outcome = fixture.run(&unit).await;
    assert_eq!(outcome.exit.reason, EndReason::OOMKilled, "{outcome:?}");
    let peak = outcome.exit.usage.peak_memory_bytes.unwrap();
    assert!((32 << 20..=64 << 20).contains(&peak), "{peak}");
    assert_eq!(outcome.exit.proof.unwrap().cgroup_empty, Some(true));
    fixture.native.cleanup(&unit.id).await.unwrap();
}

/// Prints the length of the program's turns and of its child's in nanoseconds, and what becomes of asking for longer ones.
const TURNS: &str = r#"
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def turn():
    attributes = ctypes.create_string_buffer(56)
    assert libc.syscall(315, 0, attributes, 56, 0) == 0
    return struct.unpack("IIQiIQQQII", attributes.raw)[5]
print(turn(), flush=True)
if os.fork() == 0:
    print(turn(), flush=True)
    os._exit(0)
os.wait()
longer = struct.pack("IIQiIQQQII", 56, 0, 0, 0, 0, 100_000_000, 0, 0, 0, 0)
print(libc.syscall(314, 0, longer, 0), os.strerror(ctypes.get_errno()))
try: os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
except PermissionError: print("refused")
"#;

#[tokio::test]
async fn units_take_short_turns_on_a_processor_and_cannot_take_longer_ones() {
    let fixture = Fixture::new().await;
    let outcome = fixture.run(&fixture.unit("turns", &["python3", "-c", TURNS])).await;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version: Vec<u32> = release.split('.').take(2).filter_map(|number| number.parse().ok()).collect();
    // Kernels before have no turns of a program's own.
    let turn = if version >= vec![6, 12] { 200_000 } else { 0 };
    assert_eq!(outcome.ok(), format!("{turn}\n{turn}\n-1 Operation not permitted\nrefused\n"));
}

#[tokio::test]
async fn a_unit_with_a_process_that_took_too_much_memory_is_ended_whole() {
    let fixture = Fixture::new().await;
    if !fixture.enforces(LimitName::Memory) {
        return;
    }
    // The shell is small, does not care what becomes of its child, and would succeed in the end.
    let script = format!("python3 -c '{MEMORY_BOMB}' & sleep 60; exit 0");
    let mut unit = fixture.unit("whole", &["bash", "-c", &script]);
    unit.limits.memory_bytes = Some(Limit::named(64 << 20));
    unit.timeout = Some(Duration::from_secs(50));
    let exit = fixture.run(&unit).await.exit;
    assert_eq!(exit.reason, EndReason::OOMKilled, "{exit:?}");
    assert!(exit.proof.unwrap().holds());
    fixture.native.cleanup(&unit.id).await.unwrap();
}

/// A file of the first cgroup of a unit that has one.
fn cgroup_file(fixture: &Fixture, unit: &UnitSpec, names: &[&str]) -> String {
    let plan = fixture.plan(&unit.id);
    let dirs = plan["launch"]["cgroups"]["dirs"].as_array().unwrap();
    let paths =
        dirs.iter().flat_map(|dir| names.iter().map(move |name| format!("{}/{name}", dir.as_str().unwrap())));
    let found = paths.filter_map(|path| std::fs::read_to_string(path).ok()).next();
    found.unwrap_or_else(|| panic!("none of {names:?} in {dirs:?}"))
}

#[tokio::test]
async fn a_weight_is_given_to_the_kernel() {
    let fixture = Fixture::new().await;
    if !fixture.enforces(LimitName::Cpu) {
        return;
    }
    let mut unit = fixture.unit("weight", &["true"]);
    unit.limits.cpu_weight = Some(Limit::named(50));
    fixture.native.prepare(&unit).await.unwrap();
    let weight = cgroup_file(&fixture, &unit, &["cpu.weight", "cpu.shares"]);
    assert!(["50\n", "512\n"].contains(&weight.as_str()), "{weight}");
    fixture.native.cleanup(&unit.id).await.unwrap();
}

#[tokio::test]
async fn writing_past_the_page_cache_is_slowed_down_and_counted() {
    let fixture = Fixture::new().await;
    if !fixture.enforces(LimitName::Io) {
        return;
    }
    let script = "dd if=/dev/zero of=file bs=256K count=16 oflag=direct";
    let mut unit = fixture.unit("io", &["bash", "-c", script]);
    unit.limits.io_write_bps = Some(Limit::named(2 << 20));
    unit.limits.io_read_bps = Some(Limit::named(100 << 20));
    let began = std::time::Instant::now();
    let outcome = fixture.run(&unit).await;
    outcome.ok();
    let took = began.elapsed();
    let told = cgroup_file(&fixture, &unit, &["io.max", "blkio.throttle.write_bps_device"]);
    // 4 MiB at 2 MiB a second; the first of it is let through at once. No host is too slow for this.
    assert!(took > Duration::from_secs(1), "{took:?} by {told:?}, {:?}", outcome.exit.usage);
    let written = outcome.exit.usage.io_write_bytes.unwrap();
    assert!(written >= 4 << 20, "{:?}", outcome.exit.usage);
    fixture.native.cleanup(&unit.id).await.unwrap();
}

#[tokio::test]
async fn a_named_limit_that_cannot_be_enforced_is_refused_and_a_default_one_is_told() {
    let fixture = without_cgroups().await;
    let unit = fixture.unit("limited", &["true"]);
    for name in [LimitName::Memory, LimitName::Cpu, LimitName::Io] {
        let with = |limit| {
            let mut unit = unit.clone();
            match name {
                LimitName::Memory => unit.limits.memory_bytes = Some(limit),
                LimitName::Cpu => unit.limits.cpu_weight = Some(limit),
                LimitName::Io => unit.limits.io_read_bps = Some(limit),
                LimitName::Pids | LimitName::Disk | LimitName::Files => unreachable!("always enforced"),
            }
            unit
        };
        let error = fixture.native.prepare(&with(Limit::named(1000))).await.unwrap_err();
        assert!(matches!(&error, Error::Unenforceable { limit, .. } if *limit == name), "{error}");
        assert!(error.to_string().contains("Delegate=yes"), "{error}");
        assert_eq!(fixture.native.inventory().await.unwrap(), []);
        let prepared = fixture.native.prepare(&with(Limit::default_value(1000))).await.unwrap();
        assert_eq!(prepared.unenforced[0].limit, name);
        fixture.native.cleanup(&unit.id).await.unwrap();
        let mut accepted = with(Limit::named(1000));
        accepted.limits.accept_unenforced.insert(name);
        assert_eq!(fixture.native.prepare(&accepted).await.unwrap().unenforced[0].limit, name);
        fixture.native.start(&unit.id).await.unwrap();
        assert!(fixture.native.wait(&unit.id).await.unwrap().succeeded());
        fixture.native.cleanup(&unit.id).await.unwrap();
    }
}

/// Forks until it is refused, keeps all children, and tells how many there are.
const FORK_BOMB: &str = r"
import os, time
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except OSError as error:
    print(error.errno, count, flush=True)
raise SystemExit(1)
";

#[tokio::test]
async fn a_fork_bomb_is_bounded_by_the_pids_limit_with_and_without_cgroups() {
    for fixture in [Fixture::new().await, without_cgroups().await] {
        let mut unit = fixture.unit("forks", &["python3", "-c", FORK_BOMB]);
        unit.limits.pids = Some(Limit::named(30));
        let prepared = fixture.native.prepare(&unit).await.unwrap();
        assert_eq!(prepared.unenforced, []);
        let by_cgroup = prepared.isolation.iter().any(|word| word.starts_with("pids cgroup"));
        fixture.native.start(&unit.id).await.unwrap();
        let outcome = fixture.finish(&unit.id).await;
        // 11 is EAGAIN; the program itself is one of the thirty.
        assert_eq!(outcome.text(), "11 29\n");
        let expected = if by_cgroup { EndReason::PidsLimit } else { EndReason::Exited };
        assert_eq!(outcome.exit.reason, expected);
        fixture.native.cleanup(&unit.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_cpu_limit_slows_a_busy_program_down() {
    let fixture = Fixture::new().await;
    if !fixture.enforces(LimitName::Cpu) {
        return;
    }
    let mut unit = fixture.unit("busy", &["python3", "-c", "while True: pass"]);
    unit.limits.cpu_millis = Some(Limit::named(100));
    unit.timeout = Some(Duration::from_secs(2));
    unit.grace = Duration::ZERO;
    let exit = fixture.run(&unit).await.exit;
    assert_eq!(exit.reason, EndReason::Timeout);
    let used = Duration::from_nanos(exit.usage.cpu_ns);
    assert!(used > Duration::from_millis(20) && used < Duration::from_millis(800), "{used:?}");
    fixture.native.cleanup(&unit.id).await.unwrap();
}

#[tokio::test]
async fn a_workspace_that_grows_past_its_limit_ends_the_unit() {
    let fixture = Fixture::new().await;
    // One file cannot be larger, however fast it grows.
    let mut unit =
        fixture.unit("file", &["bash", "-c", "head -c 40M /dev/zero > /tmp/big; stat -c %s /tmp/big"]);
    unit.limits.disk_bytes = Some(Limit::named(30 << 20));
    assert_eq!(fixture.run(&unit).await.text(), format!("{}\n", 30 << 20));
    let script = "i=0; while :; do i=$((i+1)); head -c 1M /dev/zero > f$i; done";
    let mut unit = fixture.unit("disk", &["bash", "-c", script]);
    unit.limits.disk_bytes = Some(Limit::named(20 << 20));
    unit.timeout = Some(Duration::from_secs(60));
    let exit = fixture.run(&unit).await.exit;
    assert_eq!(exit.reason, EndReason::DiskLimit, "{exit:?}");
    assert!(exit.message.unwrap().contains("20971520"));
    // A program that does not look at errors is killed by the kernel at the size that no file may pass.
    let program = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n\
                   with open('one', 'wb') as file:\n    while True: file.write(bytes(1 << 20))";
    let mut unit = fixture.unit("one", &["python3", "-c", program]);
    unit.limits.disk_bytes = Some(Limit::named(100 << 20));
    let exit = fixture.run(&unit).await.exit;
    assert_eq!(exit.reason, EndReason::DiskLimit, "{exit:?}");
}

#[tokio::test]
async fn the_disk_limit_cannot_be_dodged() {
    let fixture = Fixture::new().await;
    let fill = "for i in 1 2 3 4 5 6 7 8; do head -c 3M /dev/zero > $d/f$i; done";
    let scripts = [
        ("empty", "mkdir e && cd e && touch $(seq 6000)".to_owned()),
        ("deep", "for i in $(seq 300); do mkdir d && cd d; done".to_owned()),
        ("unlisted", format!("d=u; mkdir u && chmod 300 u; {fill}")),
        ("unsearched", format!("d=s; mkdir s; {fill}; chmod 400 s")),
        ("top", format!("d=/workspace; chmod 300 /workspace; {fill}")),
        (
            "deleted",
            "for i in 5 6 7 8; do eval \"exec $i>gone\"; rm gone; head -c 8M /dev/zero >&$i; done".to_owned(),
        ),
    ];
    for (name, script) in scripts {
        let script = format!("{script}\nsleep 600");
        let mut unit = fixture.unit(name, &["bash", "-c", &script]);
        unit.limits.disk_bytes = Some(Limit::named(20 << 20));
        unit.timeout = Some(Duration::from_secs(300));
        let exit = fixture.run(&unit).await.exit;
        assert_eq!(exit.reason, EndReason::DiskLimit, "{name}: {exit:?}");
        let left = fixture.workspace.path();
        std::fs::set_permissions(left, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let clean = fixture.unit(&format!("clean-{name}"), &["bash", "-c", "chmod -R u+rwX . && rm -rf ./*"]);
        fixture.run(&clean).await.ok();
    }
}

#[tokio::test]
async fn rlimits_hold_and_no_core_is_written() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("rlimits", &["bash", "-c", "ulimit -c; ulimit -n; ulimit -Hn"]);
    unit.limits.open_files = 256;
    assert_eq!(fixture.run(&unit).await.ok(), "0\n256\n256\n");
}

#[tokio::test]
async fn processor_time_of_killed_children_is_counted() {
    let fixture = Fixture::new().await;
    let program = "import os, time\nwhile time.process_time() < 0.2: pass\nos.kill(os.getpid(), 9)";
    let script = format!("python3 -c '{program}'; true");
    let exit = fixture.bash(&script).await.exit;
    assert!(exit.usage.cpu_ns > 100_000_000, "{:?}", exit.usage);
    assert!(exit.usage.peak_memory_bytes.unwrap() > 1 << 20);
    // Whatever has no cgroup to count it in is told by what the kernel says of the processes.
    assert!(exit.usage.io_read_bytes.is_some() && exit.usage.io_write_bytes.is_some(), "{:?}", exit.usage);
}

/// Where the unified hierarchy is mounted.
fn unified_hierarchy() -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(line.split(' ').nth(4)?.into())
}

#[tokio::test]
async fn a_unit_is_born_into_its_cgroup_of_the_unified_hierarchy_and_leaves_it_empty() {
    let Some(root) = unified_hierarchy().filter(|_| is_root()) else {
        // Only root may make a cgroup here, and not every host has the hierarchy.
        return;
    };
    let fixture = Fixture::new().await;
    let unit = fixture.unit("unified", &["bash", "-c", "cat /proc/self/cgroup; echo ready; sleep 100"]);
    fixture.native.prepare(&unit).await.unwrap();
    // The driver of this host may use version 1, so the plan is changed by hand.
    let cgroup = root.join(format!("windlass-test-{}", std::process::id()));
    std::fs::create_dir(&cgroup).unwrap();
    let path = fixture.dir.path().join("state/units/unified/plan.json");
    let mut plan: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    plan["launch"]["cgroups"] =
        serde_json::json!({ "v2": true, "dirs": [cgroup], "memory": null, "pids": null, "io": null });
    std::fs::write(&path, plan.to_string()).unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    crate::fixture::printed(&fixture.native, &unit.id, "ready").await;
    let members = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert!(members.lines().count() >= 2, "{members}");
    let stop =
        windlass_sandbox::Stop { grace: Duration::ZERO, reason: windlass_sandbox::StopReason::Cancelled };
    fixture.native.signal(&unit.id, stop).await.unwrap();
    let outcome = fixture.finish(&unit.id).await;
    assert!(outcome.text().contains("0::/\n"), "{outcome:?}");
    assert_eq!(outcome.exit.proof.unwrap().cgroup_empty, Some(true));
    std::fs::remove_dir(&cgroup).unwrap();
}
