//! How a job names the secrets and the settings that its steps need. The values are never in a manifest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most bytes of one value.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// The fewest bytes of a value: a shorter one could not be masked without making every log unreadable.
pub const MIN_VALUE_BYTES: usize = 4;
/// The most keys of one Secret.
pub const MAX_KEYS: usize = 64;
/// The most bytes of all values that one attempt is given.
pub const MAX_ATTEMPT_BYTES: usize = 128 << 10;
/// The most bytes of all values of ConfigMaps that one attempt is given: as many as one `inline` input has characters.
pub const MAX_CONFIG_BYTES: usize = 256 << 10;

/// A value of a Secret that a step is given: as exactly one of `env` and `file`. Only this step gets it, and no answer, log or
/// event shows it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretUse {
    /// The Secret, in the job's namespace. `windlass secret set` makes it; for a job of a cluster it may be one of Kubernetes.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// The key of the value in the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,

    /// The environment variable that holds the value. Names that start with `WINDLASS_` are reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub env: Option<String>,

    /// The file that holds the value, relative to `/run/windlass/secrets`, where only the step can read it and nobody can
    /// change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub file: Option<String>,
}

impl std::fmt::Display for SecretUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.key)
    }
}

/// A value of a ConfigMap that a step is given: as exactly one of `env` and `file`. ConfigMaps are of the cluster that the job comes
/// from; a job that comes by REST has none.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapUse {
    /// The ConfigMap, in the job's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// The key of the value in the ConfigMap. The value must be text.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,

    /// The environment variable that holds the value. Names that start with `WINDLASS_` are reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub env: Option<String>,

    /// The file that holds the value, relative to `/workspace`. It is there before the first step, as inputs are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub file: Option<String>,
}

impl std::fmt::Display for ConfigMapUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.key)
    }
}
