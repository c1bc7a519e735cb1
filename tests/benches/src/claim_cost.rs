//! What a claim of one job costs as the backlog and the number of requirement classes grow.

use std::time::Instant;

use anyhow::ensure;
use windlass_store::StoreUrl;

use crate::bench::Bench;
use crate::postgres::Cluster;
use crate::rounds::{Measured, Rounds, Subject, interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{NODE, Work};

/// Claims of a round.
const CLAIMS: usize = 50;
/// What the others are compared with.
const FEW: usize = 1000;

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    for (engine, on) in [("SQLite", None), ("PostgreSQL", Some(&cluster))] {
        let long = bench.scale.backlog;
        let backlogs = [FEW, long / 10, long].map(|jobs| of(bench, on, engine, jobs, 1));
        let measured = interleave("COST", backlogs.each_ref().map(|work| claims(bench, work)));
        let [few, many, most] = measured;
        for (jobs, figure) in [(long / 10, &many), (long, &most)] {
            line(table, engine, &format!("{jobs} jobs are queued"), "1,000 queued", figure, &few);
        }
        close(bench, backlogs);
        let classes = [1, 100, 10_000].map(|classes| of(bench, on, engine, long / 10, classes));
        let measured = interleave("COST", classes.each_ref().map(|work| claims(bench, work)));
        let [one, hundred, most] = measured;
        for (count, figure) in [(100, &hundred), (10_000, &most)] {
            line(table, engine, &format!("of {count} classes"), "of one class", figure, &one);
        }
        close(bench, classes);
    }
}

fn line(
    table: &mut Table,
    engine: &str,
    what: &str,
    beside: &'static str,
    figure: &Measured<Rounds>,
    base: &Measured<Rounds>,
) {
    let comparison = Comparison {
        row: "COST",
        metric: "a claim of one job",
        peer: beside,
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(1.5),
        note: format!("{engine}, {what}; the commit's flush is part of it on both sides"),
    };
    table.rounds(&comparison, figure, base);
}

/// A filled store.
fn of(
    bench: &Bench,
    cluster: Option<&Measured<Cluster>>,
    engine: &str,
    jobs: usize,
    classes: usize,
) -> Measured<Work> {
    let open = || {
        let url = match cluster {
            Some(Ok(cluster)) => cluster.store(&cluster.database()?)?,
            Some(Err(reason)) => anyhow::bail!("{reason}"),
            None => {
                let folder = bench.folder(&format!("{engine}-{jobs}-{classes}"))?;
                StoreUrl::Sqlite(folder.join("windlass.db"))
            }
        };
        bench.runtime.block_on(async {
            let work = Work::open(url).await?;
            work.fill(0, jobs, classes).await?;
            anyhow::Ok(work)
        })
    };
    open().map_err(reason)
}

fn claims<'w>(bench: &'w Bench, work: &'w Measured<Work>) -> Measured<Subject<'w>> {
    let work = work.as_ref().map_err(Clone::clone)?;
    let classes = bench.runtime.block_on(work.classes()).map_err(reason)?;
    Ok(subject(move || {
        bench.runtime.block_on(async {
            let mut times = Vec::with_capacity(CLAIMS);
            for _ in 0..CLAIMS {
                let start = Instant::now();
                let claimed = work.claim(NODE, 1, &classes).await?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
                ensure!(claimed.len() == 1, "there was nothing to claim");
                work.complete(NODE, &claimed).await?;
            }
            Ok(times)
        })
    }))
}

fn close<const N: usize>(bench: &Bench, works: [Measured<Work>; N]) {
    for work in works.into_iter().flatten() {
        // What is left goes with the folder of this run.
        bench.runtime.block_on(work.store.close()).ok();
    }
}
