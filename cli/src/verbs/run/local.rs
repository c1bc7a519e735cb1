//! A job with a controller and a node of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use windlass_agent::Stop;
use windlass_controller::telemetry::TelemetryArgs;
use windlass_crds::SandboxJob;

use super::{Inputs, create, end};
use crate::artifacts::{Artifacts, Saving};
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::fleet::{Fleet, FleetSettings};
use crate::follow::{Follower, OnInterrupt};
use crate::interrupts::Interrupts;
use crate::settings::Resolved;
use crate::verbs::Context;

/// Runs a job with a controller and a node of its own, which leave nothing behind.
pub(super) async fn run_local(
    context: &Context,
    namespace: Resolved<String>,
    log: String,
    job: SandboxJob,
    inputs: Inputs<'_>,
    saving: Option<Saving<'_>>,
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
    let result = run_in(context, &mut interrupts, folder.path(), namespace, job, inputs, saving).await;
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
    saving: Option<Saving<'_>>,
) -> Result<Exit, Failure> {
    let settings = FleetSettings {
        state_dir: folder.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        name: Some("local".to_owned()),
        labels: Vec::new(),
        advertise_url: None,
        concurrency: None,
    };
    let fleet = Fleet::start(settings).await?;
    let result = run_on(context, interrupts, &fleet, namespace, job, inputs, saving).await;
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
    saving: Option<Saving<'_>>,
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
    let exit = follower.follow(interrupts).await?;
    let left = Artifacts { client: &client, console: context.console, namespace: &namespace, job: &name };
    end(exit, left, saving, false).await
}
