//! Secrets as the store keeps them: sealed. It never sees a value or the key that opens one.

use std::fmt;

use jiff::Timestamp;

/// A sealed value.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedValue {
    /// Its key in the Secret.
    pub entry: String,
    /// Names the key that wraps [`Self::wrapped_key`].
    pub key_id: String,
    /// The key that opens [`Self::sealed`], wrapped.
    pub wrapped_key: Vec<u8>,
    /// The value, sealed.
    pub sealed: Vec<u8>,
    /// How many bytes the value has.
    pub size: u64,
}

impl fmt::Debug for SealedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedValue")
            .field("entry", &self.entry)
            .field("key_id", &self.key_id)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A sealed value in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretValueRow {
    /// The namespace.
    pub namespace: String,
    /// The Secret.
    pub name: String,
    /// The value.
    pub value: SealedValue,
    /// Higher than any before whenever the row changes.
    pub version: i64,
}

/// What is told of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretEntryRow {
    /// The namespace.
    pub namespace: String,
    /// The Secret.
    pub name: String,
    /// Its key in the Secret.
    pub entry: String,
    /// How many bytes the value has.
    pub size: u64,
    /// Names the key that wraps the value's.
    pub key_id: String,
    /// When the key was first set.
    pub created_at: Timestamp,
    /// When the value was last set.
    pub updated_at: Timestamp,
}

/// What came of setting values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutSecret {
    /// There was no such Secret.
    Created,
    /// There was one.
    Updated,
    /// It would have had this many keys, more than it may; nothing was changed.
    TooManyKeys(usize),
}
