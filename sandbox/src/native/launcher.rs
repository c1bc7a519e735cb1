//! The driver's side of the spawner and of the sandbox that waits for its unit: who is launched on what, and when another one is
//! made.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use serde_json::value::RawValue;
use windlass_launcher::plan::{Base, LaunchPlan};
use windlass_launcher::{Spare, Spawner};

use super::{Inner, SandboxConfig};
use crate::error::Error;
use crate::image::JOB;
use crate::policy;
use crate::spec::{Network, UnitId};

/// The spawner and its spare.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) spawner: Spawner,
    /// How many spares were asked for.
    spares: u64,
    /// Whether the next one is to show the host as it is now.
    stale: bool,
    pub(super) waiting: Option<Waiting>,
}

/// A sandbox that waits for its unit.
#[derive(Debug)]
pub(super) struct Waiting {
    number: u64,
    base: Base,
    /// What the base is written as. A spare knows it by this.
    text: Arc<RawValue>,
    spare: Spare,
}

impl Launcher {
    /// Starts a spawner.
    pub(super) fn start(config: &SandboxConfig) -> Result<Self, Error> {
        Ok(Self { spawner: start_spawner(config)?, spares: 0, stale: false, waiting: None })
    }
}

/// Makes a spare whenever one was used, and all of it anew when its life is over.
pub(super) async fn keep_spare(native: Weak<Inner>) {
    let Some(life) = native.upgrade().map(|inner| inner.config.spare_life) else { return };
    let mut age = tokio::time::interval_at(tokio::time::Instant::now() + life, life);
    age.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Some(wanted) = native.upgrade().map(|inner| Arc::clone(&inner.spare_wanted)) else { return };
        // Both are cancel-safe: a permit that was not taken stays, and a tick is only time.
        let renew = tokio::select! {
            () = wanted.notified() => false,
            _ = age.tick() => true,
        };
        let Some(inner) = native.upgrade() else { return };
        let made = tokio::task::spawn_blocking(move || inner.ensure_spare(renew)).await;
        if made.is_err() {
            // It panicked, or the runtime ends.
            return;
        }
        if renew {
            // Only then: a node that uses a spare each second shows the host as it is all the same.
            age.reset();
        }
    }
}

impl Inner {
    pub(super) fn launcher(&self) -> MutexGuard<'_, Launcher> {
        self.launcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prepared_for(&self) -> MutexGuard<'_, HashMap<UnitId, u64>> {
        self.prepared_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes if a unit can be launched on the spare; gives what its base is written as.
    pub(super) fn note_spare(&self, id: &UnitId, launch: &LaunchPlan) -> Arc<RawValue> {
        let waiting = self.launcher().waiting.as_ref().map(|waiting| {
            (waiting.base == launch.base).then(|| (waiting.number, Arc::clone(&waiting.text)))
        });
        match waiting.flatten() {
            Some((number, text)) => {
                if launch.takes_spare() {
                    self.prepared_for().insert(id.clone(), number);
                }
                text
            }
            None => text_of(&launch.base),
        }
    }

    /// See [`Inner::make_spare`].
    pub(super) fn ensure_spare(&self, renew: bool) {
        if let Err(error) = self.make_spare(renew) {
            // Units are launched without; each of them tells what the host lacks.
            tracing::debug!(error = %error, "no spare sandbox");
        }
    }

    /// Asks for a spare for the next attempt if there is none, or in place of the one that there is. One
    /// that a unit was prepared for stays.
    fn make_spare(&self, renew: bool) -> Result<(), Error> {
        let prepared_for = self.prepared_for();
        let mut launcher = self.launcher();
        launcher.stale |= renew;
        let stale = launcher.stale;
        let stays =
            |waiting: &Waiting| !stale || prepared_for.values().any(|number| *number == waiting.number);
        if launcher.waiting.as_ref().is_some_and(stays) {
            return Ok(());
        }
        launcher.waiting = None;
        let identity = self.identities.choose_next()?;
        let base = policy::base(&self.host, identity, (JOB, JOB), Network::None, false);
        let text = text_of(&base);
        let failed = |source| Error::Launcher { operation: "make a spare", source };
        let spare =
            self.ask(&mut launcher, |spawner| spawner.make_spare(text.get(), stale))?.map_err(failed)?;
        launcher.stale = false;
        launcher.spares += 1;
        launcher.waiting = Some(Waiting { number: launcher.spares, base, text, spare });
        Ok(())
    }

    /// Launches a unit on the spare that it was prepared for, if that is still there, else by the spawner; starting another one if
    /// it has died or if asked to.
    pub(super) fn launch(&self, id: &UnitId, renew: bool) -> Result<OwnedFd, Error> {
        let failed = |source| Error::Launcher { operation: "take a request", source };
        let dir = self.dir(id);
        let number = self.prepared_for().remove(id);
        let mut launcher = self.launcher();
        if let Some(waiting) = launcher.waiting.take_if(|waiting| Some(waiting.number) == number) {
            match waiting.spare.launch(&dir) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                result => return result.map_err(failed),
            }
        }
        if renew {
            launcher.spawner = start_spawner(&self.config)?;
        }
        self.ask(&mut launcher, |spawner| spawner.launch(&dir))?.map_err(failed)
    }

    /// Sends a request to the spawner, starting another one if it has died.
    fn ask<T>(
        &self,
        launcher: &mut Launcher,
        request: impl Fn(&Spawner) -> io::Result<T>,
    ) -> Result<io::Result<T>, Error> {
        match request(&launcher.spawner) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                tracing::warn!("launcher process died; starting another one");
                launcher.spawner = start_spawner(&self.config)?;
                Ok(request(&launcher.spawner))
            }
            result => Ok(result),
        }
    }
}

/// What a base is written as.
fn text_of(base: &Base) -> Arc<RawValue> {
    serde_json::value::to_raw_value(base).expect("a base has no part that JSON lacks").into()
}

/// Starts the helper process.
fn start_spawner(config: &SandboxConfig) -> Result<Spawner, Error> {
    Spawner::start(&config.launcher).map_err(|source| Error::Launcher { operation: "start", source })
}
