//! The controller as a program of its own; `windlass controller` is the same.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use windlass_controller::telemetry::TelemetryArgs;
use windlass_controller::{Controller, ControllerArgs};

/// The Windlass controller: keeps what is declared, gives work to nodes, and tells what became of it.
#[derive(Parser, Debug)]
#[command(name = "windlass-controller", version)]
struct Args {
    #[command(flatten)]
    controller: ControllerArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of a program that could not go on")]
            {
                eprintln!("error: {error:#}");
            }
            // As `windlass --help` has it: 2 for a wrong command line, 1 for everything else.
            let usage = error.downcast_ref().is_some_and(windlass_controller::Error::is_usage);
            if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

#[tokio::main]
async fn run(args: Args) -> anyhow::Result<()> {
    args.telemetry.init()?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
    let controller = Controller::start(args.controller, stop.clone()).await?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            // Cancel-safe: either signal means the same.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; a second signal ends at once");
        stopping.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        #[expect(clippy::exit, reason = "the second signal asks for exactly this")]
        std::process::exit(130);
    });
    controller.stopped().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
