//! Claims, leases and reports, as an agent sees them.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use windlass_controller::clock::Clock as _;

use crate::world::{World, log, started, step_ended, terminal};

fn command() -> Value {
    json!({"command": ["true"]})
}

#[tokio::test]
async fn a_repeated_claim_gives_the_same_work_again_and_another_node_gets_other_work() {
    let world = World::settled().await;
    for name in ["a", "b", "c"] {
        world.job(name, command()).await;
    }
    let (one, other) = (world.node("n1").await, world.node("n2").await);
    let first = one.claim("r1", 1).await;
    let again = one.claim("r1", 1).await;
    assert_eq!(first[0]["attempt"], again[0]["attempt"]);
    let second = other.claim("r1", 5).await;
    assert_eq!(second.len(), 2, "two slots, two jobs left");
    assert!(second.iter().all(|assignment| assignment["attempt"] != first[0]["attempt"]));
    assert!(one.claim("r2", 5).await.is_empty());
}

#[tokio::test]
async fn a_long_poll_answers_as_soon_as_there_is_work() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    let body = json!({"version": 1, "request_id": "r1", "boot_id": agent.boot, "max": 1, "wait_seconds": 30});
    let (claimed, created) = tokio::join!(agent.call("POST", "claim", Some(body)), async {
        tokio::task::yield_now().await;
        world.job("late", command()).await
    });
    assert_eq!(created.status, 201);
    assert_eq!(claimed.body["assignments"][0]["name"], "late");
}

#[tokio::test]
async fn a_long_poll_answers_when_the_report_of_an_attempt_that_is_not_held_any_more_makes_room() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    for name in ["a", "b", "c"] {
        world.job(name, command()).await;
    }
    let work = agent.claim("r1", 8).await;
    assert_eq!(work.len(), 2, "the node has two slots");
    let records = [(1, started()), (2, terminal("succeeded", 2))];
    let came = agent.poll_while("r2", agent.report(&work[0]["attempt"], &records)).await;
    assert_eq!(came, "c");
}

#[tokio::test]
async fn a_node_that_must_not_take_jobs_gets_none() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let node = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
        "spec": {"unschedulable": true},
    });
    world.put("/v1/nodes/n1", node.clone()).await;
    assert!(agent.claim("r1", 1).await.is_empty());
    let mut open = node;
    open["spec"] = json!({"queues": ["other"]});
    world.put("/v1/nodes/n1", open).await;
    assert!(agent.claim("r2", 1).await.is_empty());
}

#[tokio::test]
async fn only_listed_attempts_are_renewed_and_the_others_are_lost_and_given_away() {
    let world = World::settled().await;
    world.job("kept", command()).await;
    world.job("dropped", command()).await;
    let agent = world.node("n1").await;
    let work = agent.claim("r1", 2).await;
    let (kept, dropped) = (work[0]["attempt"].clone(), work[1]["attempt"].clone());
    agent.report(&dropped, &[(1, started())]).await;
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(10));
        let renewed = agent.beat(std::slice::from_ref(&kept)).await.body["renewed"].clone();
        assert_eq!(renewed[0]["attempt"], kept);
    }
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.phase(work[0]["name"].as_str().unwrap()).await.split(' ').next(), Some("Claimed"));
    assert_eq!(world.phase(work[1]["name"].as_str().unwrap()).await, "Queued Retrying");
    let other = world.node("n2").await;
    let again = other.claim("r1", 1).await;
    assert_eq!(again[0]["name"], work[1]["name"]);
    assert_eq!(again[0]["number"], 2);
    let orders = agent.beat(&[kept, dropped.clone()]).await.body["orders"].clone();
    assert_eq!(orders, json!([{"kind": "fenced", "attempt": dropped}]));
}

#[tokio::test]
async fn nobody_loses_an_attempt_because_the_clock_was_moved() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, started())]).await;
    world.clock.jump(SignedDuration::from_hours(2));
    world.sweeper.sweep().await.unwrap();
    assert!(world.phase("a").await.starts_with("Running"));
    world.clock.advance(Duration::from_secs(24));
    world.sweeper.sweep().await.unwrap();
    assert!(world.phase("a").await.starts_with("Running"));
    world.clock.jump(SignedDuration::from_hours(-2));
    world.sweeper.sweep().await.unwrap();
    world.clock.jump(SignedDuration::from_hours(2));
    world.sweeper.sweep().await.unwrap();
    assert!(world.phase("a").await.starts_with("Running"), "its lease ends late, not early");
    agent.beat(std::slice::from_ref(&attempt)).await;
    world.clock.advance(Duration::from_secs(26));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.phase("a").await, "Queued Retrying");
}

#[tokio::test]
async fn a_fresh_controller_does_not_judge_and_charges_nobody() {
    let world = World::new().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, started())]).await;
    // The lease was given while the controller had not been up for one lease.
    world.clock.advance(Duration::from_secs(25));
    world.sweeper.sweep().await.unwrap();
    assert!(world.phase("a").await.starts_with("Running"));
    world.clock.advance(Duration::from_secs(1));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.phase("a").await, "Queued Retrying");
    let row = world.store.get_job("default", "a").await.unwrap().unwrap();
    assert_eq!(row.lost_attempts, 0);
}

#[tokio::test]
async fn a_job_whose_attempts_are_all_lost_is_a_dead_letter_with_an_event() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    for number in 1..=3 {
        let work = agent.claim(&format!("r{number}"), 1).await;
        assert_eq!(work[0]["number"], number);
        agent.report(&work[0]["attempt"], &[(1, started())]).await;
        world.clock.advance(Duration::from_secs(30));
        world.sweeper.sweep().await.unwrap();
        world.clock.advance(Duration::from_secs(700));
    }
    assert_eq!(world.phase("a").await, "Failed AttemptsExhausted");
    let events = world.get("/v1/namespaces/default/jobs/a/events").await.body;
    let reasons: Vec<_> = events["items"].as_array().unwrap().iter().map(|e| e["reason"].clone()).collect();
    assert!(reasons.contains(&json!("DeadLetter")), "{reasons:?}");
}

#[tokio::test]
async fn reports_in_any_order_and_twice_give_one_picture() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let outcomes = agent.report(&attempt, &[(5, terminal("succeeded", 5)), (4, step_ended(0))]).await;
    assert_eq!(outcomes, ["accepted", "accepted"]);
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(job["status"]["logsComplete"], false);
    let outcomes = agent.report(&attempt, &[(3, log("b", 1)), (1, started()), (4, step_ended(0))]).await;
    assert_eq!(outcomes, ["accepted", "accepted", "duplicate"]);
    agent.report(&attempt, &[(2, log("a", 0))]).await;
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(job["status"]["logsComplete"], true);
    assert_eq!(job["status"]["steps"][0]["phase"], "Succeeded");
    let logs = world.get("/v1/namespaces/default/jobs/a/logs").await.body;
    let text: String = logs["items"].as_array().unwrap().iter().filter_map(|i| i["text"].as_str()).collect();
    assert_eq!(text, "ab");
    assert_eq!(logs["complete"], true);
}

#[tokio::test]
async fn what_comes_after_the_end_of_its_job_is_answered_and_completes_the_picture() {
    let world = World::settled().await;
    world.job("a", command()).await;
    world.job("b", command()).await;
    let agent = world.node("n1").await;
    let work = agent.claim("r1", 2).await;
    let (a, b) = (work[0]["attempt"].clone(), work[1]["attempt"].clone());
    assert_eq!(agent.report(&a, &[(1, started()), (4, terminal("failed", 4))]).await, ["accepted"; 2]);
    let late =
        [(&a, 2, json!({"kind": "step_started", "step": 0})), (&a, 3, step_ended(3)), (&b, 1, started())];
    assert_eq!(agent.report_all(&late).await, ["accepted"; 3]);
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!((&job["status"]["phase"], &job["status"]["logsComplete"]), (&json!("Failed"), &json!(true)));
    let step = &job["status"]["steps"][0];
    assert_eq!((&step["phase"], &step["exitCode"]), (&json!("Failed"), &json!(3)));
    assert!(step["startedAt"].is_string() && step["finishedAt"].is_string(), "{step}");
    assert!(world.phase("b").await.starts_with("Running"));
    assert_eq!(agent.report_all(&late).await, ["duplicate"; 3]);
}

#[tokio::test]
async fn the_backlog_of_a_job_that_the_sweeper_has_ended_is_answered() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["true"], "retry": {"lostAttempts": 1}})).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, json!({"kind": "step_started", "step": 0}))]).await;
    world.clock.advance(Duration::from_secs(30));
    world.sweeper.sweep().await.unwrap();
    assert_eq!(world.phase("a").await, "Failed AttemptsExhausted");
    let step = world.get("/v1/namespaces/default/jobs/a").await.body["status"]["steps"][0].clone();
    assert_eq!((&step["phase"], &step["reason"]), (&json!("Failed"), &json!("NodeLost")));
    let judged = world.get("/v1/namespaces/default/jobs/a").await.body;
    let backlog = [
        (2, json!({"kind": "step_started", "step": 0})),
        (3, log("late", 0)),
        (4, step_ended(0)),
        (5, terminal("succeeded", 5)),
    ];
    assert_eq!(agent.report(&attempt, &backlog).await, ["superseded"; 4]);
    assert_eq!(agent.report(&attempt, &backlog).await, ["duplicate"; 4]);
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(job, judged, "what was judged stays judged");
}

#[tokio::test]
async fn records_that_can_never_be_accepted_are_refused_one_by_one() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let (agent, other) = (world.node("n1").await, world.node("n2").await);
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let broken = json!({"kind": "log", "step": 0, "stream": "stdout", "offset": 0, "body": {"base64": "!"}});
    let outcomes = agent.report(&attempt, &[(0, started()), (1, started()), (2, broken)]).await;
    assert_eq!(outcomes, ["rejected", "accepted", "rejected"]);
    let unknown = json!({"job": "0190b9c5-0000-7000-8000-000000000000", "epoch": 1});
    assert_eq!(agent.report(&unknown, &[(1, started())]).await, ["rejected"]);
    assert_eq!(other.report(&attempt, &[(1, started())]).await, ["rejected"]);
}

#[tokio::test]
async fn a_refused_record_drives_no_job() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let beyond = (1 << 53) + 1;
    let refused = [
        (beyond, terminal("succeeded", beyond)),
        (0, terminal("succeeded", 0)),
        (2, terminal("succeeded", 7)),
        (beyond, started()),
    ];
    assert_eq!(agent.report(&attempt, &refused).await, ["rejected"; 4]);
    assert!(world.phase("a").await.starts_with("Claimed"));
    assert_eq!(
        agent.report(&attempt, &[(1, started()), (2, terminal("succeeded", 2))]).await,
        ["accepted"; 2]
    );
    assert_eq!(world.phase("a").await, "Succeeded Completed");
    // The attempt has ended with its second record, so that there is no third.
    assert_eq!(agent.report(&attempt, &[(3, step_ended(3))]).await, ["rejected"]);
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(
        (&job["status"]["logsComplete"], &job["status"]["steps"][0]["exitCode"]),
        (&json!(true), &json!(null))
    );
}

#[tokio::test]
async fn nobody_writes_over_the_output_of_a_job_or_leaves_something_in_its_name() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let other = world.node("n2").await;
    let (mine, evil) = ("mine ".repeat(4096), "EVIL ".repeat(4096));
    assert_eq!(other.report(&attempt, &[(1, log(&evil, 0))]).await, ["rejected"]);
    assert!(world.bodies.get(&key(&attempt, 1)).await.is_err(), "nothing is kept for another's job");
    assert_eq!(
        agent.report(&attempt, &[(1, log(&mine, 0)), (1, log(&evil, 0))]).await,
        ["accepted", "duplicate"]
    );
    assert_eq!(other.report(&attempt, &[(1, log(&evil, 0))]).await, ["rejected"]);
    assert_eq!(agent.report(&attempt, &[(1, log(&evil, 0))]).await, ["duplicate"], "the first counts");
    let logs = world.get("/v1/namespaces/default/jobs/a/logs").await.body;
    assert_eq!(logs["items"][0]["text"], mine);
    let unknown = json!({"job": "aaaa-bbbb", "epoch": 1});
    assert_eq!(other.report(&unknown, &[(1, log(&evil, 0))]).await, ["rejected"]);
    assert!(world.bodies.get(&key(&unknown, 1)).await.is_err());
}

fn key(attempt: &Value, sequence: u64) -> String {
    format!("logs/{}/{}/{sequence}", attempt["job"].as_str().expect("a uid"), attempt["epoch"])
}

#[tokio::test]
async fn output_keeps_every_byte() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let odd = json!({"kind": "log", "step": 0, "stream": "stderr", "offset": 0, "body": {"base64": "/wBh"}});
    agent.report(&attempt, &[(1, odd), (2, log("nul \u{0} end", 0))]).await;
    let logs = world.get("/v1/namespaces/default/jobs/a/logs").await.body;
    assert_eq!(logs["items"][0]["base64"], "/wBh");
    assert_eq!(logs["items"][1]["text"], "nul \u{0} end");
    let only = world.get("/v1/namespaces/default/jobs/a/logs?stream=stderr&step=main").await.body;
    assert_eq!(only["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("/v1/namespaces/default/jobs/a/logs?step=nope").await.status, 400);
}

#[tokio::test]
async fn a_failure_with_retries_left_is_queued_with_a_wait() {
    let world = World::settled().await;
    world.job("a", json!({"command": ["false"], "retry": {"failures": 1}})).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, started()), (2, terminal("failed", 2))]).await;
    assert_eq!(world.phase("a").await, "Queued Retrying");
    assert!(agent.claim("r2", 1).await.is_empty(), "not before its time");
    world.clock.advance(Duration::from_secs(11));
    let attempt = agent.claim("r3", 1).await[0]["attempt"].clone();
    agent.report(&attempt, &[(1, started()), (2, terminal("failed", 2))]).await;
    assert_eq!(world.phase("a").await, "Failed AttemptsExhausted");
    let job = world.get("/v1/namespaces/default/jobs/a").await.body;
    assert_eq!(job["status"]["exitCode"], 3);
}

#[tokio::test]
async fn a_controller_that_stops_leaves_long_leases_behind() {
    let world = World::settled().await;
    world.job("a", command()).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let body = json!({
        "version": 1, "request_id": "r2", "boot_id": agent.boot, "max": 0, "wait_seconds": 30, "held": [attempt],
    });
    let (answer, ()) = tokio::join!(agent.call("POST", "claim", Some(body)), async {
        tokio::task::yield_now().await;
        world.stopping.cancel();
    });
    assert_eq!(answer.body["stopping"], true);
    let renewed = agent.beat(std::slice::from_ref(&attempt)).await.body["renewed"].clone();
    assert_eq!(renewed, json!([{"attempt": attempt, "lease_seconds": 900}]));
    let row = world.store.get_job("default", "a").await.unwrap().unwrap();
    let left = row.lease_until.unwrap().duration_since(world.clock.now());
    assert_eq!(left.as_secs(), 900);
}

#[tokio::test]
async fn a_controller_that_stops_leaves_no_shorter_leases_to_jobs_that_continue_offline() {
    let world = World::settled().await;
    let manifest = json!({
        "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": "n1"},
        "spec": {"offlineGrace": "40s"},
    });
    assert_eq!(world.put("/v1/nodes/n1", manifest).await.status, 201);
    world.job("a", json!({"command": ["true"], "offline": "continue"})).await;
    let agent = world.node("n1").await;
    let attempt = agent.claim("r1", 1).await[0]["attempt"].clone();
    let lease =
        async || agent.beat(std::slice::from_ref(&attempt)).await.body["renewed"][0]["lease_seconds"].clone();
    assert_eq!(lease().await, 40);
    world.stopping.cancel();
    assert_eq!(lease().await, 900);
}

#[tokio::test]
async fn another_run_of_the_agent_is_fenced() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    let old = crate::world::Agent {
        boot: "boot-old".into(),
        name: "n1".into(),
        token: agent.token.clone(),
        world: &world,
    };
    let claim = old.claim_holding("r1", 1, &[]).await;
    assert_eq!((claim.status, claim.body["code"].as_str()), (409, Some("fenced")));
    assert_eq!(old.beat(&[]).await.status, 409);
    assert_eq!(agent.beat(&[]).await.status, 200);
}

#[tokio::test]
async fn payloads_of_another_version_are_refused() {
    let world = World::settled().await;
    let agent = world.node("n1").await;
    let answer = agent.call("POST", "report", Some(json!({"version": 2, "records": []}))).await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (400, Some("unsupported_payload_version")));
    let answer = agent.call("POST", "claim", Some(json!({"version": 1}))).await;
    assert_eq!((answer.status, answer.body["code"].as_str()), (400, Some("bad_request")));
}
