//! Sends what the outbox holds: in batches, oldest first, one in flight.
//!
//! One at a time is enough: what is written during a round trip goes along with the next batch, so that batches grow
//! with the load, and an idle outbox sends a record the moment it is durable.

use std::sync::Arc;

use windlass_crds::protocol::{AttemptId, Outcome, Record, ReportRequest, ReportResponse, VERSION};

use super::{Acknowledged, Outbox, remove_segments};
use crate::backoff::Backoff;
use crate::client::{self, ControllerClient};
use crate::held::HeldAttempts;
use crate::ids::IdSource;
use crate::session::SessionHandle;
use crate::worker_api::runs::Runs;

/// Records of a batch, at most: what the controller writes in one transaction without holding up others.
const BATCH_RECORDS: usize = 256;
/// Size of a batch, at most; far below the controller's limit for a body.
const BATCH_BYTES: u64 = 1 << 20;

/// The sending task of an outbox.
pub(crate) struct Sender {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) held: HeldAttempts,
    /// Told of ends that the controller has stored.
    pub(crate) runs: Runs,
}

impl Sender {
    /// Sends, for ever.
    pub(crate) async fn run(self) -> std::convert::Infallible {
        let mut backoff = Backoff::for_controller();
        let mut trouble: Option<&'static str> = None;
        // Halved when the controller finds a batch too large or malformed, so that one bad record cannot hold up the
        // others.
        let mut records = BATCH_RECORDS;
        loop {
            let batch = self.outbox.batch(records, BATCH_BYTES);
            if batch.is_empty() {
                self.outbox.sendable.notified().await;
                continue;
            }
            let session = self.session.ready().await;
            let request = ReportRequest { version: VERSION, records: batch };
            let failure = match self.client.report(&session, &request).await {
                Ok(response) => {
                    if self.take_over(&response).await > 0 {
                        if trouble.take().is_some() {
                            tracing::info!("reports reach the controller again");
                        }
                        backoff.reset();
                        records = BATCH_RECORDS;
                        continue;
                    }
                    client::Error::Incomplete { what: "report" }
                }
                Err(error) => error,
            };
            if failure.is_unauthorized() {
                self.session.expired(&session);
            } else if failure.is_about_the_body() {
                if let [record] = request.records.as_slice() {
                    self.drop_refused(record, &failure).await;
                    records = BATCH_RECORDS;
                    continue;
                }
                records = (request.records.len() / 2).max(1);
                continue;
            }
            if trouble != Some(failure.kind()) {
                trouble = Some(failure.kind());
                tracing::warn!(error = %crate::error_chain(&failure), "reports do not reach the controller; they wait in the outbox");
            }
            tokio::time::sleep(backoff.next(&*self.ids)).await;
        }
    }

    /// Drops what the controller answered for.
    async fn take_over(&self, response: &ReportResponse) -> usize {
        for result in &response.results {
            match result.outcome {
                Outcome::Accepted | Outcome::Duplicate | Outcome::Superseded => {}
                Outcome::Rejected => tracing::warn!(
                    job.id = %result.attempt.job,
                    attempt.epoch = result.attempt.epoch,
                    sequence = result.sequence,
                    detail = result.detail.as_deref().unwrap_or_default(),
                    "the controller refused a record, which is dropped"
                ),
            }
        }
        let answered = response.results.iter().map(|result| (result.attempt.clone(), result.sequence));
        self.acknowledge(answered.collect()).await
    }

    /// Drops records. Returns how many there were.
    async fn acknowledge(&self, answered: Vec<(AttemptId, u64)>) -> usize {
        let Acknowledged { count, ended, free } = self.outbox.acknowledge(answered);
        for attempt in ended {
            self.held.reported(&attempt);
            self.runs.stored(&attempt).await;
        }
        remove_segments(&*self.outbox.fs, free).await;
        count
    }

    async fn drop_refused(&self, record: &Record, failure: &client::Error) {
        tracing::warn!(
            job.id = %record.attempt.job,
            attempt.epoch = record.attempt.epoch,
            sequence = record.sequence,
            error = %crate::error_chain(failure),
            "the controller refused a record, which is dropped"
        );
        self.acknowledge(vec![(record.attempt.clone(), record.sequence)]).await;
    }
}
