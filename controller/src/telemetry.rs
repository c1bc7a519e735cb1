//! Logs: JSON for machines, text for people.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Settings of the log.
#[derive(Args, Clone, Debug)]
pub struct TelemetryArgs {
    /// What is logged: a level (error, warn, info, debug, trace), or directives such as windlass_controller=debug.
    #[arg(long, env = "WINDLASS_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How it is logged; by default text on a terminal and JSON elsewhere.
    #[arg(long, env = "WINDLASS_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A JSON object a line.
    Json,
    /// Text.
    Text,
}

/// The filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "--log `{filter}` is not a log filter: write a level such as `info`, or directives such as `windlass_controller=debug`"
)]
pub struct Error {
    /// What was given.
    pub filter: String,
    /// The cause.
    #[source]
    pub source: tracing_subscriber::filter::ParseError,
}

impl TelemetryArgs {
    /// Begins to log to standard error. Does nothing where logging was set up before.
    pub fn init(&self) -> Result<(), Error> {
        let filter = EnvFilter::builder()
            .parse(&self.log)
            .map_err(|source| Error { filter: self.log.clone(), source })?;
        let terminal = std::io::stderr().is_terminal();
        let format = self.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let set = match format {
            LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
            LogFormat::Text => builder.with_ansi(terminal).try_init(),
        };
        if set.is_err() {
            tracing::debug!("logging was set up before");
        }
        Ok(())
    }
}
