//! TLS to the controller: one pinned authority and nothing else, not even the host's own trust store.
//!
//! At first contact only the authority's hash is known, from the join token: the chain that the controller presents
//! must then hold a certificate with that hash, and the controller's certificate must be valid under it. Afterwards
//! the authority itself is known. Both ways end in rustls' own verification with that authority as the only root.

use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::Digest as _;

/// Whom to trust to be the controller.
#[derive(Clone, PartialEq, Eq)]
pub enum Authority {
    /// The SHA-256 of an authority's certificate.
    Pinned([u8; 32]),
    /// Authorities' certificates in DER.
    Known(Vec<Vec<u8>>),
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pinned(hash) => write!(f, "Pinned({})", hex::encode(hash)),
            Self::Known(certificates) => write!(f, "Known({} certificates)", certificates.len()),
        }
    }
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not PEM.
    #[error("the authority's certificate is not PEM")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    /// No certificate in it.
    #[error("there is no certificate in the authority's PEM")]
    Empty,
    /// Not a certificate.
    #[error("the authority's certificate cannot be used")]
    Unusable(#[source] rustls::Error),
    /// The verifier cannot be made.
    #[error("the authority's certificates cannot be used for verification")]
    NoVerifier(#[source] rustls::client::VerifierBuilderError),
    /// The TLS library refuses its own settings.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotPem(_) => "ca_not_pem",
            Self::Empty => "ca_empty",
            Self::Unusable(_) | Self::NoVerifier(_) => "ca_unusable",
            Self::Setup(_) => "tls_setup",
        }
    }
}

impl Authority {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// When there is none, or one that cannot be used.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let certificates: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(Error::NotPem)?;
        if certificates.is_empty() {
            return Err(Error::Empty);
        }
        verifier(&certificates, &provider())?;
        Ok(Self::Known(certificates))
    }

    /// Whether this is or holds the authority whose certificate has a hash.
    pub fn holds(&self, hash: &[u8; 32]) -> bool {
        match self {
            Self::Pinned(pinned) => pinned == hash,
            Self::Known(certificates) => certificates
                .iter()
                .any(|certificate| <[u8; 32]>::from(sha2::Sha256::digest(certificate)) == *hash),
        }
    }
}

/// The settings of a connection, and the authority that was found during a handshake where only its hash was known.
pub(super) struct Tls {
    pub(super) config: rustls::ClientConfig,
    pub(super) found: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Tls {
    /// Settings for connections to a controller under `authority`.
    pub(super) fn new(authority: &Authority) -> Result<Self, Error> {
        let provider = provider();
        let found = Arc::new(Mutex::new(None));
        let known = match authority {
            Authority::Pinned(_) => None,
            Authority::Known(certificates) => Some(verifier(certificates, &provider)?),
        };
        let hash = match authority {
            Authority::Pinned(hash) => Some(*hash),
            Authority::Known(_) => None,
        };
        let verifier =
            PinnedVerifier { known, hash, found: Arc::clone(&found), provider: Arc::clone(&provider) };
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config, found })
    }
}

/// Settings for connections to servers of others, which only these authorities vouch for; none for plain HTTP alone.
pub(crate) fn plain_config(authorities: Vec<Vec<u8>>) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.into())?;
    }
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn verifier(
    certificates: &[Vec<u8>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(CertificateDer::from(certificate.clone())).map_err(Error::Unusable)?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(Error::NoVerifier)
}

/// Verifies the controller against the pinned authority.
#[derive(Debug)]
struct PinnedVerifier {
    known: Option<Arc<WebPkiServerVerifier>>,
    hash: Option<[u8; 32]>,
    /// Protects the authority that a handshake has found.
    found: Arc<Mutex<Option<Vec<u8>>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |by: &WebPkiServerVerifier| {
            by.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        if let Some(known) = &self.known {
            return verify(known);
        }
        let authority = intermediates
            .iter()
            .find(|certificate| Some(sha2::Sha256::digest(certificate).into()) == self.hash)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?
            .to_vec();
        let by = verifier(std::slice::from_ref(&authority), &self.provider)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let verified = verify(&by)?;
        *self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(authority);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
