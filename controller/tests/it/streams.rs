//! Streams of server-sent events: logs, events, watches.

use serde_json::json;

use crate::world::{Events, World, log, started, step_ended, terminal};

#[tokio::test]
async fn a_followed_log_shows_output_as_it_comes_and_ends_with_the_job() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"]})).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let mut logs = Events::open(&world, "/v1/namespaces/default/jobs/a/logs", None).await;
    agent.report(&attempt, &[(1, started()), (2, log("one", 0))]).await;
    let (name, first, item) = logs.next().await.unwrap();
    assert_eq!((name.as_str(), item["text"].as_str()), ("log", Some("one")));
    agent.report(&attempt, &[(3, log("two", 3))]).await;
    let (_, _, item) = logs.next().await.unwrap();
    assert_eq!(item["text"], "two");
    agent.report(&attempt, &[(4, step_ended(0)), (5, terminal("succeeded", 5))]).await;
    let (name, _, end) = logs.next().await.unwrap();
    assert_eq!(name, "end");
    assert_eq!(
        (&end["phase"], &end["exitCode"], &end["logsComplete"]),
        (&json!("Succeeded"), &json!(0), &json!(true))
    );
    assert!(logs.next().await.is_none());

    let mut resumed = Events::open(&world, "/v1/namespaces/default/jobs/a/logs", first.as_deref()).await;
    let (_, _, item) = resumed.next().await.unwrap();
    assert_eq!(item["text"], "two", "it goes on after the record that was seen last");
}

#[tokio::test]
async fn a_watch_shows_what_is_there_then_what_changes() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"]})).await;
    let mut watch = Events::open(&world, "/v1/namespaces/default/jobs?watch=true", None).await;
    let (name, _, job) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), job["metadata"]["name"].as_str()), ("added", Some("a")));
    assert_eq!(watch.next().await.unwrap().0, "synced");
    world.job("b", json!({"command": ["true"]})).await;
    let (name, _, job) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), job["metadata"]["name"].as_str()), ("added", Some("b")));
    world.post("/v1/namespaces/default/jobs/a/cancel", json!({})).await;
    let (name, _, job) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), job["status"]["phase"].as_str()), ("modified", Some("Cancelled")));
    world.delete("/v1/namespaces/default/jobs/a").await;
    let (name, _, _) = watch.next().await.unwrap();
    assert_eq!(name, "deleted");
    world.stopping.cancel();
    assert!(watch.next().await.is_none(), "streams end when the controller stops");
}

#[tokio::test]
async fn a_watch_of_nodes_shows_joins_and_leaves() {
    let world = World::settled().await;
    let mut watch = Events::open(&world, "/v1/nodes?watch=true", None).await;
    assert_eq!(watch.next().await.unwrap().0, "synced");
    let _agent = world.node("n1").await;
    let (name, _, node) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), node["metadata"]["name"].as_str()), ("added", Some("n1")));
    world.delete("/v1/nodes/n1").await;
    loop {
        if watch.next().await.unwrap().0 == "deleted" {
            break;
        }
    }
}
