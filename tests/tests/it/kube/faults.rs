//! What goes wrong around the bridge: each ends in a condition or a line of the log, without a hot loop, and heals.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::system::fleet::{Fleet, wait_for};
use super::link::Link;
use super::world::{self, SOON, World, get};

/// Lets some time pass in which something must not happen, or is away.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    wait_for("some time has passed", time + SOON, || (Instant::now() > until).then_some(()));
}

/// How many lines of the log have this text.
fn told(fleet: &Fleet, text: &str) -> usize {
    fleet.controller.log().lines().filter(|line| line.contains(text)).count()
}

/// A fleet that bridges a namespace of a cluster through a link.
fn linked(cluster: &Cluster, namespace: &str, folder: &std::path::Path, more: &[&str]) -> (Fleet, Link) {
    through(Link::to(cluster.port()), cluster, namespace, folder, more)
}

fn through(
    link: Link,
    cluster: &Cluster,
    namespace: &str,
    folder: &std::path::Path,
    more: &[&str],
) -> (Fleet, Link) {
    let config = folder.join(format!("{}.yaml", link.port()));
    cluster.kubeconfig_through("admin", link.port(), &config);
    let label = world::node_label(namespace);
    let mut settings = vec!["--kube-node-label", label.as_str()];
    settings.extend(more);
    let arguments = world::arguments(config.to_str().expect("text"), namespace, &settings);
    (Fleet::with(&arguments), link)
}

#[test]
fn jobs_run_on_while_the_api_server_is_away_and_everything_is_told_afterwards() {
    let world = World::own(&[], &[]);
    let _agent = world.fleet.agent("n1");
    world.job("long", "", "for i in $(seq 100); do echo $i; sleep 0.1; done");
    world.wait_for_phase("long", "Running");
    world.cluster.stop_api_server();
    wait_for("the job has ended", SOON, || {
        (world.stored("long")["status"]["phase"] == "Succeeded").then_some(())
    });
    pass(Duration::from_secs(20));
    let complaints = told(&world.fleet, "WARN");
    assert!((1..30).contains(&complaints), "{complaints} complaints\n{}", world.fleet.controller.log());
    world.cluster.start_api_server();
    let job = world.wait_for_phase("long", "Succeeded");
    assert_eq!((&job["status"]["attempts"], &job["metadata"]["finalizers"]), (&json!(1), &Value::Null));
    world.job("after", "", "echo after");
    world.wait_for_phase("after", "Succeeded");
}

#[test]
fn what_happened_behind_a_watch_that_has_expired_is_found_by_a_list() {
    let cluster = Cluster::own(&["--watch-cache=false"]);
    world::install(&cluster);
    let namespace = cluster.namespace();
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (fleet, link) = linked(&cluster, &namespace, folder.path(), &[]);
    let apply = |name: &str| cluster.apply(&world::job(&namespace, name, "  suspend: true\n", "true"));
    let stored = |name: &str| {
        let output = fleet.cli(&["-n", &namespace, "get", "job", name, "-o", "json"]);
        output.status.success()
    };
    for name in ["stays", "goes"] {
        apply(name);
        wait_for(&format!("{name} is stored"), SOON, || stored(name).then_some(()));
    }
    link.cut();
    cluster.kubectl(&["-n", &namespace, "delete", "sj", "goes"]);
    apply("comes");
    cluster.compact();
    link.mend();
    wait_for("what came is stored", SOON, || stored("comes").then_some(()));
    wait_for("what went is not", SOON, || (!stored("goes")).then_some(()));
    assert!(stored("stays"));
}

#[test]
fn a_resource_that_is_taken_away_and_comes_back_is_watched_again() {
    let world = World::own(&[], &[]);
    world.job("before", "  suspend: true\n", "true");
    world.wait_until("before", "is accepted", |job| World::condition(job, "Accepted").is_some());
    let _agent = world.fleet.agent("n1");
    world.job("runs", "", "sleep 600");
    world.wait_until("runs", "is kept while it runs", |job| job["metadata"]["finalizers"].is_array());
    world.cluster.kubectl(&["delete", "crd", "sandboxjobs.windlass.dev", "--timeout=60s"]);
    for name in ["before", "runs"] {
        world.wait_until_not_stored(name);
    }
    wait_for("the log tells of it", SOON, || (told(&world.fleet, "cannot watch") >= 1).then_some(()));
    pass(Duration::from_secs(10));
    let complaints = told(&world.fleet, "WARN");
    assert!(complaints < 20, "{complaints} complaints\n{}", world.fleet.controller.log());
    world::install(world.cluster);
    world.job("after", "", "true");
    world.wait_for_phase("after", "Succeeded");
}

#[test]
fn objects_from_when_the_schema_was_looser_are_told_to_be_wrong_and_hold_up_nobody() {
    let mut world = World::own(&[], &[]);
    let _agent = world.fleet.agent("n1");
    let loose = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]);
    let loose = loose.to_string();
    world.cluster.kubectl(&["patch", "crd", "sandboxjobs.windlass.dev", "--type=json", "-p", &loose]);
    let create = |world: &World, name: &str, spec: &str| {
        let manifest = format!(
            "{{apiVersion: windlass.dev/v1alpha1, kind: SandboxJob, metadata: {{name: {name}, namespace: {}}}{spec}}}",
            world.namespace
        );
        // The server takes a little to know its new schema.
        wait_for(&format!("{name} is accepted"), SOON, || {
            world.cluster.pipe(&["create", "--validate=false", "-f", "-"], &manifest).0.then_some(())
        });
    };
    for (name, spec, word) in [
        ("text", ", spec: text", "spec"),
        ("without", "", "spec"),
        ("number", ", spec: {command: 7}", "spec"),
    ] {
        create(&world, name, spec);
        let job =
            world.wait_until(name, "is told to be wrong", |job| World::condition(job, "Accepted").is_some());
        let (status, reason, message) = World::condition(&job, "Accepted").expect("it was just there");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "Invalid"), "{name}: {message}");
        assert!(message.contains(word), "{name}: {message}");
    }
    // One that nobody has seen before the schema is strict again: the server refuses each write of it, its status too.
    world.fleet.controller.kill();
    create(&world, "unseen", ", spec: {command: 7}");
    world::install(world.cluster);
    world.fleet.restart_controller();
    world.job("good", "", "true");
    world.wait_for_phase("good", "Succeeded");
    wait_for("the log tells of it", SOON, || {
        let log = world.fleet.controller.log();
        log.lines().any(|line| line.contains("unseen") && line.contains("spec.command")).then_some(())
    });
    pass(Duration::from_secs(10));
    let complaints = told(&world.fleet, "WARN");
    assert!(complaints < 20, "{complaints} complaints\n{}", world.fleet.controller.log());
    for name in ["text", "without", "number", "unseen"] {
        world.kubectl(&["delete", "sj", name, "--timeout=60s"]);
    }
}

#[test]
fn an_api_server_that_has_lost_everything_deletes_nothing() {
    let world = World::own(&[], &["--kube-cluster", "lab"]);
    let _agent = world.fleet.agent("n1");
    world.job("waits", "  suspend: true\n", "true");
    world.job("runs", "", "sleep 600");
    world.wait_for_phase("runs", "Running");
    world.cluster.lose_everything();
    wait_for("the log tells of it", SOON, || (told(&world.fleet, "cannot watch") >= 1).then_some(()));
    world::install(world.cluster);
    world.cluster.kubectl(&["create", "namespace", &world.namespace]);
    wait_for("what is lost is kept", SOON, || {
        (told(&world.fleet, "what it declared is kept") >= 2).then_some(())
    });
    assert_eq!(world.stored("runs")["status"]["phase"], "Running");
    assert_eq!(world.stored("waits")["spec"]["suspend"], true);
    // It belongs to the store alone now.
    wait_for("what was lost can be deleted", SOON, || {
        world.fleet.cli(&["-n", &world.namespace, "delete", "job", "waits"]).status.success().then_some(())
    });
    world.wait_until_not_stored("waits");
    world.job("new", "", "echo new");
    world.fleet.text(&["-n", &world.namespace, "cancel", "runs"]);
    world.wait_for_phase("new", "Succeeded");
}

#[test]
fn an_edited_status_is_mended_once() {
    let world = World::start();
    world.job("edited", "  suspend: true\n", "true");
    world.wait_until("edited", "is accepted", |job| World::condition(job, "Accepted").is_some());
    let patch = r#"{"status": {"phase": "Succeeded", "exitCode": 7, "node": "nowhere", "conditions": []}}"#;
    world.kubectl(&["patch", "sj", "edited", "--subresource=status", "--type=merge", "-p", patch]);
    let mended = world.wait_until("edited", "is mended", |job| {
        let status = &job["status"];
        status["phase"] == "Queued"
            && status["exitCode"].is_null()
            && status["node"].is_null()
            && World::condition(job, "Accepted").is_some()
    });
    pass(Duration::from_secs(4));
    assert_eq!(
        world.get("sj", "edited")["metadata"]["resourceVersion"],
        mended["metadata"]["resourceVersion"]
    );
    assert_eq!(world.stored("edited")["status"]["phase"], "Queued");
}

#[test]
fn a_removed_finalizer_comes_back_and_an_object_without_one_still_stops_its_job() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("long", "", "sleep 600");
    let kept = |job: &Value| job["metadata"]["finalizers"].is_array();
    world.wait_until("long", "is kept", kept);
    let remove = ["patch", "sj", "long", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#];
    world.kubectl(&remove);
    world.wait_until("long", "is kept again", kept);
    world.kubectl(&["delete", "sj", "long", "--wait=false"]);
    // It may have been stopped before this.
    let mut arguments = vec!["-n", &world.namespace];
    arguments.extend(remove);
    world.cluster.command(&arguments).output().expect("kubectl is installed");
    world.wait_until_gone("sj", "long");
    world.wait_until_not_stored("long");
}

#[test]
fn a_namespace_that_is_deleted_stops_its_jobs() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("runs", "", "sleep 600");
    world.job("waits", "  suspend: true\n", "true");
    world.wait_for_phase("runs", "Running");
    world.kubectl(&["delete", "namespace", &world.namespace, "--wait=false"]);
    // What a cluster's namespace controller does, which is not there.
    world.kubectl(&["delete", "sj", "--all", "--timeout=60s"]);
    for name in ["runs", "waits"] {
        world.wait_until_not_stored(name);
    }
    let complaints = told(&world.fleet, "WARN");
    assert!(complaints < 10, "{complaints} complaints\n{}", world.fleet.controller.log());
}

#[test]
fn a_deletion_that_the_node_does_not_confirm_ends_with_an_event() {
    let world = World::own(&[], &["--kube-delete-wait", "3s"]);
    let mut agent = world.fleet.agent("n1");
    world.job("stuck", "  offline: continue\n", "sleep 600");
    world.wait_until("stuck", "is kept", |job| job["metadata"]["finalizers"].is_array());
    agent.kill();
    world.kubectl(&["delete", "sj", "stuck", "--timeout=60s"]);
    let events = world.events("stuck");
    assert!(
        events.iter().any(|(kind, reason, note)| kind == "Warning"
            && reason == "StopNotConfirmed"
            && note.contains("n1")),
        "{events:?}"
    );
    // The job itself is still being stopped, and its name is told to be taken until it is.
    assert_eq!(world.stored("stuck")["spec"]["cancel"], true);
    world.job("stuck", "", "echo another");
    world.wait_until("stuck", "waits for its name", |job| {
        World::condition(job, "Accepted")
            .is_some_and(|(_, reason, message)| reason == "NameTaken" && message.contains("being stopped"))
    });
    let _agent = world.fleet.run_agent("n1", &[]);
    world.wait_for_phase("stuck", "Succeeded");
}

#[test]
fn a_right_that_is_missing_is_told_and_the_rest_works() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    let role = format!("less-{namespace}");
    let rule = |resources: &str, verbs: &str| {
        format!("  - {{apiGroups: [windlass.dev], resources: [{resources}], verbs: [{verbs}]}}\n")
    };
    let granted = |statuses: &str| {
        cluster.apply(&format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {role}}}\nrules:\n{}{statuses}  \
             - {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {role}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}\n\
             subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: editor}}]\n",
            rule("sandboxjobs, nodeconfigs, jobtemplates", "get, list, watch, patch, create, delete")
        ));
    };
    granted("");
    let config = cluster.kubeconfig("editor");
    let label = world::node_label(&namespace);
    let settings = ["--kube-node-label", &label, "--kube-cluster", "lab"];
    let fleet = Fleet::with(&world::arguments(config.to_str().expect("text"), &namespace, &settings));
    cluster.apply(&world::job(&namespace, "quiet", "  suspend: true\n", "true"));
    wait_for("the log tells of it", SOON, || (told(&fleet, "forbidden") >= 1).then_some(()));
    let stored = fleet.json(&["-n", &namespace, "get", "job", "quiet"]);
    assert_eq!(stored["status"]["phase"], "Queued");
    pass(Duration::from_secs(10));
    assert!(told(&fleet, "forbidden") < 10, "{}", fleet.controller.log());
    granted(&rule("sandboxjobs/status, nodeconfigs/status, jobtemplates/status", "patch"));
    wait_for("the status is written", SOON, || {
        World::condition(&get(cluster, &namespace, "sj", "quiet"), "Accepted")
    });
}

#[test]
fn of_two_controllers_one_works_and_the_other_takes_over_when_it_is_cut_off() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (first, link) = linked(cluster, &namespace, folder.path(), &["--kube-lease", "6s"]);
    let leads = |fleet: &Fleet| told(fleet, "this controller bridges the cluster");
    wait_for("the first leads", SOON, || (leads(&first) == 1).then_some(()));
    let (second, _link) = linked(cluster, &namespace, folder.path(), &["--kube-lease", "6s"]);
    let apply = |name: &str| cluster.apply(&world::job(&namespace, name, "  suspend: true\n", "true"));
    let has = |fleet: &Fleet, name: &str| {
        fleet.cli(&["-n", &namespace, "get", "job", name, "-o", "json"]).status.success()
    };
    apply("one");
    wait_for("the first has the job", SOON, || has(&first, "one").then_some(()));
    assert!(!has(&second, "one") && leads(&second) == 0, "{}", second.controller.log());
    link.cut();
    wait_for("the second leads", SOON, || (leads(&second) == 1).then_some(()));
    assert!(
        told(&first, "the lead of the cluster was lost") >= 1,
        "before the other one took it: {}",
        first.controller.log()
    );
    wait_for("the second has the job", SOON, || has(&second, "one").then_some(()));
    link.mend();
    apply("two");
    wait_for("the second has the other job", SOON, || has(&second, "two").then_some(()));
    pass(Duration::from_secs(8));
    assert!(!has(&first, "two") && leads(&first) == 1, "{}", first.controller.log());
    // One that stops in order gives the lead back at once.
    let lease = || get(cluster, &namespace, "lease", "windlass-controller");
    let holder = lease()["spec"]["holderIdentity"].clone();
    second.controller.signal("TERM");
    wait_for("the first leads again", SOON, || (leads(&first) == 2).then_some(()));
    assert_ne!(lease()["spec"]["holderIdentity"], holder);
}

#[test]
fn a_huge_spec_passes_through_whole() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    let steps: String = (0..4)
        .map(|n| format!("  - {{name: s{n}, script: {{source: 'echo {n} # {}'}}}}\n", "x".repeat(200_000)))
        .collect();
    let manifest = format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: huge, namespace: {}}}\nspec:\n  steps:\n{steps}",
        world.namespace
    );
    let (created, said) = world.cluster.pipe(&["create", "-f", "-"], &manifest);
    assert!(created, "{said}");
    world.wait_for_phase("huge", "Succeeded");
}

#[test]
fn an_api_server_that_has_too_much_to_do_is_asked_again_until_everything_is_told() {
    // One write at a time, and everybody else is told to come back. Administrators are served all the same.
    let cluster = Cluster::own(&[
        "--enable-priority-and-fairness=false",
        "--max-mutating-requests-inflight=1",
        "--max-requests-inflight=4",
    ]);
    world::install(&cluster);
    let namespace = cluster.namespace();
    world::grant(&cluster, &namespace);
    let config = cluster.kubeconfig("windlass");
    let label = world::node_label(&namespace);
    let settings = ["--kube-node-label", &label];
    let fleet = Fleet::with(&world::arguments(config.to_str().expect("text"), &namespace, &settings));
    let jobs: String = (0..200)
        .map(|n| world::job(&namespace, &format!("j{n}"), "  suspend: true\n", "true") + "---\n")
        .collect();
    cluster.apply(&jobs);
    let conditions = || {
        cluster.kubectl(&[
            "-n",
            &namespace,
            "get",
            "sj",
            "-o",
            "jsonpath={.items[*].status.conditions[0].type}",
        ])
    };
    wait_for("all are told to be accepted", 2 * SOON, || {
        (conditions().split_whitespace().count() == 200).then_some(())
    });
    assert!(told(&fleet, "429") + told(&fleet, "TooManyRequests") >= 1, "{}", fleet.controller.log());
    let complaints = told(&fleet, "WARN");
    assert!(complaints < 20, "{complaints} complaints\n{}", fleet.controller.log());
    let stored = fleet.json(&["-n", &namespace, "get", "jobs"]);
    assert_eq!(stored.as_array().or(stored["items"].as_array()).expect("a list").len(), 200);
}

#[test]
fn news_that_come_late_make_nothing_happen_twice() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    let folder = tempfile::tempdir().expect("a folder for the test");
    let link = Link::slow(cluster.port(), Duration::from_secs(1));
    let (fleet, _link) = through(link, cluster, &namespace, folder.path(), &[]);
    let node = format!("late-{namespace}");
    let _agent = fleet.agent(&node);
    cluster.apply(&world::job(&namespace, "slow", "", "sleep 3; echo done"));
    let job = wait_for("the job has succeeded", 2 * SOON, || {
        let job = get(cluster, &namespace, "sj", "slow");
        (job["status"]["logsComplete"] == true && job["metadata"]["finalizers"].is_null()).then_some(job)
    });
    assert_eq!((&job["status"]["phase"], &job["status"]["attempts"]), (&json!("Succeeded"), &json!(1)));
    // No write is based on what is known to be old.
    assert_eq!(told(&fleet, "Conflict"), 0, "{}", fleet.controller.log());
    cluster.kubectl(&["-n", &namespace, "delete", "sj", "slow", "--timeout=60s"]);
    let output = || fleet.cli(&["-n", &namespace, "get", "job", "slow"]);
    wait_for("the job is gone", SOON, || (!output().status.success()).then_some(()));
    cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
}

#[test]
fn each_verb_that_is_missing_is_told_by_name_and_what_it_is_for_comes_when_it_is_granted() {
    let cluster = Cluster::own(&[]);
    world::install(&cluster);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes/rbac.yaml");
    let list = cluster.kubectl(&["create", "-f", file, "--dry-run=client", "-o", "json"]);
    let roles: Vec<Value> = serde_json::Deserializer::from_str(&list)
        .into_iter::<Value>()
        .map(|role| role.expect("kubectl prints JSON"))
        .collect();
    let mut rules: Vec<Value> =
        roles.iter().take(2).flat_map(|role| role["rules"].as_array().expect("rules").clone()).collect();
    assert!(rules.len() >= 8, "{rules:?}");
    // Those of a name are as good without it here, where a Role is bound for the whole cluster.
    for rule in &mut rules {
        rule.as_object_mut().expect("a rule").remove("resourceNames");
    }
    let grant = |rules: &[Value]| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "trial"}, "rules": rules});
        cluster.apply(&role.to_string());
    };
    grant(&rules);
    cluster.kubectl(&["create", "clusterrolebinding", "trial", "--clusterrole=trial", "--user=editor"]);
    let config = cluster.kubeconfig("editor");
    for (resource, verb) in [
        ("namespaces", "get"),
        ("leases", "create"),
        ("leases", "get"),
        ("leases", "update"),
        ("sandboxjobs", "list"),
        ("sandboxjobs", "watch"),
        ("sandboxjobs", "patch"),
        ("sandboxjobs", "delete"),
        ("sandboxjobs/status", "patch"),
        ("jobtemplates", "list"),
        ("nodeconfigs", "create"),
        ("events", "create"),
    ] {
        let mut found = false;
        let less: Vec<Value> = rules
            .iter()
            .cloned()
            .flat_map(|mut rule| {
                // Each resource by itself, so that others keep the verb.
                let resources = rule["resources"].as_array().expect("resources").clone();
                resources
                    .into_iter()
                    .map(move |one| {
                        rule["resources"] = json!([one]);
                        rule.clone()
                    })
                    .collect::<Vec<_>>()
            })
            .map(|mut rule| {
                if rule["resources"][0] == resource {
                    let verbs = rule["verbs"].as_array_mut().expect("verbs");
                    let before = verbs.len();
                    verbs.retain(|known| known != verb);
                    found |= verbs.len() < before;
                }
                rule
            })
            .filter(|rule| rule["verbs"] != json!([]))
            .collect();
        assert!(found, "{verb} {resource} is granted by the documentation");
        grant(&less);
        let namespace = cluster.namespace();
        let label = world::node_label(&namespace);
        let mut settings = vec!["--kube-node-label", label.as_str(), "--kube-lease", "3s"];
        settings.extend(["--kube-delete-wait", "5s"]);
        let fleet = Fleet::with(&world::arguments(config.to_str().expect("text"), &namespace, &settings));
        let node = format!("verb-{namespace}");
        let agent = fleet.agent(&node);
        cluster.apply(&world::job(&namespace, "brief", "  ttlAfterFinished: 1s\n", "true"));
        cluster.apply(&world::job(&namespace, "long", "", "sleep 3"));
        let said = format!("cannot {verb} resource");
        wait_for(&format!("the log tells of {verb} {resource}: {}", fleet.controller.log()), SOON, || {
            let log = fleet.controller.log();
            log.lines().any(|line| line.contains(&said) && line.contains(resource)).then_some(())
        });
        let complaints = told(&fleet, "WARN");
        assert!(complaints < 20, "{verb} {resource}: {complaints} complaints\n{}", fleet.controller.log());
        grant(&rules);
        wait_for(&format!("{verb} {resource} is granted, and all is well"), 2 * SOON, || {
            let long = get(&cluster, &namespace, "sj", "long");
            let done = long["status"]["phase"] == "Succeeded"
                && long["metadata"]["finalizers"].is_null()
                && get(&cluster, &namespace, "sj", "brief").is_null()
                && !get(&cluster, &namespace, "nc", &node).is_null();
            done.then_some(())
        });
        drop(agent);
        cluster.kubectl(&["delete", "nc", &node, "--ignore-not-found"]);
    }
}

#[test]
fn a_controller_that_is_killed_among_many_jobs_loses_none_and_runs_none_twice() {
    const JOBS: usize = 300;
    let mut world = World::own(&[], &[]);
    let agent = world.fleet.agent("n1");
    let jobs: String = (0..JOBS)
        .map(|n| world::job(&world.namespace, &format!("j{n}"), "", "sleep 0.2") + "---\n")
        .collect();
    let phases = |world: &World| {
        let phases = world.kubectl(&["get", "sj", "-o", "jsonpath={.items[*].status.phase}"]);
        phases.split_whitespace().filter(|phase| *phase == "Succeeded").count()
    };
    let namespace = world.namespace.clone();
    let cluster = world.cluster;
    std::thread::scope(|scope| {
        let applied = scope.spawn(|| cluster.apply(&jobs));
        for least in [1, JOBS / 4, JOBS / 2] {
            wait_for(&format!("{least} have succeeded"), 2 * SOON, || {
                (phases(&world) >= least).then_some(())
            });
            world.fleet.controller.kill();
            world.fleet.restart_controller();
        }
        applied.join().expect("kubectl has applied them");
    });
    wait_for("all have succeeded", 4 * SOON, || (phases(&world) == JOBS).then_some(()));
    let all = world.kubectl(&["get", "sj", "-o", "json"]);
    let all: Value = serde_json::from_str(&all).expect("kubectl prints JSON");
    let twice: Vec<_> = all["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|job| job["status"]["attempts"] != 1 || !job["metadata"]["finalizers"].is_null())
        .map(|job| (job["metadata"]["name"].clone(), job["status"].clone()))
        .collect();
    assert!(twice.is_empty(), "{namespace}: {twice:?}\n{}", world.fleet.controller.log());
    drop(agent);
}
