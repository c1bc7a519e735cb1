//! The chart's files: what Helm thinks of them, which values they refuse, and that what is written about them is true.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use windlass_tests::chart_values;

use super::super::system::fleet::windlass;
use super::engine::{answer, ask, cases, chart, list, of_kind, parse, pods, render, root, text};

#[test]
fn helm_finds_nothing_wrong_with_any_case() {
    for (case, values) in cases() {
        let answer = ask(&json!({"verb": "lint", "chart": chart(), "values": values}));
        assert_eq!(answer["problems"], json!([]), "{case}");
        let objects = render(&values, "fleet");
        assert!(!of_kind(&objects, "Service").is_empty(), "{case}");
        for object in &objects {
            let named = !text(&object["metadata"]["name"]).is_empty() && !text(&object["kind"]).is_empty();
            assert!(named, "{case}: {object}");
        }
    }
}

/// Versions of APIs that no Kubernetes from 1.25 to 1.36 has deprecated.
const APIS: [(&str, &[&str]); 8] = [
    ("v1", &["ConfigMap", "Pod", "Service", "ServiceAccount"]),
    ("apps/v1", &["DaemonSet", "Deployment", "StatefulSet"]),
    ("batch/v1", &["Job"]),
    ("networking.k8s.io/v1", &["NetworkPolicy"]),
    ("policy/v1", &["PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io/v1", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("monitoring.coreos.com/v1", &["PrometheusRule", "ServiceMonitor"]),
    ("windlass.dev/v1alpha1", &[]),
];

#[test]
fn no_object_is_of_a_deprecated_api_and_each_kind_is_tried() {
    let mut seen = BTreeSet::new();
    for (case, values) in cases() {
        for object in render(&values, "fleet") {
            let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
            let known = APIS.iter().find(|(api, _)| *api == version);
            assert!(known.is_some_and(|(_, kinds)| kinds.contains(&kind)), "{case}: {version} {kind}");
            seen.insert(kind.to_owned());
        }
    }
    let all: BTreeSet<_> = APIS.iter().flat_map(|(_, kinds)| *kinds).map(|kind| (*kind).to_owned()).collect();
    assert_eq!(seen, all);
}

#[test]
fn wrong_values_are_refused_with_the_value() {
    for (values, said) in [
        ("controler: {}", "'controler' not allowed"),
        ("controller: {replica: 2}", "'replica' not allowed"),
        ("controller: {kind: Daemon}", "/controller/kind"),
        ("controller: {replicas: -1}", "/controller/replicas"),
        ("controller: {replicas: two}", "/controller/replicas"),
        ("controller: {image: {digest: sha256:abc}}", "/controller/image/digest"),
        ("controller: {image: {digest: latest}}", "/controller/image/digest"),
        ("controller: {image: {repository: ''}}", "/controller/image/repository"),
        ("controller: {store: {url: 'mysql://h/d'}}", "/controller/store/url"),
        ("controller: {store: {url: 'postgres://u:password@h/d'}}", "/controller/store/url"),
        ("controller: {bodies: {url: /srv/bodies}}", "/controller/bodies/url"),
        ("controller: {bodies: {url: 's3://key:secret@bucket'}}", "/controller/bodies/url"),
        ("controller: {persistence: {size: ten}}", "/controller/persistence/size"),
        ("controller: {persistence: {accessModes: [Always]}}", "/controller/persistence/accessModes"),
        ("controller: {advertiseUrl: 'http://windlass.example'}", "/controller/advertiseUrl"),
        ("controller: {advertiseUrl: 'https://windlass.example/path'}", "/controller/advertiseUrl"),
        ("controller: {extraArgs: [lease]}", "/controller/extraArgs"),
        ("controller: {extraEnv: {A: b}}", "/controller/extraEnv"),
        ("controller: {extraEnv: [{value: b}]}", "/controller/extraEnv/0"),
        ("controller: {service: {type: Ingress}}", "/controller/service/type"),
        ("controller: {service: {port: 70000}}", "/controller/service/port"),
        ("controller: {probes: {periodSeconds: 0}}", "/controller/probes/periodSeconds"),
        ("controller: {podLabels: {a: 1}}", "/controller/podLabels/a"),
        ("image: {pullPolicy: Sometimes}", "/image/pullPolicy"),
        ("podDisruptionBudget: {maxUnavailable: 200%}", "/podDisruptionBudget/maxUnavailable"),
        ("kube: {namespaces: team-a}", "/kube/namespaces"),
        ("kube: {namespaces: [Team]}", "/kube/namespaces/0"),
        ("kube: {namespaces: [a, a]}", "/kube/namespaces"),
        ("kube: {nodeLabel: fleet}", "/kube/nodeLabel"),
        ("kube: {deleteWait: 10}", "/kube/deleteWait"),
        ("kube: {secrets: true}", "/kube/secrets"),
        ("kube: {secrets: {enabled: 'yes'}}", "/kube/secrets/enabled"),
        ("kube: {secrets: {namespaces: [A]}}", "/kube/secrets/namespaces/0"),
        ("crds: {install: 'yes'}", "/crds/install"),
        ("crds: {backoffLimit: -1}", "/crds/backoffLimit"),
        ("serviceAccount: {name: Not_A_Name}", "/serviceAccount/name"),
        ("agent: {enabled: 1}", "/agent/enabled"),
        ("agent: {statePath: var}", "/agent/statePath"),
        ("agent: {concurrency: 5000}", "/agent/concurrency"),
        ("agent: {labels: {windlass.dev/node: a}}", "invalid propertyName 'windlass.dev/node'"),
        ("monitoring: {serviceMonitor: {interval: often}}", "/monitoring/serviceMonitor/interval"),
        ("monitoring: {grafana: {}}", "'grafana' not allowed"),
        // What no schema can say.
        ("controller: {replicas: 2}", "SQLite serves one controller"),
        ("controller: {store: {url: 'postgres://u@h/d'}}", "set controller.kind=Deployment"),
        ("controller: {kind: Deployment}", "set controller.store.url"),
        (
            "controller: {kind: Deployment, store: {url: 'postgres://u@h/d'}}",
            "needs controller.identity.existingSecret",
        ),
        (
            "controller: {kind: Deployment, store: {url: 'postgres://u@h/d'}, identity: {existingSecret: a}}",
            "set controller.bodies.url or controller.bodies.existingClaim",
        ),
        (
            "controller: {store: {passwordKey: password}}",
            "name the Secret with controller.store.existingSecret",
        ),
        ("controller: {bodies: {url: 's3://a', existingClaim: b}}", "both set"),
        ("kube: {secrets: {enabled: true}}", "needs kube.secrets.namespaces"),
        ("kube: {secrets: {namespaces: [a]}}", "set kube.secrets.enabled"),
        ("kube: {enabled: false, secrets: {enabled: true, namespaces: [a]}}", "set kube.enabled"),
        (
            "kube: {namespaces: [a], secrets: {enabled: true, namespaces: [a, b]}}",
            "has b, which kube.namespaces",
        ),
        ("agent: {enabled: true}", "needs agent.joinToken.existingSecret"),
    ] {
        let refused = answer(values, "fleet")["refused"].clone();
        assert!(text(&refused).contains(said), "{values}: {refused}");
    }
}

#[test]
fn every_value_has_its_schema_and_the_schema_names_no_other() {
    fn compare(path: &str, values: &Value, schema: &Value, definitions: &Value, wrong: &mut Vec<String>) {
        let reference = text(&schema["$ref"]).trim_start_matches("#/definitions/");
        let schema = if reference.is_empty() { schema } else { &definitions[reference] };
        let Some(properties) = schema["properties"].as_object() else { return };
        if schema["additionalProperties"] != false {
            wrong.push(format!("{path} permits anything"));
        }
        // What goes into pods as it is has more fields than are given.
        if values.as_object().is_none() || reference == "resources" {
            return;
        }
        for (key, schema) in properties {
            match values.get(key) {
                Some(value) => compare(&format!("{path}.{key}"), value, schema, definitions, wrong),
                None => wrong.push(format!("{path}.{key} is no value")),
            }
        }
        let values = values.as_object().into_iter().flatten();
        wrong.extend(
            values
                .filter(|(key, _)| !properties.contains_key(*key))
                .map(|(key, _)| format!("{path}.{key} has no schema")),
        );
    }
    let schema = std::fs::read_to_string(chart().join("values.schema.json")).expect("it is there");
    let mut schema: Value = serde_json::from_str(&schema).expect("it is JSON");
    // Every chart may be a part of another one, which hands this down.
    schema["properties"].as_object_mut().expect("it has properties").remove("global");
    let values = std::fs::read_to_string(chart().join("values.yaml")).expect("it is there");
    let mut wrong = Vec::new();
    compare("", &parse(&values)[0], &schema, &schema["definitions"], &mut wrong);
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_table_of_values_is_that_of_the_values() {
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).expect("it is there");
    let readme = read("README.md");
    let made = chart_values::into_readme(&readme, &read("values.yaml")).expect("values are explained");
    assert_eq!(made, readme, "write it again with `make generate`");
}

#[test]
fn a_service_never_takes_the_name_of_a_setting() {
    // Kubernetes puts addresses of Services into the environment, and those of `windlass-listen` would be settings.
    for (case, values) in cases() {
        for (name, pod) in pods(&render(&values, "fleet")) {
            assert_eq!(pod["enableServiceLinks"], false, "{case}: {name}");
        }
    }
}

/// Whether the program understands arguments, and what it says. Nothing is done: help is asked for last.
fn understood(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(windlass()).args(arguments).arg("--help").output().expect("the program runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_argument_is_one_that_the_program_understands() {
    for (case, values) in cases() {
        for (name, pod) in pods(&render(&values, "fleet")) {
            let container = &list(&pod["containers"])[0];
            let arguments: Vec<_> = list(&container["args"]).iter().map(text).collect();
            let (understood, said) = understood(&arguments);
            assert!(understood && arguments.len() >= 2, "{case}: {name} {arguments:?}: {said}");
        }
    }
    let compose = std::fs::read_to_string(root().join("examples/compose/compose.yaml")).expect("it is there");
    let services = parse(&compose)[0]["services"].clone();
    for service in ["controller", "agent"] {
        let arguments: Vec<_> = list(&services[service]["command"]).iter().map(text).collect();
        let (understood, said) = understood(&arguments);
        assert!(understood && arguments.len() >= 2, "{service} {arguments:?}: {said}");
    }
    assert!(!understood(&["controller", "--bodies=/srv"]).0, "a wrong value is found");
    assert!(!understood(&["agent", "--no-such-thing"]).0, "an unknown argument is found");
}

/// Who may do what: each group, resource, name and verb of rules by itself.
pub(super) fn grants(rules: &Value) -> BTreeSet<String> {
    let mut grants = BTreeSet::new();
    for rule in list(rules) {
        let names = list(&rule["resourceNames"]).iter().map(text).collect::<Vec<_>>().join(",");
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for verb in list(&rule["verbs"]) {
                    grants.insert(format!("{} {}/{} [{names}]", text(verb), text(group), text(resource)));
                }
            }
        }
    }
    grants
}

#[test]
fn no_secret_can_be_read_but_by_roles_of_the_namespaces_that_are_named() {
    for (case, values) in cases() {
        for object in render(&values, "fleet") {
            for grant in grants(&object["rules"]) {
                let reads =
                    grant.contains("/secrets") || grant.contains("/configmaps") || grant.contains('*');
                let is_meant = object["kind"] == "Role"
                    && object["metadata"]["name"]
                        .as_str()
                        .is_some_and(|name| name.ends_with("-controller-values"))
                    && ["team-a", "team-b"].contains(&text(&object["metadata"]["namespace"]))
                    && ["get /secrets []", "get /configmaps []"].contains(&grant.as_str());
                assert!(!reads || is_meant, "{case}: {grant} in {object}");
            }
        }
    }
}

#[test]
fn the_rights_in_the_documentation_are_those_of_the_chart() {
    let documented = std::fs::read_to_string(root().join("docs/kubernetes/rbac.yaml")).expect("it is there");
    let documented = parse(&documented);
    let rules = |objects: &[Value], kind: &str, name: &str| {
        let found = of_kind(objects, kind).into_iter().find(|role| role["metadata"]["name"] == name);
        grants(&found.unwrap_or_else(|| panic!("there is a {kind} {name}"))["rules"])
    };
    let rendered = render("{}", "windlass");
    let of_chart = rules(&rendered, "ClusterRole", "windlass-controller");
    assert!(of_chart.len() > 10, "{of_chart:?}");
    assert_eq!(rules(&documented, "ClusterRole", "windlass-controller"), of_chart);
    let lease = rules(&rendered, "Role", "windlass-controller-lease");
    assert_eq!(rules(&documented, "ClusterRole", "windlass-controller-lease"), lease);
    let values = render("kube: {secrets: {enabled: true, namespaces: [a]}}", "windlass");
    let values = rules(&values, "Role", "windlass-controller-values");
    assert_eq!(values, ["get /configmaps []", "get /secrets []"].map(str::to_owned).into());
    assert_eq!(rules(&documented, "ClusterRole", "windlass-controller-values"), values);
    // Over the namespaces, the same rights in other places.
    let narrow = render("kube: {namespaces: [default]}", "windlass");
    let mut together = rules(&narrow, "ClusterRole", "windlass-controller");
    together.extend(rules(&narrow, "Role", "windlass-controller"));
    assert_eq!(together, of_chart);
}
