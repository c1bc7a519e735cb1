//! What is declared and what goes over the wire.
//!
//! One definition serves YAML manifests, REST bodies and Kubernetes custom resources: [`NodeConfig`],
//! [`SandboxJob`] and [`JobTemplate`] of group `windlass.dev`, version `v1alpha1`, in camelCase, strict about
//! unknown fields. The agent protocol of [`protocol`] is snake_case and ignores what it does not know.
//!
//! This crate has no behaviour beyond reading, writing and describing these shapes, and no Kubernetes client.

pub mod conditions;
pub mod duration;
pub mod egress;
pub mod explain;
pub mod facts;
pub mod host_image;
pub mod image;
pub mod inference;
pub mod job_template;
pub mod manifest;
pub mod names;
pub mod node_config;
pub mod priority;
pub mod protocol;
pub mod quantity;
pub mod rollout;
pub mod sandbox_job;
pub mod schema;
pub mod secret;
pub mod service;

pub use duration::Span;
pub use egress::EgressRule;
pub use host_image::{HostImage, HostImageKind};
pub use image::ImageName;
pub use job_template::{JobTemplate, JobTemplateSpec, JobTemplateStatus};
pub use node_config::{NodeConfig, NodeConfigSpec, NodeConfigStatus};
pub use priority::Priority;
pub use quantity::{Bytes, Cpu};
pub use sandbox_job::{JobPhase, SandboxJob, SandboxJobSpec, SandboxJobStatus};
pub use secret::{ConfigMapUse, SecretUse};

/// The API group of every kind.
pub const GROUP: &str = "windlass.dev";
/// The `apiVersion` of every manifest.
pub const API_VERSION: &str = "windlass.dev/v1alpha1";
