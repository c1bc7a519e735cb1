//! Connections for lookups.
//!
//! # Guarantees
//! At most so many lookups run at once as was asked for; the rest wait their turn. Where the server has no connections
//! left, lookups share those that they have. A connection that a lookup was broken off on, or that was lost, is not used
//! again.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{self, Effect, effect};
use super::session::{self, Purpose};
use crate::Error;
use crate::engine::conn::{Conn, Place};
use crate::engine::writer::BoxFuture;

/// How long a lookup waits for a connection, and for a server that is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pauses between attempts begin with this and double up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The connections.
pub(super) struct Readers {
    options: PgConnectOptions,
    server: Arc<str>,
    /// A permit for each lookup that may run.
    turns: Semaphore,
    /// Protects the connections that nobody uses just now; held only to take or to give one.
    idle: Mutex<Vec<Conn>>,
    /// Somebody has given a connection back.
    returned: Notify,
}

impl fmt::Debug for Readers {
    /// Without the options, which hold the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new(options: PgConnectOptions, server: Arc<str>, at_once: u32) -> Self {
        Self {
            options,
            server,
            turns: Semaphore::new(at_once.max(1) as usize),
            idle: Mutex::default(),
            returned: Notify::new(),
        }
    }

    /// Runs a lookup; once more on another connection where it meets a dead one.
    pub(super) async fn read<T, F>(&self, operation: &'static str, body: F) -> Result<T, Error>
    where
        F: for<'t> FnOnce(&'t mut Conn) -> BoxFuture<'t, Result<T, Error>> + Clone,
    {
        let until = Instant::now() + PATIENCE;
        let unavailable = || Error::Unavailable { operation, source: None };
        let turn = timeout_at(until, self.turns.acquire()).await;
        let _turn = turn.ok().and_then(Result::ok).ok_or_else(unavailable)?;
        let mut pause = PAUSE;
        loop {
            let failure = match self.take(until).await {
                Ok(mut conn) => {
                    conn.begin_operation(operation);
                    let result = body.clone()(&mut conn).await;
                    match result {
                        Err(error) if effect(&error) == Effect::Lost => error,
                        result => {
                            self.give_back(conn);
                            return result;
                        }
                    }
                }
                Err(error) => error,
            };
            if Instant::now() >= until {
                return Err(error::meanwhile(operation, failure));
            }
            tracing::debug!(operation, kind = failure.kind(), "a lookup is tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Closes the connections that nobody uses: they may lead to a server that is no more, or be needed elsewhere.
    pub(super) fn shed(&self) {
        self.idle().clear();
    }

    async fn take(&self, until: Instant) -> Result<Conn, Error> {
        loop {
            if let Some(conn) = self.idle().pop() {
                return Ok(conn);
            }
            match session::connect(&self.options, &self.server, Purpose::Read).await {
                Ok(connection) => {
                    return Ok(Conn::postgres(connection, Place::Server(Arc::clone(&self.server))));
                }
                Err(full) if error::has_no_connections_left(&full) => {
                    timeout_at(until, self.returned.notified()).await.map_err(|_| full)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn give_back(&self, conn: Conn) {
        self.idle().push(conn);
        self.returned.notify_one();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Conn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
