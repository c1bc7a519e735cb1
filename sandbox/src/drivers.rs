//! All runtimes of a host behind one [`Driver`]: a unit goes to the one that its specification names, and is found again where
//! it is.

use std::sync::Arc;

use async_trait::async_trait;

use crate::driver::{Driver, Exit, OutputReader, Prepared, Stop, UnitState};
use crate::engine::{Containers, EngineKind, Engines};
use crate::error::Error;
use crate::spec::{UnitId, UnitSpec};

/// The native driver, and one for each container engine.
#[derive(Clone)]
pub struct Drivers {
    native: Arc<dyn Driver>,
    engines: Engines,
}

impl Drivers {
    /// All of them.
    #[must_use]
    pub fn new(native: Arc<dyn Driver>, engines: Engines) -> Self {
        Self { native, engines }
    }

    /// The driver that a unit is to run with.
    fn wanted(&self, unit: &UnitSpec) -> Result<&dyn Driver, Error> {
        match &unit.container {
            None => Ok(&*self.native),
            Some(container) => self.engine(container.engine).map(|engine| engine as &dyn Driver),
        }
    }

    fn engine(&self, kind: EngineKind) -> Result<&Containers, Error> {
        self.engines.get(kind).ok_or_else(|| Error::Unsupported {
            feature: format!("runtime {kind}"),
            needed: format!("a {kind} that this agent has found at its start"),
        })
    }

    /// The driver that has a unit.
    fn holding(&self, id: &UnitId) -> &dyn Driver {
        match self.engines.iter().find(|engine| engine.has(id)) {
            Some(engine) => engine,
            None => &*self.native,
        }
    }
}

#[async_trait]
impl Driver for Drivers {
    async fn prepare(&self, unit: &UnitSpec) -> Result<Prepared, Error> {
        self.wanted(unit)?.prepare(unit).await
    }

    async fn start(&self, id: &UnitId) -> Result<(), Error> {
        self.holding(id).start(id).await
    }

    async fn signal(&self, id: &UnitId, stop: Stop) -> Result<(), Error> {
        self.holding(id).signal(id, stop).await
    }

    async fn wait(&self, id: &UnitId) -> Result<Exit, Error> {
        self.holding(id).wait(id).await
    }

    async fn inventory(&self) -> Result<Vec<UnitState>, Error> {
        let mut units = self.native.inventory().await?;
        for engine in self.engines.iter() {
            units.extend(engine.inventory().await?);
        }
        units.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(units)
    }

    async fn cleanup(&self, id: &UnitId) -> Result<(), Error> {
        self.holding(id).cleanup(id).await
    }

    async fn egress(&self, id: &UnitId) -> Result<Option<std::net::TcpListener>, Error> {
        self.holding(id).egress(id).await
    }

    fn output(&self, id: &UnitId, cursor: u64) -> OutputReader {
        self.holding(id).output(id, cursor)
    }
}
