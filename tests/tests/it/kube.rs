//! Kubernetes: a real API server, the custom resources, and the bridge in the `windlass` program.

mod bridge;
mod clocks;
mod crds;
mod faults;
mod link;
mod nodes;
mod values;
pub(crate) mod world;
