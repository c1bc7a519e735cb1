//! Queues: what is set for them and what comes of it.

use serde_json::{Value, json};

use crate::world::{World, started, terminal};

fn of_queue(queue: &str) -> Value {
    json!({"command": ["true"], "queue": queue})
}

#[tokio::test]
async fn a_limit_is_kept_and_told() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    let set = world.put("/v1/queues/builds", json!({"concurrency": 1})).await;
    assert_eq!(set.status, 200, "{set:?}");
    assert_eq!(set.body, json!({"kind": "Queue", "name": "builds", "weight": 1, "concurrency": 1}));
    world.job("a", of_queue("builds")).await;
    world.job("b", of_queue("builds")).await;
    world.job("c", of_queue("other")).await;
    let claimed = agent.claim("r1", 2).await;
    let names: Vec<_> = claimed.iter().map(|assignment| assignment["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "c"]);
    let why = world.get("/v1/namespaces/default/jobs/b/placement").await.body;
    assert_eq!((&why["reason"], &why["queuePosition"]), (&json!("QueueLimit"), &json!(0)));
    assert_eq!(why["summary"], "queue `builds` has reached its limit of 1 running jobs");
    let attempt = &claimed[0]["attempt"];
    agent.report(attempt, &[(1, started()), (2, terminal("succeeded", 2))]).await;
    assert_eq!(agent.claim("r2", 1).await[0]["name"], "b");
}

#[tokio::test]
async fn queues_are_listed_with_their_settings_also_while_they_are_empty() {
    let world = World::settled().await;
    world.put("/v1/queues/nightly", json!({"weight": 3})).await;
    world.job("a", of_queue("builds")).await;
    let listed = world.get("/v1/queues").await.body;
    let shown: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| json!([item["name"], item["weight"], item["concurrency"], item["queued"]]))
        .collect();
    assert_eq!(shown, [json!(["builds", 1, null, 1]), json!(["nightly", 3, null, 0])]);
    // Back to what a queue is at first: then nothing is remembered of it.
    world.put("/v1/queues/nightly", json!({})).await;
    let listed = world.get("/v1/queues").await.body;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
}

#[tokio::test]
async fn nonsense_is_refused_with_the_field() {
    let world = World::settled().await;
    for (queue, body, status, field) in [
        ("q", json!({"weight": 0}), 422, "weight"),
        ("q", json!({"weight": 1001}), 422, "weight"),
        ("Q", json!({"weight": 2}), 422, "name"),
        ("q", json!({"weight": -1}), 400, ""),
        ("q", json!({"priority": 1}), 400, ""),
    ] {
        let answer = world.put(&format!("/v1/queues/{queue}"), body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if !field.is_empty() {
            assert_eq!(answer.body["errors"][0]["field"], field, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_node_that_waits_for_a_limited_queue_gets_its_next_job_when_one_ends_elsewhere() {
    let world = World::settled().await;
    world.put("/v1/queues/builds", json!({"concurrency": 1})).await;
    world.job("a", of_queue("builds")).await;
    world.job("b", of_queue("builds")).await;
    let (busy, idle) = (world.node("n1").await, world.node("n2").await);
    let attempt = busy.claim("r1", 1).await[0]["attempt"].clone();
    let records = [(1, started()), (2, terminal("succeeded", 2))];
    let came = idle.poll_while("r1", busy.report(&attempt, &records)).await;
    assert_eq!(came, "b");
}
