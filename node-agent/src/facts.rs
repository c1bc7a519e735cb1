//! Facts: what the node looks at on its host by its configuration, and tells the controller or a step.
//!
//! ```text
//!  configuration ──► task, every so often ─┐
//!  `facts` step ──────────────────────────► collect ─┬─ host, containers of each engine, ends of log files, Proxmox VE
//!                                            │       └─ what cannot be looked at is a problem in the report, not an error
//!                                            └──► outbox ──► controller
//! ```
//!
//! *Guarantees*: a report is bounded, whatever the host has. Reports go through the outbox, so an outage of the controller
//! costs none until the outbox has [`MOST_WAITING`] bytes; then they are left out and counted, for jobs' records come first.

mod host;
mod logs;
mod proxmox;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use strum::IntoEnumIterator as _;
use tokio::time::{Instant, timeout};
use windlass_crds::facts::{ContainerFacts, Facts, FactsPart, LogTail};
use windlass_crds::protocol::bounds::MAX_FACTS;
use windlass_crds::protocol::{AttemptId, FactsSettings, NODE_RECORDS, RecordBody};
use windlass_sandbox::engine::Engines;

use self::logs::Tails;
pub(crate) use self::logs::small_text;
use crate::clock::Clock;
use crate::config_sync::{ConfigState, InForce};
use crate::outbox::{NewRecord, Outbox};
use crate::watch;

/// Containers of one report, the engines together.
const MOST_CONTAINERS: usize = 500;
/// How long an engine or a Proxmox VE may take to tell.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes in the outbox beyond which reports are left out: half of what output may take there.
const MOST_WAITING: u64 = crate::outbox::ROOM_BYTES / 2;
/// Characters of a name that an engine gives.
const MOST_TEXT: usize = 512;

/// Collects facts. Cheap to share.
pub(crate) struct Collector {
    node: String,
    labels: BTreeMap<String, String>,
    engines: Engines,
    clock: Arc<dyn Clock>,
    /// How far each log file was read by the reports of the task; steps see the ends of files and move nothing.
    tails: Arc<Mutex<Tails>>,
}

/// Who asks for facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// It is time.
    Time,
    /// A step of the job of this uid.
    Job(&'a str),
}

impl Collector {
    pub(crate) fn new(
        node: String,
        labels: BTreeMap<String, String>,
        engines: Engines,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { node, labels, engines, clock, tails: Arc::default() }
    }

    /// Looks at the parts that are asked for.
    pub(crate) async fn collect(
        &self,
        settings: &FactsSettings,
        include: &[FactsPart],
        asked: Asked<'_>,
    ) -> Facts {
        let wanted: BTreeSet<FactsPart> = match include {
            [] => FactsPart::iter().collect(),
            some => some.iter().copied().collect(),
        };
        let mut problems = Vec::new();
        let host = match wanted.contains(&FactsPart::Host) {
            true => host::look(&mut problems).await,
            false => None,
        };
        let containers = match wanted.contains(&FactsPart::Containers) {
            true => self.containers(&mut problems).await,
            false => Vec::new(),
        };
        let logs = match wanted.contains(&FactsPart::Logs) {
            true => self.read_logs(settings, asked, &mut problems).await,
            false => Vec::new(),
        };
        let proxmox = match (&settings.proxmox, wanted.contains(&FactsPart::Proxmox)) {
            (Some(spec), true) => match timeout(PATIENCE, proxmox::look(spec)).await {
                Ok(Ok(found)) => Some(found),
                Ok(Err(problem)) => {
                    problems.push(format!("facts.proxmox: {problem}"));
                    None
                }
                Err(_elapsed) => {
                    problems.push(format!("facts.proxmox: {} does not answer in time", spec.url));
                    None
                }
            },
            (Some(_), false) | (None, _) => None,
        };
        let resources = proxmox.as_ref().map_or(0, |proxmox| proxmox.resources.len());
        let counts = [
            ("containers", containers.len()),
            ("disks", host.as_ref().map_or(0, |host| host.disks.len())),
            ("logs", logs.len()),
            ("problems", problems.len()),
            ("proxmox", resources),
        ];
        let mut facts = Facts {
            collected_at: self.clock.now(),
            node: self.node.clone(),
            labels: self.labels.clone(),
            job: match asked {
                Asked::Time => None,
                Asked::Job(job) => Some(job.to_owned()),
            },
            counts: counts.map(|(name, count)| (name.to_owned(), count as u64)).into(),
            host,
            containers,
            logs,
            proxmox,
            problems,
        };
        fit(&mut facts);
        facts
    }

    async fn containers(&self, problems: &mut Vec<String>) -> Vec<ContainerFacts> {
        let mut all = Vec::new();
        for engine in self.engines.iter() {
            let kind = engine.kind();
            match timeout(PATIENCE, engine.all_containers()).await {
                Ok(Ok(found)) => all.extend(found.into_iter().map(|found| ContainerFacts {
                    engine: kind.to_string(),
                    id: found.id,
                    name: cut(&found.name),
                    image: cut(&found.image),
                    state: cut(&found.state),
                    status: cut(&found.status),
                    created_at: found.created_at.and_then(|at| Timestamp::from_second(at).ok()),
                })),
                Ok(Err(error)) => problems.push(format!("{kind}: {}", crate::error_chain(&error))),
                Err(_elapsed) => problems.push(format!("{kind} does not answer in time")),
            }
        }
        all.sort_by(|one, other| {
            (&one.engine, &one.name, &one.id).cmp(&(&other.engine, &other.name, &other.id))
        });
        if all.len() > MOST_CONTAINERS {
            problems.push(format!("only the first {MOST_CONTAINERS} of {} containers are told", all.len()));
            all.truncate(MOST_CONTAINERS);
        }
        all
    }

    async fn read_logs(
        &self,
        settings: &FactsSettings,
        asked: Asked<'_>,
        problems: &mut Vec<String>,
    ) -> Vec<LogTail> {
        let tails = match asked {
            Asked::Time => Arc::clone(&self.tails),
            Asked::Job(_) => Arc::default(),
        };
        let files = settings.logs.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut problems = Vec::new();
            let found = tails.lock().unwrap_or_else(PoisonError::into_inner).read(&files, &mut problems);
            (found, problems)
        });
        match timeout(PATIENCE, read).await {
            Ok(Ok((found, told))) => {
                problems.extend(told);
                found
            }
            Ok(Err(error)) => {
                problems.push(format!("facts.logs: reading has ended with a defect: {error}"));
                Vec::new()
            }
            Err(_elapsed) => {
                problems.push("facts.logs: the files cannot be read in time".to_owned());
                Vec::new()
            }
        }
    }
}

/// Shortens the longest logs until the facts fit into a report.
fn fit(facts: &mut Facts) {
    let mut cut = false;
    let length = |facts: &Facts| {
        serde_json::to_vec(facts).expect("facts have only string keys and so become JSON").len()
    };
    while length(facts) > MAX_FACTS {
        let Some(log) =
            facts.logs.iter_mut().filter(|log| !log.text.is_empty()).max_by_key(|log| log.text.len())
        else {
            return;
        };
        let middle = log.text.floor_char_boundary(log.text.len().div_ceil(2));
        let half = if middle == 0 { log.text.len() } else { middle };
        log.skipped_bytes += half as u64;
        log.text.drain(..half);
        if !cut {
            cut = true;
            facts.problems.push(
                "facts.logs: the ends of logs are told only in part, for a report holds 1 MiB".to_owned(),
            );
            facts.counts.insert("problems".to_owned(), facts.problems.len() as u64);
        }
    }
}

/// The start of a text.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect()
}

/// Sends facts by way of the outbox. Cheap to share.
pub(crate) struct FactsOutbox {
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    id: AttemptId,
}

impl FactsOutbox {
    /// The epoch of this run is the second in which it began.
    pub(crate) fn new(outbox: Arc<Outbox>, clock: Arc<dyn Clock>) -> Self {
        let epoch = u64::try_from(clock.now().as_second()).unwrap_or_default();
        Self { outbox, clock, id: AttemptId { job: NODE_RECORDS.to_owned(), epoch } }
    }

    /// Queues facts; says whether there was room.
    pub(crate) fn send(&self, facts: Facts) -> bool {
        if self.outbox.backlog().borrow().bytes > MOST_WAITING {
            return false;
        }
        let body = RecordBody::Facts(Box::new(facts));
        self.outbox.push(&self.id, vec![NewRecord { at: self.clock.now(), body, mark: None }]);
        true
    }
}

/// Reports facts as often as the configuration says.
pub(crate) struct FactsTask {
    pub(crate) collector: Arc<Collector>,
    pub(crate) outbox: Arc<FactsOutbox>,
    pub(crate) in_force: InForce,
    pub(crate) config: watch::Receiver<ConfigState>,
}

impl FactsTask {
    /// Reports, for ever.
    pub(crate) async fn run(mut self) -> std::convert::Infallible {
        let mut last: Option<Instant> = None;
        let mut left_out: u64 = 0;
        loop {
            let settings = self.settings();
            let every =
                settings.as_ref().and_then(|settings| settings.every_seconds).map(Duration::from_secs);
            let due = every.map(|every| last.map_or_else(Instant::now, |last| last + every));
            let mut config = self.config.clone();
            // Cancel-safe: both only wait.
            let changed = tokio::select! {
                biased;
                changed = config.changed() => Some(changed.is_ok()),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            self.config = config;
            match (changed, settings) {
                (Some(false), _) => std::future::pending::<()>().await,
                (Some(true), _) | (None, None) => {}
                (None, Some(settings)) => {
                    last = Some(Instant::now());
                    let mut facts = self.collector.collect(&settings, &[], Asked::Time).await;
                    if left_out > 0 {
                        facts.problems.push(format!(
                            "{left_out} reports were left out while the controller was not reached"
                        ));
                    }
                    for problem in &facts.problems {
                        tracing::debug!(problem, "some facts are missing");
                    }
                    left_out = if self.outbox.send(facts) { 0 } else { left_out + 1 };
                }
            }
        }
    }

    fn settings(&self) -> Option<FactsSettings> {
        self.in_force.get()?.configuration.facts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::VirtualClock;

    #[test]
    fn of_a_report_that_is_too_large_the_longest_logs_lose_their_beginnings() {
        let log = |path: &str, text: String| LogTail {
            path: path.to_owned(),
            size_bytes: text.len() as u64,
            text,
            skipped_bytes: 1,
            rotated: false,
        };
        // A zero byte is six characters in JSON.
        let long = format!("{}end", "\0".repeat(200 << 10));
        let mut facts = Facts {
            collected_at: Timestamp::UNIX_EPOCH,
            node: "n".to_owned(),
            labels: BTreeMap::new(),
            job: None,
            counts: BTreeMap::new(),
            host: None,
            containers: Vec::new(),
            logs: vec![log("long", long.clone()), log("short", "short".to_owned())],
            proxmox: None,
            problems: Vec::new(),
        };
        fit(&mut facts);
        assert!(serde_json::to_vec(&facts).unwrap().len() <= MAX_FACTS);
        let left = &facts.logs[0];
        assert!(left.text.ends_with("\0end") && long.ends_with(&left.text));
        assert_eq!(left.skipped_bytes, 1 + (long.len() - left.text.len()) as u64);
        assert_eq!((facts.logs[1].text.as_str(), facts.problems.len()), ("short", 1));
        assert_eq!(facts.counts["problems"], 1);
    }

    #[tokio::test]
    async fn a_report_says_what_it_could_not_look_at_and_counts_the_rest() {
        let collector = Collector::new(
            "n".to_owned(),
            crate::testing::labels(&[("zone", "a")]),
            Engines::default(),
            Arc::new(VirtualClock::new()),
        );
        let settings = FactsSettings {
            logs: vec![windlass_crds::facts::LogFile {
                path: "/nonexistent/log".to_owned(),
                max_bytes: None,
            }],
            ..FactsSettings::default()
        };
        let facts = collector.collect(&settings, &[], Asked::Job("uid")).await;
        assert_eq!((facts.node.as_str(), facts.job.as_deref()), ("n", Some("uid")));
        assert!(facts.host.is_some_and(|host| host.cpus > 0 && host.memory_bytes > 0));
        assert!(
            facts.problems.iter().any(|problem| problem.contains("/nonexistent/log")),
            "{:?}",
            facts.problems
        );
        assert_eq!(facts.counts["problems"], 1);
        let some = collector.collect(&settings, &[FactsPart::Containers], Asked::Time).await;
        assert!(some.host.is_none() && some.problems.is_empty(), "{some:?}");
    }
}
