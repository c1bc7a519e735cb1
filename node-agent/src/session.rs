//! The session: what the last registration yielded. One task renews it; everybody else borrows it.

use std::sync::Arc;

use crate::watch;
use jiff::Timestamp;
use windlass_crds::protocol::Endpoints;

/// What a registration yielded.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The uid of the node's object, where the controller tells it.
    pub node_uid: Option<String>,
    /// The node's token for the `Authorization` header.
    pub token: String,
    /// When the token was issued, by the controller's clock.
    pub issued_at: Timestamp,
    /// When it stops working, by the controller's clock.
    pub expires_at: Timestamp,
    /// Where to call.
    pub endpoints: Endpoints,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("node_uid", &self.node_uid)
            .field("token", &"…")
            .field("expires_at", &self.expires_at)
            .field("endpoints", &self.endpoints)
            .finish()
    }
}

/// A way to the current session.
#[derive(Clone, Debug)]
pub(crate) struct SessionHandle {
    current: Arc<watch::Sender<Option<Arc<Session>>>>,
}

impl SessionHandle {
    /// Without a session.
    pub(crate) fn new() -> Self {
        Self { current: Arc::new(watch::Sender::new(None)) }
    }

    /// The session, as soon as there is one.
    pub(crate) async fn ready(&self) -> Arc<Session> {
        let mut current = self.current.subscribe();
        loop {
            if let Some(session) = current.borrow_and_update().clone() {
                return session;
            }
            // The sender lives as long as `self`.
            if current.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The session, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.current.borrow().clone()
    }

    /// Follows changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.current.subscribe()
    }

    /// Puts a new session in place.
    pub(crate) fn renewed(&self, session: Session) {
        self.current.send_replace(Some(Arc::new(session)));
    }

    /// Says that the controller does not accept `session` any more. Everybody waits for the next one then. Harmless
    /// when there is a newer one already.
    pub(crate) fn expired(&self, session: &Arc<Session>) {
        self.current.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session));
            if same {
                *current = None;
            }
            same
        });
    }

    /// Returns when there is no session: at first, and after [`SessionHandle::expired`].
    pub(crate) async fn missing(&self) {
        let mut current = self.current.subscribe();
        // The sender lives as long as `self`.
        drop(current.wait_for(Option::is_none).await);
    }
}
