//! What the chart makes, as a real API server takes it.

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::engine::{cases, render, text};

/// The object as this API server can check it, or why it need not.
///
/// # Panics
/// Where it serves no such objects and should.
fn checkable(cluster: &Cluster, served: &str, object: &Value) -> Option<Value> {
    let version = text(&object["apiVersion"]);
    if served.lines().any(|line| line == version) {
        return Some(object.clone());
    }
    // Resources of others, which this cluster does not have: what is in them is checked where alerts are.
    if version == "monitoring.coreos.com/v1" {
        return None;
    }
    // It came with 1.21, with the fields of the version before.
    assert!(version == "policy/v1" && cluster.version() < (1, 21), "{version} is not served");
    let mut older = object.clone();
    older["apiVersion"] = json!("policy/v1beta1");
    Some(older)
}

#[test]
fn every_object_of_every_case_is_accepted() {
    let cluster = Cluster::shared();
    let served = cluster.kubectl(&["api-versions"]);
    let namespace = cluster.namespace();
    for (case, values) in cases() {
        let mut objects = render(&values, &namespace);
        for object in &mut objects {
            // A place of its own for everything that is in a namespace: those of the cases are not there.
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = json!(namespace);
            }
        }
        let objects: Vec<_> =
            objects.iter().filter_map(|object| checkable(cluster, &served, object)).collect();
        assert!(objects.len() >= 3, "{case}");
        let count = objects.len();
        let all = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let (accepted, said) =
            cluster.pipe(&["create", "--dry-run=server", "--validate=true", "-f", "-"], &all.to_string());
        assert!(accepted, "{case}: {said}");
        assert_eq!(said.matches("(server dry run)").count(), count, "{case}: {said}");
    }
}
