//! A workspace, a lease, and every runtime that this run of the suite has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use windlass_sandbox::engine::{
    Containers, ContainersConfig, EngineKind, ImageRequest, Pull, Reference, probe,
};
use windlass_sandbox::{
    Container, DEFAULT_UIDS, Deadline, Driver, Exit, Identities, Identity, Lease, Native, SandboxConfig,
    Stream, UnitId, UnitSpec, Workspace,
};

use windlass_test_engines::IMAGE;

/// The lease of an attempt: longer than any test takes.
const LEASE: Duration = Duration::from_secs(1200);

/// The program that can become a launcher and a supervisor.
pub(crate) fn program() -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test that runs the suite again tells it what is there"
    )]
    std::env::var_os("WINDLASS_TEST_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_windlass-sandbox")), PathBuf::from)
}

/// Where the service of an engine listens.
pub(crate) fn socket(kind: EngineKind) -> PathBuf {
    given().unwrap_or_else(|| windlass_test_engines::socket(kind.into()))
}

/// The engines that this run of the suite has.
fn kinds() -> Vec<EngineKind> {
    match given() {
        Some(_) => vec![EngineKind::Podman],
        None => vec![EngineKind::Podman, EngineKind::Docker],
    }
}

/// The socket of a Podman without root that somebody else has started.
fn given() -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test that runs the suite again tells it what is there"
    )]
    std::env::var_os("WINDLASS_TEST_PODMAN").map(PathBuf::from)
}

/// What came of a unit.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Asserts that the program ran well; gives what it printed.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert!(self.exit.succeeded(), "{self:?}");
        &self.stdout
    }
}

/// A runtime.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) kind: Option<EngineKind>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) containers: Option<Containers>,
    /// The image's id.
    pub(crate) image: String,
}

impl Runtime {
    pub(crate) fn native(native: Native) -> Self {
        Self { kind: None, driver: Arc::new(native), containers: None, image: String::new() }
    }

    pub(crate) fn name(&self) -> String {
        self.kind.map_or("native".to_owned(), |kind| kind.to_string())
    }

    /// Runs a unit to its end.
    #[track_caller]
    pub(crate) fn run(&self, unit: &UnitSpec) -> impl Future<Output = Outcome> {
        let place = std::panic::Location::caller();
        let (driver, unit) = (Arc::clone(&self.driver), unit.clone());
        async move {
            driver.prepare(&unit).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            let started = driver.start(&unit.id).await;
            started.unwrap_or_else(|error| panic!("{place}: {error}"));
            finish(&*driver, &unit.id).await
        }
    }
}

/// Waits for a unit's end and reads its output.
pub(crate) async fn finish(driver: &dyn Driver, id: &UnitId) -> Outcome {
    let exit = driver.wait(id).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut reader = driver.output(id, 0);
    while let Some(chunk) = reader.next().await.unwrap() {
        let stream = match chunk.stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        assert_eq!(chunk.offset, stream.len() as u64);
        stream.extend_from_slice(&chunk.bytes);
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { exit, stdout: text(stdout), stderr: text(stderr) }
}

/// Waits until the unit has printed `expected` on standard output.
pub(crate) async fn printed(driver: &dyn Driver, id: &UnitId, expected: &str) {
    let mut reader = driver.output(id, 0);
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(expected) {
        let chunk = tokio::time::timeout(Duration::from_secs(60), reader.next()).await;
        let chunk = chunk.expect("printed in time").unwrap();
        let ended = || panic!("ended after {:?}", String::from_utf8_lossy(&seen));
        seen.extend(chunk.unwrap_or_else(ended).bytes);
    }
}

/// Everything of one attempt.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) identity: Identity,
    pub(crate) workspace: Workspace,
    pub(crate) lease: Lease,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let identities = Identities::open(dir.path().join("identities"), DEFAULT_UIDS).unwrap();
        let identity = identities.acquire("attempt-1").unwrap();
        // As the agent keeps them: no other user of the host gets through.
        let workspaces = dir.path().join("workspaces");
        fs::create_dir(&workspaces).unwrap();
        fs::set_permissions(&workspaces, fs::Permissions::from_mode(0o700)).unwrap();
        let workspace = Workspace::create(&workspaces, "attempt-1", identity).unwrap();
        let lease = Lease::create(dir.path().join("lease"), Deadline::after(LEASE)).unwrap();
        Self { dir, identity, workspace, lease }
    }

    /// The native driver.
    pub(crate) async fn native(&self) -> Native {
        let mut config = SandboxConfig::new(self.dir.path().join("native"));
        config.launcher = program();
        Native::open(config).await.unwrap()
    }

    /// The native runtime and every engine.
    pub(crate) async fn runtimes(&self) -> Vec<Runtime> {
        let mut runtimes = vec![Runtime::native(self.native().await)];
        runtimes.extend(self.engines().await);
        runtimes
    }

    /// Every engine.
    pub(crate) async fn engines(&self) -> Vec<Runtime> {
        let mut runtimes = Vec::new();
        for kind in kinds() {
            runtimes.push(self.engine(kind, socket(kind)).await);
        }
        runtimes
    }

    /// An engine behind a socket, with its driver's state in the world's folder.
    pub(crate) async fn engine(&self, kind: EngineKind, socket: PathBuf) -> Runtime {
        let probed = probe::probe(kind, &socket).await;
        let info = probed.answer.unwrap();
        let config = ContainersConfig {
            kind,
            socket,
            state_dir: self.dir.path().join("containers").join(kind.to_string()),
            launcher: program(),
        };
        let containers = Containers::open(config, info).unwrap();
        let image = containers.ensure_image(&request(IMAGE), &mut |_| {}).await.unwrap();
        Runtime {
            kind: Some(kind),
            driver: Arc::new(containers.clone()),
            containers: Some(containers),
            image: image.id,
        }
    }

    /// A unit that runs a command.
    pub(crate) fn unit(&self, runtime: &Runtime, name: &str, command: &[&str]) -> UnitSpec {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let id = UnitId::new(format!("{name}-{}", runtime.name())).unwrap();
        let path = self.workspace.path().to_owned();
        let mut spec = UnitSpec::new(id, command, path, self.identity, self.lease.path().to_owned());
        spec.container = runtime.kind.map(|kind| Container::new(kind, runtime.image.clone(), IMAGE));
        spec
    }

    /// A unit that runs a script.
    pub(crate) fn script(&self, runtime: &Runtime, name: &str, script: &str) -> UnitSpec {
        self.unit(runtime, name, &["sh", "-c", script])
    }
}

/// An image by a name like `registry/name:tag` or `registry/name@digest`.
pub(crate) fn request(name: &str) -> ImageRequest {
    let (name, digest) = match name.split_once('@') {
        Some((name, digest)) => (name, Some(digest.to_owned())),
        None => (name, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (name, None),
    };
    let reference = Reference { name: name.to_owned(), tag, digest };
    ImageRequest { reference, pull: Pull::IfMissing, auth_file: None }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        for _ in 0..1200 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{place}: not within 60 s: {what}");
    }
}
