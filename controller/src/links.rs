//! Links to artifacts that work for a while without a token: for people and programs that have no account.
//!
//! A link is signed with a key that the controllers of one database share; nothing of it is stored, and it cannot be taken back
//! but by deleting the job, or by giving the controller another authority.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::Timestamp;
use ring::hmac;
use windlass_crds::protocol::AttemptId;

/// What keys made of the authority's are for.
const PURPOSE: &[u8] = b"windlass artifact links v1";

/// Makes and checks links.
#[derive(Clone)]
pub struct ArtifactLinks {
    key: hmac::Key,
}

impl std::fmt::Debug for ArtifactLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArtifactLinks(…)")
    }
}

impl ArtifactLinks {
    /// Links under a key made of this secret.
    pub fn new(secret: &[u8]) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&master, PURPOSE).as_ref()) }
    }

    /// The signature of a link to an artifact that works until `expires`, in seconds since the epoch.
    pub(crate) fn sign(&self, attempt: &AttemptId, number: u32, expires: i64) -> String {
        BASE64.encode(hmac::sign(&self.key, message(attempt, number, expires).as_bytes()))
    }

    /// Whether a link is ours and still works.
    pub(crate) fn holds(
        &self,
        attempt: &AttemptId,
        number: u32,
        expires: i64,
        signature: &str,
        now: Timestamp,
    ) -> bool {
        let Ok(signature) = BASE64.decode(signature) else { return false };
        let message = message(attempt, number, expires);
        hmac::verify(&self.key, message.as_bytes(), &signature).is_ok() && now.as_second() < expires
    }
}

fn message(attempt: &AttemptId, number: u32, expires: i64) -> String {
    let AttemptId { job, epoch } = attempt;
    format!("{job}\n{epoch}\n{number}\n{expires}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_good_for_one_artifact_until_it_expires() {
        let links = ArtifactLinks::new(b"secret");
        let attempt = AttemptId { job: "j".into(), epoch: 2 };
        let at = |second| Timestamp::from_second(second).unwrap();
        let signature = links.sign(&attempt, 3, 100);
        assert!(links.holds(&attempt, 3, 100, &signature, at(99)));
        assert!(!links.holds(&attempt, 3, 100, &signature, at(100)), "it has expired");
        let other = AttemptId { job: "j".into(), epoch: 1 };
        for (attempt, number, expires) in [(&other, 3, 100), (&attempt, 4, 100), (&attempt, 3, 101)] {
            assert!(!links.holds(attempt, number, expires, &signature, at(1)));
        }
        for signature in ["", "!", &signature[1..], &ArtifactLinks::new(b"x").sign(&attempt, 3, 100)] {
            assert!(!links.holds(&attempt, 3, 100, signature, at(1)), "{signature}");
        }
        assert!(!format!("{links:?}").contains("secret"));
    }
}
