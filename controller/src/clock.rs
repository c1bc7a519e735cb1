//! Time, names and chance: the three things that make a run different from the one before, passed in so that tests
//! and the simulation can hold them still.

mod store;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rand::{SeedableRng, rngs::StdRng};

pub use store::StoreClock;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// The time of day. People and time servers move it.
    fn now(&self) -> Timestamp;

    /// The time since some fixed moment, which nobody moves: only the difference of two of them means something.
    fn steady(&self) -> Duration;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
        Timestamp::now()
    }

    fn steady(&self) -> Duration {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        FIRST.get_or_init(Instant::now).elapsed()
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock {
    /// Milliseconds of the steady clock.
    steady: AtomicI64,
    /// How far the time of day is ahead of it, in milliseconds.
    ahead: AtomicI64,
}

impl ManualClock {
    /// A clock that shows this many milliseconds since the epoch.
    pub fn at_millis(millis: u64) -> Self {
        let clock = Self { steady: AtomicI64::new(0), ahead: AtomicI64::new(0) };
        clock.set_millis(millis);
        clock
    }

    /// Lets time pass until the clock shows this.
    pub fn set_millis(&self, millis: u64) {
        let millis = i64::try_from(millis).expect("set to a time of this era");
        self.steady.store(millis - self.ahead.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).expect("tests move the clock by less than an aeon");
        self.steady.fetch_add(millis, Ordering::SeqCst);
    }

    /// Moves the time of day as a person does, while no time passes.
    pub fn jump(&self, by: SignedDuration) {
        let millis = i64::try_from(by.as_millis()).expect("tests move the clock by less than an aeon");
        self.ahead.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let millis = self.steady.load(Ordering::SeqCst) + self.ahead.load(Ordering::SeqCst);
        Timestamp::from_millisecond(millis).expect("set to a time of this era")
    }

    fn steady(&self) -> Duration {
        Duration::from_millis(self.steady.load(Ordering::SeqCst).unsigned_abs())
    }
}

/// New names, secrets and chance.
pub trait IdSource: Send + Sync + 'static {
    /// A new UUID in text form; sorts by time of making.
    fn uid(&self, now: Timestamp) -> String;
    /// Bytes that nobody can guess.
    fn secret(&self) -> [u8; 32];
    /// A number from 0 to 1.
    fn chance(&self) -> f64;
}

/// Ids from a random number generator.
#[derive(Debug)]
pub struct RandomIds(Mutex<StdRng>);

impl RandomIds {
    /// Seeded by the operating system: for everything but tests.
    pub fn from_os() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }

    /// The same ids in the same order each time.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        // A poisoned lock means that a draw panicked; the generator's state is still a valid one.
        let mut rng = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        draw(&mut rng)
    }
}

impl IdSource for RandomIds {
    fn uid(&self, now: Timestamp) -> String {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let random = self.with(rand::Rng::random::<[u8; 10]>);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().to_string()
    }

    fn secret(&self) -> [u8; 32] {
        self.with(rand::Rng::random)
    }

    fn chance(&self) -> f64 {
        self.with(rand::Rng::random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_ids_repeat_and_sort_by_time() {
        let (one, other) = (RandomIds::seeded(7), RandomIds::seeded(7));
        let early = Timestamp::from_second(1_000).unwrap();
        let late = Timestamp::from_second(2_000).unwrap();
        assert_eq!(one.uid(early), other.uid(early));
        assert!(one.uid(early) < one.uid(late));
        assert_ne!(one.secret(), one.secret());
    }
}
