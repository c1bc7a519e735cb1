//! Secrets as the server tells of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_crds::protocol::SecretBytes;

/// Values to set.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct SecretRequest {
    /// By their keys.
    pub(crate) values: BTreeMap<String, SecretBytes>,
}

/// A Secret without its values.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    /// The namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
    /// Its keys.
    pub(crate) keys: Vec<SecretKey>,
}

/// A key of a Secret.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretKey {
    /// The key.
    pub(crate) key: String,
    /// How many bytes the value has.
    pub(crate) bytes: u64,
    /// When the key was first set.
    pub(crate) created_at: Timestamp,
    /// When the value was last set.
    pub(crate) updated_at: Timestamp,
    /// The controller's key that seals it.
    pub(crate) sealed_under: String,
}

/// What became of a rotation.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Rotated {
    /// The key that all secrets are under.
    pub(crate) key: String,
    /// How many values were not before.
    pub(crate) values: u64,
}
