//! Ten agents and a hundred jobs: each is done once, also when everything is killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use windlass_test_postgres::Server;

use super::fleet::{Fleet, Process, wait_for};
use super::shared::Shared;

/// How long a hundred jobs may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

fn agents(fleet: &Fleet, names: &[String]) -> Vec<Process> {
    let token = fleet.json(&["join-token", "create", "--uses", "20"]);
    let token = token["token"].as_str().expect("the token is text");
    let agents = names.iter().map(|name| fleet.run_agent(name, &["--join", token])).collect();
    for name in names {
        fleet.wait_until_node_is_ready(name);
    }
    agents
}

fn node_names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("n{number}")).collect()
}

fn jobs(fleet: &Fleet) -> Vec<Value> {
    // The controller may be away just now.
    let output = fleet.cli(&["get", "jobs", "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Waits until all of so many jobs have succeeded.
fn wait_for_success(fleet: &Fleet, count: usize) -> Vec<Value> {
    wait_for("all jobs have succeeded", PATIENCE, || {
        let jobs = jobs(fleet);
        let failed = jobs.iter().find(|job| job["status"]["phase"] == "Failed");
        assert_eq!(failed, None, "{}", fleet.controller.log());
        let done = jobs.iter().filter(|job| job["status"]["phase"] == "Succeeded").count();
        (done == count).then_some(jobs)
    })
}

fn once_each(count: usize) -> BTreeMap<String, usize> {
    (1..=count).map(|number| (format!("job-{number}"), 1)).collect()
}

fn a_hundred_jobs_on_ten_agents(store: &[&str]) {
    let fleet = Fleet::with(store);
    let nodes = node_names(10);
    let shared = Shared::with(&fleet, &nodes);
    let _agents = agents(&fleet, &nodes);
    let manifests: Vec<String> = (1..=100).map(|n| shared.job(&format!("job-{n}"), "", ":")).collect();
    fleet.apply(&manifests.join("---\n"));
    let jobs = wait_for_success(&fleet, 100);
    assert_eq!(shared.noted("end"), once_each(100), "each was done once");
    assert_eq!(shared.noted("start"), once_each(100), "none was begun again");
    assert_eq!(shared.noted("twice"), BTreeMap::new());
    assert!(jobs.iter().all(|job| job["status"]["attempts"] == 1));
    let used: BTreeSet<&str> = jobs.iter().filter_map(|job| job["status"]["node"].as_str()).collect();
    assert!(used.len() > 1, "several agents shared the work: {used:?}");
}

#[test]
fn a_hundred_jobs_on_ten_agents_are_each_done_once_with_sqlite() {
    a_hundred_jobs_on_ten_agents(&[]);
}

#[test]
fn a_hundred_jobs_on_ten_agents_are_each_done_once_with_postgresql() {
    let database = Server::shared().database();
    a_hundred_jobs_on_ten_agents(&["--store", &database.url()]);
    database.remove();
}

#[test]
fn three_jobs_on_three_agents_are_three_different_ones() {
    let fleet = Fleet::start();
    let nodes = node_names(3);
    let shared = Shared::with(&fleet, &nodes);
    let manifests: Vec<String> = nodes.iter().map(|node| shared.node(node, "  concurrency: 1\n")).collect();
    fleet.apply(&manifests.join("---\n"));
    let _agents = agents(&fleet, &nodes);
    // Each waits for the two others, so none of them ends before all three run.
    let work = "touch /workspace/shared/here-$WINDLASS_JOB_NAME\n\
                until [ \"$(ls /workspace/shared | grep -c '^here-')\" = 3 ]; do sleep 0.1; done";
    let manifests: Vec<String> = (1..=3).map(|n| shared.job(&format!("job-{n}"), "", work)).collect();
    fleet.apply(&manifests.join("---\n"));
    let jobs = wait_for_success(&fleet, 3);
    let used: BTreeSet<&str> = jobs.iter().filter_map(|job| job["status"]["node"].as_str()).collect();
    assert_eq!(used.len(), 3, "{used:?}");
    assert_eq!(shared.noted("end"), once_each(3));
}

/// Kills agents, the controller and what `kill_store` kills while a hundred jobs are done.
fn kills_in_the_middle(store: &[&str], kill_store: impl Fn()) {
    let mut fleet = Fleet::with(store);
    let nodes = node_names(10);
    let shared = Shared::with(&fleet, &nodes);
    // A claim whose answer dies with its agent is given back when the lease ends, which is that of work that continues.
    let manifests: Vec<String> =
        nodes.iter().map(|node| shared.node(node, "  offlineGrace: 60s\n")).collect();
    fleet.apply(&manifests.join("---\n"));
    let mut agents = agents(&fleet, &nodes);
    let job = |n: usize| shared.job(&format!("job-{n}"), "  offline: continue\n", "sleep 0.5");
    let manifests: Vec<String> = (1..=100).map(job).collect();
    fleet.apply(&manifests.join("---\n"));
    let begun = |count: usize| {
        wait_for(&format!("{count} jobs have begun"), PATIENCE, || {
            (shared.noted("start").len() >= count).then_some(())
        });
    };
    begun(10);
    for (name, agent) in nodes.iter().zip(&mut agents).take(4) {
        agent.kill();
        *agent = fleet.run_agent(name, &[]);
    }
    begun(25);
    fleet.controller.kill();
    fleet.restart_controller();
    begun(40);
    kill_store();
    begun(55);
    fleet.controller.kill();
    for (name, agent) in nodes.iter().zip(&mut agents).skip(6) {
        agent.kill();
        *agent = fleet.run_agent(name, &[]);
    }
    fleet.restart_controller();
    let jobs = wait_for_success(&fleet, 100);
    assert_eq!(shared.noted("end"), once_each(100), "none is lost and none was completed twice");
    assert_eq!(shared.noted("twice"), BTreeMap::new(), "none ran twice at once");
    let again: Vec<&Value> = jobs.iter().filter(|job| job["status"]["attempts"] != 1).collect();
    let begun_again = shared.noted("start").values().filter(|count| **count > 1).count();
    assert!(begun_again <= again.len(), "what was begun again was another attempt: {again:?}");
}

#[test]
fn kills_of_agents_and_controller_lose_no_job_and_complete_none_twice_with_sqlite() {
    kills_in_the_middle(&[], || {});
}

#[test]
fn kills_of_agents_controller_and_database_lose_no_job_and_complete_none_twice_with_postgresql() {
    let server = Server::own();
    server.psql("postgres", "CREATE DATABASE fleet");
    kills_in_the_middle(&["--store", &server.url("fleet")], || {
        server.kill();
        server.start();
    });
}
