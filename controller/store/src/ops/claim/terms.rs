//! What is set for queues, as a claim has to keep it: limits of what runs at once, and shares by weight.
//!
//! Nothing of this is looked at while nothing is set for any queue. Otherwise a claim reads an index entry for each
//! running job of the queues in question; the backlog does not matter.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::engine::value::{args, json};
use crate::engine::writer::Tx;
use crate::{Error, QueueSettings};

/// The queues for which something is set.
#[derive(Default)]
pub(super) struct Terms {
    queues: HashMap<String, Term>,
    /// Whether any queue has a weight of its own, so that queues share what runs.
    pub(super) share: bool,
}

/// A queue.
#[derive(Clone, Copy)]
struct Term {
    settings: QueueSettings,
    running: u32,
}

impl Terms {
    /// Reads what is set. Claims that depend on a limit come one after another from here to their commit.
    pub(super) async fn load(tx: &mut Tx) -> Result<Self, Error> {
        let sql = "UPDATE queues SET turns = turns + 1 WHERE concurrency IS NOT NULL";
        tx.conn.execute(sql, args![]).await?;
        let mut terms = Self::default();
        for row in tx.conn.rows("SELECT name, weight, concurrency FROM queues", args![]).await? {
            let mut cells = row.cells("queues");
            let queue = cells.text("name")?;
            let weight = cells.number("weight")?;
            let settings = QueueSettings { weight, concurrency: cells.opt_number("concurrency")? };
            terms.share |= weight != QueueSettings::default().weight;
            terms.queues.insert(queue, Term { settings, running: 0 });
        }
        let queues: Vec<String> = terms.queues.keys().cloned().collect();
        terms.count(tx, &queues).await?;
        Ok(terms)
    }

    /// Counts what runs of these queues, those included for which nothing is set.
    pub(super) async fn count(&mut self, tx: &mut Tx, queues: &[String]) -> Result<(), Error> {
        if queues.is_empty() {
            return Ok(());
        }
        let sql = "
            SELECT e.value->>0 AS queue,
                (SELECT count(*) FROM jobs AS j
                WHERE j.finished_at IS NULL AND j.phase = 'Claimed' AND j.queue = e.value->>0)
                + (SELECT count(*) FROM jobs AS j
                WHERE j.finished_at IS NULL AND j.phase = 'Running' AND j.queue = e.value->>0) AS running
            FROM json_each($1) AS e";
        let list: Vec<[&String; 1]> = queues.iter().map(|queue| [queue]).collect();
        for row in tx.conn.rows(sql, args![json(&list)]).await? {
            let mut cells = row.cells("jobs");
            let queue = cells.text("queue")?;
            let running = cells.number("running")?;
            let nothing_set = Term { settings: QueueSettings::default(), running };
            self.queues.entry(queue).or_insert(nothing_set).running = running;
        }
        Ok(())
    }

    /// Whether what runs of the queue has been counted.
    pub(super) fn knows(&self, queue: &str) -> bool {
        self.queues.contains_key(queue)
    }

    /// Whether one more job of the queue may be claimed.
    pub(super) fn permit(&self, queue: &str) -> bool {
        let Some(Term { settings, running }) = self.queues.get(queue) else { return true };
        settings.concurrency.is_none_or(|limit| *running < limit)
    }

    /// Notes that a job of the queue is claimed.
    pub(super) fn take(&mut self, queue: &str) {
        if let Some(term) = self.queues.get_mut(queue) {
            term.running += 1;
        }
    }

    /// How the queue stands against others, with its next job.
    pub(super) fn contender(&self, queue: &str, rank: i64) -> Contender {
        let term = self.queues.get(queue);
        Contender {
            weight: term.map_or(QueueSettings::default().weight, |term| term.settings.weight),
            running: term.map_or(0, |term| term.running),
            rank,
        }
    }
}

/// A queue that has a job to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contender {
    weight: u32,
    running: u32,
    rank: i64,
}

impl Contender {
    /// Whose turn it is: that of the queue that would have least of what runs for its weight, with its next job. Of equals
    /// the one whose job comes first by priority and age.
    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        let of = |one: &Self, other: &Self| (u64::from(one.running) + 1) * u64::from(other.weight);
        of(self, other).cmp(&of(other, self)).then(self.rank.cmp(&other.rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn next(contenders: &[Contender]) -> usize {
        (0..contenders.len()).min_by(|a, b| contenders[*a].cmp(&contenders[*b])).expect("there is one")
    }

    #[test]
    fn equals_go_by_rank() {
        let contender = |rank| Contender { weight: 3, running: 2, rank };
        assert_eq!(next(&[contender(5), contender(4), contender(6)]), 1);
    }

    proptest! {
        #[test]
        fn what_runs_is_shared_by_weight(weights in proptest::collection::vec(1..=100u32, 1..6), slots in 1..600u32) {
            let mut queues: Vec<Contender> =
                weights.iter().map(|weight| Contender { weight: *weight, running: 0, rank: 0 }).collect();
            for _ in 0..slots {
                let turn = next(&queues);
                queues[turn].running += 1;
            }
            let total: u32 = weights.iter().sum();
            for queue in &queues {
                let fair = f64::from(slots) * f64::from(queue.weight) / f64::from(total);
                prop_assert!((f64::from(queue.running) - fair).abs() < weights.len() as f64, "{:?}", queues);
            }
        }

        #[test]
        fn the_order_is_one_order(
            values in proptest::collection::vec((1..5u32, 0..5u32, 0..5i64), 3)
        ) {
            let of = |(weight, running, rank): (u32, u32, i64)| Contender { weight, running, rank };
            let [a, b, c] = [of(values[0]), of(values[1]), of(values[2])];
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a.cmp(&b) == Ordering::Less && b.cmp(&c) == Ordering::Less {
                prop_assert_eq!(a.cmp(&c), Ordering::Less);
            }
        }
    }
}
