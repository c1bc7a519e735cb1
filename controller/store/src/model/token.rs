//! Tokens. Only hashes are stored; secrets never reach the store.

use std::fmt;

use jiff::Timestamp;

/// A token with which nodes join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// The id, shown in lists.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// What it is for.
    pub description: String,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// How many nodes it admits.
    pub max_uses: Option<u32>,
    /// How many it has admitted.
    pub uses: u32,
    /// The known node that it may replace; such a token admits no others.
    pub replaces: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl fmt::Debug for JoinTokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokenRow")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .field("max_uses", &self.max_uses)
            .field("uses", &self.uses)
            .field("replaces", &self.replaces)
            .field("revoked_at", &self.revoked_at)
            .finish_non_exhaustive()
    }
}

/// A token with which people and programs call the API.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// The id, shown in lists.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// Whose it is, or what it is for.
    pub name: String,
    /// What it permits.
    pub role: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working; the caller compares.
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for ApiTokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiTokenRow")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("role", &self.role)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
