//! The listener: one connection on which a controller hears of the others, and on which it holds the lead.
//!
//! # Flow
//! ```text
//!  connect ─► LISTEN ─► `Change::Any` ─► notifications ──────────────► wake-ups
//!     ▲                                  every few seconds: alive? lead?
//!     └── a wake-up that anything may have changed, every second ◄── connection lost, the lead with it
//! ```
//!
//! # Guarantees
//! Whoever waits for a change is woken at the latest [`POLL`] after it, also while there is no connection. The lead is held
//! by a lock of this session, so the server gives it to another one when the session ends in any way; the term grows with
//! every change, under the writers' lock, and fenced writes compare it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::sync::{broadcast, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::session::{self, Purpose};
use super::wake::{self, Name};
use crate::Change;

/// How often those who wait look by themselves while nobody would wake them.
const POLL: Duration = Duration::from_secs(1);

/// How often the connection is tried, and the lead if another one has it.
const BEAT: Duration = Duration::from_secs(2);

/// How long the server may take for an answer to that.
const ANSWER: Duration = Duration::from_secs(5);

/// Wake-ups that say that anything may have changed are sent no more often than this.
const CALM: Duration = Duration::from_millis(100);

/// Takes the lead where nobody has it.
const TRY_LEAD: &str = "SELECT pg_try_advisory_lock(1464421957, 'leadership'::REGCLASS::OID::INT) AS got";

/// Begins a new term, as a writer among the others.
const NEW_TERM: &str = "BEGIN; \
    SELECT pg_advisory_xact_lock(1464421956, 'counters'::REGCLASS::OID::INT); \
    UPDATE leadership SET term = term + 1 WHERE role = 'housekeeping' RETURNING term; \
    COMMIT";

/// The listener's own part.
pub(super) struct Listener {
    pub(super) options: PgConnectOptions,
    pub(super) server: Arc<str>,
    pub(super) name: Name,
    pub(super) wake_ups: broadcast::Sender<Change>,
    /// The term of the lead; 0 while another controller has it.
    pub(super) term: Arc<AtomicI64>,
}

impl Listener {
    /// Listens until `stop` is dropped.
    pub(super) async fn serve(self, mut stop: oneshot::Receiver<()>) {
        let mut was_away = false;
        loop {
            tokio::select! {
                // Cancel-safe: the connection goes with the future, and the server notices.
                lost = self.listen() => {
                    self.term.store(0, Ordering::Release);
                    if !was_away {
                        let error = crate::error::chain(&lost);
                        tracing::warn!(server = %self.server, error, "not listening to other controllers; looking every second");
                    }
                    was_away = true;
                }
                // Cancel-safe: it fires once.
                _ = &mut stop => {
                    self.term.store(0, Ordering::Release);
                    return;
                }
            }
            self.wake(Change::Any);
            tokio::select! {
                // Cancel-safe: nothing is held.
                () = tokio::time::sleep(POLL) => {}
                // Cancel-safe: it fires once.
                _ = &mut stop => return,
            }
        }
    }

    fn wake(&self, change: Change) {
        // An error means that nobody listens just now.
        self.wake_ups.send(change).ok();
    }

    /// Listens until something goes wrong.
    async fn listen(&self) -> sqlx::Error {
        match self.try_listen().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_listen(&self) -> Result<std::convert::Infallible, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ANSWER)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection, _| Box::pin(session::set_up(connection, Purpose::Listen)))
            .connect_lazy_with(session::options(&self.options, Purpose::Listen));
        let mut listener = PgListener::connect_with(&pool).await?;
        // A connection that is made anew behind our back has lost the lock and notifications.
        listener.eager_reconnect(false);
        listener.listen(wake::CHANNEL).await?;
        tracing::info!(server = %self.server, "listening to other controllers");
        // What happened before.
        self.wake(Change::Any);
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut any_at: Option<Instant> = None;
        loop {
            let calm = any_at.unwrap_or_else(Instant::now);
            tokio::select! {
                // Cancel-safe: a message is read as a whole or stays in the connection's buffer.
                notification = listener.try_recv() => match notification? {
                    Some(notification) => {
                        for change in wake::read(&self.name, notification.payload()) {
                            match change {
                                Change::Any => any_at = any_at.or(Some(Instant::now() + CALM)),
                                told => self.wake(told),
                            }
                        }
                    }
                    None => return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into())),
                },
                // Cancel-safe: nothing is held.
                () = tokio::time::sleep_until(calm), if any_at.is_some() => {
                    any_at = None;
                    self.wake(Change::Any);
                }
                // Cancel-safe: a tick that is lost with the future comes again.
                _ = beats.tick() => {
                    let timed_out = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
                    tokio::time::timeout(ANSWER, self.beat(&mut listener)).await.map_err(|_| timed_out())??;
                }
            }
        }
    }

    /// Sees whether the connection works, and takes the lead where nobody has it.
    async fn beat(&self, listener: &mut PgListener) -> Result<(), sqlx::Error> {
        if self.term.load(Ordering::Acquire) > 0 {
            return listener.execute(sqlx::raw_sql("SELECT 1")).await.map(drop);
        }
        let row = listener.fetch_one(sqlx::raw_sql(TRY_LEAD)).await?;
        if !row.try_get::<bool, _>("got")? {
            return Ok(());
        }
        let rows = listener.fetch_all(sqlx::raw_sql(AssertSqlSafe(NEW_TERM))).await?;
        let term: i64 = rows.last().ok_or(sqlx::Error::RowNotFound)?.try_get("term")?;
        self.term.store(term, Ordering::Release);
        tracing::info!(server = %self.server, leader.term = term, "this controller leads");
        Ok(())
    }
}
