//! A node in a network of its own, joined by nothing but the printed token.

use std::process::Command;
use std::time::{Duration, Instant};

use super::fleet::{Fleet, Process, program_in, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// Two network namespaces with one link between them, removed with the test.
struct Link {
    controller: String,
    node: String,
}

/// A subnet that is set aside for tests between two networks (RFC 2544).
const CONTROLLER: &str = "198.18.0.1";
const NODE: &str = "198.18.0.2";

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Link {
    fn make() -> Self {
        let number = std::process::id();
        let link = Self { controller: format!("wl-{number}-a"), node: format!("wl-{number}-b") };
        let Self { controller, node } = &link;
        ip(&format!("netns add {controller}"));
        ip(&format!("netns add {node}"));
        ip(&format!("-n {controller} link add far type veth peer name near netns {node}"));
        for (namespace, device, address) in [(controller, "far", CONTROLLER), (node, "near", NODE)] {
            ip(&format!("-n {namespace} addr add {address}/30 dev {device}"));
            ip(&format!("-n {namespace} link set {device} up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for namespace in [&self.controller, &self.node] {
            let output = Command::new("ip").args(["netns", "del", namespace]).output();
            let removed = output.is_ok_and(|output| output.status.success());
            assert!(removed || std::thread::panicking(), "namespace {namespace} could not be removed");
        }
    }
}

#[test]
fn a_node_elsewhere_joins_with_the_token_alone_and_follows_its_configuration() {
    let link = Link::make();
    let fleet = Fleet::on(&format!("{CONTROLLER}:12082"), Some(&link.controller), &[]);
    let token = fleet.json(&["join-token", "create"])["token"].as_str().expect("text").to_owned();
    let mut command = program_in(Some(&link.node));
    command.args(["agent", "--name", "far", "--join", &token, "--state-dir"]).arg(fleet.path("far"));
    let agent = Process::start(&mut command, fleet.path("far.log"));
    fleet.wait_until_node_is_ready("far");
    assert!(!agent.log().contains(&token), "secrets are not logged");
    let version = |field: &str| fleet.json(&["get", "node", "far"])["status"][field].as_u64().unwrap_or(0);
    assert_eq!((version("configVersion"), version("appliedVersion")), (1, 1));

    let apply = |spec: &str| {
        fleet.apply(&format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: far}}\nspec: {spec}\n"
        ))
    };
    // Ten changes, so that version 10 must beat version 9.
    for round in 2..=11 {
        apply(&format!("{{labels: {{round: \"{round}\"}}}}"));
        let applied = Instant::now();
        wait_for(&format!("version {round} is in force"), SOON, || {
            (version("appliedVersion") == round).then_some(())
        });
        assert!(applied.elapsed() < Duration::from_secs(2), "it took {} s", applied.elapsed().as_secs_f32());
    }

    apply("{labels: {round: broken}, sandbox: {hostPaths: [{path: /nowhere/at/all}]}}");
    let reason = wait_for("the node refuses what it cannot do", SOON, || {
        fleet.condition("far", "ConfigApplied").filter(|(status, _)| status == "False")
    });
    assert!(reason.1.contains("/nowhere/at/all"), "the reason names the value: {}", reason.1);
    assert_eq!((version("configVersion"), version("appliedVersion")), (12, 11), "the old one stays in force");
    fleet.script("there", "  nodeSelector: {windlass.dev/node: far}\n", "echo over there");
    fleet.wait_for_phase("there", "Succeeded", SOON);
}
