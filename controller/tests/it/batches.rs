//! Many jobs by one request.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::world::{Answer, World, manifest, read};

const PATH: &str = "/v1/namespaces/default/job-batches";

fn command() -> Value {
    json!({"command": ["true"]})
}

fn nameless() -> Value {
    json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob",
        "metadata": {"generateName": "job-"}, "spec": command(),
    })
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJobList", "items": items})
}

fn words<'a>(answer: &'a Answer, field: &str) -> Vec<&'a str> {
    let items = answer.body["items"].as_array().unwrap();
    items.iter().map(|item| item[field].as_str().unwrap_or_default()).collect()
}

async fn names(world: &World) -> Vec<String> {
    let jobs = world.get("/v1/jobs?limit=500").await;
    let items = jobs.body["items"].as_array().unwrap();
    let mut names: Vec<String> =
        items.iter().map(|job| job["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_job_of_a_batch_has_its_answer_in_order() {
    let world = World::new().await;
    world.job("taken", command()).await;
    let items =
        [manifest("a", command()), manifest("taken", command()), nameless(), manifest("a", command())];
    let answer = world.post(PATH, list(&items)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(words(&answer, "outcome"), ["created", "refused", "created", "refused"]);
    let told = words(&answer, "name");
    assert_eq!((told[0], told[1], told[3]), ("a", "taken", "a"));
    assert!(told[2].starts_with("job-"), "{}", told[2]);
    assert_eq!(answer.body["items"][1]["problem"]["code"], "name_taken");
    let made = world.get("/v1/namespaces/default/jobs/a").await;
    assert_eq!(made.body["metadata"]["uid"], answer.body["items"][0]["uid"]);
    assert_eq!(names(&world).await, ["a", told[2], "taken"]);
}

#[tokio::test]
async fn what_is_wrong_with_any_job_refuses_the_batch_with_every_error_by_its_place() {
    let world = World::new().await;
    let refused = async |items: &[Value]| {
        let answer = world.post(PATH, list(items)).await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (422, Some("invalid")), "{}", answer.body);
        let errors = answer.body["errors"].as_array().unwrap();
        errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let good = manifest("good", command());
    let mut elsewhere = manifest("elsewhere", command());
    elsewhere["metadata"]["namespace"] = "other".into();
    let node = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n"}, "spec": {},
    });
    let fields =
        refused(&[good.clone(), manifest("bad", json!({"command": ["true"], "queue": "Not A Queue"}))]).await;
    assert_eq!(fields, ["items[1].spec.queue"]);
    let twofold = json!({"command": ["true"], "script": "true"});
    let fields = refused(&[elsewhere, good.clone(), node]).await;
    assert_eq!(fields, ["items[0].metadata.namespace", "items[2].kind"]);
    let fields = refused(&[good, manifest("two", twofold)]).await;
    assert!(fields[0].starts_with("items[1].spec"), "{fields:?}");
    assert_eq!(refused(&[]).await, ["items"]);
    assert_eq!(refused(&vec![nameless(); 1001]).await, ["items"]);
    assert_eq!(names(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_repeated_batch_makes_nothing_twice() {
    let world = World::new().await;
    let send = async |items: Vec<Value>| {
        let request = Request::post(PATH)
            .header("authorization", "Bearer operator")
            .header("idempotency-key", "k1")
            .body(Body::from(list(&items).to_string()))
            .unwrap();
        read(world.raw(request).await).await
    };
    let first = send(vec![nameless(), nameless()]).await;
    assert_eq!(words(&first, "outcome"), ["created", "created"]);
    let second = send(vec![nameless(), nameless()]).await;
    assert_eq!(words(&second, "outcome"), ["replayed", "replayed"]);
    assert_eq!(words(&second, "uid"), words(&first, "uid"));
    assert_eq!(words(&second, "name"), words(&first, "name"));
    let other = send(vec![nameless(), manifest("other", command())]).await;
    assert_eq!(words(&other, "outcome"), ["replayed", "refused"]);
    assert_eq!(other.body["items"][1]["problem"]["code"], "idempotency_key_reused");
    assert_eq!(names(&world).await.len(), 2);
}

#[tokio::test]
async fn a_dry_run_of_a_batch_makes_nothing() {
    let world = World::new().await;
    let answer = world.post(&format!("{PATH}?dryRun=true"), list(&[manifest("a", command())])).await;
    assert_eq!((answer.status, words(&answer, "outcome")), (200, vec!["checked"]));
    assert_eq!(names(&world).await, Vec::<String>::new());
    world.job("taken", command()).await;
    let jobs = ["taken", "twice", "twice", "free"].map(|name| manifest(name, command()));
    let answer = world.post(&format!("{PATH}?dryRun=true"), list(&jobs)).await;
    assert_eq!(words(&answer, "outcome"), ["refused", "checked", "refused", "checked"]);
    for position in [0, 2] {
        assert_eq!(answer.body["items"][position]["problem"]["code"], "name_taken", "{answer:?}");
    }
    assert_eq!(names(&world).await, ["taken"]);
}
