//! What a kind or a field is, for `windlass explain`: the documentation of the types themselves.

use serde_json::Value;

use crate::schema::shape::{Bounds, Field, Form, Format, Shape};
use crate::schema::{Kind, shape_of};

/// What a kind or a field is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The kind that the path begins with.
    pub kind: Kind,
    /// The path below the kind, such as `spec.steps`; empty for the kind itself.
    pub path: String,
    /// Its type and bounds, such as `list of objects, at most 100`.
    pub value_type: String,
    /// What it means.
    pub description: String,
    /// Whether it must be written.
    pub required: bool,
    /// The value of a field that is not written, as it would be written.
    pub default: Option<String>,
    /// The words that it may be, each with its meaning.
    pub words: Vec<(String, String)>,
    /// The fields inside, in alphabetical order, those of a list's items included.
    pub fields: Vec<ExplainedField>,
}

/// A field inside what is explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedField {
    /// The field's name.
    pub name: String,
    /// Its type and bounds.
    pub value_type: String,
    /// What it means.
    pub description: String,
    /// Whether it must be written.
    pub required: bool,
}

/// Explains a path that begins with a kind or a short word for it: `job`, `job.spec.steps`,
/// `nodeconfig.spec.sandbox.max`. The items of lists and the values of maps are passed through, so that
/// `job.spec.steps.name` is a step's name; `steps[]` and `steps[0]` mean the same. `None` where there is no such
/// field.
pub fn explain(path: &str) -> Option<Explanation> {
    let mut segments = path.split('.');
    let kind = Kind::from_alias(segments.next()?)?;
    let mut shape = shape_of(kind);
    let mut required = true;
    let mut walked = Vec::new();
    for segment in segments {
        let name = segment.split_once('[').map_or(segment, |(name, _)| name);
        let Form::Object { fields } = &inside(shape).form else { return None };
        let field = fields.get(name)?;
        (shape, required) = (&field.shape, field.required);
        walked.push(name);
    }
    let fields = match &inside(shape).form {
        Form::Object { fields } => fields.iter().map(|(name, field)| explained_field(name, field)).collect(),
        Form::Any
        | Form::Boolean
        | Form::Integer { .. }
        | Form::Number
        | Form::Text { .. }
        | Form::IntOrString { .. }
        | Form::Word(_)
        | Form::List { .. }
        | Form::Map { .. } => Vec::new(),
    };
    Some(Explanation {
        kind,
        path: walked.join("."),
        value_type: value_type(shape),
        description: shape.description.clone(),
        required,
        default: shape.default.as_ref().map(written),
        words: match &inside(shape).form {
            Form::Word(words) => words.clone(),
            Form::Any
            | Form::Boolean
            | Form::Integer { .. }
            | Form::Number
            | Form::Text { .. }
            | Form::IntOrString { .. }
            | Form::List { .. }
            | Form::Map { .. }
            | Form::Object { .. } => Vec::new(),
        },
        fields,
    })
}

fn explained_field(name: &str, field: &Field) -> ExplainedField {
    ExplainedField {
        name: name.to_owned(),
        value_type: value_type(&field.shape),
        description: field.shape.description.clone(),
        required: field.required,
    }
}

/// The shape of what a list or map holds, at any depth.
fn inside(shape: &Shape) -> &Shape {
    match &shape.form {
        Form::List { items: inner, .. } | Form::Map { values: inner, .. } => inside(inner),
        Form::Any
        | Form::Boolean
        | Form::Integer { .. }
        | Form::Number
        | Form::Text { .. }
        | Form::IntOrString { .. }
        | Form::Word(_)
        | Form::Object { .. } => shape,
    }
}

/// A type in words. Bounds are left out where they only keep nonsense away.
fn value_type(shape: &Shape) -> String {
    match &shape.form {
        Form::Any => "any value".to_owned(),
        Form::Boolean => "true or false".to_owned(),
        Form::Number => "number".to_owned(),
        Form::Integer { range } => {
            let (least, most) = (*range.start(), *range.end());
            match (least, most) {
                (1.., ..=1_000_000) | (0, ..=1_000_000) => format!("whole number from {least} to {most}"),
                _ => "whole number".to_owned(),
            }
        }
        Form::Text { format: Some(format), .. } | Form::IntOrString { format, .. } => match format {
            Format::Cpu => "amount of cpu, such as 2 or 500m".to_owned(),
            Format::Bytes => "amount of bytes, such as 512Mi".to_owned(),
            Format::Span => "length of time, such as 90s or 10m".to_owned(),
            Format::Priority => "high, normal, low or a number from 0 to 1000".to_owned(),
            Format::DateTime => "time, such as 2026-01-31T12:00:00Z".to_owned(),
            Format::Egress => "egress rule, such as example.com:443".to_owned(),
        },
        Form::Text { format: None, length, .. } => format!("text{}", at_most(*length, "characters")),
        Form::Word(_) => "word".to_owned(),
        Form::List { items, length } => {
            format!("list of {}{}", plural(&value_type_without_bounds(items)), at_most(*length, ""))
        }
        Form::Map { values, length } => {
            format!("map of {}{}", plural(&value_type_without_bounds(values)), at_most(*length, ""))
        }
        Form::Object { .. } => "object".to_owned(),
    }
}

fn value_type_without_bounds(shape: &Shape) -> String {
    let words = value_type(shape);
    match words.split_once([',', '(']) {
        Some((name, _)) => name.trim_end().to_owned(),
        None => words,
    }
}

fn plural(word: &str) -> String {
    match word {
        "any value" => "any values".to_owned(),
        "true or false" => word.to_owned(),
        word => format!("{word}s"),
    }
}

fn at_most(bounds: Bounds, unit: &str) -> String {
    match bounds.max {
        Some(max) => format!(", at most {max} {unit}").trim_end().to_owned(),
        None => String::new(),
    }
}

/// A default as a manifest would say it: text without quotes, anything else as JSON.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_explained_by_any_of_its_names() {
        for alias in ["job", "jobs", "sj", "SandboxJob", "sandboxjobs"] {
            let explanation = explain(alias).unwrap();
            assert_eq!((explanation.kind, explanation.path.as_str()), (Kind::SandboxJob, ""), "{alias}");
            let names: Vec<&str> = explanation.fields.iter().map(|field| field.name.as_str()).collect();
            assert_eq!(names, ["apiVersion", "kind", "metadata", "spec", "status"]);
        }
        assert_eq!(explain("nc").unwrap().kind, Kind::NodeConfig);
        assert_eq!(explain("jt").unwrap().kind, Kind::JobTemplate);
        assert_eq!(explain("pod"), None);
    }

    #[test]
    fn a_list_is_explained_with_the_fields_of_its_items() {
        let steps = explain("job.spec.steps").unwrap();
        assert_eq!(steps.value_type, "list of objects, at most 100");
        assert!(steps.description.starts_with("The steps, run in order."));
        let name = steps.fields.iter().find(|field| field.name == "name").unwrap();
        assert!(name.required);
        assert_eq!(name.value_type, "text, at most 63 characters");
    }

    #[test]
    fn items_are_passed_through_with_or_without_brackets() {
        for path in [
            "job.spec.steps.script.source",
            "job.spec.steps[].script.source",
            "job.spec.steps[3].script.source",
        ] {
            let source = explain(path).unwrap();
            assert_eq!(source.path, "spec.steps.script.source", "{path}");
            assert!(source.required);
        }
    }

    #[test]
    fn words_defaults_and_bounds_are_told() {
        let network = explain("job.spec.sandbox.network").unwrap();
        assert_eq!(network.value_type, "word");
        assert_eq!(network.default.as_deref(), Some("None"));
        assert_eq!(network.words[0].0, "None");
        assert!(network.words[1].1.contains("through a proxy"));
        let pids = explain("node.spec.sandbox.max.pids").unwrap();
        assert_eq!(pids.value_type, "whole number from 1 to 1000000");
        assert_eq!(explain("job.spec.retry.lostAttempts").unwrap().default.as_deref(), Some("3"));
        assert_eq!(explain("job.spec.sandbox.env").unwrap().value_type, "map of texts, at most 256");
        assert_eq!(explain("job.spec.timeout").unwrap().value_type, "length of time, such as 90s or 10m");
    }

    #[test]
    fn a_path_that_does_not_exist_has_no_explanation() {
        for path in ["job.spec.stepz", "job.spec.title.more", "job..spec", "job.", ""] {
            assert_eq!(explain(path), None, "{path}");
        }
    }

    #[test]
    fn every_field_says_what_it_means() {
        fn walk(shape: &Shape, at: &str, silent: &mut Vec<String>) {
            let Form::Object { fields } = &inside(shape).form else { return };
            for (name, field) in fields {
                let path = format!("{at}.{name}");
                if field.shape.description.is_empty() {
                    silent.push(path.clone());
                }
                walk(&field.shape, &path, silent);
            }
        }
        let mut silent = Vec::new();
        for kind in Kind::all() {
            walk(shape_of(kind), kind.name(), &mut silent);
        }
        assert!(silent.is_empty(), "{silent:#?}");
    }
}
