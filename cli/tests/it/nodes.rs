//! Nodes and the tokens by which they join.

use serde_json::Value;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_with_what_their_agents_report() {
    let world = World::new().await;
    world.node("n1").await;
    let wide = world.cli(&["get", "nodes", "-o", "wide"]).await.ok().stdout;
    assert!(wide.contains("debian 12") && wide.contains("amd64"), "{wide}");
    assert_eq!(world.cli(&["get", "no", "-l", "disk=ssd", "-o", "name"]).await.ok().stdout, "node/n1\n");
    assert_eq!(world.cli(&["get", "no", "-l", "disk=hdd", "-o", "name"]).await.ok().stdout, "");
    let only_jobs = world.cli(&["get", "nodes", "--queue", "x"]).await.failed(2);
    assert!(only_jobs.contains("only jobs have a queue"), "{only_jobs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_shown_once_and_can_be_revoked() {
    let world = World::new().await;
    let created = world
        .cli(&["join-token", "create", "--expires", "1h", "--uses", "2", "--description", "rack 4"])
        .await
        .ok();
    let token = created.stdout.trim_end();
    assert!(token.starts_with("wl1.") && !token.contains(char::is_whitespace), "{token}");
    assert!(created.stderr.contains("windlass agent --join TOKEN"), "{}", created.stderr);

    let listed = world.cli(&["join-token", "list", "-o", "json"]).await.ok().stdout;
    assert!(!listed.contains(token));
    let tokens: Value = serde_json::from_str(&listed).unwrap();
    let id = tokens[0]["id"].as_str().unwrap();
    assert_eq!(tokens[0]["maxUses"], 2);
    let table = world.cli(&["join-token", "list"]).await.ok().stdout;
    assert!(table.contains("good") && table.contains("0 of 2") && table.contains("rack 4"), "{table}");
    let revoked = world.cli(&["join-token", "revoke", id]).await.ok().stdout;
    assert_eq!(revoked, format!("join-token/{id} revoked\n"));
    assert!(world.cli(&["join-token", "list"]).await.ok().stdout.contains("revoked"));
    assert!(world.cli(&["join-token", "revoke", "none"]).await.failed(1).contains("none"));
    let unknown = world.cli(&["join-token", "create", "--replace", "nobody"]).await.failed(65);
    assert!(unknown.contains("there is no node `nobody`"), "{unknown}");
}
