//! Data as YAML.

use serde::Serialize;

/// A value as a YAML document that ends with a line break.
pub(crate) fn format(value: &impl Serialize) -> String {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text = serde_saphyr::to_string_with_options(value, options)
        .expect("what came from JSON can be written as YAML");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same_value() {
        let value = serde_json::json!({
            "script": "#!/bin/sh\necho \"a: b\"\n\n  indented\n",
            "noEnd": "two\nlines",
            "number": "012",
            "yes": "yes",
            "null": null,
            "empty": {"list": [], "map": {}, "text": ""},
            "list": [{"a": 1, "b": [1.5, true]}, "- dash", "# hash", "x: y", " lead", "trail ", "tab\there"],
            "unicode": "žluť 日本 \u{1b}[31m \u{0}",
            "long": "word ".repeat(60),
        });
        let text = format(&value);
        let back: serde_json::Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(back, value, "{text}");
    }
}
