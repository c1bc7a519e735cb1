//! TLS to a server that a sandbox is given: opened here, so that programs inside need neither its certificate nor its key.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::meter::Metered;

/// Bytes in both directions, plain or by TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Who a server must be, and who vouches for it. Two are equal if they mean the same. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Trust>);

struct Trust {
    authorities: Vec<Vec<u8>>,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Tls {
    /// A server of this name, which one of these authorities vouches for (certificates in DER). `config` must verify just that,
    /// and offer no other protocol than HTTP/1.1.
    pub fn new(authorities: Vec<Vec<u8>>, name: ServerName<'static>, config: ClientConfig) -> Self {
        Self(Arc::new(Trust { authorities, name, config: Arc::new(config) }))
    }

    /// How it is verified.
    pub fn config(&self) -> &ClientConfig {
        &self.0.config
    }

    /// Shakes hands with a server that is connected.
    pub(super) async fn open(&self, stream: Metered) -> io::Result<Box<dyn Stream>> {
        let connector = TlsConnector::from(Arc::clone(&self.0.config));
        Ok(Box::new(connector.connect(self.0.name.clone(), stream).await?))
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name && self.0.authorities == other.0.authorities
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?}, {} authorities)", self.0.name, self.0.authorities.len())
    }
}
