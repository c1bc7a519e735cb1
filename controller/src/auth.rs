//! Who is calling: operators by API token, nodes by a token that registration gives them.
//!
//! Only hashes of API and join tokens are stored. Node tokens are JWTs signed with HMAC-SHA-256 under a secret that the
//! store keeps; nothing but this controller reads them, so one fixed algorithm is all there is.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long a node's token works; contracts ask for 24 h, after which the node registers again.
pub const NODE_TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// The hash under which a secret is stored. The secrets are 256 random bits, so no slow hash is needed.
pub fn secret_hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A new secret in text form, with a prefix that tells people and scanners what it is.
pub fn secret_text(prefix: &str, secret: [u8; 32]) -> String {
    format!("{prefix}{}", BASE64.encode(secret))
}

/// What a join token tells an agent: where the controller is, which authority to trust, and the secret.
pub fn join_token(url: &str, ca_fingerprint: &str, secret: &str) -> String {
    let content = serde_json::json!({"u": url, "c": ca_fingerprint, "s": secret});
    format!("wl1.{}", BASE64.encode(content.to_string()))
}

/// Makes and checks node tokens.
#[derive(Clone)]
pub struct NodeTokens {
    key: hmac::Key,
}

impl std::fmt::Debug for NodeTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeTokens(…)")
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: i64,
    exp: i64,
    jti: String,
    token_type: String,
    node_slug: String,
    holder: String,
}

/// Whom a node token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node's name.
    pub name: String,
    /// The node's uid.
    pub uid: String,
    /// Who had the name then: see [`holder`].
    pub holder: String,
}

/// Who has a node's name: the key that proves it, or, without a key, the one registration. It stays the same while an
/// agent restarts and registers again with its key, and changes when a token gives the name to another agent.
pub fn holder(public_key: Option<&[u8]>, boot_id: Option<&str>, registered_at: Option<Timestamp>) -> String {
    let held = match public_key {
        Some(key) => Sha256::digest(key),
        // Without a key each further registration is a takeover.
        None => Sha256::digest(format!(
            "{}@{}",
            boot_id.unwrap_or_default(),
            registered_at.map_or(0, Timestamp::as_millisecond)
        )),
    };
    hex::encode(held)
}

/// Why a node token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a token of this controller.
    #[error("the token is not one of this controller's node tokens")]
    Foreign,
    /// Its time is over.
    #[error("the node token has expired; register again")]
    Expired,
}

const ISSUER: &str = "windlass";

impl NodeTokens {
    /// Tokens under this secret.
    pub fn new(secret: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// A token for a node, and when it stops working.
    pub fn issue(&self, node: NodeIdentity, id: String, now: Timestamp) -> (String, Timestamp) {
        let expires = now.checked_add(NODE_TOKEN_LIFE).unwrap_or(Timestamp::MAX);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: node.uid,
            iat: now.as_second(),
            exp: expires.as_second(),
            jti: id,
            token_type: "node".to_owned(),
            node_slug: node.name,
            holder: node.holder,
        };
        let claims = serde_json::to_vec(&claims).expect("claims are plain data");
        let signed =
            format!("{}.{}", BASE64.encode(br#"{"alg":"HS256","typ":"JWT"}"#), BASE64.encode(claims));
        let signature = hmac::sign(&self.key, signed.as_bytes());
        (format!("{signed}.{}", BASE64.encode(signature)), expires)
    }

    /// Whom a token was made for.
    pub fn check(&self, token: &str, now: Timestamp) -> Result<NodeIdentity, Error> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Foreign)?;
        let signature = BASE64.decode(signature).map_err(|_| Error::Foreign)?;
        hmac::verify(&self.key, signed.as_bytes(), &signature).map_err(|_| Error::Foreign)?;
        let (_, claims) = signed.split_once('.').ok_or(Error::Foreign)?;
        let claims = BASE64.decode(claims).map_err(|_| Error::Foreign)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Error::Foreign)?;
        if claims.token_type != "node" || claims.iss != ISSUER {
            return Err(Error::Foreign);
        }
        if claims.exp <= now.as_second() {
            return Err(Error::Expired);
        }
        Ok(NodeIdentity { name: claims.node_slug, uid: claims.sub, holder: claims.holder })
    }
}

/// Checks that whoever signed `message` holds the private key to `public_key` (Ed25519).
pub fn signature_holds(public_key: &[u8], message: &str, signature: &[u8]) -> bool {
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public_key)
        .verify(message.as_bytes(), signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeIdentity {
        NodeIdentity { name: "n1".into(), uid: "uid-1".into(), holder: holder(Some(b"key"), None, None) }
    }

    #[test]
    fn a_key_holds_a_name_across_restarts_and_a_registration_without_one_only_once() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        assert_eq!(holder(Some(b"k"), Some("a"), at(1)), holder(Some(b"k"), Some("b"), at(2)));
        assert_ne!(holder(Some(b"k"), Some("a"), at(1)), holder(Some(b"l"), Some("a"), at(1)));
        assert_ne!(holder(None, Some("a"), at(1)), holder(None, Some("a"), at(2)));
        assert_ne!(holder(None, Some("a"), at(1)), holder(None, Some("b"), at(1)));
    }

    #[test]
    fn a_token_names_its_node_until_it_expires() {
        let tokens = NodeTokens::new(b"secret");
        let now = Timestamp::from_second(1_000).unwrap();
        let (token, expires) = tokens.issue(node(), "id".into(), now);
        assert_eq!(tokens.check(&token, now), Ok(node()));
        assert_eq!(tokens.check(&token, expires), Err(Error::Expired));
    }

    #[test]
    fn foreign_and_altered_tokens_are_refused() {
        let now = Timestamp::from_second(1_000).unwrap();
        let (token, _) = NodeTokens::new(b"other").issue(node(), "id".into(), now);
        let tokens = NodeTokens::new(b"secret");
        assert_eq!(tokens.check(&token, now), Err(Error::Foreign));
        for text in ["", ".", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
            assert_eq!(tokens.check(text, now), Err(Error::Foreign), "{text}");
        }
        let (mut token, _) = tokens.issue(node(), "id".into(), now);
        token.replace_range(40..41, if &token[40..41] == "A" { "B" } else { "A" });
        assert_eq!(tokens.check(&token, now), Err(Error::Foreign));
    }
}
