//! Steps that start, stop and restart containers of their node, on both engines: by leave of the node alone, looked after until the
//! container is as it should be, and put back where it does not get there.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use windlass_test_engines::{Made, run, socket};

use super::fleet::{Fleet, Process, wait_for};

const SOON: Duration = Duration::from_secs(90);
/// Runs until it is told to stop.
const SERVES: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

fn made(engine: &str, name: &str, options: &[&str], script: &str) -> Made {
    Made::new(engine, &socket(engine), name, options, script)
}

fn started(engine: &str, name: &str, options: &[&str], script: &str) -> Made {
    Made::started(engine, &socket(engine), name, options, script)
}

fn agent(fleet: &Fleet, name: &str, engines: &[&str]) -> Process {
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let mut options = vec!["--join".to_owned(), token];
    for engine in engines {
        options.extend([format!("--{engine}-socket"), socket(engine).display().to_string()]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let agent = fleet.run_agent(name, &options);
    fleet.wait_until_node_is_ready(name);
    agent
}

/// Declares which containers of a node jobs may touch, and waits until the node has it.
fn allow(fleet: &Fleet, node: &str, names: &[&str]) {
    fleet.apply(&format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: {node}}}\nspec: {{sandbox: {{services: [{}]}}}}\n",
        names.join(", ")
    ));
    wait_for("the node has the new configuration", SOON, || {
        let node = fleet.json(&["get", "node", node]);
        (node["status"]["appliedVersion"] == node["status"]["configVersion"]).then_some(())
    });
}

fn manifest(name: &str, fields: &str, service: &str) -> String {
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n  steps:\n  - {{name: act{fields}, \
         service: {{{service}}}}}\n"
    )
}

/// What the step has told on standard output.
fn told(fleet: &Fleet, job: &str) -> Value {
    let logs = fleet.text(&["logs", job]);
    let start = logs.find('{').unwrap_or_else(|| panic!("{logs}"));
    let mut values = serde_json::Deserializer::from_str(&logs[start..]).into_iter::<Value>();
    values.next().expect("it printed something").unwrap_or_else(|error| panic!("{error}: {logs}"))
}

/// The step of a job that has ended.
fn ended(fleet: &Fleet, job: &str, phase: &str) -> Value {
    let job = fleet.wait_for_phase(job, phase, SOON);
    let mut step = job["status"]["steps"][0].clone();
    step["job"] = job["status"]["message"].clone();
    step
}

/// What is told of a job, its attempts and events included.
fn events(fleet: &Fleet, job: &str) -> String {
    fleet.text(&["describe", "job", job])
}

#[test]
fn a_listed_container_is_restarted_stopped_and_started_and_no_other_is_touched() {
    let fleet = Fleet::start();
    let _agent = agent(&fleet, "n", &["podman", "docker"]);
    for engine in ["podman", "docker"] {
        let web = started(engine, "web", &[], SERVES);
        let other = started(engine, "other", &[], SERVES);
        allow(&fleet, "n", &[&web.name]);
        let name = &web.name;
        let (_, first) = web.state();
        fleet.apply(&manifest(&format!("restart-{engine}"), "", &format!("action: restart, name: {name}")));
        ended(&fleet, &format!("restart-{engine}"), "Succeeded");
        let (state, second) = web.state();
        assert!(state == "running" && first != second, "{first} {second}");
        let output = told(&fleet, &format!("restart-{engine}"));
        assert_eq!(output["container"], *name, "{output}");
        assert_eq!(output["runtime"], engine, "{output}");
        assert_eq!(
            (&output["stateBefore"], &output["stateAfter"]),
            (&"running".into(), &"running".into()),
            "{output}"
        );
        assert!(output["startedAt"].as_str().is_some_and(|at| at.starts_with("20")), "{output}");
        let said = events(&fleet, &format!("restart-{engine}"));
        assert!(
            said.contains("ServiceActing") && said.contains("ServiceActed") && said.contains(name.as_str()),
            "{said}"
        );
        for (action, state) in
            [("stop", "exited"), ("stop", "exited"), ("start", "running"), ("start", "running")]
        {
            let job = format!("{action}-{engine}");
            fleet.apply(&manifest(&job, "", &format!("action: {action}, name: {name}, runtime: {engine}")));
            ended(&fleet, &job, "Succeeded");
            assert_eq!(
                (web.state().0.as_str(), told(&fleet, &job)["stateAfter"].as_str()),
                (state, Some(state))
            );
            fleet.text(&["delete", "job", &job]);
        }

        // One that no node lists keeps the job waiting, and the rule is named.
        let before = other.state();
        fleet.apply(&manifest(
            &format!("other-{engine}"),
            "",
            &format!("action: stop, name: {}", other.name),
        ));
        wait_for("the rule is named", SOON, || {
            let said =
                String::from_utf8_lossy(&fleet.cli(&["why", &format!("other-{engine}")]).stdout).into_owned();
            said.contains(&format!(
                "container {} is not among the node's sandbox.services, which lists {name}",
                other.name
            ))
            .then_some(())
        });
        assert_eq!(other.state(), before);
        // One that is not there.
        allow(&fleet, "n", &["no-such-container"]);
        let missing = format!("missing-{engine}");
        fleet.apply(&manifest(
            &missing,
            "",
            &format!("action: start, name: no-such-container, runtime: {engine}"),
        ));
        let step = ended(&fleet, &missing, "Failed");
        assert_eq!(step["reason"], "ValidationError", "{step}");
        let message = step["message"].as_str().unwrap_or_default();
        assert!(message.contains("steps[act].service.name") && message.contains("windlass facts"), "{step}");
        // The beginning of an id is no name, whatever engines think of it.
        let id = run(web.program().args(["inspect", "-f", "{{.Id}}", name]));
        let short = &id.trim()[..12];
        allow(&fleet, "n", &[&format!("'{short}'")]);
        let by_id = format!("by-id-{engine}");
        fleet.apply(&manifest(&by_id, "", &format!("action: stop, name: '{short}', runtime: {engine}")));
        assert_eq!(ended(&fleet, &by_id, "Failed")["reason"], "ValidationError");
        assert_eq!(web.state().0, "running");
        // What Windlass has made is nobody's to touch, also where it is listed.
        let own = started(engine, "own", &["--label", "dev.windlass.owner=somebody"], SERVES);
        allow(&fleet, "n", &[&own.name]);
        let before = own.state();
        fleet.apply(&manifest(&format!("own-{engine}"), "", &format!("action: restart, name: {}", own.name)));
        let job = fleet.wait_for_phase(&format!("own-{engine}"), "Failed", SOON);
        assert_eq!(job["status"]["reason"], "PolicyRefused", "{job}");
        assert!(job["status"]["message"].to_string().contains("made by Windlass"), "{job}");
        assert_eq!(own.state(), before);
    }
}

#[test]
fn a_container_that_does_not_come_up_or_get_well_fails_its_step_and_is_put_back() {
    let fleet = Fleet::start();
    let _agent = agent(&fleet, "n", &["podman", "docker"]);
    for engine in ["podman", "docker"] {
        // It dies at once whenever it was told to.
        let dies = started(engine, "dies", &[], &format!("test -e /tmp/die && exit 3; {SERVES}"));
        // It dies once, and comes up the next time.
        let once = "if test -e /tmp/die && ! test -e /tmp/died; then touch /tmp/died; exit 3; fi; ";
        let once = started(engine, "once", &[], &format!("{once}{SERVES}"));
        let sick = started(
            engine,
            "sick",
            &["--health-cmd", "false", "--health-interval", "1s", "--health-retries", "1"],
            SERVES,
        );
        // It was stopped and cannot be started.
        let stopped = made(engine, "stopped", &[], "exit 4");
        allow(&fleet, "n", &[&dies.name, &once.name, &sick.name, &stopped.name]);
        for made in [&dies, &once] {
            run(made.program().args(["exec", &made.name, "touch", "/tmp/die"]));
        }
        let act = |job: &str, made: &Made, action: &str| {
            let job = format!("{job}-{engine}");
            fleet.apply(&manifest(
                &job,
                "",
                &format!("action: {action}, name: {}, timeoutSeconds: 5", made.name),
            ));
            let step = ended(&fleet, &job, "Failed");
            (
                step["reason"].as_str().unwrap_or_default().to_owned(),
                step["message"].to_string(),
                events(&fleet, &job),
            )
        };
        let (reason, message, said) = act("once", &once, "restart");
        assert_eq!(reason, "PostcheckError", "{message}");
        assert!(
            message.contains("it has ended with code 3") && message.contains("was started again"),
            "{message}"
        );
        assert!(said.contains("RolledBack"), "{said}");
        assert_eq!(once.state().0, "running");

        let (reason, message, said) = act("dies", &dies, "restart");
        assert_eq!(reason, "RollbackError", "{message}");
        assert!(message.contains("not rolled back") && message.contains("ended with code 3"), "{message}");
        assert!(said.contains("RollbackFailed"), "{said}");

        let (reason, message, _) = act("sick", &sick, "restart");
        assert_eq!(reason, "PostcheckError", "{message}");
        assert!(message.contains("health check") && message.contains("runs, as before"), "{message}");
        assert_eq!(sick.state().0, "running");

        let (reason, message, _) = act("stopped", &stopped, "start");
        assert_eq!(reason, "PostcheckError", "{message}");
        assert!(
            message.contains("it has ended with code 4") && message.contains("is stopped, as before"),
            "{message}"
        );
        // A job may go on all the same.
        let job = format!("goes-on-{engine}");
        let service = format!("action: start, name: {}, timeoutSeconds: 5", stopped.name);
        fleet.apply(&manifest(&job, ", continueOnError: true", &service));
        assert_eq!(ended(&fleet, &job, "Succeeded")["phase"], "Failed");
    }
}

#[test]
fn a_restart_that_is_cut_off_is_finished_by_the_engine_and_not_repeated_by_the_agent() {
    let fleet = Fleet::start();
    let mut agent = agent(&fleet, "n", &["podman", "docker"]);
    for engine in ["podman", "docker"] {
        // It takes no notice of TERM, so that restarting it takes its time.
        let slow = started(engine, "slow", &[], "trap '' TERM; while :; do sleep 1; done");
        allow(&fleet, "n", &[&slow.name]);
        let begun = |job: &str, fields: &str, seconds: u32| {
            let service = format!("action: restart, name: {}, timeoutSeconds: {seconds}", slow.name);
            fleet.apply(&manifest(job, fields, &service));
            wait_for("the engine is asked", SOON, || {
                events(&fleet, job).contains("ServiceActing").then_some(())
            });
        };
        let restarted_since = |before: &str| {
            wait_for("the engine has restarted it", SOON, || {
                let (state, started) = slow.state();
                (state == "running" && started != before).then_some(started)
            })
        };
        // Cancelled.
        let (_, first) = slow.state();
        let job = format!("cancelled-{engine}");
        begun(&job, "", 6);
        fleet.text(&["cancel", &job]);
        fleet.wait_for_phase(&job, "Cancelled", Duration::from_secs(10));
        assert!(events(&fleet, &job).contains("ServiceNotAwaited"), "{}", events(&fleet, &job));
        let second = restarted_since(&first);
        // Out of time.
        let job = format!("late-{engine}");
        begun(&job, ", timeout: 2s", 6);
        let step = ended(&fleet, &job, "Failed");
        assert_eq!(step["reason"], "Timeout", "{step}");
        let third = restarted_since(&second);
        // The agent is killed in the middle of it.
        let job = format!("killed-{engine}");
        begun(&job, "", 10);
        agent.kill();
        let (podman, docker) =
            (socket("podman").display().to_string(), socket("docker").display().to_string());
        agent = fleet.run_agent("n", &["--podman-socket", &podman, "--docker-socket", &docker]);
        ended(&fleet, &job, "Succeeded");
        let fourth = restarted_since(&third);
        let said = events(&fleet, &job);
        assert!(said.contains("ServiceTakenUp") && said.contains("is not repeated"), "{said}");
        assert_eq!(slow.state().1, fourth);
        assert_eq!(told(&fleet, &job)["stateBefore"], "running");
    }
}

#[test]
fn a_job_for_an_engine_that_is_down_waits_and_says_so() {
    let fleet = Fleet::start();
    let folder = windlass_test_engines::folder();
    let own = fleet.path("podman.sock");
    let pid = windlass_test_engines::serve_podman(folder, &own);
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let _agent = fleet.run_agent("n", &["--join", &token, "--podman-socket", own.to_str().expect("text")]);
    fleet.wait_until_node_is_ready("n");
    let web = started("podman", "down", &[], SERVES);
    allow(&fleet, "n", &[&web.name]);
    let before = web.state();
    let status = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
    // As the first step the job goes back to where it came from; later, the step fails.
    fleet.apply(&manifest("first", "", &format!("action: restart, name: {}", web.name)));
    wait_for("the job was given back", SOON, || {
        events(&fleet, "first").contains("EngineUnavailable").then_some(())
    });
    fleet.text(&["cancel", "first"]);
    fleet.apply(&format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: later}}\nspec:\n  steps:\n  - {{name: a, command: \
         ['true']}}\n  - {{name: act, service: {{action: restart, name: {}}}}}\n",
        web.name
    ));
    let job = fleet.wait_for_phase("later", "Failed", SOON);
    let step = &job["status"]["steps"][1];
    assert_eq!(step["reason"], "ExecutionError", "{job}");
    assert!(step["message"].to_string().contains("podman.sock"), "{job}");
    assert_eq!(web.state(), before);
    // A node without the engine that a job names is not given it.
    fleet.apply(&manifest("docker", "", &format!("action: restart, name: {}, runtime: docker", web.name)));
    wait_for("the engine is named", SOON, || {
        let said = String::from_utf8_lossy(&fleet.cli(&["why", "docker"]).stdout).into_owned();
        said.contains("needs docker, which does not work on the node").then_some(())
    });
}
