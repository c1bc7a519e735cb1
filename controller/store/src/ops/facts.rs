//! Facts of nodes: the last reports of each.

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::value::{Row, args, int, json, ms};
use crate::{Error, FactsRow, NewFacts, Store};

/// How many reports are kept of a node: enough to see what has changed in the last while.
const KEPT: i64 = 50;

/// A report as it is handed to its statement.
#[derive(Serialize)]
struct Given {
    epoch: i64,
    sequence: i64,
    at: i64,
    facts: String,
}

impl Store {
    /// Keeps reports of a node, those that were kept before once, and only the last of them. A node that is gone keeps
    /// nothing.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn record_facts(&self, now: Timestamp, node: &str, new: Vec<NewFacts>) -> Result<(), Error> {
        if new.is_empty() {
            return Ok(());
        }
        let given: Vec<Given> = new
            .into_iter()
            .map(|NewFacts { epoch, sequence, facts }| Given {
                epoch: int(epoch),
                sequence: int(sequence),
                at: ms(facts.collected_at),
                facts: json(&facts),
            })
            .collect();
        let (node, given) = (node.to_owned(), json(&given));
        self.write("record_facts", move |tx| {
            Box::pin(async move {
                let sql = "
                    WITH f AS MATERIALIZED (SELECT value AS v FROM json_each($1))
                    INSERT INTO node_facts (node, epoch, sequence, collected_at, received_at, facts)
                    SELECT $2, CAST(f.v->>'epoch' AS BIGINT), CAST(f.v->>'sequence' AS BIGINT),
                        CAST(f.v->>'at' AS BIGINT), $3, f.v->>'facts'
                    FROM f WHERE EXISTS (SELECT 1 FROM nodes AS n WHERE n.name = $2)
                    ON CONFLICT (node, epoch, sequence) DO NOTHING";
                tx.conn.execute(sql, args![given, node.as_str(), ms(now)]).await?;
                let sql = "
                    DELETE FROM node_facts WHERE node = $1 AND (epoch, sequence) IN (
                        SELECT epoch, sequence FROM node_facts WHERE node = $1
                        ORDER BY collected_at DESC, epoch DESC, sequence DESC LIMIT 1000 OFFSET $2)";
                tx.conn.execute(sql, args![node, KEPT]).await.map(drop)
            })
        })
        .await
    }

    /// The last reports of a node, newest first, at most so many.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn node_facts(&self, node: &str, limit: u32) -> Result<Vec<FactsRow>, Error> {
        let node = node.to_owned();
        self.read("node_facts", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT received_at, facts FROM node_facts WHERE node = $1
                    ORDER BY collected_at DESC, epoch DESC, sequence DESC LIMIT $2";
                let rows = conn.rows(sql, args![node, i64::from(limit)]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("node_facts");
                    Ok(FactsRow { received_at: cells.time("received_at")?, facts: cells.json("facts")? })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }
}
