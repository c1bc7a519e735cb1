//! `windlass controller`: the controller in the foreground.

use tokio_util::sync::CancellationToken;
use windlass_controller::telemetry::TelemetryArgs;
use windlass_controller::{Controller, ControllerArgs};

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::interrupts::Interrupts;

/// Run a controller.
///
/// It keeps what is declared, gives work to nodes, and tells what became of it, all from one state folder. At its first
/// start it makes a certificate authority (`pki/ca.crt`) and an admin token (`admin.token`) there. Later starts need the
/// whole folder: keep its parts together when you copy or restore it. SIGTERM or Ctrl-C stops it in order: running jobs go
/// on, and have time until it is back.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    controller: ControllerArgs,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args { controller, telemetry } = args;
    telemetry.init().map_err(|error| Report::new(Exit::Usage, error.to_string()).causes(&error))?;
    let mut interrupts = Interrupts::catch()?;
    let stop = CancellationToken::new();
    let controller = Controller::start(controller, stop.clone()).await.map_err(|error| failure(&error))?;
    let mut stopped = std::pin::pin!(controller.stopped());
    // Waiting for a signal is cancel-safe, and `stopped` is polled on after it.
    tokio::select! {
        result = &mut stopped => return result.map(|()| Exit::Success).map_err(|error| failure(&error)),
        () = interrupts.next() => {}
    }
    context.console.note("Stopping; interrupt again to stop at once.");
    stop.cancel();
    tokio::select! {
        result = &mut stopped => result.map(|()| Exit::Success).map_err(|error| failure(&error)),
        () = interrupts.next() => Ok(Exit::Interrupted),
    }
}

/// Why a controller did not start or did not stop well.
pub(crate) fn failure(error: &windlass_controller::Error) -> Failure {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Report::new(exit, error.to_string()).causes(error).into()
}
