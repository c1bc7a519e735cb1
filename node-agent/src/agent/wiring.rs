//! What connects the agent's parts: the order in which a node comes up, and what one part says to the others.

use std::sync::Arc;

use windlass_sandbox::Images;

use crate::watch;

use crate::capabilities::Capabilities;
use crate::client::ControllerClient;
use crate::config_sync::{ConfigState, InForce};
use crate::ids::IdSource;
use crate::outbox::Backlog;
use crate::readiness::{Part, Readiness};
use crate::session::SessionHandle;
use crate::status::AgentStatus;

/// Brings the node up: configuration first, then capabilities, then work.
pub(super) struct BringUp {
    pub(super) client: Arc<dyn ControllerClient>,
    pub(super) session: SessionHandle,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) config: watch::Receiver<ConfigState>,
    pub(super) capabilities: Arc<Capabilities>,
    pub(super) up: watch::Sender<bool>,
}

impl BringUp {
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        // Its sender lives as long as the configuration's task.
        drop(self.config.wait_for(|config| config.fetched).await);
        self.capabilities.deliver(&*self.client, &self.session, &*self.ids).await;
        tracing::info!("heartbeats and claims begin");
        self.up.send_replace(true);
        self.capabilities.keep_delivered(&*self.client, &self.session, &*self.ids).await
    }
}

/// Keeps as many of the images of native steps as the configuration says.
pub(super) struct KeepImages {
    pub(super) images: Images,
    pub(super) in_force: InForce,
    pub(super) config: watch::Receiver<ConfigState>,
}

impl KeepImages {
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        let mut told = None;
        loop {
            let configured =
                self.in_force.get().map(|applied| applied.configuration.policy.sandbox.images.keep_bytes);
            if let Some(bytes) = configured
                && told != Some(bytes)
            {
                told = Some(bytes);
                self.keep(bytes).await;
            }
            // Its sender lives as long as the agent.
            if self.config.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Says so, and removes at once what is too much.
    async fn keep(&self, bytes: Option<u64>) {
        self.images.keep(bytes);
        let images = self.images.clone();
        match tokio::task::spawn_blocking(move || images.collect()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => tracing::info!(removed, keep = bytes, "images that nobody uses were removed"),
            Ok(Err(error)) => {
                let error = crate::error_chain(&error);
                tracing::warn!(
                    error,
                    "images that nobody uses cannot be removed; they go after the next one"
                );
            }
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Passes on what one part says to those that it concerns, and publishes the status.
pub(super) struct Wiring {
    pub(super) session: SessionHandle,
    pub(super) config: watch::Receiver<ConfigState>,
    pub(super) stalled: watch::Receiver<Option<String>>,
    pub(super) backlog: watch::Receiver<Backlog>,
    pub(super) held: watch::Receiver<usize>,
    pub(super) up: watch::Receiver<bool>,
    pub(super) draining: watch::Receiver<bool>,
    pub(super) readiness: Readiness,
    pub(super) slots: watch::Sender<u32>,
    pub(super) concurrency: u32,
    pub(super) status: tokio::sync::watch::Sender<AgentStatus>,
}

impl Wiring {
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        let mut session = self.session.changes();
        let mut readiness = self.readiness.changes();
        loop {
            self.pass_on();
            // Cancel-safe: all only look. Their senders live as long as the agent.
            let looked = tokio::select! {
                biased;
                looked = session.changed() => looked,
                looked = self.config.changed() => looked,
                looked = self.stalled.changed() => looked,
                looked = readiness.changed() => looked,
                looked = self.held.changed() => looked,
                looked = self.up.changed() => looked,
                looked = self.draining.changed() => looked,
                looked = self.backlog.changed() => looked,
            };
            if looked.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(super) fn pass_on(&self) {
        let ConfigState { fetched: _, version, concurrency, dispatch: _, failure } =
            self.config.borrow().clone();
        let no_configuration = || failure.unwrap_or_else(|| "no configuration is in force yet".to_owned());
        self.readiness.set(Part::Configuration, version.is_none().then(no_configuration));
        self.readiness.set(Part::Outbox, self.stalled.borrow().clone());
        let slots = concurrency.unwrap_or(self.concurrency);
        self.slots.send_if_modified(|current| std::mem::replace(current, slots) != slots);
        let status = AgentStatus {
            node: self.status.borrow().node.clone(),
            registered: self.session.current().is_some(),
            config_version: version,
            up: *self.up.borrow(),
            not_ready: self.readiness.not_ready(),
            slots,
            held: *self.held.borrow(),
            backlog: *self.backlog.borrow(),
            draining: *self.draining.borrow(),
        };
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}
