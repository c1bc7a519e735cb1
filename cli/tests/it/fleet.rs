//! Operating nodes: cordon, drain, deregister.

use serde_json::Value;

use crate::world::{Act, World};

const JOB: &str = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: hello\nspec:\n  command: [echo, hello]\n";

async fn hold(world: &World, node: &str) -> Value {
    let node = world.cli(&["get", "node", node, "-o", "json"]).await.ok().stdout;
    let node: Value = serde_json::from_str(&node).expect("JSON");
    node["status"]["hold"]["phase"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_lasts_until_it_is_lifted_whatever_the_manifest_says() {
    let world = World::new().await;
    world.node("n1").await;
    let cordoned = world.cli(&["cordon", "n1", "node/none"]).await;
    assert_eq!((cordoned.code, cordoned.stdout.as_str()), (Some(1), "node/n1 cordoned\n"));
    assert!(cordoned.stderr.contains("there is no node `none`"), "{}", cordoned.stderr);
    let manifest = world.file(
        "n1.yaml",
        "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata:\n  name: n1\nspec:\n  unschedulable: true\n",
    );
    world.cli(&["apply", "-f", &manifest]).await.ok();
    assert_eq!(hold(&world, "n1").await, "Cordoned");
    let listed = world.cli(&["get", "nodes"]).await.ok().stdout;
    assert!(listed.contains(", cordoned"), "{listed}");
    let lifted = world.cli(&["uncordon", "n1"]).await.ok();
    assert_eq!(lifted.stdout, "node/n1 uncordoned\n");
    assert!(lifted.stderr.contains("still says `unschedulable: true`"), "{}", lifted.stderr);
    assert_eq!(hold(&world, "n1").await, Value::Null);
    let described = world.cli(&["describe", "node", "n1"]).await.ok().stdout;
    for expected in
        ["History", "Registered", "Cordoned", "ConfigDeclared", "Uncordoned", "yes, by its manifest"]
    {
        assert!(described.contains(expected), "`{expected}` in {described}");
    }
    let job = world.cli(&["cordon", "job/n1"]).await.failed(2);
    assert!(job.contains("node"), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_what_is_left_at_its_deadline_and_the_job_goes_on_elsewhere() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let acts = [Act::Stdout(b"working\n".to_vec()), Act::UntilCancelled];
    let work = node.perform(&acts);
    let drain = async {
        world.cli(&["wait", "job/hello", "--for", "phase=Running", "--timeout", "30s"]).await.ok();
        world.cli(&["drain", "n1", "--deadline", "1s", "--wait"]).await
    };
    let (_, drained) = tokio::join!(work, drain);
    let drained = drained.ok();
    assert_eq!(drained.stdout, "node/n1 draining: 1 job runs on it\nnode/n1 drained\n");
    assert!(drained.stderr.contains("default/hello runs for"), "{}", drained.stderr);
    assert_eq!(hold(&world, "n1").await, "Drained");
    let waiting = world.cli(&["why", "hello"]).await.ok().stdout;
    assert!(waiting.contains("Drained  the node was drained; `windlass uncordon` lifts that"), "{waiting}");
    let mut other = world.node("n2").await;
    other.perform(&[Act::Exit(0)]).await;
    world.cli(&["wait", "job/hello", "--timeout", "30s"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_drain_goes_on_and_says_so() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let work = node.perform(&[Act::UntilCancelled]);
    let drain = async {
        world.cli(&["wait", "job/hello", "--for", "phase=Running", "--timeout", "30s"]).await.ok();
        let mut drain = world.start(&["drain", "n1", "--wait"]);
        drain.stderr_has("default/hello runs for").await;
        drain.interrupt();
        let output = drain.end().await;
        assert_eq!(output.code, Some(130), "{output:?}");
        assert!(output.stderr.contains("The drain goes on without this command"), "{}", output.stderr);
        assert_eq!(hold(&world, "n1").await, "Draining");
        // A new drain takes the place of the one that is under way.
        let cancelled =
            world.cli(&["drain", "n1", "--deadline", "1s", "--at-deadline", "cancel", "--wait"]).await.ok();
        assert!(cancelled.stdout.ends_with("node/n1 drained\n"), "{cancelled:?}");
    };
    let (_, ()) = tokio::join!(work, drain);
    let job = world.cli(&["get", "job", "hello"]).await.ok().stdout;
    assert!(job.contains("Cancelled"), "{job}");
    let nonsense = world.cli(&["drain", "n1", "--at-deadline", "cancel"]).await.failed(2);
    assert!(nonsense.contains("--deadline"), "{nonsense}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_jobs_is_deregistered_only_by_force() {
    let world = World::new().await;
    let mut node = world.node("n1").await;
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    node.take().await;
    let refused = world.cli(&["deregister", "n1"]).await.failed(1);
    assert!(refused.contains("windlass drain n1 --wait"), "{refused}");
    let forced = world.cli(&["deregister", "n1", "--force"]).await.ok();
    assert_eq!(forced.stdout, "node/n1 deregistered\n");
    assert!(forced.stderr.contains("held 1 job; each goes back to its queue"), "{}", forced.stderr);
    assert_eq!(world.cli(&["get", "nodes", "-o", "name"]).await.ok().stdout, "");
    assert!(world.cli(&["deregister", "n1"]).await.failed(1).contains("there is no node `n1`"));
}
