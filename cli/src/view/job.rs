//! How jobs look.

use jiff::Timestamp;
use windlass_crds::JobPhase;
use windlass_crds::sandbox_job::{StepPhase, StepStatus};

use super::{Width, age_or_dash, or_dash};
use crate::client::model::Job;
use crate::output::human;
use crate::output::table::{Cell, Column, column, flexible};

/// Which outputs of a job were cut, a sentence each.
pub(crate) fn cut_outputs(job: &Job) -> Vec<String> {
    let of_step = |step: &StepStatus| {
        let usage = step.usage.clone().unwrap_or_default();
        let streams = [
            ("standard output", usage.stdout_truncated, usage.stdout_bytes),
            ("standard error", usage.stderr_truncated, usage.stderr_bytes),
        ];
        let name = human::printable(&step.name);
        streams.into_iter().filter(|(_, cut, _)| *cut).map(move |(stream, _, bytes)| {
            format!(
                "the {stream} of step `{name}` was cut: it wrote {}, more than the node keeps (sandbox.outputCap of its \
                 NodeConfig)",
                human::bytes(bytes)
            )
        }).collect::<Vec<_>>()
    };
    job.status.steps.iter().flat_map(of_step).collect()
}

pub(super) fn columns(width: Width) -> Vec<Column> {
    let mut columns = Vec::new();
    if width.namespaces {
        columns.push(column("NAMESPACE"));
    }
    columns.extend([
        column("NAME").with_room(20),
        column("QUEUE").with_room(8),
        column("PHASE").with_room("Claimed (cancelling)".len()),
        column("NODE").with_room(12),
        column("EXIT"),
        column("DURATION"),
        column("AGE").with_room(4),
    ]);
    if width.wide {
        columns.extend([column("PRIORITY"), column("ATTEMPTS"), flexible("REASON"), flexible("TITLE")]);
    }
    columns
}

pub(super) fn row(job: &Job, width: Width, now: Timestamp) -> Vec<Cell> {
    let Job { metadata, spec, status } = job;
    let mut cells = Vec::new();
    if width.namespaces {
        cells.push(or_dash(metadata.namespace.as_deref()));
    }
    cells.extend([
        Cell::from(&metadata.name),
        or_dash(spec.queue.as_deref()),
        phase_cell(job),
        or_dash(status.node.as_deref()),
        Cell::from(status.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string())),
        Cell::from(duration(job, now).unwrap_or_else(|| "-".to_owned())),
        Cell::from(age_or_dash(now, metadata.creation_timestamp)),
    ]);
    if width.wide {
        cells.extend([
            Cell::from(spec.priority.to_string()),
            Cell::from(status.attempts.to_string()),
            or_dash(status.reason.as_deref()),
            or_dash(spec.title.as_deref()),
        ]);
    }
    cells
}

/// The phase, with what a person would otherwise wonder about.
fn phase_cell(job: &Job) -> Cell {
    let phase = job.status.phase;
    let word = match phase {
        JobPhase::Queued if job.spec.suspend => "Queued (suspended)".to_owned(),
        JobPhase::Claimed | JobPhase::Running | JobPhase::Waiting if job.spec.cancel => {
            format!("{phase} (cancelling)")
        }
        JobPhase::PendingApproval
        | JobPhase::Queued
        | JobPhase::Claimed
        | JobPhase::Running
        | JobPhase::Waiting
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::TimedOut => phase.to_string(),
    };
    coloured(phase, word)
}

/// A text in the colour of a phase.
pub(crate) fn coloured(phase: JobPhase, text: impl AsRef<str>) -> Cell {
    match phase {
        JobPhase::PendingApproval | JobPhase::Waiting | JobPhase::Cancelled => Cell::notable(text),
        JobPhase::Queued => Cell::from(text),
        JobPhase::Claimed | JobPhase::Running => Cell::active(text),
        JobPhase::Succeeded => Cell::good(text),
        JobPhase::Failed | JobPhase::TimedOut => Cell::bad(text),
    }
}

/// The phase of a step in its colour.
pub(crate) fn step_phase(phase: StepPhase) -> Cell {
    match phase {
        StepPhase::Pending | StepPhase::Skipped => Cell::from(phase.to_string()),
        StepPhase::Running => Cell::active(phase.to_string()),
        StepPhase::Succeeded => Cell::good(phase.to_string()),
        StepPhase::Failed => Cell::bad(phase.to_string()),
    }
}

/// How long the current or last attempt has run.
pub(crate) fn duration(job: &Job, now: Timestamp) -> Option<String> {
    let from = job.status.started_at?;
    Some(human::duration(from, job.status.finished_at.unwrap_or(now)))
}
