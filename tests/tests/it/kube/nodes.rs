//! Nodes and templates by kubectl.

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::system::fleet::wait_for;
use super::world::{self, SOON, World};

/// The object of a node; null where there is none.
fn object(cluster: &Cluster, name: &str) -> Value {
    world::get(cluster, "default", "nodeconfig", name)
}

fn wait_for_object(world: &World, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("node {name} {what}"), SOON, || {
        let node = object(world.cluster, name);
        holds(&node).then_some(node)
    })
}

fn condition_is(node: &Value, name: &str, status: &str) -> bool {
    World::condition(node, name).is_some_and(|(found, _, _)| found == status)
}

/// The manifest of a node of this world.
fn manifest(world: &World, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: windlass.dev/v1alpha1, kind: NodeConfig, \
         metadata: {{name: {name}, labels: {{windlass.dev/fleet: {}}}}}, spec: {spec}}}",
        world.namespace
    )
}

#[test]
fn a_node_that_registers_gets_an_object_by_which_it_is_configured() {
    let world = World::start();
    let name = format!("a-{}", world.namespace);
    let agent = world.fleet.agent(&name);
    let node = wait_for_object(&world, &name, "is Ready", |node| condition_is(node, "Ready", "True"));
    assert_eq!(node["status"]["state"], "Online");
    assert!(node["status"].to_string().len() < 8 * 1024);
    world.cluster.apply(&manifest(&world, &name, "{labels: {zone: cellar}, concurrency: 3}"));
    let node = wait_for_object(&world, &name, "has applied its configuration", |node| {
        node["status"]["labels"]["zone"] == "cellar"
            && node["status"]["appliedVersion"] == node["status"]["configVersion"]
    });
    assert_eq!(node["status"]["slots"], 3);
    let table = world.cluster.kubectl(&["get", "nc", &name]);
    assert!(table.contains("True"), "{table}");
    // It is changed there and nowhere else.
    let path = world.fleet.path("node.yaml");
    std::fs::write(&path, manifest(&world, &name, "{concurrency: 1}")).expect("written");
    let output = world.fleet.cli(&["apply", "-f", path.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("declared in Kubernetes"), "{said}");
    // What an operator asks by a command is another matter.
    world.fleet.text(&["cordon", &name]);
    wait_for_object(&world, &name, "is cordoned", |node| {
        World::condition(node, "Schedulable")
            .is_some_and(|(status, reason, _)| status == "False" && reason == "Cordoned")
    });
    // A node that lives has its object again, with the default configuration.
    let uid = node["metadata"]["uid"].clone();
    world.cluster.kubectl(&["delete", "nc", &name]);
    let node = wait_for_object(&world, &name, "has another object", |node| {
        node["metadata"]["uid"].is_string() && node["metadata"]["uid"] != uid
    });
    assert_eq!(node["spec"]["concurrency"], Value::Null);
    drop(agent);
    // Only a node that has been silent is forgotten; one that says that it stops may come back.
    wait_for_object(&world, &name, "is silent", |node| {
        World::condition(node, "Ready").is_some_and(|(_, reason, _)| reason == "HeartbeatStale")
    });
    world.cluster.kubectl(&["delete", "nc", &name]);
    wait_for("the node is deregistered", SOON, || {
        (!world.fleet.cli(&["get", "node", &name, "-o", "json"]).status.success()).then_some(())
    });
}

#[test]
fn a_node_is_renamed_by_another_object_and_an_invalid_one_keeps_what_was_in_force() {
    let world = World::start();
    let [old, new] = ["old", "new"].map(|word| format!("{word}-{}", world.namespace));
    for name in [&old, &new] {
        world.cluster.apply(&manifest(&world, name, "{concurrency: 2}"));
        wait_for_object(&world, name, "is accepted", |node| condition_is(node, "Accepted", "True"));
    }
    assert_eq!(World::condition(&object(world.cluster, &old), "Registered").expect("it is set").0, "False");
    let path = "{concurrency: 5, sandbox: {hostPaths: [{path: /a/../b}]}}";
    let (applied, said) = world.cluster.pipe(&["apply", "-f", "-"], &manifest(&world, &old, path));
    assert!(applied, "{said}");
    wait_for_object(&world, &old, "is told to be wrong", |node| {
        World::condition(node, "Accepted")
            .is_some_and(|(status, reason, _)| status == "False" && reason == "Invalid")
    });
    assert_eq!(world.fleet.json(&["get", "node", &old])["spec"]["concurrency"], 2);
    world.cluster.kubectl(&["delete", "nc", &old]);
    wait_for("the old name is forgotten", SOON, || {
        (!world.fleet.cli(&["get", "node", &old, "-o", "json"]).status.success()).then_some(())
    });
    assert_eq!(world.fleet.json(&["get", "node", &new])["spec"]["concurrency"], 2);
    world.cluster.kubectl(&["delete", "nc", &new]);
}

#[test]
fn two_objects_that_claim_one_node_end_in_a_condition() {
    let mut world = World::start();
    let name = format!("claimed-{}", world.namespace);
    // One that Windlass's own API configured otherwise.
    let path = world.fleet.path("node.yaml");
    std::fs::write(&path, manifest(&world, &name, "{concurrency: 1}")).expect("written");
    world.fleet.text(&["apply", "-f", path.to_str().expect("text")]);
    world.cluster.apply(&manifest(&world, &name, "{concurrency: 2}"));
    wait_for_object(&world, &name, "is refused", |node| {
        World::condition(node, "Accepted")
            .is_some_and(|(status, reason, _)| status == "False" && reason == "NameTaken")
    });
    assert_eq!(world.fleet.json(&["get", "node", &name])["spec"]["concurrency"], 1);
    world.cluster.apply(&manifest(&world, &name, "{concurrency: 1}"));
    wait_for_object(&world, &name, "is accepted", |node| condition_is(node, "Accepted", "True"));
    // And one of another cluster: the same object, reached under another name.
    world.fleet.controller.kill();
    let config = world.cluster.kubeconfig("admin");
    let label = world::node_label(&world.namespace);
    let settings = ["--kube-node-label", &label, "--kube-cluster", "another"];
    let mut arguments = world::arguments(config.to_str().expect("text"), &world.namespace, &settings);
    arguments.push("--kube-lease=3s");
    world.fleet.restart_controller_with(&arguments);
    wait_for_object(&world, &name, "is refused again", |node| {
        World::condition(node, "Accepted").is_some_and(|(_, _, message)| message.contains("another object"))
    });
    world.cluster.kubectl(&["delete", "nc", &name]);
}

#[test]
fn a_template_is_kept_by_version() {
    let world = World::start();
    let template = |version: u32, job: &str| {
        let manifest = format!(
            "{{apiVersion: windlass.dev/v1alpha1, kind: JobTemplate, metadata: {{name: greet, namespace: {}}}, \
             spec: {{version: '{version}', job: {{{job}}}}}}}",
            world.namespace
        );
        world.cluster.pipe(&["apply", "-f", "-"], &manifest)
    };
    let wait = |status: &str, reason: &str| {
        wait_for(&format!("the template is {reason}"), SOON, || {
            let template = world.get("jobtemplate", "greet");
            let (found, why, _) = World::condition(&template, "Accepted")?;
            (found == status && why == reason).then_some(())
        });
    };
    assert!(template(1, "command: [hello]").0);
    wait("True", "Accepted");
    let (applied, said) = template(1, "command: [goodbye]");
    if world.cluster.knows_cel() {
        assert!(!applied && said.contains("raise `version`"), "{said}");
    } else {
        wait("False", "VersionConflict");
    }
    assert!(template(2, "command: [goodbye]").0);
    wait("True", "Accepted");
    let command = || {
        let stored = world.fleet.json(&["-n", &world.namespace, "get", "template", "greet"]);
        stored["spec"]["job"]["command"].clone()
    };
    assert_eq!(command(), json!(["goodbye"]));
    // What no schema says.
    assert!(template(3, "command: [hello], timeout: 90d").0);
    wait("False", "Invalid");
    let (_, _, message) =
        World::condition(&world.get("jobtemplate", "greet"), "Accepted").expect("it is there");
    assert!(message.contains("timeout"), "{message}");
    assert_eq!(command(), json!(["goodbye"]), "what was in force stays so");
    assert!(template(4, "command: [hello]").0);
    wait("True", "Accepted");
    world.kubectl(&["delete", "jt", "greet"]);
    wait_for("the template is gone", SOON, || {
        let output = world.fleet.cli(&["-n", &world.namespace, "get", "template", "greet", "-o", "json"]);
        (!output.status.success()).then_some(())
    });
}
