//! What the writer remembers between transactions, so that hot operations need fewer statements.
//!
//! Classes, lanes and specs never change once written. The caches may hold classes and lanes that a transaction has
//! written and not committed yet: see [`Caches::rolled_back`] and [`Caches::committed`].

use std::collections::HashMap;
use std::sync::Arc;

use windlass_crds::SandboxJobSpec;

use crate::Reserve;
use crate::ops::job_rows::Stored;

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
    pub(crate) jobs: Jobs,
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

    /// All lanes, where none is [missing](Lanes::missing_after).
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Remembers a lane that was written or read in the open transaction.
    pub(crate) fn insert_lane(&mut self, id: i64, lane: Lane) {
        self.uncommitted = true;
        self.lanes.insert(id, lane);
    }

    /// Notes that every lane in the database has been inserted, up to this id.
    pub(crate) fn lanes_are_loaded(&mut self, last: i64) {
        self.lanes.loaded = Some(last);
    }

    /// Notes that there are lanes up to this id, by whomever they were written. Ids only grow.
    pub(crate) fn lanes_go_to(&mut self, last: i64) {
        self.lanes.last = last;
    }

    /// What was written so far is on disk.
    pub(crate) fn committed(&mut self) {
        self.uncommitted = false;
    }

    /// Something was taken back: forgets classes and lanes if some may have gone with it. Specs stay, because their
    /// hash is checked on use, and so do jobs, because no version is drawn twice.
    pub(crate) fn rolled_back(&mut self) {
        if self.uncommitted {
            self.classes.clear();
            self.lanes = Lanes { last: self.lanes.last, ..Lanes::default() };
            self.uncommitted = false;
        }
    }

    /// The whole transaction was taken back, with the versions that were drawn in it: somebody else may draw them again.
    pub(crate) fn forget_uncommitted(&mut self) {
        self.rolled_back();
        self.jobs = Jobs::default();
    }
}

/// All lanes, once loaded.
#[derive(Default)]
pub(crate) struct Lanes {
    /// Every lane up to this id is here.
    loaded: Option<i64>,
    /// There are lanes up to this id, as far as other writers are concerned.
    last: i64,
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

    /// The id after which there may be lanes that are not here; `None` where all are.
    pub(crate) fn missing_after(&self) -> Option<i64> {
        match self.loaded {
            Some(loaded) => (self.last > loaded).then_some(loaded),
            None => Some(0),
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

/// What is remembered of jobs, by uid, in two generations: when the young one has grown to its limit it becomes the old
/// one, so that what is in use stays and memory is bounded without bookkeeping per use.
pub(crate) struct Generations<T> {
    young: HashMap<String, Weighed<T>>,
    old: HashMap<String, Weighed<T>>,
    young_bytes: usize,
}

struct Weighed<T> {
    value: T,
    bytes: usize,
}

/// Bytes in one generation, by the weights that are given. A parsed spec takes some four times its text, so two
/// generations of 16,000 small jobs stay below 64 MiB.
const GENERATION_BYTES: usize = 8 << 20;

impl<T> Default for Generations<T> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0 }
    }
}

impl<T> Generations<T> {
    /// What is remembered of a job.
    pub(crate) fn get(&mut self, uid: &str) -> Option<&T> {
        if !self.young.contains_key(uid)
            && let Some((uid, aged)) = self.old.remove_entry(uid)
        {
            self.keep(uid, aged);
        }
        self.young.get(uid).map(|weighed| &weighed.value)
    }

    /// Remembers something that weighs `bytes`, in place of what was.
    pub(crate) fn insert(&mut self, uid: &str, value: T, bytes: usize) {
        self.old.remove(uid);
        self.keep(uid.to_owned(), Weighed { value, bytes });
    }

    /// Forgets a job, and yields what was remembered.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<T> {
        let young = self.young.remove(uid);
        if let Some(weighed) = &young {
            self.young_bytes -= weighed.bytes;
        }
        young.or_else(|| self.old.remove(uid)).map(|weighed| weighed.value)
    }

    fn keep(&mut self, uid: String, weighed: Weighed<T>) {
        if self.young_bytes + weighed.bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += weighed.bytes;
        if let Some(before) = self.young.insert(uid, weighed) {
            self.young_bytes -= before.bytes;
        }
    }
}

/// A parsed spec and its hash, which guards against a uid that was taken back.
pub(crate) struct KnownSpec {
    pub(crate) hash: String,
    pub(crate) spec: Arc<SandboxJobSpec>,
}

/// Parsed specs: they never change.
pub(crate) type Specs = Generations<KnownSpec>;

/// Jobs as they were at their version. A version that is found in the database is that of a commit, so whoever finds it
/// there knows the job, but for its lease, without reading it.
pub(crate) type Jobs = Generations<Stored>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_outlives_what_is_not() {
        let mut jobs = Generations::default();
        jobs.insert("idle", 1, 10);
        jobs.insert("used", 2, 10);
        for n in 0..10 {
            jobs.insert(&format!("filler-{n}"), 0, GENERATION_BYTES / 3);
            assert_eq!(jobs.get("used"), Some(&2), "after {n}");
        }
        assert_eq!(jobs.get("idle"), None);
        assert_eq!(jobs.get("filler-9"), Some(&0));
        assert_eq!(jobs.remove("used"), Some(2));
        assert_eq!(jobs.get("used"), None);
    }

    #[test]
    fn weights_are_given_back() {
        let mut jobs = Generations::default();
        for n in 0..100 {
            jobs.insert("same", n, GENERATION_BYTES / 2);
            assert_eq!(jobs.get("same"), Some(&n));
        }
        jobs.insert("other", 0, 1);
        jobs.remove("same");
        assert_eq!(jobs.young_bytes, 1);
    }
}
