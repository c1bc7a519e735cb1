//! An orchestrator that is not ours: it knows a node's Worker API, and the token that the node's configuration has brought.

use std::fs;
use std::time::Duration;

use reqwest::{Certificate, Method};
use serde_json::{Value, json};

use super::world::World;
use crate::system::fleet::wait_for;

/// How long things may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Declares a node that is given its work, at any free port.
pub(super) fn declare(world: &mut World, node: &str) {
    let manifest = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": node},
        "spec": {"dispatch": "Push", "workerApi": {"listen": "127.0.0.1:0"}},
    });
    world.operate(Method::PUT, &format!("/v1/nodes/{node}"), Some(&manifest));
    assert_eq!(world.status, 201, "{}", world.answer);
}

/// A real agent that serves its Worker API.
pub(super) fn real_node(world: &mut World, node: &str) {
    declare(world, node);
    world.real_node(node);
    wait_for("the Worker API is served", SOON, || {
        let found = world.fleet().json(&["get", "node", node]);
        found["status"]["dispatch"]["url"].is_string().then_some(())
    });
}

/// Has a node run a shell command, with further fields of the sandbox.
pub(super) fn run(world: &mut World, node: &str, script: &str, fields: &Value) {
    run_with(world, node, None, script, fields);
}

/// [`run`] with another token.
pub(super) fn run_with(world: &mut World, node: &str, token: Option<&str>, script: &str, fields: &Value) {
    world.orders += 1;
    let id = |kind: u32| format!("0198c1de-7a4b-7000-8{kind:03}-{:012}", world.orders);
    let mut sandbox = json!({"image": "", "command": ["sh", "-c", script]});
    for (name, value) in fields.as_object().expect("fields are an object") {
        sandbox[name] = value.clone();
    }
    let body = json!({"version": 1, "task_id": id(1), "job_id": id(2), "sandbox": sandbox});
    let fleet = world.fleet();
    let kept =
        fs::read(fleet.path(&format!("{node}/config/last-good.json"))).expect("it has a configuration");
    let kept: Value = serde_json::from_slice(&kept).expect("it is JSON");
    let own = kept["worker_api"]["orchestrator_bearer_token"].as_str().expect("it has a token");
    let pem = fs::read(fleet.path(&format!("{node}/worker-api/cert.pem"))).expect("it has a certificate");
    let found = fleet.json(&["get", "node", node]);
    let url = found["status"]["dispatch"]["url"].as_str().expect("it is served").to_owned();
    let token = token.unwrap_or(own).to_owned();
    let answer = world.http().run(async move {
        let client = reqwest::Client::builder()
            .timeout(SOON)
            .no_proxy()
            .tls_certs_only([Certificate::from_pem(&pem).expect("it is a certificate")])
            .build()
            .expect("the settings fit together");
        let request = client.post(format!("{url}/v1/worker/jobs:run")).bearer_auth(token).json(&body);
        let response = request.send().await.expect("the node answers");
        let status = response.status().as_u16();
        let body = response.bytes().await.expect("the answer is whole");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    });
    (world.status, world.answer) = answer;
}
