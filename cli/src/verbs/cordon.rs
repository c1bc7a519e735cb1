//! `windlass cordon` and `windlass uncordon`: new jobs are kept away from nodes, and let to them again.

use serde_json::json;

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::kind;

/// Keep new jobs away from nodes.
///
/// Running jobs go on. It lasts until `windlass uncordon`, whatever the node's manifest says and however often that is
/// applied; `spec.unschedulable` of the manifest does the same as long as the manifest says it.
#[derive(clap::Args, Debug)]
pub(crate) struct CordonArgs {
    /// The nodes' names.
    #[arg(value_name = "NAME", required = true)]
    nodes: Vec<String>,
}

/// Let new jobs to nodes again.
///
/// Lifts what `windlass cordon` and `windlass drain` have set. A drain that is under way ends with it, and what it has
/// not stopped yet goes on.
#[derive(clap::Args, Debug)]
pub(crate) struct UncordonArgs {
    /// The nodes' names.
    #[arg(value_name = "NAME", required = true)]
    nodes: Vec<String>,
}

pub(crate) async fn cordon(context: &Context, args: &CordonArgs) -> Result<Exit, Failure> {
    let names = args.nodes.iter().map(|node| kind::node_name(node)).collect::<Result<Vec<_>, _>>()?;
    let (_, client) = context.connect()?;
    let mut exit = Exit::Success;
    for name in names {
        match client.act_on_node(name, "cordon", &json!({})).await {
            Ok(_) => context.console.line(format!("node/{name} cordoned"))?,
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}

pub(crate) async fn uncordon(context: &Context, args: &UncordonArgs) -> Result<Exit, Failure> {
    let names = args.nodes.iter().map(|node| kind::node_name(node)).collect::<Result<Vec<_>, _>>()?;
    let (_, client) = context.connect()?;
    let mut exit = Exit::Success;
    for name in names {
        match client.act_on_node(name, "uncordon", &json!({})).await {
            Ok(node) => {
                context.console.line(format!("node/{name} uncordoned"))?;
                if node.spec.unschedulable {
                    context.console.warn(format!(
                        "the manifest of node {name} still says `unschedulable: true`; new jobs come once that is applied \
                         without it"
                    ));
                }
            }
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}
