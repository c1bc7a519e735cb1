//! The node agent: registers the node, keeps its configuration, claims attempts and runs their steps in the sandbox.
//!
//! It talks to the controller only, by HTTPS calls that go out from the node, and survives the loss of the controller,
//! of itself and of the host: see [`agent`] for the data flow, `ledger`, `outbox` and `executor` for what is on disk
//! and what that guarantees.
//!
//! All time, chance, durable files, the network and the sandbox come in through [`AgentParts`], so that a simulation
//! can run many agents in virtual time.

#![forbid(unsafe_code)]

pub mod agent;
mod args;
mod artifacts;
mod backoff;
mod capabilities;
mod claim;
mod client;
mod clock;
mod config_sync;
mod executor;
mod facts;
mod fs;
mod heartbeat;
mod held;
mod identity;
mod ids;
mod inference;
mod keeper_thread;
mod ledger;
mod mask;
mod memory;
mod names;
mod outbox;
pub mod plugins;
mod readiness;
mod recovery;
mod registration;
mod session;
mod start;
mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod token;
mod vault;
mod watch;
mod worker_api;
mod workspaces;

pub use agent::{Agent, AgentParts, Error, KeeperHost, Settings, Stop};
pub use args::AgentArgs;
pub use capabilities::{GpuProbe, HostFacts, HostProbe, SystemHost};
pub use client::{
    ArtifactBody, Authority, BuildError, ControllerClient, Error as ClientError, HttpClient, InputStream,
    TlsError,
};
pub use clock::{Clock, SystemClock};
pub use config_sync::Error as ConfigurationError;
pub use executor::egress::Egress;
pub use fs::{AgentFs, DiskFs, Durable, Volume};
pub use heartbeat::Superseded;
pub use identity::{Enrolment, Error as IdentityError, Identity};
pub use ids::{IdSource, SystemIds};
pub use ledger::Error as LedgerError;
pub use outbox::{Backlog, Error as OutboxError};
pub use registration::{Error as RegistrationError, JoinSecret, OnRegistered};
pub use session::Session;
pub use start::{Error as StartError, RunningAgent};
pub use status::AgentStatus;
pub use token::{Error as TokenError, JoinToken};
pub use vault::{Error as NodeKeyError, NodeKey};
pub use windlass_sandbox::Visited;
pub use windlass_sandbox::engine::Engines;
pub use worker_api::{ApiHost, Door, TlsHost};
pub use workspaces::{Content, Home, HostWorkspaces, LeaseWriter, Left, Placement, StepSecrets, Workspaces};

/// Must be the first call of every program that runs an agent: before any thread, runtime, or use of the standard descriptors.
/// The agent starts its own program again as a supervisor of the sandbox, or to ask a library that might crash. If this process
/// was started so, it runs that and gives the code that `main` has to return; otherwise `None`.
#[must_use]
pub fn run_if_requested() -> Option<std::process::ExitCode> {
    windlass_sandbox::run_if_requested().or_else(capabilities::nvml::run_if_requested)
}

/// An error and its causes as one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
