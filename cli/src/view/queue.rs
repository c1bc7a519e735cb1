//! How queues look.

use jiff::Timestamp;

use super::{Width, age_or_dash};
use crate::client::model::Queue;
use crate::output::table::{Cell, Column, column};

pub(super) fn columns(_: Width) -> Vec<Column> {
    ["NAME", "QUEUED", "DELAYED", "RUNNING", "LIMIT", "WEIGHT", "WAITING", "DEAD", "OLDEST"]
        .map(column)
        .to_vec()
}

pub(super) fn row(queue: &Queue, now: Timestamp) -> Vec<Cell> {
    let Queue {
        name,
        weight,
        concurrency,
        queued,
        delayed,
        running,
        waiting,
        dead,
        oldest_queued_at,
        priorities: _,
    } = queue;
    let dead_cell = if *dead > 0 { Cell::bad(dead.to_string()) } else { Cell::from(dead.to_string()) };
    vec![
        Cell::from(name),
        Cell::from(queued.to_string()),
        Cell::from(delayed.to_string()),
        Cell::from(running.to_string()),
        Cell::from(concurrency.map_or_else(|| "-".to_owned(), |limit| limit.to_string())),
        Cell::from(weight.to_string()),
        Cell::from(waiting.to_string()),
        dead_cell,
        Cell::from(age_or_dash(now, *oldest_queued_at)),
    ]
}
