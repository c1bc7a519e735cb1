//! The loops that bring what is to what should be, apart from what agents ask for.
//!
//! Each is observe → plan → apply: `observe` reads, `plan` is pure, `apply` writes; a run from nothing converges, and
//! nothing depends on having seen every event.

mod nodes;
mod orphans;
mod pruner;
mod queues;
mod reservations;
mod rollouts;
mod sweeper;

use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::error::{ApiError, chain};
use crate::metrics::Metrics;
use std::sync::Arc;
use windlass_store::{Change, Store};

pub use nodes::Nodes;
pub(crate) use nodes::hold_phase;
pub use orphans::Orphans;
pub(crate) use pruner::remove_bodies;
pub use reservations::Reservations;
pub use rollouts::Rollouts;
pub(crate) use rollouts::{selected, snapshot, turned};
pub use sweeper::Sweeper;

/// How often leases and deadlines are looked at (DESIGN §4).
const SWEEP: Duration = Duration::from_secs(1);
/// How often node conditions are looked at even when nothing was heard.
const NODES: Duration = Duration::from_secs(1);
/// How often queues with limits are looked at.
const QUEUES: Duration = Duration::from_secs(1);
/// How often jobs are looked at that others pass over: often enough for a time that is counted in minutes.
const RESERVATIONS: Duration = Duration::from_secs(2);
/// How often roll-outs are looked at even when no node has changed.
const ROLLOUTS: Duration = Duration::from_secs(2);
/// How often what has outlived its keep is removed.
const PRUNE: Duration = Duration::from_secs(60);

/// How often bodies are listed that nobody may name: a crash leaves few, and a listing of a large store has its price.
const ORPHANS: Duration = Duration::from_secs(6 * 3600);

/// What the loops work with.
#[derive(Clone, Copy)]
pub struct LoopParts<'a> {
    /// The agent protocol.
    pub dispatch: &'a Dispatch,
    /// The store.
    pub store: &'a Store,
    /// Bodies of logs and inputs.
    pub bodies: &'a Bodies,
    /// What time it is.
    pub clock: &'a Arc<dyn Clock>,
    /// Counters.
    pub metrics: &'a Metrics,
    /// How long a job is passed over before room is kept for it.
    pub reserve_after: Duration,
}

/// Starts all loops; they end when `stop` fires.
pub fn start(tasks: &mut JoinSet<()>, stop: &CancellationToken, parts: LoopParts<'_>) {
    let LoopParts { dispatch, store, bodies, clock, metrics, reserve_after } = parts;
    let sweeper =
        Sweeper::new(dispatch.clone(), store.clone(), bodies.clone(), clock.clone(), metrics.clone());
    let orphans = Orphans::new(store.clone(), bodies.clone(), clock.clone(), metrics.clone());
    tasks.spawn(every(ORPHANS, std::future::pending::<()>, stop.clone(), "orphans", move || {
        let orphans = orphans.clone();
        async move { orphans.sweep().await }
    }));
    let nodes = Nodes::new(dispatch, store.clone(), clock.clone());
    let pruner = pruner::Pruner::new(store.clone(), bodies.clone(), clock.clone());
    tasks.spawn(every(SWEEP, std::future::pending::<()>, stop.clone(), "sweep", move || {
        let sweeper = sweeper.clone();
        async move { sweeper.sweep().await }
    }));
    let mut changes = store.changes();
    let wake = async move || node_changed(&mut changes).await;
    tasks.spawn(every(NODES, wake, stop.clone(), "nodes", move || {
        let nodes = nodes.clone();
        async move { nodes.reconcile().await }
    }));
    let queues = queues::Queues::new(store.clone());
    tasks.spawn(every(QUEUES, std::future::pending::<()>, stop.clone(), "queues", move || {
        let queues = queues.clone();
        async move { queues.reconcile().await }
    }));
    let reservations = Reservations::new(dispatch.clone(), store.clone(), clock.clone(), reserve_after);
    tasks.spawn(every(RESERVATIONS, std::future::pending::<()>, stop.clone(), "reservations", move || {
        let reservations = reservations.clone();
        async move { reservations.reconcile().await }
    }));
    let rollouts = Rollouts::new(dispatch, store.clone(), clock.clone());
    let mut changes = store.changes();
    let wake = async move || node_changed(&mut changes).await;
    tasks.spawn(every(ROLLOUTS, wake, stop.clone(), "rollouts", move || {
        let rollouts = rollouts.clone();
        async move { rollouts.reconcile().await }
    }));
    tasks.spawn(every(PRUNE, std::future::pending::<()>, stop.clone(), "prune", move || {
        let pruner = pruner.clone();
        async move { pruner.prune().await }
    }));
}

/// How soon a loop runs again that is woken all the time.
const PAUSE: Duration = Duration::from_millis(100);

/// Completes when a node has changed, or may have.
async fn node_changed(changes: &mut Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Node { .. } | Change::Any) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Runs `work` every `period`, and when `wake` completes; an error is logged once and again only when it changes.
async fn every<F, Fut>(
    period: Duration,
    mut wake: impl AsyncFnMut(),
    stop: CancellationToken,
    name: &'static str,
    work: F,
) where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), ApiError>>,
{
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_error = None;
    loop {
        tokio::select! {
            biased;
            // Cancel-safe: nothing is held.
            () = stop.cancelled() => return,
            // Cancel-safe: a tick that is lost with the future comes again.
            _ = ticks.tick() => {}
            // Cancel-safe: what woke it is looked at in any case.
            () = wake() => tokio::time::sleep(PAUSE).await,
        }
        let span = tracing::debug_span!("reconcile", reconcile.loop = name);
        match work().instrument(span).await {
            Ok(()) => {
                if last_error.take().is_some() {
                    tracing::info!(reconcile.loop = name, "reconciliation works again");
                }
            }
            Err(error) => {
                let text = chain(&error);
                if last_error.as_ref() != Some(&text) {
                    tracing::warn!(reconcile.loop = name, error = %text, "reconciliation failed; it will be tried again");
                    last_error = Some(text);
                }
            }
        }
    }
}
