//! What each part of a sandbox costs: the plan of a real unit, and the same plan without one part, by turns. What a part costs is
//! the difference, so that nobody adds a millisecond unseen. Namespaces that no unit can do without are measured alone, as
//! `unshare` makes them around a program.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use windlass_launcher::Spawner;
use windlass_launcher::record::{self, Reply};
use windlass_sandbox::Driver as _;

use crate::bench::Bench;
use crate::rounds::{Rounds, Subject, interleave, reason, subject};
use crate::sandbox::Ours;
use crate::table::{Aim, Table, Unit};

/// A part, and the steps of a plan that make it.
struct Part {
    name: &'static str,
    steps: &'static [&'static str],
    /// What else of a plan goes with it.
    strip: fn(&mut Value),
}

const fn nothing(_: &mut Value) {}

const PARTS: [Part; 13] = [
    Part { name: "a template", steps: &[], strip: nothing },
    Part { name: "nothing (the same plan again)", steps: &[], strip: nothing },
    Part {
        name: "network namespace that served before",
        steps: &[],
        strip: |launch| launch["base"]["network"] = "host".into(),
    },
    Part {
        name: "time namespace",
        steps: &[],
        strip: |launch| launch["base"]["time_namespace"] = false.into(),
    },
    Part { name: "cgroup namespace", steps: &["HideCgroups"], strip: nothing },
    Part {
        name: "entering and reading cgroups",
        steps: &["JoinCgroups"],
        strip: |launch| launch["cgroups"] = Value::Null,
    },
    Part {
        name: "devices but null",
        steps: &[],
        strip: |launch| {
            let steps = launch["base"]["steps"].as_array_mut();
            let is_other =
                |step: &Value| name_of(step) == "ShowDevice" && step["ShowDevice"]["target"] != "dev/null";
            steps.into_iter().for_each(|steps| steps.retain(|step| !is_other(step)));
        },
    },
    Part {
        name: "scratch folders, and Landlock",
        steps: &["MountScratch", "SizeScratch", "ShowScratch", "ShowFile", "Landlock"],
        strip: nothing,
    },
    Part {
        name: "/proc, masked and read-only",
        steps: &["MountProc", "Mask", "Tune", "Freeze"],
        strip: nothing,
    },
    Part { name: "of that, masks alone", steps: &["Mask"], strip: nothing },
    Part { name: "Landlock", steps: &["Landlock"], strip: nothing },
    Part { name: "seccomp with notification", steps: &["Seccomp"], strip: nothing },
    Part {
        name: "capabilities, limits, host name",
        steps: &["DropCapabilities", "Limit", "SetHostname", "Umask"],
        strip: nothing,
    },
];

/// Namespaces as `unshare` names them, each with those before.
const NAMESPACES: [(&str, &str); 7] = [
    ("fork and exec alone", ""),
    ("user namespace", "-U"),
    ("mount namespace", "-Um"),
    ("pid namespace", "-Ump"),
    ("IPC namespace", "-Umpi"),
    ("host name namespace", "-Umpiu"),
    ("network namespace", "-Umpiun"),
];

/// Adds the costs.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    match parts(bench) {
        Ok(lines) => lines.into_iter().for_each(|(name, cost)| add(table, &name, cost)),
        Err(error) => table.failed("P1c", "what parts of a sandbox cost", &reason(error)),
    }
    match namespaces(bench) {
        Ok(lines) => lines.into_iter().for_each(|(name, cost)| add(table, &name, cost)),
        Err(error) => table.failed("P1c", "what namespaces cost", &reason(error)),
    }
}

fn add(table: &mut Table, name: &str, cost: f64) {
    table.alone("P1c", name, cost, Unit::Milliseconds, Aim::None);
}

/// A plan on disk, and a spawner that carries it out.
struct Launches {
    spawner: Spawner,
    folder: PathBuf,
    made: std::cell::Cell<u32>,
}

impl Launches {
    /// From the request to the end of the supervisor's work.
    fn once(&self, plan: &Value) -> anyhow::Result<f64> {
        let number = self.made.get();
        self.made.set(number + 1);
        let dir = self.folder.join(number.to_string());
        fs::create_dir(&dir)?;
        record::publish(&dir, record::PLAN, plan)?;
        let began = Instant::now();
        let mut answer = fs::File::from(self.spawner.launch(&dir)?);
        let reply: Reply = serde_json::from_reader(&mut answer).context("the supervisor did not answer")?;
        let exit = dir.join(record::EXIT);
        match reply {
            Reply::Started | Reply::Ended => {}
            Reply::AlreadyStarted => bail!("it was started before"),
            Reply::Failed { message } => bail!("{message}"),
        }
        while !exit.exists() {
            std::thread::yield_now();
        }
        let took = began.elapsed().as_secs_f64() * 1000.0;
        let ended: Value = serde_json::from_slice(&fs::read(&exit)?)?;
        ensure!(ended["code"] == 0, "{ended}");
        fs::remove_dir_all(&dir)?;
        Ok(took)
    }
}

fn parts(bench: &Bench) -> anyhow::Result<Vec<(String, f64)>> {
    let ours = Ours::open(bench, "p1c")?;
    let unit = ours.unit(&["/bin/true"])?;
    bench.runtime.block_on(ours.native.prepare(&unit))?;
    let state = &ours.native.config().state_dir;
    let planned: Value =
        serde_json::from_slice(&fs::read(state.join("units").join(unit.id.as_str()).join(record::PLAN))?)?;
    let launches = Launches {
        spawner: Spawner::start(&std::path::absolute(&bench.windlass)?)?,
        folder: bench.folder("p1c-units")?,
        made: std::cell::Cell::default(),
    };
    let runs = bench.scale.latencies;
    // For as long as there is a spare, there is what it begins with.
    let base = serde_json::value::to_raw_value(&planned["launch"]["base"])?;
    let _spare = launches.spawner.make_spare(base.get(), false)?;
    let with = |part: Option<&Part>| -> Subject<'_> {
        let mut plan = planned.clone();
        if let Some(part) = part {
            // Each makes all of it for itself, so that parts can be left out.
            plan["launch"]["base"]["template"] = Value::Null;
            for list in ["base", "own"] {
                let steps = plan["launch"][list]["steps"].as_array_mut();
                steps.into_iter().for_each(|steps| steps.retain(|step| !part.steps.contains(&name_of(step))));
            }
            (part.strip)(&mut plan["launch"]);
        }
        let launches = &launches;
        subject(move || (0..runs).map(|_| launches.once(&plan)).collect())
    };
    let mut subjects: Vec<Subject<'_>> = vec![with(None)];
    subjects.extend(PARTS.iter().map(|part| with(Some(part))));
    let subjects: [Subject<'_>; PARTS.len() + 1] =
        subjects.try_into().ok().context("there is one subject for each part")?;
    let rounds = interleave("P1c", subjects.map(Ok));
    let [whole, alone, rest @ ..] = rounds;
    let [whole, alone] = [whole, alone].map(|rounds| rounds.map(|rounds| undisturbed(&rounds)));
    let (whole, alone) = (whole.map_err(anyhow::Error::msg)?, alone.map_err(anyhow::Error::msg)?);
    let mut lines = vec![
        ("a whole sandbox without a spare".to_owned(), whole),
        ("one that begins without a template".to_owned(), alone),
    ];
    for (part, without) in PARTS[1..].iter().zip(rest) {
        let without = without.map_err(|problem| anyhow::anyhow!("without {}: {problem}", part.name))?;
        lines.push((part.name.to_owned(), alone - undisturbed(&without)));
    }
    bench.runtime.block_on(ours.native.cleanup(&unit.id))?;
    Ok(lines)
}

/// What it takes when nothing else is in the way: differences of a few microseconds drown in what a busy machine adds.
fn undisturbed(rounds: &Rounds) -> f64 {
    rounds.percentile(10.0)
}

/// The kind of a step, as it is written.
fn name_of(step: &Value) -> &str {
    match step {
        Value::String(name) => name,
        Value::Object(fields) => fields.keys().next().map_or("", String::as_str),
        _ => "",
    }
}

fn namespaces(bench: &Bench) -> anyhow::Result<Vec<(String, f64)>> {
    let runs = bench.scale.latencies;
    let around = |flags: &'static str| -> Subject<'static> {
        subject(move || {
            let once = |_| {
                let began = Instant::now();
                let mut command = match flags {
                    "" => Command::new("true"),
                    flags => {
                        let mut command = Command::new("unshare");
                        command.args([flags, "--fork", "true"]);
                        command
                    }
                };
                let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
                ensure!(status.success(), "unshare {flags} ended with {status}");
                Ok(began.elapsed().as_secs_f64() * 1000.0)
            };
            (0..runs).map(once).collect()
        })
    };
    let rounds = interleave("P1c", NAMESPACES.map(|(_, flags)| Ok(around(flags))));
    let mut lines = Vec::new();
    let mut before = 0.0;
    for ((name, flags), rounds) in NAMESPACES.iter().zip(rounds) {
        let took = undisturbed(&rounds.map_err(anyhow::Error::msg)?);
        // The second has the program that makes them, too.
        let name = if *flags == "-U" { format!("{name}, and `unshare` itself") } else { (*name).to_owned() };
        lines.push((name, took - before));
        before = took;
    }
    Ok(lines)
}
