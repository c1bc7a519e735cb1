//! What every row works with: where things are, how much to measure, and programs that run beside us.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

/// How long a daemon may take to be ready, and to end after a signal.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Jobs of a drain.
    pub(crate) drained: usize,
    /// How long a drain goes on at most: what is slow on this disk is measured on fewer jobs.
    pub(crate) drain_limit: Duration,
    /// Latencies a round.
    pub(crate) latencies: usize,
    /// Whole jobs a round.
    pub(crate) jobs: usize,
    /// How long to watch idle systems.
    pub(crate) idle: Duration,
    /// How long a subject is kept busy for a rate.
    pub(crate) busy: Duration,
    /// Nodes of a simulated fleet; each has room for twenty jobs.
    pub(crate) nodes: usize,
    /// Jobs of a long queue.
    pub(crate) backlog: usize,
    /// How long bloat may gather, in ten windows.
    pub(crate) bloat: Duration,
    /// Jobs that kubectl creates at once, a measurement each.
    pub(crate) objects: &'static [usize],
}

impl Scale {
    /// Below three minutes a row.
    pub(crate) const QUICK: Self = Self {
        drained: 20_000,
        drain_limit: Duration::from_secs(3),
        latencies: 20,
        jobs: 20,
        idle: Duration::from_secs(20),
        busy: Duration::from_secs(2),
        nodes: 1000,
        backlog: 100_000,
        bloat: Duration::from_secs(40),
        objects: &[100],
    };
    /// As BENCH.md says.
    pub(crate) const FULL: Self = Self {
        drained: 100_000,
        drain_limit: Duration::from_secs(60),
        latencies: 200,
        jobs: 200,
        idle: Duration::from_secs(600),
        busy: Duration::from_secs(10),
        nodes: 5000,
        backlog: 1_000_000,
        bloat: Duration::from_secs(600),
        objects: &[1000, 2000],
    };
}

/// Where things are.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Holds what is installed, and the folders of runs.
    pub(crate) cache: PathBuf,
    /// Of this run; every daemon's data is here, so that all write to the same disk.
    pub(crate) work: PathBuf,
    /// Our program.
    pub(crate) windlass: PathBuf,
    /// The search path that we were started with.
    pub(crate) path: OsString,
    pub(crate) scale: Scale,
    /// Carries the store and the HTTP client; the bench itself is synchronous.
    pub(crate) runtime: Runtime,
}

/// A peer that is installed.
#[derive(Debug)]
pub(crate) struct Installed {
    root: PathBuf,
    path: OsString,
    /// What exactly is installed.
    pub(crate) versions: String,
}

impl Bench {
    /// Installs a peer, once and for all.
    ///
    /// # Errors
    /// What keeps it from being installed.
    pub(crate) fn install(&self, peer: &str) -> anyhow::Result<Installed> {
        let cache = self.cache.parent().context("the cache is a folder in another")?;
        let output = Command::new(script("setup.sh"))
            .arg(peer)
            .env("XDG_CACHE_HOME", cache)
            .output()
            .context("cannot run setup.sh")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("cannot install {peer}: {}", text.lines().last().unwrap_or("no reason given"));
        }
        let versions = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Installed { root: self.cache.join(peer), path: self.path.clone(), versions })
    }

    /// A new folder for data; a round that failed may have left one.
    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.work.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }
}

/// A script of the peers.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

impl Installed {
    /// A file of the peer.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of shared libraries.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.file(&format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
    }

    /// A command that finds the peer's programs and libraries before the system's.
    pub(crate) fn command(&self, program: &str) -> Command {
        let below =
            |folders: &[&str]| folders.iter().map(|folder| self.root.join(folder)).collect::<Vec<_>>();
        let mut paths = below(&["usr/sbin", "usr/bin", "sbin", "bin"]);
        paths.extend(std::env::split_paths(&self.path));
        let paths = std::env::join_paths(paths).expect("folders of a cache and of PATH have no colon");
        let libraries = self.libraries();
        let private = libraries.join("slurm-wlm");
        let libraries = std::env::join_paths([libraries, private]).expect("folders of a cache have no colon");
        let mut command = Command::new(resolve(program, &paths));
        command.env("PATH", &paths).env("LD_LIBRARY_PATH", libraries);
        command
    }
}

/// `Command` looks for programs on our path, not on the command's: look here. What is not found is left to fail there.
fn resolve(program: &str, paths: &OsString) -> PathBuf {
    let found = std::env::split_paths(paths).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| program.into())
}

/// A program that runs beside us until this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

impl Daemon {
    /// Starts it with its output in `folder`.
    pub(crate) fn start(command: &Command, name: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut command = bound_to_us(command);
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, stop: Signal::TERM })
    }

    /// Ends it with this signal in place of TERM.
    pub(crate) fn stopped_by(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When it ends before that, or takes too long: with what it complained of.
    pub(crate) fn until(mut self, mut ready: impl FnMut() -> bool) -> anyhow::Result<Self> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.last_words());
            }
            ensure!(start.elapsed() < PATIENCE, "{} is not ready in time: {}", self.name, self.last_words());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(self)
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn last_words(&self) -> String {
        complaint(&std::fs::read_to_string(&self.log).unwrap_or_default()).to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        // Without success it has ended already, which the wait below sees.
        kill_process(pid, self.stop).ok();
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                eprintln!("{} does not end, it is killed", self.name);
                kill_process(pid, Signal::KILL).ok();
                self.child.wait().ok();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The same command, ended by TERM should this process die without ending it.
pub(crate) fn bound_to_us(command: &Command) -> Command {
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "TERM"]).arg(command.get_program()).args(command.get_args());
    bound.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bound
}

/// The line that most likely tells what is wrong: the last that speaks of an error, or the last.
fn complaint(text: &str) -> &str {
    let error = text.lines().rfind(|line| line.to_ascii_lowercase().contains("error"));
    error.or_else(|| text.lines().next_back()).unwrap_or("it said nothing")
}

/// Runs a command to its end.
///
/// # Errors
/// When it does not succeed: with what it complained of.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let reason = complaint(if errors.is_empty() { &text } else { &errors });
        let how = output.status.code().map_or_else(
            || format!("signal {}", output.status.signal().unwrap_or_default()),
            |code| format!("exit code {code}"),
        );
        bail!("{name} ended with {how}: {reason}");
    }
    Ok(text)
}

/// A TCP port of the loopback address that is free now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
