//! A controller and a fleet of agents in virtual time, over a network that loses, delays, doubles and reorders, on hosts
//! that crash, for many seeds.
//!
//! What runs is the product: the controller's dispatch, sweeper and REST over a real store, and whole agents. Fake are
//! the network, the clocks, the agents' disks (which lose what was not finished) and the sandbox (a state machine that
//! honours leases). A seed decides all: what is submitted, what goes wrong, what becomes of each call, and the order
//! in which everything happens. A failing one prints the command that runs it again, to the same end.
//!
//! *How it is the same again*: one thread, whose runtime wakes tasks in a fixed order; time that moves only when all of
//! them wait; and a controller that is asked one thing at a time, while time stands still.

mod controller;
mod link;
mod network;
mod nodes;
mod operator;
mod oracle;
mod plan;
mod wire;
mod world;

use plan::Plan;
use world::{Outcome, simulate};

/// Tests that share the seeds, so that cores share them.
const SHARDS: u64 = 4;
/// Seeds of an ordinary run. `make test-sim` asks for more.
const SEEDS: u64 = 100;

/// Lines of its trace that a failing seed shows; `WINDLASS_SIM_LINES` asks for others.
const LINES: usize = 80;

fn run(shard: u64) {
    let seeds: Vec<u64> = match number("WINDLASS_SIM_SEED") {
        Some(seed) => (shard == 0).then_some(seed).into_iter().collect(),
        None => {
            let first = number("WINDLASS_SIM_FIRST").unwrap_or(0);
            let count = number("WINDLASS_SIM_SEEDS").unwrap_or(SEEDS);
            (first..first + count).filter(|seed| seed % SHARDS == shard).collect()
        }
    };
    for seed in seeds {
        let Outcome { violations, trace, digest: _ } = simulate(&Plan::of(seed));
        let lines = number("WINDLASS_SIM_LINES").and_then(|lines| lines.try_into().ok()).unwrap_or(LINES);
        assert!(
            violations.is_empty(),
            "seed {seed} violates:\n{}\n\nits plan: {:?}\n\nthe last of what happened:\n{}\n\nreplay it: \
             WINDLASS_SIM_SEED={seed} cargo test -p windlass-tests --test it simulation::seeds_0",
            violations.join("\n"),
            Plan::of(seed),
            trace[trace.len().saturating_sub(lines)..].join("\n"),
        );
    }
}

/// A number in the environment, where there is one.
fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
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

#[test]
fn a_seed_leads_to_the_same_end_by_the_same_way_each_time() {
    for seed in 0..3 {
        let (one, other) = (simulate(&Plan::of(seed)), simulate(&Plan::of(seed)));
        assert!(one.trace.len() > 50, "seed {seed} does next to nothing: {:?}", one.trace);
        for (position, (one, other)) in one.trace.iter().zip(&other.trace).enumerate() {
            assert_eq!(one, other, "seed {seed} differs at line {position} of its trace");
        }
        assert_eq!((one.trace.len(), one.digest), (other.trace.len(), other.digest), "seed {seed}");
    }
}
