//! A cluster with a fleet that bridges it.

use std::time::Duration;

use serde_json::Value;
use windlass_test_kube::Cluster;

use super::super::system::fleet::{Fleet, wait_for};

/// How long something may take on a busy machine that happens within a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A cluster with the custom resources, a namespace in it, and a fleet that bridges this namespace.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
}

/// The label of the nodes of a test. Every fleet on the shared cluster would take the nodes of all others for its own.
pub(crate) fn node_label(namespace: &str) -> String {
    format!("windlass.dev/fleet={namespace}")
}

/// Installs the custom resources; again changes nothing.
pub(crate) fn install(cluster: &Cluster) {
    let output = std::process::Command::new(super::super::system::fleet::windlass())
        .args(["crds", "install", "--kube-config"])
        .arg(cluster.kubeconfig("admin"))
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    /// On the cluster of the test run.
    pub(crate) fn start() -> Self {
        Self::with(Cluster::shared(), &[])
    }

    /// On a cluster of its own, for what others would notice.
    pub(crate) fn own(arguments: &[&str], settings: &[&str]) -> Self {
        // Ended by its guard, with the process.
        Self::with(Box::leak(Box::new(Cluster::own(arguments))), settings)
    }

    fn with(cluster: &'static Cluster, settings: &[&str]) -> Self {
        install(cluster);
        let namespace = cluster.namespace();
        let config = cluster.kubeconfig("admin");
        let label = node_label(&namespace);
        let mut settings = settings.to_vec();
        settings.extend(["--kube-node-label", &label]);
        let fleet = Fleet::with(&arguments(config.to_str().expect("paths are text"), &namespace, &settings));
        Self { fleet, cluster, namespace }
    }

    /// What kubectl prints, in the namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.cluster.kubectl(&all)
    }

    /// An object in the namespace; null where there is none.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        get(self.cluster, &self.namespace, kind, name)
    }

    /// Applies a job of one script.
    pub(crate) fn job(&self, name: &str, fields: &str, source: &str) {
        self.cluster.apply(&job(&self.namespace, name, fields, source));
    }

    /// Waits until a job's object shows a phase.
    pub(crate) fn wait_for_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_until(name, &format!("is {phase}"), |job| job["status"]["phase"] == phase)
    }

    /// Waits until a job's object satisfies something.
    pub(crate) fn wait_until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let job = self.get("sandboxjob", name);
            if holds(&job) {
                return job;
            }
            if std::time::Instant::now() > deadline {
                panic!(
                    "not within {} s: {name} {what}; last {last:#}\n{}",
                    SOON.as_secs(),
                    self.fleet.controller.log()
                );
            }
            last = job;
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Waits until the cluster has no object of this name.
    pub(crate) fn wait_until_gone(&self, kind: &str, name: &str) {
        wait_for(&format!("{kind} {name} is gone from the cluster"), SOON, || {
            self.get(kind, name).is_null().then_some(())
        });
    }

    /// The job in the store; null where there is none.
    pub(crate) fn stored(&self, name: &str) -> Value {
        let output = self.fleet.cli(&["-n", &self.namespace, "get", "job", name, "-o", "json"]);
        if output.status.success() {
            serde_json::from_slice(&output.stdout).unwrap_or_default()
        } else {
            Value::Null
        }
    }

    /// Waits until the store has no job of this name.
    pub(crate) fn wait_until_not_stored(&self, name: &str) {
        wait_for(&format!("job {name} is gone from the store"), SOON, || {
            self.stored(name).is_null().then_some(())
        });
    }

    /// The Events about an object: type and reason of each, and its note.
    pub(crate) fn events(&self, name: &str) -> Vec<(String, String, String)> {
        let all = self.kubectl(&["get", "events.v1.events.k8s.io", "-o", "json"]);
        let all: Value = serde_json::from_str(&all).expect("kubectl prints JSON");
        let items = all["items"].as_array().expect("a list has items");
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let of_it = items.iter().filter(|event| event["regarding"]["name"] == name);
        of_it.map(|event| (text(event, "type"), text(event, "reason"), text(event, "note"))).collect()
    }

    /// Waits until there is such an Event about an object: it is written after the status that it tells of.
    pub(crate) fn wait_for_event(&self, name: &str, kind: &str, reason: &str) {
        wait_for(&format!("an Event {reason} of {name}"), SOON, || {
            self.events(name).iter().any(|(found, why, _)| found == kind && why == reason).then_some(())
        });
    }

    /// Status, reason and message of a condition of an object.
    pub(crate) fn condition(object: &Value, name: &str) -> Option<(String, String, String)> {
        let all = object["status"]["conditions"].as_array()?;
        let found = all.iter().find(|condition| condition["type"] == name)?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }
}

/// The settings of a controller that bridges a namespace.
pub(crate) fn arguments<'a>(config: &'a str, namespace: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    // Each fleet has a lease of its own, or those of other tests would keep it waiting.
    let mut all = vec!["--kube", "--kube-config", config, "--kube-namespace", namespace];
    all.extend(["--kube-lease-namespace", namespace]);
    all.extend(more);
    all
}

/// An object in a namespace; null where there is none.
pub(crate) fn get(cluster: &Cluster, namespace: &str, kind: &str, name: &str) -> Value {
    let output = cluster
        .command(&["-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json"])
        .output()
        .expect("kubectl is installed");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// The manifest of a job of one script.
pub(crate) fn job(namespace: &str, name: &str, fields: &str, source: &str) -> String {
    let source = source.replace('\n', "\n      ");
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n\
         {fields}  script:\n    source: |\n      {source}\n"
    )
}

/// Grants the user `windlass` what `docs/kubernetes/rbac.yaml` says, and nothing else.
pub(crate) fn grant(cluster: &Cluster, namespace: &str) {
    cluster.kubectl(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes/rbac.yaml")]);
    let bindings = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: windlass}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: windlass-controller}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: windlass}}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: windlass, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: windlass-controller-lease}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: windlass}}]\n"
    );
    cluster.apply(&bindings);
}
