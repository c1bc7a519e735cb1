//! Running jobs and following them to their end.

use serde_json::Value;

use crate::world::{Act, World};

#[tokio::test(flavor = "multi_thread")]
async fn output_comes_through_byte_for_byte_each_stream_on_its_own() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let running = world.start(&["run", "--name", "bytes", "--", "cat", "--", "-x"]);
    let binary = vec![0, b'a', 0xff, 0xfe, b'\n', 0x1b];
    node.perform(&[
        Act::Stdout(b"one\n".to_vec()),
        Act::Stderr("žluť".as_bytes().to_vec()),
        Act::Stdout(binary.clone()),
        Act::Exit(0),
    ])
    .await;
    let output = running.end().await.ok();
    assert_eq!(output.stdout_bytes, [b"one\n".to_vec(), binary].concat());
    assert!(output.stderr.starts_with("job/bytes created\nžluť"), "{}", output.stderr);
    assert!(output.stderr.ends_with(" on n1\n"), "{}", output.stderr);
    assert!(output.stderr_bytes.windows(9).any(|bytes| bytes == b"Succeeded"), "{}", output.stderr);
    let job: Value =
        serde_json::from_str(&world.cli(&["get", "job/bytes", "-o", "json"]).await.ok().stdout).unwrap();
    assert_eq!(job["spec"]["steps"][0]["command"], serde_json::json!(["cat", "--", "-x"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_end_is_the_commands_exit_code() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    for (act, code, word) in [(Act::Exit(3), 3, "Failed: StepFailed"), (Act::TimeOut, 124, "TimedOut")] {
        let running = world.start(&["run", "--", "false"]);
        node.perform(&[act]).await;
        let stderr = running.end().await.failed(code);
        assert!(stderr.contains(word), "{stderr}");
    }
    let mut running = world.start(&["run", "--name", "cancelled", "--", "sleep", "inf"]);
    running.stderr_has("job/cancelled created").await;
    tokio::join!(node.perform(&[Act::UntilCancelled]), async {
        world.cli(&["wait", "job/cancelled", "--for", "phase=Running", "--timeout", "30s"]).await.ok();
        let cancelled = world.cli(&["cancel", "cancelled"]).await.ok().stdout;
        assert_eq!(cancelled, "job/cancelled cancelling\n");
        assert!(running.end().await.failed(130).contains("Cancelled"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_was_cut_is_said_to_be_wherever_it_is_shown() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let running = world.start(&["run", "--name", "much", "--", "yes"]);
    node.perform(&[Act::Stdout(b"y\n".to_vec()), Act::ExitCut(1 << 30)]).await;
    let cut = "the standard output of step `main` was cut: it wrote 1.00 GiB";
    let followed = running.end().await.ok().stderr;
    assert!(followed.contains(cut), "{followed}");
    for verb in [&["logs", "much"][..], &["logs", "-f", "much"]] {
        let told = world.cli(verb).await.ok().stderr;
        assert!(told.contains(cut) && told.contains("outputCap"), "{told}");
    }
    let described = world.cli(&["describe", "job/much"]).await.ok().stdout;
    assert!(described.contains(cut), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_does_not_change_the_exit_code() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let mut running = world.start(&["run", "--name", "long", "--", "seq", "100000"]);
    running.stderr_has("job/long created").await;
    running.close_stdout().await;
    node.perform(&[Act::Stdout(b"1\n".to_vec()), Act::Stdout(b"2\n".to_vec()), Act::Exit(3)]).await;
    assert!(running.end().await.failed(3).contains("Failed: StepFailed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_job_is_named_so_that_other_verbs_can_take_it() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let detached = world.cli(&["run", "--detach", "--", "/bin/echo", "hi"]).await.ok();
    let name = detached.stdout.trim_end();
    assert!(name.starts_with("job/echo-"), "{name}");
    node.perform(&[Act::Stdout(b"hi\n".to_vec()), Act::Stderr(b"warned\n".to_vec()), Act::Exit(0)]).await;
    world.cli(&["wait", name, "--timeout", "30s"]).await.ok();
    assert_eq!(world.cli(&["logs", name]).await.ok().stdout, "hi\nwarned\n");
    assert_eq!(world.cli(&["logs", name, "-f"]).await.ok().stdout, "hi\nwarned\n");
    assert_eq!(world.cli(&["logs", name, "--stream", "stderr"]).await.ok().stdout, "warned\n");
    assert_eq!(world.cli(&["logs", name, "--attempt", "1"]).await.ok().stdout, "hi\nwarned\n");
    assert!(world.cli(&["logs", name, "--attempt", "2"]).await.failed(1).contains("has no attempt 2"));
    assert!(world.cli(&["logs", name, "--step", "none"]).await.failed(65).contains("none"));
    let stamped = world.cli(&["logs", name, "--timestamps"]).await.ok().stdout;
    assert!(stamped.lines().all(|line| line.len() > 25 && &line[23..25] == "Z "), "{stamped}");

    let retried = world.cli(&["retry", name]).await.ok().stdout;
    assert_eq!(retried, format!("{name} queued\n"));
    assert!(world.cli(&["retry", name]).await.failed(1).contains("error: "));
    node.perform(&[Act::Stdout(b"again\n".to_vec()), Act::Exit(0)]).await;
    world.cli(&["wait", name, "--timeout", "30s"]).await.ok();
    assert_eq!(world.cli(&["logs", name, "--attempt", "2"]).await.ok().stdout, "again\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_leaves_the_job_running_and_says_how_to_go_on() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let mut running = world.start(&["run", "--name", "long", "-n", "ci", "--", "sleep", "inf"]);
    let acts = [Act::Stdout(b"begun\n".to_vec()), Act::UntilCancelled];
    tokio::join!(node.perform(&acts), async {
        running.stdout_has("begun").await;
        running.interrupt();
        let stderr = running.end().await.failed(130);
        assert!(stderr.contains("windlass logs -f long -n ci"), "{stderr}");
        assert!(stderr.contains("windlass cancel long -n ci"), "{stderr}");
        let phase = world.cli(&["get", "job/long", "-n", "ci", "-o", "json"]).await.ok().stdout;
        assert!(phase.contains("\"phase\": \"Running\""), "{phase}");
        world.cli(&["cancel", "long", "-n", "ci"]).await.ok();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cancels_the_job_where_that_was_asked_for() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let mut running = world.start(&["run", "--name", "long", "--cancel-on-interrupt", "--", "sleep", "inf"]);
    let acts = [Act::Stdout(b"begun\n".to_vec()), Act::UntilCancelled];
    tokio::join!(node.perform(&acts), async {
        running.stdout_has("begun").await;
        running.interrupt();
        let stderr = running.end().await.failed(130);
        assert!(stderr.contains("job/long Cancelled"), "{stderr}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_node_fits_says_why_while_it_is_followed() {
    let world = World::new().await;
    world.node("n1").await;
    let mut running = world.start(&["run", "--name", "huge", "--cpu", "64", "--", "true"]);
    running.stderr_has("The job waits: it fits no node (TooSmall 1).\n  n1: ").await;
    running.interrupt();
    running.end().await.failed(130);
    world.cli(&["cancel", "huge"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_uploaded_once_and_named_in_the_job() {
    let world = World::new().await;
    world.file("repo/.git/HEAD", "ref: refs/heads/main\n");
    world.file("repo/src/main.rs", "fn main() {}\n");
    let data = world.file("data.csv", "a,b\n");
    let input = format!("tables/data.csv={data}");
    let args = ["run", "--detach", "--input", "repo", "--input", &input, "--", "ls"];
    let mut digests = Vec::new();
    for _ in 0..2 {
        let name = world.cli(&args).await.ok().stdout;
        let job = world.cli(&["get", name.trim_end(), "-o", "json"]).await.ok().stdout;
        let job: Value = serde_json::from_str(&job).unwrap();
        let inputs = &job["spec"]["workspace"]["inputs"];
        assert_eq!(
            (inputs[0]["path"].as_str(), inputs[0]["upload"]["unpack"].as_bool()),
            (Some("input"), Some(true))
        );
        assert_eq!(inputs[1]["path"], "tables/data.csv");
        assert!(inputs[1]["upload"]["unpack"].is_null());
        digests.push(inputs[0]["upload"]["digest"].clone());
    }
    assert_eq!(digests[0], digests[1]);

    let twice =
        world.cli(&["run", "--detach", "--input", "repo", "--input", "repo", "--", "ls"]).await.failed(2);
    assert!(twice.contains("two inputs are placed at `input`"), "{twice}");
    let outside = world.cli(&["run", "--detach", "--input", "../x=repo", "--", "ls"]).await.failed(2);
    assert!(outside.contains("not a path inside the workspace"), "{outside}");
    let missing = world.cli(&["run", "--detach", "--input", "none", "--", "ls"]).await.failed(65);
    assert!(missing.contains("none cannot be read"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_run_with_what_the_flags_change() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file(
        "job.yaml",
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  generateName: build-\nspec:\n  script:\n    source: make\n  sandbox:\n    env: {A: manifest}\n",
    );
    let running = world.start(&["run", "-f", &file, "--env", "B=flag", "--timeout", "90s", "--retry", "1"]);
    node.perform(&[Act::Exit(0)]).await;
    let stderr = running.end().await.ok().stderr;
    let name = stderr.split_whitespace().next().unwrap();
    assert!(name.starts_with("job/build-"), "{stderr}");
    let job = world.cli(&["get", name, "-o", "json"]).await.ok().stdout;
    let job: Value = serde_json::from_str(&job).unwrap();
    assert_eq!(job["spec"]["sandbox"]["env"], serde_json::json!({"A": "manifest", "B": "flag"}));
    assert_eq!(job["spec"]["timeout"], "1m30s");
    assert_eq!(job["spec"]["retry"]["failures"], 1);

    let node_file = world.file(
        "node.yaml",
        "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {name: n}\nspec: {}\n",
    );
    let refused = world.cli(&["run", "-f", &node_file]).await.failed(65);
    assert!(refused.contains("`run` takes a job, not a NodeConfig"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_and_a_job_that_cannot_be_are_refused() {
    let world = World::new().await;
    world.cli(&["run", "--detach", "--name", "one", "--", "ls"]).await.ok();
    let taken = world.cli(&["run", "--detach", "--name", "one", "--", "ls"]).await.failed(1);
    assert!(taken.contains("exists"), "{taken}");
    let invalid = world.cli(&["run", "--detach", "--queue", "Not A Queue", "--", "ls"]).await.failed(65);
    assert!(invalid.contains("spec.queue"), "{invalid}");
    let reserved = world.cli(&["run", "--detach", "--env", "WINDLASS_X=1", "--", "ls"]).await.failed(65);
    assert!(reserved.contains("WINDLASS_X"), "{reserved}");
    let nothing = world.cli(&["run"]).await.failed(2);
    assert!(nothing.contains("CMD"), "{nothing}");
}
