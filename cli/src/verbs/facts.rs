//! `windlass facts`: what nodes have told of their hosts.

use serde_json::Value;
use windlass_crds::facts::Facts;

use super::Context;
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind;
use crate::output::human::{self, printable};
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, json, yaml};

/// Show what nodes have last told of their hosts.
///
/// A node tells what its manifest names under `facts`: the host itself, the containers of every engine, what is new in log
/// files, and a Proxmox VE.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The nodes' names.
    #[arg(value_name = "NAME", required = true)]
    nodes: Vec<String>,

    /// Print in this form; `json` and `yaml` hold everything.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let names = args.nodes.iter().map(|node| kind::node_name(node)).collect::<Result<Vec<_>, _>>()?;
    let (_, client) = context.connect()?;
    let console = context.console;
    let mut exit = Exit::Success;
    let mut found: Vec<Value> = Vec::new();
    for name in names {
        let answer: Value = match client.node_detail(name, "facts").await {
            Ok(answer) => answer,
            Err(error) => {
                exit = exit.worst(super::tell_refusal(context, error)?);
                continue;
            }
        };
        match answer["items"].get(0) {
            Some(item) => found.push(item["facts"].clone()),
            None => {
                let report = Report::new(Exit::Failed, format!("node `{name}` has told no facts"))
                    .hint("it tells them as often as `facts.every` of its manifest says");
                console.report(&report);
                exit = exit.worst(report.exit);
            }
        }
    }
    let document = || match found.as_slice() {
        [one] if args.nodes.len() == 1 => one.clone(),
        all => Value::Array(all.to_vec()),
    };
    match args.output {
        PlainFormat::Json => console.data(&json::format(&document()))?,
        PlainFormat::Yaml => console.data(&yaml::format(&document()))?,
        PlainFormat::Table => {
            for (index, facts) in found.iter().enumerate() {
                let facts: Facts = serde_json::from_value(facts.clone()).map_err(|error| {
                    Report::new(Exit::Failed, "the server's answer cannot be shown")
                        .detail(error.to_string())
                        .hint("the server may be of another version: `windlass version` tells both")
                })?;
                if index > 0 {
                    console.line("")?;
                }
                show(context, &facts)?;
            }
        }
    }
    Ok(exit)
}

fn show(context: &Context, facts: &Facts) -> Result<(), Failure> {
    let console = context.console;
    let age = human::age(clock::now(), facts.collected_at);
    console.line(format!("node/{}, {age} ago", printable(&facts.node)))?;
    if let Some(host) = &facts.host {
        let [one, five, fifteen] = host.load;
        console.line(format!(
            "{}: {} (kernel {}), {} cpus, load {one:.2} {five:.2} {fifteen:.2}",
            printable(&host.hostname),
            printable(&host.os),
            printable(&host.kernel),
            host.cpus
        ))?;
        console.line(format!(
            "memory {} of {} available, swap {} of {} used",
            human::bytes(host.memory_available_bytes),
            human::bytes(host.memory_bytes),
            human::bytes(host.swap_used_bytes),
            human::bytes(host.swap_bytes)
        ))?;
        let rows: Vec<Vec<Cell>> = host
            .disks
            .iter()
            .map(|disk| {
                vec![
                    Cell::from(&disk.mount),
                    Cell::from(&disk.file_system),
                    Cell::from(human::bytes(disk.free_bytes)),
                    Cell::from(human::bytes(disk.total_bytes)),
                ]
            })
            .collect();
        table_of(context, &[flexible("MOUNT"), column("TYPE"), column("FREE"), column("SIZE")], &rows)?;
    }
    let rows: Vec<Vec<Cell>> = facts
        .containers
        .iter()
        .map(|one| [&one.engine, &one.name, &one.image, &one.state].map(Cell::from).into())
        .collect();
    table_of(context, &[column("ENGINE"), flexible("CONTAINER"), flexible("IMAGE"), column("STATE")], &rows)?;
    if let Some(proxmox) = &facts.proxmox {
        console.line(format!("Proxmox VE {} at {}", printable(&proxmox.version), printable(&proxmox.url)))?;
        let rows: Vec<Vec<Cell>> = proxmox
            .resources
            .iter()
            .map(|one| [&one.kind, &one.name, &one.node, &one.status].map(Cell::from).into())
            .collect();
        table_of(context, &[column("KIND"), flexible("NAME"), column("NODE"), column("STATUS")], &rows)?;
    }
    for log in &facts.logs {
        let rotated = if log.rotated { ", rotated" } else { "" };
        let skipped = match log.skipped_bytes {
            0 => String::new(),
            bytes => format!(", {} left out", human::bytes(bytes)),
        };
        console.line(format!("{}{rotated}{skipped}:", printable(&log.path)))?;
        for line in log.text.lines() {
            console.line(format!("  {}", printable(line)))?;
        }
    }
    for problem in &facts.problems {
        console.line(format!("not told: {}", printable(problem)))?;
    }
    Ok(())
}

fn table_of(context: &Context, columns: &[table::Column], rows: &[Vec<Cell>]) -> Result<(), Failure> {
    if !rows.is_empty() {
        context.console.data(&table::format(columns, rows, context.console.width()))?;
    }
    Ok(())
}
