//! Waiting for objects.

use crate::world::{Act, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_every_object_is_there() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    for name in ["a", "b"] {
        world.cli(&["run", "--detach", "--name", name, "--", "true"]).await.ok();
    }
    let waiting = world.start(&["wait", "jobs", "a", "b", "--for", "phase=Succeeded", "--timeout", "50s"]);
    node.perform(&[Act::Exit(0)]).await;
    node.perform(&[Act::Exit(0)]).await;
    assert_eq!(waiting.end().await.ok().stdout, "job/a condition met\njob/b condition met\n");
    world.cli(&["wait", "node/n1", "--for", "condition=ConfigApplied", "--timeout", "30s"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_cannot_end_well_fails_at_once_and_one_that_takes_too_long_times_out() {
    let world = World::new().await;
    world.cli(&["run", "--detach", "--name", "a", "--", "true"]).await.ok();
    let late = world.cli(&["wait", "job/a", "--timeout", "300ms"]).await.failed(124);
    assert!(late.contains("job/a did not get there in time") && late.contains("Queued"), "{late}");
    world.cli(&["cancel", "a"]).await.ok();
    let never = world.cli(&["wait", "job/a", "--for", "phase=Succeeded"]).await.failed(1);
    assert!(never.contains("it has ended as Cancelled"), "{never}");
    let missing = world.cli(&["wait", "job/none"]).await.failed(1);
    assert!(missing.contains("none"), "{missing}");
    let nonsense = world.cli(&["wait", "queue/default"]).await.failed(2);
    assert!(nonsense.contains("a queue has no state"), "{nonsense}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_can_be_waited_for() {
    let world = World::new().await;
    world.cli(&["run", "--detach", "--name", "a", "--", "true"]).await.ok();
    let waiting = world.start(&["wait", "job/a", "--for", "delete", "--timeout", "50s"]);
    world.cli(&["delete", "job/a"]).await.ok();
    assert_eq!(waiting.end().await.ok().stdout, "job/a deleted\n");
}
