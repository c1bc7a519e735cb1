//! `windlass doctor`: what this host can enforce, found by trying.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use windlass_sandbox::doctor::{self, Check, Outcome};
use windlass_sandbox::{Native, SandboxConfig};

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report, chain};
use crate::output::table::{self, Cell, column, flexible};
use crate::output::{PlainFormat, human, json, yaml};

/// How long the server may take.
const SERVER_BOUND: Duration = Duration::from_secs(5);
/// Free space below which an agent takes no work.
const LEAST_FREE: u64 = 256 * 1024 * 1024;

/// Try everything that this host must do to run jobs, and say what to do about each lack.
///
/// The command ends with 1 when something is missing without which jobs do not run here; what is only weaker is said,
/// and no failure. Nothing is changed and nothing is left behind.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Check this state folder of an agent. Without it `/var/lib/windlass/agent` for root, else
    /// `~/.local/state/windlass/agent`.
    #[arg(long, value_name = "PATH", env = "WINDLASS_AGENT_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: PlainFormat,
}

/// A check as it is printed.
#[derive(Serialize, Clone, Debug)]
struct Finding {
    id: String,
    title: String,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// How a check came out.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Weaker,
    Missing,
}

impl Finding {
    fn new(id: &str, title: &str, outcome: Outcome) -> Self {
        let (state, why, fix) = match outcome {
            Outcome::Ok => (State::Ok, None, None),
            Outcome::Degraded { why, fix } => (State::Weaker, Some(why), Some(fix)),
            Outcome::Missing { why, fix } => (State::Missing, Some(why), Some(fix)),
        };
        Self { id: id.to_owned(), title: title.to_owned(), state, why, fix }
    }
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let state_dir = match &args.state_dir {
        Some(path) => Some(path.clone()),
        None if rustix::process::geteuid().is_root() => Some(PathBuf::from("/var/lib/windlass/agent")),
        None => context.given.folders.state.as_ref().map(|folder| folder.join("windlass/agent")),
    };
    let mut findings = sandbox().await?;
    findings.push(Finding::new(
        "state-folder",
        "the agent's state folder",
        check_folder(state_dir.as_deref()),
    ));
    if let Some(outcome) = server(context).await? {
        findings.push(Finding::new("server", "the configured server", outcome));
    }
    match args.output {
        PlainFormat::Json => context.console.data(&json::format(&findings))?,
        PlainFormat::Yaml => context.console.data(&yaml::format(&findings))?,
        PlainFormat::Table => context.console.data(&text(&findings, context.console.width()))?,
    }
    let missing = findings.iter().filter(|finding| finding.state == State::Missing).count();
    context.console.note(match missing {
        0 => "This host can run jobs.".to_owned(),
        1 => "This host cannot run jobs: 1 thing is missing.".to_owned(),
        count => format!("This host cannot run jobs: {count} things are missing."),
    });
    Ok(if missing == 0 { Exit::Success } else { Exit::Failed })
}

/// Tries the sandbox in a folder of its own, which an agent that runs here does not notice.
async fn sandbox() -> Result<Vec<Finding>, Failure> {
    let made = |error: std::io::Error| {
        Failure::from(
            Report::new(Exit::Failed, "no temporary folder can be made to try the sandbox in")
                .detail(error.to_string())
                .hint("name another folder for temporary files by TMPDIR"),
        )
    };
    // Attempts run as users of their own, who must be able to pass through.
    let folder = tempfile::Builder::new()
        .prefix("windlass-doctor-")
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir()
        .map_err(made)?;
    let findings = match Native::open(SandboxConfig::new(folder.path())).await {
        Ok(driver) => doctor::run(&driver)
            .await
            .into_iter()
            .map(|Check { id, title, outcome }| Finding::new(id, title, outcome))
            .collect(),
        Err(error) => {
            let why = chain(&error);
            let fix = "mend what it names, then try again".to_owned();
            vec![Finding::new("sandbox", "the native sandbox", Outcome::Missing { why, fix })]
        }
    };
    folder.close().map_err(made)?;
    Ok(findings)
}

/// Whether an agent could keep its state in a folder.
fn check_folder(path: Option<&Path>) -> Outcome {
    let fix = "name a folder that this user can write: `windlass agent --state-dir PATH`".to_owned();
    let Some(path) = path else {
        return Outcome::Missing { why: "this user has no home folder to keep it in".to_owned(), fix };
    };
    // What is not there yet is made at the agent's first start, in the nearest folder that is there.
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        return Outcome::Missing { why: format!("{} is not a folder", existing.display()), fix };
    }
    if let Err(error) = tempfile::tempfile_in(existing) {
        return Outcome::Missing { why: format!("{} cannot be written: {error}", existing.display()), fix };
    }
    match rustix::fs::statvfs(existing) {
        Ok(space) if space.f_bavail.saturating_mul(space.f_frsize) < LEAST_FREE => Outcome::Missing {
            why: format!(
                "{} has {} free, and an agent takes no work below {}",
                existing.display(),
                human::bytes(space.f_bavail.saturating_mul(space.f_frsize)),
                human::bytes(LEAST_FREE)
            ),
            fix: "free space there, or name another folder by `--state-dir PATH`".to_owned(),
        },
        Ok(_) => Outcome::Ok,
        Err(error) => Outcome::Degraded {
            why: format!("the free space of {} cannot be read: {error}", existing.display()),
            fix: "look at its file system".to_owned(),
        },
    }
}

/// Whether the configured server answers; `None` where none is configured. Jobs can run here without it.
async fn server(context: &Context) -> Result<Option<Outcome>, Failure> {
    if context.settings()?.server.is_none() {
        return Ok(None);
    }
    let asked = async {
        let (_, client) = context.connect()?;
        client.join_tokens().await.map_err(Failure::from)
    };
    let report = match tokio::time::timeout(SERVER_BOUND, asked).await {
        Ok(Ok(_)) => return Ok(Some(Outcome::Ok)),
        Ok(Err(Failure::Report(report))) => report,
        Ok(Err(Failure::OutputClosed)) => return Err(Failure::OutputClosed),
        Err(_) => {
            Report::new(Exit::Unreachable, format!("it did not answer for {} s", SERVER_BOUND.as_secs()))
        }
    };
    let why = std::iter::once(report.what).chain(report.details).collect::<Vec<_>>().join(": ");
    let fix =
        report.hint.unwrap_or_else(|| "`windlass config` shows where its address comes from".to_owned());
    Ok(Some(Outcome::Degraded { why, fix }))
}

/// The findings for people: a table, then what to do.
fn text(findings: &[Finding], width: Option<usize>) -> String {
    let rows: Vec<Vec<Cell>> = findings
        .iter()
        .map(|finding| {
            let state = match finding.state {
                State::Ok => Cell::good("ok"),
                State::Weaker => Cell::notable("weaker"),
                State::Missing => Cell::bad("missing"),
            };
            vec![state, Cell::from(&finding.title), Cell::from(finding.why.as_deref().unwrap_or("-"))]
        })
        .collect();
    let mut text = table::format(&[column("STATE"), column("CHECK"), flexible("WHY")], &rows, width);
    // A fix is often the same for several lacks, and is said once.
    let mut fixes: Vec<(&str, Vec<&str>)> = Vec::new();
    for finding in findings {
        let Some(fix) = finding.fix.as_deref() else { continue };
        match fixes.iter_mut().find(|(known, _)| *known == fix) {
            Some((_, titles)) => titles.push(&finding.title),
            None => fixes.push((fix, vec![&finding.title])),
        }
    }
    if !fixes.is_empty() {
        text.push_str("\nWhat to do:\n");
    }
    for (fix, titles) in fixes {
        text.push_str(&format!("  for {}:\n    {}\n", titles.join(", "), human::printable(fix)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_with_each_fix_once() {
        let fix = || "run the agent as root".to_owned();
        let findings = [
            Finding::new("run", "a program in the sandbox", Outcome::Ok),
            Finding::new("a", "cpu limit", Outcome::Degraded { why: "not writable".into(), fix: fix() }),
            Finding::new("b", "memory limit", Outcome::Degraded { why: "not writable".into(), fix: fix() }),
            Finding::new(
                "c",
                "seccomp",
                Outcome::Missing { why: "ENOSYS".into(), fix: "another kernel".into() },
            ),
        ];
        let text = anstream::adapter::strip_str(&text(&findings, None)).to_string();
        insta::assert_snapshot!(text, @r"
        STATE    CHECK                     WHY
        ok       a program in the sandbox  -
        weaker   cpu limit                 not writable
        weaker   memory limit              not writable
        missing  seccomp                   ENOSYS

        What to do:
          for cpu limit, memory limit:
            run the agent as root
          for seccomp:
            another kernel
        ");
    }

    #[test]
    fn a_state_folder_that_is_not_there_yet_is_judged_by_where_it_would_be() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check_folder(Some(&folder.path().join("not/yet"))), Outcome::Ok);
        assert!(!folder.path().join("not").exists(), "nothing is made");
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(check_folder(Some(&file.join("below"))), Outcome::Missing { .. }));
        assert!(matches!(check_folder(Some(Path::new("/proc/windlass"))), Outcome::Missing { .. }));
        assert!(matches!(check_folder(None), Outcome::Missing { .. }));
    }
}
