//! The cluster: how it is reached, which one it is, and what can go wrong with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// How long one request may take that is no watch.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// Why something about the cluster did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable configuration.
    #[error("no usable kubeconfig{}", file.as_ref().map(|file| format!(": {}", file.display())).unwrap_or_default())]
    Config {
        /// The file that was named.
        file: Option<PathBuf>,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A namespace is named that cannot be one.
    #[error("the namespace `{name}` {problem}")]
    Namespace {
        /// What was given.
        name: String,
        /// What is wrong with it.
        problem: windlass_crds::names::Error,
    },
    /// The lease is too short to be renewed in time.
    #[error("--kube-lease {lease} must be at least 3s and whole seconds")]
    Lease {
        /// What was given.
        lease: windlass_crds::Span,
    },
    /// A request failed.
    #[error("the API server did not {operation}")]
    Request {
        /// What was asked for.
        operation: &'static str,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A request took too long.
    #[error("the API server did not {operation} within {} s", REQUEST.as_secs())]
    TimedOut {
        /// What was asked for.
        operation: &'static str,
    },
    /// The store did not do something.
    #[error(transparent)]
    Store(#[from] windlass_store::Error),
    /// The controller's own part failed.
    #[error(transparent)]
    Api(#[from] crate::error::ApiError),
    /// Another controller leads now, or may.
    #[error("another controller may lead by now")]
    NotLeading,
    /// The address leads to another cluster than before.
    #[error("the API server is that of another cluster than {expected} now")]
    OtherCluster {
        /// The cluster that was worked with.
        expected: String,
    },
}

impl Error {
    /// The kind of error as a stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::Namespace { .. } => "namespace",
            Self::Lease { .. } => "lease",
            Self::Request { .. } if self.status() == Some(403) => "forbidden",
            Self::Request { .. } => "request",
            Self::TimedOut { .. } => "timeout",
            Self::Store(_) => "store",
            Self::Api(_) => "api",
            Self::NotLeading => "not_leading",
            Self::OtherCluster { .. } => "other_cluster",
        }
    }

    /// The HTTP status that the API server answered with.
    pub(super) fn status(&self) -> Option<u16> {
        self.answer().map(|status| status.code)
    }

    /// What the API server has answered in place of what was asked for.
    pub(super) fn answer(&self) -> Option<&kube::core::Status> {
        let Self::Request { source, .. } = self else { return None };
        match &**source {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the API server could not be reached, or did not answer.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Request { source, .. } => {
                matches!(&**source, kube::Error::HyperError(_) | kube::Error::Service(_))
            }
            Self::Config { .. }
            | Self::Namespace { .. }
            | Self::Lease { .. }
            | Self::Store(_)
            | Self::Api(_)
            | Self::NotLeading
            | Self::OtherCluster { .. } => false,
        }
    }

    /// Whether the API server says that this very object is not there, and not that it does not serve such objects.
    pub(super) fn is_object_missing(&self, name: &str) -> bool {
        self.answer().is_some_and(|status| {
            status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
        })
    }
}

/// How a cluster is reached.
#[derive(Clone, Debug)]
pub struct Connection(Config);

impl Connection {
    /// Reads the configuration: of the file that is named, else of the pod, else as kubectl does.
    ///
    /// # Errors
    /// [`Error::Config`] where there is none, or it cannot be used.
    pub async fn open(file: Option<&Path>, context: Option<&str>) -> Result<Self, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Config {
            file: file.map(Path::to_owned),
            source,
        };
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let mut config = match (file, context) {
            (Some(file), _) => {
                let read = Kubeconfig::read_from(file).map_err(|error| failed(error.into()))?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(|error| failed(error.into()))?
            }
            (None, Some(_)) => {
                Config::from_kubeconfig(&options).await.map_err(|error| failed(error.into()))?
            }
            (None, None) => Config::infer().await.map_err(|error| failed(error.into()))?,
        };
        config.connect_timeout = Some(REQUEST);
        Ok(Self(config))
    }

    /// A client of the cluster.
    ///
    /// # Errors
    /// [`Error::Config`] where certificates or credentials cannot be used.
    pub fn client(&self) -> Result<Client, Error> {
        Client::try_from(self.0.clone()).map_err(|error| Error::Config { file: None, source: error.into() })
    }

    /// The namespace of the pod or of the context.
    pub fn namespace(&self) -> &str {
        &self.0.default_namespace
    }
}

/// Names the cluster behind a client, whatever its address is.
pub(super) async fn identify(client: &Client) -> Result<String, Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let system = request("get namespace kube-system", namespaces.get("kube-system")).await?;
    Ok(system.metadata.uid.unwrap_or_default())
}

/// Waits for the answer of the API server, but not for long.
pub(super) async fn request<T>(
    operation: &'static str,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST, answer).await {
        Ok(answer) => answer.map_err(|source| Error::Request { operation, source: Box::new(source) }),
        Err(_) => Err(Error::TimedOut { operation }),
    }
}
