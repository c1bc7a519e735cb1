//! `windlass artifacts`, and what is said of artifacts elsewhere.

use serde_json::{Value, json};

use crate::world::{Act, Node, World};

const CONTENTS: [(&str, &str, &[u8]); 3] = [
    ("data/numbers.csv", "file", b"a,b\n1,2\n"),
    ("picture.png", "image", b"\x89PNG\r\n\x1a\n\xff\0"),
    ("report.md", "markdown", b"# Report\n"),
];

const MAKE: &str = "\
apiVersion: windlass.dev/v1alpha1
kind: SandboxJob
metadata: {name: make}
spec: {command: [make], retry: {failures: 1, backoff: {initial: 1ms}}}
";

fn manifest() -> Value {
    use sha2::Digest as _;
    let entry = |(number, (name, kind, content)): (usize, &(&str, &str, &[u8]))| {
        let sha256 = hex::encode(sha2::Sha256::digest(content));
        json!({"number": number + 1, "name": name, "kind": kind, "size": content.len(), "sha256": sha256})
    };
    let mut items: Vec<Value> = CONTENTS.iter().enumerate().map(entry).collect();
    let reason = "it holds the secret `db/password`; leave that out, or pass it on by other means";
    items.push(json!({"number": 4, "name": "\u{202e}log.txt", "kind": "file", "size": 9, "refused": reason}));
    json!({"kind": "artifacts", "items": items})
}

/// A job `make` whose attempt has left artifacts, of which the first `sent` have come.
async fn made(world: &World, sent: usize) -> Node<'_> {
    let file = world.file("make.yaml", MAKE);
    world.cli(&["apply", "-f", &file]).await.ok();
    let mut node = world.node("n1").await;
    let attempt = node.perform(&[Act::Leave(manifest()), Act::Exit(0)]).await;
    for (number, (_, _, content)) in (1..).zip(CONTENTS).take(sent) {
        node.send_artifact(&attempt, number, content).await;
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_listed_with_what_was_refused_and_why() {
    let world = World::new().await;
    made(&world, 2).await;
    let listed = world.cli(&["artifacts", "make"]).await.ok();
    insta::assert_snapshot!(listed.stdout, @r"
    NAME              KIND      SIZE  STATE    ATTEMPT  REASON
    data/numbers.csv  file      8 B   Stored   1        -
    picture.png       image     10 B  Stored   1        -
    report.md         markdown  9 B   Pending  1        -
    �log.txt          file      9 B   Refused  1        it holds the secret `db/password`; leave that out, or pass it on by other means
    ");
    let table = world.cli(&["artifacts", "make", "-o", "json"]).await.ok().stdout;
    let items: Value = serde_json::from_str(&table).unwrap();
    let states: Vec<&str> =
        items["items"].as_array().unwrap().iter().map(|item| item["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["Stored", "Stored", "Pending", "Refused"]);
    let yaml = world.cli(&["artifacts", "make", "-o", "yaml"]).await.ok().stdout;
    assert!(yaml.contains("name: report.md") && yaml.contains("collectedAt:"), "{yaml}");
    assert_eq!(world.cli(&["artifacts", "make", "--attempt", "2"]).await.ok().stdout, "");
    let described = world.cli(&["describe", "job", "make"]).await.ok().stdout;
    assert!(described.contains("Artifacts\n") && described.contains("report.md"), "{described}");
    let refused = world.cli(&["artifacts", "make", "-o", "csv"]).await.failed(2);
    assert!(refused.contains("`csv`") && refused.contains("table, json and yaml"), "{refused}");
    world.cli(&["artifacts", "nope"]).await.failed(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_fetched_to_a_file_or_to_standard_output() {
    let world = World::new().await;
    made(&world, 2).await;
    let file = world.folder.path().join("out.csv");
    std::fs::write(&file, "what was there before, and is longer").unwrap();
    world.cli(&["artifacts", "make", "data/numbers.csv", "-o", file.to_str().unwrap()]).await.ok();
    assert_eq!(std::fs::read(&file).unwrap(), CONTENTS[0].2);
    let picture = world.cli(&["artifacts", "make", "picture.png", "-o", "-"]).await.ok();
    assert_eq!(picture.stdout_bytes, CONTENTS[1].2, "byte for byte");
    let pending = world.cli(&["artifacts", "make", "report.md", "-o", "report.md"]).await.failed(1);
    assert!(pending.contains("has not sent `report.md` yet"), "{pending}");
    assert!(!world.folder.path().join("report.md").exists());
    let refused = world.cli(&["artifacts", "make", "\u{202e}log.txt", "-o", "-"]).await.failed(1);
    assert!(refused.contains("the secret `db/password`"), "{refused}");
    let unknown = world.cli(&["artifacts", "make", "nope", "-o", "-"]).await.failed(1);
    assert!(unknown.contains("no artifact nope") && unknown.contains("windlass artifacts make"), "{unknown}");
    world.cli(&["artifacts", "make", "report.md"]).await.failed(2);
    world.cli(&["artifacts", "make", "--all", "-o", "-"]).await.failed(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_artifacts_are_saved_below_one_folder() {
    let world = World::new().await;
    made(&world, 3).await;
    let saved = world.cli(&["artifacts", "make", "--all", "-o", "out"]).await.ok();
    assert!(saved.stderr.contains("3 artifacts saved in out"), "{saved:?}");
    assert!(saved.stderr.contains("log.txt is not there: it holds the secret"), "{saved:?}");
    for (name, _, content) in CONTENTS {
        assert_eq!(std::fs::read(world.folder.path().join("out").join(name)).unwrap(), content);
    }
    // What is there is replaced only if that is asked for.
    let mine = world.folder.path().join("out/report.md");
    std::fs::write(&mine, "mine").unwrap();
    let refused = world.cli(&["artifacts", "make", "--all", "-o", "out"]).await.failed(1);
    assert!(refused.contains("report.md cannot be saved") && refused.contains("not replaced"), "{refused}");
    assert!(refused.contains("0 artifacts saved in out"), "{refused}");
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), "mine");
    world.cli(&["artifacts", "make", "--all", "-o", "out", "--force"]).await.ok();
    assert_eq!(std::fs::read(&mine).unwrap(), CONTENTS[2].2);
    // A link that leads out is in the way.
    std::fs::create_dir(world.folder.path().join("trap")).unwrap();
    std::os::unix::fs::symlink("/tmp", world.folder.path().join("trap/data")).unwrap();
    let trapped = world.cli(&["artifacts", "make", "--all", "-o", "trap"]).await;
    assert_eq!(trapped.code, Some(1), "{trapped:?}");
    assert!(trapped.stderr.contains("data/numbers.csv cannot be saved"), "{trapped:?}");
    assert!(trapped.stderr.contains("2 artifacts saved in trap"), "{trapped:?}");
    assert!(!std::path::Path::new("/tmp/numbers.csv").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_is_waited_for_and_is_a_failure_in_the_end() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file("make.yaml", MAKE);
    world.cli(&["apply", "-f", &file]).await.ok();
    let attempt = node.perform(&[Act::Leave(manifest()), Act::Exit(0)]).await;
    node.send_artifact(&attempt, 1, CONTENTS[0].2).await;
    let pending = world.cli(&["artifacts", "make", "--all", "-o", "out", "--wait", "0s"]).await.failed(124);
    assert!(pending.contains("report.md is not there: its node has not sent it yet"), "{pending}");
    assert!(pending.contains("1 artifact saved in out"), "{pending}");
    let mut waiting = world.start(&["artifacts", "make", "--all", "-o", "all"]);
    waiting.stderr_has("waiting for 2 artifacts").await;
    node.send_artifact(&attempt, 2, CONTENTS[1].2).await;
    node.lose_artifact(&attempt, 3, "its disk was full").await;
    let lost = waiting.end().await.failed(1);
    assert!(lost.contains("report.md is not there: its disk was full"), "{lost}");
    assert!(lost.contains("2 artifacts saved in all"), "{lost}");

    // So it is at the end of a job that is followed.
    let mut run = world.start(&["run", "--name", "other", "--artifacts", "saved", "--", "make"]);
    let attempt = node.perform(&[Act::Leave(manifest()), Act::Exit(0)]).await;
    run.stderr_has("waiting for 3 artifacts").await;
    for number in 1..=3 {
        node.lose_artifact(&attempt, number, "its disk was full").await;
    }
    let lost = run.end().await.failed(1);
    assert!(lost.contains("0 artifacts saved in saved"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_has_left_is_not_taken_for_that_of_the_last() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file("make.yaml", MAKE);
    world.cli(&["apply", "-f", &file]).await.ok();
    let first = node.perform(&[Act::Leave(manifest()), Act::Exit(1)]).await;
    for (number, (_, _, content)) in (1..).zip(CONTENTS) {
        node.send_artifact(&first, number, content).await;
    }
    node.perform(&[Act::Exit(0)]).await;
    let none = world.cli(&["artifacts", "make", "--all", "-o", "out"]).await.ok().stderr;
    let told = "the last attempt has left no artifacts; attempt 1 has: windlass artifacts make --attempt 1";
    assert!(none.contains(told), "{none}");
    assert!(!world.folder.path().join("out").exists(), "nothing is saved");
    let asked = world.cli(&["artifacts", "make", "--all", "-o", "out", "--attempt", "1"]).await.ok().stderr;
    assert!(asked.contains("3 artifacts saved in out"), "{asked}");
    let one = world.cli(&["artifacts", "make", "report.md", "-o", "-"]).await.ok();
    assert_eq!(one.stdout_bytes, CONTENTS[2].2);
    assert!(one.stderr.contains("report.md is of attempt 1; the last attempt has left nothing"), "{one:?}");
    let one = world.cli(&["artifacts", "make", "report.md", "-o", "-", "--attempt", "1"]).await.ok();
    assert_eq!(one.stderr, "");
    let described = world.cli(&["describe", "job", "make"]).await.ok().stdout;
    assert!(described.contains("Artifacts of attempt 1 (the last has left none)\n"), "{described}");

    let manifest_file = world.file("again.yaml", &MAKE.replace("name: make", "name: again"));
    let run = world.start(&["run", "-f", &manifest_file, "--artifacts", "saved"]);
    node.perform(&[Act::Leave(manifest()), Act::Exit(1)]).await;
    node.perform(&[Act::Exit(0)]).await;
    let run = run.end().await.ok();
    assert!(run.stderr.contains("the last attempt has left no artifacts; attempt 1 has"), "{run:?}");
    assert!(!world.folder.path().join("saved").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_for_everybody() {
    let world = World::new().await;
    made(&world, 1).await;
    let made = world.cli(&["artifacts", "make", "--link", "data/numbers.csv", "--expires", "1h"]).await.ok();
    let url = made.stdout.trim_end();
    assert!(url.starts_with(&format!("{}/v1/artifacts/", world.url)), "{url}");
    assert_eq!(world.get_anonymously(url).await, (200, CONTENTS[0].2.to_vec()));
    assert_eq!(world.get_anonymously(&format!("{url}x")).await.0, 403);
    let long =
        world.cli(&["artifacts", "make", "--link", "data/numbers.csv", "--expires", "30d"]).await.failed(65);
    assert!(long.contains("between 1s and 168h"), "{long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_a_job_hears_of_its_artifacts() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let mut run = world.start(&["run", "--name", "make", "--", "make"]);
    let attempt = node.perform(&[Act::Leave(manifest()), Act::Exit(0)]).await;
    run.stderr_has("job/make Succeeded").await;
    let run = run.end().await.ok();
    assert!(run.stderr.contains("3 artifacts, 1 file refused: windlass artifacts make\n"), "{run:?}");
    node.send_artifact(&attempt, 1, CONTENTS[0].2).await;

    let mut run = world.start(&["run", "--name", "other", "--artifacts", "saved", "--", "make"]);
    let attempt = node.perform(&[Act::Leave(manifest()), Act::Exit(3)]).await;
    run.stderr_has("job/other Failed").await;
    for (number, (_, _, content)) in (1..).zip(CONTENTS) {
        node.send_artifact(&attempt, number, content).await;
    }
    let run = run.end().await;
    assert_eq!(run.code, Some(3), "the job's own end counts: {run:?}");
    assert!(run.stderr.contains("3 artifacts saved in saved"), "it has waited for them: {run:?}");
    assert_eq!(std::fs::read(world.folder.path().join("saved/report.md")).unwrap(), CONTENTS[2].2);
}
