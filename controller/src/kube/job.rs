//! Jobs: a SandboxJob object and its job in the store.

mod plan;

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;
use windlass_core::validate::ValidJob;
use windlass_crds::JobPhase;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::sandbox_job::SandboxJobStatus;
use windlass_store::{Binding, DeleteOutcome, JobRow, OriginKind, OriginOutcome};

use self::plan::{Action, Known, Plan, Snapshot, plan};
use super::cluster::Error;
use super::event::{self, Happening, event};
use super::object::{Declared, JOB_ANNOTATION, Name, Seen, sentence};
use super::queue::{QUIET, Then};
use super::session::{AT_ONCE, Key, Looked, Session};
use super::status::{Accepted, Refusal, fit_job, settled};
use super::values::{LOOK, Lacking};
use crate::error::Code;
use crate::reconcile::remove_bodies;
use crate::rest::present;
use crate::submit::Submission;

/// How long to wait for something that nobody tells of: an input that is missing, a name that is taken.
const MISSING: Duration = Duration::from_secs(60);

/// How long the first status of a job that only waits may be put off while more objects are to be looked at than can be at once, and
/// how often it is thought of. Most such jobs run before it would be written, and what they do then is told in its place.
const PUT_OFF: (SignedDuration, Duration) = (SignedDuration::from_secs(10), Duration::from_secs(2));

/// What the store has for an object; see [`Known`].
enum Held {
    Nothing,
    Ended,
    Job(Box<JobRow>),
}

/// Brings a job and its object together.
pub(super) async fn look(session: &Session, name: &Name) -> Looked {
    let Some(seen) = session.cache.get(name) else { return Looked { then: Then::Settled, writes: 0 } };
    if session.cache.is_behind(name, &seen) {
        return Looked { then: Then::After(Duration::from_millis(200)), writes: 0 };
    }
    let mut look = Look { session, name, seen: (*seen).clone(), writes: 0 };
    match look.sync().await {
        Ok(then) => Looked { then, writes: look.writes },
        Err(error) => session.failed(&error, "bring a job and its object together", look.writes),
    }
}

struct Look<'a> {
    session: &'a Session,
    name: &'a Name,
    seen: Seen,
    writes: u32,
}

impl Look<'_> {
    async fn sync(&mut self) -> Result<Then, Error> {
        let Declared::Job(declared) = self.seen.declared.clone() else { return Ok(Then::Settled) };
        let mut held = self.observe().await?;
        let snapshot = Snapshot {
            seen: &self.seen,
            declared: declared.as_ref().map(|job| &**job).map_err(String::as_str),
            known: match &held {
                Held::Nothing => Known::Nothing,
                Held::Ended => Known::Ended,
                Held::Job(row) => Known::Job(row),
            },
            now: self.session.parts.clock.now(),
            delete_wait: self.session.parts.args.delete_wait.get(),
        };
        let Plan { actions, mut accepted, mut again } = plan(&snapshot);
        for action in actions {
            // One that leads may lose the lead between two actions.
            self.session.lead.check()?;
            match action {
                Action::Create => {
                    if let Ok(job) = &declared {
                        (held, accepted) = self.create(job).await?;
                        if accepted == Accepted::Yes {
                            // Much may have become of it by then.
                            return Ok(Then::After(QUIET));
                        }
                        again = Some(match accepted {
                            Accepted::No(Refusal::Lacking(_), _) => LOOK,
                            Accepted::Yes | Accepted::No(..) => MISSING,
                        });
                    }
                }
                Action::DeleteObject => {
                    tracing::info!(kube.name = %self.name.name, kube.uid = %self.seen.uid, "object deleted, as its job was before");
                    self.writes += 1;
                    self.session.writer.delete(self.name, &self.seen).await?;
                    return Ok(Then::Settled);
                }
                Action::GiveUp => {
                    let Held::Job(row) = &held else { continue };
                    self.give_up(row).await?;
                    return Ok(Then::Settled);
                }
                Action::Finalizer(wanted) => {
                    self.finalizer(wanted).await?;
                    if self.seen.is_deleted {
                        return Ok(Then::Settled);
                    }
                }
                Action::Change(patch) => {
                    let Held::Job(row) = &mut held else { continue };
                    let store = &self.session.parts.store;
                    let now = self.session.parts.clock.now();
                    match store.update_job(now, &row.uid, patch, Some(row.resource_version)).await {
                        Ok(updated) => **row = updated,
                        // It has changed meanwhile, which wakes this object again.
                        Err(
                            windlass_store::Error::Conflict { .. } | windlass_store::Error::NotFound { .. },
                        ) => return Ok(Then::After(Duration::from_millis(100))),
                        Err(error) => return Err(error.into()),
                    }
                }
                Action::Cancel => {
                    let Held::Job(row) = &held else { continue };
                    let (parts, uid) = (&self.session.parts, row.uid.clone());
                    parts.store.request_cancel(parts.clock.now(), &uid).await?;
                    tracing::info!(job.id = %uid, "job cancelled by its object");
                    held = self.observe().await?;
                }
                Action::Discard => {
                    let Held::Job(row) = &held else { continue };
                    let parts = &self.session.parts;
                    match parts.store.delete_job(parts.clock.now(), &row.uid, None).await? {
                        DeleteOutcome::Deleted { bodies } => {
                            remove_bodies(&parts.store, &parts.bodies, bodies).await?;
                            tracing::info!(job.id = %row.uid, "job deleted with its object");
                            held = Held::Ended;
                        }
                        DeleteOutcome::NotFound => held = Held::Ended,
                        // A node was quicker.
                        DeleteOutcome::StillHeld(_) => return Ok(Then::After(Duration::from_millis(100))),
                    }
                }
            }
        }
        if self.seen.is_deleted && matches!(held, Held::Ended | Held::Nothing) {
            // It goes as soon as everybody else has let it go.
            return Ok(Then::Settled);
        }
        if self.can_wait(&held, &accepted) {
            return Ok(Then::After(PUT_OFF.1));
        }
        self.report(&held, &accepted).await?;
        Ok(again.map_or(Then::Settled, Then::After))
    }

    async fn observe(&self) -> Result<Held, Error> {
        let store = &self.session.parts.store;
        let Some(row) = store.find_origin(&self.session.origin(&self.seen.uid)).await? else {
            return Ok(Held::Nothing);
        };
        if row.released {
            // It was thought to be lost.
            return Ok(Held::Nothing);
        }
        self.session.cache.concern(&row.subject, &Key::Object(self.name.clone()));
        let job = store.get_jobs(std::slice::from_ref(&row.subject)).await?.pop();
        Ok(job.map_or(Held::Ended, |job| Held::Job(Box::new(job))))
    }

    async fn create(&self, job: &ValidJob) -> Result<(Held, Accepted), Error> {
        let parts = &self.session.parts;
        let submission = Submission {
            store: &parts.store,
            bodies: &parts.bodies,
            clock: &*parts.clock,
            ids: &*parts.ids,
            of_cluster: true,
        };
        let new = match submission.prepare(job.get().clone(), None).await {
            Ok(new) => new,
            Err(error) if error.code == Code::Invalid => {
                return Ok((Held::Nothing, Accepted::No(Refusal::InputMissing, sentence(&error.errors))));
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(Lacking { lack, message }) = parts.secrets.lacking(&new.namespace, &new.spec).await? {
            return Ok((Held::Nothing, Accepted::No(Refusal::Lacking(lack), message)));
        }
        let origin = self.session.origin(&self.seen.uid);
        let key = Key::Object(self.name.clone());
        self.session.cache.concern(&new.uid, &key);
        let (now, uid) = (parts.clock.now(), new.uid.clone());
        match parts.store.create_job_of(now, origin.clone(), new).await? {
            OriginOutcome::Created(row) => {
                tracing::info!(job.id = %row.uid, job.name = %row.name, kube.uid = %self.seen.uid, "job created for an object");
                Ok((Held::Job(Box::new(row)), Accepted::Yes))
            }
            OriginOutcome::Known(row) => {
                self.session.cache.forget_subject(&uid);
                self.session.cache.concern(&row.uid, &key);
                // Looked at again as what it is.
                self.session.queue.wake(key);
                Ok((Held::Job(Box::new(row)), Accepted::Yes))
            }
            OriginOutcome::Ended => {
                self.session.cache.forget_subject(&uid);
                self.session.queue.wake(key);
                Ok((Held::Ended, Accepted::Yes))
            }
            OriginOutcome::NameTaken(other) => {
                self.session.cache.forget_subject(&uid);
                if self.seen.annotations.get(JOB_ANNOTATION) == Some(&other.uid) && is_same(&other, job) {
                    match parts.store.bind_origin(origin, OriginKind::Job, &other.uid).await? {
                        Binding::Bound => {
                            self.session.cache.concern(&other.uid, &key);
                            return Ok((Held::Job(Box::new(other)), Accepted::Yes));
                        }
                        Binding::Taken(_) => {}
                    }
                }
                if parts.store.origin_of(&other.uid).await?.is_none_or(|origin| origin.released) {
                    self.session.cache.concern(&other.uid, &key);
                }
                let ending = if other.phase.is_held() && other.cancel_requested_at.is_some() {
                    ", and is being stopped; this one is created when it is gone"
                } else {
                    "; delete it, or choose another name"
                };
                let message = format!(
                    "another job has the name `{}/{}`, created {}{ending}",
                    other.namespace, other.name, other.created_at
                );
                Ok((Held::Nothing, Accepted::No(Refusal::NameTaken, message)))
            }
        }
    }

    async fn finalizer(&mut self, wanted: bool) -> Result<(), Error> {
        self.writes += 1;
        let written = self.session.writer.finalizer(self.name, &self.seen, wanted).await?;
        self.session.cache.written(self.name, &self.seen);
        if let Some((_, seen)) = Seen::read(self.name.kind, written) {
            self.seen = seen;
        }
        Ok(())
    }

    /// Lets the object go although a node holds its job. The job goes on being stopped, and is deleted then.
    async fn give_up(&mut self, row: &JobRow) -> Result<(), Error> {
        let node = row.node.as_deref().unwrap_or("its node");
        let note = format!(
            "`{node}` has not said within {} that the job is stopped; the object goes, and the job is stopped there when its \
             lease ends",
            self.session.parts.args.delete_wait
        );
        tracing::warn!(job.id = %row.uid, node.name = node, "a deletion has waited long enough for the node");
        let happening = Happening {
            warning: true,
            reason: "StopNotConfirmed".to_owned(),
            action: "Delete",
            note,
            occurrence: row.epoch.to_string(),
        };
        self.tell(happening).await;
        self.finalizer(false).await
    }

    /// Writes the status where it is not what it should be, then an Event of what has changed.
    async fn report(&mut self, held: &Held, accepted: &Accepted) -> Result<(), Error> {
        let row = match held {
            Held::Job(row) => Some(&**row),
            Held::Nothing => None,
            // The object is deleted in the next round.
            Held::Ended => return Ok(()),
        };
        let wanted = self.status(row, accepted);
        if wanted == self.seen.status {
            return Ok(());
        }
        self.writes += self.session.writer.status(self.name, &self.seen, &wanted).await?;
        self.session.cache.written(self.name, &self.seen);
        for happening in happenings(&self.seen.status, &wanted, accepted) {
            self.tell(happening).await;
        }
        Ok(())
    }

    /// Whether all that there is to tell is that a new job is in its queue, while there is much else to tell.
    fn can_wait(&self, held: &Held, accepted: &Accepted) -> bool {
        let Held::Job(row) = held else { return false };
        let age = self.session.parts.clock.now().duration_since(row.created_at);
        self.seen.status.is_null()
            && *accepted == Accepted::Yes
            && row.phase == JobPhase::Queued
            && row.epoch == 0
            && age < PUT_OFF.0
            && self.session.queue.len() > AT_ONCE
    }

    fn status(&self, row: Option<&JobRow>, accepted: &Accepted) -> Value {
        let now = self.session.parts.clock.now();
        let mut status = match row {
            Some(row) => present::job_status(row),
            None => refused(accepted, now),
        };
        status.observed_generation = Some(self.seen.generation);
        let mut conditions = vec![accepted.condition(&self.seen, now)];
        conditions.append(&mut status.conditions);
        status.conditions = settled(&self.seen.status, conditions, self.seen.generation);
        fit_job(status)
    }

    /// An Event that cannot be written is complained of, and not written later: it would not be true any more.
    async fn tell(&mut self, happening: Happening) {
        let parts = &self.session.parts;
        let event = event(self.name, &self.seen, &happening, parts.clock.now(), &self.session.identity);
        self.writes += 1;
        if let Err(error) = self.session.writer.event(event::namespace(self.name), &event).await {
            self.session.complain("create an Event", error.kind(), &crate::error::chain(&error));
        }
    }
}

/// Whether an object says the same as a job, so that it may have been exported from it.
fn is_same(row: &JobRow, job: &ValidJob) -> bool {
    let mut old = (*row.spec).clone();
    old.cancel = false;
    windlass_core::validate::validate_job_update(&old, job.spec()).is_ok()
}

/// The status of an object that has no job: one that breaks a rule has failed, others wait.
fn refused(accepted: &Accepted, now: jiff::Timestamp) -> SandboxJobStatus {
    let failed = match accepted {
        Accepted::Yes => false,
        Accepted::No(Refusal::Invalid | Refusal::SpecChanged | Refusal::VersionConflict, _) => true,
        Accepted::No(Refusal::NameTaken | Refusal::InputMissing | Refusal::Lacking(_), _) => false,
    };
    let condition = failed.then(|| Condition {
        condition_type: "Failed".to_owned(),
        status: ConditionStatus::True,
        reason: accepted.reason().to_owned(),
        message: accepted.message().to_owned(),
        last_transition_time: now,
        observed_generation: None,
    });
    SandboxJobStatus {
        phase: if failed { JobPhase::Failed } else { JobPhase::Queued },
        reason: Some(accepted.reason().to_owned()),
        message: Some(accepted.message().to_owned()),
        conditions: condition.into_iter().collect(),
        ..SandboxJobStatus::default()
    }
}

/// What has happened between two statuses.
fn happenings(old: &Value, new: &Value, accepted: &Accepted) -> Vec<Happening> {
    let mut found = Vec::new();
    let text = |status: &Value, key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let condition = |status: &Value| {
        let all = status["conditions"].as_array().into_iter().flatten();
        all.filter(|condition| condition["type"] == "Accepted")
            .map(|condition| (text(condition, "reason"), text(condition, "message")))
            .next()
    };
    if let Accepted::No(_, message) = accepted
        && condition(old) != condition(new)
    {
        found.push(Happening {
            warning: true,
            reason: accepted.reason().to_owned(),
            action: "Accept",
            note: message.clone(),
            occurrence: format!("{} {message}", new["observedGeneration"]),
        });
    }
    let moment = |status: &Value| (text(status, "phase"), status["epoch"].as_u64());
    // An object that was refused at once has no job that anything could have happened to.
    let refused_at_once = condition(old).is_none() && !found.is_empty();
    if refused_at_once || moment(old) == moment(new) {
        return found;
    }
    let Ok(phase) = text(new, "phase").parse::<JobPhase>() else { return found };
    let node = text(new, "node");
    let said = text(new, "message");
    let reason = text(new, "reason");
    let (warning, word, note) = match phase {
        // New, and said by the one who made it.
        JobPhase::Queued | JobPhase::PendingApproval if old["epoch"].as_u64().unwrap_or(0) == 0 => {
            return found;
        }
        JobPhase::PendingApproval => return found,
        JobPhase::Queued => (true, "Retrying", format!("the job waits to be tried again: {said}")),
        JobPhase::Claimed => (false, "Claimed", format!("`{node}` has the job")),
        JobPhase::Running => {
            (false, "Started", format!("the job runs on `{node}`, attempt {}", new["attempts"]))
        }
        JobPhase::Waiting => (false, "Waiting", "the job waits for an answer".to_owned()),
        JobPhase::Succeeded => (false, "Succeeded", format!("the job has succeeded on `{node}`")),
        JobPhase::Failed => (true, "Failed", ending(&reason, &said)),
        JobPhase::Cancelled => (false, "Cancelled", ending(&reason, &said)),
        JobPhase::TimedOut => (true, "TimedOut", ending(&reason, &said)),
    };
    found.push(Happening {
        warning,
        reason: word.to_owned(),
        action: "Run",
        note,
        occurrence: format!("{} {phase}", new["epoch"]),
    });
    found
}

fn ending(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reasons(old: &Value, new: &Value, accepted: &Accepted) -> Vec<String> {
        happenings(old, new, accepted).into_iter().map(|happening| happening.reason).collect()
    }

    #[test]
    fn events_tell_of_transitions_and_of_nothing_else() {
        let yes = json!([{"type": "Accepted", "reason": "Accepted", "message": ""}]);
        let status = |phase: &str, epoch: u64| json!({"phase": phase, "epoch": epoch, "conditions": yes, "attempts": epoch});
        let none: [&str; 0] = [];
        let seen = |old: &Value, new: &Value| reasons(old, new, &Accepted::Yes);
        assert_eq!(seen(&Value::Null, &status("Queued", 0)), none, "whoever made it knows");
        assert_eq!(seen(&status("Queued", 0), &status("Claimed", 1)), ["Claimed"]);
        assert_eq!(seen(&status("Claimed", 1), &status("Running", 1)), ["Started"]);
        assert_eq!(seen(&status("Running", 1), &status("Running", 1)), none);
        assert_eq!(seen(&status("Running", 1), &status("Queued", 1)), ["Retrying"]);
        assert_eq!(seen(&status("Running", 1), &status("Running", 2)), ["Started"], "on another node");
        for ended in ["Succeeded", "Failed", "Cancelled", "TimedOut"] {
            assert_eq!(seen(&status("Queued", 0), &status(ended, 1)), [ended], "a quick one skips some");
            assert_eq!(seen(&status(ended, 1), &status(ended, 1)), none);
        }
    }

    #[test]
    fn a_refusal_is_told_once_for_each_reason() {
        let no = Accepted::No(Refusal::Invalid, "spec: no".to_owned());
        let refused = |phase: &str| json!({"phase": phase, "epoch": 0, "conditions": [{"type": "Accepted", "reason": "Invalid", "message": "spec: no"}]});
        assert_eq!(reasons(&Value::Null, &refused("Failed"), &no), ["Invalid"]);
        assert_eq!(reasons(&refused("Failed"), &refused("Failed"), &no), [""; 0]);
        let accepted = json!({"phase": "Queued", "epoch": 0, "conditions": [{"type": "Accepted", "reason": "Accepted", "message": ""}]});
        assert_eq!(reasons(&accepted, &refused("Queued"), &no), ["Invalid"]);
        assert_eq!(reasons(&refused("Failed"), &accepted, &Accepted::Yes), [""; 0]);
    }
}
