//! Nodes that are given their jobs: calls that get lost, parts that are killed, tokens that are replaced, and callers that
//! are not our controller.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::fleet::{Fleet, Process, wait_for};
use super::shared::Shared;

/// How long something may take on a busy machine.
const SOON: Duration = Duration::from_secs(90);
/// Bytes of a client after which it has sent its request: the first message of a handshake has less, and the second goes
/// with a request that has more.
const REQUEST: usize = 1200;

/// A node that is given its jobs, at a port that stays.
fn declare(fleet: &Fleet, shared: &Shared, name: &str, api: &str) {
    fleet.apply(&shared.node(name, &format!("  dispatch: Push\n  workerApi: {{{api}}}\n")));
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port is free")
}

fn once(name: &str) -> BTreeMap<String, usize> {
    BTreeMap::from([(name.to_owned(), 1)])
}

/// Waits until the controller has given the node a job, or could.
fn wait_until_served(fleet: &Fleet, name: &str) -> Value {
    wait_for(&format!("node {name} serves its Worker API"), SOON, || {
        let node = fleet.json(&["get", "node", name]);
        let status = &node["status"];
        let applied = status["appliedVersion"] == status["configVersion"];
        (applied && status["dispatch"]["url"].is_string()).then_some(node)
    })
}

/// The token in the configuration that a node has last applied.
fn token_of(fleet: &Fleet, node: &str) -> String {
    let kept = std::fs::read(fleet.path(&format!("{node}/config/last-good.json"))).expect("there is one");
    let kept: Value = serde_json::from_slice(&kept).expect("it is JSON");
    kept["worker_api"]["orchestrator_bearer_token"].as_str().expect("it holds a token").to_owned()
}

/// Something between the controller and a node that passes on what callers say, and answers only while it is told to.
struct Tunnel {
    address: SocketAddr,
    mute: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Tunnel {
    fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let (mute, requests) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let told = (Arc::clone(&mute), Arc::clone(&requests));
        std::thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                // Whoever listens there may be gone just now.
                let Ok(node) = TcpStream::connect(node) else { continue };
                pass_on(caller, node, told.clone());
            }
        });
        Self { address, mute, requests }
    }
}

/// Passes on in both directions, each on a thread of its own.
fn pass_on(caller: TcpStream, node: TcpStream, (mute, requests): (Arc<AtomicBool>, Arc<AtomicUsize>)) {
    let sent = Arc::new(AtomicUsize::new(0));
    let pump = |mut from: TcpStream, mut to: TcpStream, keep: Box<dyn Fn(usize) -> bool + Send>| {
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if keep(count) && to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            // The other side may have closed it.
            to.shutdown(Shutdown::Write).ok();
        });
    };
    let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
    let counted = Arc::clone(&sent);
    let there = move |count| {
        // Whatever comes after the first request is another one: there are no answers that anybody acknowledges.
        if counted.fetch_add(count, Ordering::SeqCst) + count >= REQUEST {
            requests.fetch_add(1, Ordering::SeqCst);
        }
        true
    };
    let back = move |_| !(mute.load(Ordering::SeqCst) && sent.load(Ordering::SeqCst) >= REQUEST);
    pump(copy(&caller), copy(&node), Box::new(there));
    pump(node, caller, Box::new(back));
}

#[test]
fn a_pushed_job_runs_like_any_other_and_the_way_it_took_is_shown() {
    let fleet = Fleet::start();
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    declare(&fleet, &shared, "n1", "listen: '127.0.0.1:0'");
    let agent = fleet.agent("n1");
    let node = wait_until_served(&fleet, "n1");
    assert_eq!(node["status"]["dispatch"]["mode"], "Push");
    fleet.apply(&shared.job("hello", "", "echo from-the-job"));
    let job = fleet.wait_for_phase("hello", "Succeeded", SOON);
    assert_eq!((&job["status"]["attempts"], &job["status"]["node"]), (&json!(1), &json!("n1")));
    assert!(fleet.text(&["logs", "hello"]).contains("from-the-job"));
    assert!(fleet.controller.log().contains("the node has taken the job"), "it was pushed");
    assert!(agent.log().contains("job taken on by the Worker API"));
    let told = fleet.text(&["describe", "node", "n1"]);
    assert!(told.contains("Push") && told.contains("https://127.0.0.1:"), "{told}");

    fleet.apply(&shared.job("long", "", "sleep 1000"));
    fleet.wait_for_phase("long", "Running", SOON);
    fleet.text(&["cancel", "long"]);
    fleet.wait_for_phase("long", "Cancelled", Duration::from_secs(30));

    let token = token_of(&fleet, "n1");
    let shown = [
        ("the controller's log", fleet.controller.log()),
        ("the agent's log", agent.log()),
        ("the node", fleet.text(&["get", "node", "n1", "-o", "yaml"])),
        ("the description", told),
    ];
    for (what, text) in shown {
        assert!(!text.contains(&token), "{what} shows the token");
    }
    let database = std::fs::read(fleet.path("controller/windlass.db")).expect("there is one");
    assert!(!database.windows(token.len()).any(|piece| piece == token.as_bytes()), "the database holds it");
}

#[test]
fn a_slow_job_whose_dispatcher_gets_no_answer_runs_once() {
    let fleet = Fleet::with(&["--push-timeout", "1s"]);
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    let tunnel = Tunnel::to(node);
    declare(&fleet, &shared, "n1", &format!("listen: '{node}', url: 'https://{}'", tunnel.address));
    let _agent = fleet.agent("n1");
    wait_until_served(&fleet, "n1");
    fleet.apply(&shared.job("slow", "", "sleep 8"));
    wait_for("the controller has asked in vain a few times", SOON, || {
        (tunnel.requests.load(Ordering::SeqCst) >= 3).then_some(())
    });
    let job = fleet.wait_for_phase("slow", "Succeeded", SOON);
    assert_eq!(job["status"]["attempts"], 1, "{job}");
    assert_eq!((shared.noted("start"), shared.noted("end")), (once("slow"), once("slow")));
    assert_eq!(shared.noted("twice"), BTreeMap::new());
    // With answers all is well again.
    tunnel.mute.store(false, Ordering::SeqCst);
    fleet.apply(&shared.job("next", "", ":"));
    fleet.wait_for_phase("next", "Succeeded", SOON);
}

#[test]
fn pushed_jobs_are_done_once_though_controller_and_agent_are_killed() {
    let mut fleet = Fleet::start();
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    // A lease that outlasts the absence of everybody on a busy machine.
    let fields = format!("  dispatch: Push\n  offlineGrace: 60s\n  workerApi: {{listen: '{node}'}}\n");
    fleet.apply(&shared.node("n1", &fields));
    let mut agent = fleet.agent("n1");
    wait_until_served(&fleet, "n1");
    let job = |n: usize| shared.job(&format!("job-{n}"), "  offline: continue\n", "sleep 1");
    let jobs: Vec<String> = (1..=12).map(job).collect();
    fleet.apply(&jobs.join("---\n"));
    let begun = |count: usize| {
        wait_for(&format!("{count} jobs have begun"), SOON, || {
            (shared.noted("start").len() >= count).then_some(())
        });
    };
    begun(2);
    fleet.controller.kill();
    fleet.restart_controller();
    begun(5);
    agent.kill();
    agent = fleet.run_agent("n1", &[]);
    begun(7);
    fleet.controller.kill();
    agent.kill();
    fleet.restart_controller();
    let _agent = fleet.run_agent("n1", &[]);
    for n in 1..=12 {
        fleet.wait_for_phase(&format!("job-{n}"), "Succeeded", Duration::from_secs(180));
    }
    let each: BTreeMap<String, usize> = (1..=12).map(|n| (format!("job-{n}"), 1)).collect();
    assert_eq!(shared.noted("end"), each, "none is lost and none was completed twice");
    assert_eq!(shared.noted("start"), each, "none was begun again");
    assert_eq!(shared.noted("twice"), BTreeMap::new());
}

#[test]
fn tokens_are_replaced_while_jobs_go_on_and_a_node_that_is_away_is_shown_with_the_reason() {
    let fleet = Fleet::with(&["--worker-token-life", "20s"]);
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    declare(&fleet, &shared, "n1", &format!("listen: '{node}'"));
    let agent = fleet.agent("n1");
    wait_until_served(&fleet, "n1");
    let mut tokens = std::collections::BTreeSet::new();
    let mut number = 0;
    wait_for("three tokens have been in force", SOON, || {
        tokens.insert(token_of(&fleet, "n1"));
        number += 1;
        let name = format!("job-{number}");
        fleet.apply(&shared.job(&name, "", ":"));
        fleet.wait_for_phase(&name, "Succeeded", SOON);
        assert_eq!(shared.noted("start")[&name], 1);
        (tokens.len() >= 3).then_some(())
    });
    let old = tokens.iter().find(|token| **token != token_of(&fleet, "n1")).expect("there were others");
    let (status, answer) = call(&fleet, "n1", node, old, &["-X", "GET"], "/v1/worker/jobs/x/attempts/1");
    assert_eq!((status, answer["code"].as_str()), (401, Some("unauthenticated")), "{answer}");
    // Nobody listens where the node says that it does.
    let nowhere = free_address();
    declare(&fleet, &shared, "n1", &format!("listen: '{node}', url: 'https://{nowhere}'"));
    wait_for("the node says so", SOON, || {
        let url = fleet.json(&["get", "node", "n1"])["status"]["dispatch"]["url"].clone();
        url.as_str().is_some_and(|url| url.contains(&nowhere.port().to_string())).then_some(())
    });
    fleet.apply(&shared.job("stranded", "", ":"));
    wait_for("the reason is shown", SOON, || {
        let told = fleet.text(&["why", "stranded"]);
        (told.contains("Unreachable") && told.contains("cannot be reached")).then_some(())
    });
    let told = fleet.text(&["describe", "node", "n1"]);
    assert!(told.contains("Dispatch error") && told.contains("cannot be reached"), "{told}");
    declare(&fleet, &shared, "n1", &format!("listen: '{node}'"));
    fleet.wait_for_phase("stranded", "Succeeded", SOON);
    assert_eq!(shared.noted("start")["stranded"], 1);
    drop(agent);
}

/// Calls a node's Worker API with curl; yields status and body.
fn call(
    fleet: &Fleet,
    node: &str,
    at: SocketAddr,
    token: &str,
    options: &[&str],
    path: &str,
) -> (u32, Value) {
    let output = curl(fleet, node, at, token, options, path);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let (body, status) = text.rsplit_once('\n').expect("the status comes last");
    (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
}

fn curl(fleet: &Fleet, node: &str, at: SocketAddr, token: &str, options: &[&str], path: &str) -> Output {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}", "--cacert"])
        .arg(fleet.path(&format!("{node}/worker-api/cert.pem")))
        .arg("-H")
        .arg(format!("Authorization: Bearer {token}"))
        .args(options)
        .arg(format!("https://{at}{path}"));
    command.output().expect("curl runs")
}

#[test]
fn a_foreign_caller_runs_jobs_over_tls_with_the_bare_request() {
    const JOB: &str = "0198c1de-7a4b-7000-8000-000000000002";
    const RUN: &str = "/v1/worker/jobs:run";
    let fleet = Fleet::start();
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    let file = fleet.path("worker-token");
    let token = "f".repeat(43);
    std::fs::write(&file, format!("{token}\n")).expect("the folder is ours");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    // The node pulls its own jobs, and serves others beside.
    let api =
        format!("  workerApi: {{listen: '{node}', maxRequest: 64Ki, tokenFile: '{}'}}\n", file.display());
    fleet.apply(&shared.node("n1", &api));
    let mut agent = fleet.agent("n1");
    wait_until_served(&fleet, "n1");
    let post = |agent: &str, token: &str, body: &Value, more: &[&str]| {
        let body = body.to_string();
        let mut options = vec!["-H", "Content-Type: application/json", "-d", &body];
        options.extend(more);
        call(&fleet, agent, node, token, &options, RUN)
    };
    let bare = |job: &str, script: &str| {
        json!({
            "version": 1, "task_id": "0198c1de-7a4b-7000-8000-000000000001", "job_id": job,
            "sandbox": {"image": "", "command": ["sh", "-c", script], "env": {"NAME": "world"}, "network_policy": "none"},
        })
    };
    let script = "echo hello $NAME; echo $WINDLASS_TASK_ID >&2; pwd; exit 3";
    let (status, answer) = post("n1", &token, &bare(JOB, script), &[]);
    assert_eq!(
        (status, answer["status"].as_str(), answer["exit_code"].as_i64()),
        (200, Some("failed"), Some(3)),
        "{answer}"
    );
    assert_eq!(answer["stdout"], "hello world\n/workspace\n");
    assert_eq!(answer["stderr"], "0198c1de-7a4b-7000-8000-000000000001\n");
    assert_eq!(post("n1", &token, &bare(JOB, script), &[]), (200, answer), "the same result again");

    // A caller that hangs up and calls again, over a kill of the agent in the middle.
    let slow = "0198c1de-7a4b-7000-8000-000000000003";
    let notes = "echo begun; sleep 6; echo done";
    let body = bare(slow, notes).to_string();
    let gave_up = curl(&fleet, "n1", node, &token, &["-m", "2", "-d", &body], RUN);
    assert_eq!(gave_up.status.code(), Some(28), "it takes longer than that");
    agent.kill();
    agent = fleet.run_agent("n1", &[]);
    wait_for("the Worker API is served again", SOON, || {
        curl(&fleet, "n1", node, &token, &[], "/healthz").status.success().then_some(())
    });
    let (status, answer) = post("n1", &token, &bare(slow, notes), &[]);
    assert_eq!((status, answer["stdout"].as_str()), (200, Some("begun\ndone\n")), "{answer}");
    assert_eq!(answer["status"], "completed");

    // What the node will not do.
    let big = bare("0198c1de-7a4b-7000-8000-000000000004", &"x".repeat(70_000));
    let (status, answer) = post("n1", &token, &big, &[]);
    assert_eq!((status, answer["type"].as_str()), (413, Some("urn:windlass:problem:too-large")), "{answer}");
    let (status, answer) = post("n1", "wrong", &bare(JOB, "true"), &[]);
    assert_eq!((status, answer["code"].as_str()), (401, Some("unauthenticated")), "{answer}");
    let mut image = bare("0198c1de-7a4b-7000-8000-000000000005", "true");
    image["sandbox"]["image"] = "registry.example/not/allowed:1".into();
    let (status, answer) = post("n1", &token, &image, &[]);
    assert_eq!(status, 403, "{answer}");
    // The controller knows nothing of all that.
    assert_eq!(fleet.json(&["get", "jobs"])["items"], json!([]));
    assert_eq!(fleet.json(&["get", "node", "n1"])["status"]["dispatch"]["mode"], "Pull");
    fleet.apply(&shared.job("own", "", ":"));
    fleet.wait_for_phase("own", "Succeeded", SOON);
    let _ended: Process = agent;
}

/// A server that has one model and answers everything with its name. It ends with the test's process.
fn model_server() -> SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let at = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("it listens");
            let body = r#"{"object": "list", "data": [{"id": "small"}]}"#;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match stream.read(&mut byte) {
                    Ok(1..) => head.extend(byte),
                    Ok(0) | Err(_) => break,
                }
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // Whoever asked may have hung up.
            let _hung_up = stream.write_all(answer.as_bytes());
        }
    });
    at
}

#[test]
fn a_foreign_caller_asks_the_model_of_the_node() {
    let fleet = Fleet::start();
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    let file = fleet.path("worker-token");
    let token = "f".repeat(43);
    std::fs::write(&file, format!("{token}\n")).expect("the folder is ours");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let api = format!("  workerApi: {{listen: '{node}', tokenFile: '{}'}}\n", file.display());
    fleet.apply(&shared.node("n1", &api));
    let _agent = fleet.agent("n1");
    wait_until_served(&fleet, "n1");
    let ask = |job: u32| {
        let body = json!({
            "version": 1, "task_id": "0198c1de-7a4b-7000-8000-000000000001",
            "job_id": format!("0198c1de-7a4b-7000-8000-0000000000{job:02}"),
            "sandbox": {"image": "", "command": ["sh", "-c", "curl -sS $OPENAI_BASE_URL/models"], "use_inference": true},
        });
        call(&fleet, "n1", node, &token, &["-d", &body.to_string()], "/v1/worker/jobs:run")
    };
    let (status, answer) = ask(2);
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer["detail"].as_str().is_some_and(|detail| detail.contains("has no server of models")),
        "{answer}"
    );
    let models = model_server();
    let inference =
        format!("  inference: {{engine: openaiCompatible, url: 'http://{models}', models: [small]}}\n");
    fleet.apply(&shared.node("n1", &format!("{api}{inference}")));
    wait_for("the model is there", SOON, || {
        fleet.condition("n1", "InferenceReady").filter(|(status, _)| status == "True").map(drop)
    });
    let (status, answer) = ask(3);
    assert_eq!((status, answer["status"].as_str()), (200, Some("completed")), "{answer}");
    assert!(answer["stdout"].as_str().is_some_and(|stdout| stdout.contains("small")), "{answer}");
}

#[test]
fn a_foreign_caller_runs_an_image() {
    let fleet = Fleet::start();
    let shared = Shared::with(&fleet, &["n1".to_owned()]);
    let node = free_address();
    declare(&fleet, &shared, "n1", &format!("listen: '{node}'"));
    let token = fleet.json(&["join-token", "create"]);
    let join = token["token"].as_str().expect("the token is text");
    let socket = windlass_test_engines::socket("podman").display().to_string();
    let _agent = fleet.run_agent("n1", &["--join", join, "--podman-socket", &socket]);
    fleet.wait_until_node_is_ready("n1");
    wait_until_served(&fleet, "n1");
    let body = json!({
        "version": 1, "task_id": "0198c1de-7a4b-7000-8000-000000000001",
        "job_id": "0198c1de-7a4b-7000-8000-000000000002",
        "sandbox": {
            "image": windlass_test_engines::IMAGE, "command": ["sh", "-c", "echo in $(pwd); id -u >&2"],
            "network_policy": "restricted",
        },
    });
    let options = ["-d", &body.to_string()];
    let (status, answer) = call(&fleet, "n1", node, &token_of(&fleet, "n1"), &options, "/v1/worker/jobs:run");
    assert_eq!(
        (status, answer["status"].as_str(), answer["exit_code"].as_i64()),
        (200, Some("completed"), Some(0)),
        "{answer}"
    );
    assert_eq!(answer["stdout"], "in /workspace\n");
    assert_ne!(answer["stderr"], "0\n", "it is not root");
}
