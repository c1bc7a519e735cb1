//! Nvidia's own library (NVML), asked in a process of its own.
//!
//! ```text
//!  agent ── /proc/self/exe __windlass-nvml LIBRARY ──► loads the library, asks, prints one line of JSON, ends
//!    └──── waits, at most for `PATIENCE`, then kills
//! ```
//!
//! The library is foreign code that talks to a driver: it may hang, crash or not be there. In a process that lives for one question
//! none of that reaches the agent, and each is a reason that the node tells. A process that hangs in the kernel survives its being
//! killed; it is remembered, and no other is started beside it.
//!
//! Proven on a library that stands in; unproven on hardware.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// The hidden first argument.
const ARGUMENT: &str = "__windlass-nvml";
/// The name of the library by which every driver installs it.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// How long an answer may take: the library wakes the driver, which takes some seconds where nothing else uses it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a process that was killed may take to end, if the kernel does not hold it.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Of an answer no more than this is read; a processor takes some 200 bytes.
const MOST_ANSWER: u64 = 256 << 10;
/// Characters of what a process says when it fails.
const MOST_SAID: usize = 200;

/// How Nvidia's library is asked. Clones share what is remembered.
#[derive(Clone, Debug)]
pub(super) struct NvmlProbe {
    program: PathBuf,
    library: OsString,
    patience: Duration,
    /// A process that has not ended although it was killed.
    stuck: Arc<Mutex<Option<Child>>>,
}

/// What the library says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The driver's version.
    pub(super) driver: Option<String>,
    /// The newest version of CUDA that the driver speaks, such as `12.4`.
    pub(super) cuda: Option<String>,
    /// By PCI address, as the kernel writes it.
    pub(super) processors: BTreeMap<String, Processor>,
    /// What it does not say, and why.
    pub(super) problems: Vec<String>,
}

/// What the library says of one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Processor {
    pub(super) model: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) memory_bytes: Option<u64>,
}

impl Default for NvmlProbe {
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            library: LIBRARY.into(),
            patience: PATIENCE,
            stuck: Arc::default(),
        }
    }
}

impl NvmlProbe {
    /// With another program, whose `main` begins with [`run_if_requested`], another library, and another patience.
    pub(super) fn new(program: PathBuf, library: OsString, patience: Duration) -> Self {
        Self { program, library, patience, stuck: Arc::default() }
    }

    /// Asks the library. The error is for people.
    ///
    /// Not cancel-safe in one respect: if the future is dropped, a process that the kernel holds is forgotten.
    pub(super) async fn ask(&self) -> Result<Answer, String> {
        let mut stuck = self.stuck.lock().await;
        if let Some(child) = stuck.as_mut() {
            match child.try_wait() {
                Ok(None) => {
                    let pid = child.id().unwrap_or_default();
                    return Err(format!(
                        "NVML is not asked again while process {pid}, which asked before, hangs in the driver; see `dmesg`, and restart \
                         the host if it stays so"
                    ));
                }
                // It has ended, or is not ours to wait for any more.
                Ok(Some(_)) | Err(_) => *stuck = None,
            }
        }
        let mut child = self.start().map_err(|error| {
            format!("the process that asks NVML cannot be started: {}: {error}", self.program.display())
        })?;
        match tokio::time::timeout(self.patience, output(&mut child)).await {
            Ok(Ok((status, told, said))) => understood(status, &told, &said),
            Ok(Err(error)) => Err(format!("the answer of NVML cannot be read: {error}")),
            Err(_elapsed) => {
                // It is waited for below; that it has ended meanwhile is no matter.
                child.start_kill().ok();
                let gone = tokio::time::timeout(LAST_PATIENCE, child.wait()).await.is_ok();
                if !gone {
                    *stuck = Some(child);
                }
                Err(format!("NVML does not answer within {} s; see `dmesg`", self.patience.as_secs_f32()))
            }
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        Command::new(&self.program)
            .arg(ARGUMENT)
            .arg(&self.library)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// What a process writes, and how it ends.
async fn output(child: &mut Child) -> std::io::Result<(ExitStatus, String, String)> {
    let (mut told, mut said) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (stdout.expect("it is piped"), stderr.expect("it is piped"));
    let (mut stdout, mut stderr) = (stdout.take(MOST_ANSWER), stderr.take(MOST_ANSWER));
    // Both at once, for it may fill either.
    tokio::try_join!(stdout.read_to_end(&mut told), stderr.read_to_end(&mut said))?;
    let status = child.wait().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((status, text(told), text(said)))
}

/// What a process that has ended was to say. An answer counts even if the library crashes after it.
fn understood(status: ExitStatus, told: &str, said: &str) -> Result<Answer, String> {
    // The library may write, too; the answer is the last line.
    let line = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    if let Ok(answer) = serde_json::from_str::<Result<Answer, String>>(line) {
        return answer;
    }
    let said = said.lines().chain([line]).map(str::trim).find(|line| !line.is_empty());
    let said = said
        .map_or_else(String::new, |said| format!(": {}", said.chars().take(MOST_SAID).collect::<String>()));
    match status.signal() {
        Some(_) => Err(format!("NVML crashed the process that asked it ({status}){said}; see `dmesg`")),
        None => Err(format!("the process that asks NVML ended without an answer ({status}){said}")),
    }
}

/// If this process was started to ask the library: asks it, prints the answer, and gives the code for `main` to return.
pub(crate) fn run_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let library = arguments.next().unwrap_or_else(|| LIBRARY.into());
    // Neither outlives the agent nor leaves a dump of memory. Without, it is only less tidy.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    let nothing = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, nothing).ok();
    let written = serde_json::to_writer(std::io::stdout(), &look(&library));
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks the library in this process.
fn look(library: &OsStr) -> Result<Answer, String> {
    let nvml = Nvml::builder().lib_path(library).init().map_err(|error| match error {
        NvmlError::LibloadingError(error) => {
            let why = crate::error_chain(&error);
            format!("NVML cannot be loaded: {why}; it comes with Nvidia's driver")
        }
        error => format!("NVML cannot be used: {error}{}", advice(&error)),
    })?;
    // Ending it could hang like everything else, and the process ends in any case.
    let nvml = std::mem::ManuallyDrop::new(nvml);
    let count =
        nvml.device_count().map_err(|error| format!("NVML does not say how many GPUs there are: {error}"))?;
    let version =
        |version| format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version));
    let mut answer = Answer {
        driver: nvml.sys_driver_version().ok(),
        cuda: nvml.sys_cuda_driver_version().ok().map(version),
        ..Answer::default()
    };
    for index in 0..count {
        let device = nvml.device_by_index(index);
        let found = device.and_then(|device| Ok((address(&device.pci_info()?.bus_id), device)));
        match found {
            Ok((Some(address), device)) => {
                let processor = describe(&device, &address, &mut answer.problems);
                answer.processors.insert(address, processor);
            }
            Ok((None, _)) => answer.problems.push(format!("NVML names no PCI address for its GPU {index}")),
            Err(error) => {
                answer.problems.push(format!("NVML cannot open its GPU {index}: {error}{}", advice(&error)));
            }
        }
    }
    Ok(answer)
}

fn describe(device: &Device<'_>, address: &str, problems: &mut Vec<String>) -> Processor {
    let mut told = |what: &str, error: NvmlError| {
        problems.push(format!("GPU {address}: NVML does not tell its {what}: {error}{}", advice(&error)));
    };
    Processor {
        model: device.name().map_err(|error| told("model", error)).ok(),
        uuid: device.uuid().map_err(|error| told("uuid", error)).ok(),
        memory_bytes: device
            .memory_info()
            .map_err(|error| told("memory", error))
            .ok()
            .map(|memory| memory.total),
    }
}

/// What to do about an error, as the end of a sentence.
fn advice(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::LibRmVersionMismatch => {
            "; the driver was updated while an older one runs: load its kernel modules anew, or restart the host"
        }
        NvmlError::DriverNotLoaded => "; load the kernel module `nvidia`",
        NvmlError::NoPermission => "; the agent's user needs access to /dev/nvidiactl and /dev/nvidia*",
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "; the driver is too old: 510 or later is needed"
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => "; reset it, or restart the host",
        _ => "",
    }
}

/// A PCI address, whose domain the library writes with eight digits and the kernel with four.
fn address(bus_id: &str) -> Option<String> {
    let lower = bus_id.to_ascii_lowercase();
    let (domain, rest) = lower.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{rest}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn probe(folder: &tempfile::TempDir, script: &str) -> NvmlProbe {
        let program = folder.path().join("asks");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        NvmlProbe::new(program, LIBRARY.into(), Duration::from_secs(60))
    }

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(address("00000000:81:00.0").as_deref(), Some("0000:81:00.0"));
        assert_eq!(address("00010000:0A:00.0").as_deref(), Some("10000:0a:00.0"));
        assert_eq!((address("81"), address("x:81:00.0")), (None, None));
    }

    #[tokio::test]
    async fn the_answer_is_the_last_line_even_if_the_process_crashes_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let answer = Answer { driver: Some("550".to_owned()), ..Answer::default() };
        let line = serde_json::to_string(&Ok::<_, String>(&answer)).unwrap();
        let script = format!("echo the library says something; echo '{line}'; kill -SEGV $$");
        assert_eq!(probe(&folder, &script).ask().await, Ok(answer));
    }

    #[tokio::test]
    async fn a_process_that_ends_without_an_answer_is_told_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let why = probe(&folder, "echo panicked >&2; exit 101").ask().await.unwrap_err();
        assert!(why.contains("ended without an answer (exit status: 101): panicked"), "{why}");
        let why = probe(&folder, "kill -BUS $$").ask().await.unwrap_err();
        assert!(why.contains("crashed") && why.contains("SIGBUS"), "{why}");
        let gone = NvmlProbe::new("/nonexistent".into(), LIBRARY.into(), PATIENCE);
        let why = gone.ask().await.unwrap_err();
        assert!(why.contains("cannot be started: /nonexistent"), "{why}");
    }

    #[tokio::test]
    async fn no_other_process_is_started_while_one_hangs_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let probe = probe(&folder, r#"echo '{"Ok":{"processors":{},"problems":[]}}'"#);
        // One that cannot be killed takes a broken driver; to the probe this one is the same.
        let hanging = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = hanging.id().unwrap();
        *probe.stuck.lock().await = Some(hanging);
        for _ in 0..2 {
            let why = probe.clone().ask().await.unwrap_err();
            assert!(why.contains(&format!("process {pid}")) && why.contains("restart the host"), "{why}");
        }
        let mut hanging = probe.stuck.lock().await.take().unwrap();
        hanging.kill().await.unwrap();
        *probe.stuck.lock().await = Some(hanging);
        assert_eq!(probe.ask().await, Ok(Answer::default()));
    }
}
