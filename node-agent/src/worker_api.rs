//! The Worker API: the second way in for work, beside claims. Whoever has a token gives this node a job by calling it.
//!
//! ```text
//!  HTTPS ──► token ──► request ──► intake ──► ledger ──► dispatcher ──► executor (as for claims)
//!                                    │                                     │ output, end
//!                                    └──── joins ◄──────── runs ◄──────────┘
//! ```
//!
//! *Our controller* sends a whole [`Assignment`](windlass_crds::protocol::Assignment) that it has claimed for this node.
//! From there on all is as after a claim: heartbeats renew its lease, reports tell what happens. The request may have been
//! on its way for any time, so it grants no lease of its own: the first one comes with the answer to a heartbeat, and an
//! attempt that was given away meanwhile is refused there before anything of it runs.
//!
//! *Other callers* send what contracts of run-job know: an image and a command. Such a *bare* run has the epoch 0 and no
//! controller knows of it; its lease is its own time limit, and its records go no further than this node.
//!
//! *Guarantees*: a run is named by job and epoch. A repeated call joins it, or gets its result, and never starts a second
//! one, also after the agent or the host was started again. A result is kept until the controller has stored what it says,
//! or until its caller says so, see `runs`.

mod caller;
mod intake;
mod listener;
mod problem;
mod request;
mod router;
pub(crate) mod runs;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;
use windlass_crds::protocol::worker_api::MAX_REQUEST;
use windlass_crds::protocol::{
    AckError, Configuration, TlsCapability, WorkerApiCapability, WorkerApiSettings,
};

pub(crate) use self::intake::{Intake, named, task};
pub use self::listener::TlsHost;
use crate::capabilities::Served;
use crate::watch;

/// How long a port may take to be free again that this agent has listened on itself.
const PORT_FREE: std::time::Duration = std::time::Duration::from_secs(5);
/// Between two tries to listen on it.
const PORT_RETRY: std::time::Duration = std::time::Duration::from_millis(50);

/// What serves the Worker API: TLS on this host, or a test.
#[async_trait]
pub trait ApiHost: Send + Sync + 'static {
    /// Serves `router` at `listen` until the door is dropped. `url` is where callers reach it, if that was declared.
    ///
    /// # Errors
    /// When the address cannot be listened on, or there is no certificate.
    async fn open(
        &self,
        listen: SocketAddr,
        url: Option<&url::Url>,
        router: axum::Router,
    ) -> io::Result<Door>;
}

/// A Worker API that is served. Dropping it ends that.
pub struct Door {
    /// Where it is reached.
    pub base_url: String,
    /// Its certificate.
    pub certificate_pem: String,
    /// What keeps it open.
    pub guard: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// Where the Worker API is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    listen: SocketAddr,
    url: Option<url::Url>,
}

/// What counts for the next call.
#[derive(Debug)]
struct Rules {
    settings: WorkerApiSettings,
    max_request: u64,
}

/// A change of the Worker API that is made and not settled yet.
#[derive(Debug)]
pub(crate) enum Change {
    /// It stays where it is, or is nowhere.
    Keep,
    /// It is to be served no more.
    Close,
    /// It is served at another place.
    Open(Box<Opened>),
}

/// A door that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    place: Place,
    door: Door,
    /// The place that had to be closed for that.
    closed: Option<Place>,
}

/// The Worker API of this node. Cheap to share.
#[derive(Clone)]
pub(crate) struct WorkerApi {
    inner: Arc<Inner>,
}

struct Inner {
    host: Option<Arc<dyn ApiHost>>,
    rules: Arc<ArcSwapOption<Rules>>,
    router: axum::Router,
    /// The door that is open. Held over opening another, which only the task that keeps the configuration does.
    open: Mutex<Option<(Place, Door)>>,
    served: watch::Sender<Option<Served>>,
}

impl WorkerApi {
    pub(crate) fn new(host: Option<Arc<dyn ApiHost>>, intake: Intake) -> Self {
        let rules = Arc::new(ArcSwapOption::empty());
        let router = router::router(intake, Arc::clone(&rules));
        let served = watch::Sender::new(None);
        Self { inner: Arc::new(Inner { host, rules, router, open: Mutex::new(None), served }) }
    }

    /// Follows where it is served.
    pub(crate) fn served(&self) -> watch::Receiver<Option<Served>> {
        self.inner.served.subscribe()
    }

    /// Whether it is as a configuration wants it.
    pub(crate) async fn is_as(&self, configuration: &Configuration) -> bool {
        let wanted = wanted(configuration);
        let open = self.inner.open.lock().await;
        wanted.is_ok_and(|wanted| open.as_ref().map(|(place, _)| place) == wanted.as_ref())
    }

    /// Opens what a configuration asks for. Nothing changes for callers until [`WorkerApi::settle`], but that a door which
    /// stands in the way is closed.
    ///
    /// # Errors
    /// Why it cannot be had; then everything is as it was.
    pub(crate) async fn prepare(&self, configuration: &Configuration) -> Result<Change, AckError> {
        let Some(place) = wanted(configuration)? else { return Ok(Change::Close) };
        if let Some(path) = configuration.worker_api.as_ref().and_then(|api| api.token_file.as_ref()) {
            caller::read_token(Path::new(path)).await.map_err(|problem| AckError {
                error_type: "TokenFileUnusable".to_owned(),
                message: format!(
                    "worker_api.token_file: {path} {problem}; write a token of 32 to 512 characters there, readable by the \
                     agent alone"
                ),
            })?;
        }
        let mut open = self.inner.open.lock().await;
        if open.as_ref().is_some_and(|(at, _)| *at == place) {
            return Ok(Change::Keep);
        }
        let in_the_way = open
            .as_ref()
            .is_some_and(|(at, _)| at.listen.port() == place.listen.port() && at.listen.port() != 0);
        let closed = if in_the_way { open.take().map(|(at, _)| at) } else { None };
        match self.open(&place, closed.is_some()).await {
            Ok(door) => Ok(Change::Open(Box::new(Opened { place, door, closed }))),
            Err(error) => {
                if let Some(closed) = closed {
                    *open = self.reopen(closed).await;
                }
                Err(error)
            }
        }
    }

    /// Puts a change in force.
    pub(crate) async fn settle(&self, change: Change, configuration: &Configuration) {
        let rules = configuration.worker_api.clone().map(|settings| Rules {
            settings,
            max_request: configuration
                .constraints
                .max_request_bytes
                .map_or(MAX_REQUEST, |most| most.min(MAX_REQUEST)),
        });
        self.inner.rules.store(rules.map(Arc::new));
        match change {
            Change::Keep => {}
            Change::Close => {
                if let Some((place, _)) = self.inner.open.lock().await.take() {
                    tracing::info!(address = %place.listen, "Worker API closed");
                }
                self.inner.served.send_if_modified(|served| served.take().is_some());
            }
            Change::Open(opened) => {
                let Opened { place, door, closed: _ } = *opened;
                tracing::info!(address = %place.listen, url = door.base_url, "Worker API served");
                self.inner.served.send_replace(Some(Served {
                    api: WorkerApiCapability { base_url: door.base_url.clone() },
                    tls: TlsCapability {
                        trust_material_status: Some("ok".to_owned()),
                        worker_api_server_cert_pem: Some(door.certificate_pem.clone()),
                    },
                }));
                *self.inner.open.lock().await = Some((place, door));
            }
        }
    }

    /// Takes a change back.
    pub(crate) async fn take_back(&self, change: Change) {
        match change {
            Change::Keep | Change::Close => {}
            Change::Open(opened) => {
                let Opened { place: _, door, closed } = *opened;
                drop(door);
                if let Some(closed) = closed {
                    let mut open = self.inner.open.lock().await;
                    *open = self.reopen(closed).await;
                }
            }
        }
    }

    async fn reopen(&self, place: Place) -> Option<(Place, Door)> {
        match self.open(&place, true).await {
            Ok(door) => Some((place, door)),
            Err(error) => {
                tracing::error!(
                    error = error.message,
                    "the Worker API is not served any more; it is tried again"
                );
                None
            }
        }
    }

    /// Opens a door; waits for a port that this agent itself has just given up.
    async fn open(&self, place: &Place, patient: bool) -> Result<Door, AckError> {
        let fail = |message: String| AckError { error_type: "WorkerApiUnavailable".to_owned(), message };
        let Some(host) = &self.inner.host else {
            return Err(fail("worker_api: this agent serves none; take it out of the NodeConfig".to_owned()));
        };
        let give_up = Instant::now() + PORT_FREE;
        loop {
            match host.open(place.listen, place.url.as_ref(), self.inner.router.clone()).await {
                Ok(door) => return Ok(door),
                Err(error)
                    if patient && error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up =>
                {
                    tokio::time::sleep(PORT_RETRY).await;
                }
                Err(error) => {
                    return Err(fail(format!(
                        "worker_api.listen: {} cannot be listened on ({error}); choose another with spec.workerApi.listen",
                        place.listen
                    )));
                }
            }
        }
    }
}

/// Where a configuration wants the Worker API.
fn wanted(configuration: &Configuration) -> Result<Option<Place>, AckError> {
    let Some(settings) = &configuration.worker_api else { return Ok(None) };
    let wrong = |field: &str, value: &str, form: &str| AckError {
        error_type: "InvalidValue".to_owned(),
        message: format!("{field}: `{value}` is not {form}; correct spec.workerApi of the NodeConfig"),
    };
    let listen = settings.listen.parse();
    let listen = listen.map_err(|_| wrong("worker_api.listen", &settings.listen, "ADDRESS:PORT"))?;
    let url = configuration.orchestrator.endpoints.worker_api_target_url.as_deref();
    let url = url.map(|text| {
        let url = url::Url::parse(text).ok().filter(|url| url.scheme() == "https" && url.has_host());
        url.ok_or_else(|| wrong("orchestrator.endpoints.worker_api_target_url", text, "https://HOST[:PORT]"))
    });
    Ok(Some(Place { listen, url: url.transpose()? }))
}

/// Whether a time has come.
fn is_over(at: Option<Timestamp>, now: Timestamp) -> bool {
    at.is_some_and(|at| at <= now)
}
