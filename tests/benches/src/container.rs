//! P3: a step from an image that is on the node, without network: through the engines beside their own commands, and unpacked for
//! the native runtime beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use windlass_sandbox::engine::{
    Containers, ContainersConfig, EngineKind, ImageRequest, Pull, Reference, probe,
};
use windlass_sandbox::image::Source;
use windlass_sandbox::{Container, LocalImage, SystemRoot};

use crate::bench::{Bench, Daemon, Installed, run};
use crate::e2e::{Docker, busybox_archive};
use crate::rounds::{Measured, interleave, reason};
use crate::sandbox::{Ours, PROGRAM, succeed, timed};
use crate::table::{Aim, Comparison, Table, Unit};

const IMAGE: &str = "localhost/windlass-bench:1";

/// Adds P3.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let runs = bench.scale.jobs;
    let podman = Podman::start(bench).map_err(reason);
    let docker = Docker::start(bench).map_err(reason);
    let native = native(bench, podman.as_ref().map_err(Clone::clone)).map_err(reason);
    let through_podman = podman.as_ref().map_err(Clone::clone).and_then(|podman| {
        through(bench, "p3-podman", EngineKind::Podman, &podman.folder.join("socket"), IMAGE).map_err(reason)
    });
    let through_docker = docker.as_ref().map_err(Clone::clone).and_then(|docker| {
        through(
            bench,
            "p3-docker",
            EngineKind::Docker,
            &docker.socket(),
            "docker.io/library/windlass-bench:latest",
        )
        .map_err(reason)
    });
    let step = |side: &'_ Measured<(Ours<'_>, Step)>| match side {
        Ok(_) => Ok(()),
        Err(error) => Err(error.clone()),
    };
    let subjects = [
        step(&native)
            .and_then(|()| native.as_ref().map_err(Clone::clone))
            .map(|(ours, how)| timed(runs, || once(ours, how))),
        through_podman.as_ref().map_err(Clone::clone).map(|(ours, how)| timed(runs, || once(ours, how))),
        podman.as_ref().map_err(Clone::clone).map(|podman| timed(runs, || succeed(&mut podman.run()))),
        through_docker.as_ref().map_err(Clone::clone).map(|(ours, how)| timed(runs, || once(ours, how))),
        docker.as_ref().map_err(Clone::clone).map(|docker| timed(runs, || succeed(&mut docker.run()))),
    ];
    let [native, by_podman, podman, by_docker, docker] = interleave("P3", subjects);
    let mut comparison = Comparison {
        row: "P3",
        metric: "step from an unpacked image, native",
        peer: "podman run",
        unit: Unit::Milliseconds,
        aim: Aim::RatioAtMost(0.1),
        note: "the same image; ours with limits, supervisor and records on disk".to_owned(),
    };
    table.rounds(&comparison, &native, &podman);
    comparison.peer = "docker run";
    comparison.aim = Aim::None;
    comparison.note.clear();
    table.rounds(&comparison, &native, &docker);
    comparison.metric = "step through Podman";
    comparison.peer = "podman run";
    comparison.aim = Aim::RatioAtMost(1.1);
    "--rm --network none on both sides; ours over the engine's socket, with a supervisor of its own"
        .clone_into(&mut comparison.note);
    table.rounds(&comparison, &by_podman, &podman);
    comparison.metric = "step through Docker";
    comparison.peer = "docker run";
    comparison.note.clear();
    table.rounds(&comparison, &by_docker, &docker);
}

/// How a unit comes by its system.
enum Step {
    Native(Box<SystemRoot>),
    Engine(Containers, Container),
}

/// From nothing to nothing.
fn once(ours: &Ours<'_>, how: &Step) -> anyhow::Result<()> {
    let mut unit = ours.unit(&[PROGRAM])?;
    ours.block_on(async {
        match how {
            Step::Native(system) => {
                unit.system = Some((**system).clone());
                ours.whole(&ours.native, &unit).await
            }
            Step::Engine(containers, container) => {
                unit.container = Some(container.clone());
                ours.whole(containers, &unit).await
            }
        }
    })
}

/// The image, saved by Podman and unpacked by us.
fn native<'b>(bench: &'b Bench, podman: Result<&Podman, String>) -> anyhow::Result<(Ours<'b>, Step)> {
    let podman = podman.map_err(anyhow::Error::msg)?;
    let ours = Ours::open(bench, "p3-native")?;
    let path = bench.folder("p3-image")?.join("image.tar");
    run(podman.command().args(["save", "--format", "oci-archive", "-o"]).arg(&path).arg(IMAGE))?;
    let image =
        LocalImage { source: Source::OciArchive, path: fs::canonicalize(path)?, name: None, digest: None };
    let unpacked = bench.runtime.block_on(ours.native.images().ensure(&image, None, |_| {}))?;
    Ok((ours, Step::Native(Box::new(SystemRoot::new(unpacked.clone())))))
}

/// Our driver for an engine.
fn through<'b>(
    bench: &'b Bench,
    name: &str,
    kind: EngineKind,
    socket: &Path,
    image: &str,
) -> anyhow::Result<(Ours<'b>, Step)> {
    let ours = Ours::open(bench, name)?;
    let config = ContainersConfig {
        kind,
        socket: socket.to_owned(),
        state_dir: bench.folder(&format!("{name}-state"))?,
        launcher: std::path::absolute(&bench.windlass)?,
    };
    let containers = bench.runtime.block_on(async {
        let info = probe::probe(kind, socket).await.answer.map_err(anyhow::Error::msg)?;
        anyhow::Ok(Containers::open(config, info)?)
    })?;
    let (name, tag) = image.rsplit_once(':').context("an image has a tag")?;
    let reference = Reference { name: name.to_owned(), tag: Some(tag.to_owned()), digest: None };
    let request = ImageRequest { reference, pull: Pull::Never, auth_file: None };
    let found = bench.runtime.block_on(containers.ensure_image(&request, &mut |_| {}))?;
    let container = Container::new(kind, found.id, image);
    Ok((ours, Step::Engine(containers, container)))
}

/// A Podman of our own, with an image of one static program.
struct Podman {
    installed: Installed,
    folder: PathBuf,
    runtime: Installed,
    // Ended before its folder is removed.
    _service: Option<Daemon>,
}

impl Podman {
    fn start(bench: &Bench) -> anyhow::Result<Self> {
        let folder = bench.folder("podman")?;
        let mut this = Self {
            installed: bench.install("podman")?,
            folder,
            runtime: bench.install("docker")?,
            _service: None,
        };
        this.write_settings()?;
        let archive = busybox_archive(&this.runtime, &this.folder)?;
        run(this.command().arg("import").arg(&archive).arg(IMAGE))?;
        let socket = this.folder.join("socket");
        let mut service = this.command();
        service.args(["system", "service", "--time", "0"]).arg(format!("unix://{}", socket.display()));
        let connects = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        this._service = Some(Daemon::start(&service, "podman-service", &this.folder)?.until(connects)?);
        run(&mut this.run()).context("while the system warms up")?;
        Ok(this)
    }

    fn write_settings(&self) -> anyhow::Result<()> {
        let write = |name: &str, text: String| fs::write(self.folder.join(name), text);
        let conmon = ["usr/bin/conmon", "usr/libexec/podman/conmon"].map(|path| self.installed.file(path));
        let conmon = conmon.iter().find(|path| path.exists()).context("the package conmon has no conmon")?;
        write(
            "containers.conf",
            format!(
                "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nconmon_path = [\"{}\"]\n\
                 [engine.runtimes]\nrunc = [\"{}\"]\n[containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=1024:1024\"]\n",
                conmon.display(),
                self.runtime.file("usr/sbin/runc").display()
            ),
        )?;
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n",
                self.folder.display()
            ),
        )?;
        write("registries.conf", "unqualified-search-registries = []\n".to_owned())?;
        write("policy.json", "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}".to_owned())?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = self.installed.command("podman");
        for (name, file) in [
            ("CONTAINERS_CONF", "containers.conf"),
            ("CONTAINERS_STORAGE_CONF", "storage.conf"),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
        ] {
            command.env(name, self.folder.join(file));
        }
        command.env("HOME", &self.folder).env("TMPDIR", &self.folder).current_dir(&self.folder);
        command
    }

    fn run(&self) -> Command {
        let mut command = self.command();
        command.args(["run", "--rm", "--network", "none", "--read-only", IMAGE, PROGRAM]);
        command
    }
}
