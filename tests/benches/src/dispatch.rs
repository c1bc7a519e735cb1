//! P8: from the acknowledgement of a submit to the start of the step, on an idle system.
//!
//! Our step is a program in a sandbox that prints the time of its start. The peers' steps are functions in a process
//! that runs already; they are also measured with handlers that start the same program, without a sandbox.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, ensure};

use crate::bench::{Bench, Daemon, bound_to_us, run, script};
use crate::postgres::Cluster;
use crate::rounds::{Measured, Subject, interleave, reason, subject};
use crate::stats::median;
use crate::table::{Aim, Comparison, Table, Unit};
use crate::windlass::Windlass;

/// Prints the time in nanoseconds.
const PROGRAM: [&str; 2] = ["/bin/date", "+%s%N"];
/// Between two jobs, so that each finds an idle system.
const PAUSE: Duration = Duration::from_millis(20);

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let jobs = bench.scale.latencies;
    let ours = Windlass::dev(bench).map_err(reason);
    let ours = ours.map(|windlass| subject(move || (0..jobs).map(|_| latency(&windlass)).collect()));
    let bullmq = Peer::bullmq(bench).map_err(reason);
    let graphile = Peer::graphile(bench).map_err(reason);
    let [ours, in_function, graphile_in_function, in_program, graphile_in_program] = interleave(
        "P8",
        [
            ours,
            of(&bullmq, "function", jobs),
            of(&graphile, "function", jobs),
            of(&bullmq, "program", jobs),
            of(&graphile, "program", jobs),
        ],
    );
    let mut comparison = Comparison {
        row: "P8",
        metric: "acknowledged → step starts, p50",
        peer: "BullMQ",
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(1.0),
        note: format!(
            "ours starts `date` in a sandbox (alone on the host it takes {:.2} ms to print), the peer calls a \
             function;\nacknowledged is on disk everywhere (appendfsync always, synchronous_commit)",
            program_alone().unwrap_or(f64::NAN)
        ),
    };
    table.rounds(&comparison, &ours, &in_function);
    comparison.peer = "graphile-worker";
    comparison.aim = Aim::None;
    comparison.note.clear();
    table.rounds(&comparison, &ours, &graphile_in_function);
    comparison.peer = "BullMQ + date";
    "for orientation: the peer's handler starts the same program, not sandboxed"
        .clone_into(&mut comparison.note);
    table.rounds(&comparison, &ours, &in_program);
    comparison.peer = "graphile + date";
    comparison.note.clear();
    table.rounds(&comparison, &ours, &graphile_in_program);
}

/// Submits one job, and yields the milliseconds until its program told its start.
fn latency(windlass: &Windlass) -> anyhow::Result<f64> {
    std::thread::sleep(PAUSE);
    let job = windlass.api.submit(&PROGRAM)?;
    windlass.api.ended(&job)?;
    let printed = windlass.api.stdout(&job.name)?;
    let started: f64 = printed.trim().parse().with_context(|| format!("{printed:?} is not a time"))?;
    let acknowledged = job.acknowledged.duration_since(UNIX_EPOCH)?.as_nanos() as f64;
    Ok((started - acknowledged) / 1e6)
}

/// The median of the milliseconds that the program takes on the host, from its start to its end.
fn program_alone() -> anyhow::Result<f64> {
    let once = || {
        let start = Instant::now();
        run(Command::new(PROGRAM[0]).arg(PROGRAM[1]))?;
        anyhow::Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let all: anyhow::Result<Vec<f64>> = (0..50).map(|_| once()).collect();
    Ok(median(&all?))
}

fn of<'p>(peer: &'p Measured<RefCell<Peer>>, kind: &'static str, jobs: usize) -> Measured<Subject<'p>> {
    let peer = peer.as_ref().map_err(Clone::clone)?;
    Ok(subject(move || peer.borrow_mut().round(kind, jobs)))
}

/// A script that submits and handles jobs (`latency.cjs`), with the database that it works on.
struct Peer {
    script: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _database: Database,
}

/// What a peer works on, for as long as it does.
enum Database {
    Redis(#[expect(dead_code, reason = "it is kept running")] Daemon),
    Postgres(#[expect(dead_code, reason = "it is kept running")] Cluster),
}

impl Peer {
    fn bullmq(bench: &Bench) -> anyhow::Result<RefCell<Self>> {
        let (redis, folder) = (bench.install("redis")?, bench.folder("redis")?);
        let socket = folder.join("redis.sock");
        let mut command = redis.command("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--dir").arg(&folder).arg("--unixsocket").arg(&socket);
        let ready = || UnixStream::connect(&socket).is_ok();
        let database = Daemon::start(&command, "redis", &folder)?.until(ready)?;
        Self::start(bench, "bullmq.cjs", &socket.display().to_string(), Database::Redis(database))
    }

    fn graphile(bench: &Bench) -> anyhow::Result<RefCell<Self>> {
        let cluster = Cluster::start(bench, "postgres")?;
        let url = cluster.url("postgres");
        Self::start(bench, "graphile.cjs", &url, Database::Postgres(cluster))
    }

    fn start(
        bench: &Bench,
        name: &str,
        database_url: &str,
        database: Database,
    ) -> anyhow::Result<RefCell<Self>> {
        let modules = bench.install("node")?.file("node_modules");
        let mut command = Command::new("node");
        command.arg(script(name)).arg(database_url).env("NODE_PATH", modules);
        let mut command = bound_to_us(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().context("cannot start node")?;
        let input = script.stdin.take().expect("it is piped");
        let output = BufReader::new(script.stdout.take().expect("it is piped"));
        let mut this = Self { script, input, output, _database: database };
        let ready = this.line()?;
        ensure!(ready == "ready", "{name} says {ready:?}");
        for kind in ["function", "program"] {
            this.round(kind, 5).context("while the system warms up")?;
        }
        Ok(RefCell::new(this))
    }

    fn round(&mut self, kind: &str, jobs: usize) -> anyhow::Result<Vec<f64>> {
        writeln!(self.input, "{kind} {jobs}")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("{line:?} is not a list of numbers"))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line)?;
        ensure!(length > 0, "the script ended; what it said is above");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It would end by itself at the end of its input, but its measurements are over.
        self.script.kill().ok();
        self.script.wait().ok();
    }
}
