//! `windlass identity`: what controllers of one database have in common.

use std::path::PathBuf;

use windlass_controller::clock::RandomIds;
use windlass_controller::identity::{self, Error};

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// Make what controllers that share a database have in common.
///
/// A single controller makes all of this by itself. Several are given the same: `windlass controller --authority DIR
/// --admin-token-file DIR/admin.token`, or a Secret that is made from the folder.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Create(CreateArgs),
}

/// Make a certificate authority (`ca.crt`, `ca.key`) and an admin token (`admin.token`) in a folder.
///
/// Nodes trust the authority for as long as they live: keep the folder as safe as the database, and never make another one for the
/// same fleet.
#[derive(clap::Args, Debug)]
struct CreateArgs {
    /// The folder; it must be empty, or not be there.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Verb::Create(CreateArgs { folder }) = &args.verb;
    identity::create(folder, &RandomIds::from_os()).map_err(|error| failure(&error))?;
    context.console.line(format!("{} written: ca.crt, ca.key, admin.token", folder.display()))?;
    Ok(Exit::Success)
}

fn failure(error: &Error) -> Failure {
    let exit = match error {
        Error::Exists { .. } => Exit::Usage,
        Error::Folder { .. } | Error::Tls(_) => Exit::Failed,
    };
    Report::new(exit, error.to_string()).causes(error).into()
}
