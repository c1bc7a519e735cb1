//! The bounds of everything that a node may send, in one place.
//!
//! *Words, names, lists and maps* beyond their bound are refused with the field and the bound: a node that sends them is
//! broken, and what it means is unclear. *Texts for people* (messages, reasons in sentences) are cut instead: a node must
//! not lose its leases because a program's last words were long. Nothing of a node is stored before it went through here.

use std::collections::BTreeMap;

use super::{
    Artifact, ArtifactsLost, CapabilityReport, ClaimRequest, ConfigAck, FieldError, HeartbeatRequest,
    NodeIdentity, Record, RecordBody, RegisterRequest,
};
use crate::names::{self, Quoted};

/// The prefix of labels that the controller alone gives: `windlass.dev/node`, `windlass.dev/os`, `windlass.dev/arch`.
pub const RESERVED_LABEL_DOMAIN: &str = "windlass.dev";
/// The most bytes of a text for people; what is longer is cut.
pub const MAX_TEXT: usize = 4096;
/// The most bytes of a word, a name or a version.
pub const MAX_WORD: usize = 253;
/// The most bytes of a secret, a key, a signature or a hash.
pub const MAX_SECRET: usize = 512;
/// The most bytes of a certificate in PEM.
pub const MAX_CERTIFICATE: usize = 16 << 10;
/// The most items of a list of words: features, runtimes, kinds of steps.
pub const MAX_WORDS: usize = 64;
/// The most labels of a node; as many as a manifest may have.
pub const MAX_LABELS: usize = 64;
/// The most devices of one kind.
pub const MAX_DEVICES: usize = 64;
/// The most models of a node.
pub const MAX_MODELS: usize = 256;
/// The most attempts that a node may hold: the most slots of an agent and as many that end.
pub const MAX_HELD: usize = 8192;
/// The most bytes of output in one record; agents send 64 KiB.
pub const MAX_LOG: usize = 1 << 20;
/// The most bytes of what an event tells programs, as JSON.
pub const MAX_DATA: usize = 64 << 10;
/// The most bytes of a report of facts, as JSON.
pub const MAX_FACTS: usize = 1 << 20;
/// The most steps of a job.
pub const MAX_STEPS: u32 = 1024;

/// Why the key of a label is refused that a node or an operator wants to give: its domain is Windlass's own.
pub fn reserved_label(key: &str) -> Option<String> {
    let domain = key.split_once('/')?.0;
    let ours = domain == RESERVED_LABEL_DOMAIN
        || domain.strip_suffix(RESERVED_LABEL_DOMAIN).is_some_and(|rest| rest.ends_with('.'));
    ours.then(|| {
        format!(
            "the key {} is reserved: labels under `{RESERVED_LABEL_DOMAIN}/` are given by the controller; use another \
             prefix, or none",
            Quoted(key)
        )
    })
}

/// Cuts a text for people to [`MAX_TEXT`] bytes, between characters.
pub fn cut(text: &mut String) {
    const MARK: &str = "…";
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT - MARK.len()));
        text.push_str(MARK);
    }
}

/// A message of a node.
pub trait Bounded {
    /// Cuts texts for people and yields every other field that is out of its bounds; `at` is the path of the message.
    fn bound(&mut self, at: &str) -> Vec<FieldError>;
}

/// What is wrong so far.
struct Findings<'a> {
    at: &'a str,
    errors: Vec<FieldError>,
}

impl<'a> Findings<'a> {
    const fn new(at: &'a str) -> Self {
        Self { at, errors: Vec::new() }
    }

    fn refuse(&mut self, field: &str, message: String) {
        let field = match (self.at, field) {
            ("", field) => field.to_owned(),
            (at, "") => at.to_owned(),
            (at, field) => format!("{at}.{field}"),
        };
        self.errors.push(FieldError { field, message });
    }

    /// A word: short, and without what would break a line or a terminal.
    fn word(&mut self, field: &str, text: &str) {
        self.limited(field, text, MAX_WORD);
    }

    fn words(&mut self, field: &str, texts: &[String]) {
        self.count(field, texts.len(), MAX_WORDS);
        for (index, text) in texts.iter().enumerate() {
            self.word(&format!("{field}[{index}]"), text);
        }
    }

    fn limited(&mut self, field: &str, text: &str, limit: usize) {
        if text.len() > limit {
            self.refuse(field, format!("has {} bytes; at most {limit} are accepted", text.len()));
        } else if text.chars().any(char::is_control) {
            self.refuse(field, format!("{} has control characters, which are not accepted", Quoted(text)));
        }
    }

    fn count(&mut self, field: &str, count: usize, limit: usize) {
        if count > limit {
            self.refuse(field, format!("has {count} items; at most {limit} are accepted"));
        }
    }

    fn optional(&mut self, field: &str, text: Option<&String>) {
        if let Some(text) = text {
            self.word(field, text);
        }
    }
}

impl Bounded for CapabilityReport {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self {
            version: _,
            reported_at: _,
            node,
            platform,
            compute,
            container_runtime,
            gpu,
            sandbox,
            inference,
            agent,
            worker_api,
            tls,
        } = self;
        let mut findings = Findings::new(at);
        let NodeIdentity { node_slug, name, labels } = node;
        findings.word("node.node_slug", node_slug);
        findings.optional("node.name", name.as_ref());
        check_labels(labels, "node.labels", &mut findings);
        findings.word("platform.os", &platform.os);
        findings.optional("platform.distro", platform.distro.as_ref());
        findings.word("platform.arch", &platform.arch);
        findings.optional("platform.kernel_version", platform.kernel_version.as_ref());
        findings.optional("compute.cpu_model", compute.cpu_model.as_ref());
        if let Some(engine) = container_runtime {
            findings.word("container_runtime.runtime", &engine.runtime);
            findings.optional("container_runtime.version", engine.version.as_ref());
        }
        if let Some(gpu) = gpu {
            findings.count("gpu.devices", gpu.devices.len(), MAX_DEVICES);
            for (index, device) in gpu.devices.iter().enumerate() {
                findings.optional(&format!("gpu.devices[{index}].vendor"), device.vendor.as_ref());
                findings.optional(&format!("gpu.devices[{index}].model"), device.model.as_ref());
                findings.optional(&format!("gpu.devices[{index}].device_id"), device.device_id.as_ref());
            }
        }
        if let Some(sandbox) = sandbox {
            findings.words("sandbox.features", &sandbox.features);
            findings.count("sandbox.engines", sandbox.engines.len(), MAX_WORDS);
            for engine in sandbox.engines.iter().take(MAX_WORDS) {
                findings.word("sandbox.engines.engine", &engine.engine);
                findings.word("sandbox.engines.version", &engine.version);
                findings.word("sandbox.engines.storage", &engine.storage);
                findings.words("sandbox.engines.runtimes", &engine.runtimes);
                findings.words("sandbox.engines.limits", &engine.limits);
            }
            findings.words("sandbox.runtimes", &sandbox.runtimes);
            findings.words("sandbox.networks", &sandbox.networks);
            findings.words("sandbox.limits", &sandbox.limits);
            findings.count("sandbox.lacks", sandbox.lacks.len(), MAX_WORDS);
            sandbox.lacks.iter_mut().for_each(cut);
        }
        if let Some(inference) = inference {
            let super::InferenceCapability { mode, available_models, status, .. } = inference;
            findings.word("inference.mode", mode);
            findings.count("inference.available_models", available_models.len(), MAX_MODELS);
            for name in available_models.iter().take(MAX_MODELS) {
                findings.word("inference.available_models", name);
            }
            findings.limited("inference.status.url", &status.url, MAX_TEXT);
            findings.optional("inference.status.runtime", status.runtime.as_ref());
            findings.optional("inference.status.version", status.version.as_ref());
            findings.word("inference.status.reason", &status.reason);
            cut(&mut status.message);
            findings.count("inference.status.models", status.models.len(), MAX_MODELS);
            for model in status.models.iter().take(MAX_MODELS) {
                findings.word("inference.status.models.name", &model.name);
                findings.optional("inference.status.models.digest", model.digest.as_ref());
            }
        }
        if let Some(agent) = agent {
            findings.word("agent.version", &agent.version);
            findings.word("agent.boot_id", &agent.boot_id);
            findings.words("agent.step_kinds", &agent.step_kinds);
        }
        if let Some(worker_api) = worker_api {
            findings.limited("worker_api.base_url", &worker_api.base_url, MAX_SECRET);
        }
        if let Some(tls) = tls {
            findings.optional("tls.trust_material_status", tls.trust_material_status.as_ref());
            if let Some(length) = tls.worker_api_server_cert_pem.as_ref().map(String::len)
                && length > MAX_CERTIFICATE
            {
                let message = format!("has {length} bytes; at most {MAX_CERTIFICATE} are accepted");
                findings.refuse("tls.worker_api_server_cert_pem", message);
            }
        }
        findings.errors
    }
}

fn check_labels(labels: &BTreeMap<String, String>, field: &str, findings: &mut Findings<'_>) {
    findings.count(field, labels.len(), MAX_LABELS);
    for (key, value) in labels {
        let at = format!("{field}[{}]", Quoted(key).to_string().trim_matches('`'));
        if let Err(error) = names::check_label_key(key) {
            findings.refuse(&at, format!("the key {} {error}", Quoted(key)));
        } else if let Some(reason) = reserved_label(key) {
            findings.refuse(&at, reason);
        }
        if let Err(error) = names::check_label_value(value) {
            findings.refuse(&at, format!("the value {} {error}", Quoted(value)));
        }
    }
}

impl Bounded for RegisterRequest {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self { psk, capability, proof } = self;
        let mut findings = Findings::new(at);
        if let Some(psk) = psk {
            findings.limited("psk", psk, MAX_SECRET);
        }
        if let Some(proof) = proof {
            findings.limited("proof.public_key", &proof.public_key, MAX_SECRET);
            findings.limited("proof.signature", &proof.signature, MAX_SECRET);
        }
        let mut errors = findings.errors;
        let within = if at.is_empty() { "capability".to_owned() } else { format!("{at}.capability") };
        errors.extend(capability.bound(&within));
        errors
    }
}

impl Bounded for ConfigAck {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self {
            version: _,
            node_slug,
            config_version,
            ack_at: _,
            status: _,
            error,
            effective_config_hash,
        } = self;
        let mut findings = Findings::new(at);
        findings.word("node_slug", node_slug);
        findings.word("config_version", config_version);
        findings.optional("effective_config_hash", effective_config_hash.as_ref());
        if let Some(error) = error {
            findings.word("error.type", &error.error_type);
            cut(&mut error.message);
        }
        findings.errors
    }
}

impl Bounded for ClaimRequest {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self { version: _, request_id, boot_id, max: _, wait_seconds: _, held } = self;
        let mut findings = Findings::new(at);
        if request_id.is_empty() {
            findings.refuse("request_id", "must not be empty".to_owned());
        }
        findings.limited("request_id", request_id, 100);
        findings.word("boot_id", boot_id);
        findings.count("held", held.len(), MAX_HELD);
        for (index, attempt) in held.iter().enumerate().take(MAX_HELD) {
            findings.word(&format!("held[{index}].job"), &attempt.job);
        }
        findings.errors
    }
}

impl Bounded for HeartbeatRequest {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self { version: _, boot_id, held, left_seconds, slots: _, capability_hash, not_ready } = self;
        let mut findings = Findings::new(at);
        findings.word("boot_id", boot_id);
        findings.count("held", held.len(), MAX_HELD);
        if !left_seconds.is_empty() && left_seconds.len() != held.len() {
            let problem = format!("has {} entries where `held` has {}", left_seconds.len(), held.len());
            findings.refuse("left_seconds", problem);
        }
        for (index, attempt) in held.iter().enumerate().take(MAX_HELD) {
            findings.word(&format!("held[{index}].job"), &attempt.job);
        }
        findings.optional("capability_hash", capability_hash.as_ref());
        not_ready.iter_mut().for_each(cut);
        findings.errors
    }
}

impl Bounded for Record {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        /// The words that a message for people may have as its level.
        const LEVELS: [&str; 4] = ["debug", "info", "warn", "error"];
        let Self { attempt, sequence: _, at: _, body } = self;
        let mut findings = Findings::new(at);
        findings.word("attempt.job", &attempt.job);
        match body {
            RecordBody::Started { unenforced } => {
                findings.count("body.unenforced", unenforced.len(), MAX_WORDS);
            }
            RecordBody::StepStarted { step } => check_step(*step, &mut findings),
            RecordBody::Log { step, stream: _, offset: _, body } => {
                check_step(*step, &mut findings);
                let (field, length) = match body {
                    super::LogBody::Text(text) => ("body.body.text", text.len()),
                    super::LogBody::Base64(text) => ("body.body.base64", text.len() / 4 * 3),
                };
                if length > MAX_LOG {
                    findings.refuse(field, format!("has {length} bytes; at most {MAX_LOG} are accepted"));
                }
            }
            RecordBody::StepEnded(ended) => {
                check_step(ended.step, &mut findings);
                findings.word("body.reason", &ended.reason);
                ended.message.iter_mut().for_each(cut);
            }
            RecordBody::Event { level, reason, message, data } => {
                if !LEVELS.contains(&level.as_str()) {
                    let message = format!("{} is none of {}", Quoted(level), LEVELS.join(", "));
                    findings.refuse("body.level", message);
                }
                findings.word("body.reason", reason);
                cut(message);
                let length = data.as_ref().map_or(0, |data| data.to_string().len());
                if length > MAX_DATA {
                    let message = format!("has {length} bytes as JSON; at most {MAX_DATA} are accepted");
                    findings.refuse("body.data", message);
                }
            }
            RecordBody::Artifacts { items } => {
                findings.count("body.items", items.len(), super::MAX_ARTIFACTS_IN_RECORD);
                for (index, artifact) in items.iter_mut().enumerate().take(super::MAX_ARTIFACTS_IN_RECORD) {
                    check_artifact(artifact, &format!("body.items[{index}]"), &mut findings);
                }
            }
            RecordBody::Terminal(terminal) => {
                findings.word("body.reason", &terminal.reason);
                terminal.message.iter_mut().for_each(cut);
            }
            RecordBody::Facts(facts) => {
                facts.problems.iter_mut().for_each(cut);
                let length = serde_json::to_vec(facts).map_or(0, |json| json.len());
                if length > MAX_FACTS {
                    let message = format!("has {length} bytes as JSON; at most {MAX_FACTS} are accepted");
                    findings.refuse("body", message);
                }
            }
        }
        findings.errors
    }
}

/// Checks an entry of a manifest. Its name becomes one of a file, so that nothing may lead out of a folder.
fn check_artifact(artifact: &mut Artifact, at: &str, findings: &mut Findings<'_>) {
    let Artifact { number, name, kind: _, size, sha256, refused } = artifact;
    if !(1..=super::MAX_ARTIFACT_ENTRIES).contains(number) {
        let message = format!("{number} is not between 1 and {}", super::MAX_ARTIFACT_ENTRIES);
        findings.refuse(&format!("{at}.number"), message);
    }
    findings.limited(&format!("{at}.name"), name, super::MAX_ARTIFACT_NAME);
    if let Some(reason) = refused {
        cut(reason);
        return;
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        let message = format!("{} is not a path below a folder", Quoted(name));
        findings.refuse(&format!("{at}.name"), message);
    }
    if *size > super::MAX_ARTIFACT_BYTES {
        let message = format!("{size} is more than {}", super::MAX_ARTIFACT_BYTES);
        findings.refuse(&format!("{at}.size"), message);
    }
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !sha256.as_ref().is_some_and(|text| text.len() == 64 && text.bytes().all(is_digit)) {
        findings.refuse(&format!("{at}.sha256"), "must be 64 lower-case hexadecimal digits".to_owned());
    }
}

impl Bounded for ArtifactsLost {
    fn bound(&mut self, at: &str) -> Vec<FieldError> {
        let Self { version: _, attempt, lost } = self;
        let mut findings = Findings::new(at);
        findings.word("attempt.job", &attempt.job);
        findings.count("lost", lost.len(), super::MAX_ARTIFACT_ENTRIES as usize);
        lost.iter_mut().for_each(|lost| cut(&mut lost.reason));
        findings.errors
    }
}

fn check_step(step: u32, findings: &mut Findings<'_>) {
    if step >= MAX_STEPS {
        findings.refuse("body.step", format!("{step} is not below {MAX_STEPS}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn capability(change: impl FnOnce(&mut Value)) -> CapabilityReport {
        let mut report = json!({
            "version": 1, "reported_at": "2026-01-01T00:00:00Z",
            "node": {"node_slug": "n1", "labels": {"zone": "a", "example.org/rack": "7"}},
            "platform": {"os": "linux", "arch": "amd64"},
            "compute": {"cpu_cores": 4, "ram_mb": 8192},
            "gpu": {"present": true, "devices": [{"vendor": "nvidia"}]},
            "sandbox": {"supported": true, "runtimes": ["native"], "lacks": ["no cgroup"]},
            "agent": {"version": "0.1.0", "boot_id": "b", "step_kinds": ["command"]},
        });
        change(&mut report);
        serde_json::from_value(report).unwrap()
    }

    fn fields(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|error| error.field.as_str()).collect()
    }

    #[test]
    fn labels_under_our_own_domain_are_refused_by_name() {
        assert_eq!(capability(|_| {}).bound("capability"), []);
        for key in ["windlass.dev/node", "windlass.dev/anything", "eu.windlass.dev/arch"] {
            let errors =
                capability(|report| report["node"]["labels"] = json!({key: "x"})).bound("capability");
            assert_eq!(fields(&errors), [format!("capability.node.labels[{key}]")]);
            assert!(errors[0].message.contains(key) && errors[0].message.contains("reserved"), "{errors:?}");
        }
        for key in ["notwindlass.dev/a", "windlass.devs/a", "windlass.dev", "a"] {
            assert_eq!(reserved_label(key), None, "{key}");
        }
    }

    #[test]
    fn each_field_of_a_report_has_a_bound() {
        type Change = fn(&mut Value);
        let long = || json!("x".repeat(MAX_WORD + 1));
        let many = || json!(vec!["x"; MAX_WORDS + 1]);
        let cases: [(&str, Change); 14] = [
            ("node.node_slug", |r| r["node"]["node_slug"] = json!("x".repeat(MAX_WORD + 1))),
            ("node.name", |r| r["node"]["name"] = json!("a\u{1b}[2J")),
            ("node.labels", |r| {
                r["node"]["labels"] = (0..=MAX_LABELS)
                    .map(|n| (format!("l{n}"), json!("v")))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            }),
            ("node.labels[a]", |r| r["node"]["labels"] = json!({"a": "not a value!"})),
            ("platform.os", |r| r["platform"]["os"] = json!("x".repeat(MAX_WORD + 1))),
            ("platform.kernel_version", |r| r["platform"]["kernel_version"] = json!("\n")),
            ("compute.cpu_model", |r| r["compute"]["cpu_model"] = json!("x".repeat(MAX_WORD + 1))),
            ("gpu.devices", |r| r["gpu"]["devices"] = json!(vec![json!({}); MAX_DEVICES + 1])),
            ("gpu.devices[0].model", |r| r["gpu"]["devices"][0]["model"] = json!("x".repeat(MAX_WORD + 1))),
            ("sandbox.runtimes", |r| r["sandbox"]["runtimes"] = json!(vec!["x"; MAX_WORDS + 1])),
            ("sandbox.features[0]", |r| r["sandbox"]["features"] = json!(["x".repeat(MAX_WORD + 1)])),
            ("sandbox.lacks", |r| r["sandbox"]["lacks"] = json!(vec!["x"; MAX_WORDS + 1])),
            ("agent.boot_id", |r| r["agent"]["boot_id"] = json!("x".repeat(MAX_WORD + 1))),
            ("agent.step_kinds", |r| r["agent"]["step_kinds"] = json!(vec!["x"; MAX_WORDS + 1])),
        ];
        for (field, change) in cases {
            assert_eq!(fields(&capability(change).bound("")), [field]);
        }
        let mut both = capability(|report| {
            report["agent"]["version"] = long();
            report["sandbox"]["limits"] = many();
        });
        assert_eq!(
            fields(&both.bound("capability")),
            ["capability.sandbox.limits", "capability.agent.version"]
        );
    }

    #[test]
    fn texts_for_people_are_cut_between_characters() {
        let mut report = capability(|report| report["sandbox"]["lacks"] = json!(["ž".repeat(MAX_TEXT)]));
        assert_eq!(report.bound(""), []);
        let lacks = &report.sandbox.unwrap().lacks[0];
        assert!(lacks.len() <= MAX_TEXT && lacks.ends_with("ž…"), "{}", lacks.len());
        let mut short = "short".to_owned();
        cut(&mut short);
        assert_eq!(short, "short");
    }

    #[test]
    fn each_field_of_the_other_messages_has_a_bound() {
        let long = "x".repeat(MAX_SECRET + 1);
        let mut register =
            RegisterRequest { psk: Some(long.clone()), capability: capability(|_| {}), proof: None };
        assert_eq!(fields(&register.bound("")), ["psk"]);
        let mut ack: ConfigAck = serde_json::from_value(json!({
            "version": 1, "node_slug": "n1", "config_version": "1", "ack_at": "2026-01-01T00:00:00Z",
            "status": "failed", "error": {"type": long, "message": "m".repeat(MAX_TEXT * 2)},
            "effective_config_hash": long,
        }))
        .unwrap();
        assert_eq!(fields(&ack.bound("")), ["effective_config_hash", "error.type"]);
        assert_eq!(ack.error.unwrap().message.len(), MAX_TEXT);
        let mut claim: ClaimRequest = serde_json::from_value(json!({
            "version": 1, "request_id": "", "boot_id": long, "max": 1, "wait_seconds": 0,
            "held": vec![json!({"job": "j", "epoch": 1}); MAX_HELD + 1],
        }))
        .unwrap();
        assert_eq!(fields(&claim.bound("")), ["request_id", "boot_id", "held"]);
        let mut beat: HeartbeatRequest = serde_json::from_value(json!({
            "version": 1, "boot_id": "b", "slots": 1, "held": [{"job": long, "epoch": 1}],
            "capability_hash": long, "not_ready": "m".repeat(MAX_TEXT * 2),
        }))
        .unwrap();
        assert_eq!(fields(&beat.bound("")), ["held[0].job", "capability_hash"]);
        assert_eq!(beat.not_ready.unwrap().len(), MAX_TEXT);
    }

    #[test]
    fn each_field_of_a_record_has_a_bound() {
        let record = |body: Value| -> Record {
            let record = json!({
                "attempt": {"job": "j", "epoch": 1}, "sequence": 1, "at": "2026-01-01T00:00:00Z", "body": body,
            });
            serde_json::from_value(record).unwrap()
        };
        let long = "x".repeat(MAX_WORD + 1);
        for (body, field) in [
            (json!({"kind": "started", "unenforced": vec!["memory"; MAX_WORDS + 1]}), "body.unenforced"),
            (json!({"kind": "step_started", "step": MAX_STEPS}), "body.step"),
            (
                json!({"kind": "log", "step": 0, "stream": "stdout", "offset": 0,
                    "body": {"text": "x".repeat(MAX_LOG + 1)}}),
                "body.body.text",
            ),
            (json!({"kind": "step_ended", "step": 0, "succeeded": true, "reason": long}), "body.reason"),
            (json!({"kind": "event", "level": "loud", "reason": "R", "message": "m"}), "body.level"),
            (json!({"kind": "event", "level": "info", "reason": "a\nb", "message": "m"}), "body.reason"),
            (
                json!({"kind": "terminal", "phase": "failed", "reason": long, "last_sequence": 1}),
                "body.reason",
            ),
        ] {
            assert_eq!(fields(&record(body).bound("")), [field]);
        }
        let mut long_winded = record(json!({
            "kind": "terminal", "phase": "failed", "reason": "R", "last_sequence": 1,
            "message": "m".repeat(MAX_TEXT + 1),
        }));
        assert_eq!(long_winded.bound(""), []);
        let RecordBody::Terminal(terminal) = long_winded.body else { unreachable!("it was one") };
        assert_eq!(terminal.message.unwrap().len(), MAX_TEXT);
    }
}
