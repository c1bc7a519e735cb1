//! The tokens by which the controller calls nodes.
//!
//! None is stored: a token follows from a key that the controllers of one database share, the node's uid, the token's number
//! and when it was issued. The key is made of the authority's private key, which is in no database and no backup of one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use windlass_store::NodeRow;

/// What people and scanners recognise a token by.
const PREFIX: &str = "wlw_";
/// What keys made of the authority's are for.
const PURPOSE: &[u8] = b"windlass worker api tokens v1";

/// Makes tokens.
#[derive(Clone)]
pub struct WorkerTokens {
    key: hmac::Key,
    life: SignedDuration,
}

impl std::fmt::Debug for WorkerTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerTokens").field("life", &self.life).finish_non_exhaustive()
    }
}

/// A token and its end.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WorkerToken {
    pub(crate) text: String,
    pub(crate) expires_at: Timestamp,
}

impl WorkerTokens {
    /// Tokens that live so long, under a key made of this secret.
    pub fn new(secret: &[u8], life: SignedDuration) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&master, PURPOSE).as_ref());
        Self { key, life }
    }

    /// How long they live.
    pub(crate) const fn life(&self) -> SignedDuration {
        self.life
    }

    /// The token of the node's newest configuration; `None` where none was issued.
    pub(crate) fn newest(&self, node: &NodeRow) -> Option<WorkerToken> {
        let push = node.push.as_ref()?;
        Some(self.make(&node.uid, push.serial, push.issued_at))
    }

    /// The token that is in force on the node; `None` where none is.
    pub(crate) fn in_force(&self, node: &NodeRow) -> Option<WorkerToken> {
        let (serial, issued_at) = node.push.as_ref()?.token_at(node.applied_version)?;
        Some(self.make(&node.uid, serial, issued_at))
    }

    fn make(&self, uid: &str, serial: u64, issued_at: Timestamp) -> WorkerToken {
        let message = format!("{uid}\n{serial}\n{}", issued_at.as_millisecond());
        let text = format!("{PREFIX}{}", BASE64.encode(hmac::sign(&self.key, message.as_bytes())));
        let expires_at = issued_at.checked_add(self.life).unwrap_or(Timestamp::MAX);
        WorkerToken { text, expires_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_from_its_node_its_number_and_its_time() {
        let tokens = WorkerTokens::new(b"secret", SignedDuration::from_secs(100));
        let at = |second| Timestamp::from_second(second).unwrap();
        let token = tokens.make("uid", 1, at(5));
        assert_eq!(token.expires_at, at(105));
        assert!(token.text.starts_with("wlw_") && token.text.len() == 47, "{}", token.text);
        assert!(token == tokens.make("uid", 1, at(5)));
        let others = [
            tokens.make("uid2", 1, at(5)),
            tokens.make("uid", 2, at(5)),
            tokens.make("uid", 1, at(6)),
            WorkerTokens::new(b"other", SignedDuration::from_secs(100)).make("uid", 1, at(5)),
        ];
        assert!(others.iter().all(|other| other.text != token.text));
        assert!(!format!("{tokens:?}").contains("secret"));
    }
}
