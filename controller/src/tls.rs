//! The controller's certificate authority and its server certificate.
//!
//! The authority is made at the first start and kept in `<state>/pki`; its hash travels in join tokens, so that a
//! node trusts the right controller from its first byte. The server certificate is made anew at every start, so that
//! it always names the addresses that are served.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use sha2::{Digest, Sha256};

/// The file with an authority's private key.
pub(crate) const KEY: &str = "ca.key";
/// The file with an authority's certificate.
pub(crate) const CERTIFICATE: &str = "ca.crt";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the authority could not be read or written.
    #[error("could not {action} {}", path.display())]
    File {
        /// `read`, `write`, `remove` or `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The authority's files are damaged.
    #[error("{} is damaged; restore it from a backup, or, to begin anew, move the whole state folder away: every node must then join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The authority that was made elsewhere is none.
    #[error("{} is no {what} in PEM; --authority must name a folder as `windlass identity create` makes it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// Nodes would not trust what the authority signs.
    #[error(
        "the authority {} cannot be used: nodes would refuse what it signs; it must be one that `windlass identity create` or a \
         controller has made",
        path.display()
    )]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// Why they would.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key is another authority's.
    #[error("{} is not the key of {}; restore both from the same backup", key.display(), certificate.display())]
    Pair {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// A name that is not a valid host name or address.
    #[error("`{name}` is neither a host name nor an address (--tls-san)")]
    Name {
        /// The name.
        name: String,
    },
    /// A certificate could not be made.
    #[error("could not make a certificate")]
    Make(#[source] rcgen::Error),
    /// The TLS library refused the certificate.
    #[error("could not use the certificate")]
    Use(#[source] rustls::Error),
}

/// The SHA-256 of a certificate in PEM, in hexadecimal; `None` where it is none.
pub(crate) fn fingerprint_of(pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(hex::encode(Sha256::digest(&der)))
}

/// The certificate authority.
pub struct Authority {
    key: KeyPair,
    pem: String,
    der: CertificateDer<'static>,
    file: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority in `<state>/pki` where there is none, or only a part of one.
    pub fn ensure(state: &Path) -> Result<(), Error> {
        let folder = state.join("pki");
        crate::state::ensure_private_folder(&folder).map_err(|source| Error::File {
            action: "create",
            path: folder.clone(),
            source,
        })?;
        Self::make(&folder)
    }

    /// Makes an authority in a folder where there is none, or only a part of one.
    pub(crate) fn make(folder: &Path) -> Result<(), Error> {
        let (key_file, file) = (folder.join(KEY), folder.join(CERTIFICATE));
        if key_file.exists() && file.exists() {
            return Ok(());
        }
        // The certificate is written last, so that where it is, its key is too.
        match fs::remove_file(&file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::File { action: "remove", path: file, source });
            }
            Ok(()) | Err(_) => {}
        }
        let key = KeyPair::generate().map_err(Error::Make)?;
        let certificate = authority_params().self_signed(&key).map_err(Error::Make)?;
        write_private(&key_file, key.serialize_pem().as_bytes())?;
        write_private(&file, certificate.pem().as_bytes())
    }

    /// Reads the authority from `<state>/pki`, and closes that folder to everybody but its owner.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let folder = state.join("pki");
        crate::state::ensure_private_folder(&folder).map_err(|source| Error::File {
            action: "create",
            path: folder.clone(),
            source,
        })?;
        Self::read(&folder)
    }

    /// Reads an authority that was made elsewhere, and checks that nodes will trust what it signs. The folder is left as it is.
    pub fn given(folder: &Path) -> Result<Self, Error> {
        let named = |error| match error {
            Error::Damaged { path } => {
                let what = if path.ends_with(KEY) { "private key" } else { "certificate" };
                Error::Foreign { path, what }
            }
            other => other,
        };
        let authority = Self::read(folder).map_err(named)?;
        authority.check_trust()?;
        Ok(authority)
    }

    /// Checks a certificate that it signs as nodes do.
    fn check_trust(&self) -> Result<(), Error> {
        const NAME: &str = "windlass-controller";
        let unfit = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unfit {
            path: self.file.clone(),
            source,
        };
        let (chain, _) = self.issue(&[NAME.to_owned()])?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|error| unfit(error.into()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .map_err(|error| unfit(error.into()))?;
        let name = NAME.try_into().map_err(|_| Error::Name { name: NAME.to_owned() })?;
        let (leaf, rest) = chain.split_first().expect("a chain begins with what was signed");
        verifier
            .verify_server_cert(leaf, rest, &name, &[], UnixTime::now())
            .map_err(|error| unfit(error.into()))?;
        Ok(())
    }

    fn read(folder: &Path) -> Result<Self, Error> {
        let (key_file, file) = (folder.join(KEY), folder.join(CERTIFICATE));
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| Error::File {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let (key, pem) = (read(&key_file)?, read(&file)?);
        let key = KeyPair::from_pem(&key).map_err(|_| Error::Damaged { path: key_file.clone() })?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::Damaged { path: file.clone() })?
            .into_owned();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::ring::default_provider();
        match rustls::sign::CertifiedKey::from_der(vec![der.clone()], private, &provider) {
            Ok(_) => Ok(Self { key, pem, der, file }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(Error::Pair { key: key_file, certificate: file }),
            Err(_) => Err(Error::Damaged { path: file }),
        }
    }

    /// A secret that follows from the authority's key and does not tell it: what is derived from it is the same in every
    /// controller of this authority.
    pub fn secret(&self) -> [u8; 32] {
        Sha256::digest([&b"windlass authority secret v1\n"[..], &self.key.serialize_der()].concat()).into()
    }

    /// The authority's certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The file with the authority's certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The SHA-256 of the authority's certificate in DER, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.der))
    }

    /// A server configuration for these host names and addresses.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<rustls::ServerConfig>, Error> {
        let (chain, key) = self.issue(names)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Use)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(Error::Use)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate of a server with these host names and addresses, with the authority's behind it, and its key.
    fn issue(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "windlass-controller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2055, 1, 1);
        for name in names {
            let san = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    let refused = || Error::Name { name: name.clone() };
                    windlass_crds::names::check_subdomain(name).map_err(|_| refused())?;
                    SanType::DnsName(name.as_str().try_into().map_err(|_| refused())?)
                }
            };
            params.subject_alt_names.push(san);
        }
        let params_of_authority = authority_params();
        let issuer = Issuer::from_params(&params_of_authority, &self.key);
        let key = KeyPair::generate().map_err(Error::Make)?;
        let certificate = params.signed_by(&key, &issuer).map_err(Error::Make)?;
        let chain = vec![certificate.der().clone(), self.der.clone()];
        Ok((chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }
}

/// What every authority's certificate says; only the key differs.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Windlass controller CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2055, 1, 1);
    params
}

/// Writes a file that only its owner can read, whole or not at all; it is on disk when this returns.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    let folder = path.parent().expect("files are written into folders");
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_made_once_and_signs_for_names_and_addresses() {
        let state = tempfile::tempdir().unwrap();
        Authority::ensure(state.path()).unwrap();
        let first = Authority::open(state.path()).unwrap();
        Authority::ensure(state.path()).unwrap();
        let second = Authority::open(state.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert!(second.server_config(&["localhost".into(), "127.0.0.1".into(), "::1".into()]).is_ok());
        assert!(matches!(second.server_config(&["not a name".into()]), Err(Error::Name { .. })));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(state.path().join("pki/ca.key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_reported_with_its_path() {
        let state = tempfile::tempdir().unwrap();
        Authority::ensure(state.path()).unwrap();
        fs::write(state.path().join("pki/ca.key"), "rubbish").unwrap();
        let error = Authority::open(state.path()).unwrap_err();
        assert!(error.to_string().contains("ca.key is damaged"), "{error}");
    }

    #[test]
    fn an_authority_that_was_made_elsewhere_is_used_if_nodes_can_trust_it() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Authority::given(folder.path()).unwrap_err();
        assert!(matches!(refused(), Error::File { action: "read", .. }));
        Authority::make(folder.path()).unwrap();
        let made = Authority::given(folder.path()).unwrap();
        assert!(made.server_config(&["localhost".into()]).is_ok());
        let key = KeyPair::from_pem(&fs::read_to_string(folder.path().join("ca.key")).unwrap()).unwrap();
        let mut other_name = authority_params();
        other_name.distinguished_name = DistinguishedName::new();
        other_name.distinguished_name.push(DnType::CommonName, "somebody else");
        fs::write(folder.path().join("ca.crt"), other_name.self_signed(&key).unwrap().pem()).unwrap();
        assert!(matches!(refused(), Error::Unfit { .. }), "{}", refused());
        fs::write(folder.path().join("ca.crt"), "rubbish").unwrap();
        assert!(refused().to_string().contains("ca.crt is no certificate in PEM"), "{}", refused());
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::ensure(state.path()).unwrap();
        Authority::ensure(other.path()).unwrap();
        fs::copy(other.path().join("pki/ca.key"), state.path().join("pki/ca.key")).unwrap();
        let error = Authority::open(state.path()).unwrap_err();
        assert!(matches!(error, Error::Pair { .. }), "{error}");
    }
}
