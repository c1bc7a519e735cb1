//! Two controllers that bridge one cluster, with clocks that are twenty minutes apart.

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::system::clocks::{Off, Shared};
use super::super::system::fleet::{Fleet, wait_for};
use super::world::{self, SOON, get};

/// How many lines of the log have this text.
fn told(fleet: &Fleet, text: &str) -> usize {
    fleet.controller.log().lines().filter(|line| line.contains(text)).count()
}

fn leads(fleet: &Fleet) -> usize {
    told(fleet, "this controller bridges the cluster")
}

#[test]
fn controllers_with_wrong_clocks_lead_one_at_a_time_and_run_each_job_once() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    let shared = Shared::new();
    let (config, label) = (cluster.kubeconfig("admin"), world::node_label(&namespace));
    let more = ["--kube-node-label", &label, "--kube-lease", "6s"];
    let settings = world::arguments(config.to_str().expect("paths are text"), &namespace, &more);
    let mut first = shared.controller(Off::Ahead, &settings);
    wait_for("the first leads", SOON, || (leads(&first) == 1).then_some(()));
    let second = shared.controller(Off::Behind, &settings);
    let nodes = ["one", "two"].map(|name| format!("{name}-{namespace}"));
    let agents = [first.agent(&nodes[0]), second.agent(&nodes[1])];
    let apply = |name: &str, fields: &str, source: &str| {
        cluster.apply(&world::job(&namespace, name, fields, source));
    };
    let status = |name: &str| get(cluster, &namespace, "sj", name)["status"].clone();
    let succeeded = |name: &str| -> Value {
        wait_for(&format!("{name} has succeeded"), SOON, || {
            let status = status(name);
            (status["phase"] == "Succeeded").then_some(status)
        })
    };
    let holder = || {
        let lease = get(cluster, &namespace, "lease", "windlass-controller");
        (lease["spec"]["holderIdentity"].clone(), lease["spec"]["leaseTransitions"].clone())
    };
    let held = holder();

    // For several leases: jobs that last for longer than one of an attempt, and of the Lease.
    for n in 0..4 {
        apply(&format!("long-{n}"), "", "for i in $(seq 150); do sleep 0.1; done");
    }
    apply("kept", "  ttlAfterFinished: 5m\n", "true");
    apply("goes", "  ttlAfterFinished: 1s\n", "true");
    for name in ["long-0", "long-1", "long-2", "long-3", "kept"] {
        let status = succeeded(name);
        assert_eq!(status["attempts"], 1, "{name}: {status}");
    }
    wait_for("the job whose time to live is over is gone", SOON, || status("goes").is_null().then_some(()));
    assert!(!status("kept").is_null());
    assert_eq!(holder(), held, "nobody else has had the lead");
    assert_eq!((leads(&first), leads(&second)), (1, 0), "{}", second.controller.log());
    assert_eq!(told(&first, "the lead of the cluster was lost"), 0, "{}", first.controller.log());

    // The other one takes over, and what the node of the dead one held moves to its own.
    second.text(&["cordon", &nodes[1]]);
    apply("moves", "", "sleep 3");
    wait_for("the job runs", SOON, || (status("moves")["phase"] == "Running").then_some(()));
    first.controller.kill();
    second.text(&["uncordon", &nodes[1]]);
    wait_for("the second leads", SOON, || (leads(&second) == 1).then_some(()));
    let moved = succeeded("moves");
    assert_eq!((&moved["attempts"], &moved["node"]), (&json!(2), &json!(nodes[1])), "{moved}");
    apply("after", "", "true");
    assert_eq!(succeeded("after")["attempts"], 1);
    assert_ne!(holder().0, held.0);
    drop(agents);
    for node in &nodes {
        cluster.kubectl(&["delete", "nc", node, "--ignore-not-found"]);
    }
    shared.end(vec![first, second]);
}
