//! The rules for configurations of nodes.

use windlass_crds::NodeConfig;
use windlass_crds::manifest::{check_labels, check_metadata, check_spec};
use windlass_crds::names::Quoted;
use windlass_crds::node_config::{NodeConfigSpec, SandboxPolicy};
use windlass_crds::protocol::FieldError;
use windlass_crds::protocol::bounds::reserved_label;
use windlass_crds::quantity::Bytes;
use windlass_crds::schema::Kind;

use super::findings::{Findings, under};
use super::job::check_resources;
use super::paths::check_host_path;
use super::{MAX_TIMEOUT, MIN_TIMEOUT};

pub(super) fn check(node: &NodeConfig) -> Vec<FieldError> {
    let mut findings = Findings::new(check_spec(Kind::NodeConfig, &node.spec));
    findings.extend(check_metadata(Kind::NodeConfig, &node.metadata));
    match serde_json::to_value(&node.spec) {
        Ok(spec) => findings.check_spec_as_a_whole(&spec),
        Err(error) => findings.refuse("spec", format!("cannot be written: {error}")),
    }
    let NodeConfigSpec {
        labels,
        unschedulable: _,
        concurrency: _,
        queues,
        offline: _,
        offline_grace,
        sandbox,
    } = &node.spec;
    findings.extend(check_labels(labels, "spec.labels"));
    for key in labels.keys() {
        if let Some(reason) = reserved_label(key) {
            findings.refuse(under("spec.labels", key), reason);
        }
    }
    findings.check_unique(queues, "spec.queues");
    findings.check_span("spec.offlineGrace", *offline_grace, MIN_TIMEOUT, MAX_TIMEOUT);
    check_policy(sandbox, "spec.sandbox", &mut findings);
    findings.finish()
}

fn check_policy(policy: &SandboxPolicy, at: &str, findings: &mut Findings) {
    let SandboxPolicy {
        runtimes,
        networks,
        egress,
        max_transfer,
        images,
        defaults,
        max,
        max_timeout,
        host_paths,
        blocked_commands,
        allowed_commands,
        output_cap,
    } = policy;
    findings.check_unique(runtimes, &format!("{at}.runtimes"));
    findings.check_unique(networks, &format!("{at}.networks"));
    findings.check_unique(egress, &format!("{at}.egress"));
    check_resources(defaults, &format!("{at}.defaults"), findings);
    check_resources(max, &format!("{at}.max"), findings);
    let fields = |name: &str| (format!("{at}.defaults.{name}"), format!("{at}.max.{name}"));
    findings.check_at_most(fields("cpu"), defaults.cpu, max.cpu);
    findings.check_at_most(fields("memory"), defaults.memory, max.memory);
    findings.check_at_most(fields("pids"), defaults.pids, max.pids);
    findings.check_at_most(fields("disk"), defaults.disk, max.disk);
    findings.check_at_most(fields("cpuWeight"), defaults.cpu_weight, max.cpu_weight);
    findings.check_at_most(fields("ioRead"), defaults.io_read, max.io_read);
    findings.check_at_most(fields("ioWrite"), defaults.io_write, max.io_write);
    findings.check_at_most(fields("files"), defaults.files, max.files);
    check_commands(blocked_commands, &format!("{at}.blockedCommands"), findings);
    check_commands(allowed_commands, &format!("{at}.allowedCommands"), findings);
    findings.check_span(format!("{at}.maxTimeout"), *max_timeout, MIN_TIMEOUT, MAX_TIMEOUT);
    for (index, host_path) in host_paths.iter().enumerate() {
        let field = format!("{at}.hostPaths[{index}]");
        check_host_path(host_path, &field, findings);
        if host_paths[..index].iter().any(|earlier| earlier.path == host_path.path) {
            let message = format!("{} is listed twice; remove one of them", Quoted(&host_path.path));
            findings.refuse(format!("{field}.path"), message);
        }
    }
    findings.check_unique(&images.allowed, &format!("{at}.images.allowed"));
    for (index, entry) in images.allowed.iter().enumerate() {
        if let Err(error) = windlass_crds::image::check_allowed(entry) {
            let message = format!(
                "{} {error}; an entry is a registry, a folder of one, or an image without tag",
                Quoted(entry)
            );
            findings.refuse(format!("{at}.images.allowed[{index}]"), message);
        }
    }
    if let Some(path) = &images.auth_file
        && path.split('/').any(|part| part == "..")
    {
        let message = format!("{} holds `..`; write the path without it", Quoted(path));
        findings.refuse(format!("{at}.images.authFile"), message);
    }
    if *max_transfer == Some(Bytes::default()) {
        findings.refuse(
            format!("{at}.maxTransfer"),
            "`0` would let nothing through; raise it or remove the field",
        );
    }
    if *output_cap == Some(Bytes::default()) {
        findings.refuse(format!("{at}.outputCap"), "`0` would keep no output; raise it or remove the field");
    }
}

/// Checks words of commands: those that would match nothing or everything are mistakes.
fn check_commands(words: &[String], at: &str, findings: &mut Findings) {
    findings.check_unique(words, at);
    for (index, word) in words.iter().enumerate() {
        if word.trim().is_empty() || word.chars().any(char::is_control) {
            let message = format!("{} names no command; write it as in a script, or remove it", Quoted(word));
            findings.refuse(format!("{at}[{index}]"), message);
        }
    }
}
