//! How long a unit takes: `/bin/true` in the full native sandbox, cgroups included, from its preparation to its removal;
//! beside it, where they are at hand, a bare fork and exec and bubblewrap with all namespaces (no cgroup, no seccomp, no
//! supervisor, no record on disk).
//!
//! `start [N] [STATE_DIR]`; rounds of the three alternate, so that a busy moment of the machine hits all alike.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use windlass_sandbox::{
    Deadline, Driver, Error, Lease, Limit, Native, SandboxConfig, UnitId, UnitSpec, Workspace,
};

/// What bubblewrap is asked for: as near to a unit as it comes.
const BWRAP: &[&str] = &[
    "--unshare-all",
    "--die-with-parent",
    "--new-session",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "/bin/true",
];
/// Units in a round.
const ROUND: usize = 20;

fn main() -> ExitCode {
    if let Some(code) = windlass_sandbox::run_if_requested() {
        return code;
    }
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(300);
    let state = arguments.next().map_or_else(|| std::env::temp_dir().join("windlass-start"), PathBuf::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(measure(count, state)) {
        Ok(table) => {
            // Whoever asked may have closed the pipe.
            let _closed = std::io::stdout().write_all(table.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    // Standard error may be closed; the exit code tells too.
    let _closed = writeln!(std::io::stderr(), "start: {error}: {:?}", error.source());
    ExitCode::FAILURE
}

/// Times of each phase of one unit.
#[derive(Default)]
struct Times {
    phases: [Vec<Duration>; 5],
}

const PHASES: [&str; 5] = ["prepare", "start", "wait", "cleanup", "whole unit"];

async fn measure(count: usize, state: PathBuf) -> Result<String, Error> {
    let native = Native::open(SandboxConfig::new(&state)).await?;
    let identity = native.identities().acquire("start")?;
    Workspace::remove(&state, "workspace")?;
    let workspace = Workspace::create(&state, "workspace", identity)?;
    // The units have different users.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(workspace.path(), open).map_err(|source| Error::Io {
        operation: "open",
        path: workspace.path().to_owned(),
        source,
    })?;
    native.identities().release("start")?;
    let lease = Lease::create(state.join("lease"), Deadline::after(Duration::from_secs(3600)))?;
    let mut unit = UnitSpec::new(
        UnitId::new("start")?,
        vec!["/bin/true".to_owned()],
        workspace.path().to_owned(),
        identity,
        lease.path().to_owned(),
    );
    unit.limits.memory_bytes = Some(Limit::default_value(256 << 20));
    unit.limits.cpu_millis = Some(Limit::default_value(1000));
    unit.limits.pids = Some(Limit::default_value(64));

    let mut times = Times::default();
    let (mut plain, mut bwrap) = (Vec::new(), Vec::new());
    let mut isolation = Vec::new();
    while times.phases[0].len() < count {
        for index in 0..ROUND {
            unit.id = UnitId::new(format!("start-{}", times.phases[0].len() + index))?;
            // As each attempt does.
            unit.identity = native.identities().acquire("start")?;
            isolation = one(&native, &unit, &mut times).await?;
            native.identities().release("start")?;
            // Between the units, so that a blocked worker thread does not count.
            plain.extend(timed(&["/bin/true"]));
            bwrap.extend(timed(&[&["bwrap"], BWRAP].concat()));
        }
    }
    Workspace::remove(&state, "workspace")?;
    let mut table = format!("isolation: {}\n", isolation.join(", "));
    for (name, samples) in PHASES.iter().zip(&mut times.phases) {
        table.push_str(&line(name, samples));
    }
    table.push_str(&line("fork + exec", &mut plain));
    table.push_str(&line("bwrap", &mut bwrap));
    Ok(table)
}

/// One unit, phase by phase.
async fn one(native: &Native, unit: &UnitSpec, times: &mut Times) -> Result<Vec<String>, Error> {
    let began = Instant::now();
    let prepared = native.prepare(unit).await?;
    let after_prepare = Instant::now();
    native.start(&unit.id).await?;
    let after_start = Instant::now();
    let exit = native.wait(&unit.id).await?;
    let after_wait = Instant::now();
    native.cleanup(&unit.id).await?;
    let end = Instant::now();
    assert!(exit.succeeded(), "{exit:?}");
    let durations = [
        after_prepare - began,
        after_start - after_prepare,
        after_wait - after_start,
        end - after_wait,
        end - began,
    ];
    for (samples, duration) in times.phases.iter_mut().zip(durations) {
        samples.push(duration);
    }
    Ok(prepared.isolation)
}

/// How long a command takes; `None` if it is not there or fails.
fn timed(command: &[&str]) -> Option<Duration> {
    let began = Instant::now();
    let status = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    status.success().then(|| began.elapsed())
}

/// A line of the table.
fn line(name: &str, samples: &mut [Duration]) -> String {
    samples.sort_unstable();
    let at = |share: usize| samples.get((samples.len() * share / 100).min(samples.len().saturating_sub(1)));
    match (at(50), at(95), at(99)) {
        (Some(p50), Some(p95), Some(p99)) => {
            let ms = |duration: &Duration| duration.as_secs_f64() * 1000.0;
            format!(
                "{name:12} n {:4}  p50 {:7.3} ms  p95 {:7.3} ms  p99 {:7.3} ms\n",
                samples.len(),
                ms(p50),
                ms(p95),
                ms(p99)
            )
        }
        _ => format!("{name:12} not measured\n"),
    }
}
