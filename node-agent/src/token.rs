//! Join tokens: all that a new node needs to find the controller, to know it again, and to be let in.
//!
//! `wl1.` and base64url of `{"u": URL, "c": SHA-256 of the authority's certificate, "s": secret}`.

use base64::Engine as _;
use serde::Deserialize;
use url::Url;

/// A parsed join token. It never shows its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where the controller is.
    pub url: Url,
    /// SHA-256 of the DER of the authority that signs the controller's certificate.
    pub authority: [u8; 32],
    /// The secret.
    pub secret: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("url", &self.url.as_str())
            .field("authority", &hex::encode(self.authority))
            .field("secret", &"…")
            .finish()
    }
}

/// Why a join token was refused. No variant carries any of its text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not begin with the mark of a token.
    #[error(
        "this is not a join token: it does not begin with `wl1.`; copy the whole line that `windlass join-token create` prints"
    )]
    NoToken,
    /// The part after the mark is broken.
    #[error("the join token is damaged: copy the whole line that `windlass join-token create` prints")]
    Damaged,
    /// Its URL is none, or not HTTPS.
    #[error(
        "the join token names no https URL of a controller: make a new one with `windlass join-token create`"
    )]
    BadUrl,
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Damaged => "damaged_token",
            Self::BadUrl => "bad_token_url",
        }
    }
}

#[derive(Deserialize)]
struct Content {
    u: String,
    c: String,
    s: String,
}

impl std::str::FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let encoded = text.trim().strip_prefix("wl1.").ok_or(Error::NoToken)?;
        let json =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Error::Damaged)?;
        let content: Content = serde_json::from_slice(&json).map_err(|_| Error::Damaged)?;
        let mut authority = [0; 32];
        hex::decode_to_slice(&content.c, &mut authority).map_err(|_| Error::Damaged)?;
        if content.s.is_empty() {
            return Err(Error::Damaged);
        }
        let url = Url::parse(&content.u).map_err(|_| Error::BadUrl)?;
        if url.scheme() != "https" || url.host().is_none() {
            return Err(Error::BadUrl);
        }
        Ok(Self { url, authority, secret: content.s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(json: &str) -> Result<JoinToken, Error> {
        format!("wl1.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)).parse()
    }

    #[test]
    fn a_token_yields_its_three_parts_and_hides_the_secret() {
        let hash = "ab".repeat(32);
        let parsed =
            token(&format!(r#"{{"u":"https://127.0.0.1:12082","c":"{hash}","s":"hunter2"}}"#)).unwrap();
        assert_eq!(parsed.url.as_str(), "https://127.0.0.1:12082/");
        assert_eq!(parsed.authority, [0xab; 32]);
        assert_eq!(parsed.secret, "hunter2");
        assert!(!format!("{parsed:?}").contains("hunter2"));
    }

    #[test]
    fn a_damaged_token_is_refused_without_showing_it() {
        let hash = "ab".repeat(32);
        for (text, kind) in
            [("secret", "no_token"), ("wl1.!!!", "damaged_token"), ("wl1.c2VjcmV0", "damaged_token")]
        {
            let error = text.parse::<JoinToken>().unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let plain = token(&format!(r#"{{"u":"http://a:1","c":"{hash}","s":"x"}}"#)).unwrap_err();
        assert_eq!(plain.kind(), "bad_token_url");
        assert_eq!(token(r#"{"u":"https://a:1","c":"abcd","s":"x"}"#).unwrap_err().kind(), "damaged_token");
    }
}
