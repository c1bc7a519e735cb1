//! `windlass restore`: a controller from a backup.

use std::path::PathBuf;

use windlass_controller::backup::{self, PlaceArgs, Restore};
use windlass_controller::clock::{RandomIds, SystemClock};
use windlass_crds::Span;

use super::Context;
use super::backup::{failure, summary};
use crate::exit::Exit;
use crate::failure::Failure;

/// Restore a controller from a backup.
///
/// Stop every controller of the fleet first, and run it as their user. All of the backup is verified before anything is
/// written, and either all of it is restored or nothing. With `--store` it goes into that database, also from a backup of
/// another kind.
///
/// Agents go on by themselves once the controller is back. What happened after the backup is not known any more: jobs that
/// ended since run again, jobs that were made since are stopped. Jobs of the backup wait until what may still be running of
/// them has ended; `--hold` says how long that is.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Only verify the backup, and say what is in it.
    #[arg(long, conflicts_with_all = ["replace", "hold"])]
    check: bool,

    /// Take the place of what is there. In the state folder that is kept under another name; in a database of
    /// `--store` it is lost.
    #[arg(long)]
    replace: bool,

    /// How long jobs of the backup may still be running on nodes: as long as the longest lease, which is the greatest
    /// `--offline-grace` of a controller and `offlineGrace` of a node. Without it 15 minutes or the longest `offlineGrace`.
    /// Say `0s` only if every agent is stopped.
    #[arg(long, value_name = "SPAN")]
    hold: Option<Span>,

    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { file, check, replace, hold, place } = args;
    if *check {
        let (header, manifest) = backup::check(file).await.map_err(|error| failure(&error))?;
        context.console.line(format!("{} is whole: {}", file.display(), summary(&header, &manifest)))?;
        return Ok(Exit::Success);
    }
    let restore = Restore { place, file, replace: *replace, hold: hold.map(Span::get) };
    let restored = backup::restore(&restore, &SystemClock, &RandomIds::from_os()).await;
    let restored = restored.map_err(|error| failure(&error))?;
    context.console.line(format!(
        "{} restored: {}",
        file.display(),
        summary(&restored.header, &restored.manifest)
    ))?;
    if let Some(kept) = restored.kept {
        context.console.note(format!(
            "What was there before is in {}; remove it when it is not needed.",
            kept.display()
        ));
    }
    if restored.restored.hold_until > restored.restored.at {
        context.console.note(format!(
            "Jobs of the backup that wait, or that no node still has, are not handed out before {}.",
            restored.restored.hold_until.strftime("%Y-%m-%dT%H:%M:%SZ")
        ));
    }
    Ok(Exit::Success)
}
