//! The Worker API on this host: TLS with a certificate of the node's own.
//!
//! The certificate signs itself. The controller hears of it by the capability report, over the connection that proves the
//! node, and trusts it and no other; other callers get it from the node's state folder, `worker-api/cert.pem`. The key
//! stays; a certificate is made anew only when the names that it must hold change.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use axum_server::Handle;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::{Host, Url};

use super::{ApiHost, Door};

/// The most connections at once: far more than callers need, far fewer than an agent may have files open.
const CONNECTIONS: usize = 256;
/// The most of one address, so that a stranger alone shuts nobody out.
const OF_A_PEER: usize = 64;
/// How long a peer may take for the handshake, and to send the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(15);
/// How often a peer of HTTP/2 must show that it lives, and how soon it must answer.
const PING: Duration = Duration::from_secs(20);
/// How long calls may go on once the door is closed; who is cut off asks again.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves the Worker API on this host.
#[derive(Clone, Debug)]
pub struct TlsHost {
    /// The folder of certificate and key.
    folder: PathBuf,
    node: String,
    hostname: String,
    controller: Url,
}

impl TlsHost {
    /// Serves with a certificate in `folder`, for a node of this name on a host of that name. The way to `controller` tells
    /// which of the host's addresses callers can use.
    pub fn new(folder: PathBuf, node: String, hostname: String, controller: Url) -> Self {
        Self { folder, node, hostname, controller }
    }

    /// The names and addresses that the certificate must hold, the one that callers use first.
    fn names(&self, listen: IpAddr, reached: &str) -> Vec<String> {
        let mut names =
            vec![reached.trim_matches(['[', ']']).to_owned(), self.node.clone(), self.hostname.clone()];
        if !listen.is_unspecified() {
            names.push(listen.to_string());
        }
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| subject(name).is_some() && seen.insert(name.clone()));
        names
    }

    /// The address of this host that leads to the controller, or the host's name where none does.
    fn reached(&self, listen: IpAddr) -> String {
        if !listen.is_unspecified() {
            return in_url(listen);
        }
        let towards = self.controller.socket_addrs(|| None).unwrap_or_default();
        let here = towards.iter().find_map(|there| {
            let any: IpAddr = if there.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            // A datagram socket that is connected sends nothing; it only learns its way.
            socket.connect(there).ok()?;
            Some(socket.local_addr().ok()?.ip())
        });
        here.map_or_else(|| self.hostname.clone(), in_url)
    }
}

#[async_trait]
impl ApiHost for TlsHost {
    async fn open(&self, listen: SocketAddr, url: Option<&Url>, router: axum::Router) -> io::Result<Door> {
        let (this, url) = (self.clone(), url.cloned());
        let opened = tokio::task::spawn_blocking(move || {
            let listener = TcpListener::bind(listen)?;
            listener.set_nonblocking(true)?;
            let port = listener.local_addr()?.port();
            let declared = url.as_ref().and_then(|url| Some((url.host_str()?.to_owned(), url.port())));
            let (host, port) =
                declared.map_or_else(|| (this.reached(listen.ip()), Some(port)), |(host, port)| (host, port));
            let identity = Identity::ensure(&this.folder, &this.names(listen.ip(), &host))?;
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            Ok::<_, io::Error>((listener, format!("https://{host}{port}"), identity))
        });
        let (listener, base_url, identity) = opened.await.map_err(io::Error::other)??;
        let handle = Handle::new();
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(identity.server_config()?))
            .handshake_timeout(HANDSHAKE)
            .acceptor(Counting { places: Arc::new(Semaphore::new(CONNECTIONS)), peers: Arc::default() });
        let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle.clone());
        server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
        server
            .http_builder()
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        tokio::spawn(async move {
            if let Err(error) = server.serve(router.into_make_service()).await {
                tracing::error!(error = %error, "the Worker API has ended");
            }
        });
        Ok(Door { base_url, certificate_pem: identity.certificate, guard: Box::new(Closing(handle)) })
    }
}

/// Closes a door when it is dropped.
struct Closing(Handle<SocketAddr>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.graceful_shutdown(Some(DRAIN));
    }
}

/// An address as it stands in a URL.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => Host::<&str>::Ipv4(address).to_string(),
        IpAddr::V6(address) => Host::<&str>::Ipv6(address).to_string(),
    }
}

/// A name as it stands in a certificate.
fn subject(name: &str) -> Option<SanType> {
    match name.parse() {
        Ok(address) => Some(SanType::IpAddress(address)),
        Err(_) => {
            windlass_crds::names::check_subdomain(name).ok()?;
            Some(SanType::DnsName(name.try_into().ok()?))
        }
    }
}

/// The node's certificate for its Worker API, and its key, both in PEM.
struct Identity {
    certificate: String,
    key: KeyPair,
}

impl Identity {
    /// Reads it, or makes what is missing or does not hold these names.
    fn ensure(folder: &Path, names: &[String]) -> io::Result<Self> {
        crate::identity::make_private_folder(folder).map_err(io::Error::other)?;
        let (key_file, file, names_file) =
            (folder.join("key.pem"), folder.join("cert.pem"), folder.join("names"));
        let key = match std::fs::read_to_string(&key_file) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|error| {
                io::Error::other(format!("{} is damaged ({error}); remove it", key_file.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(io::Error::other)?;
                write(&key_file, &key.serialize_pem())?;
                key
            }
            Err(error) => return Err(error),
        };
        let wanted = names.join("\n");
        let kept = std::fs::read_to_string(&names_file).ok().filter(|kept| *kept == wanted);
        let certificate = kept.and_then(|_| std::fs::read_to_string(&file).ok());
        if let Some(certificate) = certificate {
            let identity = Self { certificate, key };
            if identity.server_config().is_ok() {
                return Ok(identity);
            }
            return Self::issue(identity.key, names, &file, &names_file, &wanted);
        }
        Self::issue(key, names, &file, &names_file, &wanted)
    }

    /// The names are written last: without them the certificate is made anew.
    fn issue(key: KeyPair, names: &[String], file: &Path, names_file: &Path, text: &str) -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "windlass-worker-api");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2055, 1, 1);
        params.subject_alt_names = names.iter().filter_map(|name| subject(name)).collect();
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        write(file, &certificate)?;
        write(names_file, text)?;
        Ok(Self { certificate, key })
    }

    fn server_config(&self) -> io::Result<Arc<rustls::ServerConfig>> {
        use rustls::pki_types::pem::PemObject as _;
        let certificate =
            CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Writes a file that only its owner can read, in place of what was there.
fn write(path: &Path, content: &str) -> io::Result<()> {
    use std::io::Write as _;
    let beside = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Lets in so many connections and no more, of one address and of all; others are closed at once.
#[derive(Clone)]
struct Counting {
    places: Arc<Semaphore>,
    peers: Peers,
}

/// How many connections there are of each address. A poisoned lock means that a task panicked between two whole steps.
type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A place of an address.
struct OfPeer {
    peers: Peers,
    address: IpAddr,
}

impl OfPeer {
    /// `None` where the address has as many as it may.
    fn take(peers: &Peers, address: IpAddr) -> Option<Self> {
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= OF_A_PEER {
            return None;
        }
        *count += 1;
        Some(Self { peers: Arc::clone(peers), address })
    }
}

impl Drop for OfPeer {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Counting {
    type Stream = Counted;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Counted, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let counted = stream.peer_addr().and_then(|peer| {
            let full = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let of_peer = OfPeer::take(&self.peers, peer.ip()).ok_or_else(full)?;
            let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| full())?;
            Ok((Counted { stream, _place: place, _of_peer: of_peer }, service))
        });
        std::future::ready(counted)
    }
}

/// A connection that takes up a place.
struct Counted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    _of_peer: OfPeer,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(folder: &Path) -> TlsHost {
        let controller = "https://127.0.0.1:1".parse().unwrap();
        TlsHost::new(folder.to_owned(), "n1".to_owned(), "host.example".to_owned(), controller)
    }

    #[test]
    fn one_address_gets_its_share_of_the_places_and_gives_them_back() {
        let peers = Peers::default();
        let (stranger, other): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut taken: Vec<_> = (0..OF_A_PEER).map_while(|_| OfPeer::take(&peers, stranger)).collect();
        assert_eq!(taken.len(), OF_A_PEER);
        assert!(OfPeer::take(&peers, stranger).is_none());
        assert!(OfPeer::take(&peers, other).is_some());
        taken.pop();
        assert!(OfPeer::take(&peers, stranger).is_some());
        taken.clear();
        assert!(peers.lock().unwrap().is_empty());
    }

    #[test]
    fn a_certificate_stays_until_its_names_change_and_the_key_always() {
        let folder = tempfile::tempdir().unwrap();
        let host = host(&folder.path().join("worker-api"));
        let any: IpAddr = [0; 4].into();
        assert_eq!(host.reached(any), "127.0.0.1", "the way to the controller");
        assert_eq!(host.names(any, "127.0.0.1"), ["127.0.0.1", "n1", "host.example", "localhost", "::1"]);
        let first = Identity::ensure(&host.folder, &host.names(any, "127.0.0.1")).unwrap();
        let second = Identity::ensure(&host.folder, &host.names(any, "127.0.0.1")).unwrap();
        assert_eq!(first.certificate, second.certificate);
        let third = Identity::ensure(&host.folder, &host.names(any, "node.example")).unwrap();
        assert_ne!(first.certificate, third.certificate);
        assert_eq!(first.key.serialize_pem(), third.key.serialize_pem());
        std::fs::write(host.folder.join("cert.pem"), "rubbish").unwrap();
        let fourth = Identity::ensure(&host.folder, &host.names(any, "node.example")).unwrap();
        fourth.server_config().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(host.folder.join("key.pem")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error_and_one_that_was_given_up_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let host = host(&folder.path().join("worker-api"));
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = host.open(address, None, axum::Router::new()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        let door = host.open(address, None, axum::Router::new()).await.unwrap();
        assert_eq!(door.base_url, format!("https://{address}"));
        drop(door);
        let declared: Url = "https://node.example".parse().unwrap();
        let door = loop {
            match host.open(address, Some(&declared), axum::Router::new()).await {
                Ok(door) => break door,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(door.base_url, "https://node.example");
    }
}
