//! Container engines behind one contract: what Podman and Docker do for a unit, in the words of neither.
//!
//! ```text
//!  UnitSpec ─► plan ─► ContainerPlan ─► Engine ─┬─► podman (podman-api, libpod)
//!                                               └─► docker (bollard)
//! ```
//!
//! An `Engine` carries out and tells; it decides nothing. Policy is in `plan`, the life of a unit in `supervisor`, and
//! what the agent sees in `driver`. See docs/adr/0015-container-engines.md.

mod cgroup;
pub(crate) mod docker;
pub(crate) mod driver;
pub(crate) mod holder;
mod host;
pub mod images;
pub mod named;
pub(crate) mod plan;
pub(crate) mod podman;
pub mod probe;
pub mod service;
pub(crate) mod supervisor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::driver::Stream;
use crate::error::Error;

pub use driver::{Containers, ContainersConfig, Engines};
pub use images::{Credentials, Image, ImageRequest, Pull, Reference};
pub use named::{Health, Named, NamedAction, NamedState};
pub use probe::{EngineInfo, Probed};
pub use service::{Service, ServiceGpus, ServiceState};

/// Label of everything that Windlass makes with an engine: the state folder of the agent that made it.
pub(crate) const LABEL_OWNER: &str = "dev.windlass.owner";
/// Label of what runs for the node itself: the state folder of the agent that made it.
pub(crate) const LABEL_SERVICE: &str = "dev.windlass.service";
/// Label with the hash of what a container was made from.
pub(crate) const LABEL_MADE_FROM: &str = "dev.windlass.made-from";
/// All graphics processors that the engine knows.
pub(crate) const ALL_GPUS: u32 = u32::MAX;
/// What the names of all labels of Windlass begin with.
pub(crate) const LABEL_PREFIX: &str = "dev.windlass.";
/// Label of the unit.
pub(crate) const LABEL_UNIT: &str = "dev.windlass.unit";

/// A container engine.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::EnumIter,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum EngineKind {
    /// Podman.
    Podman,
    /// Docker.
    Docker,
}

/// What a container is made from. Finished policy: an engine translates it and adds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    /// The image by its id.
    pub(crate) image: String,
    /// `None` for the image's own.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// Empty for the image's own, where the entry point is the image's own too.
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: String,
    /// User and group by number.
    pub(crate) user: (u32, u32),
    /// Whether the user inside is the one outside, and the engine's user namespace maps it so.
    pub(crate) users: Users,
    pub(crate) hostname: String,
    pub(crate) binds: Vec<Bind>,
    /// Memory file systems: where, and how many bytes.
    pub(crate) scratch: Vec<(String, u64)>,
    pub(crate) read_only_root: bool,
    pub(crate) network: PlannedNetwork,
    pub(crate) cpu_millis: Option<u64>,
    /// 2 to 262144.
    pub(crate) cpu_shares: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) pids: Option<u64>,
    /// Soft and hard.
    pub(crate) open_files: (u64, u64),
    /// Soft and hard; [`u64::MAX`] is no limit.
    pub(crate) processes: (u64, u64),
    pub(crate) oom_score_adj: i32,
    /// Graphics processors of Nvidia, or [`ALL_GPUS`].
    pub(crate) gpus: u32,
    /// Further devices: paths of the host, or names of the container device interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<String>,
    /// How many bytes of output the engine keeps; 0 for none.
    #[serde(default)]
    pub(crate) kept_output: u64,
    pub(crate) labels: BTreeMap<String, String>,
}

/// How users inside relate to those outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Users {
    /// As the engine has it: with an engine of root, the same.
    Engine,
    /// A rootless engine maps its own user to itself.
    Keep,
    /// Those of another container, by its id.
    Of(String),
}

/// A path of the host inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// What of the network a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PlannedNetwork {
    /// No interface but loopback.
    None,
    /// The engine's usual one.
    Open,
    /// The namespace of another container, by its id.
    Of(String),
    /// The host's own. For what the node itself runs, never for a unit.
    Host,
}

/// What an engine says of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ContainerState {
    pub(crate) running: bool,
    /// The first process, as the host numbers it; `None` while there is none.
    pub(crate) pid: Option<i32>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) oom_killed: bool,
    /// What the engine has to say about a start that failed.
    pub(crate) error: Option<String>,
    /// The value of [`LABEL_MADE_FROM`].
    pub(crate) made_from: Option<String>,
}

/// A container that carries our labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labelled {
    pub(crate) id: String,
    pub(crate) unit: Option<String>,
}

/// A container of an engine, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// Such as `running` or `exited`.
    pub state: String,
    /// The same with how long, as the engine says it.
    pub status: String,
    /// When it was made, in seconds since the beginning of 1970.
    pub created_at: Option<i64>,
}

/// Output of a container, in the order in which the engine has it.
pub(crate) type Output = BoxStream<'static, Result<(Stream, Vec<u8>), Error>>;

/// What an engine does. All verbs are idempotent unless said otherwise.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// What engine it is, and how it works.
    async fn info(&self) -> Result<EngineInfo, Error>;

    /// An image that is there, by name, digest or id.
    async fn image(&self, name: &str) -> Result<Option<Image>, Error>;

    /// Fetches an image; tells how it goes.
    async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &mut (dyn FnMut(String) + Send),
    ) -> Result<(), Error>;

    /// Makes a container and starts nothing; gives its id. Fails if the name is taken.
    async fn create(&self, plan: &ContainerPlan) -> Result<String, Error>;

    /// The output of a container that has not been started, from its beginning.
    async fn attach(&self, id: &str) -> Result<Output, Error>;

    /// Starts a container that was made.
    async fn start(&self, id: &str) -> Result<(), Error>;

    /// `None` for a container that does not exist.
    async fn inspect(&self, id: &str) -> Result<Option<ContainerState>, Error>;

    /// Kills a container and removes it with its anonymous volumes. One that does not exist is fine.
    async fn remove(&self, id: &str) -> Result<(), Error>;

    /// The last lines of the output that was kept of a container, at most so many.
    async fn last_output(&self, id: &str, lines: u32) -> Result<String, Error>;

    /// All containers of the engine, whoever made them, running or not.
    async fn containers(&self) -> Result<Vec<Listed>, Error>;

    /// A container by its name or id, whoever made it; `None` for one that does not exist.
    async fn named(&self, name: &str) -> Result<Option<Named>, Error>;

    /// Starts, stops or restarts a container, whoever made it. It has so many seconds to stop before it is killed. The engine
    /// goes on with it when the future is dropped. Not idempotent: a restart that is repeated restarts again.
    async fn act(&self, id: &str, action: NamedAction, seconds: u32) -> Result<(), Error>;

    /// All containers with this value of [`LABEL_OWNER`], running or not.
    async fn owned(&self, owner: &str) -> Result<Vec<Labelled>, Error>;
}

/// The engine of a kind behind a socket. Nothing is connected yet.
pub(crate) fn open(kind: EngineKind, socket: &Path, profile: &Path) -> Result<Arc<dyn Engine>, Error> {
    Ok(match kind {
        EngineKind::Podman => Arc::new(podman::Podman::new(socket, profile)),
        EngineKind::Docker => Arc::new(docker::Docker::new(socket, profile)?),
    })
}

/// Why an engine did not do something.
pub(crate) fn refused(engine: EngineKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::Engine { engine, operation, message: message.into() }
}

/// An engine that cannot be reached.
pub(crate) fn unreachable(
    engine: EngineKind,
    socket: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::EngineUnreachable { engine, socket: socket.to_owned(), source: source.into() }
}
