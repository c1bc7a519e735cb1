//! The controller with the rights that the chart gives to its ServiceAccount, and no others.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::kube::world::{self, SOON, get};
use super::super::system::fleet::{Fleet, wait_for};
use super::engine::{list, pods, render, text};

/// A file by which a ServiceAccount's pods reach the cluster, with a token that the API server has made.
pub(super) fn kubeconfig(cluster: &Cluster, namespace: &str, account: &str, folder: &Path) -> PathBuf {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let asked = folder.join("request.json");
    std::fs::write(&asked, request.to_string()).expect("the folder can be written");
    let answer = cluster.kubectl(&["create", "--raw", &path, "-f", asked.to_str().expect("paths are text")]);
    let answer: Value = serde_json::from_str(&answer).expect("the API server answers in JSON");
    let own = std::fs::read_to_string(cluster.kubeconfig("admin")).expect("it is there");
    let admin = own.lines().find(|line| line.starts_with("users:")).expect("it names a user");
    let user = format!("users: [{{name: 'admin', user: {{token: '{}'}}}}]", text(&answer["status"]["token"]));
    let own = own.replace(admin, &user).replace("namespace: default", &format!("namespace: {namespace}"));
    let file = folder.join(format!("{account}.yaml"));
    std::fs::write(&file, own).expect("the folder can be written");
    file
}

/// The bridge's settings of the controller's pod, with what belongs to its place put in: how the cluster is reached.
pub(super) fn settings(objects: &[Value], config: &Path) -> Vec<String> {
    let pods = pods(objects);
    let (_, pod) =
        pods.iter().find(|(name, _)| name.ends_with("-controller")).expect("there is a controller");
    let arguments = list(&pod["containers"][0]["args"]).iter().map(|argument| text(argument).to_owned());
    let mut settings: Vec<_> = arguments.filter(|argument| argument.starts_with("--kube")).collect();
    settings.extend(["--kube-config".to_owned(), config.display().to_string()]);
    settings
}

/// What a controller does in a cluster, from the first right that it needs to the last.
pub(super) fn work(cluster: &Cluster, fleet: &Fleet, namespace: &str) {
    let name = format!("granted-{namespace}");
    let agent = fleet.agent(&name);
    cluster.apply(&world::job(namespace, "granted", "  ttlAfterFinished: 5s\n", "echo granted"));
    wait_for("the job has succeeded", SOON, || {
        let found = get(cluster, namespace, "sj", "granted");
        (found["status"]["phase"] == "Succeeded").then_some(())
    });
    wait_for("the node has an object", SOON, || {
        (!get(cluster, namespace, "nc", &name)["status"].is_null()).then_some(())
    });
    wait_for("the job's object goes", SOON, || {
        get(cluster, namespace, "sj", "granted").is_null().then_some(())
    });
    let log = fleet.controller.log();
    assert!(!log.contains("forbidden"), "{log}");
    drop(agent);
    cluster.kubectl(&["delete", "nc", &name, "--ignore-not-found"]);
}

#[test]
fn roles_of_single_namespaces_are_all_that_is_needed_there() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    let values = format!(
        "kube: {{namespaces: [{namespace}], nodeLabel: {}, cluster: lab, secrets: {{enabled: true, namespaces: [{namespace}]}}}}\n\
         crds: {{install: false}}\n",
        world::node_label(&namespace)
    );
    let objects = render(&values, &namespace);
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let rights: Vec<_> = objects.iter().filter(|object| kinds.contains(&text(&object["kind"]))).collect();
    for object in &rights {
        let everywhere = list(&object["rules"]).iter().flat_map(|rule| list(&rule["resources"]));
        let jobs = everywhere.filter(|resource| text(resource).starts_with("sandboxjobs")).count();
        let aggregated = object["metadata"]["labels"]["app.kubernetes.io/component"] == "rbac";
        assert!(object["kind"] != "ClusterRole" || jobs == 0 || aggregated, "{object}");
    }
    let all = json!({"apiVersion": "v1", "kind": "List", "items": rights});
    cluster.apply(&all.to_string());
    let folder = tempfile::tempdir().expect("a folder for the test");
    let config = kubeconfig(cluster, &namespace, "windlass-controller", folder.path());
    let settings = settings(&objects, &config);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let fleet = Fleet::with(&settings);
    for (verb, place, permitted) in [
        ("get", namespace.as_str(), true),
        ("list", namespace.as_str(), false),
        ("watch", namespace.as_str(), false),
        ("get", "default", false),
    ] {
        for resource in ["secrets", "configmaps"] {
            let account = format!("--as=system:serviceaccount:{namespace}:windlass-controller");
            let asked = ["-n", place, "auth", "can-i", verb, resource, &account];
            let output = cluster.command(&asked).output().expect("kubectl is installed");
            assert_eq!(output.status.success(), permitted, "{verb} {resource} in {place}");
        }
    }
    cluster.kubectl(&[
        "-n",
        &namespace,
        "create",
        "secret",
        "generic",
        "db",
        "--from-literal=k=of the cluster",
    ]);
    let fields = "  secrets: [{name: db, key: k, env: V}]\n";
    cluster.apply(&world::job(&namespace, "asks", fields, "test \"$V\" = 'of the cluster'"));
    work(cluster, &fleet, &namespace);
    // The node was there for both.
    wait_for("the job with a secret has succeeded", SOON, || {
        (get(cluster, &namespace, "sj", "asks")["status"]["phase"] == "Succeeded").then_some(())
    });
    drop(fleet);
    let cluster_wide = rights.iter().filter(|object| object["metadata"]["namespace"].is_null());
    for object in cluster_wide {
        cluster.kubectl(&["delete", text(&object["kind"]), text(&object["metadata"]["name"])]);
    }
}
