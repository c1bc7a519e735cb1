//! Removes bodies that no row names: what a crash between the writing of a body and of its row has left behind.
//!
//! *Guarantees.* A body is removed only when it is [`AGE`] old, no row named it after it was listed, and it was not
//! written again since. Inputs and artifacts have a key of their own for each upload, so an upload that is under way is never touched.
//! A report that is repeated writes the same key again and then its row: it would have to come a day late, and between
//! the last look and the removal.
//!
//! *Cost.* One listing, and a question to the store for each [`BATCH`] of old bodies.

use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use windlass_crds::protocol::AttemptId;
use windlass_store::{BodyOf, Store, StoredBody};

use crate::bodies::{self, Bodies, Found};
use crate::clock::Clock;
use crate::error::{ApiError, Code};
use crate::metrics::Metrics;

/// How old a body must be that nobody names. No request takes nearly as long between a body and its row.
const AGE: SignedDuration = SignedDuration::from_hours(24);
/// How many bodies are asked about at once.
const BATCH: usize = 500;

/// Sweeps bodies; cheap to clone.
#[derive(Clone)]
pub struct Orphans {
    store: Store,
    bodies: Bodies,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl Orphans {
    /// A sweep of these bodies, by what this store names.
    pub const fn new(store: Store, bodies: Bodies, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self { store, bodies, clock, metrics }
    }

    /// One round.
    pub async fn sweep(&self) -> Result<(), ApiError> {
        // Of several controllers one does this, and only while it leads.
        let Some(store) = self.store.as_leader() else { return Ok(()) };
        let before = self.clock.now().checked_sub(AGE).unwrap_or(Timestamp::MIN);
        let mut listing = self.bodies.list();
        let mut old = Vec::with_capacity(BATCH);
        let (mut removed, mut bytes) = (0u64, 0u64);
        while let Some(found) = listing.next().await {
            let found = found.map_err(failed)?;
            if found.written_at >= before {
                continue;
            }
            old.push(found);
            if old.len() == BATCH {
                let (more, size) = self.remove_unnamed(&store, std::mem::take(&mut old), before).await?;
                (removed, bytes) = (removed + more, bytes + size);
            }
        }
        let (more, size) = self.remove_unnamed(&store, old, before).await?;
        (removed, bytes) = (removed + more, bytes + size);
        let parts = self.bodies.remove_cut_short(SystemTime::from(before)).await.map_err(failed)?;
        self.metrics.bodies_swept(removed + parts, bytes, self.clock.now());
        if removed + parts > 0 {
            tracing::info!(
                bodies.removed = removed,
                bodies.bytes = bytes,
                uploads.removed = parts,
                "bodies that nobody names were removed"
            );
        }
        Ok(())
    }

    async fn remove_unnamed(
        &self,
        store: &Store,
        old: Vec<Found>,
        before: Timestamp,
    ) -> Result<(u64, u64), ApiError> {
        let asked = old.iter().map(|found| StoredBody { key: found.key.clone(), of: body_of(&found.key) });
        let unnamed = store.unnamed_bodies(asked.collect()).await?;
        let (mut removed, mut bytes) = (0, 0);
        for key in unnamed {
            // Written again since: its row may be on its way.
            let still_old = self.bodies.look(&key).await.map_err(failed)?;
            let Some(found) = still_old.filter(|found| found.written_at < before) else { continue };
            self.bodies.remove(&key).await.map_err(failed)?;
            removed += 1;
            bytes += found.bytes;
        }
        Ok((removed, bytes))
    }
}

/// Whose body it is, by its key.
fn body_of(key: &str) -> BodyOf {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["logs", job, epoch, sequence] => match (epoch.parse(), sequence.parse()) {
            (Ok(epoch), Ok(sequence)) => {
                BodyOf::Record { attempt: AttemptId { job: (*job).to_owned(), epoch }, sequence }
            }
            (Ok(_) | Err(_), Ok(_) | Err(_)) => BodyOf::Nothing,
        },
        ["artifacts", job, epoch, name] => {
            match (epoch.parse(), name.split('.').next().unwrap_or(name).parse()) {
                (Ok(epoch), Ok(number)) => {
                    BodyOf::Artifact { attempt: AttemptId { job: (*job).to_owned(), epoch }, number }
                }
                (Ok(_) | Err(_), Ok(_) | Err(_)) => BodyOf::Nothing,
            }
        }
        ["inputs", _, name] => {
            let hash = name.split('.').next().unwrap_or(name);
            BodyOf::Input { digest: format!("sha256:{hash}") }
        }
        _ => BodyOf::Nothing,
    }
}

fn failed(error: bodies::Error) -> ApiError {
    ApiError {
        source: Some(Box::new(error)),
        ..ApiError::new(Code::Unavailable, "could not sweep the bodies")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_body_it_is() {
        let record = BodyOf::Record { attempt: AttemptId { job: "j".into(), epoch: 2 }, sequence: 7 };
        assert_eq!(body_of("logs/j/2/7"), record);
        let artifact = BodyOf::Artifact { attempt: AttemptId { job: "j".into(), epoch: 2 }, number: 7 };
        assert_eq!(body_of("artifacts/j/2/7.0190"), artifact);
        let input = BodyOf::Input { digest: "sha256:abcd".into() };
        assert_eq!(body_of("inputs/ab/abcd.0190"), input);
        assert_eq!(body_of("inputs/ab/abcd"), input, "as keys were before");
        for stray in [
            "",
            "logs/j/2",
            "logs/j/2/x",
            "artifacts/j/2/x.1",
            "damaged/abcd.0190",
            "inputs/abcd",
            "lost+found/x",
        ] {
            assert_eq!(body_of(stray), BodyOf::Nothing, "{stray}");
        }
    }
}
