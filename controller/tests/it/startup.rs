//! What starts, restarts and damage do to a state folder, by a whole controller.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_controller::{Controller, ControllerArgs, Error};

/// Starts a controller on this folder. The database of one that has just stopped in this process is let go of a moment
/// later, so that the lock is waited for.
async fn start(args: &ControllerArgs, stop: &CancellationToken) -> Result<Controller, Error> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Controller::start(args.clone(), stop.clone()).await {
            Err(Error::Store(windlass_store::Error::Locked { .. })) if Instant::now() < deadline => {
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
