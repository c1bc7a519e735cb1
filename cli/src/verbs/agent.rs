//! `windlass agent`: the agent in the foreground.

use std::path::PathBuf;

use tokio::sync::watch;
use windlass_agent::{Agent, AgentArgs, Stop};
use windlass_controller::telemetry::TelemetryArgs;

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::interrupts::Interrupts;

/// Make this host a node: run the agent.
///
/// The first start needs a token of `windlass join-token create`; it carries the controller's address and the hash of
/// its authority, so that nothing else need be given. SIGTERM or Ctrl-C drains: the agent takes no more jobs and ends
/// when those that run have ended; a second one cancels them.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    agent: AgentArgs,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args { agent, telemetry } = args;
    telemetry.init().map_err(|error| Report::new(Exit::Usage, error.to_string()).causes(&error))?;
    let mut interrupts = Interrupts::catch()?;
    let stop = watch::Sender::new(Stop::Run);
    let agent = Agent::start(agent, stop.subscribe()).await.map_err(|error| failure(&error))?;
    let mut stopped = std::pin::pin!(agent.stopped());
    let steps = [
        (Stop::Drain, "Draining: running jobs go on to their end; interrupt again to cancel them."),
        (Stop::Cancel, "Cancelling the running jobs; interrupt again to leave them to their supervisors."),
    ];
    for (how, message) in steps {
        // Waiting for a signal is cancel-safe, and `stopped` is polled on after it.
        tokio::select! {
            result = &mut stopped => return result.map(|()| Exit::Success).map_err(|error| failure(&error)),
            () = interrupts.next() => {}
        }
        context.console.note(message);
        stop.send_replace(how);
    }
    tokio::select! {
        result = &mut stopped => result.map(|()| Exit::Success).map_err(|error| failure(&error)),
        () = interrupts.next() => Ok(Exit::Interrupted),
    }
}

/// Settings for an agent that joins with a token, with every default.
pub(crate) fn args(join: String, state_dir: PathBuf) -> AgentArgs {
    AgentArgs {
        cgroup_parent: None,
        podman_socket: None,
        docker_socket: None,
        runtime_dir: None,
        user_runtime_dir: None,
        secrets_key_file: None,
        credentials_directory: None,
        join: Some(join),
        join_file: None,
        state_dir: Some(state_dir),
        name: None,
        labels: Vec::new(),
        concurrency: None,
        min_free_mib: 256,
        input_cache_mib: 2048,
        artifacts_mib: 4096,
    }
}

/// Why an agent did not start or could not go on.
pub(crate) fn failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    let usage = error.downcast_ref().is_some_and(windlass_agent::StartError::is_usage);
    let exit = if usage { Exit::Usage } else { Exit::Failed };
    Report::new(exit, error.to_string()).causes(error).into()
}
