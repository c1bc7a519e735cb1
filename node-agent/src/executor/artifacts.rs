//! What an attempt leaves: collected when nothing of it runs any more, and told before its end.

use std::time::Duration;

use windlass_crds::protocol::{Artifact, MAX_ARTIFACTS_IN_RECORD, RecordBody};

use super::AttemptTask;
use crate::artifacts::spool::blocking;
use crate::artifacts::{FileSecrets, Halt};
use crate::clock::Clock;
use crate::held::{Control, StopCause};
use crate::watch;

/// How long collecting may take. What may be collected, a gigabyte, takes seconds even on a slow disk; meanwhile the job has its slot.
const MOST_TIME: Duration = Duration::from_secs(60);
/// How long it goes on when the attempt is told to stop: enough for what jobs commonly leave, and less than an agent that is to end is
/// given.
const GRACE: Duration = Duration::from_secs(5);
/// Refused files that are named in an event; the manifest names more.
const SHOWN: usize = 5;

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The workspace cannot be looked into.
    #[error(transparent)]
    Workspace(#[from] windlass_sandbox::Error),
    /// The node cannot keep it.
    #[error("the node cannot keep them")]
    Disk(#[from] std::io::Error),
}

impl AttemptTask {
    /// Collects what is in the attempt's folder of artifacts, however it ended, and tells of it with the records that become
    /// durable next. After a restart the collection that was made before counts, and what was told is not told again.
    pub(super) async fn keep_artifacts(&mut self) {
        if self.attempt().is_bare() {
            return;
        }
        match self.collected().await {
            Ok(items) => self.tell_of(&items),
            Err(error) => {
                let message = crate::error_chain(&error);
                tracing::warn!(error = message, "artifacts cannot be collected");
                let message = format!("the job's artifacts were not collected: {message}");
                self.event("error", "ArtifactsNotCollected", message);
            }
        }
    }

    async fn collected(&self) -> Result<Vec<Artifact>, Error> {
        let spool = &self.parts.artifacts;
        if let Some(items) = spool.manifest(self.attempt()).await? {
            return Ok(items);
        }
        let Some(home) = &self.home else { return Ok(Vec::new()) };
        let Some(left) = self.parts.workspaces.artifacts(home).await? else { return Ok(Vec::new()) };
        let (mask, values) = (self.mask.clone(), self.assignment().secrets.clone());
        let secrets = blocking(move || Ok(FileSecrets::new(mask, &values))).await?;
        let halt = Halt::default();
        let mut collector = spool.begin(secrets, halt.clone()).await?;
        let mut collecting = std::pin::pin!(blocking(move || {
            collector.collect(left);
            Ok(collector)
        }));
        // Cancel-safe: collecting goes on, and the other only looks.
        let collector = tokio::select! {
            biased;
            collector = &mut collecting => collector?,
            why = time_is_over(self.control.clone(), &*self.parts.clock) => {
                halt.end(why);
                collecting.await?
            }
        };
        Ok(spool.commit(self.attempt(), self.parts.clock.now(), collector).await?)
    }

    fn tell_of(&mut self, items: &[Artifact]) {
        let told = self.recovered.progress.artifacts;
        for items in items.get(told..).unwrap_or_default().chunks(MAX_ARTIFACTS_IN_RECORD) {
            self.record(RecordBody::Artifacts { items: items.to_vec() });
        }
        let refused: Vec<String> = items
            .iter()
            .filter_map(|Artifact { name, refused, .. }| Some(format!("`{name}`: {}", refused.as_ref()?)))
            .collect();
        if refused.is_empty() {
            return;
        }
        let shown = refused.get(..SHOWN).unwrap_or(&refused).join("; ");
        let more = refused.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let count = refused.len();
        self.event("warn", "ArtifactsRefused", format!("{count} files were not collected: {shown}{more}"));
    }
}

/// Returns when collecting has to end, with the reason. What a cancelled job leaves is collected too; one that is cancelled
/// meanwhile, or has to go from this node, has a short time for it.
async fn time_is_over(control: watch::Receiver<Control>, clock: &dyn Clock) -> &'static str {
    // Cancel-safe: both only look.
    tokio::select! {
        biased;
        why = hurried(control, clock) => {
            tokio::time::sleep(GRACE).await;
            why
        }
        () = tokio::time::sleep(MOST_TIME) => "collecting took longer than 60 s",
    }
}

/// Returns when the attempt has to end soon, with the reason.
async fn hurried(mut control: watch::Receiver<Control>, clock: &dyn Clock) -> &'static str {
    let was_cancelled = control.borrow().stop == Some(StopCause::Cancelled);
    loop {
        let Control { stop, lease_until } = *control.borrow_and_update();
        match stop {
            Some(StopCause::Cancelled) if was_cancelled => {}
            Some(StopCause::Cancelled) => return "the job was cancelled meanwhile",
            Some(StopCause::AgentStopped) => return "the agent was told to stop",
            Some(StopCause::Fenced) => return "the job was given to another node",
            None => {}
        }
        let left = lease_until.saturating_sub(clock.boottime());
        if left.is_zero() {
            return "the lease has ended";
        }
        // Cancel-safe: both only look.
        tokio::select! {
            biased;
            changed = control.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = tokio::time::sleep(left) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::VirtualClock;

    #[tokio::test(start_paused = true)]
    async fn collecting_ends_after_a_minute_and_soon_when_the_attempt_has_to_end() {
        let lease = |seconds| {
            let lease_until = VirtualClock::new().boottime() + Duration::from_secs(seconds);
            Control { stop: None, lease_until }
        };
        let stopped = |cause| Control { stop: Some(cause), ..lease(1000) };
        for (before, meanwhile, seconds, why) in [
            (lease(1000), None, 60, "collecting took longer than 60 s"),
            (stopped(StopCause::Cancelled), None, 60, "collecting took longer than 60 s"),
            (lease(1000), Some(lease(2000)), 60, "collecting took longer than 60 s"),
            (lease(1000), Some(stopped(StopCause::Cancelled)), 6, "the job was cancelled meanwhile"),
            (
                stopped(StopCause::Cancelled),
                Some(stopped(StopCause::Fenced)),
                6,
                "the job was given to another node",
            ),
            (stopped(StopCause::AgentStopped), None, 5, "the agent was told to stop"),
            (lease(10), None, 15, "the lease has ended"),
            (lease(0), None, 5, "the lease has ended"),
        ] {
            let clock = VirtualClock::new();
            let sender = watch::Sender::new(before);
            let began = tokio::time::Instant::now();
            let over = time_is_over(sender.subscribe(), &clock);
            let change = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if let Some(meanwhile) = meanwhile {
                    sender.send_modify(|control| *control = meanwhile);
                }
            };
            let (ended, ()) = tokio::join!(over, change);
            assert_eq!((ended, began.elapsed().as_secs()), (why, seconds));
        }
    }
}
