//! Why a job waits, as callers are told it.

use serde_json::{Value, json};

use crate::world::{World, started, terminal};

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
async fn room_that_is_kept_is_shown_to_the_job_and_to_those_who_are_refused_it() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    world.job("early", needs(2)).await;
    let early = agent.claim("r1", 1).await.remove(0);
    world.job("large", needs(4)).await;
    world.job("small", needs(1)).await;
    world.reservations.reconcile().await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(60));
    world.reservations.reconcile().await.unwrap();

    let told = why(&world, "large").await;
    assert_eq!(
        told["summary"],
        "no node takes it now; the only node could later (Busy 1); it is the next of queue `default`; room is kept on \
         `n1`: 2 of 4 cpu free so far"
    );
    assert_eq!(told["roomKept"]["node"], "n1");
    let told = why(&world, "small").await;
    assert_eq!(
        (told["items"][0]["reason"].as_str(), told["items"][0]["message"].as_str()),
        (Some("Kept"), Some("room is kept for default/large, which others passed over"))
    );
    assert_eq!(agent.claim("r2", 1).await.len(), 0, "what is free is kept");
    let events = world.get("/v1/namespaces/default/jobs/large/events").await.body;
    let reasons = events["items"].as_array().unwrap().iter().map(|event| event["reason"].as_str().unwrap());
    assert!(reasons.clone().any(|reason| reason == "RoomKept"), "{events}");
    let events = world.get("/v1/events").await.body;
    let told =
        events["items"].as_array().unwrap().iter().find(|event| event["reason"] == "RoomKept").unwrap();
    assert_eq!(
        told["message"],
        "room is kept on node `n1` for job `default/large`: no node that it fits has had enough"
    );

    // A node that must not take jobs keeps nothing for them.
    world.post("/v1/nodes/n1/cordon", json!({})).await;
    world.reservations.reconcile().await.unwrap();
    assert_eq!(world.store.reservations().await.unwrap(), []);
    world.post("/v1/nodes/n1/uncordon", json!({})).await;
    world.reservations.reconcile().await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(60));
    world.reservations.reconcile().await.unwrap();

    agent.report(&early["attempt"], &[(1, started()), (2, terminal("succeeded", 2))]).await;
    assert_eq!(agent.claim("r3", 1).await[0]["name"], "large");
    assert_eq!(world.store.reservations().await.unwrap(), [], "what was kept is gone with the claim");
}

#[tokio::test]
async fn room_is_kept_no_more_for_a_job_that_is_held_back() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    world.job("early", needs(2)).await;
    assert_eq!(agent.claim("r1", 1).await.len(), 1);
    world.job("large", needs(4)).await;
    world.job("small", needs(1)).await;
    world.reservations.reconcile().await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(60));
    world.reservations.reconcile().await.unwrap();
    assert_eq!(agent.claim("r2", 1).await.len(), 0);
    let cancelled = world.post("/v1/namespaces/default/jobs/large/cancel", json!({})).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    assert_eq!(why(&world, "small").await["items"][0]["fits"], true);
    assert_eq!(agent.claim("r3", 1).await[0]["name"], "small", "at once");
    world.reservations.reconcile().await.unwrap();
    assert_eq!(world.store.reservations().await.unwrap(), []);
}

#[tokio::test]
async fn a_drain_of_the_only_node_that_fits_is_told_and_goes_by() {
    let world = World::settled().await;
    let fits = world.node("fits").await;
    let other = world.node("other").await;
    let manifest = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "fits"},
        "spec": {"labels": {"disk": "ssd"}},
    });
    world.put("/v1/nodes/fits", manifest).await;
    world.job("picky", json!({"command": ["true"], "nodeSelector": {"disk": "ssd"}})).await;
    assert_eq!(world.post("/v1/nodes/fits/drain", json!({})).await.status, 200);
    world.nodes.reconcile().await.unwrap();
    assert_eq!(fits.claim("r1", 1).await.len(), 0);
    assert_eq!(other.claim("r2", 1).await.len(), 0);
    let told = why(&world, "picky").await;
    let reasons: Vec<_> =
        told["items"].as_array().unwrap().iter().map(|item| item["reason"].clone()).collect();
    assert_eq!(reasons, ["Drained", "Selector"]);
    assert_eq!(told["items"][0]["message"], "the node was drained; `windlass uncordon` lifts that");
    assert_eq!(
        told["summary"],
        "no node takes it now; 1 of 2 nodes could later (Drained 1); it is the next of queue `default`"
    );
    // Nothing is kept for it on a node that must not take it, nor on one that it does not fit.
    for _ in 0..2 {
        world.reservations.reconcile().await.unwrap();
        world.clock.advance(std::time::Duration::from_secs(61));
    }
    assert_eq!(world.store.reservations().await.unwrap(), []);
    world.post("/v1/nodes/fits/uncordon", json!({})).await;
    assert_eq!(fits.claim("r3", 1).await[0]["name"], "picky");
}

#[tokio::test]
async fn a_job_whose_selectors_contradict_each_other_is_refused_with_both_fields() {
    let world = World::settled().await;
    let spec = json!({
        "command": ["true"], "nodeSelector": {"zone": "a"},
        "requires": {"labels": [{"key": "zone", "operator": "In", "values": ["b", "c"]}]},
    });
    let refused = world.job("never", spec).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    let error = &refused.body["errors"][0];
    assert_eq!(error["field"], "spec.requires.labels[0]");
    assert!(error["message"].as_str().unwrap().contains("contradicts spec.nodeSelector.zone"), "{error}");
}

#[tokio::test]
async fn a_job_that_does_not_exist_is_not_found() {
    let world = World::settled().await;
    assert_eq!(world.get("/v1/namespaces/default/jobs/none/placement").await.status, 404);
}
