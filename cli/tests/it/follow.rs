//! Streams that break off and are taken up again.

use serde_json::json;

use crate::fake::{Fake, broken_stream, json, open_stream, other};
use crate::world::Running;

const JOBS: &str = "/v1/namespaces/default/jobs";
const JOB: &str = "/v1/namespaces/default/jobs/a";
const LOGS: &str = "/v1/namespaces/default/jobs/a/logs";

fn log(id: &str, epoch: u64, text: &str) -> String {
    let item = json!({"epoch": epoch, "sequence": 1, "at": "2026-01-01T00:00:00Z", "step": "main", "stream": "stdout", "offset": 0, "text": text});
    format!("id: {id}\nevent: log\ndata: {item}\n\n")
}

fn end(phase: &str, code: i32) -> String {
    format!("event: end\ndata: {}\n\n", json!({"phase": phase, "exitCode": code, "logsComplete": true}))
}

#[tokio::test]
async fn a_followed_job_goes_on_where_the_connection_broke() {
    let fake = Fake::new(vec![
        json(JOBS, &json!({"metadata": {"name": "a"}})),
        broken_stream(LOGS, &format!("{}{}event: log\ndata: {{\"epo", log("1.1", 1, "one\n"), log("1.2", 1, "two\n"))),
        other(LOGS, 503, "text/plain", "starting"),
        broken_stream(LOGS, &format!("{}{}", log("1.3", 1, "three\n"), end("Failed", 7))),
        json(JOB, &json!({"metadata": {"name": "a"}, "status": {"phase": "Failed", "reason": "StepFailed", "exitCode": 7}})),
    ])
    .await;
    let output = fake.cli(&["run", "--", "x"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (Some(7), "one\ntwo\nthree\n"), "{output:?}");
    assert!(output.stderr.contains("the connection is lost and is tried again"), "{}", output.stderr);
    assert!(output.stderr.contains("The connection is back."), "{}", output.stderr);
    let resumed = Some("1.2".to_owned());
    assert_eq!(fake.resumed_after(LOGS), [None, resumed.clone(), resumed]);
}

#[tokio::test]
async fn output_that_the_server_has_lost_is_said_where_it_is_missing() {
    let gap = json!({
        "epoch": 1, "sequence": 2, "at": "2026-01-01T00:00:00Z", "step": "main", "stream": "stdout", "offset": 4,
        "text": "", "gap": {"bytes": 20480, "reason": "it is not stored any more"},
    });
    let gap = format!("id: 1.2\nevent: log\ndata: {gap}\n\n");
    let events =
        format!("{}{gap}{}{}", log("1.1", 1, "one\n"), log("1.3", 1, "three\n"), end("Succeeded", 0));
    let fake = Fake::new(vec![
        broken_stream(LOGS, &events),
        json(JOB, &json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}})),
    ])
    .await;
    let output = fake.cli(&["logs", "-f", "a"]).await.ok();
    assert_eq!(output.stdout, "one\nthree\n");
    let warning = "of stdout of step main are missing: it is not stored any more";
    assert!(output.stderr.contains("here 20") && output.stderr.contains(warning), "{}", output.stderr);
}

#[tokio::test]
async fn a_new_attempt_is_announced_between_its_output_and_the_old_one() {
    let fake = Fake::new(vec![
        json(JOBS, &json!({"metadata": {"name": "a"}})),
        broken_stream(
            LOGS,
            &format!("{}{}{}", log("1.1", 1, "half"), log("2.1", 2, "whole\n"), end("Succeeded", 0)),
        ),
        json(JOB, &json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}})),
    ])
    .await;
    let output = fake.cli(&["run", "--", "x"]).await.ok();
    assert_eq!(output.stdout, "halfwhole\n");
    assert!(output.stderr.contains("The job was started again"), "{}", output.stderr);
}

#[tokio::test]
async fn a_stream_that_the_server_refuses_later_ends_with_how_to_go_on() {
    let gone = json!({"type": "t", "title": "not found", "status": 404, "detail": "there is no job `a`", "code": "not_found"});
    let fake = Fake::new(vec![
        json(JOBS, &json!({"metadata": {"name": "a"}})),
        broken_stream(LOGS, &log("1.1", 1, "one\n")),
        other(LOGS, 404, "application/problem+json", &gone.to_string()),
    ])
    .await;
    let stderr = fake.cli(&["run", "--", "x"]).await.failed(1);
    assert!(
        stderr.contains("error: there is no job `a`") && stderr.contains("windlass logs -f a"),
        "{stderr}"
    );
    let deleted = Fake::new(vec![
        json(JOBS, &json!({"metadata": {"name": "a"}})),
        broken_stream(LOGS, "event: end\ndata: {\"phase\":null,\"deleted\":true,\"logsComplete\":false}\n\n"),
    ])
    .await;
    assert!(deleted.cli(&["run", "--", "x"]).await.failed(1).contains("was deleted before it ended"));
}

#[tokio::test]
async fn lost_nodes_that_used_up_the_attempts_have_their_own_exit_code() {
    let end =
        json!({"phase": "Failed", "reason": "AttemptsExhausted", "exitCode": null, "logsComplete": false});
    let fake = Fake::new(vec![
        json(JOBS, &json!({"metadata": {"name": "a"}})),
        broken_stream(LOGS, &format!("event: end\ndata: {end}\n\n")),
        json(
            JOB,
            &json!({"metadata": {"name": "a"}, "status": {"phase": "Failed", "reason": "AttemptsExhausted"}}),
        ),
    ])
    .await;
    let stderr = fake.cli(&["run", "--", "x"]).await.failed(75);
    assert!(stderr.contains("not all of the job's output has arrived"), "{stderr}");
    assert!(stderr.contains("job/a Failed: AttemptsExhausted"), "{stderr}");
}

#[tokio::test]
async fn a_watch_tells_only_what_changed_while_the_connection_was_lost() {
    let added = |name: &str, version: &str, phase: &str| {
        let job = json!({"metadata": {"name": name, "uid": name, "resourceVersion": version}, "status": {"phase": phase}});
        format!("event: added\ndata: {job}\n\n")
    };
    let synced = "event: synced\ndata: {}\n\n";
    let before = format!(
        "{}{}{}{synced}",
        added("same", "1", "Queued"),
        added("moved", "1", "Queued"),
        added("gone", "1", "Queued")
    );
    let after = format!("{}{}{synced}", added("same", "1", "Queued"), added("moved", "2", "Running"));
    let fake = Fake::new(vec![broken_stream(JOBS, &before), open_stream(JOBS, &after)]).await;
    let mut watch = Running::start(fake.command(&["get", "jobs", "-w"]));
    watch.stdout_has("Running").await;
    watch.stdout_has("deleted").await;
    watch.interrupt();
    let output = watch.end().await;
    let words: Vec<Vec<&str>> = output.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        words.iter().map(|words| words[0]).collect::<Vec<_>>(),
        ["NAME", "gone", "moved", "same", "moved", "gone"]
    );
    assert!(output.stderr.contains("The connection is back."), "{}", output.stderr);
}
