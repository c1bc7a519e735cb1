//! `windlass logs`: what a job has written.

use windlass_crds::protocol::Stream;

use super::Context;
use crate::client::model::{AttemptItem, Items, Job, LogItem};
use crate::client::{Client, Followed};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{self, Kind};
use crate::log_output::{LogPrinter, Routing};
use crate::view;

/// Records of one page: the most that the server gives.
const PAGE: &str = "1000";

/// Print what a job has written, both streams on standard output.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job's name.
    #[arg(value_name = "NAME")]
    job: String,

    /// Keep printing until the job has ended and everything has arrived.
    #[arg(short, long)]
    follow: bool,

    /// Print only the output of this step.
    #[arg(long, value_name = "NAME")]
    step: Option<String>,

    /// Print only this stream: `stdout` or `stderr`.
    #[arg(long, value_name = "STREAM", value_parser = parse_stream)]
    stream: Option<Stream>,

    /// Print only the output of this attempt; they are numbered from 1.
    #[arg(long, value_name = "NUMBER")]
    attempt: Option<u32>,

    /// Begin each line with the time at which it was written.
    #[arg(long)]
    timestamps: bool,
}

fn parse_stream(text: &str) -> Result<Stream, String> {
    text.parse().map_err(|_| "the streams are stdout and stderr".to_owned())
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { job, follow, step, stream, attempt, timestamps } = args;
    let name = kind::job_name(job)?;
    let (settings, client) = context.connect()?;
    let namespace = settings.namespace.value.as_str();
    let mut query: Vec<(&str, String)> = Vec::new();
    if let Some(step) = step {
        query.push(("step", step.clone()));
    }
    if let Some(stream) = stream {
        query.push(("stream", stream.to_string()));
    }
    if let Some(number) = attempt {
        query.push(("epoch", epoch_of(&client, namespace, name, *number).await?.to_string()));
    }
    let mut printer = LogPrinter::new(context.console, Routing::Together, *timestamps);
    let result = if *follow {
        print_all(context, &client, namespace, name, &query, &mut printer).await
    } else {
        print_pages(context, &client, namespace, name, query, &mut printer).await
    };
    printer.finish()?;
    result
}

/// The fencing number of an attempt.
async fn epoch_of(client: &Client, namespace: &str, name: &str, number: u32) -> Result<u64, Failure> {
    let attempts: Items<AttemptItem> = client.job_detail(namespace, name, "attempts", &[]).await?;
    attempts.items.iter().find(|attempt| attempt.number == number).map(|attempt| attempt.epoch).ok_or_else(
        || {
            let count = attempts.items.len();
            Report::new(Exit::Failed, format!("the job {name} has no attempt {number}"))
                .detail(format!("{count} attempts were made so far"))
                .into()
        },
    )
}

async fn print_pages(
    context: &Context,
    client: &Client,
    namespace: &str,
    name: &str,
    mut query: Vec<(&str, String)>,
    printer: &mut LogPrinter,
) -> Result<Exit, Failure> {
    query.push(("limit", PAGE.to_owned()));
    let filters = query.len();
    loop {
        let page = client.logs(namespace, name, &query).await?;
        let is_last = page.items.is_empty();
        for item in page.items {
            printer.print(item)?;
        }
        match page.cursor {
            Some(cursor) if !is_last => {
                query.truncate(filters);
                query.push(("cursor", cursor));
            }
            Some(_) | None => {
                let job: Job = client.get(Kind::Job, namespace, name).await?;
                if job.status.phase.is_terminal() && !page.complete {
                    context.console.warn("not all of the job's output has arrived yet");
                }
                view::job::cut_outputs(&job).iter().for_each(|cut| context.console.warn(cut));
                return Ok(Exit::Success);
            }
        }
    }
}

async fn print_all(
    context: &Context,
    client: &Client,
    namespace: &str,
    name: &str,
    query: &[(&str, String)],
    printer: &mut LogPrinter,
) -> Result<Exit, Failure> {
    let mut stream = client.follow_logs(namespace, name, query);
    while let Some(item) = stream.next().await {
        match item? {
            Followed::Event(event) if event.event == "log" => {
                let item: LogItem = serde_json::from_str(&event.data).map_err(|error| {
                    Report::new(Exit::Failed, "the job's output cannot be read").detail(error.to_string())
                })?;
                printer.print(item)?;
            }
            Followed::Event(event) if event.event == "end" => {
                // It may be gone by now, and what it wrote has been printed.
                if let Ok(job) = client.get::<Job>(Kind::Job, namespace, name).await {
                    view::job::cut_outputs(&job).iter().for_each(|cut| context.console.warn(cut));
                }
                break;
            }
            // A newer server may tell more.
            Followed::Event(_) => {}
            Followed::Lost(reason) => {
                context.console.warn(format!("the connection is lost and is tried again: {reason}"));
            }
            Followed::Restored => context.console.note("The connection is back."),
        }
    }
    Ok(Exit::Success)
}
