//! One hostile job, what has to come of it, and the look at what it has left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass_sandbox::{Driver, EndReason, Error, Limit, LimitName, UnitSpec, Workspace};

use crate::fixture::{Fixture, Outcome, eventually, is_root};

/// No case takes longer, also in an emulated machine.
const BOUND: Duration = Duration::from_secs(400);
/// How many attempts there were in this process: their names must be unique on the host.
static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
/// The name of the variable by which the processes of a case are known.
const MARK: &str = "WINDLASS_HOSTILE";

/// For Python: `call` makes a system call by number, and `attempt` anything; both print what came of it.
pub(crate) const PRELUDE: &str = r#"
import ctypes, errno, os, signal, socket, stat, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(name, action):
    try:
        action()
        print(name, "ok", flush=True)
    except OSError as error:
        # By which of these it is refused depends on what the kernel looks at first.
        refused = error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
        print(name, "refused" if refused else errno.errorcode[error.errno], flush=True)
def write(path, text="0"):
    with open(path, "w") as file: file.write(text)
"#;

/// What a case is changed by before it runs.
type Change = Box<dyn Fn(&mut UnitSpec, &Fixture)>;

/// A hostile job.
pub(crate) struct Case {
    name: &'static str,
    command: Vec<String>,
    change: Change,
    expected: Expected,
    /// How it ends where no cgroup keeps its limit.
    without_cgroup: Option<EndReason>,
    /// The limit that a host without cgroups refuses.
    needs: Option<LimitName>,
}

/// What has to come of a case.
enum Expected {
    /// It ends well and has printed this.
    Prints(String),
    /// It ends so.
    Ends(EndReason),
}

/// A case in bash.
pub(crate) fn bash(name: &'static str, script: &str) -> Case {
    Case::new(name, &["bash", "-c", script])
}

/// A case in Python, after [`PRELUDE`].
pub(crate) fn python(name: &'static str, program: &str) -> Case {
    Case::new(name, &["python3", "-c", &format!("{PRELUDE}{program}")])
}

impl Case {
    fn new(name: &'static str, command: &[&str]) -> Self {
        Self {
            name,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            change: Box::new(|_, _| {}),
            expected: Expected::Prints(String::new()),
            without_cgroup: None,
            needs: None,
        }
    }

    /// With this changed.
    pub(crate) fn with(self, change: impl Fn(&mut UnitSpec) + 'static) -> Self {
        self.knowing(move |unit, _| change(unit))
    }

    /// With this changed by one who knows the host's side.
    pub(crate) fn knowing(self, change: impl Fn(&mut UnitSpec, &Fixture) + 'static) -> Self {
        Self { change: Box::new(change), ..self }
    }

    /// It ends well and prints this.
    pub(crate) fn prints(self, text: impl Into<String>) -> Self {
        Self { expected: Expected::Prints(text.into()), ..self }
    }

    /// It ends so.
    pub(crate) fn ends(self, reason: EndReason) -> Self {
        Self { expected: Expected::Ends(reason), ..self }
    }

    /// It ends otherwise where no cgroup keeps its limit.
    pub(crate) fn without_cgroup(self, reason: EndReason) -> Self {
        Self { without_cgroup: Some(reason), ..self }
    }

    /// It names a limit that a host without cgroups refuses.
    pub(crate) fn needs(self, limit: LimitName) -> Self {
        Self { needs: Some(limit), ..self }
    }
}

/// Runs cases one after the other on one node.
pub(crate) async fn run(cases: impl IntoIterator<Item = Case>) {
    let node = Node::new().await;
    for case in cases {
        node.run(case).await;
    }
}

/// A host with one driver, on which attempts come and go.
pub(crate) struct Node {
    pub(crate) fixture: Fixture,
}

/// An attempt that runs.
pub(crate) struct Attempt<'a> {
    pub(crate) node: &'a Node,
    pub(crate) unit: UnitSpec,
    pub(crate) workspace: Workspace,
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self { fixture: Fixture::new().await }
    }

    /// Runs a case as an attempt of its own, then looks at what is left, and runs a job that is none of its kind.
    pub(crate) async fn run(&self, case: Case) -> Option<Outcome> {
        self.run_among(case, 0, async |_| {}).await
    }

    /// As [`Node::run`], among units of others that go on, with something that the host does once the case was started.
    pub(crate) async fn run_among(
        &self,
        case: Case,
        others: usize,
        beside: impl AsyncFnOnce(&Attempt<'_>),
    ) -> Option<Outcome> {
        eventually("a spare", || self.fixture.children_of_launcher().len() == 1 + others).await;
        let before = Holdings::of(self);
        let number = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let id = format!("hostile-{}-{number}", std::process::id());
        let identities = self.fixture.native.identities();
        let identity = identities.acquire(&id).unwrap();
        let workspaces = self.workspaces();
        let workspace = Workspace::create(&workspaces, &id, identity).unwrap();
        let mut unit = self.fixture.unit(&id, &[]);
        (unit.command, unit.identity, unit.workspace) =
            (case.command.clone(), identity, workspace.path().to_owned());
        unit.env.insert(MARK.to_owned(), id.clone());
        unit.timeout = Some(BOUND);
        (case.change)(&mut unit, &self.fixture);
        let attempt = Attempt { node: self, unit, workspace };
        let outcome = attempt.finish(&case, beside).await;
        self.fixture.native.cleanup(&attempt.unit.id).await.unwrap();
        drop(attempt);
        Workspace::remove(&workspaces, &id).unwrap();
        identities.release(&id).unwrap();

        self.expect_the_next_job_to_run(&format!("next-{id}"), case.name).await;
        // The supervisor takes the mounts apart after it has told the end.
        let held = self.settled_as(&before).await;
        assert!(held.is_no_more_than(&before), "after {}: {held:?}\nbefore: {before:?}", case.name);
        assert_eq!(traces_of(&id), Vec::<String>::new(), "{}", case.name);
        outcome
    }

    /// What is held once it is as it was before, or after a long wait for that.
    async fn settled_as(&self, before: &Holdings) -> Holdings {
        for _ in 0..600 {
            let held = Holdings::of(self);
            if held.is_no_more_than(before) {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Holdings::of(self)
    }

    fn workspaces(&self) -> PathBuf {
        self.fixture.dir.path().join("workspaces")
    }

    async fn expect_the_next_job_to_run(&self, id: &str, after: &str) {
        let mut next = self.fixture.unit(id, &["sh", "-c", "echo well >file && cat file && rm file"]);
        next.limits.memory_bytes = Some(Limit::default_value(64 << 20));
        next.limits.pids = Some(Limit::default_value(16));
        next.timeout = Some(BOUND);
        let outcome = self.fixture.run(&next).await;
        assert_eq!(outcome.ok(), "well\n", "after {after}");
        self.fixture.native.cleanup(&next.id).await.unwrap();
    }
}

impl Attempt<'_> {
    /// Runs the case; gives what came of it, `None` if it was refused as it has to be.
    async fn finish(&self, case: &Case, beside: impl AsyncFnOnce(&Self)) -> Option<Outcome> {
        let native = &self.node.fixture.native;
        let enforced = |limit: LimitName| self.node.fixture.enforces(limit);
        if let Some(limit) = case.needs.filter(|limit| !enforced(*limit)) {
            assert!(!is_root(), "root enforces {limit}");
            let error = native.prepare(&self.unit).await.unwrap_err();
            assert!(
                matches!(&error, Error::Unenforceable { limit: named, reason, fix }
                    if *named == limit && !reason.is_empty() && !fix.is_empty()),
                "{}: {error}",
                case.name
            );
            return None;
        }
        let prepared = native.prepare(&self.unit).await.unwrap();
        native.start(&self.unit.id).await.unwrap();
        beside(self).await;
        let outcome = self.node.fixture.finish(&self.unit.id).await;
        let name = case.name;
        let proof = outcome.exit.proof.as_ref();
        assert!(proof.is_some_and(windlass_sandbox::KillProof::holds), "{name}: {outcome:?}");
        assert_eq!(outcome.exit.teardown, Vec::<String>::new(), "{name}");
        match &case.expected {
            Expected::Prints(text) => {
                assert_eq!(
                    (outcome.exit.reason, outcome.exit.code),
                    (EndReason::Exited, Some(0)),
                    "{name}: {outcome:?}"
                );
                assert_eq!(outcome.text(), *text, "{name}: {}", String::from_utf8_lossy(&outcome.stderr));
            }
            Expected::Ends(reason) => {
                let by_cgroup = prepared.isolation.iter().any(|word| word.contains("cgroup v"));
                let reason = case.without_cgroup.filter(|_| !by_cgroup).unwrap_or(*reason);
                assert_eq!(outcome.exit.reason, reason, "{name}: {outcome:?}");
            }
        }
        Some(outcome)
    }
}

/// What a node holds: supervisors, files, mounts and descriptors below its folder, and the descriptors of its launcher.
#[derive(Debug)]
struct Holdings {
    supervisors: usize,
    files: BTreeSet<PathBuf>,
    mounts: Vec<String>,
    descriptors: Vec<PathBuf>,
    of_launcher: usize,
}

impl Holdings {
    /// Whether nothing has been added. The launcher may have had one descriptor more before: one end of its line to the spare,
    /// which it closes a moment after the spare is there.
    fn is_no_more_than(&self, before: &Self) -> bool {
        let Self { supervisors, files, mounts, descriptors, of_launcher } = before;
        (self.supervisors, &self.files, &self.mounts, &self.descriptors)
            == (*supervisors, files, mounts, descriptors)
            && self.of_launcher <= *of_launcher
    }

    fn of(node: &Node) -> Self {
        let dir = node.fixture.dir.path();
        let mut files = BTreeSet::new();
        list(dir, &mut files);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = dir.to_str().unwrap();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        // One of them is that of the listing, and another test may close its own meanwhile.
        let descriptors = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let mut descriptors: Vec<PathBuf> = descriptors.filter(|target| target.starts_with(dir)).collect();
        descriptors.sort();
        let launcher = format!("/proc/{}/fd", node.fixture.native.spawner_pid());
        Self {
            supervisors: node.fixture.children_of_launcher().len(),
            files,
            mounts: mounts.lines().filter(|line| line.contains(below)).map(str::to_owned).collect(),
            descriptors,
            of_launcher: fs::read_dir(launcher).unwrap().filter(is_not_a_network).count(),
        }
    }
}

/// Whether it is another descriptor than that of a network that waits for the next unit, of which there may be a few.
fn is_not_a_network(descriptor: &std::io::Result<fs::DirEntry>) -> bool {
    let target = descriptor.as_ref().map(|entry| fs::read_link(entry.path()));
    !matches!(target, Ok(Ok(target)) if target.to_string_lossy().starts_with("net:"))
}

/// All files below a folder.
fn list(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    // A folder of a unit may go while it is listed.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), found);
        }
        found.insert(entry.path());
    }
}

/// Processes, cgroups, sockets and files of the host that bear the name of an attempt.
fn traces_of(id: &str) -> Vec<String> {
    let mut traces = Vec::new();
    let mark = format!("{MARK}={id}\0");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            traces.push(entry.path().display().to_string());
        }
    }
    let mut below = BTreeSet::new();
    for place in ["/sys/fs/cgroup", "/dev/shm", "/tmp"] {
        list(Path::new(place), &mut below);
    }
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    traces.extend(below.iter().map(|path| path.display().to_string()).filter(|path| path.contains(id)));
    traces.extend(sockets.lines().filter(|line| line.contains(id)).map(str::to_owned));
    traces
}
