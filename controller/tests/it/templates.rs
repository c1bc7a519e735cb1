//! Job templates.

use serde_json::{Value, json};

use crate::world::World;

fn template(version: &str, command: &str) -> Value {
    json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "JobTemplate", "metadata": {"name": "t"},
        "spec": {"version": version, "job": {"command": [command]}},
    })
}

#[tokio::test]
async fn the_same_version_with_other_content_is_refused() {
    let world = World::new().await;
    let path = "/v1/namespaces/default/templates/t";
    assert_eq!(world.put(path, template("1", "true")).await.outcome.as_deref(), Some("created"));
    assert_eq!(world.put(path, template("1", "true")).await.outcome.as_deref(), Some("unchanged"));
    let conflict = world.put(path, template("1", "false")).await;
    assert_eq!((conflict.status, conflict.body["code"].as_str()), (409, Some("version_conflict")));
    assert_eq!(world.put(path, template("2", "false")).await.outcome.as_deref(), Some("configured"));
    assert_eq!(world.get(path).await.body["spec"]["version"], "2");
    assert_eq!(world.get("/v1/templates").await.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.delete(path).await.status, 200);
    assert_eq!(world.get(path).await.status, 404);
}
