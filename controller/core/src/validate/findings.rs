//! Collects what is wrong.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde_json::Value;
use windlass_crds::Span;
use windlass_crds::names::{self, Quoted};
use windlass_crds::protocol::FieldError;

use super::{MAX_ARGUMENT_BYTES, MAX_SPEC_BYTES, RESERVED_ENVIRONMENT};

/// What is wrong with an object.
#[derive(Default)]
pub(super) struct Findings(Vec<FieldError>);

impl Findings {
    /// Starts with what the schema says.
    pub(super) fn new(errors: Vec<FieldError>) -> Self {
        Self(errors)
    }

    /// Adds one.
    pub(super) fn refuse(&mut self, field: impl Display, message: impl Display) {
        self.0.push(FieldError { field: field.to_string(), message: message.to_string() });
    }

    /// Adds several.
    pub(super) fn extend(&mut self, errors: impl IntoIterator<Item = FieldError>) {
        self.0.extend(errors);
    }

    /// Everything, sorted by path; what was found in two ways is said once.
    pub(super) fn finish(self) -> Vec<FieldError> {
        let mut errors = self.0;
        errors.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
        errors.dedup();
        errors
    }

    /// Checks what no spec may have: too many bytes, or a NUL anywhere.
    pub(super) fn check_spec_as_a_whole(&mut self, spec: &Value) {
        let bytes = spec.to_string().len();
        if bytes > MAX_SPEC_BYTES {
            let advice = "upload large content and name it as an input";
            self.refuse(
                "spec",
                format!("has {bytes} bytes, at most {MAX_SPEC_BYTES} are accepted; {advice}"),
            );
        }
        self.check_nul(spec, "spec");
    }

    fn check_nul(&mut self, value: &Value, at: &str) {
        match value {
            Value::String(text) if text.contains('\0') => {
                self.refuse(at, format!("{} holds a NUL; remove it", Quoted(text)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check_nul(item, &format!("{at}[{index}]"));
                }
            }
            Value::Object(map) => {
                for (key, value) in map {
                    self.check_nul(value, &under(at, key));
                }
            }
        }
    }

    /// Checks names and values of an environment.
    pub(super) fn check_environment(&mut self, environment: &BTreeMap<String, String>, at: &str) {
        for (name, value) in environment {
            let field = under(at, name);
            if let Err(error) = names::check_environment_name(name) {
                self.refuse(&field, format!("the name {} {error}", Quoted(name)));
            } else if name.starts_with(RESERVED_ENVIRONMENT) {
                let message = format!(
                    "`{name}` is reserved: choose a name that does not begin with `{RESERVED_ENVIRONMENT}`"
                );
                self.refuse(&field, message);
            }
            // The kernel counts the name, `=`, the value and the NUL behind it as one string.
            let bytes = name.len() + value.len() + 2;
            if bytes > MAX_ARGUMENT_BYTES {
                let advice = "write it to a file and pass its path";
                self.refuse(
                    &field,
                    format!("takes {bytes} bytes, at most {MAX_ARGUMENT_BYTES} fit; {advice}"),
                );
            }
        }
    }

    /// Checks that a length of time lies between two others.
    pub(super) fn check_span(&mut self, field: impl Display, span: Option<Span>, least: Span, most: Span) {
        if let Some(span) = span
            && !(least..=most).contains(&span)
        {
            self.refuse(field, format!("`{span}` is out of range: write a length from {least} to {most}"));
        }
    }

    /// Checks that the value of the first field is not more than that of the second, where both are given.
    pub(super) fn check_at_most<T: PartialOrd + Display>(
        &mut self,
        (field, limit_field): (String, String),
        value: Option<T>,
        limit: Option<T>,
    ) {
        if let (Some(value), Some(limit)) = (value, limit)
            && value > limit
        {
            let message = format!(
                "`{value}` is more than {limit_field}, which is `{limit}`; lower it or raise the other"
            );
            self.refuse(field, message);
        }
    }

    /// Checks that nothing is listed twice.
    pub(super) fn check_unique<T: PartialEq + Display>(&mut self, items: &[T], at: &str) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.refuse(
                    format!("{at}[{index}]"),
                    format!("`{item}` is listed twice; remove one of them"),
                );
            }
        }
    }
}

/// The path of a key under a path, as in [`windlass_crds::manifest`].
pub(super) fn under(at: &str, key: &str) -> String {
    let mut path = at.to_owned();
    windlass_crds::manifest::push_key(&mut path, key);
    path
}
