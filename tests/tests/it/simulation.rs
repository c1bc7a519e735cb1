//! A controller and three agents in virtual time, over a network that loses, delays, doubles and reorders, on hosts
//! that crash, for many seeds.
//!
//! What runs is the product: the controller's dispatch, sweeper and REST over a real store, and whole agents. Fake are
//! the network, the clock, the agents' disks (which lose what was not finished) and the sandbox (a state machine that
//! honours leases). A seed decides what is submitted, what goes wrong and what becomes of each call; a failing one
//! prints the command that runs it again. The order in which tokio wakes several waiters of one watch channel is the one
//! thing that no seed decides, so another run meets the same faults but not always in the same interleaving.

mod controller;
mod network;
mod nodes;
mod world;

use world::{Outcome, Plan, simulate};

/// Seeds of a run, split so that cores share them.
const SHARDS: u64 = 4;
const SEEDS: u64 = 100;

fn run(shard: u64) {
    let only = only_seed();
    let seeds =
        (0..SEEDS).filter(|seed| only.map_or(seed % SHARDS == shard, |only| *seed == only && shard == 0));
    let seeds: Vec<_> = match only {
        Some(seed) if shard == 0 => vec![seed],
        Some(_) => Vec::new(),
        None => seeds.collect(),
    };
    for seed in seeds {
        let Outcome { violations, trace } = simulate(&Plan::of(seed));
        assert!(
            violations.is_empty(),
            "seed {seed}:\n{}\nreplay it: WINDLASS_SIM_SEED={seed} cargo test -p windlass-tests --test it \
             simulation::seeds_0\nthe last of what happened:\n{}",
            violations.join("\n"),
            trace[trace.len().saturating_sub(60)..].join("\n")
        );
    }
}

fn only_seed() -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
    let seed = std::env::var("WINDLASS_SIM_SEED").ok()?;
    Some(seed.parse().expect("WINDLASS_SIM_SEED is a number"))
}

#[test]
fn seeds_0() {
    run(0);
}

#[test]
fn seeds_1() {
    run(1);
}

#[test]
fn seeds_2() {
    run(2);
}

#[test]
fn seeds_3() {
    run(3);
}
