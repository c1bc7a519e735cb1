//! Serves the socket: takes connections, tells what they speak, and connects to whom the policy allows.
//!
//! ```text
//!  accept ─► task for each connection: first byte ─► HTTP (hyper) or SOCKS5 ─► Proxy::open ─► copy until idle or over
//!  timer  ─► journal
//! ```
//!
//! The tasks end with the one that serves.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hyper::Method;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::host::Host;
use super::journal::{Journal, Key, Outcome, Protocol, Record};
use super::local::LocalServer;
use super::meter::{Meter, Metered, Quota, idle};
use super::policy::{Denial, Policy};
use super::resolve::Resolver;
use super::tls::Stream;
use super::{http, socks};

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Characters of a path that is refused, in records.
const MAX_SHOWN_PATH: usize = 128;
/// How often is looked for what is to be recorded.
const FLUSH: Duration = Duration::from_secs(5);
/// How long to wait where the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);
/// The part of its descriptors that the process gives to all proxies together: one of so many; a connection takes two.
const DESCRIPTORS: u64 = 4;
/// How many sandboxes it takes to use all of that up, so that one leaves room for others.
const SHARES: usize = 4;

/// What one sandbox may take of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time, if the process may have so many descriptors; further ones wait.
    pub connections: usize,
    /// Lookups of names at one time.
    pub lookups: usize,
    /// Bytes in each direction, all connections together.
    pub transfer: Option<u64>,
    /// How long a request may take to arrive, and a lookup or a connection to come about.
    pub patience: Duration,
    /// How long a connection may be silent.
    pub idle: Duration,
    /// Bytes of a request's or an answer's head.
    pub head: usize,
}

impl Default for Limits {
    /// 128 connections, as many as package managers open at their worst; 15 minutes of silence, as common proxies have it;
    /// heads of 64 KiB, where servers take 8 to 32.
    fn default() -> Self {
        Self {
            connections: 128,
            lookups: 4,
            transfer: None,
            patience: Duration::from_secs(20),
            idle: Duration::from_secs(900),
            head: 64 << 10,
        }
    }
}

/// The proxy of one sandbox.
pub struct Proxy {
    policy: Policy,
    limits: Limits,
    resolver: Arc<dyn Resolver>,
    journal: Journal,
    quota: Arc<Quota>,
    lookups: Semaphore,
    local: watch::Sender<Local>,
}

/// The server of the host, as the sandbox has it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Local {
    /// It was never given one.
    Never,
    /// It has this one.
    Given(LocalServer),
    /// It had one.
    Withdrawn,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) protocol: Protocol,
    pub(super) host: Host,
    pub(super) port: u16,
}

/// Why a client does not get what it asks for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The policy forbids it.
    #[error("{denial}")]
    Denied {
        denial: Denial,
        /// The rule that would allow it.
        remedy: Option<String>,
    },
    /// The name leads nowhere.
    #[error("the name cannot be resolved: {0}")]
    Unresolved(io::Error),
    /// Nobody answers there.
    #[error("{address} cannot be reached: {source}")]
    Unreachable { address: SocketAddr, source: io::Error },
}

impl Proxy {
    /// A proxy that gives what becomes of attempts to `sink`, which must not block.
    pub fn new(
        policy: Policy,
        limits: Limits,
        resolver: Arc<dyn Resolver>,
        sink: impl Fn(Record) + Send + Sync + 'static,
    ) -> Self {
        Self {
            quota: Arc::new(Quota::new(limits.transfer)),
            lookups: Semaphore::new(limits.lookups),
            journal: Journal::new(Box::new(sink)),
            policy,
            limits,
            resolver,
            local: watch::Sender::new(Local::Never),
        }
    }

    /// Gives the sandbox a server of the host, at the proxy's own address.
    #[must_use]
    pub fn with_local(self, local: Option<LocalServer>) -> Self {
        self.offer_local(local);
        self
    }

    /// Gives the sandbox another server of the host, or withdraws the one that it has. Requests to the one that it had are cut.
    pub fn offer_local(&self, local: Option<LocalServer>) {
        self.local.send_if_modified(|current| {
            let next = match (local, &*current) {
                (Some(local), _) => Local::Given(local),
                (None, Local::Never) => Local::Never,
                (None, Local::Given(_) | Local::Withdrawn) => Local::Withdrawn,
            };
            let changed = *current != next;
            *current = next;
            changed
        });
    }

    /// Returns when the sandbox has this server of the host no more.
    pub(super) fn withdrawn(&self, local: &LocalServer) -> impl Future<Output = ()> + Send + use<> {
        let (mut current, given) = (self.local.subscribe(), Local::Given(local.clone()));
        // Nobody offers anything any more where the proxy is gone, and its connections with it.
        async move { drop(current.wait_for(|current| *current != given).await) }
    }

    /// Serves a socket until the sandbox has ended. Everything is recorded when this returns. If the future is dropped,
    /// connections end with it, and the last sums are not recorded.
    ///
    /// # Errors
    /// If the socket cannot be served.
    pub async fn serve(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        ended: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let room = self.limits.connections.min(places() / SHARES).max(1);
        let room = Arc::new(Semaphore::new(room));
        let mut connections = JoinSet::new();
        let mut clock = tokio::time::interval(FLUSH);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(ended);
        loop {
            // Cancel-safe: a connection that is not taken waits, a place that is not used is given back, a tick is only
            // time.
            tokio::select! {
                biased;
                () = &mut ended => break,
                _ = clock.tick() => self.journal.flush(Instant::now(), false),
                Some(_) = connections.join_next() => {}
                (client, place) = accept(&listener, &room) => {
                    let proxy = Arc::clone(&self);
                    connections.spawn(async move {
                        proxy.attend(client).await;
                        drop(place);
                    });
                }
            }
        }
        connections.shutdown().await;
        self.journal.flush(Instant::now(), true);
        Ok(())
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Serves one connection to its end.
    async fn attend(self: Arc<Self>, client: TcpStream) {
        // Only a matter of speed.
        let _slower = client.set_nodelay(true);
        let mut first = [0];
        let Ok(Ok(1)) = timeout(self.limits.patience, client.peek(&mut first)).await else { return };
        match first[0] {
            socks::VERSION => socks::serve(&self, client).await,
            socks::OLD_VERSION => {
                self.malformed(
                    Protocol::Socks,
                    Denial::Protocol("SOCKS 4 is not spoken; use SOCKS 5 or HTTP"),
                );
            }
            _ => http::serve(self, client).await,
        }
    }

    /// Connects to whom a client asks for, if it may; every outcome is noted.
    pub(super) async fn open(&self, request: &Request) -> Result<Metered, Error> {
        let Request { host, port, .. } = request;
        if self.quota.is_used_up() {
            return Err(self.deny(request, None, Denial::Transfer));
        }
        let rule = match self.policy.admit(host, *port, is_own) {
            Ok(rule) => rule,
            Err(denial) => {
                let address = match host {
                    Host::Address(address) => Some(*address),
                    Host::Name(_) => None,
                };
                return Err(self.deny(request, address, denial));
            }
        };
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => match self.look_up(name).await {
                Ok(found) => found,
                Err(error) => return Err(self.fail(request, None, Error::Unresolved(error))),
            },
        };
        let mut denied = None;
        let mut failed = None;
        let mut tried = 0;
        for address in addresses {
            // An address that was asked for as such is admitted already; one that a name leads to is judged now.
            if let (Host::Name(_), Err(denial)) = (host, self.policy.check(address, *port, is_own)) {
                denied.get_or_insert((address, denial));
                continue;
            }
            if tried == MAX_ADDRESSES {
                break;
            }
            tried += 1;
            let place = SocketAddr::new(address, *port);
            match timeout(self.limits.patience, TcpStream::connect(place)).await {
                Ok(Ok(stream)) => {
                    // Only a matter of speed.
                    let _slower = stream.set_nodelay(true);
                    let outcome = Outcome::Allowed { rule: rule.text.clone() };
                    let meter = self.note(request, Some(address), outcome);
                    return Ok(Metered { stream, meter });
                }
                Ok(Err(source)) => failed = Some(Error::Unreachable { address: place, source }),
                Err(_elapsed) => {
                    failed =
                        Some(Error::Unreachable { address: place, source: io::ErrorKind::TimedOut.into() });
                }
            }
        }
        Err(match (failed, denied) {
            (Some(error), _) => {
                let address = match &error {
                    Error::Unreachable { address, .. } => Some(address.ip()),
                    Error::Denied { .. } | Error::Unresolved(_) => None,
                };
                self.fail(request, address, error)
            }
            (None, Some((address, denial))) => self.deny(request, Some(address), denial),
            (None, None) => {
                let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
                self.fail(request, None, Error::Unresolved(none))
            }
        })
    }

    /// Whether there is a server of the host, or was.
    pub(super) fn has_local(&self) -> bool {
        *self.local.borrow() != Local::Never
    }

    /// Connects to the server of the host; every outcome is noted.
    pub(super) async fn open_local(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<(LocalServer, Box<dyn Stream>), Error> {
        let current = self.local.borrow().clone();
        let local = match current {
            Local::Given(local) => local,
            Local::Never => {
                let wrong = "this is a proxy: the request must name a whole `http://` address";
                return Err(self.malformed(Protocol::Http, Denial::Protocol(wrong)));
            }
            Local::Withdrawn => return Err(self.malformed(Protocol::Http, Denial::Withdrawn)),
        };
        let request = Request {
            protocol: Protocol::Http,
            host: Host::Address(local.address.ip()),
            port: local.address.port(),
        };
        let ip = Some(local.address.ip());
        if !local.offers(method, path) {
            let path: String = path.chars().take(MAX_SHOWN_PATH).collect();
            return Err(self.deny(&request, ip, Denial::NotOffered { request: format!("{method} {path}") }));
        }
        if self.quota.is_used_up() {
            return Err(self.deny(&request, ip, Denial::Transfer));
        }
        let opened = timeout(self.limits.patience, self.connect_local(&local, &request)).await;
        match opened.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => Ok((local, stream)),
            Err(source) => {
                Err(self.fail(&request, ip, Error::Unreachable { address: local.address, source }))
            }
        }
    }

    async fn connect_local(&self, local: &LocalServer, request: &Request) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(local.address).await?;
        // Only a matter of speed.
        let _slower = stream.set_nodelay(true);
        let outcome = Outcome::Allowed { rule: local.rule.clone() };
        let meter = self.note(request, Some(local.address.ip()), outcome);
        let stream = Metered { stream, meter };
        match &local.tls {
            Some(tls) => tls.open(stream).await,
            None => Ok(Box::new(stream)),
        }
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let lookup = async {
            let _place = self.lookups.acquire().await.expect("the semaphore is never closed");
            self.resolver.resolve(name).await
        };
        timeout(self.limits.patience, lookup).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Notes a request that could not even be read.
    pub(super) fn malformed(&self, protocol: Protocol, denial: Denial) -> Error {
        let outcome = Outcome::Denied { reason: denial.to_string(), remedy: None };
        let key = Key { protocol, host: String::new(), port: 0, address: None, outcome };
        self.journal.note(key, Instant::now());
        Error::Denied { denial, remedy: None }
    }

    /// Notes a request that is refused.
    pub(super) fn deny(&self, request: &Request, address: Option<IpAddr>, denial: Denial) -> Error {
        let remedy = denial.remedy(&request.host, request.port);
        let outcome = Outcome::Denied { reason: denial.to_string(), remedy: remedy.clone() };
        self.note(request, address, outcome);
        Error::Denied { denial, remedy }
    }

    fn fail(&self, request: &Request, address: Option<IpAddr>, error: Error) -> Error {
        self.note(request, address, Outcome::Failed { reason: error.to_string() });
        error
    }

    fn note(&self, request: &Request, address: Option<IpAddr>, outcome: Outcome) -> Meter {
        let Request { protocol, host, port } = request.clone();
        let key = Key { protocol, host: host.to_string(), port, address, outcome };
        Meter {
            traffic: self.journal.note(key, Instant::now()),
            quota: Arc::clone(&self.quota),
            pulse: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Copies in both directions until both have ended, or nothing flows any more.
    pub(super) async fn tunnel<C>(&self, mut client: C, mut outside: Metered)
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let pulse = Arc::clone(&outside.meter.pulse);
        // Both end with this future. How a connection ended is between its ends.
        tokio::select! {
            _ended = tokio::io::copy_bidirectional(&mut client, &mut outside) => {}
            () = idle(&pulse, self.limits.idle) => {}
        }
    }
}

/// Connections of all proxies of the process together.
fn places() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let places = limit.unwrap_or(u64::MAX) / DESCRIPTORS / 2;
    usize::try_from(places).unwrap_or(usize::MAX).clamp(16, 1 << 16)
}

/// A connection and its place among those of the sandbox and of the process.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, [OwnedSemaphorePermit; 2]) {
    static PROCESS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(places())));
    let place = |room: &Arc<Semaphore>| Arc::clone(room).acquire_owned();
    let places = [place(room).await, place(&PROCESS).await];
    let places = places.map(|place| place.expect("the semaphore is never closed"));
    loop {
        match listener.accept().await {
            Ok((client, _)) => return (client, places),
            // The client has gone, or there are no descriptors: others go on and will free some.
            Err(error) => {
                tracing::debug!(%error, "a connection to the egress proxy cannot be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether an address is one of this host's: then a socket can be bound to it. Asked each time, for addresses come and go.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok() && (!binds_foreign(address) || speaks_to_itself(address))
}

/// Whether the host lets sockets be bound to addresses that it does not have, as some routers do.
fn binds_foreign(address: IpAddr) -> bool {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let setting = std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    setting.is_ok_and(|setting| setting.trim() == "1")
}

/// Whether the host would speak to an address from that very address.
fn speaks_to_itself(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        // Nothing is sent: it only chooses a route. Port 9 discards.
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        let own: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(is_own(own) && speaks_to_itself(own));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
        assert!(!is_own("2001:db8::1".parse().unwrap()));
    }
}
