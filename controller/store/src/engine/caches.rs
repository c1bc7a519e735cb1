//! What the writer remembers between transactions, so that hot operations need fewer statements.
//!
//! Classes, lanes and specs never change once written. The caches may hold classes and lanes that a transaction has
//! written and not committed yet: see [`Caches::rolled_back`] and [`Caches::committed`].

use std::collections::HashMap;
use std::sync::Arc;

use windlass_crds::SandboxJobSpec;

use crate::Reserve;

/// What all jobs of a lane have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    pub(crate) class: i64,
    pub(crate) queue: String,
    pub(crate) reserve: Reserve,
}

/// The caches.
#[derive(Default)]
pub(crate) struct Caches {
    classes: HashMap<String, i64>,
    lanes: Lanes,
    pub(crate) specs: Specs,
    uncommitted: bool,
}

impl Caches {
    /// The id of a class, where it is known.
    pub(crate) fn class(&self, hash: &str) -> Option<i64> {
        self.classes.get(hash).copied()
    }

    /// Remembers a class that was written or read in the open transaction.
    pub(crate) fn insert_class(&mut self, hash: String, id: i64) {
        self.uncommitted = true;
        self.classes.insert(hash, id);
    }

    /// All lanes; only meaningful once [`Lanes::loaded`].
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Remembers a lane that was written or read in the open transaction.
    pub(crate) fn insert_lane(&mut self, id: i64, lane: Lane) {
        self.uncommitted = true;
        self.lanes.insert(id, lane);
    }

    /// Notes that every lane in the database has been inserted.
    pub(crate) fn lanes_are_loaded(&mut self) {
        self.lanes.loaded = true;
    }

    /// What was written so far is on disk.
    pub(crate) fn committed(&mut self) {
        self.uncommitted = false;
    }

    /// Something was taken back: forgets classes and lanes if some may have gone with it. Specs stay, because their
    /// hash is checked on use.
    pub(crate) fn rolled_back(&mut self) {
        if self.uncommitted {
            self.classes.clear();
            self.lanes = Lanes::default();
            self.uncommitted = false;
        }
    }
}

/// All lanes, once loaded.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) loaded: bool,
    by_id: HashMap<i64, Lane>,
    by_lane: HashMap<Lane, i64>,
    by_class: HashMap<i64, Vec<i64>>,
}

impl Lanes {
    fn insert(&mut self, id: i64, lane: Lane) {
        if self.by_id.insert(id, lane.clone()).is_none() {
            self.by_class.entry(lane.class).or_default().push(id);
            self.by_lane.insert(lane, id);
        }
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Lane> {
        self.by_id.get(&id)
    }

    pub(crate) fn id_of(&self, lane: &Lane) -> Option<i64> {
        self.by_lane.get(lane).copied()
    }

    pub(crate) fn of_class(&self, class: i64) -> &[i64] {
        self.by_class.get(&class).map_or(&[], Vec::as_slice)
    }
}

/// Parsed specs by job uid, in two generations: when the young one has grown to its limit it becomes the old one, so
/// that what is in use stays and memory is bounded without bookkeeping per use.
#[derive(Default)]
pub(crate) struct Specs {
    young: HashMap<String, Cached>,
    old: HashMap<String, Cached>,
    young_bytes: usize,
}

struct Cached {
    hash: String,
    spec: Arc<SandboxJobSpec>,
    bytes: usize,
}

/// Bytes of JSON in one generation. With two of them, a parsed form of about four times the text and 1 KiB specs this
/// keeps 16,000 jobs in at most 64 MiB.
const GENERATION_BYTES: usize = 8 << 20;

impl Specs {
    /// The spec of a job; `hash` guards against a uid that was taken back.
    pub(crate) fn get(&mut self, uid: &str, hash: &str) -> Option<Arc<SandboxJobSpec>> {
        if let Some(cached) = self.young.get(uid) {
            return (cached.hash == hash).then(|| Arc::clone(&cached.spec));
        }
        let cached = self.old.remove(uid).filter(|cached| cached.hash == hash)?;
        let spec = Arc::clone(&cached.spec);
        self.keep(uid.to_owned(), cached);
        Some(spec)
    }

    /// Remembers a spec that took `bytes` as JSON.
    pub(crate) fn insert(&mut self, uid: &str, hash: &str, spec: &Arc<SandboxJobSpec>, bytes: usize) {
        self.keep(uid.to_owned(), Cached { hash: hash.to_owned(), spec: Arc::clone(spec), bytes });
    }

    /// Forgets a deleted job.
    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some(cached) = self.young.remove(uid) {
            self.young_bytes -= cached.bytes;
        }
        self.old.remove(uid);
    }

    fn keep(&mut self, uid: String, cached: Cached) {
        if self.young_bytes + cached.bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += cached.bytes;
        if let Some(before) = self.young.insert(uid, cached) {
            self.young_bytes -= before.bytes;
        }
    }
}
