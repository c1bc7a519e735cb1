//! A connection under watch: its socket, and the service that answers on it.
//!
//! The service counts the requests under way; the socket closes itself when there have been none for too long, or when
//! what is written is not read.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse as _;
use futures::future::{Either, MapOk, TryFutureExt as _};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tower::Service;

use super::{Admission, Place, Times};
use crate::error::{ApiError, Code};
use crate::metrics::{Closing, Metrics};

/// The requests of one connection.
struct Requests {
    under_way: usize,
    /// When the connection is closed if none is under way by then.
    idle_until: Instant,
}

type Shared = Arc<Mutex<Requests>>;

fn lock(requests: &Shared) -> MutexGuard<'_, Requests> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a connection under watch.
pub(super) fn guard<IO, S>(
    stream: IO,
    service: S,
    admission: Admission,
    times: Times,
    metrics: Metrics,
) -> (Guarded<IO>, Watched<S>) {
    let idle_until = Instant::now() + times.head;
    let requests = Arc::new(Mutex::new(Requests { under_way: 0, idle_until }));
    let (place, service) = match admission {
        Admission::Served(place) => (place, Some(service)),
        Admission::Told(place) => (place, None),
    };
    let watched = Watched { service, requests: Arc::clone(&requests), times };
    let guarded = Guarded {
        stream,
        requests,
        times,
        metrics,
        idle: Box::pin(tokio::time::sleep_until(idle_until)),
        stalled: None,
        _place: place,
    };
    (guarded, watched)
}

/// A socket under watch.
pub(crate) struct Guarded<IO> {
    stream: IO,
    requests: Shared,
    times: Times,
    metrics: Metrics,
    /// Fires when the connection may have been idle for too long.
    idle: Pin<Box<Sleep>>,
    /// Fires when what is written has not been taken for too long; there is none while it is.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Free again when the socket is closed.
    _place: Place,
}

impl<IO> Guarded<IO> {
    /// Completes when the connection has been idle for too long.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.idle.as_mut().poll(context));
            let until = {
                let requests = lock(&self.requests);
                let now = Instant::now();
                match requests.under_way {
                    0 if requests.idle_until <= now => return Poll::Ready(()),
                    0 => requests.idle_until,
                    // Looked at again before it can have been idle for too long.
                    _ => now + self.times.idle,
                }
            };
            self.idle.as_mut().reset(until);
        }
    }

    /// Passes a write on, and fails it when nothing was taken for too long.
    fn watch_write(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        ready!(self.poll_stalled(context));
        Poll::Ready(Err(stalled()))
    }

    /// Passes a flush on, and fails it likewise. That it succeeds does not mean that the peer took something.
    fn watch_flush(
        &mut self,
        context: &mut Context<'_>,
        flush: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if flush.is_ready() {
            return flush;
        }
        ready!(self.poll_stalled(context));
        Poll::Ready(Err(stalled()))
    }

    /// Completes when what is written has not been taken for too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let stall = self.times.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(stalled.as_mut().poll(context));
        self.metrics.closed(Closing::Stalled);
        Poll::Ready(())
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Looked at first: bytes that drip in are no reason to stay open.
        if this.poll_idle(context).is_ready() {
            this.metrics.closed(Closing::Idle);
            let message = "no request came in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch_write(context, write)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watch_write(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flush = Pin::new(&mut this.stream).poll_flush(context);
        this.watch_flush(context, flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shutdown = Pin::new(&mut this.stream).poll_shutdown(context);
        this.watch_flush(context, shutdown)
    }
}

/// The service of one connection. It answers `503` where the connection is one too many.
#[derive(Clone)]
pub(crate) struct Watched<S> {
    service: Option<S>,
    requests: Shared,
    times: Times,
}

/// A request that is under way until this is dropped.
struct UnderWay {
    requests: Shared,
    times: Times,
}

impl UnderWay {
    fn new(requests: &Shared, times: Times) -> Self {
        lock(requests).under_way += 1;
        Self { requests: Arc::clone(requests), times }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = lock(&self.requests);
        requests.under_way -= 1;
        requests.idle_until = Instant::now() + self.times.idle;
    }
}

/// An answer whose request is under way until it was sent.
struct Sent {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

type Answer = Response<Body>;
type Answering<F> = MapOk<F, Box<dyn FnOnce(Answer) -> Answer + Send>>;

impl<S, B> Service<Request<B>> for Watched<S>
where
    S: Service<Request<B>, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<Answering<S::Future>, Ready<Result<Answer, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.as_mut().map_or(Poll::Ready(Ok(())), |service| service.poll_ready(context))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // One that is told only this is not under way: its connection ends when its time for a first request does.
        let Some(service) = &mut self.service else { return Either::Right(ready(Ok(too_many()))) };
        let under_way = UnderWay::new(&self.requests, self.times);
        let sent = move |answer: Answer| answer.map(|body| Body::new(Sent { body, _under_way: under_way }));
        Either::Left(service.call(request).map_ok(Box::new(sent)))
    }
}

fn too_many() -> Answer {
    let detail = "there are too many connections, of all clients or of this one; try again in a moment";
    let mut answer = ApiError::new(Code::Unavailable, detail).into_response();
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests;
