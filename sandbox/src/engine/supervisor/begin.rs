//! The beginning of a unit: holder, container, attached output, start.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;
use windlass_launcher::deadline::{boottime_ns, wall_ms};
use windlass_launcher::exit::{EndReason, Exit};
use windlass_launcher::record::{ProcessName, Reply, start_time};
use windlass_launcher::{Handout, Spool};

use super::watch::{Requests, Running, Watch};
use super::{Answer, ContainerRecord, LISTENER, Launch, never_ran, write_record};
use crate::engine::{Engine, Output, PlannedNetwork, Users, holder};
use crate::error::Error;
use crate::native::watch::readiness;

/// How long an engine may take to make and start a container.
const BOUND: Duration = Duration::from_secs(90);
/// How long it may take to remove one.
pub(super) const REMOVAL_BOUND: Duration = Duration::from_secs(60);
/// Exit codes of shells for a program that is not there, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// A claimed unit.
pub(super) struct Unit {
    pub(super) dir: PathBuf,
    pub(super) launch: Launch,
    pub(super) record: ContainerRecord,
    pub(super) lock: File,
}

/// A container that was made.
pub(super) struct Made {
    pub(super) engine: Arc<dyn Engine>,
    /// The containers to remove, the unit's own first.
    pub(super) containers: Vec<String>,
    pub(super) handout: Option<Handout>,
}

/// Why there is no container that runs.
enum Failure {
    /// The engine or the host.
    Engine(Error),
    /// Something of our own.
    Io(&'static str, io::Error),
}

impl Unit {
    /// Runs the unit to its end.
    pub(super) async fn supervise(mut self, output: File, reply: &mut Answer) -> Exit {
        let engine = match crate::engine::open(self.launch.engine, &self.launch.socket, &self.launch.profile)
        {
            Ok(engine) => engine,
            Err(error) => return never_ran(EndReason::EngineLost, chain(&error)),
        };
        // Before anything is begun: a request that comes meanwhile waits in it.
        let requests = Requests::open(&self.dir);
        let mut made = Made { engine, containers: Vec::new(), handout: None };
        let began = tokio::time::timeout(BOUND, self.begin(&mut made)).await;
        let (attached, init) = match began {
            Ok(Ok(began)) => began,
            Ok(Err(failure)) => {
                let mut exit = self.exit_of(failure);
                remove(&made, &mut exit.teardown).await;
                return exit;
            }
            Err(_) => {
                let message = format!(
                    "{} did not start the container within {} s",
                    self.launch.engine,
                    BOUND.as_secs()
                );
                let mut exit = never_ran(EndReason::EngineLost, message);
                remove(&made, &mut exit.teardown).await;
                return exit;
            }
        };
        let started = (wall_ms(), boottime_ns());
        reply.give(&Reply::Started);
        let spool = Spool::new(output, self.launch.output_cap);
        let running = Running { attached: Some(attached), init, started };
        Watch::new(self, made, running, spool).serve(requests).await
    }

    /// Makes and starts everything; gives the output and the container's first process, if it was still there to be seen.
    async fn begin(&mut self, made: &mut Made) -> Result<(Output, Option<AsyncFd<OwnedFd>>), Failure> {
        let engine = Arc::clone(&made.engine);
        if let Some(path) = &self.launch.environment_file {
            let what = "read the environment that was handed over";
            let content = std::fs::read_to_string(path).map_err(|error| Failure::Io(what, error))?;
            let entries = content.split('\0').filter_map(|entry| entry.split_once('='));
            let entries = entries.map(|(name, value)| (name.to_owned(), value.to_owned()));
            self.launch.container.env.extend(entries);
        }
        if let Some(program) = &self.launch.holder {
            let plan = holder::plan(&self.launch.container, program);
            let id = engine.create(&plan).await.map_err(Failure::Engine)?;
            made.containers.push(id.clone());
            engine.start(&id).await.map_err(Failure::Engine)?;
            let state = engine.inspect(&id).await.map_err(Failure::Engine)?;
            let pid = state.and_then(|state| state.pid).ok_or_else(|| {
                Failure::Io("hold the network of the unit", io::Error::other("the holder has ended"))
            })?;
            let listener = tokio::task::spawn_blocking(move || holder::listener(pid, LISTENER)).await;
            let listener = listener
                .map_err(io::Error::other)
                .and_then(|listener| listener)
                .map_err(|error| Failure::Io("open the proxy's socket", error))?;
            let handout = Handout::open(&self.dir, listener)
                .map_err(|errno| Failure::Io("hand out the proxy's socket", errno.into()))?;
            made.handout = Some(handout);
            let plan = &mut self.launch.container;
            plan.network = PlannedNetwork::Of(id.clone());
            if plan.users == Users::Keep {
                plan.users = Users::Of(id);
            }
        }
        let id = engine.create(&self.launch.container).await.map_err(Failure::Engine)?;
        made.containers.insert(0, id.clone());
        let output = engine.attach(&id).await.map_err(Failure::Engine)?;
        // Where the first process waits to be started, it is known before it runs.
        let before = self.first_process(&*engine, &id).await?;
        engine.start(&id).await.map_err(Failure::Engine)?;
        let init = match before {
            Some(init) => Some(init),
            None => self.first_process(&*engine, &id).await?,
        };
        Ok((output, init))
    }

    /// A handle on the container's first process; notes it in the record, for whoever has to end what a lost supervisor has
    /// left.
    async fn first_process(
        &mut self,
        engine: &dyn Engine,
        id: &str,
    ) -> Result<Option<AsyncFd<OwnedFd>>, Failure> {
        let state = engine.inspect(id).await.map_err(Failure::Engine)?;
        let Some(pid) = state.and_then(|state| state.pid) else { return Ok(None) };
        let failed = |error: io::Error| Failure::Io("watch the container's first process", error);
        let Some(handle) = Pid::from_raw(pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(handle, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // It has ended already.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let Ok(start_time) = start_time(pid) else { return Ok(None) };
        self.record.init = Some(ProcessName { pid, start_time });
        write_record(&mut self.lock, &self.record).map_err(failed)?;
        readiness(pidfd).map(Some).map_err(failed)
    }

    /// How a unit ends that has not begun.
    fn exit_of(&self, failure: Failure) -> Exit {
        let error = match failure {
            Failure::Io(what, error) => {
                return never_ran(EndReason::SetupFailed, format!("{what}: {error}"));
            }
            Failure::Engine(error) => error,
        };
        let message = chain(&error);
        match &error {
            Error::EngineUnreachable { .. } => never_ran(EndReason::EngineLost, message),
            Error::Engine { message: said, .. } => match self.missing_program(said) {
                Some((code, message)) => Exit { code: Some(code), ..never_ran(EndReason::Exited, message) },
                None => never_ran(EndReason::SetupFailed, message),
            },
            _ => never_ran(EndReason::SetupFailed, message),
        }
    }

    /// Whether an engine speaks of a program that it cannot execute. Their sentences are all that there is to go by.
    fn missing_program(&self, said: &str) -> Option<(i32, String)> {
        let said = said.to_ascii_lowercase();
        let container = &self.launch.container;
        let named = container.entrypoint.iter().flatten().chain(&container.command).next();
        let program = named.map_or("the image's own program", String::as_str);
        let is_exec = ["exec:", "exec \"", "executable file", "starting container process"];
        if !is_exec.iter().any(|word| said.contains(word)) {
            return said.contains("no command specified").then(|| {
                let message =
                    format!("image {} has no program of its own; give the step one", self.launch.reference);
                (NOT_FOUND, message)
            });
        }
        let image = &self.launch.reference;
        if said.contains("permission denied") {
            return Some((NOT_EXECUTABLE, format!("{program}: cannot be executed in image {image}")));
        }
        (said.contains("not found") || said.contains("no such file"))
            .then(|| (NOT_FOUND, format!("{program}: command not found in image {image}")))
    }
}

/// Removes the containers of a unit.
pub(super) async fn remove(made: &Made, teardown: &mut Vec<String>) {
    for id in &made.containers {
        match tokio::time::timeout(REMOVAL_BOUND, made.engine.remove(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => teardown.push(format!("remove container {id}: {}", chain(&error))),
            Err(_) => teardown.push(format!("remove container {id}: the engine does not answer")),
        }
    }
}

/// An error with all its causes.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
