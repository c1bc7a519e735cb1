//! What controllers of one database share: an identity and bodies that were made apart from them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use windlass_controller::clock::{Clock as _, ManualClock, RandomIds, StoreClock};
use windlass_controller::error::chain;
use windlass_controller::{Controller, ControllerArgs, identity};
use windlass_store::{Store, StoreOptions, StoreUrl};
use windlass_test_postgres::Server;

use crate::startup::start;

/// A folder with an identity, and the settings that name it.
struct Shared {
    folder: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        identity::create(&folder.path().join("identity"), &RandomIds::from_os()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn token(&self) -> String {
        fs::read_to_string(self.path("identity/admin.token")).unwrap().trim().to_owned()
    }

    /// A controller with a state folder of this name.
    fn args(&self, state: &str) -> ControllerArgs {
        ControllerArgs {
            authority: Some(self.path("identity")),
            admin_token_file: Some(self.path("identity/admin.token")),
            bodies: Some(format!("file://{}", self.path("shared/bodies").display()).parse().unwrap()),
            ..ControllerArgs::new(self.path(state), ([127, 0, 0, 1], 0).into())
        }
    }
}

async fn stop(controller: Controller, stop: &CancellationToken) {
    stop.cancel();
    controller.stopped().await.unwrap();
}

/// Why a controller does not start.
async fn refused(args: &ControllerArgs) -> String {
    match start(args, &CancellationToken::new()).await {
        Ok(_) => panic!("it started"),
        Err(error) => chain(&error),
    }
}

/// A client that trusts the authority of a controller and has its token.
async fn status(controller: &Controller, ca: &Path, token: &str) -> u16 {
    rustls::crypto::ring::default_provider().install_default().ok();
    let ca = reqwest::Certificate::from_pem(&fs::read(ca).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let url = format!("{}/v1/queues", controller.url());
    client.get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn controllers_of_one_database_have_one_identity_and_one_place_for_bodies() {
    let shared = Shared::new();
    let database = Server::shared().database();
    let args =
        |state: &str| ControllerArgs { store: Some(database.url().parse().unwrap()), ..shared.args(state) };
    let stopping = CancellationToken::new();
    let first = start(&args("first"), &stopping).await.unwrap();
    let second = start(&args("second"), &stopping).await.unwrap();
    let ca = shared.path("identity/ca.crt");
    for controller in [&first, &second] {
        assert_eq!(status(controller, &ca, &shared.token()).await, 200);
        assert_eq!(controller.ca_file(), ca);
    }
    assert!(shared.path("shared/bodies").is_dir());
    // Neither has anything that would be missed.
    for state in ["first", "second"] {
        for name in ["pki", "bodies", "admin.token"] {
            assert!(!shared.path(state).join(name).exists(), "{state}/{name}");
        }
    }
    stop(first, &stopping).await;
    second.stopped().await.unwrap();

    // A state folder that is gone is made again; a place for bodies that is gone is missed.
    fs::remove_dir_all(shared.path("first")).unwrap();
    let stopping = CancellationToken::new();
    stop(start(&args("first"), &stopping).await.unwrap(), &stopping).await;
    fs::remove_dir_all(shared.path("shared")).unwrap();
    let said = refused(&args("first")).await;
    assert!(said.contains("shared/bodies is missing") && said.contains("mount it"), "{said}");
    // Without the identity it is another controller.
    let own = ControllerArgs { authority: None, ..args("third") };
    let said = refused(&own).await;
    assert!(said.contains("ca.key is missing") && said.contains("--authority"), "{said}");
}

#[tokio::test]
async fn the_admin_token_is_the_one_in_the_file_and_the_one_before_ends() {
    let shared = Shared::new();
    let file = shared.path("identity/admin.token");
    let before = shared.token();
    let stopping = CancellationToken::new();
    stop(start(&shared.args("state"), &stopping).await.unwrap(), &stopping).await;
    let token = "another-token-of-at-least-32-characters";
    fs::write(&file, format!("{token}\n")).unwrap();
    let stopping = CancellationToken::new();
    let controller = start(&shared.args("state"), &stopping).await.unwrap();
    let ca = shared.path("identity/ca.crt");
    assert_eq!(status(&controller, &ca, token).await, 200);
    assert_eq!(status(&controller, &ca, &before).await, 401);
    stop(controller, &stopping).await;
    for wrong in ["", "short", "thirty two characters with spaces in them", &"x".repeat(257)] {
        fs::write(&file, wrong).unwrap();
        let said = refused(&shared.args("state")).await;
        assert!(
            said.contains("admin.token holds no admin token") && said.contains("identity create"),
            "{said}"
        );
        assert!(wrong.is_empty() || !said.contains(wrong), "it is not shown: {said}");
    }
    fs::remove_file(&file).unwrap();
    let said = refused(&shared.args("state")).await;
    assert!(said.contains("could not read --admin-token-file"), "{said}");
}

#[test]
fn an_identity_is_never_written_over_another() {
    let shared = Shared::new();
    let again = identity::create(&shared.path("identity"), &RandomIds::from_os()).unwrap_err();
    assert!(again.to_string().contains("exists: name a folder that does not"), "{again}");
    let token = shared.token();
    assert!(token.starts_with("wlt_") && token.len() > 40, "{token}");
    for name in ["", "ca.key", "ca.crt", "admin.token"] {
        let mode = fs::metadata(shared.path("identity").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn an_authority_that_cannot_be_used_is_refused_with_its_file() {
    let shared = Shared::new();
    let stopping = CancellationToken::new();
    stop(start(&shared.args("state"), &stopping).await.unwrap(), &stopping).await;
    let other = Shared::new();
    let args = ControllerArgs { authority: Some(other.path("identity")), ..shared.args("state") };
    let said = refused(&args).await;
    assert!(said.contains("is not the authority that the nodes of this database trust"), "{said}");
    fs::write(shared.path("identity/ca.key"), "rubbish").unwrap();
    let said = refused(&shared.args("state")).await;
    assert!(said.contains("ca.key is no private key in PEM") && said.contains("--authority"), "{said}");
    let args = ControllerArgs { authority: Some(shared.path("nowhere")), ..shared.args("state") };
    assert!(refused(&args).await.contains("nowhere/ca.key"));
}

#[test]
fn a_bucket_that_cannot_be_reached_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_windlass-controller"))
        .args(["--listen", "127.0.0.1:0", "--bodies", "s3://fleet/a", "--state-dir"])
        .arg(folder.path())
        .env("AWS_ENDPOINT", format!("http://{nobody}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "s3cret")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("could not use the bucket of --bodies s3://fleet/a: "), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

/// A volume of a pod: it belongs to root and to a group of the pod, and passes that group on.
#[tokio::test]
async fn a_folder_inside_a_volume_of_root_belongs_to_the_controller() {
    const POD: u32 = 65532;
    let volume = tempfile::tempdir().unwrap();
    let state = volume.path().join("controller");
    if !rustix::process::geteuid().is_root() {
        // What only root can make; the rest is the same.
        fs::set_permissions(volume.path(), Permissions::from_mode(0o2775)).unwrap();
        let args = ControllerArgs::new(state, ([127, 0, 0, 1], 0).into());
        let stopping = CancellationToken::new();
        stop(start(&args, &stopping).await.unwrap(), &stopping).await;
        return;
    }
    std::os::unix::fs::chown(volume.path(), Some(0), Some(POD)).unwrap();
    fs::set_permissions(volume.path(), Permissions::from_mode(0o2775)).unwrap();
    let mut child = pod(&state, POD);
    wait_for_identity(&state, &mut child);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
    // A kubelet that opens everything to the group again, at the next mount.
    open_to_group(volume.path(), POD);
    let token = fs::read(state.join("admin.token")).unwrap();
    let mut child = pod(&state, POD);
    wait_for_identity(&state, &mut child);
    assert_eq!(fs::read(state.join("admin.token")).unwrap(), token);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut itself = pod(volume.path(), POD);
    let output = itself.wait().unwrap();
    assert!(!output.success(), "the volume itself belongs to root");
}

/// Starts the program as this user.
fn pod(state: &Path, user: u32) -> std::process::Child {
    std::process::Command::new("setpriv")
        .args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"])
        .arg(program_for_all())
        .arg("--state-dir")
        .arg(state)
        .args(["--listen", "127.0.0.1:0"])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// The program where every user can run it; the target folder may be closed to others.
fn program_for_all() -> PathBuf {
    static COPY: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let folder = COPY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let copy = folder.path().join("windlass-controller");
        fs::copy(env!("CARGO_BIN_EXE_windlass-controller"), &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        folder
    });
    folder.path().join("windlass-controller")
}

/// Waits until a first start, or a later one, is complete; then ends the program.
fn wait_for_identity(state: &Path, child: &mut std::process::Child) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let closed =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == 0o700);
    while !(closed(state) && state.join("admin.token").exists() && !state.join("first-start").exists()) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        assert!(std::time::Instant::now() < deadline, "it did not start");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a kubelet does to a volume with `fsGroup`.
fn open_to_group(path: &Path, group: u32) {
    std::os::unix::fs::chown(path, None, Some(group)).unwrap();
    let found = fs::metadata(path).unwrap();
    let mode = found.permissions().mode() | if found.is_dir() { 0o2070 } else { 0o060 };
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    if found.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            open_to_group(&entry.unwrap().path(), group);
        }
    }
}

#[test]
fn usage_errors_name_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let both = std::process::Command::new(env!("CARGO_BIN_EXE_windlass-controller"))
        .args(["--new-admin-token", "--admin-token-file", "a", "--state-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&both.stderr).into_owned();
    assert!(both.status.code() == Some(2) && said.contains("--admin-token-file"), "{said}");
    let place = std::process::Command::new(env!("CARGO_BIN_EXE_windlass-controller"))
        .args(["--bodies", "/srv/bodies"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&place.stderr).into_owned();
    assert!(place.status.code() == Some(2) && said.contains("write file:///FOLDER or s3://BUCKET"), "{said}");
}

#[tokio::test]
async fn the_time_is_that_of_the_databases_server_whatever_this_hosts_clock_says() {
    let open = async |url| Store::open(StoreOptions { url, read_connections: 1 }).await.unwrap();
    let own = Arc::new(ManualClock::at_millis(1_000_000));
    let database = Server::shared().database();
    let store = open(StoreUrl::Postgres(database.url().parse().unwrap())).await;
    let clock = StoreClock::of(&store, own.clone()).await.unwrap().expect("a server has a clock");
    for _ in 0..2 {
        let server = store.server_time().await.unwrap().expect("a server has a clock");
        assert!(clock.now().duration_since(server).abs() < SignedDuration::from_mins(1), "{server}");
        own.jump(SignedDuration::from_hours(10));
    }
    assert_eq!(clock.steady(), own.steady());
    let file = open(StoreUrl::SqliteMemory).await;
    assert!(StoreClock::of(&file, own).await.unwrap().is_none(), "the time is that of this host");
}
