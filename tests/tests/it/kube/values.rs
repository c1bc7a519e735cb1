//! Secrets and ConfigMaps of the cluster: given to the steps that name them, waited for where they are missing, and seen by nobody else.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use windlass_test_kube::Cluster;

use super::super::system::fleet::{Fleet, Process, wait_for};
use super::super::system::secrets::files_with;
use super::world::{self, SOON, World};

const PASSWORD: &str = "Corr3ct-h0rse-battery";

/// A fleet with the documented rights and no others; jobs may use the namespace's values once [`bind`] was called.
fn granted(settings: &[&str]) -> (World, Process, String) {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    world::grant(cluster, &namespace);
    let config = cluster.kubeconfig("windlass");
    let label = world::node_label(&namespace);
    let mut more = vec!["--kube-node-label", &label];
    more.extend(settings);
    let fleet = Fleet::with(&world::arguments(config.to_str().expect("text"), &namespace, &more));
    let node = format!("values-{namespace}");
    let agent = fleet.agent(&node);
    (World { fleet, cluster, namespace }, agent, node)
}

/// Lets the fleet read the values of its namespace.
fn bind(world: &World) {
    world.kubectl(&[
        "create",
        "rolebinding",
        "values",
        "--clusterrole=windlass-controller-values",
        "--user=windlass",
    ]);
}

/// Makes a Secret or a ConfigMap hold exactly this.
fn set(world: &World, kind: &str, name: &str, values: &[(&str, &str)]) {
    let values: String = values.iter().map(|(key, value)| format!("  {key}: '{value}'\n")).collect();
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let manifest = format!(
        "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {}}}\n{field}:\n{values}",
        world.namespace
    );
    world.kubectl(&["delete", kind, name, "--ignore-not-found"]);
    world.cluster.apply(&manifest);
}

/// Waits until a job is not accepted for this reason, with these words.
fn wait_for_refusal(world: &World, name: &str, reason: &str, words: &[&str]) -> Value {
    world.wait_until(name, &format!("waits because of {reason}: {words:?}"), |job| {
        World::condition(job, "Accepted").is_some_and(|(status, why, message)| {
            status == "False" && why == reason && words.iter().all(|word| message.contains(word))
        })
    })
}

/// The workspace of the one job that runs on a node.
fn workspace(world: &World, node: &str) -> PathBuf {
    wait_for("the workspace", SOON, || {
        let entries = std::fs::read_dir(world.fleet.path(node).join("workspaces")).ok()?;
        entries.flatten().map(|entry| entry.path()).find(|path| path.join("begun").exists())
    })
}

/// Says how long the value is, and waits; a short one makes it fail.
const ASKED_TWICE: &str = "echo length ${#PASSWORD}
touch begun
until test -e go; do sleep 0.1; done
rm begun
test ${#PASSWORD} -gt 12";

fn twice(world: &World, name: &str, secret: &str) {
    let fields = format!(
        "  secrets: [{{name: {secret}, key: password, env: PASSWORD}}]\n  retry: {{failures: 1, backoff: {{initial: 1s, max: 2s}}}}\n"
    );
    world.job(name, &fields, ASKED_TWICE);
}

#[test]
fn a_job_is_given_values_of_its_namespace_and_nothing_else_shows_them() {
    let (world, agent, node) = granted(&["--kube-secrets"]);
    bind(&world);
    let pem = format!("-----BEGIN {PASSWORD}-----");
    set(&world, "Secret", "db", &[("password", PASSWORD), ("ca.pem", &pem), ("other", "n0t-asked-for")]);
    set(&world, "ConfigMap", "app", &[("mode", "a"), ("app.conf", "level = 7"), ("text", "x")]);
    let fields = "  secrets:\n  - {name: db, key: password, env: PASSWORD}\n  - {name: db, key: ca.pem, file: tls/ca.pem}\n  \
                  configMaps:\n  - {name: app, key: mode, env: MODE}\n  - {name: app, key: app.conf, file: etc/app.conf}\n";
    let script = "echo \"is $PASSWORD\"; cat /run/windlass/secrets/tls/ca.pem; echo\n\
                  test ${#PASSWORD} = 21 && echo whole; echo \"mode=$MODE\"; cat etc/app.conf\n\
                  printf %s \"$PASSWORD\" | base64; env | grep -c n0t-asked-for; true";
    world.job("uses", fields, script);
    let job = world.wait_for_phase("uses", "Succeeded");
    let logs = world.fleet.text(&["-n", &world.namespace, "logs", "uses"]);
    for line in ["is ***", "whole", "mode=a", "level = 7"] {
        assert!(logs.contains(line), "no `{line}` in {logs}");
    }
    let values = [PASSWORD.to_owned(), STANDARD.encode(PASSWORD), pem.clone(), STANDARD.encode(&pem)];
    let shown = [
        job.to_string(),
        world.stored("uses").to_string(),
        format!("{:?}", world.events("uses")),
        world.fleet.text(&["-n", &world.namespace, "describe", "job", "uses"]),
        world.fleet.text(&["export", "-n", &world.namespace, "jobs"]),
        agent.log(),
        world.fleet.controller.log(),
        logs,
    ];
    for text in shown {
        assert!(!values.iter().any(|value| text.contains(value)), "{text}");
    }
    // The database, what is beside it, and what the node keeps; the attempt's own output and workspace are gone or its own.
    let [state, backup] = ["controller", "backup"].map(|part| world.fleet.path(part).display().to_string());
    world.fleet.text(&["backup", "--state-dir", &state, &backup]);
    let mut places: Vec<_> =
        ["controller", "controller.log", "backup"].map(|part| world.fleet.path(part)).into();
    places.extend(["ledger", "outbox", "config"].map(|part| world.fleet.path(&node).join(part)));
    assert_eq!(files_with(&places, &values), Vec::<PathBuf>::new());
    // The rest of the job is as it was written.
    assert_eq!(job["spec"]["configMaps"][0]["key"], "mode");
    drop(agent);
    world.cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
}

#[test]
fn what_is_missing_is_told_and_waited_for() {
    let (world, agent, node) = granted(&["--kube-secrets"]);
    let namespace = world.namespace.as_str();
    let secret = |name: &str| format!("  secrets: [{{name: {name}, key: k, env: V}}]\n");
    world.job("forbidden", &secret("absent"), "echo ran");
    let told = format!("may not `get` `secrets` in the namespace `{namespace}`");
    wait_for_refusal(
        &world,
        "forbidden",
        "ReadForbidden",
        &[&told, "kube.secrets.namespaces", "create role"],
    );
    bind(&world);
    let large = "x".repeat((64 << 10) + 1);
    let half = "y".repeat(60 << 10);
    set(&world, "Secret", "keyless", &[("other", "value")]);
    set(&world, "Secret", "short", &[("k", "abc")]);
    set(&world, "Secret", "large", &[("k", &large)]);
    set(&world, "Secret", "many", &[("a", &half), ("b", &half), ("c", &half)]);
    set(&world, "ConfigMap", "settings", &[("other", "value")]);
    let many = "  secrets: [{name: many, key: a, file: a}, {name: many, key: b, file: b}, {name: many, key: c, file: c}]\n";
    let cases = [
        ("absent", secret("absent"), "SecretNotFound", vec!["there is no Secret", "absent`"]),
        ("keyless", secret("keyless"), "SecretNotFound", vec!["has no key `k`"]),
        ("short", secret("short"), "SecretUnsuitable", vec!["has 3 bytes", "4 to 65536"]),
        ("large", secret("large"), "SecretUnsuitable", vec!["has 65537 bytes"]),
        ("many", many.to_owned(), "SecretUnsuitable", vec!["more than the 131072 bytes"]),
        (
            "settings",
            "  configMaps: [{name: settings, key: k, env: V}]\n".to_owned(),
            "ConfigMapNotFound",
            vec!["ConfigMap", "has no key `k`"],
        ),
    ];
    for (name, fields, _, _) in &cases {
        world.job(name, fields, "echo ran");
    }
    let mut versions = Vec::new();
    for (name, _, reason, words) in &cases {
        let job = wait_for_refusal(&world, name, reason, words);
        assert_eq!(job["status"]["phase"], "Queued", "it waits: {job}");
        assert_eq!(job["status"]["reason"], *reason);
        assert!(!job.to_string().contains("abc"), "no value is told: {job}");
        versions.push((*name, *reason, job["metadata"]["resourceVersion"].clone()));
    }
    // One event for each, and no write while nothing changes, over two looks.
    let until = std::time::Instant::now() + Duration::from_secs(32);
    wait_for("some time has passed", SOON, || (std::time::Instant::now() > until).then_some(()));
    for (name, reason, version) in versions {
        assert_eq!(world.get("sj", name)["metadata"]["resourceVersion"], version, "{name}");
        let events = world.events(name);
        // The right that was just granted may not have been in force for the first look.
        assert_eq!(events.iter().filter(|(_, why, _)| why == reason).count(), 1, "{name}: {events:?}");
    }
    for name in ["absent", "keyless", "short", "large"] {
        set(&world, "Secret", name, &[("k", "good enough")]);
    }
    set(&world, "Secret", "many", &[("a", "good enough"), ("b", "good enough"), ("c", "good enough")]);
    set(&world, "ConfigMap", "settings", &[("k", "")]);
    for (name, ..) in cases {
        let job = world.wait_for_phase(name, "Succeeded");
        assert_eq!(job["status"]["attempts"], 1, "{name} waited without an attempt");
    }
    world.wait_for_phase("forbidden", "Succeeded");
    drop(agent);
    world.cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
}

#[test]
fn the_next_attempt_gets_what_is_there_by_then_and_waits_where_nothing_is() {
    let (world, agent, node) = granted(&["--kube-secrets"]);
    bind(&world);
    set(&world, "Secret", "turns", &[("password", "old-value-12")]);
    twice(&world, "rotated", "turns");
    let first = workspace(&world, &node);
    set(&world, "Secret", "turns", &[("password", "new-value-of-16b")]);
    std::fs::write(first.join("go"), "").expect("it can be written");
    let second = wait_for("another attempt runs", SOON, || {
        let found = workspace(&world, &node);
        (world.get("sj", "rotated")["status"]["attempts"] == 2).then_some(found)
    });
    std::fs::write(second.join("go"), "").expect("it can be written");
    world.wait_for_phase("rotated", "Succeeded");
    let logs = world.fleet.text(&["-n", &world.namespace, "logs", "rotated"]);
    assert!(logs.contains("length 16"), "{logs}");

    set(&world, "Secret", "goes", &[("password", "old-value-12")]);
    twice(&world, "deleted", "goes");
    let first = workspace(&world, &node);
    world.kubectl(&["delete", "secret", "goes"]);
    std::fs::write(first.join("go"), "").expect("it can be written");
    let waiting = world.wait_until("deleted", "waits for the Secret", |job| {
        let message = job["status"]["message"].as_str().unwrap_or_default();
        job["status"]["phase"] == "Queued" && message.contains("SecretNotFound: there is no Secret")
    });
    assert_eq!(waiting["metadata"]["finalizers"], Value::Null, "no node has it");
    set(&world, "Secret", "goes", &[("password", "new-value-of-16b")]);
    let second = wait_for("another attempt runs", SOON, || {
        (world.get("sj", "deleted")["status"]["phase"] == "Running").then(|| workspace(&world, &node))
    });
    std::fs::write(second.join("go"), "").expect("it can be written");
    let done = world.wait_for_phase("deleted", "Succeeded");
    assert!(done["status"]["attempts"].as_u64() < Some(12), "no hot loop: {done}");
    drop(agent);
    world.cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
}

#[test]
fn an_api_server_that_is_away_keeps_the_next_attempt_waiting() {
    let world = World::own(&[], &["--kube-secrets"]);
    let _agent = world.fleet.agent("n1");
    set(&world, "Secret", "db", &[("password", "old-value-12")]);
    twice(&world, "asks", "db");
    let first = workspace(&world, "n1");
    set(&world, "Secret", "db", &[("password", "new-value-of-16b")]);
    world.cluster.stop_api_server();
    std::fs::write(first.join("go"), "").expect("it can be written");
    wait_for("the job waits for the API server", SOON, || {
        let status = world.stored("asks")["status"].clone();
        let message = status["message"].as_str().unwrap_or_default();
        (status["phase"] == "Queued" && message.contains("ClusterUnreachable")).then_some(())
    });
    world.cluster.start_api_server();
    let second = wait_for("another attempt runs", SOON, || {
        (world.stored("asks")["status"]["phase"] == "Running").then(|| workspace(&world, "n1"))
    });
    std::fs::write(second.join("go"), "").expect("it can be written");
    world.wait_for_phase("asks", "Succeeded");
}

#[test]
fn without_the_setting_nothing_is_read_and_windlass_s_own_secrets_come_first() {
    let (world, agent, node) = granted(&[]);
    bind(&world);
    set(&world, "Secret", "db", &[("k", "of the cluster")]);
    set(&world, "ConfigMap", "app", &[("k", "v")]);
    world.job("config", "  configMaps: [{name: app, key: k, env: V}]\n", "true");
    wait_for_refusal(&world, "config", "ReadForbidden", &["--kube-secrets", "kube.secrets.enabled"]);
    let secret = "  secrets: [{name: db, key: k, env: V}]\n";
    world.job("none", secret, "test \"$V\" = 'of windlass'");
    wait_for_refusal(&world, "none", "ReadForbidden", &["--kube-secrets", "windlass secret set -n"]);
    let own = |world: &World| {
        world.fleet.text(&["-n", &world.namespace, "secret", "set", "db", "--from-literal", "k=of windlass"]);
        world.job("own", secret, "test \"$V\" = 'of windlass'");
        world.wait_for_phase("own", "Succeeded");
    };
    own(&world);
    world.wait_for_phase("none", "Succeeded");
    drop(agent);
    world.cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
    // Also where the cluster's could be read.
    let (world, agent, node) = granted(&["--kube-secrets"]);
    bind(&world);
    set(&world, "Secret", "db", &[("k", "of the cluster")]);
    own(&world);
    drop(agent);
    world.cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
}
