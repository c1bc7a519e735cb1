//! The custom resources, as a real API server takes them.

use std::path::Path;

use serde_json::Value;
use windlass_test_kube::Cluster;

use super::world::install;

fn cluster() -> &'static Cluster {
    let cluster = Cluster::shared();
    install(cluster);
    cluster
}

/// Whether the server accepts a manifest without keeping it, and what it says.
fn tried(manifest: &str) -> (bool, String) {
    cluster().pipe(&["create", "--dry-run=server", "--validate=true", "-f", "-"], manifest)
}

fn job(spec: &str) -> String {
    format!("{{apiVersion: windlass.dev/v1alpha1, kind: SandboxJob, metadata: {{name: a}}, spec: {spec}}}")
}

#[test]
fn every_example_is_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("there are examples") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            count += 1;
            let (accepted, said) = tried(&std::fs::read_to_string(&path).expect("it can be read"));
            assert!(accepted, "{}: {said}", path.display());
        }
    }
    assert!(count > 5);
}

#[test]
fn what_breaks_the_schema_is_refused_with_the_field() {
    for (spec, word) in [
        ("{command: []}", "spec.command"),
        ("{command: [a], queue: No_Queue}", "spec.queue"),
        ("{command: [a], priority: 1001}", "spec.priority"),
        ("{command: [a], priority: urgent}", "spec.priority"),
        ("{command: [a], sandbox: {network: Some}}", "spec.sandbox.network"),
        ("{command: [a], sandbox: {resources: {memory: lots}}}", "spec.sandbox.resources.memory"),
        ("{command: [a], sandbox: {resources: {cpu: -1}}}", "spec.sandbox.resources.cpu"),
        ("{command: [a], timeout: 10}", "spec.timeout"),
        ("{command: [a], retry: {failures: 101}}", "spec.retry.failures"),
        ("{steps: [{name: a, command: [a]}, {name: a, command: [b]}]}", "spec.steps[1]"),
        ("{command: [a], sandbox: {unenforced: [cpu, cpu]}}", "spec.sandbox.unenforced[1]"),
    ] {
        let (accepted, said) = tried(&job(spec));
        assert!(!accepted && said.contains(word), "{spec}: {said}");
    }
    let many: Vec<String> = (0..101).map(|n| format!("{{name: s{n}, command: [a]}}")).collect();
    let (accepted, said) = tried(&job(&format!("{{steps: [{}]}}", many.join(", "))));
    assert!(!accepted && said.contains("spec.steps"), "{said}");
}

#[test]
fn quantities_and_priorities_are_numbers_or_texts() {
    for spec in [
        "{command: [a], priority: 7}",
        "{command: [a], priority: high}",
        "{command: [a], sandbox: {resources: {cpu: 2, memory: 1073741824, pids: 10}}}",
        "{command: [a], sandbox: {resources: {cpu: 500m, memory: 512Mi}}}",
    ] {
        let (accepted, said) = tried(&job(spec));
        assert!(accepted, "{spec}: {said}");
    }
}

#[test]
fn rules_between_fields_are_left_out_exactly_where_the_server_does_not_know_them() {
    let cluster = cluster();
    let crd = cluster.kubectl(&["get", "crd", "sandboxjobs.windlass.dev", "-o", "json"]);
    assert_eq!(crd.contains("x-kubernetes-validations"), cluster.knows_cel());
    let (accepted, said) = tried(&job("{command: [a], script: {source: b}}"));
    assert_ne!(accepted, cluster.knows_cel(), "{said}");
    if cluster.knows_cel() {
        assert!(said.contains("write either `steps`"), "{said}");
    }
}

#[test]
fn installing_again_changes_nothing_and_print_says_the_same() {
    let cluster = cluster();
    let version = |cluster: &Cluster| {
        let crd = cluster.kubectl(&["get", "crd", "sandboxjobs.windlass.dev", "-o", "json"]);
        let crd: Value = serde_json::from_str(&crd).expect("JSON");
        crd["metadata"]["generation"].clone()
    };
    let before = version(cluster);
    install(cluster);
    assert_eq!(version(cluster), before);
    let mut print = std::process::Command::new(super::super::system::fleet::windlass());
    print.args(["crds", "print"]);
    if !cluster.knows_cel() {
        print.arg("--without-rules");
    }
    let printed = String::from_utf8(print.output().expect("the program runs").stdout).expect("YAML is text");
    let (accepted, said) = cluster
        .pipe(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-"], &printed);
    assert!(accepted && said.matches("serverside-applied").count() == 3, "{said}");
}

#[test]
fn names_columns_and_explanations_are_there() {
    let cluster = cluster();
    let resources = cluster.kubectl(&["api-resources", "--api-group=windlass.dev"]);
    for short in ["sj", "nc", "jt"] {
        assert!(resources.split_whitespace().any(|word| word == short), "{short}: {resources}");
    }
    let namespace = cluster.namespace();
    cluster.apply(&super::world::job(&namespace, "shown", "", "true"));
    let columns = |arguments: &[&str]| {
        let table = cluster.kubectl(arguments);
        let head = table.lines().next().expect("a table has a head").to_owned();
        head.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let narrow = columns(&["-n", &namespace, "get", "sj"]);
    assert_eq!(narrow, "NAME PHASE STEP NODE ATTEMPTS STARTED DURATION AGE");
    let wide = columns(&["-n", &namespace, "get", "sj", "-o", "wide"]);
    assert_eq!(wide, format!("{narrow} QUEUE REASON MESSAGE"));
    assert!(
        cluster.kubectl(&["-n", &namespace, "get", "windlass"]).contains("sandboxjob.windlass.dev/shown")
    );
    let node = format!("shown-{namespace}");
    cluster.apply(&format!(
        "{{apiVersion: windlass.dev/v1alpha1, kind: NodeConfig, metadata: {{name: {node}}}, spec: {{}}}}"
    ));
    let narrow = columns(&["get", "nc", &node]);
    assert_eq!(narrow, "NAME READY REASON VERSION JOBS LAST-SEEN AGE");
    assert_eq!(columns(&["get", "nc", &node, "-o", "wide"]), format!("{narrow} STATE LABELS GPU MESSAGE"));
    cluster.kubectl(&["delete", "nc", &node]);

    let explained = cluster.kubectl(&["explain", "sandboxjob.spec.sandbox.network"]);
    assert!(explained.contains("What the steps can reach"), "{explained}");
    let explained = cluster.kubectl(&["explain", "nodeconfig.spec.sandbox"]);
    assert!(explained.contains("maxTimeout"), "{explained}");
}
