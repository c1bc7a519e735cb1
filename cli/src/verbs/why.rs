//! `windlass why`: what a job waits for, node by node.

use serde_json::Value;
use windlass_crds::JobPhase;

use super::Context;
use crate::client::Client;
use crate::client::model::{Placement, PlacementItem};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind;
use crate::output::human::printable;
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, json, yaml};

/// Tell why jobs are not running.
///
/// Prints one sentence about each job, and for each node the first reason why it does not take the job: reasons that
/// only a change of the job or the node removes come first, then those that pass.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The jobs' names.
    #[arg(value_name = "NAME", required = true)]
    jobs: Vec<String>,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let names = args.jobs.iter().map(|job| kind::job_name(job)).collect::<Result<Vec<_>, _>>()?;
    let (settings, client) = context.connect()?;
    let namespace = settings.namespace.value.as_str();
    let mut exit = Exit::Success;
    let mut answers: Vec<(&str, Value)> = Vec::new();
    for name in names {
        match ask(&client, namespace, name).await {
            Ok(answer) => answers.push((name, answer)),
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    let console = context.console;
    let document = || match answers.as_slice() {
        [(_, one)] if args.jobs.len() == 1 => one.clone(),
        all => Value::Array(all.iter().map(|(_, answer)| answer.clone()).collect()),
    };
    match args.output {
        PlainFormat::Json => console.data(&json::format(&document()))?,
        PlainFormat::Yaml => console.data(&yaml::format(&document()))?,
        PlainFormat::Table => {
            for (index, (name, answer)) in answers.iter().enumerate() {
                let placement: Placement = serde_json::from_value(answer.clone()).map_err(|error| {
                    Report::new(Exit::Failed, "the server's answer cannot be shown")
                        .detail(error.to_string())
                        .hint("the server may be of another version: `windlass version` tells both")
                })?;
                if index > 0 {
                    console.line("")?;
                }
                console.line(sentence(name, &placement))?;
                if !placement.items.is_empty() {
                    let columns = [column("NODE"), column("REASON"), flexible("MESSAGE")];
                    let rows: Vec<Vec<Cell>> = placement.items.iter().map(row).collect();
                    console.data(&table::format(&columns, &rows, console.width()))?;
                }
            }
        }
    }
    Ok(exit)
}

async fn ask(client: &Client, namespace: &str, name: &str) -> Result<Value, crate::client::Error> {
    client.job_detail(namespace, name, "placement", &[]).await
}

fn sentence(name: &str, placement: &Placement) -> String {
    let verb = match placement.phase {
        JobPhase::PendingApproval | JobPhase::Queued => "waits: ",
        JobPhase::Claimed
        | JobPhase::Running
        | JobPhase::Waiting
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::TimedOut => "does not wait: ",
    };
    format!("job/{} {verb}{}", printable(name), printable(&placement.summary))
}

fn row(item: &PlacementItem) -> Vec<Cell> {
    let PlacementItem { node, fits, lasting, reason, message } = item;
    let dash = || "-".to_owned();
    let reason = match reason {
        _ if *fits => Cell::good("Fits"),
        Some(reason) if *lasting => Cell::bad(reason),
        Some(reason) => Cell::notable(reason),
        None => Cell::from("-"),
    };
    vec![Cell::from(node), reason, Cell::from(message.clone().unwrap_or_else(dash))]
}
