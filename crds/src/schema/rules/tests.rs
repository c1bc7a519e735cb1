//! The rules say what they should, on objects with the defaults filled in, as an API server checks them.

use serde_json::{Value, json};

use crate::schema::{Kind, Rules, crds};

fn schema(kind: Kind) -> Value {
    let crd = crds(Rules::Cel).into_iter().find(|crd| crd.spec.names.kind == kind.name()).unwrap();
    let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
    serde_json::to_value(schema).unwrap()
}

/// Where a spec, or its change from another one, breaks rules; each place once.
fn broken(kind: Kind, spec: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(kind);
    let object = |spec: &Value| {
        let object = json!({"apiVersion": "windlass.dev/v1alpha1", "kind": kind.name(), "metadata": {"name": "a"}, "spec": spec});
        kube_cel::apply_defaults(&schema, &object)
    };
    let old = old.map(object);
    let errors = kube_cel::validate(&schema, &object(spec), old.as_ref()).err();
    let errors = errors.map(kube_cel::ValidationErrors::into_vec).unwrap_or_default();
    for error in &errors {
        assert_eq!(error.kind, kube_cel::ErrorKind::ValidationFailure, "{}: {error}", error.rule);
    }
    let mut places: Vec<String> = errors.into_iter().map(|error| error.field_path).collect();
    places.sort();
    places.dedup();
    places
}

#[test]
fn good_jobs_break_no_rule() {
    for spec in [
        json!({"command": ["true"]}),
        json!({"script": {"source": "true"}, "steps": []}),
        json!({"steps": [{"name": "a", "command": ["true"]}, {"name": "b", "script": {"source": "true"}}]}),
        json!({"command": ["true"], "requires": {"runtime": "native"}}),
        json!({"command": ["true"], "sandbox": {"runtime": "podman", "image": "a"}, "requires": {"runtime": "podman"}}),
        json!({"command": ["true"], "retry": {"backoff": {"initial": "1s", "max": "2m"}}}),
        json!({"command": ["true"], "retry": {"backoff": {"max": "2d"}}}),
        json!({"command": ["true"], "workspace": {"inputs": [{"path": "a", "inline": ""}]}}),
        json!({"command": ["true"], "secrets": [{"name": "a", "key": "b", "env": "C"}]}),
        json!({"steps": [{"name": "a", "command": ["true"], "secrets": [{"name": "a", "key": "b", "file": "c"}]}]}),
        json!({"command": ["true"], "configMaps": [{"name": "a", "key": "b", "env": "C"}]}),
        json!({"steps": [{"name": "a", "command": ["true"], "configMaps": [{"name": "a", "key": "b", "file": "c"}]}]}),
        json!({"steps": [{"name": "a", "facts": {}, "env": {}, "secrets": [], "configMaps": [], "timeout": "1m"}]}),
        json!({"command": ["true"], "requires": {"labels": [
            {"key": "a", "operator": "In", "values": ["b", "c"]}, {"key": "a", "operator": "Exists"},
            {"key": "a", "operator": "Gt", "values": ["1"]}]}}),
    ] {
        assert_eq!(broken(Kind::SandboxJob, &spec, None), [""; 0], "{spec}");
        assert_eq!(broken(Kind::SandboxJob, &spec, Some(&spec)), [""; 0], "the same again: {spec}");
        let template = json!({"version": "1", "job": spec});
        assert_eq!(broken(Kind::JobTemplate, &template, Some(&template)), [""; 0], "{template}");
    }
}

#[test]
fn bad_jobs_break_a_rule_where_they_are_bad() {
    let label = |operator: &str, values: &[&str]| json!({"command": ["true"], "requires": {"labels": [{"key": "a", "operator": operator, "values": values}]}});
    for (spec, place) in [
        (json!({}), "spec"),
        (json!({"command": ["true"], "script": {"source": "true"}}), "spec"),
        (json!({"command": ["true"], "steps": [{"name": "a", "command": ["true"]}]}), "spec"),
        (json!({"steps": [{"name": "a"}]}), "spec.steps[0]"),
        (
            json!({"steps": [{"name": "a", "command": ["true"]}, {"name": "b", "command": ["a"], "script": {"source": "b"}}]}),
            "spec.steps[1]",
        ),
        (
            json!({"steps": [{"name": "a", "command": ["true"], "env": {"WINDLASS_A": "1"}}]}),
            "spec.steps[0].env",
        ),
        (json!({"command": ["true"], "sandbox": {"env": {"WINDLASS_A": "1"}}}), "spec.sandbox.env"),
        (json!({"command": ["true"], "sandbox": {"runtime": "podman"}}), "spec.sandbox"),
        (json!({"command": ["true"], "requires": {"runtime": "podman"}}), "spec"),
        (
            json!({"command": ["true"], "retry": {"backoff": {"initial": "1h", "max": "1m"}}}),
            "spec.retry.backoff",
        ),
        (json!({"command": ["true"], "workspace": {"inputs": [{"path": "a"}]}}), "spec.workspace.inputs[0]"),
        (
            json!({"command": ["true"], "workspace": {"inputs": [{"path": "a", "inline": "", "hostPath": {"path": "/a"}}]}}),
            "spec.workspace.inputs[0]",
        ),
        (
            json!({"steps": [{"name": "a", "command": ["true"]}], "secrets": [{"name": "a", "key": "b", "env": "C"}]}),
            "spec",
        ),
        (json!({"command": ["true"], "secrets": [{"name": "a", "key": "b"}]}), "spec.secrets[0]"),
        (
            json!({"steps": [{"name": "a", "command": ["true"], "secrets": [{"name": "a", "key": "b", "env": "C", "file": "c"}]}]}),
            "spec.steps[0].secrets[0]",
        ),
        (
            json!({"steps": [{"name": "a", "command": ["true"]}], "configMaps": [{"name": "a", "key": "b", "env": "C"}]}),
            "spec",
        ),
        (json!({"command": ["true"], "configMaps": [{"name": "a", "key": "b"}]}), "spec.configMaps[0]"),
        (
            json!({"steps": [{"name": "a", "command": ["true"], "configMaps": [{"name": "a", "key": "b"}]}]}),
            "spec.steps[0].configMaps[0]",
        ),
        (json!({"steps": [{"name": "a", "facts": {}, "env": {"A": "b"}}]}), "spec.steps[0]"),
        (json!({"steps": [{"name": "a", "facts": {}, "workingDir": "a"}]}), "spec.steps[0]"),
        (
            json!({"steps": [{"name": "a", "service": {"action": "restart", "name": "web"}, "secrets": [{"name": "a", "key": "b", "env": "C"}]}]}),
            "spec.steps[0]",
        ),
        (
            json!({"steps": [{"name": "a", "service": {"action": "restart", "name": "web"}, "configMaps": [{"name": "a", "key": "b", "env": "C"}]}]}),
            "spec.steps[0]",
        ),
        (label("In", &[]), "spec.requires.labels[0]"),
        (label("Exists", &["a"]), "spec.requires.labels[0]"),
        (label("Gt", &["1", "2"]), "spec.requires.labels[0]"),
    ] {
        assert_eq!(broken(Kind::SandboxJob, &spec, None), [place], "{spec}");
        let template = json!({"version": "1", "job": spec});
        let place = place.replacen("spec", "spec.job", 1);
        assert_eq!(broken(Kind::JobTemplate, &template, None), [place], "{template}");
    }
}

#[test]
fn a_job_that_exists_changes_only_where_it_may() {
    let old = json!({"command": ["true"], "queue": "a", "timeout": "1m", "cancel": true});
    let changed = |field: &str, value: Value| {
        let mut new = old.clone();
        new[field] = value;
        broken(Kind::SandboxJob, &new, Some(&old))
    };
    for (field, value) in [
        ("suspend", json!(true)),
        ("priority", json!("high")),
        ("priority", json!(7)),
        ("ttlAfterFinished", json!("1h")),
    ] {
        assert_eq!(changed(field, value), [""; 0], "{field}");
    }
    for (field, value, place) in [
        ("command", json!(["false"]), "spec.command"),
        ("queue", json!("b"), "spec.queue"),
        ("timeout", json!("2m"), "spec.timeout"),
        ("sandbox", json!({"network": "Open"}), "spec"),
        ("title", json!("new"), "spec"),
        ("cancel", json!(false), "spec"),
    ] {
        assert!(changed(field, value).contains(&place.to_owned()), "{field}");
    }
    let without = json!({"command": ["true"], "queue": "a", "cancel": true});
    assert_eq!(broken(Kind::SandboxJob, &without, Some(&old)), ["spec"], "a field that is taken away");
}

#[test]
fn nodes_and_templates_have_rules_of_their_own() {
    let pids =
        |defaults: u32, max: u32| json!({"sandbox": {"defaults": {"pids": defaults}, "max": {"pids": max}}});
    assert_eq!(broken(Kind::NodeConfig, &json!({"sandbox": {}}), None), [""; 0]);
    assert_eq!(broken(Kind::NodeConfig, &pids(10, 10), None), [""; 0]);
    assert_eq!(broken(Kind::NodeConfig, &pids(11, 10), None), ["spec.sandbox"]);

    let template = |version: &str, command: &str, parameter: Value| json!({"version": version, "job": {"command": [command]}, "parameters": [parameter]});
    let plain = json!({"name": "a", "default": 1});
    let first = template("1", "true", plain.clone());
    assert_eq!(broken(Kind::JobTemplate, &template("2", "false", plain.clone()), Some(&first)), [""; 0]);
    assert_eq!(broken(Kind::JobTemplate, &template("1", "false", plain), Some(&first)), ["spec"]);
}

#[test]
fn every_rule_stays_within_the_budget_of_an_api_server() {
    /// Warns of every rule below a schema that may cost too much.
    fn check(schema: &Value, at: &str, rules: &mut usize) {
        let compiled = kube_cel::compile_schema(schema);
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            *rules += 1;
            let text = rule["rule"].as_str().unwrap();
            let warnings = kube_cel::estimate_rule_cost(text, &compiled);
            assert!(warnings.is_empty(), "{at}: {text}: {warnings:?}");
            assert!(!rule["message"].as_str().unwrap().is_empty());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            check(property, &format!("{at}.{name}"), rules);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                check(&schema[inner], at, rules);
            }
        }
    }
    for kind in Kind::all() {
        let mut rules = 0;
        check(&schema(kind), kind.name(), &mut rules);
        assert!(rules > 0, "{kind} has rules");
    }
}

#[test]
fn without_rules_nothing_of_them_is_left() {
    for crd in crds(Rules::None) {
        let text = serde_json::to_string(&crd).unwrap();
        assert!(!text.contains("x-kubernetes-validations"));
        assert!(text.contains("x-kubernetes-list-type"), "older servers know these");
    }
}
