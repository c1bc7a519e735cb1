//! The controller: it keeps what is declared, gives work to nodes, and tells what became of it.
//!
//! [`Controller::start`] wires everything together. The parts: [`rest`] (the API), [`dispatch`] (the agent protocol),
//! [`reconcile`] (loops that bring what is to what should be), [`kube`] (the same manifests through kubectl), over
//! [`windlass_store`] (state) and [`windlass_core`] (decisions).

pub mod args;
pub mod auth;
pub mod backup;
pub mod bodies;
pub mod clock;
pub mod connections;
pub mod dispatch;
pub mod error;
pub mod identity;
pub mod kube;
pub mod links;
pub mod metrics;
pub mod reconcile;
pub mod rest;
pub mod secrets;
pub mod server;
pub mod state;
mod submit;
pub mod telemetry;
pub mod tls;

pub use args::ControllerArgs;
pub use server::{Controller, Error};
