//! `windlass describe`: everything about objects.

mod refused;
mod text;

use jiff::Timestamp;
use windlass_crds::JobPhase;

use super::Context;
use crate::artifacts::of_last_attempt;
use crate::client::model::{
    ArtifactItem, AttemptItem, EventItem, EventPage, HistoryItem, Items, Job, Node, Placement, Queue,
    Template,
};
use crate::client::{Client, Error, Filter};
use crate::clock;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{self, Kind, Target, TargetParser};
use refused::Refused;
use text::Text;

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

/// What happened.
struct Happened {
    /// The last events, the oldest first, without what is in `refused`.
    last: Vec<EventItem>,
    /// What steps tried to reach and did not.
    refused: Refused,
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
        let artifacts = self.artifacts(name).await?;
        let Happened { last, refused } = self.events(Some(name), &[]).await?;
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
        let mut text = Text::new(self.now, self.width);
        text.job(&job);
        if let Some(placement) = placement {
            text.placement(&placement);
        }
        text.attempts(&attempts.items);
        text.artifacts(&job, &of_last_attempt(artifacts, job.status.epoch));
        text.conditions(&job.status.conditions);
        text.refused(&refused);
        text.events(&last);
        Ok(text.finish())
    }

    /// What a job has left; nothing where the server is one of before.
    async fn artifacts(&self, name: &str) -> Result<Vec<ArtifactItem>, Error> {
        match self.client.job_detail::<Items<_>>(self.namespace, name, "artifacts", &[]).await {
            Ok(artifacts) => Ok(artifacts.items),
            Err(error) if error.problem_code() == Some("not_found") => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn node(&self, name: &str) -> Result<String, Error> {
        let node: Node = self.client.get(Kind::Node, self.namespace, name).await?;
        let events = self.events(None, &[("node", name.to_owned())]).await?;
        let mut text = Text::new(self.now, self.width);
        let history: Items<HistoryItem> = self.client.node_detail(name, "history").await?;
        text.node(&node);
        text.conditions(&node.status.conditions);
        text.history(&history.items);
        text.events(&events.last);
        Ok(text.finish())
    }

    async fn template(&self, name: &str) -> Result<String, Error> {
        let template: Template = self.client.get(Kind::Template, self.namespace, name).await?;
        let mut text = Text::new(self.now, self.width);
        text.template(&template);
        Ok(text.finish())
    }

    async fn queue(&self, name: &str) -> Result<Option<String>, Error> {
        let queues: Vec<Queue> = self.client.list(Kind::Queue, None, &Filter::default()).await?;
        Ok(queues.iter().find(|queue| queue.name == name).map(|queue| {
            let mut text = Text::new(self.now, self.width);
            text.queue(queue);
            text.finish()
        }))
    }

    /// What happened to a job or to everything.
    async fn events(&self, job: Option<&str>, filter: &[(&str, String)]) -> Result<Happened, Error> {
        let mut events: Vec<EventItem> = Vec::new();
        let mut refused = Refused::default();
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
            events.extend(page.items.into_iter().filter(|event| !refused.take(event)));
            let surplus = events.len().saturating_sub(EVENTS);
            events.drain(..surplus);
            if is_last || page.cursor.is_none() {
                break;
            }
            cursor = page.cursor;
        }
        Ok(Happened { last: events, refused })
    }
}
