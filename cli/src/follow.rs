//! Following a job: its output on ours, why it does not start, how it ended, and what an interrupt means.

use std::time::Duration;

use windlass_crds::JobPhase;

use crate::client::model::{Job, LogEnd, LogItem, Placement};
use crate::client::{Client, Followed};
use crate::clock;
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::interrupts::Interrupts;
use crate::kind::Kind;
use crate::log_output::{LogPrinter, Routing};
use crate::output::human::printable;
use crate::view;

/// How long a job may be queued before a person wants to know why.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the answer is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How many nodes are named that do not fit.
const NODES_SHOWN: usize = 5;

/// What an interrupt (Ctrl-C) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Following stops, the job goes on.
    Leave,
    /// The job is cancelled; a second interrupt leaves it.
    Cancel,
}

/// A job that is followed.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    /// The server.
    pub(crate) client: &'a Client,
    /// Where output goes.
    pub(crate) console: Console,
    /// The job's namespace.
    pub(crate) namespace: &'a str,
    /// The job's name.
    pub(crate) name: &'a str,
    /// What an interrupt does.
    pub(crate) on_interrupt: OnInterrupt,
    /// Whether no other node will ever come, so that a job that fits none is better given up.
    pub(crate) fleet_is_closed: bool,
}

/// Why a job still waits, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The words.
    pub(crate) text: String,
    /// There are nodes, and it fits none of them.
    pub(crate) fits_nowhere: bool,
}

impl Follower<'_> {
    /// Follows the job to its end.
    pub(crate) async fn follow(&self, interrupts: &mut Interrupts) -> Result<Exit, Failure> {
        let mut stream = self.client.follow_logs(self.namespace, self.name, &[]);
        let mut printer = LogPrinter::new(self.console, Routing::Apart, false);
        let mut epoch: Option<u64> = None;
        let mut interrupted = false;
        let mut look = Box::pin(tokio::time::sleep(PATIENCE));
        let mut told: Option<Waiting> = None;
        loop {
            // Receiving from the stream and from the signals is cancel-safe, and the sleep keeps its deadline.
            let item = tokio::select! {
                item = stream.next() => item,
                () = interrupts.next() => {
                    if self.on_interrupt == OnInterrupt::Leave || interrupted {
                        self.break_line(&printer);
                        self.tell_how_to_resume();
                        return Ok(Exit::Interrupted);
                    }
                    interrupted = true;
                    self.break_line(&printer);
                    self.cancel().await?;
                    continue;
                }
                () = &mut look, if epoch.is_none() => {
                    let waiting = self.why_not_running().await;
                    if let Some(waiting) = &waiting {
                        let again = told.as_ref() == Some(waiting);
                        if again && waiting.fits_nowhere && self.fleet_is_closed {
                            return self.give_up(waiting).await;
                        }
                        if !again {
                            self.console.note(&waiting.text);
                        }
                    }
                    told = waiting;
                    let pause = if self.fleet_is_closed { PATIENCE } else { LOOK_AGAIN };
                    look.as_mut().reset(tokio::time::Instant::now() + pause);
                    continue;
                }
            };
            match item {
                Some(Ok(Followed::Event(event))) if event.event == "log" => {
                    let item: LogItem =
                        serde_json::from_str(&event.data).map_err(|error| malformed(&error))?;
                    if epoch.is_some_and(|before| before < item.epoch) {
                        self.break_line(&printer);
                        self.console.note("The job was started again; what follows is a new attempt.");
                    }
                    epoch = Some(item.epoch);
                    match printer.print(item) {
                        // A reader that has gone away, as in `windlass run … | head`, has seen enough of the output; how the
                        // job ends is told by our exit code all the same.
                        Ok(()) | Err(Failure::OutputClosed) => {}
                        Err(failure) => return Err(failure),
                    }
                }
                Some(Ok(Followed::Event(event))) if event.event == "end" => {
                    let end: LogEnd = serde_json::from_str(&event.data).map_err(|error| malformed(&error))?;
                    self.break_line(&printer);
                    return self.tell_end(&end).await;
                }
                // A newer server may tell more.
                Some(Ok(Followed::Event(_))) => {}
                Some(Ok(Followed::Lost(reason))) => {
                    self.break_line(&printer);
                    self.console.warn(format!("the connection is lost and is tried again: {reason}"));
                }
                Some(Ok(Followed::Restored)) => self.console.note("The connection is back."),
                Some(Err(error)) => {
                    self.break_line(&printer);
                    let mut report = error.report();
                    report.details.push(format!("the job may still run: windlass logs -f {}", self.flags()));
                    return Err(report.into());
                }
                None => {
                    return Err(
                        Report::new(Exit::Failed, "the stream of the job's output ended early").into()
                    );
                }
            }
        }
    }

    /// Ends a line that the job has left open, where a message of ours comes next on the same terminal.
    fn break_line(&self, printer: &LogPrinter) {
        if printer.is_mid_line() && self.console.is_watched() {
            self.console.note("");
        }
    }

    /// The job as further command lines name it.
    fn flags(&self) -> String {
        if self.namespace == "default" {
            self.name.to_owned()
        } else {
            format!("{} -n {}", self.name, self.namespace)
        }
    }

    fn tell_how_to_resume(&self) {
        let job = self.flags();
        self.console.note(format!("The job {} goes on. What you can do:", self.name));
        self.console.note(format!("  windlass logs -f {job}    follow it again"));
        self.console.note(format!("  windlass cancel {job}     stop it"));
    }

    async fn cancel(&self) -> Result<(), Failure> {
        match self.client.cancel(self.namespace, self.name).await {
            Ok(_) => self.console.note("Cancelling the job; interrupt again to leave it to itself."),
            // It was faster than we are: its end is on its way.
            Err(error) if error.problem_code() == Some("already_ended") => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Cancels a job that no node will ever take.
    async fn give_up(&self, waiting: &Waiting) -> Result<Exit, Failure> {
        self.client.cancel(self.namespace, self.name).await?;
        let report = Report::new(Exit::Failed, format!("the job {} cannot run here", self.name));
        Err(report.details(waiting.text.lines().skip(1).map(str::trim).map(str::to_owned)).into())
    }

    /// Why the job still waits; `None` where it does not, or nobody knows.
    async fn why_not_running(&self) -> Option<Waiting> {
        let job: Job = self.client.get(Kind::Job, self.namespace, self.name).await.ok()?;
        match job.status.phase {
            JobPhase::PendingApproval => {
                return Some(Waiting { text: "The job waits for approval.".to_owned(), fits_nowhere: false });
            }
            JobPhase::Queued => {}
            JobPhase::Claimed
            | JobPhase::Running
            | JobPhase::Waiting
            | JobPhase::Succeeded
            | JobPhase::Failed
            | JobPhase::Cancelled
            | JobPhase::TimedOut => return None,
        }
        let placement: Placement =
            self.client.job_detail(self.namespace, self.name, "placement", &[]).await.ok()?;
        Some(why_queued(&placement))
    }

    async fn tell_end(&self, end: &LogEnd) -> Result<Exit, Failure> {
        let Some(phase) = end.phase else {
            return Err(Report::new(
                Exit::Failed,
                format!("the job {} was deleted before it ended", self.name),
            )
            .into());
        };
        if !end.logs_complete {
            self.console.warn("not all of the job's output has arrived, because its node was lost");
        }
        let line = match self.client.get::<Job>(Kind::Job, self.namespace, self.name).await {
            Ok(job) if job.status.phase == phase => {
                view::job::cut_outputs(&job).iter().for_each(|cut| self.console.warn(cut));
                result_line(&job)
            }
            // Deleted or started again by somebody in between: what the stream said is what was followed.
            Ok(_) | Err(_) => format!("job/{} {phase}", self.name),
        };
        self.console.note(line);
        Ok(Exit::of_job(phase, end.reason.as_deref(), end.exit_code))
    }
}

/// Why a job is queued, in words.
pub(crate) fn why_queued(placement: &Placement) -> Waiting {
    let mut text = format!("The job waits: {}.", printable(&placement.summary));
    if placement.job.is_some() {
        return Waiting { text, fits_nowhere: false };
    }
    let refusing: Vec<_> = placement.items.iter().filter(|item| !item.fits).collect();
    for item in refusing.iter().take(NODES_SHOWN) {
        let reason = item.message.as_deref().or(item.reason.as_deref()).unwrap_or("it does not fit");
        text.push_str(&format!("\n  {}: {}", printable(&item.node), printable(reason)));
    }
    if refusing.len() > NODES_SHOWN {
        text.push_str(&format!("\n  and {} more nodes", refusing.len() - NODES_SHOWN));
    }
    let fits_nowhere =
        !placement.items.is_empty() && placement.items.iter().all(|item| !item.fits && item.lasting);
    Waiting { text, fits_nowhere }
}

/// How a job ended, in one line.
fn result_line(job: &Job) -> String {
    let status = &job.status;
    let name = printable(&job.metadata.name);
    let phase = view::job::coloured(status.phase, status.phase.to_string()).rendered();
    let mut line = format!("job/{name} {phase}");
    let succeeded = status.phase == JobPhase::Succeeded;
    if let Some(reason) = status.reason.as_deref().filter(|_| !succeeded) {
        line.push_str(&format!(": {}", printable(reason)));
    }
    if let Some(message) = status.message.as_deref().filter(|message| !succeeded && !message.is_empty()) {
        line.push_str(&format!(": {}", printable(message)));
    }
    if let Some(duration) = view::job::duration(job, clock::now()) {
        line.push_str(&format!(" in {duration}"));
    }
    if let Some(node) = &status.node {
        line.push_str(&format!(" on {}", printable(node)));
    }
    if !status.unenforced.is_empty() {
        let names: Vec<String> = status.unenforced.iter().map(ToString::to_string).collect();
        line.push_str(&format!(" (limits not enforced: {})", names.join(", ")));
    }
    line
}

fn malformed(source: &serde_json::Error) -> Failure {
    Report::new(Exit::Failed, "the stream of the job's output cannot be read")
        .detail(source.to_string())
        .hint("the server may be newer than this command: `windlass version` tells both")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::model::PlacementItem;

    fn item(node: &str, lasting: bool, message: &str) -> PlacementItem {
        PlacementItem {
            node: node.into(),
            fits: message.is_empty(),
            lasting,
            reason: Some("Reason".into()),
            message: Some(message.into()),
        }
    }

    #[test]
    fn the_reason_to_wait_names_each_node_that_does_not_take_the_job() {
        let placement = |items: Vec<PlacementItem>| Placement {
            phase: JobPhase::Queued,
            summary: "so it is".into(),
            job: None,
            items,
            queue: "default".into(),
            queue_position: None,
            queue_position_is_least: false,
        };
        let one = why_queued(&placement(vec![item("n1", true, "it has 2 cpus, 64 are needed")]));
        assert!(one.fits_nowhere);
        assert_eq!(one.text, "The job waits: so it is.\n  n1: it has 2 cpus, 64 are needed");
        let two = why_queued(&placement(vec![item("n1", false, ""), item("n2", true, "no")]));
        assert!(!two.fits_nowhere);
        assert_eq!(two.text, "The job waits: so it is.\n  n2: no");
        let later = why_queued(&placement(vec![item("n1", false, "full"), item("n2", true, "no")]));
        assert!(!later.fits_nowhere, "n1 may take it later");
        assert!(!why_queued(&placement(vec![])).fits_nowhere);
        let many = (0..9).map(|index| item(&format!("n{index}"), true, "no")).collect();
        assert!(why_queued(&placement(many)).text.ends_with("and 4 more nodes"));
        let blocked =
            Placement { job: Some("it is suspended".into()), ..placement(vec![item("n1", true, "no")]) };
        assert_eq!(why_queued(&blocked).text, "The job waits: so it is.");
    }

    #[test]
    fn the_last_line_says_how_it_ended_and_where() {
        let job = |status: serde_json::Value| -> Job {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "hello"}, "status": status}))
                .unwrap()
        };
        let line = |status| anstream::adapter::strip_str(&result_line(&job(status))).to_string();
        let times = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.42Z");
        assert_eq!(
            line(
                serde_json::json!({"phase": "Succeeded", "reason": "Completed", "node": "n1", "exitCode": 0,
                "startedAt": times.0, "finishedAt": times.1})
            ),
            "job/hello Succeeded in 0.42s on n1"
        );
        assert_eq!(
            line(
                serde_json::json!({"phase": "Failed", "reason": "StepFailed", "message": "step `main` exited with 3",
                "node": "n1", "startedAt": times.0, "finishedAt": times.1, "unenforced": ["memory"]})
            ),
            "job/hello Failed: StepFailed: step `main` exited with 3 in 0.42s on n1 (limits not enforced: memory)"
        );
    }
}
