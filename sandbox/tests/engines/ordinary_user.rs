//! The same suite once more as an ordinary user with a Podman without root, if it runs as root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use windlass_test_process::{on_path, own, wait_for};

use crate::world::program;
use windlass_test_engines::{self as services, IMAGE, run};

/// A user that exists on no host and owns nothing.
const USER: u32 = 54_322;
/// Its further users, for the namespaces of containers.
const FURTHER: u32 = 700_000;

/// Ends the service of a folder, and what it has left.
const END: &str = r#"
for pid in $(cat pids 2>/dev/null); do kill -TERM -- "-$pid" 2>/dev/null; done
for pid in $(pgrep -u 54322); do kill -KILL "$pid" 2>/dev/null; done
"#;

#[test]
fn the_whole_suite_passes_as_an_ordinary_user_with_podman_without_root() {
    if !rustix::process::geteuid().is_root() {
        // It is running as one already.
        return;
    }
    assert!(on_path("newuidmap").is_some(), "uidmap is installed");
    assert!(on_path("slirp4netns").is_some(), "slirp4netns is installed");
    // The user may not reach the folder of the build.
    let dir = tempfile::Builder::new().prefix("wl-rootless-").tempdir().unwrap().keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let guard = own(&dir, END);
    for (from, to) in [(std::env::current_exe().unwrap(), "suite"), (program(), "program")] {
        fs::copy(from, dir.join(to)).unwrap();
        fs::set_permissions(dir.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["home", "run", "tmp", "podman", "conf"] {
        fs::create_dir(dir.join(name)).unwrap();
        chown(dir.join(name), Some(USER), Some(USER)).unwrap();
    }
    // The host's accounts stay as they are: the user is known in a mount namespace of the service alone.
    let accounts = |name: &str, line: String| {
        let known = fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        fs::write(dir.join(name), format!("{known}{line}\n")).unwrap();
    };
    accounts("passwd", format!("wl-test:x:{USER}:{USER}::{}:/bin/sh", dir.join("home").display()));
    accounts("group", format!("wl-test:x:{USER}:"));
    accounts("subuid", format!("wl-test:{FURTHER}:65536"));
    accounts("subgid", format!("wl-test:{FURTHER}:65536"));
    let settings = services::podman_settings(&dir);
    let socket = dir.join("run/podman.sock");
    let script = format!(
        "set -e; cd {0}; for name in passwd group subuid subgid; do touch /etc/$name; mount --bind $name /etc/$name; done; \
         cd home; exec setpriv --reuid {USER} --regid {USER} --clear-groups podman system service --time 0 unix://{1}",
        dir.display(),
        socket.display()
    );
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut service = Command::new("setsid")
        .args(["unshare", "--mount", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", dir.join("home"))
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env("TMPDIR", dir.join("tmp"))
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    fs::write(dir.join("pids"), format!("{}\n", service.id())).unwrap();
    wait_for("Podman's socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    services::make_images(&dir);
    for (archive, name) in [("image.tar", IMAGE), ("bare.tar", services::BARE)] {
        services::import_into_podman(&socket, &dir.join(archive), name);
    }
    let mut suite = Command::new(dir.join("suite"));
    suite
        .args(["--test-threads=2", "--nocapture"])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("TMPDIR", dir.join("tmp"))
        .env("HOME", dir.join("home"))
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env("WINDLASS_TEST_PROGRAM", dir.join("program"))
        .env("WINDLASS_TEST_PODMAN", &socket)
        .current_dir("/")
        .uid(USER)
        .gid(USER);
    let told = run(&mut suite);
    assert!(told.contains("test result: ok.") && !told.contains(" 0 passed"), "{told}");
    // Nothing that it has made is root's.
    let foreign = Command::new("find").arg(dir.join("tmp")).args(["-uid", "0"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&foreign.stdout), "", "files of root");
    drop(guard);
    service.wait().unwrap();
}
