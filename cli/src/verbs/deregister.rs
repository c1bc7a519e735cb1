//! `windlass deregister`: nodes go for good.

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::kind;

/// Forget nodes.
///
/// Their keys and tokens stop working at once, and an agent that comes back needs a new join token. A node that holds
/// jobs is refused: `windlass drain NODE --wait` empties it first.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The nodes' names.
    #[arg(value_name = "NAME", required = true)]
    nodes: Vec<String>,

    /// Forget also nodes that hold jobs. Their attempts end with their leases, and then the jobs go on elsewhere.
    #[arg(long)]
    force: bool,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let names = args.nodes.iter().map(|node| kind::node_name(node)).collect::<Result<Vec<_>, _>>()?;
    let (_, client) = context.connect()?;
    let mut exit = Exit::Success;
    for name in names {
        match client.deregister(name, args.force).await {
            Ok(node) => {
                context.console.line(format!("node/{name} deregistered"))?;
                let running = node.status.running_jobs;
                if running > 0 {
                    let jobs = if running == 1 { "job" } else { "jobs" };
                    context.console.warn(format!(
                        "node {name} held {running} {jobs}; each goes back to its queue when the lease of its attempt has ended"
                    ));
                }
            }
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}
