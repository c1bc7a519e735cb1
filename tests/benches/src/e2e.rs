//! P9: from submit to the durable result of `/bin/true`, seen by a watcher. P13: the same systems afterwards, idle.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;

use crate::bench::{Bench, Daemon, Installed, free_port, run};
use crate::footprint;
use crate::rounds::{interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};
use crate::windlass::{self, Windlass};

const PROGRAM: &str = "/bin/true";

/// Adds both rows: the second is about the systems that the first has used.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let windlass = Windlass::fleet(bench).map_err(reason);
    let slurm = Slurm::start(bench).map_err(reason);
    let docker = Docker::start(bench).map_err(reason);
    let jobs = bench.scale.jobs;
    let rounds = {
        let (windlass, slurm, docker) = (windlass.as_ref(), slurm.as_ref(), docker.as_ref());
        let subjects = [
            windlass.map(|windlass| subject(move || (0..jobs).map(|_| submit_and_watch(windlass)).collect())),
            windlass.map(|windlass| subject(move || repeat(jobs, || windlass_run(bench, windlass)))),
            slurm.map(|slurm| subject(move || repeat(jobs, || slurm.srun()))),
            docker.map(|docker| subject(move || repeat(jobs, || docker.run()))),
        ];
        interleave("P9", subjects.map(|subject| subject.map_err(Clone::clone)))
    };
    let [watched, by_command, srun, docker_run] = rounds;
    let mut comparison = Comparison {
        row: "P9",
        metric: "submit → result seen, p50",
        peer: "srun",
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(0.25),
        note: "ours over HTTPS, the result on disk before the watcher sees it; srun without cgroups or sandbox, its \
               state flushed later"
            .to_owned(),
    };
    table.rounds(&comparison, &watched, &srun);
    comparison.peer = "docker run";
    comparison.aim = Aim::RatioAtMost(0.04);
    "a static busybox, --rm --network none: no result is kept".clone_into(&mut comparison.note);
    table.rounds(&comparison, &watched, &docker_run);
    comparison.metric = "`windlass run -- /bin/true`, p50";
    comparison.peer = "srun";
    comparison.aim = Aim::None;
    "for orientation: a new client process on both sides".clone_into(&mut comparison.note);
    table.rounds(&comparison, &by_command, &srun);

    let slurmd = slurm.as_ref().map(|slurm| slurm.slurmd.pid()).map_err(Clone::clone);
    let dockerd =
        docker.as_ref().map(|docker| (docker.daemon.pid(), docker.installed.file("usr/sbin/dockerd")));
    footprint::measure(
        bench,
        table,
        windlass.as_ref().map(Windlass::pids).map_err(Clone::clone),
        slurmd,
        dockerd.map_err(Clone::clone),
    );
}

/// One job through the API: milliseconds until the watcher knows that it succeeded.
fn submit_and_watch(windlass: &Windlass) -> anyhow::Result<f64> {
    let job = windlass.api.submit(&[PROGRAM])?;
    let seen = windlass.api.ended(&job)?;
    Ok(seen.duration_since(job.sent).as_secs_f64() * 1e3)
}

/// One job through the command line.
fn windlass_run(bench: &Bench, windlass: &Windlass) -> Command {
    let mut command = windlass::program(bench);
    command.args(windlass.api.connection()).args(["run", "--", PROGRAM]);
    command
}

/// Runs a command so many times, one after another: milliseconds from start to end.
fn repeat(times: usize, mut command: impl FnMut() -> Command) -> anyhow::Result<Vec<f64>> {
    let mut once = || {
        let start = Instant::now();
        run(&mut command())?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    (0..times).map(|_| once()).collect()
}

/// A cluster of this one machine.
struct Slurm {
    installed: Installed,
    configuration: PathBuf,
    // In the order in which they are stopped.
    slurmd: Daemon,
    _slurmctld: Daemon,
    _munged: Daemon,
}

impl Slurm {
    fn start(bench: &Bench) -> anyhow::Result<Self> {
        let (installed, folder) = (bench.install("slurm")?, bench.folder("slurm")?);
        for name in ["ctld", "d"] {
            fs::create_dir(folder.join(name))?;
        }
        let file = |name: &str| folder.join(name).display().to_string();
        let (key, socket) = (file("munge.key"), folder.join("munge.sock"));
        run(installed.command("mungekey").args(["--create", "--keyfile", &key]))?;
        let mut command = installed.command("munged");
        command.args([
            "--foreground",
            "--force",
            "--key-file",
            &key,
            "--socket",
            &socket.display().to_string(),
        ]);
        for name in ["pid-file", "seed-file", "log-file"] {
            command.arg(format!("--{name}")).arg(file(&format!("munge.{name}")));
        }
        let munged = Daemon::start(&command, "munged", &folder)?.until(|| socket.exists())?;

        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let host = host.trim().split('.').next().expect("a split text has a first part");
        let cpus = std::thread::available_parallelism()?;
        let settings = [
            ("ClusterName", "bench".to_owned()),
            ("SlurmctldHost", format!("{host}(127.0.0.1)")),
            ("SlurmctldPort", free_port()?.to_string()),
            ("SlurmdPort", free_port()?.to_string()),
            ("SlurmUser", "root".to_owned()),
            ("AuthType", "auth/munge".to_owned()),
            ("AuthInfo", format!("socket={}", socket.display())),
            ("CredType", "cred/munge".to_owned()),
            ("PluginDir", installed.libraries().join("slurm-wlm").display().to_string()),
            ("StateSaveLocation", file("ctld")),
            ("SlurmdSpoolDir", file("d")),
            ("SlurmctldPidFile", file("slurmctld.pid")),
            ("SlurmdPidFile", file("slurmd.pid")),
            // The cheapest of everything: no cgroups, no accounting.
            ("ProctrackType", "proctrack/linuxproc".to_owned()),
            ("TaskPlugin", "task/none".to_owned()),
            ("JobAcctGatherType", "jobacct_gather/none".to_owned()),
            ("MpiDefault", "none".to_owned()),
            ("SelectType", "select/cons_tres".to_owned()),
            ("SelectTypeParameters", "CR_CPU".to_owned()),
            ("SlurmdParameters", "config_overrides".to_owned()),
            ("ReturnToService", "2".to_owned()),
            ("NodeName", format!("{host} NodeAddr=127.0.0.1 CPUs={cpus}")),
            ("PartitionName", format!("main Nodes={host} Default=YES MaxTime=INFINITE State=UP")),
        ];
        let configuration = folder.join("slurm.conf");
        let lines: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        fs::write(&configuration, lines.concat())?;

        let command = |program: &str| {
            let mut command = installed.command(program);
            command.env("SLURM_CONF", &configuration);
            command
        };
        let mut slurmctld = command("slurmctld-wlm");
        slurmctld.arg("-D");
        let slurmctld = Daemon::start(&slurmctld, "slurmctld", &folder)?;
        let mut slurmd = command("slurmd-wlm");
        slurmd.arg("-D").arg("-d").arg(installed.file("usr/sbin/slurmstepd-wlm"));
        let is_idle = || {
            run(command("sinfo").args(["--noheader", "--format=%T"]))
                .is_ok_and(|state| state.trim() == "idle")
        };
        let slurmd = Daemon::start(&slurmd, "slurmd", &folder)?.until(is_idle)?;
        Ok(Self { installed, configuration, slurmd, _slurmctld: slurmctld, _munged: munged })
    }

    fn srun(&self) -> Command {
        let mut command = self.installed.command("srun");
        command.arg(PROGRAM).env("SLURM_CONF", &self.configuration);
        command
    }
}

/// The cgroup of the containers; ours alone, so that it can be removed.
const CGROUP: &str = "windlass-bench-docker";

/// An archive of a system of one static program, made in `folder`.
pub(crate) fn busybox_archive(installed: &Installed, folder: &Path) -> anyhow::Result<PathBuf> {
    let root = folder.join("root-of-image");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(installed.file("bin/busybox"), root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/true"))?;
    let archive = folder.join("root.tar");
    run(Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&root)
        .arg("."))?;
    Ok(archive)
}

/// A Docker engine of our own, with an image of one static program.
pub(crate) struct Docker {
    installed: Installed,
    host: String,
    daemon: Daemon,
    // Removed once the daemon has ended.
    _cgroup: Cgroup,
}

/// What the daemon leaves: an empty cgroup in each hierarchy.
struct Cgroup;

impl Drop for Cgroup {
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies {
            // Most have none, and some are not hierarchies.
            fs::remove_dir(hierarchy.path().join(CGROUP)).ok();
        }
        fs::remove_dir(Path::new("/sys/fs/cgroup").join(CGROUP)).ok();
    }
}

impl Docker {
    pub(crate) fn start(bench: &Bench) -> anyhow::Result<Self> {
        let (installed, folder) = (bench.install("docker")?, bench.folder("docker")?);
        let host = format!("unix://{}", folder.join("docker.sock").display());
        let mut command = installed.command("dockerd");
        command.args(["--host", &host, "--bridge", "none", "--iptables=false", "--ip6tables=false"]);
        command.args(["--cgroup-parent", CGROUP]);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "docker.pid")] {
            command.arg(flag).arg(folder.join(name));
        }
        let client = || {
            let mut command = installed.command("docker");
            command.args(["--host", &host]);
            command
        };
        let daemon =
            Daemon::start(&command, "dockerd", &folder)?.until(|| run(client().arg("info")).is_ok())?;
        let archive = busybox_archive(&installed, &folder)?;
        run(client().arg("import").arg(&archive).arg("windlass-bench"))?;
        let this = Self { installed, host, daemon, _cgroup: Cgroup };
        run(&mut this.run()).context("while the system warms up")?;
        Ok(this)
    }

    /// A program of the host in a container.
    pub(crate) fn host_program(&self, program: &[&str]) -> Command {
        let mut command = self.installed.command("docker");
        command.args(["--host", &self.host, "run", "--rm", "--network", "none"]);
        for shown in ["/usr", "/lib", "/lib64"] {
            command.arg("--volume").arg(format!("{shown}:{shown}:ro"));
        }
        command.arg("windlass-bench").args(program);
        command
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.host.trim_start_matches("unix://").into()
    }

    pub(crate) fn run(&self) -> Command {
        let mut command = self.installed.command("docker");
        command.args(["--host", &self.host, "run", "--rm", "--network", "none", "windlass-bench", PROGRAM]);
        command
    }
}
