//! How many connections there may be, and how long one may do nothing.
//!
//! ```text
//! accept ─► gate: a place of all, a place of its peer ─► TLS (10 s) ─► HTTP ─► requests
//!             └─ none left: one of a few places to be told `503`, or closed at once
//! ```
//!
//! *Guarantees.* There are never more connections than the limit, which leaves descriptors for everything else, and one
//! peer never has more than its share of them; a place is free again as soon as its socket is closed. A connection on
//! which no request is under way is closed: `Times::head` after it was made, `Times::idle` after the last answer. Long
//! polls and streams of events are requests under way, and live as long as their peer reads; one that reads nothing for
//! `Times::stall` is closed.
//!
//! *Assumptions.* A peer is an address, or a /64 of IPv6. Behind a proxy all peers are one: raise its share then.

mod guarded;

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum_server::accept::Accept;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::Instant;

pub(crate) use guarded::{Guarded, Watched};

use crate::metrics::{Metrics, Refusal};
use crate::rest::pace::MAX_HEADERS;

/// Descriptors that connections leave for everything else: the database, its pool, bodies that are read and written.
const RESERVED: u64 = 128;
/// The most connections where nothing is said: enough for thousands of nodes, which hold two or three each.
const MOST: u64 = 16 * 1024;
/// The least that a controller is good for.
const LEAST: u64 = 16;
/// Connections beyond the limit that are told so. They end within `Times::head`.
const TOLD: usize = 16;
/// How often it is said that connections are turned away.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Requests at a time on one connection of HTTP/2. An agent has six, a browser some dozens.
const STREAMS: u32 = 128;
/// How often a peer of HTTP/2 must show that it lives, and how soon it must answer.
const PING: Duration = Duration::from_secs(20);

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all peers.
    pub total: usize,
    /// Of one peer.
    pub per_peer: usize,
}

/// Why connections cannot be limited so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are not so many descriptors.
    #[error(
        "--max-connections {wanted} needs {} open files, and this process may have {permitted}: raise the limit \
         (`ulimit -n`, or LimitNOFILE= of the service) or ask for at most {}",
        wanted + RESERVED,
        permitted.saturating_sub(RESERVED)
    )]
    Descriptors {
        /// What was asked for.
        wanted: u64,
        /// How many files the process may have open.
        permitted: u64,
    },
    /// Too few to work with.
    #[error("{flag} {wanted} is too few: a node alone needs three connections; give it at least {LEAST}")]
    TooFew {
        /// `--max-connections` or `--max-connections-per-peer`.
        flag: &'static str,
        /// What was asked for.
        wanted: u64,
    },
}

impl ConnectionLimits {
    /// Limits as asked for, or what fits a process that may have so many files open. Without a word one peer gets a
    /// quarter of all.
    pub(crate) fn new(total: Option<u64>, per_peer: Option<u64>, files: u64) -> Result<Self, Error> {
        for (flag, wanted) in [("--max-connections", total), ("--max-connections-per-peer", per_peer)] {
            if let Some(wanted) = wanted.filter(|wanted| *wanted < LEAST) {
                return Err(Error::TooFew { flag, wanted });
            }
        }
        // Half of few descriptors, all but the reserved ones of many.
        let room = files.saturating_sub(RESERVED).max(files / 2);
        if let Some(wanted) = total.filter(|wanted| *wanted > room) {
            return Err(Error::Descriptors { wanted, permitted: files });
        }
        let total = total.unwrap_or_else(|| room.min(MOST));
        let per_peer = per_peer.unwrap_or_else(|| (total / 4).max(LEAST)).min(total);
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Self { total: count(total), per_peer: count(per_peer) })
    }
}

/// How many files this process may have open.
pub(crate) fn permitted_files() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

/// How long a connection may do nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Until the first request was read.
    pub(crate) head: Duration,
    /// Between the end of an answer and the next request.
    pub(crate) idle: Duration,
    /// While there is something to write.
    pub(crate) stall: Duration,
}

impl Times {
    /// Clients keep connections for reuse for 90 s and ask again when one was closed under them. Comments of a stream of
    /// events come every 15 s, so that a peer that reads nothing is found within a minute and a quarter.
    pub(crate) const DEFAULT: Self =
        Self { head: Duration::from_secs(15), idle: Duration::from_secs(60), stall: Duration::from_secs(60) };
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Peer(IpAddr);

impl Peer {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            // Whoever has one address of IPv6 has 2^64 of them.
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// Gives out places; cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    limits: ConnectionLimits,
    metrics: Metrics,
    /// Protects the counts; never held over an await.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    total: usize,
    peers: HashMap<Peer, usize>,
    told: usize,
    /// How many were turned away since that was last said, and when it was.
    turned_away: u64,
    said_at: Option<Instant>,
}

/// What a connection holds for as long as its socket is open.
pub(crate) enum Admission {
    /// It is served.
    Served(Place),
    /// It is told that there are too many.
    Told(Place),
}

/// A place that is free again when this is dropped.
pub(crate) struct Place {
    gate: Gate,
    /// Whose place it is; nobody's where it is one of those that are told.
    peer: Option<Peer>,
}

impl Gate {
    pub(crate) fn new(limits: ConnectionLimits, metrics: Metrics) -> Self {
        Self { limits, metrics, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of this address; none where it is closed at once.
    pub(crate) fn admit(&self, address: IpAddr) -> Option<Admission> {
        let peer = Peer::of(address);
        let mut state = self.state();
        let of_peer = state.peers.get(&peer).copied().unwrap_or(0);
        let refusal = if state.total >= self.limits.total {
            Refusal::Full
        } else if of_peer >= self.limits.per_peer {
            Refusal::Peer
        } else {
            state.total += 1;
            state.peers.insert(peer, of_peer + 1);
            self.metrics.connections(state.total);
            return Some(Admission::Served(Place { gate: self.clone(), peer: Some(peer) }));
        };
        self.metrics.refused(refusal);
        state.turned_away += 1;
        if state.said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            tracing::warn!(
                connections.open = state.total,
                connections.limit = self.limits.total,
                connections.per_peer = self.limits.per_peer,
                connections.refused = state.turned_away,
                peer = %peer.0,
                reason = <&str>::from(refusal),
                "connections are turned away; raise --max-connections, or --max-connections-per-peer behind a proxy"
            );
            state.said_at = Some(Instant::now());
            state.turned_away = 0;
        }
        if state.told >= TOLD {
            return None;
        }
        state.told += 1;
        Some(Admission::Told(Place { gate: self.clone(), peer: None }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        let Some(peer) = self.peer else {
            state.told -= 1;
            return;
        };
        state.total -= 1;
        if let Some(count) = state.peers.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                state.peers.remove(&peer);
            }
        }
        self.gate.metrics.connections(state.total);
    }
}

/// Lets connections through the gate, and keeps watch over them.
#[derive(Clone)]
pub(crate) struct Acceptor {
    gate: Gate,
    times: Times,
}

impl Acceptor {
    pub(crate) const fn new(gate: Gate, times: Times) -> Self {
        Self { gate, times }
    }

    fn admit<S>(&self, stream: TcpStream, service: S) -> io::Result<(Guarded<TcpStream>, Watched<S>)> {
        let address = stream.peer_addr()?.ip();
        // Answers are small and often two to a connection: held back for the acknowledgement of the one before, each waits
        // for the other side's delayed acknowledgement, 40 ms.
        stream.set_nodelay(true)?;
        let admission = self
            .gate
            .admit(address)
            .ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionRefused, "too many connections"))?;
        Ok(guarded::guard(stream, service, admission, self.times, self.gate.metrics.clone()))
    }
}

impl<S> Accept<TcpStream, S> for Acceptor {
    type Stream = Guarded<TcpStream>;
    type Service = Watched<S>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream, service))
    }
}

/// Sets what one connection may ask of HTTP itself. What goes beyond `MAX_HEADERS` a little is answered with a problem;
/// what goes far beyond is cut off by the protocol.
pub(crate) fn limit_http(http: &mut auto::Builder<TokioExecutor>) {
    const FAR_BEYOND: usize = 4 * MAX_HEADERS;
    // The guard closes idle connections and slow heads of both protocols.
    http.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(FAR_BEYOND);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(FAR_BEYOND).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(total: usize, per_peer: usize) -> Gate {
        Gate::new(ConnectionLimits { total, per_peer }, Metrics::new())
    }

    fn is_served(admission: Option<&Admission>) -> bool {
        matches!(admission, Some(Admission::Served(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn one_peer_has_its_share_and_all_have_the_limit() {
        let gate = gate(5, 3);
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut of_one: Vec<_> = (0..4).map(|_| gate.admit(address(1))).collect();
        let served: Vec<bool> = of_one.iter().map(|admission| is_served(admission.as_ref())).collect();
        assert_eq!(served, [true, true, true, false], "its share is three");
        let others: Vec<_> = (2..5).map(|last| gate.admit(address(last))).collect();
        let served: Vec<bool> = others.iter().map(|admission| is_served(admission.as_ref())).collect();
        assert_eq!(served, [true, true, false], "the limit is five");
        drop(others);
        of_one.truncate(2);
        assert!(is_served(gate.admit(address(1)).as_ref()), "a place is free again");
        drop(of_one);
        let state = gate.state();
        assert_eq!((state.total, state.peers.len(), state.told), (0, 0, 0), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_told_and_the_rest_is_closed() {
        let gate = gate(1, 1);
        let _open = gate.admit([192, 0, 2, 1].into());
        let told: Vec<_> = (0..TOLD).map(|_| gate.admit([192, 0, 2, 2].into())).collect();
        assert!(told.iter().all(|admission| matches!(admission, Some(Admission::Told(_)))));
        assert!(gate.admit([192, 0, 2, 2].into()).is_none());
        drop(told);
        assert!(gate.admit([192, 0, 2, 2].into()).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer_and_a_mapped_address_is_the_one_it_maps() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
    }

    #[test]
    fn limits_leave_descriptors_for_everything_else() {
        let limits = |total, per_peer, files| {
            let limits = ConnectionLimits::new(total, per_peer, files)?;
            Ok::<_, Error>((limits.total, limits.per_peer))
        };
        assert_eq!(limits(None, None, 1024).unwrap(), (896, 224));
        assert_eq!(limits(None, None, 1 << 20).unwrap(), (16384, 4096));
        assert_eq!(limits(None, None, 100).unwrap(), (50, 16));
        assert_eq!(limits(Some(200), None, 1024).unwrap(), (200, 50));
        assert_eq!(limits(Some(200), Some(1000), 1024).unwrap(), (200, 200), "a share is no more than all");
        let refused = limits(Some(1000), None, 1024).unwrap_err();
        assert!(matches!(refused, Error::Descriptors { .. }));
        assert!(
            refused.to_string().contains("1128 open files") && refused.to_string().contains("at most 896")
        );
        assert!(matches!(limits(Some(1), None, 1024), Err(Error::TooFew { flag: "--max-connections", .. })));
        assert!(matches!(limits(None, Some(3), 1024), Err(Error::TooFew { .. })));
    }
}
