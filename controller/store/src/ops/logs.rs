//! Reading logs.

use crate::engine::value::{Cells, args, int};
use crate::{Error, LogCursor, LogFilter, LogRow, RecordStore, Store};

impl Store {
    /// Logs of a job after a position, in the order of attempt and record.
    ///
    /// Records come in any order: while an attempt runs, one with a lower sequence may arrive after a higher one was
    /// read. A reader that wants every line of a running attempt goes on only as far as the sequences have no gap.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn logs(
        &self,
        uid: &str,
        filter: LogFilter,
        after: Option<LogCursor>,
        limit: u32,
    ) -> Result<Vec<LogRow>, Error> {
        let sql = "
            SELECT r.sequence, r.epoch, r.at, r.superseded, r.step, r.stream, r.position, r.object_key, r.object_len,
                r.json, r.bytes
            FROM jobs AS j JOIN records AS r ON r.job_id = j.id
            WHERE j.uid = $1 AND r.kind = 'log' AND (r.epoch, r.sequence) > ($2, $3)
                AND ($4 IS NULL OR r.epoch = $4) AND ($5 IS NULL OR r.step = $5) AND ($6 IS NULL OR r.stream = $6)
            ORDER BY r.epoch, r.sequence LIMIT $7";
        let after = after.map_or((-1, 0), |after| (int(after.epoch), int(after.sequence)));
        let args = args![
            uid,
            after.0,
            after.1,
            filter.epoch.map(int),
            filter.step.map(i64::from),
            filter.stream.map(|stream| stream.to_string()),
            i64::from(limit)
        ];
        self.read("logs", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(sql, args).await?;
                rows.iter().map(|row| read(&mut row.cells("records"))).collect()
            })
        })
        .await
    }
}

fn read(cells: &mut Cells<'_>) -> Result<LogRow, Error> {
    let sequence = cells.number("sequence")?;
    let epoch = cells.number("epoch")?;
    let at = cells.time("at")?;
    let superseded = cells.flag("superseded")?;
    let step = cells.opt_number("step")?;
    let stream = cells.opt_word("stream")?;
    let offset = cells.opt_number("position")?;
    let key = cells.opt_text("object_key")?;
    let len = cells.opt_number("object_len")?;
    let json = cells.opt_json("json")?;
    let bytes = cells.opt_bytes("bytes")?;
    let body = match (key, len, json, bytes) {
        (Some(key), Some(len), _, _) => RecordStore::Object { key, len },
        (_, _, Some(document), _) => RecordStore::Json(document),
        (_, _, _, Some(bytes)) => RecordStore::Inline(bytes),
        (_, _, None, None) => RecordStore::None,
    };
    Ok(LogRow { epoch, sequence, at, step, stream, offset, body, superseded })
}
