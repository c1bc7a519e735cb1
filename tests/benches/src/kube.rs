//! P14: jobs by kubectl: how soon they run, and what they cost the API server.
//!
//! The API server's own audit log tells who asked what and when. Its peer, a Job of batch/v1, needs kube-controller-manager, which
//! no package of Debian has as a program; so figures stand alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_test_kube::Cluster;

use crate::bench::{Bench, run};
use crate::rounds::reason;
use crate::stats::percentile;
use crate::table::{Aim, Table, Unit};
use crate::windlass::{Controller, Windlass, program};

/// Writes with what is written, everything else without.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  {"level": "Request", "resources": [{"group": "windlass.dev"}], "verbs": ["create", "update", "patch", "delete"]},
  {"level": "Metadata"}]}"#;
/// The namespace of the jobs.
const NAMESPACE: &str = "bench";
/// How long all jobs may take together.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long nothing happens while lists are counted: longer than the bridge's own resync.
const STEADY: Duration = Duration::from_secs(10);

/// What was measured on a number of jobs.
struct Figures {
    /// Milliseconds from the acknowledged create to the acknowledged status that says that it has started.
    latencies: Vec<f64>,
    /// Writes of the controller to jobs and Events.
    writes: f64,
    /// Lists of the controller after its first ones.
    lists: usize,
    /// The most resident memory of the controller, in MiB.
    peak: f64,
    /// From the first create to the last end, in seconds.
    seconds: f64,
}

/// Adds the row: at full length for as many jobs as the aim speaks of, and for twice as many.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    for &jobs in bench.scale.objects {
        eprintln!("P14: {jobs} jobs by kubectl");
        match figures(bench, jobs) {
            Ok(figures) => {
                let Figures { latencies, writes, lists, peak, seconds } = figures;
                let note = format!(
                    "p50 / p95 / p99 in ms: {:.0} / {:.0} / {:.0}; {jobs} jobs ended {seconds:.1} s after the first create",
                    percentile(&latencies, 50.0),
                    percentile(&latencies, 95.0),
                    percentile(&latencies, 99.0),
                );
                let p99 = percentile(&latencies, 99.0);
                table.alone(
                    "P14",
                    &format!("{jobs} at once: create to Running, p99"),
                    p99,
                    Unit::Milliseconds,
                    Aim::None,
                );
                table.note(&note);
                let metric = format!("{jobs} at once: API writes a job");
                table.alone("P14", &metric, writes / jobs as f64, Unit::Count, Aim::None);
                let metric = format!("{jobs} at once: LISTs once it watches");
                table.alone("P14", &metric, lists as f64, Unit::Count, Aim::AtMost(0.0));
                let metric = format!("{jobs} at once: controller, peak RSS");
                table.alone("P14", &metric, peak, Unit::MiB, Aim::None);
            }
            Err(error) => table.failed("P14", "jobs by kubectl", &reason(error)),
        }
    }
    let Some(&jobs) = bench.scale.objects.last() else { return };
    eprintln!("P14: {jobs} jobs by kubectl, and the controller killed among them");
    match killed(bench, jobs) {
        Ok(twice) => {
            let metric = format!("{jobs} at once, controller killed three times: lost or run twice");
            table.alone("P14", &metric, twice as f64, Unit::Count, Aim::AtMost(0.0));
        }
        Err(error) => {
            table.failed("P14", "jobs by kubectl, the controller killed among them", &reason(error));
        }
    }
}

/// Kills the controller three times while jobs come and run, and counts those that were run more than once. One that is lost fails the
/// wait for all to succeed.
fn killed(bench: &Bench, jobs: usize) -> anyhow::Result<usize> {
    let cluster = prepared(bench, &[])?;
    let config = cluster.kubeconfig("windlass").display().to_string();
    let mut controller = Controller::start(bench, "kube-killed", &bridging(&config))?;
    let _agent = controller.agent(bench, "bench")?;
    std::thread::scope(|scope| {
        let created = scope.spawn(|| create(&cluster, "job", jobs));
        for part in [8, 4, 2] {
            ended(&cluster, jobs / part)?;
            controller.kill();
            controller.again()?;
        }
        created.join().map_err(|_| anyhow::anyhow!("creating jobs panicked"))?
    })?;
    ended(&cluster, jobs)?;
    let attempts =
        cluster.kubectl(&["-n", NAMESPACE, "get", "sj", "-o", "jsonpath={.items[*].status.attempts}"]);
    Ok(jobs - attempts.split_whitespace().filter(|attempts| *attempts == "1").count())
}

/// A cluster with the custom resources, the namespace of the jobs, and the rights that the documentation names.
fn prepared(bench: &Bench, arguments: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::own(arguments);
    run(program(bench).args(["crds", "install", "--kube-config"]).arg(cluster.kubeconfig("admin")))?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]);
    grant(&cluster);
    Ok(cluster)
}

/// The settings of a controller that bridges the namespace.
fn bridging(config: &str) -> [&str; 7] {
    ["--kube", "--kube-config", config, "--kube-namespace", NAMESPACE, "--kube-lease-namespace", NAMESPACE]
}

fn figures(bench: &Bench, jobs: usize) -> anyhow::Result<Figures> {
    let folder = bench.folder("kube")?;
    let (policy, log) = (folder.join("policy.json"), folder.join("audit.log"));
    fs::write(&policy, AUDIT)?;
    let audited =
        [format!("--audit-policy-file={}", policy.display()), format!("--audit-log-path={}", log.display())];
    let cluster = prepared(bench, &audited.each_ref().map(String::as_str))?;
    let config = cluster.kubeconfig("windlass").display().to_string();
    let windlass = Windlass::fleet_with(bench, &bridging(&config))?;
    // One job, so that everything is watched.
    create(&cluster, "first", 1)?;
    ended(&cluster, 1)?;
    let before = events(&log, 0)?.len();
    create(&cluster, "job", jobs)?;
    ended(&cluster, jobs + 1)?;
    let busy = events(&log, 0)?.len();
    std::thread::sleep(STEADY);
    let all = events(&log, before)?;
    let peak = peak(windlass.pids().1)?;
    let of_ours = |event: &&Value| event["user"]["username"] == "windlass";
    let lists = all.iter().filter(of_ours).filter(|event| event["verb"] == "list").count();
    let verbs = ["create", "update", "patch", "delete"];
    let writes = all.iter().filter(of_ours).filter(|event| {
        let resource = &event["objectRef"]["resource"];
        verbs.iter().any(|verb| event["verb"] == *verb) && (resource == "sandboxjobs" || resource == "events")
    });
    let writes = writes.count() as f64;
    let later = all.len() - (busy - before);
    ensure!(later < jobs, "{later} requests came while nothing happened");
    let (latencies, seconds) = times(&all)?;
    ensure!(latencies.len() == jobs, "{} of {jobs} jobs were seen to start", latencies.len());
    Ok(Figures { latencies, writes, lists, peak, seconds })
}

/// Grants what the documentation says.
fn grant(cluster: &Cluster) {
    let roles = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kubernetes/rbac.yaml");
    cluster.kubectl(&["apply", "-f", roles]);
    for (kind, role) in
        [("clusterrolebinding", "windlass-controller"), ("rolebinding", "windlass-controller-lease")]
    {
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "create",
            kind,
            role,
            "--clusterrole",
            role,
            "--user",
            "windlass",
        ]);
    }
}

/// Creates jobs by one kubectl.
fn create(cluster: &Cluster, prefix: &str, jobs: usize) -> anyhow::Result<()> {
    let job = |number: usize| {
        json!({
            "apiVersion": "windlass.dev/v1alpha1",
            "kind": "SandboxJob",
            "metadata": {"name": format!("{prefix}-{number}"), "namespace": NAMESPACE},
            "spec": {"command": ["/bin/true"]},
        })
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": (0..jobs).map(job).collect::<Vec<_>>()});
    let mut kubectl = cluster.command(&["create", "-f", "-"]);
    let mut child =
        kubectl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot run kubectl")?;
    child.stdin.take().context("it is piped")?.write_all(list.to_string().as_bytes())?;
    ensure!(child.wait()?.success(), "kubectl could not create {jobs} jobs");
    Ok(())
}

/// Waits until at least this many jobs have succeeded, as their objects say.
fn ended(cluster: &Cluster, jobs: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let phases =
            cluster.kubectl(&["-n", NAMESPACE, "get", "sj", "-o", "jsonpath={.items[*].status.phase}"]);
        let count = phases.split_whitespace().filter(|phase| *phase == "Succeeded").count();
        if count >= jobs {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "only {count} of {jobs} jobs have succeeded");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The events of the audit log but for the first ones.
fn events(log: &Path, skipped: usize) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().skip(skipped).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Milliseconds from create to start of each job, and seconds from the first create to the last status.
fn times(events: &[Value]) -> anyhow::Result<(Vec<f64>, f64)> {
    let mut created: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut started: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut last = Timestamp::MIN;
    for event in events {
        let reference = &event["objectRef"];
        if reference["resource"] != "sandboxjobs" {
            continue;
        }
        let at: Timestamp = event["stageTimestamp"].as_str().context("an event has its time")?.parse()?;
        // A create names its object in what is sent only.
        let name = reference["name"].as_str().or_else(|| event["requestObject"]["metadata"]["name"].as_str());
        let Some(name) = name else { continue };
        if event["verb"] == "create" {
            created.insert(name, at);
        } else if reference["subresource"] == "status" {
            last = last.max(at);
            if event["requestObject"]["status"]["startedAt"].is_string() {
                started.entry(name).or_insert(at);
            }
        }
    }
    let first = created.values().min().copied().context("jobs were created")?;
    let took = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let latencies = created.iter().filter_map(|(name, at)| Some(1e3 * took(*at, *started.get(name)?)));
    Ok((latencies.collect(), took(first, last)))
}

/// The most resident memory that a process has had, in MiB.
fn peak(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a process has a peak")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
