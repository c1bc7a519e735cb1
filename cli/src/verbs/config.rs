//! `windlass config`: the settings in force.

use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::table::{self, Cell, column};
use crate::output::{PlainFormat, json, yaml};
use crate::settings::Resolved;

/// Show the settings that are in force and where each came from.
///
/// The token itself is never shown, only the file that holds it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

/// One setting.
#[derive(Serialize)]
struct Setting {
    name: &'static str,
    value: Option<String>,
    from: String,
}

pub(crate) fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let path = |name, resolved: &Option<Resolved<PathBuf>>| {
        setting(name, resolved.as_ref().map(|resolved| (resolved.value.display().to_string(), resolved)))
    };
    let server = settings.server.as_ref().map(|server| (server.value.to_string(), server));
    let rows = [
        setting("server", server),
        path("caFile", &settings.ca_file),
        path("tokenFile", &settings.token_file),
        setting("namespace", Some((settings.namespace.value.clone(), &settings.namespace))),
        path("config", &settings.config_file),
    ];
    match args.output {
        PlainFormat::Json => context.console.data(&json::format(&rows))?,
        PlainFormat::Yaml => context.console.data(&yaml::format(&rows))?,
        PlainFormat::Table => {
            let cells: Vec<Vec<Cell>> = rows
                .iter()
                .map(|Setting { name, value, from }| {
                    vec![Cell::from(name), Cell::from(value.as_deref().unwrap_or("-")), Cell::from(from)]
                })
                .collect();
            let columns = [column("NAME"), column("VALUE"), column("FROM")];
            context.console.data(&table::format(&columns, &cells, context.console.width()))?;
        }
    }
    Ok(Exit::Success)
}

fn setting<T>(name: &'static str, resolved: Option<(String, &Resolved<T>)>) -> Setting {
    match resolved {
        Some((value, Resolved { origin, .. })) => {
            Setting { name, value: Some(value), from: origin.to_string() }
        }
        None => Setting { name, value: None, from: "nobody".to_owned() },
    }
}
