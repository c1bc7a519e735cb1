//! Artifacts from the step that writes them to the file of whoever wants them, by processes of their own.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use windlass_test_engines::{IMAGE, socket};

use super::fleet::{Fleet, wait_for};

const SOON: Duration = Duration::from_secs(90);
const PASSWORD: &str = "Tr0ub4dor-and-3-more";

/// Name, state and reason of each artifact of a job.
fn listed(fleet: &Fleet, job: &str) -> Vec<(String, String, String)> {
    let list = fleet.json(&["artifacts", job]);
    let text = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().expect("items is a list").iter();
    items.map(|item| (text(item, "name"), text(item, "state"), text(item, "reason"))).collect()
}

/// Waits until everything that a job has left is there or refused.
fn settled(fleet: &Fleet, job: &str) -> Vec<(String, String, String)> {
    wait_for(&format!("the artifacts of {job}"), SOON, || {
        let listed = listed(fleet, job);
        (!listed.is_empty() && listed.iter().all(|(_, state, _)| state != "Pending")).then_some(listed)
    })
}

/// What lies in the spool of a node.
fn spooled(fleet: &Fleet, node: &str) -> usize {
    std::fs::read_dir(fleet.path(node).join("artifacts")).map_or(0, Iterator::count)
}

/// How many bodies of artifacts the controller keeps, parts of uploads that were cut short aside.
fn bodies(fleet: &Fleet) -> usize {
    let mut folders = vec![fleet.path("controller/bodies/artifacts")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_part = entry.file_name().to_string_lossy().contains('#');
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if !is_part => count += 1,
                Ok(_) | Err(_) => {}
            }
        }
    }
    count
}

/// Leaves what is wanted, and everything that a job that means ill can think of.
const LEAVING: &str = r#"cd "$WINDLASS_ARTIFACTS_DIR"
mkdir -p out
echo '# Report' > out/report.md
head -c 3000000 /dev/urandom > random.bin
sha256sum < random.bin
echo "password=$PASSWORD" > leak.txt
printf %s "$PASSWORD" | base64 > leak.b64
ln -s /etc/passwd passwd
ln -s ../../.. up
mkfifo pipe
echo x > /workspace/elsewhere; ln /workspace/elsewhere hard
truncate -s 300M huge
exit 3"#;

fn manifest(name: &str, sandbox: &str, script: &str) -> String {
    let script = script.replace('\n', "\n        ");
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n  sandbox: {sandbox}\n  steps:\n  \
         - name: leave\n    secrets: [{{name: db, key: password, env: PASSWORD}}]\n    script:\n      interpreter: sh\n      \
         source: |\n        {script}\n"
    )
}

#[test]
fn what_a_job_leaves_is_fetched_and_what_it_must_not_leave_is_refused() {
    let fleet = Fleet::start();
    let literal = format!("password={PASSWORD}");
    fleet.text(&["secret", "set", "db", "--from-literal", &literal]);
    let agent = fleet.agent("n1");
    // In a file system of its own, where the host has the means.
    fleet.apply(&manifest("leave", "{resources: {disk: 1Gi}}", LEAVING));
    let job = fleet.wait_for_phase("leave", "Failed", SOON);
    assert_eq!(job["status"]["exitCode"], 3, "partial artifacts are kept: {job}\n{}", agent.log());
    let artifacts = settled(&fleet, "leave");
    let expected = [
        ("hard", "Refused", "hard links"),
        ("huge", "Refused", "at most 268435456"),
        ("leak.b64", "Refused", "the secret `db/password`"),
        ("leak.txt", "Refused", "the secret `db/password`"),
        ("out/report.md", "Stored", ""),
        ("passwd", "Refused", "symbolic link"),
        ("pipe", "Refused", "named pipe"),
        ("random.bin", "Stored", ""),
        ("up", "Refused", "symbolic link"),
    ];
    assert_eq!(artifacts.len(), expected.len(), "{artifacts:?}");
    for ((name, state, reason), (wanted, wanted_state, part)) in artifacts.iter().zip(expected) {
        assert_eq!((name.as_str(), state.as_str()), (wanted, wanted_state), "{artifacts:?}");
        assert!(reason.contains(part), "{name}: {reason}");
    }
    assert_eq!(fleet.text(&["artifacts", "leave", "out/report.md", "-o", "-"]), "# Report\n");
    let random = fleet.path("random.bin");
    fleet.text(&["artifacts", "leave", "random.bin", "-o", random.to_str().expect("it is text")]);
    let sum = std::process::Command::new("sha256sum").arg(&random).output().expect("there is sha256sum");
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    let logs = fleet.text(&["logs", "leave"]);
    assert!(logs.contains(&sum[..64]), "what comes is what the step has written: {sum} {logs}");
    let events = fleet.text(&["describe", "job", "leave"]);
    assert!(events.contains("ArtifactsRefused"), "{events}");
    // Nothing of the secret is anywhere but where it belongs, and nothing of the job is left on the node.
    wait_for("the node is clean", SOON, || (spooled(&fleet, "n1") == 0).then_some(()));
    let places = ["controller", "n1", "controller.log", "n1.log"].map(|place| fleet.path(place));
    let found = super::secrets::files_with(&places, &[PASSWORD.to_owned()]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_containers_leave_is_collected_too() {
    let fleet = Fleet::start();
    let literal = format!("password={PASSWORD}");
    fleet.text(&["secret", "set", "db", "--from-literal", &literal]);
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let text = |path: &Path| path.display().to_string();
    let (podman, docker) = (text(&socket("podman")), text(&socket("docker")));
    let settings = ["--join", &token, "--podman-socket", &podman, "--docker-socket", &docker];
    let agent = fleet.run_agent("n1", &settings);
    fleet.wait_until_node_is_ready("n1");
    for engine in ["podman", "docker"] {
        let sandbox = format!("{{runtime: {engine}, image: '{IMAGE}'}}");
        let script = "cd \"$WINDLASS_ARTIFACTS_DIR\"\nmkdir sub\necho \"from a container\" > sub/a.txt\n\
                      echo \"$PASSWORD\" > leak.txt";
        fleet.apply(&manifest(engine, &sandbox, script));
        let job = wait_for("the job has ended", SOON, || {
            let job = fleet.job(engine);
            matches!(job["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then_some(job)
        });
        assert_eq!(job["status"]["phase"], "Succeeded", "{job}\n{}", agent.log());
        let artifacts = settled(&fleet, engine);
        let states: Vec<_> =
            artifacts.iter().map(|(name, state, _)| (name.as_str(), state.as_str())).collect();
        assert_eq!(states, [("leak.txt", "Refused"), ("sub/a.txt", "Stored")], "{artifacts:?}");
        assert_eq!(fleet.text(&["artifacts", engine, "sub/a.txt", "-o", "-"]), "from a container\n");
    }
}

#[test]
fn artifacts_survive_the_death_of_controller_and_agent() {
    let mut fleet = Fleet::start();
    let mut agent = fleet.agent("n1");
    let script = "until test -e go; do sleep 0.05; done\nfor i in 1 2 3 4 5; do head -c 2000000 /dev/urandom > \
                  \"$WINDLASS_ARTIFACTS_DIR/$i\"; done\nsha256sum $WINDLASS_ARTIFACTS_DIR/* | cut -c1-64";
    fleet.script("leave", "  offline: continue\n", script);
    fleet.wait_for_phase("leave", "Running", SOON);
    let workspace = wait_for("the workspace", SOON, || {
        let entries = std::fs::read_dir(fleet.path("n1").join("workspaces")).ok()?;
        entries.flatten().map(|entry| entry.path()).find(|path| path.join(".windlass").is_dir())
    });
    fleet.controller.kill();
    std::fs::write(workspace.join("go"), "").expect("the workspace can be written");
    wait_for("the artifacts wait on the node", SOON, || (spooled(&fleet, "n1") == 1).then_some(()));
    wait_for("the workspace is gone", SOON, || (!workspace.exists()).then_some(()));
    agent.kill();
    fleet.restart_controller();
    // Killed again and again while they are sent.
    for _ in 0..3 {
        let mut agent = fleet.run_agent("n1", &[]);
        wait_for("something is sent", SOON, || {
            let sent = listed(&fleet, "leave").iter().any(|(_, state, _)| state == "Stored");
            (sent || spooled(&fleet, "n1") == 0).then_some(())
        });
        agent.kill();
        fleet.controller.kill();
        fleet.restart_controller();
    }
    let _agent = fleet.run_agent("n1", &[]);
    fleet.wait_for_phase("leave", "Succeeded", SOON);
    let artifacts = settled(&fleet, "leave");
    let names: Vec<_> = artifacts.iter().map(|(name, state, _)| (name.as_str(), state.as_str())).collect();
    assert_eq!(names, ["1", "2", "3", "4", "5"].map(|name| (name, "Stored")));
    wait_for("nothing waits any more", SOON, || (spooled(&fleet, "n1") == 0).then_some(()));
    let sums = fleet.text(&["logs", "leave"]);
    let list = fleet.json(&["artifacts", "leave"]);
    for item in list["items"].as_array().expect("it is a list") {
        assert!(sums.contains(item["sha256"].as_str().expect("it has one")), "{item} in {sums}");
    }
    let saved = fleet.path("saved");
    fleet.text(&["artifacts", "leave", "--all", "-o", saved.to_str().expect("it is text")]);
    assert_eq!(std::fs::read_dir(&saved).expect("it was made").count(), 5);
    // They go with the job. What a controller had when it was killed, and had not noted, is swept later.
    let kept = bodies(&fleet);
    fleet.text(&["delete", "job", "leave"]);
    wait_for("the bodies are gone", SOON, || (bodies(&fleet) == kept - 5).then_some(()));
}
