//! How nodes look.

use jiff::Timestamp;
use windlass_crds::conditions::{Condition, ConditionStatus};

use super::{Width, age_or_dash, labels, or_dash};
use crate::client::model::Node;
use crate::output::human;
use crate::output::table::{Cell, Column, column, flexible};

pub(super) fn columns(width: Width) -> Vec<Column> {
    let mut columns = vec![
        column("NAME").with_room(12),
        flexible("STATUS").with_room("NotReady (NoHeartbeat)".len()),
        column("JOBS"),
        column("CONFIG").with_room("10 of 11".len()),
        column("VERSION"),
        column("LAST SEEN"),
        column("AGE").with_room(4),
    ];
    if width.wide {
        columns.extend([
            flexible("OS"),
            column("ARCH"),
            column("CPUS"),
            column("MEMORY"),
            flexible("RUNTIMES"),
            flexible("LABELS"),
        ]);
    }
    columns
}

pub(super) fn row(node: &Node, width: Width, now: Timestamp) -> Vec<Cell> {
    let Node { metadata, spec: _, status } = node;
    let mut cells = vec![
        Cell::from(&metadata.name),
        status_cell(node),
        Cell::from(format!("{}/{}", status.running_jobs, status.slots)),
        config_cell(node),
        or_dash(status.agent_version.as_deref()),
        Cell::from(age_or_dash(now, status.last_seen_at)),
        Cell::from(age_or_dash(now, metadata.creation_timestamp)),
    ];
    if width.wide {
        let host = status.host.clone().unwrap_or_default();
        let known = status.host.is_some();
        let number = |number: String| Cell::from(if known { number } else { "-".to_owned() });
        cells.extend([
            or_dash(Some(&host.os)),
            or_dash(Some(&host.arch)),
            number(host.cpus.to_string()),
            number(human::bytes(host.memory_mib.saturating_mul(1024 * 1024))),
            or_dash(Some(&host.runtimes.join(","))),
            Cell::from(labels(&status.labels)),
        ]);
    }
    cells
}

fn condition<'a>(node: &'a Node, name: &str) -> Option<&'a Condition> {
    node.status.conditions.iter().find(|condition| condition.condition_type == name)
}

/// Whether the node takes jobs, and if not the reason.
fn status_cell(node: &Node) -> Cell {
    let held_back = if node.spec.unschedulable { ", unschedulable" } else { "" };
    match condition(node, "Ready") {
        Some(ready) if ready.status == ConditionStatus::True && held_back.is_empty() => Cell::good("Ready"),
        Some(ready) if ready.status == ConditionStatus::True => Cell::notable(format!("Ready{held_back}")),
        Some(ready) => Cell::bad(format!("NotReady ({}){held_back}", ready.reason)),
        // The controller judges a node a moment after it has heard of it.
        None => Cell::notable(format!("Pending{held_back}")),
    }
}

/// The configuration's version in force, and the wanted one where it is another.
fn config_cell(node: &Node) -> Cell {
    let wanted = node.status.config_version;
    let failed =
        condition(node, "ConfigApplied").is_some_and(|condition| condition.status == ConditionStatus::False);
    match node.status.applied_version {
        Some(applied) if applied == wanted => Cell::from(applied.to_string()),
        applied => {
            let applied = applied.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let text = format!("{applied} of {wanted}");
            if failed { Cell::bad(text) } else { Cell::notable(text) }
        }
    }
}
