//! One row for each reason, in the order in which they are checked.

use super::*;
use windlass_crds::Bytes;
use windlass_crds::sandbox_job::SandboxJobSpec;

fn offer() -> Offer {
    Offer {
        arch: Some(Arch::Amd64),
        working_runtimes: BTreeSet::from([Runtime::Native]),
        permitted_networks: BTreeSet::from([Network::None, Network::Restricted]),
        working_networks: BTreeSet::from([Network::None]),
        egress: vec!["*.example:443".parse().expect("a rule")],
        labels: BTreeMap::from([("zone".into(), "a".into()), ("cores".into(), "8".into())]),
        enforceable: BTreeSet::from([Limit::Memory, Limit::Cpu]),
        max: Resources { memory: Some(Bytes::from_mib(1024)), ..Default::default() },
        host_paths: vec![HostPath { path: "/srv/data".into(), read_only: true }],
        gpus: vec![(Some("nvidia".into()), 24 << 30)],
        capacity: Room { cpu_millis: 4000, memory_bytes: 8 << 30, gpus: 1 },
        ..Default::default()
    }
}

fn spec(yaml: &str) -> SandboxJobSpec {
    serde_json::from_str(yaml).expect("the test's own spec is valid")
}

#[test]
fn the_first_reason_is_named() {
    for (json, expected) in [
        (r#"{}"#, None),
        (r#"{"sandbox":{"runtime":"podman"}}"#, Some("runtime podman does not work on the node")),
        (r#"{"sandbox":{"network":"Open"}}"#, Some("network Open is not among the node's sandbox.networks")),
        (r#"{"sandbox":{"network":"Restricted"}}"#, Some("network Restricted does not work on the node")),
        (r#"{"requires":{"arch":"arm64"}}"#, Some("the node is not arm64")),
        (r#"{"nodeSelector":{"zone":"b"}}"#, Some("nodeSelector zone=b: the node has a")),
        (r#"{"nodeSelector":{"disk":"ssd"}}"#, Some("nodeSelector disk=ssd: the node has no such label")),
        (
            r#"{"requires":{"labels":[{"key":"zone","operator":"NotIn","values":["a"]}]}}"#,
            Some("requires.labels zone NotIn [a]: the node has a"),
        ),
        (r#"{"requires":{"labels":[{"key":"cores","operator":"Gt","values":["7"]}]}}"#, None),
        (
            r#"{"requires":{"labels":[{"key":"cores","operator":"Lt","values":["8"]}]}}"#,
            Some("requires.labels cores Lt [8]: the node has 8"),
        ),
        (
            r#"{"requires":{"labels":[{"key":"zone","operator":"Gt","values":["1"]}]}}"#,
            Some("requires.labels zone Gt [1]: the node has a"),
        ),
        (r#"{"requires":{"labels":[{"key":"disk","operator":"DoesNotExist"}]}}"#, None),
        (
            r#"{"sandbox":{"resources":{"pids":5}}}"#,
            Some(
                "the node cannot enforce the pids limit that the job names; sandbox.unenforced: [pids] would accept that",
            ),
        ),
        (r#"{"sandbox":{"resources":{"pids":5},"unenforced":["pids"]}}"#, None),
        (
            r#"{"sandbox":{"resources":{"ioRead":"5Mi"}}}"#,
            Some(
                "the node cannot enforce the io limit that the job names; sandbox.unenforced: [io] would accept that",
            ),
        ),
        (r#"{"sandbox":{"resources":{"cpuWeight":5}}}"#, None),
        (
            r#"{"sandbox":{"resources":{"memory":"2Gi"}}}"#,
            Some("the job names 2Gi of memory, above the node's sandbox.max of 1Gi"),
        ),
        (r#"{"workspace":{"inputs":[{"path":"d","hostPath":{"path":"/srv/data/x"}}]}}"#, None),
        (
            r#"{"workspace":{"inputs":[{"path":"d","hostPath":{"path":"/srv/database"}}]}}"#,
            Some("host path /srv/database is not allowed by the node's sandbox.hostPaths"),
        ),
        (
            r#"{"workspace":{"inputs":[{"path":"d","hostPath":{"path":"/srv/data","readOnly":false}}]}}"#,
            Some("host path /srv/data is not writable by the node's sandbox.hostPaths"),
        ),
        (r#"{"requires":{"gpu":{"vendor":"nvidia","memory":"16Gi"}}}"#, None),
        (r#"{"requires":{"gpu":{"vendor":"amd"}}}"#, Some("1 fitting GPUs are needed and the node has 0")),
        (r#"{"requires":{"gpu":{"count":2}}}"#, Some("2 fitting GPUs are needed and the node has 1")),
        (r#"{"requires":{"cpu":8}}"#, Some("8 of cpu are needed and the whole node has 4")),
        (r#"{"requires":{"memory":"9Gi"}}"#, Some("9Gi of memory are needed and the whole node has 8Gi")),
    ] {
        let spec = spec(json);
        let found = exclusion_with_room(&Requirement::of(&spec), crate::requirement::room(&spec), &offer());
        assert_eq!(found.map(|reason| reason.to_string()).as_deref(), expected, "{json}");
    }
}

#[test]
fn rules_for_egress_must_lie_within_the_nodes() {
    let offer = |egress: &[&str]| Offer {
        working_networks: BTreeSet::from([Network::Restricted]),
        egress: egress.iter().map(|rule| rule.parse().expect("a rule")).collect(),
        ..offer()
    };
    let reason = |rule: &str, egress: &[&str]| {
        let spec = spec(&format!(r#"{{"sandbox":{{"network":"Restricted","egress":["{rule}"]}}}}"#));
        exclusion(&Requirement::of(&spec), &offer(egress)).map(|reason| reason.to_string())
    };
    assert_eq!(reason("a.example:443", &["*.example:443"]), None);
    assert_eq!(reason("a.example:443", &[]), None);
    assert_eq!(
        reason("a.example:80", &["*.example:443"]).as_deref(),
        Some("egress rule a.example:80 is not within the node's sandbox.egress")
    );
    assert_eq!(
        reason("10.0.0.1:80", &[]).as_deref(),
        Some(
            "egress rule 10.0.0.1:80 is not within the node's sandbox.egress, which names none: addresses need one"
        )
    );
}

#[test]
fn a_policy_narrows_what_works() {
    let mut offer = offer();
    offer.permitted_runtimes = BTreeSet::from([Runtime::Podman]);
    let reason = exclusion(&Requirement::of(&SandboxJobSpec::default()), &offer);
    assert_eq!(reason, Some(Exclusion::RuntimeForbidden { wanted: Runtime::Native }));
}

#[test]
fn room_is_counted_in_every_dimension() {
    let free = Room { cpu_millis: 1000, memory_bytes: 1 << 30, gpus: 1 };
    assert!(Room { cpu_millis: 1000, memory_bytes: 1 << 30, gpus: 1 }.fits(free));
    assert!(!Room { cpu_millis: 1001, ..Default::default() }.fits(free));
    assert!(!Room { memory_bytes: (1 << 30) + 1, ..Default::default() }.fits(free));
    assert!(!Room { gpus: 2, ..Default::default() }.fits(free));
}
