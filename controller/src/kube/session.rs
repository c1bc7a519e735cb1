//! A session: from winning the lead of a cluster to losing it. It starts from nothing, so that one that fails can be replaced.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use windlass_store::{Change, Origin};

use super::cluster::{Error, identify};
use super::gone::{Evidence, Gone};
use super::lead::{Candidate, Lead};
use super::object::{Name, ObjectKind};
use super::queue::{Queue, Then};
use super::write::Writer;
use super::{Parts, cache::Cache, gone, job, node, template, watch};
use crate::error::chain;

/// How many objects are looked at at the same time.
pub(super) const AT_ONCE: usize = 16;
/// How often every node is looked at, for the time at which it was last seen.
const NODES: Duration = Duration::from_secs(60);
/// Each how many times everything else is looked at too, for what nobody has told.
const RESYNC: u32 = 5;
/// How often a complaint that stays the same is logged.
const COMPLAIN: Duration = Duration::from_secs(60);

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// An object, or what the store has under its name.
    Object(Name),
    /// An object that seems to be gone.
    Gone(Gone),
}

impl Key {
    fn name(&self) -> &str {
        match self {
            Self::Object(name) => &name.name,
            Self::Gone(gone) => &gone.name.name,
        }
    }
}

/// What became of looking at a key.
pub(super) struct Looked {
    pub(super) then: Then,
    /// How many writes to the API server were begun.
    pub(super) writes: u32,
}

/// Everything that looking at objects needs.
pub(super) struct Session {
    pub(super) parts: Arc<Parts>,
    pub(super) client: Client,
    /// Names this run of the controller.
    pub(super) identity: String,
    /// Names the cluster.
    pub(super) cluster: String,
    pub(super) lead: Lead,
    pub(super) writer: Writer,
    pub(super) cache: Cache,
    pub(super) queue: Queue<Key>,
    /// Fires when the address leads to another cluster.
    elsewhere: CancellationToken,
    /// Why objects are thought to be gone.
    evidence: Mutex<HashMap<Gone, Evidence>>,
    /// When which complaint was logged.
    complaints: Mutex<HashMap<(&'static str, String), Duration>>,
}

/// Waits for the lead of the cluster, then works until it is lost, or `stop` fires.
pub(super) async fn serve(parts: &Arc<Parts>, stop: &CancellationToken) -> Result<(), Error> {
    let client = parts.connection.client()?;
    let cluster = match &parts.args.cluster {
        Some(name) => name.clone(),
        None => identify(&client).await?,
    };
    let namespace = parts.args.lease_namespace.as_deref().unwrap_or(parts.connection.namespace());
    let identity = parts.ids.uid(parts.clock.now());
    let mut candidate = Candidate::new(
        client.clone(),
        namespace,
        identity.clone(),
        parts.args.lease.get(),
        parts.clock.clone(),
    );
    tracing::info!(kube.cluster = %cluster, kube.lease_namespace = namespace, "connected to Kubernetes");
    let elsewhere = CancellationToken::new();
    let begin = || Begin {
        client: client.clone(),
        identity: identity.clone(),
        cluster: cluster.clone(),
        elsewhere: elsewhere.clone(),
    };
    let mut working: Option<JoinSet<()>> = None;
    let mut failure = None;
    let ended = loop {
        match candidate.round().await {
            Ok(true) => {
                failure = None;
                if working.is_none() {
                    tracing::info!(kube.cluster = %cluster, "this controller bridges the cluster");
                    working = Some(start(parts, begin(), candidate.lead()));
                }
            }
            Ok(false) => {
                failure = None;
                if working.take().is_some() {
                    tracing::warn!(kube.cluster = %cluster, "another controller bridges the cluster now");
                }
            }
            Err(error) => {
                parts.troubled.store(true, Ordering::Relaxed);
                if candidate.lead().check().is_err() && working.take().is_some() {
                    tracing::warn!(kube.cluster = %cluster, error = %chain(&error), "the lead of the cluster was lost");
                }
                let text = chain(&error);
                if failure.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, error.kind = error.kind(), "the Lease could not be taken or renewed; it is tried again");
                    failure = Some(text);
                }
            }
        }
        tokio::select! {
            // Cancel-safe: nothing is held.
            () = stop.cancelled() => break Ok(()),
            // Cancel-safe: nothing is held.
            () = elsewhere.cancelled() => break Err(Error::OtherCluster { expected: cluster.clone() }),
            // Cancel-safe: it is only waited.
            () = tokio::time::sleep(candidate.period()) => {}
        }
    };
    // Writes of this session have ended before another controller is let in.
    if let Some(mut tasks) = working.take() {
        tasks.shutdown().await;
    }
    candidate.resign().await;
    ended
}

/// What a session begins with.
struct Begin {
    client: Client,
    identity: String,
    cluster: String,
    elsewhere: CancellationToken,
}

/// Starts the tasks of a session; they end with the set.
fn start(parts: &Arc<Parts>, begin: Begin, lead: Lead) -> JoinSet<()> {
    let Begin { client, identity, cluster, elsewhere } = begin;
    let session = Arc::new(Session {
        parts: parts.clone(),
        writer: Writer::new(client.clone(), lead.clone()),
        client,
        identity,
        cluster,
        lead,
        cache: Cache::default(),
        queue: Queue::new(),
        elsewhere,
        evidence: Mutex::default(),
        complaints: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(session.clone().follow_store());
    tasks.spawn(session.clone().resync());
    tasks.spawn(watch::watch(session.clone(), ObjectKind::Node, None));
    let namespaces: Vec<Option<String>> = match parts.args.namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    for namespace in namespaces {
        for kind in [ObjectKind::Template, ObjectKind::Job] {
            tasks.spawn(watch::watch(session.clone(), kind, namespace.clone()));
        }
    }
    tasks.spawn(session.work());
    tasks
}

impl Session {
    /// Takes keys from the queue, a few at a time.
    async fn work(self: Arc<Self>) {
        let mut looking = JoinSet::new();
        loop {
            tokio::select! {
                // Cancel-safe: a key is taken with the future's end, or not at all.
                key = self.queue.next(), if looking.len() < AT_ONCE => {
                    let session = self.clone();
                    let span = tracing::debug_span!("kube.look", kube.name = %key.name());
                    looking.spawn(async move { session.look(key).await }.instrument(span));
                }
                // Cancel-safe.
                Some(ended) = looking.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(error = %error, "looking at an object panicked; this is a defect");
                    }
                }
            }
        }
    }

    async fn look(&self, key: Key) {
        let looked = match &key {
            Key::Object(name) => match name.kind {
                ObjectKind::Job => job::look(self, name).await,
                ObjectKind::Node => node::look(self, name).await,
                ObjectKind::Template => template::look(self, name).await,
            },
            Key::Gone(gone) => gone::look(self, gone).await,
        };
        self.queue.done(&key, looked.writes, looked.then, self.parts.ids.chance());
    }

    /// What follows from an error that one object has met: it is told, and the object is tried again.
    pub(super) fn failed(&self, error: &Error, doing: &'static str, writes: u32) -> Looked {
        if error.status() == Some(409) {
            // Somebody else was quicker: what they wrote comes by the watch.
            return Looked { then: Then::After(Duration::from_secs(1)), writes };
        }
        if !matches!(error, Error::NotLeading) {
            // Without the lead the session ends by itself.
            self.complain(doing, error.kind(), &chain(error));
        }
        Looked { then: Then::Retry, writes }
    }

    /// Logs what many objects may meet at once, now and then.
    pub(super) fn complain(&self, doing: &'static str, kind: &str, text: &str) {
        let now = self.parts.clock.steady();
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let last = complaints.get(&(doing, kind.to_owned())).copied();
        if last.is_none_or(|last| now.saturating_sub(last) >= COMPLAIN) {
            complaints.insert((doing, kind.to_owned()), now);
            tracing::warn!(kube.doing = doing, error.kind = kind, error = %text, "something about Kubernetes did not work; it is tried again");
        }
    }

    /// Notes that an object seems to be gone. What is known for sure is not forgotten for less.
    pub(super) fn gone(&self, gone: Gone, evidence: Evidence) {
        let mut known = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        let told = known.entry(gone.clone()).or_insert(evidence);
        if evidence == Evidence::Told {
            *told = evidence;
        }
        drop(known);
        self.queue.wake(Key::Gone(gone));
    }

    pub(super) fn evidence(&self, gone: &Gone) -> Option<Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).get(gone).copied()
    }

    pub(super) fn settle_gone(&self, gone: &Gone) {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).remove(gone);
    }

    /// Whether the address leads to another cluster than the session began with; then it ends.
    pub(super) async fn is_elsewhere(&self) -> bool {
        if self.parts.args.cluster.is_some() {
            return false;
        }
        match identify(&self.client).await {
            Ok(found) if found != self.cluster => {
                self.elsewhere.cancel();
                true
            }
            Ok(_) => false,
            Err(error) => {
                self.complain("identify the cluster", error.kind(), &chain(&error));
                false
            }
        }
    }

    /// The object of this cluster with this uid.
    pub(super) fn origin(&self, uid: &str) -> Origin {
        Origin { cluster: self.cluster.clone(), object: uid.to_owned() }
    }

    /// The objects that the store holds something for, with the names they had.
    pub(super) async fn known_objects(
        &self,
        kind: ObjectKind,
        namespace: Option<&str>,
    ) -> Result<Vec<(Name, String)>, Error> {
        let store = &self.parts.store;
        let origins = store.origins(&self.cluster, kind.origin()).await?;
        let mut names: HashMap<String, (Option<String>, String)> = HashMap::new();
        match kind {
            ObjectKind::Job => {
                let uids: Vec<String> = origins.iter().map(|origin| origin.subject.clone()).collect();
                for chunk in uids.chunks(500) {
                    for job in store.get_jobs(chunk).await? {
                        names.insert(job.uid, (Some(job.namespace), job.name));
                    }
                }
            }
            ObjectKind::Node => {
                names.extend(store.list_nodes().await?.into_iter().map(|node| (node.uid, (None, node.name))));
            }
            ObjectKind::Template => {
                let templates = store.list_templates(namespace).await?.into_iter();
                names.extend(templates.map(|row| (row.uid, (Some(row.namespace), row.name))));
            }
        }
        let mut known = Vec::new();
        for origin in origins.into_iter().filter(|origin| !origin.released) {
            let object = origin.origin.object;
            let Some((of, name)) = names.remove(&origin.subject) else {
                // Only remembered: of a job that was deleted before its object.
                if kind == ObjectKind::Job && namespace.is_none() {
                    let name = Name { kind, namespace: None, name: String::new() };
                    known.push((name, object));
                }
                continue;
            };
            if namespace.is_none_or(|namespace| of.as_deref() == Some(namespace)) {
                known.push((Name { kind, namespace: of, name }, object));
            }
        }
        Ok(known)
    }

    /// Lets every node be looked at, those without an object too.
    pub(super) async fn wake_nodes(&self) {
        match self.parts.store.list_nodes().await {
            Ok(nodes) => {
                for node in nodes {
                    self.wake_node(node.name);
                }
            }
            Err(error) => self.complain("list nodes", error.kind(), &chain(&error)),
        }
    }

    fn wake_node(&self, name: String) {
        self.queue.wake(Key::Object(Name { kind: ObjectKind::Node, namespace: None, name }));
    }

    /// Wakes the objects that changes in the store concern.
    async fn follow_store(self: Arc<Self>) {
        let mut changes = self.parts.store.changes();
        loop {
            match changes.recv().await {
                Ok(Change::Job { uid }) => {
                    if let Some(key) = self.cache.concerned(&uid) {
                        self.queue.wake_soon(key);
                    }
                }
                Ok(Change::Node { name }) => self.wake_node(name),
                Ok(Change::Template { namespace, name }) => {
                    let namespace = Some(namespace);
                    self.queue.wake(Key::Object(Name { kind: ObjectKind::Template, namespace, name }));
                }
                Ok(Change::Any) | Err(RecvError::Lagged(_)) => self.wake_all().await,
                Ok(Change::Queued | Change::Freed { .. } | Change::Records { .. } | Change::Event { .. }) => {
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Looks at everything now and then.
    async fn resync(self: Arc<Self>) {
        let mut round = 0;
        loop {
            tokio::time::sleep(NODES).await;
            round = (round + 1) % RESYNC;
            if round == 0 {
                self.wake_all().await;
            } else {
                self.wake_nodes().await;
            }
        }
    }

    async fn wake_all(&self) {
        for kind in ObjectKind::ALL {
            for (name, _) in self.cache.names(kind, None) {
                self.queue.wake(Key::Object(name));
            }
        }
        let waiting: Vec<Gone> =
            self.evidence.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for gone in waiting {
            self.queue.wake(Key::Gone(gone));
        }
        self.wake_nodes().await;
    }
}
