//! Servers of other people in tests: what starting, sharing and ending them takes, whichever they are.
//!
//! A shared server is started by the first test process that asks, and ended by a guard some seconds after the last process
//! that used it has ended in any way:
//!
//! ```text
//!  test process ──shared lock──► users.lock ◄──exclusive lock── guard ──► stops the server, removes what is left
//!        └──────exclusive lock─► start.lock (only while it looks for the server, or starts it)
//! ```
//!
//! Everything here panics with what is missing, because a machine without it must make the tests fail.

use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;

/// How long a server may take to start or to stop, recovery included, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits on users.lock as long as somebody holds it, and a little longer, because the tests of a run come one after the
/// other; then runs the given script in the folder while it holds the lock itself.
const SHARED_GUARD: &str = r#"
cd "$1" || exit 1
while :; do
    flock users.lock true
    sleep 5
    flock --nonblock users.lock sh -c "$2" && exit
done
"#;

/// Waits for the end of its input, which is that of the test process; then runs the given script in the folder.
const OWN_GUARD: &str = r#"
cat >/dev/null
cd "$1" && sh -c "$2"
rm -rf "$1"
"#;

/// A claim on a shared server; the server lives at least as long.
#[derive(Debug)]
pub struct Claim {
    /// The server's folder.
    pub folder: PathBuf,
    _users: File,
}

/// Finds the shared server in the folder of this name, or starts it; yields what was started with it.
///
/// The folder is one for each user and working copy (`of` is a path of it). `start` begins with nothing but lock files in the
/// folder, and yields what `check` is given later to tell whether the server still runs. `end` is a shell script that ends it;
/// it runs in the folder and must leave nothing of what `start` made.
///
/// # Panics
/// Where the folder cannot be made or is somebody else's, and where `start` does.
pub fn shared(
    name: &str,
    of: &str,
    end: &str,
    check: impl Fn(&str) -> bool,
    start: impl FnOnce(&Path) -> String,
) -> (Claim, String) {
    let owner = rustix::process::geteuid().as_raw();
    let place = of.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let folder = std::env::temp_dir().join(format!("windlass-{name}-{owner}-{place:08x}"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&folder)
        .expect("the temporary folder can be written");
    assert_eq!(fs::metadata(&folder).expect("it was just made").uid(), owner, "{} is ours", folder.display());
    let users = lock_file(&folder.join("users.lock"));
    users.lock_shared().expect("file locks work");
    let starting = lock_file(&folder.join("start.lock"));
    starting.lock().expect("file locks work");
    let ready = folder.join("ready");
    if let Ok(told) = fs::read_to_string(&ready)
        && check(&told)
    {
        return (Claim { folder, _users: users }, told);
    }
    for entry in fs::read_dir(&folder).expect("it is ours").map(|entry| entry.expect("it is ours").path()) {
        let left_over = entry.extension().is_none_or(|extension| extension != "lock");
        if left_over && entry.is_dir() {
            fs::remove_dir_all(&entry).expect("what is left over from before can be removed");
        } else if left_over {
            fs::remove_file(&entry).expect("what is left over from before can be removed");
        }
    }
    let told = start(&folder);
    drop(guard(SHARED_GUARD, &folder, end, Stdio::null()));
    fs::write(&ready, &told).expect("the folder can be written");
    (Claim { folder, _users: users }, told)
}

/// Ends a server when it is dropped, or with the process.
#[derive(Debug)]
pub struct Guard(Child);

/// Runs the shell script `end` in the folder, and removes the folder, when the guard is dropped or the process has ended.
///
/// # Panics
/// Where `setsid` is not installed.
pub fn own(folder: &Path, end: &str) -> Guard {
    Guard(guard(OWN_GUARD, folder, end, Stdio::piped()))
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("the guard is our child, and nobody else waits for it");
    }
}

fn guard(script: &str, folder: &Path, end: &str, input: Stdio) -> Child {
    let mut guard = Command::new("setsid");
    guard.args(["sh", "-c", script, "guard"]).arg(folder).arg(end);
    let guard = guard.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    guard.expect("setsid (util-linux) is installed")
}

/// Opens a file to be locked.
///
/// # Panics
/// Where it cannot be made.
pub fn lock_file(path: &Path) -> File {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(path);
    file.unwrap_or_else(|error| panic!("{} can be opened: {error}", path.display()))
}

/// The program of this name on the search path.
pub fn on_path(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the search path is no setting of ours")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.exists())
}

/// A port of 127.0.0.1 that nothing listens on just now.
///
/// # Panics
/// Where there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Whether something listens on a port of 127.0.0.1.
pub fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Sends a signal to a process, which may have ended by itself.
pub fn send(process: i32, signal: Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(process) {
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Whether a process runs; one that has ended and is not collected yet does not.
pub fn is_alive(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z'))
}

/// Waits until something holds.
///
/// # Panics
/// Where it does not within [`PATIENCE`].
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
