//! Uploaded inputs.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::world::{Answer, World, read};

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

async fn upload(world: &World, digest: &str, content: &'static [u8]) -> Answer {
    let request = Request::put(format!("/v1/inputs/{digest}"))
        .header("authorization", "Bearer operator")
        .body(Body::from(content))
        .unwrap();
    read(world.raw(request).await).await
}

#[tokio::test]
async fn an_input_is_uploaded_once_and_named_by_its_content() {
    let world = World::new().await;
    let name = digest(b"data");
    assert_eq!(world.get(&format!("/v1/inputs/{name}")).await.status, 404);
    assert_eq!(upload(&world, &name, b"data").await.status, 201);
    assert_eq!(upload(&world, &name, b"data").await.status, 200);
    assert_eq!(world.get(&format!("/v1/inputs/{name}")).await.status, 200);
    let wrong = upload(&world, &digest(b"other"), b"data").await;
    assert_eq!((wrong.status, wrong.body["code"].as_str()), (422, Some("digest_mismatch")));
    assert_eq!(upload(&world, "sha256:short", b"data").await.status, 400);
}

#[tokio::test]
async fn a_job_names_only_inputs_that_are_there_and_its_node_alone_can_fetch_them() {
    let world = World::settled().await;
    let name = digest(b"data");
    let spec = json!({
        "command": ["true"],
        "workspace": {"inputs": [{"path": "in", "upload": {"digest": name}}]},
    });
    let missing = world.job("a", spec.clone()).await;
    assert_eq!(missing.status, 422);
    assert_eq!(missing.body["errors"][0]["field"], "spec.workspace.inputs[0].upload.digest");
    upload(&world, &name, b"data").await;
    assert_eq!(world.job("a", spec).await.status, 201);
    let (agent, other) = (world.node("n1").await, world.node("n2").await);
    let path = format!("inputs/{name}");
    assert_eq!(agent.call("GET", &path, None).await.status, 404, "not before it holds the job");
    agent.claim("r1", 1).await;
    let fetched = agent.call("GET", &path, None).await;
    assert_eq!((fetched.status, fetched.body), (200, json!("data")));
    assert_eq!(other.call("GET", &path, None).await.status, 404);
}
