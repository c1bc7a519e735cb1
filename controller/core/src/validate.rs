//! What a manifest must satisfy beyond its schema.
//!
//! Every check is pure and runs to the end, so that everything that is wrong is said at once, sorted by path. The
//! bounds of the schema are checked here too, for objects that come another way than through the reader of
//! manifests. What passes is a type of its own, so that nothing behind it can fail on a person's input.

mod facts;
mod findings;
mod inference;
mod job;
mod labels;
mod node;
mod paths;
mod secrets;
mod template;
mod update;

#[cfg(test)]
mod tests;

use windlass_crds::manifest::Object;
use windlass_crds::protocol::FieldError;
use windlass_crds::sandbox_job::Step;
use windlass_crds::{JobTemplate, NodeConfig, SandboxJob, SandboxJobSpec, Span};

/// The most bytes that a spec may have as JSON.
pub const MAX_SPEC_BYTES: usize = 1024 * 1024;
/// The shortest timeout.
pub const MIN_TIMEOUT: Span = Span::from_secs(1);
/// The longest timeout, wait and grace.
pub const MAX_TIMEOUT: Span = Span::from_secs(30 * 24 * 3600);
/// The timeout of a job that names none.
pub const DEFAULT_TIMEOUT: Span = Span::from_secs(3600);
/// The longest time that a job is kept by `ttlAfterFinished`: ten years.
pub const MAX_TTL: Span = Span::from_secs(3650 * 24 * 3600);
/// The name of the one step of a job that is written in shorthand.
pub const MAIN_STEP: &str = "main";
/// How names of environment variables begin that belong to Windlass.
pub const RESERVED_ENVIRONMENT: &str = "WINDLASS_";
/// The most bytes of one argument or environment variable, its end included: the kernel's `MAX_ARG_STRLEN`.
pub const MAX_ARGUMENT_BYTES: usize = 128 * 1024;

/// A job that breaks no rule, with its shorthand written out: `steps` holds every step, and `command` and `script`
/// of the job itself are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidJob(SandboxJob);

/// A node's configuration that breaks no rule.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidNode(NodeConfig);

/// A template that breaks no rule.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidTemplate(JobTemplate);

impl ValidJob {
    /// The job.
    pub const fn get(&self) -> &SandboxJob {
        &self.0
    }

    /// The job's spec.
    pub const fn spec(&self) -> &SandboxJobSpec {
        &self.0.spec
    }

    /// The steps, of which there is at least one.
    pub fn steps(&self) -> &[Step] {
        &self.0.spec.steps
    }

    /// The job by value.
    pub fn into_inner(self) -> SandboxJob {
        self.0
    }
}

impl ValidNode {
    /// The configuration.
    pub const fn get(&self) -> &NodeConfig {
        &self.0
    }

    /// The configuration by value.
    pub fn into_inner(self) -> NodeConfig {
        self.0
    }
}

impl ValidTemplate {
    /// The template.
    pub const fn get(&self) -> &JobTemplate {
        &self.0
    }

    /// The template by value.
    pub fn into_inner(self) -> JobTemplate {
        self.0
    }
}

/// Checks a job and writes its shorthand out.
///
/// # Errors
/// Everything that is wrong, sorted by path.
pub fn validate_job(job: &SandboxJob) -> Result<ValidJob, Vec<FieldError>> {
    let errors = job::check(job);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut valid = job.clone();
    valid.spec = normalised(&job.spec);
    Ok(ValidJob(valid))
}

/// Checks a node's configuration.
///
/// # Errors
/// Everything that is wrong, sorted by path.
pub fn validate_node(node: &NodeConfig) -> Result<ValidNode, Vec<FieldError>> {
    let errors = node::check(node);
    if errors.is_empty() { Ok(ValidNode(node.clone())) } else { Err(errors) }
}

/// Checks a template: its parameters, and its job with a sample value in the place of every parameter.
///
/// # Errors
/// Everything that is wrong, sorted by path.
pub fn validate_template(template: &JobTemplate) -> Result<ValidTemplate, Vec<FieldError>> {
    let errors = template::check(template);
    if errors.is_empty() { Ok(ValidTemplate(template.clone())) } else { Err(errors) }
}

/// Checks a manifest of any kind.
///
/// # Errors
/// Everything that is wrong, sorted by path.
pub fn validate_object(object: &Object) -> Result<(), Vec<FieldError>> {
    match object {
        Object::Node(node) => validate_node(node).map(drop),
        Object::Job(job) => validate_job(job).map(drop),
        Object::Template(template) => validate_template(template).map(drop),
    }
}

/// Checks that a job that exists may become `new`: everything but `suspend`, `cancel`, `priority` and
/// `ttlAfterFinished` stays as it is, and a cancel stays asked for. A step in shorthand is the same step written
/// out. `new` itself is checked by [`validate_job`].
///
/// # Errors
/// Every field that changes and may not, sorted by path.
pub fn validate_job_update(old: &SandboxJobSpec, new: &SandboxJobSpec) -> Result<(), Vec<FieldError>> {
    let errors = update::check(old, new);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The names of a job's steps in order; a job in shorthand has one step.
pub fn step_names(spec: &SandboxJobSpec) -> Vec<String> {
    if spec.steps.is_empty() {
        return vec![MAIN_STEP.to_owned()];
    }
    spec.steps.iter().map(|step| step.name.clone()).collect()
}

/// The same spec with its shorthand written out.
pub fn normalised(spec: &SandboxJobSpec) -> SandboxJobSpec {
    let mut spec = spec.clone();
    let (command, script) = (spec.command.take(), spec.script.take());
    if spec.steps.is_empty() && (command.is_some() || script.is_some()) {
        let secrets = std::mem::take(&mut spec.secrets);
        let config_maps = std::mem::take(&mut spec.config_maps);
        let name = MAIN_STEP.to_owned();
        spec.steps.push(Step { name, command, script, secrets, config_maps, ..Step::default() });
    }
    spec
}
