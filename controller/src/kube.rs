//! The bridge to Kubernetes: the same manifests through kubectl.
//!
//! It watches the objects of a cluster, makes the store be what they declare, and mirrors back what became of it. Logs, results
//! and history never go there; a status is small. It makes no decision of its own about jobs: leases, retries and deadlines are
//! the reconcilers' (`crate::reconcile`), as for jobs that came by REST.
//!
//! ```text
//!  API server ══watch══► cache ──key──► queue ──key──► sync (observe ► plan ► apply ► report) ──► store
//!       ▲                                 ▲                        │
//!       │            store's wake-ups ────┘                        │
//!       └── status, Events, finalizers, each past the fence ◄──────┘
//! ```
//!
//! # Guarantees
//! - An object is known by its cluster and uid, and gets one job, also when it is seen by two controllers, or again after its job
//!   was deleted (`windlass_store::Origin`).
//! - Nothing is deleted because something could not be seen: a resource that is not served deletes nothing, nor does an empty
//!   list after an error.
//! - Of several controllers one works, chosen by a Lease. Every write asks whether the lease still holds for as long as the write
//!   may take, and names the version of the object that it is based on.
//! - Writes for one object are paced: a burst of ten, then ten a minute.
//!
//! It must not put anything into a status that grows with the work, or wait for the API server while it holds a lock.

pub mod admin;
mod cache;
mod cluster;
mod event;
mod gone;
mod job;
mod lead;
mod node;
mod object;
mod queue;
mod session;
mod settings;
mod status;
mod template;
pub(crate) mod values;
mod watch;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use windlass_store::Store;

use crate::bodies::Bodies;
use crate::clock::{Clock, IdSource};
use crate::error::chain;
use crate::secrets::Secrets;

pub use cluster::{Connection, Error};
pub use settings::KubeArgs;
pub use values::{ClusterValues, Reading};

/// How long to wait before the cluster is looked for again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the bridge works with.
pub(crate) struct Parts {
    /// The store.
    pub(crate) store: Store,
    /// Bodies of logs, removed with their jobs.
    pub(crate) bodies: Bodies,
    /// What time it is.
    pub(crate) clock: Arc<dyn Clock>,
    /// New ids and chance.
    pub(crate) ids: Arc<dyn IdSource>,
    /// What jobs are given of secrets.
    pub(crate) secrets: Secrets,
    /// The cluster.
    pub(crate) connection: Connection,
    /// Settings.
    pub(crate) args: KubeArgs,
    /// Whether the cluster could not be reached at some time: from then on an empty list is no proof that all is gone, also
    /// in a session that begins anew.
    pub(crate) troubled: AtomicBool,
}

/// Checks the settings, and reads how the cluster is reached. The cluster itself need not answer.
///
/// # Errors
/// [`Error::Lease`], [`Error::Namespace`] and [`Error::Config`].
pub(crate) async fn connect(args: &KubeArgs) -> Result<Connection, Error> {
    if args.lease.millis() < 3000 || !args.lease.millis().is_multiple_of(1000) {
        return Err(Error::Lease { lease: args.lease });
    }
    for name in args.namespaces.iter().chain(&args.lease_namespace) {
        windlass_crds::names::check_label(name)
            .map_err(|problem| Error::Namespace { name: name.clone(), problem })?;
    }
    Connection::open(args.config.as_deref(), args.context.as_deref()).await
}

/// Works until `stop` fires. A cluster that cannot be reached, or does not permit something, is tried again for ever.
pub(crate) async fn run(parts: Parts, stop: CancellationToken) {
    let parts = Arc::new(parts);
    let mut told = None;
    let mut wait = RETRY.0;
    loop {
        let began = parts.clock.steady();
        let ended = tokio::select! {
            // Cancel-safe: a session holds nothing that outlives it but the lease, which `serve` gives back by itself.
            ended = session::serve(&parts, &stop) => ended,
            // `serve` ends by itself soon after; this bounds how long that may take.
            () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(4)).await } => return,
        };
        if stop.is_cancelled() {
            return;
        }
        match ended {
            Ok(()) => told = None,
            Err(error) => {
                parts.troubled.store(true, Ordering::Relaxed);
                let text = chain(&error);
                if told.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = %text, error.kind = error.kind(),
                        "the bridge to Kubernetes does not work; it is tried again"
                    );
                    told = Some(text);
                }
            }
        }
        if parts.clock.steady().saturating_sub(began) > RETRY.1 {
            wait = RETRY.0;
        }
        tokio::select! {
            // Cancel-safe: nothing is held.
            () = stop.cancelled() => return,
            // Cancel-safe: it is only waited.
            () = tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * parts.ids.chance())) => {}
        }
        wait = (wait * 2).min(RETRY.1);
    }
}
