//! `windlass run`: a command or a manifest as a job, followed to its end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use windlass_agent::Stop;
use windlass_controller::telemetry::TelemetryArgs;
use windlass_core::validate::validate_job;
use windlass_crds::manifest::{self, Object};
use windlass_crds::sandbox_job::{Backoff, Network};
use windlass_crds::{Bytes, Cpu, Priority, SandboxJob, SandboxJobSpec, Span};

use super::Context;
use crate::client::Client;
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::fleet::{Fleet, FleetSettings};
use crate::follow::{Follower, OnInterrupt};
use crate::inputs::{self, InputArg};
use crate::interrupts::Interrupts;
use crate::kind::Kind;
use crate::manifests::{self, ManifestArgs};
use crate::output::name;
use crate::settings::Resolved;

/// Run a command or a manifest as a job, and follow it to its end.
///
/// The job's standard output and standard error become those of this command, byte for byte, and its exit code becomes
/// that of this command. Interrupting (Ctrl-C) stops following and leaves the job running, unless
/// `--cancel-on-interrupt` is given.
#[derive(clap::Args, Debug)]
#[command(after_long_help = crate::exit::HELP)]
pub(crate) struct Args {
    /// The command and its arguments, run without a shell.
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        conflicts_with = "filename",
        required_unless_present = "filename"
    )]
    command: Vec<String>,

    /// Run the job of this manifest; `-` is standard input.
    #[arg(short, long, value_name = "FILE|-")]
    filename: Option<PathBuf>,

    /// Give the job to the server and return at once, printing `job/NAME`.
    #[arg(long, conflicts_with = "follow")]
    detach: bool,

    /// Follow the job to its end. This is the default.
    #[arg(long)]
    follow: bool,

    /// Cancel the job when this command is interrupted, and wait until it has stopped. This is so by itself with
    /// `--local`.
    #[arg(long, conflicts_with = "detach")]
    cancel_on_interrupt: bool,

    /// Run the job on this machine, with a controller and a node that live in this process and end with the job. No
    /// server is needed, and nothing is kept.
    #[arg(long, conflicts_with = "detach")]
    local: bool,

    /// Log the controller and the node of `--local` like this, such as `info`.
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "error",
        env = "WINDLASS_LOG",
        hide_env_values = true
    )]
    log: String,

    #[command(flatten)]
    job: JobArgs,
}

/// What the job is to be; with `--filename` these win over the manifest.
#[derive(clap::Args, Debug, Default)]
#[command(next_help_heading = "Job")]
struct JobArgs {
    /// Name the job; without it a name is made of the command's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Give the job this label. The flag may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    label: Vec<(String, String)>,

    /// Place a folder, an archive or a file in the workspace, at `input` or at DEST. A folder is packed whole, hidden
    /// files and `.git` included; a `.tar`, `.tar.gz` or `.tgz` is unpacked. What the server has already is not sent
    /// again. The flag may be given more than once.
    #[arg(long, value_name = "[DEST=]PATH")]
    input: Vec<InputArg>,

    /// Leave this out of the folders of `--input`: a path below the folder, or a name wherever it occurs. The flag may be
    /// given more than once.
    #[arg(long, value_name = "NAME", requires = "input")]
    exclude: Vec<PathBuf>,

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

    /// Let the steps reach this much of the network: `None`, `Restricted` or `Open`.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    network: Option<Network>,

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

/// What the job is given from this machine.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    paths: &'a [InputArg],
    exclude: &'a [PathBuf],
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

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args { command, filename, detach, follow: _, cancel_on_interrupt, local, log, job: job_args } = args;
    let on_interrupt = if cancel_on_interrupt { OnInterrupt::Cancel } else { OnInterrupt::Leave };
    let settings = context.settings()?;
    let mut job = match filename {
        Some(file) => read_job(file, &settings)?,
        None => job_of(command, &settings.namespace.value),
    };
    job_args.apply_to(&mut job);
    check(&job)?;
    let inputs = Inputs { paths: &job_args.input, exclude: &job_args.exclude };
    if local {
        return run_local(context, settings.namespace, log, job, inputs).await;
    }
    let (_, client) = context.connect()?;
    let job = create(context, &client, job, inputs).await?;
    if detach {
        context.console.line(name::format(Kind::Job, &job.1))?;
        return Ok(Exit::Success);
    }
    let (namespace, name) = &job;
    context.console.note(format!("job/{name} created"));
    let follower = Follower {
        client: &client,
        console: context.console,
        namespace,
        name,
        on_interrupt,
        fleet_is_closed: false,
    };
    follower.follow(&mut Interrupts::catch()?).await
}

/// Runs a job with a controller and a node of its own, which leave nothing behind.
async fn run_local(
    context: &Context,
    namespace: Resolved<String>,
    log: String,
    job: SandboxJob,
    inputs: Inputs<'_>,
) -> Result<Exit, Failure> {
    let telemetry = TelemetryArgs { log, log_format: None };
    telemetry.init().map_err(|error| Report::new(Exit::Usage, error.to_string()).causes(&error))?;
    // From here on an interrupt must not end the process before the job has ended and the folder is gone.
    let mut interrupts = Interrupts::catch()?;
    // Attempts run as users of their own, who must be able to pass through.
    let folder = tempfile::Builder::new()
        .prefix("windlass-run-")
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .map_err(|error| {
            Report::new(Exit::Failed, "no temporary folder can be made for the job")
                .detail(error.to_string())
                .hint("name another folder for temporary files by TMPDIR")
        })?;
    let result = run_in(context, &mut interrupts, folder.path(), namespace, job, inputs).await;
    if let Err(error) = folder.close() {
        context.console.warn(format!("the temporary folder cannot be removed: {error}"));
    }
    result
}

/// Runs a job with a controller and a node that keep their state in a folder.
async fn run_in(
    context: &Context,
    interrupts: &mut Interrupts,
    folder: &Path,
    namespace: Resolved<String>,
    job: SandboxJob,
    inputs: Inputs<'_>,
) -> Result<Exit, Failure> {
    let settings = FleetSettings {
        state_dir: folder.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        name: Some("local".to_owned()),
        labels: Vec::new(),
        concurrency: None,
    };
    let fleet = Fleet::start(settings).await?;
    let result = run_on(context, interrupts, &fleet, namespace, job, inputs).await;
    // The job has ended, or nobody waits for it any more.
    fleet.stop_agent(Stop::Cancel);
    let ended = fleet.end().await;
    let exit = result?;
    ended.map(|()| exit)
}

async fn run_on(
    context: &Context,
    interrupts: &mut Interrupts,
    fleet: &Fleet,
    namespace: Resolved<String>,
    job: SandboxJob,
    inputs: Inputs<'_>,
) -> Result<Exit, Failure> {
    let client = Client::new(&fleet.client_settings(namespace)?)?;
    // Both are cancel-safe in that nothing is used of them after an interrupt.
    let (namespace, name) = tokio::select! {
        created = create(context, &client, job, inputs) => created?,
        () = interrupts.next() => return Ok(Exit::Interrupted),
    };
    let follower = Follower {
        client: &client,
        console: context.console,
        namespace: &namespace,
        name: &name,
        on_interrupt: OnInterrupt::Cancel,
        fleet_is_closed: true,
    };
    follower.follow(interrupts).await
}

/// Uploads what the job is given and creates it; yields its namespace and name.
async fn create(
    context: &Context,
    client: &Client,
    mut job: SandboxJob,
    inputs: Inputs<'_>,
) -> Result<(String, String), Failure> {
    let uploaded = inputs::upload_all(client, context.console, inputs.paths, inputs.exclude).await?;
    job.spec.workspace.inputs.extend(uploaded);
    let namespace = job.metadata.namespace.clone().unwrap_or_default();
    let created = client.create_job(&namespace, &job, &clock::unique()).await?;
    Ok((namespace, created.metadata.name))
}

/// The one job of a manifest.
fn read_job(file: PathBuf, settings: &crate::settings::Settings) -> Result<SandboxJob, Failure> {
    let args = ManifestArgs { files: vec![file], recursive: false };
    let mut documents = manifests::load(&args)?;
    let count = documents.len();
    let first = documents.remove(0);
    let refuse = |message: String| {
        let error = windlass_crds::protocol::FieldError { field: "kind".to_owned(), message };
        Err(manifests::refuse(vec![first.locate(&error)]))
    };
    if count > 1 {
        return refuse(format!(
            "`run` takes one job, but there are {count} manifests; `windlass apply` takes many"
        ));
    }
    let namespace =
        manifests::namespace_of(&first, settings).map_err(|error| manifests::refuse(vec![error]))?;
    match first.object.clone() {
        Object::Job(mut job) => {
            job.metadata.namespace = Some(namespace);
            Ok(*job)
        }
        Object::Node(_) | Object::Template(_) => {
            refuse(format!("`run` takes a job, not a {}; `windlass apply` takes it", first.object.kind()))
        }
    }
}

/// A job of one command.
fn job_of(command: Vec<String>, namespace: &str) -> SandboxJob {
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
fn check(job: &SandboxJob) -> Result<(), Failure> {
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
    /// Sets what was given on the command line.
    fn apply_to(&self, job: &mut SandboxJob) {
        let Self {
            name,
            label,
            input: _,
            exclude: _,
            queue,
            priority,
            selector,
            cpu,
            memory,
            timeout,
            env,
            network,
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
        spec.sandbox.network = network.unwrap_or(spec.sandbox.network);
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
