//! Registration: gets a session and keeps it fresh, as one task.
//!
//! A node that is known proves its key; a new one shows the secret of its join token too. Refusals that trying again
//! cannot mend end the agent with a message that says the fix. Anything else is tried again for ever.

use std::sync::Arc;
use std::time::Duration;

use windlass_crds::protocol::{Bootstrap, RegisterRequest};

use crate::backoff::Backoff;
use crate::capabilities::Capabilities;
use crate::client::{self, ControllerClient};
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::IdSource;
use crate::session::{Session, SessionHandle};

/// A token that lives shorter than this is renewed no more often than this.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(10);

/// Why the node cannot register, however often it tries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The join token is not accepted.
    #[error(
        "the controller refused the join token ({detail}); make a new one with `windlass join-token create`, for a node that was known before with `--replace {node}`"
    )]
    TokenRefused {
        /// The node.
        node: String,
        /// What the controller says.
        detail: String,
    },
    /// The key is not accepted, and there is no token.
    #[error(
        "the controller does not accept the key of node `{node}` ({detail}); join again with --join and a token of `windlass join-token create --replace {node}`"
    )]
    KeyRefused {
        /// The node.
        node: String,
        /// What the controller says.
        detail: String,
    },
    /// The name belongs to somebody else.
    #[error(
        "the name `{node}` belongs to another node ({detail}); choose another with --name, or take it over with a token of `windlass join-token create --replace {node}`"
    )]
    NameTaken {
        /// The node.
        node: String,
        /// What the controller says.
        detail: String,
    },
    /// The request is not accepted.
    #[error("the controller does not let node `{node}` register")]
    Refused {
        /// The node.
        node: String,
        /// The cause.
        #[source]
        source: client::Error,
    },
    /// What the registration yielded cannot be kept.
    #[error("the registration cannot be kept in the state folder")]
    Keep(#[source] crate::identity::Error),
    /// The controller's authorities cannot be used.
    #[error("the controller's authorities cannot be used")]
    Authorities(#[source] client::TlsError),
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TokenRefused { .. } => "token_refused",
            Self::KeyRefused { .. } => "key_refused",
            Self::NameTaken { .. } => "name_taken",
            Self::Refused { .. } => "registration_refused",
            Self::Keep(_) => "registration_not_kept",
            Self::Authorities(_) => "bad_authorities",
        }
    }
}

/// What is done with the answer to a registration before it is used: the real agent keeps the authorities on disk.
pub type OnRegistered = Box<dyn Fn(&Bootstrap) -> Result<(), Error> + Send + Sync>;

/// The join token's secret, if the agent was given one.
pub struct JoinSecret {
    /// The secret.
    pub secret: String,
    /// Whether the node has registered with it before. It then proves its key first, since a token may have run out.
    pub used: bool,
}

/// The registering task.
pub(crate) struct Registration {
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) identity: Arc<Identity>,
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) join: Option<JoinSecret>,
    pub(crate) on_registered: Option<OnRegistered>,
}

impl Registration {
    /// Registers, and again when two thirds of the token's life are over or somebody finds that it has ended.
    ///
    /// # Errors
    /// When the controller refuses for good.
    pub(crate) async fn run(mut self) -> Result<std::convert::Infallible, Error> {
        // Tokens that are refused as soon as they are issued must not make a storm of registrations.
        let mut renewals = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let bootstrap = self.register().await?;
            if let Some(on_registered) = &self.on_registered {
                on_registered(&bootstrap)?;
            }
            let session = Session {
                node_uid: bootstrap.node_uid,
                token: bootstrap.auth.node_jwt,
                issued_at: bootstrap.issued_at,
                expires_at: bootstrap.auth.expires_at,
                endpoints: bootstrap.orchestrator.endpoints,
            };
            let renewal = renewal_after(&session);
            tracing::info!(node.name = self.identity.name(), "registered with the controller");
            self.session.renewed(session);
            // Both arms may be dropped at any time: they hold nothing.
            tokio::select! {
                biased;
                () = self.session.missing() => tokio::time::sleep(renewals.next(&*self.ids)).await,
                () = tokio::time::sleep(renewal) => renewals.reset(),
            }
        }
    }

    async fn register(&mut self) -> Result<Bootstrap, Error> {
        let mut backoff = Backoff::for_controller();
        let mut trouble = None;
        loop {
            let psk = self.join.as_ref().filter(|join| !join.used).map(|join| join.secret.clone());
            let with_token = psk.is_some();
            let request = RegisterRequest {
                psk,
                capability: self.capabilities.report().await,
                proof: Some(self.identity.prove(self.capabilities.boot_id(), self.clock.now())),
            };
            let error = match self.client.register(&request).await {
                Ok(bootstrap) => {
                    if let Some(join) = &mut self.join {
                        join.used = true;
                    }
                    // The registration carried the report.
                    self.capabilities.delivered_with(&request.capability);
                    return Ok(bootstrap);
                }
                Err(error) => error,
            };
            // The node may have been deregistered since it joined; the token may let it in again.
            if error.is_unauthorized()
                && !with_token
                && let Some(join) = &mut self.join
            {
                join.used = false;
                self.refuse_token_next(&error);
                continue;
            }
            if let Some(refusal) = self.refusal(with_token, &error) {
                return Err(refusal);
            }
            if trouble != Some(error.kind()) {
                trouble = Some(error.kind());
                tracing::warn!(error = %crate::error_chain(&error), "cannot register; trying again");
            }
            tokio::time::sleep(backoff.next(&*self.ids)).await;
        }
    }

    fn refuse_token_next(&self, error: &client::Error) {
        tracing::info!(
            node.name = self.identity.name(),
            error = %error,
            "the node's key alone is not accepted; trying with the join token"
        );
    }

    /// The error to end with, where trying again cannot help.
    fn refusal(&self, with_token: bool, error: &client::Error) -> Option<Error> {
        let client::Error::Refused { status, detail, code } = error else { return None };
        let (node, detail) = (self.identity.name().to_owned(), detail.clone());
        match status {
            401 if with_token => Some(Error::TokenRefused { node, detail }),
            401 => Some(Error::KeyRefused { node, detail }),
            409 => Some(Error::NameTaken { node, detail }),
            400 | 403 | 413 | 422 => {
                let source = client::Error::Refused { status: *status, code: code.clone(), detail };
                Some(Error::Refused { node, source })
            }
            _ => None,
        }
    }
}

/// When to register again: after two thirds of the token's life, which is measured by the controller's clock alone.
fn renewal_after(session: &Session) -> Duration {
    let life = session.expires_at.duration_since(session.issued_at).unsigned_abs();
    (life * 2 / 3).max(SHORTEST_RENEWAL)
}
