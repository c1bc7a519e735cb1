//! Conditions as Kubernetes writes them (`metav1.Condition`): one observation about an object with a reason.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observation about an object.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed, such as `Ready` or `Complete`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub condition_type: String,

    /// Whether it holds.
    pub status: ConditionStatus,

    /// Why, as one word in CamelCase.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,

    /// Why, as a sentence; may be empty.
    #[serde(default)]
    #[schemars(length(max = 32768))]
    pub message: String,

    /// When `status` last changed.
    pub last_transition_time: Timestamp,

    /// The generation of the spec that the observation speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Sets a condition in `conditions`; the transition time of the same status stays as it was.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.condition_type == new.condition_type) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: bool, reason: &str, second: i64) -> Condition {
        Condition {
            condition_type: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: String::new(),
            last_transition_time: Timestamp::from_second(second).unwrap(),
            observed_generation: Some(1),
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(&mut conditions, ready(false, "Starting", 1));
        set(&mut conditions, ready(false, "NoHeartbeat", 2));
        assert_eq!(conditions, [ready(false, "NoHeartbeat", 1)]);
        set(&mut conditions, ready(true, "Healthy", 3));
        assert_eq!(conditions, [ready(true, "Healthy", 3)]);
    }
}
