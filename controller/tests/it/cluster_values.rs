//! Secrets of a cluster in claims: what an API server that fails, hangs or is not known keeps back, and what it does not.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify};
use windlass_controller::clock::Clock as _;
use windlass_controller::kube::ClusterValues;
use windlass_store::{Origin, OriginKind};

use crate::world::World;

/// The API server of the cluster `c1`.
#[derive(Clone, Default)]
pub(crate) struct Api {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Api {
    /// What is asked of it is answered by the name of the object and how often that was asked for before.
    pub(crate) fn values<F>(&self, answer: impl Fn(String, usize) -> F + Send + 'static) -> ClusterValues
    where
        F: Future<Output = (u16, Value)> + Send + 'static,
    {
        let asked = self.asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
            let before = {
                let mut asked = asked.lock().unwrap();
                asked.push(name.clone());
                asked.iter().filter(|other| **other == name).count() - 1
            };
            let answer = answer(name, before);
            async move {
                let (status, body) = answer.await;
                let body = axum::body::Body::from(body.to_string());
                Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
            }
        });
        ClusterValues::new(kube::Client::new(service, "default"), Some("c1".to_owned()))
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }

    /// Waits until it was asked so many times.
    pub(crate) async fn was_asked(&self, times: usize) {
        while self.asked.lock().unwrap().len() < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) fn secret(value: &str) -> (u16, Value) {
    (200, json!({"data": {"k": STANDARD.encode(value)}}))
}

pub(crate) fn missing(name: &str) -> (u16, Value) {
    let details = json!({"name": name});
    (404, json!({"kind": "Status", "status": "Failure", "message": "", "details": details, "code": 404}))
}

/// A job of the cluster whose only step names these Secrets.
pub(crate) async fn job(world: &World, name: &str, secrets: &[&str], retry: Value) {
    let secret =
        |(number, name): (usize, &&str)| json!({"name": name, "key": "k", "env": format!("V{number}")});
    let secrets: Vec<Value> = secrets.iter().enumerate().map(secret).collect();
    let made = world.job(name, json!({"command": ["true"], "secrets": secrets, "retry": retry})).await;
    let uid = made.body["metadata"]["uid"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    let origin = Origin { cluster: "c1".to_owned(), object: name.to_owned() };
    world.store.bind_origin(origin, OriginKind::Job, &uid).await.unwrap();
}

/// Phase, and what is said about it.
async fn told(world: &World, name: &str) -> (String, String) {
    let status = world.get(&format!("/v1/namespaces/default/jobs/{name}")).await.body["status"].clone();
    let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("message"))
}

fn names(assignments: &[Value]) -> Vec<&str> {
    assignments.iter().map(|assignment| assignment["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_attempt_is_not_given_back_that_the_same_request_may_have_brought_to_the_node() {
    // Whichever of the two handlers it is that cannot read the Secret.
    for failing in [0, 1] {
        let (api, open) = (Api::default(), Arc::new(Notify::new()));
        let gate = open.clone();
        let values = api.values(move |name, before| {
            let gate = gate.clone();
            async move {
                if before == 0 {
                    gate.notified().await;
                }
                if before == failing { missing(&name) } else { secret("good enough") }
            }
        });
        let world = World::with_cluster(values).await;
        let agent = world.node("n1").await;
        job(&world, "a", &["db"], json!({})).await;
        let (first, again) = tokio::join!(agent.claim("r", 1), async {
            api.was_asked(1).await;
            let again = agent.claim("r", 1).await;
            open.notify_one();
            again
        });
        let delivered = [names(&first), names(&again)];
        assert_eq!(delivered[failing], Vec::<&str>::new());
        assert_eq!(delivered[1 - failing], ["a"]);
        assert_eq!(told(&world, "a").await.0, "Claimed", "the node runs it, handler {failing} failed");
    }
}

#[tokio::test]
async fn what_the_jobs_of_a_claim_name_is_asked_for_at_once_and_each_object_once() {
    // Nothing is answered until all is asked.
    let (api, all) = (Api::default(), Arc::new(Barrier::new(3)));
    let values = api.values(move |_, _| {
        let all = all.clone();
        async move {
            all.wait().await;
            secret("good enough")
        }
    });
    let world = World::with_cluster(values).await;
    let agent = world.node("n1").await;
    job(&world, "a", &["one", "shared"], json!({})).await;
    job(&world, "b", &["shared", "two"], json!({})).await;
    let given = agent.claim("r", 2).await;
    assert_eq!(names(&given), ["a", "b"]);
    assert_eq!(given[1]["secrets"].as_array().unwrap().len(), 2);
    assert_eq!(api.asked(), ["one", "shared", "two"]);
}

#[tokio::test]
async fn an_api_server_that_hangs_keeps_back_its_own_jobs_alone_and_nobody_for_long() {
    let api = Api::default();
    let world = World::with_cluster(api.values(|_, _| std::future::pending())).await;
    let agent = world.node("n1").await;
    job(&world, "a", &["db", "other"], json!({})).await;
    world.job("plain", json!({"command": ["true"]})).await;
    let began = Instant::now();
    assert_eq!(names(&agent.claim("r1", 2).await), ["plain"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?} of a lease of 25 s", began.elapsed());
    let (phase, message) = told(&world, "a").await;
    assert!(phase == "Queued" && message.contains("ClusterUnreachable"), "{phase}: {message}");
}

#[tokio::test]
async fn a_controller_that_stops_gives_its_jobs_out_and_back_at_once() {
    let api = Api::default();
    let world = World::with_cluster(api.values(|_, _| std::future::pending())).await;
    let agent = world.node("n1").await;
    job(&world, "a", &["db"], json!({})).await;
    world.job("plain", json!({"command": ["true"]})).await;
    let began = Instant::now();
    let (given, ()) = tokio::join!(agent.claim("r1", 2), async {
        api.was_asked(1).await;
        world.stopping.cancel();
    });
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(names(&given), ["plain"]);
    let (phase, message) = told(&world, "a").await;
    assert!(phase == "Queued" && message.contains("the controller stops"), "{phase}: {message}");
}

#[tokio::test]
async fn a_controller_that_does_not_read_the_cluster_of_a_job_gives_it_back() {
    let own = World::settled().await;
    let api = Api::default();
    let other = World::with_cluster(api.values(async |_, _| secret("of c1"))).await;
    for (world, cluster) in [(&own, "c1"), (&other, "c2")] {
        let agent = world.node("n1").await;
        let spec = json!({"command": ["true"], "secrets": [{"name": "db", "key": "k", "env": "V"}]});
        let made = world.job("a", spec).await;
        let uid = made.body["metadata"]["uid"].as_str().unwrap();
        let origin = Origin { cluster: cluster.to_owned(), object: "a".to_owned() };
        world.store.bind_origin(origin, OriginKind::Job, uid).await.unwrap();
        assert_eq!(names(&agent.claim("r1", 1).await), Vec::<&str>::new());
        let (phase, message) = told(world, "a").await;
        assert_eq!(phase, "Queued");
        for words in ["ReadForbidden", "with --kube-secrets", "`windlass secret set -n default db k`"] {
            assert!(message.contains(words), "no `{words}` in {message}");
        }
        // A Secret of its own is as good.
        let values = json!({"values": {"k": STANDARD.encode("of windlass")}});
        world.put("/v1/namespaces/default/secrets/db", values).await;
        world.clock.advance(Duration::from_secs(20));
        assert_eq!(names(&agent.claim("r2", 1).await), ["a"]);
    }
    assert_eq!(api.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_missing_is_looked_for_every_quarter_of_a_minute_however_the_job_is_retried() {
    let api = Api::default();
    let world = World::with_cluster(api.values(async |name, _| missing(&name))).await;
    let agent = world.node("n1").await;
    job(&world, "eager", &["db"], json!({"backoff": {"initial": "1ms", "max": "1ms"}})).await;
    job(&world, "lazy", &["db"], json!({"backoff": {"initial": "5h", "max": "9h"}})).await;
    let mut waits = HashMap::new();
    for round in 0..4 {
        assert_eq!(names(&agent.claim(&format!("r{round}"), 2).await), Vec::<&str>::new());
        for name in ["eager", "lazy"] {
            let uid = world.get(&format!("/v1/namespaces/default/jobs/{name}")).await.body["metadata"]["uid"]
                .as_str()
                .unwrap()
                .to_owned();
            let row = world.store.get_jobs(&[uid]).await.unwrap().remove(0);
            assert_eq!((row.attempts, row.failures, row.lost_attempts), (round + 1, 0, 0), "{name}");
            let wait = row.not_before.unwrap().duration_since(world.clock.now()).as_millis();
            assert!((15_000..=18_750).contains(&wait), "{name} waits {wait} ms in round {round}");
            waits.insert(wait, name);
        }
        world.clock.advance(Duration::from_secs(19));
    }
    assert!(waits.len() > 4, "many jobs do not come at once: {waits:?}");
}

#[tokio::test]
async fn a_value_is_as_long_as_what_of_it_is_masked() {
    let api = Api::default();
    let world = World::with_cluster(api.values(async |_, _| secret("  ab\r\n"))).await;
    let agent = world.node("n1").await;
    job(&world, "a", &["db"], json!({})).await;
    assert_eq!(names(&agent.claim("r1", 1).await), Vec::<&str>::new());
    let message = told(&world, "a").await.1;
    assert!(message.contains("SecretUnsuitable") && message.contains("has 2 bytes besides"), "{message}");
}
