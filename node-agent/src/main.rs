//! The node agent as a program of its own. `windlass agent` is the same.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use windlass_agent::{Agent, AgentArgs, Stop};

/// Runs jobs on this node for a Windlass controller.
#[derive(Parser)]
#[command(name = "windlass-agent", version)]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,

    /// What is logged, such as `info` or `windlass_agent=debug`.
    #[arg(long, env = "WINDLASS_LOG", default_value = "info", value_name = "FILTER")]
    log: String,

    /// Log as JSON, one object a line.
    #[arg(long, env = "WINDLASS_LOG_JSON")]
    log_json: bool,
}

fn main() -> ExitCode {
    // Supervisors and probes are this very program: it must come before threads, runtime and arguments.
    if let Some(code) = windlass_agent::run_if_requested() {
        return code;
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            // As `windlass --help` has it: 2 for a wrong command line, 1 for everything else.
            let usage = error.downcast_ref().is_some_and(windlass_agent::StartError::is_usage);
            if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("`{}` is no log filter", cli.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if cli.log_json {
        log.json().init();
    } else {
        log.init();
    }
    // Two threads: the work of an agent is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(Stop::Run);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let agent = Agent::start(cli.agent, stopped).await?;
        tokio::spawn(async move {
            for next in [Stop::Drain, Stop::Cancel] {
                // Cancel-safe: both lose nothing.
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.send_replace(next);
            }
            // A third signal changes nothing; the agent ends in a bounded time now.
            std::future::pending::<()>().await;
        });
        Ok(agent.stopped().await?)
    })
}
