//! The attempts that this node holds: the only thing that the lease keeper's thread shares with the rest of the agent.
//!
//! The lock protects the table and is held for a few map operations at a time, never over a call or a file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::watch;
use windlass_crds::protocol::{AttemptId, Order, Renewal};

use crate::workspaces::LeaseWriter;

/// Why an attempt is to stop. The first cause stands, but that the attempt belongs to somebody else outranks all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr)]
pub(crate) enum StopCause {
    /// Somebody cancelled the job.
    Cancelled,
    /// The agent was told to stop.
    AgentStopped,
    /// The attempt is not this node's any more.
    Fenced,
}

/// What the outside tells an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) stop: Option<StopCause>,
    /// When the lease ends, on `CLOCK_BOOTTIME`.
    pub(crate) lease_until: Duration,
}

/// The attempts that this node holds. Cheap to share.
#[derive(Clone, Default)]
pub(crate) struct HeldAttempts {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// How many there are; whoever waits for a free slot follows it.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    held: BTreeMap<AttemptId, Held>,
    /// Attempts whose end the controller has not heard of. Their leases are renewed until it has, so that what has
    /// ended here is not given to another node while its records wait.
    unreported: BTreeSet<AttemptId>,
}

struct Held {
    control: watch::Sender<Control>,
    /// When the request was sent that the lease counts from; an answer to an older one changes nothing.
    granted_at: Duration,
    /// The latest end that its supervisor may still go by: what cannot be written down does not count as cut short.
    known_until: Duration,
    writer: Option<LeaseWriter>,
    /// Its terminal record is durable: no order concerns it, it only takes up its slot until it is cleaned up.
    ended: bool,
}

impl HeldAttempts {
    /// Adds an attempt with its first lease, which was granted to a request sent at `granted_at`.
    pub(crate) fn insert(
        &self,
        attempt: AttemptId,
        granted_at: Duration,
        lease_until: Duration,
    ) -> watch::Receiver<Control> {
        let control = watch::Sender::new(Control { stop: None, lease_until });
        let receiver = control.subscribe();
        let mut table = self.table();
        table.held.insert(
            attempt,
            Held { control, granted_at, known_until: lease_until, writer: None, ended: false },
        );
        self.inner.count.send_replace(table.held.len());
        receiver
    }

    /// Removes an attempt of which nothing is left.
    pub(crate) fn remove(&self, attempt: &AttemptId) {
        let mut table = self.table();
        table.held.remove(attempt);
        self.inner.count.send_replace(table.held.len());
    }

    /// Notes an attempt whose terminal record is about to be written, or was written in an earlier run and not sent. No
    /// controller hears of a bare run.
    pub(crate) fn ending(&self, attempt: &AttemptId) {
        if !attempt.is_bare() {
            self.table().unreported.insert(attempt.clone());
        }
    }

    /// Marks an attempt whose terminal record is durable.
    pub(crate) fn ended(&self, attempt: &AttemptId) {
        if let Some(held) = self.table().held.get_mut(attempt) {
            held.ended = true;
            held.writer = None;
        }
    }

    /// Notes that the controller has heard of the end of an attempt: its lease is not renewed any more.
    pub(crate) fn reported(&self, attempt: &AttemptId) {
        self.table().unreported.remove(attempt);
    }

    /// From now on every new end of the lease is written by `writer`; the current one is written at once.
    ///
    /// # Errors
    /// When the current one cannot be written.
    pub(crate) fn write_lease_with(&self, attempt: &AttemptId, writer: &LeaseWriter) -> std::io::Result<()> {
        loop {
            let lease_until = {
                let mut table = self.table();
                let Some(held) = table.held.get_mut(attempt) else { return Ok(()) };
                held.writer = Some(Arc::clone(writer));
                held.control.borrow().lease_until
            };
            writer(lease_until)?;
            // A renewal between the look and the write may have been overwritten with the older end.
            let table = self.table();
            if table.held.get(attempt).is_none_or(|held| held.control.borrow().lease_until == lease_until) {
                return Ok(());
            }
        }
    }

    /// Takes renewals over that answer a request sent at `sent_at`.
    pub(crate) fn renew(&self, renewals: &[Renewal], sent_at: Duration) {
        for Renewal { attempt, lease_seconds } in renewals {
            let lease_until = sent_at + Duration::from_secs(*lease_seconds);
            let writer = {
                let mut table = self.table();
                let Some(held) = table.held.get_mut(attempt).filter(|held| held.granted_at <= sent_at) else {
                    continue;
                };
                held.granted_at = sent_at;
                held.known_until = held.known_until.max(lease_until);
                held.control.send_modify(|control| control.lease_until = lease_until);
                held.writer.clone()
            };
            let written = writer.map_or(Ok(()), |writer| writer(lease_until));
            if written.is_ok() {
                self.keeps_to(attempt, lease_until);
            }
            if let Err(error) = written {
                tracing::warn!(
                    job.id = attempt.job,
                    attempt.epoch = attempt.epoch,
                    error = %error,
                    "cannot write the renewed lease; the attempt is stopped when the old one ends"
                );
            }
        }
    }

    /// Notes that nothing goes by a later end of the lease than this any more.
    fn keeps_to(&self, attempt: &AttemptId, lease_until: Duration) {
        if let Some(held) = self.table().held.get_mut(attempt)
            && held.control.borrow().lease_until == lease_until
        {
            held.known_until = lease_until;
        }
    }

    /// Hands orders to the attempts that they are about.
    pub(crate) fn obey(&self, orders: &[Order]) {
        for order in orders {
            let cause = match order {
                Order::Cancel { .. } => StopCause::Cancelled,
                Order::Fenced { attempt } => {
                    // The controller has settled it, whatever its records will say.
                    self.reported(attempt);
                    StopCause::Fenced
                }
            };
            self.stop(order.attempt(), cause);
        }
    }

    /// Tells every attempt to stop.
    pub(crate) fn stop_all(&self, cause: StopCause) {
        let attempts: Vec<AttemptId> = self.table().held.keys().cloned().collect();
        for attempt in attempts {
            self.stop(&attempt, cause);
        }
    }

    fn stop(&self, attempt: &AttemptId, cause: StopCause) {
        let table = self.table();
        let Some(held) = table.held.get(attempt).filter(|held| !held.ended) else { return };
        let changed = held.control.send_if_modified(|control| {
            let outranked = match control.stop {
                None => true,
                Some(StopCause::Cancelled | StopCause::AgentStopped) => cause == StopCause::Fenced,
                Some(StopCause::Fenced) => false,
            };
            if outranked {
                control.stop = Some(cause);
            }
            outranked
        });
        drop(table);
        if changed {
            tracing::info!(
                job.id = attempt.job,
                attempt.epoch = attempt.epoch,
                cause = <&str>::from(cause),
                "attempt is told to stop"
            );
        }
    }

    /// The attempts whose leases are to be renewed, each with the seconds from `now` until it would be stopped for want of
    /// that, rounded up. What has ended needs no time. A bare run has its lease of nobody.
    pub(crate) fn to_renew(&self, now: Duration) -> Vec<(AttemptId, u64)> {
        let table = self.table();
        let ended = table.unreported.iter().map(|attempt| (attempt, 0));
        let of_controller = table.held.iter().filter(|(attempt, held)| !held.ended && !attempt.is_bare());
        let live = of_controller.map(|(attempt, held)| {
            let left = held.known_until.saturating_sub(now);
            (attempt, left.as_secs() + u64::from(left.subsec_nanos() > 0))
        });
        let all: BTreeMap<&AttemptId, u64> = ended.chain(live).collect();
        all.into_iter().map(|(attempt, left)| (attempt.clone(), left)).collect()
    }

    /// The attempts about which an order would be news.
    pub(crate) fn to_be_ordered(&self) -> Vec<AttemptId> {
        let table = self.table();
        let is_news = |attempt: &AttemptId, held: &Held| {
            !held.ended && !attempt.is_bare() && held.control.borrow().stop.is_none()
        };
        let live = table.held.iter().filter(|(attempt, held)| is_news(attempt, held));
        live.map(|(attempt, _)| attempt.clone()).collect()
    }

    /// Follows how many there are.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.inner.count.subscribe()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(job: &str) -> AttemptId {
        AttemptId { job: job.to_owned(), epoch: 1 }
    }

    fn renewal(job: &str, lease_seconds: u64) -> [Renewal; 1] {
        [Renewal { attempt: id(job), lease_seconds }]
    }

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_counts_from_when_the_request_was_sent() {
        let held = HeldAttempts::default();
        let control = held.insert(id("a"), secs(100), secs(125));
        held.renew(&renewal("a", 25), secs(110));
        assert_eq!(control.borrow().lease_until, secs(135));
        held.renew(&renewal("a", 900), secs(105));
        assert_eq!(control.borrow().lease_until, secs(135), "an answer to an older request changes nothing");
        held.renew(&renewal("a", 5), secs(111));
        assert_eq!(
            control.borrow().lease_until,
            secs(116),
            "the newest answer counts, also when it is shorter"
        );
        held.renew(&renewal("unknown", 5), secs(111));
    }

    #[test]
    fn a_lease_that_was_cut_short_counts_once_it_is_written() {
        let held = HeldAttempts::default();
        drop(held.insert(id("a"), secs(100), secs(1000)));
        let disk = Arc::new(Mutex::new(true));
        let full = Arc::clone(&disk);
        let writer: LeaseWriter = Arc::new(move |_| {
            if *full.lock().unwrap() { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        held.write_lease_with(&id("a"), &writer).unwrap_err();
        held.renew(&renewal("a", 25), secs(110));
        assert_eq!(held.to_renew(secs(110)), [(id("a"), 890)], "its supervisor still goes by the old one");
        *disk.lock().unwrap() = false;
        held.renew(&renewal("a", 25), secs(120));
        assert_eq!(held.to_renew(Duration::from_millis(120_500)), [(id("a"), 25)]);
    }

    #[test]
    fn no_controller_hears_of_a_bare_run() {
        let held = HeldAttempts::default();
        let bare = AttemptId { job: "a".to_owned(), epoch: 0 };
        let control = held.insert(bare.clone(), secs(100), secs(4000));
        assert_eq!(held.to_renew(secs(100)), []);
        assert_eq!(held.to_be_ordered(), []);
        held.stop_all(StopCause::AgentStopped);
        assert_eq!(control.borrow().stop, Some(StopCause::AgentStopped));
        held.ending(&bare);
        held.ended(&bare);
        assert_eq!(held.to_renew(secs(100)), []);
        assert_eq!(*held.count().borrow(), 1, "it takes up a slot all the same");
    }

    #[test]
    fn every_new_end_of_a_lease_is_written() {
        let held = HeldAttempts::default();
        drop(held.insert(id("a"), secs(100), secs(125)));
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&written);
        let writer: LeaseWriter = Arc::new(move |until| {
            log.lock().unwrap().push(until.as_secs());
            Ok(())
        });
        held.write_lease_with(&id("a"), &writer).unwrap();
        held.renew(&renewal("a", 25), secs(110));
        held.ended(&id("a"));
        held.renew(&renewal("a", 25), secs(120));
        assert_eq!(*written.lock().unwrap(), [125, 135]);
    }

    #[test]
    fn the_first_cause_to_stop_stands_unless_the_attempt_was_given_away() {
        let held = HeldAttempts::default();
        let control = held.insert(id("a"), secs(0), secs(25));
        assert_eq!(held.to_be_ordered(), [id("a")]);
        held.obey(&[Order::Cancel { attempt: id("a") }]);
        held.stop_all(StopCause::AgentStopped);
        assert_eq!(control.borrow().stop, Some(StopCause::Cancelled));
        assert_eq!(held.to_be_ordered(), []);
        assert_eq!(held.to_renew(secs(5)), [(id("a"), 20)], "it runs until it has stopped");
        held.obey(&[Order::Fenced { attempt: id("a") }]);
        held.obey(&[Order::Cancel { attempt: id("a") }]);
        assert_eq!(control.borrow().stop, Some(StopCause::Fenced));
        held.ending(&id("a"));
        held.ended(&id("a"));
        assert_eq!(held.to_renew(secs(5)), [(id("a"), 0)], "until the controller knows");
        held.reported(&id("a"));
        assert_eq!(held.to_renew(secs(5)), []);
        assert_eq!(*held.count().borrow(), 1, "it takes up its slot until it is cleaned up");
        held.remove(&id("a"));
        assert_eq!(*held.count().borrow(), 0);
    }
}
