//! What callers may not do, and what is damaged: clear answers, and everything else goes on.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use windlass_controller::bodies::Bodies;
use windlass_store::StoreUrl;

use crate::world::{Events, World, log, manifest, psk, read, started, step_ended, terminal};

fn command() -> Value {
    json!({"command": ["true"]})
}

/// Sends a request and checks that its refusal is a problem with this status and code.
async fn refused(world: &World, request: Request<Body>, status: u16, code: &str) -> Value {
    let response = world.raw(request).await;
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let answer = read(response).await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{answer:?}");
    assert_eq!(kind.as_deref(), Some("application/problem+json"));
    assert_eq!(answer.body["status"], status);
    assert!(answer.body["request_id"].is_string(), "{answer:?}");
    answer.body
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let world = World::new().await;
    let request = |method: &str, path: &str| {
        Request::builder().method(method).uri(path).header("authorization", "Bearer operator")
    };
    let jobs = "/v1/namespaces/default/jobs";
    for (method, path) in [("GET", "/v1/nodes/%FF"), ("GET", "/v1/namespaces/%FF/templates/x")] {
        refused(&world, request(method, path).body(Body::empty()).unwrap(), 400, "bad_request").await;
    }
    refused(&world, request("POST", jobs).body("{".into()).unwrap(), 400, "bad_request").await;
    refused(&world, request("GET", "/v1/jobs?limit=x").body(Body::empty()).unwrap(), 400, "bad_request")
        .await;
    refused(&world, request("GET", "/v2").body(Body::empty()).unwrap(), 404, "not_found").await;
    let wrong = request("PATCH", "/v1/queues").body(Body::empty()).unwrap();
    refused(&world, wrong, 405, "method_not_allowed").await;
    let large = request("POST", jobs).body(vec![b' '; 9 << 20].into()).unwrap();
    refused(&world, large, 413, "too_large").await;
    for (name, value) in [("content-type", "multipart/form-data; boundary=x"), ("content-encoding", "gzip")] {
        let body = manifest("a", command()).to_string();
        let other = request("POST", jobs).header(name, value).body(body.into()).unwrap();
        let problem = refused(&world, other, 415, "unsupported_media_type").await;
        assert!(problem["detail"].as_str().unwrap().contains(value.split(';').next().unwrap()), "{problem}");
    }
    for kind in ["application/json; charset=utf-8", "application/yaml", "application/x-www-form-urlencoded"] {
        let body = manifest(&format!("a{}", kind.len()), command()).to_string();
        let known = request("POST", jobs).header("content-type", kind).body(body.into()).unwrap();
        assert_eq!(read(world.raw(known).await).await.status, 201, "{kind}");
    }
    let heavy = request("GET", "/v1/nodes").header("x-much", "x".repeat(17 << 10)).body(Body::empty());
    refused(&world, heavy.unwrap(), 431, "headers_too_large").await;
}

#[tokio::test]
async fn a_body_that_drips_in_is_refused() {
    let world = World::new().await;
    // From here on time is virtual: what is waited for passes at once.
    tokio::time::pause();
    let drip = || {
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Some((Ok::<_, std::convert::Infallible>("{".to_owned()), ()))
        });
        Body::from_stream(drops)
    };
    let began = tokio::time::Instant::now();
    let request = Request::post("/v1/nodes/register").body(drip()).unwrap();
    let problem = refused(&world, request, 408, "timeout").await;
    assert!(problem["detail"].as_str().unwrap().contains("4096 bytes in 10 s"), "{problem}");
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_node_gives_itself_no_label_of_ours_and_nothing_without_bounds() {
    let world = World::settled().await;
    let made = world.post("/v1/join-tokens", json!({})).await;
    assert_eq!(made.body["server"], "https://controller.test");
    let psk = psk(made.body["token"].as_str().unwrap());
    let agent = world.node("n1").await;
    let mut capability = agent.capability();
    capability["node"]["labels"] = json!({"windlass.dev/node": "n2"});
    let field = "node.labels[windlass.dev/node]";
    let answer = agent.call("POST", "capability", Some(capability.clone())).await;
    assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!(field)));
    assert!(answer.body["detail"].as_str().unwrap().contains("reserved"), "{answer:?}");
    capability["node"]["node_slug"] = json!("n2");
    let register = json!({"psk": psk, "capability": capability});
    let answer = world.send("", "POST", "/v1/nodes/register", Some(&register)).await;
    assert_eq!(
        (answer.status, &answer.body["errors"][0]["field"]),
        (422, &json!(format!("capability.{field}")))
    );
    assert_eq!(world.get("/v1/nodes/n2").await.status, 404, "nothing was stored");

    let long = "x".repeat(300);
    let claim = json!({"version": 1, "request_id": long, "boot_id": agent.boot, "max": 1, "wait_seconds": 0});
    let beat = json!({"version": 1, "boot_id": agent.boot, "slots": 1, "held": [{"job": long, "epoch": 1}]});
    let ack = json!({
        "version": 1, "node_slug": "n1", "config_version": "1", "ack_at": world_now(&world), "status": "failed",
        "error": {"type": long, "message": "m"},
    });
    for (verb, body, field) in
        [("claim", claim, "request_id"), ("heartbeat", beat, "held[0].job"), ("config", ack, "error.type")]
    {
        let answer = agent.call("POST", verb, Some(body)).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!(field)), "{answer:?}");
    }
    let node = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
        "spec": {"labels": {"windlass.dev/arch": "sparc"}},
    });
    let answer = world.put("/v1/nodes/n1", node).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.body["errors"][0]["field"], "spec.labels[windlass.dev/arch]");
}

fn world_now(world: &World) -> String {
    use windlass_controller::clock::Clock as _;
    world.clock.now().to_string()
}

#[tokio::test]
async fn a_record_that_is_refused_or_unreadable_holds_up_no_other() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let endless = json!({"kind": "event", "level": "info", "reason": "x".repeat(300), "message": "m"});
    let newer = json!({"kind": "step_levitated", "step": 0});
    let records =
        [(1, started()), (2, endless), (3, newer), (4, step_ended(0)), (5, terminal("succeeded", 5))];
    let mut outcomes = agent.report(&attempt, &records).await;
    outcomes.sort();
    assert_eq!(outcomes, ["accepted", "accepted", "accepted", "rejected", "rejected"]);
    assert_eq!(world.phase("a").await, "Succeeded Completed");
}

#[tokio::test]
async fn output_that_cannot_be_read_is_a_gap_and_hides_no_other() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let large = "x".repeat(20_000);
    let records = [
        (1, started()),
        (2, log(&large, 0)),
        (3, log(&large, 20_000)),
        (4, log("end", 40_000)),
        (5, step_ended(0)),
        (6, terminal("succeeded", 6)),
    ];
    agent.report(&attempt, &records).await;
    let key = |sequence: u64| {
        format!("logs/{}/{}/{sequence}", attempt["job"].as_str().unwrap(), attempt["epoch"].as_u64().unwrap())
    };
    world.bodies.remove(&key(2)).await.unwrap();
    world.bodies.put(&key(3), "short".into()).await.unwrap();
    let path = "/v1/namespaces/default/jobs/a/logs";
    let page = world.get(path).await;
    let items = page.body["items"].as_array().unwrap();
    assert_eq!((page.status, items.len()), (200, 3), "{page:?}");
    assert_eq!(items[0]["gap"], json!({"bytes": 20_000, "reason": "it is not stored any more"}));
    assert_eq!(items[1]["gap"], json!({"bytes": 20_000, "reason": "what is stored of it is damaged"}));
    assert_eq!((items[1]["text"].as_str(), items[1]["offset"].as_u64()), (Some(""), Some(20_000)));
    assert_eq!((&items[2]["text"], &items[2]["gap"]), (&json!("end"), &Value::Null));
    let mut stream = Events::open(&world, path, None).await;
    for expected in items {
        assert_eq!(&stream.next().await.unwrap().2, expected);
    }
    assert_eq!(stream.next().await.unwrap().0, "end");
    let metrics = world.get("/metrics").await.body.to_string();
    assert!(metrics.contains("windlass_unreadable_logs_total 4"), "{metrics}");
}

/// Uploads content and yields the digest and the status.
async fn upload(world: &World, content: &str) -> (String, u16) {
    use sha2::Digest as _;
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(content.as_bytes())));
    let request = Request::put(format!("/v1/inputs/{digest}"))
        .header("authorization", "Bearer operator")
        .body(Body::from(content.to_owned()))
        .unwrap();
    (digest, read(world.raw(request).await).await.status)
}

/// The keys of the bodies below a folder.
async fn keys(world: &World, folder: &str) -> Vec<String> {
    use futures::TryStreamExt as _;
    let found: Vec<_> = world.bodies.list().try_collect().await.unwrap();
    let mut keys: Vec<_> = found.into_iter().map(|found| found.key).collect();
    keys.retain(|key| key.starts_with(folder));
    keys.sort();
    keys
}

#[tokio::test]
async fn an_input_that_is_damaged_or_gone_is_told_and_repaired_by_uploading_it_again() {
    let world = World::settled().await;
    let (digest, _) = upload(&world, "data").await;
    let spec =
        json!({"command": ["true"], "workspace": {"inputs": [{"path": "in", "upload": {"digest": digest}}]}});
    world.job("a", spec.clone()).await;
    let agent = world.node("n1").await;
    agent.claim("r1", 1).await;
    let (own, path) = (format!("/v1/inputs/{digest}"), format!("inputs/{digest}"));
    let fetch = async || {
        let request = Request::get(format!("/v1/nodes/{path}"))
            .header("authorization", format!("Bearer {}", agent.token))
            .body(Body::empty())
            .unwrap();
        let response = world.raw(request).await;
        let status = response.status().as_u16();
        (status, axum::body::to_bytes(response.into_body(), 1 << 20).await)
    };

    // Other bytes of the same length: found out on the way, and the end never comes.
    let key = keys(&world, "inputs/").await.remove(0);
    world.bodies.put(&key, "dada".into()).await.unwrap();
    let (status, body) = fetch().await;
    assert_eq!(status, 200);
    assert!(body.is_err(), "{body:?}");
    for _ in 0..2 {
        let answer = agent.call("GET", &path, None).await;
        assert_eq!((answer.status, &answer.body["code"]), (410, &json!("input_damaged")));
        assert!(answer.body["detail"].as_str().unwrap().contains("upload it again"), "{answer:?}");
    }
    assert_eq!(keys(&world, "damaged/").await.len(), 1, "kept to be looked at");
    assert_eq!(world.get(&own).await.status, 404, "who asks whether to upload is told to");
    assert_eq!(world.job("b", spec.clone()).await.status, 422, "no new job gets it");

    assert_eq!(upload(&world, "data").await, (digest.clone(), 201));
    assert_eq!(world.get(&own).await.status, 200);
    let (status, body) = fetch().await;
    assert_eq!((status, &body.unwrap()[..]), (200, &b"data"[..]));

    // Cut short, and gone: told before a byte is sent.
    let key = keys(&world, "inputs/").await.remove(0);
    world.bodies.put(&key, "dat".into()).await.unwrap();
    assert_eq!(agent.call("GET", &path, None).await.status, 410);
    world.bodies.remove(&key).await.unwrap();
    assert_eq!(agent.call("GET", &path, None).await.status, 410);
    assert_eq!(upload(&world, "data").await.1, 201);
    assert_eq!(fetch().await.0, 200);
}

#[tokio::test]
async fn bodies_that_nobody_names_go_once_they_are_old_and_no_others() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, started()), (2, log(&"x".repeat(20_000), 0))]).await;
    upload(&world, "data").await;
    let named = [keys(&world, "inputs/").await, keys(&world, "logs/").await].concat();
    assert_eq!(named.len(), 2);
    let strays = [
        format!("{}9", named[1]),
        format!("{}.other-upload", named[0]),
        "logs/unknown-job/1/1".to_owned(),
        "damaged/x".to_owned(),
    ];
    for key in &strays {
        world.bodies.put(key, "stray".into()).await.unwrap();
    }
    world.orphans.sweep().await.unwrap();
    assert_eq!(keys(&world, "").await.len(), 6, "bodies from the future are young");
    // Bodies have the time of the machine, and this world's clock stands at 2023.
    world.clock.advance(std::time::Duration::from_secs(50 * 365 * 24 * 3600));
    world.orphans.sweep().await.unwrap();
    assert_eq!(keys(&world, "").await, {
        let mut named = named;
        named.sort();
        named
    });
    let metrics = world.get("/metrics").await.body.to_string();
    assert!(metrics.contains("windlass_swept_bodies_total 4"), "{metrics}");
    assert!(metrics.contains("windlass_swept_bodies_bytes_total 20"), "{metrics}");
}

#[tokio::test]
async fn a_change_on_condition_of_a_version_is_refused_on_another() {
    let world = World::settled().await;
    let node = |unschedulable: bool| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n"},
            "spec": {"unschedulable": unschedulable},
        })
    };
    let template = |version: &str| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "JobTemplate", "metadata": {"name": "t"},
            "spec": {"version": version, "job": command()},
        })
    };
    let job = |priority: u32| manifest("j", json!({"command": ["true"], "priority": priority}));
    let cases = [
        ("/v1/nodes/n", node(false), node(true)),
        ("/v1/namespaces/default/templates/t", template("1"), template("2")),
        ("/v1/namespaces/default/jobs/j", job(1), job(2)),
    ];
    for (path, first, second) in cases {
        for version in ["*", "\"7\""] {
            let early = world.if_match(version, "PUT", path, Some(&first)).await;
            assert_eq!((early.status, &early.body["code"]), (412, &json!("precondition_failed")), "{path}");
        }
        let made = world.put(path, first.clone()).await;
        assert_eq!(made.status, 201, "{made:?}");
        let version = made.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let stale = format!("\"{}\"", version.parse::<i64>().unwrap() + 1000);
        for method in ["PUT", "DELETE"] {
            let refused = world.if_match(&stale, method, path, (method == "PUT").then_some(&second)).await;
            assert_eq!(refused.status, 412, "{method} {path}: {refused:?}");
            assert!(refused.body["detail"].as_str().unwrap().contains(&version), "{refused:?}");
        }
        assert_eq!(world.if_match("nonsense", "DELETE", path, None).await.status, 400);
        let changed = world.if_match(&format!("\"{version}\""), "PUT", path, Some(&second)).await;
        assert_eq!((changed.status, changed.outcome.as_deref()), (200, Some("configured")), "{changed:?}");
        let now = changed.body["metadata"]["resourceVersion"].as_str().unwrap();
        assert_eq!(world.if_match(&version, "DELETE", path, None).await.status, 412, "{path}");
        assert_eq!(world.if_match("*", "PUT", path, Some(&second)).await.status, 200, "{path}");
        assert_eq!(world.if_match(now, "DELETE", path, None).await.status, 200, "{path}");
        assert_eq!(world.get(path).await.status, 404);
    }
}

#[tokio::test]
async fn the_key_of_a_job_that_was_deleted_runs_it_no_second_time() {
    let world = World::settled().await;
    let create = async || {
        let request = Request::post("/v1/namespaces/default/jobs")
            .header("authorization", "Bearer operator")
            .header("idempotency-key", "k")
            .body(Body::from(manifest("a", command()).to_string()))
            .unwrap();
        read(world.raw(request).await).await
    };
    assert_eq!(create().await.status, 201);
    assert_eq!(create().await.status, 200, "the same job again");
    assert_eq!(world.delete("/v1/namespaces/default/jobs/a").await.status, 200);
    let late = create().await;
    assert_eq!((late.status, &late.body["code"]), (409, &json!("idempotency_key_reused")));
    assert!(late.body["detail"].as_str().unwrap().contains("deleted"), "{late:?}");
    world.clock.advance(std::time::Duration::from_secs(24 * 3600 + 1));
    assert_eq!(create().await.status, 201, "a key is kept for a day");
}

#[tokio::test]
async fn readiness_names_what_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("bodies");
    let world = World::with(StoreUrl::SqliteMemory, Bodies::folder(&place).unwrap()).await;
    assert_eq!(world.get("/readyz").await.status, 200);
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "a file in its place").unwrap();
    let answer = world.get("/readyz").await;
    let text = answer.body.as_str().unwrap();
    assert_eq!(answer.status, 503);
    assert!(text.starts_with("bodies: ") && text.lines().count() == 1, "{text}");
    world.stopping.cancel();
    assert_eq!(world.get("/readyz").await.body, "controller: it is stopping\n");
}
