//! Virtual time and seeded chance.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::ids::IdSource;

/// Clocks that follow tokio's, which a test pauses. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    began: Instant,
    wall: Timestamp,
    boot: Arc<Mutex<String>>,
}

impl VirtualClock {
    /// Clocks of a host that has been up for an hour at the beginning of 2026. Needs a tokio runtime.
    pub fn new() -> Self {
        let wall = Timestamp::from_second(1_767_225_600).expect("2026 is in range");
        Self { began: Instant::now(), wall, boot: Arc::new(Mutex::new("boot-1".to_owned())) }
    }

    /// Says that the host was booted again. The time since boot goes on, which no one may rely on.
    pub fn reboot(&self, boot: &str) {
        boot.clone_into(&mut self.boot.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        self.wall.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    fn boottime(&self) -> Duration {
        Duration::from_secs(3600) + self.began.elapsed()
    }

    fn host_boot(&self) -> String {
        self.boot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Names and numbers that follow from a seed.
#[derive(Debug)]
pub struct SeededIds {
    state: Mutex<u64>,
}

impl SeededIds {
    /// Two with the same seed say the same.
    pub const fn new(seed: u64) -> Self {
        Self { state: Mutex::new(seed) }
    }

    /// The next number of SplitMix64.
    fn next(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl IdSource for SeededIds {
    fn unique(&self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }

    fn fraction(&self) -> f64 {
        // 53 bits are what a double holds exactly.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
