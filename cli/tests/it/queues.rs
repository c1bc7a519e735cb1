//! Queues: what is set for them.

use crate::world::World;

const JOB: &str = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: hello\nspec:\n  queue: builds\n  command: [echo, hello]\n";

fn row(table: &str) -> Vec<&str> {
    table.lines().nth(1).unwrap_or_default().split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_stays_until_it_is_named_again() {
    let world = World::new().await;
    let set = world.cli(&["set", "queue", "builds", "--concurrency", "0"]).await.ok().stdout;
    assert_eq!(set, "queue/builds set: weight 1, concurrency 0\n");
    let set = world.cli(&["set", "queue", "builds", "--weight", "4"]).await.ok().stdout;
    assert_eq!(set, "queue/builds set: weight 4, concurrency 0\n");
    assert_eq!(
        row(&world.cli(&["get", "queues"]).await.ok().stdout)[..6],
        ["builds", "0", "0", "0", "0", "4"]
    );
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let why = world.cli(&["why", "hello"]).await.ok().stdout;
    assert!(
        why.starts_with("job/hello waits: queue `builds` has reached its limit of 0 running jobs\n"),
        "{why}"
    );
    let described = world.cli(&["describe", "queue", "builds"]).await.ok().stdout;
    assert!(described.contains("Limit:          0 running jobs"), "{described}");
    let set = world.cli(&["set", "queue", "builds", "--concurrency", "none"]).await.ok().stdout;
    assert_eq!(set, "queue/builds set: weight 4, concurrency none\n");
    let nothing = world.cli(&["set", "queue", "builds"]).await.failed(2);
    assert!(nothing.contains("--weight"), "{nothing}");
    let invalid = world.cli(&["set", "queue", "Builds", "--weight", "2"]).await.failed(65);
    assert!(invalid.contains("name"), "{invalid}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_is_woken_when_a_limit_is_raised_or_has_room_again() {
    let world = World::new().await;
    world.cli(&["set", "queue", "builds", "--concurrency", "0"]).await.ok();
    let file = world.file("job.yaml", &format!("{JOB}---\n{}", JOB.replace("hello", "second")));
    world.cli(&["apply", "-f", &file]).await.ok();
    let mut n1 = world.node("n1").await;
    let mut n2 = world.node("n2").await;
    let work = async {
        n1.perform(&[crate::world::Act::Exit(0)]).await;
        // The second job cannot run before the first has ended, on whichever node.
        n2.perform(&[crate::world::Act::Exit(0)]).await;
    };
    let raise = async {
        world.cli(&["set", "queue", "builds", "--concurrency", "1"]).await.ok();
    };
    tokio::join!(work, raise);
    world.cli(&["wait", "job/hello", "job/second", "--timeout", "30s"]).await.ok();
}
