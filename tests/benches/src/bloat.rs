//! R1: does the rate last while nothing can be cleaned up? A session sits in a transaction with a snapshot, and a reader
//! goes through tables again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::bench::{Bench, run};
use crate::postgres::{Cluster, Session};
use crate::rounds::{Measured, reason};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{NODE, Work};

/// Of the whole time, the first and the last are compared.
const WINDOWS: u32 = 10;
/// Jobs that wait at the beginning, and about as many all the time.
const WAITING: usize = 5000;
/// How many claim and report at once.
const WORKERS: usize = 4;
const BATCH: u32 = 100;

/// A transaction of the loop that most people write first.
const NAIVE: &str = "\
INSERT INTO queue (state, payload) VALUES ('queued', 'no-op');
UPDATE queue SET state = 'active' WHERE id = (
    SELECT id FROM queue WHERE state = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id \\gset
DELETE FROM queue WHERE id = :id;
";

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    let on = |run: fn(&Bench, &Cluster) -> anyhow::Result<f64>| -> Measured<f64> {
        let cluster = cluster.as_ref().map_err(Clone::clone)?;
        run(bench, cluster).map_err(reason)
    };
    eprintln!("R1: windlass");
    let ours = on(ours);
    eprintln!("R1: naive loop");
    let peer = on(naive);
    let comparison = Comparison {
        row: "R1",
        metric: "rate, last tenth ÷ first",
        peer: "naive loop",
        unit: Unit::Times,
        aim: Aim::AtLeast(0.75),
        note: format!(
            "over {} s, one after the other, beside a session idle in a transaction and a reader of whole tables",
            bench.scale.bloat.as_secs()
        ),
    };
    table.values(&comparison, &ours, &peer);
}

/// Keeps everything that is updated or deleted from being cleaned up, until they are dropped.
fn neighbours(cluster: &Cluster, database: &str, table: &str) -> anyhow::Result<[Session; 2]> {
    let idle = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM {table};");
    let reader = format!("SELECT count(*), pg_sleep(5) FROM {table} \\watch 1");
    Ok([cluster.session(database, &idle)?, cluster.session(database, &reader)?])
}

fn ours(bench: &Bench, cluster: &Cluster) -> anyhow::Result<f64> {
    let database = cluster.database()?;
    let ratio = bench.runtime.block_on(async {
        let work = Work::open(cluster.store(&database)?).await?;
        work.fill(0, WAITING, 1).await?;
        let neighbours = neighbours(cluster, &database, "jobs")?;
        let ratio = steady(&work, bench.scale.bloat).await?;
        drop(neighbours);
        work.store.close().await?;
        anyhow::Ok(ratio)
    })?;
    cluster.remove(&database)?;
    Ok(ratio)
}

/// Claims and completes all the time while as many jobs come in; the rate of the last window ÷ that of the first.
async fn steady(work: &Work, time: Duration) -> anyhow::Result<f64> {
    let classes = work.classes().await?;
    let completed: Arc<Vec<AtomicUsize>> = Arc::new((0..WINDOWS).map(|_| AtomicUsize::new(0)).collect());
    let created = Arc::new(AtomicUsize::new(WAITING));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..WORKERS {
        let (work, classes) = (work.clone(), classes.clone());
        let (completed, created) = (Arc::clone(&completed), Arc::clone(&created));
        tasks.spawn(async move {
            while start.elapsed() < time {
                let claimed = work.claim(NODE, BATCH, &classes).await?;
                ensure!(!claimed.is_empty(), "the queue ran dry");
                work.complete(NODE, &claimed).await?;
                let window = start.elapsed().as_nanos() * u128::from(WINDOWS) / time.as_nanos();
                if let Some(window) = completed.get(usize::try_from(window)?) {
                    window.fetch_add(claimed.len(), Ordering::Relaxed);
                }
                let from = created.fetch_add(claimed.len(), Ordering::Relaxed);
                work.fill(from, from + claimed.len(), 1).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let window =
        |window: Option<&AtomicUsize>| window.map_or(0, |count| count.load(Ordering::Relaxed)) as f64;
    Ok(window(completed.last()) / window(completed.first()))
}

fn naive(bench: &Bench, cluster: &Cluster) -> anyhow::Result<f64> {
    let database = cluster.database()?;
    let sql = format!(
        "CREATE TABLE queue (id BIGSERIAL PRIMARY KEY, state TEXT NOT NULL, payload TEXT NOT NULL); \
         CREATE INDEX queue_next ON queue (state, id); \
         INSERT INTO queue (state, payload) SELECT 'queued', 'no-op' FROM generate_series(1, {WAITING})"
    );
    cluster.sql(&database, &sql)?;
    let neighbours = neighbours(cluster, &database, "queue")?;
    let time = bench.scale.bloat;
    let window = time / WINDOWS;
    let mut pgbench = cluster.pgbench(&database, NAIVE, WORKERS, time.as_secs())?;
    // It tells its progress on standard error.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(pgbench.get_program());
    pgbench.arg(format!("--progress={}", window.as_secs()));
    shell.args(pgbench.get_args()).envs(pgbench.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let printed = run(&mut shell)?;
    drop(neighbours);
    cluster.remove(&database)?;
    let rates: Vec<f64> = printed
        .lines()
        .filter(|line| line.starts_with("progress: "))
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
        .collect();
    let (first, last) = (rates.first(), rates.get(usize::try_from(WINDOWS)? - 1));
    let (first, last) = first.zip(last).with_context(|| format!("{} windows were told", rates.len()))?;
    Ok(last / first)
}
