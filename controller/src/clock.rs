//! Time, names and chance: the three things that make a run different from the one before, passed in so that tests
//! and the simulation can hold them still.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use std::sync::Mutex;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
        Timestamp::now()
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows this many milliseconds since the epoch.
    pub const fn at_millis(millis: u64) -> Self {
        Self(AtomicU64::new(millis))
    }

    /// Sets the clock.
    pub fn set_millis(&self, millis: u64) {
        self.0.store(millis, Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: std::time::Duration) {
        let millis = u64::try_from(by.as_millis()).expect("tests move the clock by less than an aeon");
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let millis = i64::try_from(self.0.load(Ordering::SeqCst)).expect("set to a time of this era");
        Timestamp::from_millisecond(millis).expect("set to a time of this era")
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
