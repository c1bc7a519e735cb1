//! Holds a value against the shape of its kind and reports everything that does not fit.

use std::collections::BTreeMap;

use super::MAX_ERRORS;
use super::error::Code;
use super::path::Path;
use super::tree::{Data, Entry, Mark, Node};
use crate::names::Quoted;
use crate::schema::shape::{Bounds, Field, Form, Format, Pattern, Shape};

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) field: String,
    pub(crate) mark: Mark,
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// Checks a value; at most [`MAX_ERRORS`] findings, or a few more, in the order of the text.
pub(crate) fn check(shape: &Shape, node: &Node, path: &Path<'_>) -> Vec<Finding> {
    let mut checker = Checker { root: shape, findings: Vec::new() };
    checker.value(shape, node, path);
    checker.findings
}

struct Checker<'a> {
    root: &'a Shape,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    /// Whether more would not be shown.
    fn is_full(&self) -> bool {
        self.findings.len() >= MAX_ERRORS
    }

    fn report(&mut self, path: &Path<'_>, mark: Mark, code: Code, message: String, hint: Option<String>) {
        self.findings.push(Finding { field: path.to_string(), mark, code, message, hint });
    }

    fn value(&mut self, shape: &Shape, node: &Node, path: &Path<'_>) {
        if self.is_full() || (node.data == Data::Null && shape.nullable) {
            return;
        }
        match (&shape.form, &node.data) {
            (Form::Any, _) | (Form::Boolean, Data::Boolean(_)) | (Form::Number, Data::Number(_)) => {}
            (Form::Integer { range }, Data::Number(number)) => match number.whole {
                Some(whole) if range.contains(&whole) => {}
                Some(_) => {
                    let message = format!(
                        "{} is out of range: write a whole number from {} to {}",
                        Quoted(&number.spelling),
                        range.start(),
                        range.end()
                    );
                    self.report(path, node.mark, Code::BadValue, message, None);
                }
                None => self.wrong_type(shape, node, path),
            },
            (Form::Text { length, pattern, format }, Data::Text(text)) => {
                self.text(*length, pattern.as_ref(), *format, text, node.mark, path);
            }
            (Form::IntOrString { format, .. }, Data::Number(number)) => {
                self.formatted(*format, &number.spelling, node.mark, path);
            }
            (Form::IntOrString { format, .. }, Data::Text(text)) => {
                self.formatted(*format, text, node.mark, path);
            }
            (Form::Word(words), Data::Text(text)) => {
                let known: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
                if !known.contains(&text.as_str()) {
                    let message = format!("{} is not accepted: write {}", Quoted(text), one_of(&known));
                    let hint = nearest(text, known).map(|word| format!("did you mean \"{word}\"?"));
                    self.report(path, node.mark, Code::BadValue, message, hint);
                }
            }
            (Form::List { items: shape, length }, Data::List(items)) => {
                self.length(*length, items.len(), "items", node.mark, path);
                for (index, item) in items.iter().enumerate() {
                    self.value(shape, item, &Path::Index(path, index));
                }
            }
            (Form::Map { values, length }, Data::Map(entries)) => {
                self.length(*length, entries.len(), "entries", node.mark, path);
                for entry in entries {
                    self.value(values, &entry.value, &Path::Key(path, &entry.key));
                }
            }
            (Form::Object { fields }, Data::Map(entries)) => self.object(fields, entries, node.mark, path),
            (
                Form::Boolean
                | Form::Integer { .. }
                | Form::Number
                | Form::Text { .. }
                | Form::IntOrString { .. }
                | Form::Word(_)
                | Form::List { .. }
                | Form::Map { .. }
                | Form::Object { .. },
                Data::Null
                | Data::Boolean(_)
                | Data::Number(_)
                | Data::Text(_)
                | Data::List(_)
                | Data::Map(_),
            ) => self.wrong_type(shape, node, path),
        }
    }

    fn object(&mut self, fields: &BTreeMap<String, Field>, entries: &[Entry], mark: Mark, path: &Path<'_>) {
        for entry in entries {
            // Finding out what was meant costs more than reading on.
            if self.is_full() {
                return;
            }
            let path = Path::Key(path, &entry.key);
            match fields.get(&entry.key) {
                Some(field) => self.value(&field.shape, &entry.value, &path),
                None => {
                    let hint = self.known_instead(fields, &entry.key);
                    self.report(
                        &path,
                        entry.mark,
                        Code::UnknownField,
                        "unknown field".to_owned(),
                        Some(hint),
                    );
                }
            }
        }
        for (name, field) in fields.iter().filter(|(_, field)| field.required) {
            if !entries.iter().any(|entry| entry.key == *name) {
                let hint = format!("write {}", expected(&field.shape));
                self.report(
                    &Path::Key(path, name),
                    mark,
                    Code::MissingField,
                    "is missing".to_owned(),
                    Some(hint),
                );
            }
        }
    }

    /// What the writer of an unknown field may have meant.
    fn known_instead(&self, fields: &BTreeMap<String, Field>, unknown: &str) -> String {
        if let Some(near) = nearest(unknown, fields.keys().map(String::as_str)) {
            return format!("did you mean \"{near}\"?");
        }
        let mut elsewhere = Vec::new();
        if let Some(spec) = self.root.field("spec") {
            find_field(&spec.shape, "spec", unknown, &mut elsewhere);
        }
        if let [path] = elsewhere.as_slice() {
            return format!("did you mean \"{path}\"?");
        }
        format!("known here: {}", fields.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
    }

    fn text(
        &mut self,
        length: Bounds,
        pattern: Option<&Pattern>,
        format: Option<Format>,
        text: &str,
        mark: Mark,
        path: &Path<'_>,
    ) {
        if let Some(format) = format {
            self.formatted(format, text, mark, path);
            return;
        }
        let before = self.findings.len();
        self.length(length, text.chars().count(), "characters", mark, path);
        if self.findings.len() > before {
            return;
        }
        if let Some(pattern) = pattern
            && !pattern.accepts(text)
        {
            let message =
                format!("{} is not accepted: write {}", Quoted(text), pattern_in_words(pattern.as_str()));
            self.report(path, mark, Code::BadValue, message, None);
        }
    }

    fn formatted(&mut self, format: Format, text: &str, mark: Mark, path: &Path<'_>) {
        if let Err(message) = format.check(text) {
            self.report(path, mark, Code::BadValue, message, None);
        }
    }

    fn length(&mut self, bounds: Bounds, length: usize, unit: &str, mark: Mark, path: &Path<'_>) {
        let length = length as u64;
        let message = match bounds {
            Bounds { min: Some(1), .. } if length == 0 => "is empty".to_owned(),
            Bounds { min: Some(min), .. } if length < min => {
                format!("has {length} {unit}, at least {min} are needed")
            }
            Bounds { max: Some(max), .. } if length > max => {
                format!("has {length} {unit}, at most {max} are accepted")
            }
            Bounds { .. } => return,
        };
        let hint = (length == 0).then(|| "remove the field or give it a value".to_owned());
        self.report(path, mark, Code::BadValue, message, hint);
    }

    fn wrong_type(&mut self, shape: &Shape, node: &Node, path: &Path<'_>) {
        let message = format!("found {node} instead of {}", expected(shape));
        let hint = match (&shape.form, &node.data) {
            (_, Data::Null) => Some("remove the field or give it a value".to_owned()),
            (Form::Text { .. }, Data::Number(number)) => {
                Some(format!("write \"{}\" in quotes", number.spelling))
            }
            (Form::Text { .. }, Data::Boolean(value)) => Some(format!("write \"{value}\" in quotes")),
            (Form::Boolean, Data::Text(text)) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" | "true" => Some("write true".to_owned()),
                "no" | "off" | "n" | "false" => Some("write false".to_owned()),
                _ => None,
            },
            (Form::Integer { .. } | Form::Number, Data::Text(text)) if text.parse::<f64>().is_ok() => {
                Some("write it without quotes and leading zeros".to_owned())
            }
            (Form::List { .. }, Data::Text(text)) => {
                Some(format!("write [{}]", Quoted(text).to_string().replace('`', "\"")))
            }
            (Form::List { .. }, Data::Map(_)) => Some("begin each item with `- `".to_owned()),
            _ => None,
        };
        self.report(path, node.mark, Code::WrongType, message, hint);
    }
}

/// What a shape accepts, in words.
pub(crate) fn expected(shape: &Shape) -> String {
    match &shape.form {
        Form::Any => "any value".to_owned(),
        Form::Boolean => "true or false".to_owned(),
        Form::Integer { .. } => "a whole number".to_owned(),
        Form::Number => "a number".to_owned(),
        Form::Text { format: Some(format), .. } => match format {
            Format::Span => "a length of time such as `90s` or `10m`".to_owned(),
            Format::DateTime => "a time such as `2026-01-31T12:00:00Z`".to_owned(),
            Format::Egress => "a rule for egress such as `example.com:443`".to_owned(),
            Format::Cpu | Format::Bytes | Format::Priority => format!("an amount of {}", format.name()),
        },
        Form::Text { format: None, .. } => "a text".to_owned(),
        Form::IntOrString { format, .. } => match format {
            Format::Cpu => "an amount of cpu such as `2` or `500m`".to_owned(),
            Format::Bytes => "an amount of bytes such as `512Mi`".to_owned(),
            Format::Priority => "`high`, `normal`, `low` or a number from 0 to 1000".to_owned(),
            Format::Span | Format::DateTime | Format::Egress => format!("a {}", format.name()),
        },
        Form::Word(words) => one_of(&words.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>()),
        Form::List { .. } => "a list".to_owned(),
        Form::Map { .. } | Form::Object { .. } => "a map".to_owned(),
    }
}

/// The candidate that a misspelt word most likely means.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Case and separators say nothing: `host_path` and `hostpath` are `hostPath`.
    let plain = |text: &str| {
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
    };
    let word = plain(word);
    if word.is_empty() || word.len() > 100 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => format!("`{only}`"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", first.join(", "))
        }
    }
}

/// Where a field of this name exists among the objects below a shape. Lists and maps are not entered, as the path
/// would not be one that can be written down.
fn find_field(shape: &Shape, at: &str, name: &str, found: &mut Vec<String>) {
    let Form::Object { fields } = &shape.form else { return };
    for (field, Field { shape, .. }) in fields {
        let path = format!("{at}.{field}");
        if field == name {
            found.push(path.clone());
        }
        find_field(shape, &path, name, found);
    }
}

/// What a pattern accepts, in words.
fn pattern_in_words(pattern: &str) -> String {
    match pattern {
        "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" => {
            "lower-case letters, digits and `-`, starting and ending with a letter or digit".to_owned()
        }
        "^sha256:[0-9a-f]{64}$" => "`sha256:` and 64 lower-case hexadecimal digits".to_owned(),
        "^[A-Za-z_][A-Za-z0-9_]*$" => "letters, digits and `_`, not starting with a digit".to_owned(),
        "^/" => "an absolute path".to_owned(),
        other => format!("a text that fits {other}"),
    }
}
