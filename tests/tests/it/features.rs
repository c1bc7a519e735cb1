//! The features in `tests/features`, read by people and run against real processes.
//!
//! A step is a sentence with a place for each value, and a function. A sentence that no step knows fails the feature, and so
//! does a step that no feature uses.

mod orchestrator;
mod runner;
mod steps;
mod world;

#[test]
fn nodes() {
    runner::run("nodes");
}

#[test]
fn config() {
    runner::run("config");
}

#[test]
fn jobs() {
    runner::run("jobs");
}

#[test]
fn claims() {
    runner::run("claims");
}

#[test]
fn worker() {
    runner::run("worker");
}

#[test]
fn every_feature_is_run_and_every_step_is_used() {
    let mut named = runner::features();
    named.sort();
    assert_eq!(named, ["claims", "config", "jobs", "nodes", "worker"], "each has a test of its own");
    assert_eq!(runner::unused(&named), [""; 0]);
}
