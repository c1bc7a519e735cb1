//! How objects look: the row of a table for each kind, from what the server said.

pub(crate) mod job;
pub(crate) mod node;
mod queue;
mod template;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::kind::Kind;
use crate::output::human;
use crate::output::table::{Cell, Column};

/// Which columns a table has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Width {
    /// Whether there are more columns than usual.
    pub(crate) wide: bool,
    /// Whether objects of several namespaces are shown.
    pub(crate) namespaces: bool,
}

/// The columns of a kind.
pub(crate) fn columns(kind: Kind, width: Width) -> Vec<Column> {
    match kind {
        Kind::Job => job::columns(width),
        Kind::Node => node::columns(width),
        Kind::Template => template::columns(width),
        Kind::Queue => queue::columns(width),
    }
}

/// The row of an object.
///
/// # Errors
/// Where the server's object is not of the kind that it was asked for.
pub(crate) fn row(
    kind: Kind,
    object: &Value,
    width: Width,
    now: Timestamp,
) -> Result<Vec<Cell>, serde_json::Error> {
    use serde::Deserialize as _;
    Ok(match kind {
        Kind::Job => job::row(&crate::client::model::Job::deserialize(object)?, width, now),
        Kind::Node => node::row(&crate::client::model::Node::deserialize(object)?, width, now),
        Kind::Template => template::row(&crate::client::model::Template::deserialize(object)?, width, now),
        Kind::Queue => queue::row(&crate::client::model::Queue::deserialize(object)?, now),
    })
}

/// How long ago something was, or a dash.
fn age_or_dash(now: Timestamp, then: Option<Timestamp>) -> String {
    then.map_or_else(|| "-".to_owned(), |then| human::age(now, then))
}

/// A text, or a dash.
fn or_dash(text: Option<&str>) -> Cell {
    Cell::from(text.filter(|text| !text.is_empty()).unwrap_or("-"))
}

/// Labels as `k=v,k2=v2`, or a dash.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
