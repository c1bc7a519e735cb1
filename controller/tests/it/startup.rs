//! What starts, restarts and damage do to a state folder, by a whole controller.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_controller::{Controller, ControllerArgs, Error, state};

/// Starts a controller on this folder. The database of one that has just stopped in this process is let go of a moment
/// later, so that the lock is waited for.
pub(crate) async fn start(args: &ControllerArgs, stop: &CancellationToken) -> Result<Controller, Error> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Controller::start(args.clone(), stop.clone()).await {
            Err(Error::State(state::Error::Store(windlass_store::Error::Locked { .. })))
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            started => return started,
        }
    }
}

/// Starts a controller on this folder and stops it in order.
async fn run(state: &Path) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let controller = start(&args(state), &stop).await?;
    stop.cancel();
    controller.stopped().await
}

fn args(state: &Path) -> ControllerArgs {
    ControllerArgs::new(state.to_owned(), ([127, 0, 0, 1], 0).into())
}

/// Everything below the folder that somebody but the owner may read, write or enter.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut open = Vec::new();
    let mut check = |path: &Path| {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            open.push(format!("{} {mode:o}", path.display()));
        }
    };
    check(folder);
    for entry in fs::read_dir(folder).unwrap() {
        check(&entry.unwrap().path());
    }
    open
}

#[tokio::test]
async fn a_state_folder_that_others_could_read_is_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    run(folder.path()).await.unwrap();
    assert_eq!(open_to_others(folder.path()), [""; 0]);
    for (name, mode) in [("", 0o755), ("windlass.db", 0o644), ("bodies", 0o755), ("pki", 0o755)] {
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(mode)).unwrap();
    }
    run(folder.path()).await.unwrap();
    assert_eq!(open_to_others(folder.path()), [""; 0]);
}

/// A folder that a first start has gone through, and the authority that it made.
async fn complete() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path()).await.unwrap();
    let authority = fs::read(folder.path().join("pki/ca.crt")).unwrap();
    (folder, authority)
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

/// Removes everything of the database; with the lock, for a controller in this process may hold it still.
fn remove_database(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("windlass.db") {
            remove(&path);
        }
    }
}

#[tokio::test]
async fn a_part_that_is_missing_is_named_and_not_made_anew() {
    for part in ["pki", "pki/ca.crt", "pki/ca.key", "bodies"] {
        let (folder, _) = complete().await;
        remove(&folder.path().join(part));
        let error = run(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("is missing"), "{part}: {error}");
        assert!(error.contains("restore it from a backup"), "{error}");
        let again = run(folder.path()).await.unwrap_err().to_string();
        assert_eq!(again, error, "a refused start leaves the folder as it was");
    }
}

#[tokio::test]
async fn a_database_that_is_gone_is_missed_and_one_that_is_empty_is_noticed() {
    let (folder, authority) = complete().await;
    let token = fs::read(folder.path().join("admin.token")).unwrap();
    remove_database(folder.path());
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("windlass.db is missing"), "{error}");
    fs::write(folder.path().join("windlass.db"), "").unwrap();
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("the database is empty"), "{error}");
    assert_eq!(fs::read(folder.path().join("pki/ca.crt")).unwrap(), authority);
    assert_eq!(fs::read(folder.path().join("admin.token")).unwrap(), token);
}

#[tokio::test]
async fn the_authority_of_another_controller_is_refused() {
    let ((folder, _), (other, _)) = (complete().await, complete().await);
    fs::copy(other.path().join("pki/ca.key"), folder.path().join("pki/ca.key")).unwrap();
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("pki/ca.key is not the key of"), "{error}");
    fs::copy(other.path().join("pki/ca.crt"), folder.path().join("pki/ca.crt")).unwrap();
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("is not the authority that the nodes of this database trust"), "{error}");
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_anywhere_goes_on() {
    // What a first start makes, in this order, each with what is there before it.
    let steps = ["windlass.db", "pki/ca.key", "pki/ca.crt", "bodies", "admin.token", "the setting"];
    let (whole, _) = complete().await;
    for (cut, step) in steps.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("first-start"), "").unwrap();
        fs::create_dir(folder.path().join("pki")).unwrap();
        for made in &steps[..cut] {
            match *made {
                "windlass.db" => fresh_database(folder.path()).await,
                "bodies" => fs::create_dir(folder.path().join("bodies")).unwrap(),
                file => drop(fs::copy(whole.path().join(file), folder.path().join(file)).unwrap()),
            }
        }
        run(folder.path()).await.unwrap_or_else(|error| panic!("before {step}: {error}"));
        assert!(!folder.path().join("first-start").exists(), "before {step}");
        let authority = fs::read(folder.path().join("pki/ca.crt")).unwrap();
        let token = fs::read(folder.path().join("admin.token")).unwrap();
        run(folder.path()).await.unwrap_or_else(|error| panic!("after {step}: {error}"));
        assert_eq!(fs::read(folder.path().join("pki/ca.crt")).unwrap(), authority, "before {step}");
        assert_eq!(fs::read(folder.path().join("admin.token")).unwrap(), token, "before {step}");
    }
    // Everything was made but for taking the mark away.
    fs::write(whole.path().join("first-start"), "").unwrap();
    run(whole.path()).await.unwrap();
    assert!(!whole.path().join("first-start").exists());
}

/// A database as it is right after it was made.
async fn fresh_database(folder: &Path) {
    let url = windlass_store::StoreUrl::Sqlite(folder.join("windlass.db"));
    let options = windlass_store::StoreOptions { url, read_connections: 1 };
    windlass_store::Store::open(options).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_first_start_that_is_killed_at_any_time_goes_on_with_one_identity() {
    let program = env!("CARGO_BIN_EXE_windlass-controller");
    for delay in (0..10).map(|n| Duration::from_millis(n * 20)) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut child = std::process::Command::new(program)
            .arg("--state-dir")
            .arg(&state)
            .args(["--listen", "127.0.0.1:0"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Where the kill falls is chance; the case above has each place.
        tokio::time::sleep(delay).await;
        child.kill().unwrap();
        child.wait().unwrap();
        run(&state).await.unwrap_or_else(|error| panic!("killed after {delay:?}: {error}"));
        run(&state).await.unwrap_or_else(|error| panic!("killed after {delay:?}, second start: {error}"));
    }
}

#[tokio::test]
async fn an_admin_token_may_be_taken_away_and_is_replaced_when_asked_for() {
    let (folder, _) = complete().await;
    let file = folder.path().join("admin.token");
    let old = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    run(folder.path()).await.unwrap();
    assert!(!file.exists(), "a token that was taken away is not made again by itself");
    fs::write(&file, "wlt_of-another-controller\n").unwrap();
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("holds no token of this database") && error.contains("--new-admin-token"),
        "{error}"
    );
    let stop = CancellationToken::new();
    let replacing = ControllerArgs { new_admin_token: true, ..args(folder.path()) };
    let controller = start(&replacing, &stop).await.unwrap();
    stop.cancel();
    controller.stopped().await.unwrap();
    let new = fs::read_to_string(&file).unwrap();
    assert_ne!(new, old);
    run(folder.path()).await.unwrap();
    fs::write(&file, old).unwrap();
    let error = run(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("holds no token of this database"), "the one before has ended: {error}");
}
