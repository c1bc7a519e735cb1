//! Roll-outs, from the request to what nodes get.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Agent, World};

/// A world with nodes `n1`, `n2`, …, all of zone `a`, that are ready.
async fn zone(world: &World, count: usize) -> Vec<Agent<'_>> {
    let mut agents = Vec::new();
    for n in 1..=count {
        let agent = world.node(&format!("n{n}")).await;
        declare(world, &agent.name, json!({"labels": {"zone": "a"}})).await;
        agent.ack(&version(world, &agent.name).await.to_string(), "applied").await;
        agents.push(agent);
    }
    live(world, &agents).await;
    agents
}

async fn declare(world: &World, node: &str, spec: Value) {
    let manifest = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": node}, "spec": spec,
    });
    let answer = world.put(&format!("/v1/nodes/{node}"), manifest).await;
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
}

async fn version(world: &World, node: &str) -> u64 {
    world.get(&format!("/v1/nodes/{node}")).await.body["status"]["configVersion"].as_u64().unwrap()
}

/// The agents show that they live, and are judged.
async fn live(world: &World, agents: &[Agent<'_>]) {
    for agent in agents {
        assert_eq!(agent.beat(&[]).await.status, 200);
        assert_eq!(agent.claim("alive", 0).await.len(), 0);
    }
    world.nodes.reconcile().await.unwrap();
}

async fn round(world: &World) {
    world.nodes.reconcile().await.unwrap();
    world.rollouts.reconcile().await.unwrap();
}

/// The agent applies what it should run, or cannot.
async fn acknowledge(world: &World, agent: &Agent<'_>, status: &str) {
    let version = version(world, &agent.name).await;
    assert_eq!(agent.ack(&version.to_string(), status).await.status, 204);
}

async fn start(world: &World, more: Value) -> crate::world::Answer {
    let mut request = json!({
        "name": "r", "selector": "zone=a", "patch": {"spec": {"concurrency": 7, "labels": {"tier": "new"}}},
    });
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    world.post("/v1/rollouts", request).await
}

/// The states of the nodes, and the phase with its message.
async fn standing(world: &World) -> (Vec<String>, String) {
    let body = world.get("/v1/rollouts/r").await.body;
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let nodes = body["nodes"].as_array().unwrap();
    let nodes = nodes.iter().map(|node| format!("{} {}", word(&node["node"]), word(&node["state"])));
    (nodes.collect(), format!("{}: {}", word(&body["phase"]), word(&body["message"])))
}

async fn concurrency(world: &World, node: &str) -> Option<u64> {
    world.get(&format!("/v1/nodes/{node}")).await.body["spec"]["concurrency"].as_u64()
}

#[tokio::test]
async fn nodes_are_changed_batch_by_batch_and_keep_what_the_patch_does_not_name() {
    let world = World::settled().await;
    let agents = zone(&world, 3).await;
    let other = world.node("other").await;
    live(&world, std::slice::from_ref(&other)).await;
    let answer = start(&world, json!({"maxUnavailable": 2})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    round(&world).await;
    assert_eq!(
        standing(&world).await,
        (
            vec!["n1 Changing".to_owned(), "n2 Changing".to_owned(), "n3 Pending".to_owned()],
            "Rolling: waits for `n1`, `n2` to apply the configuration and be ready".to_owned()
        )
    );
    acknowledge(&world, &agents[0], "applied").await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Done", "n2 Changing", "n3 Pending"]);
    acknowledge(&world, &agents[1], "applied").await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Done", "n2 Done", "n3 Changing"]);
    acknowledge(&world, &agents[2], "applied").await;
    round(&world).await;
    assert_eq!(standing(&world).await.1, "Complete: 3 nodes changed");
    let node = world.get("/v1/nodes/n3").await.body;
    assert_eq!(node["spec"], json!({"concurrency": 7, "labels": {"tier": "new", "zone": "a"}}));
    assert_eq!(concurrency(&world, "other").await, None);
    let history = world.get("/v1/nodes/n3/history").await.body;
    let told: Vec<_> =
        history["items"].as_array().unwrap().iter().map(|item| item["message"].as_str().unwrap()).collect();
    assert!(told.iter().any(|message| message.starts_with("roll-out `r`: Done")), "{told:?}");
}

#[tokio::test]
async fn what_could_not_be_applied_is_tried_again_as_a_new_version() {
    let world = World::settled().await;
    let agents = zone(&world, 1).await;
    start(&world, json!({})).await;
    round(&world).await;
    acknowledge(&world, &agents[0], "failed").await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Failed"]);
    let refused = version(&world, "n1").await;
    assert_eq!(world.post("/v1/rollouts/r/resume", json!({})).await.status, 200);
    for _ in 0..2 {
        round(&world).await;
        assert_eq!(standing(&world).await.0, ["n1 Changing"], "the old acknowledgement is no answer");
    }
    assert_eq!(version(&world, "n1").await, refused + 1);
    acknowledge(&world, &agents[0], "applied").await;
    round(&world).await;
    assert_eq!(standing(&world).await.1, "Complete: 1 node changed");
}

#[tokio::test]
async fn what_an_operator_has_declared_after_a_failure_is_what_undo_gives_back() {
    let world = World::settled().await;
    let agents = zone(&world, 1).await;
    start(&world, json!({})).await;
    round(&world).await;
    acknowledge(&world, &agents[0], "failed").await;
    round(&world).await;
    let own = json!({"labels": {"zone": "a"}, "concurrency": 3});
    declare(&world, "n1", own.clone()).await;
    assert_eq!(world.post("/v1/rollouts/r/resume", json!({})).await.status, 200);
    for _ in 0..2 {
        round(&world).await;
        acknowledge(&world, &agents[0], "applied").await;
    }
    round(&world).await;
    assert_eq!(standing(&world).await.1, "Complete: 1 node changed");
    assert_eq!(concurrency(&world, "n1").await, Some(7));
    assert_eq!(world.post("/v1/rollouts/r/undo", json!({})).await.status, 200);
    for _ in 0..2 {
        round(&world).await;
        acknowledge(&world, &agents[0], "applied").await;
    }
    round(&world).await;
    assert_eq!(world.get("/v1/nodes/n1").await.body["spec"], own);
}

#[tokio::test]
async fn the_time_in_which_the_controller_was_away_is_not_taken_from_the_nodes() {
    let world = World::settled().await;
    let agents = zone(&world, 1).await;
    start(&world, json!({"nodeTimeout": "60s"})).await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Changing"]);
    world.clock.advance(Duration::from_secs(3600));
    let back = world.restarted();
    round(&back).await;
    assert_eq!(standing(&back).await.0, ["n1 Changing"], "nobody was there to be told");
    live(&back, &agents).await;
    acknowledge(&back, &agents[0], "applied").await;
    round(&back).await;
    assert_eq!(standing(&back).await.1, "Complete: 1 node changed");
}

#[tokio::test]
async fn a_failed_acknowledgement_stops_it_and_what_was_changed_is_given_back() {
    let world = World::settled().await;
    let agents = zone(&world, 3).await;
    start(&world, json!({})).await;
    round(&world).await;
    acknowledge(&world, &agents[0], "applied").await;
    round(&world).await;
    acknowledge(&world, &agents[1], "failed").await;
    round(&world).await;
    let (nodes, phase) = standing(&world).await;
    assert_eq!(nodes, ["n1 Done", "n2 Failed", "n3 Pending"]);
    assert!(phase.starts_with("Stopped: node `n2`: version "), "{phase}");
    assert!(phase.ends_with("could not be applied: no podman"), "{phase}");
    round(&world).await;
    assert_eq!(concurrency(&world, "n3").await, None, "nothing further is changed");
    let events = world.get("/v1/events").await.body;
    let reasons = events["items"].as_array().unwrap().iter().map(|event| event["reason"].clone());
    assert!(reasons.clone().any(|reason| reason == "RolloutStopped"), "{events}");

    let undone = world.post("/v1/rollouts/r/undo", json!({})).await;
    assert_eq!(undone.status, 200, "{undone:?}");
    // The one that does not work is given back first, beside it nothing may be unavailable.
    for _ in 0..4 {
        round(&world).await;
        for agent in &agents[..2] {
            acknowledge(&world, agent, "applied").await;
        }
        live(&world, &agents).await;
    }
    assert_eq!(standing(&world).await.1, "Complete: 2 nodes changed back, 1 left out");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(
            world.get(&format!("/v1/nodes/{node}")).await.body["spec"],
            json!({"labels": {"zone": "a"}})
        );
    }
    assert_eq!(world.post("/v1/rollouts/r/undo", json!({})).await.status, 409);
}

#[tokio::test]
async fn it_goes_on_where_it_was_when_the_node_was_mended() {
    let world = World::settled().await;
    let agents = zone(&world, 2).await;
    start(&world, json!({})).await;
    round(&world).await;
    acknowledge(&world, &agents[0], "failed").await;
    round(&world).await;
    assert!(standing(&world).await.1.starts_with("Stopped"));
    // The agent tries again by itself, and somebody has installed what was missing.
    acknowledge(&world, &agents[0], "applied").await;
    live(&world, &agents).await;
    assert_eq!(world.post("/v1/rollouts/r/resume", json!({})).await.status, 200);
    round(&world).await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Done", "n2 Changing"]);
}

#[tokio::test]
async fn a_node_that_does_not_answer_in_time_stops_it_and_offline_nodes_count() {
    let world = World::settled().await;
    let agents = zone(&world, 3).await;
    start(&world, json!({"nodeTimeout": "1m"})).await;
    round(&world).await;
    for _ in 0..6 {
        world.clock.advance(Duration::from_secs(10));
        live(&world, &agents).await;
    }
    round(&world).await;
    let (nodes, phase) = standing(&world).await;
    assert_eq!(nodes, ["n1 Failed", "n2 Pending", "n3 Pending"]);
    assert!(
        phase.contains("node `n1`: version") && phase.ends_with("was not acknowledged in time"),
        "{phase}"
    );

    // The first one is mended; the second one is off.
    acknowledge(&world, &agents[0], "applied").await;
    for _ in 0..4 {
        world.clock.advance(Duration::from_secs(10));
        live(&world, &[]).await;
        for agent in [&agents[0], &agents[2]] {
            agent.beat(&[]).await;
            agent.claim("alive", 0).await;
        }
    }
    world.post("/v1/rollouts/r/resume", json!({})).await;
    round(&world).await;
    round(&world).await;
    let (nodes, phase) = standing(&world).await;
    assert_eq!(nodes, ["n1 Pending", "n2 Pending", "n3 Pending"]);
    assert_eq!(phase, "Rolling: waits for `n2`: 1 not available, and at most 1 may be");
    live(&world, &agents).await;
    round(&world).await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Done", "n2 Changing", "n3 Pending"]);
}

#[tokio::test]
async fn it_pauses_after_as_many_nodes_as_were_asked_for_and_people_turn_it() {
    let world = World::settled().await;
    let agents = zone(&world, 2).await;
    start(&world, json!({"pauseAfter": 1, "maxUnavailable": 2})).await;
    round(&world).await;
    assert_eq!(standing(&world).await.0, ["n1 Changing", "n2 Pending"]);
    acknowledge(&world, &agents[0], "applied").await;
    round(&world).await;
    assert_eq!(standing(&world).await.1, "Paused: 1 done, 1 to come");
    round(&world).await;
    assert_eq!(concurrency(&world, "n2").await, None);
    let refused = world.post("/v1/rollouts/r/pause", json!({})).await;
    assert_eq!((refused.status, refused.body["code"].as_str()), (409, Some("conflict")), "{refused:?}");
    assert_eq!(world.post("/v1/rollouts/r/resume", json!({})).await.status, 200);
    round(&world).await;
    assert_eq!(concurrency(&world, "n2").await, Some(7));
    assert_eq!(world.post("/v1/rollouts/r/abort", json!({})).await.status, 200);
    assert_eq!(standing(&world).await.0, ["n1 Done", "n2 Changing"]);
    assert_eq!(world.get("/v1/rollouts").await.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.post("/v1/rollouts/none/abort", json!({})).await.status, 404);
}

#[tokio::test]
async fn a_node_that_comes_while_it_is_open_is_taken_in_and_one_that_is_declared_anew_is_left_alone() {
    let world = World::settled().await;
    let agents = zone(&world, 2).await;
    start(&world, json!({})).await;
    round(&world).await;
    // Never registered: nobody is waited for.
    declare(&world, "n9", json!({"labels": {"zone": "a"}})).await;
    declare(&world, "n2", json!({"labels": {"zone": "b"}})).await;
    acknowledge(&world, &agents[0], "applied").await;
    acknowledge(&world, &agents[1], "applied").await;
    for _ in 0..4 {
        round(&world).await;
    }
    let (nodes, phase) = standing(&world).await;
    assert_eq!(nodes, ["n1 Done", "n2 Skipped", "n9 Done"]);
    assert_eq!(phase, "Complete: 2 nodes changed, 1 left out");
    assert_eq!(concurrency(&world, "n9").await, Some(7));
    // It is over: who comes now is not its business.
    declare(&world, "late", json!({"labels": {"zone": "a"}})).await;
    round(&world).await;
    assert_eq!(concurrency(&world, "late").await, None);
}

#[tokio::test]
async fn what_somebody_has_declared_since_is_not_taken_back() {
    let world = World::settled().await;
    let agents = zone(&world, 2).await;
    start(&world, json!({"maxUnavailable": 2})).await;
    round(&world).await;
    for agent in &agents {
        acknowledge(&world, agent, "applied").await;
    }
    round(&world).await;
    declare(&world, "n1", json!({"labels": {"zone": "a"}, "concurrency": 3})).await;
    acknowledge(&world, &agents[0], "applied").await;
    live(&world, &agents).await;
    assert_eq!(world.post("/v1/rollouts/r/undo", json!({})).await.status, 200);
    round(&world).await;
    acknowledge(&world, &agents[1], "applied").await;
    round(&world).await;
    round(&world).await;
    assert_eq!(standing(&world).await.1, "Complete: 1 node changed back, 1 left out");
    assert_eq!((concurrency(&world, "n1").await, concurrency(&world, "n2").await), (Some(3), None));
}

#[tokio::test]
async fn what_cannot_be_rolled_out_is_refused_with_its_field() {
    let world = World::settled().await;
    zone(&world, 2).await;
    declare(&world, "n1", json!({"labels": {"zone": "a"}, "sandbox": {"max": {"cpu": 2}}})).await;
    for (more, field, message) in [
        (json!({"selector": "zone=nowhere"}), "selector", "matches no node"),
        (json!({"selector": "zone=a,zone=b"}), "selector", "contradict each other"),
        (json!({"patch": {"spec": {"concurency": 4}}}), "patch.spec.concurency", "unknown field"),
        (
            json!({"patch": {"spec": {"labels": {"zone": "b"}}}}),
            "patch.spec.labels.zone",
            "named by the selector",
        ),
        (
            json!({"patch": {"spec": {"sandbox": {"defaults": {"cpu": 4}}}}}),
            "patch.spec.sandbox.defaults.cpu",
            "on node `n1`: ",
        ),
        (json!({"maxUnavailable": 0}), "maxUnavailable", "would never change a node"),
        (json!({"pauseAfter": 0}), "pauseAfter", "before the first node"),
        (json!({"nodeTimeout": "1s"}), "nodeTimeout", "is not between"),
        (json!({"name": "No Name"}), "name", "`No Name`"),
    ] {
        let answer = start(&world, more.clone()).await;
        assert_eq!(answer.status, 422, "{more}: {answer:?}");
        let errors = answer.body["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{more}: {errors:?}");
        assert_eq!(errors[0]["field"], field, "{more}: {errors:?}");
        assert!(errors[0]["message"].as_str().unwrap().contains(message), "{more}: {errors:?}");
    }
    assert_eq!(start(&world, json!({})).await.status, 201);
    let taken = start(&world, json!({"name": "s"})).await;
    assert_eq!((taken.status, taken.body["code"].as_str()), (409, Some("in_use")), "{taken:?}");
    let detail = taken.body["detail"].as_str().unwrap();
    assert!(detail.contains("roll-out `r` has hold of node `n1`"), "{detail}");
    let again = start(&world, json!({})).await;
    assert_eq!((again.status, again.body["code"].as_str()), (409, Some("name_taken")), "{again:?}");
}
