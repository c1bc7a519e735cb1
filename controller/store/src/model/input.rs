//! Uploaded inputs, named by their digest.

/// An uploaded body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRow {
    /// The digest, such as `sha256:…`.
    pub digest: String,
    /// The length in bytes.
    pub size: u64,
    /// The key in the object store.
    pub object_key: String,
}
