//! The lease keeper's own thread, with a runtime of its own and, where that is permitted, a raised priority.

use std::convert::Infallible;
use std::io;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::Error;
use crate::heartbeat::{LeaseKeeper, Superseded};

/// Nice value of the thread: before everything of ordinary priority, behind what the host itself raised highest.
const PRIORITY: i32 = -10;

/// A lease keeper on its thread. Dropping this ends it.
pub(crate) struct Keeping {
    ended: oneshot::Receiver<Result<Infallible, Superseded>>,
    _end: DropGuard,
}

impl Keeping {
    /// Waits until the keeper gives up.
    pub(crate) async fn ended(self) -> Result<Infallible, Error> {
        match self.ended.await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Error::KeeperPanicked),
        }
    }
}

/// Starts a keeper on a thread of its own.
pub(crate) fn spawn(keeper: LeaseKeeper) -> io::Result<Keeping> {
    let end = CancellationToken::new();
    let (sender, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let until = end.clone();
    std::thread::Builder::new().name("lease-keeper".to_owned()).spawn(move || {
        // For a thread and not for the process: Linux keeps nice values by thread.
        if let Err(error) = rustix::process::setpriority_process(None, PRIORITY) {
            tracing::debug!(error = %error, "the lease keeper runs at ordinary priority");
        }
        if let Err(error) = windlass_sandbox::take_short_turns() {
            tracing::debug!(error = %error, "the lease keeper waits for longer turns than steps do");
        }
        let result = runtime.block_on(until.run_until_cancelled(keeper.run()));
        if let Some(result) = result {
            // Who waited is gone only with the whole agent.
            drop(sender.send(result));
        }
    })?;
    Ok(Keeping { ended, _end: end.drop_guard() })
}
