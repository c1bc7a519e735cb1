//! Why a job waits.

use serde_json::Value;

use crate::world::World;

const JOBS: &str = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: plain\nspec:\n  command: [echo, hello]\n---\napiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: huge\nspec:\n  command: [echo, hello]\n  requires: {cpu: 64}\n";

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_its_line_and_all_have_a_sentence() {
    let world = World::new().await;
    let file = world.file("jobs.yaml", JOBS);
    world.cli(&["apply", "-f", &file]).await.ok();
    let none = world.cli(&["why", "plain"]).await.ok().stdout;
    assert_eq!(
        none,
        "job/plain waits: there is no node yet; `windlass join-token create` makes a token for one\n"
    );

    world.node("n1").await;
    let huge = world.cli(&["why", "job/huge"]).await.ok().stdout;
    let lines: Vec<&str> = huge.lines().collect();
    assert_eq!(lines[0], "job/huge waits: it fits no node (TooSmall 1)");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["NODE", "REASON", "MESSAGE"]);
    assert!(lines[2].starts_with("n1    TooSmall  64 of cpu are needed and the whole node has 4"), "{huge}");

    let both = world.cli(&["why", "plain", "huge", "-o", "json"]).await.ok().stdout;
    let both: Value = serde_json::from_str(&both).unwrap();
    assert_eq!(both[0]["items"][0]["fits"], true);
    let one = world.cli(&["why", "huge", "-o", "yaml"]).await.ok().stdout;
    let one: Value = serde_saphyr::from_str(&one).unwrap();
    assert_eq!(one, both[1]);

    let described = world.cli(&["describe", "job", "huge"]).await.ok().stdout;
    assert!(described.contains("Position in queue default: 1 before it"), "{described}");
    assert!(described.contains("it fits no node"), "{described}");

    world.cli(&["cancel", "plain"]).await.ok();
    let ended = world.cli(&["why", "plain"]).await.ok().stdout;
    assert_eq!(ended, "job/plain does not wait: it has ended as Cancelled\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_job_is_named_and_the_others_are_told_all_the_same() {
    let world = World::new().await;
    let file = world.file("jobs.yaml", JOBS);
    world.cli(&["apply", "-f", &file]).await.ok();
    let output = world.cli(&["why", "none", "plain"]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stdout.starts_with("job/plain waits: "), "{}", output.stdout);
    assert!(output.stderr.contains("none"), "{}", output.stderr);
}
