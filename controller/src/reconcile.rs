//! The loops that bring what is to what should be, apart from what agents ask for.
//!
//! Each is observe → plan → apply: `observe` reads, `plan` is pure, `apply` writes; a run from nothing converges, and
//! nothing depends on having seen every event.

mod nodes;
mod pruner;
mod sweeper;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::bodies::Bodies;
use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::error::{ApiError, chain};
use std::sync::Arc;
use windlass_store::Store;

pub(crate) use pruner::remove_bodies;
pub use sweeper::Sweeper;

/// How often leases and deadlines are looked at (DESIGN §4).
const SWEEP: Duration = Duration::from_secs(1);
/// How often node conditions are looked at even when nothing was heard.
const NODES: Duration = Duration::from_secs(2);
/// How often what has outlived its keep is removed.
const PRUNE: Duration = Duration::from_secs(60);

/// Starts all loops; they end when `stop` fires.
pub fn start(
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
    dispatch: &Dispatch,
    store: &Store,
    bodies: &Bodies,
    clock: &Arc<dyn Clock>,
) {
    let sweeper = Sweeper::new(dispatch.clone(), store.clone(), bodies.clone(), clock.clone());
    let nodes = nodes::Nodes::new(dispatch, store.clone(), clock.clone());
    let pruner = pruner::Pruner::new(store.clone(), bodies.clone(), clock.clone());
    tasks.spawn(every(SWEEP, stop.clone(), "sweep", move || {
        let sweeper = sweeper.clone();
        async move { sweeper.sweep().await }
    }));
    tasks.spawn(every(NODES, stop.clone(), "nodes", move || {
        let nodes = nodes.clone();
        async move { nodes.reconcile().await }
    }));
    tasks.spawn(every(PRUNE, stop.clone(), "prune", move || {
        let pruner = pruner.clone();
        async move { pruner.prune().await }
    }));
}

/// Runs `work` every `period`; an error is logged once and again only when it changes.
async fn every<F, Fut>(period: Duration, stop: CancellationToken, name: &'static str, work: F)
where
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
