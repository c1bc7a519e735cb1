//! The way out of a sandbox with a restricted network: a forward proxy that is served from outside on a socket inside.
//!
//! ```text
//!  program ──► 127.0.0.1:PORT ──► accept ──► HTTP or SOCKS5 ──► policy: may this name be looked up?
//!              (inside)          (outside)                        └─► resolver ──► policy: may this address be reached?
//!                                   journal ◄── every attempt ◄─────────────────────┴─► connect to that very address
//! ```
//!
//! *Guarantees*: nothing is looked up, and nobody is connected to, unless a rule says so. Names are resolved here, and the
//! address that was judged is the one that is connected to, so that a name that changes its address gains nothing.
//! Addresses of the host, of private and of other special networks are reached only if a rule names them as addresses.
//! Every attempt becomes part of a [`Record`]; how many records there are is bounded, whatever the program does.
//!
//! A request that names a path and no host is for the proxy itself: it goes to the [`LocalServer`] that the sandbox was given,
//! if it was given one, at its address, and nowhere else. It is spoken to as whoever made the sandbox says: by TLS, and with a key
//! that the sandbox does not see.
//!
//! *Assumptions*: the caller stops serving when the program has ended. It knows nothing of how the socket came about, so it
//! serves any runtime: a listening socket and a policy in, records out.

mod address;
mod host;
mod http;
mod journal;
mod local;
mod meter;
mod policy;
mod proxy;
mod resolve;
mod socks;
mod tls;

pub use address::{Special, special};
pub use host::{BadHost, Host};
pub use journal::{Outcome, Protocol, Record};
pub use local::LocalServer;
pub use policy::{Denial, Policy, Rule, Target, widens};
pub use proxy::{Limits, Proxy};
pub use resolve::{Resolver, SystemResolver};
pub use tls::Tls;

/// Where the proxy listens inside: the usual port of forward proxies.
pub const PORT: u16 = 3128;

/// What a program's environment needs so that common tools find the proxy. Values that the program is given otherwise win.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{PORT}");
    let inside = "localhost,127.0.0.1,::1";
    let mut environment: Vec<(String, String)> = Vec::new();
    // Tools differ in which case they read; curl takes `http_proxy` only in lower case. `ALL_PROXY` is plain HTTP too: some
    // Python libraries do not start with a SOCKS proxy that they lack a package for.
    for (name, value) in
        [("HTTP_PROXY", &*proxy), ("HTTPS_PROXY", &proxy), ("ALL_PROXY", &proxy), ("NO_PROXY", inside)]
    {
        environment.push((name.to_owned(), value.to_owned()));
        environment.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    // Node reads the variables above only if it is told to (from 22.21 and 24.5 on).
    environment.push(("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned()));
    environment.push(("WINDLASS_EGRESS_PROXY".to_owned(), format!("127.0.0.1:{PORT}")));
    environment
}

#[cfg(test)]
mod tests;
