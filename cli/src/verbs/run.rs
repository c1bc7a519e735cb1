//! `windlass run`: a command or a manifest as a job, followed to its end.

mod job;
mod local;

use std::path::PathBuf;

use windlass_crds::SandboxJob;
use windlass_crds::manifest::Object;

use super::Context;
use crate::artifacts::{Artifacts, Existing, Saving};
use crate::client::Client;
use crate::clock;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow::{Follower, OnInterrupt};
use crate::inputs::{self, InputArg, Selection};
use crate::interrupts::Interrupts;
use crate::kind::Kind;
use crate::manifests::{self, ManifestArgs};
use crate::output::name;
use crate::settings::Settings;
use job::{JobArgs, check, job_of};

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

    /// When the job has ended, save what it has left as artifacts below this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "detach")]
    artifacts: Option<PathBuf>,

    /// Let `--artifacts` replace files that are in the folder already.
    #[arg(long, requires = "artifacts")]
    replace_artifacts: bool,

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

/// What the job is given from this machine.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    paths: &'a [InputArg],
    selection: &'a Selection,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args {
        command,
        filename,
        detach,
        follow: _,
        cancel_on_interrupt,
        local,
        artifacts,
        replace_artifacts,
        log,
        job: job_args,
    } = args;
    let existing = if replace_artifacts { Existing::Goes } else { Existing::Stays };
    let saving = artifacts.as_deref().map(|folder| Saving::at_the_end(folder, existing));
    let on_interrupt = if cancel_on_interrupt { OnInterrupt::Cancel } else { OnInterrupt::Leave };
    let settings = context.settings()?;
    let mut job = match filename {
        Some(file) => read_job(file, &settings)?,
        None => job_of(command, &settings.namespace.value),
    };
    job_args.apply_to(&mut job);
    check(&job)?;
    let selection = job_args.selection();
    let inputs = Inputs { paths: &job_args.input, selection: &selection };
    if local {
        return local::run_local(context, settings.namespace, log, job, inputs, saving).await;
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
    let exit = follower.follow(&mut Interrupts::catch()?).await?;
    let left = Artifacts { client: &client, console: context.console, namespace, job: name };
    end(exit, left, saving, true).await
}

/// The end of a job that was followed to its end: its artifacts are told of or saved.
async fn end(
    exit: Exit,
    left: Artifacts<'_>,
    saving: Option<Saving<'_>>,
    is_kept: bool,
) -> Result<Exit, Failure> {
    let told = left.after_the_end(saving, is_kept).await;
    match (exit, told) {
        // How the job ended counts more.
        (Exit::Success, told) => told,
        (exit, Ok(_)) => Ok(exit),
        (exit, Err(Failure::Report(report))) => {
            left.console.report(&report);
            Ok(exit)
        }
        (exit, Err(Failure::OutputClosed)) => Ok(exit),
    }
}

/// Uploads what the job is given and creates it; yields its namespace and name.
async fn create(
    context: &Context,
    client: &Client,
    mut job: SandboxJob,
    inputs: Inputs<'_>,
) -> Result<(String, String), Failure> {
    let uploaded = inputs::upload_all(client, context.console, inputs.paths, inputs.selection).await?;
    job.spec.workspace.inputs.extend(uploaded);
    let namespace = job.metadata.namespace.clone().unwrap_or_default();
    let created = client.create_job(&namespace, &job, &clock::unique()).await?;
    Ok((namespace, created.metadata.name))
}

/// The one job of a manifest.
fn read_job(file: PathBuf, settings: &Settings) -> Result<SandboxJob, Failure> {
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
