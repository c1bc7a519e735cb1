//! `windlass get`: lists of objects, once or as they change.

mod watch;

use serde_json::{Value, json};
use windlass_crds::{API_VERSION, JobPhase};

use super::Context;
use crate::client::{Client, Filter};
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{self, Kind, Target, TargetParser};
use crate::output::table::{self, Cell};
use crate::output::{Format, json, name, yaml};
use crate::view::{self, Width};

/// List objects, or show the named ones.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The kind of objects, or `KIND/NAME` for one of them. Short words are known too: `no`, `sj`, `jt`, `q`.
    #[arg(value_name = "KIND", value_parser = TargetParser)]
    kind: Target,

    /// The names of objects; without any, all are listed.
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Print in this form.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: Format,

    /// Keep watching, and print each object again when it changes.
    #[arg(short, long)]
    watch: bool,

    /// List the objects of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// List only objects that carry these labels, written as `key=value,key2=value2`.
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = parse_selector)]
    selector: Option<Selector>,

    /// List only jobs of this queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// List only jobs in these phases, separated by commas.
    #[arg(long, value_name = "PHASE", value_delimiter = ',', value_parser = parse_phase)]
    phase: Vec<JobPhase>,
}

/// Labels that an object must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector(Vec<(String, String)>);

impl Selector {
    fn text(&self) -> String {
        self.0.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    /// Whether an object carries the labels, in its metadata or in what its agent reports.
    fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(key, value)| {
            ["/metadata/labels", "/status/labels"]
                .iter()
                .any(|place| object.pointer(place).and_then(|labels| labels.get(key)) == Some(&json!(value)))
        })
    }
}

fn parse_selector(text: &str) -> Result<Selector, String> {
    text.split(',')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok((key.to_owned(), value.trim_start_matches('=').to_owned()))
            }
            Some(_) | None => Err(format!("`{pair}` is not a label: write `key=value`")),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Selector)
}

/// Reads a phase in any case.
pub(crate) fn parse_phase(text: &str) -> Result<JobPhase, String> {
    use strum::IntoEnumIterator as _;
    JobPhase::iter().find(|phase| phase.to_string().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let known: Vec<String> = JobPhase::iter().map(|phase| phase.to_string()).collect();
        format!("the phases are {}", known.join(", "))
    })
}

/// What is asked for, after the command line made sense.
struct Query {
    kind: Kind,
    names: Vec<String>,
    /// `None` for all namespaces.
    namespace: Option<String>,
    filter: Filter,
    /// Labels that the server does not select by for this kind.
    selector: Option<Selector>,
    width: Width,
    output: Format,
}

pub(crate) async fn perform(context: &Context, args: Args) -> Result<Exit, Failure> {
    let Args { kind, names, output, watch, all_namespaces, selector, queue, phase } = args;
    let targets = kind::targets(&kind, &names)?;
    let usage = |what: &str| Failure::from(Report::new(Exit::Usage, what));
    if kind.kind != Kind::Job && (queue.is_some() || !phase.is_empty()) {
        return Err(usage("only jobs have a queue and a phase, so that --queue and --phase go with `jobs`"));
    }
    if watch && matches!(kind.kind, Kind::Queue | Kind::Template) {
        return Err(usage("only jobs and nodes can be watched"));
    }
    if selector.is_some() && kind.kind == Kind::Queue {
        return Err(usage("queues have no labels to select them by"));
    }
    let all_one_kind = targets.iter().all(|target| target.kind == kind.kind);
    if watch && !all_one_kind {
        return Err(usage("only objects of one kind can be watched at once"));
    }
    let (settings, client) = context.connect()?;
    let phase = phase.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut kinds: Vec<Kind> = Vec::new();
    for target in &targets {
        if !kinds.contains(&target.kind) {
            kinds.push(target.kind);
        }
    }
    let mut exit = Exit::Success;
    for (index, kind) in kinds.iter().copied().enumerate() {
        let names: Vec<String> = targets
            .iter()
            .filter(|target| target.kind == kind)
            .filter_map(|target| target.name.clone())
            .collect();
        let query = Query {
            kind,
            namespace: (!all_namespaces).then(|| settings.namespace.value.clone()),
            filter: Filter {
                queue: queue.clone(),
                phase: Some(phase.clone()).filter(|phase| !phase.is_empty()),
                selector: selector.as_ref().filter(|_| kind == Kind::Job).map(Selector::text),
                name: match names.as_slice() {
                    [name] if kind == Kind::Job => Some(name.clone()),
                    _ => None,
                },
            },
            names,
            selector: selector.clone().filter(|_| kind != Kind::Job),
            width: Width { wide: output == Format::Wide, namespaces: all_namespaces },
            output,
        };
        if index > 0 && matches!(output, Format::Table | Format::Wide) {
            context.console.line("")?;
        }
        let end =
            if watch { query.watch(context, &client).await } else { query.list(context, &client).await };
        exit = exit.worst(end?);
    }
    Ok(exit)
}

impl Query {
    async fn list(&self, context: &Context, client: &Client) -> Result<Exit, Failure> {
        let mut objects: Vec<Value> = Vec::new();
        let mut exit = Exit::Success;
        if self.names.is_empty() || self.kind == Kind::Queue || self.namespace.is_none() {
            objects = client.list(self.kind, self.namespace.as_deref(), &self.filter).await?;
            objects.retain(|object| self.is_wanted(object));
            for missing in self.missing(&objects) {
                let report =
                    Report::new(Exit::Failed, format!("there is no {} `{missing}`", self.kind.word()));
                exit = exit.worst(report.exit);
                context.console.report(&report);
            }
        } else {
            let namespace = self.namespace.as_deref().unwrap_or_default();
            for object_name in &self.names {
                match client.get(self.kind, namespace, object_name).await {
                    Ok(object) => objects.push(object),
                    Err(error) if error.problem_code().is_none() => return Err(error.into()),
                    Err(error) => {
                        let report = error.report();
                        exit = exit.worst(report.exit);
                        context.console.report(&report);
                    }
                }
            }
        }
        self.print(context, &objects)?;
        if objects.is_empty() && exit == Exit::Success && matches!(self.output, Format::Table | Format::Wide)
        {
            context.console.note(self.nothing());
        }
        Ok(exit)
    }

    fn nothing(&self) -> String {
        let plural = self.kind.plural();
        match &self.namespace {
            Some(namespace) if self.kind.is_namespaced() => {
                format!("There are no such {plural} in the namespace {namespace}.")
            }
            Some(_) | None => format!("There are no such {plural}."),
        }
    }

    fn is_wanted(&self, object: &Value) -> bool {
        (self.names.is_empty() || self.names.iter().any(|wanted| name_of(object) == wanted))
            && self.selector.as_ref().is_none_or(|selector| selector.matches(object))
    }

    fn missing(&self, objects: &[Value]) -> Vec<&str> {
        self.names
            .iter()
            .filter(|wanted| !objects.iter().any(|object| name_of(object) == wanted.as_str()))
            .map(String::as_str)
            .collect()
    }

    fn print(&self, context: &Context, objects: &[Value]) -> Result<(), Failure> {
        let console = context.console;
        match self.output {
            Format::Table | Format::Wide if objects.is_empty() => Ok(()),
            Format::Table | Format::Wide => {
                let columns = view::columns(self.kind, self.width);
                console.data(&table::format(&columns, &self.rows(objects)?, console.width()))
            }
            Format::Json => console.data(&json::format(&self.document(objects))),
            Format::Yaml => console.data(&yaml::format(&self.document(objects))),
            Format::Name => {
                objects.iter().try_for_each(|object| console.line(name::format(self.kind, name_of(object))))
            }
        }
    }

    /// One object as itself where one was asked for, otherwise a list.
    fn document(&self, objects: &[Value]) -> Value {
        match (self.names.as_slice(), objects) {
            ([_], [object]) => object.clone(),
            _ => json!({"apiVersion": API_VERSION, "kind": list_kind(self.kind), "items": objects}),
        }
    }

    fn rows(&self, objects: &[Value]) -> Result<Vec<Vec<Cell>>, Failure> {
        let now = clock::now();
        objects
            .iter()
            .map(|object| view::row(self.kind, object, self.width, now).map_err(|source| malformed(&source)))
            .collect()
    }
}

fn name_of(object: &Value) -> &str {
    object
        .pointer("/metadata/name")
        .or_else(|| object.get("name"))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

const fn list_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "NodeConfigList",
        Kind::Job => "SandboxJobList",
        Kind::Template => "JobTemplateList",
        Kind::Queue => "QueueList",
    }
}

fn malformed(source: &serde_json::Error) -> Failure {
    Report::new(Exit::Failed, "an object from the server cannot be shown")
        .detail(source.to_string())
        .hint("the server may be newer than this command: `-o json` shows everything, `windlass version` tells both")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_pairs() {
        assert_eq!(parse_selector("a=b,c/d=").unwrap().text(), "a=b,c/d=");
        assert_eq!(parse_selector("a==b").unwrap().text(), "a=b");
        assert!(parse_selector("a").is_err());
        assert!(parse_selector("=b").is_err());
        let node = json!({"metadata": {"labels": {"a": "1"}}, "status": {"labels": {"b": "2"}}});
        assert!(parse_selector("a=1,b=2").unwrap().matches(&node));
        assert!(!parse_selector("a=2").unwrap().matches(&node));
    }

    #[test]
    fn phases_are_read_in_any_case_and_others_name_the_known_ones() {
        assert_eq!(parse_phase("timedout"), Ok(JobPhase::TimedOut));
        assert!(parse_phase("done").unwrap_err().contains("Succeeded, Failed"));
    }
}
