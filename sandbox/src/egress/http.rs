//! HTTP/1: CONNECT, and plain requests in absolute form. TLS of programs inside is tunnelled, never opened.
//!
//! Requests are read by hyper and written anew from what was understood, each on a connection of its own, so that there is
//! nothing that the two sides could read differently and nothing left of one request for the next.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request as HttpRequest, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::host::Host;
use super::journal::Protocol;
use super::meter::{Metered, idle};
use super::policy::Denial;
use super::proxy::{Error, Proxy, Request};
use super::tls::Stream;

/// Fields of a message that are for the next hop alone (RFC 9110, 7.6.1), beside those that `Connection` names.
static HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// The same, without names in the library.
const HOP_BY_HOP_OTHERS: [&str; 2] = ["keep-alive", "proxy-connection"];
/// Fields that `Connection` must not take away, because what the message says depends on them.
static ESSENTIAL: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
/// Most fields of a message.
const MAX_FIELDS: usize = 128;

type Body = BoxBody<Bytes, hyper::Error>;

/// A client's connection.
struct Connection {
    proxy: Arc<Proxy>,
    /// The tunnel that the connection becomes. Guards nothing else.
    tunnel: Mutex<Option<(OnUpgrade, Metered)>>,
    /// Connections to the outside; they end with this one. Guards nothing else.
    outside: Mutex<JoinSet<()>>,
}

/// Serves one client.
pub(super) async fn serve(proxy: Arc<Proxy>, client: TcpStream) {
    let limits = proxy.limits().clone();
    let pulse = Arc::new(AtomicU64::new(0));
    let connection = Arc::new(Connection { proxy, tunnel: Mutex::default(), outside: Mutex::default() });
    let answering = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.patience)
        .max_buf_size(limits.head)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(Pulsing { stream: client, pulse: Arc::clone(&pulse) }), service)
        .with_upgrades();
    // Both end with this future.
    let served = tokio::select! {
        served = serving => served,
        () = idle(&pulse, limits.idle) => return,
    };
    if let Err(error) = served
        && error.is_parse()
    {
        connection.proxy.malformed(Protocol::Http, Denial::Protocol("the HTTP request is broken"));
    }
    let tunnel = connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, outside)) = tunnel
        && let Ok(client) = upgrade.await
    {
        connection.proxy.tunnel(TokioIo::new(client), outside).await;
    }
}

impl Connection {
    async fn answer(&self, request: HttpRequest<Incoming>) -> Response<Body> {
        let is_connect = request.method() == Method::CONNECT;
        let answered = if head_size(&request) > self.proxy.limits().head {
            let protocol = if is_connect { Protocol::Connect } else { Protocol::Http };
            let denial = Denial::Protocol("the HTTP request is broken: its head is too large");
            Err(self.proxy.malformed(protocol, denial))
        } else if is_connect {
            self.connect(request).await
        } else {
            self.forward(request).await
        };
        answered.unwrap_or_else(|error| refusal(&error))
    }

    /// Opens a tunnel.
    async fn connect(&self, request: HttpRequest<Incoming>) -> Result<Response<Body>, Error> {
        let refuse = |denial| self.proxy.malformed(Protocol::Connect, denial);
        let text = request.uri().authority().map_or("", hyper::http::uri::Authority::as_str);
        let (host, port) = Host::with_port(text, None).map_err(|bad| refuse(bad.into()))?;
        let asked = Request { protocol: Protocol::Connect, host, port };
        check_framing(request.headers()).map_err(|denial| self.proxy.deny(&asked, None, denial))?;
        if request.headers().contains_key(header::CONTENT_LENGTH)
            || request.headers().contains_key(header::TRANSFER_ENCODING)
        {
            let denial = Denial::Protocol("CONNECT with a body is not accepted");
            return Err(self.proxy.deny(&asked, None, denial));
        }
        let outside = self.proxy.open(&asked).await?;
        let tunnel = (hyper::upgrade::on(request), outside);
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
        Ok(Response::new(text_body(String::new())))
    }

    /// Passes a plain request on.
    async fn forward(&self, request: HttpRequest<Incoming>) -> Result<Response<Body>, Error> {
        if is_for_the_proxy(request.uri()) {
            return self.serve_local(request).await;
        }
        self.forward_to(request).await
    }

    /// Passes a request on to the host that it names.
    async fn forward_to(&self, request: HttpRequest<Incoming>) -> Result<Response<Body>, Error> {
        let asked = target(request.uri()).map_err(|denial| self.proxy.malformed(Protocol::Http, denial))?;
        check(&request, &asked).map_err(|denial| self.proxy.deny(&asked, None, denial))?;
        let outside = self.proxy.open(&asked).await?;
        let place = outside.stream.peer_addr().map_err(Error::Unresolved)?;
        self.exchange(rewritten(request, &asked), outside, place, std::future::pending()).await
    }

    /// Passes a request on that is for the proxy itself.
    async fn serve_local(&self, request: HttpRequest<Incoming>) -> Result<Response<Body>, Error> {
        if request.uri().authority().is_some() && !self.proxy.has_local() {
            // An address like any other then: the host's own, which a rule may open.
            return self.forward_to(request).await;
        }
        check_framing(request.headers()).map_err(|denial| self.proxy.malformed(Protocol::Http, denial))?;
        let (local, outside) = self.proxy.open_local(request.method(), request.uri().path()).await?;
        let (place, withdrawn) = (local.address, self.proxy.withdrawn(&local));
        self.exchange(local.rewritten(request), outside, place, withdrawn).await
    }

    /// Sends a request and gives its answer, which is cut off when `cut` returns.
    async fn exchange(
        &self,
        request: HttpRequest<Incoming>,
        outside: impl Stream + 'static,
        place: std::net::SocketAddr,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Response<Body>, Error> {
        let failed =
            |error: hyper::Error| Error::Unreachable { address: place, source: std::io::Error::other(error) };
        let limits = self.proxy.limits();
        let (mut sender, driver) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(limits.head)
            .max_headers(MAX_FIELDS)
            .handshake(TokioIo::new(outside))
            .await
            .map_err(failed)?;
        {
            let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that have ended are not kept.
            while outside.try_join_next().is_some() {}
            // How it ended is told by the answer.
            // Cancel-safe: the connection ends with this task.
            outside.spawn(async move {
                tokio::select! {
                    ended = driver => drop(ended),
                    () = cut => {}
                }
            });
        }
        let answer = timeout(limits.idle, sender.send_request(request)).await.map_err(|_elapsed| {
            Error::Unreachable { address: place, source: std::io::ErrorKind::TimedOut.into() }
        })?;
        let (mut head, body) = answer.map_err(failed)?.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let source = std::io::Error::other("the server switches protocols unasked");
            return Err(Error::Unreachable { address: place, source });
        }
        strip(&mut head.headers);
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, body.boxed()))
    }
}

/// About how many bytes a request's head took. hyper looks at its limit only where it has to read on, and what comes in one
/// read is more than that.
fn head_size(request: &HttpRequest<Incoming>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    request.uri().to_string().len() + fields.sum::<usize>()
}

/// Whom a request in absolute form is for.
fn target(uri: &Uri) -> Result<Request, Denial> {
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Denial::Protocol("this is a proxy: the request must name a whole `http://` address"));
    };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Denial::Protocol("only `http` is forwarded; `https` goes through CONNECT"));
    }
    let (host, port) = Host::with_port(authority.as_str(), Some(80))?;
    Ok(Request { protocol: Protocol::Http, host, port })
}

/// Whether a request is for the proxy itself: it names no host, or, by a client that takes every address to its proxy, the
/// proxy's own address.
fn is_for_the_proxy(uri: &Uri) -> bool {
    match (uri.scheme(), uri.authority()) {
        (None, None) => true,
        (Some(scheme), Some(authority)) => {
            scheme == &hyper::http::uri::Scheme::HTTP
                && authority.port_u16() == Some(super::PORT)
                && ["127.0.0.1", "localhost"].contains(&authority.host())
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether a request contradicts itself.
fn check(request: &HttpRequest<Incoming>, asked: &Request) -> Result<(), Denial> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, None) if request.version() == Version::HTTP_10 => {}
        (None, _) => return Err(Denial::Protocol("the request has no Host")),
        (Some(_), Some(_)) => return Err(Denial::Protocol("the request has more than one Host")),
        (Some(host), None) => {
            let host = host.to_str().ok().and_then(|text| Host::with_port(text, Some(80)).ok());
            if host.as_ref() != Some(&(asked.host.clone(), asked.port)) {
                return Err(Denial::Protocol("the request's Host is not the host of its address"));
            }
        }
    }
    check_framing(headers)
}

/// Whether where a request ends could be read in two ways.
fn check_framing(headers: &HeaderMap) -> Result<(), Denial> {
    let count = |name| headers.get_all(name).iter().count();
    let (lengths, encodings) = (count(header::CONTENT_LENGTH), count(header::TRANSFER_ENCODING));
    // hyper lets chunks win over a length, and reads nothing after such a request.
    if lengths + encodings > 1 {
        return Err(Denial::Protocol("the request's length is given more than once"));
    }
    if let Some(encoding) = headers.get(header::TRANSFER_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err(Denial::Protocol("the request has a transfer encoding other than `chunked`"));
    }
    let named = connection_fields(headers);
    if named.iter().any(|name| ESSENTIAL.contains(name)) {
        return Err(Denial::Protocol("the request's Connection names a field that it depends on"));
    }
    Ok(())
}

/// The fields that `Connection` names.
fn connection_fields(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter();
    let words = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    words.filter_map(|word| HeaderName::from_bytes(word.trim().as_bytes()).ok()).collect()
}

/// Takes away what is for the next hop alone.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named = connection_fields(headers);
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_OTHERS {
        headers.remove(name);
    }
}

/// The request as the server gets it.
fn rewritten(request: HttpRequest<Incoming>, asked: &Request) -> HttpRequest<Incoming> {
    let (mut head, body) = request.into_parts();
    strip(&mut head.headers);
    let host =
        if asked.port == 80 { asked.host.to_string() } else { format!("{}:{}", asked.host, asked.port) };
    let host = HeaderValue::from_str(&host).expect("hosts are made of plain ASCII");
    head.headers.insert(header::HOST, host);
    let path = head.uri.path_and_query().cloned();
    head.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    head.version = Version::HTTP_11;
    HttpRequest::from_parts(head, body)
}

/// What a client is told that does not get what it asks for.
fn refusal(error: &Error) -> Response<Body> {
    let (status, message) = match error {
        Error::Denied { denial: Denial::Malformed(_) | Denial::Protocol(_), .. } => {
            (StatusCode::BAD_REQUEST, format!("windlass: {error}\n"))
        }
        Error::Denied { remedy: Some(rule), .. } => {
            (StatusCode::FORBIDDEN, format!("windlass: {error}; the rule `{rule}` in sandbox.egress would\n"))
        }
        Error::Denied { remedy: None, .. } => (StatusCode::FORBIDDEN, format!("windlass: {error}\n")),
        Error::Unresolved(_) | Error::Unreachable { .. } => {
            (StatusCode::BAD_GATEWAY, format!("windlass: {error}\n"))
        }
    };
    let mut response = Response::new(text_body(message));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    // What a refused client sends further is not read.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text_body(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// The client's connection, with a pulse.
struct Pulsing {
    stream: TcpStream,
    pulse: Arc<AtomicU64>,
}

impl Pulsing {
    fn beat(&self, flowed: bool) {
        if flowed {
            self.pulse.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Pulsing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.beat(polled.is_ready());
        polled
    }
}

impl AsyncWrite for Pulsing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.beat(polled.is_ready());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
