//! The files that a client is made with: whom to trust, and the token.

use std::path::Path;

use http::header::HeaderValue;

use super::Error;

/// Reads the certificate authorities of a PEM file.
pub(super) fn read_ca(path: &Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let refused =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::CaFile { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(|error| refused(error.into()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| refused(error.into()))?;
    if certificates.is_empty() {
        Err(refused("it holds no certificate in PEM".into()))
    } else {
        Ok(certificates)
    }
}

/// Reads a token and makes the header of it, which is never shown in a log.
pub(super) fn read_token(path: &Path) -> Result<HeaderValue, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::TokenFile { path: path.to_owned(), source })?;
    let token = text.trim();
    let not_a_token = || Error::NotAToken { path: path.to_owned() };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(not_a_token());
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| not_a_token())?;
    value.set_sensitive(true);
    Ok(value)
}
