//! `windlass artifacts`: what a job has left.

use std::path::Path;

use serde_json::Value;
use windlass_crds::Span;

use super::Context;
use crate::artifacts::{Artifacts, COLUMNS, Existing, Saving, rank, row};
use crate::client::model::{ArtifactItem, ArtifactState};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind;
use crate::output::human::printable;
use crate::output::table::{self, Cell, column};
use crate::output::{json, yaml};

/// List what a job has left in its folder of artifacts, or fetch it.
///
/// What was refused is listed with the reason. Without `--attempt`, what is fetched is that of the last attempt. What `--all`
/// cannot fetch, because it is lost or has not come, is a failure; what was refused is not.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job's name.
    #[arg(value_name = "JOB")]
    job: String,

    /// Fetch the artifact of this name, and write it where `-o` says.
    #[arg(value_name = "NAME", requires = "output")]
    name: Option<String>,

    /// For a list its form: `table`, `json` or `yaml`. For an artifact the file to write, or `-` for standard output. With
    /// `--all` the folder to write to.
    #[arg(short, long, value_name = "FORM|FILE|DIR")]
    output: Option<String>,

    /// Fetch all artifacts of the attempt, and write them below the folder that `-o` names. Nothing is written anywhere else.
    #[arg(long, conflicts_with = "name", requires = "output")]
    all: bool,

    /// Let `--all` replace files that are in the folder already.
    #[arg(long, requires = "all")]
    force: bool,

    /// How long `--all` waits for artifacts that the node still has to send.
    #[arg(long, value_name = "DURATION", requires = "all", default_value = "1m")]
    wait: Span,

    /// Only artifacts of this attempt; they are numbered from 1.
    #[arg(long, value_name = "NUMBER")]
    attempt: Option<u32>,

    /// Print a link to the artifact of this name, under which everybody can fetch it for a while.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["name", "all", "output"])]
    link: Option<String>,

    /// How long the link works, such as `1h`; 7 days at most.
    #[arg(long, value_name = "DURATION", requires = "link", default_value = "15m")]
    expires: Span,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { job, name, output, all, force, wait, attempt, link, expires } = args;
    let job = kind::job_name(job)?;
    let (settings, client) = context.connect()?;
    let namespace = settings.namespace.value.as_str();
    let artifacts = Artifacts { client: &client, console: context.console, namespace, job };
    let output = output.as_deref();
    if let Some(name) = link {
        let item = named(&artifacts, *attempt, name).await?;
        let link = client.link_artifact(namespace, job, &item.name, item.epoch, *expires).await?;
        context.console.line(&link.url)?;
        return Ok(Exit::Success);
    }
    if let (Some(name), Some(file)) = (name, output) {
        let item = named(&artifacts, *attempt, name).await?;
        if file == "-" {
            artifacts.write(&item, |piece| context.console.raw_stdout(piece)).await?;
        } else {
            artifacts.save(&item, Path::new(file)).await?;
        }
        return Ok(Exit::Success);
    }
    if let (true, Some(folder)) = (*all, output) {
        if folder == "-" {
            return Err(Report::new(Exit::Usage, "--all writes files: name a folder by -o").into());
        }
        let existing = if *force { Existing::Goes } else { Existing::Stays };
        let folder = Path::new(folder);
        let saving = Saving { folder, existing, attempt: *attempt, patience: wait.get() };
        return artifacts.save_attempt(saving).await;
    }
    list(context, &artifacts, *attempt, output.unwrap_or("table")).await
}

/// The artifact of this name, of the last attempt that has it. Tells where that is not the job's last one.
async fn named(artifacts: &Artifacts<'_>, attempt: Option<u32>, name: &str) -> Result<ArtifactItem, Failure> {
    let job = artifacts.job;
    let last = artifacts.last_epoch().await?;
    let mut found = artifacts.list().await?;
    found.retain(|item| item.name == name && attempt.is_none_or(|number| item.attempt == number));
    found.sort_by_key(|item| (rank(item, last), item.state != ArtifactState::Refused));
    let item = found.pop().ok_or_else(|| {
        Report::new(Exit::Failed, format!("the job {job} has no artifact {}", printable(name)))
            .hint(format!("`windlass artifacts {job}` lists what there is"))
    })?;
    if attempt.is_none() && item.epoch != last {
        artifacts.console.warn(format!(
            "{} is of attempt {}; the last attempt has left nothing of that name",
            printable(name),
            item.attempt
        ));
    }
    Ok(item)
}

async fn list(
    context: &Context,
    artifacts: &Artifacts<'_>,
    attempt: Option<u32>,
    form: &str,
) -> Result<Exit, Failure> {
    let console = context.console;
    if matches!(form, "json" | "yaml") {
        let mut answer: Value =
            artifacts.client.job_detail(artifacts.namespace, artifacts.job, "artifacts", &[]).await?;
        if let (Some(number), Some(items)) = (attempt, answer["items"].as_array_mut()) {
            items.retain(|item| item["attempt"] == number);
        }
        console.data(&if form == "json" { json::format(&answer) } else { yaml::format(&answer) })?;
        return Ok(Exit::Success);
    }
    if form != "table" {
        let report = Report::new(Exit::Usage, format!("`{}` is no form of a list", printable(form)));
        return Err(report
            .hint("the forms are table, json and yaml; a file goes with the NAME of an artifact")
            .into());
    }
    let items = artifacts.list().await?;
    let rows: Vec<Vec<Cell>> = items
        .iter()
        .filter(|item| attempt.is_none_or(|number| item.attempt == number))
        .map(|item| {
            let mut cells = row(item);
            cells.insert(cells.len() - 1, Cell::from(item.attempt.to_string()));
            cells
        })
        .collect();
    if rows.is_empty() {
        console.note("The job has left no artifacts.");
        return Ok(Exit::Success);
    }
    let mut columns = COLUMNS.to_vec();
    columns.insert(columns.len() - 1, column("ATTEMPT"));
    console.data(&table::format(&columns, &rows, console.width()))?;
    Ok(Exit::Success)
}
