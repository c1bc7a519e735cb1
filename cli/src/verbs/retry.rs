//! `windlass retry`: jobs that have ended run again.

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::kind;

/// Run jobs that have ended again.
///
/// The job goes back to its queue with its counters reset; what its earlier attempts wrote is kept.
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
        match client.retry(&settings.namespace.value, name).await {
            Ok(_) => context.console.line(format!("job/{name} queued"))?,
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}
