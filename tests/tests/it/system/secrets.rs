//! Secrets from the command line to a step, by processes of their own: nothing but the step has them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use windlass_test_engines::{IMAGE, socket};

use super::fleet::{Fleet, wait_for};

const SOON: Duration = Duration::from_secs(90);
const PASSWORD: &str = "Tr0ub4dor-and-3-more";
const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END KEY-----\n";

/// The files below these folders that hold one of these texts; what is gone meanwhile holds nothing.
pub(crate) fn files_with(folders: &[PathBuf], texts: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = folders.to_vec();
    while let Some(path) = pending.pop() {
        let Ok(kind) = path.symlink_metadata().map(|meta| meta.file_type()) else { continue };
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        } else if kind.is_file() {
            let content = std::fs::read(&path).unwrap_or_default();
            let has = |text: &String| content.windows(text.len()).any(|window| window == text.as_bytes());
            found.extend(texts.iter().any(has).then_some(path));
        }
    }
    found
}

fn manifest(name: &str, sandbox: &str, script: &str) -> String {
    let script = script.replace('\n', "\n        ");
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n  sandbox: {sandbox}\n  steps:\n  \
         - name: without\n    command: [sh, -c, 'env; ls -R /run/windlass 2>&1; true']\n  - name: with\n    secrets:\n    \
         - {{name: db, key: password, env: PASSWORD}}\n    - {{name: db, key: key.pem, file: tls/key.pem}}\n    script:\n      \
         interpreter: sh\n      source: |\n        {script}\n"
    )
}

/// Tells of the secrets in every way that a program has, and then waits to be looked at.
const TELLING: &str = "echo \"env $PASSWORD\"
cat /run/windlass/secrets/tls/key.pem
printf 'piece %s' \"$(printf %s \"$PASSWORD\" | cut -c1-9)\"
sleep 0.2
printf '%s\\n' \"$(printf %s \"$PASSWORD\" | cut -c10-)\"
printf %s \"$PASSWORD\" | base64
echo \"to the other stream $PASSWORD\" >&2
test \"$(stat -c %a /run/windlass/secrets/tls/key.pem)\" = 400 && echo mode-400
test \"$WINDLASS_SECRETS_DIR\" = /run/windlass/secrets && echo folder-known
until test -e go; do sleep 0.1; done
echo end";

#[test]
fn a_secret_is_the_steps_alone_whatever_it_does_with_it() {
    let fleet = Fleet::start();
    let file = fleet.path("key.pem");
    std::fs::write(&file, KEY).expect("it can be written");
    let literal = format!("password={PASSWORD}");
    let from_file = format!("key.pem={}", file.display());
    fleet.text(&["secret", "set", "db", "--from-literal", &literal, "--from-file", &from_file]);
    std::fs::remove_file(&file).expect("it was just written");
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let (podman, docker) = (socket("podman"), socket("docker"));
    let text = |path: &Path| path.display().to_string();
    let memory = tempfile::tempdir_in("/dev/shm").expect("there is memory");
    let runtime_dir = text(memory.path());
    let sockets = [
        "--runtime-dir",
        &runtime_dir,
        "--podman-socket",
        &text(&podman),
        "--docker-socket",
        &text(&docker),
        "--concurrency",
        "2",
    ];
    let agent = fleet.run_agent("n1", &[&["--join", &token][..], &sockets].concat());
    fleet.wait_until_node_is_ready("n1");
    let line = KEY.lines().nth(1).expect("it has lines").to_owned();
    let secret = [PASSWORD.to_owned(), STANDARD.encode(PASSWORD), line, STANDARD.encode(KEY)];

    for (name, sandbox) in [
        ("native", "{}".to_owned()),
        ("podman", format!("{{runtime: podman, image: '{IMAGE}'}}")),
        ("docker", format!("{{runtime: docker, image: '{IMAGE}'}}")),
    ] {
        fleet.apply(&manifest(name, &sandbox, TELLING));
        let log = wait_for(&format!("{name} has told everything"), SOON, || {
            let output = fleet.cli(&["logs", name]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let status = fleet.job(name)["status"].clone();
            assert_ne!(status["phase"], "Failed", "{status}\n{text}\n{}", agent.log());
            (text.contains("folder-known") && text.contains("to the other stream ***")).then_some(text)
        });
        // Each stream is in order, the two beside each other are not.
        let (stdout, stderr) = (
            fleet.text(&["logs", name, "--stream", "stdout"]),
            fleet.text(&["logs", name, "--stream", "stderr"]),
        );
        for expected in ["env ***", "piece ***", "mode-400"] {
            assert!(stdout.contains(expected), "{name}: no `{expected}` in {stdout}");
        }
        assert!(stderr.contains("to the other stream ***"), "{name}: {stderr}");
        assert!(!log.contains(PASSWORD), "{name}: {log}");
        // While the step runs: its workspace and what the sandbox keeps of its output are the step's own; everything else is not.
        let state = fleet.path("n1");
        let kept = ["ledger", "outbox", "config", "identity", "leases", "inputs", "n1.log"]
            .map(|part| state.join(part));
        let mut places = kept.to_vec();
        places.extend(["controller", "controller.log", "n1.log"].map(|part| fleet.path(part)));
        let found = files_with(&places, &secret);
        assert!(found.is_empty(), "{name}: {found:?}");
        let units = std::fs::canonicalize(state.join("sandbox/units")).unwrap();
        let plans: Vec<PathBuf> = files_with(&[state.clone(), units], &secret)
            .into_iter()
            .filter(|path| {
                !["/output", "/workspaces/"].iter().any(|part| path.to_string_lossy().contains(part))
            })
            .collect();
        assert!(plans.is_empty(), "{name}: records of units: {plans:?}");
        let workspace = wait_for("the workspace", SOON, || {
            let entries = std::fs::read_dir(state.join("workspaces")).ok()?;
            entries.flatten().map(|entry| entry.path()).find(|path| path.join(".windlass").is_dir())
        });
        std::fs::write(workspace.join("go"), "").expect("the workspace can be written");
        let job = fleet.wait_for_phase(name, "Succeeded", SOON);
        let everything = [
            job.to_string(),
            fleet.text(&["logs", name]),
            fleet.text(&["describe", "job", name]),
            fleet.json(&["secret", "list", "-A"]).to_string(),
        ]
        .concat();
        for text in &secret {
            assert!(!everything.contains(text), "{name}: {text} is in {everything}");
        }
        // Nothing is left of it on the node, in memory neither.
        wait_for("the node is clean", SOON, || {
            files_with(&[state.clone(), memory.path().to_owned()], &secret).is_empty().then_some(())
        });
    }
}

#[test]
fn a_job_that_names_what_there_is_not_fails_with_what_to_do() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let job = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {name: j}\nspec:\n  command: ['true']\n  secrets: \
               [{name: db, key: password, env: PASSWORD}]\n";
    fleet.apply(job);
    let failed = fleet.wait_for_phase("j", "Failed", SOON);
    assert_eq!(failed["status"]["reason"], "SecretUnavailable", "{failed}");
    let message = failed["status"]["message"].as_str().expect("it is told");
    assert!(message.contains("windlass secret set -n default db password"), "{message}");
    fleet.text(&["secret", "set", "db", "--from-literal", "password=hunter2-hunter2"]);
    fleet.text(&["retry", "j"]);
    fleet.wait_for_phase("j", "Succeeded", SOON);
}
