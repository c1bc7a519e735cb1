//! A controller and one agent in this process: what `windlass dev` and `windlass run --local` start.
//!
//! ```text
//! state folder ─┬─ controller/   Controller ◄──https on loopback──┐
//!               └─ agent/        Agent ──────join token───────────┘
//! ```

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;
use windlass_agent::{Agent, AgentArgs, AgentStatus, Stop};
use windlass_controller::{Controller, ControllerArgs};

use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::settings::{Origin, Resolved, Settings};
use crate::verbs::{agent, controller};

/// How long the join token works: the agent uses it at once.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// How long the agent may take until it asks for work.
const START_BOUND: Duration = Duration::from_secs(60);
/// How long the agent may say that it is not ready before that is its last word.
const READY_BOUND: Duration = Duration::from_secs(5);

/// What a fleet is made with.
#[derive(Clone, Debug)]
pub(crate) struct FleetSettings {
    /// The folder for everything.
    pub(crate) state_dir: PathBuf,
    /// Where the controller listens; port 0 for a free one.
    pub(crate) listen: SocketAddr,
    /// The URL that nodes are given; without it an address of this host.
    pub(crate) advertise_url: Option<Url>,
    /// The node's name; without it the host's.
    pub(crate) name: Option<String>,
    /// The node's labels.
    pub(crate) labels: Vec<(String, String)>,
    /// How many jobs run at once; without it one for each core.
    pub(crate) concurrency: Option<u32>,
}

/// A controller and an agent that run.
pub(crate) struct Fleet {
    /// The controller's URL.
    pub(crate) url: String,
    /// The file with the controller's authority.
    pub(crate) ca_file: PathBuf,
    /// The file with the controller's admin token.
    pub(crate) token_file: PathBuf,
    /// The node's name.
    pub(crate) node: String,
    stop_controller: CancellationToken,
    stop_agent: watch::Sender<Stop>,
    controller: JoinHandle<Result<(), windlass_controller::Error>>,
    agent: JoinHandle<Result<(), windlass_agent::Error>>,
}

impl Fleet {
    /// Starts both; the node is ready for work when this returns.
    pub(crate) async fn start(settings: FleetSettings) -> Result<Self, Failure> {
        let FleetSettings { state_dir, listen, advertise_url, name, labels, concurrency } = settings;
        make_folder(&state_dir)?;
        let stop_controller = CancellationToken::new();
        let folder = state_dir.join("controller");
        // What people type next needs the token, so one that was removed is made again.
        let new_admin_token = !folder.join("admin.token").exists();
        let args = ControllerArgs { new_admin_token, advertise_url, ..ControllerArgs::new(folder, listen) };
        let controller = Controller::start(args, stop_controller.clone())
            .await
            .map_err(|error| controller::failure(&error))?;
        let url = controller.url().to_owned();
        let ca_file = controller.ca_file().to_owned();
        let token_file = controller.admin_token_file().to_owned();
        let join = controller.create_join_token("the node of this process", TOKEN_LIFE, Some(1)).await;
        let controller = tokio::spawn(controller.stopped());
        let stop_agent = watch::Sender::new(Stop::Run);
        let started = match join {
            Ok(join) => {
                let args =
                    AgentArgs { labels, concurrency, name, ..agent::args(join, state_dir.join("agent")) };
                let started = Agent::start(args, stop_agent.subscribe()).await;
                started.map_err(|error| agent::failure(&error))
            }
            Err(error) => Err(Report::new(Exit::Failed, "no join token can be made").causes(&error).into()),
        };
        let agent = match started {
            Ok(agent) => agent,
            Err(failure) => {
                stop_controller.cancel();
                finished(controller.await).map_err(|error| controller::failure(&error))?;
                return Err(failure);
            }
        };
        let status = agent.status();
        let agent = tokio::spawn(agent.stopped());
        let mut fleet = Self {
            url,
            ca_file,
            token_file,
            node: status.borrow().node.clone(),
            stop_controller,
            stop_agent,
            controller,
            agent,
        };
        match fleet.ready(status).await {
            Ok(()) => Ok(fleet),
            Err(failure) => {
                fleet.stop_agent(Stop::Cancel);
                fleet.end().await?;
                Err(failure)
            }
        }
    }

    /// Waits until the node asks for work, or says why it will not.
    async fn ready(&mut self, mut status: watch::Receiver<AgentStatus>) -> Result<(), Failure> {
        let up = tokio::time::timeout(START_BOUND, status.wait_for(|status| status.up)).await;
        if !matches!(up, Ok(Ok(_))) {
            drop(up);
            if self.agent.is_finished() {
                // Its own error says more, and `end` yields it.
                return Err(Report::new(Exit::Failed, "the agent ended before it was ready").into());
            }
            let reason = status.borrow().not_ready.clone();
            let report = Report::new(Exit::Failed, "the agent did not get ready in time");
            return Err(report.details(reason).into());
        }
        drop(up);
        let ready =
            tokio::time::timeout(READY_BOUND, status.wait_for(|status| status.not_ready.is_none())).await;
        if matches!(ready, Ok(Ok(_))) {
            return Ok(());
        }
        drop(ready);
        let reason = status.borrow().not_ready.clone();
        Err(Report::new(Exit::Failed, "this host cannot run jobs")
            .details(reason)
            .hint("`windlass doctor` tries everything that is needed and says what to do about each lack")
            .into())
    }

    /// Settings by which a client reaches the controller.
    pub(crate) fn client_settings(&self, namespace: Resolved<String>) -> Result<Settings, Failure> {
        let server = Url::parse(&self.url).map_err(|error| {
            Report::new(Exit::Failed, format!("`{}` is not a URL", self.url)).detail(error.to_string())
        })?;
        Ok(Settings {
            server: Some(Resolved::new(server, Origin::Default)),
            ca_file: Some(Resolved::new(self.ca_file.clone(), Origin::Default)),
            token_file: Some(Resolved::new(self.token_file.clone(), Origin::Default)),
            namespace,
            config_file: None,
        })
    }

    /// Tells the agent to end; what was told before is not taken back.
    pub(crate) fn stop_agent(&self, how: Stop) {
        self.stop_agent.send_if_modified(|stop| {
            let further = how > *stop;
            *stop = how.max(*stop);
            further
        });
    }

    /// Waits until the agent has ended, or the controller has without being told to. Cancel-safe.
    pub(crate) async fn ended(&mut self) {
        // Polling the handle of a task by reference is cancel-safe.
        tokio::select! {
            () = until_finished(&self.agent) => {}
            () = until_finished(&self.controller) => {}
        }
    }

    /// Ends both in order: first the agent, which has something to tell, then the controller.
    pub(crate) async fn end(self) -> Result<(), Failure> {
        self.stop_agent(Stop::Drain);
        let agent = finished(self.agent.await).map_err(|error| agent::failure(&error));
        self.stop_controller.cancel();
        let controller = finished(self.controller.await).map_err(|error| controller::failure(&error));
        agent.and(controller)
    }
}

/// Waits until a task has ended, without taking its result.
async fn until_finished<T>(task: &JoinHandle<T>) {
    /// How often it is looked at. Nothing waits for this but the end of the process.
    const LOOK: Duration = Duration::from_millis(100);
    while !task.is_finished() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The result of a task, whose panic goes on here.
fn finished<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("the tasks of a fleet are never aborted"),
        },
    }
}

/// Makes the state folder. Others may pass through it, because attempts run as users of their own; what is inside has
/// its own permissions.
fn make_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(|error| {
        Report::new(Exit::Failed, format!("the state folder {} cannot be made", path.display()))
            .detail(error.to_string())
            .hint("name a folder that this user can write: `--state-dir PATH`")
            .into()
    })
}
