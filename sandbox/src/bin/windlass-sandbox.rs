//! Runs one command in a native sandbox of this host, or the doctor's checks: to try the driver without anything else of
//! Windlass, and for its tests, which need a program whose `main` can become the launcher.
//!
//! `windlass-sandbox STATE_DIR doctor` · `windlass-sandbox STATE_DIR run UNIT WORKSPACE LEASE_MS COMMAND…`
//!
//! `run` starts the unit, prints `started`, follows its output and returns its exit code. The unit stays on record.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use windlass_sandbox::{
    Deadline, Driver, Error, Identity, Lease, Native, SandboxConfig, Stream, UnitId, UnitSpec, doctor,
};

fn main() -> ExitCode {
    if let Some(code) = windlass_sandbox::run_if_requested() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match words.as_slice() {
        [state, "doctor"] => match runtime.block_on(doctor(Path::new(state))) {
            Ok(code) => code,
            Err(error) => fail(&error),
        },
        [state, "run", unit, workspace, lease_ms, command @ ..] if !command.is_empty() => {
            let Ok(lease) = lease_ms.parse().map(Duration::from_millis) else {
                return fail(&"LEASE_MS must be a number");
            };
            let command = command.iter().map(|word| (*word).to_owned()).collect();
            let run = run(Path::new(state), unit, PathBuf::from(workspace), lease, command);
            match runtime.block_on(run) {
                Ok(code) => code,
                Err(error) => fail(&error),
            }
        }
        _ => fail(&"usage: windlass-sandbox STATE_DIR doctor | run UNIT WORKSPACE LEASE_MS COMMAND…"),
    }
}

/// Says what is wrong.
fn fail(problem: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; the exit code tells too.
    let _closed = writeln!(std::io::stderr(), "windlass-sandbox: {problem}");
    ExitCode::from(2)
}

/// Prints the checks.
async fn doctor(state: &Path) -> Result<ExitCode, Error> {
    let native = Native::open(SandboxConfig::new(state)).await?;
    let mut code = ExitCode::SUCCESS;
    for check in doctor::run(&native).await {
        let text = match &check.outcome {
            doctor::Outcome::Ok => format!("ok        {}", check.title),
            doctor::Outcome::Degraded { why, fix } => {
                format!("degraded  {}: {why}\n          fix: {fix}", check.title)
            }
            doctor::Outcome::Missing { why, fix } => {
                code = ExitCode::FAILURE;
                format!("missing   {}: {why}\n          fix: {fix}", check.title)
            }
        };
        print(text.as_bytes(), Stream::Stdout);
        print(b"\n", Stream::Stdout);
    }
    Ok(code)
}

/// Runs one unit.
async fn run(
    state: &Path,
    unit: &str,
    workspace: PathBuf,
    lease: Duration,
    command: Vec<String>,
) -> Result<ExitCode, Error> {
    let native = Native::open(SandboxConfig::new(state)).await?;
    let owner = std::fs::metadata(&workspace).map_err(|source| Error::Io {
        operation: "inspect",
        path: workspace.clone(),
        source,
    })?;
    let owner = Identity {
        uid: std::os::unix::fs::MetadataExt::uid(&owner),
        gid: std::os::unix::fs::MetadataExt::gid(&owner),
    };
    let id = UnitId::new(unit)?;
    let lease = Lease::create(state.join(format!("{id}.lease")), Deadline::after(lease))?;
    let spec = UnitSpec::new(id.clone(), command, workspace, owner, lease.path().to_owned());
    native.prepare(&spec).await?;
    native.start(&id).await?;
    print(b"started\n", Stream::Stdout);
    let mut output = native.output(&id, 0);
    while let Some(chunk) = output.next().await? {
        print(&chunk.bytes, chunk.stream);
    }
    let exit = native.wait(&id).await?;
    if let Some(message) = &exit.message {
        print(format!("windlass-sandbox: {}: {message}\n", exit.reason).as_bytes(), Stream::Stderr);
    }
    let code = exit.code.or(exit.signal.map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Passes bytes on.
fn print(bytes: &[u8], stream: Stream) {
    // Whoever listened may have gone; the unit runs on all the same.
    let _closed = match stream {
        Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Stream::Stderr => std::io::stderr().write_all(bytes),
    };
}
