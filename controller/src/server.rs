//! A running controller: everything wired together, listening, and stopped in order.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use windlass_crds::Span;
use windlass_store::Store;

use crate::args::{self, ControllerArgs};
use crate::auth::NodeTokens;
use crate::clock::{Clock, IdSource, RandomIds, StoreClock, SystemClock};
use crate::connections::{self, Acceptor, Gate, Times, limit_http};
use crate::dispatch::{Dispatch, DispatchParts, Push, WorkerTokens};
use crate::error::ApiError;
use crate::kube::{self, ClusterValues};
use crate::links::ArtifactLinks;
use crate::metrics::Metrics;
use crate::reconcile::{self, LoopParts};
use crate::rest::{self, App, AppParts, NewJoinToken};
use crate::secrets::{self, Secrets};
use crate::state::{self, AdminToken, Opening, State};
use crate::tls;

/// Why a controller could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict each other.
    #[error(transparent)]
    Args(#[from] args::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The store could not be used.
    #[error("could not use the database")]
    Store(#[from] windlass_store::Error),
    /// The keys of secrets cannot be used.
    #[error("could not open the secrets")]
    Secrets(#[source] secrets::Error),
    /// There is no certificate.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The address cannot be listened on.
    #[error("could not listen on {address}; another program may have it (choose another with --listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Serving ended with an error.
    #[error("the server stopped")]
    Serve(#[source] io::Error),
    /// Connections cannot be limited as was asked.
    #[error(transparent)]
    Connections(#[from] connections::Error),
    /// The bridge to Kubernetes has no usable settings.
    #[error("could not bridge to Kubernetes")]
    Kube(#[from] kube::Error),
    /// Something of the API failed at start.
    #[error("could not start")]
    Start(#[source] ApiError),
}

impl Error {
    /// Whether the command line or the environment is wrong, and nothing else.
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::Args(_) | Self::Connections(_) => true,
            Self::State(_)
            | Self::Store(_)
            | Self::Secrets(_)
            | Self::Tls(_)
            | Self::Listen { .. }
            | Self::Serve(_)
            | Self::Kube(_)
            | Self::Start(_) => false,
        }
    }
}

/// How long agents have to send a last heartbeat once the controller stops: a round trip or two.
const NOTICE: Duration = Duration::from_millis(500);
/// How long a peer may take for the TLS handshake: three round trips over the worst line, and a slow device.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests may go on once the controller stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A running controller. Dropping it ends it at once; cancelling its token ends it in order.
pub struct Controller {
    app: App,
    ca_file: PathBuf,
    admin_token_file: PathBuf,
    address: SocketAddr,
    serving: JoinHandle<io::Result<()>>,
    tasks: JoinSet<()>,
    store: Store,
    grace: Duration,
}

impl Controller {
    /// Starts a controller; it is listening when this returns, and stops when `stop` fires.
    pub async fn start(args: ControllerArgs, stop: CancellationToken) -> Result<Self, Error> {
        let leases = args.leases()?;
        let limits = args.connections()?;
        let connection = match args.kube.enabled {
            true => Some(kube::connect(&args.kube).await?),
            false => None,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn IdSource> = Arc::new(RandomIds::from_os());
        let opening = Opening {
            folder: &args.state_dir,
            url: args.store_url()?,
            admin_token: match &args.admin_token_file {
                Some(file) => AdminToken::Given(file),
                None if args.new_admin_token => AdminToken::Replaced,
                None => AdminToken::Kept,
            },
            authority: args.authority.as_deref(),
            bodies: args.bodies.as_ref(),
            clock: &*clock,
            ids: &*ids,
        };
        let State { store, bodies, authority, admin_token_file } = state::open(opening).await?;
        let mut tasks = JoinSet::new();
        // From here on, all controllers of a database have one time.
        let clock: Arc<dyn Clock> = match StoreClock::of(&store, clock.clone()).await? {
            Some(of_server) => {
                tasks.spawn(of_server.clone().follow(stop.clone()));
                of_server
            }
            None => clock,
        };
        let metrics = Metrics::new();
        let keys = (args.key_place(), args.discard_unreadable_secrets);
        let secrets = Secrets::open(store.clone(), clock.clone(), ids.clone(), metrics.clone(), keys).await;
        let mut secrets = secrets.map_err(Error::Secrets)?;
        if let Some(connection) = connection.as_ref().filter(|_| args.kube.secrets) {
            let values = ClusterValues::new(connection.client()?, args.kube.cluster.clone());
            secrets = secrets.with_cluster(values);
        }
        let tokens = NodeTokens::new(&node_token_secret(&store, &*ids).await?);

        let listening = |source| Error::Listen { address: args.listen, source };
        let listener = TcpListener::bind(args.listen).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let outward = args::outward(address);
        let base_url = args.base_url(address, outward)?;
        tell_where(&base_url, address, args.advertise_url.is_some());
        let hostname =
            fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
        let hostname = hostname.filter(|name| windlass_crds::names::check_subdomain(name).is_ok());
        let tls = RustlsConfig::from_config(
            authority.server_config(&args.certificate_names(address, outward, hostname))?,
        );

        let dispatch = Dispatch::new(DispatchParts {
            store: store.clone(),
            bodies: bodies.clone(),
            secrets: secrets.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            tokens,
            worker_tokens: WorkerTokens::new(&authority.secret(), args.worker_token_life()?),
            leases,
            base_url: base_url.clone(),
            ca_pem: Some(authority.pem().to_owned()),
            stopping: stop.clone(),
        });
        let parts = LoopParts {
            dispatch: &dispatch,
            store: &store,
            bodies: &bodies,
            clock: &clock,
            metrics: &metrics,
            reserve_after: args.reserve_after.get(),
        };
        reconcile::start(&mut tasks, &stop, parts);
        let push = Push::over_https(dispatch.clone(), metrics.clone(), args.push_timeout.get());
        tasks.spawn(push.run(stop.clone()));
        if let Some(connection) = connection {
            let (store, bodies, clock, ids) = (store.clone(), bodies.clone(), clock.clone(), ids.clone());
            let parts = kube::Parts {
                store,
                bodies,
                clock,
                ids,
                secrets: secrets.clone(),
                connection,
                args: args.kube,
                troubled: AtomicBool::new(false),
            };
            tasks.spawn(kube::run(parts, stop.clone()));
        }
        let app: App = Arc::new(AppParts {
            store: store.clone(),
            bodies,
            dispatch,
            secrets,
            clock,
            ids,
            metrics: metrics.clone(),
            links: ArtifactLinks::new(&authority.secret()),
            base_url,
            ca_fingerprint: authority.fingerprint(),
            stopping: stop.clone(),
        });

        let handle = Handle::new();
        let guarded = Acceptor::new(Gate::new(limits, metrics), Times::DEFAULT);
        let acceptor = RustlsAcceptor::new(tls).handshake_timeout(HANDSHAKE).acceptor(guarded);
        let mut server =
            axum_server::from_tcp(listener).map_err(listening)?.acceptor(acceptor).handle(handle.clone());
        limit_http(server.http_builder());
        let service = rest::router(app.clone()).into_make_service();
        let serving = tokio::spawn(server.serve(service));
        tasks.spawn(async move {
            stop.cancelled().await;
            // Agents are told now; connections stay open for the heartbeats by which they get long leases.
            tokio::time::sleep(NOTICE).await;
            handle.graceful_shutdown(Some(DRAIN));
        });
        tracing::info!(url = %app.base_url, state.dir = %args.state_dir.display(), "controller is listening");
        let ca_file = authority.file().to_owned();
        Ok(Self { app, ca_file, admin_token_file, address, serving, tasks, store, grace: leases.grace })
    }

    /// The URL under which nodes and operators reach it.
    pub fn url(&self) -> &str {
        &self.app.base_url
    }

    /// The address that it listens on.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the certificate authority to trust.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// The file with an API token that may do everything; only its owner can read it, and may have taken it away.
    pub fn admin_token_file(&self) -> &Path {
        &self.admin_token_file
    }

    /// Makes a join token that works for `life` and `max_uses` nodes.
    pub async fn create_join_token(
        &self,
        description: &str,
        life: Duration,
        max_uses: Option<u32>,
    ) -> Result<String, ApiError> {
        let new = NewJoinToken {
            description: description.to_owned(),
            expires_in: Some(Span::from_millis(u64::try_from(life.as_millis()).unwrap_or(u64::MAX))),
            max_uses,
            replace_node: None,
        };
        rest::create_join_token(&self.app, new).await.map(|(token, _)| token)
    }

    /// Completes when the controller has stopped: requests are answered, and what nodes hold has a lease that
    /// outlasts a restart.
    pub async fn stopped(mut self) -> Result<(), Error> {
        let served = self.serving.await;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(error = %error, "a task panicked; this is a defect");
            }
        }
        let now = self.app.clock.now();
        let until =
            now.checked_add(jiff::SignedDuration::try_from(self.grace).unwrap_or(jiff::SignedDuration::MAX));
        let extended = self.store.extend_all_leases(now, until.unwrap_or(jiff::Timestamp::MAX)).await?;
        tracing::info!(leases.extended = extended, "controller stopped");
        drop(self.app);
        self.store.close().await?;
        match served {
            Ok(result) => result.map_err(Error::Serve),
            Err(error) => Err(Error::Serve(io::Error::other(error))),
        }
    }
}

/// Says which address nodes are given where nobody chose it, and whether they can have any use for it.
fn tell_where(base_url: &str, listening: SocketAddr, chosen: bool) {
    if chosen || !listening.ip().is_unspecified() {
        return;
    }
    let loopback = url::Url::parse(base_url).is_ok_and(|url| match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    });
    if loopback {
        tracing::warn!(
            url = base_url,
            "this host has no address that leads to others: nodes are given one that only this host can reach; say \
             --advertise-url https://HOST:PORT"
        );
    } else {
        tracing::info!(
            url = base_url,
            "nodes are given the address that leads from this host to others; --advertise-url chooses another"
        );
    }
}

/// The secret that node tokens are signed with; made once and kept in the store.
async fn node_token_secret(store: &Store, ids: &dyn IdSource) -> Result<Vec<u8>, Error> {
    Ok(store.put_setting_if_absent(state::NODE_TOKEN_SECRET, ids.secret().to_vec()).await?)
}
