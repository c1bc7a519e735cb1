//! The runs that came by the Worker API, and their results.
//!
//! A run of the controller is known until the controller has stored how it ended. A bare run is known until its caller says
//! that it has the result, for a day and as long as there is room; after that its name alone is remembered, for a week and
//! as long as there is room, so that it does not run again.
//!
//! ```text
//! results/NAME.json     what each step has written, and once it has ended the response
//! results/settled.json  the names of bare runs whose results are not kept any more
//! ```
//!
//! *Guarantees*: the result of a run is durable before its entry in the ledger goes, so that it is known in one of the two
//! at any time. What a step has written is kept once it has ended, keyed by the step, so that a crash doubles nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use windlass_crds::protocol::worker_api::{MAX_OUTPUT, RunJobResponse, RunStatus, Truncated};
use windlass_crds::protocol::{AttemptId, Stream, TerminalPhase, VERSION};

use crate::fs::AgentFs;
use crate::names::attempt_name;

const FOLDER: &str = "results";
const SETTLED: &str = "settled.json";
/// How long, and how many, results of bare runs are kept: a day for a caller to come back, and 128 MiB at most.
const KEEP: SignedDuration = SignedDuration::from_hours(24);
const MOST_KEPT: usize = 256;
/// How long, and how many, names of bare runs are remembered after that: far longer than any caller tries again.
const REMEMBER: SignedDuration = SignedDuration::from_hours(7 * 24);
const MOST_REMEMBERED: usize = 4096;
/// Between two tries to write a result that must be kept.
const RETRY: Duration = Duration::from_secs(1);

/// The runs. Cheap to share.
#[derive(Clone)]
pub(crate) struct Runs {
    inner: Arc<Inner>,
}

struct Inner {
    fs: Arc<dyn AgentFs>,
    /// Protects the table; never held over an await.
    table: Mutex<Table>,
    /// Held while the names of settled runs are written, so that a newer list is not replaced by an older one.
    settling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    runs: BTreeMap<AttemptId, Run>,
    /// Bare runs without a result, and since when.
    settled: BTreeMap<AttemptId, Timestamp>,
}

struct Run {
    /// The task that it belongs to.
    task: String,
    /// Names what was asked for.
    request: String,
    /// When it ended; until then those who wait for that.
    ended: Option<Timestamp>,
    waiting: Vec<oneshot::Sender<Arc<RunJobResponse>>>,
    /// The controller has stored how it ended.
    stored: bool,
}

/// What is kept of a run on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    attempt: AttemptId,
    task: String,
    request: String,
    #[serde(default)]
    steps: BTreeMap<u32, Output>,
    #[serde(default)]
    response: Option<RunJobResponse>,
}

/// What a step has written, up to what a response carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    stdout: Captured,
    stderr: Captured,
}

/// The beginning of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Captured {
    text: String,
    truncated: bool,
}

/// Collects what a step has written.
#[derive(Default)]
pub(crate) struct Collector {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// How a run ended.
pub(crate) struct End {
    pub(crate) phase: TerminalPhase,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) ended_at: Timestamp,
}

/// What is known of a run.
pub(super) enum Found {
    /// Nothing.
    Unknown,
    /// It goes on.
    Running { task: String, end: oneshot::Receiver<Arc<RunJobResponse>> },
    /// It has ended.
    Ended,
    /// It ran, and its result is not kept.
    Settled,
    /// Its name was used for another request.
    Other,
}

impl Runs {
    /// Reads what an earlier run of the agent has left. `unreported` are the attempts whose end the controller has yet to
    /// store, `held` those that are carried on.
    ///
    /// # Errors
    /// When the folder cannot be read. A damaged result is reported in the log and removed.
    pub(crate) async fn open(
        fs: Arc<dyn AgentFs>,
        now: Timestamp,
        is_open: impl Fn(&AttemptId) -> bool,
    ) -> io::Result<Self> {
        let mut table = Table::default();
        for name in fs.list(FOLDER).await? {
            let path = format!("{FOLDER}/{name}");
            let Some(content) = fs.read(&path).await? else { continue };
            if name == SETTLED {
                let settled: Vec<(AttemptId, Timestamp)> = read(&path, &content).unwrap_or_default();
                table.settled.extend(settled);
                continue;
            }
            let kept: Option<Kept> = read(&path, &content);
            match kept {
                Some(kept) if kept.attempt.is_bare() || is_open(&kept.attempt) => {
                    let ended = kept.response.as_ref().map(|response| response.ended_at.unwrap_or(now));
                    table.runs.insert(kept.attempt.clone(), Run::new(kept.task, kept.request, ended));
                }
                // The controller has stored what it says.
                Some(_) | None => fs.remove(&path).await?,
            }
        }
        let inner = Inner { fs, table: Mutex::new(table), settling: tokio::sync::Mutex::new(()) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Knows no runs.
    #[cfg(test)]
    pub(crate) fn empty(fs: Arc<dyn AgentFs>) -> Self {
        let (table, settling) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { inner: Arc::new(Inner { fs, table, settling }) }
    }

    /// Notes a run that was taken on now, or in an earlier run of the agent.
    pub(crate) fn began(&self, attempt: &AttemptId, task: String, request: String) {
        let mut table = self.table();
        table.runs.entry(attempt.clone()).or_insert_with(|| Run::new(task, request, None)).ended = None;
    }

    /// What is known of a run that `request` asks for, or of any where nothing is asked for.
    pub(super) fn find(&self, attempt: &AttemptId, request: Option<&str>) -> Found {
        let mut table = self.table();
        if table.settled.contains_key(attempt) {
            return Found::Settled;
        }
        let Some(run) = table.runs.get_mut(attempt) else { return Found::Unknown };
        if request.is_some_and(|request| request != run.request) {
            return Found::Other;
        }
        if run.ended.is_some() {
            return Found::Ended;
        }
        let (sender, end) = oneshot::channel();
        run.waiting.retain(|waiting| !waiting.is_closed());
        run.waiting.push(sender);
        Found::Running { task: run.task.clone(), end }
    }

    /// The result of a run that has ended; `None` where it is not kept any more.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) async fn result(&self, attempt: &AttemptId) -> io::Result<Option<RunJobResponse>> {
        Ok(self.kept(attempt).await?.and_then(|kept| kept.response))
    }

    /// How many bytes of each stream there is room for in the response beside what earlier steps have written.
    pub(crate) async fn keep_output(&self, attempt: &AttemptId, step: u32, output: Output) {
        let Some(mut kept) = self.kept_or_new(attempt).await else { return };
        kept.steps.insert(step, output);
        if let Err(error) = self.write(&kept).await {
            tracing::warn!(
                job.id = attempt.job,
                error = %error,
                "what a step has written cannot be kept for the Worker API's answer"
            );
        }
    }

    /// Keeps how a run ended and tells those who wait for that. Of a bare run the result is durable on return.
    pub(crate) async fn ended(&self, attempt: &AttemptId, end: End) {
        let Some(mut kept) = self.kept_or_new(attempt).await else { return };
        let ended_at = end.ended_at;
        if kept.response.is_none() {
            kept.response = Some(response(&kept, end));
        }
        let mut told = false;
        // What was stored while this was on its way is not kept.
        while !self.is_stored(attempt) {
            let Err(error) = self.write(&kept).await else { break };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(job.id = attempt.job, error = %error, "the result of a run cannot be kept; trying again");
            }
            if !attempt.is_bare() {
                // The controller gets it by reports in any case.
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        let waiting = {
            let mut table = self.table();
            match table.runs.get_mut(attempt) {
                Some(run) => {
                    run.ended = Some(ended_at);
                    std::mem::take(&mut run.waiting)
                }
                None => Vec::new(),
            }
        };
        if let Some(response) = kept.response.map(Arc::new) {
            for waiting in waiting {
                // Who waited may be gone.
                waiting.send(Arc::clone(&response)).ok();
            }
        }
        if self.is_stored(attempt) {
            self.forget(attempt).await;
        } else if attempt.is_bare() {
            self.tidy(ended_at).await;
        }
    }

    /// The controller has stored how an attempt ended.
    pub(crate) async fn stored(&self, attempt: &AttemptId) {
        let ended = {
            let mut table = self.table();
            let Some(run) = table.runs.get_mut(attempt) else { return };
            run.stored = true;
            run.ended.is_some()
        };
        if ended {
            self.forget(attempt).await;
        }
    }

    /// The caller of a run has its result: from now on its name alone is remembered. False where it goes on.
    pub(super) async fn settle(&self, attempt: &AttemptId, now: Timestamp) -> io::Result<bool> {
        {
            let table = self.table();
            if table.runs.get(attempt).is_some_and(|run| run.ended.is_none()) {
                return Ok(false);
            }
        }
        self.settle_all(vec![attempt.clone()], now).await?;
        Ok(true)
    }

    /// Settles bare runs that were kept long enough, or are too many, the oldest first.
    pub(crate) async fn tidy(&self, now: Timestamp) {
        let due: Vec<AttemptId> = {
            let table = self.table();
            let mut ended: Vec<_> = table
                .runs
                .iter()
                .filter(|(attempt, _)| attempt.is_bare())
                .filter_map(|(attempt, run)| Some((run.ended?, attempt)))
                .collect();
            ended.sort();
            let surplus = ended.len().saturating_sub(MOST_KEPT);
            let old = ended.iter().take_while(|(at, _)| now.duration_since(*at) > KEEP).count();
            ended.into_iter().take(surplus.max(old)).map(|(_, attempt)| attempt.clone()).collect()
        };
        if due.is_empty() {
            return;
        }
        if let Err(error) = self.settle_all(due, now).await {
            tracing::warn!(error = %error, "old results of the Worker API cannot be removed");
        }
    }

    /// The names are durable before the results go.
    async fn settle_all(&self, attempts: Vec<AttemptId>, now: Timestamp) -> io::Result<()> {
        let _one = self.inner.settling.lock().await;
        let names: Vec<(AttemptId, Timestamp)> = {
            let mut table = self.table();
            for attempt in &attempts {
                table.settled.insert(attempt.clone(), now);
            }
            table.settled.retain(|_, since| now.duration_since(*since) <= REMEMBER);
            let mut oldest: Vec<_> = table.settled.iter().map(|(id, at)| (*at, id.clone())).collect();
            oldest.sort();
            let surplus = oldest.len().saturating_sub(MOST_REMEMBERED);
            for (_, attempt) in oldest.drain(..surplus) {
                table.settled.remove(&attempt);
            }
            table.settled.iter().map(|(attempt, since)| (attempt.clone(), *since)).collect()
        };
        let content = serde_json::to_vec(&names).expect("names and times are plain data");
        self.inner.fs.replace(&format!("{FOLDER}/{SETTLED}"), content).await?;
        for attempt in &attempts {
            self.inner.fs.remove(&path(attempt)).await?;
            self.table().runs.remove(attempt);
        }
        Ok(())
    }

    async fn forget(&self, attempt: &AttemptId) {
        self.table().runs.remove(attempt);
        if let Err(error) = self.inner.fs.remove(&path(attempt)).await {
            tracing::warn!(job.id = attempt.job, error = %error, "a result that is stored goes at the next start");
        }
    }

    fn is_stored(&self, attempt: &AttemptId) -> bool {
        self.table().runs.get(attempt).is_none_or(|run| run.stored)
    }

    async fn kept(&self, attempt: &AttemptId) -> io::Result<Option<Kept>> {
        let path = path(attempt);
        let content = self.inner.fs.read(&path).await?;
        Ok(content.and_then(|content| read(&path, &content)))
    }

    /// What is kept of a run, or nothing yet; `None` for one that did not come by the Worker API.
    async fn kept_or_new(&self, attempt: &AttemptId) -> Option<Kept> {
        let (task, request) = {
            let table = self.table();
            let run = table.runs.get(attempt)?;
            (run.task.clone(), run.request.clone())
        };
        let new = || Kept { attempt: attempt.clone(), task, request, steps: BTreeMap::new(), response: None };
        match self.kept(attempt).await {
            Ok(kept) => Some(kept.unwrap_or_else(new)),
            Err(error) => {
                tracing::warn!(job.id = attempt.job, error = %error, "what earlier steps have written cannot be read");
                Some(new())
            }
        }
    }

    async fn write(&self, kept: &Kept) -> io::Result<()> {
        let content = serde_json::to_vec(kept).expect("a result has only string keys and becomes JSON");
        self.inner.fs.replace(&path(&kept.attempt), content).await
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    const fn new(task: String, request: String, ended: Option<Timestamp>) -> Self {
        Self { task, request, ended, waiting: Vec::new(), stored: false }
    }
}

impl Collector {
    /// Takes bytes of a stream; false once nothing more is needed of either.
    pub(crate) fn take(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        // One byte too many tells that something was left out.
        let room = (MAX_OUTPUT + 1).saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.stdout.len() <= MAX_OUTPUT || self.stderr.len() <= MAX_OUTPUT
    }

    /// What was written. `discarded` tells of which streams the sandbox itself has kept only a part.
    pub(crate) fn finish(self, discarded: Truncated) -> Output {
        Output {
            stdout: Captured::new(&self.stdout, discarded.stdout),
            stderr: Captured::new(&self.stderr, discarded.stderr),
        }
    }
}

impl Captured {
    fn new(bytes: &[u8], discarded: bool) -> Self {
        // Bytes that are no UTF-8 become longer.
        let mut text = String::from_utf8_lossy(cut(bytes, MAX_OUTPUT)).into_owned();
        let long = bytes.len() > MAX_OUTPUT || text.len() > MAX_OUTPUT;
        text.truncate(text.floor_char_boundary(MAX_OUTPUT));
        Self { text, truncated: discarded || long }
    }

    fn append(&mut self, other: &Self) {
        let room = MAX_OUTPUT - self.text.len();
        let fits = other.text.floor_char_boundary(room);
        self.truncated |= other.truncated || fits < other.text.len();
        self.text.push_str(&other.text[..fits]);
    }
}

/// The first bytes, without a character that they would cut.
fn cut(bytes: &[u8], most: usize) -> &[u8] {
    if bytes.len() <= most {
        return bytes;
    }
    // A character has at most four bytes, and all but its first are of one kind.
    let boundary = (most.saturating_sub(3)..=most).rev().find(|at| bytes[*at] & 0xc0 != 0x80);
    &bytes[..boundary.unwrap_or(most)]
}

fn response(kept: &Kept, end: End) -> RunJobResponse {
    let End { phase, reason, message, exit_code, started_at, ended_at } = end;
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    for output in kept.steps.values() {
        stdout.append(&output.stdout);
        stderr.append(&output.stderr);
    }
    let status = RunStatus::from(phase);
    RunJobResponse {
        version: VERSION,
        task_id: kept.task.clone(),
        job_id: kept.attempt.job.clone(),
        epoch: kept.attempt.epoch,
        exit_code: match status {
            RunStatus::Completed => exit_code.unwrap_or(0),
            RunStatus::Failed => exit_code.unwrap_or(-1),
            RunStatus::Timeout | RunStatus::Running => -1,
        },
        status,
        truncated: Truncated { stdout: stdout.truncated, stderr: stderr.truncated },
        stdout: stdout.text,
        stderr: stderr.text,
        started_at,
        ended_at: Some(ended_at),
        reason: Some(reason),
        message,
    }
}

fn path(attempt: &AttemptId) -> String {
    format!("{FOLDER}/{}.json", attempt_name(attempt))
}

fn read<T: serde::de::DeserializeOwned>(path: &str, content: &[u8]) -> Option<T> {
    match serde_json::from_slice(content) {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!(path, error = %error, "what was kept of a run is damaged and not used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryFs;

    fn id(job: &str, epoch: u64) -> AttemptId {
        AttemptId { job: job.to_owned(), epoch }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn end(phase: TerminalPhase, exit_code: Option<i32>) -> End {
        End {
            phase,
            reason: "Completed".to_owned(),
            message: None,
            exit_code,
            started_at: Some(at(1)),
            ended_at: at(2),
        }
    }

    fn output(stdout: &[u8], stderr: &[u8]) -> Output {
        let mut collector = Collector::default();
        collector.take(Stream::Stdout, stdout);
        collector.take(Stream::Stderr, stderr);
        collector.finish(Truncated::default())
    }

    async fn open(fs: &Arc<MemoryFs>) -> Runs {
        Runs::open(fs.clone(), at(3), |_| false).await.unwrap()
    }

    #[tokio::test]
    async fn those_who_wait_get_the_result_and_those_who_come_later_the_kept_one() {
        let fs = Arc::new(MemoryFs::default());
        let runs = open(&fs).await;
        let bare = id("job", 0);
        assert!(matches!(runs.find(&bare, None), Found::Unknown));
        runs.began(&bare, "task".to_owned(), "r".to_owned());
        let Found::Running { end: waiting, .. } = runs.find(&bare, Some("r")) else { panic!() };
        assert!(matches!(runs.find(&bare, Some("other")), Found::Other));
        assert!(!runs.settle(&bare, at(2)).await.unwrap(), "it goes on");
        runs.keep_output(&bare, 0, output(b"one\n", b"")).await;
        runs.keep_output(&bare, 0, output(b"one\n", b"")).await;
        runs.keep_output(&bare, 1, output(b"two\n", b"oops")).await;
        runs.ended(&bare, end(TerminalPhase::Failed, Some(3))).await;
        let response = waiting.await.unwrap();
        assert_eq!((response.status, response.exit_code), (RunStatus::Failed, 3));
        assert_eq!((response.stdout.as_str(), response.stderr.as_str()), ("one\ntwo\n", "oops"));
        let again = open(&fs).await;
        assert!(matches!(again.find(&bare, Some("r")), Found::Ended));
        assert_eq!(again.result(&bare).await.unwrap().as_ref(), Some(&*response));
        assert!(again.settle(&bare, at(9)).await.unwrap());
        assert!(matches!(open(&fs).await.find(&bare, Some("r")), Found::Settled));
        assert_eq!(fs.paths(), ["results/settled.json"]);
    }

    #[tokio::test]
    async fn the_result_of_an_attempt_is_kept_until_the_controller_has_stored_it() {
        let fs = Arc::new(MemoryFs::default());
        let runs = open(&fs).await;
        for (job, stored_first) in [("a", false), ("b", true)] {
            let attempt = id(job, 1);
            runs.began(&attempt, job.to_owned(), String::new());
            let Found::Running { end: waiting, .. } = runs.find(&attempt, None) else { panic!() };
            runs.keep_output(&attempt, 0, output(b"x", b"")).await;
            if stored_first {
                runs.stored(&attempt).await;
            }
            runs.ended(&attempt, end(TerminalPhase::Succeeded, None)).await;
            assert_eq!(waiting.await.unwrap().exit_code, 0);
            if !stored_first {
                assert_eq!(runs.result(&attempt).await.unwrap().unwrap().stdout, "x");
                runs.stored(&attempt).await;
            }
            assert!(matches!(runs.find(&attempt, None), Found::Unknown));
        }
        assert!(fs.paths().is_empty(), "{:?}", fs.paths());
    }

    #[tokio::test]
    async fn after_a_restart_only_what_is_not_stored_yet_is_there() {
        let fs = Arc::new(MemoryFs::default());
        let runs = open(&fs).await;
        for job in ["a", "b"] {
            runs.began(&id(job, 1), job.to_owned(), String::new());
            runs.ended(&id(job, 1), end(TerminalPhase::TimedOut, Some(0))).await;
        }
        let runs = Runs::open(fs.clone(), at(3), |attempt| attempt.job == "a").await.unwrap();
        assert_eq!(runs.result(&id("a", 1)).await.unwrap().unwrap().exit_code, -1);
        assert!(matches!(runs.find(&id("b", 1), None), Found::Unknown));
        assert_eq!(fs.paths().len(), 1);
    }

    #[tokio::test]
    async fn results_are_kept_a_day_and_names_a_week() {
        let fs = Arc::new(MemoryFs::default());
        let runs = open(&fs).await;
        runs.began(&id("old", 0), "t".to_owned(), String::new());
        runs.ended(&id("old", 0), end(TerminalPhase::Succeeded, None)).await;
        runs.tidy(at(2) + KEEP).await;
        assert!(matches!(runs.find(&id("old", 0), None), Found::Ended));
        let later = at(3) + KEEP;
        runs.tidy(later).await;
        assert!(matches!(runs.find(&id("old", 0), None), Found::Settled));
        for number in 0..=MOST_KEPT {
            let attempt = id(&format!("new-{number:03}"), 0);
            runs.began(&attempt, "t".to_owned(), String::new());
            let ended_at = later + REMEMBER + SignedDuration::from_secs(i64::try_from(number).unwrap() + 1);
            runs.ended(&attempt, End { ended_at, ..end(TerminalPhase::Succeeded, None) }).await;
        }
        assert!(matches!(runs.find(&id("new-000", 0), None), Found::Settled), "one too many");
        assert!(matches!(runs.find(&id("new-001", 0), None), Found::Ended));
        assert!(matches!(runs.find(&id("old", 0), None), Found::Unknown), "nobody comes back for it");
    }

    #[test]
    fn output_is_cut_at_its_cap_between_characters_and_the_flag_says_so() {
        let text = |output: &Output| (output.stdout.text.len(), output.stdout.truncated);
        assert_eq!(text(&output(&[b'a'; MAX_OUTPUT], b"")), (MAX_OUTPUT, false));
        assert_eq!(text(&output(&[b'a'; MAX_OUTPUT + 1], b"")), (MAX_OUTPUT, true));
        let euro = "€".repeat(MAX_OUTPUT / 3 + 1);
        let cut = output(euro.as_bytes(), b"");
        assert_eq!(text(&cut), (MAX_OUTPUT / 3 * 3, true));
        assert!(!cut.stdout.text.contains('\u{fffd}'), "no half character");
        let rubbish = output(&[0xff; 100_000], b"");
        assert_eq!(text(&rubbish), (MAX_OUTPUT / 3 * 3, true), "each byte becomes three");
        let mut kept = Kept {
            attempt: id("a", 0),
            task: String::new(),
            request: String::new(),
            steps: BTreeMap::new(),
            response: None,
        };
        kept.steps.insert(0, output(&[b'a'; MAX_OUTPUT - 1], b""));
        kept.steps.insert(1, output("ž".as_bytes(), b"e"));
        let response = response(&kept, end(TerminalPhase::Succeeded, None));
        assert_eq!((response.stdout.len(), response.truncated.stdout), (MAX_OUTPUT - 1, true));
        assert_eq!((response.stderr.as_str(), response.truncated.stderr), ("e", false));
    }
}
