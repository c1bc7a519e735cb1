//! A server that a sandbox is given at the proxy's own address: the host's own, or another that the host uses.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Uri, Version};

use super::http::strip;
use super::tls::Tls;

/// A server that a sandbox is given: HTTP/1 at one address, chosen by whoever makes the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalServer {
    /// Where it is.
    pub address: SocketAddr,
    /// The name that it is asked for by.
    pub host: String,
    /// What its paths begin with; empty, or with a slash in front and none at the end.
    pub prefix: String,
    /// Who it must be, by TLS; without it, it is spoken to in plain HTTP.
    pub tls: Option<Tls>,
    /// What it is told in `Authorization`, in place of what the sandbox says there.
    pub authorization: Option<HeaderValue>,
    /// By whose leave, for records.
    pub rule: String,
    /// What may be asked of it: methods, and paths in full. Everything else is refused, so that what manages the server, or
    /// fetches from elsewhere in its name, is not open to sandboxes.
    pub requests: &'static [(&'static str, &'static str)],
}

impl LocalServer {
    /// Whether it may be asked that. Compared byte by byte, so that no other way to write a path leads anywhere.
    pub(super) fn offers(&self, method: &Method, path: &str) -> bool {
        self.requests.iter().any(|(allowed, whole)| *allowed == method.as_str() && *whole == path)
    }

    /// The request as the server gets it.
    pub(super) fn rewritten(&self, request: Request<Incoming>) -> Request<Incoming> {
        let (mut head, body) = request.into_parts();
        strip(&mut head.headers);
        // Servers on loopback refuse names that are not theirs.
        if let Ok(host) = HeaderValue::from_str(&self.host) {
            head.headers.insert(header::HOST, host);
        }
        // What a browser inside would say of itself is of another origin than the server's.
        head.headers.remove(header::ORIGIN);
        if let Some(authorization) = &self.authorization {
            head.headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let path = head.uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
        let whole = format!("{}{path}", self.prefix);
        head.uri = whole.parse().unwrap_or_else(|_| Uri::from_static("/"));
        head.version = Version::HTTP_11;
        Request::from_parts(head, body)
    }
}
