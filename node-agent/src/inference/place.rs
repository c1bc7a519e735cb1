//! Where the server is, who it must be, and the key that it wants.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;
use rustls::pki_types::ServerName;
use url::Url;
use windlass_crds::protocol::InferenceBackend;
use windlass_sandbox::egress::{LocalServer, Tls};

use super::{REQUESTS, RULE, Trouble, container};
use crate::client::Authority;
use crate::facts::small_text;

/// The words for a URL that leads nowhere, and for one that leads where the policy does not allow.
pub(super) const INVALID: &str = "InvalidUrl";
pub(super) const EXTERNAL: &str = "ExternalModel";

/// What the configuration says of where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its URL; for a server of the node's own the one that it gets.
    url: String,
    ca_file: Option<String>,
    api_key_file: Option<String>,
}

/// A server that is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// What the configuration says of it.
    pub(super) configured: Place,
    pub(super) address: SocketAddr,
    /// The host and port as requests name them.
    pub(super) host: String,
    /// What its paths begin with: nothing, or a path without a slash at its end.
    pub(super) prefix: String,
    /// Who it must be; `None` for plain HTTP.
    pub(super) tls: Option<Tls>,
    /// What it is told in `Authorization`. Never shown.
    pub(super) authorization: Option<HeaderValue>,
}

impl Endpoint {
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.host, self.prefix)
    }

    /// The server as steps may use it.
    pub(super) fn local(&self) -> LocalServer {
        let Self { configured: _, address, host, prefix, tls, authorization } = self.clone();
        LocalServer { address, host, prefix, tls, authorization, rule: RULE.to_owned(), requests: REQUESTS }
    }
}

impl Place {
    pub(super) fn of(backend: &InferenceBackend) -> Self {
        let own = || format!("http://127.0.0.1:{}", container::port(backend));
        Self {
            url: backend.url.clone().unwrap_or_else(own),
            ca_file: backend.ca_file.clone(),
            api_key_file: backend.api_key_file.clone(),
        }
    }

    /// Looks up where the server is, and reads whom to trust and the key.
    pub(super) async fn find(&self, allows: impl Fn(IpAddr) -> bool + Send) -> Result<Endpoint, Trouble> {
        let url = Url::parse(&self.url).map_err(|error| self.invalid(&format!("is none: {error}")))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(self.invalid("names no host"));
        };
        let by_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(self.invalid("is of another protocol than HTTP")),
        };
        let name = host.trim_matches(['[', ']']);
        let address = self.look_up(name, port).await?;
        if !allows(address.ip()) {
            let message = format!(
                "inference.url: `{host}` is at {}, outside of this host and its private networks; sandbox.externalModels would allow \
                 that",
                address.ip()
            );
            return Err(Trouble::new(EXTERNAL, message));
        }
        let tls = if by_tls { Some(self.tls(name).await?) } else { None };
        let authorization = match &self.api_key_file {
            Some(_) if !by_tls && !address.ip().is_loopback() => {
                return Err(self.invalid(
                    "would have the key of inference.apiKeyFile sent in clear; only this host is told keys without TLS",
                ));
            }
            Some(file) => Some(authorization(file).await?),
            None => None,
        };
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let prefix = url.path().trim_end_matches('/').to_owned();
        Ok(Endpoint { configured: self.clone(), address, host, prefix, tls, authorization })
    }

    async fn look_up(&self, name: &str, port: u16) -> Result<SocketAddr, Trouble> {
        let found = tokio::net::lookup_host((name, port)).await.map_err(|error| {
            Trouble::new("Unreachable", format!("inference.url: `{name}` cannot be looked up: {error}"))
        })?;
        let addresses: Vec<SocketAddr> = found.collect();
        // Names of the host itself may have two addresses, of which a server often has the older one.
        let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied();
        address.ok_or_else(|| self.invalid("has no address"))
    }

    async fn tls(&self, name: &str) -> Result<Tls, Trouble> {
        let Some(file) = &self.ca_file else {
            return Err(self.invalid(
                "needs inference.caFile, a file of the node with the certificates of the authorities that vouch for the server",
            ));
        };
        let unusable = |why: String| Trouble::new("CaFileUnusable", format!("inference.caFile {file} {why}"));
        let pem = small_text(file).await.map_err(|error| unusable(format!("cannot be read: {error}")))?;
        let authorities = match Authority::from_pem(&pem) {
            Ok(Authority::Known(certificates)) => certificates,
            Ok(Authority::Pinned(_)) => return Err(unusable("holds no certificate".to_owned())),
            Err(error) => return Err(unusable(format!("cannot be used: {}", crate::error_chain(&error)))),
        };
        let mut config = crate::client::plain_config(authorities.clone())
            .map_err(|error| unusable(format!("cannot be used: {}", crate::error_chain(&error))))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| self.invalid("names a host that no certificate can name"))?;
        Ok(Tls::new(authorities, server, config))
    }

    fn invalid(&self, why: &str) -> Trouble {
        let form = "write it as `http://host:port` or `https://host:port`";
        Trouble::new(INVALID, format!("inference.url: `{}` {why}; {form}", self.url))
    }
}

/// The header with the key of a file.
async fn authorization(file: &str) -> Result<HeaderValue, Trouble> {
    let unusable =
        |why: String| Trouble::new("KeyFileUnusable", format!("inference.apiKeyFile {file} {why}"));
    let text = small_text(file).await.map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable("must hold one line with the key, of visible ASCII characters".to_owned()));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).expect("it is visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::is_near;
    use super::super::tests::backend;
    use super::*;

    fn place(url: &str, ca_file: Option<&str>, api_key_file: Option<&str>) -> Place {
        let owned = |file: Option<&str>| file.map(str::to_owned);
        let url = Some(url.to_owned());
        Place::of(&InferenceBackend {
            url,
            ca_file: owned(ca_file),
            api_key_file: owned(api_key_file),
            ..backend()
        })
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_used_names_the_field_and_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (text, key, two) = (file("text", "no certificate"), file("key", "k1\n"), file("two", "k1\nk2\n"));
        let long = file("long", &"x".repeat(2 << 20));
        let ca = "/nonexistent/ca.pem";
        for (place, reason, words) in [
            (place("nonsense", None, None), INVALID, "`nonsense` is none"),
            (place("ftp://127.0.0.1", None, None), INVALID, "another protocol than HTTP"),
            (place("https://127.0.0.1", None, None), INVALID, "needs inference.caFile"),
            (
                place("https://127.0.0.1", Some(ca), None),
                "CaFileUnusable",
                "/nonexistent/ca.pem cannot be read",
            ),
            (place("https://127.0.0.1", Some(&text), None), "CaFileUnusable", "no certificate"),
            (place("https://127.0.0.1", Some(&long), None), "CaFileUnusable", "longer than 1024 KiB"),
            (place("http://93.184.216.34", None, None), EXTERNAL, "sandbox.externalModels"),
            (place("http://10.0.0.1", None, Some(&key)), INVALID, "sent in clear"),
            (place("http://127.0.0.1", None, Some("/nonexistent/key")), "KeyFileUnusable", "cannot be read"),
            (place("http://127.0.0.1", None, Some(&two)), "KeyFileUnusable", "one line"),
        ] {
            let trouble = place.find(is_near).await.unwrap_err();
            assert_eq!(trouble.reason, reason, "{trouble:?}");
            assert!(trouble.message.contains(words), "{words}: {trouble:?}");
        }
    }

    #[tokio::test]
    async fn a_server_of_the_nodes_own_is_at_its_port_and_may_want_a_key_that_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secretkey\n").unwrap();
        let own = InferenceBackend {
            api_key_file: Some(file.path().display().to_string()),
            port: Some(7),
            ..backend()
        };
        let endpoint = Place::of(&own).find(is_near).await.unwrap();
        assert_eq!(endpoint.url(), "http://127.0.0.1:7");
        assert_eq!(endpoint.authorization.as_ref().unwrap(), "Bearer secretkey");
        assert!(!format!("{endpoint:?} {:?}", endpoint.local()).contains("secretkey"));
    }
}
