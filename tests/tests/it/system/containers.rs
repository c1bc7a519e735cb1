//! Jobs in containers, from the manifest to the result: placed where the engine is, with a reason for whatever goes wrong, and
//! nothing left behind.

use std::process::Command;
use std::time::Duration;

use windlass_test_engines::{IMAGE, socket};

use super::fleet::{Fleet, Process, wait_for};

const SOON: Duration = Duration::from_secs(90);

/// An agent that finds one engine, and no other.
fn agent_with(fleet: &Fleet, name: &str, engine: &str) -> Process {
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let socket = socket(engine).display().to_string();
    let option = format!("--{engine}-socket");
    let agent = fleet.run_agent(name, &["--join", &token, &option, &socket]);
    fleet.wait_until_node_is_ready(name);
    agent
}

fn manifest(name: &str, runtime: &str, image: &str, fields: &str, steps: &str) -> String {
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n{fields}  sandbox: {{runtime: \
         {runtime}, image: '{image}'}}\n  steps:\n{steps}"
    )
}

/// Containers of a job that an engine knows.
fn containers(engine: &str, uid: &str) -> String {
    let host = format!("unix://{}", socket(engine).display());
    let mut list = Command::new(engine);
    match engine {
        "podman" => list.args(["--remote", "--url", &host]),
        _ => list.args(["-H", &host]),
    };
    list.args(["ps", "-a", "-q", "--filter"]).arg(format!("label=dev.windlass.job={uid}"));
    windlass_test_engines::run(&mut list).trim().to_owned()
}

#[test]
fn a_job_in_containers_runs_where_its_engine_is_and_tells_what_went_wrong() {
    let fleet = Fleet::start();
    let _podman = agent_with(&fleet, "with-podman", "podman");
    let _docker = agent_with(&fleet, "with-docker", "docker");
    for engine in ["podman", "docker"] {
        let name = format!("steps-{engine}");
        let steps = "  - {name: write, script: {interpreter: sh, source: 'echo from-script > out; id -u; pwd'}}\n  \
                     - {name: show, container: {entrypoint: [/bin/cat], args: [out]}}\n";
        fleet.apply(&manifest(&name, engine, IMAGE, "", steps));
        let job = fleet.wait_for_phase(&name, "Succeeded", SOON);
        assert_eq!(job["status"]["node"], format!("with-{engine}"), "{job}");
        let logs = fleet.text(&["logs", &name]);
        assert!(logs.contains("from-script") && logs.contains("/workspace"), "{logs}");
        assert!(!logs.lines().any(|line| line.trim() == "0"), "no step is root: {logs}");
        assert_eq!(containers(engine, job["metadata"]["uid"].as_str().expect("it has one")), "");
        // A program that fails, and an image that is not there.
        let failing = "  - {name: fail, command: [sh, -c, 'exit 9']}\n";
        let cases = [
            ("code", IMAGE, failing, "StepFailed", "exited with code 9"),
            (
                "missing",
                "localhost/no-such-image:1",
                failing,
                "ImageNotFound",
                "made there and never fetched",
            ),
        ];
        for (case, image, steps, reason, word) in cases {
            let name = format!("{case}-{engine}");
            fleet.apply(&manifest(&name, engine, image, "", steps));
            let job = fleet.wait_for_phase(&name, "Failed", SOON);
            assert_eq!(job["status"]["reason"], reason, "{job}");
            assert!(job["status"]["message"].as_str().unwrap_or_default().contains(word), "{job}");
        }
        // An image that no node allows keeps the job waiting, and the rule is named.
        let name = format!("forbidden-{engine}");
        fleet.apply(&manifest(&name, engine, "registry.example/a/b:1", "", failing));
        wait_for("the rule is named", SOON, || {
            let said = String::from_utf8_lossy(&fleet.cli(&["why", &name]).stdout).into_owned();
            said.contains("registry.example/a/b is not within the node's sandbox.images.allowed")
                .then_some(())
        });
        // A job that is cancelled leaves no container.
        let name = format!("cancel-{engine}");
        let steps = "  - {name: wait, script: {interpreter: sh, source: 'echo up; sleep 600'}}\n";
        fleet.apply(&manifest(&name, engine, IMAGE, "", steps));
        let uid = fleet.job(&name)["metadata"]["uid"].as_str().expect("it has one").to_owned();
        wait_for("the job runs", SOON, || (!containers(engine, &uid).is_empty()).then_some(()));
        fleet.text(&["cancel", &name]);
        fleet.wait_for_phase(&name, "Cancelled", SOON);
        wait_for("its container is gone", SOON, || containers(engine, &uid).is_empty().then_some(()));
    }
}

#[test]
fn manifests_cannot_ask_for_privileges_or_host_namespaces() {
    let fleet = Fleet::start();
    for (field, value) in
        [("privileged", "true"), ("hostNetwork", "true"), ("pid", "host"), ("capAdd", "[SYS_ADMIN]")]
    {
        for at in ["sandbox", "container"] {
            let text = match at {
                "sandbox" => format!("runtime: podman, image: x, {field}: {value}"),
                _ => "runtime: podman, image: x".to_owned(),
            };
            let step = match at {
                "sandbox" => "command: ['true']".to_owned(),
                _ => format!("container: {{{field}: {value}}}"),
            };
            let manifest = format!(
                "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: a}}\nspec:\n  sandbox: {{{text}}}\n  \
                 steps: [{{name: s, {step}}}]\n"
            );
            let file = fleet.path("refused.yaml");
            std::fs::write(&file, manifest).expect("the manifest can be written");
            let output = fleet.cli(&["apply", "-f", file.to_str().expect("the path is text")]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(field), "{at}.{field}: {said}");
        }
    }
}

#[test]
fn a_native_job_sees_an_image_of_its_node_by_leave_of_the_node() {
    let fleet = Fleet::start();
    let images = fleet.path("images");
    std::fs::create_dir(&images).expect("the folder can be made");
    let archive = images.join("busybox.tar");
    let host = format!("unix://{}", socket("podman").display());
    let mut save = Command::new("podman");
    save.args(["--remote", "--url", &host, "save", "--format", "oci-archive", "-o"]).arg(&archive).arg(IMAGE);
    windlass_test_engines::run(&mut save);
    let _agent = fleet.agent("n1");
    let node = |keep: &str| {
        format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: n1}}\nspec:\n  sandbox: {{images: {{folders: \
             [{}]{keep}}}}}\n",
            images.display()
        )
    };
    fleet.apply(&node(""));
    wait_for("the configuration is in force", SOON, || {
        let status = &fleet.json(&["get", "node", "n1"])["status"];
        (status["appliedVersion"] == status["configVersion"] && status["configVersion"] != 1).then_some(())
    });
    let image = format!("oci-archive:{}", archive.display());
    let steps = "  - {name: script, script: {interpreter: sh, source: '[ ! -e /usr/bin ] && echo in-the-image > out; id -u'}}\n  \
                 - {name: program, container: {entrypoint: [/bin/cat], args: [out]}}\n";
    fleet.apply(&manifest("image", "native", &image, "", steps));
    fleet.wait_for_phase("image", "Succeeded", SOON);
    let logs = fleet.text(&["logs", "image"]);
    assert_eq!(logs.matches("in-the-image").count(), 1, "{logs}");
    let other = format!("oci-archive:{}", fleet.path("other.tar").display());
    let missing = format!("oci-archive:{}", images.join("missing.tar").display());
    let named = format!("{image}:localhost/no-such:1");
    let bash = "  - {name: fail, script: {source: 'true'}}\n";
    for (name, image, steps, reason, words) in [
        ("missing", &*missing, steps, "ImageNotFound", "is not on the node"),
        ("misnamed", &*named, steps, "ImageNotFound", "it holds localhost/windlass-test:1"),
        ("shell", &*image, bash, "StepFailed", "the interpreter `bash` is not in the sandbox"),
    ] {
        fleet.apply(&manifest(name, "native", image, "", steps));
        let job = fleet.wait_for_phase(name, "Failed", SOON);
        assert_eq!(job["status"]["reason"], reason, "{job}");
        assert!(job["status"]["message"].as_str().unwrap_or_default().contains(words), "{job}");
    }
    // An image elsewhere waits for a node that allows its folder.
    fleet.apply(&manifest("elsewhere", "native", &other, "", steps));
    wait_for("the rule is named", SOON, || {
        let said = String::from_utf8_lossy(&fleet.cli(&["why", "elsewhere"]).stdout).into_owned();
        said.contains("is not within the node's sandbox.images.folders").then_some(())
    });
    // What is unpacked stays for the next job, unless the node keeps less.
    let unpacked = || {
        let folder =
            std::fs::read_dir(fleet.path("n1").join("sandbox/images")).expect("the agent has made it");
        folder.map(|entry| entry.expect("it can be listed").file_name()).collect::<Vec<_>>()
    };
    fleet.apply(&node(", keep: 1Gi"));
    assert_eq!(unpacked().len(), 1);
    fleet.apply(&node(", keep: '0'"));
    wait_for("the image that nobody uses is gone", SOON, || unpacked().is_empty().then_some(()));
}
