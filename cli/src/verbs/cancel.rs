//! `windlass cancel`: jobs are stopped.

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::kind;

/// Cancel jobs.
///
/// A job that no node holds ends at once. One that runs is stopped by its node: first asked to end, then killed.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The jobs' names.
    #[arg(value_name = "NAME", required = true)]
    jobs: Vec<String>,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let names = args.jobs.iter().map(|job| kind::job_name(job)).collect::<Result<Vec<_>, _>>()?;
    let (settings, client) = context.connect()?;
    let mut exit = Exit::Success;
    for name in names {
        match client.cancel(&settings.namespace.value, name).await {
            Ok(job) => {
                let word = if job.status.phase.is_terminal() { "cancelled" } else { "cancelling" };
                context.console.line(format!("job/{name} {word}"))?;
            }
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}
