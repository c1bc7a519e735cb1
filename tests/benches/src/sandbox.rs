//! P1, P2 and S2: the sandbox alone, without controller and agent: how quickly a program is started in it and all of it is
//! taken apart, how many a second, and what of the kernel is in reach of the program.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use windlass_sandbox::egress::Proxy;
use windlass_sandbox::{
    Deadline, Driver, Lease, Limit, Native, SandboxConfig, Stream, UnitId, UnitSpec, Workspace,
};

use crate::bench::{Bench, Installed, run};
use crate::e2e::Docker;
use crate::rounds::{Measured, Subject, interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};

pub(crate) const PROGRAM: &str = "/bin/true";
/// What bubblewrap is asked for: as near to our sandbox as it comes, without cgroup, seccomp or supervisor.
const BWRAP: &str = "--unshare-all --die-with-parent --new-session --ro-bind /usr /usr --symlink usr/bin /bin \
                     --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp \
                     --cap-drop ALL";
/// How many are started at a time for a rate, on both sides.
const PARALLEL: usize = 4;
/// Prints how many system calls do something else than to say that they are forbidden or not there, the bits of the
/// capabilities in force, and whether none can be gained. Those that end a process or a host are not made; they count as in
/// reach or out of it on both sides alike.
const PROBE: &str = r#"
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
ends, denied = {60, 231}, {163, 167, 168, 169, 172, 173, 175, 176, 246, 313, 320}
reached = len(ends)
for number in set(range(470)) - ends - denied:
    child = os.fork()
    if child == 0:
        signal.alarm(1)
        answer = libc.syscall(number, *[ctypes.c_long(-1)] * 6)
        os._exit(answer == -1 and ctypes.get_errno() in (1, 38))
    status = os.waitpid(child, 0)[1]
    reached += status != 256 and os.WTERMSIG(status) != signal.SIGSYS
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(reached, bin(int(fields["CapEff"], 16) | int(fields["CapBnd"], 16)).count("1"), fields["NoNewPrivs"].strip())
"#;

/// Adds P1.
pub(crate) fn start(bench: &Bench, table: &mut Table) {
    let runs = bench.scale.latencies * 2;
    let ours = Ours::open(bench, "p1").map_err(reason);
    let bwrap = bench.install("bubblewrap").map_err(reason);
    let runc = Runc::prepare(bench).map_err(reason);
    let (ours, bwrap, runc) = (ours.as_ref(), bwrap.as_ref(), runc.as_ref());
    let [ours, bwrap, runc] = interleave(
        "P1",
        [
            ours.map(|ours| timed(runs, || ours.once())).map_err(Clone::clone),
            bwrap.map(|bwrap| timed(runs, || succeed(&mut bubblewrap(bwrap)))).map_err(Clone::clone),
            runc.map(|runc| timed(runs, || succeed(&mut runc.run()))).map_err(Clone::clone),
        ],
    );
    let mut comparison = Comparison {
        row: "P1",
        metric: "`true` in a sandbox, begin to removal, p50",
        peer: "bwrap",
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(0.75),
        note: "ours with cgroups, limits, seccomp, Landlock, supervisor and records; bwrap without"
            .to_owned(),
    };
    table.rounds(&comparison, &ours, &bwrap);
    comparison.peer = "runc run";
    comparison.aim = Aim::None;
    comparison.note.clear();
    table.rounds(&comparison, &ours, &runc);
    comparison.metric = "the same, p99 beside the peer's p50";
    comparison.peer = "bwrap";
    comparison.aim = Aim::RatioAtMost(1.5);
    let p99 = ours.as_ref().map(|rounds| rounds.percentile(99.0)).map_err(Clone::clone);
    table.values(&comparison, &p99, &bwrap.map(|rounds| rounds.median()));
}

/// A subject whose samples are the milliseconds of each of `runs` calls.
pub(crate) fn timed<'s>(runs: usize, mut start: impl FnMut() -> anyhow::Result<()> + 's) -> Subject<'s> {
    subject(move || {
        let sample = |_| {
            let began = Instant::now();
            start()?;
            Ok(began.elapsed().as_secs_f64() * 1000.0)
        };
        (0..runs).map(sample).collect()
    })
}

/// Adds P2.
pub(crate) fn rate(bench: &Bench, table: &mut Table) {
    let busy = bench.scale.busy;
    let ours = Ours::open(bench, "p2").map_err(reason);
    let bwrap = bench.install("bubblewrap").map_err(reason);
    let (ours, bwrap) = (ours.as_ref(), bwrap.as_ref());
    let [ours, bwrap] = interleave(
        "P2",
        [
            ours.map(|ours| subject(move || Ok(vec![ours.rate(busy)?]))).map_err(Clone::clone),
            bwrap
                .map(|bwrap| {
                    subject(move || {
                        let began = Instant::now();
                        let count = std::thread::scope(|scope| {
                            let starters = [(); PARALLEL].map(|()| {
                                scope.spawn(|| {
                                    let mut count = 0u32;
                                    while began.elapsed() < busy {
                                        succeed(&mut bubblewrap(bwrap))?;
                                        count += 1;
                                    }
                                    anyhow::Ok(count)
                                })
                            });
                            starters
                                .into_iter()
                                .map(|starter| starter.join().expect("it does not panic"))
                                .sum()
                        });
                        Ok(vec![per_second(count, began)?])
                    })
                })
                .map_err(Clone::clone),
        ],
    );
    let comparison = Comparison {
        row: "P2",
        metric: "`true` in sandboxes, four at a time",
        peer: "bwrap",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(2.0),
        note: String::new(),
    };
    table.rounds(&comparison, &ours, &bwrap);
}

fn per_second(count: anyhow::Result<u32>, began: Instant) -> anyhow::Result<f64> {
    Ok(f64::from(count?) / began.elapsed().as_secs_f64())
}

/// Adds S2.
pub(crate) fn surface(bench: &Bench, table: &mut Table) {
    eprintln!("S2: probing");
    let ours = Ours::open(bench, "s2").and_then(|ours| Surface::of(&ours.output(&["python3", "-c", PROBE])?));
    let ours = ours.map_err(reason);
    let docker = Docker::start(bench)
        .and_then(|docker| Surface::of(&run(&mut docker.host_program(&["/usr/bin/python3", "-c", PROBE]))?));
    let docker = docker.map_err(reason);
    let of =
        |side: &Measured<Surface>, what: fn(&Surface) -> f64| side.as_ref().map(what).map_err(Clone::clone);
    let mut comparison = Comparison {
        row: "S2",
        metric: "system calls in reach of a program",
        peer: "docker run",
        unit: Unit::Count,
        aim: Aim::RatioAtMost(0.9),
        note: "of 470, each made with arguments that make no sense; the peer with its default profile"
            .to_owned(),
    };
    table.values(&comparison, &of(&ours, |found| found.calls), &of(&docker, |found| found.calls));
    comparison.note.clear();
    comparison.metric = "capabilities that it has or may get";
    comparison.aim = Aim::AtMost(0.0);
    table.values(
        &comparison,
        &of(&ours, |found| found.capabilities),
        &of(&docker, |found| found.capabilities),
    );
    comparison.metric = "no_new_privs";
    comparison.aim = Aim::AtLeast(1.0);
    table.values(
        &comparison,
        &of(&ours, |found| found.no_new_privs),
        &of(&docker, |found| found.no_new_privs),
    );
}

/// What [`PROBE`] found.
struct Surface {
    calls: f64,
    capabilities: f64,
    no_new_privs: f64,
}

impl Surface {
    fn of(printed: &str) -> anyhow::Result<Self> {
        let numbers: Result<Vec<f64>, _> = printed.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok([calls, capabilities, no_new_privs]) => {
                Ok(Self { calls: *calls, capabilities: *capabilities, no_new_privs: *no_new_privs })
            }
            _ => anyhow::bail!("the probe printed {printed:?}"),
        }
    }
}

/// Our driver with a workspace and a lease.
pub(crate) struct Ours<'b> {
    bench: &'b Bench,
    pub(crate) native: Native,
    workspace: Workspace,
    lease: PathBuf,
    started: Cell<u64>,
}

impl<'b> Ours<'b> {
    pub(crate) fn open(bench: &'b Bench, name: &str) -> anyhow::Result<Self> {
        let folder = bench.folder(name)?;
        let mut config = SandboxConfig::new(folder.join("state"));
        // It is started from another folder.
        config.launcher = std::path::absolute(&bench.windlass)?;
        let native = bench.runtime.block_on(Native::open(config))?;
        let identity = native.identities().acquire("workspace")?;
        let workspace = Workspace::create(&folder, "workspace", identity)?;
        native.identities().release("workspace")?;
        // The units have users of their own, as attempts have.
        fs::set_permissions(workspace.path(), fs::Permissions::from_mode(0o711))?;
        let lease = folder.join("lease");
        Lease::create(&lease, Deadline::after(Duration::from_secs(7200)))?;
        Ok(Self { bench, native, workspace, lease, started: Cell::new(0) })
    }

    /// A unit of its own name.
    pub(crate) fn unit(&self, command: &[&str]) -> anyhow::Result<UnitSpec> {
        let number = self.started.get() + 1;
        self.started.set(number);
        let name = format!("bench-{number}");
        let mut unit = UnitSpec::new(
            UnitId::new(&*name)?,
            command.iter().map(|word| (*word).to_owned()).collect(),
            self.workspace.path().to_owned(),
            self.native.identities().acquire(&name)?,
            self.lease.clone(),
        );
        unit.limits.memory_bytes = Some(Limit::default_value(256 << 20));
        unit.limits.cpu_millis = Some(Limit::default_value(4000));
        unit.limits.pids = Some(Limit::default_value(64));
        Ok(unit)
    }

    /// Waits for something that is not a unit's.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.bench.runtime.block_on(future)
    }

    /// A unit from its preparation to its removal.
    pub(crate) async fn whole(&self, driver: &dyn Driver, unit: &UnitSpec) -> anyhow::Result<()> {
        driver.prepare(unit).await?;
        driver.start(&unit.id).await?;
        let exit = driver.wait(&unit.id).await?;
        driver.cleanup(&unit.id).await?;
        ensure!(exit.succeeded(), "the unit ended as {}: {:?}", exit.reason, exit.message);
        Ok(self.native.identities().release(unit.id.as_str())?)
    }

    /// From nothing to nothing.
    fn once(&self) -> anyhow::Result<()> {
        self.bench.runtime.block_on(async { self.whole(&self.native, &self.unit(&[PROGRAM])?).await })
    }

    /// Units a second, some at a time.
    fn rate(&self, busy: Duration) -> anyhow::Result<f64> {
        let began = Instant::now();
        let one_by_one = || async {
            let mut count = 0u32;
            while began.elapsed() < busy {
                self.whole(&self.native, &self.unit(&[PROGRAM])?).await?;
                count += 1;
            }
            anyhow::Ok(count)
        };
        let counts = self
            .bench
            .runtime
            .block_on(async { tokio::try_join!(one_by_one(), one_by_one(), one_by_one(), one_by_one()) })?;
        per_second(Ok(<[u32; PARALLEL]>::from(counts).iter().sum()), began)
    }

    /// Lets the users of all units write to the workspace.
    pub(crate) fn share_workspace(&self) -> anyhow::Result<()> {
        Ok(fs::set_permissions(self.workspace.path(), fs::Permissions::from_mode(0o1777))?)
    }

    /// Removes what programs have left in the workspace.
    pub(crate) fn empty_workspace(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.workspace.path())? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// What a program prints.
    pub(crate) fn output(&self, command: &[&str]) -> anyhow::Result<String> {
        self.printed(&self.unit(command)?, None)
    }

    /// What a unit prints, whose network this proxy serves.
    pub(crate) fn printed(&self, unit: &UnitSpec, proxy: Option<Arc<Proxy>>) -> anyhow::Result<String> {
        self.bench.runtime.block_on(async {
            self.native.prepare(unit).await?;
            self.native.start(&unit.id).await?;
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            if let (Some(proxy), Some(listener)) = (proxy, self.native.egress(&unit.id).await?) {
                tokio::spawn(proxy.serve(listener, async { drop(ended.await) }));
            }
            let exit = self.native.wait(&unit.id).await?;
            drop(end);
            let (mut printed, mut complaints) = (Vec::new(), Vec::new());
            let mut reader = self.native.output(&unit.id, 0);
            while let Some(chunk) = reader.next().await? {
                match chunk.stream {
                    Stream::Stdout => printed.extend(chunk.bytes),
                    Stream::Stderr => complaints.extend(chunk.bytes),
                }
            }
            self.native.cleanup(&unit.id).await?;
            ensure!(exit.succeeded(), "{:?}: {}", exit.message, String::from_utf8_lossy(&complaints));
            Ok(String::from_utf8(printed)?)
        })
    }
}

fn bubblewrap(installed: &Installed) -> Command {
    let mut command = installed.command("bwrap");
    command.args(BWRAP.split_ascii_whitespace()).arg(PROGRAM);
    command
}

pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{} ended with {status}", command.get_program().display());
    Ok(())
}

/// runc with a bundle of one static program, as its own `spec` makes it, without a terminal.
struct Runc {
    installed: Installed,
    bundle: PathBuf,
    state: PathBuf,
}

impl Runc {
    fn prepare(bench: &Bench) -> anyhow::Result<Self> {
        let (installed, bundle, state) =
            (bench.install("docker")?, bench.folder("runc")?, bench.folder("runc-state")?);
        let programs = bundle.join("rootfs/bin");
        fs::create_dir_all(&programs)?;
        fs::copy(installed.file("bin/busybox"), programs.join("busybox"))?;
        symlink("busybox", programs.join("true"))?;
        run(installed.command("runc").arg("spec").arg("--bundle").arg(&bundle))?;
        let path = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!([PROGRAM]);
        fs::write(&path, config.to_string())?;
        Ok(Self { installed, bundle, state })
    }

    fn run(&self) -> Command {
        let mut command = self.installed.command("runc");
        command
            .arg("--root")
            .arg(&self.state)
            .arg("run")
            .arg("--bundle")
            .arg(&self.bundle)
            .arg("windlass-bench");
        command
    }
}
