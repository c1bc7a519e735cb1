//! Reports: what happened in attempts, and what follows from it.
//!
//! *Flow.* Large bodies go to the object store; then records and the transitions that they cause go to the store in
//! one transaction. *Guarantees.* A record is answered only after it is on disk. A transition is decided on a row and
//! made only if the row is still that one; otherwise it is decided again. Decisions are made from duplicates too, so a
//! controller that dies between storing a record and making its transition makes it when the record comes again.

use std::collections::{BTreeMap, HashMap};

use windlass_core::life::{self, Ending, JobView, Next};
use windlass_core::progress::Progress;
use windlass_crds::JobPhase;
use windlass_crds::protocol::{
    self, AttemptId, Outcome, Record, RecordBody, RecordOutcome, ReportRequest, ReportResponse, Terminal,
    TerminalPhase,
};
use windlass_crds::sandbox_job::StepStatus;
use windlass_store::{
    AttemptChange, AttemptPhase, JobChange, JobRow, NewRecord, NodeChange, NodeRow, RecordKind, RecordStore,
    Transition, TransitionOutcome,
};

use super::{Dispatch, check_version};
use crate::error::{ApiError, Code};

/// Log bodies up to this size live in their row: a file of their own would cost more than it holds.
const INLINE_LIMIT: usize = 16 * 1024;
/// The most records in one report.
const MAX_RECORDS: usize = 1024;
/// How often a decision is made again because its row has changed meanwhile.
const MAX_ROUNDS: usize = 8;

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
        let mut stored = Vec::with_capacity(request.records.len());
        let mut kept = Vec::with_capacity(request.records.len());
        let mut outcomes: Vec<Option<RecordOutcome>> = Vec::with_capacity(request.records.len());
        for record in request.records {
            let id = (record.attempt.clone(), record.sequence);
            match self.keep_body(&record).await? {
                Ok(new) => {
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
        let results = self.store_and_decide(&node.name, stored, &kept).await?;
        let mut results = kept.into_iter().zip(results).map(|(record, outcome)| RecordOutcome {
            attempt: record.attempt,
            sequence: record.sequence,
            detail: (outcome == Outcome::Rejected)
                .then(|| format!("the job is not known, or was never given to node `{}`", node.name)),
            outcome,
        });
        let results = outcomes.into_iter().map(|outcome| {
            outcome.or_else(|| results.next()).expect("every record was either refused or stored")
        });
        Ok(ReportResponse { version: protocol::VERSION, results: results.collect() })
    }

    /// Puts the record's body where it belongs; the inner error says why the record can never be accepted.
    async fn keep_body(&self, record: &Record) -> Result<Result<NewRecord, String>, ApiError> {
        if record.sequence == 0 {
            return Ok(Err("sequence: numbers start at 1".to_owned()));
        }
        let AttemptId { job, epoch } = &record.attempt;
        if job.len() > 64 || !job.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Ok(Err("attempt.job: not a uid".to_owned()));
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
                new.body = if bytes.len() <= INLINE_LIMIT {
                    RecordStore::Inline(bytes)
                } else {
                    // The key follows from the record, so that a repeated report writes the same object again.
                    let key = format!("logs/{job}/{epoch}/{}", record.sequence);
                    let len = bytes.len() as u64;
                    let written = self.parts.bodies.put(&key, bytes.into()).await;
                    written.map_err(|error| ApiError {
                        source: Some(Box::new(error)),
                        ..ApiError::new(Code::Unavailable, "could not store a log body")
                    })?;
                    RecordStore::Object { key, len }
                };
            }
            other => {
                let json = serde_json::to_value(other)
                    .map_err(|error| ApiError::internal("store a record", error))?;
                new.body = RecordStore::Json(json);
            }
        }
        Ok(Ok(new))
    }

    async fn store_and_decide(
        &self,
        node: &str,
        stored: Vec<NewRecord>,
        records: &[Record],
    ) -> Result<Vec<Outcome>, ApiError> {
        let mut by_job: BTreeMap<&AttemptId, Vec<&Record>> = BTreeMap::new();
        for record in records {
            by_job.entry(&record.attempt).or_default().push(record);
        }
        let mut transitions = self.decide(node, &by_job).await?;
        let expected = transitions.len();
        let applied = self.parts.store.apply(self.now(), node, stored, transitions).await?;
        let mut stale = count_stale(&applied.transitions);
        debug_assert_eq!(expected, applied.transitions.len(), "one outcome per transition");
        for _ in 0..MAX_ROUNDS {
            if stale == 0 {
                return Ok(applied.records);
            }
            transitions = self.decide(node, &by_job).await?;
            stale = count_stale(&self.parts.store.apply_transitions(self.now(), transitions).await?);
        }
        Err(ApiError::new(Code::Conflict, "the job keeps changing; send the report again"))
    }

    /// The transitions that the records of a report cause on the jobs as they are now.
    async fn decide(
        &self,
        node: &str,
        by_job: &BTreeMap<&AttemptId, Vec<&Record>>,
    ) -> Result<Vec<Transition>, ApiError> {
        let telling = |records: &[&Record]| {
            records
                .iter()
                .any(|record| !matches!(record.body, RecordBody::Log { .. } | RecordBody::Event { .. }))
        };
        let telling: Vec<_> = by_job.iter().filter(|(_, records)| telling(records)).collect();
        if telling.is_empty() {
            return Ok(Vec::new());
        }
        let uids: Vec<_> = telling.iter().map(|(attempt, _)| attempt.job.clone()).collect();
        let jobs = self.parts.store.get_jobs(&uids).await?;
        let jobs: HashMap<_, _> = jobs.into_iter().map(|job| (job.uid.clone(), job)).collect();
        let mut transitions = Vec::new();
        for (attempt, records) in telling {
            let Some(job) = jobs.get(&attempt.job) else { continue };
            if job.epoch == attempt.epoch && job.node.as_deref() == Some(node) {
                transitions.extend(self.transition(job, records));
            }
        }
        Ok(transitions)
    }

    /// What the records of its current attempt change on a job; `None` where they say nothing new.
    fn transition(&self, job: &JobRow, records: &[&Record]) -> Option<Transition> {
        let mut progress = Progress {
            steps: steps(job),
            unenforced: job.unenforced.clone(),
            started_at: job.started_at,
            terminal: None,
        };
        for record in records {
            progress.fold(record.at, &record.body);
        }
        let mut change = JobChange {
            steps: (progress.steps != job.steps).then(|| progress.steps.clone()),
            unenforced: (progress.unenforced != job.unenforced).then(|| progress.unenforced.clone()),
            started_at: progress.started_at,
            ..JobChange::of(job)
        };
        if !job.phase.is_held() {
            // The attempt has ended already: late step records complete its picture and nothing else.
            let news = change.steps.is_some() || change.unenforced.is_some();
            return news.then(|| transition(job, change));
        }
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
        } else if change.steps.is_none() && change.unenforced.is_none() && change.started_at == job.started_at
        {
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

fn count_stale(outcomes: &[TransitionOutcome]) -> usize {
    outcomes.iter().filter(|outcome| matches!(outcome, TransitionOutcome::Stale)).count()
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
        RecordBody::Event { .. } => RecordKind::Event,
        RecordBody::Terminal(_) => RecordKind::Terminal,
    }
}
