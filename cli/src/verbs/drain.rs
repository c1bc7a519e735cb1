//! `windlass drain`: nodes are emptied.

use std::time::Duration;

use windlass_crds::Span;
use windlass_crds::node_config::{AtDeadline, HoldPhase};

use super::Context;
use crate::client::Client;
use crate::client::model::{HeldItem, Items, NewDrain, Node};
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::interrupts::Interrupts;
use crate::kind::{self, Kind};
use crate::output::human::{self, printable};

/// The wait between two looks at a node: below what a person takes for a delay, and little work for the server.
const LOOK: Duration = Duration::from_secs(1);
/// How many jobs are named in a list of what still runs.
const NAMED: usize = 10;

/// Keep new jobs away from nodes and empty them.
///
/// The controller waits for running jobs, whether this command goes on or not. At the deadline, jobs that may be started
/// again (`retry.lostAttempts` above 1) are stopped and go back to their queue without being charged for it; others are
/// waited for. The nodes stay cordoned until `windlass uncordon`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The nodes' names.
    #[arg(value_name = "NAME", required = true)]
    nodes: Vec<String>,

    /// Wait this long for running jobs, such as `10m`; without it there is no limit.
    #[arg(long, value_name = "DURATION")]
    deadline: Option<Span>,

    /// Do this with the jobs that are left at the deadline.
    #[arg(long, value_enum, default_value_t, value_name = "ACTION", requires = "deadline")]
    at_deadline: Choice,

    /// Wait until the nodes are empty, and show what still runs.
    #[arg(long)]
    wait: bool,
}

/// What becomes of jobs that are left at the deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    /// Stop those that may be started again and put them back into their queue; wait for the others.
    #[default]
    Requeue,
    /// Cancel them.
    Cancel,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let names = args.nodes.iter().map(|node| kind::node_name(node)).collect::<Result<Vec<_>, _>>()?;
    let (_, client) = context.connect()?;
    let drain = NewDrain {
        deadline: args.deadline,
        at_deadline: match args.at_deadline {
            Choice::Requeue => AtDeadline::Requeue,
            Choice::Cancel => AtDeadline::Cancel,
        },
    };
    // Before the first node is asked, so that an interrupt finds the words whenever it comes.
    let mut interrupts = if args.wait { Some(Interrupts::catch()?) } else { None };
    let mut exit = Exit::Success;
    let mut draining = Vec::new();
    for name in names {
        match client.act_on_node(name, "drain", &drain).await {
            Ok(node) => {
                let running = node.status.running_jobs;
                let rest = match running {
                    0 => "nothing runs on it".to_owned(),
                    1 => "1 job runs on it".to_owned(),
                    count => format!("{count} jobs run on it"),
                };
                context.console.line(format!("node/{name} draining: {rest}"))?;
                draining.push(name);
            }
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    let Some(interrupts) = interrupts.as_mut() else {
        for name in draining {
            show(context, &client, name).await?;
        }
        return Ok(exit);
    };
    for name in draining {
        // Cancel-safe: the drain is the controller's; looking at it leaves nothing behind.
        let end = tokio::select! {
            biased;
            () = interrupts.next() => {
                context.console.note(format!(
                    "The drain goes on without this command. `windlass get node {name}` shows how far it is, `windlass \
                     uncordon {name}` ends it."
                ));
                return Ok(Exit::Interrupted);
            }
            end = wait(context, &client, name) => end?,
        };
        exit = exit.worst(end);
    }
    Ok(exit)
}

/// Waits until a node is empty.
async fn wait(context: &Context, client: &Client, name: &str) -> Result<Exit, Failure> {
    let mut shown = None;
    loop {
        let node: Result<Node, _> = client.get(Kind::Node, "", name).await;
        let node = match node {
            Ok(node) => Some(node),
            // A controller that is restarted comes back, and the drain with it.
            Err(error) if error.is_passing() => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(node) = node {
            let running = node.status.running_jobs;
            match node.status.hold.map(|hold| hold.phase) {
                Some(HoldPhase::Drained) => {
                    context.console.line(format!("node/{name} drained"))?;
                    return Ok(Exit::Success);
                }
                Some(phase @ (HoldPhase::Draining | HoldPhase::Stopping)) => {
                    if shown != Some((phase, running)) {
                        shown = Some((phase, running));
                        show(context, client, name).await?;
                    }
                }
                Some(HoldPhase::Cordoned) | None => {
                    let report = Report::new(Exit::Failed, format!("the drain of node {name} was ended"))
                        .hint("somebody has uncordoned the node");
                    return Err(report.into());
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells what still runs on a node.
async fn show(context: &Context, client: &Client, name: &str) -> Result<(), Failure> {
    let held: Items<HeldItem> = match client.node_detail(name, "attempts").await {
        Ok(held) => held,
        Err(error) if error.is_passing() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let now = clock::now();
    for item in held.items.iter().take(NAMED) {
        let HeldItem { namespace, job, claimed_at, interruptible, cancelling } = item;
        let what = match (cancelling, interruptible) {
            (true, _) => ", being cancelled",
            (false, true) => "",
            (false, false) => ", not to be started again",
        };
        let (job, age) =
            (format!("{}/{}", printable(namespace), printable(job)), human::age(now, *claimed_at));
        context.console.note(format!("  {job} runs for {age}{what}"));
    }
    if held.items.len() > NAMED {
        context.console.note(format!("  and {} more", held.items.len() - NAMED));
    }
    Ok(())
}
