//! `windlass join-token`: the tokens by which nodes join.

use url::Url;
use windlass_crds::Span;

use super::Context;
use crate::client::model::{CreatedJoinToken, JoinToken, NewJoinToken};
use crate::clock;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, human, json, yaml};
use crate::settings::is_loopback;

/// Make, list and revoke the tokens by which nodes join.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Make a token and print it. It cannot be shown again.
    Create(CreateArgs),
    /// List the tokens, without their secrets.
    List(ListArgs),
    /// Make tokens useless. Nodes that have joined with them stay.
    Revoke(RevokeArgs),
}

#[derive(clap::Args, Debug)]
struct CreateArgs {
    /// Let the token work this long.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    expires: Span,

    /// Let this many nodes join by it; without it there is no limit.
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,

    /// Let the new node take the place of this one, whose key is then no longer good.
    #[arg(long, value_name = "NODE")]
    replace: Option<String>,

    /// Say what the token is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

#[derive(clap::Args, Debug)]
struct ListArgs {
    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

#[derive(clap::Args, Debug)]
struct RevokeArgs {
    /// The tokens' ids, as `windlass join-token list` shows them.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.action {
        Action::Create(args) => create(context, args).await,
        Action::List(args) => list(context, &args).await,
        Action::Revoke(args) => revoke(context, &args).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<Exit, Failure> {
    let CreateArgs { expires, uses, replace, description, output } = args;
    let (_, client) = context.connect()?;
    let new = NewJoinToken { description, expires_in: Some(expires), max_uses: uses, replace_node: replace };
    let created = client.create_join_token(&new).await?;
    match output {
        PlainFormat::Json => context.console.data(&json::format(&created))?,
        PlainFormat::Yaml => context.console.data(&yaml::format(&created))?,
        PlainFormat::Table => {
            // The token alone is the data, so that a script can take it as it is.
            context.console.line(&created.token)?;
            context.console.note(format!(
                "On the new node: windlass agent --join TOKEN\nThe token works for {expires}; `windlass join-token revoke \
                 {}` ends that sooner.",
                human::printable(&created.id)
            ));
            tell_where(context, &created);
        }
    }
    Ok(Exit::Success)
}

/// Says where the token leads nodes to, and when only those of the controller's own host get there.
fn tell_where(context: &Context, created: &CreatedJoinToken) {
    // A server of before does not say it.
    let Some(server) = created.server.as_deref().and_then(|server| server.parse::<Url>().ok()) else {
        return;
    };
    if is_loopback(&server) {
        context.console.warn(format!(
            "the token leads to {server}, which only agents on the controller's own host can reach; for others start the \
             controller with `--listen 0.0.0.0:PORT --advertise-url https://HOST:PORT` and make another token"
        ));
    } else {
        context.console.note(format!(
            "It leads nodes to {server}; the controller's `--advertise-url` chooses another address."
        ));
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    let tokens = client.join_tokens().await?;
    let console = context.console;
    match args.output {
        PlainFormat::Json => console.data(&json::format(&tokens))?,
        PlainFormat::Yaml => console.data(&yaml::format(&tokens))?,
        PlainFormat::Table if tokens.is_empty() => console.note("There are no join tokens."),
        PlainFormat::Table => {
            let columns = [
                column("ID"),
                column("STATE"),
                column("USES"),
                column("EXPIRES"),
                column("AGE"),
                column("REPLACES"),
                flexible("DESCRIPTION"),
            ];
            let now = clock::now();
            let rows: Vec<Vec<Cell>> = tokens.iter().map(|token| row(token, now)).collect();
            console.data(&table::format(&columns, &rows, console.width()))?;
        }
    }
    Ok(Exit::Success)
}

fn row(token: &JoinToken, now: jiff::Timestamp) -> Vec<Cell> {
    let JoinToken { id, description, created_at, expires_at, max_uses, uses, replace_node, revoked_at } =
        token;
    let expired = expires_at.is_some_and(|at| at <= now);
    let used_up = max_uses.is_some_and(|max| *uses >= max);
    let state = match revoked_at {
        Some(_) => Cell::bad("revoked"),
        None if expired => Cell::notable("expired"),
        None if used_up => Cell::notable("used up"),
        None => Cell::good("good"),
    };
    let expires = match expires_at {
        None => "never".to_owned(),
        Some(at) if expired => format!("{} ago", human::age(now, *at)),
        // The age of now at that time is the time until then.
        Some(at) => format!("in {}", human::age(*at, now)),
    };
    let dash = || "-".to_owned();
    vec![
        Cell::from(id),
        state,
        Cell::from(max_uses.map_or_else(|| uses.to_string(), |max| format!("{uses} of {max}"))),
        Cell::from(expires),
        Cell::from(human::age(now, *created_at)),
        Cell::from(replace_node.clone().unwrap_or_else(dash)),
        Cell::from(description.clone().unwrap_or_else(dash)),
    ]
}

async fn revoke(context: &Context, args: &RevokeArgs) -> Result<Exit, Failure> {
    let (_, client) = context.connect()?;
    let mut exit = Exit::Success;
    for id in &args.ids {
        match client.revoke_join_token(id).await {
            Ok(()) => context.console.line(format!("join-token/{id} revoked"))?,
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}
