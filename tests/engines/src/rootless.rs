//! A Podman without root, for tests that run as root: the service of a user that exists on no host and owns nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use windlass_test_process::{Guard, on_path, own, wait_for};

use crate::podman_settings;

/// A user, and a Podman of its own. Ends with what it has left when it is dropped.
#[derive(Debug)]
pub struct Rootless {
    user: u32,
    folder: PathBuf,
    service: Child,
    guard: Option<Guard>,
}

impl Rootless {
    /// Starts the service of a user by number, whose further users, for the namespaces of containers, begin with `further`. Tests that run
    /// at the same time have different ones.
    ///
    /// # Panics
    /// Where the machine lacks what it takes, or this is not root.
    pub fn start(user: u32, further: u32) -> Self {
        assert!(on_path("newuidmap").is_some(), "uidmap is installed");
        assert!(on_path("slirp4netns").is_some(), "slirp4netns is installed");
        let folder = std::env::temp_dir().join(format!("wl-rootless-{user}-{}", std::process::id()));
        fs::create_dir(&folder).expect("the temporary folder can be written");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let end = format!(
            "for pid in $(cat pids 2>/dev/null); do kill -TERM -- \"-$pid\" 2>/dev/null; done\n\
             for pid in $(pgrep -u {user}); do kill -KILL \"$pid\" 2>/dev/null; done\n"
        );
        let guard = Some(own(&folder, &end));
        for name in ["home", "run", "tmp", "podman", "conf"] {
            fs::create_dir(folder.join(name)).expect("the folder can be written");
            chown(folder.join(name), Some(user), Some(user)).expect("this is root");
        }
        let service = serve(&folder, user, further);
        fs::write(folder.join("pids"), format!("{}\n", service.id())).expect("the folder can be written");
        let rootless = Self { user, folder, service, guard };
        let socket = rootless.socket();
        wait_for("Podman's socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        rootless
    }

    /// A folder that the user can reach, but not write to.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the service listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/podman.sock")
    }

    /// Makes a folder of the user's.
    ///
    /// # Panics
    /// Where there is one of this name.
    pub fn own_folder(&self, name: &str) -> PathBuf {
        let made = self.folder.join(name);
        fs::create_dir(&made).expect("there is none of this name");
        chown(&made, Some(self.user), Some(self.user)).expect("this is root");
        made
    }

    /// Copies a program to where the user can run it.
    ///
    /// # Panics
    /// Where it cannot be copied.
    pub fn program(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.folder.join(name);
        fs::copy(from, &to).expect("the program can be copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is ours");
        to
    }

    /// A command of the user, which knows nothing of the environment of this process.
    pub fn command(&self, program: &Path) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("TMPDIR", self.folder.join("tmp"))
            .env("HOME", self.folder.join("home"))
            .env("XDG_RUNTIME_DIR", self.folder.join("run"))
            .current_dir("/")
            .uid(self.user)
            .gid(self.user);
        command
    }

    /// What below a folder belongs to root: nothing, where only the user was at work.
    ///
    /// # Panics
    /// Where the folder cannot be read.
    pub fn of_root(&self, below: &Path) -> Vec<String> {
        let found = crate::run(Command::new("find").arg(below).args(["-uid", "0"]));
        found.lines().map(str::to_owned).collect()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.service.wait().expect("it is our child, and nobody else waits for it");
    }
}

/// The host's accounts stay as they are: the user is known in a mount namespace of the service alone.
fn serve(folder: &Path, user: u32, further: u32) -> Child {
    let accounts = |name: &str, line: String| {
        let known = fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        fs::write(folder.join(name), format!("{known}{line}\n")).expect("the folder can be written");
    };
    accounts("passwd", format!("wl-test:x:{user}:{user}::{}:/bin/sh", folder.join("home").display()));
    accounts("group", format!("wl-test:x:{user}:"));
    accounts("subuid", format!("wl-test:{further}:65536"));
    accounts("subgid", format!("wl-test:{further}:65536"));
    let settings = podman_settings(folder);
    let script = format!(
        "set -e; cd {0}; for name in passwd group subuid subgid; do touch /etc/$name; mount --bind $name /etc/$name; done; \
         cd home; exec setpriv --reuid {user} --regid {user} --clear-groups podman system service --time 0 \
         unix://{0}/run/podman.sock",
        folder.display(),
    );
    let log = fs::File::create(folder.join("log")).expect("the folder can be written");
    Command::new("setsid")
        .args(["unshare", "--mount", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", folder.join("home"))
        .env("XDG_RUNTIME_DIR", folder.join("run"))
        .env("TMPDIR", folder.join("tmp"))
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file can be shared"))
        .stderr(log)
        .spawn()
        .expect("setsid is installed")
}
