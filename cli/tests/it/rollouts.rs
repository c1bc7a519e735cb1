//! Roll-outs by hand.

use serde_json::Value;

use crate::world::World;

const NODES: &str = "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {name: n1}\nspec: {labels: {zone: a}}\n---\napiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {name: n2}\nspec: {labels: {zone: a}}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_out_is_started_followed_and_undone() {
    let world = World::new().await;
    let nodes = world.file("nodes.yaml", NODES);
    world.cli(&["apply", "-f", &nodes]).await.ok();
    let patch = world.file("patch.yaml", "spec:\n  concurrency: 3\n");
    // No agent has registered, so that nobody has to be waited for.
    let started = world
        .cli(&["rollout", "start", "-f", &patch, "-l", "zone=a", "--name", "slots", "--wait"])
        .await
        .ok()
        .stdout;
    assert!(started.starts_with("rollout/slots started over 2 nodes\n"), "{started}");
    assert!(started.ends_with("rollout/slots Complete, 2 of 2 done: 2 nodes changed\n"), "{started}");
    let status = world.cli(&["rollout", "status", "slots"]).await.ok().stdout;
    let lines: Vec<&str> = status.lines().collect();
    assert_eq!(lines[0], "rollout/slots Complete, 2 of 2 done: 2 nodes changed");
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["NODE", "STATE", "VERSION", "SINCE", "MESSAGE"]
    );
    assert!(lines[2].starts_with("n1    Done"), "{status}");
    let node = world.cli(&["get", "node", "n1", "-o", "json"]).await.ok().stdout;
    let node: Value = serde_json::from_str(&node).unwrap();
    assert_eq!(node["spec"]["concurrency"], 3);

    world.cli(&["rollout", "undo", "slots"]).await.ok();
    let undone = world.cli(&["rollout", "status", "slots", "--wait"]).await.ok().stdout;
    assert!(undone.ends_with("rollout/slots Undone, 2 of 2 done: 2 nodes changed back\n"), "{undone}");
    let list = world.cli(&["rollout", "list"]).await.ok().stdout;
    assert!(list.lines().nth(1).unwrap().starts_with("slots  Undone  2 of 2  zone=a"), "{list}");
    let listed = world.cli(&["rollout", "list", "-o", "json"]).await.ok().stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["direction"], "Back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_cannot_be_is_refused_before_the_server_is_asked() {
    let world = World::new().await;
    let patch = world.file("patch.yaml", "spec:\n  concurency: 3\n");
    let refused = world.cli(&["rollout", "start", "-f", &patch, "-l", "zone=a"]).await;
    assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
    assert!(refused.stderr.contains("patch.yaml:2:3: spec.concurency"), "{}", refused.stderr);
    let good = world.file("good.yaml", "spec: {concurrency: 3}\n");
    let refused = world.cli(&["rollout", "start", "-f", &good, "-l", "zone=a,zone=b"]).await;
    assert!(refused.stderr.contains("contradict each other"), "{}", refused.stderr);
    let unknown = world.cli(&["rollout", "status", "none"]).await;
    assert!(unknown.stderr.contains("there is no roll-out `none`"), "{}", unknown.stderr);
}
