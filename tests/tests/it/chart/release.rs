//! A release on a real API server: installed, upgraded, tested and removed by Helm's own engine. What a cluster's other
//! controllers and kubelets would do with its Job and its test pod is done here, with the real program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::kube::world::{self, SOON, get};
use super::super::system::fleet::{Fleet, wait_for, windlass};
use super::engine::{ask, chart, list, render, root, text};
use super::rights::{kubeconfig, settings, work};

/// Where a release is worked with.
struct World {
    cluster: Cluster,
    namespace: String,
    folder: tempfile::TempDir,
}

impl World {
    /// Asks Helm's engine to do something to the release, and does meanwhile what others do in a cluster.
    fn helm(&self, request: &Value, others: impl FnOnce()) -> Value {
        let mut request = request.clone();
        for (key, value) in [
            ("kubeconfig", json!(self.cluster.kubeconfig("admin"))),
            ("namespace", json!(self.namespace)),
            ("name", json!("windlass")),
            ("timeout", json!(120)),
        ] {
            request[key] = value;
        }
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&request));
            others();
            asked.join().expect("the engine answers")
        })
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        get(&self.cluster, &self.namespace, kind, name)
    }

    /// What a kubelet does with the Job of the custom resources: runs its container as its ServiceAccount, and tells how it ended.
    fn run_hook(&self, before: Option<&str>) -> String {
        self.do_hook(before, |arguments, config| {
            let mut program = Command::new(windlass());
            program.args(arguments).env("WINDLASS_KUBE_CONFIG", config);
            program
        })
    }

    /// As [`World::run_hook`] for the older release, whose program is not here: what it installed is.
    fn run_older_hook(&self) {
        self.do_hook(None, |_, config| {
            let mut kubectl = Command::new("kubectl");
            kubectl.arg("--kubeconfig").arg(config);
            kubectl.args(["apply", "--server-side", "--field-manager=windlass", "-f"]);
            kubectl.arg(older().join("crds.json"));
            kubectl
        });
    }

    fn do_hook(&self, before: Option<&str>, program: impl FnOnce(&[&str], &Path) -> Command) -> String {
        let job = wait_for("the Job is there", SOON, || {
            let job = self.get("job", "windlass-crds");
            let uid = job["metadata"]["uid"].as_str()?;
            (Some(uid) != before).then(|| job.clone())
        });
        let pod = &job["spec"]["template"]["spec"];
        let account = text(&pod["serviceAccountName"]);
        let config = kubeconfig(&self.cluster, &self.namespace, account, self.folder.path());
        let arguments: Vec<_> = list(&pod["containers"][0]["args"]).iter().map(text).collect();
        let output = program(&arguments, &config).output().expect("the program runs");
        let condition = if output.status.success() { "Complete" } else { "Failed" };
        let status = json!({"status": {
            "conditions": [{"type": condition, "status": "True"}],
            "succeeded": u8::from(output.status.success()),
        }});
        self.patch_status("job", "windlass-crds", &status);
        assert!(output.status.success(), "{}", said(&output));
        text(&job["metadata"]["uid"]).to_owned()
    }

    fn patch_status(&self, kind: &str, name: &str, status: &Value) {
        let patch = status.to_string();
        let arguments =
            ["-n", &self.namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p"];
        let mut arguments = arguments.to_vec();
        arguments.push(&patch);
        self.cluster.kubectl(&arguments);
    }

    /// The names of the columns that kubectl shows of jobs.
    fn columns(&self) -> String {
        let columns = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
        self.cluster.kubectl(&["get", "crd", "sandboxjobs.windlass.dev", "-o", columns])
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The chart as it first was, and the custom resources of then without descriptions.
fn older() -> PathBuf {
    root().join("tests/chart/older")
}

#[test]
fn a_release_is_installed_upgraded_with_its_custom_resources_tested_and_removed() {
    let cluster = Cluster::own(&[]);
    let namespace = cluster.namespace();
    let world = World { cluster, namespace, folder: tempfile::tempdir().expect("a folder for the test") };
    // What this API server does not know is off.
    let values =
        if world.cluster.version() < (1, 21) { "podDisruptionBudget: {enabled: false}" } else { "{}" };

    let mut before = String::new();
    let request = json!({"verb": "install", "chart": older().join("windlass-0.0.1.tgz"), "values": values});
    let installed = world.helm(&request, || world.run_older_hook());
    assert_eq!(installed["status"], "deployed", "{installed}");
    assert!(world.get("job", "windlass-crds").is_null(), "a hook that has succeeded goes");
    assert!(world.get("serviceaccount", "windlass-crds").is_null(), "and its rights with it");
    let statefulset = || world.get("statefulset", "windlass-controller");
    let version = |object: &Value| object["metadata"]["labels"]["helm.sh/chart"].clone();
    assert_eq!(
        (&statefulset()["spec"]["replicas"], version(&statefulset())),
        (&json!(1), json!("windlass-0.0.1"))
    );
    // What there was stays, and what older custom resources do not know comes with the newer ones.
    let newer = "  configMaps: [{name: app, key: k, env: V}]\n";
    let newer = world::job(&world.namespace, "newer", newer, "true");
    let config_maps = || {
        let tried = [
            "create",
            "--validate=false",
            "--dry-run=server",
            "-o",
            "jsonpath={.spec.configMaps[*].name}",
            "-f",
            "-",
        ];
        let (accepted, kept) = world.cluster.pipe(&tried, &newer);
        assert!(accepted, "{kept}");
        kept
    };
    wait_for("the older custom resources are served", SOON, || config_maps().is_empty().then_some(()));
    world.cluster.apply(&world::job(&world.namespace, "kept", "  suspend: true\n", "true"));
    let kept = world.get("sj", "kept")["metadata"]["uid"].clone();
    for older_still in [true, false] {
        let request = json!({"verb": "upgrade", "chart": chart(), "values": values});
        let seen = (!before.is_empty()).then(|| before.clone());
        let upgraded = world.helm(&request, || before = world.run_hook(seen.as_deref()));
        assert_eq!(upgraded["status"], "deployed", "upgraded from an older one: {older_still}: {upgraded}");
        assert_eq!(version(&statefulset()), "windlass-0.1.0");
    }
    let columns = world.columns();
    assert!(columns.contains("Phase"), "{columns}");
    assert_eq!(world.get("sj", "kept")["metadata"]["uid"], kept);
    wait_for("the newer custom resources are served", SOON, || (config_maps() == "app").then_some(()));

    // The rights of the release, by its own controller.
    let objects = render(values, &world.namespace);
    let config = kubeconfig(&world.cluster, &world.namespace, "windlass-controller", world.folder.path());
    let settings = settings(&objects, &config);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let fleet = Fleet::with(&settings);
    work(&world.cluster, &fleet, &world.namespace);

    // The test's pod, against the controller that runs.
    let tested = world.helm(&json!({"verb": "test"}), || {
        let pod = wait_for("the test's pod is there", SOON, || {
            let pod = world.get("pod", "windlass-test");
            (!pod.is_null()).then_some(pod)
        });
        let service = format!("https://windlass-controller.{}.svc:12082", world.namespace);
        let state = fleet.path("controller");
        let arguments = list(&pod["spec"]["containers"][0]["args"]).iter().map(|argument| {
            let argument = text(argument).replace(&service, &fleet.url);
            argument.replace("/var/lib/windlass/controller", state.to_str().expect("paths are text"))
        });
        let output = Command::new(windlass()).args(arguments).output().expect("the program runs");
        let phase = if output.status.success() { "Succeeded" } else { "Failed" };
        world.patch_status("pod", "windlass-test", &json!({"status": {"phase": phase}}));
        assert!(output.status.success(), "{}", said(&output));
    });
    assert!(tested["refused"].is_null(), "{tested}");

    let removed = world.helm(&json!({"verb": "uninstall"}), || ());
    assert!(removed["refused"].is_null(), "{removed}");
    assert!(world.get("service", "windlass-controller").is_null());
    assert_eq!(world.columns(), columns, "custom resources, and all jobs, stay");
}
