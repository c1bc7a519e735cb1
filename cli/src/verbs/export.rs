//! `windlass export`: what the server holds, as manifests.

use serde_json::{Value, json};
use windlass_controller::kube::admin;
use windlass_crds::schema::Kind as ManifestKind;

use super::Context;
use crate::client::Filter;
use crate::cluster::ClusterArgs;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{Kind, Target, TargetParser};
use crate::output::{name, yaml};

/// Print what the server holds as manifests, or bring it to a Kubernetes cluster.
///
/// A manifest holds what was declared and nothing of what became of it, so that it can be applied anywhere. Jobs that have ended
/// are left out, because applying one would run it again.
///
/// `--to-cluster` makes objects in the cluster. Where this server bridges that cluster, they become the place where nodes, jobs
/// and templates are changed, and jobs are not run a second time.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only these: a kind, or `KIND/NAME`; without it nodes, templates and jobs.
    #[arg(value_name = "KIND[/NAME]", value_parser = TargetParser)]
    targets: Vec<Target>,

    /// Those of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// Jobs that have ended too.
    #[arg(long)]
    ended: bool,

    /// Make objects in the cluster in place of printing.
    #[arg(long)]
    to_cluster: bool,

    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { targets, all_namespaces, ended, to_cluster, cluster } = args;
    let kinds = [Kind::Node, Kind::Template, Kind::Job];
    if targets.iter().any(|target| target.kind == Kind::Queue) {
        return Err(
            Report::new(Exit::Usage, "queues have no manifests; `windlass set queue` sets them").into()
        );
    }
    let targets = match targets.as_slice() {
        [] => kinds.map(|kind| Target { kind, name: None }).to_vec(),
        some => some.to_vec(),
    };
    let connection = if *to_cluster { Some(cluster.open().await?) } else { None };
    let (settings, client) = context.connect()?;
    let namespace = (!all_namespaces).then_some(settings.namespace.value.as_str());
    for target in &targets {
        let namespace = namespace.filter(|_| target.kind.is_namespaced());
        let mut found: Vec<Value> = match &target.name {
            Some(name) => vec![client.get(target.kind, &settings.namespace.value, name).await?],
            None => client.list(target.kind, namespace, &Filter::default()).await?,
        };
        // Oldest first, so that they wait in the order in which they did before.
        found.reverse();
        for object in found {
            let has_ended = !object["status"]["finishedAt"].is_null();
            if target.kind == Kind::Job && target.name.is_none() && has_ended && !ended {
                continue;
            }
            let manifest = manifest(target.kind, &object);
            let Some(connection) = &connection else {
                context.console.line(format!("---\n{}", yaml::format(&manifest).trim_end()))?;
                continue;
            };
            let uid = object["metadata"]["uid"].as_str().filter(|_| target.kind == Kind::Job);
            let exported =
                admin::apply_object(connection, manifest_kind(target.kind), &manifest, uid).await?;
            let label = name::format(target.kind, object["metadata"]["name"].as_str().unwrap_or_default());
            let word = match exported {
                admin::Exported::Applied => "exported",
                admin::Exported::Kept => "is in the cluster already, and is left as it is there",
            };
            context.console.line(format!("{label} {word}"))?;
        }
    }
    Ok(Exit::Success)
}

/// The kind in a manifest. Queues have none, and are refused before.
pub(super) const fn manifest_kind(kind: Kind) -> ManifestKind {
    match kind {
        Kind::Node => ManifestKind::NodeConfig,
        Kind::Template => ManifestKind::JobTemplate,
        Kind::Job | Kind::Queue => ManifestKind::SandboxJob,
    }
}

/// What was declared, without what became of it and who it is.
pub(super) fn manifest(kind: Kind, object: &Value) -> Value {
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "labels", "annotations"] {
        let Some(mut value) = object["metadata"].get(key).cloned() else { continue };
        if let (Some(annotations), "annotations") = (value.as_object_mut(), key) {
            annotations
                .retain(|key, _| !key.starts_with("kubectl.kubernetes.io/") && key != "windlass.dev/job");
        }
        let is_empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
        if !is_empty {
            metadata.insert(key.to_owned(), value);
        }
    }
    json!({
        "apiVersion": windlass_crds::API_VERSION,
        "kind": manifest_kind(kind).name(),
        "metadata": metadata,
        "spec": object["spec"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_nothing_of_what_became_of_an_object() {
        let object = json!({
            "metadata": {
                "name": "a", "namespace": "b", "uid": "c", "resourceVersion": "1", "labels": {}, "managedFields": [],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "1", "windlass.dev/job": "u"},
            },
            "spec": {"command": ["true"]}, "status": {"phase": "Succeeded"},
        });
        assert_eq!(
            manifest(Kind::Job, &object),
            json!({
                "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob",
                "metadata": {"name": "a", "namespace": "b", "annotations": {"kept": "1"}},
                "spec": {"command": ["true"]},
            })
        );
    }
}
