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
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The wall clock at `began`, all jumps since included.
    wall: Timestamp,
    /// The time since boot at `began`; negative where the host was booted later.
    up: SignedDuration,
    boot: String,
}

impl VirtualClock {
    /// Clocks of a host that has been up for an hour at the beginning of 2026. Needs a tokio runtime.
    pub fn new() -> Self {
        let state = State {
            wall: Timestamp::from_second(1_767_225_600).expect("2026 is in range"),
            up: SignedDuration::from_hours(1),
            boot: "boot-1".to_owned(),
        };
        Self { began: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    /// Says that the host was booted again. The time since boot goes on, which no one may rely on.
    pub fn reboot(&self, boot: &str) {
        boot.clone_into(&mut self.state().boot);
    }

    /// Says that the host was booted just now: the time since boot begins anew.
    pub fn reboot_now(&self, boot: &str) {
        let up = SignedDuration::ZERO - self.elapsed();
        let mut state = self.state();
        state.up = up;
        boot.clone_into(&mut state.boot);
    }

    /// Moves the wall clock, as a person or a time server does.
    pub fn jump(&self, by: SignedDuration) {
        let mut state = self.state();
        state.wall = state.wall.saturating_add(by).unwrap_or(state.wall);
    }

    /// Moves both clocks forward, as a host finds them when it wakes up. Timers have not run meanwhile.
    pub fn wake_after(&self, asleep: Duration) {
        let asleep = SignedDuration::try_from(asleep).unwrap_or(SignedDuration::MAX);
        self.jump(asleep);
        self.state().up += asleep;
    }

    fn elapsed(&self) -> SignedDuration {
        SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.state().wall.saturating_add(self.elapsed()).unwrap_or(Timestamp::MAX)
    }

    fn boottime(&self) -> Duration {
        (self.state().up + self.elapsed()).unsigned_abs()
    }

    fn host_boot(&self) -> String {
        self.state().boot.clone()
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
