//! Settings of the bridge.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use windlass_crds::{Span, names};

/// A label by which a fleet knows its nodes' objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLabel {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Why a label was refused.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// There is no `=` in it.
    #[error("write it as KEY=VALUE")]
    Form,
    /// Its key cannot be one.
    #[error("the key {0}")]
    Key(windlass_crds::names::Error),
    /// Its value cannot be one.
    #[error("the value {0}")]
    Value(windlass_crds::names::Error),
}

impl FromStr for NodeLabel {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').ok_or(LabelError::Form)?;
        names::check_label_key(key).map_err(LabelError::Key)?;
        names::check_label_value(value).map_err(LabelError::Value)?;
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for NodeLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// Settings of the bridge to Kubernetes. Their ids are apart from those of the settings that they stand beside.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubeArgs {
    /// Take jobs, nodes and templates from a Kubernetes cluster too, and show there what becomes of them.
    #[arg(id = "kube", long = "kube", env = "WINDLASS_KUBE")]
    pub enabled: bool,

    /// The kubeconfig file. Without it the service account of the pod, else `KUBECONFIG` or `~/.kube/config`.
    #[arg(
        id = "kube_config",
        long = "kube-config",
        env = "WINDLASS_KUBE_CONFIG",
        value_name = "FILE",
        requires = "kube"
    )]
    pub config: Option<PathBuf>,

    /// The context of the kubeconfig file, in place of its current one.
    #[arg(
        id = "kube_context",
        long = "kube-context",
        env = "WINDLASS_KUBE_CONTEXT",
        value_name = "NAME",
        requires = "kube"
    )]
    pub context: Option<String>,

    /// Only objects of this namespace; may be repeated. Without it those of all.
    #[arg(
        id = "kube_namespace",
        long = "kube-namespace",
        env = "WINDLASS_KUBE_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAME",
        requires = "kube"
    )]
    pub namespaces: Vec<String>,

    /// Only nodes whose objects carry this label; objects that are made for nodes get it. For clusters that several fleets share.
    #[arg(
        id = "kube_node_label",
        long = "kube-node-label",
        env = "WINDLASS_KUBE_NODE_LABEL",
        value_name = "KEY=VALUE",
        requires = "kube"
    )]
    pub node_label: Option<NodeLabel>,

    /// A name for the cluster, the same for ever. Without it the uid of its namespace `kube-system`, which the bridge must then
    /// be permitted to get.
    #[arg(
        id = "kube_cluster",
        long = "kube-cluster",
        env = "WINDLASS_KUBE_CLUSTER",
        value_name = "NAME",
        requires = "kube"
    )]
    pub cluster: Option<String>,

    /// Read Secrets and ConfigMaps that jobs of the cluster name, each in the job's own namespace. Needs the right to `get` them
    /// there.
    #[arg(id = "kube_secrets", long = "kube-secrets", env = "WINDLASS_KUBE_SECRETS", requires = "kube")]
    pub secrets: bool,

    /// The namespace of the Lease by which one of several controllers is chosen. Without it that of the pod or of the context.
    #[arg(
        id = "kube_lease_namespace",
        long = "kube-lease-namespace",
        env = "WINDLASS_KUBE_LEASE_NAMESPACE",
        value_name = "NAME",
        requires = "kube"
    )]
    pub lease_namespace: Option<String>,

    /// How long a controller leads without renewing its Lease.
    #[arg(
        id = "kube_lease",
        long = "kube-lease",
        env = "WINDLASS_KUBE_LEASE",
        default_value = "15s",
        value_name = "SPAN",
        requires = "kube"
    )]
    pub lease: Span,

    /// How long the deletion of an object waits for its job to be stopped on the node.
    #[arg(
        id = "kube_delete_wait",
        long = "kube-delete-wait",
        env = "WINDLASS_KUBE_DELETE_WAIT",
        default_value = "10m",
        value_name = "SPAN",
        requires = "kube"
    )]
    pub delete_wait: Span,
}

impl Default for KubeArgs {
    fn default() -> Self {
        Self {
            enabled: false,
            config: None,
            context: None,
            namespaces: Vec::new(),
            node_label: None,
            cluster: None,
            secrets: false,
            lease_namespace: None,
            lease: Span::from_secs(15),
            delete_wait: Span::from_secs(600),
        }
    }
}
