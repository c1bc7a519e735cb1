//! P6: jobs submitted over HTTPS to a controller on PostgreSQL, each on disk before it is acknowledged.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bench::{Bench, run};
use crate::drain_pg::{number, peer_script};
use crate::postgres::{Cluster, pgbench_rate};
use crate::rounds::{interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::windlass::{Controller, job, read};

/// Connections that submit one job after the other.
const CONNECTIONS: usize = 32;
/// Jobs of a bulk.
const BULK: usize = 1000;

/// One row a transaction, from as many connections.
const INSERT: &str = "\
INSERT INTO rows (payload) VALUES ('{\"apiVersion\":\"windlass.dev/v1alpha1\",\"kind\":\"SandboxJob\",\
\"metadata\":{\"generateName\":\"bench-\"},\"spec\":{\"command\":[\"/bin/true\"]}}');
";

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    let cluster = cluster.as_ref().map_err(Clone::clone);
    let controller = cluster.clone().and_then(|cluster| {
        let start = || Controller::start(bench, "submit", &["--store", &cluster.url(&cluster.database()?)]);
        start().map_err(reason)
    });
    let controller = controller.as_ref().map_err(Clone::clone);
    let rows = cluster.clone().and_then(|cluster| rows(cluster).map_err(reason));
    let boss = bench.install("node").map_err(reason).and_then(|modules| Ok((modules, cluster.clone()?)));
    let latencies = RefCell::new(Vec::new());
    let [single, raw, bulk, boss] = interleave(
        "P6",
        [
            controller.clone().map(|controller| {
                let latencies = &latencies;
                subject(move || {
                    let (rate, some) = submit(bench, controller)?;
                    latencies.borrow_mut().extend(some);
                    Ok(vec![rate])
                })
            }),
            rows.and_then(|database| {
                let cluster = cluster.clone()?;
                Ok(subject(move || {
                    let seconds = bench.scale.busy.as_secs();
                    Ok(vec![pgbench_rate(&run(&mut cluster.pgbench(
                        &database,
                        INSERT,
                        CONNECTIONS,
                        seconds,
                    )?)?)?])
                }))
            }),
            controller.map(|controller| subject(move || Ok(vec![in_bulk(bench, controller)?]))),
            boss.map(|(modules, cluster)| {
                subject(move || {
                    let database = cluster.database()?;
                    let mut script = peer_script(
                        "pgboss_drain.cjs",
                        &cluster.url(&database),
                        bench.scale.drained,
                        Duration::ZERO,
                    );
                    let printed = run(script.env("NODE_PATH", modules.file("node_modules")))?;
                    cluster.remove(&database)?;
                    // It inserts a thousand at a time before it drains.
                    Ok(vec![number(&printed, 1)?])
                })
            }),
        ],
    );
    let mut comparison = Comparison {
        row: "P6",
        metric: "jobs submitted one by one",
        peer: "raw INSERT",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(0.4),
        note: format!(
            "{CONNECTIONS} connections; ours over HTTPS, checked and authorised, the peer's is pgbench"
        ),
    };
    table.rounds(&comparison, &single, &raw);
    if let Ok(tails) = tails(&latencies.borrow()) {
        table.note(&tails);
    }
    comparison.metric = "jobs submitted in bulk";
    comparison.peer = "pg-boss";
    comparison.aim = Aim::RatioAtLeast(1.0);
    format!("{BULK} at a time, one request after the other; the peer's insert() straight to the database")
        .clone_into(&mut comparison.note);
    table.rounds(&comparison, &bulk, &boss);
}

fn tails(latencies: &[f64]) -> anyhow::Result<String> {
    ensure!(!latencies.is_empty(), "nothing was submitted");
    let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percent| crate::stats::percentile(latencies, percent));
    Ok(format!("p50 / p95 / p99 of a submit in ms: {p50:.2} / {p95:.2} / {p99:.2}"))
}

/// A database with a table of rows.
fn rows(cluster: &Cluster) -> anyhow::Result<String> {
    let database = cluster.database()?;
    cluster.sql(&database, "CREATE TABLE rows (id BIGSERIAL PRIMARY KEY, payload TEXT NOT NULL)")?;
    Ok(database)
}

/// Jobs a second, and the milliseconds that each took.
fn submit(bench: &Bench, controller: &Controller) -> anyhow::Result<(f64, Vec<f64>)> {
    let body = job(&["/bin/true"]);
    bench.runtime.block_on(async {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let request = controller.api.apart("/v1/namespaces/default/jobs")?.json(&body);
            let busy = bench.scale.busy;
            tasks.spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < busy {
                    let sent = Instant::now();
                    let request = request.try_clone().context("a body of bytes can be sent again")?;
                    read(request.send().await?).await?;
                    times.push(sent.elapsed().as_secs_f64() * 1e3);
                }
                anyhow::Ok(times)
            });
        }
        let mut times = Vec::new();
        while let Some(task) = tasks.join_next().await {
            times.extend(task??);
        }
        Ok((times.len() as f64 / start.elapsed().as_secs_f64(), times))
    })
}

fn in_bulk(bench: &Bench, controller: &Controller) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < bench.scale.busy {
        create(controller, BULK)?;
        count += BULK;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Creates so many jobs by one request.
pub(crate) fn create(controller: &Controller, count: usize) -> anyhow::Result<()> {
    let items: Vec<Value> = vec![job(&["/bin/true"]); count];
    let list = json!({ "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJobList", "items": items });
    let answer = controller.api.post("/v1/namespaces/default/job-batches", &list)?;
    let items = answer["items"].as_array().context("a batch is answered item by item")?;
    let created = items.iter().filter(|item| item["outcome"] == "created").count();
    ensure!(created == count, "{created} of {count} jobs were created");
    Ok(())
}
