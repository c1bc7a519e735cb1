//! How nodes look.

use jiff::Timestamp;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::node_config::{AtDeadline, HoldPhase, NodeHold, NodeState};

use super::{Width, age_or_dash, labels, or_dash};
use crate::client::model::Node;
use crate::output::human;
use crate::output::table::{Cell, Column, column, flexible};

pub(super) fn columns(width: Width) -> Vec<Column> {
    let mut columns = vec![
        column("NAME").with_room(12),
        flexible("STATUS").with_room("Offline (HeartbeatStale)".len()),
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

/// How the node is, with the reason where it is not well, and what keeps jobs away.
fn status_cell(node: &Node) -> Cell {
    let mut text = node.status.state.to_string();
    if let Some(reason) = trouble(node) {
        text = format!("{text} ({reason})");
    }
    let hold = node.status.hold.as_ref();
    if let Some(hold) = hold {
        text = format!("{text}, {}", hold.phase.to_string().to_lowercase());
    } else if node.spec.unschedulable {
        text.push_str(", unschedulable");
    }
    match node.status.state {
        NodeState::Online if hold.is_none() && !node.spec.unschedulable => Cell::good(text),
        NodeState::Online | NodeState::Pending | NodeState::Degraded => Cell::notable(text),
        NodeState::Offline => Cell::bad(text),
    }
}

/// The reason of the condition that makes the node what it is.
fn trouble(node: &Node) -> Option<&str> {
    match node.status.state {
        NodeState::Pending | NodeState::Online => None,
        NodeState::Offline | NodeState::Degraded => ["Ready", "ConfigApplied"]
            .into_iter()
            .filter_map(|name| condition(node, name))
            .find(|condition| condition.status != ConditionStatus::True)
            .map(|condition| condition.reason.as_str()),
    }
}

/// What an operator has asked of a node, in words.
pub(crate) fn hold_text(hold: &NodeHold, now: Timestamp) -> String {
    let NodeHold { phase, since, deadline, at_deadline, drained_at: _ } = hold;
    let mut text = format!("{phase} for {}", human::age(now, *since));
    if let (HoldPhase::Draining, Some(deadline)) = (phase, deadline) {
        let what = match at_deadline.unwrap_or_default() {
            AtDeadline::Requeue => "requeued",
            AtDeadline::Cancel => "cancelled",
        };
        // The age of now at that time is the time until then.
        text.push_str(&format!("; what is left in {} is {what}", human::age(*deadline, now)));
    }
    text
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
