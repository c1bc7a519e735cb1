//! Pod Security `restricted` over the pods of the chart, rule by rule as Kubernetes has them in its Pod Security Standards.

use serde_json::{Value, json};

use super::engine::{cases, list, pods, render, text};

/// Everything about a container and its pod that a rule looks at.
struct Container<'a> {
    pod: &'a Value,
    own: &'a Value,
}

impl Container<'_> {
    /// A setting of the container, else of its pod.
    fn setting(&self, key: &str) -> &Value {
        let own = &self.own["securityContext"][key];
        if own.is_null() { &self.pod["securityContext"][key] } else { own }
    }
}

/// A rule: its name, and whether a container breaks it.
type Rule = (&'static str, fn(&Container<'_>) -> bool);

/// Volumes that the rules permit.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The rules of `baseline` and `restricted`.
const RESTRICTED: &[Rule] = &[
    ("host namespaces", |c| ["hostNetwork", "hostPID", "hostIPC"].iter().any(|key| c.pod[*key] == true)),
    ("host process", |c| c.setting("windowsOptions")["hostProcess"] == true),
    ("privileged", |c| c.own["securityContext"]["privileged"] == true),
    ("host ports", |c| list(&c.own["ports"]).iter().any(|port| port["hostPort"].as_u64().unwrap_or(0) != 0)),
    ("host in probes", |c| {
        ["livenessProbe", "readinessProbe", "startupProbe"]
            .iter()
            .any(|probe| ["httpGet", "tcpSocket"].iter().any(|how| !c.own[*probe][*how]["host"].is_null()))
    }),
    ("/proc mount", |c| !matches!(text(&c.own["securityContext"]["procMount"]), "" | "Default")),
    ("sysctls", |c| !list(&c.pod["securityContext"]["sysctls"]).is_empty()),
    ("SELinux", |c| !c.setting("seLinuxOptions").is_null()),
    ("AppArmor", |c| text(&c.setting("appArmorProfile")["type"]) == "Unconfined"),
    ("volume types", |c| {
        list(&c.pod["volumes"]).iter().any(|volume| {
            let fields = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
            fields.filter(|key| *key != "name").any(|kind| !VOLUMES.contains(&kind))
        })
    }),
    ("privilege escalation", |c| c.own["securityContext"]["allowPrivilegeEscalation"] != false),
    ("running as non-root", |c| *c.setting("runAsNonRoot") != true),
    ("non-root user", |c| c.setting("runAsUser").as_u64() == Some(0)),
    ("seccomp", |c| !matches!(text(&c.setting("seccompProfile")["type"]), "RuntimeDefault" | "Localhost")),
    ("capabilities", |c| {
        let capabilities = &c.own["securityContext"]["capabilities"];
        let dropped = list(&capabilities["drop"]).iter().any(|name| name == "ALL");
        !dropped || list(&capabilities["add"]).iter().any(|name| name != "NET_BIND_SERVICE")
    }),
];

/// The rules that a pod breaks.
fn broken(pod: &Value) -> Vec<String> {
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    let mut broken = Vec::new();
    for own in containers.iter().flat_map(|kind| list(&pod[*kind])) {
        for (rule, breaks) in RESTRICTED {
            if breaks(&Container { pod, own }) {
                broken.push(format!("{}: {rule}", text(&own["name"])));
            }
        }
    }
    broken
}

/// Changes a pod that keeps all rules at one place, a path of keys.
fn changed(path: &str, value: &Value) -> Value {
    let mut pod = json!({
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "a",
            "ports": [{"containerPort": 1}],
            "livenessProbe": {"httpGet": {"port": 1}},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
        "volumes": [{"name": "a", "emptyDir": {}}],
    });
    if !path.is_empty() {
        *pod.pointer_mut(path).unwrap_or_else(|| panic!("{path} is there")) = value.clone();
    }
    pod
}

#[test]
fn each_rule_finds_a_pod_that_breaks_it_and_nothing_else_does() {
    assert_eq!(broken(&changed("", &Value::Null)), Vec::<String>::new());
    let own = "/containers/0/securityContext";
    let context = |more: Value| {
        let mut context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        context.as_object_mut().expect("it is a map").extend(more.as_object().cloned().unwrap_or_default());
        context
    };
    let pod = |more: Value| {
        let mut pod = changed("", &Value::Null);
        pod.as_object_mut().expect("it is a map").extend(more.as_object().cloned().unwrap_or_default());
        pod
    };
    for (rule, pod) in [
        ("host namespaces", pod(json!({"hostPID": true}))),
        ("host process", changed(own, &context(json!({"windowsOptions": {"hostProcess": true}})))),
        ("privileged", changed(own, &context(json!({"privileged": true})))),
        ("host ports", changed("/containers/0/ports/0", &json!({"hostPort": 80}))),
        ("host in probes", changed("/containers/0/livenessProbe/httpGet", &json!({"host": "a"}))),
        ("/proc mount", changed(own, &context(json!({"procMount": "Unmasked"})))),
        (
            "sysctls",
            changed(
                "/securityContext",
                &json!({
                    "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}, "sysctls": [{"name": "a"}],
                }),
            ),
        ),
        ("SELinux", changed(own, &context(json!({"seLinuxOptions": {"user": "a"}})))),
        ("AppArmor", changed(own, &context(json!({"appArmorProfile": {"type": "Unconfined"}})))),
        ("volume types", changed("/volumes/0", &json!({"name": "a", "hostPath": {"path": "/"}}))),
        ("privilege escalation", changed(own, &json!({"capabilities": {"drop": ["ALL"]}}))),
        ("running as non-root", changed("/securityContext/runAsNonRoot", &json!(false))),
        ("non-root user", changed("/securityContext/runAsUser", &json!(0))),
        ("seccomp", changed("/securityContext/seccompProfile/type", &json!("Unconfined"))),
        ("capabilities", changed(own, &context(json!({"capabilities": {"drop": ["CHOWN"]}})))),
        (
            "capabilities",
            changed(own, &context(json!({"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}))),
        ),
    ] {
        assert_eq!(broken(&pod), [format!("a: {rule}")], "{pod}");
    }
}

#[test]
fn every_pod_but_the_agents_is_restricted() {
    for (case, values) in cases() {
        let objects = render(&values, "fleet");
        let mut restricted = 0;
        for (name, pod) in pods(&objects) {
            if name.starts_with("DaemonSet/") {
                let found = broken(pod);
                assert!(found.contains(&"agent: privileged".to_owned()), "{case}: it is told so: {found:?}");
                assert_eq!(pod["automountServiceAccountToken"], false, "{case}: {name}");
                continue;
            }
            restricted += 1;
            assert_eq!(broken(pod), Vec::<String>::new(), "{case}: {name}");
            for container in list(&pod["containers"]).iter().filter(|own| own["name"] != "beside") {
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{case}: {name}");
            }
        }
        assert!(restricted >= 2, "{case}: the controller and the test, {restricted}");
    }
}
