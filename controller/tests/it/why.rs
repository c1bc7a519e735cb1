//! Why a job waits, as callers are told it.

use serde_json::{Value, json};

use crate::world::{World, started};

fn needs(cpu: u32) -> Value {
    json!({"command": ["true"], "requires": {"cpu": cpu}})
}

async fn why(world: &World, name: &str) -> Value {
    let answer = world.get(&format!("/v1/namespaces/default/jobs/{name}/placement")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test]
async fn a_job_without_a_node_is_told_how_to_get_one() {
    let world = World::settled().await;
    world.job("a", needs(1)).await;
    let told = why(&world, "a").await;
    assert_eq!(told["summary"], "there is no node yet; `windlass join-token create` makes a token for one");
    assert_eq!(told["items"], json!([]));
}

#[tokio::test]
async fn what_is_short_is_named_with_those_who_hold_it() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    world.job("large", needs(3)).await;
    assert_eq!(agent.claim("r1", 1).await.len(), 1);
    world.job("second", needs(2)).await;
    world.job("third", needs(4)).await;
    let told = why(&world, "third").await;
    assert_eq!(
        told["items"],
        json!([{
            "node": "n1", "fits": false, "lasting": false, "reason": "Busy",
            "message": "4 of cpu are needed and 1 of 4 are free; held by default/large",
        }])
    );
    assert_eq!((told["queuePosition"].as_u64(), told["queue"].as_str()), (Some(1), Some("default")));
    assert_eq!(
        told["summary"],
        "no node takes it now; the only node could later (Busy 1); 1 job is before it in queue `default`"
    );
    world.job("small", needs(1)).await;
    assert_eq!(agent.claim("r2", 1).await[0]["name"], "small");
    let told = why(&world, "second").await;
    assert_eq!(told["items"][0]["reason"], "Full");
    assert_eq!(told["items"][0]["message"], "all 2 slots are taken; held by default/large and default/small");
}

#[tokio::test]
async fn what_never_fits_is_told_apart_from_what_does_not_fit_now() {
    let world = World::settled().await;
    world.node("n1").await;
    world.job("huge", needs(64)).await;
    let told = why(&world, "huge").await;
    assert_eq!(told["items"][0]["lasting"], true);
    assert_eq!(told["summary"], "it fits no node (TooSmall 1)");
    let kept = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
        "spec": {"unschedulable": true},
    });
    world.put("/v1/nodes/n1", kept).await;
    world.job("small", needs(1)).await;
    let told = why(&world, "small").await;
    assert_eq!(told["items"][0]["reason"], "Unschedulable");
    assert_eq!(told["items"][0]["lasting"], false);
}

#[tokio::test]
async fn what_keeps_the_job_itself_back_is_told_instead_of_its_place() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    world.job("held", json!({"command": ["true"], "suspend": true})).await;
    let told = why(&world, "held").await;
    assert_eq!(
        (told["reason"].as_str(), told["summary"].as_str()),
        (Some("Suspended"), Some("it is suspended (spec.suspend)"))
    );
    assert_eq!(told["items"][0]["fits"], true, "the nodes are judged all the same");
    assert_eq!(told["queuePosition"], Value::Null);

    world.job("runs", needs(1)).await;
    let claimed = agent.claim("r1", 1).await.remove(0);
    agent.report(&claimed["attempt"], &[(1, started())]).await;
    let told = why(&world, "runs").await;
    assert_eq!(told["summary"], "it is Running on node `n1`");
    assert_eq!(told["items"], json!([]));
}

#[tokio::test]
async fn a_job_that_does_not_exist_is_not_found() {
    let world = World::settled().await;
    assert_eq!(world.get("/v1/namespaces/default/jobs/none/placement").await.status, 404);
}
