//! Watches the objects of one kind, in one namespace or in all.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt as _, watcher};

use super::gone::{Evidence, Gone};
use super::object::{Name, ObjectKind, Seen};
use super::session::{Key, Session};
use crate::error::chain;

/// How long to wait before a watch that broke is begun anew; its lists back off by themselves.
const PAUSE: Duration = Duration::from_millis(500);

/// Watches until the session ends; what cannot be watched is tried again for ever.
pub(super) async fn watch(session: Arc<Session>, kind: ObjectKind, namespace: Option<String>) {
    let resource = kind.resource();
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(session.client.clone(), namespace, &resource),
        None => Api::all_with(session.client.clone(), &resource),
    };
    let mut config = watcher::Config::default();
    if let Some(label) = session.parts.args.node_label.as_ref().filter(|_| kind == ObjectKind::Node) {
        config = config.labels(&label.to_string());
    }
    let after_error = session.parts.troubled.load(Ordering::Relaxed);
    let mut watch = Watch { session, kind, namespace, listing: HashSet::new(), after_error, told: None };
    loop {
        let mut events = watcher(api.clone(), config.clone()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            let broken = matches!(
                &event,
                Err(watcher::Error::WatchFailed(_)
                    | watcher::Error::WatchStartFailed(_)
                    | watcher::Error::WatchError(_))
            );
            watch.take(event).await;
            if broken {
                // Listed again rather than gone on with: what answers next may be another server with other versions, from
                // which a watch of later ones would never hear.
                break;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Watch {
    session: Arc<Session>,
    kind: ObjectKind,
    namespace: Option<String>,
    /// What a list that is under way has shown so far: uids.
    listing: HashSet<String>,
    /// Whether something other than an expired watch went wrong since the last whole list.
    after_error: bool,
    /// The error that was logged last.
    told: Option<String>,
}

impl Watch {
    async fn take(&mut self, event: watcher::Result<watcher::Event<DynamicObject>>) {
        match event {
            Ok(watcher::Event::Init) => {
                self.listing.clear();
                if self.after_error && self.session.is_elsewhere().await {
                    // Nothing that this cluster says is about what is known. The session is about to end, and this with it.
                    std::future::pending::<()>().await;
                }
            }
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(uid) = self.put(object) {
                    self.listing.insert(uid);
                }
            }
            Ok(watcher::Event::InitDone) => self.finish_list().await,
            Ok(watcher::Event::Apply(object)) => {
                self.put(object);
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some((name, seen)) = Seen::read(self.kind, object) {
                    self.session.cache.remove(&name, &seen.uid);
                    self.gone(name, seen.uid, Evidence::Told);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn put(&self, object: DynamicObject) -> Option<String> {
        let (name, seen) = Seen::read(self.kind, object)?;
        let uid = seen.uid.clone();
        let replaced = self.session.cache.put(name.clone(), seen);
        if let Some(replaced) = replaced.filter(|replaced| replaced.uid != uid) {
            self.gone(name.clone(), replaced.uid.clone(), Evidence::Told);
        }
        self.session.queue.wake(Key::Object(name));
        Some(uid)
    }

    /// A list is whole: what is known, and not in it, may be gone.
    async fn finish_list(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(kube.kind = %self.kind.manifest(), "watching works again");
        }
        let evidence = if self.after_error && self.listing.is_empty() {
            Evidence::EmptyListAfterError
        } else {
            Evidence::NotListed
        };
        for (name, uid) in self.session.cache.names(self.kind, self.namespace.as_deref()) {
            if !self.listing.contains(&uid) {
                self.session.cache.remove(&name, &uid);
            }
        }
        // Of before this session too, so that what was deleted while nobody watched is found.
        match self.session.known_objects(self.kind, self.namespace.as_deref()).await {
            Ok(known) => {
                for (name, uid) in known {
                    if !self.listing.contains(&uid) {
                        self.gone(name, uid, evidence);
                    }
                }
            }
            // Nothing is lost: the next list, or the next session, looks again.
            Err(error) => tracing::warn!(error = %chain(&error), "could not look for objects that are gone"),
        }
        self.session.cache.set_listed(self.kind, self.namespace.as_deref());
        self.after_error = false;
        self.listing.clear();
        if self.kind == ObjectKind::Node {
            self.session.wake_nodes().await;
        }
    }

    fn gone(&self, name: Name, uid: String, evidence: Evidence) {
        self.session.gone(Gone { name, uid }, evidence);
    }

    fn fail(&mut self, error: &watcher::Error) {
        if is_expiry(error) {
            tracing::info!(kube.kind = %self.kind.manifest(), "the watch has expired; everything is listed again");
            return;
        }
        self.after_error = true;
        self.session.parts.troubled.store(true, Ordering::Relaxed);
        let text = chain(error);
        if self.told.as_ref() != Some(&text) {
            tracing::warn!(
                kube.kind = %self.kind.manifest(), kube.namespace = self.namespace.as_deref(), error = %text,
                "cannot watch; it is tried again, and nothing is taken for deleted"
            );
            self.told = Some(text);
        }
    }
}

/// Whether the API server only says that a watch is too old to be gone on with.
fn is_expiry(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            matches!(error, kube::Error::Api(status) if status.code == 410)
        }
        watcher::Error::NoResourceVersion => false,
    }
}
