//! Labels that a job asks for: their syntax, and requests that no node can meet.

use std::collections::BTreeMap;

use windlass_crds::names::{self, Quoted};
use windlass_crds::sandbox_job::{LabelOperator, LabelRequirement, SandboxJobSpec};

use super::findings::{Findings, under};

/// What is asked of one label, from whichever field it comes.
enum Ask<'a> {
    OneOf(Vec<&'a str>),
    NoneOf(Vec<&'a str>),
    Present,
    Absent,
    Above(i64),
    Below(i64),
}

pub(super) fn check(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    let selector = format!("{at}.nodeSelector");
    findings.extend(windlass_crds::manifest::check_labels(&spec.node_selector, &selector));

    let mut asks: BTreeMap<&str, Vec<(String, Ask<'_>)>> = BTreeMap::new();
    for (key, value) in &spec.node_selector {
        let asked = (under(&selector, key), Ask::OneOf(vec![value.as_str()]));
        asks.entry(key.as_str()).or_default().push(asked);
    }
    for (index, requirement) in spec.requires.labels.iter().enumerate() {
        let field = format!("{at}.requires.labels[{index}]");
        if let Err(error) = names::check_label_key(&requirement.key) {
            findings.refuse(format!("{field}.key"), format!("{} {error}", Quoted(&requirement.key)));
        }
        if let Some(ask) = read(requirement, &field, findings) {
            asks.entry(requirement.key.as_str()).or_default().push((field, ask));
        }
    }
    for (key, asks) in asks {
        for (index, (field, ask)) in asks.iter().enumerate() {
            if let Some((other, _)) = asks[..index].iter().find(|(_, earlier)| contradict(earlier, ask)) {
                findings.refuse(
                    field,
                    format!("contradicts {other}: no label {} meets both; remove one", Quoted(key)),
                );
            }
        }
    }
}

/// Checks the number and form of the values.
fn read<'a>(requirement: &'a LabelRequirement, field: &str, findings: &mut Findings) -> Option<Ask<'a>> {
    let LabelRequirement { key: _, operator, values } = requirement;
    let operator_name: &'static str = (*operator).into();
    let at = format!("{field}.values");
    match operator {
        LabelOperator::In | LabelOperator::NotIn => {
            if values.is_empty() {
                findings.refuse(&at, format!("is empty: `{operator_name}` compares with one value or more"));
                return None;
            }
            for (index, value) in values.iter().enumerate() {
                if let Err(error) = names::check_label_value(value) {
                    findings.refuse(format!("{at}[{index}]"), format!("{} {error}", Quoted(value)));
                }
            }
            let values = values.iter().map(String::as_str).collect();
            Some(if *operator == LabelOperator::In { Ask::OneOf(values) } else { Ask::NoneOf(values) })
        }
        LabelOperator::Exists | LabelOperator::DoesNotExist => {
            if !values.is_empty() {
                let message =
                    format!("has {} values: `{operator_name}` takes none; remove the field", values.len());
                findings.refuse(&at, message);
            }
            Some(if *operator == LabelOperator::Exists { Ask::Present } else { Ask::Absent })
        }
        LabelOperator::Gt | LabelOperator::Lt => {
            let [bound] = values.as_slice() else {
                let message =
                    format!("has {} values: `{operator_name}` compares with one whole number", values.len());
                findings.refuse(&at, message);
                return None;
            };
            let Ok(bound) = bound.parse::<i64>() else {
                let message = format!(
                    "{} is not a whole number, and `{operator_name}` compares with one",
                    Quoted(bound)
                );
                findings.refuse(format!("{at}[0]"), message);
                return None;
            };
            Some(if *operator == LabelOperator::Gt { Ask::Above(bound) } else { Ask::Below(bound) })
        }
    }
}

/// Whether no node can meet both.
fn contradict(one: &Ask<'_>, other: &Ask<'_>) -> bool {
    match (one, other) {
        (Ask::OneOf(values), ask) | (ask, Ask::OneOf(values)) => {
            !values.iter().any(|value| accepts(ask, value))
        }
        (Ask::Absent, Ask::Present | Ask::Above(_) | Ask::Below(_))
        | (Ask::Present | Ask::Above(_) | Ask::Below(_), Ask::Absent) => true,
        // There must be a whole number between them.
        (Ask::Above(least), Ask::Below(most)) | (Ask::Below(most), Ask::Above(least)) => {
            least.saturating_add(1) >= *most
        }
        (
            Ask::NoneOf(_) | Ask::Present | Ask::Absent | Ask::Above(_) | Ask::Below(_),
            Ask::NoneOf(_) | Ask::Present | Ask::Absent | Ask::Above(_) | Ask::Below(_),
        ) => false,
    }
}

fn accepts(ask: &Ask<'_>, value: &str) -> bool {
    match ask {
        Ask::OneOf(values) => values.contains(&value),
        Ask::NoneOf(values) => !values.contains(&value),
        Ask::Present => true,
        Ask::Absent => false,
        Ask::Above(bound) => value.parse::<i64>().is_ok_and(|value| value > *bound),
        Ask::Below(bound) => value.parse::<i64>().is_ok_and(|value| value < *bound),
    }
}
