//! `windlass validate`: manifests are checked without a server.

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::manifests::{self, ManifestArgs};
use crate::output::name;

/// Check manifests without a server.
///
/// Everything that is wrong is told at once, each with file, line and column. What only a server knows, such as whether
/// a name is taken, is not checked.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    manifests: ManifestArgs,
}

pub(crate) fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    for document in manifests::load(&args.manifests)? {
        let kind = manifests::kind_of(&document.object);
        let label = match (document.object.name(), document.object.metadata().generate_name.as_deref()) {
            (Some(name), _) => name::format(kind, name),
            (None, prefix) => format!("{}*", name::format(kind, prefix.unwrap_or_default())),
        };
        context.console.line(format!("{}:{}: {label} is valid", document.source, document.line()))?;
    }
    Ok(Exit::Success)
}
