//! P4: no-op jobs claimed and completed on PostgreSQL, on one server for all.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::bench::{Bench, run, script};
use crate::postgres::Cluster;
use crate::rounds::{Measured, Subject, interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{Drain, Work};

/// As many as graphile-worker's own performance test has at work.
const ONE_BY_ONE: usize = 24;
/// What agents send at most.
const BATCH: u32 = 100;
/// How many of them work with batches.
const WORKERS: usize = 4;

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    let (jobs, limit) = (bench.scale.drained, bench.scale.drain_limit);
    let [ours, graphile, boss, single, graphile_single] = interleave(
        "P4",
        [
            ours(bench, &cluster, Drain { jobs, batch: BATCH, workers: WORKERS, limit }),
            peer(bench, &cluster, "graphile_drain.cjs", "batched"),
            peer(bench, &cluster, "pgboss_drain.cjs", ""),
            ours(bench, &cluster, Drain { jobs, batch: 1, workers: ONE_BY_ONE, limit }),
            peer(bench, &cluster, "graphile_drain.cjs", "single"),
        ],
    );
    let mut comparison = Comparison {
        row: "P4",
        metric: "claim + complete, batches",
        peer: "graphile-worker",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(1.0),
        note: format!(
            "{jobs} jobs or {} s on one server; ours {WORKERS} × {BATCH}, and keeps job, attempt and record; the peer's \
             local queue of 500, and deletes",
            limit.as_secs()
        ),
    };
    table.rounds(&comparison, &ours, &graphile);
    comparison.peer = "pg-boss";
    comparison.aim = Aim::None;
    format!("for orientation: {WORKERS} × {BATCH} as ours").clone_into(&mut comparison.note);
    table.rounds(&comparison, &ours, &boss);
    comparison.metric = "claim + complete, one by one";
    comparison.peer = "graphile-worker";
    comparison.aim = Aim::RatioAtLeast(1.2);
    format!("{ONE_BY_ONE} at a time on both sides").clone_into(&mut comparison.note);
    table.rounds(&comparison, &single, &graphile_single);
}

fn ours<'b>(bench: &'b Bench, cluster: &'b Measured<Cluster>, drain: Drain) -> Measured<Subject<'b>> {
    let cluster = cluster.as_ref().map_err(Clone::clone)?;
    Ok(subject(move || {
        let database = cluster.database()?;
        let rate = bench.runtime.block_on(async {
            let work = Work::open(cluster.store(&database)?).await?;
            work.fill(0, drain.jobs, 1).await?;
            let rate = work.drain(drain).await?;
            work.store.close().await?;
            anyhow::Ok(rate)
        })?;
        cluster.remove(&database)?;
        Ok(vec![rate])
    }))
}

fn peer<'b>(
    bench: &'b Bench,
    cluster: &'b Measured<Cluster>,
    name: &'static str,
    mode: &'static str,
) -> Measured<Subject<'b>> {
    let cluster = cluster.as_ref().map_err(Clone::clone)?;
    let modules = bench.install("node").map_err(reason)?.file("node_modules");
    Ok(subject(move || {
        let database = cluster.database()?;
        let (jobs, limit) = (bench.scale.drained, bench.scale.drain_limit);
        let mut script = peer_script(name, &cluster.url(&database), jobs, limit);
        let printed = run(script.arg(mode).env("NODE_PATH", &modules))?;
        cluster.remove(&database)?;
        Ok(vec![number(&printed, 0)?])
    }))
}

/// One of the peers' scripts that work on a number of jobs.
pub(crate) fn peer_script(name: &str, url: &str, jobs: usize, limit: Duration) -> Command {
    let mut node = Command::new("node");
    node.arg(script(name)).arg(url).arg(jobs.to_string()).arg(limit.as_secs().to_string());
    node
}

/// The number at this place of what a script printed.
pub(crate) fn number(printed: &str, position: usize) -> anyhow::Result<f64> {
    let word =
        printed.split_whitespace().nth(position).with_context(|| format!("{printed:?} lacks a number"))?;
    word.parse().with_context(|| format!("{word:?} is not a number"))
}
