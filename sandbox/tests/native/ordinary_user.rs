//! The same suite once more as an ordinary user, if it runs as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::fixture::{is_root, program};

/// A user that exists on no host and owns nothing.
const USER: u32 = 54_321;

#[test]
fn the_whole_suite_passes_as_an_ordinary_user() {
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
    chown(&home, Some(USER), Some(USER)).unwrap();
    // One test counts the descriptors of its process, so it must have one of its own.
    let alone = "leftovers::fifty_runs_leave_nothing";
    for selection in [["--skip", alone], ["--exact", alone]] {
        let output = Command::new(dir.path().join("suite"))
            .args(["--test-threads=2", "--nocapture"])
            .args(selection)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("TMPDIR", &home)
            .env("WINDLASS_TEST_PROGRAM", dir.path().join("program"))
            .current_dir("/")
            .uid(USER)
            .gid(USER)
            .output()
            .unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stdout}\n{stderr}");
        assert!(stdout.contains("test result: ok.") && !stdout.contains(" 0 passed"), "{stdout}");
    }
}
