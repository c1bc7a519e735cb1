//! R5: a controller is killed over a long queue and started again. How long until it gives out the first job?

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::bench::{Bench, Daemon};
use crate::postgres::Cluster;
use crate::rounds::{Measured, Subject, interleave, reason, subject};
use crate::submit::create;
use crate::table::{Aim, Comparison, Table, Unit};
use crate::windlass::Controller;

/// The only node.
const NODE: &str = "restarted";
/// Jobs of the queue that it is compared with.
const FEW: usize = 1000;
/// How long a first dispatch may take. Far above what is measured.
const PATIENCE: Duration = Duration::from_secs(120);

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let cluster = Cluster::start(bench, "postgres").map_err(reason);
    let long = bench.scale.backlog;
    let mut few = fleet(bench, &cluster, "few", FEW);
    let mut many = fleet(bench, &cluster, "many", long);
    let [many, few] = interleave("R5", [restarts(&mut many), restarts(&mut few)]);
    let comparison = Comparison {
        row: "R5",
        metric: "controller starts → first job starts",
        peer: "1,000 queued",
        unit: Unit::Milliseconds,
        aim: Aim::AtMost(5000.0),
        note: format!(
            "{long} jobs are queued in PostgreSQL, the controller was killed; its agent finds it again by itself"
        ),
    };
    table.rounds(&comparison, &many, &few);
}

/// A controller with an agent that gets nothing yet, and a queue.
struct Fleet {
    // Before the controller, so that it is stopped first.
    _agent: Daemon,
    controller: Controller,
}

fn fleet(bench: &Bench, cluster: &Measured<Cluster>, name: &str, jobs: usize) -> Measured<Fleet> {
    let cluster = cluster.as_ref().map_err(Clone::clone)?;
    let start = || {
        let controller = Controller::start(bench, name, &["--store", &cluster.url(&cluster.database()?)])?;
        let agent = controller.agent(bench, NODE)?;
        let started = Instant::now();
        while controller.api.get(&format!("/v1/nodes/{NODE}")).is_err() {
            ensure!(started.elapsed() < PATIENCE, "the agent does not register");
            std::thread::sleep(Duration::from_millis(50));
        }
        hold(&controller, "cordon")?;
        let mut created = 0;
        while created < jobs {
            let count = (jobs - created).min(1000);
            create(&controller, count)?;
            created += count;
        }
        anyhow::Ok(Fleet { _agent: agent, controller })
    };
    start().map_err(reason)
}

fn hold(controller: &Controller, verb: &str) -> anyhow::Result<()> {
    controller.api.post(&format!("/v1/nodes/{NODE}/{verb}"), &json!({})).map(drop)
}

fn restarts(fleet: &mut Measured<Fleet>) -> Measured<Subject<'_>> {
    let fleet = fleet.as_mut().map_err(|reason| reason.clone())?;
    Ok(subject(move || {
        let controller = &mut fleet.controller;
        settle(controller)?;
        let before = newest(controller)?;
        controller.kill();
        let start = Instant::now();
        controller.again()?;
        hold(controller, "uncordon")?;
        while newest(controller)? == before {
            ensure!(start.elapsed() < PATIENCE, "no job starts");
        }
        let took = start.elapsed().as_secs_f64() * 1e3;
        hold(controller, "cordon")?;
        Ok(vec![took])
    }))
}

/// How many jobs have begun, as far as a page tells.
fn newest(controller: &Controller) -> anyhow::Result<Vec<String>> {
    let list = controller
        .api
        .get("/v1/namespaces/default/jobs?phase=Running,Succeeded,Failed,TimedOut&limit=500")?;
    let items = list["items"].as_array().context("a list has items")?;
    let mut names: Vec<String> =
        items.iter().filter_map(|item| item["metadata"]["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// Waits until nothing runs.
fn settle(controller: &Controller) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let held = controller.api.get("/v1/namespaces/default/jobs?phase=Claimed,Running&limit=1")?;
        if held["items"].as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "jobs do not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}
