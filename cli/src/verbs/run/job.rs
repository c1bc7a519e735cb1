//! The job that a command line describes.

use std::path::PathBuf;

use windlass_core::validate::validate_job;
use windlass_crds::manifest;
use windlass_crds::sandbox_job::{Backoff, Network};
use windlass_crds::{Bytes, Cpu, EgressRule, Priority, SandboxJob, SandboxJobSpec, SecretUse, Span};

use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::inputs::{InputArg, Selection};

/// What the job is to be; with `--filename` these win over the manifest.
#[derive(clap::Args, Debug, Default)]
#[command(next_help_heading = "Job")]
pub(super) struct JobArgs {
    /// Name the job; without it a name is made of the command's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Give the job this label. The flag may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    label: Vec<(String, String)>,

    /// Place a folder, an archive or a file in the workspace, at `input` or at DEST. A folder is packed with hidden
    /// files and `.git`, a git checkout without what its `.gitignore` files name; a `.tar`, `.tar.gz` or `.tgz` is unpacked. What the server has already is not sent
    /// again. The flag may be given more than once.
    #[arg(long, value_name = "[DEST=]PATH")]
    pub(super) input: Vec<InputArg>,

    /// Leave this out of the folders of `--input`: a path below the folder, or a name wherever it occurs. The flag may be
    /// given more than once.
    #[arg(long, value_name = "NAME", requires = "input")]
    exclude: Vec<PathBuf>,

    /// Pack a git checkout of `--input` with what its `.gitignore` files name.
    #[arg(long, requires = "input")]
    include_ignored: bool,

    /// Let the job wait in this queue.
    #[arg(short, long, value_name = "NAME")]
    queue: Option<String>,

    /// Give the job this priority inside its queue: `high`, `normal`, `low`, or a number from 0 to 1000.
    #[arg(long, value_name = "PRIORITY")]
    priority: Option<Priority>,

    /// Run only on nodes with this label. The flag may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    selector: Vec<(String, String)>,

    /// Limit each step to this much cpu time per second, such as `2` or `500m`.
    #[arg(long, value_name = "AMOUNT")]
    cpu: Option<Cpu>,

    /// Limit each step to this much memory, such as `512Mi`.
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<Bytes>,

    /// Stop an attempt that takes longer than this, such as `90s` or `1h30m`.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,

    /// Set a variable of the environment of every step. The flag may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,

    /// Give the program this value of a Secret as a variable of its environment, or as a file below `/run/windlass/secrets` where TARGET begins
    /// with `@`. The flag may be given more than once.
    #[arg(long, value_name = "TARGET=SECRET/KEY", value_parser = parse_secret)]
    secret: Vec<SecretUse>,

    /// Let the steps reach this much of the network: `None`, `Restricted` or `Open`.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    network: Option<Network>,

    /// Let the steps reach this through a proxy, such as `example.com:443`, `*.example.com:443` or `10.1.0.0/16:5432`; without
    /// `--network` that is the network `Restricted`. The flag may be given more than once.
    #[arg(long, value_name = "RULE")]
    egress: Vec<EgressRule>,

    /// Run the job again this often after it failed or timed out.
    #[arg(long, value_name = "TIMES")]
    retry: Option<u32>,

    /// Wait this long before the first retry; the wait doubles with each further one.
    #[arg(long, value_name = "DURATION")]
    retry_backoff: Option<Span>,

    /// Give up after this many attempts were lost with their nodes.
    #[arg(long, value_name = "TIMES")]
    lost_attempts: Option<u32>,
}

fn parse_secret(text: &str) -> Result<SecretUse, String> {
    let form = "write VARIABLE=SECRET/KEY, or @FILE=SECRET/KEY";
    let (target, secret) = text.split_once('=').ok_or(form)?;
    let (name, key) = secret.split_once('/').ok_or(form)?;
    let (env, file) = match target.strip_prefix('@') {
        Some(file) => (None, Some(file.to_owned())),
        None => (Some(target.to_owned()), None),
    };
    Ok(SecretUse { name: name.to_owned(), key: key.to_owned(), env, file })
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as `NAME=VALUE`".to_owned()),
    }
}

fn parse_network(text: &str) -> Result<Network, String> {
    use strum::IntoEnumIterator as _;
    Network::iter()
        .find(|network| network.to_string().eq_ignore_ascii_case(text))
        .ok_or_else(|| "write `None`, `Restricted` or `Open`".to_owned())
}

/// A job of one command.
pub(super) fn job_of(command: Vec<String>, namespace: &str) -> SandboxJob {
    let prefix = generate_name(command.first().map(String::as_str).unwrap_or_default());
    let mut job = SandboxJob::new("", SandboxJobSpec { command: Some(command), ..SandboxJobSpec::default() });
    // The default of the type is for reading: a queue that is not named there is this one.
    job.spec.queue = "default".to_owned();
    job.metadata.name = None;
    job.metadata.generate_name = Some(prefix);
    job.metadata.namespace = Some(namespace.to_owned());
    job
}

/// The beginning of a job's name, made of a program's.
fn generate_name(program: &str) -> String {
    /// What is left for it of the 63 characters, with room for what the server adds.
    const LONGEST: usize = 40;
    let base = program.rsplit('/').next().unwrap_or_default();
    let name: String = base
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(LONGEST)
        .collect();
    match name.trim_matches('-') {
        "" => "job-".to_owned(),
        name => format!("{name}-"),
    }
}

/// Checks a job before anything is uploaded for it.
pub(super) fn check(job: &SandboxJob) -> Result<(), Failure> {
    let mut errors = manifest::check_spec(windlass_crds::schema::Kind::SandboxJob, &job.spec);
    errors.extend(validate_job(job).err().unwrap_or_default());
    if errors.is_empty() {
        return Ok(());
    }
    Err(Report::new(Exit::Invalid, "the job is invalid")
        .details(errors.iter().map(ToString::to_string))
        .into())
}

impl JobArgs {
    /// What of folders is packed.
    pub(super) fn selection(&self) -> Selection {
        Selection { exclude: self.exclude.clone(), include_ignored: self.include_ignored }
    }

    /// Sets what was given on the command line.
    pub(super) fn apply_to(&self, job: &mut SandboxJob) {
        let Self {
            name,
            label,
            input: _,
            exclude: _,
            include_ignored: _,
            queue,
            priority,
            selector,
            cpu,
            memory,
            timeout,
            env,
            secret,
            network,
            egress,
            retry,
            retry_backoff,
            lost_attempts,
        } = self;
        if let Some(name) = name {
            job.metadata.name = Some(name.clone());
            job.metadata.generate_name = None;
        }
        if !label.is_empty() {
            job.metadata.labels.get_or_insert_default().extend(label.iter().cloned());
        }
        let spec = &mut job.spec;
        if let Some(queue) = queue {
            spec.queue.clone_from(queue);
        }
        spec.priority = priority.unwrap_or(spec.priority);
        spec.node_selector.extend(selector.iter().cloned());
        let resources = &mut spec.sandbox.resources;
        resources.cpu = cpu.or(resources.cpu);
        resources.memory = memory.or(resources.memory);
        spec.timeout = timeout.or(spec.timeout);
        spec.sandbox.env.extend(env.iter().cloned());
        spec.secrets.extend(secret.iter().cloned());
        let restricted = (!egress.is_empty()).then_some(Network::Restricted);
        spec.sandbox.network = network.or(restricted).unwrap_or(spec.sandbox.network);
        if !egress.is_empty() {
            spec.sandbox.egress.clone_from(egress);
        }
        spec.retry.failures = retry.unwrap_or(spec.retry.failures);
        spec.retry.lost_attempts = lost_attempts.unwrap_or(spec.retry.lost_attempts);
        if let Some(initial) = *retry_backoff {
            let max = spec.retry.backoff.max.max(initial);
            spec.retry.backoff = Backoff { initial, max };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_after_its_program() {
        let table = [
            ("echo", "echo-"),
            ("/usr/bin/python3", "python3-"),
            ("./My Script.sh", "my-script-sh-"),
            ("日本", "job-"),
            ("", "job-"),
            ("---", "job-"),
        ];
        for (program, expected) in table {
            assert_eq!(generate_name(program), expected, "{program}");
        }
        assert!(generate_name(&"x".repeat(300)).len() <= 41);
    }

    #[test]
    fn flags_win_over_the_manifest_and_leave_the_rest_alone() {
        let mut job = job_of(vec!["make".into()], "ci");
        job.spec.sandbox.env.insert("A".into(), "manifest".into());
        job.spec.sandbox.env.insert("B".into(), "manifest".into());
        job.spec.retry.lost_attempts = 7;
        let args = JobArgs {
            name: Some("build".into()),
            label: vec![("team".into(), "core".into())],
            queue: Some("fast".into()),
            priority: Some(Priority::HIGH),
            selector: vec![("disk".into(), "ssd".into())],
            cpu: Some(Cpu::from_millis(500)),
            memory: Some(Bytes::from_mib(64)),
            timeout: Some(Span::from_secs(90)),
            env: vec![("A".into(), "flag".into())],
            network: Some(Network::Open),
            retry: Some(2),
            retry_backoff: Some(Span::from_secs(3600)),
            ..JobArgs::default()
        };
        args.apply_to(&mut job);
        insta::assert_json_snapshot!(job, @r#"
        {
          "apiVersion": "windlass.dev/v1alpha1",
          "kind": "SandboxJob",
          "metadata": {
            "labels": {
              "team": "core"
            },
            "name": "build",
            "namespace": "ci"
          },
          "spec": {
            "queue": "fast",
            "priority": "high",
            "nodeSelector": {
              "disk": "ssd"
            },
            "sandbox": {
              "runtime": "native",
              "network": "Open",
              "resources": {
                "cpu": "500m",
                "memory": "64Mi"
              },
              "env": {
                "A": "flag",
                "B": "manifest"
              }
            },
            "timeout": "1m30s",
            "retry": {
              "lostAttempts": 7,
              "failures": 2,
              "backoff": {
                "initial": "1h",
                "max": "1h"
              }
            },
            "command": [
              "make"
            ]
          }
        }
        "#);
        check(&job).unwrap();
    }

    #[test]
    fn a_job_without_flags_says_nothing_but_its_command() {
        let mut job = job_of(vec!["ls".into(), "-l".into()], "default");
        JobArgs::default().apply_to(&mut job);
        insta::assert_json_snapshot!(job, @r#"
        {
          "apiVersion": "windlass.dev/v1alpha1",
          "kind": "SandboxJob",
          "metadata": {
            "generateName": "ls-",
            "namespace": "default"
          },
          "spec": {
            "queue": "default",
            "priority": "normal",
            "command": [
              "ls",
              "-l"
            ]
          }
        }
        "#);
        check(&job).unwrap();
    }

    #[test]
    fn a_job_that_breaks_a_bound_is_refused_before_anything_is_sent() {
        let mut job = job_of(vec!["ls".into()], "default");
        job.spec.queue = "Not A Queue".into();
        let Err(Failure::Report(report)) = check(&job) else { panic!("it is refused") };
        assert_eq!(report.exit, Exit::Invalid);
        assert!(report.details[0].starts_with("spec.queue: "), "{report:?}");
        let mut job = job_of(vec!["ls".into()], "default");
        job.spec.sandbox.env.insert("WINDLASS_X".into(), "1".into());
        assert!(check(&job).is_err(), "a reserved name");
    }
}
