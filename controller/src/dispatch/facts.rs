//! Facts of nodes: kept beside the records of jobs, for they belong to none.

use windlass_crds::protocol::bounds::Bounded as _;
use windlass_crds::protocol::{AttemptId, NODE_RECORDS, Outcome, Record, RecordBody, RecordOutcome};
use windlass_store::{MAX_SEQUENCE, NewFacts};

use super::Dispatch;
use crate::error::ApiError;

/// Takes facts out of a batch.
pub(super) fn split(records: Vec<Record>) -> (Vec<Record>, Vec<Record>) {
    let of_the_node =
        |record: &Record| record.attempt.job == NODE_RECORDS && matches!(record.body, RecordBody::Facts(_));
    let (facts, records) = records.into_iter().partition(of_the_node);
    (records, facts)
}

impl Dispatch {
    /// Stores facts; one answer for each.
    pub(super) async fn take_facts(
        &self,
        node: &str,
        records: Vec<Record>,
    ) -> Result<Vec<RecordOutcome>, ApiError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let mut results = Vec::with_capacity(records.len());
        let mut new = Vec::with_capacity(records.len());
        for mut record in records {
            let problem = record.bound("").into_iter().next().map(|error| error.to_string());
            let Record { attempt, sequence, at: _, body } = record;
            let RecordBody::Facts(facts) = body else { continue };
            let problem = problem
                .or_else(|| {
                    let other = facts.node != node;
                    other.then(|| format!("body.node: `{}` is not node `{node}`, which reports", facts.node))
                })
                .or_else(|| {
                    let out = !(1..=MAX_SEQUENCE).contains(&sequence) || attempt.epoch > MAX_SEQUENCE;
                    out.then(|| {
                        format!("sequence: at most {MAX_SEQUENCE} is accepted here and in attempt.epoch")
                    })
                });
            match problem {
                Some(detail) => results.push(answer(attempt, sequence, Outcome::Rejected, Some(detail))),
                None => new.push((attempt, sequence, *facts)),
            }
        }
        let stored = new
            .iter()
            .map(|(attempt, sequence, facts)| NewFacts {
                epoch: attempt.epoch,
                sequence: *sequence,
                facts: facts.clone(),
            })
            .collect();
        self.parts.store.record_facts(self.now(), node, stored).await?;
        results.extend(
            new.into_iter().map(|(attempt, sequence, _)| answer(attempt, sequence, Outcome::Accepted, None)),
        );
        Ok(results)
    }
}

fn answer(attempt: AttemptId, sequence: u64, outcome: Outcome, detail: Option<String>) -> RecordOutcome {
    RecordOutcome { attempt, sequence, outcome, detail }
}
