//! P13: what the systems take while they have nothing to do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::bench::Bench;
use crate::rounds::{Measured, reason};
use crate::table::{Aim, Comparison, Table, Unit};

/// In which /proc counts time; the kernel's interface on x86-64 and arm64, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process and all its descendants take.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Resident memory in MiB, pages shared between processes counted in each.
    rss: f64,
    /// The same with shared pages divided among those that share them.
    pss: f64,
    /// Seconds on a processor so far.
    seconds: f64,
}

/// Adds the row: our agent and controller, beside slurmd and dockerd (with its containerd).
pub(crate) fn measure(
    bench: &Bench,
    table: &mut Table,
    windlass: Measured<(u32, u32)>,
    slurmd: Measured<u32>,
    dockerd: Measured<(u32, PathBuf)>,
) {
    eprintln!("P13: idle for {} s", bench.scale.idle.as_secs());
    let agent = windlass.clone().map(|(agent, _)| agent);
    let controller = windlass.map(|(_, controller)| controller);
    let processes = [agent, controller, slurmd, dockerd.clone().map(|(pid, _)| pid)];
    let look = || processes.clone().map(|pid| usage(pid?).map_err(reason));
    let before = look();
    std::thread::sleep(bench.scale.idle);
    let mut before = before.into_iter();
    let idle = look().map(|after| {
        let (before, after) = (before.next().expect("there are as many as after")?, after?);
        let cpu = 100.0 * (after.seconds - before.seconds) / bench.scale.idle.as_secs_f64();
        Ok::<_, String>((after, cpu))
    });
    let [agent, controller, slurmd, dockerd_idle] = &idle;
    let of = |idle: &Measured<(Usage, f64)>, what: fn(&(Usage, f64)) -> f64| {
        idle.as_ref().map(what).map_err(Clone::clone)
    };
    let rss = |idle: &Measured<_>| of(idle, |(usage, _)| usage.rss);
    let cpu = |idle: &Measured<_>| of(idle, |(_, cpu)| *cpu);
    let pss = |idle: &Measured<_>| {
        of(idle, |(usage, _)| usage.pss).map_or("?".to_owned(), |pss| format!("{pss:.1}"))
    };

    let mut comparison = Comparison {
        row: "P13",
        metric: "agent, idle: RSS",
        peer: "slurmd",
        unit: Unit::MiB,
        aim: Aim::RatioAtMost(2.0),
        note: format!("PSS in MiB: {} beside {}", pss(agent), pss(slurmd)),
    };
    table.values(&comparison, &rss(agent), &rss(slurmd));
    comparison.peer = "dockerd";
    comparison.aim = Aim::None;
    comparison.note = format!("with containerd; its PSS: {}", pss(dockerd_idle));
    table.values(&comparison, &rss(agent), &rss(dockerd_idle));
    comparison.metric = "controller, idle: RSS";
    comparison.note = format!("PSS in MiB: {} beside {}", pss(controller), pss(dockerd_idle));
    table.values(&comparison, &rss(controller), &rss(dockerd_idle));

    comparison.metric = "agent, idle: share of a core";
    comparison.peer = "slurmd";
    comparison.unit = Unit::Percent;
    comparison.aim = Aim::AtMost(0.1);
    let resolution = 100.0 / TICKS_PER_SECOND / bench.scale.idle.as_secs_f64();
    comparison.note = format!("over {} s, to {resolution:.3} %", bench.scale.idle.as_secs());
    table.values(&comparison, &cpu(agent), &cpu(slurmd));
    comparison.metric = "controller, idle: share of a core";
    comparison.peer = "dockerd";
    comparison.aim = Aim::None;
    table.values(&comparison, &cpu(controller), &cpu(dockerd_idle));

    comparison.metric = "size of the program";
    comparison.unit = Unit::MiB;
    comparison.aim = Aim::RatioAtMost(0.25);
    "one program: agent, controller and command line".clone_into(&mut comparison.note);
    let program = size(&bench.windlass).map_err(reason);
    table.values(&comparison, &program, &dockerd.and_then(|(_, program)| size(&program).map_err(reason)));
}

fn size(program: &Path) -> anyhow::Result<f64> {
    let metadata = fs::metadata(program).with_context(|| format!("cannot examine {}", program.display()))?;
    Ok(mib(metadata.len() as f64))
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// What a process and its descendants take now.
fn usage(pid: u32) -> anyhow::Result<Usage> {
    let read = |path: String| fs::read_to_string(&path).with_context(|| format!("cannot read {path}"));
    let rollup = read(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |field: &str| -> anyhow::Result<f64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = line.and_then(|line| line.trim().strip_suffix("kB"));
        Ok(value.with_context(|| format!("process {pid} has no {field}"))?.trim().parse()?)
    };
    let stat = read(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may hold anything; fields 14 to 17 are times of the process, all its
    // threads, and the children that it has waited for.
    let fields = stat.rsplit_once(')').context("stat has the program's name")?.1.split_whitespace();
    let ticks: anyhow::Result<Vec<f64>> = fields.skip(11).take(4).map(|field| Ok(field.parse()?)).collect();
    let ticks = ticks?.iter().sum::<f64>();
    let mut all = Usage {
        rss: mib(kib("Rss")? * 1024.0),
        pss: mib(kib("Pss")? * 1024.0),
        seconds: ticks / TICKS_PER_SECOND,
    };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since.
        let Ok(children) = fs::read_to_string(task?.path().join("children")) else { continue };
        for child in children.split_whitespace() {
            let child = usage(child.parse()?)?;
            all.rss += child.rss;
            all.pss += child.pss;
            all.seconds += child.seconds;
        }
    }
    Ok(all)
}
