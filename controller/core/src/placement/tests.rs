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
fn images_must_be_within_the_policy() {
    let offer = |allowed: &[&str], images_by_digest| Offer {
        working_runtimes: BTreeSet::from([Runtime::Podman]),
        images: allowed.iter().map(|entry| (*entry).to_owned()).collect(),
        images_by_digest,
        ..offer()
    };
    let reason = |json: &str, offer: &Offer| {
        exclusion(&Requirement::of(&spec(json)), offer).map(|reason| reason.to_string())
    };
    let job = r#"{"sandbox":{"runtime":"podman","image":"r.example/a:1"},"steps":[
        {"name":"a","container":{"image":"debian:12"}},{"name":"b","command":["true"]}]}"#;
    assert_eq!(
        reason(job, &offer(&[], false)).as_deref(),
        Some(
            "image r.example/a is not within the node's sandbox.images.allowed, which allows docker.io, localhost"
        )
    );
    assert_eq!(reason(job, &offer(&["r.example", "docker.io/library"], false)), None);
    assert_eq!(
        reason(job, &offer(&["r.example", "docker.io"], true)).as_deref(),
        Some(
            "image docker.io/library/debian is not named by its digest, which the node's sandbox.images.requireDigest wants"
        )
    );
    // An image that no step uses does not matter, nor do tags make a class of their own.
    let unused = r#"{"sandbox":{"runtime":"podman","image":"r.example/a:1"},"steps":[
        {"name":"a","container":{"image":"debian:12"}}]}"#;
    assert_eq!(reason(unused, &offer(&[], false)), None);
    let class = |image: &str| {
        Requirement::of(&spec(&format!(r#"{{"sandbox":{{"runtime":"podman","image":"{image}"}}}}"#))).class()
    };
    assert_eq!(class("debian:12"), class("docker.io/library/debian:13"));
    assert_ne!(class("debian"), class("ubuntu"));
}

#[test]
fn a_container_may_be_touched_where_it_is_listed_and_an_engine_works() {
    let reason = |service: &str, services: &[&str], runtimes: &[Runtime]| {
        let offer = Offer {
            working_runtimes: runtimes.iter().copied().chain([Runtime::Native]).collect(),
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            ..offer()
        };
        let job = spec(&format!(r#"{{"steps":[{{"name":"a","service":{service}}}]}}"#));
        exclusion(&Requirement::of(&job), &offer).map(|reason| reason.to_string())
    };
    let web = r#"{"action":"restart","name":"web"}"#;
    let on_docker = r#"{"action":"stop","name":"web","runtime":"docker"}"#;
    assert_eq!(
        reason(web, &[], &[Runtime::Podman]).as_deref(),
        Some("container web is not among the node's sandbox.services, which lists none")
    );
    assert_eq!(
        reason(web, &["db", "web2"], &[Runtime::Podman]).as_deref(),
        Some("container web is not among the node's sandbox.services, which lists db, web2")
    );
    assert_eq!(
        reason(web, &["web"], &[]).as_deref(),
        Some("a step of kind `service` needs podman or docker, which does not work on the node")
    );
    assert_eq!(
        reason(on_docker, &["web"], &[Runtime::Podman]).as_deref(),
        Some("a step of kind `service` needs docker, which does not work on the node")
    );
    assert_eq!(reason(web, &["db", "web"], &[Runtime::Docker]), None);
    assert_eq!(reason(on_docker, &["web"], &[Runtime::Docker]), None);
}

#[test]
fn images_of_native_steps_must_lie_in_folders_of_the_policy() {
    let offer = |folders: &[&str], images_by_digest| Offer {
        image_folders: folders.iter().map(|&folder| folder.to_owned()).collect(),
        images_by_digest,
        ..offer()
    };
    let reason = |json: &str, offer: &Offer| {
        exclusion(&Requirement::of(&spec(json)), offer).map(|reason| reason.to_string())
    };
    let job = r#"{"sandbox":{"image":"oci:/srv/images/a:1"}}"#;
    assert_eq!(
        reason(job, &offer(&[], false)).as_deref(),
        Some("image /srv/images/a is not within the node's sandbox.images.folders, which allows none")
    );
    assert_eq!(
        reason(job, &offer(&["/srv/image", "/opt"], false)).as_deref(),
        Some(
            "image /srv/images/a is not within the node's sandbox.images.folders, which allows /srv/image, /opt"
        )
    );
    // As the agent reads both.
    assert_eq!(reason(job, &offer(&["/opt", "/srv//images/"], false)), None);
    assert_eq!(reason(job, &offer(&["/"], false)), None);
    assert_eq!(
        reason(job, &offer(&["/srv"], true)).as_deref(),
        Some(
            "image /srv/images/a is not named by its digest, which the node's sandbox.images.requireDigest wants"
        )
    );
    let digest = format!("@sha256:{}", "a".repeat(64));
    let by_digest = format!(r#"{{"sandbox":{{"image":"oci:/srv/images/a{digest}"}}}}"#);
    assert_eq!(reason(&by_digest, &offer(&["/srv"], true)), None);
    // The image of a step counts, one that no step uses does not, nor do names and digests make a class of their own.
    let unused = r#"{"sandbox":{"image":"oci:/srv/b"},"steps":[
        {"name":"a","container":{"image":"rootfs:/srv/images/a"}}]}"#;
    assert_eq!(reason(unused, &offer(&["/srv/images"], false)), None);
    assert!(
        reason(unused, &offer(&["/srv/b"], false)).is_some_and(|reason| reason.contains("/srv/images/a"))
    );
    let class =
        |image: &str| Requirement::of(&spec(&format!(r#"{{"sandbox":{{"image":"{image}"}}}}"#))).class();
    assert_eq!(class("oci:/srv/a:1"), class("oci-archive:/srv/a:2"));
    assert_ne!(class("oci:/srv/a"), class("oci:/srv/b"));
}

#[test]
fn a_model_is_where_its_server_is_ready() {
    let reason = |json: &str, inference: Option<ModelServer>| {
        let mut offer = Offer { inference, ..offer() };
        offer.working_networks.insert(Network::Restricted);
        exclusion(&Requirement::of(&spec(json)), &offer).map(|reason| reason.to_string())
    };
    let server = |unusable: Option<&str>| ModelServer {
        unusable: unusable.map(str::to_owned),
        models: BTreeSet::from(["a:latest".to_owned()]),
    };
    let any = r#"{"sandbox":{"network":"Restricted","inference":true}}"#;
    let of = |model: &str| {
        format!(
            r#"{{"sandbox":{{"network":"Restricted","inference":true}},"requires":{{"model":"{model}"}}}}"#
        )
    };
    assert_eq!(
        reason(any, None).as_deref(),
        Some("sandbox.inference needs a server of models and the node's inference is not configured")
    );
    assert_eq!(
        reason(any, Some(server(Some("PortTaken")))).as_deref(),
        Some("sandbox.inference needs a server of models and the node's is not ready: PortTaken")
    );
    assert_eq!(reason(any, Some(server(None))), None);
    assert_eq!(reason(&of("a"), Some(server(None))), None);
    assert_eq!(
        reason(&of("b"), Some(server(None))).as_deref(),
        Some("requires.model b: the node has a:latest")
    );
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
