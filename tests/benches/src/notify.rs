//! P7: many writers wake many listeners.
//!
//! A listener of ours is a store of its own, as another controller has it, that is told what changed; one notification a
//! commit serves all that was written in it. The peer's writers insert a row and notify in each transaction.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use windlass_store::{Change, Store, StoreOptions};

use crate::bench::{Bench, bound_to_us, run, script};
use crate::postgres::{Cluster, pgbench_rate};
use crate::rounds::{interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{Work, new_job};

const WRITERS: usize = 16;
const LISTENERS: usize = 8;
/// Between two changes of an idle system.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a wake-up may take. Far above what is measured.
const PATIENCE: Duration = Duration::from_secs(30);

/// Inserts a row and notifies, as one transaction.
const INSERT: &str = "\
BEGIN;
INSERT INTO rows (payload) VALUES ('{\"queue\":\"default\",\"command\":[\"true\"]}') RETURNING id \\gset
SELECT pg_notify('rows', :id::TEXT);
COMMIT;
";

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    let ours = cluster
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|cluster| Ours::start(bench, cluster).map_err(reason));
    let peer = cluster
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|cluster| Peer::start(bench, cluster).map_err(reason));
    let (ours, peer) = (ours.as_ref().map_err(Clone::clone), peer.as_ref().map_err(Clone::clone));
    let [rate, peer_rate, wake_up, peer_wake_up] = interleave(
        "P7",
        [
            ours.clone().map(|ours| subject(move || ours.rate(bench))),
            peer.clone().map(|peer| subject(move || peer.rate(bench))),
            ours.map(|ours| subject(move || ours.wake_ups(bench))),
            peer.map(|peer| subject(move || peer.wake_ups(bench))),
        ],
    );
    let mut comparison = Comparison {
        row: "P7",
        metric: "jobs created with wake-ups",
        peer: "NOTIFY per row",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(2.5),
        note: format!(
            "{WRITERS} writers, {LISTENERS} listeners; ours writes a whole job (two rows, nine index entries), the peer a \
             narrow row"
        ),
    };
    table.rounds(&comparison, &rate, &peer_rate);
    comparison.metric = "write begins → listener wakes, idle";
    comparison.unit = Unit::Milliseconds;
    comparison.aim = Aim::RatioAtMost(2.0);
    comparison.note.clear();
    table.rounds(&comparison, &wake_up, &peer_wake_up);
}

struct Ours {
    work: Work,
    listeners: Vec<Store>,
    created: Arc<AtomicUsize>,
}

impl Ours {
    fn start(bench: &Bench, cluster: &Cluster) -> anyhow::Result<Self> {
        let database = cluster.database()?;
        bench.runtime.block_on(async {
            let work = Work::open(cluster.store(&database)?).await?;
            let mut listeners = Vec::new();
            for _ in 0..LISTENERS {
                let url = cluster.store(&database)?;
                listeners.push(Store::open(StoreOptions { url, read_connections: 1 }).await?);
            }
            Ok(Self { work, listeners, created: Arc::default() })
        })
    }

    fn rate(&self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        bench.runtime.block_on(async {
            let before = self.created.load(Ordering::Relaxed);
            let mut changes: Vec<_> = self.listeners.iter().map(Store::changes).collect();
            let start = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..WRITERS {
                let (work, created, busy) = (self.work.clone(), Arc::clone(&self.created), bench.scale.busy);
                tasks.spawn(async move {
                    while start.elapsed() < busy {
                        let number = created.fetch_add(1, Ordering::Relaxed);
                        work.store.create_jobs(work.now, vec![new_job(number, 0)]).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(task) = tasks.join_next().await {
                task??;
            }
            let seconds = start.elapsed().as_secs_f64();
            for changes in &mut changes {
                let told = tokio::time::timeout(PATIENCE, changes.recv()).await;
                ensure!(matches!(told, Ok(Ok(_) | Err(RecvError::Lagged(_)))), "a listener was not told");
            }
            let created = self.created.load(Ordering::Relaxed) - before;
            Ok(vec![created as f64 / seconds])
        })
    }

    fn wake_ups(&self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        let listener = self.listeners.first().context("there are listeners")?;
        bench.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..bench.scale.latencies {
                tokio::time::sleep(PAUSE).await;
                let job = new_job(self.created.fetch_add(1, Ordering::Relaxed), 0);
                let mut changes = listener.changes();
                let wanted = Change::Job { uid: job.uid.clone() };
                let start = Instant::now();
                let woken = async {
                    loop {
                        match changes.recv().await {
                            Ok(change) if change == wanted || change == Change::Any => {
                                return anyhow::Ok(start.elapsed());
                            }
                            Ok(_) | Err(RecvError::Lagged(_)) => {}
                            Err(RecvError::Closed) => anyhow::bail!("the store is closed"),
                        }
                    }
                };
                let written =
                    async { anyhow::Ok(self.work.store.create_jobs(self.work.now, vec![job]).await?) };
                let both = async { tokio::try_join!(woken, written) };
                let (woken, _) =
                    tokio::time::timeout(PATIENCE, both).await.context("a listener was not told")??;
                times.push(woken.as_secs_f64() * 1e3);
            }
            Ok(times)
        })
    }
}

/// A script that listens (`notify.cjs`), and a table to write to.
struct Peer<'c> {
    cluster: &'c Cluster,
    database: String,
    script: RefCell<Listeners>,
}

struct Listeners {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl<'c> Peer<'c> {
    fn start(bench: &Bench, cluster: &'c Cluster) -> anyhow::Result<Self> {
        let database = cluster.database()?;
        cluster.sql(&database, "CREATE TABLE rows (id BIGSERIAL PRIMARY KEY, payload TEXT NOT NULL)")?;
        let mut command = Command::new("node");
        command.arg(script("notify.cjs")).arg(cluster.url(&database)).arg(LISTENERS.to_string());
        command.env("NODE_PATH", bench.install("node")?.file("node_modules"));
        let mut process = bound_to_us(&command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start node")?;
        let input = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut listeners = Listeners { process, input, output };
        let ready = listeners.line()?;
        ensure!(ready == "ready", "notify.cjs says {ready:?}");
        Ok(Self { cluster, database, script: RefCell::new(listeners) })
    }

    fn rate(&self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        let seconds = bench.scale.busy.as_secs();
        let printed = run(&mut self.cluster.pgbench(&self.database, INSERT, WRITERS, seconds)?)?;
        Ok(vec![pgbench_rate(&printed)?])
    }

    fn wake_ups(&self, bench: &Bench) -> anyhow::Result<Vec<f64>> {
        let mut script = self.script.borrow_mut();
        writeln!(script.input, "{}", bench.scale.latencies)?;
        let line = script.line()?;
        serde_json::from_str(&line).with_context(|| format!("{line:?} is not a list of numbers"))
    }
}

impl Listeners {
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line)?;
        ensure!(length > 0, "the script ended; what it said is above");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // It would end by itself at the end of its input, but its measurements are over.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
