//! `windlass version`: of this command and of the server.

use std::time::Duration;

use serde::Serialize;

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, chain};
use crate::output::{PlainFormat, json, yaml};

/// How long the server may take: nobody waits long for a version.
const PATIENCE: Duration = Duration::from_secs(3);

/// Print the version of this command, and of the server where one is configured.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,

    /// Do not ask the server.
    #[arg(long)]
    client: bool,
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut versions = Versions { client: env!("CARGO_PKG_VERSION"), server: None };
    if !args.client && context.settings()?.server.is_some() {
        let (_, client) = context.connect()?;
        match tokio::time::timeout(PATIENCE, client.version()).await {
            Ok(Ok(version)) => versions.server = Some(version.version),
            Ok(Err(error)) => context.console.warn(chain(&error)),
            Err(_) => context.console.warn(format!("the server at {} did not answer in time", client.base())),
        }
    }
    match args.output {
        PlainFormat::Json => context.console.data(&json::format(&versions))?,
        PlainFormat::Yaml => context.console.data(&yaml::format(&versions))?,
        PlainFormat::Table => {
            context.console.line(format!("windlass {}", versions.client))?;
            if let Some(server) = &versions.server {
                context.console.line(format!("server {}", crate::output::human::printable(server)))?;
            }
        }
    }
    Ok(Exit::Success)
}
