//! Artifacts, from a node's manifest to a download.

use axum::body::Body;
use axum::http::{Request, header::HeaderName};
use axum::response::Response;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::world::{Agent, Answer, World, read, started, terminal};

const ARTIFACTS: &str = "/v1/namespaces/default/jobs/a/artifacts";

fn entry(number: u32, name: &str, kind: &str, content: &[u8]) -> Value {
    let sha256 = hex::encode(Sha256::digest(content));
    json!({"number": number, "name": name, "kind": kind, "size": content.len(), "sha256": sha256})
}

fn manifest(items: &[Value]) -> Value {
    json!({"kind": "artifacts", "items": items})
}

/// A node with an attempt of job `a`.
async fn held<'w>(world: &'w World, node: &str) -> (Agent<'w>, Value) {
    world.job("a", json!({"command": ["true"], "retry": {"failures": 1}})).await;
    let agent = world.node(node).await;
    let attempt = agent.claim(&format!("{node} 1"), 1).await[0]["attempt"].clone();
    (agent, attempt)
}

async fn put(agent: &Agent<'_>, attempt: &Value, number: u32, content: impl Into<Body>) -> Answer {
    let job = attempt["job"].as_str().unwrap();
    let request = Request::put(format!("/v1/nodes/artifacts/{job}/{}/{number}", attempt["epoch"]))
        .header("authorization", format!("Bearer {}", agent.token))
        .body(content.into())
        .unwrap();
    read(agent.world.raw(request).await).await
}

async fn download(world: &World, path: &str, range: Option<&str>) -> Response {
    let mut request = Request::get(path).header("authorization", "Bearer operator");
    if let Some(range) = range {
        request = request.header("range", range);
    }
    world.raw(request.body(Body::empty()).unwrap()).await
}

fn header(response: &Response, name: &'static str) -> String {
    let value = response.headers().get(HeaderName::from_static(name));
    value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

async fn content(response: Response) -> Vec<u8> {
    axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()
}

async fn states(world: &World) -> Vec<String> {
    let list = world.get(ARTIFACTS).await.body;
    let text = |item: &Value, field: &str| item[field].as_str().unwrap_or("-").to_owned();
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| ["name", "state", "reason"].map(|field| text(item, field)).join(" ")).collect()
}

/// How many bodies of artifacts the object store has.
async fn bodies(world: &World) -> usize {
    let keys: Vec<_> = futures::StreamExt::collect(world.bodies.list()).await;
    keys.into_iter().filter(|found| found.as_ref().unwrap().key.starts_with("artifacts/")).count()
}

#[tokio::test]
async fn an_artifact_is_told_of_sent_listed_and_downloaded() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    let report = b"# Report\n<script>alert(1)</script>\n";
    let refused =
        json!({"number": 2, "name": "pipe", "kind": "file", "size": 0, "refused": "it is a named pipe"});
    let items = [entry(1, "out/report ž.md", "markdown", report), refused];
    agent.report(&attempt, &[(1, started()), (2, manifest(&items)), (3, terminal("succeeded", 3))]).await;
    assert_eq!(states(&world).await, ["out/report ž.md Pending -", "pipe Refused it is a named pipe"]);
    let path = format!("{ARTIFACTS}/out%2Freport%20%C5%BE.md");
    let early = world.get(&path).await;
    assert!(early.body["detail"].as_str().unwrap().contains("n1` has not sent"), "{early:?}");
    let sent = put(&agent, &attempt, 1, &report[..]).await;
    assert_eq!(sent.status, 201, "{sent:?}");
    let list = world.get(ARTIFACTS).await.body;
    insta::assert_json_snapshot!(list["items"][0], @r#"
    {
      "attempt": 1,
      "collectedAt": "2023-11-14T22:14:20Z",
      "epoch": 1,
      "kind": "markdown",
      "name": "out/report ž.md",
      "node": "n1",
      "number": 1,
      "sha256": "ee2eeef7d0d8236a77fdb6bf29f1f4e9a0b4b04e0675dc57870e6805f381d3e1",
      "size": 35,
      "state": "Stored",
      "storedAt": "2023-11-14T22:14:20Z",
      "superseded": false
    }
    "#);

    let answer = download(&world, &path, None).await;
    assert_eq!(answer.status(), 200);
    for (name, expected) in [
        ("content-type", "text/markdown; charset=utf-8"),
        ("content-length", "35"),
        ("content-disposition", "attachment; filename=\"report _.md\"; filename*=UTF-8''report%20%C5%BE.md"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ] {
        assert_eq!(header(&answer, name), expected);
    }
    assert_eq!(content(answer).await, report);
    let part = download(&world, &path, Some("bytes=2-7")).await;
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, "bytes 2-7/35".to_owned()));
    let tag = header(&part, "etag");
    assert_eq!(content(part).await, b"Report");
    assert_eq!(tag, format!("\"{}\"", hex::encode(Sha256::digest(report))));
    for (if_range, status) in [(tag.as_str(), 206), ("\"of before\"", 200)] {
        let request = Request::get(&path).header("authorization", "Bearer operator");
        let request = request.header("range", "bytes=2-7").header("if-range", if_range);
        let answer = world.raw(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status(), status, "{if_range}");
    }
    let beyond = download(&world, &path, Some("bytes=35-")).await;
    assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */35".to_owned()));
    let refused = world.get(&format!("{ARTIFACTS}/pipe")).await;
    assert_eq!(refused.status, 404);
    assert!(refused.body["detail"].as_str().unwrap().contains("it is a named pipe"), "{refused:?}");
    let unknown = world.get(&format!("{ARTIFACTS}/..%2F..%2Fsecret")).await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    for path in [ARTIFACTS, &path] {
        let stranger = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(world.raw(stranger).await.status(), 401, "{path}");
    }
}

#[tokio::test]
async fn a_body_is_taken_once_and_only_as_its_manifest_says() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    let other = world.node("n2").await;
    assert_eq!(put(&agent, &attempt, 1, "data").await.status, 404, "nobody has told of it");
    agent
        .report(&attempt, &[(1, manifest(&[entry(1, "a", "file", b"data"), entry(2, "", "file", b"")]))])
        .await;
    assert_eq!(states(&world).await, Vec::<String>::new(), "a manifest with an impossible name is refused");
    agent
        .report(&attempt, &[(1, manifest(&[entry(1, "a", "file", b"data"), entry(2, "b", "file", b"")]))])
        .await;
    assert_eq!(put(&other, &attempt, 1, "data").await.status, 404, "it is not the node's");
    for (wrong, status, code) in
        [("datum", 413, "too_large"), ("dat", 422, "digest_mismatch"), ("DATA", 422, "digest_mismatch")]
    {
        let answer = put(&agent, &attempt, 1, wrong).await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{wrong}");
    }
    let broken = futures::stream::iter([Ok("da"), Err(std::io::Error::other("the line is cut"))]);
    assert_eq!(put(&agent, &attempt, 1, Body::from_stream(broken)).await.status, 400);
    assert_eq!(bodies(&world).await, 0, "nothing is kept of what was refused");
    assert_eq!(put(&agent, &attempt, 1, "data").await.status, 201);
    assert_eq!(put(&agent, &attempt, 1, "data").await.status, 200, "again, as after a lost answer");
    assert_eq!(put(&agent, &attempt, 1, "evil").await.status, 200, "what is there stays");
    let longer = futures::stream::iter(["data", "and more"].map(Ok::<_, std::io::Error>));
    let answer = put(&agent, &attempt, 1, Body::from_stream(longer)).await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (413, Some("too_large")), "{answer:?}");
    assert_eq!(put(&agent, &attempt, 2, "").await.status, 201, "an empty one");
    assert_eq!(bodies(&world).await, 2);
    let answer = download(&world, &format!("{ARTIFACTS}/a"), None).await;
    assert_eq!(content(answer).await, b"data");
    assert_eq!(content(download(&world, &format!("{ARTIFACTS}/b"), None).await).await, b"");
}

#[tokio::test]
async fn of_two_uploads_at_the_same_time_one_is_kept() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    agent.report(&attempt, &[(1, manifest(&[entry(1, "a", "file", b"data")]))]).await;
    let slow = |piece: &'static str| {
        let pieces = futures::stream::unfold(0, move |at| async move {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            piece.get(at..=at).map(|byte| (Ok::<_, std::io::Error>(byte), at + 1))
        });
        Body::from_stream(pieces)
    };
    let (one, two) =
        tokio::join!(put(&agent, &attempt, 1, slow("data")), put(&agent, &attempt, 1, slow("data")));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201]);
    assert_eq!(bodies(&world).await, 1);
}

#[tokio::test]
async fn what_the_node_has_lost_is_a_gap_and_the_last_attempt_is_downloaded() {
    let world = World::settled().await;
    let (agent, first) = held(&world, "n1").await;
    let items = [entry(1, "a", "file", b"one"), entry(2, "b", "file", b"gone")];
    agent.report(&first, &[(1, manifest(&items)), (2, terminal("failed", 2))]).await;
    assert_eq!(put(&agent, &first, 1, "one").await.status, 201, "after the end of the attempt");
    let lost = json!({"version": 1, "attempt": first, "lost": [
        {"number": 1, "reason": "never mind"}, {"number": 2, "reason": "its disk was full"},
    ]});
    assert_eq!(agent.call("POST", "artifacts", Some(lost)).await.status, 204);
    assert_eq!(states(&world).await, ["a Stored -", "b Lost its disk was full"]);
    let gone = world.get(&format!("{ARTIFACTS}/b")).await;
    assert!(gone.body["detail"].as_str().unwrap().contains("its disk was full"), "{gone:?}");
    world.clock.advance(std::time::Duration::from_secs(60));
    let second = agent.claim("r2", 1).await[0]["attempt"].clone();
    agent
        .report(&second, &[(1, manifest(&[entry(1, "a", "file", b"two")])), (2, terminal("succeeded", 2))])
        .await;
    assert_eq!(put(&agent, &second, 1, "two").await.status, 201);
    let newest = download(&world, &format!("{ARTIFACTS}/a"), None).await;
    assert_eq!(content(newest).await, b"two");
    let older = download(&world, &format!("{ARTIFACTS}/a?epoch={}", first["epoch"]), None).await;
    assert_eq!(content(older).await, b"one");
    let of_one = world.get(&format!("{ARTIFACTS}?epoch={}", second["epoch"])).await.body;
    assert_eq!(of_one["items"].as_array().unwrap().len(), 1);
    // The last attempt has left no `b`, and that of an earlier one is not taken for it.
    let earlier = world.get(&format!("{ARTIFACTS}/b")).await;
    let detail = earlier.body["detail"].as_str().unwrap();
    assert_eq!(earlier.status, 404);
    assert!(detail.contains("last attempt") && detail.contains("attempt 1 has"), "{detail}");
    assert!(detail.contains(&format!("`epoch={}`", first["epoch"])), "{detail}");
    let link = world.post(&format!("{ARTIFACTS}/b/link"), json!({})).await;
    assert_eq!(link.status, 404, "{link:?}");
    let other = world.get(&format!("{ARTIFACTS}/b?epoch={}", second["epoch"])).await;
    assert!(other.body["detail"].as_str().unwrap().contains("others have"), "{other:?}");
}

#[tokio::test]
async fn artifacts_of_an_attempt_that_was_given_away_are_superseded() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    world.clock.advance(std::time::Duration::from_secs(30));
    world.sweeper.sweep().await.unwrap();
    let outcomes = agent.report(&attempt, &[(1, manifest(&[entry(1, "a", "file", b"late")]))]).await;
    assert_eq!(outcomes, ["superseded"]);
    assert_eq!(put(&agent, &attempt, 1, "late").await.status, 201);
    let item = world.get(ARTIFACTS).await.body["items"][0].clone();
    assert_eq!((&item["superseded"], &item["state"]), (&json!(true), &json!("Stored")));
}

#[tokio::test]
async fn artifacts_that_a_removed_node_has_not_sent_are_lost() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    let items = [entry(1, "a", "file", b"data"), entry(2, "b", "file", b"late")];
    agent.report(&attempt, &[(1, manifest(&items)), (2, terminal("succeeded", 2))]).await;
    put(&agent, &attempt, 1, "data").await;
    assert_eq!(world.delete("/v1/nodes/n1").await.status, 200);
    assert_eq!(states(&world).await, ["a Stored -", "b Lost its node was removed"]);
    let gone = world.get(&format!("{ARTIFACTS}/b")).await;
    assert!(gone.body["detail"].as_str().unwrap().contains("its node was removed"), "{gone:?}");
}

#[tokio::test]
async fn artifacts_go_with_their_job() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    let items = [entry(1, "a", "file", b"data"), entry(2, "b", "file", b"late")];
    agent.report(&attempt, &[(1, manifest(&items)), (2, terminal("succeeded", 2))]).await;
    put(&agent, &attempt, 1, "data").await;
    assert_eq!(world.delete("/v1/namespaces/default/jobs/a").await.status, 200);
    assert_eq!(put(&agent, &attempt, 2, "late").await.status, 404);
    assert_eq!(bodies(&world).await, 0);
}

#[tokio::test]
async fn an_upload_that_nobody_names_is_swept_and_what_is_named_stays() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    agent.report(&attempt, &[(1, manifest(&[entry(1, "a", "file", b"data")]))]).await;
    put(&agent, &attempt, 1, "data").await;
    let orphan = format!("artifacts/{}/{}/1.killed", attempt["job"].as_str().unwrap(), attempt["epoch"]);
    world.bodies.put(&orphan, "half".into()).await.unwrap();
    assert_eq!(bodies(&world).await, 2);
    // Bodies have the time of the machine, and this world's clock stands at 2023.
    world.clock.advance(std::time::Duration::from_secs(50 * 365 * 24 * 3600));
    world.orphans.sweep().await.unwrap();
    assert_eq!(bodies(&world).await, 1);
    let answer = download(&world, &format!("{ARTIFACTS}/a"), None).await;
    assert_eq!(content(answer).await, b"data");
}

#[tokio::test]
async fn a_damaged_body_breaks_off_and_a_missing_one_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let bodies = windlass_controller::bodies::Bodies::folder(folder.path()).unwrap();
    let world = World::with(windlass_store::StoreUrl::SqliteMemory, bodies).await;
    world.clock.advance(std::time::Duration::from_secs(60));
    let (agent, attempt) = held(&world, "n1").await;
    let data = vec![b'x'; 100_000];
    agent.report(&attempt, &[(1, manifest(&[entry(1, "a", "file", &data)]))]).await;
    assert_eq!(put(&agent, &attempt, 1, data.clone()).await.status, 201);
    let key = world.store.artifacts(attempt["job"].as_str().unwrap()).await.unwrap()[0].object_key.clone();
    let file = folder.path().join(key.unwrap());
    let mut damaged = data;
    damaged[5] = b'y';
    std::fs::write(&file, damaged).unwrap();
    let answer = download(&world, &format!("{ARTIFACTS}/a"), None).await;
    assert!(axum::body::to_bytes(answer.into_body(), 1 << 20).await.is_err(), "it does not come as a whole");
    std::fs::remove_file(&file).unwrap();
    let answer = world.get(&format!("{ARTIFACTS}/a")).await;
    assert!(answer.body["detail"].as_str().unwrap().contains("is missing"), "{answer:?}");
}

#[tokio::test]
async fn a_link_works_for_everybody_until_it_expires() {
    let world = World::settled().await;
    let (agent, attempt) = held(&world, "n1").await;
    agent
        .report(&attempt, &[(1, manifest(&[entry(1, "x/a", "file", b"data"), entry(2, "b", "file", b"b")]))])
        .await;
    put(&agent, &attempt, 1, "data").await;
    let path = format!("{ARTIFACTS}/x%2Fa/link");
    let made = world.post(&path, json!({"expiresIn": "1m"})).await;
    assert_eq!(made.status, 200, "{made:?}");
    let url = made.body["url"].as_str().unwrap().strip_prefix("https://controller.test").unwrap().to_owned();
    let anonymous = async |url: &str| world.raw(Request::get(url).body(Body::empty()).unwrap()).await;
    let answer = anonymous(&url).await;
    assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
    assert_eq!(content(answer).await, b"data");
    let other = url.replace("/1?", "/2?");
    assert_eq!(anonymous(&other).await.status(), 403, "{other}");
    world.clock.advance(std::time::Duration::from_secs(61));
    assert_eq!(anonymous(&url).await.status(), 403, "it has expired");
    for (span, status) in [("8d", 400), ("0s", 400), ("7d", 200)] {
        assert_eq!(world.post(&path, json!({"expiresIn": span})).await.status, status, "{span}");
    }
    assert_eq!(world.post(&path, json!({})).await.status, 200);
    assert_eq!(world.post(&format!("{ARTIFACTS}/no/link"), json!({})).await.status, 404);
}
