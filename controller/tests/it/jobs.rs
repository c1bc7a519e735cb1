//! Jobs by REST.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::world::{World, log, manifest, read, started, step_ended, terminal};

fn command() -> Value {
    json!({"command": ["true"]})
}

#[tokio::test]
async fn a_created_job_is_shown_with_its_defaults_and_its_status() {
    let world = World::new().await;
    let answer = world.job("hello", command()).await;
    assert_eq!(answer.status, 201);
    assert_json_snapshot!(answer.body);
    assert_eq!(world.get("/v1/namespaces/default/jobs/hello").await.body, answer.body);
}

#[tokio::test]
async fn an_invalid_job_names_every_field_and_creates_nothing() {
    let world = World::new().await;
    let answer = world
        .job(
            "bad",
            json!({
                "stepz": [], "queue": "Not A Queue", "sandbox": {"network": "Opn", "env": {"WINDLASS_X": "1"}},
                "priority": "urgent",
            }),
        )
        .await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (422, Some("invalid")));
    let fields: Vec<_> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    for field in ["spec.stepz", "spec.queue", "spec.sandbox.network", "spec.priority"] {
        assert!(fields.contains(&field), "{field} in {fields:?}");
    }
    assert!(answer.body.to_string().contains("did you mean"), "{}", answer.body);
    assert_eq!(world.get("/v1/jobs").await.body["items"], json!([]));
}

#[tokio::test]
async fn config_maps_are_refused_where_there_is_no_cluster_to_read_them_from() {
    let world = World::new().await;
    let config_maps = json!([{"name": "app", "key": "mode", "env": "MODE"}]);
    let answer = world.job("a", json!({"command": ["true"], "configMaps": config_maps})).await;
    let error = &answer.body["errors"][0];
    assert_eq!((answer.status, error["field"].as_str()), (422, Some("spec.configMaps")));
    assert!(error["message"].as_str().unwrap().contains("create it with kubectl"), "{error}");
    let steps = json!([{"name": "s", "command": ["true"], "configMaps": config_maps}]);
    let answer = world.job("b", json!({ "steps": steps })).await;
    assert_eq!(answer.body["errors"][0]["field"], "spec.steps[0].configMaps");
    assert_eq!(world.get("/v1/jobs").await.body["items"], json!([]));
}

#[tokio::test]
async fn broken_json_an_oversized_body_and_a_wrong_path_are_told_apart() {
    let world = World::new().await;
    let send = |body: Vec<u8>| {
        let request = Request::post("/v1/namespaces/default/jobs")
            .header("authorization", "Bearer operator")
            .body(Body::from(body))
            .unwrap();
        async { read(world.raw(request).await).await }
    };
    let broken = send(b"{\"kind\": ".to_vec()).await;
    assert_eq!((broken.status, broken.body["code"].as_str()), (400, Some("bad_request")));
    let large = send(vec![b' '; 9 << 20]).await;
    assert_eq!((large.status, large.body["code"].as_str()), (413, Some("too_large")));
    let nowhere = world.get("/v1/jubs").await;
    assert_eq!((nowhere.status, nowhere.body["code"].as_str()), (404, Some("not_found")));
    let method = world.delete("/v1/jobs").await;
    assert_eq!((method.status, method.body["code"].as_str()), (405, Some("method_not_allowed")));
    let place = world.put("/v1/namespaces/default/jobs/a", manifest("b", command())).await;
    assert_eq!((place.status, place.body["errors"][0]["field"].as_str()), (422, Some("metadata.name")));
}

#[tokio::test]
async fn nothing_is_shown_without_a_token() {
    let world = World::new().await;
    for token in ["", "wrong", "operator "] {
        let answer = world.send(token.trim_end_matches("operator "), "GET", "/v1/jobs", None).await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (401, Some("unauthenticated")));
    }
}

#[tokio::test]
async fn an_idempotency_key_makes_a_repeated_create_harmless_and_is_not_reused() {
    let world = World::new().await;
    let create = |spec: Value| {
        let body = json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob",
            "metadata": {"generateName": "job-"}, "spec": spec,
        });
        let request = Request::post("/v1/namespaces/default/jobs")
            .header("authorization", "Bearer operator")
            .header("idempotency-key", "k1")
            .body(Body::from(body.to_string()))
            .unwrap();
        async { read(world.raw(request).await).await }
    };
    let first = create(command()).await;
    let second = create(command()).await;
    assert_eq!((first.status, second.status), (201, 200));
    assert_eq!(first.body["metadata"]["name"], second.body["metadata"]["name"]);
    let other = create(json!({"command": ["false"]})).await;
    assert_eq!((other.status, other.body["code"].as_str()), (409, Some("idempotency_key_reused")));
    let taken = world.job(first.body["metadata"]["name"].as_str().unwrap(), command()).await;
    assert_eq!((taken.status, taken.body["code"].as_str()), (409, Some("name_taken")));
}

#[tokio::test]
async fn apply_creates_leaves_alone_changes_and_refuses() {
    let world = World::new().await;
    let apply = |spec: Value| world.put("/v1/namespaces/default/jobs/a", manifest("a", spec));
    let outcome = |answer: crate::world::Answer| (answer.status, answer.outcome.unwrap_or_default());
    assert_eq!(outcome(apply(command()).await), (201, "created".into()));
    assert_eq!(outcome(apply(command()).await), (200, "unchanged".into()));
    let mut urgent = command();
    urgent["priority"] = "high".into();
    assert_eq!(outcome(apply(urgent.clone()).await), (200, "configured".into()));
    assert_eq!(outcome(apply(urgent).await), (200, "unchanged".into()));
    let other = apply(json!({"command": ["false"]})).await;
    assert_eq!(other.status, 422);
    assert_eq!(other.body["errors"][0]["field"], "spec.steps[0].command[0]", "{}", other.body);
}

#[tokio::test]
async fn a_dry_run_checks_and_changes_nothing() {
    let world = World::new().await;
    let answer = world.put("/v1/namespaces/default/jobs/a?dryRun=true", manifest("a", command())).await;
    assert_eq!((answer.status, answer.outcome.as_deref()), (200, Some("created")));
    assert_eq!(world.get("/v1/namespaces/default/jobs/a").await.status, 404);
    let path = "/v1/namespaces/default/jobs?dryRun=true";
    assert_eq!(world.post(path, manifest("a", command())).await.status, 200);
    world.job("a", command()).await;
    let taken = world.post(path, manifest("a", command())).await;
    assert_eq!((taken.status, taken.body["code"].as_str()), (409, Some("name_taken")));
    // The request that has made it may be repeated, and is checked as what it is.
    let keyed = async |query: &str, spec: serde_json::Value| {
        let request = axum::http::Request::post(format!("/v1/namespaces/default/jobs{query}"))
            .header("authorization", "Bearer operator")
            .header("content-type", "application/json")
            .header("idempotency-key", "k");
        let body = serde_json::to_vec(&manifest("b", spec)).unwrap();
        read(world.raw(request.body(body.into()).unwrap()).await).await.status
    };
    assert_eq!(keyed("", command()).await, 201);
    assert_eq!(keyed("?dryRun=true", command()).await, 200);
    assert_eq!(keyed("?dryRun=true", json!({"command": ["false"]})).await, 409);
}

#[tokio::test]
async fn lists_are_filtered_and_paged_without_gap_or_repetition() {
    let world = World::new().await;
    for number in 0..7 {
        let mut spec = command();
        spec["queue"] = if number % 2 == 0 { "even" } else { "odd" }.into();
        assert_eq!(world.job(&format!("j{number}"), spec).await.status, 201);
    }
    let mut seen = Vec::new();
    let mut path = "/v1/jobs?limit=3".to_owned();
    loop {
        let page = world.get(&path).await.body;
        seen.extend(page["items"].as_array().unwrap().iter().map(|job| job["metadata"]["name"].clone()));
        match page["metadata"]["continue"].as_str() {
            Some(cursor) => path = format!("/v1/jobs?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]);
    let even = world.get("/v1/jobs?queue=even&phase=Queued,Running").await.body;
    assert_eq!(even["items"].as_array().unwrap().len(), 4);
    for bad in ["phase=Runing", "limit=0", "limit=501", "cursor=x", "selector=a"] {
        assert_eq!(world.get(&format!("/v1/jobs?{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_a_held_one_through_its_node() {
    let world = World::settled().await;
    world.job("waiting", command()).await;
    assert_eq!(world.post("/v1/namespaces/default/jobs/waiting/cancel", json!({})).await.status, 200);
    assert!(world.phase("waiting").await.starts_with("Cancelled"));
    let again = world.post("/v1/namespaces/default/jobs/waiting/cancel", json!({})).await;
    assert_eq!((again.status, again.body["code"].as_str()), (409, Some("already_ended")));

    world.job("held", command()).await;
    let agent = world.node("n1").await;
    let assignment = agent.claim("r1", 1).await.remove(0);
    let attempt = assignment["attempt"].clone();
    world.post("/v1/namespaces/default/jobs/held/cancel", json!({})).await;
    let orders = agent.beat(std::slice::from_ref(&attempt)).await.body["orders"].clone();
    assert_eq!(orders, json!([{"kind": "cancel", "attempt": attempt}]));
    agent.report(&attempt, &[(1, terminal("cancelled", 1))]).await;
    assert!(world.phase("held").await.starts_with("Cancelled"));
}

#[tokio::test]
async fn a_held_job_is_deleted_once_its_node_has_stopped_it() {
    let world = World::settled().await;
    world.job("held", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    assert_eq!(world.delete("/v1/namespaces/default/jobs/held").await.status, 202);
    assert_eq!(world.get("/v1/namespaces/default/jobs/held").await.status, 200);
    agent.report(&attempt, &[(1, terminal("cancelled", 1))]).await;
    world.clock.advance(Duration::from_secs(1));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.get("/v1/namespaces/default/jobs/held").await.status, 404);
    assert_eq!(world.delete("/v1/namespaces/default/jobs/held").await.status, 404);
}

#[tokio::test]
async fn a_job_that_has_ended_can_be_run_again_with_a_new_epoch() {
    let world = World::settled().await;
    world.job("a", command()).await;
    assert_eq!(world.post("/v1/namespaces/default/jobs/a/retry", json!({})).await.status, 409);
    let agent = world.node("n1").await;
    let first = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&first, &[(1, started()), (2, step_ended(3)), (4, terminal("failed", 4))]).await;
    assert_eq!(world.phase("a").await, "Failed StepFailed");
    assert_eq!(world.post("/v1/namespaces/default/jobs/a/retry", json!({})).await.status, 200);
    let second = agent.claim("r2", 1).await[0]["attempt"].clone();
    assert!(second["epoch"].as_u64() > first["epoch"].as_u64());
    let late = agent.report(&first, &[(3, log("late", 0))]).await;
    assert_eq!(late, ["accepted"], "it completes the logs of the attempt that it belongs to");
    agent.report(&second, &[(1, started()), (2, step_ended(0)), (3, terminal("succeeded", 3))]).await;
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    let attempts = world.get("/v1/namespaces/default/jobs/a/attempts").await.body;
    let phases: Vec<_> = attempts["items"].as_array().unwrap().iter().map(|a| a["phase"].clone()).collect();
    assert_eq!(phases, ["Failed", "Succeeded"]);
}

#[tokio::test]
async fn the_result_shows_exit_code_and_output_of_each_step() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let long = "x".repeat(20_000);
    agent
        .report(
            &attempt,
            &[
                (1, started()),
                (2, json!({"kind": "step_started", "step": 0})),
                (3, log("hello\n", 0)),
                (4, log(&long, 6)),
                (5, step_ended(0)),
                (6, terminal("succeeded", 6)),
            ],
        )
        .await;
    let result = world.get("/v1/namespaces/default/jobs/a/result").await.body;
    assert_eq!(result["phase"], "Succeeded");
    assert_eq!(result["exitCode"], 0);
    assert_eq!(result["logsComplete"], true);
    assert_eq!(result["steps"][0]["stdout"], format!("hello\n{long}"));
    assert_eq!(result["steps"][0]["stdoutTruncated"], false);
}

#[tokio::test]
async fn placement_names_the_first_reason_for_each_node() {
    let world = World::settled().await;
    world.job("big", json!({"command": ["true"], "requires": {"cpu": 64}})).await;
    world.job("labelled", json!({"command": ["true"], "nodeSelector": {"zone": "a"}})).await;
    world.job("plain", command()).await;
    world.node("n1").await;
    let verdict = async |name: &str| {
        world.get(&format!("/v1/namespaces/default/jobs/{name}/placement")).await.body["items"][0].clone()
    };
    assert_eq!(verdict("big").await["message"], "64 of cpu are needed and the whole node has 4");
    assert_eq!(verdict("labelled").await["message"], "nodeSelector zone=a: the node has no such label");
    assert_eq!(verdict("plain").await["fits"], true);
}

#[tokio::test]
async fn a_job_is_removed_when_its_time_to_live_is_over() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"], "ttlAfterFinished": "1m"})).await;
    world.post("/v1/namespaces/default/jobs/a/cancel", json!({})).await;
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.get("/v1/namespaces/default/jobs/a").await.status, 200);
    world.clock.advance(Duration::from_secs(61));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.get("/v1/namespaces/default/jobs/a").await.status, 404);
}
