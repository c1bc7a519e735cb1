//! The checks that run a program in the sandbox and see whether it is kept within its bounds.

use std::time::{Duration, Instant};

use super::{Check, Outcome};
use crate::driver::{Driver, EndReason, Exit, KillProof, Stream};
use crate::error::Error;
use crate::lease::{Deadline, Lease};
use crate::native::Native;
use crate::spec::{Limit, UnitId, UnitSpec};
use crate::workspace::{DiskMeans, DiskQuota, Workspace};

/// How long a trial run may take.
const TRIAL: Duration = Duration::from_secs(20);
/// Bytes of memory of a trial that asks for more.
const LITTLE_MEMORY: u64 = 32 << 20;
/// Bytes of the workspace of a trial that writes more: an image may be as small.
const LITTLE_DISK: u64 = 4 << 20;
/// Bytes a second of a trial that writes [`DIRECT_WRITE`] past the page cache.
const SLOW_DISK: u64 = 1 << 20;
const DIRECT_WRITE: u64 = 1 << 19;
/// What a trial that is not enforced at all is told.
const ABOVE: &str = "see the checks above";

/// A program to run, and how.
struct Trial<'a> {
    name: &'static str,
    command: &'a [&'a str],
    quota: Option<DiskQuota>,
    /// Sets its limits.
    limit: &'a dyn Fn(&mut UnitSpec),
}

/// What was seen.
struct Seen {
    exit: Exit,
    stdout: Vec<u8>,
    took: Duration,
    disk: DiskMeans,
}

/// Runs all of them. A limit whose cgroup is missing, as `known` tells, is not tried.
pub(super) async fn run(driver: &Native, known: &[Check]) -> Vec<Check> {
    let has = |id: &str| known.iter().any(|check| check.id == id && check.outcome == Outcome::Ok);
    let mut checks = vec![program(driver).await];
    if has("cgroup-cpu") {
        checks.push(cpu(driver).await);
    }
    if has("cgroup-memory") {
        checks.push(memory(driver).await);
    }
    checks.push(pids(driver, has("cgroup-pids")).await);
    if has("cgroup-io") {
        checks.push(io(driver).await);
    }
    checks.push(disk(driver).await);
    checks.push(time(driver).await);
    checks.push(files(driver).await);
    checks.push(network(driver).await);
    for (id, title, command, package) in [
        ("bash", "bash in the sandbox", ["bash", "-c", "echo $((40 + 2))"], "bash"),
        ("python3", "Python 3 in the sandbox", ["python3", "-c", "print(40 + 2)"], "python3"),
    ] {
        checks.push(interpreter(driver, id, title, &command, package).await);
    }
    checks
}

/// Whether a program runs with every limit that the host can enforce.
async fn program(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| {
        unit.limits.memory_bytes = Some(Limit::default_value(256 << 20));
        unit.limits.cpu_millis = Some(Limit::default_value(1000));
        unit.limits.cpu_weight = Some(Limit::default_value(100));
        unit.limits.pids = Some(Limit::default_value(64));
        unit.limits.io_read_bps = Some(Limit::default_value(1 << 30));
        unit.limits.io_write_bps = Some(Limit::default_value(1 << 30));
    };
    let seen = trial(driver, Trial { name: "true", command: &["true"], quota: None, limit: &limit }).await;
    let outcome = match seen {
        Ok(Seen { exit, .. }) if exit.succeeded() && exit.proof.as_ref().is_some_and(KillProof::holds) => {
            Outcome::Ok
        }
        Ok(Seen { exit, .. }) => missing(format!("`true` {}", told(&exit))),
        Err(error) => missing(chain(&error)),
    };
    Check { id: "run", title: "a program in the sandbox", outcome }
}

/// Whether a program that computes without end is kept to a tenth of a core.
async fn cpu(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| {
        unit.limits.cpu_millis = Some(Limit::named(100));
        unit.timeout = Some(Duration::from_millis(600));
    };
    let command = ["sh", "-c", "while :; do :; done"];
    let trial = trial(driver, Trial { name: "cpu", command: &command, quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        let used = Duration::from_nanos(seen.exit.usage.cpu_ns);
        let is_kept = seen.exit.reason == EndReason::Timeout && used * 3 < seen.took;
        let why =
            format!("with a tenth of a core it used {used:?} of {:?} and {}", seen.took, told(&seen.exit));
        (is_kept, why)
    });
    Check { id: "limit-cpu", title: "the cpu limit slows a program down", outcome }
}

/// Whether a unit with a process that takes too much memory is ended whole.
async fn memory(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| unit.limits.memory_bytes = Some(Limit::named(LITTLE_MEMORY));
    // `tail` keeps all of a line without an end; the shell itself does not care what becomes of it.
    let command = ["sh", "-c", "(head -c 128M /dev/zero | tail) & sleep 60"];
    let trial = trial(driver, Trial { name: "memory", command: &command, quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        let peak = seen.exit.usage.peak_memory_bytes.unwrap_or(0);
        let is_kept = seen.exit.reason == EndReason::OOMKilled && peak <= LITTLE_MEMORY;
        (is_kept, format!("beyond its {LITTLE_MEMORY} bytes it {}, with a peak of {peak}", told(&seen.exit)))
    });
    Check { id: "limit-memory", title: "the memory limit ends a unit", outcome }
}

/// Whether a program is refused processes beyond its limit.
async fn pids(driver: &Native, by_cgroup: bool) -> Check {
    let limit = |unit: &mut UnitSpec| unit.limits.pids = Some(Limit::named(8));
    let script = "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i + 1)); done";
    let command = ["sh", "-c", script];
    let trial = trial(driver, Trial { name: "pids", command: &command, quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        let is_named = seen.exit.reason == EndReason::PidsLimit;
        let is_refused = seen.exit.reason == EndReason::Exited && seen.exit.code != Some(0);
        let is_kept = if by_cgroup { is_named } else { is_refused };
        (is_kept, format!("with 40 processes and a limit of 8 it {}", told(&seen.exit)))
    });
    Check { id: "limit-pids", title: "the pids limit holds", outcome }
}

/// Whether a program that writes past the page cache is slowed down.
async fn io(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| unit.limits.io_write_bps = Some(Limit::named(SLOW_DISK));
    let script = format!("dd if=/dev/zero of=file bs={} count=8 oflag=direct 2>/dev/null", DIRECT_WRITE / 8);
    let command = ["sh", "-c", &script];
    let trial = trial(driver, Trial { name: "io", command: &command, quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        // Half a second by the limit; the first part of it is let through at once.
        let is_kept = seen.exit.succeeded() && seen.took > Duration::from_millis(200);
        (is_kept, format!("half a second of writing took {:?}, and it {}", seen.took, told(&seen.exit)))
    });
    Check { id: "limit-io", title: "the io limits slow a program down", outcome }
}

/// Whether a program that fills its workspace is ended, and by what that is seen.
async fn disk(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| unit.limits.disk_bytes = Some(Limit::named(LITTLE_DISK));
    let quota = Some(DiskQuota { bytes: LITTLE_DISK, exact: true });
    let script = "i=0; while [ $i -lt 16 ]; do head -c 1M /dev/zero >f$i; i=$((i + 1)); done; sleep 60";
    let command = ["sh", "-c", script];
    let outcome = match trial(driver, Trial { name: "disk", command: &command, quota, limit: &limit }).await {
        Ok(seen) if seen.exit.reason == EndReason::DiskLimit => match seen.disk {
            DiskMeans::ProjectQuota | DiskMeans::Image => Outcome::Ok,
            DiskMeans::Looking => Outcome::Degraded {
                why: "workspaces are looked at every 250 ms, so what is written in between can be too much"
                    .to_owned(),
                fix: "as root, keep the state folder on ext4 or XFS mounted with `prjquota`, or have loop devices \
                      and `apt-get install e2fsprogs mount`"
                    .to_owned(),
            },
        },
        Ok(seen) => missing(format!("beyond its {LITTLE_DISK} bytes of disk it {}", told(&seen.exit))),
        Err(error) => missing(chain(&error)),
    };
    Check { id: "limit-disk", title: "the disk limit is exact", outcome }
}

/// Whether a program that takes too long is ended.
async fn time(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| unit.timeout = Some(Duration::from_millis(100));
    let trial = trial(driver, Trial { name: "time", command: &["sleep", "60"], quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        let is_kept = seen.exit.reason == EndReason::Timeout && seen.took < TRIAL;
        (is_kept, format!("with 100 ms of time it {} after {:?}", told(&seen.exit), seen.took))
    });
    Check { id: "limit-time", title: "the time limit ends a unit", outcome }
}

/// Whether a process is kept from opening too many files.
async fn files(driver: &Native) -> Check {
    let limit = |unit: &mut UnitSpec| unit.limits.open_files = 64;
    let command = ["sh", "-c", "ulimit -Hn"];
    let trial = trial(driver, Trial { name: "files", command: &command, quota: None, limit: &limit });
    let outcome = judge(trial.await, |seen| {
        let is_kept = seen.stdout.trim_ascii() == b"64";
        let output = String::from_utf8_lossy(&seen.stdout);
        (is_kept, format!("with a limit of 64 it told {output:?} and {}", told(&seen.exit)))
    });
    Check { id: "limit-files", title: "the limit of open files holds", outcome }
}

/// Whether a program without a network sees none.
async fn network(driver: &Native) -> Check {
    let command = ["cat", "/proc/net/dev"];
    let trial = trial(driver, Trial { name: "network", command: &command, quota: None, limit: &|_| {} });
    let outcome = judge(trial.await, |seen| {
        let text = String::from_utf8_lossy(&seen.stdout);
        let interfaces: Vec<&str> =
            text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
        let why = format!("it sees the interfaces {interfaces:?} and {}", told(&seen.exit));
        (interfaces == ["lo"], why)
    });
    Check { id: "network-none", title: "no network but loopback", outcome }
}

/// Whether an interpreter computes inside.
async fn interpreter(
    driver: &Native,
    id: &'static str,
    title: &'static str,
    command: &[&str],
    package: &str,
) -> Check {
    let degraded = |why| Outcome::Degraded {
        why,
        fix: format!("install {package} below /usr (`apt-get install {package}` or the like)"),
    };
    let outcome = match trial(driver, Trial { name: id, command, quota: None, limit: &|_| {} }).await {
        Ok(seen) if seen.exit.succeeded() && seen.stdout.trim_ascii() == b"42" => Outcome::Ok,
        Ok(seen) if seen.exit.reason == EndReason::Exited && seen.exit.code == Some(127) => {
            degraded("it is not below /usr".to_owned())
        }
        Ok(seen) => {
            let output = String::from_utf8_lossy(&seen.stdout);
            degraded(format!("it {} and printed {output:?}", told(&seen.exit)))
        }
        Err(error) => degraded(chain(&error)),
    };
    Check { id, title, outcome }
}

/// A limit that must hold: as promised if it was kept, else missing, for a reason.
fn judge(seen: Result<Seen, Error>, kept: impl FnOnce(&Seen) -> (bool, String)) -> Outcome {
    match seen {
        Ok(seen) => match kept(&seen) {
            (true, _) => Outcome::Ok,
            (false, why) => missing(why),
        },
        Err(error) => missing(chain(&error)),
    }
}

fn missing(why: String) -> Outcome {
    Outcome::Missing { why, fix: ABOVE.to_owned() }
}

/// How a trial ended, for people.
fn told(exit: &Exit) -> String {
    let code = exit.code.map(|code| format!(" {code}")).unwrap_or_default();
    let message = exit.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
    format!("ended with {}{code}{message}", exit.reason)
}

/// Runs a trial in a unit of its own.
async fn trial(driver: &Native, trial: Trial<'_>) -> Result<Seen, Error> {
    let Trial { name, command, quota, limit } = trial;
    let root = driver.config().state_dir.join("doctor");
    let owner = format!("doctor-{name}");
    let id = UnitId::new(format!("doctor.{name}"))?;
    std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
    // What a trial that was cut short has left.
    driver.cleanup(&id).await?;
    Workspace::remove(&root, &owner)?;
    let identity = driver.identities().acquire(&owner)?;
    let workspace = Workspace::create_limited(&root, &owner, identity, quota)?;
    let lease = Lease::create(root.join(format!("{owner}.lease")), Deadline::after(TRIAL))?;
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let mut unit =
        UnitSpec::new(id.clone(), command, workspace.path().to_owned(), identity, lease.path().to_owned());
    unit.timeout = Some(TRIAL);
    unit.grace = Duration::ZERO;
    limit(&mut unit);
    let disk = workspace.disk_means(LITTLE_DISK);
    drop(workspace);
    let result = observe(driver, &unit, disk).await;
    driver.cleanup(&id).await?;
    Workspace::remove(&root, &owner)?;
    std::fs::remove_file(lease.path()).map_err(Error::io("remove", lease.path()))?;
    driver.identities().release(&owner)?;
    result
}

/// Runs a unit to its end.
async fn observe(driver: &Native, unit: &UnitSpec, disk: DiskMeans) -> Result<Seen, Error> {
    driver.prepare(unit).await?;
    let began = Instant::now();
    driver.start(&unit.id).await?;
    let exit = driver.wait(&unit.id).await?;
    let took = began.elapsed();
    let mut stdout = Vec::new();
    let mut reader = driver.output(&unit.id, 0);
    while let Some(chunk) = reader.next().await? {
        match chunk.stream {
            Stream::Stdout => stdout.extend_from_slice(&chunk.bytes),
            Stream::Stderr => {}
        }
    }
    Ok(Seen { exit, stdout, took, disk })
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
