//! How slowly a caller may send, and how much it may say before it does.
//!
//! A request's body must bring [`LEAST`] bytes, or end, in each [`WINDOW`] of waiting for it. Only waiting counts: while
//! the controller is busy with what came, or with the disk, the caller is not late. What is too slow ends as `408`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::error::{ApiError, Code};

/// How long a caller may take for [`LEAST`] bytes of its body.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// The bytes that a window must bring: 400 bytes a second, less than the slowest line that anybody works on.
pub(super) const LEAST: usize = 4096;
/// The most bytes of all names and values of a request's headers: several tokens and the longest cursor.
pub(crate) const MAX_HEADERS: usize = 16 * 1024;

/// The caller sends its body too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly: less than {LEAST} bytes in {} s; send the request again", WINDOW.as_secs())]
pub(super) struct TooSlow;

impl TooSlow {
    /// Whether this is what an error goes back to.
    pub(super) fn find<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

/// Lets a request in whose headers have a sane size, and whose body must keep the pace.
pub(super) async fn admit(request: Request, next: Next) -> Response {
    let size = size(request.headers());
    if size > MAX_HEADERS {
        let detail = format!("the request's headers have {size} bytes; at most {MAX_HEADERS} are accepted");
        return ApiError::new(Code::HeadersTooLarge, detail).into_response();
    }
    next.run(request.map(|body| Body::new(Paced::new(body)))).await
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// A body that must keep the pace.
struct Paced {
    inner: Body,
    /// Fires when the window is used up by waiting; there is none before the first wait.
    late: Option<Pin<Box<Sleep>>>,
    /// Since when the next piece is waited for.
    waiting_since: Option<Instant>,
    /// How long was waited in this window before that.
    waited: Duration,
    /// What came in this window.
    bytes: usize,
}

impl Paced {
    const fn new(inner: Body) -> Self {
        Self { inner, late: None, waiting_since: None, waited: Duration::ZERO, bytes: 0 }
    }

    fn took(&mut self, bytes: usize) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        self.bytes += bytes;
        if self.bytes >= LEAST {
            self.waited = Duration::ZERO;
            self.bytes = 0;
        }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            if let Some(Ok(frame)) = &frame {
                this.took(frame.data_ref().map_or(0, Bytes::len));
            }
            return Poll::Ready(frame);
        }
        let now = Instant::now();
        let since = *this.waiting_since.get_or_insert(now);
        let end = since + WINDOW.saturating_sub(this.waited);
        let late = this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if late.deadline() != end {
            late.as_mut().reset(end);
        }
        ready!(late.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    /// A body that comes in pieces of `size` bytes, one each `every`.
    fn dripping(size: usize, every: Duration, pieces: usize) -> Paced {
        let pieces = futures::stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(every).await;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; size]))
        });
        Paced::new(Body::from_stream(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_bring_its_bytes_in_each_window() {
        let read = async |body| axum::body::to_bytes(Body::new(body), usize::MAX).await;
        let second = Duration::from_secs(1);
        let steady = read(dripping(LEAST, 9 * second, 20)).await.unwrap();
        assert_eq!(steady.len(), 20 * LEAST, "slow, and fast enough");
        let short = read(dripping(10, second, 9)).await.unwrap();
        assert_eq!(short.len(), 90, "it ended within the window");
        let began = Instant::now();
        let dripped = read(dripping(1, second, 10_000)).await.unwrap_err();
        assert!(TooSlow::find(&dripped).is_some(), "{dripped}");
        assert_eq!(began.elapsed(), WINDOW);
        let silent = read(dripping(LEAST, 60 * second, 1)).await.unwrap_err();
        assert!(TooSlow::find(&silent).is_some(), "{silent}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_waiting_for_the_caller_counts() {
        let body = dripping(1, Duration::from_millis(100), 20);
        let mut pieces = Body::new(body).into_data_stream();
        while let Some(piece) = pieces.next().await {
            piece.unwrap();
            // The handler is busy for longer than any window.
            tokio::time::sleep(WINDOW * 2).await;
        }
    }
}
