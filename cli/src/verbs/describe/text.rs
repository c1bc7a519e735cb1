//! A description, part by part.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use windlass_crds::conditions::Condition;
use windlass_crds::inference::InferenceStatus;
use windlass_crds::sandbox_job::StepStatus;

use super::refused::Refused;
use crate::artifacts;
use crate::client::model::{
    ArtifactItem, AttemptItem, EventItem, HistoryItem, Job, Node, Placement, Queue, Template,
};
use crate::follow::why_queued;
use crate::output::human::{self, printable};
use crate::output::table::{self, Cell, Column, column, flexible};
use crate::output::yaml;
use crate::view;

/// How many artifacts are shown.
const ARTIFACTS: usize = 20;
/// How many entries of a node's history are shown; the API has more.
const HISTORY: usize = 20;

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut indented, line| {
        writeln!(indented, "  {line}").expect("writing to a string cannot fail");
        indented
    })
}

/// A description that grows.
pub(super) struct Text {
    now: Timestamp,
    width: Option<usize>,
    text: String,
}

impl Text {
    /// An empty description.
    pub(super) fn new(now: Timestamp, width: Option<usize>) -> Self {
        Self { now, width, text: String::new() }
    }

    /// What was described.
    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Why a job waits.
    pub(super) fn placement(&mut self, placement: &Placement) {
        self.section("Placement");
        if let Some(ahead) = placement.queue_position {
            let more = if placement.queue_position_is_least { " or more" } else { "" };
            let line = format!("Position in queue {}: {ahead}{more} before it", printable(&placement.queue));
            self.text.push_str(&indented(&line));
        }
        self.text.push_str(&indented(&why_queued(placement).text));
    }

    fn section(&mut self, title: &str) {
        const BOLD: anstyle::Style = anstyle::Style::new().bold();
        writeln!(self.text, "\n{BOLD}{title}{BOLD:#}").expect("writing to a string cannot fail");
    }

    /// A line with a name and a value; nothing where there is no value.
    fn field(&mut self, name: &str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value
            && !value.as_ref().is_empty()
        {
            self.cell(name, &Cell::from(value));
        }
    }

    fn cell(&mut self, name: &str, value: &Cell) {
        let label = format!("{name}:");
        writeln!(self.text, "{label:<16}{}", value.rendered()).expect("writing to a string cannot fail");
    }

    fn time(&mut self, name: &str, at: Option<Timestamp>) {
        self.field(name, at.map(|at| format!("{at:.0} ({} ago)", human::age(self.now, at))));
    }

    fn labels(&mut self, name: &str, labels: &BTreeMap<String, String>) {
        self.field(name, (!labels.is_empty()).then(|| view::labels(labels)));
    }

    fn table(&mut self, title: &str, columns: &[Column], rows: &[Vec<Cell>]) {
        if rows.is_empty() {
            return;
        }
        self.section(title);
        let width = self.width.map(|width| width.saturating_sub(2));
        let table = table::format(columns, rows, width);
        self.text.push_str(&indented(&table));
    }

    /// A job: itself and its steps.
    pub(super) fn job(&mut self, job: &Job) {
        let Job { metadata, spec, status } = job;
        self.field("Name", Some(&metadata.name));
        self.field("Namespace", metadata.namespace.as_ref());
        self.field("Title", spec.title.as_ref());
        self.labels("Labels", &metadata.labels);
        self.labels("Annotations", &metadata.annotations);
        self.cell("Phase", &view::job::coloured(status.phase, status.phase.to_string()));
        self.field("Reason", status.reason.as_ref());
        self.field("Message", status.message.as_ref());
        self.field("Exit code", status.exit_code.map(|code| code.to_string()));
        self.field("Node", status.node.as_ref());
        self.field("Queue", spec.queue.as_ref().map(|queue| format!("{queue}, priority {}", spec.priority)));
        self.field("Suspended", spec.suspend.then_some("yes"));
        self.field("Cancelling", (spec.cancel && !status.phase.is_terminal()).then_some("yes"));
        self.labels("Node selector", &spec.node_selector);
        self.field("Timeout", spec.timeout.map(|timeout| timeout.to_string()));
        self.time("Created", metadata.creation_timestamp);
        self.field("Not before", status.not_before.map(|at| format!("{at:.0}")));
        self.time("Started", status.started_at);
        self.time("Finished", status.finished_at);
        self.field("Duration", view::job::duration(job, self.now));
        let unenforced: Vec<String> = status.unenforced.iter().map(ToString::to_string).collect();
        self.field("Not enforced", Some(unenforced.join(", ")));
        let incomplete = status.phase.is_terminal() && !status.logs_complete;
        self.field("Output", incomplete.then_some("not all of it has arrived"));
        for cut in view::job::cut_outputs(job) {
            self.field("Output", Some(cut));
        }
        let rows: Vec<Vec<Cell>> = status
            .steps
            .iter()
            .map(|step| {
                let ended = match (step.exit_code, step.signal) {
                    (Some(code), _) => code.to_string(),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => "-".to_owned(),
                };
                let duration = step.started_at.map_or_else(
                    || "-".to_owned(),
                    |from| human::duration(from, step.finished_at.unwrap_or(self.now)),
                );
                let why = [step.reason.as_deref(), step.message.as_deref()];
                let why: Vec<&str> = why.into_iter().flatten().filter(|text| !text.is_empty()).collect();
                vec![
                    Cell::from(&step.name),
                    view::job::step_phase(step.phase),
                    Cell::from(ended),
                    Cell::from(duration),
                    Cell::from(if why.is_empty() { "-".to_owned() } else { why.join(": ") }),
                ]
            })
            .collect();
        let columns = [column("NAME"), column("PHASE"), column("EXIT"), column("DURATION"), flexible("WHY")];
        self.table("Steps", &columns, &rows);
        self.usage(&status.steps);
    }

    /// What steps have used, where something was measured.
    fn usage(&mut self, steps: &[StepStatus]) {
        let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), human::bytes);
        let rows: Vec<Vec<Cell>> = steps
            .iter()
            .filter_map(|step| {
                let usage = step.usage.as_ref()?;
                let cpu = usage.cpu_ms?;
                Some(vec![
                    Cell::from(&step.name),
                    Cell::from(format!("{}.{:03}s", cpu / 1000, cpu % 1000)),
                    Cell::from(bytes(usage.memory_peak_bytes)),
                    Cell::from(usage.pids_peak.map_or_else(|| "-".to_owned(), |peak| peak.to_string())),
                    Cell::from(bytes(usage.io_read_bytes)),
                    Cell::from(bytes(usage.io_write_bytes)),
                ])
            })
            .collect();
        let columns = ["NAME", "CPU", "MEMORY-PEAK", "PIDS-PEAK", "DISK-READ", "DISK-WRITTEN"].map(column);
        self.table("Usage", &columns, &rows);
    }

    /// What a job's last attempt has left.
    pub(super) fn artifacts(&mut self, job: &Job, items: &[ArtifactItem]) {
        let rows: Vec<Vec<Cell>> = items.iter().take(ARTIFACTS).map(artifacts::row).collect();
        let earlier = items.first().filter(|item| item.epoch != job.status.epoch);
        let title = earlier.map_or_else(
            || "Artifacts".to_owned(),
            |item| format!("Artifacts of attempt {} (the last has left none)", item.attempt),
        );
        self.table(&title, &artifacts::COLUMNS, &rows);
        if items.len() > ARTIFACTS {
            let more = items.len() - ARTIFACTS;
            self.text
                .push_str(&indented(&format!("and {more} more: windlass artifacts {}", job.metadata.name)));
        }
    }

    /// A job's attempts.
    pub(super) fn attempts(&mut self, attempts: &[AttemptItem]) {
        let rows: Vec<Vec<Cell>> = attempts
            .iter()
            .map(|attempt| {
                let why = [attempt.reason.as_deref(), attempt.message.as_deref()];
                let why: Vec<&str> = why.into_iter().flatten().filter(|text| !text.is_empty()).collect();
                vec![
                    Cell::from(attempt.number.to_string()),
                    Cell::from(&attempt.node),
                    Cell::from(&attempt.phase),
                    Cell::from(attempt.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string())),
                    Cell::from(human::duration(attempt.claimed_at, attempt.ended_at.unwrap_or(self.now))),
                    Cell::from(human::age(self.now, attempt.claimed_at)),
                    Cell::from(if why.is_empty() { "-".to_owned() } else { why.join(": ") }),
                ]
            })
            .collect();
        let columns = [
            column("NUMBER"),
            column("NODE"),
            column("PHASE"),
            column("EXIT"),
            column("DURATION"),
            column("AGE"),
            flexible("WHY"),
        ];
        self.table("Attempts", &columns, &rows);
    }

    /// A node.
    pub(super) fn node(&mut self, node: &Node) {
        let Node { metadata, spec, status } = node;
        self.field("Name", Some(&metadata.name));
        self.labels("Labels", &status.labels);
        self.labels("Annotations", &metadata.annotations);
        self.field("State", Some(status.state.to_string()));
        self.field("Unschedulable", spec.unschedulable.then_some("yes, by its manifest"));
        self.field("Held", status.hold.as_ref().map(|hold| view::node::hold_text(hold, self.now)));
        self.field("Queues", Some(spec.queues.join(", ")));
        self.field("Jobs", Some(format!("{} of {}", status.running_jobs, status.slots)));
        let version =
            |version: Option<u64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        self.field(
            "Configuration",
            Some(format!(
                "{} wanted, {} acknowledged, {} in force",
                status.config_version,
                version(status.acknowledged_version),
                version(status.applied_version)
            )),
        );
        self.field("Agent", status.agent_version.as_ref());
        if let Some(dispatch) = &status.dispatch {
            self.field("Dispatch", Some(dispatch.mode.to_string()));
            self.field("Worker API", Some(dispatch.url.as_deref().unwrap_or("not served")));
            self.field("Certificate", dispatch.certificate.as_ref());
            self.time("Token issued", dispatch.token_issued_at);
            self.time("Delivered", dispatch.delivered_at);
            self.field("Dispatch error", dispatch.error.as_ref());
            self.time("Error since", dispatch.error_since);
        }
        if let Some(host) = &status.host {
            self.field("System", Some(format!("{} {} (kernel {})", host.os, host.arch, host.kernel)));
            self.field("Cpus", Some(host.cpus.to_string()));
            self.field("Memory", Some(human::bytes(host.memory_mib.saturating_mul(1024 * 1024))));
            let devices = host.devices.join(", ");
            let devices = if devices.is_empty() { String::new() } else { format!(": {devices}") };
            self.field("GPUs", (host.gpus > 0).then(|| format!("{}{devices}", host.gpus)));
            self.field("Runtimes", Some(host.runtimes.join(", ")));
            self.field("Engines", Some(host.engines.join(", ")));
            for lack in &host.lacks {
                self.field("Lacks", Some(lack));
            }
        }
        self.time("Last seen", status.last_seen_at);
        self.time("Created", metadata.creation_timestamp);
        if let Some(inference) = &status.inference {
            self.inference(inference);
        }
    }

    /// The server of models of a node.
    fn inference(&mut self, status: &InferenceStatus) {
        let InferenceStatus { engine, url, runtime, version, ready, reason, message, models } = status;
        self.section("Inference");
        let version = version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
        let place = runtime
            .as_ref()
            .map_or_else(|| "a server of others".to_owned(), |runtime| format!("by {runtime}"));
        let word = if *ready { "ready" } else { "not ready" };
        let lines = [
            format!(
                "{engine}{version}, {place}{}",
                if url.is_empty() { String::new() } else { format!(", at {url}") }
            ),
            format!("{word}: {reason}: {message}"),
        ];
        self.text.push_str(&indented(&lines.map(|line| printable(&line)).join("\n")));
        let rows: Vec<Vec<Cell>> = models
            .iter()
            .map(|model| {
                vec![
                    Cell::from(&model.name),
                    Cell::from(model.size.map_or_else(|| "-".to_owned(), human::bytes)),
                    Cell::from(model.digest.as_deref().unwrap_or("-")),
                ]
            })
            .collect();
        self.table("Models", &[flexible("NAME"), column("SIZE"), flexible("DIGEST")], &rows);
    }

    /// A template with its job.
    pub(super) fn template(&mut self, template: &Template) {
        let Template { metadata, spec } = template;
        self.field("Name", Some(&metadata.name));
        self.field("Namespace", metadata.namespace.as_ref());
        self.labels("Labels", &metadata.labels);
        self.field("Version", Some(&spec.version));
        self.time("Created", metadata.creation_timestamp);
        if let Some(description) = &spec.description {
            self.section("Description");
            let lines: Vec<String> = description.lines().map(printable).collect();
            self.text.push_str(&indented(&lines.join("\n")));
        }
        let rows: Vec<Vec<Cell>> = spec
            .parameters
            .iter()
            .map(|parameter| {
                vec![
                    Cell::from(&parameter.name),
                    Cell::from(parameter.parameter_type.as_deref().unwrap_or("string")),
                    Cell::from(if parameter.required { "yes" } else { "no" }),
                    Cell::from(
                        parameter.default.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    ),
                    Cell::from(parameter.description.as_deref().unwrap_or("-")),
                ]
            })
            .collect();
        let columns =
            [column("NAME"), column("TYPE"), column("REQUIRED"), column("DEFAULT"), flexible("DESCRIPTION")];
        self.table("Parameters", &columns, &rows);
        self.section("Job");
        let lines: Vec<String> = yaml::format(&spec.job).lines().map(printable).collect();
        self.text.push_str(&indented(&lines.join("\n")));
    }

    /// A queue with its priorities.
    pub(super) fn queue(&mut self, queue: &Queue) {
        let Queue {
            name,
            weight,
            concurrency,
            queued,
            delayed,
            running,
            waiting,
            dead,
            oldest_queued_at,
            priorities,
        } = queue;
        self.field("Name", Some(name));
        self.field("Weight", Some(weight.to_string()));
        self.field("Limit", concurrency.map(|limit| format!("{limit} running jobs")));
        self.field("Queued", Some(queued.to_string()));
        self.field("Delayed", Some(delayed.to_string()));
        self.field("Running", Some(running.to_string()));
        self.field("Waiting", Some(waiting.to_string()));
        self.field("Dead", Some(dead.to_string()));
        self.time("Oldest queued", *oldest_queued_at);
        let rows: Vec<Vec<Cell>> = priorities
            .iter()
            .map(|entry| {
                vec![
                    Cell::from(entry.priority.to_string()),
                    Cell::from(entry.queued.to_string()),
                    Cell::from(entry.running.to_string()),
                ]
            })
            .collect();
        self.table("Priorities", &[column("PRIORITY"), column("QUEUED"), column("RUNNING")], &rows);
    }

    /// The conditions of an object.
    pub(super) fn conditions(&mut self, conditions: &[Condition]) {
        let rows: Vec<Vec<Cell>> = conditions
            .iter()
            .map(|condition| {
                vec![
                    Cell::from(&condition.condition_type),
                    Cell::from(condition.status.to_string()),
                    Cell::from(&condition.reason),
                    Cell::from(human::age(self.now, condition.last_transition_time)),
                    Cell::from(if condition.message.is_empty() { "-" } else { &condition.message }),
                ]
            })
            .collect();
        let columns =
            [column("TYPE"), column("STATUS"), column("REASON"), column("SINCE"), flexible("MESSAGE")];
        self.table("Conditions", &columns, &rows);
    }

    /// The last of what happened to a node, the oldest first.
    pub(super) fn history(&mut self, newest_first: &[HistoryItem]) {
        let shown = newest_first.iter().take(HISTORY).rev();
        let rows: Vec<Vec<Cell>> = shown
            .map(|event| {
                let age = Cell::from(human::age(self.now, event.at));
                vec![age, Cell::from(&event.kind), Cell::from(&event.message)]
            })
            .collect();
        self.table("History", &[column("AGE"), column("KIND"), flexible("MESSAGE")], &rows);
    }

    /// What steps tried to reach and did not, with the rule that would let them.
    pub(super) fn refused(&mut self, refused: &Refused) {
        let rows: Vec<Vec<Cell>> = refused
            .attempts()
            .map(|attempts| {
                let whom = if attempts.host.is_empty() {
                    "-".to_owned()
                } else {
                    format!("{}:{}", attempts.host, attempts.port)
                };
                vec![
                    Cell::from(&attempts.step),
                    Cell::from(whom),
                    Cell::from(attempts.attempts.to_string()),
                    Cell::from(attempts.remedy.as_deref().unwrap_or("-")),
                    Cell::from(attempts.reason.as_deref().unwrap_or("-")),
                ]
            })
            .collect();
        let columns =
            [column("STEP"), column("HOST"), column("TIMES"), column("ALLOWED BY"), flexible("WHY NOT")];
        self.table("Not reached", &columns, &rows);
    }

    /// What happened.
    pub(super) fn events(&mut self, events: &[EventItem]) {
        let rows: Vec<Vec<Cell>> = events
            .iter()
            .map(|event| {
                let level = match event.level.as_str() {
                    "error" => Cell::bad(&event.level),
                    "warn" => Cell::notable(&event.level),
                    _ => Cell::from(&event.level),
                };
                let age = Cell::from(human::age(self.now, event.at));
                vec![age, level, Cell::from(&event.reason), Cell::from(&event.message)]
            })
            .collect();
        let columns = [column("AGE"), column("LEVEL"), column("REASON"), flexible("MESSAGE")];
        self.table("Events", &columns, &rows);
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::sandbox_job::StepUsage;

    use super::*;

    #[test]
    fn what_steps_used_is_shown_where_it_was_measured() {
        let usage = StepUsage {
            cpu_ms: Some(1250),
            memory_peak_bytes: Some(34 << 20),
            pids_peak: Some(7),
            io_read_bytes: Some(0),
            ..StepUsage::default()
        };
        let step = |name: &str, usage| StepStatus { name: name.to_owned(), usage, ..StepStatus::default() };
        let mut text = Text::new(Timestamp::UNIX_EPOCH, None);
        text.usage(&[
            step("build", Some(usage)),
            step("old", Some(StepUsage::default())),
            step("next", None),
        ]);
        let text = anstream::adapter::strip_str(&text.finish()).to_string();
        insta::assert_snapshot!(text, @r"

        Usage
          NAME   CPU     MEMORY-PEAK  PIDS-PEAK  DISK-READ  DISK-WRITTEN
          build  1.250s  34.00 MiB    7          0 B        -
        ");
    }
}
