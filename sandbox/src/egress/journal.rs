//! What became of attempts to get out, summed up so that a program in a loop cannot flood anybody.
//!
//! Attempts that are alike (same host, port, address and outcome) make one entry. Its first attempt is recorded at once;
//! further ones, and bytes, are recorded after a time that doubles with each record, and at the end. Each record has the sums
//! from the beginning, so a later one stands for all before it. Beyond [`MAX_ENTRIES`] kinds of attempt, further ones are
//! counted together without their names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Most kinds of attempt that are told apart in one step: more than programs have in good faith, little to keep.
const MAX_ENTRIES: usize = 200;
/// When an entry is recorded for the second time.
const FIRST_PERIOD: Duration = Duration::from_secs(10);
/// The longest time between two records of an entry that changes.
const LAST_PERIOD: Duration = Duration::from_secs(600);

/// How a program asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::Display)]
pub enum Protocol {
    /// HTTP's CONNECT.
    #[strum(serialize = "CONNECT")]
    Connect,
    /// A plain HTTP request.
    #[strum(serialize = "HTTP")]
    Http,
    /// SOCKS 5.
    #[strum(serialize = "SOCKS")]
    Socks,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was connected.
    Allowed {
        /// By this rule.
        rule: String,
    },
    /// It was refused by the policy.
    Denied {
        /// Why, as a sentence.
        reason: String,
        /// The rule that would have allowed it, where one would.
        remedy: Option<String>,
    },
    /// It was allowed and could not be carried out.
    Failed {
        /// Why, as a sentence.
        reason: String,
    },
}

/// Attempts of one kind, summed up from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How it was asked for.
    pub protocol: Protocol,
    /// Whom: a name or an address as it was asked for; empty where that could not be read.
    pub host: String,
    /// At which port; 0 where that could not be read.
    pub port: u16,
    /// The address that was judged or connected to, where it came to that.
    pub address: Option<IpAddr>,
    /// What became of it.
    pub outcome: Outcome,
    /// How many attempts.
    pub attempts: u64,
    /// Bytes from the sandbox.
    pub sent: u64,
    /// Bytes to the sandbox.
    pub received: u64,
}

/// What attempts have in common that are summed up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) protocol: Protocol,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) address: Option<IpAddr>,
    pub(super) outcome: Outcome,
}

/// Bytes of the connections of one entry, counted while they flow.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Traffic {
    fn now(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Entry {
    attempts: u64,
    traffic: Arc<Traffic>,
    /// Attempts and bytes of the last record.
    recorded: (u64, (u64, u64)),
    due: Instant,
    period: Duration,
}

/// Takes records.
pub(super) type Sink = Box<dyn Fn(Record) + Send + Sync>;

/// See the module.
pub(super) struct Journal {
    /// Guards the entries; never held while waiting.
    entries: Mutex<HashMap<Key, Entry>>,
    sink: Sink,
}

impl Journal {
    pub(super) fn new(sink: Sink) -> Self {
        Self { entries: Mutex::default(), sink }
    }

    /// Notes an attempt; gives where its bytes are to be counted.
    pub(super) fn note(&self, key: Key, now: Instant) -> Arc<Traffic> {
        let (record, traffic) = {
            let mut entries = self.entries();
            let key =
                if entries.contains_key(&key) || entries.len() < MAX_ENTRIES { key } else { anonymous(&key) };
            let is_new = !entries.contains_key(&key);
            let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
                attempts: 0,
                traffic: Arc::default(),
                recorded: (0, (0, 0)),
                due: now + FIRST_PERIOD,
                period: FIRST_PERIOD,
            });
            entry.attempts += 1;
            (is_new.then(|| entry.record(&key)), Arc::clone(&entry.traffic))
        };
        if let Some(record) = record {
            (self.sink)(record);
        }
        traffic
    }

    /// Records what is due: everything that has changed, at the end.
    pub(super) fn flush(&self, now: Instant, at_the_end: bool) {
        let records: Vec<Record> = self
            .entries()
            .iter_mut()
            .filter(|(_, entry)| (at_the_end || entry.due <= now) && entry.has_changed())
            .map(|(key, entry)| {
                entry.period = (entry.period * 2).min(LAST_PERIOD);
                entry.due = now + entry.period;
                entry.record(key)
            })
            .collect();
        records.into_iter().for_each(&self.sink);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn has_changed(&self) -> bool {
        self.recorded != (self.attempts, self.traffic.now())
    }

    fn record(&mut self, key: &Key) -> Record {
        let (sent, received) = self.traffic.now();
        self.recorded = (self.attempts, (sent, received));
        let Key { protocol, host, port, address, outcome } = key.clone();
        Record { protocol, host, port, address, outcome, attempts: self.attempts, sent, received }
    }
}

/// The entry for attempts that are not told apart any more: one for each protocol and kind of outcome.
fn anonymous(key: &Key) -> Key {
    let many = || "many different hosts, ports or addresses".to_owned();
    let outcome = match &key.outcome {
        Outcome::Allowed { .. } => Outcome::Allowed { rule: many() },
        Outcome::Denied { .. } => Outcome::Denied { reason: many(), remedy: None },
        Outcome::Failed { .. } => Outcome::Failed { reason: many() },
    };
    Key { protocol: key.protocol, host: String::new(), port: 0, address: None, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: &str) -> Key {
        Key {
            protocol: Protocol::Connect,
            host: host.to_owned(),
            port: 443,
            address: None,
            outcome: Outcome::Denied { reason: "no".to_owned(), remedy: None },
        }
    }

    fn journal() -> (Journal, Arc<Mutex<Vec<Record>>>) {
        let records = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&records);
        (Journal::new(Box::new(move |record| to.lock().unwrap().push(record))), records)
    }

    #[test]
    fn a_program_in_a_loop_makes_few_records_and_the_last_has_the_sums() {
        let (journal, records) = journal();
        let start = Instant::now();
        for second in 0..3600 {
            for _ in 0..100 {
                journal.note(key("a.example"), start + Duration::from_secs(second));
            }
            journal.flush(start + Duration::from_secs(second), false);
        }
        journal.flush(start + Duration::from_secs(3600), true);
        let records = records.lock().unwrap();
        assert!(records.len() < 20, "{}", records.len());
        assert_eq!(records.first().unwrap().attempts, 1, "the first is recorded at once");
        assert_eq!(records.last().unwrap().attempts, 360_000);
    }

    #[test]
    fn a_scan_of_the_whole_world_makes_a_bounded_number_of_records() {
        let (journal, records) = journal();
        let now = Instant::now();
        for number in 0..100_000 {
            journal.note(key(&format!("{number}.example")), now);
        }
        journal.flush(now, true);
        let records = records.lock().unwrap();
        assert_eq!(records.len(), MAX_ENTRIES + 2);
        assert_eq!(records.last().unwrap().host, "");
        let last: u64 = records.last().unwrap().attempts;
        assert_eq!(last, 100_000 - MAX_ENTRIES as u64);
    }

    #[test]
    fn bytes_that_flow_later_are_recorded_when_they_are_due_and_not_without_a_change() {
        let (journal, records) = journal();
        let now = Instant::now();
        let traffic = journal.note(key("a.example"), now);
        traffic.sent.fetch_add(7, Ordering::Relaxed);
        journal.flush(now, false);
        assert_eq!(records.lock().unwrap().len(), 1);
        journal.flush(now + FIRST_PERIOD, false);
        journal.flush(now + 10 * LAST_PERIOD, false);
        journal.flush(now + 10 * LAST_PERIOD, true);
        let records = records.lock().unwrap();
        assert_eq!(records.iter().map(|record| record.sent).collect::<Vec<_>>(), [0, 7]);
    }
}
