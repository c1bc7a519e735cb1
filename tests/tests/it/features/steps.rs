//! What the sentences of features do.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use windlass_store::transfer::{self, Cell, Snapshot};

use super::orchestrator;
use super::runner::Known;
use super::world::{Http, World, boot, capability};
use crate::system::fleet::wait_for;

/// How long a job may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

macro_rules! steps {
    ($($sentence:literal => $perform:expr,)*) => {
        /// All that features may say.
        pub(super) const STEPS: &[Known] = &[$(Known { sentence: $sentence, perform: $perform }),*];
    };
}

steps! {
    "a controller on {}" => |world, values| world.start(values[0], &[]),
    "a controller on {} with leases of {} s" => |world, values| {
        world.start(values[0], &["--heartbeat", "1s", "--lease", &format!("{}s", values[1])]);
    },
    "a real node \"{}\"" => |world, values| world.real_node(values[0]),

    "the answer is {}" => |world, values| {
        assert_eq!(world.status.to_string(), values[0], "{}", world.answer);
    },
    "the answer says \"{}\"" => |world, values| {
        assert!(world.answer.to_string().contains(values[0]), "{}", world.answer);
    },

    "node \"{}\" registers with a join token" => |world, values| world.join(values[0]),
    "node \"{}\" registers with the token \"{}\"" => |world, values| world.register(values[0], values[1]),
    "node \"{}\" has joined" => |world, values| {
        world.join(values[0]);
        assert_eq!(world.status, 201, "{}", world.answer);
        let node = values[0];
        acknowledge(world, node, "1", node, "applied");
        assert_eq!(world.status, 204, "{}", world.answer);
    },
    "the answer brings a token of node \"{}\" and the URL of its configuration" => |world, values| {
        let token = world.answer["auth"]["node_jwt"].as_str().expect("there is a token").to_owned();
        assert_eq!(token.split('.').count(), 3, "it is a JWT: {token}");
        let url = world.answer["orchestrator"]["endpoints"]["node_config_url"].as_str().expect("there is a URL");
        let path = url.strip_prefix(&world.fleet().url).expect("it is the controller's").to_owned();
        world.ask(Method::GET, &path, Some(&token), None);
        assert_eq!((world.status, &world.answer["node_slug"]), (200, &json!(values[0])), "{}", world.answer);
    },
    "the controller lists node \"{}\"" => |world, values| assert!(lists_node(world, values[0])),
    "the controller lists no node \"{}\"" => |world, values| assert!(!lists_node(world, values[0])),
    "node \"{}\" reports {} cores" => |world, values| {
        let report = capability(values[0], number(values[1]));
        world.ask_as(values[0], Method::POST, "capability", Some(&report));
    },
    "the controller shows {} cores of node \"{}\"" => |world, values| {
        let node = world.fleet().json(&["get", "node", values[1]]);
        assert_eq!(node["status"]["host"]["cpus"], number::<u32>(values[0]), "{node}");
    },
    "the database holds {} snapshots of node \"{}\" with different hashes" => |world, values| {
        let mut hashes = world.http().run(snapshots(world, values[1]));
        assert_eq!(hashes.len(), number::<usize>(values[0]), "{hashes:?}");
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), number::<usize>(values[0]), "{hashes:?}");
    },
    "node \"{}\" beats with the hash \"{}\"" => |world, values| {
        let body = json!({
            "version": 1, "boot_id": boot(values[0]), "held": [], "slots": 4, "capability_hash": values[1],
        });
        world.ask_as(values[0], Method::POST, "heartbeat", Some(&body));
    },
    "node \"{}\" is asked for its capabilities" => |world, _| {
        assert_eq!(world.answer["send_capability"], true, "{}", world.answer);
    },

    "node \"{}\" asks for its configuration" => |world, values| {
        world.ask_as(values[0], Method::GET, "config", None);
    },
    "somebody without a token asks for a configuration" => |world, _| {
        world.ask(Method::GET, "/v1/nodes/config", None, None);
    },
    "somebody with the token \"{}\" asks for a configuration" => |world, values| {
        world.ask(Method::GET, "/v1/nodes/config", Some(values[0]), None);
    },
    "the answer holds configuration version {} of node \"{}\"" => |world, values| {
        let found = (&world.answer["config_version"], &world.answer["node_slug"]);
        assert_eq!(found, (&json!(values[0]), &json!(values[1])), "{}", world.answer);
    },
    "the configuration of node \"{}\" is given the label \"{}\" with \"{}\"" => |world, values| {
        let node = json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": values[0]},
            "spec": {"labels": {values[1]: values[2]}},
        });
        world.operate(Method::PUT, &format!("/v1/nodes/{}", values[0]), Some(&node));
        assert_eq!(world.status, 200, "{}", world.answer);
    },
    "node \"{}\" acknowledges version \"{}\" as \"{}\"" => |world, values| {
        acknowledge(world, values[0], values[1], values[0], values[2]);
    },
    "node \"{}\" acknowledges version \"{}\" for node \"{}\"" => |world, values| {
        acknowledge(world, values[0], values[1], values[2], "applied");
    },
    "version {} of node \"{}\" is acknowledged and applied" => |world, values| {
        acknowledged(world, values[1], number(values[0]), number(values[0]));
    },
    "version {} of node \"{}\" is acknowledged and version {} applied" => |world, values| {
        acknowledged(world, values[1], number(values[0]), number(values[2]));
    },

    "a job \"{}\" with the command \"{}\" is created" => |world, values| {
        create(world, values[0], json!({"command": ["sh", "-c", values[1]]}));
    },
    "a job \"{}\" that sets \"{}\" to \"{}\" is created" => |world, values| {
        create(world, values[0], json!({"command": ["true"], "sandbox": {"env": {values[1]: values[2]}}}));
    },
    "a job with an environment of {} MiB is created" => |world, values| {
        let large = "x".repeat(number::<usize>(values[0]) << 20);
        create(world, "large", json!({"command": ["true"], "sandbox": {"env": {"LARGE": large}}}));
    },
    "the answer names an id and the phase \"{}\"" => |world, values| {
        let id = world.answer["metadata"]["uid"].as_str().unwrap_or_default();
        assert!(!id.is_empty(), "{}", world.answer);
        assert_eq!(world.answer["status"]["phase"], values[0], "{}", world.answer);
    },
    "job \"{}\" is \"{}\"" => |world, values| assert_eq!(world.fleet().phase(values[0]), values[1]),
    "job \"{}\" becomes \"{}\"" => |world, values| {
        world.fleet().wait_for_phase(values[0], values[1], SOON);
    },
    "job \"{}\" has written \"{}\"" => |world, values| {
        wait_for("the job has written it", SOON, || {
            world.fleet().text(&["logs", values[0]]).contains(values[1]).then_some(())
        });
    },
    "job \"{}\" is cancelled" => |world, values| drop(world.fleet().text(&["cancel", values[0]])),
    "the output of job \"{}\" is \"{}\"" => |world, values| {
        assert_eq!(world.fleet().text(&["logs", values[0]]).trim_end(), values[1]);
    },
    "the output of job \"{}\" is its id and \"{}\"" => |world, values| {
        let job = world.fleet().job(values[0]);
        let id = job["metadata"]["uid"].as_str().expect("a job has an id");
        assert_eq!(world.fleet().text(&["logs", values[0]]).trim_end(), format!("{id} {}", values[1]));
    },
    "the result of job \"{}\" has the exit code {} and the output \"{}\"" => |world, values| {
        world.operate(Method::GET, &format!("/v1/namespaces/default/jobs/{}/result", values[0]), None);
        let step = &world.answer["steps"][0];
        let found = (step["exitCode"].as_i64(), step["stdout"].as_str().map(str::trim_end));
        assert_eq!(found, (Some(number(values[1])), Some(values[2])), "{}", world.answer);
    },

    "node \"{}\" is declared to be given its work" => |world, values| orchestrator::declare(world, values[0]),
    "the answer holds a token for the Worker API that expires" => |world, _| {
        let api = &world.answer["worker_api"];
        let found = (api["orchestrator_bearer_token"].as_str(), api["orchestrator_bearer_token_expires_at"].as_str());
        assert!(matches!(found, (Some(token), Some(_)) if token.len() > 40), "{}", world.answer);
    },
    "a real node \"{}\" that is given its work" => |world, values| orchestrator::real_node(world, values[0]),
    "the agent of node \"{}\" was given the job" => |world, values| {
        let log = std::fs::read_to_string(world.fleet().path(&format!("{}.log", values[0]))).expect("it has a log");
        assert!(log.contains("job taken on by the Worker API"), "{log}");
    },
    "an orchestrator has node \"{}\" run \"{}\"" => |world, values| {
        orchestrator::run(world, values[0], values[1], &json!({}));
    },
    "an orchestrator has node \"{}\" run \"{}\" with the network policy \"{}\"" => |world, values| {
        orchestrator::run(world, values[0], values[1], &json!({"network_policy": values[2]}));
    },
    "an orchestrator has node \"{}\" run a job that sets \"{}\" to \"{}\"" => |world, values| {
        orchestrator::run(world, values[0], "true", &json!({"env": {values[1]: values[2]}}));
    },
    "an orchestrator sends node \"{}\" a request of {} MiB" => |world, values| {
        let large = "x".repeat(number::<usize>(values[1]) << 20);
        orchestrator::run(world, values[0], "true", &json!({"env": {"LARGE": large}}));
    },
    "somebody with the token \"{}\" has node \"{}\" run \"{}\"" => |world, values| {
        orchestrator::run_with(world, values[1], Some(values[0]), values[2], &json!({}));
    },
    "the run is \"{}\" with the exit code {} and the output \"{}\"" => |world, values| {
        let answer = &world.answer;
        let found = (answer["status"].as_str(), answer["exit_code"].as_i64(), answer["stdout"].as_str().map(str::trim_end));
        assert_eq!(found, (Some(values[0]), Some(number(values[1])), Some(values[2])), "{answer}");
    },
    "the run has written its task, its job and \"{}\"" => |world, values| {
        let answer = &world.answer;
        let text = |field: &str| answer[field].as_str().unwrap_or_default();
        let expected = format!("{} {} {}\n", text("task_id"), text("job_id"), values[0]);
        assert_eq!(text("stdout"), expected, "{answer}");
        assert_ne!(text("task_id"), text("job_id"));
    },

    "{} runs" => |world, values| {
        for run in 1..=number::<u32>(values[0]) {
            create(world, &format!("run-{run}"), json!({"command": ["true"]}));
            assert_eq!(world.status, 201, "{}", world.answer);
        }
    },
    "a run that may be lost once" => |world, _| {
        create(world, "run-1", json!({"command": ["true"], "retry": {"lostAttempts": 1}}));
        assert_eq!(world.status, 201, "{}", world.answer);
    },
    "{} workers claim and finish runs until none is left" => |world, values| {
        let workers: Vec<String> = (1..=number::<u32>(values[0])).map(|n| format!("worker-{n}")).collect();
        for worker in &workers {
            world.join(worker);
            acknowledge(world, worker, "1", worker, "applied");
        }
        let tokens: Vec<_> = workers.iter().map(|worker| world.by_hand[worker].token.clone()).collect();
        let http = world.http();
        let working = workers.iter().zip(&tokens).map(|(worker, token)| work(http, worker, token));
        let done = http.run(futures::future::join_all(working));
        let mut given: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (run, attempt) in done.into_iter().flatten() {
            given.entry(run).or_default().push(attempt);
        }
        world.given = given;
    },
    "each run was given out once" => |world, _| {
        let jobs = runs(world);
        assert_eq!(world.given.len(), jobs.len());
        let twice: Vec<_> = world.given.iter().filter(|(_, attempts)| **attempts != [1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    },
    "each run has succeeded in its first attempt" => |world, _| {
        let other: Vec<Value> = runs(world)
            .into_iter()
            .filter(|job| job["status"]["phase"] != "Succeeded" || job["status"]["attempts"] != 1)
            .collect();
        assert!(other.is_empty(), "{other:?}");
    },
    "node \"{}\" claims a run and is never heard of again" => |world, values| {
        let token = world.by_hand[values[0]].token.clone();
        let claimed = world.http().run(claim(world.http(), values[0], &token, "first"));
        let assignment = claimed.into_iter().next().expect("there is a run");
        let attempt = assignment["attempt"].clone();
        let told = world.http().run(report(world.http(), &token, &attempt, &[json!({"kind": "started", "unenforced": []})]));
        assert_eq!(told, ["accepted"]);
        world.by_hand.get_mut(values[0]).expect("it has joined").attempt = attempt;
    },
    "node \"{}\" gets the run within {} s, as attempt {}" => |world, values| {
        let token = world.by_hand[values[0]].token.clone();
        let assignment = wait_for("the run is given away", Duration::from_secs(number(values[1])), || {
            let claimed = world.http().run(claim(world.http(), values[0], &token, "second"));
            claimed.into_iter().next()
        });
        assert_eq!(assignment["number"], number::<u64>(values[2]), "{assignment}");
    },
    "what node \"{}\" reports of it late changes nothing" => |world, values| {
        let node = world.by_hand[values[0]].clone();
        let phase = world.fleet().phase("run-1");
        let told = world.http().run(report(world.http(), &node.token, &node.attempt, &ending(2)));
        assert!(told.iter().all(|outcome| outcome == "superseded"), "{told:?}");
        assert_eq!(world.fleet().phase("run-1"), phase);
    },
    "run \"{}\" becomes \"{}\" for \"{}\" within {} s" => |world, values| {
        let patience = Duration::from_secs(number(values[3]));
        let job = world.fleet().wait_for_phase(values[0], values[1], patience);
        let conditions = job["status"].to_string();
        assert!(conditions.contains(values[2]), "{conditions}");
    },
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is a number"))
}

fn lists_node(world: &World, name: &str) -> bool {
    let nodes = world.fleet().json(&["get", "nodes"]);
    let items = nodes["items"].as_array().cloned().unwrap_or_default();
    items.iter().any(|node| node["metadata"]["name"] == name)
}

/// The hashes of a node's snapshots, read beside the controller.
async fn snapshots(world: &World, node: &str) -> Vec<String> {
    let mut snapshot = Snapshot::open(&world.store()).await.expect("the database can be read");
    let shape = snapshot.tables().iter().find(|shape| shape.name == "capability_snapshots").cloned();
    let shape = shape.expect("there is the table");
    let column =
        |name: &str| shape.columns.iter().position(|column| column.name == name).expect("the column");
    let (of, hash) = (column("node"), column("hash"));
    let mut hashes = Vec::new();
    let read = snapshot.read::<transfer::Error>(&shape, |row| {
        if let (Cell::Text(found), Cell::Text(hash)) = (&row[of], &row[hash])
            && found == node
        {
            hashes.push(hash.clone());
        }
        Ok(())
    });
    read.await.expect("the table can be read");
    hashes
}

fn acknowledge(world: &mut World, node: &str, version: &str, of: &str, status: &str) {
    let error = (status == "failed").then(|| json!({"type": "RuntimeUnavailable", "message": "no podman"}));
    let body = json!({
        "version": 1, "node_slug": of, "config_version": version, "ack_at": "2026-01-01T00:00:00Z", "status": status,
        "error": error,
    });
    world.ask_as(node, Method::POST, "config", Some(&body));
}

fn acknowledged(world: &World, node: &str, acknowledged: u64, applied: u64) {
    let status = world.fleet().json(&["get", "node", node])["status"].clone();
    let found = (status["acknowledgedVersion"].as_u64(), status["appliedVersion"].as_u64());
    assert_eq!(found, (Some(acknowledged), Some(applied)), "{status}");
}

#[expect(clippy::needless_pass_by_value, reason = "values made in place read best when they are handed over")]
fn create(world: &mut World, name: &str, spec: Value) {
    let job = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob", "metadata": {"name": name}, "spec": spec,
    });
    world.operate(Method::POST, "/v1/namespaces/default/jobs", Some(&job));
}

fn runs(world: &World) -> Vec<Value> {
    world.fleet().json(&["get", "jobs"])["items"].as_array().cloned().expect("a list has items")
}

/// What a worker reports of a run that it has done, from this number on.
fn ending(first: u64) -> [Value; 2] {
    [
        json!({"kind": "step_ended", "step": 0, "succeeded": true, "reason": "Exited", "exit_code": 0}),
        json!({
            "kind": "terminal", "phase": "succeeded", "reason": "Completed", "exit_code": 0, "last_sequence": first + 1,
        }),
    ]
}

async fn claim(http: &Http, node: &str, token: &str, request: &str) -> Vec<Value> {
    let body = json!({
        "version": 1, "request_id": request, "boot_id": boot(node), "max": 1, "wait_seconds": 0, "held": [],
    });
    let (status, answer) = http.asking(Method::POST, "/v1/nodes/claim", Some(token), Some(&body)).await;
    assert_eq!(status, 200, "{answer}");
    answer["assignments"].as_array().cloned().expect("assignments is a list")
}

/// Reports records of an attempt, numbered on from the first that is not there yet; yields what became of each.
async fn report(http: &Http, token: &str, attempt: &Value, bodies: &[Value]) -> Vec<String> {
    let first = if bodies.len() == 1 { 1 } else { 2 };
    let records: Vec<Value> = bodies
        .iter()
        .zip(first..)
        .map(|(body, sequence): (&Value, u64)| {
            json!({"attempt": attempt, "sequence": sequence, "at": "2026-01-01T00:00:00Z", "body": body})
        })
        .collect();
    let body = json!({"version": 1, "records": records});
    let (status, answer) = http.asking(Method::POST, "/v1/nodes/report", Some(token), Some(&body)).await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().expect("results is a list");
    results.iter().map(|result| result["outcome"].as_str().unwrap_or("?").to_owned()).collect()
}

/// Claims and finishes runs until there are none; yields their names and the numbers of their attempts.
async fn work(http: &Http, worker: &str, token: &str) -> Vec<(String, u64)> {
    let mut done = Vec::new();
    for round in 1u64.. {
        let claimed = claim(http, worker, token, &format!("{worker}-{round}")).await;
        let Some(assignment) = claimed.into_iter().next() else { break };
        let name = assignment["name"].as_str().expect("a run has a name").to_owned();
        done.push((name, assignment["number"].as_u64().expect("an attempt has a number")));
        let attempt = &assignment["attempt"];
        let begun = [json!({"kind": "started", "unenforced": []})];
        assert_eq!(report(http, token, attempt, &begun).await, ["accepted"]);
        assert_eq!(report(http, token, attempt, &ending(2)).await, ["accepted", "accepted"]);
    }
    done
}
