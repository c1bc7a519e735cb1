//! The time of day of the server that keeps the database. Controllers of one database write down when a lease ends and end
//! those of each other, so all of them must mean the same by a time, whatever their own clocks say.
//!
//! ```text
//!  server ──its time, every two seconds──► how far it is ahead of the time since boot ──► now()
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use windlass_store::{Error, Store};

use super::Clock;
use crate::error::chain;

/// How often the server is asked. Clocks drift apart by less than a millisecond in that time; it is for servers whose clock was
/// moved, and for a server that took the place of another one.
const PERIOD: Duration = Duration::from_secs(2);

/// A correction that is told of.
const JUMP: SignedDuration = SignedDuration::from_secs(1);

/// The clock of a store's server.
///
/// # Guarantees
/// The time lies within what the last measurement leaves possible, and goes on from there with the time since boot, which nobody
/// can set and which counts suspended time. So it does not matter when somebody moves the clock of this host, nor how wrong it is.
/// While the server is away, the time goes on.
///
/// # Caveats
/// A server whose clock leaps is followed at the next measurement, by each controller at its own.
pub struct StoreClock {
    store: Store,
    /// For what is no time of day.
    own: Arc<dyn Clock>,
    /// How far the server's time is ahead of the time since boot, in milliseconds.
    ahead: AtomicI64,
}

impl StoreClock {
    /// Measures for the first time. `None` where the store has no server: then the time is that of this host.
    ///
    /// # Errors
    /// Whatever keeps the store from being read.
    pub async fn of(store: &Store, own: Arc<dyn Clock>) -> Result<Option<Arc<Self>>, Error> {
        // The first answer may have waited for a connection, and so says little.
        let Some(_late) = store.server_time().await? else { return Ok(None) };
        let sent = since_boot();
        let Some(time) = store.server_time().await? else { return Ok(None) };
        let ahead = Possible::from(time, sent, since_boot()).middle();
        let clock = Self { store: store.clone(), own, ahead: AtomicI64::new(ahead) };
        let off = clock.own.now().duration_since(time);
        if off.abs() >= JUMP {
            tracing::warn!(
                off.seconds = off.as_secs(),
                "this host's clock is not that of the database's server; the server's is used"
            );
        }
        Ok(Some(Arc::new(clock)))
    }

    /// Measures again and again, until `stop` fires.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                // Cancel-safe: nothing is held.
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            // What keeps it from being read is told by those who need more of the store than its time.
            if let Err(error) = self.measure().await {
                tracing::debug!(error = %chain(&error), "the server's time is not known; it is counted on");
            }
        }
    }

    async fn measure(&self) -> Result<(), Error> {
        let sent = since_boot();
        let Some(time) = self.store.server_time().await? else { return Ok(()) };
        let before = self.ahead.load(Ordering::SeqCst);
        let after = Possible::from(time, sent, since_boot()).nearest(before);
        self.ahead.store(after, Ordering::SeqCst);
        let moved = SignedDuration::from_millis(after - before);
        if moved.abs() >= JUMP {
            tracing::warn!(
                moved.seconds = moved.as_secs(),
                "the clock of the database's server was moved; it is followed"
            );
        }
        Ok(())
    }
}

impl Clock for StoreClock {
    fn now(&self) -> Timestamp {
        let now = self.ahead.load(Ordering::SeqCst).saturating_add(millis(since_boot()));
        let end = if now < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::from_millisecond(now).unwrap_or(end)
    }

    fn steady(&self) -> Duration {
        self.own.steady()
    }
}

/// How far the server's time may be ahead of the time since boot, in milliseconds: it was read at some moment between question
/// and answer.
struct Possible {
    least: i64,
    most: i64,
}

impl Possible {
    fn from(time: Timestamp, sent: Duration, received: Duration) -> Self {
        let time = time.as_millisecond();
        // Either end of the last millisecond.
        Self { least: time - millis(received) - 1, most: time - millis(sent) + 1 }
    }

    const fn middle(&self) -> i64 {
        self.least + (self.most - self.least) / 2
    }

    /// A slow answer leaves much possible, and so moves nothing.
    fn nearest(&self, ahead: i64) -> i64 {
        ahead.clamp(self.least, self.most)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The time since this host was booted, sleep included.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_moves_the_clock_no_further_than_it_must() {
        let (sent, received) = (Duration::from_secs(100), Duration::from_millis(100_040));
        let possible = Possible::from(Timestamp::from_millisecond(1_000_100_020).unwrap(), sent, received);
        assert_eq!(possible.middle(), 1_000_000_000);
        for (before, after) in [
            (1_000_000_000, 1_000_000_000),
            (1_000_000_015, 1_000_000_015),
            (1_000_600_000, 1_000_000_021),
            (0, 999_999_979),
        ] {
            assert_eq!(possible.nearest(before), after, "{before}");
        }
    }

    #[test]
    fn a_slow_answer_moves_nothing() {
        let (sent, received) = (Duration::from_secs(100), Duration::from_secs(130));
        let possible = Possible::from(Timestamp::from_millisecond(1_000_101_000).unwrap(), sent, received);
        assert_eq!(possible.nearest(1_000_000_000), 1_000_000_000);
    }
}
