//! Waits between tries: they double up to a limit and carry jitter, so that a fleet does not knock in step.

use std::time::Duration;

use crate::ids::IdSource;

/// Waits between tries of one thing.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// The first wait is about `initial`, the longest about `max`.
    pub(crate) const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, tries: 0 }
    }

    /// For calls to the controller: half a second at first, so that a restart of the controller costs little; half a
    /// minute at most, so that a fleet of thousands does not hold down one that is coming up.
    pub(crate) const fn for_controller() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }

    /// The next wait: between half of the doubled value and all of it.
    pub(crate) fn next(&mut self, ids: &dyn IdSource) -> Duration {
        let full = self.initial.saturating_mul(1 << self.tries.min(16)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(0.5 + ids.fraction() / 2.0)
    }

    /// Starts over, after a success.
    pub(crate) const fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(f64);
    impl IdSource for Fixed {
        fn unique(&self) -> String {
            String::new()
        }
        fn fraction(&self) -> f64 {
            self.0
        }
    }

    #[test]
    fn waits_double_up_to_the_limit_and_stay_within_their_jitter() {
        let (mut low, mut high) = (Backoff::for_controller(), Backoff::for_controller());
        let waits: Vec<_> = (0..8).map(|_| (low.next(&Fixed(0.0)), high.next(&Fixed(0.999)))).collect();
        assert_eq!(waits[0].0, Duration::from_millis(250));
        assert_eq!(waits[1].0, Duration::from_millis(500));
        assert_eq!(waits[7].0, Duration::from_secs(15));
        assert!(waits.iter().all(|(low, high)| low < high && *high <= Duration::from_secs(30)));
        low.reset();
        assert_eq!(low.next(&Fixed(0.0)), Duration::from_millis(250));
    }
}
