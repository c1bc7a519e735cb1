//! PostgreSQL servers for tests, made from nothing with the settings of production: what is acknowledged is on disk.
//!
//! [`Server::shared`] is one server for all processes of a test run, with a [`Database`] for each test. It is started by
//! the first that asks, and ended by a guard some seconds after the last process that used it has ended in any way.
//! [`Server::own`] is for tests that kill it.
//!
//! PostgreSQL refuses to run as root, so root runs it as the user `postgres`. A machine without PostgreSQL makes the tests
//! fail, because everything here panics with what is missing.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use windlass_test_process::{
    Claim, Guard, PATIENCE, Signal, answers, free_port, is_alive, on_path, own, send, shared, wait_for,
};

/// The superuser of every server here.
const USER: &str = "windlass";
/// Its password, needed over TCP.
const PASSWORD: &str = "for tests only";
/// The user that root runs PostgreSQL as; Debian's package makes it.
const ACCOUNT: &str = "postgres";
/// Stops the server of a folder. The word for a shared one and for one of a test's own is the same.
const END: &str = r#"
pid=$(head -n 1 data/postmaster.pid 2>/dev/null) && kill -INT "$pid" 2>/dev/null
while [ -e data/postmaster.pid ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
rm -rf ready data
"#;

/// A running server.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    port: u16,
    /// Of an own server: ends it when it is closed.
    _guard: Option<Guard>,
}

/// A database of one test.
#[derive(Debug)]
pub struct Database<'s> {
    server: &'s Server,
    name: String,
}

impl Server {
    /// The server of this test run.
    ///
    /// # Panics
    /// Where there is no PostgreSQL, or it does not start; with the reason.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<(Server, Claim)> = OnceLock::new();
        &SHARED.get_or_init(start_shared).0
    }

    /// A server for this test alone. It ends with the value, or with the process.
    ///
    /// # Panics
    /// As [`Server::shared`].
    pub fn own() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("windlass-postgres-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("the temporary folder can be written")
            .keep();
        make_cluster(&folder);
        let port = free_port();
        start(&folder, port);
        let guard = own(&folder, END);
        Self { folder, port, _guard: Some(guard) }
    }

    /// Where a database of this server is, over TCP.
    pub fn url(&self, database: &str) -> String {
        let password = PASSWORD.replace(' ', "%20");
        format!("postgres://{USER}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The folder with the cluster's files, and with the Unix socket, over which no password is needed.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// An empty database.
    ///
    /// # Panics
    /// Where the server does not make one.
    pub fn database(&self) -> Database<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: self, name }
    }

    /// Runs SQL as the superuser; yields what `psql` prints, without headings.
    ///
    /// # Panics
    /// Where it fails.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(program("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--username", USER, "--dbname", database, "--command", sql])
            .arg("--host")
            .arg(self.data())
            .args(["--port", &self.port.to_string()]);
        let output = psql.output().expect("psql can be started");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Kills the server with everything that it has not written, as a power failure of the process would. All its processes
    /// are gone when this returns.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn kill(&self) {
        let main = self.main_process().expect("it runs");
        let mut processes = children(main);
        processes.push(main);
        for process in &processes {
            // One that has ended by itself meanwhile is what is wanted.
            send(*process, Signal::KILL);
        }
        wait_for("the server's processes to end", || processes.iter().all(|process| !is_alive(*process)));
        // Where nobody collects ended processes, the next server would take the dead one for alive.
        for lock in ["postmaster.pid".to_owned(), format!(".s.PGSQL.{}.lock", self.port)] {
            fs::remove_file(self.data().join(lock)).expect("it is left behind by a server that was killed");
        }
    }

    /// Stops the server and breaks off what its clients do.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn stop(&self) {
        let main = self.main_process().expect("it runs");
        send(main, Signal::INT);
        wait_for("the server to stop", || !is_alive(main));
    }

    /// Starts a server that was killed or stopped; it takes connections when this returns.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(&self) {
        start(&self.folder, self.port);
    }

    fn main_process(&self) -> Option<i32> {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        pid.lines().next()?.trim().parse().ok()
    }
}

impl Database<'_> {
    /// The database's name on its server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, over TCP.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Runs SQL as the superuser; yields what `psql` prints, without headings.
    ///
    /// # Panics
    /// Where it fails.
    pub fn psql(&self, sql: &str) -> String {
        self.server.psql(&self.name, sql)
    }

    /// Removes the database, whoever is still connected. Those that are left go with the server.
    ///
    /// # Panics
    /// Where the server does not do it.
    pub fn remove(self) {
        self.server.psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

fn start_shared() -> (Server, Claim) {
    let check = |port: &str| port.parse().is_ok_and(answers);
    let (claim, port) = shared("postgres", env!("CARGO_MANIFEST_DIR"), END, check, |folder| {
        make_cluster(folder);
        let port = free_port();
        start(folder, port);
        port.to_string()
    });
    let port = port.parse().expect("what was written above");
    (Server { folder: claim.folder.clone(), port, _guard: None }, claim)
}

/// Makes an empty cluster in `folder/data`.
fn make_cluster(folder: &Path) {
    let data = folder.join("data");
    fs::DirBuilder::new().mode(0o700).create(&data).expect("the folder can be written");
    let password = folder.join("password");
    let mut file = File::create(&password).expect("the folder can be written");
    writeln!(file, "{PASSWORD}").expect("the folder can be written");
    if rustix::process::geteuid().is_root() {
        let (user, group) = account();
        std::os::unix::fs::chown(&data, Some(user), Some(group)).expect("root may give folders away");
    }
    let mut initdb = unprivileged(&program("initdb"));
    initdb
        .args([
            "--username",
            USER,
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--no-sync",
        ])
        .arg("--pwfile")
        .arg(&password)
        .args(["--locale=C.UTF-8", "--pgdata"])
        .arg(&data);
    let output = initdb.current_dir("/").output().expect("initdb can be started");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

/// Starts the cluster in `folder/data`; it takes connections when this returns.
fn start(folder: &Path, port: u16) {
    let data = folder.join("data");
    let log = data.join("server.log");
    let mut pg_ctl = unprivileged(&program("pg_ctl"));
    let options = format!(
        "-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c max_connections=200 \
         -c shared_buffers=128MB -c max_wal_size=512MB -c fsync=on -c synchronous_commit=on",
        data.display()
    );
    pg_ctl.args(["start", "--wait", "--timeout", &PATIENCE.as_secs().to_string(), "--options", &options]);
    pg_ctl.arg("--pgdata").arg(&data).arg("--log").arg(&log).current_dir("/");
    let status = pg_ctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.expect("pg_ctl can be started");
    assert!(status.success(), "PostgreSQL does not start: {}", fs::read_to_string(&log).unwrap_or_default());
}

/// A command that runs as an ordinary user.
fn unprivileged(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups", "--"]).arg(program);
    command
}

/// User and group id of [`ACCOUNT`].
fn account() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("there is a list of users");
    let line = users.lines().find(|line| line.split(':').next() == Some(ACCOUNT));
    let line = line.unwrap_or_else(|| panic!("there must be a user `{ACCOUNT}`: install PostgreSQL"));
    let mut ids = line.split(':').skip(2).map(|id| id.parse().expect("ids are numbers"));
    (ids.next().expect("a user has an id"), ids.next().expect("a user has a group"))
}

/// A program of PostgreSQL: of the newest version in Debian's place, or on the path.
///
/// # Panics
/// Where it is not installed.
pub fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin").join(name)))
        })
        .filter(|(_, program)| program.exists())
        .collect();
    found.sort();
    if let Some((_, program)) = found.pop() {
        return program;
    }
    on_path(name).unwrap_or_else(|| {
        panic!("{name} was not found: install PostgreSQL (Debian: apt-get install postgresql)")
    })
}

fn children(process: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
