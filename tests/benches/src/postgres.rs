//! A PostgreSQL server that is ours and the peers' for a row: the packaged settings, which flush every commit.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use rustix::process::Signal;
use windlass_store::StoreUrl;

use crate::bench::{Bench, Daemon, Installed, bound_to_us, run};

/// Where Debian's package has the server's programs.
const PROGRAMS: &str = "usr/lib/postgresql/15/bin";

/// A running server. It ends with the value.
pub(crate) struct Cluster {
    installed: Installed,
    folder: PathBuf,
    databases: AtomicU32,
    _server: Daemon,
}

/// A session that goes on until this is dropped.
pub(crate) struct Session {
    psql: Child,
    _input: Option<ChildStdin>,
}

impl Cluster {
    /// Makes and starts one in a new folder of this name.
    pub(crate) fn start(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        let (installed, folder) = (bench.install("postgres")?, bench.folder(name)?);
        let data = folder.join("data");
        // PostgreSQL refuses to run as root: here it is nobody to itself, and still owns its files.
        let program = |name: &str| {
            let mut command = installed.command("unshare");
            command.args(["--user", "--map-user=65534", "--map-group=65534"]);
            command.arg(installed.file(PROGRAMS).join(name)).arg("-D").arg(&data);
            command
        };
        run(program("initdb").args(["--auth=trust", "--username=bench", "--no-locale", "--encoding=UTF8"]))?;
        let mut command = program("postgres");
        command.arg("-k").arg(&folder).args(["-c", "listen_addresses="]);
        let log = folder.join("postgres.log");
        let ready =
            || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"));
        // INT is its fast shutdown; TERM would wait for clients.
        let server = Daemon::start(&command, "postgres", &folder)?.stopped_by(Signal::INT).until(ready)?;
        Ok(Self { installed, folder, databases: AtomicU32::new(0), _server: server })
    }

    /// Where a database is, for clients of any kind.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://bench@localhost/{database}?host={}", self.folder.display())
    }

    /// An empty database; its name.
    pub(crate) fn database(&self) -> anyhow::Result<String> {
        let name = format!("round_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(name)
    }

    /// Where a store has such a database.
    pub(crate) fn store(&self, database: &str) -> anyhow::Result<StoreUrl> {
        Ok(StoreUrl::Postgres(self.url(database).parse()?))
    }

    /// Removes a database, so that the next round finds the disk as this one did.
    pub(crate) fn remove(&self, database: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)"))?;
        self.sql("postgres", "CHECKPOINT").map(drop)
    }

    /// Runs SQL, and yields what it prints.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        run(self.client("psql", database).args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "-c",
            sql,
        ]))
    }

    /// Keeps a session that has run `sql` and sits there.
    pub(crate) fn session(&self, database: &str, sql: &str) -> anyhow::Result<Session> {
        let mut psql = bound_to_us(self.client("psql", database).args(["--no-psqlrc", "--quiet"]));
        let psql = psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut psql = psql.spawn().context("cannot start psql")?;
        let mut input = psql.stdin.take().expect("it is piped");
        writeln!(input, "{sql}")?;
        input.flush()?;
        Ok(Session { psql, _input: Some(input) })
    }

    /// `pgbench` with a script of one transaction, from `clients` connections for `seconds`.
    pub(crate) fn pgbench(
        &self,
        database: &str,
        script: &str,
        clients: usize,
        seconds: u64,
    ) -> anyhow::Result<Command> {
        let file = self.folder.join("transaction.sql");
        std::fs::write(&file, script)?;
        let mut command = self.client("pgbench", database);
        command.args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--file"]).arg(file);
        command.arg(format!("--client={clients}")).arg(format!("--time={seconds}"));
        Ok(command)
    }

    /// A client program of the server, for a database.
    fn client(&self, program: &str, database: &str) -> Command {
        let mut command = self.installed.command("env");
        command.arg(self.installed.file(PROGRAMS).join(program));
        command.env("PGHOST", &self.folder).env("PGUSER", "bench").env("PGDATABASE", database);
        command
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It would end by itself at the end of its input, but perhaps not while a statement runs.
        self.psql.kill().ok();
        self.psql.wait().ok();
    }
}

/// The transactions a second that `pgbench` tells.
pub(crate) fn pgbench_rate(printed: &str) -> anyhow::Result<f64> {
    let line =
        printed.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench tells its rate")?;
    let rate = line.split_whitespace().next().context("pgbench tells its rate")?;
    rate.parse().with_context(|| format!("{rate:?} is not a rate"))
}
