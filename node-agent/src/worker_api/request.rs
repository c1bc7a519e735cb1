//! Requests as assignments: what a caller asks for, in the words of the executor. Pure.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;
use windlass_crds::manifest;
use windlass_crds::protocol::worker_api::{BARE_EPOCH, RunJobRequest, RunSandbox};
use windlass_crds::protocol::{Assignment, AttemptId, SandboxCapability, VERSION};
use windlass_crds::sandbox_job::{Network, OfflinePolicy, Runtime, SandboxJobSpec, SandboxSpec};
use windlass_crds::schema::Kind;
use windlass_crds::{Span, names::Quoted};

use super::caller::Caller;
use super::problem::{Code, Refusal};

/// How long a job may take whose caller does not say, and how long where the node has no limit of its own.
const DEFAULT_TIMEOUT: u64 = 3600;
const MOST_TIMEOUT: u64 = 10_800;
/// How much longer than its time limit a bare run may be held: to fetch its image, and to be stopped.
const BESIDE: Duration = Duration::from_secs(3600);
/// The namespace and the queue of bare runs, which are in none of a controller's.
const NAMESPACE: &str = "worker-api";
const QUEUE: &str = "worker-api";
/// Names of environment variables that begin so are Windlass's own.
const RESERVED: &str = "WINDLASS_";

/// What a caller asks for.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) assignment: Assignment,
    /// How long a bare run is held; an attempt of the controller gets its leases from there.
    pub(super) hold: Option<Duration>,
}

/// What has to be known of the node.
pub(super) struct Node<'a> {
    pub(super) sandbox: &'a SandboxCapability,
    /// Its own limit of a job's time, in seconds.
    pub(super) max_timeout: Option<u64>,
    pub(super) now: Timestamp,
}

/// Reads a request.
///
/// # Errors
/// `400` with the field that is wrong; `403` where the caller may not ask for that.
pub(super) fn read(body: &[u8], caller: Caller, node: &Node<'_>) -> Result<Wanted, Refusal> {
    check_version(body)?;
    let request: RunJobRequest = serde_json::from_slice(body)
        .map_err(|error| Refusal::new(Code::BadRequest, format!("the request cannot be read: {error}")))?;
    let task_id = uuid("task_id", &request.task_id)?;
    let job_id = uuid("job_id", &request.job_id)?;
    match request.sandbox.job_spec_json.as_deref().filter(|text| !text.trim().is_empty()) {
        Some(text) => ours(text, &job_id, caller),
        None => bare(request.sandbox, task_id, job_id, node),
    }
}

/// The version is looked at before anything else: the rest may mean something else in another one.
fn check_version(body: &[u8]) -> Result<(), Refusal> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: Option<serde_json::Value>,
    }
    let Versioned { version } = serde_json::from_slice(body).map_err(|error| {
        Refusal::new(Code::BadRequest, format!("the request is not a JSON object: {error}"))
    })?;
    if version.as_ref().and_then(serde_json::Value::as_u64) == Some(VERSION.into()) {
        return Ok(());
    }
    let received = version.map_or("none".to_owned(), |version| version.to_string());
    Err(Refusal::new(
        Code::UnsupportedPayloadVersion,
        format!("version: received {received}, supported is {VERSION}"),
    ))
}

/// A UUID in lower case.
pub(super) fn uuid(field: &str, text: &str) -> Result<String, Refusal> {
    let uuid = Uuid::try_parse(text)
        .map_err(|_| Refusal::field(field, format!("{} is not a UUID", Quoted(text))))?;
    Ok(uuid.hyphenated().to_string())
}

/// An attempt of our controller.
fn ours(text: &str, job_id: &str, caller: Caller) -> Result<Wanted, Refusal> {
    const FIELD: &str = "sandbox.job_spec_json";
    match caller {
        Caller::Controller => {}
        Caller::Other => {
            let detail =
                format!("{FIELD}: only the node's own controller may send it; send `command` instead");
            return Err(Refusal::new(Code::Forbidden, detail));
        }
    }
    let assignment: Assignment = serde_json::from_str(text).map_err(|error| {
        Refusal::field(
            FIELD,
            format!(
                "the agent of version {} cannot read it: {error}; update the agent, or leave out what is new",
                env!("CARGO_PKG_VERSION")
            ),
        )
    })?;
    if assignment.attempt.job != job_id {
        let message = format!("is of job {}, and job_id is `{job_id}`", Quoted(&assignment.attempt.job));
        return Err(Refusal::field(FIELD, message));
    }
    if assignment.attempt.is_bare() {
        return Err(Refusal::field(FIELD, format!("epoch {BARE_EPOCH} is none of a controller's")));
    }
    Ok(Wanted { assignment, hold: None })
}

/// A run that no controller knows of.
fn bare(sandbox: RunSandbox, task_id: String, job_id: String, node: &Node<'_>) -> Result<Wanted, Refusal> {
    let RunSandbox { image, command, env, timeout_seconds, network_policy, use_inference, job_spec_json: _ } =
        sandbox;
    if command.first().is_none_or(String::is_empty) {
        return Err(Refusal::field(
            "sandbox.command",
            "names no program; give it and its arguments as a list",
        ));
    }
    if let Some(name) = env.keys().find(|name| name.starts_with(RESERVED)) {
        let message = format!("{} is reserved: Windlass sets it itself; choose another name", Quoted(name));
        return Err(Refusal::field("sandbox.env", message));
    }
    let network = match network_policy.as_deref() {
        // The model is behind the proxy, which lets nothing else through.
        None if use_inference => Network::Restricted,
        Some("none") if use_inference => {
            let message = "`none` keeps the job from the model too; write `restricted`, or leave it out";
            return Err(Refusal::field("sandbox.network_policy", message));
        }
        None | Some("none") => Network::None,
        Some("restricted") => Network::Restricted,
        Some(other) => {
            let message = format!("{} is neither `none` nor `restricted`", Quoted(other));
            return Err(Refusal::field("sandbox.network_policy", message));
        }
    };
    if timeout_seconds == Some(0) {
        return Err(Refusal::field("sandbox.timeout_seconds", "0 would let nothing run; give 1 or more"));
    }
    let most = node.max_timeout.unwrap_or(MOST_TIMEOUT);
    let timeout = timeout_seconds.unwrap_or(DEFAULT_TIMEOUT).min(most);
    let image = Some(image).filter(|image| !image.trim().is_empty());
    let spec = SandboxJobSpec {
        sandbox: SandboxSpec {
            runtime: match image {
                Some(_) => engine(node.sandbox),
                None => Runtime::Native,
            },
            image,
            network,
            env,
            inference: use_inference,
            ..SandboxSpec::default()
        },
        queue: QUEUE.to_owned(),
        timeout: Some(Span::from_secs(timeout)),
        command: Some(command),
        ..SandboxJobSpec::default()
    };
    let mut errors = manifest::check_spec(Kind::SandboxJob, &spec);
    for error in &mut errors {
        // In the caller's own words.
        error.field = match error.field.strip_prefix("spec.").unwrap_or(&error.field) {
            field if field.starts_with("command") => format!("sandbox.{field}"),
            field => field.to_owned(),
        };
    }
    if let Some(first) = errors.first() {
        return Err(Refusal { errors: errors.clone(), ..Refusal::new(Code::BadRequest, first.to_string()) });
    }
    let hold = Duration::from_secs(timeout).saturating_add(BESIDE);
    let assignment = Assignment {
        name: format!("job-{job_id}"),
        attempt: AttemptId { job: job_id, epoch: BARE_EPOCH },
        namespace: NAMESPACE.to_owned(),
        number: 1,
        spec,
        offline: OfflinePolicy::Continue,
        lease_seconds: hold.as_secs(),
        claimed_at: node.now,
        secrets: Vec::new(),
        task_id: Some(task_id),
    };
    Ok(Wanted { assignment, hold: Some(hold) })
}

/// The engine for images: Podman, or Docker where only that works. Where neither does, the refusal names Podman.
fn engine(sandbox: &SandboxCapability) -> Runtime {
    let works = |word: &str| sandbox.runtimes.iter().any(|works| works == word);
    if !works("podman") && works("docker") { Runtime::Docker } else { Runtime::Podman }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{assignment, capability};

    const TASK: &str = "0198c1de-7a4b-7000-8000-000000000001";
    const JOB: &str = "0198c1de-7a4b-7000-8000-000000000002";

    fn request(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut request = json!({"version": 1, "task_id": TASK, "job_id": JOB, "sandbox": {"image": "", "command": ["true"]}});
        change(&mut request);
        request.to_string().into_bytes()
    }

    fn read_with(
        caller: Caller,
        max_timeout: Option<u64>,
        change: impl FnOnce(&mut Value),
    ) -> Result<Wanted, Refusal> {
        let sandbox = capability();
        let node = Node { sandbox: &sandbox, max_timeout, now: Timestamp::UNIX_EPOCH };
        read(&request(change), caller, &node)
    }

    fn refused(change: impl FnOnce(&mut Value)) -> (Code, String) {
        let Refusal { code, detail, .. } = read_with(Caller::Other, None, change).unwrap_err();
        (code, detail)
    }

    #[test]
    fn a_bare_request_is_a_job_of_one_command() {
        let wanted = read_with(Caller::Other, None, |request| {
            request["job_id"] = JOB.to_uppercase().into();
            request["sandbox"]["env"] = json!({"A": "b"});
            request["sandbox"]["network_policy"] = "restricted".into();
        })
        .unwrap();
        let Assignment { attempt, task_id, spec, name, .. } = wanted.assignment;
        assert_eq!(attempt, AttemptId { job: JOB.to_owned(), epoch: 0 });
        assert!(attempt.is_bare());
        assert_eq!((task_id.as_deref(), name.len() <= 63), (Some(TASK), true));
        assert_eq!((spec.sandbox.runtime, spec.sandbox.network), (Runtime::Native, Network::Restricted));
        assert_eq!(spec.sandbox.env["A"], "b");
        assert_eq!(spec.command, Some(vec!["true".to_owned()]));
    }

    #[test]
    fn a_job_that_needs_the_model_reaches_it_and_nothing_else() {
        for policy in [None, Some("restricted")] {
            let wanted = read_with(Caller::Other, None, |request| {
                request["sandbox"]["use_inference"] = true.into();
                request["sandbox"]["network_policy"] = policy.into();
            });
            let sandbox = wanted.unwrap().assignment.spec.sandbox;
            assert!(sandbox.inference && sandbox.egress.is_empty());
            assert_eq!(sandbox.network, Network::Restricted);
        }
    }

    #[test]
    fn an_image_is_for_an_engine_that_works() {
        let runtime = |runtimes: &[&str]| {
            let runtimes = runtimes.iter().map(|word| (*word).to_owned()).collect();
            let sandbox = SandboxCapability { runtimes, ..capability() };
            let node = Node { sandbox: &sandbox, max_timeout: None, now: Timestamp::UNIX_EPOCH };
            let request = request(|request| request["sandbox"]["image"] = "alpine:latest".into());
            read(&request, Caller::Other, &node).unwrap().assignment.spec.sandbox.runtime
        };
        assert_eq!(runtime(&["native", "podman", "docker"]), Runtime::Podman);
        assert_eq!(runtime(&["native", "docker"]), Runtime::Docker);
        assert_eq!(runtime(&["native"]), Runtime::Podman);
    }

    #[test]
    fn the_shortest_of_the_time_limits_counts() {
        let timeout = |asked: Option<u64>, max| {
            let wanted = read_with(Caller::Other, max, |request| {
                request["sandbox"]["timeout_seconds"] = asked.map_or(Value::Null, Value::from);
            });
            wanted.unwrap().assignment.spec.timeout.unwrap().millis() / 1000
        };
        assert_eq!(timeout(None, None), 3600);
        assert_eq!(timeout(Some(20_000), None), 10_800);
        assert_eq!(timeout(Some(20_000), Some(30_000)), 20_000);
        assert_eq!(timeout(None, Some(60)), 60);
        assert_eq!(timeout(Some(5), Some(60)), 5);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (change, code, said) in [
            (json!({"version": 2}), Code::UnsupportedPayloadVersion, "received 2, supported is 1"),
            (json!({"version": null}), Code::UnsupportedPayloadVersion, "received none"),
            (json!({"task_id": "x"}), Code::BadRequest, "task_id: `x` is not a UUID"),
            (json!({"job_id": "../etc"}), Code::BadRequest, "job_id: `../etc` is not a UUID"),
            (json!({"sandbox": {"command": []}}), Code::BadRequest, "sandbox.command: names no program"),
            (json!({"sandbox": {"command": [""]}}), Code::BadRequest, "sandbox.command"),
            (json!({"sandbox": {"command": "ls"}}), Code::BadRequest, "cannot be read"),
            (
                json!({"sandbox": {"command": ["ls"], "network_policy": "open"}}),
                Code::BadRequest,
                "sandbox.network_policy: `open` is neither",
            ),
            (
                json!({"sandbox": {"command": ["ls"], "env": {"WINDLASS_TASK_ID": "forged"}}}),
                Code::BadRequest,
                "`WINDLASS_TASK_ID` is reserved",
            ),
            (
                json!({"sandbox": {"command": ["ls"], "timeout_seconds": 0}}),
                Code::BadRequest,
                "timeout_seconds",
            ),
            (
                json!({"sandbox": {"command": ["ls"], "use_inference": true, "network_policy": "none"}}),
                Code::BadRequest,
                "sandbox.network_policy: `none` keeps the job from the model too",
            ),
            (json!({"sandbox": {"command": vec!["x"; 2000]}}), Code::BadRequest, "sandbox.command"),
        ] {
            let (found, detail) = refused(|request| {
                for (key, value) in change.as_object().unwrap() {
                    request[key] = value.clone();
                }
            });
            assert_eq!(found, code, "{change}: {detail}");
            assert!(detail.contains(said), "{detail}");
        }
    }

    #[test]
    fn only_the_controller_sends_whole_jobs_and_only_of_their_own_name() {
        let spec = |job: &str, epoch| serde_json::to_string(&assignment(job, epoch, &["true"])).unwrap();
        let ours = |caller, text: String| {
            read_with(caller, None, |request| request["sandbox"]["job_spec_json"] = text.into())
        };
        let wanted = ours(Caller::Controller, spec(JOB, 3)).unwrap();
        assert_eq!((wanted.assignment.attempt.epoch, wanted.hold), (3, None));
        assert_eq!(ours(Caller::Other, spec(JOB, 3)).unwrap_err().code, Code::Forbidden);
        for (text, said) in
            [(spec(TASK, 3), "is of job"), (spec(JOB, 0), "epoch 0"), ("{}".to_owned(), "update the agent")]
        {
            let refused = ours(Caller::Controller, text).unwrap_err();
            assert!(refused.code == Code::BadRequest && refused.detail.contains(said), "{refused}");
        }
    }
}
