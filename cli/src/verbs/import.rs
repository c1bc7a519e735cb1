//! `windlass import`: what a cluster or a file of its objects holds, into the server.

use serde_json::Value;
use windlass_controller::kube::admin;
use windlass_crds::manifest::{self, Object};

use super::Context;
use super::export::{manifest as manifest_of, manifest_kind};
use crate::client::Client;
use crate::cluster::ClusterArgs;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::Kind;
use crate::manifests::{self, ManifestArgs};
use crate::output::name;

/// Bring what a Kubernetes cluster holds into the server.
///
/// Nodes, templates and jobs are taken from the cluster, or from files as `kubectl get -o yaml` writes them. What became of them
/// there is not: a job is run here from its beginning, so that those that have ended are left out.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Read objects from this file, from every file of this folder, or from standard input where it is `-`.
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE|DIR|-",
        required_unless_present = "from_cluster",
        conflicts_with = "from_cluster"
    )]
    files: Vec<std::path::PathBuf>,

    /// Take the objects from the cluster itself.
    #[arg(long)]
    from_cluster: bool,

    /// Those of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// Jobs that have ended too: they are run again.
    #[arg(long)]
    ended: bool,

    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { files, from_cluster, all_namespaces, ended, cluster } = args;
    let mut objects: Vec<Value> = Vec::new();
    let settings = context.settings()?;
    if *from_cluster {
        let connection = cluster.open().await?;
        let namespace = (!all_namespaces).then_some(settings.namespace.value.as_str());
        for kind in [Kind::Node, Kind::Template, Kind::Job] {
            objects.extend(admin::list_objects(&connection, manifest_kind(kind), namespace).await?);
        }
    } else {
        let documents = manifests::load(&ManifestArgs { files: files.clone(), recursive: false })?;
        for document in documents {
            let written = match &document.object {
                Object::Node(node) => serde_json::to_value(node),
                Object::Job(job) => serde_json::to_value(job),
                Object::Template(template) => serde_json::to_value(template),
            };
            objects.push(written.map_err(|error| Report::new(Exit::Invalid, error.to_string()))?);
        }
    }
    let (settings, client) = context.connect()?;
    let mut exit = Exit::Success;
    for object in &objects {
        let Some(kind) = object["kind"].as_str().and_then(Kind::from_word) else { continue };
        if kind == Kind::Job && !object["status"]["finishedAt"].is_null() && !ended {
            continue;
        }
        let mut manifest = manifest_of(kind, object);
        if kind.is_namespaced() && manifest["metadata"]["namespace"].is_null() {
            manifest["metadata"]["namespace"] = settings.namespace.value.as_str().into();
        }
        exit = exit.worst(import(context, &client, kind, &manifest).await?);
    }
    Ok(exit)
}

async fn import(context: &Context, client: &Client, kind: Kind, manifest: &Value) -> Result<Exit, Failure> {
    let text = |key: &str| manifest["metadata"][key].as_str().unwrap_or_default();
    let label = name::format(kind, text("name"));
    // What a cluster accepted may be wrong all the same.
    if let Err(errors) = manifest::parse(&manifest.to_string(), &label) {
        return Err(manifests::refuse(errors));
    }
    match client.apply(kind, text("namespace"), text("name"), manifest).await {
        Ok(outcome) => {
            context.console.line(format!("{label} {}", outcome.word()))?;
            Ok(Exit::Success)
        }
        Err(error) => super::tell_refusal(context, error),
    }
}
