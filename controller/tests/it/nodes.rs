//! Nodes: registration, configuration, conditions.

use serde_json::{Value, json};

use crate::world::{Agent, World, psk};

fn node(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": name}, "spec": spec})
}

async fn token(world: &World, request: Value) -> String {
    let made = world.post("/v1/join-tokens", request).await;
    assert_eq!(made.status, 201, "{made:?}");
    psk(made.body["token"].as_str().unwrap())
}

fn agent<'a>(world: &'a World, name: &str) -> Agent<'a> {
    Agent { world, name: name.into(), boot: "b".into(), token: String::new() }
}

#[tokio::test]
async fn registration_yields_absolute_urls_a_token_and_a_row() {
    let world = World::new().await;
    let psk = token(&world, json!({})).await;
    let answer = agent(&world, "n1").register(Some(&psk)).await;
    assert_eq!(answer.status, 201);
    for pointer in ["/orchestrator/endpoints/node_config_url", "/orchestrator/endpoints/node_report_url"] {
        let url = answer.body.pointer(pointer).and_then(Value::as_str).unwrap();
        assert!(url.starts_with("https://controller.test/v1/nodes/"), "{url}");
    }
    assert!(answer.body["auth"]["node_jwt"].as_str().unwrap().split('.').count() == 3);
    let row = world.get("/v1/nodes/n1").await;
    assert_eq!(row.body["status"]["host"]["cpus"], 4);
}

#[tokio::test]
async fn a_join_token_that_is_wrong_expired_revoked_or_used_up_joins_nobody() {
    let world = World::new().await;
    let refused = async |psk: &str| {
        let answer = agent(&world, "n1").register(Some(psk)).await;
        assert_eq!(
            (answer.status, answer.body["code"].as_str()),
            (401, Some("unauthenticated")),
            "{answer:?}"
        );
    };
    refused("guess").await;
    let short = token(&world, json!({"expiresIn": "1m"})).await;
    world.clock.advance(std::time::Duration::from_secs(61));
    refused(&short).await;
    let made = world.post("/v1/join-tokens", json!({})).await.body;
    let id = made["id"].as_str().unwrap();
    assert_eq!(world.delete(&format!("/v1/join-tokens/{id}")).await.status, 204);
    refused(&psk(made["token"].as_str().unwrap())).await;
    let once = token(&world, json!({"maxUses": 1})).await;
    assert_eq!(agent(&world, "n0").register(Some(&once)).await.status, 201);
    refused(&once).await;
    assert_eq!(agent(&world, "n1").register(None).await.status, 401);
}

#[tokio::test]
async fn a_known_name_is_not_taken_over_without_a_token_made_for_that() {
    let world = World::new().await;
    let psk = token(&world, json!({})).await;
    assert_eq!(agent(&world, "n1").register(Some(&psk)).await.status, 201);
    let again = agent(&world, "n1").register(Some(&psk)).await;
    assert_eq!((again.status, again.body["code"].as_str()), (409, Some("name_taken")));
    assert!(again.body["detail"].as_str().unwrap().contains("--replace n1"));
    let replace = token(&world, json!({"replaceNode": "n1"})).await;
    assert_eq!(agent(&world, "n1").register(Some(&replace)).await.status, 200);
    let unknown = world.post("/v1/join-tokens", json!({"replaceNode": "n9"})).await;
    assert_eq!(unknown.status, 422);
}

#[tokio::test]
async fn an_agent_whose_name_was_given_to_another_is_fenced_everywhere() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"]})).await;
    let old = world.node("n1").await;
    let attempt = old.claim("r1", 1).await[0]["attempt"].clone();
    let replace = token(&world, json!({"replaceNode": "n1"})).await;
    let new = crate::world::Agent { boot: "boot-new".into(), ..agent(&world, "n1") };
    let answer = new.register(Some(&replace)).await;
    assert_eq!(answer.status, 200);
    let jwt = answer.body["auth"]["node_jwt"].as_str().unwrap().to_owned();
    let new = crate::world::Agent { token: jwt, ..new };
    assert_eq!(new.beat(&[]).await.status, 200);
    let record = json!({
        "attempt": attempt, "sequence": 1, "at": "2023-11-14T22:13:20Z",
        "body": {"kind": "started", "unenforced": []},
    });
    let report = json!({"version": 1, "records": [record]});
    // With the boot id of the new one, so that nothing but the token tells them apart.
    let old = crate::world::Agent { boot: "boot-new".into(), ..old };
    let answers = [
        ("heartbeat", old.beat(&[]).await),
        ("claim", old.claim_holding("r2", 1, &[]).await),
        ("report", old.call("POST", "report", Some(report)).await),
        ("capability", old.call("POST", "capability", Some(old.capability())).await),
        ("config", old.call("GET", "config?after=0", None).await),
        ("acknowledgement", old.ack("1", "applied").await),
        ("input", old.call("GET", "inputs/sha256:00", None).await),
    ];
    for (route, answer) in answers {
        assert_eq!(
            (answer.status, answer.body["code"].as_str()),
            (409, Some("fenced")),
            "{route}: {answer:?}"
        );
    }
    assert_eq!(new.call("GET", "config?after=0", None).await.status, 200);
}

#[tokio::test]
async fn names_of_the_protocol_and_malformed_names_are_refused() {
    let world = World::new().await;
    let psk = token(&world, json!({})).await;
    for name in ["config", "Upper", "a b", "", "-a"] {
        assert_eq!(agent(&world, name).register(Some(&psk)).await.status, 400, "{name}");
    }
    let endless = agent(&world, &"x".repeat(300)).register(Some(&psk)).await;
    assert_eq!(endless.status, 422);
    assert_eq!(endless.body["errors"][0]["field"], "capability.node.node_slug");
}

#[tokio::test]
async fn a_changed_configuration_is_delivered_and_ten_is_newer_than_nine() {
    let world = World::new().await;
    let agent = world.node("n1").await;
    let mut version = 1;
    for concurrency in 1..=11 {
        let applied = world.put("/v1/nodes/n1", node("n1", json!({"concurrency": concurrency}))).await;
        assert_eq!(applied.outcome.as_deref(), Some("configured"));
        let config = agent.call("GET", &format!("config?after={version}"), None).await;
        assert_eq!(config.status, 200);
        let newer: u64 = config.body["config_version"].as_str().unwrap().parse().unwrap();
        assert_eq!(newer, version + 1);
        assert_eq!(config.body["node"]["concurrency"], concurrency);
        version = newer;
    }
    assert_eq!(agent.call("GET", &format!("config?after={version}"), None).await.status, 204);
    assert_eq!(agent.ack("12", "applied").await.status, 204);
    assert_eq!(agent.ack("9", "failed").await.status, 204);
    let status = world.get("/v1/nodes/n1").await.body["status"].clone();
    assert_eq!((&status["configVersion"], &status["appliedVersion"]), (&json!(12), &json!(12)));
    assert_eq!(agent.ack("13", "applied").await.status, 400);
    assert_eq!(agent.ack("x", "applied").await.status, 400);
}

#[tokio::test]
async fn a_failed_configuration_is_shown_while_the_old_one_stays_in_force() {
    let world = World::new().await;
    let agent = world.node("n1").await;
    world.put("/v1/nodes/n1", node("n1", json!({"sandbox": {"runtimes": ["podman"]}}))).await;
    assert_eq!(agent.ack("2", "failed").await.status, 204);
    let status = world.get("/v1/nodes/n1").await.body["status"].clone();
    assert_eq!((&status["acknowledgedVersion"], &status["appliedVersion"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn an_acknowledgement_for_another_node_is_refused() {
    let world = World::new().await;
    let one = world.node("n1").await;
    let other = Agent { name: "n2".into(), boot: one.boot.clone(), token: one.token.clone(), world: &world };
    assert_eq!(other.ack("1", "applied").await.status, 400);
}

#[tokio::test]
async fn a_deleted_node_must_register_again() {
    let world = World::new().await;
    let agent = world.node("n1").await;
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 200);
    assert_eq!(agent.beat(&[]).await.status, 401);
    assert_eq!(world.get("/v1/nodes/n1").await.status, 404);
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 404);
}

#[tokio::test]
async fn a_node_that_holds_work_is_not_deregistered() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"]})).await;
    let agent = world.node("n1").await;
    agent.claim("r1", 1).await;
    let answer = world.delete("/v1/nodes/n1").await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (409, Some("in_use")));
}

#[tokio::test]
async fn a_node_can_be_declared_before_it_joins() {
    let world = World::new().await;
    let declared = world.put("/v1/nodes/n1", node("n1", json!({"labels": {"zone": "a"}}))).await;
    assert_eq!((declared.status, declared.outcome.as_deref()), (201, Some("created")));
    let agent = world.node_declared("n1").await;
    let config = agent.call("GET", "config?after=0", None).await;
    assert_eq!(config.body["node"]["labels"]["zone"], "a");
    let reserved = world.put("/v1/nodes/config", node("config", json!({}))).await;
    assert_ne!(reserved.status, 201);
}

impl World {
    /// A node that joins under a name that was declared before: the first agent with a token takes it.
    async fn node_declared(&self, name: &str) -> Agent<'_> {
        let psk = token(self, json!({})).await;
        let agent = agent(self, name);
        let answer = agent.register(Some(&psk)).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let token = answer.body["auth"]["node_jwt"].as_str().unwrap().to_owned();
        Agent { token, ..agent }
    }
}
