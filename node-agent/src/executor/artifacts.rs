//! What an attempt leaves: collected when nothing of it runs any more, and told before its end.

use windlass_crds::protocol::{Artifact, MAX_ARTIFACTS_IN_RECORD, RecordBody};

use super::AttemptTask;
use crate::artifacts::FileSecrets;
use crate::artifacts::spool::blocking;

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
        let mut collector = spool.begin(FileSecrets::new(&self.assignment().secrets)).await?;
        let collector = blocking(move || {
            collector.collect(left);
            Ok(collector)
        });
        Ok(spool.commit(self.attempt(), self.parts.clock.now(), collector.await?).await?)
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
