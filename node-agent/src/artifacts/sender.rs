//! Sends what the spool holds: one body after the other, the oldest attempt first.
//!
//! A body is streamed from its file. One whose sending breaks off is sent again from its beginning: the controller keeps a body
//! as a whole or not at all, and takes one that it has for sent. An attempt of which a body fails again and again waits until the
//! others had their turn.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio_util::io::ReaderStream;
use windlass_crds::protocol::{ArtifactsLost, AttemptId, VERSION};

use super::Spool;
use super::spool::Task;
use crate::backoff::Backoff;
use crate::client::{self, ArtifactBody, ControllerClient};
use crate::ids::IdSource;
use crate::outbox::Outbox;
use crate::session::SessionHandle;

/// How often a body is sent again that the controller refuses for a reason that this agent does not know.
const TRIES: u32 = 5;
/// How often sending fails before others have their turn: what is wrong may be with the one body.
const PATIENCE: u32 = 3;
/// How much of a file is read at once: so little that a slow line is seen to get on.
const PIECE: usize = 16 << 10;

/// The task that sends artifacts.
pub(crate) struct ArtifactSender {
    pub(crate) spool: Arc<Spool>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) ids: Arc<dyn IdSource>,
}

/// Why something could not be sent.
enum Trouble {
    /// It will be tried again.
    Later(client::Error),
    /// The controller knows nothing of the attempt's artifacts, or nothing of it any more.
    Unwanted(client::Error),
    /// The body is not what it was.
    Broken(String),
}

impl ArtifactSender {
    /// Sends, for ever.
    pub(crate) async fn run(self) -> std::convert::Infallible {
        let mut backoff = Backoff::for_controller();
        let mut trouble: Option<&'static str> = None;
        // How often the body that is to be sent was refused.
        let mut refused = 0;
        // How often sending has failed since something was done.
        let mut failed = 0;
        // Attempts that wait until the others had their turn.
        let mut aside = BTreeSet::new();
        loop {
            let task = self.next(&mut aside).await;
            let error = match self.perform(&task).await {
                Ok(()) => {
                    if trouble.take().is_some() {
                        tracing::info!("artifacts reach the controller again");
                    }
                    (refused, failed) = (0, 0);
                    backoff.reset();
                    continue;
                }
                Err(Trouble::Unwanted(error)) => {
                    let attempt = task.attempt();
                    tracing::warn!(
                        job.id = attempt.job,
                        attempt.epoch = attempt.epoch,
                        error = %crate::error_chain(&error),
                        "the controller does not want the artifacts of an attempt; they are dropped"
                    );
                    self.spool.forget(attempt).await;
                    refused = 0;
                    continue;
                }
                Err(Trouble::Broken(problem)) => {
                    self.give_up(&task, &problem).await;
                    refused = 0;
                    continue;
                }
                Err(Trouble::Later(error)) => error,
            };
            if is_refusal(&error) {
                refused += 1;
                if refused == TRIES {
                    self.give_up(&task, &format!("the controller does not take it: {error}")).await;
                    refused = 0;
                    continue;
                }
            } else {
                failed += 1;
                if failed == PATIENCE {
                    aside.insert(task.attempt().clone());
                    (refused, failed) = (0, 0);
                }
            }
            if trouble != Some(error.kind()) {
                trouble = Some(error.kind());
                tracing::warn!(error = %crate::error_chain(&error), "artifacts do not reach the controller; they wait");
            }
            tokio::time::sleep(backoff.next(&*self.ids)).await;
        }
    }

    /// What is to be done, as soon as there is something. The controller must know of an artifact before its body comes. Where
    /// nothing is left but of attempts that are set aside, they are no more.
    async fn next(&self, aside: &mut BTreeSet<AttemptId>) -> Task {
        let (mut news, mut backlog) = (self.spool.news(), self.outbox.backlog());
        loop {
            news.borrow_and_update();
            backlog.borrow_and_update();
            let is_told = |attempt: &AttemptId| !self.outbox.holds_records_of(attempt);
            if let Some(task) = self.spool.next(|attempt| !aside.contains(attempt) && is_told(attempt)) {
                return task;
            }
            aside.clear();
            if let Some(task) = self.spool.next(is_told) {
                return task;
            }
            // Cancel-safe: both only look. Their senders live as long as the agent.
            let looked = tokio::select! {
                biased;
                looked = news.changed() => looked,
                looked = backlog.changed() => looked,
            };
            if looked.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn perform(&self, task: &Task) -> Result<(), Trouble> {
        let session = self.session.ready().await;
        let done = match task {
            Task::Send { attempt, number, size, path } => {
                let content = content(path, *size).await.map_err(Trouble::Broken)?;
                let sent = self.client.artifact(&session, attempt, *number, content).await;
                if sent.is_ok() {
                    self.spool.sent(attempt, *number).await;
                }
                sent
            }
            Task::Tell { attempt, lost } => {
                let (attempt, lost) = (attempt.clone(), lost.clone());
                let lost = ArtifactsLost { version: VERSION, attempt, lost };
                let told = self.client.artifacts_lost(&session, &lost).await;
                if told.is_ok() {
                    self.spool.told(task.attempt()).await;
                }
                told
            }
        };
        done.map_err(|error| {
            if error.is_unauthorized() {
                self.session.expired(&session);
            }
            match &error {
                error if error.is_unknown() => {}
                client::Error::Incomplete { .. } => {}
                // What it has is not what was collected, or more than it may have.
                client::Error::Refused { status: 413 | 422, detail, .. } => {
                    return Trouble::Broken(format!("the controller does not take it: {detail}"));
                }
                _ => return Trouble::Later(error),
            }
            Trouble::Unwanted(error)
        })
    }

    /// Gives up what will never be sent, so that it does not hold up what comes after it.
    async fn give_up(&self, task: &Task, problem: &str) {
        let attempt = task.attempt();
        tracing::error!(
            job.id = attempt.job,
            attempt.epoch = attempt.epoch,
            error = problem,
            "an artifact cannot be sent and is dropped"
        );
        match task {
            Task::Send { number, .. } => self.spool.lose(attempt, *number, problem).await,
            Task::Tell { .. } => self.spool.told(attempt).await,
        }
    }
}

/// Whether the controller does not take what is sent, and not only now.
const fn is_refusal(error: &client::Error) -> bool {
    match error {
        // Of these two only those that are not the controller's word come here.
        client::Error::Refused { status: 404 | 410, .. } => false,
        client::Error::Refused { status: 401 | 408 | 409 | 429, .. } => false,
        client::Error::Refused { status, .. } => *status >= 400 && *status < 500,
        client::Error::Unreachable { .. }
        | client::Error::Malformed { .. }
        | client::Error::UnsupportedVersion { .. }
        | client::Error::Incomplete { .. } => false,
    }
}

impl Task {
    fn attempt(&self) -> &AttemptId {
        match self {
            Self::Send { attempt, .. } | Self::Tell { attempt, .. } => attempt,
        }
    }
}

/// The content of a body; the error is why there is none.
async fn content(path: &PathBuf, size: u64) -> Result<ArtifactBody, String> {
    let damaged = |error: std::io::Error| format!("it cannot be read from the node's disk: {error}");
    let file = tokio::fs::File::open(path).await.map_err(damaged)?;
    let length = file.metadata().await.map_err(damaged)?.len();
    if length != size {
        return Err(format!("it is damaged on the node's disk: it has {length} bytes, not {size}"));
    }
    Ok(ArtifactBody { size, content: ReaderStream::with_capacity(file, PIECE).boxed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_controllers_own_word_drops_what_waits() {
        let refused = |status, code: &str, detail: &str| client::Error::Refused {
            status,
            code: code.to_owned(),
            detail: detail.to_owned(),
        };
        for (error, is_unknown) in [
            (refused(404, "not_found", "there is no artifact of a job on this node `a/1/2`"), true),
            (refused(410, "not_found", "it is gone"), true),
            (refused(404, "not_found", "there is no path `/v1/x`; /v1/openapi.json lists them"), false),
            // What is no problem of a controller has this code.
            (refused(404, "unknown", "Not Found"), false),
            (refused(410, "unknown", "Gone"), false),
            (refused(503, "not_found", "it is odd"), false),
        ] {
            assert_eq!(error.is_unknown(), is_unknown, "{error}");
            assert!(!is_refusal(&error), "{error}: it is not given up either");
        }
    }
}
