//! A Kubernetes cluster, as some verbs speak to it.

use std::path::PathBuf;

use windlass_controller::kube::{Connection, Error};

use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// Where the cluster is.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct ClusterArgs {
    /// Reach the cluster by this kubeconfig file; without it by `KUBECONFIG` or `~/.kube/config`.
    #[arg(long, value_name = "FILE", env = "WINDLASS_KUBE_CONFIG", hide_env_values = true)]
    kube_config: Option<PathBuf>,

    /// Use this context of the kubeconfig file.
    #[arg(long, value_name = "NAME", env = "WINDLASS_KUBE_CONTEXT", hide_env_values = true)]
    kube_context: Option<String>,
}

impl ClusterArgs {
    /// How the cluster is reached.
    pub(crate) async fn open(&self) -> Result<Connection, Failure> {
        Ok(Connection::open(self.kube_config.as_deref(), self.kube_context.as_deref()).await?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            "config" => Exit::Usage,
            "forbidden" => Exit::Unauthorised,
            "timeout" => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Report::new(exit, error.to_string()).causes(&error).into()
    }
}
