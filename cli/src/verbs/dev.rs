//! `windlass dev`: a whole fleet on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use url::Url;
use windlass_agent::Stop;
use windlass_controller::telemetry::TelemetryArgs;

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::fleet::{Fleet, FleetSettings};
use crate::interrupts::Interrupts;
use crate::settings::dev_file::DevFile;
use crate::settings::folders::Folders;

/// Where root keeps its state.
const ROOT_STATE: &str = "/var/lib/windlass/dev";

/// Run a controller and a node in this process, for work on this machine.
///
/// The other verbs find it by themselves while it runs, unless another server is configured. What it keeps stays in its
/// state folder until the next start. Ctrl-C drains: running jobs go on to their end; a second one cancels them.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Keep everything in this folder. Without it `/var/lib/windlass/dev` for root, else
    /// `$XDG_DATA_HOME/windlass/dev`.
    #[arg(long, value_name = "PATH", env = "WINDLASS_DEV_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// Listen on this address; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:12082", env = "WINDLASS_LISTEN")]
    listen: SocketAddr,

    /// Give nodes this URL to come to. Without it the address that is listened on; where that is all of them, the one of
    /// this host that leads to the others.
    #[arg(long, value_name = "URL", env = "WINDLASS_ADVERTISE_URL")]
    advertise_url: Option<Url>,

    /// Name the node; without it it is named after the host.
    #[arg(long, value_name = "NAME", env = "WINDLASS_NODE_NAME")]
    name: Option<String>,

    /// Run at most this many jobs at once; without it one for each core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Option<u32>,

    /// Log this: a level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as
    /// `windlass_controller=debug`.
    #[arg(long, value_name = "FILTER", default_value = "warn", env = "WINDLASS_LOG")]
    log: String,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args { state_dir, listen, advertise_url, name, concurrency, log } = args;
    let telemetry = TelemetryArgs { log, log_format: None };
    telemetry.init().map_err(|error| Report::new(Exit::Usage, error.to_string()).causes(&error))?;
    let state_dir = match state_dir {
        Some(path) => path,
        None => default_state_dir(&context.given.folders, rustix::process::geteuid().is_root())?,
    };
    let mut interrupts = Interrupts::catch()?;
    context.console.note("Starting a controller and a node…");
    let settings = FleetSettings {
        state_dir: state_dir.clone(),
        listen,
        advertise_url,
        name,
        labels: Vec::new(),
        concurrency,
    };
    let mut fleet = Fleet::start(settings).await.map_err(|failure| name_other(context, failure))?;
    let published = Published::write(context, &fleet)?;
    greet(context, &fleet, &state_dir, published.is_some())?;
    let exit = follow(context, &mut fleet, &mut interrupts).await;
    drop(published);
    match exit {
        // A third interrupt waits for nothing more; what runs is left to its supervisor and its lease.
        None => Ok(Exit::Interrupted),
        Some(exit) => fleet.end().await.map(|()| exit),
    }
}

/// Where everything is kept without a flag.
fn default_state_dir(folders: &Folders, is_root: bool) -> Result<PathBuf, Failure> {
    if is_root {
        return Ok(ROOT_STATE.into());
    }
    folders.data.as_ref().map(|data| data.join("windlass/dev")).ok_or_else(|| {
        Report::new(Exit::Usage, "there is no home folder to keep state in")
            .hint("name a folder: `--state-dir PATH`")
            .into()
    })
}

/// Adds to a failure that another `windlass dev` may be its cause, where one has left its file.
fn name_other(context: &Context, failure: Failure) -> Failure {
    match (failure, DevFile::find(&context.given.folders)) {
        (Failure::Report(report), Ok(Some((_, other)))) => report
            .hint(format!(
                "a `windlass dev` with the process id {} may be running already at {}: stop it, or give this one its own \
                 `--state-dir` and `--listen`",
                other.pid, other.server
            ))
            .into(),
        (failure, Ok(Some(_) | None) | Err(_)) => failure,
    }
}

/// Waits for the end; `None` where not even the end is waited for.
async fn follow(context: &Context, fleet: &mut Fleet, interrupts: &mut Interrupts) -> Option<Exit> {
    let steps = [
        (
            Stop::Drain,
            Exit::Success,
            "Draining: running jobs go on to their end; interrupt again to cancel them.",
        ),
        (Stop::Cancel, Exit::Interrupted, "Cancelling the running jobs; interrupt again to leave at once."),
    ];
    let mut exit = Exit::Success;
    for (how, then, message) in steps {
        // Both are cancel-safe.
        tokio::select! {
            () = fleet.ended() => return Some(exit),
            () = interrupts.next() => {}
        }
        context.console.note(message);
        fleet.stop_agent(how);
        exit = then;
    }
    tokio::select! {
        () = fleet.ended() => Some(exit),
        () = interrupts.next() => None,
    }
}

/// Says where everything is and what to type next.
fn greet(context: &Context, fleet: &Fleet, state_dir: &std::path::Path, found: bool) -> Result<(), Failure> {
    const BOLD: anstyle::Style = anstyle::Style::new().bold();
    let flags = if found {
        String::new()
    } else {
        format!(
            " --server {} --ca-file {} --token-file {}",
            fleet.url,
            fleet.ca_file.display(),
            fleet.token_file.display()
        )
    };
    context.console.line(format!("{BOLD}{}{BOLD:#}  node {BOLD}{}{BOLD:#}", fleet.url, fleet.node))?;
    context
        .console
        .note(format!("State is kept in {}. What to type next, in another terminal:", state_dir.display()));
    context.console.note(format!("  windlass run{flags} -- echo hello"));
    context.console.note(format!("  windlass get jobs{flags}"));
    context.console.note(format!("  windlass join-token create{flags}"));
    Ok(())
}

/// The file by which other invocations find this one, for as long as this lives.
struct Published<'a> {
    context: &'a Context,
    path: PathBuf,
    file: DevFile,
}

impl<'a> Published<'a> {
    /// Writes the file. Without a place for it the fleet works all the same, but must be named by flags.
    fn write(context: &'a Context, fleet: &Fleet) -> Result<Option<Self>, Failure> {
        let Some(path) = DevFile::path(&context.given.folders) else { return Ok(None) };
        let file = DevFile {
            server: fleet.url.clone(),
            ca_file: fleet.ca_file.clone(),
            token_file: fleet.token_file.clone(),
            pid: std::process::id(),
        };
        match file.write(&path) {
            Ok(()) => Ok(Some(Self { context, path, file })),
            Err(error) => {
                context.console.warn(format!(
                    "other invocations cannot find this server by themselves, because {} cannot be written: {error}",
                    path.display()
                ));
                Ok(None)
            }
        }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.file.remove(&self.path) {
            self.context.console.warn(format!("{} cannot be removed: {error}", self.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_where_the_user_may_write() {
        let folders = Folders::new(None, Some("/data".into()), None, None);
        assert_eq!(default_state_dir(&folders, true).unwrap(), PathBuf::from(ROOT_STATE));
        assert_eq!(default_state_dir(&folders, false).unwrap(), PathBuf::from("/data/windlass/dev"));
        assert!(default_state_dir(&Folders::default(), false).is_err());
    }
}
