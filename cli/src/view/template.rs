//! How templates look.

use jiff::Timestamp;

use super::{Width, age_or_dash, or_dash};
use crate::client::model::Template;
use crate::output::table::{Cell, Column, column, flexible};

pub(super) fn columns(width: Width) -> Vec<Column> {
    let mut columns = Vec::new();
    if width.namespaces {
        columns.push(column("NAMESPACE"));
    }
    columns.extend([column("NAME"), column("VERSION"), column("AGE"), flexible("DESCRIPTION")]);
    if width.wide {
        columns.push(flexible("PARAMETERS"));
    }
    columns
}

pub(super) fn row(template: &Template, width: Width, now: Timestamp) -> Vec<Cell> {
    let Template { metadata, spec } = template;
    let mut cells = Vec::new();
    if width.namespaces {
        cells.push(or_dash(metadata.namespace.as_deref()));
    }
    cells.extend([
        Cell::from(&metadata.name),
        Cell::from(&spec.version),
        Cell::from(age_or_dash(now, metadata.creation_timestamp)),
        or_dash(spec.description.as_deref().and_then(|text| text.lines().next())),
    ]);
    if width.wide {
        let names: Vec<&str> = spec.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        cells.push(or_dash(Some(&names.join(","))));
    }
    cells
}
