//! What was declared in Kubernetes is read-only here, but for what is no part of the declaration.

use serde_json::{Value, json};
use windlass_store::{Origin, OriginKind};

use crate::world::{World, manifest};

const JOB: &str = "/v1/namespaces/default/jobs/a";

/// Lets something belong to an object.
async fn bind(world: &World, kind: OriginKind, path: &str, object: &str) -> Origin {
    let uid = world.get(path).await.body["metadata"]["uid"].as_str().unwrap().to_owned();
    let origin = Origin { cluster: "c1".to_owned(), object: object.to_owned() };
    world.store.bind_origin(origin.clone(), kind, &uid).await.unwrap();
    origin
}

fn declared_elsewhere(body: &Value) -> bool {
    body["code"] == "declared_elsewhere" && body["detail"].as_str().unwrap().contains("cluster c1")
}

#[tokio::test]
async fn a_job_of_kubernetes_is_cancelled_here_and_changed_there() {
    let world = World::new().await;
    let spec = json!({"command": ["true"]});
    world.job("a", spec.clone()).await;
    let origin = bind(&world, OriginKind::Job, JOB, "o1").await;
    assert_eq!(world.put(JOB, manifest("a", spec)).await.outcome.as_deref(), Some("unchanged"));
    let other = manifest("a", json!({"command": ["true"], "suspend": true}));
    for answer in [
        world.put(JOB, other).await,
        world.post(&format!("{JOB}/retry"), json!({})).await,
        world.delete(JOB).await,
    ] {
        assert!(answer.status == 409 && declared_elsewhere(&answer.body), "{answer:?}");
    }
    assert_eq!(world.post(&format!("{JOB}/cancel"), json!({})).await.status, 200);
    assert_eq!(world.phase("a").await, "Cancelled CancelRequested");
    // Its object was lost: it belongs to the store alone.
    world.store.release_origin(&origin).await.unwrap();
    assert_eq!(world.post(&format!("{JOB}/retry"), json!({})).await.status, 200);
    assert_eq!(world.delete(JOB).await.status, 200);
}

#[tokio::test]
async fn nodes_and_templates_of_kubernetes_are_changed_there() {
    let world = World::new().await;
    let node = |concurrency: u32| json!({"apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n"}, "spec": {"concurrency": concurrency}});
    let template = |version: &str| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "JobTemplate", "metadata": {"name": "t"},
            "spec": {"version": version, "job": {"command": ["true"]}},
        })
    };
    let (at_node, at_template) = ("/v1/nodes/n", "/v1/namespaces/default/templates/t");
    world.put(at_node, node(1)).await;
    world.put(at_template, template("1")).await;
    bind(&world, OriginKind::Node, at_node, "o1").await;
    bind(&world, OriginKind::Template, at_template, "o2").await;
    assert_eq!(world.put(at_node, node(1)).await.outcome.as_deref(), Some("unchanged"));
    assert_eq!(world.put(at_template, template("1")).await.outcome.as_deref(), Some("unchanged"));
    for answer in [
        world.put(at_node, node(2)).await,
        world.delete(at_node).await,
        world.put(at_template, template("2")).await,
        world.delete(at_template).await,
    ] {
        assert!(answer.status == 409 && declared_elsewhere(&answer.body), "{answer:?}");
    }
    assert_eq!(world.post("/v1/nodes/n/cordon", json!({})).await.status, 200, "a command is no declaration");
}
