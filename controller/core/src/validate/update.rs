//! What may change in a job that exists.

use serde_json::Value;
use windlass_crds::SandboxJobSpec;
use windlass_crds::names::Quoted;
use windlass_crds::protocol::FieldError;

use super::findings::{Findings, under};
use super::normalised;

pub(super) fn check(old: &SandboxJobSpec, new: &SandboxJobSpec) -> Vec<FieldError> {
    let mut findings = Findings::default();
    if old.cancel && !new.cancel {
        findings.refuse("spec.cancel", "cannot be taken back; submit the job again under a new name");
    }
    let (old, new) = (without_mutable(old), without_mutable(new));
    if normalised(&old) != normalised(&new) {
        match (serde_json::to_value(&old), serde_json::to_value(&new)) {
            (Ok(old), Ok(new)) => compare(&old, &new, "spec", &mut findings),
            (Err(error), _) | (_, Err(error)) => {
                findings.refuse("spec", format!("cannot be written: {error}"));
            }
        }
    }
    findings.finish()
}

/// The spec without what may change, so that the rest can be compared.
fn without_mutable(spec: &SandboxJobSpec) -> SandboxJobSpec {
    SandboxJobSpec {
        suspend: false,
        cancel: false,
        priority: windlass_crds::Priority::default(),
        ttl_after_finished: None,
        ..spec.clone()
    }
}

/// Names every innermost field that differs.
fn compare(old: &Value, new: &Value, at: &str, findings: &mut Findings) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let nothing = &Value::Null;
                let (old, new) = (old.get(key).unwrap_or(nothing), new.get(key).unwrap_or(nothing));
                compare(old, new, &under(at, key), findings);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(old, new, &format!("{at}[{index}]"), findings);
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            let message = format!(
                "cannot change from {} to {}; only `suspend`, `cancel`, `priority` and `ttlAfterFinished` can: submit \
                 a new job instead",
                shown(old),
                shown(new)
            );
            findings.refuse(at, message);
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => Quoted(text).to_string(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Quoted(&value.to_string()).to_string()
        }
    }
}
