//! Statuses for Kubernetes: what REST shows, kept small whatever the work does.

use serde::Serialize;
use serde_json::Value;
use windlass_crds::conditions::{self, Condition, ConditionStatus};
use windlass_crds::node_config::NodeConfigStatus;
use windlass_crds::sandbox_job::{SandboxJobStatus, StepPhase, StepStatus};

use super::object::{Seen, short};
use super::values::Lack;

/// The most bytes of a status as JSON.
pub(super) const STATUS_MAX: usize = 8 * 1024 - 256;

/// Whether the spec of an object is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// It is.
    Yes,
    /// It is not, and why.
    No(Refusal, String),
}

/// Why a spec is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
pub(super) enum Refusal {
    /// It breaks a rule.
    Invalid,
    /// It differs from what the job was created with, where that cannot change.
    SpecChanged,
    /// Something of the same name was not declared by this object.
    NameTaken,
    /// The same version of the template has other content.
    VersionConflict,
    /// An input was never uploaded.
    InputMissing,
    /// A Secret or a ConfigMap of the cluster cannot be had.
    Lacking(Lack),
}

impl Accepted {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Yes => "Accepted",
            Self::No(Refusal::Lacking(lack), _) => lack.into(),
            Self::No(refusal, _) => refusal.into(),
        }
    }

    pub(super) fn message(&self) -> &str {
        match self {
            Self::Yes => "",
            Self::No(_, message) => message,
        }
    }

    /// The condition, of the generation that the object has.
    pub(super) fn condition(&self, seen: &Seen, now: jiff::Timestamp) -> Condition {
        Condition {
            condition_type: "Accepted".to_owned(),
            status: ConditionStatus::from(*self == Self::Yes),
            reason: self.reason().to_owned(),
            message: short(self.message()),
            last_transition_time: now,
            observed_generation: Some(seen.generation),
        }
    }
}

/// The conditions of a status as it is there; those that cannot be read are not.
pub(super) fn known_conditions(status: &Value) -> Vec<Condition> {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.filter_map(|condition| serde_json::from_value(condition.clone()).ok()).collect()
}

/// New conditions with the transition times of those that were there and had the same status, all of this generation.
pub(super) fn settled(old: &Value, new: Vec<Condition>, generation: i64) -> Vec<Condition> {
    let old = known_conditions(old);
    let mut all = Vec::with_capacity(new.len());
    for mut condition in new {
        condition.message = short(&condition.message);
        condition.observed_generation = Some(generation);
        let mut one: Vec<Condition> =
            old.iter().filter(|old| old.condition_type == condition.condition_type).cloned().collect();
        conditions::set(&mut one, condition);
        all.append(&mut one);
    }
    all
}

/// A job's status as JSON that fits. What is left out, in this order: what steps used and said, then steps: those that
/// succeeded or never ran first.
pub(super) fn fit_job(mut status: SandboxJobStatus) -> Value {
    status.message = status.message.as_deref().map(short);
    for step in &mut status.steps {
        step.message = step.message.as_deref().map(short);
    }
    if fits(&status) {
        return json(&status);
    }
    for step in &mut status.steps {
        step.usage = None;
        if step.phase != StepPhase::Failed {
            step.message = None;
        }
    }
    let mut left: u32 = 0;
    while !fits(&status) {
        let matters = |step: &StepStatus| match step.phase {
            StepPhase::Failed | StepPhase::Running => 2,
            StepPhase::Succeeded => 1,
            StepPhase::Pending | StepPhase::Skipped => 0,
        };
        // The last of those that matter least.
        let least =
            status.steps.iter().enumerate().min_by_key(|(n, step)| (matters(step), std::cmp::Reverse(*n)));
        let Some((least, _)) = least else { break };
        status.steps.remove(least);
        left += 1;
        status.steps_omitted = left;
    }
    json(&status)
}

/// A node's status as JSON that fits: reasons and models are left out, and then labels, the last first.
pub(super) fn fit_node(mut status: NodeConfigStatus) -> Value {
    if let Some(inference) = &mut status.inference {
        inference.message = short(&inference.message);
    }
    for lack in status.host.iter_mut().flat_map(|host| &mut host.lacks) {
        *lack = short(lack);
    }
    let drop_reason =
        |status: &mut NodeConfigStatus| status.host.as_mut().and_then(|host| host.lacks.pop()).is_some();
    while !fits(&status) && drop_reason(&mut status) {}
    let drop_model = |status: &mut NodeConfigStatus| {
        status.inference.as_mut().and_then(|inference| inference.models.pop()).is_some()
    };
    while !fits(&status) && drop_model(&mut status) {}
    while !fits(&status) && status.labels.pop_last().is_some() {}
    json(&status)
}

fn fits(status: &impl Serialize) -> bool {
    json(status).to_string().len() <= STATUS_MAX
}

/// As JSON without nulls, as the API server keeps it, and without empty texts, which say nothing more than a field that is not
/// there and which some API servers of 1.20 take for null.
pub(super) fn json(status: &impl Serialize) -> Value {
    let value = serde_json::to_value(status).expect("a status is plain data");
    without_nulls(value)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null() && value != "");
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => value,
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::inference::{InferenceStatus, Model};
    use windlass_crds::node_config::HostSummary;

    use super::*;

    fn step(name: &str, phase: StepPhase) -> StepStatus {
        StepStatus {
            name: name.to_owned(),
            phase,
            reason: Some("Exited".to_owned()),
            message: Some("é\"".repeat(10_000)),
            exit_code: Some(1),
            ..StepStatus::default()
        }
    }

    #[test]
    fn whatever_a_job_does_its_status_fits_and_shows_what_failed() {
        let name = |n: usize| format!("{n:063}");
        let mut steps: Vec<StepStatus> = (0..100).map(|n| step(&name(n), StepPhase::Succeeded)).collect();
        steps[77].phase = StepPhase::Failed;
        steps[99].phase = StepPhase::Skipped;
        let condition = Condition {
            condition_type: "Failed".to_owned(),
            status: ConditionStatus::True,
            reason: "StepFailed".to_owned(),
            message: short(&"\u{1}".repeat(100_000)),
            last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            observed_generation: Some(1),
        };
        let status = SandboxJobStatus {
            message: Some("\u{1}".repeat(100_000)),
            steps,
            conditions: vec![condition],
            ..SandboxJobStatus::default()
        };
        let value = fit_job(status.clone());
        assert!(value.to_string().len() < 8 * 1024, "{} bytes", value.to_string().len());
        let shown = value["steps"].as_array().unwrap();
        let omitted = value["stepsOmitted"].as_u64().unwrap();
        assert_eq!(shown.len() as u64 + omitted, 100);
        assert!(shown.iter().any(|step| step["name"] == name(77)), "the step that failed is shown");
        assert_eq!(shown[0]["name"], name(0), "then the first ones, in order");
        assert_eq!(fit_job(status), value, "the same again");

        let small =
            SandboxJobStatus { steps: vec![step("a", StepPhase::Running)], ..SandboxJobStatus::default() };
        assert_eq!(fit_job(small)["steps"][0]["message"].as_str().unwrap().chars().count(), 512);
    }

    #[test]
    fn a_node_with_more_labels_than_fit_shows_some() {
        let labels = (0..200).map(|n| (format!("{n:063}"), "v".repeat(63))).collect();
        let value = fit_node(NodeConfigStatus { labels, ..NodeConfigStatus::default() });
        assert!(value.to_string().len() < 8 * 1024);
        assert!(value["labels"].as_object().unwrap().len() > 40);
    }

    #[test]
    fn a_node_with_more_models_and_reasons_than_fit_keeps_its_labels() {
        let model = |n: usize| Model { name: format!("{n:0200}"), digest: None, size: None };
        let inference = InferenceStatus {
            message: "\u{1}".repeat(10_000),
            models: (0..256).map(model).collect(),
            ..InferenceStatus::default()
        };
        let host = HostSummary { lacks: vec!["x".repeat(4000); 16], ..HostSummary::default() };
        let labels = [("a".to_owned(), "b".to_owned())].into();
        let status = NodeConfigStatus {
            labels,
            inference: Some(inference),
            host: Some(host),
            ..NodeConfigStatus::default()
        };
        let value = fit_node(status);
        assert!(value.to_string().len() < 8 * 1024, "{} bytes", value.to_string().len());
        assert_eq!(value["labels"]["a"], "b");
        assert!(!value["inference"]["models"].as_array().unwrap().is_empty());
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let condition = |status: bool, second| Condition {
            condition_type: "Accepted".to_owned(),
            status: status.into(),
            reason: "Accepted".to_owned(),
            message: String::new(),
            last_transition_time: at(second),
            observed_generation: None,
        };
        let old = serde_json::json!({"conditions": [condition(true, 1), {"type": "edited by hand"}]});
        let kept = settled(&old, vec![condition(true, 5)], 7);
        assert_eq!((kept[0].last_transition_time, kept[0].observed_generation), (at(1), Some(7)));
        assert_eq!(kept.len(), 1, "what is not ours goes");
        assert_eq!(settled(&old, vec![condition(false, 5)], 7)[0].last_transition_time, at(5));
    }
}
