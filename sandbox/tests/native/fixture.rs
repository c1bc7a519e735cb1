//! A driver with one attempt, and what tests ask of it.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use strum::IntoEnumIterator as _;
use windlass_launcher::record::{self, SupervisorRecord};
use windlass_sandbox::{
    DEFAULT_UIDS, Deadline, DiskQuota, Driver, Error, Exit, Identity, Lease, LimitName, Native,
    SandboxConfig, Stream, UnitId, UnitSpec, Workspace,
};

/// The lease of an attempt: longer than any test takes, also in an emulated machine.
const LEASE: Duration = Duration::from_secs(1200);

/// The program that can become the launcher.
pub(crate) fn program() -> PathBuf {
    setting("WINDLASS_TEST_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_windlass-sandbox")), PathBuf::from)
}

/// What was told to this run of the suite.
pub(crate) fn setting(name: &str) -> Option<std::ffi::OsString> {
    #[expect(clippy::disallowed_methods, reason = "who runs the suite elsewhere tells it what is there")]
    std::env::var_os(name)
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    Identity::caller().uid == 0
}

/// A user that exists on no host and owns nothing.
const ORDINARY_USER: u32 = 54_321;

/// Runs those tests of this suite that `selection` names once more as an ordinary user, if it runs as root.
pub(crate) fn suite_as_ordinary_user(selection: &[&str]) {
    if !is_root() {
        // It is running as one already.
        return;
    }
    // The user may not reach the folder of the build.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (from, to) in [(std::env::current_exe().unwrap(), "suite"), (program(), "program")] {
        fs::copy(from, dir.path().join(to)).unwrap();
        fs::set_permissions(dir.path().join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let home = dir.path().join("tmp");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(ORDINARY_USER), Some(ORDINARY_USER)).unwrap();
    let mut suite = Command::new(dir.path().join("suite"));
    suite
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("TMPDIR", &home)
        .env("WINDLASS_TEST_PROGRAM", dir.path().join("program"))
        .uid(ORDINARY_USER)
        .gid(ORDINARY_USER);
    run_suite(&mut suite, selection);
}

/// Runs those tests of this suite that `selection` names once more as root without these capabilities, as in a container that
/// keeps them.
pub(crate) fn suite_without_capabilities(capabilities: &[&str], selection: &[&str]) {
    let without: Vec<String> = capabilities.iter().map(|name| format!("-{name}")).collect();
    let mut suite = Command::new("setpriv");
    suite.args(["--bounding-set", &without.join(",")]).arg(std::env::current_exe().unwrap());
    run_suite(&mut suite, selection);
}

fn run_suite(suite: &mut Command, selection: &[&str]) {
    let output = suite
        .args(["--test-threads=2", "--nocapture"])
        .args(selection)
        .current_dir("/")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", suite.get_program().display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("test result: ok.") && !stdout.contains(" 0 passed"), "{stdout}");
}

/// What came of a unit.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Asserts that the program ran well; gives what it printed.
    #[track_caller]
    pub(crate) fn ok(&self) -> String {
        assert!(
            self.exit.succeeded(),
            "{:?}\nstdout: {}\nstderr: {}",
            self.exit,
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr)
        );
        self.text()
    }
}

/// A driver, a workspace and a lease.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) native: Native,
    pub(crate) identity: Identity,
    pub(crate) workspace: Workspace,
    pub(crate) lease: Lease,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut SandboxConfig)) -> Self {
        Self::below(&std::env::temp_dir(), None, change).await
    }

    /// A fixture whose workspace has a quota, in a folder of the file system that holds `root`.
    pub(crate) async fn limited(root: &Path, quota: DiskQuota) -> Self {
        static FIXTURES: AtomicU32 = AtomicU32::new(0);
        // Projects are numbered by user, and several fixtures share a file system.
        let own = FIXTURES.fetch_add(1, Ordering::Relaxed) % 30;
        let number = std::process::id() % 1000 * 60 + own * 2;
        let first = DEFAULT_UIDS.start() + number;
        Self::below(root, Some(quota), |config| config.uid_range = first..=first + 1).await
    }

    async fn below(root: &Path, quota: Option<DiskQuota>, change: impl FnOnce(&mut SandboxConfig)) -> Self {
        let dir = tempfile::tempdir_in(root).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let native = Native::open(config).await.unwrap();
        if let Some(version) = setting("WINDLASS_TEST_CGROUP")
            && native.config().cgroup_parent.is_none()
        {
            // A machine that was booted to enforce everything: no test may take the lack of something for granted.
            let features = native.features();
            assert_eq!(features.cgroup.to_string(), version.to_string_lossy());
            // Io needs a block device, which not every test is on; `windlass doctor` is asked about it there.
            let lacks = |limit: &LimitName| *limit != LimitName::Io && !features.limits.contains(limit);
            assert_eq!(LimitName::iter().find(lacks), None, "{features:?}");
        }
        let identity = native.identities().acquire("attempt-1").unwrap();
        // As the agent keeps them: no other user of the host gets through, not even the job's own.
        let workspaces = dir.path().join("workspaces");
        fs::create_dir(&workspaces).unwrap();
        fs::set_permissions(&workspaces, fs::Permissions::from_mode(0o700)).unwrap();
        let workspace = Workspace::create_limited(&workspaces, "attempt-1", identity, quota).unwrap();
        let lease = Lease::create(dir.path().join("lease"), Deadline::after(LEASE)).unwrap();
        Self { dir, native, identity, workspace, lease }
    }

    /// A unit that runs `command`.
    pub(crate) fn unit(&self, name: &str, command: &[&str]) -> UnitSpec {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let id = UnitId::new(name).unwrap();
        let path = self.workspace.path().to_owned();
        UnitSpec::new(id, command, path, self.identity, self.lease.path().to_owned())
    }

    /// Whether this host enforces a limit; where it does not, [`Driver::prepare`] refuses it, which has its own test.
    pub(crate) fn enforces(&self, limit: LimitName) -> bool {
        self.native.features().limits.contains(&limit)
    }

    /// The plan of a unit, as the supervisor reads it.
    pub(crate) fn plan(&self, id: &UnitId) -> serde_json::Value {
        let path = self.dir.path().join("state/units").join(id.as_str()).join(record::PLAN);
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The pids of supervisors: of the units that run, and of the spare.
    pub(crate) fn children_of_launcher(&self) -> Vec<i32> {
        let launcher = self.native.spawner_pid();
        let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
        // Others make what sandboxes begin with, and end.
        let is_supervisor = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "windlass-unit\n")
        };
        let children = children.unwrap_or_default();
        children.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).filter(is_supervisor).collect()
    }

    /// The spare of a driver that runs no unit, once the supervisors of `units` are gone.
    pub(crate) async fn spare(&self, units: &[&UnitId]) -> i32 {
        let ended: Vec<i32> = units.iter().map(|id| self.supervisor(id)).collect();
        let found = Cell::new(0);
        let alone = |children: &[i32]| match children {
            [spare] if !ended.contains(spare) => {
                found.set(*spare);
                true
            }
            _ => false,
        };
        eventually("a spare", || alone(&self.children_of_launcher())).await;
        found.get()
    }

    /// The supervisor of a unit that was started.
    pub(crate) fn supervisor(&self, id: &UnitId) -> i32 {
        let path = self.dir.path().join("state/units").join(id.as_str()).join(record::SUPERVISOR);
        let record: SupervisorRecord = record::read(&path).unwrap().unwrap();
        record.supervisor.pid
    }

    /// Runs a unit to its end.
    pub(crate) async fn run(&self, unit: &UnitSpec) -> Outcome {
        self.native.prepare(unit).await.unwrap();
        self.native.start(&unit.id).await.unwrap();
        self.finish(&unit.id).await
    }

    /// Waits for a unit's end and reads its output.
    pub(crate) async fn finish(&self, id: &UnitId) -> Outcome {
        let exit = self.native.wait(id).await.unwrap();
        let (stdout, stderr) = read_all(&self.native, id).await;
        Outcome { exit, stdout, stderr }
    }

    /// Runs a bash script.
    pub(crate) async fn bash(&self, script: &str) -> Outcome {
        self.run(&self.unit("script", &["bash", "-c", script])).await
    }

    /// Runs a Python program.
    pub(crate) async fn python(&self, program: &str) -> Outcome {
        self.run(&self.unit("python", &["python3", "-c", program])).await
    }

    /// The error that preparing or starting gives.
    pub(crate) async fn refusal(&self, unit: &UnitSpec) -> Error {
        if let Err(error) = self.native.prepare(unit).await {
            return error;
        }
        self.native.start(&unit.id).await.unwrap_err()
    }
}

/// The configuration of a driver below `dir`.
pub(crate) fn config(dir: &Path) -> SandboxConfig {
    let mut config = SandboxConfig::new(dir.join("state"));
    config.launcher = program();
    config
}

/// A driver for a folder that another one of this process has just let go.
pub(crate) async fn reopened(config: SandboxConfig) -> Native {
    for _ in 0..600 {
        match Native::open(config.clone()).await {
            Err(Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the folder is in use for 30 s");
}

/// Both streams from the beginning.
pub(crate) async fn read_all(native: &Native, id: &UnitId) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut reader = native.output(id, 0);
    while let Some(chunk) = reader.next().await.unwrap() {
        let stream = match chunk.stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        assert_eq!(chunk.offset, stream.len() as u64);
        stream.extend_from_slice(&chunk.bytes);
    }
    (stdout, stderr)
}

/// Host processes whose command line contains `marker`.
pub(crate) fn processes_with(marker: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != std::process::id() && line.contains(marker) {
            found.push(pid);
        }
    }
    found
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        for _ in 0..600 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{place}: not within 30 s: {what}");
    }
}

/// Waits until the unit has printed `expected` on standard output.
pub(crate) async fn printed(native: &Native, id: &UnitId, expected: &str) {
    let mut reader = native.output(id, 0);
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(expected) {
        let chunk = tokio::time::timeout(Duration::from_secs(30), reader.next()).await;
        let chunk = chunk.expect("printed in time").unwrap();
        seen.extend(chunk.unwrap_or_else(|| panic!("ended after {seen:?}")).bytes);
    }
}
