//! P5: no-op jobs claimed and completed on SQLite, every acknowledged write on disk.

use std::process::Command;

use anyhow::Context as _;
use windlass_store::StoreUrl;

use crate::bench::{Bench, run, script};
use crate::rounds::{interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{Drain, Work};

/// How many jobs a claim and a report are about: what agents send at most.
const BATCH: u32 = 100;

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let (jobs, limit) = (bench.scale.drained, bench.scale.drain_limit);
    let ours = |batch| {
        Ok(subject(move || {
            let folder = bench.folder("store")?;
            let rate = bench.runtime.block_on(async {
                let work = Work::open(StoreUrl::Sqlite(folder.join("windlass.db"))).await?;
                work.fill(0, jobs, 1).await?;
                let rate = work.drain(Drain { jobs, batch, workers: 1, limit }).await?;
                work.store.close().await?;
                anyhow::Ok(rate)
            })?;
            std::fs::remove_dir_all(folder)?;
            Ok(vec![rate])
        }))
    };
    let plainjob = bench.install("node").map_err(reason).map(|installed| {
        subject(move || {
            let mut node = Command::new("node");
            node.arg(script("plainjob.cjs")).env("NODE_PATH", installed.file("node_modules"));
            peer_rate(bench, node)
        })
    });
    let huey = bench.install("python").map_err(reason).map(|installed| {
        subject(move || {
            let mut python = Command::new("python3");
            python.arg(script("huey_drain.py")).env("PYTHONPATH", installed.file(""));
            peer_rate(bench, python)
        })
    });
    let [ours, single, plainjob, huey] = interleave("P5", [ours(BATCH), ours(1), plainjob, huey]);
    let mut comparison = Comparison {
        row: "P5",
        metric: "claim + complete, batches of 100",
        peer: "plainjob",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(2.0),
        note: format!(
            "{jobs} jobs or {} s, synchronous=FULL on both sides; plainjob has no batches: two commits a job, we two a \
             batch",
            limit.as_secs()
        ),
    };
    table.rounds(&comparison, &ours, &plainjob);
    comparison.peer = "huey, fsync";
    comparison.aim = Aim::RatioAtLeast(10.0);
    "huey stores results, so that completion is on disk".clone_into(&mut comparison.note);
    table.rounds(&comparison, &ours, &huey);
    comparison.metric = "claim + complete, one by one";
    comparison.peer = "plainjob";
    comparison.aim = Aim::None;
    "for orientation".clone_into(&mut comparison.note);
    table.rounds(&comparison, &single, &plainjob);
}

/// Runs a peer's script on a new database; it prints how many jobs a second it has done.
fn peer_rate(bench: &Bench, mut command: Command) -> anyhow::Result<Vec<f64>> {
    let folder = bench.folder("peer")?;
    command.arg(folder.join("queue.db")).arg(bench.scale.drained.to_string());
    let printed = run(command.arg(bench.scale.drain_limit.as_secs().to_string()))?;
    std::fs::remove_dir_all(folder)?;
    Ok(vec![printed.trim().parse().context("the script prints a rate")?])
}
