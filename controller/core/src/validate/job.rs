//! The rules for jobs.

use std::collections::BTreeMap;

use windlass_crds::host_image::BadHostImage;
use windlass_crds::manifest::{check_metadata, check_spec};
use windlass_crds::names::Quoted;
use windlass_crds::protocol::FieldError;
use windlass_crds::quantity::{Bytes, Cpu};
use windlass_crds::sandbox_job::{ContainerStep, Network, Resources, Runtime, SandboxSpec, Script, Step};
use windlass_crds::schema::Kind;
use windlass_crds::{ConfigMapUse, HostImage, ImageName, SandboxJob, SandboxJobSpec, SecretUse, Span};

use super::findings::Findings;
use super::{DEFAULT_TIMEOUT, MAX_ARGUMENT_BYTES, MAX_TIMEOUT, MAX_TTL, MIN_TIMEOUT, labels, paths, secrets};

pub(super) fn check(job: &SandboxJob) -> Vec<FieldError> {
    let mut findings = Findings::new(check_spec(Kind::SandboxJob, &job.spec));
    findings.extend(check_metadata(Kind::SandboxJob, &job.metadata));
    match serde_json::to_value(&job.spec) {
        Ok(spec) => findings.check_spec_as_a_whole(&spec),
        Err(error) => findings.refuse("spec", format!("cannot be written: {error}")),
    }
    check_rules(&job.spec, "spec", &mut findings);
    findings.finish()
}

/// Checks a job's spec at a path, apart from its schema.
pub(super) fn check_rules(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    check_title(spec, at, findings);
    labels::check(spec, at, findings);
    check_sandbox(&spec.sandbox, &format!("{at}.sandbox"), findings);
    check_requirements(spec, at, findings);
    check_times(spec, at, findings);
    paths::check_workspace(spec, at, findings);
    check_steps(spec, at, findings);
}

/// Checks limits that would leave nothing; the others have their least value in the schema.
pub(super) fn check_resources(resources: &Resources, at: &str, findings: &mut Findings) {
    let Resources { cpu, cpu_weight: _, memory, pids: _, disk, io_read, io_write, files: _ } = resources;
    let zeros = [
        ("cpu", *cpu == Some(Cpu::default())),
        ("memory", *memory == Some(Bytes::default())),
        ("disk", *disk == Some(Bytes::default())),
        ("ioRead", *io_read == Some(Bytes::default())),
        ("ioWrite", *io_write == Some(Bytes::default())),
    ];
    for (name, _) in zeros.into_iter().filter(|(_, zero)| *zero) {
        findings
            .refuse(format!("{at}.{name}"), "`0` leaves nothing to run with; raise it or remove the field");
    }
}

fn check_title(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    if let Some(title) = &spec.title
        && title.chars().any(|c| c.is_control() && c != '\0')
    {
        let message =
            format!("{} is more than one line of plain text; move the rest to `description`", Quoted(title));
        findings.refuse(format!("{at}.title"), message);
    }
}

fn check_sandbox(sandbox: &SandboxSpec, at: &str, findings: &mut Findings) {
    let SandboxSpec { runtime, image, network, egress, inference, resources, env, unenforced } = sandbox;
    match (runtime, image) {
        (runtime, Some(image)) => check_image(*runtime, image, &format!("{at}.image"), findings),
        (Runtime::Podman | Runtime::Docker, None) => {
            findings
                .refuse(format!("{at}.image"), format!("is missing; the runtime `{runtime}` needs an image"));
        }
        (Runtime::Native, None) => {}
    }
    if !egress.is_empty() && *network != Network::Restricted {
        let message = format!(
            "means nothing with the network `{network}`; write `network: Restricted`, or remove the rules"
        );
        findings.refuse(format!("{at}.egress"), message);
    }
    findings.check_unique(egress, &format!("{at}.egress"));
    if *inference && *network != Network::Restricted {
        let message = format!(
            "`true` means nothing with the network `{network}`; write `network: Restricted`, whose proxy leads to the model"
        );
        findings.refuse(format!("{at}.inference"), message);
    }
    check_resources(resources, &format!("{at}.resources"), findings);
    findings.check_environment(env, &format!("{at}.env"));
    findings.check_unique(unenforced, &format!("{at}.unenforced"));
}

/// Checks the name of an image.
fn check_image(runtime: Runtime, image: &str, at: &str, findings: &mut Findings) {
    let problem = match runtime {
        Runtime::Native => image.parse::<HostImage>().err().map(|error| match error {
            BadHostImage::Kind => {
                format!("{error}; for images by name set `runtime` to `podman` or `docker`")
            }
            error => error.to_string(),
        }),
        Runtime::Podman | Runtime::Docker if HostImage::is_meant(image) => Some(format!(
            "lies on the node; the runtime `{runtime}` takes images by name, and `native` takes this one"
        )),
        Runtime::Podman | Runtime::Docker => image.parse::<ImageName>().err().map(|error| error.to_string()),
    };
    if let Some(problem) = problem {
        findings.refuse(at, format!("{} {problem}", Quoted(image)));
    }
}

/// Checks that a container has an image to run from, with what its runtime can do.
fn check_runtime(step: &Step, sandbox: &SandboxSpec, at: &str, field: &str, findings: &mut Findings) {
    let Some(container) = &step.container else { return };
    match sandbox.runtime {
        Runtime::Native => {
            if container.image.is_none() && sandbox.image.is_none() {
                let message = format!(
                    "has no image; write one, or {at}.sandbox.image, or set {at}.sandbox.runtime to `podman` or `docker`"
                );
                findings.refuse(format!("{field}.container"), message);
            }
            if !container.read_only_root {
                let message = "`false` is not possible with the runtime `native`, which shows an image to many jobs; name \
                               what must be written as `tmpfs`, or set `runtime` to `podman` or `docker`";
                findings.refuse(format!("{field}.container.readOnlyRoot"), message);
            }
        }
        Runtime::Podman | Runtime::Docker => {}
    }
}

fn check_container(runtime: Runtime, container: &ContainerStep, at: &str, findings: &mut Findings) {
    let ContainerStep { image, entrypoint, args, user: _, read_only_root: _, tmpfs } = container;
    if let Some(image) = image {
        check_image(runtime, image, &format!("{at}.image"), findings);
    }
    if let Some(entrypoint) = entrypoint {
        check_command(entrypoint, &format!("{at}.entrypoint"), findings);
    }
    check_arguments(args, &format!("{at}.args"), findings);
    findings.check_unique(tmpfs, &format!("{at}.tmpfs"));
    for (index, path) in tmpfs.iter().enumerate() {
        let rest = path.strip_prefix('/').unwrap_or(path);
        let odd = rest.split('/').any(|part| matches!(part, "" | "." | ".."));
        let own = path == "/workspace"
            || path.starts_with("/workspace/")
            || path == "/proc"
            || path.starts_with("/proc/");
        if odd || own {
            let message = format!(
                "{} cannot be scratch space; write an absolute path without `.` and `..`, outside of /workspace and /proc",
                Quoted(path)
            );
            findings.refuse(format!("{at}.tmpfs[{index}]"), message);
        }
    }
}

fn check_requirements(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    let requires = &spec.requires;
    if let Some(runtime) = requires.runtime
        && runtime != spec.sandbox.runtime
    {
        let message = format!(
            "`{runtime}` contradicts {at}.sandbox.runtime, which is `{}`; write the same in both, or remove this field",
            spec.sandbox.runtime
        );
        findings.refuse(format!("{at}.requires.runtime"), message);
    }
    if let Some(model) = &requires.model
        && !spec.sandbox.inference
    {
        let message = format!(
            "{} is of no use to steps that reach no server of models; set {at}.sandbox.inference, or remove this field",
            Quoted(model)
        );
        findings.refuse(format!("{at}.requires.model"), message);
    }
    let limits = &spec.sandbox.resources;
    let fields = |name: &str| (format!("{at}.requires.{name}"), format!("{at}.sandbox.resources.{name}"));
    findings.check_at_most(fields("cpu"), requires.cpu, limits.cpu);
    findings.check_at_most(fields("memory"), requires.memory, limits.memory);
}

fn check_times(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    findings.check_span(format!("{at}.timeout"), spec.timeout, MIN_TIMEOUT, MAX_TIMEOUT);
    findings.check_span(format!("{at}.ttlAfterFinished"), spec.ttl_after_finished, Span::default(), MAX_TTL);
    let backoff = &spec.retry.backoff;
    let at = format!("{at}.retry.backoff");
    let least = Span::from_millis(1);
    findings.check_span(format!("{at}.initial"), Some(backoff.initial), least, MAX_TIMEOUT);
    findings.check_span(format!("{at}.max"), Some(backoff.max), least, MAX_TIMEOUT);
    if backoff.initial > backoff.max {
        let message = format!("`{}` is longer than {at}.max, which is `{}`", backoff.initial, backoff.max);
        findings.refuse(format!("{at}.initial"), message);
    }
}

fn check_steps(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    let SandboxJobSpec { steps, command, script, .. } = spec;
    match (steps.is_empty(), command, script) {
        (true, None, None) => {
            findings.refuse(at, "does nothing; write `steps`, or one `command` or `script`");
        }
        (true, Some(_), Some(_)) => {
            findings.refuse(
                format!("{at}.script"),
                format!("stands beside {at}.command; write one, or use `steps`"),
            );
        }
        (false, Some(_), _) => {
            findings.refuse(
                format!("{at}.command"),
                format!("stands beside {at}.steps; make it one of the steps"),
            );
        }
        (false, None, Some(_)) => {
            findings.refuse(
                format!("{at}.script"),
                format!("stands beside {at}.steps; make it one of the steps"),
            );
        }
        (true, Some(_), None) | (true, None, Some(_)) | (false, None, None) => {}
    }
    if let Some(command) = command {
        check_command(command, &format!("{at}.command"), findings);
    }
    if let Some(script) = script {
        check_script(script, &format!("{at}.script"), findings);
    }
    if steps.is_empty() {
        check_given(&spec.secrets, &spec.config_maps, &BTreeMap::new(), at, findings);
    } else {
        for (field, stands) in
            [("secrets", !spec.secrets.is_empty()), ("configMaps", !spec.config_maps.is_empty())]
        {
            if stands {
                let message = format!("stands beside {at}.steps; write it in the steps that need them");
                findings.refuse(format!("{at}.{field}"), message);
            }
        }
    }
    for (index, step) in steps.iter().enumerate() {
        let field = format!("{at}.steps[{index}]");
        if let Some(other) = steps[..index].iter().position(|earlier| earlier.name == step.name) {
            let message =
                format!("{} is also the name of {at}.steps[{other}]; choose another", Quoted(&step.name));
            findings.refuse(format!("{field}.name"), message);
        }
        check_step(step, spec, at, &field, findings);
    }
}

/// Checks what a step is given beside its plain environment.
fn check_given(
    secrets: &[SecretUse],
    config_maps: &[ConfigMapUse],
    env: &BTreeMap<String, String>,
    at: &str,
    findings: &mut Findings,
) {
    let mut variables = secrets::Variables::new();
    secrets::check(secrets, env, &mut variables, &format!("{at}.secrets"), findings);
    secrets::check_config_maps(config_maps, env, &mut variables, &format!("{at}.configMaps"), findings);
}

/// Refuses what a step is given of which nothing runs in the sandbox: nobody would see it, and the job would wait for its Secrets.
fn check_nothing_given(step: &Step, kind: &str, field: &str, findings: &mut Findings) {
    for (name, given) in [
        ("env", !step.env.is_empty()),
        ("secrets", !step.secrets.is_empty()),
        ("configMaps", !step.config_maps.is_empty()),
        ("workingDir", step.working_dir.is_some()),
    ] {
        if given {
            let message = format!(
                "means nothing in a step of kind `{kind}`, of which nothing runs in the sandbox; remove it, or write it in the \
                 step that needs it"
            );
            findings.refuse(format!("{field}.{name}"), message);
        }
    }
}

fn check_step(step: &Step, spec: &SandboxJobSpec, at: &str, field: &str, findings: &mut Findings) {
    let Step {
        name: _,
        command,
        script,
        container,
        facts,
        service,
        env,
        secrets,
        config_maps,
        working_dir,
        timeout,
        continue_on_error: _,
    } = step;
    let kinds = [
        ("command", command.is_some()),
        ("script", script.is_some()),
        ("container", container.is_some()),
        ("facts", facts.is_some()),
        ("service", service.is_some()),
    ];
    let mut given = kinds.into_iter().filter(|(_, given)| *given).map(|(kind, _)| kind);
    match (given.next(), given.next()) {
        (None, _) => {
            findings.refuse(
                field,
                "does nothing; write a `command`, a `script`, a `container`, `facts` or a `service`",
            );
        }
        (Some(first), Some(second)) => {
            let message = format!("stands beside {field}.{first}; write one of them, or make two steps");
            findings.refuse(format!("{field}.{second}"), message);
        }
        (Some(kind @ ("facts" | "service")), None) => check_nothing_given(step, kind, field, findings),
        (Some(_), None) => {}
    }
    check_runtime(step, &spec.sandbox, at, field, findings);
    if let Some(container) = container {
        check_container(spec.sandbox.runtime, container, &format!("{field}.container"), findings);
    }
    if let Some(command) = command {
        check_command(command, &format!("{field}.command"), findings);
    }
    if let Some(script) = script {
        check_script(script, &format!("{field}.script"), findings);
    }
    if let Some(facts) = facts {
        findings.check_unique(&facts.include, &format!("{field}.facts.include"));
    }
    findings.check_environment(env, &format!("{field}.env"));
    check_given(secrets, config_maps, env, field, findings);
    if let Some(path) = working_dir {
        paths::check_relative(path, &format!("{field}.workingDir"), findings);
    }
    findings.check_span(format!("{field}.timeout"), *timeout, MIN_TIMEOUT, MAX_TIMEOUT);
    let whole = spec.timeout.unwrap_or(DEFAULT_TIMEOUT);
    if let Some(timeout) = timeout
        && *timeout > whole
        && *timeout <= MAX_TIMEOUT
    {
        let whole = match spec.timeout {
            Some(_) => format!("`{whole}`"),
            None => format!("`{whole}` by default"),
        };
        let message =
            format!("`{timeout}` is longer than {at}.timeout, which is {whole}; lower it or raise the other");
        findings.refuse(format!("{field}.timeout"), message);
    }
}

fn check_command(command: &[String], at: &str, findings: &mut Findings) {
    if command.first().is_some_and(String::is_empty) {
        findings.refuse(format!("{at}[0]"), "is empty; write the program to run");
    }
    check_arguments(command, at, findings);
}

fn check_script(script: &Script, at: &str, findings: &mut Findings) {
    let Script { interpreter, source: _, args } = script;
    let field = format!("{at}.interpreter");
    if interpreter.chars().any(char::is_whitespace) {
        let message =
            format!("{} is not one program; use a `command` to give it arguments", Quoted(interpreter));
        findings.refuse(field, message);
    } else if interpreter.contains('/') && !interpreter.starts_with('/') {
        let message = format!("{} is a relative path; write a name or an absolute path", Quoted(interpreter));
        findings.refuse(field, message);
    }
    check_arguments(args, &format!("{at}.args"), findings);
}

fn check_arguments(arguments: &[String], at: &str, findings: &mut Findings) {
    for (index, argument) in arguments.iter().enumerate() {
        let bytes = argument.len() + 1;
        if bytes > MAX_ARGUMENT_BYTES {
            let advice = "write it to a file and pass its path";
            let message = format!("takes {bytes} bytes, at most {MAX_ARGUMENT_BYTES} fit; {advice}");
            findings.refuse(format!("{at}[{index}]"), message);
        }
    }
}
