//! Steps that start, stop and restart containers of their node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Seconds that a container gets where the step does not say.
const TIMEOUT_SECONDS: u32 = 10;

/// Starts, stops or restarts a container of the node by its name. The node must allow it with `sandbox.services`. Containers that
/// Windlass has made, for jobs or for models, are never touched.
///
/// The step succeeds when the container is in the state that was asked for: running, for a while at least, and healthy if it has
/// a health check; or stopped. If it does not get there, it is put back into the state that it was in as far as that can be done,
/// and the step fails and says so. What the container was and is stands on standard output, as JSON.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceStep {
    /// What is done.
    pub action: ServiceAction,

    /// The container's name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"))]
    pub name: String,

    /// The engine that has the container. Needed where both have one of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ContainerEngine>,

    /// How many seconds the container has to stop before it is killed; and then to be up, and healthy, unless its first check is due later.
    #[serde(default = "timeout_seconds")]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u32,
}

impl ServiceStep {
    /// Whether a name can be one of a container.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let follows = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        name.len() <= 128
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.chars().all(follows)
    }
}

/// What is done with a container.
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
    strum::EnumIter,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ServiceAction {
    /// It runs then. One that runs already is left alone.
    Start,
    /// It does not run then. One that does not run is left alone.
    Stop,
    /// It is stopped if it runs, and started.
    Restart,
}

/// A container engine.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ContainerEngine {
    /// Podman.
    Podman,
    /// Docker.
    Docker,
}

const fn timeout_seconds() -> u32 {
    TIMEOUT_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_engines_give() {
        for good in ["a", "web", "web-1.db_2", "0"] {
            assert!(ServiceStep::is_name(good), "{good}");
        }
        let long = "a".repeat(129);
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "../a", "a\n", "é", &long] {
            assert!(!ServiceStep::is_name(bad), "{bad:?}");
        }
        let step: ServiceStep = serde_json::from_str(r#"{"action": "restart", "name": "web"}"#).unwrap();
        assert_eq!((step.timeout_seconds, step.runtime), (10, None));
    }
}
