//! `windlass apply`: objects become what manifests say.

use windlass_crds::manifest::{self, Document, Object};
use windlass_crds::protocol::FieldError;

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::manifests::{self, ManifestArgs};
use crate::output::name;

/// Make objects be as manifests say, and create those that do not exist.
///
/// Nothing is sent before every manifest was found to be valid. An object that is as its manifest says already is left
/// alone, so that the same command can be given again.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    manifests: ManifestArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let documents = manifests::load(&args.manifests)?;
    let settings = context.settings()?;
    let errors: Vec<manifest::Error> = documents
        .iter()
        .flat_map(|document| [manifests::namespace_of(document, &settings).err(), nameless(document)])
        .flatten()
        .collect();
    if !errors.is_empty() {
        return Err(manifests::refuse(errors));
    }
    let (settings, client) = context.connect()?;
    let mut exit = Exit::Success;
    for document in &documents {
        let kind = manifests::kind_of(&document.object);
        let namespace =
            manifests::namespace_of(document, &settings).map_err(|error| manifests::refuse(vec![error]))?;
        let object_name = document.object.name().unwrap_or_default();
        let result = match &document.object {
            Object::Node(node) => client.apply(kind, &namespace, object_name, node).await,
            Object::Job(job) => {
                let mut job = job.clone();
                job.metadata.namespace = Some(namespace.clone());
                client.apply(kind, &namespace, object_name, &job).await
            }
            Object::Template(template) => {
                let mut template = template.clone();
                template.metadata.namespace = Some(namespace.clone());
                client.apply(kind, &namespace, object_name, &template).await
            }
        };
        let label = name::format(kind, object_name);
        match result {
            Ok(outcome) => context.console.line(format!("{label} {}", outcome.word()))?,
            // The next objects may be good, unless nobody is there to take them.
            Err(error) if error.problem_code().is_none() => return Err(error.into()),
            Err(error) => {
                let mut report = error.report();
                report.what = format!("{label} was not applied: {}", report.what);
                exit = exit.worst(report.exit);
                context.console.report(&report);
            }
        }
    }
    Ok(exit)
}

/// What is wrong with a manifest that has no name of its own: applied twice it would make two objects.
fn nameless(document: &Document) -> Option<manifest::Error> {
    if document.object.name().is_some() {
        return None;
    }
    let message = "`apply` needs a name; a job with `generateName` is made by `windlass run -f`".to_owned();
    Some(document.locate(&FieldError { field: "metadata.generateName".to_owned(), message }))
}
