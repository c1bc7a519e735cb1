//! The rules for configurations of nodes.

use std::net::{Ipv6Addr, SocketAddr};

use windlass_crds::NodeConfig;
use windlass_crds::manifest::{check_labels, check_metadata, check_spec};
use windlass_crds::names::{self, Quoted};
use windlass_crds::node_config::{NodeConfigSpec, SandboxPolicy, WorkerApi};
use windlass_crds::protocol::FieldError;
use windlass_crds::protocol::bounds::reserved_label;
use windlass_crds::protocol::worker_api::MAX_REQUEST;
use windlass_crds::quantity::Bytes;
use windlass_crds::schema::Kind;

use super::facts;
use super::findings::{Findings, under};
use super::inference;
use super::job::check_resources;
use super::paths::check_host_path;
use super::{MAX_TIMEOUT, MIN_TIMEOUT};

/// The least that the largest request to a Worker API may be: a whole job of a few steps.
const MIN_REQUEST: u64 = 64 << 10;

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
        dispatch: _,
        worker_api,
        inference,
        facts,
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
    if let Some(api) = worker_api {
        check_worker_api(api, "spec.workerApi", &mut findings);
    }
    if let Some(inference) = inference {
        inference::check(inference, sandbox, "spec.inference", &mut findings);
    }
    if let Some(facts) = facts {
        facts::check(facts, "spec.facts", &mut findings);
    }
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
        services,
        blocked_commands,
        allowed_commands,
        external_models: _,
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
    findings.check_unique(services, &format!("{at}.services"));
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
    findings.check_unique(&images.folders, &format!("{at}.images.folders"));
    for (index, folder) in images.folders.iter().enumerate() {
        if !windlass_crds::host_image::is_plain_path(folder) {
            let message =
                format!("{} is no folder; write an absolute path without `..` and `:`", Quoted(folder));
            findings.refuse(format!("{at}.images.folders[{index}]"), message);
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

fn check_worker_api(api: &WorkerApi, at: &str, findings: &mut Findings) {
    let WorkerApi { listen, url, max_request, token_file } = api;
    if let Some(text) = listen
        && text.parse::<SocketAddr>().is_err()
    {
        let message =
            format!("{} is not ADDRESS:PORT, such as `0.0.0.0:12090` or `[::]:12090`", Quoted(text));
        findings.refuse(format!("{at}.listen"), message);
    }
    if let Some(text) = url
        && !is_origin(text)
    {
        let message = format!(
            "{} is not https://HOST[:PORT] without a path, a user or a query, such as `https://node-1.example:12090`",
            Quoted(text)
        );
        findings.refuse(format!("{at}.url"), message);
    }
    if let Some(most) = max_request.map(Bytes::get)
        && !(MIN_REQUEST..=MAX_REQUEST).contains(&most)
    {
        let message = format!("{most} bytes are too few or too many; give 64Ki to 10Mi");
        findings.refuse(format!("{at}.maxRequest"), message);
    }
    if let Some(path) = token_file
        && path.split('/').any(|part| part == "..")
    {
        let message = format!("{} holds `..`; write the path without it", Quoted(path));
        findings.refuse(format!("{at}.tokenFile"), message);
    }
}

/// Whether a text is `https://` and a host, with a port or without, and nothing else.
fn is_origin(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else { return false };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if let Some((address, port)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port.strip_prefix(':')));
    }
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    names::check_subdomain(host).is_ok() && (port.is_none() || is_port(port))
}

fn is_port(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.parse::<u16>().is_ok_and(|port| port > 0))
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
