//! Looking at records before they are reported, so that nothing is kept for those that will not be stored.

use windlass_crds::protocol::AttemptId;

use crate::engine::value::{args, int, json};
use crate::{Error, MAX_SEQUENCE, Reportable, Store};

impl Store {
    /// What would become of records that `node` reports now, by attempt and sequence; in order.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn reportable(
        &self,
        node: &str,
        records: &[(&AttemptId, u64)],
    ) -> Result<Vec<Reportable>, Error> {
        let mut fates = vec![Reportable::Refused; records.len()];
        if records.is_empty() {
            return Ok(fates);
        }
        let rows: Vec<_> = records
            .iter()
            .enumerate()
            .map(|(position, (attempt, sequence))| {
                (position, attempt.job.as_str(), int(attempt.epoch), int(*sequence))
            })
            .collect();
        let sql = "
            WITH e AS MATERIALIZED (
                SELECT CAST(value->>0 AS BIGINT) AS position, value->>1 AS job, CAST(value->>2 AS BIGINT) AS epoch,
                    CAST(value->>3 AS BIGINT) AS sequence
                FROM json_each($1))
            SELECT e.position, a.last_sequence, CASE WHEN r.sequence IS NULL THEN 0 ELSE 1 END AS known
            FROM e JOIN jobs AS j ON j.uid = e.job
            JOIN attempts AS a ON a.job_id = j.id AND a.epoch = e.epoch AND a.node = $2
            LEFT JOIN records AS r ON r.job_id = a.job_id AND r.epoch = a.epoch AND r.sequence = e.sequence";
        let args = args![json(&rows), node];
        let found = self
            .read("reportable", move |conn| {
                Box::pin(async move {
                    let mut found = Vec::new();
                    for row in conn.rows(sql, args).await? {
                        let mut cells = row.cells("attempts");
                        let position: usize = cells.number("position")?;
                        let last: Option<u64> = cells.opt_number("last_sequence")?;
                        found.push((position, last, cells.flag("known")?));
                    }
                    Ok(found)
                })
            })
            .await?;
        for (position, last, known) in found {
            if let (Some(fate), Some((_, sequence))) = (fates.get_mut(position), records.get(position))
                && (1..=last.unwrap_or(MAX_SEQUENCE)).contains(sequence)
            {
                *fate = if known { Reportable::Known } else { Reportable::New };
            }
        }
        Ok(fates)
    }
}
