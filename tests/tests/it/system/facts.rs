//! What a node tells of its host, from the manifest to the command line, over an outage of the controller.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use windlass_test_engines::socket;

use super::fleet::{Fleet, wait_for};

const SOON: Duration = Duration::from_secs(90);

fn append(path: &Path, text: &str) {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the log can be written");
}

/// The texts of all reports that the controller keeps, put together in their order.
fn told(fleet: &Fleet, node: &str) -> (Vec<Value>, String) {
    let state = fleet.path("controller");
    let token = std::fs::read_to_string(state.join("admin.token")).expect("the controller has made it");
    let output = std::process::Command::new("curl")
        .args(["-sS", "--fail", "--cacert"])
        .arg(state.join("pki/ca.crt"))
        .arg("-H")
        .arg(format!("authorization: Bearer {}", token.trim()))
        .arg(format!("{}/v1/nodes/{node}/facts?limit=50", fleet.url))
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the controller answers in JSON");
    let mut reports: Vec<Value> = answer["items"]
        .as_array()
        .expect("items is a list")
        .iter()
        .map(|item| item["facts"].clone())
        .collect();
    reports.reverse();
    let text = reports
        .iter()
        .filter(|facts| facts["job"].is_null())
        .map(|facts| facts["logs"][0]["text"].as_str().unwrap_or_default().to_owned())
        .collect();
    (reports, text)
}

#[test]
fn a_node_tells_its_host_its_containers_and_each_line_of_its_logs_once() {
    let mut fleet = Fleet::start();
    let log = fleet.path("app.log");
    append(&log, "line 1\n");
    let manifest = |steps: bool| {
        format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: n}}\nspec: {{facts: {{every: 10s, steps: \
             {steps}, logs: [{{path: {}}}, {{path: /nonexistent/log}}]}}}}\n",
            log.display()
        )
    };
    fleet.apply(&manifest(true));
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let (podman, docker) = (socket("podman").display().to_string(), socket("docker").display().to_string());
    let _agent =
        fleet.run_agent("n", &["--join", &token, "--podman-socket", &podman, "--docker-socket", &docker]);
    fleet.wait_until_node_is_ready("n");
    let first = wait_for("the node tells its facts", SOON, || told(&fleet, "n").0.into_iter().next());
    assert_eq!(
        (first["node"].as_str(), first["logs"][0]["text"].as_str()),
        (Some("n"), Some("line 1\n")),
        "{first}"
    );
    assert!(first["host"]["memoryBytes"].as_u64() > Some(0), "{first}");
    let problems = first["problems"].to_string();
    assert!(problems.contains("/nonexistent/log"), "{problems}");
    let shown = fleet.text(&["facts", "n"]);
    assert!(
        shown.contains("node/n, ") && shown.contains("line 1") && shown.contains("not told: "),
        "{shown}"
    );

    // A step has the same as its output, with containers of the engine; the job's own uid is in it.
    fleet.apply(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {name: look}\nspec:\n  steps:\n  - {name: look, facts: \
         {include: [host, containers]}}\n  - {name: go-on, command: ['true']}\n",
    );
    let job = fleet.wait_for_phase("look", "Succeeded", SOON);
    let logs = fleet.text(&["logs", "look"]);
    let start = logs.find('{').unwrap_or_else(|| panic!("{logs}"));
    let facts: Value = serde_json::Deserializer::from_str(&logs[start..])
        .into_iter::<Value>()
        .next()
        .expect("it printed something")
        .unwrap_or_else(|error| panic!("{error}: {logs}"));
    assert_eq!(facts["job"], job["metadata"]["uid"], "{facts}");
    assert!(facts["logs"].is_null() && facts["host"]["cpus"].as_u64() > Some(0), "{facts}");

    // What is written while nobody listens arrives afterwards, once and in its order, over a rotation too.
    fleet.controller.signal("TERM");
    wait_for("the controller has ended", SOON, || fleet.controller.has_ended());
    append(&log, "line 2\n");
    std::fs::rename(&log, fleet.path("app.log.1")).expect("the log can be rotated");
    append(&log, "line 3\n");
    fleet.restart_controller();
    append(&log, "line 4\n");
    wait_for("every line has arrived", SOON, || {
        let (_, text) = told(&fleet, "n");
        (text == "line 1\nline 2\nline 3\nline 4\n").then_some(())
    });

    // A node that does not allow it gets no such job.
    fleet.apply(&manifest(false));
    wait_for("the node has the new configuration", SOON, || {
        let node = fleet.json(&["get", "node", "n"]);
        (node["status"]["appliedVersion"] == node["status"]["configVersion"]).then_some(())
    });
    fleet.apply(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {name: pry}\nspec:\n  steps:\n  - {name: look, facts: {}}\n",
    );
    wait_for("the rule is named", SOON, || {
        let said = String::from_utf8_lossy(&fleet.cli(&["why", "pry"]).stdout).into_owned();
        said.contains("not allowed by the node's facts.steps").then_some(())
    });
}
