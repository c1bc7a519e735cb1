//! What is to be looked at, and when: each key once at a time, paced, and later after each failure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How many writes a key may cause at once.
const BURST: f64 = 10.0;
/// How long it takes until it may cause one more.
const REFILL: Duration = Duration::from_secs(6);
/// How long a key waits after a change in the store, and after a write, so that what changes again at once is written once:
/// most jobs are over before an API server has taken in that they run.
pub(super) const QUIET: Duration = Duration::from_millis(250);
/// How long a key waits after its first failure, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// How a key was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing is left to be done until it is woken.
    Settled,
    /// It is to be looked at again after this time, or when it is woken.
    After(Duration),
    /// Something did not work: it is tried again, later each time.
    Retry,
}

/// A queue of keys.
pub(super) struct Queue<K> {
    inner: Mutex<Inner<K>>,
    woken: Notify,
}

struct Inner<K> {
    due: BTreeSet<(Instant, K)>,
    times: HashMap<K, Instant>,
    running: HashSet<K>,
    paces: HashMap<K, Pace>,
}

/// What a key has cost.
#[derive(Clone, Copy)]
struct Pace {
    tokens: f64,
    counted: Instant,
    wrote: Option<Instant>,
    failures: u32,
}

impl Pace {
    fn full(now: Instant) -> Self {
        Self { tokens: BURST, counted: now, wrote: None, failures: 0 }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        self.tokens = BURST.min(self.tokens + passed.as_secs_f64() / REFILL.as_secs_f64());
        self.counted = now;
    }

    /// The earliest time at which it may cause a write.
    fn earliest(&self) -> Instant {
        let lacks = (1.0 - self.tokens).max(0.0);
        let paced = self.counted + REFILL.mul_f64(lacks);
        self.wrote.map_or(paced, |wrote| paced.max(wrote + QUIET))
    }
}

impl<K: Clone + Ord + Hash> Queue<K> {
    pub(super) fn new() -> Self {
        let inner = Inner {
            due: BTreeSet::new(),
            times: HashMap::new(),
            running: HashSet::new(),
            paces: HashMap::new(),
        };
        Self { inner: Mutex::new(inner), woken: Notify::new() }
    }

    /// Lets a key be looked at as soon as its pace permits.
    pub(super) fn wake(&self, key: K) {
        self.lock().schedule(key, Duration::ZERO);
        self.woken.notify_one();
    }

    /// Lets a key be looked at when what changes has had time to change again.
    pub(super) fn wake_soon(&self, key: K) {
        self.lock().schedule(key, QUIET);
        self.woken.notify_one();
    }

    /// The next key that is due; nobody else gets it until it is [`Queue::done`]. Cancel-safe.
    pub(super) async fn next(&self) -> K {
        loop {
            let next = self.lock().take();
            let woken = self.woken.notified();
            match next {
                Ok(key) => return key,
                Err(None) => woken.await,
                Err(Some(at)) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// How many keys are to be looked at, now or later.
    pub(super) fn len(&self) -> usize {
        self.lock().due.len()
    }

    /// Says how a key was dealt with, and how many writes it has caused. `chance` from 0 to 1 spreads what fails together.
    pub(super) fn done(&self, key: &K, writes: u32, then: Then, chance: f64) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.running.remove(key);
        let pace = inner.paces.entry(key.clone()).or_insert_with(|| Pace::full(now));
        pace.refill(now);
        pace.tokens -= f64::from(writes);
        if writes > 0 {
            pace.wrote = Some(now);
        }
        match then {
            Then::Settled | Then::After(_) => pace.failures = 0,
            Then::Retry => pace.failures = pace.failures.saturating_add(1),
        }
        let (failures, earliest) = (pace.failures, pace.earliest());
        // A new one would say the same.
        if pace.tokens >= BURST && failures == 0 {
            inner.paces.remove(key);
        }
        // It may have been woken while it was looked at, when its writes were not counted yet.
        inner.postpone(key, earliest);
        match then {
            Then::Settled => {}
            Then::After(wait) => inner.schedule(key.clone(), wait),
            Then::Retry => {
                let wait = BACKOFF.1.min(BACKOFF.0 * 2u32.saturating_pow(failures.saturating_sub(1).min(16)));
                inner.schedule(key.clone(), wait.mul_f64(0.5 + 0.5 * chance));
            }
        }
        drop(inner);
        self.woken.notify_one();
    }

    /// A poisoned lock means that a task panicked between two whole steps.
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Ord + Hash> Inner<K> {
    /// Makes a key due after some time, or earlier where it is already.
    fn schedule(&mut self, key: K, wait: Duration) {
        let now = Instant::now();
        let earliest = self.paces.get(&key).map_or(now, Pace::earliest);
        let at = earliest.max(now + wait);
        match self.times.get(&key) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.due.remove(&(*known, key.clone()));
            }
            None => {}
        }
        self.times.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    /// Makes a key that is due before a time due at that time.
    fn postpone(&mut self, key: &K, earliest: Instant) {
        if let Some(at) = self.times.get_mut(key).filter(|at| **at < earliest) {
            self.due.remove(&(*at, key.clone()));
            *at = earliest;
            self.due.insert((earliest, key.clone()));
        }
    }

    /// Takes a key that is due, or yields when one may be.
    fn take(&mut self) -> Result<K, Option<Instant>> {
        let now = Instant::now();
        // Those that are being looked at stay where they are; there are never many.
        let next = self.due.iter().find(|(_, key)| !self.running.contains(key)).cloned();
        let Some((at, key)) = next else { return Err(None) };
        if at > now {
            return Err(Some(at));
        }
        self.due.remove(&(at, key.clone()));
        self.times.remove(&key);
        self.running.insert(key.clone());
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn soon(queue: &Queue<&'static str>) -> Option<&'static str> {
        tokio::time::timeout(Duration::from_millis(1), queue.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_looked_at_once_at_a_time_and_again_when_it_was_woken_meanwhile() {
        let queue = Queue::new();
        queue.wake("a");
        queue.wake("a");
        assert_eq!(soon(&queue).await, Some("a"));
        queue.wake("a");
        queue.wake("b");
        assert_eq!(soon(&queue).await, Some("b"));
        assert_eq!(soon(&queue).await, None);
        queue.done(&"a", 0, Then::Settled, 0.0);
        assert_eq!(soon(&queue).await, Some("a"));
        queue.done(&"a", 0, Then::Settled, 0.0);
        assert_eq!(soon(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_come_in_a_burst_and_then_ten_a_minute() {
        let queue = Queue::new();
        let began = Instant::now();
        let mut writes = 0;
        queue.wake("hot");
        while began.elapsed() < Duration::from_secs(120) {
            assert_eq!(queue.next().await, "hot");
            writes += 1;
            queue.done(&"hot", 1, Then::Settled, 0.0);
            queue.wake("hot");
        }
        assert!((28..=32).contains(&writes), "{writes} writes in two minutes");
        queue.wake("cold");
        assert_eq!(soon(&queue).await, Some("cold"), "others are not held up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_again_and_again_is_looked_at_in_time_all_the_same() {
        let queue = Queue::new();
        let began = Instant::now();
        let changes = async {
            loop {
                queue.wake_soon("a");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            key = queue.next() => assert_eq!(key, "a"),
            () = changes => {}
        }
        assert!((QUIET..2 * QUIET).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_soon_after_a_write_waits_a_little_and_is_looked_at_once() {
        let queue = Queue::new();
        queue.wake("a");
        assert_eq!(queue.next().await, "a");
        let before = Instant::now();
        queue.wake("a");
        queue.done(&"a", 1, Then::Settled, 0.0);
        queue.wake("b");
        assert_eq!(queue.next().await, "b");
        queue.wake("a");
        assert_eq!(queue.next().await, "a");
        assert!(before.elapsed() >= QUIET);
        queue.done(&"a", 0, Then::Settled, 0.0);
        assert_eq!(soon(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_later_each_time_but_at_once_when_woken() {
        let queue = Queue::new();
        queue.wake("a");
        let mut waits = Vec::new();
        for _ in 0..9 {
            let before = Instant::now();
            assert_eq!(queue.next().await, "a");
            waits.push(before.elapsed().as_secs());
            queue.done(&"a", 0, Then::Retry, 1.0);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 120]);
        queue.wake("a");
        assert_eq!(soon(&queue).await, Some("a"));
        queue.done(&"a", 0, Then::After(Duration::from_secs(7)), 1.0);
        let before = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(before.elapsed().as_secs(), 7);
    }
}
