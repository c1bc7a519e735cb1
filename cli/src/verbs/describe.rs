//! `windlass describe`: everything about objects.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use windlass_crds::JobPhase;
use windlass_crds::conditions::Condition;

use super::Context;
use crate::client::model::{AttemptItem, EventItem, EventPage, Items, Job, Node, Placement, Queue, Template};
use crate::client::{Client, Error, Filter};
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::follow::why_queued;
use crate::kind::{self, Kind, Target, TargetParser};
use crate::output::human::{self, printable};
use crate::output::table::{self, Cell, Column, column, flexible};
use crate::output::yaml;
use crate::view;

/// How many events are shown, the last ones.
const EVENTS: usize = 20;
/// Events of one page.
const EVENT_PAGE: usize = 500;
/// Pages of events that are looked through for the last ones.
const EVENT_PAGES: usize = 20;

/// Show everything about objects, with what happened to them and why.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The kind of the objects, or `KIND/NAME`.
    #[arg(value_name = "KIND", value_parser = TargetParser)]
    kind: Target,

    /// The names of the objects.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let targets = kind::targets(&args.kind, &args.names)?;
    let (settings, client) = context.connect()?;
    let namespace = settings.namespace.value.as_str();
    let mut exit = Exit::Success;
    for (index, Target { kind, name }) in targets.iter().enumerate() {
        let name = name.as_deref().ok_or(kind::Error::NoName(*kind))?;
        let describer =
            Describer { client: &client, namespace, now: clock::now(), width: context.console.width() };
        let result = match kind {
            Kind::Job => describer.job(name).await,
            Kind::Node => describer.node(name).await,
            Kind::Template => describer.template(name).await,
            Kind::Queue => match describer.queue(name).await? {
                Some(text) => Ok(text),
                None => {
                    let report = Report::new(Exit::Failed, format!("there is no queue `{name}`"))
                        .hint("a queue is there as long as jobs name it");
                    context.console.report(&report);
                    exit = exit.worst(report.exit);
                    continue;
                }
            },
        };
        match result {
            Ok(text) => {
                let gap = if index > 0 { "\n" } else { "" };
                context.console.data(&format!("{gap}{text}"))?;
            }
            Err(error) => exit = exit.worst(super::tell_refusal(context, error)?),
        }
    }
    Ok(exit)
}

struct Describer<'a> {
    client: &'a Client,
    namespace: &'a str,
    now: Timestamp,
    width: Option<usize>,
}

impl Describer<'_> {
    async fn job(&self, name: &str) -> Result<String, Error> {
        let job: Job = self.client.get(Kind::Job, self.namespace, name).await?;
        let attempts: Items<AttemptItem> =
            self.client.job_detail(self.namespace, name, "attempts", &[]).await?;
        let events = self.events(Some(name), &[]).await?;
        let placement: Option<Placement> = match job.status.phase {
            JobPhase::Queued => Some(self.client.job_detail(self.namespace, name, "placement", &[]).await?),
            JobPhase::PendingApproval
            | JobPhase::Claimed
            | JobPhase::Running
            | JobPhase::Waiting
            | JobPhase::Succeeded
            | JobPhase::Failed
            | JobPhase::Cancelled
            | JobPhase::TimedOut => None,
        };
        let mut text = Text { now: self.now, width: self.width, text: String::new() };
        text.job(&job);
        if let Some(placement) = placement {
            text.section("Placement");
            text.text.push_str(&indented(&why_queued(&placement).text));
        }
        text.attempts(&attempts.items);
        text.conditions(&job.status.conditions);
        text.events(&events);
        Ok(text.text)
    }

    async fn node(&self, name: &str) -> Result<String, Error> {
        let node: Node = self.client.get(Kind::Node, self.namespace, name).await?;
        let events = self.events(None, &[("node", name.to_owned())]).await?;
        let mut text = Text { now: self.now, width: self.width, text: String::new() };
        text.node(&node);
        text.conditions(&node.status.conditions);
        text.events(&events);
        Ok(text.text)
    }

    async fn template(&self, name: &str) -> Result<String, Error> {
        let template: Template = self.client.get(Kind::Template, self.namespace, name).await?;
        let mut text = Text { now: self.now, width: self.width, text: String::new() };
        text.template(&template);
        Ok(text.text)
    }

    async fn queue(&self, name: &str) -> Result<Option<String>, Error> {
        let queues: Vec<Queue> = self.client.list(Kind::Queue, None, &Filter::default()).await?;
        Ok(queues.iter().find(|queue| queue.name == name).map(|queue| {
            let mut text = Text { now: self.now, width: self.width, text: String::new() };
            text.queue(queue);
            text.text
        }))
    }

    /// The last events of a job or of everything, the oldest first.
    async fn events(&self, job: Option<&str>, filter: &[(&str, String)]) -> Result<Vec<EventItem>, Error> {
        let mut events: Vec<EventItem> = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..EVENT_PAGES {
            let mut query = filter.to_vec();
            query.push(("limit", EVENT_PAGE.to_string()));
            query.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
            let page: EventPage = match job {
                Some(name) => self.client.job_detail(self.namespace, name, "events", &query).await?,
                None => self.client.events(&query).await?,
            };
            let is_last = page.items.len() < EVENT_PAGE;
            events.extend(page.items);
            let surplus = events.len().saturating_sub(EVENTS);
            events.drain(..surplus);
            if is_last || page.cursor.is_none() {
                break;
            }
            cursor = page.cursor;
        }
        Ok(events)
    }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut indented, line| {
        writeln!(indented, "  {line}").expect("writing to a string cannot fail");
        indented
    })
}

/// A description that grows.
struct Text {
    now: Timestamp,
    width: Option<usize>,
    text: String,
}

impl Text {
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

    fn job(&mut self, job: &Job) {
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
    }

    fn attempts(&mut self, attempts: &[AttemptItem]) {
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

    fn node(&mut self, node: &Node) {
        let Node { metadata, spec, status } = node;
        self.field("Name", Some(&metadata.name));
        self.labels("Labels", &status.labels);
        self.labels("Annotations", &metadata.annotations);
        self.field("Unschedulable", spec.unschedulable.then_some("yes"));
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
        if let Some(host) = &status.host {
            self.field("System", Some(format!("{} {} (kernel {})", host.os, host.arch, host.kernel)));
            self.field("Cpus", Some(host.cpus.to_string()));
            self.field("Memory", Some(human::bytes(host.memory_mib.saturating_mul(1024 * 1024))));
            self.field("GPUs", (host.gpus > 0).then(|| host.gpus.to_string()));
            self.field("Runtimes", Some(host.runtimes.join(", ")));
        }
        self.time("Last seen", status.last_seen_at);
        self.time("Created", metadata.creation_timestamp);
    }

    fn template(&mut self, template: &Template) {
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

    fn queue(&mut self, queue: &Queue) {
        let Queue { name, queued, delayed, running, waiting, dead, oldest_queued_at, priorities } = queue;
        self.field("Name", Some(name));
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

    fn conditions(&mut self, conditions: &[Condition]) {
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

    fn events(&mut self, events: &[EventItem]) {
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
