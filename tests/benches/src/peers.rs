//! `make bench`: what this project promises, measured beside its peers in the same run.
//!
//! Peers are installed by `peers/setup.sh` below the user's cache folder; the databases of all of them and of us are there,
//! too, so that everything is flushed to the same disk. Rounds are interleaved (`rounds`), the table says what was
//! hit and what was missed (`table`). Daemons are children of this process and end with it.
//!
//! The exit code tells whether every figure could be taken, not whether every aim was hit.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its table, and what it does")]

mod bench;
mod bloat;
mod claim_cost;
mod container;
mod dispatch;
mod drain;
mod drain_pg;
mod e2e;
mod escape;
mod features;
mod footprint;
mod kube;
mod notify;
mod placement;
mod postgres;
mod proxy;
mod restart;
mod rounds;
mod sandbox;
mod stats;
mod submit;
mod table;
mod windlass;
mod work;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use tokio::runtime::Runtime;

use crate::bench::{Bench, Scale};
use crate::stats::{median, percentile};
use crate::table::Table;

/// Measure Windlass beside its peers.
#[derive(Parser, Debug)]
struct Args {
    /// Measure as much as is promised: an hour and a half, in place of three minutes a row at most.
    #[arg(long)]
    full: bool,

    /// Measure little. This is the default.
    #[arg(long, conflicts_with = "full")]
    quick: bool,

    /// Measure only these rows. The flag may be given more than once.
    #[arg(long, value_enum, ignore_case = true)]
    row: Vec<Row>,

    /// The program to measure, in place of the one that was built beside this one.
    #[arg(long, value_name = "PATH")]
    windlass: Option<PathBuf>,

    #[arg(long, hide = true, env = "XDG_CACHE_HOME")]
    cache: Option<PathBuf>,

    #[arg(long, hide = true, env = "PATH")]
    path: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    P1,
    P2,
    P3,
    /// What the proxy of a restricted network takes.
    P3p,
    P4,
    P5,
    P6,
    P7,
    P8,
    /// With P13, which is about the same systems.
    P9,
    P11,
    P14,
    R1,
    R5,
    S1,
    S2,
    /// What a claim costs with long queues and many classes.
    Cost,
    /// What each part of a sandbox costs.
    P1c,
}

/// Measures a row and writes it into the table.
type Measure = fn(&Bench, &mut Table);

impl Row {
    /// All of them, and how each is measured.
    const ALL: [(Self, Measure); 18] = [
        (Self::P1, sandbox::start),
        (Self::P1c, features::measure),
        (Self::P2, sandbox::rate),
        (Self::P3, container::measure),
        (Self::P3p, proxy::measure),
        (Self::P4, drain_pg::measure),
        (Self::P5, drain::measure),
        (Self::P6, submit::measure),
        (Self::P7, notify::measure),
        (Self::P8, dispatch::measure),
        (Self::P9, e2e::measure),
        (Self::P11, placement::measure),
        (Self::P14, kube::measure),
        (Self::R1, bloat::measure),
        (Self::R5, restart::measure),
        (Self::S1, escape::measure),
        (Self::S2, sandbox::surface),
        (Self::Cost, claim_cost::measure),
    ];
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { full, quick: _, row: rows, windlass, cache, path } = Args::parse();
    let cache = match cache {
        Some(cache) => cache,
        None => std::env::home_dir().context("there is no home folder for a cache")?.join(".cache"),
    };
    let cache = cache.join("windlass-bench");
    let bench = Bench {
        work: work_folder(&cache)?,
        cache,
        windlass: windlass.map_or_else(beside_this_program, Ok)?,
        path,
        scale: if full { Scale::FULL } else { Scale::QUICK },
        runtime: Runtime::new()?,
    };
    println!("{}", machine(&bench.work)?);
    for peer in ["node", "python", "redis", "postgres", "slurm", "docker", "podman", "bubblewrap"] {
        // What cannot be installed is told by the rows that need it.
        if let Ok(installed) = bench.install(peer) {
            println!("{}", installed.versions);
        }
    }
    let start = Instant::now();
    let mut table = Table::default();
    for (row, measure) in Row::ALL {
        if rows.is_empty() || rows.contains(&row) {
            measure(&bench, &mut table);
        }
    }
    println!("\n{table}\nmeasured in {} s", start.elapsed().as_secs());
    fs::remove_dir_all(&bench.work).with_context(|| format!("cannot remove {}", bench.work.display()))?;
    Ok(if table.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the folder of this run, and removes those of runs that were killed.
fn work_folder(cache: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("run-")) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let folder = cache.join(format!("run-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// `target/release/windlass`, beside `target/release/windlass-bench`.
fn beside_this_program() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("windlass"))
}

/// What the figures were measured on, and what a flush to its disk takes: near zero means that nothing is durable.
fn machine(folder: &Path) -> anyhow::Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut file = File::create(folder.join("flush"))?;
    let mut flush = || {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        anyhow::Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let flushes: Vec<f64> = (0..100).map(|_| flush()).collect::<Result<_, _>>()?;
    Ok(format!(
        "{} cores, Linux {}, a flush of 4 KiB takes {:.2} ms (p99 {:.2})",
        std::thread::available_parallelism()?,
        kernel.trim(),
        median(&flushes),
        percentile(&flushes, 99.0),
    ))
}
