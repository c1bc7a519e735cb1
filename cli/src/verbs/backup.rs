//! `windlass backup`: everything that makes a controller, in one file.

use std::path::PathBuf;

use windlass_controller::backup::{self, Backup, Header, Manifest, PlaceArgs};
use windlass_controller::clock::SystemClock;

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// Back a controller up into one file, while it works.
///
/// Run it on the controller's host, as its user. The file holds the database as it is at one moment, the logs, artifacts and inputs
/// of jobs, and, unless `--without-secrets` says otherwise, the certificate authority's key and the admin token: keep it
/// as safe as these. Only its owner can read it. `windlass restore` takes it back, also into another kind of database.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The file to write; it must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Leave out the certificate authority's key and the admin token; to restore it, the folder `pki` must be kept
    /// elsewhere.
    #[arg(long)]
    without_secrets: bool,

    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { file, without_secrets, place } = args;
    let backup = Backup { place, file, secrets: !without_secrets };
    let (header, manifest) = backup::create(&backup, &SystemClock).await.map_err(|error| failure(&error))?;
    context.console.line(format!("{} written: {}", file.display(), summary(&header, &manifest)))?;
    if manifest.missing_bodies > 0 {
        context.console.warn(format!(
            "{} logs, artifacts or inputs were gone when they were read: of jobs that were deleted meanwhile, or from the folder `bodies`",
            manifest.missing_bodies
        ));
    }
    Ok(Exit::Success)
}

/// What a backup holds, in a few words.
pub(crate) fn summary(header: &Header, manifest: &Manifest) -> String {
    let rows = |table: &str| manifest.tables.get(table).copied().unwrap_or_default();
    format!(
        "{} jobs, {} nodes, {} bodies as of {}, schema {}{}",
        rows("jobs"),
        rows("nodes"),
        manifest.bodies,
        header.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        header.schema,
        if header.secrets { ", with secrets" } else { ", without secrets" }
    )
}

/// Why there is no backup, or why it was not restored.
pub(crate) fn failure(error: &backup::Error) -> Failure {
    let exit = match error {
        backup::Error::Args(_)
        | backup::Error::Exists { .. }
        | backup::Error::NotEmpty { .. }
        | backup::Error::IntoBucket { .. } => Exit::Usage,
        backup::Error::Foreign { .. } | backup::Error::Damaged { .. } | backup::Error::NewerFormat { .. } => {
            Exit::Invalid
        }
        backup::Error::Transfer(_)
        | backup::Error::State(_)
        | backup::Error::Tls(_)
        | backup::Error::Bodies(_)
        | backup::Error::File { .. }
        | backup::Error::Changed { .. }
        | backup::Error::Busy { .. }
        | backup::Error::NoAuthority { .. }
        | backup::Error::OtherAuthority { .. } => Exit::Failed,
    };
    Report::new(exit, error.to_string()).causes(error).into()
}
