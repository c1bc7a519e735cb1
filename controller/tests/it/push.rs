//! Nodes that are given their jobs: who is called, with what, and what follows when a call goes wrong.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_controller::clock::Clock as _;
use windlass_controller::dispatch::{CallError, MakeClient, Push, Target, WorkerClient};
use windlass_controller::metrics::Metrics;
use windlass_crds::protocol::{Assignment, AttemptId};

use crate::cluster_values::{self, Api, missing, secret};
use crate::world::{Agent, World, started, terminal};

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node does with the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// It takes jobs.
    Willing,
    /// It cannot be reached.
    Away,
    /// It takes jobs, and its answers are lost.
    Mute,
    /// Calls are lost on their way.
    Deaf,
    /// It answers with a status.
    Refusing(u16),
}

/// A node's Worker API.
#[derive(Clone)]
struct FakeNode {
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    calls: Vec<(Target, Assignment)>,
    asked: Vec<AttemptId>,
    taken: BTreeSet<AttemptId>,
}

fn lost(url: &str) -> CallError {
    CallError::Unanswered { url: url.to_owned(), source: "timed out".into() }
}

impl FakeNode {
    fn new() -> Self {
        let (calls, asked, taken) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { state: Arc::new(Mutex::new(State { mood: Mood::Willing, calls, asked, taken })) }
    }

    fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    fn calls(&self) -> Vec<(Target, Assignment)> {
        self.state.lock().unwrap().calls.clone()
    }

    fn judge(state: &State, url: &str) -> Result<(), CallError> {
        match state.mood {
            Mood::Willing | Mood::Mute => Ok(()),
            Mood::Away => Err(CallError::Unsent { url: url.to_owned(), source: "connection refused".into() }),
            Mood::Deaf => Err(lost(url)),
            Mood::Refusing(status) => Err(CallError::Refused { status, detail: "because".to_owned() }),
        }
    }
}

impl WorkerClient for FakeNode {
    fn run<'a>(
        &'a self,
        target: &'a Target,
        assignment: &'a Assignment,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let mut state = self.state.lock().unwrap();
            state.calls.push((target.clone(), assignment.clone()));
            Self::judge(&state, &target.url)?;
            state.taken.insert(assignment.attempt.clone());
            if state.mood == Mood::Mute { Err(lost(&target.url)) } else { Ok(()) }
        })
    }

    fn has<'a>(
        &'a self,
        target: &'a Target,
        attempt: &'a AttemptId,
    ) -> BoxFuture<'a, Result<bool, CallError>> {
        Box::pin(async move {
            let mut state = self.state.lock().unwrap();
            state.asked.push(attempt.clone());
            Self::judge(&state, &target.url)?;
            Ok(state.taken.contains(attempt))
        })
    }
}

/// A dispatcher that runs until it is dropped.
struct Dispatcher {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: Metrics,
}

impl Dispatcher {
    fn start(world: &World, node: &FakeNode) -> Self {
        let node = node.clone();
        let make: MakeClient = Arc::new(move || Arc::new(node.clone()));
        let metrics = Metrics::new();
        let stop = CancellationToken::new();
        let push = Push::with(world.dispatch.clone(), metrics.clone(), make);
        Self { task: tokio::spawn(push.run(stop.clone())), stop, metrics }
    }

    /// Ends it as a controller that stops does.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looked = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    looked.await.unwrap_or_else(|_| panic!("not within {} s: {what}", PATIENCE.as_secs()))
}

/// Declares a node that is to be given its jobs.
async fn declare(world: &World, name: &str, spec: Value) {
    let mut spec = spec;
    spec["dispatch"] = "Push".into();
    let node = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": name}, "spec": spec,
    });
    let answer = world.put(&format!("/v1/nodes/{name}"), node).await;
    assert!(answer.status < 300, "{answer:?}");
}

/// Says that the Worker API is served.
async fn serve(agent: &Agent<'_>) {
    let mut report = agent.capability();
    report["worker_api"] = json!({"base_url": format!("https://{}:12090/", agent.name)});
    report["tls"] = json!({"trust_material_status": "ok", "worker_api_server_cert_pem": "certificate"});
    assert_eq!(agent.call("POST", "capability", Some(report)).await.status, 204);
}

/// A node that can be called.
async fn node<'a>(world: &'a World, name: &str) -> Agent<'a> {
    declare(world, name, json!({})).await;
    let agent = world.node(name).await;
    serve(&agent).await;
    assert_eq!(agent.beat(&[]).await.status, 200);
    agent
}

async fn config(agent: &Agent<'_>) -> Value {
    agent.call("GET", "config?after=0", None).await.body
}

async fn run_to_the_end(agent: &Agent<'_>, attempt: &AttemptId) {
    let attempt = json!({"job": attempt.job, "epoch": attempt.epoch});
    agent.report(&attempt, &[(1, started()), (2, terminal("succeeded", 2))]).await;
}

#[tokio::test]
async fn a_node_is_given_its_jobs_by_its_own_url_and_token_and_asks_for_none() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    world.job("a", json!({"command": ["true"]})).await;
    assert!(agent.claim("r1", 1).await.is_empty(), "it asks for orders alone");
    let dispatcher = Dispatcher::start(&world, &fake);
    let (target, assignment) = until("a call", async || fake.calls().pop()).await;
    let token = config(&agent).await["worker_api"]["orchestrator_bearer_token"].as_str().unwrap().to_owned();
    assert_eq!((target.node.as_str(), target.url.as_str()), ("n1", "https://n1:12090"));
    assert_eq!((target.token.as_str(), target.certificate.as_str()), (token.as_str(), "certificate"));
    assert_eq!((assignment.name.as_str(), assignment.attempt.epoch), ("a", 1));
    let attempt = json!({"job": assignment.attempt.job, "epoch": 1});
    let renewed = agent.beat(std::slice::from_ref(&attempt)).await.body;
    assert_eq!(renewed["renewed"][0]["attempt"], attempt, "heartbeats renew as ever");
    run_to_the_end(&agent, &assignment.attempt).await;
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    let status = until("the delivery is noted", async || {
        let node = world.get("/v1/nodes/n1").await.body;
        node["status"]["dispatch"]["deliveredAt"].is_string().then(|| node["status"]["dispatch"].clone())
    })
    .await;
    assert_eq!((status["mode"].as_str(), status["url"].as_str()), (Some("Push"), Some("https://n1:12090/")));
    assert_eq!(fake.calls().len(), 1);
    for path in ["/v1/nodes", "/v1/nodes/n1", "/v1/nodes/n1/history", "/v1/events", "/v1/openapi.json"] {
        assert!(!world.get(path).await.body.to_string().contains(&token), "{path} shows the token");
    }
    let now = world.clock.now();
    let text = dispatcher.metrics.render(&world.store.counts(now).await.unwrap(), now).unwrap();
    assert!(text.contains("windlass_push_deliveries_total{outcome=\"taken\"} 1"), "{text}");
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_node_is_called_only_when_it_is_alive_has_applied_its_configuration_and_may_take_jobs() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    declare(&world, "n1", json!({})).await;
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    let why = async || {
        let told = world.get("/v1/namespaces/default/jobs/a/placement").await.body;
        format!(
            "{}: {}",
            told["items"][0]["reason"].as_str().unwrap(),
            told["items"][0]["message"].as_str().unwrap()
        )
    };
    let agent = world.node("n1").await;
    assert_eq!(agent.beat(&[]).await.status, 200);
    let told = why().await;
    assert!(told.starts_with("Unreachable") && told.contains("reports no Worker API"), "{told}");
    serve(&agent).await;
    let first = until("the first call", async || fake.calls().pop()).await;
    run_to_the_end(&agent, &first.1.attempt).await;

    let version = config(&agent).await["config_version"].as_str().unwrap().to_owned();
    agent.ack(&version, "failed").await;
    world.job("a2", json!({"command": ["true"]})).await;
    let told = world.get("/v1/namespaces/default/jobs/a2/placement").await.body.to_string();
    assert!(told.contains("has not acknowledged its configuration as applied"), "{told}");
    world.post("/v1/nodes/n1/cordon", json!({})).await;
    agent.ack(&version, "applied").await;
    // While the node is cordoned another one, that pulls, gets the job.
    let other = world.node("n2").await;
    let claimed = other.claim("r1", 1).await;
    assert_eq!(claimed[0]["name"], "a2");
    assert_eq!(fake.calls().len(), 1);
    world.post("/v1/nodes/n1/uncordon", json!({})).await;
    world.job("a3", json!({"command": ["true"]})).await;
    until("the second call", async || (fake.calls().len() == 2).then_some(())).await;

    world.clock.advance(Duration::from_secs(60));
    other.beat(&[]).await;
    world.job("a4", json!({"command": ["true"]})).await;
    let claimed = until("the other node has it", async || other.claim("r2", 1).await.pop()).await;
    assert_eq!(claimed["name"], "a4", "nothing is heard of the first");
    assert_eq!(fake.calls().len(), 2);
    dispatcher.stop().await;
}

#[tokio::test]
async fn an_attempt_whose_answer_is_lost_is_asked_for_and_not_sent_again() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    fake.set(Mood::Mute);
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    let (_, assignment) = until("a call", async || fake.calls().pop()).await;
    until("it is asked for", async || (!fake.state.lock().unwrap().asked.is_empty()).then_some(())).await;
    fake.set(Mood::Willing);
    until("the delivery is noted", async || {
        world.get("/v1/nodes/n1").await.body["status"]["dispatch"]["deliveredAt"].is_string().then_some(())
    })
    .await;
    run_to_the_end(&agent, &assignment.attempt).await;
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    assert_eq!(fake.calls().len(), 1, "it was sent once");
    dispatcher.stop().await;
}

#[tokio::test]
async fn an_attempt_that_a_node_may_have_is_not_taken_from_it_because_it_does_not_say() {
    for status in [401, 500] {
        let world = World::settled().await;
        let fake = FakeNode::new();
        let agent = node(&world, "n1").await;
        let before = config(&agent).await["worker_api"].clone();
        world.clock.advance(Duration::from_secs(120));
        agent.beat(&[]).await;
        fake.set(Mood::Mute);
        let dispatcher = Dispatcher::start(&world, &fake);
        world.job("a", json!({"command": ["true"]})).await;
        let (_, assignment) = until("a call", async || fake.calls().pop()).await;
        fake.set(Mood::Refusing(status));
        until("the trouble is noted", async || {
            let dispatch = world.get("/v1/nodes/n1").await.body["status"]["dispatch"].clone();
            dispatch["error"].as_str().filter(|error| error.contains(&status.to_string())).map(str::to_owned)
        })
        .await;
        let told = world.get("/v1/namespaces/default/jobs/a").await.body["status"].clone();
        assert_eq!((&told["phase"], &told["epoch"]), (&json!("Claimed"), &json!(1)), "{told}");
        if status == 401 {
            until("another token", async || (config(&agent).await["worker_api"] != before).then_some(()))
                .await;
        }
        run_to_the_end(&agent, &assignment.attempt).await;
        assert_eq!(world.phase("a").await, "Succeeded Completed");
        assert_eq!(fake.calls().len(), 1, "it was sent once");
        dispatcher.stop().await;
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_delivered_goes_elsewhere_and_the_reason_is_shown() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    node(&world, "n1").await;
    fake.set(Mood::Away);
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    let status = until("the error is noted", async || {
        let status = world.get("/v1/nodes/n1").await.body["status"]["dispatch"].clone();
        status["error"].is_string().then_some(status)
    })
    .await;
    assert_eq!(status["error"], "https://n1:12090 cannot be reached: connection refused");
    assert!(status["errorSince"].is_string());
    let job = until("the job is back", async || {
        let job = world.get("/v1/namespaces/default/jobs/a").await.body;
        (job["status"]["phase"] == "Queued").then_some(job)
    })
    .await;
    assert!(job["status"]["message"].as_str().unwrap().contains("NotDelivered"), "{job}");
    let told = world.get("/v1/namespaces/default/jobs/a/placement").await.body;
    assert_eq!(told["items"][0]["reason"], "Unreachable");
    assert!(told["items"][0]["message"].as_str().unwrap().ends_with("connection refused"), "{told}");
    let other = world.node("n2").await;
    let claimed = until("the other node has it", async || {
        // What comes back may have to wait a little.
        world.clock.advance(Duration::from_secs(1));
        other.claim(&world.clock.now().to_string(), 1).await.pop()
    })
    .await;
    assert_eq!(claimed["name"], "a");
    let retries = world.get("/v1/namespaces/default/jobs/a/attempts").await.body.to_string();
    assert!(retries.contains("Released"), "{retries}");
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_job_that_the_node_refuses_fails_with_its_reason() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    node(&world, "n1").await;
    fake.set(Mood::Refusing(413));
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    until("the job has failed", async || (world.phase("a").await == "Failed WorkerApiRefused").then_some(()))
        .await;
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(job["status"]["message"], "the node answered 413: because");
    fake.set(Mood::Willing);
    world.job("b", json!({"command": ["true"]})).await;
    until("the next job is taken", async || (fake.state.lock().unwrap().taken.len() == 1).then_some(()))
        .await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_controller_that_comes_up_takes_deliveries_up_that_were_under_way() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    fake.set(Mood::Deaf);
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    let (_, before) = until("a call", async || fake.calls().pop()).await;
    dispatcher.stop().await;
    fake.set(Mood::Willing);
    let world = world.restarted();
    let dispatcher = Dispatcher::start(&world, &fake);
    until("it is taken", async || fake.state.lock().unwrap().taken.first().cloned()).await;
    let calls = fake.calls();
    assert!(calls.iter().all(|(_, call)| call.attempt == before.attempt), "no other attempt was made");
    assert!(fake.state.lock().unwrap().asked.contains(&before.attempt), "it was asked for first");
    let agent = Agent { world: &world, name: agent.name, boot: agent.boot, token: agent.token };
    run_to_the_end(&agent, &before.attempt).await;
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_token_is_replaced_by_a_newer_configuration_and_used_until_that_is_applied() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    let first = config(&agent).await;
    assert_eq!(first["node"]["dispatch"], "Push");
    let token =
        |config: &Value| config["worker_api"]["orchestrator_bearer_token"].as_str().unwrap().to_owned();
    let expiry: jiff::Timestamp =
        first["worker_api"]["orchestrator_bearer_token_expires_at"].as_str().unwrap().parse().unwrap();
    let dispatcher = Dispatcher::start(&world, &fake);
    world.clock.advance(Duration::from_secs(12 * 3600));
    agent.beat(&[]).await;
    let next = until("another token", async || {
        let config = config(&agent).await;
        (token(&config) != token(&first)).then_some(config)
    })
    .await;
    let version = |config: &Value| config["config_version"].as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(version(&next), version(&first) + 1);
    let call = async |name: &str, calls: usize| {
        world.job(name, json!({"command": ["true"]})).await;
        until("a call", async || fake.calls().get(calls).cloned()).await.0.token
    };
    assert_eq!(call("a", 0).await, token(&first), "the one that is in force on the node");
    agent.ack(&version(&next).to_string(), "applied").await;
    assert_eq!(call("b", 1).await, token(&next));
    assert!(expiry > world.clock.now());
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_take_its_token_gets_another_one() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    let before = config(&agent).await["worker_api"].clone();
    fake.set(Mood::Refusing(401));
    world.clock.advance(Duration::from_secs(120));
    agent.beat(&[]).await;
    let dispatcher = Dispatcher::start(&world, &fake);
    world.job("a", json!({"command": ["true"]})).await;
    let next = until("another token", async || {
        let config = config(&agent).await;
        (config["worker_api"] != before).then_some(config)
    })
    .await;
    agent.ack(next["config_version"].as_str().unwrap(), "applied").await;
    fake.set(Mood::Willing);
    let told = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert!(told["status"]["attempts"].as_u64() >= Some(1), "{told}");
    until("it is taken with that", async || {
        world.clock.advance(Duration::from_secs(1));
        agent.beat(&[]).await;
        fake.state.lock().unwrap().taken.first().cloned()
    })
    .await;
    let (target, _) = fake.calls().pop().unwrap();
    assert_eq!(next["worker_api"]["orchestrator_bearer_token"], target.token.as_str());
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_node_that_pulls_again_is_not_called_and_its_token_ends() {
    let world = World::settled().await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    let dispatcher = Dispatcher::start(&world, &fake);
    let before = config(&agent).await;
    let spec =
        json!({"workerApi": {"listen": "127.0.0.1:9", "tokenFile": "/etc/token", "maxRequest": "1Mi"}});
    let node = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"}, "spec": spec,
    });
    assert_eq!(world.put("/v1/nodes/n1", node).await.status, 200);
    let pulls = config(&agent).await;
    assert_eq!(pulls["worker_api"], json!({"listen": "127.0.0.1:9", "token_file": "/etc/token"}));
    assert_eq!(pulls["constraints"]["max_request_bytes"], 1 << 20);
    agent.ack(pulls["config_version"].as_str().unwrap(), "applied").await;
    world.job("a", json!({"command": ["true"]})).await;
    let claimed = until("it is claimed", async || agent.claim("r", 1).await.pop()).await;
    assert_eq!(claimed["name"], "a");
    assert!(fake.calls().is_empty());
    declare(&world, "n1", json!({})).await;
    let again = config(&agent).await;
    let token = |config: &Value| config["worker_api"]["orchestrator_bearer_token"].clone();
    assert!(token(&again).is_string());
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(token(&config(&agent).await), token(&again));
    assert!(token(&before).is_string());
    dispatcher.stop().await;
}

#[tokio::test]
async fn what_a_worker_api_cannot_be_is_refused_by_field() {
    let world = World::settled().await;
    let node = |api: Value| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
            "spec": {"workerApi": api},
        })
    };
    for (api, field, said) in [
        (json!({"listen": "everywhere"}), "spec.workerApi.listen", "ADDRESS:PORT"),
        (json!({"url": "https://host/path"}), "spec.workerApi.url", "without a path"),
        (json!({"url": "https://user@host"}), "spec.workerApi.url", "https://HOST"),
        (json!({"url": "http://host"}), "spec.workerApi.url", ""),
        (json!({"maxRequest": "11Mi"}), "spec.workerApi.maxRequest", "64Ki to 10Mi"),
        (json!({"tokenFile": "/a/../b"}), "spec.workerApi.tokenFile", "`..`"),
        (json!({"tokenFile": "relative"}), "spec.workerApi.tokenFile", ""),
    ] {
        let answer = world.put("/v1/nodes/n1", node(api.clone())).await;
        assert_eq!(answer.status, 422, "{api}: {answer:?}");
        let error = &answer.body["errors"][0];
        assert_eq!(error["field"], field, "{api}: {error}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
    for url in
        ["https://host", "https://host:1", "https://192.0.2.1:12090", "https://[2001:db8::1]:1", "https://h/"]
    {
        assert_eq!(world.put("/v1/nodes/n1", node(json!({"url": url}))).await.status / 100, 2, "{url}");
    }
}

#[tokio::test]
async fn an_attempt_is_not_given_back_that_another_controller_has_taken_up() {
    let (api, open) = (Api::default(), Arc::new(Notify::new()));
    let gate = open.clone();
    let world = World::with_cluster(api.values(move |name, _| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            missing(&name)
        }
    }))
    .await;
    let fake = FakeNode::new();
    let agent = node(&world, "n1").await;
    cluster_values::job(&world, "a", &["db"], json!({})).await;
    let claiming = Dispatcher::start(&world, &fake);
    api.was_asked(1).await;
    let other = world.restarted_with(Some(Api::default().values(async |_, _| secret("good enough"))));
    let recovering = Dispatcher::start(&other, &fake);
    let (_, assignment) = until("a call", async || fake.calls().pop()).await;
    let attempt = json!({"job": assignment.attempt.job, "epoch": assignment.attempt.epoch});
    assert_eq!(agent.beat(std::slice::from_ref(&attempt)).await.body["renewed"][0]["attempt"], attempt);
    recovering.stop().await;
    open.notify_one();
    // It looks for work again once it is done with this.
    world.job("b", json!({"command": ["true"]})).await;
    until("the next job is given out", async || fake.calls().iter().find(|(_, a)| a.name == "b").map(drop))
        .await;
    assert_eq!(world.phase("a").await, "Claimed -");
    claiming.stop().await;
}
