//! The rules for templates.
//!
//! A template's job cannot be checked with `${{ params.NAME }}` in it, so every parameter is given a sample value
//! first: its default, or a value of its type that is valid wherever a name is.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_crds::job_template::{Parameter, ParameterType};
use windlass_crds::manifest::{check_metadata, check_spec};
use windlass_crds::names::Quoted;
use windlass_crds::protocol::FieldError;
use windlass_crds::schema::Kind;
use windlass_crds::{JobTemplate, SandboxJobSpec};

use super::findings::{Findings, under};
use super::job;

const JOB: &str = "spec.job";

pub(super) fn check(template: &JobTemplate) -> Vec<FieldError> {
    let mut findings = Findings::new(check_spec(Kind::JobTemplate, &template.spec));
    findings.extend(check_metadata(Kind::JobTemplate, &template.metadata));
    match serde_json::to_value(&template.spec) {
        Ok(spec) => findings.check_spec_as_a_whole(&spec),
        Err(error) => findings.refuse("spec", format!("cannot be written: {error}")),
    }
    if let Err(error) = windlass_crds::names::check_label_value(&template.spec.version) {
        findings.refuse("spec.version", format!("{} {error}", Quoted(&template.spec.version)));
    }
    let mut samples = BTreeMap::new();
    for (index, parameter) in template.spec.parameters.iter().enumerate() {
        let at = format!("spec.parameters[{index}]");
        check_parameter(parameter, &at, &mut findings);
        if samples.insert(parameter.name.as_str(), sample(parameter)).is_some() {
            let message = format!("{} is listed twice; choose another name", Quoted(&parameter.name));
            findings.refuse(format!("{at}.name"), message);
        }
    }
    match serde_json::to_value(&template.spec.job) {
        Ok(mut job) => {
            fill(&mut job, JOB, &samples, &mut findings);
            match serde_json::from_value::<SandboxJobSpec>(job) {
                Ok(job) => job::check_rules(&job, JOB, &mut findings),
                Err(error) => {
                    findings.refuse(JOB, format!("is not a job with the defaults filled in: {error}"));
                }
            }
        }
        Err(error) => findings.refuse(JOB, format!("cannot be written: {error}")),
    }
    findings.finish()
}

fn check_parameter(parameter: &Parameter, at: &str, findings: &mut Findings) {
    let Parameter { name: _, parameter_type, required, default, description: _ } = parameter;
    let Some(default) = default else { return };
    if *required {
        findings.refuse(
            format!("{at}.default"),
            "is never used, as the parameter is required; remove one of the two",
        );
    }
    let fits = match parameter_type {
        ParameterType::String => default.is_string(),
        ParameterType::Integer => default.is_i64() || default.is_u64(),
        ParameterType::Number => default.is_number(),
        ParameterType::Boolean => default.is_boolean(),
    };
    if !fits {
        let shown = default.to_string();
        let message = format!("{} is not of the parameter's type `{parameter_type}`", Quoted(&shown));
        findings.refuse(format!("{at}.default"), message);
    }
}

/// A value for the parameter that stands in a name, a path or a label as well as in a text.
fn sample(parameter: &Parameter) -> String {
    match &parameter.default {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(_) | Value::Number(_)) => {
            parameter.default.as_ref().map(Value::to_string).unwrap_or_default()
        }
        Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => match parameter.parameter_type {
            // Different for each parameter, so that two of them do not look like the same path.
            ParameterType::String => format!("x{}x", parameter.name),
            ParameterType::Integer | ParameterType::Number => "1".to_owned(),
            ParameterType::Boolean => "true".to_owned(),
        },
    }
}

/// Puts samples in the place of parameters and refuses what names none.
fn fill(value: &mut Value, at: &str, samples: &BTreeMap<&str, String>, findings: &mut Findings) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => match filled(text, samples) {
            Ok(filled) => *text = filled,
            Err(message) => findings.refuse(at, message),
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{at}[{index}]"), samples, findings);
            }
        }
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                fill(value, &under(at, key), samples, findings);
            }
        }
    }
}

fn filled(text: &str, samples: &BTreeMap<&str, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let (before, after) = rest.split_at(start);
        filled.push_str(before);
        let Some(end) = after.find("}}") else {
            return Err(format!("{} does not end; close it with `}}}}`", Quoted(after)));
        };
        let reference = after["${{".len()..end].trim();
        let name = reference.strip_prefix("params.");
        let Some(sample) = name.and_then(|name| samples.get(name)) else {
            let known: Vec<&str> = samples.keys().copied().collect();
            let known = if known.is_empty() {
                "none is declared".to_owned()
            } else {
                format!("declared: {}", known.join(", "))
            };
            return Err(format!("{} is no parameter of the template; {known}", Quoted(reference)));
        };
        filled.push_str(sample);
        rest = &after[end + "}}".len()..];
    }
    filled.push_str(rest);
    Ok(filled)
}
