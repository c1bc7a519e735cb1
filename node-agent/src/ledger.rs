//! The ledger: which attempts this node has taken on.
//!
//! An entry is made, durably, before anything is done for an attempt, and removed when the attempt's terminal record
//! is durable in the outbox and nothing of it is left on the host. How far an attempt has come is not here but in the
//! outbox, whose records are the only account of it (see [`crate::outbox`]).
//!
//! *Guarantees*: an attempt that is in the ledger is never taken on again; after a crash every entry is either carried
//! on or ended with a terminal record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use windlass_crds::protocol::{Assignment, AttemptId};

use crate::fs::AgentFs;
use crate::names::attempt_name;
use crate::vault::NodeKey;

const FOLDER: &str = "ledger";
/// Ended attempts that are remembered in memory, against an answer that the network delivers a second time. A claim
/// gives at most a few dozen attempts, and only the answers of the last one or two requests can come late.
const REMEMBERED: usize = 4096;

/// What the ledger says of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What to do.
    pub(crate) assignment: Assignment,
    /// When the first lease ends, on the clock of [`Entry::host_boot`].
    pub(crate) lease_until: Duration,
    /// The run of the host in which the attempt was taken on.
    pub(crate) host_boot: String,
    /// It came by the Worker API, which keeps its result.
    #[serde(default)]
    pub(crate) pushed: bool,
    /// In the file: the assignment's secrets, sealed with the node's key, and nowhere else in it. In memory: those that the
    /// node's key of now does not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sealed: Option<String>,
}

impl Entry {
    /// The entry as it is written.
    fn to_file(&self, key: &NodeKey) -> Vec<u8> {
        const STRINGS: &str = "it has only string keys and so becomes JSON";
        let mut kept = self.clone();
        let secrets = std::mem::take(&mut kept.assignment.secrets);
        if !secrets.is_empty() {
            let secrets = serde_json::to_vec(&secrets).expect(STRINGS);
            kept.sealed = Some(key.seal(&self.place(), &secrets));
        }
        serde_json::to_vec(&kept).expect(STRINGS)
    }

    /// The entry that was written.
    fn of_file(content: &[u8], key: &NodeKey) -> Result<Self, serde_json::Error> {
        let mut entry: Self = serde_json::from_slice(content)?;
        let opened = entry.sealed.as_deref().and_then(|sealed| key.open(&entry.place(), sealed));
        if let Some(secrets) = opened {
            entry.assignment.secrets = serde_json::from_slice(&secrets)?;
            entry.sealed = None;
        }
        Ok(entry)
    }

    /// What the secrets are sealed for.
    fn place(&self) -> String {
        format!("ledger {}", self.assignment.attempt)
    }
}

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be listed.
    #[error("cannot list the ledger")]
    List(#[source] std::io::Error),
    /// An entry cannot be read.
    #[error("cannot read ledger entry `{name}`")]
    Read {
        /// The file.
        name: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An entry is not what the ledger writes.
    #[error("ledger entry `{name}` is damaged; move it away to start without it")]
    Damaged {
        /// The file.
        name: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// An entry cannot be written.
    #[error("cannot write ledger entry `{name}`")]
    Write {
        /// The file.
        name: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An entry cannot be removed.
    #[error("cannot remove ledger entry `{name}`")]
    Remove {
        /// The file.
        name: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::List(_) => "ledger_list",
            Self::Read { .. } => "ledger_read",
            Self::Damaged { .. } => "ledger_damaged",
            Self::Write { .. } => "ledger_write",
            Self::Remove { .. } => "ledger_remove",
        }
    }
}

/// What came of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is new and now durable in the ledger.
    New,
    /// The attempt is or was here already; nothing is to be done.
    Known,
}

/// The attempts that this node has taken on.
pub(crate) struct Ledger {
    fs: Arc<dyn AgentFs>,
    key: NodeKey,
    /// Protects the sets of names only; no file is touched under it.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    here: BTreeSet<AttemptId>,
    ended: VecDeque<AttemptId>,
}

impl Ledger {
    /// Reads all entries.
    pub(crate) async fn open(
        fs: Arc<dyn AgentFs>,
        key: NodeKey,
    ) -> Result<(Self, BTreeMap<AttemptId, Entry>), Error> {
        let mut entries = BTreeMap::new();
        for name in fs.list(FOLDER).await.map_err(Error::List)? {
            let content = fs.read(&format!("{FOLDER}/{name}")).await;
            let content = content.map_err(|source| Error::Read { name: name.clone(), source })?;
            // A file that was listed and is missing now was removed by hand just then.
            let Some(content) = content else { continue };
            let entry = Entry::of_file(&content, &key).map_err(|source| Error::Damaged { name, source })?;
            entries.insert(entry.assignment.attempt.clone(), entry);
        }
        let known = Known { here: entries.keys().cloned().collect(), ended: VecDeque::new() };
        Ok((Self { fs, key, known: Mutex::new(known) }, entries))
    }

    /// Takes an attempt on. [`Taken::New`] means that the entry is durable; it is said once for an attempt.
    pub(crate) async fn take(&self, entry: &Entry) -> Result<Taken, Error> {
        let attempt = &entry.assignment.attempt;
        if !self.known().admit(attempt) {
            return Ok(Taken::Known);
        }
        let name = file_name(attempt);
        let content = entry.to_file(&self.key);
        match self.fs.create_new(&format!("{FOLDER}/{name}"), content).await {
            Ok(()) => Ok(Taken::New),
            Err(source) => {
                self.known().here.remove(attempt);
                Err(Error::Write { name, source })
            }
        }
    }

    /// Whether an attempt was taken on, or has ended here.
    pub(crate) fn knows(&self, attempt: &AttemptId) -> bool {
        let known = self.known();
        known.here.contains(attempt) || known.ended.contains(attempt)
    }

    /// Forgets an attempt whose terminal record is durable.
    pub(crate) async fn remove(&self, attempt: &AttemptId) -> Result<(), Error> {
        let name = file_name(attempt);
        self.fs.remove(&format!("{FOLDER}/{name}")).await.map_err(|source| Error::Remove { name, source })?;
        self.known().end(attempt);
        Ok(())
    }

    /// Remembers an attempt that ended without ever being in the ledger.
    pub(crate) fn remember_ended(&self, attempt: &AttemptId) {
        self.known().end(attempt);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Known {
    fn admit(&mut self, attempt: &AttemptId) -> bool {
        !self.ended.contains(attempt) && self.here.insert(attempt.clone())
    }

    fn end(&mut self, attempt: &AttemptId) {
        self.here.remove(attempt);
        self.ended.push_back(attempt.clone());
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
    }
}

fn file_name(attempt: &AttemptId) -> String {
    format!("{}.json", attempt_name(attempt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_crds::protocol::{SecretBytes, SecretValue};

    use crate::ids::SystemIds;
    use crate::testing::{MemoryFs, assignment, node_key};

    fn entry(job: &str, epoch: u64) -> Entry {
        Entry {
            assignment: assignment(job, epoch, &["true"]),
            lease_until: Duration::from_secs(25),
            host_boot: "boot".to_owned(),
            pushed: false,
            sealed: None,
        }
    }

    #[tokio::test]
    async fn an_attempt_is_taken_on_once_and_survives_a_restart() {
        let fs = Arc::new(MemoryFs::default());
        let (ledger, entries) = Ledger::open(fs.clone(), node_key()).await.unwrap();
        assert!(entries.is_empty());
        assert_eq!(ledger.take(&entry("job", 1)).await.unwrap(), Taken::New);
        assert_eq!(ledger.take(&entry("job", 1)).await.unwrap(), Taken::Known);
        assert_eq!(ledger.take(&entry("job", 2)).await.unwrap(), Taken::New);

        let (ledger, entries) = Ledger::open(fs.clone(), node_key()).await.unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(ledger.take(&entry("job", 1)).await.unwrap(), Taken::Known);
        ledger.remove(&entry("job", 1).assignment.attempt).await.unwrap();
        assert_eq!(
            ledger.take(&entry("job", 1)).await.unwrap(),
            Taken::Known,
            "a late answer changes nothing"
        );
        assert_eq!(Ledger::open(fs, node_key()).await.unwrap().1.len(), 1);
    }

    #[tokio::test]
    async fn a_full_disk_takes_nothing_on() {
        let fs = Arc::new(MemoryFs::default());
        let (ledger, _) = Ledger::open(fs.clone(), node_key()).await.unwrap();
        fs.set_full(true);
        assert_eq!(ledger.take(&entry("job", 1)).await.unwrap_err().kind(), "ledger_write");
        fs.set_full(false);
        assert_eq!(ledger.take(&entry("job", 1)).await.unwrap(), Taken::New);
    }

    #[tokio::test]
    async fn a_damaged_entry_is_named() {
        let fs = Arc::new(MemoryFs::default());
        fs.create_new("ledger/bad.json", b"{".to_vec()).await.unwrap();
        let error = Ledger::open(fs, node_key()).await.err().unwrap();
        assert!(error.to_string().contains("bad.json"), "{error}");
    }

    #[tokio::test]
    async fn secrets_are_in_the_file_only_sealed_and_without_the_key_they_stay_so() {
        let fs = Arc::new(MemoryFs::default());
        let mut entry = entry("job", 1);
        entry.assignment.secrets = vec![SecretValue {
            name: "s".to_owned(),
            key: "k".to_owned(),
            value: Some(SecretBytes::new(b"swordfish".to_vec())),
            problem: None,
        }];
        let (ledger, _) = Ledger::open(fs.clone(), node_key()).await.unwrap();
        ledger.take(&entry).await.unwrap();
        let file = fs.read("ledger/job-1.json").await.unwrap().unwrap();
        let text = String::from_utf8(file).unwrap();
        assert!(!text.contains("swordfish") && !text.contains("c3dvcmRmaXNo"), "{text}");
        let (_, entries) = Ledger::open(fs.clone(), node_key()).await.unwrap();
        assert_eq!(entries[&entry.assignment.attempt], entry);
        let other = NodeKey::new(&[9; 32], Arc::new(SystemIds));
        let (_, entries) = Ledger::open(fs, other).await.unwrap();
        let found = &entries[&entry.assignment.attempt];
        assert!(found.sealed.is_some() && found.assignment.secrets.is_empty());
    }
}
