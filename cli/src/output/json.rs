//! Data as JSON.

use serde::Serialize;

/// A value as indented JSON that ends with a line break.
pub(crate) fn format(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("what came from JSON can be written as JSON");
    text.push('\n');
    text
}
