use serde_json::json;

use super::*;
use crate::output::table;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn table(kind: Kind, objects: &[Value], width: Width) -> String {
    let rows: Vec<Vec<Cell>> =
        objects.iter().map(|object| row(kind, object, width, now()).unwrap()).collect();
    let text = table::format(&columns(kind, width), &rows, None);
    anstream::adapter::strip_str(&text).to_string()
}

const NARROW: Width = Width { wide: false, namespaces: false };
const WIDE: Width = Width { wide: true, namespaces: true };

#[test]
fn jobs_show_where_they_are_and_how_long_they_took() {
    let jobs = [
        json!({
            "metadata": {"name": "build", "namespace": "ci", "creationTimestamp": "2026-03-01T11:00:00Z"},
            "spec": {"queue": "fast", "priority": "high", "title": "Nightly build", "command": ["make"], "newer": 1},
            "status": {"phase": "Failed", "reason": "StepFailed", "node": "n1", "attempts": 2, "exitCode": 3,
                "startedAt": "2026-03-01T11:30:00Z", "finishedAt": "2026-03-01T11:31:05Z", "newer": 1},
        }),
        json!({
            "metadata": {"name": "held", "namespace": "default", "creationTimestamp": "2026-03-01T11:59:30Z"},
            "spec": {"queue": "default", "suspend": true},
            "status": {"phase": "Queued"},
        }),
        json!({
            "metadata": {"name": "going", "namespace": "default", "creationTimestamp": "2026-02-20T12:00:00Z"},
            "spec": {"queue": "default", "cancel": true},
            "status": {"phase": "Running", "node": "n2", "attempts": 1, "startedAt": "2026-03-01T11:59:57.5Z"},
        }),
    ];
    insta::assert_snapshot!(table(Kind::Job, &jobs, NARROW), @r"
    NAME   QUEUE    PHASE                 NODE  EXIT  DURATION  AGE
    build  fast     Failed                n1    3     1m5s      60m
    held   default  Queued (suspended)    -     -     -         30s
    going  default  Running (cancelling)  n2    -     2.5s      9d
    ");
    insta::assert_snapshot!(table(Kind::Job, &jobs, WIDE), @r"
    NAMESPACE  NAME   QUEUE    PHASE                 NODE  EXIT  DURATION  AGE  PRIORITY  ATTEMPTS  REASON      TITLE
    ci         build  fast     Failed                n1    3     1m5s      60m  high      2         StepFailed  Nightly build
    default    held   default  Queued (suspended)    -     -     -         30s  normal    0         -           -
    default    going  default  Running (cancelling)  n2    -     2.5s      9d   normal    1         -           -
    ");
}

#[test]
fn nodes_show_why_they_are_not_ready_and_which_configuration_is_in_force() {
    let nodes = [
        json!({
            "metadata": {"name": "n1", "creationTimestamp": "2026-02-01T12:00:00Z"},
            "spec": {},
            "status": {
                "state": "Online",
                "conditions": [{"type": "Ready", "status": "True", "reason": "Healthy", "lastTransitionTime": "2026-03-01T11:00:00Z"}],
                "configVersion": 10, "acknowledgedVersion": 10, "appliedVersion": 10, "agentVersion": "0.1.0",
                "lastSeenAt": "2026-03-01T11:59:58Z", "runningJobs": 1, "slots": 2,
                "host": {"os": "debian 12", "arch": "amd64", "kernel": "6.1", "cpus": 4, "memoryMib": 16384, "runtimes": ["native"], "gpus": 0},
                "labels": {"disk": "ssd"},
            },
        }),
        json!({
            "metadata": {"name": "n2", "creationTimestamp": "2026-02-01T12:00:00Z"},
            "spec": {"unschedulable": true},
            "status": {
                "state": "Degraded",
                "conditions": [
                    {"type": "Ready", "status": "False", "reason": "ClaimChannelSilent", "lastTransitionTime": "2026-03-01T11:00:00Z"},
                    {"type": "ConfigApplied", "status": "False", "reason": "RuntimeUnavailable", "lastTransitionTime": "2026-03-01T11:00:00Z"},
                ],
                "configVersion": 10, "appliedVersion": 9,
            },
        }),
        json!({"metadata": {"name": "declared"}, "spec": {}, "status": {"configVersion": 1}}),
        json!({"metadata": {"name": "held"}, "spec": {"unschedulable": true}, "status": {
            "state": "Offline", "configVersion": 1, "appliedVersion": 1, "hold": {"phase": "Draining", "since": "2026-03-01T11:00:00Z"},
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "HeartbeatStale", "lastTransitionTime": "2026-03-01T11:00:00Z"}],
        }}),
    ];
    insta::assert_snapshot!(table(Kind::Node, &nodes, NARROW), @r"
    NAME      STATUS                                        JOBS  CONFIG   VERSION  LAST SEEN  AGE
    n1        Online                                        1/2   10       0.1.0    2s         28d
    n2        Degraded (ClaimChannelSilent), unschedulable  0/0   9 of 10  -        -          28d
    declared  Pending                                       0/0   - of 1   -        -          -
    held      Offline (HeartbeatStale), draining            0/0   1        -        -          -
    ");
    insta::assert_snapshot!(table(Kind::Node, &nodes, WIDE), @r"
    NAME      STATUS                                        JOBS  CONFIG   VERSION  LAST SEEN  AGE  OS         ARCH   CPUS  MEMORY     RUNTIMES  LABELS
    n1        Online                                        1/2   10       0.1.0    2s         28d  debian 12  amd64  4     16.00 GiB  native    disk=ssd
    n2        Degraded (ClaimChannelSilent), unschedulable  0/0   9 of 10  -        -          28d  -          -      -     -          -         -
    declared  Pending                                       0/0   - of 1   -        -          -    -          -      -     -          -         -
    held      Offline (HeartbeatStale), draining            0/0   1        -        -          -    -          -      -     -          -         -
    ");
}

#[test]
fn templates_and_queues_show_what_there_is_to_know() {
    let templates = [json!({
        "metadata": {"name": "report", "namespace": "default", "creationTimestamp": "2026-02-28T12:00:00Z"},
        "spec": {"version": "2.1.0", "description": "Reports.\nAt length.", "parameters": [{"name": "since"}, {"name": "until"}], "job": {}},
    })];
    insta::assert_snapshot!(table(Kind::Template, &templates, WIDE), @r"
    NAMESPACE  NAME    VERSION  AGE  DESCRIPTION  PARAMETERS
    default    report  2.1.0    24h  Reports.     since,until
    ");
    let queues = [
        json!({"name": "default", "concurrency": 4, "queued": 3, "delayed": 1, "running": 2, "waiting": 0, "dead": 1,
        "oldestQueuedAt": "2026-03-01T11:00:00Z", "priorities": [{"priority": 500, "queued": 3, "running": 2}]}),
    ];
    insta::assert_snapshot!(table(Kind::Queue, &queues, NARROW), @r"
    NAME     QUEUED  DELAYED  RUNNING  LIMIT  WEIGHT  WAITING  DEAD  OLDEST
    default  3       1        2        4      1       0        1     60m
    ");
}

#[test]
fn an_object_of_another_kind_is_an_error() {
    assert!(row(Kind::Template, &json!({"metadata": {"name": "a"}}), NARROW, now()).is_err());
}
