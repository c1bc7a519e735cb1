//! Inference on a node: the server of models that it runs or uses, as it is declared and as it is found.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::{Bytes, Cpu};
use crate::sandbox_job::is_default;
use crate::service::ContainerEngine;

/// The port of a server where none is named: Ollama's own.
pub const DEFAULT_PORT: u16 = 11434;

/// The server of models that a node runs or uses. There is at most one on a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InferenceSpec {
    /// `false` stops the server and keeps its models.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enabled: bool,

    /// Keeps the node from being `Ready` while it has no model to offer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub required: bool,

    /// What the server speaks.
    #[serde(default)]
    pub engine: InferenceEngine,

    /// A server that runs already, such as `http://127.0.0.1:11434` or `https://models.example`. Windlass then starts, changes and
    /// stops nothing. A server outside of this host and its private networks needs `sandbox.externalModels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://"))]
    pub url: Option<String>,

    /// A file of the node with the certificates, in PEM, of the authorities that vouch for the server; needed with `https`. For a
    /// server that the world trusts, the host's own list, such as `/etc/ssl/certs/ca-certificates.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub ca_file: Option<String>,

    /// A file of the node with the key that the server wants as `Authorization: Bearer`. Steps do not see it: their proxy adds it.
    /// Without TLS it is sent to this host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub api_key_file: Option<String>,

    /// The container engine that runs the server; without it the first that works on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ContainerEngine>,

    /// The image of the server. It must be within `sandbox.images`. Without it `docker.io/ollama/ollama`, which
    /// `openaiCompatible` has none like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Arguments of the image's own entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 4096)))]
    pub args: Vec<String>,

    /// The port on the host's loopback address. Default 11434. The server is told so by `OLLAMA_HOST`, or by `LLAMA_ARG_HOST`
    /// and `LLAMA_ARG_PORT`; one that reads neither needs it in `args`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,

    /// Environment of the server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    pub env: BTreeMap<String, String>,

    /// A folder of the host that the server sees as `/models`. Without it one in the agent's state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^/"))]
    pub model_volume: Option<String>,

    /// What computes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub variant: InferenceVariant,

    /// Models that the server must have, such as `gemma3:270m`, or `gemma3:270m@sha256:…` where only that very one will do.
    /// Ollama is told to fetch those that it lacks; another server must have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub models: Vec<String>,

    /// Removes models of Ollama that `models` does not list. Default: if the folder is the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune_models: Option<bool>,

    /// The most memory of the server; a server that goes beyond it is ended and started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,

    /// The most cpu of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
}

impl Default for InferenceSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            required: false,
            engine: InferenceEngine::default(),
            url: None,
            ca_file: None,
            api_key_file: None,
            runtime: None,
            image: None,
            args: Vec::new(),
            port: None,
            env: BTreeMap::new(),
            model_volume: None,
            variant: InferenceVariant::default(),
            models: Vec::new(),
            prune_models: None,
            memory: None,
            cpu: None,
        }
    }
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// What a server of models speaks.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum InferenceEngine {
    /// Ollama: its own interface, and OpenAI's beside it.
    #[default]
    Ollama,
    /// OpenAI's interface below `/v1`, as llama.cpp's server and vLLM have it.
    OpenaiCompatible,
}

/// What computes.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    JsonSchema,
    strum::IntoStaticStr,
    strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum InferenceVariant {
    /// The processor.
    #[default]
    Cpu,
    /// All graphics processors of Nvidia.
    Cuda,
    /// All graphics processors of AMD.
    Rocm,
}

/// A model that a server has.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Its name, as requests name it.
    pub name: String,
    /// `sha256:…`, where the server tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes, where the server tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// What is found of a node's server of models.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceStatus {
    /// What it speaks.
    pub engine: InferenceEngine,
    /// Where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// The container engine that runs it; absent where it is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Its version, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether jobs can use it.
    pub ready: bool,
    /// Why it is as it is, as one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The models that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Model>,
}

/// The name of a model and the digest that it must have, of an entry of [`InferenceSpec::models`].
pub fn split_model(entry: &str) -> (&str, Option<&str>) {
    match entry.split_once("@sha256:") {
        Some((name, _)) => (name, entry.get(name.len() + 1..)),
        None => (entry, None),
    }
}

/// Whether a server that names a model so has the one that is asked for: `gemma3` is `gemma3:latest`.
pub fn is_same_model(wanted: &str, known: &str) -> bool {
    wanted == known || known.strip_suffix(":latest") == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_a_digest_and_leave_out_the_usual_tag() {
        assert_eq!(split_model("a/b:1"), ("a/b:1", None));
        assert_eq!(split_model("a:1@sha256:ff"), ("a:1", Some("sha256:ff")));
        assert!(is_same_model("a", "a:latest") && is_same_model("a:1", "a:1"));
        assert!(!is_same_model("a:1", "a") && !is_same_model("a", "ab:latest"));
    }

    #[test]
    fn a_spec_of_nothing_is_an_enabled_server_of_ollama() {
        let spec: InferenceSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(spec, InferenceSpec::default());
        assert!(spec.enabled && spec.engine == InferenceEngine::Ollama);
        assert_eq!(serde_json::to_value(&spec).unwrap(), serde_json::json!({"engine": "ollama"}));
    }
}
