//! `windlass rollout`: a change of many nodes' configurations, a few nodes at a time.

use std::path::PathBuf;
use std::time::Duration;

use windlass_crds::Span;
use windlass_crds::rollout::{NewRollout, Rollout, RolloutDirection, RolloutNodeState, RolloutPhase};

use super::Context;
use crate::client::Client;
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::interrupts::Interrupts;
use crate::manifests;
use crate::output::human::{self, printable};
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, json, yaml};

/// The wait between two looks at a roll-out: below what a person takes for a delay, and little work for the server.
const LOOK: Duration = Duration::from_secs(1);

/// Change the configuration of many nodes, a few at a time.
///
/// The controller lays a patch over the configuration of every node that the selector names. It changes a few nodes, waits
/// until each has applied its configuration and is ready, and goes on with the next. When a node cannot apply it, or is
/// not ready in time, nothing further is changed until somebody decides.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Start a roll-out.
    Start(Box<StartArgs>),
    /// Show how far a roll-out is, node by node.
    Status(StatusArgs),
    /// Change no further nodes for now. What is being changed is watched to its end.
    Pause(NameArgs),
    /// Go on with a roll-out that is paused or has stopped, and try again what has failed.
    Resume(NameArgs),
    /// End a roll-out. Nodes stay as they are.
    Abort(NameArgs),
    /// Give the nodes that were changed back what they had before, a few at a time.
    Undo(NameArgs),
    /// List roll-outs, the newest first.
    List(ListArgs),
}

#[derive(clap::Args, Debug)]
struct StartArgs {
    /// Read the patch from this file, or from standard input where it is `-`: a NodeConfig with nothing but the part of
    /// `spec` that is to change. Maps are merged, `null` takes a field away, everything else replaces what was.
    #[arg(short = 'f', long = "filename", value_name = "FILE|-")]
    file: PathBuf,

    /// Change the nodes with these labels: `key=value`, separated by commas.
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: String,

    /// Let at most this many of its nodes be unavailable at once: being changed, not ready or offline.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,

    /// Pause once this many nodes are done.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pause_after: Option<u32>,

    /// Stop when a node has not applied its configuration and become ready in this time.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    node_timeout: Span,

    /// Name the roll-out; without it a name is made up.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Wait until it is complete, paused or has stopped, and show how far it is.
    #[arg(long)]
    wait: bool,
}

#[derive(clap::Args, Debug)]
struct StatusArgs {
    /// The roll-out.
    #[arg(value_name = "NAME")]
    name: String,

    /// Wait until it is complete, paused or has stopped, and show how far it is.
    #[arg(long, conflicts_with = "output")]
    wait: bool,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

#[derive(clap::Args, Debug)]
struct NameArgs {
    /// The roll-out.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(clap::Args, Debug)]
struct ListArgs {
    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.action {
        Action::Start(args) => start(context, *args).await,
        Action::Status(args) => status(context, &args).await,
        Action::Pause(args) => turn(context, &args, "pause").await,
        Action::Resume(args) => turn(context, &args, "resume").await,
        Action::Abort(args) => turn(context, &args, "abort").await,
        Action::Undo(args) => turn(context, &args, "undo").await,
        Action::List(args) => list(context, &args).await,
    }
}

async fn start(context: &Context, args: StartArgs) -> Result<Exit, Failure> {
    let StartArgs { file, selector, max_unavailable, pause_after, node_timeout, name, wait } = args;
    let patch = manifests::load_node_patch(&file)?;
    let new = NewRollout { name, selector, patch, max_unavailable, pause_after, node_timeout };
    let (_, client) = context.connect()?;
    // Before anything is started, so that an interrupt finds the words whenever it comes.
    let interrupts = if wait { Some(Interrupts::catch()?) } else { None };
    let rollout = client.start_rollout(&new).await?;
    let nodes = match rollout.nodes.len() {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    context.console.line(format!("rollout/{} started over {nodes}", printable(&rollout.name)))?;
    match interrupts {
        Some(interrupts) => follow(context, &client, &rollout.name, interrupts).await,
        None => Ok(Exit::Success),
    }
}

async fn status(context: &Context, args: &StatusArgs) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    if args.wait {
        return follow(context, &client, &args.name, Interrupts::catch()?).await;
    }
    let rollout = client.rollout(&args.name).await?;
    let console = context.console;
    match args.output {
        PlainFormat::Json => console.data(&json::format(&rollout))?,
        PlainFormat::Yaml => console.data(&yaml::format(&rollout))?,
        PlainFormat::Table => {
            console.line(sentence(&rollout))?;
            let columns =
                [column("NODE"), column("STATE"), column("VERSION"), column("SINCE"), flexible("MESSAGE")];
            let rows: Vec<Vec<Cell>> = rollout.nodes.iter().map(row).collect();
            console.data(&table::format(&columns, &rows, console.width()))?;
        }
    }
    Ok(Exit::Success)
}

async fn turn(context: &Context, args: &NameArgs, command: &str) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    let rollout = client.turn_rollout(&args.name, command).await?;
    context.console.line(sentence(&rollout))?;
    Ok(Exit::Success)
}

async fn list(context: &Context, args: &ListArgs) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    let rollouts = client.rollouts().await?;
    let console = context.console;
    match args.output {
        PlainFormat::Json => console.data(&json::format(&rollouts))?,
        PlainFormat::Yaml => console.data(&yaml::format(&rollouts))?,
        PlainFormat::Table if rollouts.is_empty() => console.note("There are no roll-outs."),
        PlainFormat::Table => {
            let columns = [
                column("NAME"),
                column("STATE"),
                column("DONE"),
                column("SELECTOR"),
                column("AGE"),
                flexible("MESSAGE"),
            ];
            let now = clock::now();
            let row = |rollout: &Rollout| {
                let message = rollout.message.clone().unwrap_or_else(|| "-".to_owned());
                vec![
                    Cell::from(&rollout.name),
                    state(rollout),
                    Cell::from(done(rollout)),
                    Cell::from(&rollout.selector),
                    Cell::from(human::age(now, rollout.created_at)),
                    Cell::from(message),
                ]
            };
            let rows: Vec<Vec<Cell>> = rollouts.iter().map(row).collect();
            console.data(&table::format(&columns, &rows, console.width()))?;
        }
    }
    Ok(Exit::Success)
}

/// Shows how far a roll-out is until it needs nobody, or somebody.
async fn follow(
    context: &Context,
    client: &Client,
    name: &str,
    mut interrupts: Interrupts,
) -> Result<Exit, Failure> {
    // Cancel-safe: the roll-out is the controller's; looking at it leaves nothing behind.
    tokio::select! {
        biased;
        () = interrupts.next() => {
            context.console.note(format!(
                "The roll-out goes on without this command. `windlass rollout status {name}` shows how far it is, \
                 `windlass rollout pause {name}` halts it."
            ));
            Ok(Exit::Interrupted)
        }
        end = wait(context, client, name) => end,
    }
}

async fn wait(context: &Context, client: &Client, name: &str) -> Result<Exit, Failure> {
    let mut shown = None;
    loop {
        let rollout = match client.rollout(name).await {
            Ok(rollout) => Some(rollout),
            // A controller that is restarted comes back, and the roll-out with it.
            Err(error) if error.is_passing() => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(rollout) = rollout {
            let now = sentence(&rollout);
            if shown.as_ref() != Some(&now) {
                context.console.line(&now)?;
                shown = Some(now);
            }
            match rollout.phase {
                RolloutPhase::Rolling => {}
                RolloutPhase::Complete | RolloutPhase::Paused => return Ok(Exit::Success),
                RolloutPhase::Stopped | RolloutPhase::Aborted => {
                    let word = word(&rollout).to_lowercase();
                    let report = Report::new(Exit::Failed, format!("the roll-out {name} is {word}")).hint(format!(
                        "`windlass rollout status {name}` shows each node; `resume` tries again, `undo` gives nodes back \
                         what they had"
                    ));
                    return Err(report.into());
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn sentence(rollout: &Rollout) -> String {
    let message = rollout.message.as_ref().map(|message| format!(": {}", printable(message)));
    let (name, word, done) = (printable(&rollout.name), word(rollout), done(rollout));
    format!("rollout/{name} {word}, {done} done{}", message.unwrap_or_default())
}

/// Such as `3 of 10`.
fn done(rollout: &Rollout) -> String {
    let done = rollout.nodes.iter().filter(|node| node.state == RolloutNodeState::Done).count();
    format!("{done} of {}", rollout.nodes.len())
}

/// Where it is, in one word.
fn word(rollout: &Rollout) -> &'static str {
    match (rollout.direction, rollout.phase) {
        (RolloutDirection::Back, RolloutPhase::Rolling) => "Undoing",
        (RolloutDirection::Back, RolloutPhase::Complete) => "Undone",
        (RolloutDirection::Forward | RolloutDirection::Back, phase) => phase.into(),
    }
}

fn state(rollout: &Rollout) -> Cell {
    let word = word(rollout);
    match rollout.phase {
        RolloutPhase::Complete => Cell::good(word),
        RolloutPhase::Stopped => Cell::bad(word),
        RolloutPhase::Paused | RolloutPhase::Aborted => Cell::notable(word),
        RolloutPhase::Rolling => Cell::from(word),
    }
}

fn row(node: &windlass_crds::rollout::RolloutNode) -> Vec<Cell> {
    let windlass_crds::rollout::RolloutNode { node, state, config_version, changed_at, message } = node;
    let word: &'static str = (*state).into();
    let dash = || "-".to_owned();
    vec![
        Cell::from(node),
        match state {
            RolloutNodeState::Done => Cell::good(word),
            RolloutNodeState::Failed => Cell::bad(word),
            RolloutNodeState::Changing | RolloutNodeState::Skipped => Cell::notable(word),
            RolloutNodeState::Pending => Cell::from(word),
        },
        Cell::from(config_version.map_or_else(dash, |version| version.to_string())),
        Cell::from(changed_at.map_or_else(dash, |at| human::age(clock::now(), at))),
        Cell::from(message.clone().unwrap_or_else(dash)),
    ]
}
