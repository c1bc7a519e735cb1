//! Jobs by kubectl, on a real agent.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use super::super::system::fleet::{Fleet, wait_for};
use super::world::{self, SOON, World, get};

#[test]
fn examples_run_and_get_watch_wait_describe_and_delete_show_it() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    let watched = world.fleet.path("watched");
    let file = std::fs::File::create(&watched).expect("it can be written");
    let mut watch = world.cluster.command(&["-n", &world.namespace, "get", "sj", "-w", "--no-headers"]);
    let mut watch = watch.stdout(file).stderr(Stdio::null()).spawn().expect("kubectl is installed");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let create = |example: &str| {
        // Examples have generated names, so that each can be run again and again.
        let path = format!("{folder}/{example}.yaml");
        let made = world.kubectl(&["create", "-f", &path, "-o", "jsonpath={.metadata.name}"]);
        assert!(made.starts_with(example), "{made}");
        made
    };
    let jobs: Vec<String> = ["hello", "steps", "retry", "limits"].map(create).into();
    for job in &jobs {
        world.wait_until(job, "has ended", |job| !job["status"]["finishedAt"].is_null());
        let said = world.kubectl(&["wait", "--for=condition=Complete", "--timeout=60s", "sj", job]);
        assert!(said.contains("condition met"), "{said}");
    }
    let [hello, steps, retry, limits] = jobs.as_slice() else { unreachable!("four were made") };
    let status = |name: &str| world.get("sj", name)["status"].clone();
    assert_eq!((&status(hello)["phase"], &status(hello)["node"]), (&json!("Succeeded"), &json!("n1")));
    assert_eq!(status(steps)["step"], "show");
    assert_eq!(status(retry)["attempts"], 3);
    assert_eq!(status(limits)["steps"][1]["reason"], "OOMKilled", "{}", status(limits));
    let table = world.kubectl(&["get", "sj", steps]);
    for word in ["Succeeded", "show", "n1"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let described = world.kubectl(&["describe", "sj", hello]);
    for word in ["Succeeded", "Events", "Complete", "the job has succeeded on `n1`"] {
        assert!(described.contains(word), "{word}: {described}");
    }
    let reasons: Vec<String> = world.events(retry).into_iter().map(|(_, reason, _)| reason).collect();
    assert!(reasons.contains(&"Retrying".to_owned()), "{reasons:?}");
    wait_for("the watch has shown the end", SOON, || {
        let shown = std::fs::read_to_string(&watched).unwrap_or_default();
        let lines = shown.lines().filter(|line| line.contains(hello.as_str()));
        lines.filter(|line| line.contains("Succeeded")).count().gt(&0).then_some(())
    });
    watch.kill().expect("it is ours");
    watch.wait().expect("it is ours");
    // What was made by kubectl shows here, with its logs.
    assert_eq!(world.stored(hello)["status"]["phase"], "Succeeded");
    let logs = world.fleet.text(&["-n", &world.namespace, "logs", hello]);
    assert!(logs.contains("Hello from Linux"), "{logs}");
    world.kubectl(&["delete", "sj", hello, "--timeout=60s"]);
    world.wait_until_not_stored(hello);
}

#[test]
fn a_job_that_fails_is_waited_for_by_its_condition() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("bad", "", "exit 3");
    let said = world.kubectl(&["wait", "--for=condition=Failed", "--timeout=60s", "sj/bad"]);
    assert!(said.contains("condition met"), "{said}");
    let job = world.get("sj", "bad");
    assert_eq!(job["status"]["exitCode"], 3);
    for name in ["Failed", "Accepted"] {
        let condition = World::condition(&job, name).expect("it is set");
        assert_eq!(condition.0, "True", "{job}");
    }
    let all = job["status"]["conditions"].as_array().expect("a list");
    assert!(
        all.iter().all(|condition| condition["observedGeneration"] == job["metadata"]["generation"]),
        "{job}"
    );
    world.wait_for_event("bad", "Warning", "Failed");
}

#[test]
fn a_running_job_is_stopped_before_its_object_goes() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("long", "", "sleep 600");
    let running = world.wait_until("long", "is kept while it runs", |job| {
        job["status"]["phase"] == "Running"
            && job["metadata"]["finalizers"] == json!(["windlass.dev/stop-on-node"])
    });
    let uid = running["metadata"]["uid"].clone();
    world.wait_for_event("long", "Normal", "Started");
    world.kubectl(&["delete", "sj", "long", "--timeout=60s"]);
    world.wait_until_not_stored("long");
    // The same manifest again is another job.
    world.job("long", "", "echo again");
    let again = world.wait_for_phase("long", "Succeeded");
    assert_ne!(again["metadata"]["uid"], uid);
    assert_eq!(again["metadata"]["finalizers"], Value::Null, "nothing is left to be stopped");
}

#[test]
fn applying_again_does_nothing_and_another_spec_is_refused() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("once", "", "echo once");
    let done = world.wait_until("once", "has all its logs", |job| job["status"]["logsComplete"] == true);
    let version = done["metadata"]["resourceVersion"].clone();
    world.job("once", "", "echo once");
    assert_eq!(world.get("sj", "once")["metadata"]["resourceVersion"], version);
    let changed = world::job(&world.namespace, "once", "", "echo twice");
    let (applied, said) = world.cluster.pipe(&["apply", "-f", "-"], &changed);
    if world.cluster.knows_cel() {
        assert!(!applied && said.contains("cannot change"), "{said}");
        return;
    }
    assert!(applied, "{said}");
    let refused = world.wait_until("once", "tells that the change is refused", |job| {
        World::condition(job, "Accepted")
            .is_some_and(|(status, reason, _)| status == "False" && reason == "SpecChanged")
    });
    assert_eq!(refused["status"]["phase"], "Succeeded", "what it did is what it did");
    assert_eq!(refused["status"]["attempts"], 1);
    world.job("once", "", "echo once");
    world.wait_until("once", "is as it was", |job| {
        World::condition(job, "Accepted").is_some_and(|(status, _, _)| status == "True")
    });
}

#[test]
fn what_may_change_changes_and_the_rest_belongs_to_kubernetes() {
    let world = World::start();
    world.job("held", "  suspend: true\n  priority: low\n", "echo released");
    world.wait_until("held", "is accepted", |job| World::condition(job, "Accepted").is_some());
    let windlass = |arguments: &[&str]| {
        let mut all = vec!["-n", &world.namespace];
        all.extend(arguments);
        let output = world.fleet.cli(&all);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let manifest = world.fleet.path("held.yaml");
    std::fs::write(&manifest, world::job(&world.namespace, "held", "  priority: high\n", "echo released"))
        .expect("it can be written");
    for arguments in
        [["apply", "-f", manifest.to_str().expect("paths are text")].as_slice(), &["delete", "job", "held"]]
    {
        let (done, said) = windlass(arguments);
        assert!(!done && said.contains("declared in Kubernetes"), "{arguments:?}: {said}");
    }
    world.job("held", "  priority: high\n", "echo released");
    wait_for("the priority is changed", SOON, || {
        let job = world.stored("held");
        (job["spec"]["priority"] == "high" && job["spec"]["suspend"] != true).then_some(())
    });
    // Cancelling is permitted here too, and does not make the manifest wrong.
    assert!(windlass(&["cancel", "held"]).0);
    let job = world.wait_for_phase("held", "Cancelled");
    assert_eq!(World::condition(&job, "Accepted").expect("it is set").0, "True");
    let (done, said) = windlass(&["retry", "held"]);
    assert!(!done && said.contains("declared in Kubernetes"), "{said}");
    world.job("other", "  suspend: true\n", "true");
    world.wait_until("other", "is accepted", |job| World::condition(job, "Accepted").is_some());
    world.kubectl(&["patch", "sj", "other", "--type=merge", "-p", r#"{"spec": {"cancel": true}}"#]);
    world.wait_for_phase("other", "Cancelled");
}

#[test]
fn an_object_whose_time_to_live_has_passed_goes_and_is_not_run_again() {
    let mut world = World::start();
    let _agent = world.fleet.agent("n1");
    world.job("brief", "  ttlAfterFinished: 1s\n", "echo brief");
    world.wait_until_gone("sj", "brief");
    // The object may be deleted last, or the job: neither brings the other back.
    world.job("kept", "", "echo kept");
    world.wait_for_phase("kept", "Succeeded");
    world.fleet.controller.kill();
    world.fleet.restart_controller();
    world.job("after", "", "echo after");
    world.wait_for_phase("after", "Succeeded");
    assert_eq!(world.get("sj", "kept")["status"]["attempts"], 1);
    assert!(world.stored("brief").is_null());
}

#[test]
fn invalid_objects_and_taken_names_end_in_conditions() {
    let world = World::start();
    let created = |spec: &str, name: &str| {
        let manifest = format!(
            "{{apiVersion: windlass.dev/v1alpha1, kind: SandboxJob, metadata: {{name: {name}, namespace: {}}}, spec: {spec}}}",
            world.namespace
        );
        world.cluster.pipe(&["create", "--validate=false", "-f", "-"], &manifest)
    };
    // What no schema and no rule says, and what rules say where the server knows none.
    for (name, spec, word) in [
        (
            "bad-path",
            "{command: [a], workspace: {inputs: [{path: ../up, inline: a}]}}",
            "spec.workspace.inputs[0].path",
        ),
        ("bad-time", "{command: [a], timeout: 90d}", "spec.timeout"),
        ("bad-both", "{command: [a], script: {source: b}}", "spec.script"),
    ] {
        let (accepted, said) = created(spec, name);
        if !accepted {
            assert!(world.cluster.knows_cel() && name == "bad-both", "{name}: {said}");
            continue;
        }
        let job = world.wait_until(name, "is told to be wrong", |job| {
            World::condition(job, "Accepted")
                .is_some_and(|(status, reason, _)| status == "False" && reason == "Invalid")
        });
        let (_, _, message) = World::condition(&job, "Failed").expect("`kubectl wait` must work");
        assert!(message.contains(word), "{name}: {message}");
        assert_eq!(job["status"]["phase"], "Failed");
        assert!(world.stored(name).is_null());
    }
    let native = world.fleet.path("native.yaml");
    std::fs::write(&native, world::job(&world.namespace, "taken", "  suspend: true\n", "echo native"))
        .expect("written");
    let apply = |path: &std::path::Path| {
        let output = world.fleet.cli(&["-n", &world.namespace, "apply", "-f", path.to_str().expect("text")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    apply(&native);
    world.job("taken", "  suspend: true\n", "echo by kubectl");
    world.wait_until("taken", "waits for its name", |job| {
        World::condition(job, "Accepted")
            .is_some_and(|(status, reason, _)| status == "False" && reason == "NameTaken")
    });
    world.fleet.text(&["-n", &world.namespace, "delete", "job", "taken"]);
    world.wait_until("taken", "has its name", |job| {
        World::condition(job, "Accepted").is_some_and(|(status, _, _)| status == "True")
    });
}

#[test]
fn a_status_stays_small_whatever_the_job_does() {
    let world = World::start();
    let _agent = world.fleet.agent("n1");
    let steps: String = (0..100)
        .map(|n| {
            format!(
                "  - {{name: 'step-{n:050}', continueOnError: true, script: {{source: 'exit {}'}}}}\n",
                n % 2
            )
        })
        .collect();
    world.cluster.apply(&format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: many, namespace: {}}}\nspec:\n  steps:\n{steps}",
        world.namespace
    ));
    let job = world.wait_until("many", "has ended", |job| !job["status"]["finishedAt"].is_null());
    let bytes = job["status"].to_string().len();
    assert!(bytes < 8 * 1024, "{bytes} bytes");
    let shown = job["status"]["steps"].as_array().expect("some are shown").len() as u64;
    assert_eq!(shown + job["status"]["stepsOmitted"].as_u64().expect("the rest is counted"), 100);
    assert_eq!(world.stored("many")["status"]["steps"].as_array().expect("all").len(), 100);
}

#[test]
fn jobs_are_exported_without_running_again_and_imported_elsewhere() {
    let world = World::start();
    let agent = world.fleet.agent("n1");
    drop(agent);
    let native = world.fleet.path("native.yaml");
    let made = world::job(&world.namespace, "moved", "  suspend: true\n", "echo moved");
    std::fs::write(&native, &made).expect("written");
    let path = native.to_str().expect("text").to_owned();
    let namespaced = |arguments: &[&str]| {
        let mut all = vec!["-n", &world.namespace];
        all.extend(arguments);
        world.fleet.text(&all)
    };
    namespaced(&["apply", "-f", &path]);
    let printed = namespaced(&["export", "job/moved"]);
    assert!(printed.contains("kind: SandboxJob") && !printed.contains("status"), "{printed}");
    let config = world.cluster.kubeconfig("admin");
    let config = config.to_str().expect("text");
    let uid = world.stored("moved")["metadata"]["uid"].clone();
    assert!(uid.is_string());
    namespaced(&["export", "jobs", "--to-cluster", "--kube-config", config]);
    let job = world.wait_until("moved", "is bound to its job", |job| {
        World::condition(job, "Accepted").is_some_and(|(status, _, _)| status == "True")
    });
    assert_eq!(job["status"]["phase"], "Queued");
    assert_eq!(world.stored("moved")["metadata"]["uid"], uid, "it is the same job");
    let output = world.fleet.cli(&["-n", &world.namespace, "delete", "job", "moved"]);
    assert!(!output.status.success(), "it belongs to its object now");
    // Into a server that bridges nothing.
    let other = Fleet::start();
    let imported = other.text(&["-n", &world.namespace, "import", "--from-cluster", "--kube-config", config]);
    assert!(imported.contains("job/moved created"), "{imported}");
    let from_kubectl = world.kubectl(&["get", "sj", "-o", "yaml"]);
    std::fs::write(other.path("objects.yaml"), from_kubectl).expect("written");
    let imported = other.text(&["-n", &world.namespace, "import", "-f", "objects.yaml"]);
    assert!(imported.contains("job/moved unchanged"), "{imported}");
}

#[test]
fn only_the_named_namespaces_are_bridged_and_writes_stay_few() {
    let world = World::start();
    let elsewhere = world.cluster.namespace();
    world.cluster.apply(&world::job(&elsewhere, "elsewhere", "", "true"));
    let _agent = world.fleet.agent("n1");
    world.job("here", "", "echo here");
    let done = world.wait_until("here", "has all its logs", |job| job["status"]["logsComplete"] == true);
    assert_eq!(get(world.cluster, &elsewhere, "sj", "elsewhere")["status"], Value::Null);
    // Two finalizer patches, and a status for each phase that was seen.
    let version = done["metadata"]["resourceVersion"].clone();
    let fields = world.kubectl(&["get", "sj", "here", "--show-managed-fields", "-o", "json"]);
    let fields: Value = serde_json::from_str(&fields).expect("kubectl prints JSON");
    let own = fields["metadata"]["managedFields"].as_array().expect("they are kept");
    assert!(own.iter().any(|fields| fields["manager"] == "windlass-controller"), "{own:?}");
    // Nothing more is written while nothing more happens.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    wait_for("five seconds have passed", SOON, || (std::time::Instant::now() > deadline).then_some(()));
    assert_eq!(world.get("sj", "here")["metadata"]["resourceVersion"], version);
}

#[test]
fn many_quick_jobs_cost_the_api_server_few_writes_each() {
    const JOBS: usize = 200;
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (policy, log) = (folder.path().join("policy.json"), folder.path().join("audit.log"));
    let rules = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete"], "userGroups": ["windlass"]},
        {"level": "None"},
    ]});
    std::fs::write(&policy, rules.to_string()).expect("it can be written");
    let cluster = Cluster::own(&[
        &format!("--audit-policy-file={}", policy.display()),
        &format!("--audit-log-path={}", log.display()),
    ]);
    world::install(&cluster);
    let namespace = cluster.namespace();
    world::grant(&cluster, &namespace);
    let config = cluster.kubeconfig("windlass");
    let fleet = Fleet::with(&world::arguments(config.to_str().expect("text"), &namespace, &[]));
    let _agent = fleet.agent("n1");
    let jobs: String =
        (0..JOBS).map(|n| world::job(&namespace, &format!("j{n}"), "", "true") + "---\n").collect();
    cluster.apply(&jobs);
    wait_for("all have succeeded", 2 * SOON, || {
        let phases =
            cluster.kubectl(&["-n", &namespace, "get", "sj", "-o", "jsonpath={.items[*].status.phase}"]);
        (phases.split_whitespace().filter(|phase| *phase == "Succeeded").count() == JOBS).then_some(())
    });
    let writes: Vec<Value> = std::fs::read_to_string(&log)
        .expect("the API server writes it")
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is an event"))
        .filter(|event: &Value| {
            let resource = &event["objectRef"]["resource"];
            resource == "sandboxjobs" || resource == "events"
        })
        .collect();
    let count = |resource: &str, subresource: Value| {
        let of = |event: &&Value| {
            event["objectRef"]["resource"] == resource && event["objectRef"]["subresource"] == subresource
        };
        writes.iter().filter(of).count()
    };
    let (statuses, finalizers) = (count("sandboxjobs", json!("status")), count("sandboxjobs", Value::Null));
    let events = count("events", Value::Null);
    println!("{JOBS} jobs: {statuses} statuses, {events} events, {finalizers} of finalizers");
    assert!(statuses >= JOBS && events >= JOBS, "{statuses} statuses and {events} events tell of all");
    // What a job of batch/v1 costs its controller is twice as much: a pod, its finalizer, two statuses and two Events.
    assert!(writes.len() <= 3 * JOBS, "{statuses} statuses, {events} events, {finalizers} of finalizers");
}

#[test]
fn the_granted_rights_are_all_that_is_needed() {
    let cluster = Cluster::shared();
    world::install(cluster);
    let namespace = cluster.namespace();
    world::grant(cluster, &namespace);
    let config = cluster.kubeconfig("windlass");
    let fleet = Fleet::with(&world::arguments(
        config.to_str().expect("text"),
        &namespace,
        &["--kube-node-label", &world::node_label(&namespace)],
    ));
    let name = format!("granted-{namespace}");
    let _agent = fleet.agent(&name);
    cluster.apply(&world::job(&namespace, "granted", "  ttlAfterFinished: 5s\n", "echo granted"));
    wait_for("the job has succeeded", SOON, || {
        (get(cluster, &namespace, "sj", "granted")["status"]["phase"] == "Succeeded").then_some(())
    });
    wait_for("the node has an object", SOON, || {
        (!get(cluster, &namespace, "nc", &name).is_null()).then_some(())
    });
    wait_for("the object goes", SOON, || get(cluster, &namespace, "sj", "granted").is_null().then_some(()));
    assert!(!fleet.controller.log().contains("forbidden"), "{}", fleet.controller.log());
    cluster.kubectl(&["delete", "nc", &name, "--ignore-not-found"]);
}
