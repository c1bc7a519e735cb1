//! A connection whose bytes are counted, and which ends when nothing flows or too much has flowed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::journal::Traffic;

/// What a whole sandbox has transferred, and may.
#[derive(Debug)]
pub(super) struct Quota {
    most: Option<u64>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Quota {
    pub(super) fn new(most: Option<u64>) -> Self {
        Self { most, sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }

    /// Whether nothing more may flow in one of the directions.
    pub(super) fn is_used_up(&self) -> bool {
        let over = |count: &AtomicU64| self.most.is_some_and(|most| count.load(Ordering::Relaxed) >= most);
        over(&self.sent) || over(&self.received)
    }
}

/// Counts what flows on one connection.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    pub(super) traffic: Arc<Traffic>,
    pub(super) quota: Arc<Quota>,
    /// Grows with everything that flows: whether something has since the last look.
    pub(super) pulse: Arc<AtomicU64>,
}

impl Meter {
    fn add(&self, count: usize, of: &AtomicU64, whole: &AtomicU64) {
        let count = count as u64;
        of.fetch_add(count, Ordering::Relaxed);
        whole.fetch_add(count, Ordering::Relaxed);
        self.pulse.fetch_add(count, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.quota.is_used_up() { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(()) }
    }
}

/// A connection to the outside. A limit can be exceeded by what one read or write takes.
#[derive(Debug)]
pub(super) struct Metered {
    pub(super) stream: TcpStream,
    pub(super) meter: Meter,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.meter.check()?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Meter { traffic, quota, .. } = &self.meter;
        self.meter.add(buffer.filled().len() - before, &traffic.received, &quota.received);
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.meter.check()?;
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = polled {
            let Meter { traffic, quota, .. } = &self.meter;
            self.meter.add(count, &traffic.sent, &quota.sent);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Returns once nothing has flowed for this long.
pub(super) async fn idle(pulse: &AtomicU64, longest: Duration) {
    let mut before = pulse.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(longest).await;
        let now = pulse.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}
