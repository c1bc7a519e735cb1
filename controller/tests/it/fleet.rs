//! What operators do to nodes, and how nodes are shown.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Agent, World, started, terminal};

fn command() -> Value {
    json!({"command": ["true"]})
}

/// A world with one node that is known to be ready.
async fn ready(world: &World) -> Agent<'_> {
    let agent = world.node("n1").await;
    agent.beat(&[]).await;
    agent.claim("first", 0).await;
    world.nodes.reconcile().await.unwrap();
    agent
}

async fn node(world: &World) -> Value {
    world.get("/v1/nodes/n1").await.body
}

async fn post(world: &World, verb: &str, body: Value) -> Value {
    let answer = world.post(&format!("/v1/nodes/n1/{verb}"), body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn history(world: &World) -> Vec<String> {
    let history = world.get("/v1/nodes/n1/history").await.body;
    let kinds = history["items"].as_array().unwrap().iter();
    let mut kinds: Vec<_> = kinds.map(|item| item["kind"].as_str().unwrap().to_owned()).collect();
    kinds.reverse();
    kinds
}

async fn drain_history(world: &World) -> Vec<String> {
    history(world).await.into_iter().filter(|kind| kind.starts_with("Drain")).collect()
}

/// A job that runs on the node.
async fn running(world: &World, agent: &Agent<'_>, name: &str, spec: Value) -> Value {
    world.job(name, spec).await;
    let assignment = agent.claim(&format!("claim of {name}"), 1).await.remove(0);
    agent.report(&assignment["attempt"], &[(1, started())]).await;
    assignment["attempt"].clone()
}

#[tokio::test]
async fn a_cordoned_node_gets_no_jobs_until_it_is_uncordoned() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let cordoned = post(&world, "cordon", json!({})).await;
    assert_eq!(cordoned["status"]["hold"]["phase"], "Cordoned");
    assert_eq!(cordoned["spec"], json!({}), "what is declared is not touched");
    world.nodes.reconcile().await.unwrap();
    let conditions = node(&world).await["status"]["conditions"].clone();
    let schedulable = conditions.as_array().unwrap().iter().find(|c| c["type"] == "Schedulable").unwrap();
    assert_eq!((&schedulable["status"], &schedulable["reason"]), (&json!("False"), &json!("Cordoned")));
    world.job("a", command()).await;
    assert_eq!(agent.claim("r1", 1).await, [] as [Value; 0]);
    let why = world.get("/v1/namespaces/default/jobs/a/placement").await.body;
    assert_eq!(why["items"][0]["reason"], "Cordoned");
    let lifted = post(&world, "uncordon", json!({})).await;
    assert_eq!(lifted["status"]["hold"], Value::Null);
    assert_eq!(agent.claim("r2", 1).await.len(), 1);
    assert_eq!(history(&world).await, ["Registered", "ConfigApplied", "Online", "Cordoned", "Uncordoned"]);
}

#[tokio::test]
async fn applying_a_manifest_and_cordoning_do_not_undo_each_other() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    post(&world, "cordon", json!({})).await;
    let manifest = |unschedulable: bool| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
            "spec": {"unschedulable": unschedulable},
        })
    };
    let applied = world.put("/v1/nodes/n1", manifest(false)).await;
    assert_eq!(applied.body["status"]["hold"]["phase"], "Cordoned");
    world.put("/v1/nodes/n1", manifest(true)).await;
    let lifted = post(&world, "uncordon", json!({})).await;
    assert_eq!(lifted["spec"]["unschedulable"], true, "what the manifest says, only the manifest takes back");
    world.job("a", command()).await;
    assert_eq!(agent.claim("r1", 1).await, [] as [Value; 0]);
    world.put("/v1/nodes/n1", manifest(false)).await;
    assert_eq!(agent.claim("r2", 1).await.len(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_what_runs_and_ends_when_nothing_does() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let attempt = running(&world, &agent, "a", command()).await;
    let drained = post(&world, "drain", json!({})).await;
    assert_eq!(drained["status"]["hold"]["phase"], "Draining");
    let held = world.get("/v1/nodes/n1/attempts").await.body;
    assert_eq!((&held["items"][0]["job"], &held["items"][0]["interruptible"]), (&json!("a"), &json!(true)));
    world.clock.advance(Duration::from_secs(3600));
    world.nodes.reconcile().await.unwrap();
    let answer = agent.claim_holding("r2", 1, std::slice::from_ref(&attempt)).await;
    assert_eq!(answer.body["orders"], json!([]), "without a deadline nothing is stopped");
    agent.report(&attempt, &[(2, terminal("succeeded", 2))]).await;
    world.nodes.reconcile().await.unwrap();
    let status = node(&world).await["status"].clone();
    assert_eq!(status["hold"]["phase"], "Drained");
    assert_eq!(drain_history(&world).await, ["DrainStarted", "Drained"]);
    world.job("b", command()).await;
    assert_eq!(agent.claim("r3", 1).await, [] as [Value; 0], "it stays cordoned");
}

#[tokio::test]
async fn at_its_deadline_a_drain_requeues_what_may_start_again_and_charges_nothing() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let attempt = running(&world, &agent, "again", command()).await;
    let once =
        running(&world, &agent, "once", json!({"command": ["true"], "retry": {"lostAttempts": 1}})).await;
    post(&world, "drain", json!({"deadline": "10m"})).await;
    world.clock.advance(Duration::from_secs(599));
    let held = [attempt.clone(), once.clone()];
    agent.beat(&held).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(agent.claim_holding("r1", 1, &held).await.body["orders"], json!([]));
    world.clock.advance(Duration::from_secs(1));
    world.nodes.reconcile().await.unwrap();
    let orders = agent.claim_holding("r2", 1, &held).await.body["orders"].clone();
    assert_eq!(
        orders,
        json!([{"kind": "cancel", "attempt": attempt}]),
        "a job that must not run twice goes on"
    );
    agent.report(&attempt, &[(2, terminal("cancelled", 2))]).await;
    let job = world.get("/v1/namespaces/default/jobs/again").await.body;
    assert_eq!((&job["status"]["phase"], &job["status"]["reason"]), (&json!("Queued"), &json!("Retrying")));
    assert_eq!(job["status"]["message"], "attempt 1 ended with Drained: its node was drained");
    let row = world.store.get_job("default", "again").await.unwrap().unwrap();
    assert_eq!((row.lost_attempts, row.failures), (0, 0));
    assert_eq!(world.phase("once").await, "Running Running");
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["hold"]["phase"], "Stopping");
    agent.report(&once, &[(2, terminal("succeeded", 2))]).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["hold"]["phase"], "Drained");
    assert_eq!(drain_history(&world).await, ["DrainStarted", "DrainOverdue", "Drained"]);
}

#[tokio::test]
async fn at_its_deadline_a_drain_cancels_what_is_left_where_it_was_told_to() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let attempt =
        running(&world, &agent, "a", json!({"command": ["true"], "retry": {"lostAttempts": 1}})).await;
    post(&world, "drain", json!({"deadline": "1s", "atDeadline": "Cancel"})).await;
    world.clock.advance(Duration::from_secs(1));
    world.nodes.reconcile().await.unwrap();
    let orders = agent.claim_holding("r1", 1, std::slice::from_ref(&attempt)).await.body["orders"].clone();
    assert_eq!(orders[0]["kind"], "cancel");
    agent.report(&attempt, &[(2, terminal("cancelled", 2))]).await;
    assert_eq!(world.phase("a").await, "Cancelled CancelRequested");
}

#[tokio::test]
async fn a_lifted_drain_stops_nothing_any_more() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let attempt = running(&world, &agent, "a", command()).await;
    post(&world, "drain", json!({"deadline": "1s"})).await;
    world.clock.advance(Duration::from_secs(2));
    world.nodes.reconcile().await.unwrap();
    post(&world, "uncordon", json!({})).await;
    let answer = agent.claim_holding("r1", 0, std::slice::from_ref(&attempt)).await;
    assert_eq!(answer.body["orders"], json!([]));
}

#[tokio::test]
async fn a_deregistered_node_is_locked_out_at_once_and_needs_a_new_token() {
    let world = World::settled().await;
    let agent = ready(&world).await;
    let attempt = running(&world, &agent, "a", command()).await;
    let refused = world.delete("/v1/nodes/n1").await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("in_use")));
    assert!(refused.body["detail"].as_str().unwrap().contains("windlass drain n1 --wait"), "{refused:?}");
    assert_eq!(world.delete("/v1/nodes/n1?force=true").await.status, 200);
    for answer in [agent.beat(std::slice::from_ref(&attempt)).await, agent.claim_holding("r1", 1, &[]).await]
    {
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    assert_eq!(agent.register(None).await.status, 401);
    assert_eq!(world.phase("a").await, "Running Running", "its process may still run");
    world.clock.advance(Duration::from_secs(26));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.phase("a").await, "Queued Retrying");
    let again = world.node("n1").await;
    assert_eq!(again.claim("r2", 1).await[0]["name"], "a");
}

#[tokio::test]
async fn a_second_instance_is_refused_and_remembered_once() {
    let world = World::settled().await;
    let first = ready(&world).await;
    let made = world.post("/v1/join-tokens", json!({"replaceNode": "n1"})).await;
    let psk = crate::world::psk(made.body["token"].as_str().unwrap());
    let second = Agent { world: &world, name: "n1".into(), boot: "other boot".into(), token: String::new() };
    assert_eq!(second.register(Some(&psk)).await.status, 200);
    for _ in 0..2 {
        assert_eq!(first.beat(&[]).await.body["code"], "fenced");
        assert_eq!(first.claim_holding("r1", 1, &[]).await.body["code"], "fenced");
    }
    let history = history(&world).await;
    assert_eq!(history.iter().filter(|kind| *kind == "Fenced").count(), 1, "{history:?}");
}

#[tokio::test]
async fn a_node_is_shown_as_online_degraded_or_offline() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    assert_eq!(node(&world).await["status"]["state"], "Pending");
    agent.beat(&[]).await;
    agent.claim("r1", 0).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["state"], "Online");
    // Heartbeats go on and claims do not.
    world.clock.advance(Duration::from_secs(80));
    agent.beat(&[]).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["state"], "Degraded");
    world.clock.advance(Duration::from_secs(30));
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["state"], "Offline");
    let version = node(&world).await["metadata"]["resourceVersion"].clone();
    world.clock.advance(Duration::from_secs(30));
    world.nodes.reconcile().await.unwrap();
    assert_eq!(
        node(&world).await["metadata"]["resourceVersion"],
        version,
        "nothing changes while nothing happens"
    );
    agent.claim("r2", 0).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["state"], "Online");
    let manifest = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
        "spec": {"concurrency": 4},
    });
    world.put("/v1/nodes/n1", manifest).await;
    agent.ack("2", "failed").await;
    agent.beat(&[]).await;
    world.nodes.reconcile().await.unwrap();
    assert_eq!(node(&world).await["status"]["state"], "Degraded");
    assert_eq!(
        history(&world).await[2..],
        ["Online", "Degraded", "Offline", "Online", "ConfigDeclared", "ConfigFailed", "Degraded"]
            .map(String::from)[..]
    );
}

#[tokio::test]
async fn what_is_asked_of_an_unknown_node_is_not_found() {
    let world = World::settled().await;
    for verb in ["cordon", "uncordon", "drain"] {
        assert_eq!(world.post(&format!("/v1/nodes/none/{verb}"), json!({})).await.status, 404, "{verb}");
    }
    for part in ["history", "attempts"] {
        assert_eq!(world.get(&format!("/v1/nodes/none/{part}")).await.status, 404, "{part}");
    }
    ready(&world).await;
    let nonsense = world.post("/v1/nodes/n1/drain", json!({"deadline": "soon"})).await;
    assert_eq!(nonsense.status, 400, "{nonsense:?}");
}
