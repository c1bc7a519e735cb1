//! `windlass delete`: objects go away.

use std::path::PathBuf;

use super::Context;
use crate::client::{Client, Deletion};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{self, Kind, Target, TargetParser};
use crate::manifests::{self, ManifestArgs};
use crate::output::name;

/// Delete objects.
///
/// A job that runs is cancelled first, and deleted with its logs once it has stopped. A node can be deleted when it
/// holds no job.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The kind of the objects, or `KIND/NAME`.
    #[arg(value_name = "KIND", value_parser = TargetParser, required_unless_present = "files", conflicts_with = "files")]
    kind: Option<Target>,

    /// The names of the objects.
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Delete the objects of these manifests, read as by `windlass apply`.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,

    /// Descend into the folders below a folder that is given by `--filename`.
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,

    /// Take it as done when there is no such object.
    #[arg(long)]
    ignore_not_found: bool,
}

/// An object that is to go.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { kind, names, files, recursive, ignore_not_found } = args;
    let settings = context.settings()?;
    let mut doomed = Vec::new();
    if let Some(first) = kind {
        for Target { kind, name } in kind::targets(first, names)? {
            let name = name.ok_or(kind::Error::NoName(kind))?;
            doomed.push(Doomed { kind, namespace: settings.namespace.value.clone(), name });
        }
    } else {
        let manifests = ManifestArgs { files: files.clone(), recursive: *recursive };
        for document in manifests::load(&manifests)? {
            let namespace = manifests::namespace_of(&document, &settings)
                .map_err(|error| manifests::refuse(vec![error]))?;
            let kind = manifests::kind_of(&document.object);
            if let Some(name) = document.object.name() {
                doomed.push(Doomed { kind, namespace, name: name.to_owned() });
            } else {
                context
                    .console
                    .warn(format!("{}: a job with a generated name is not deleted", document.source));
            }
        }
    }
    if doomed.iter().any(|object| object.kind == Kind::Queue) {
        return Err(Report::new(
            Exit::Usage,
            "a queue cannot be deleted: it is there as long as jobs name it",
        )
        .into());
    }
    let (_, client) = context.connect()?;
    let mut exit = Exit::Success;
    for object in &doomed {
        exit = exit.worst(object.delete(context, &client, *ignore_not_found).await?);
    }
    Ok(exit)
}

impl Doomed {
    async fn delete(
        &self,
        context: &Context,
        client: &Client,
        ignore_not_found: bool,
    ) -> Result<Exit, Failure> {
        let Self { kind, namespace, name } = self;
        let label = name::format(*kind, name);
        match client.delete(*kind, namespace, name).await {
            Ok(Deletion::Done) => context.console.line(format!("{label} deleted"))?,
            Ok(Deletion::Pending) => {
                context.console.line(format!("{label} is cancelled, and deleted once it has stopped"))?;
            }
            Err(error) if ignore_not_found && error.problem_code() == Some("not_found") => {}
            Err(error) => return super::tell_refusal(context, error),
        }
        Ok(Exit::Success)
    }
}
