//! What is known of the cluster's objects.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::object::{Name, ObjectKind, Seen};
use super::session::Key;

/// How long the watch may take to show what was written.
const FOLLOW: Duration = Duration::from_secs(5);

/// The objects as they were last seen.
#[derive(Default)]
pub(super) struct Cache(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    objects: HashMap<Name, Arc<Seen>>,
    /// Versions of objects that this controller has written over, and that the watch still has to follow.
    written_over: HashMap<Name, (Vec<String>, Instant)>,
    /// Kinds and namespaces that were listed whole.
    listed: HashSet<(ObjectKind, Option<String>)>,
    /// What is to be looked at when something of the store has changed, by its uid.
    subjects: HashMap<String, Key>,
}

impl Cache {
    pub(super) fn get(&self, name: &Name) -> Option<Arc<Seen>> {
        self.lock().objects.get(name).cloned()
    }

    /// Notes that an object was written, so that nothing is decided by what it was before.
    pub(super) fn written(&self, name: &Name, seen: &Seen) {
        let mut inner = self.lock();
        let (versions, at) = inner.written_over.entry(name.clone()).or_insert((Vec::new(), Instant::now()));
        versions.push(seen.version.clone());
        *at = Instant::now();
    }

    /// Whether an object as it was seen is one that was written over, and what became of it is to be seen soon.
    pub(super) fn is_behind(&self, name: &Name, seen: &Seen) -> bool {
        let mut inner = self.lock();
        let Some((versions, at)) = inner.written_over.get(name) else { return false };
        if versions.contains(&seen.version) && at.elapsed() < FOLLOW {
            return true;
        }
        inner.written_over.remove(name);
        false
    }

    /// Takes in an object; yields the one that had its name before.
    pub(super) fn put(&self, name: Name, seen: Seen) -> Option<Arc<Seen>> {
        self.lock().objects.insert(name, Arc::new(seen))
    }

    pub(super) fn remove(&self, name: &Name, uid: &str) {
        let mut inner = self.lock();
        if inner.objects.get(name).is_some_and(|seen| seen.uid == uid) {
            inner.objects.remove(name);
        }
    }

    /// The objects of a kind in a namespace, or in all.
    pub(super) fn names(&self, kind: ObjectKind, namespace: Option<&str>) -> Vec<(Name, String)> {
        let inner = self.lock();
        let within = |name: &Name| {
            name.kind == kind
                && namespace.is_none_or(|namespace| name.namespace.as_deref() == Some(namespace))
        };
        let found = inner.objects.iter().filter(|(name, _)| within(name));
        found.map(|(name, seen)| (name.clone(), seen.uid.clone())).collect()
    }

    /// Notes that every object of a kind in a namespace is known.
    pub(super) fn set_listed(&self, kind: ObjectKind, namespace: Option<&str>) {
        self.lock().listed.insert((kind, namespace.map(str::to_owned)));
    }

    /// Whether every node is known, so that one that is not there does not exist.
    pub(super) fn knows_nodes(&self) -> bool {
        self.lock().listed.contains(&(ObjectKind::Node, None))
    }

    /// Remembers what a change of something in the store concerns.
    pub(super) fn concern(&self, subject: &str, key: &Key) {
        let mut inner = self.lock();
        if inner.subjects.get(subject) != Some(key) {
            inner.subjects.insert(subject.to_owned(), key.clone());
        }
    }

    pub(super) fn concerned(&self, subject: &str) -> Option<Key> {
        self.lock().subjects.get(subject).cloned()
    }

    pub(super) fn forget_subject(&self, subject: &str) {
        self.lock().subjects.remove(subject);
    }

    /// A poisoned lock means that a task panicked between two whole steps.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
