//! P11: a fleet of simulated nodes takes jobs with constraints, until every node is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;
use windlass_store::Reserve;

use crate::bench::Bench;
use crate::postgres::Cluster;
use crate::rounds::{Measured, reason};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::work::{RESERVE, Work};

/// Jobs that fit into a node.
const ROOM: usize = 20;
/// Jobs that a node asks for at once.
const BATCH: u32 = 10;
/// How many nodes ask at the same time.
const AT_ONCE: usize = 16;
/// Each node fits the classes of one of so many groups.
const GROUPS: usize = 10;
/// What kube-scheduler's own benchmarks publish: 700 to 800 pods a second.
const KUBE_SCHEDULER: f64 = 750.0;

/// What was measured of one fleet.
struct Figures {
    rate: f64,
    last_by_first: f64,
}

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    for classes in [1, 100, 10_000] {
        eprintln!("P11: {classes} classes");
        let figures = match &cluster {
            Ok(cluster) => fleet(bench, cluster, classes).map_err(reason),
            Err(reason) => Err(reason.clone()),
        };
        let of = |figure: fn(&Figures) -> f64| -> Measured<f64> {
            figures.as_ref().map(figure).map_err(Clone::clone)
        };
        let mut comparison = Comparison {
            row: "P11",
            metric: "jobs placed",
            peer: "kube-scheduler",
            unit: Unit::PerSecond,
            aim: Aim::RatioAtLeast(5.0),
            note: format!(
                "{classes} classes, {} nodes of which each fits a tenth of them and {ROOM} jobs, asking for {BATCH}; on \
                 PostgreSQL, durable;\nthe peer's is what it publishes",
                bench.scale.nodes
            ),
        };
        table.values(&comparison, &of(|figures| figures.rate), &Ok(KUBE_SCHEDULER));
        comparison.metric = "jobs placed, last tenth ÷ first";
        comparison.peer = "";
        comparison.unit = Unit::Times;
        comparison.aim = Aim::AtLeast(0.9);
        comparison.note.clear();
        table.values(&comparison, &of(|figures| figures.last_by_first), &Ok(1.0));
    }
}

fn fleet(bench: &Bench, cluster: &Cluster, classes: usize) -> anyhow::Result<Figures> {
    let database = cluster.database()?;
    let figures = bench.runtime.block_on(async {
        let work = Work::open(cluster.store(&database)?).await?;
        let figures = place(&work, bench.scale.nodes, classes).await?;
        work.store.close().await?;
        anyhow::Ok(figures)
    })?;
    cluster.remove(&database)?;
    Ok(figures)
}

async fn place(work: &Work, nodes: usize, classes: usize) -> anyhow::Result<Figures> {
    let jobs = nodes * ROOM;
    let mut registrations = JoinSet::new();
    for node in 0..nodes {
        let work = work.clone();
        registrations.spawn(async move { work.register(&name(node)).await });
    }
    while let Some(registered) = registrations.join_next().await {
        registered??;
    }
    work.fill(0, jobs, classes).await?;
    // The classes of each group. Ids are those of creation, job by job.
    let all = work.classes().await?;
    let groups: Vec<Vec<i64>> = (0..GROUPS)
        .map(|group| {
            let of_group = |(position, _): &(usize, &i64)| all.len() < GROUPS || position % GROUPS == group;
            all.iter().enumerate().filter(of_group).map(|(_, class)| *class).collect()
        })
        .collect();
    let groups = Arc::new(groups);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (work, groups, next) = (work.clone(), Arc::clone(&groups), Arc::clone(&next));
        tasks.spawn(async move {
            let room = ROOM as u64;
            let size = Reserve {
                cpu_millis: room * RESERVE.cpu_millis,
                memory_bytes: room * RESERVE.memory_bytes,
                gpus: 0,
            };
            let mut placed: Vec<(Duration, usize)> = Vec::new();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= nodes * ROOM.div_ceil(BATCH as usize) {
                    return anyhow::Ok(placed);
                }
                let node = turn % nodes;
                let claimed = work.claim_into(&name(node), size, BATCH, &groups[node % GROUPS]).await?;
                placed.push((start.elapsed(), claimed.len()));
            }
        });
    }
    let mut placed = Vec::new();
    while let Some(task) = tasks.join_next().await {
        placed.extend(task??);
    }
    placed.sort_unstable();
    let count: usize = placed.iter().map(|(_, count)| count).sum();
    ensure!(count == jobs, "{count} of {jobs} jobs were placed");
    let took = placed.last().map_or(Duration::ZERO, |(at, _)| *at);
    // How long the first and the last tenth of the jobs took.
    let reached = |wanted: usize| {
        let mut sum = 0;
        let at = placed.iter().find(|(_, count)| {
            sum += count;
            sum >= wanted
        });
        at.map_or(took, |(at, _)| *at).as_secs_f64()
    };
    let (first, last) = (reached(jobs / 10), took.as_secs_f64() - reached(jobs - jobs / 10));
    Ok(Figures { rate: jobs as f64 / took.as_secs_f64(), last_by_first: first / last })
}

fn name(node: usize) -> String {
    format!("node-{node}")
}
