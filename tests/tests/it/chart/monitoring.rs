//! Alerts and dashboard, over the metrics that a controller really has.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use super::super::system::fleet::Fleet;
use super::engine::{chart, list, of_kind, render, text};

/// What a scrape of a controller gives: names of series, as queries know them.
fn served(fleet: &Fleet) -> (String, BTreeSet<String>) {
    let output = Command::new("curl")
        .args(["--silent", "--fail", "--cacert"])
        .arg(fleet.path("controller/pki/ca.crt"))
        .arg(format!("{}/metrics", fleet.url))
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{}", fleet.controller.log());
    let metrics = String::from_utf8(output.stdout).expect("metrics are text");
    let mut names = BTreeSet::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a type has a name");
        match kind {
            "counter" => drop(names.insert(format!("{name}_total"))),
            "histogram" => names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}"))),
            _ => drop(names.insert(name.to_owned())),
        }
    }
    (metrics, names)
}

/// The names of ours in a query.
fn asked(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("windlass_")).map(str::to_owned).collect()
}

fn rules() -> Value {
    let objects = render("monitoring: {prometheusRule: {enabled: true}}", "fleet");
    of_kind(&objects, "PrometheusRule")[0]["spec"].clone()
}

/// All queries of the dashboard, as Grafana sends them.
fn queries() -> Vec<String> {
    let dashboard = std::fs::read_to_string(chart().join("dashboards/windlass.json")).expect("it is there");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("it is JSON");
    let panels = list(&dashboard["panels"]);
    let targets = panels.iter().flat_map(|panel| list(&panel["targets"]));
    targets
        .map(|target| text(&target["expr"]).replace("$__rate_interval", "5m").replace("$namespace", "fleet"))
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_what_a_controller_serves_and_the_dashboard_for_all_of_it() {
    let fleet = Fleet::start();
    let (metrics, served) = served(&fleet);
    let mut shown = BTreeSet::new();
    for query in queries() {
        shown.extend(asked(&query));
    }
    let rules = rules();
    let alerts: Vec<_> = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"])).collect();
    assert!(alerts.len() >= 9);
    let mut watched = BTreeSet::new();
    for alert in alerts {
        watched.extend(asked(text(&alert["expr"])));
        for key in ["summary", "description"] {
            assert!(!text(&alert["annotations"][key]).is_empty(), "{alert}");
        }
    }
    let foreign: Vec<_> = watched.union(&shown).filter(|name| !served.contains(*name)).collect();
    assert_eq!(foreign, Vec::<&String>::new(), "{metrics}");
    let base = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<_> = watched.union(&shown).map(|name| base(name)).collect();
    // The number of sweeps' bodies says less than their size.
    let left_out: Vec<_> = served
        .iter()
        .filter(|name| !shown.contains(&base(name)) && *name != "windlass_swept_bodies_total")
        .collect();
    assert_eq!(left_out, Vec::<&String>::new());
    assert!(metrics.contains("windlass_jobs{phase=\"Queued\"}"), "{metrics}");
}

#[test]
fn prometheus_takes_the_rules_and_fires_them() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let panels: Vec<_> = queries()
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("panel:{number}"), "expr": query}))
        .collect();
    let mut groups = rules()["groups"].clone();
    groups.as_array_mut().expect("a list").push(json!({"name": "panels", "rules": panels}));
    let job = "namespace=\"fleet\",job=\"windlass-controller\"";
    let series = |name: &str, labels: &str, values: &str| json!({"series": format!("{name}{{{job}{labels}}}"), "values": values});
    let fires =
        |name: &str, labels: Value| json!({"eval_time": "20m", "alertname": name, "exp_alerts": [labels]});
    let alert = |name: &str, severity: &str, summary: &str, description: &str| {
        let annotations = json!({"summary": summary, "description": description});
        fires(name, json!({"exp_labels": {"severity": severity}, "exp_annotations": annotations}))
    };
    let test = json!({
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [
                series("windlass_oldest_queued_job_age_seconds", "", "1000+60x30"),
                series("windlass_nodes", "", "0x30"),
                series("windlass_jobs", ",phase=\"Queued\"", "3x30"),
                series("windlass_expired_leases", "", "0x30"),
                series("windlass_damaged_rows", "", "0x30"),
                series("windlass_http_requests_total", ",status=\"200\"", "0+90x30"),
                series("windlass_http_requests_total", ",status=\"503\"", "0+10x30"),
            ],
            "alert_rule_test": [
                alert("WindlassControllerAbsent", "critical",
                    "No Windlass controller answers.",
                    "Nodes go on with what they have until their leases end. Look at the controller's pods and their logs."),
                alert("WindlassJobsWait", "warning", "A job has waited 36m 40s for a node.",
                    "`windlass why JOB` says for each node what is missing."),
                alert("WindlassNoNodes", "warning", "Jobs wait, and no node has joined.",
                    "`windlass join-token create` lets nodes in."),
                alert("WindlassServerErrors", "warning", "10% of requests fail in the controller.",
                    "The log names each; often the database or the place of bodies is away."),
                {"eval_time": "20m", "alertname": "WindlassLeasesNotTakenBack", "exp_alerts": []},
                {"eval_time": "20m", "alertname": "WindlassDamagedRows", "exp_alerts": []},
            ],
        }],
    });
    // JSON is YAML.
    std::fs::write(folder.path().join("rules.yaml"), json!({"groups": groups}).to_string()).expect("written");
    std::fs::write(folder.path().join("test.yaml"), test.to_string()).expect("written");
    let output = Command::new("promtool")
        .args(["test", "rules", "test.yaml"])
        .current_dir(folder.path())
        .output()
        .expect("promtool is installed (Debian: prometheus)");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
