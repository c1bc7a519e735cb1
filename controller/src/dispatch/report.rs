//! Reports: what happened in attempts, and what follows from it.
//!
//! *Flow.* Large bodies go to the object store; then records and the transitions that they cause go to the store in
//! one transaction. *Guarantees.* A record is answered only after it is on disk. A transition is decided on a row and
//! made only if the row is still that one; otherwise it is decided again. Decisions are made from duplicates too, so a
//! controller that dies between storing a record and making its transition makes it when the record comes again.
//! A report whose records are stored does not fail: what could not be settled is left without an answer, record by
//! record, and only where the job has really changed in every round or cannot be read. So no record can hold up others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use windlass_core::life::{self, Ending, JobView, Next};
use windlass_core::progress::{End, Progress};
use windlass_crds::JobPhase;
use windlass_crds::protocol::bounds::Bounded as _;
use windlass_crds::protocol::{
    self, AttemptId, NODE_RECORDS, Outcome, Record, RecordBody, RecordOutcome, ReportRequest, ReportResponse,
    Terminal, TerminalPhase,
};
use windlass_crds::sandbox_job::StepStatus;
use windlass_store::{
    AttemptChange, AttemptPhase, JobChange, JobRow, LateOutcome, LateSteps, MAX_SEQUENCE, NewRecord,
    NodeChange, NodeRow, RecordKind, RecordStore, Reportable, Transition, TransitionOutcome,
};

use super::{Dispatch, check_version, facts};
use crate::error::{ApiError, Code, chain};

/// Log bodies up to this size live in their row: a file of their own would cost more than it holds.
const INLINE_LIMIT: usize = 16 * 1024;
/// The most records in one report.
const MAX_RECORDS: usize = 1024;
/// How often a decision is made again because its row has changed meanwhile.
const MAX_ROUNDS: usize = 8;

/// The attempts whose records may still have to change a job, with the positions of these records in the batch.
type Open<'r> = BTreeMap<&'r AttemptId, Vec<usize>>;

/// A record as it is stored.
struct Prepared {
    new: NewRecord,
    /// The body, where it is too large for the row.
    large: Option<Vec<u8>>,
}

/// How far a batch is settled.
#[derive(Default)]
struct Settling<'r> {
    open: Open<'r>,
    /// The version of the job on which the last decision was made.
    tried: HashMap<&'r AttemptId, i64>,
    /// Positions of records that must come again.
    unanswered: Vec<usize>,
}

impl Settling<'_> {
    fn settled(&mut self, attempt: &AttemptId) {
        self.open.remove(attempt);
    }

    fn unsettled(&mut self, attempt: &AttemptId) {
        self.unanswered.extend(self.open.remove(attempt).into_iter().flatten());
    }
}

/// What records change on a job.
#[expect(
    clippy::large_enum_variant,
    reason = "a decision is matched once and holds a change in nearly every case"
)]
enum Decision {
    /// They say nothing new.
    Nothing,
    /// The job's row is damaged.
    Unreadable,
    /// The job, which the node holds, moves on.
    Move(Transition),
    /// The attempt has ended already: its picture is completed, and nothing else.
    Complete(LateSteps),
}

impl Dispatch {
    /// Takes a batch of records in and answers for each.
    pub async fn report(&self, node: &NodeRow, request: ReportRequest) -> Result<ReportResponse, ApiError> {
        check_version(request.version)?;
        if request.records.len() > MAX_RECORDS {
            return Err(ApiError::new(
                Code::TooLarge,
                format!("records: {} in one report; send at most {MAX_RECORDS}", request.records.len()),
            ));
        }
        let (records, facts) = facts::split(request.records);
        let told = self.take_facts(&node.name, facts).await?;
        let mut stored = Vec::with_capacity(records.len());
        let mut kept = Vec::with_capacity(records.len());
        let mut large = Vec::new();
        let mut outcomes: Vec<Option<RecordOutcome>> = Vec::with_capacity(records.len());
        for mut record in records {
            let id = (record.attempt.clone(), record.sequence);
            match prepare(&mut record)? {
                Ok(Prepared { new, large: body }) => {
                    large.extend(body.map(|body| (stored.len(), body)));
                    stored.push(new);
                    kept.push(record);
                    outcomes.push(None);
                }
                Err(detail) => outcomes.push(Some(RecordOutcome {
                    attempt: id.0,
                    sequence: id.1,
                    outcome: Outcome::Rejected,
                    detail: Some(detail),
                })),
            }
        }
        let objects = self.keep_bodies(&node.name, &mut stored, large).await?;
        let settled = self.settle(&node.name, stored, &kept).await?;
        for (position, key) in objects {
            if settled[position] == Some(Outcome::Rejected) {
                self.forget_body(&key).await;
            }
        }
        let mut settled = kept.into_iter().zip(settled).map(|(record, outcome)| {
            outcome.map(|outcome| RecordOutcome {
                attempt: record.attempt,
                sequence: record.sequence,
                detail: (outcome == Outcome::Rejected)
                    .then(|| format!("the job is not known, or was never given to node `{}`", node.name)),
                outcome,
            })
        });
        let results = outcomes.into_iter().filter_map(|refused| match refused {
            Some(refused) => Some(refused),
            None => settled.next().expect("every record was either refused or stored"),
        });
        Ok(ReportResponse { version: protocol::VERSION, results: results.chain(told).collect() })
    }

    /// Puts large bodies, by position in `stored`, into the object store, and yields the keys of what was written.
    ///
    /// A key follows from the record, so that a repeated report writes the same object again. Nothing is written for a
    /// record that will not be stored: neither over what a record that is stored names, nor for what is not the node's.
    async fn keep_bodies(
        &self,
        node: &str,
        stored: &mut [NewRecord],
        large: Vec<(usize, Vec<u8>)>,
    ) -> Result<Vec<(usize, String)>, ApiError> {
        let asked: Vec<_> = large
            .iter()
            .map(|(position, _)| (&stored[*position].attempt, stored[*position].sequence))
            .collect();
        let fates = self.parts.store.reportable(node, &asked).await?;
        let mut seen = HashSet::new();
        let mut written = Vec::with_capacity(large.len());
        for ((position, body), fate) in large.into_iter().zip(fates) {
            let NewRecord { attempt: AttemptId { job, epoch }, sequence, .. } = &stored[position];
            let key = format!("logs/{job}/{epoch}/{sequence}");
            match fate {
                // Of a record that comes twice in a batch the first is stored.
                Reportable::New if seen.insert(key.clone()) => {}
                Reportable::New | Reportable::Known | Reportable::Refused => continue,
            }
            let len = body.len() as u64;
            self.parts.bodies.put(&key, body.into()).await.map_err(|error| ApiError {
                source: Some(Box::new(error)),
                ..ApiError::new(Code::Unavailable, "could not store a log body")
            })?;
            stored[position].body = RecordStore::Object { key: key.clone(), len };
            written.push((position, key));
        }
        Ok(written)
    }

    /// Removes the body of a record that was not stored after all: its job was deleted, or its attempt has ended,
    /// while the body was written.
    async fn forget_body(&self, key: &str) {
        if let Err(error) = self.parts.bodies.remove(key).await {
            tracing::warn!(key, error = %chain(&error), "the body of a refused record could not be removed");
        }
    }

    /// Stores records and makes what follows from them: one outcome per record, in order. None where the job kept
    /// changing under the decision, or could not be read: such a record is stored and comes again.
    ///
    /// Once the records are stored nothing fails the report any more, and no job holds up the records of another.
    async fn settle(
        &self,
        node: &str,
        stored: Vec<NewRecord>,
        records: &[Record],
    ) -> Result<Vec<Option<Outcome>>, ApiError> {
        let mut settling = Settling::default();
        for (position, record) in records.iter().enumerate().filter(|(_, record)| tells(&record.body)) {
            settling.open.entry(&record.attempt).or_default().push(position);
        }
        let (mut moving, mut moves) = (Vec::new(), Vec::new());
        for (attempt, decision) in self.decide(node, records, &settling.open).await? {
            match decision {
                Decision::Nothing => settling.settled(attempt),
                Decision::Unreadable => settling.unsettled(attempt),
                Decision::Move(transition) => {
                    settling.tried.insert(attempt, transition.expect_version);
                    moving.push(attempt);
                    moves.push(transition);
                }
                // Only records that were accepted may complete a picture, and that is not known yet.
                Decision::Complete(_) => {}
            }
        }
        let applied = self.parts.store.apply(self.now(), node, stored, moves).await?;
        for (attempt, outcome) in moving.into_iter().zip(&applied.transitions) {
            if is_done(outcome) {
                settling.settled(attempt);
            }
        }
        let outcomes = applied.records;
        let admitted = |position: &usize| outcomes[*position] != Outcome::Rejected;
        settling.open.retain(|_, positions| {
            positions.retain(admitted);
            !positions.is_empty()
        });
        for _ in 0..MAX_ROUNDS {
            if settling.open.is_empty() {
                break;
            }
            if let Err(error) = self.settle_open(node, records, &mut settling).await {
                tracing::warn!(
                    node.name = node,
                    error = %chain(&error),
                    "what records cause could not be carried out; they are asked for again"
                );
                break;
            }
        }
        let Settling { open, tried: _, mut unanswered } = settling;
        unanswered.extend(open.into_values().flatten());
        unanswered.retain(admitted);
        let mut outcomes: Vec<_> = outcomes.into_iter().map(Some).collect();
        for position in unanswered {
            outcomes[position] = None;
        }
        Ok(outcomes)
    }

    /// Decides again on the jobs as they are now, and takes from `settling` what is settled.
    async fn settle_open<'r>(
        &self,
        node: &str,
        records: &'r [Record],
        settling: &mut Settling<'r>,
    ) -> Result<(), ApiError> {
        let (mut moving, mut moves) = (Vec::new(), Vec::new());
        let (mut completing, mut pictures) = (Vec::new(), Vec::new());
        for (attempt, decision) in self.decide(node, records, &settling.open).await? {
            let version = match decision {
                Decision::Nothing => {
                    settling.settled(attempt);
                    continue;
                }
                Decision::Unreadable => {
                    settling.unsettled(attempt);
                    continue;
                }
                Decision::Move(transition) => {
                    let version = transition.expect_version;
                    moving.push(attempt);
                    moves.push(transition);
                    version
                }
                Decision::Complete(late) => {
                    let version = late.expect_version;
                    completing.push(attempt);
                    pictures.push(late);
                    version
                }
            };
            if settling.tried.insert(attempt, version) == Some(version) {
                // The job has not changed since the store refused this: it would refuse it for ever.
                tracing::error!(
                    job.id = %attempt.job,
                    job.epoch = attempt.epoch,
                    job.version = version,
                    "the store refuses what the records of a job cause"
                );
                settling.settled(attempt);
            }
        }
        let outcomes = self.parts.store.apply_transitions(self.now(), moves).await?;
        for (attempt, outcome) in moving.into_iter().zip(outcomes) {
            if is_done(&outcome) {
                settling.settled(attempt);
            }
        }
        let outcomes = self.parts.store.complete_pictures(pictures).await?;
        for (attempt, outcome) in completing.into_iter().zip(outcomes) {
            match outcome {
                LateOutcome::Done | LateOutcome::Fenced => settling.settled(attempt),
                LateOutcome::Stale => {}
            }
        }
        Ok(())
    }

    /// What records cause on the jobs as they are now.
    async fn decide<'r>(
        &self,
        node: &str,
        records: &'r [Record],
        open: &Open<'r>,
    ) -> Result<Vec<(&'r AttemptId, Decision)>, ApiError> {
        let uids: BTreeSet<&str> = open.keys().map(|attempt| attempt.job.as_str()).collect();
        let jobs = self.read_jobs(uids.into_iter().map(str::to_owned).collect()).await?;
        let decided = open.iter().map(|(attempt, positions)| {
            let decision = match jobs.get(&attempt.job) {
                None => Decision::Unreadable,
                Some(Some(job)) if job.epoch == attempt.epoch && job.node.as_deref() == Some(node) => {
                    self.decision(job, positions.iter().map(|position| &records[*position]))
                }
                Some(Some(_) | None) => Decision::Nothing,
            };
            (*attempt, decision)
        });
        Ok(decided.collect())
    }

    /// The jobs as they are now, none where there is no such job; those whose rows are damaged are left out.
    async fn read_jobs(&self, uids: Vec<String>) -> Result<HashMap<String, Option<JobRow>>, ApiError> {
        let mut jobs = HashMap::with_capacity(uids.len());
        match self.parts.store.get_jobs(&uids).await {
            Ok(found) => {
                jobs.extend(uids.into_iter().map(|uid| (uid, None)));
                jobs.extend(found.into_iter().map(|job| (job.uid.clone(), Some(job))));
            }
            Err(windlass_store::Error::Corrupt { .. }) => {
                for uid in uids {
                    match self.parts.store.get_jobs(std::slice::from_ref(&uid)).await {
                        Ok(found) => drop(jobs.insert(uid, found.into_iter().next())),
                        Err(error @ windlass_store::Error::Corrupt { .. }) => {
                            tracing::error!(job.id = uid, error = %error, "a job cannot be read; what it reports changes nothing until it is repaired");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(jobs)
    }

    /// What the records of its current attempt change on a job.
    fn decision<'r>(&self, job: &JobRow, records: impl Iterator<Item = &'r Record>) -> Decision {
        let mut progress = Progress {
            steps: steps(job),
            unenforced: job.unenforced.clone(),
            started_at: job.started_at,
            terminal: None,
            end: job.finished_at.map(|at| End {
                at,
                succeeded: job.phase == JobPhase::Succeeded,
                reason: job.reason.clone().unwrap_or_else(|| job.phase.to_string()),
            }),
        };
        for record in records {
            progress.fold(record.at, &record.body);
        }
        let news = progress.steps != job.steps
            || progress.unenforced != job.unenforced
            || progress.started_at != job.started_at;
        if job.phase.is_held() {
            self.moved(job, &progress, news).map_or(Decision::Nothing, Decision::Move)
        } else if news {
            let Progress { steps, unenforced, started_at, terminal: _, end: _ } = progress;
            let (job, epoch, expect_version) = (job.uid.clone(), job.epoch, job.resource_version);
            Decision::Complete(LateSteps { job, epoch, expect_version, steps, unenforced, started_at })
        } else {
            Decision::Nothing
        }
    }

    /// What a job that is held becomes with this picture of its attempt.
    fn moved(&self, job: &JobRow, progress: &Progress, news: bool) -> Option<Transition> {
        let mut change = JobChange {
            steps: (progress.steps != job.steps).then(|| progress.steps.clone()),
            unenforced: (progress.unenforced != job.unenforced).then(|| progress.unenforced.clone()),
            started_at: progress.started_at,
            ..JobChange::of(job)
        };
        let started = progress.started_at.is_some();
        if let Some(terminal) = &progress.terminal {
            let lease_until = job.lease_until.unwrap_or_else(|| self.now());
            // Nobody has cancelled the job: the attempt was stopped to empty the node.
            let drained = terminal.phase == TerminalPhase::Cancelled && job.cancel_requested_at.is_none();
            let (reason, message) = if drained {
                ("Drained".to_owned(), Some("its node was drained".to_owned()))
            } else {
                (terminal.reason.clone(), terminal.message.clone())
            };
            let ending = Ending {
                phase: terminal.phase,
                reason,
                message,
                exit_code: terminal.exit_code,
                controller_was_away: self.was_away(lease_until),
                started,
            };
            self.end(job, &ending, Some(terminal), &mut change);
        } else if started && job.phase == JobPhase::Claimed {
            change.phase = JobPhase::Running;
            change.reason = Some("Running".to_owned());
            change.message = None;
            change.attempt = Some(AttemptChange {
                phase: AttemptPhase::Running,
                reason: None,
                message: None,
                exit_code: None,
                ended_at: None,
                last_sequence: None,
            });
        } else if !news {
            return None;
        }
        Some(transition(job, change))
    }

    /// Fills in what follows from the end of the job's current attempt.
    pub(crate) fn end(
        &self,
        job: &JobRow,
        ending: &Ending,
        terminal: Option<&Terminal>,
        change: &mut JobChange,
    ) {
        let view = JobView {
            retry: &job.spec.retry,
            cancel_requested: job.cancel_requested_at.is_some(),
            attempts: job.attempts,
            lost_attempts: job.lost_attempts,
            failures: job.failures,
        };
        let now = self.now();
        let Next { phase, reason, message, exit_code, not_before, lost_attempts, failures } =
            life::next(view, ending, now, self.parts.ids.chance());
        tracing::info!(
            job.id = %job.uid,
            job.epoch = job.epoch,
            job.phase = %phase,
            job.reason = %reason,
            attempt.outcome = %ending.phase,
            "attempt ended"
        );
        change.phase = phase;
        change.reason = Some(reason);
        change.message = message;
        change.exit_code = exit_code;
        change.not_before = not_before;
        change.finished_at = phase.is_terminal().then_some(now);
        if !phase.is_terminal() {
            change.node = NodeChange::Clear;
        }
        change.lost_attempts = lost_attempts;
        change.failures = failures;
        change.attempt = Some(AttemptChange {
            phase: attempt_phase(ending.phase),
            reason: Some(ending.reason.clone()),
            message: ending.message.clone(),
            exit_code: ending.exit_code,
            ended_at: Some(now),
            last_sequence: terminal.map(|terminal| terminal.last_sequence),
        });
    }
}

/// The steps of the job's current attempt, as far as they are known.
fn steps(job: &JobRow) -> Vec<StepStatus> {
    if job.steps.is_empty() {
        let names = windlass_core::validate::step_names(&job.spec);
        return Progress::new(names.iter().map(String::as_str)).steps;
    }
    job.steps.clone()
}

/// A change that holds only for the row that it was decided on.
pub(crate) fn transition(job: &JobRow, set: JobChange) -> Transition {
    Transition { job: job.uid.clone(), epoch: job.epoch, expect_version: job.resource_version, set }
}

const fn is_done(outcome: &TransitionOutcome) -> bool {
    match outcome {
        TransitionOutcome::Done(_) => true,
        TransitionOutcome::Stale => false,
    }
}

/// The record as it is stored; the inner error says why it can never be accepted.
fn prepare(record: &mut Record) -> Result<Result<Prepared, String>, ApiError> {
    if let Some(error) = record.bound("").into_iter().next() {
        return Ok(Err(error.to_string()));
    }
    if let Some(problem) = problem(record) {
        return Ok(Err(problem));
    }
    let mut new = NewRecord {
        attempt: record.attempt.clone(),
        sequence: record.sequence,
        at: record.at,
        kind: kind(&record.body),
        step: None,
        stream: None,
        offset: None,
        body: RecordStore::None,
    };
    match &record.body {
        RecordBody::Log { step, stream, offset, body } => {
            let Some(bytes) = body.clone().into_bytes() else {
                return Ok(Err("body.base64: not standard base64".to_owned()));
            };
            new.step = Some(*step);
            new.stream = Some(*stream);
            new.offset = Some(*offset);
            if bytes.len() > INLINE_LIMIT {
                return Ok(Ok(Prepared { new, large: Some(bytes) }));
            }
            new.body = RecordStore::Inline(bytes);
        }
        other => {
            let json =
                serde_json::to_value(other).map_err(|error| ApiError::internal("store a record", error))?;
            new.body = RecordStore::Json(json);
        }
    }
    Ok(Ok(Prepared { new, large: None }))
}

/// Why a record can never be accepted, as far as it can be told from the record alone. What is refused here drives no
/// job.
fn problem(record: &Record) -> Option<String> {
    if !(1..=MAX_SEQUENCE).contains(&record.sequence) {
        return Some(format!("sequence: {} is not between 1 and {MAX_SEQUENCE}", record.sequence));
    }
    let job = &record.attempt.job;
    if job.len() > 64 || !job.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Some("attempt.job: not a uid".to_owned());
    }
    match &record.body {
        RecordBody::Terminal(terminal) if terminal.last_sequence != record.sequence => Some(format!(
            "body.last_sequence: {} in the terminal record {}; it is the last itself",
            terminal.last_sequence, record.sequence
        )),
        RecordBody::Terminal(_)
        | RecordBody::Started { .. }
        | RecordBody::StepStarted { .. }
        | RecordBody::Log { .. }
        | RecordBody::StepEnded(_)
        | RecordBody::Artifacts { .. }
        | RecordBody::Event { .. } => None,
        RecordBody::Facts(_) => {
            Some(format!("body: facts are of no job; attempt.job must be `{NODE_RECORDS}`"))
        }
    }
}

/// Whether records of this kind can change a job.
const fn tells(body: &RecordBody) -> bool {
    match body {
        RecordBody::Started { .. }
        | RecordBody::StepStarted { .. }
        | RecordBody::StepEnded(_)
        | RecordBody::Terminal(_) => true,
        RecordBody::Log { .. }
        | RecordBody::Event { .. }
        | RecordBody::Artifacts { .. }
        | RecordBody::Facts(_) => false,
    }
}

const fn attempt_phase(phase: TerminalPhase) -> AttemptPhase {
    match phase {
        TerminalPhase::Succeeded => AttemptPhase::Succeeded,
        TerminalPhase::Failed => AttemptPhase::Failed,
        TerminalPhase::Cancelled => AttemptPhase::Cancelled,
        TerminalPhase::TimedOut => AttemptPhase::TimedOut,
        TerminalPhase::Lost => AttemptPhase::Lost,
        TerminalPhase::Released => AttemptPhase::Released,
    }
}

const fn kind(body: &RecordBody) -> RecordKind {
    match body {
        RecordBody::Started { .. } => RecordKind::Started,
        RecordBody::StepStarted { .. } => RecordKind::StepStarted,
        RecordBody::Log { .. } => RecordKind::Log,
        RecordBody::StepEnded(_) => RecordKind::StepEnded,
        // Facts never come here: they are no records of a job.
        RecordBody::Event { .. } | RecordBody::Facts(_) => RecordKind::Event,
        RecordBody::Artifacts { .. } => RecordKind::Artifacts,
        RecordBody::Terminal(_) => RecordKind::Terminal,
    }
}
