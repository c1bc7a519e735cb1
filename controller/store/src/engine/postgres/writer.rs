//! The writer of PostgreSQL: of all controllers' writers one works at a time, each on a group of operations.
//!
//! # Flow
//! ```text
//!  group ─► connect ─► BEGIN, writers' lock, versions so far ─► operations ─► version, NOTIFY, COMMIT ─► wake-ups, answers
//!              ▲                      │ connection lost, deadlock: nothing has happened      │ connection lost: unknown
//!              └──── pause ◄──────────┘                                                      └► all are `Unavailable`
//! ```
//! The lock is one of PostgreSQL's advisory locks and ends with the transaction, so versions and ids are committed in the
//! order in which they are drawn, and what an operation has read stays true until it commits. See `docs/adr/0004`.
//!
//! Operations of a group first run without savepoints, merged where they can be. Where one fails after it has written, or
//! merged ones fail, everything is taken back and the group runs again with one savepoint each: that is rare, and savepoints
//! cost a round trip each.
//!
//! # Guarantees
//! Whatever fails before `COMMIT` is sent has not happened, and is tried again for a few seconds. What fails in `COMMIT`
//! may have happened and is never tried again: its callers are told [`Error::Unavailable`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::error::{self, Effect, effect};
use super::readers::Readers;
use super::session::{self, Purpose};
use super::wake::{self, Name};
use crate::engine::conn::{Conn, Place};
use crate::engine::writer::{Operation, Run, Tx, merge, run_together};
use crate::transfer::Restored;
use crate::{Change, Error};

/// How many operations one commit serves. Above 64 savepoints PostgreSQL keeps them where every reader has to look.
const GROUP: usize = 60;

/// How long operations wait for a server that is away, or for the other writers, before their callers are told.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one attempt may take, with every statement in it: a server that has stopped answering is given up.
const ATTEMPT: Duration = Duration::from_secs(20);

/// The pauses between attempts begin with this and double up to [`LONGEST_PAUSE`], each with up to as much again by chance.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Plans are made anew when so many versions were drawn since as were before, but not for fewer than this: then tables
/// have grown so much that another plan may be right.
const GROWTH: i64 = 256;
/// And after this time, because others write too.
const PLANS_LAST: Duration = Duration::from_secs(60);

/// Opens a transaction as the only writer. The versions are read after the lock is held, in a statement of their own, which
/// sees what the writer before has committed.
const BEGIN: &str = "BEGIN; \
    SELECT pg_advisory_xact_lock(1464421956, 'counters'::REGCLASS::OID::INT); \
    SELECT last_value, (SELECT coalesce(max(id), 0) FROM lanes) FROM resource_versions";

/// The writer's own part.
pub(super) struct Writer {
    pub(super) options: PgConnectOptions,
    pub(super) server: Arc<str>,
    pub(super) name: Name,
    pub(super) wake_ups: broadcast::Sender<Change>,
    /// Their connections may be as dead as the writer's was, or the only ones that there are.
    pub(super) readers: Arc<Readers>,
    /// How the database came to be.
    pub(super) restored: Option<Restored>,
}

/// How an attempt has ended that has not committed.
enum Ended {
    /// Nothing has happened. It may help to try again.
    Again(Error),
    /// Nothing has happened. An operation has failed after it had written: each must be kept apart.
    Apart,
    /// Nobody knows.
    Unknown(Error),
}

/// How operations of a group are kept apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Together,
    Apart,
}

/// A connection and what its plans were made for.
struct Session {
    tx: Tx,
    planned_at: Instant,
    planned_for: i64,
}

impl Writer {
    /// Serves the queue until every sender is gone, then closes the connection.
    pub(super) async fn serve(self, mut queue: mpsc::Receiver<Box<dyn Operation>>) -> Result<(), Error> {
        let mut session = None;
        let mut away_since = None;
        let mut group = Vec::with_capacity(GROUP);
        while queue.recv_many(&mut group, GROUP).await > 0 {
            self.commit(&mut session, &mut away_since, std::mem::take(&mut group)).await;
        }
        match session {
            Some(Session { tx, .. }) => tx.conn.close().await,
            None => Ok(()),
        }
    }

    /// Runs a group until it is committed or given up, answers all of it, and sends the wake-ups.
    async fn commit(
        &self,
        session: &mut Option<Session>,
        away_since: &mut Option<Instant>,
        mut group: Vec<Box<dyn Operation>>,
    ) {
        let mut keep = Keep::Together;
        let mut pause = PAUSE;
        let began = Instant::now();
        let failure = loop {
            let mut failures = Vec::with_capacity(group.len());
            let attempt = self.attempt(session, &mut group, &mut failures, keep);
            let ended = match tokio::time::timeout(ATTEMPT, attempt).await {
                Ok(Ok(changes)) => {
                    *away_since = None;
                    // Before the answers, so that whoever has one need not wonder whether others have heard of it yet.
                    for change in changes {
                        // An error means that nobody listens just now.
                        self.wake_ups.send(change).ok();
                    }
                    for (operation, failure) in group.into_iter().zip(failures) {
                        operation.answer(failure.as_ref());
                    }
                    return;
                }
                Ok(Err(ended)) => ended,
                Err(_) => Ended::Unknown(Error::Unavailable { operation: "commit", source: None }),
            };
            match ended {
                Ended::Apart => keep = Keep::Apart,
                Ended::Unknown(error) => {
                    *session = None;
                    break error;
                }
                Ended::Again(error) => {
                    match effect(&error) {
                        Effect::Lost => {
                            *session = None;
                            away_since.get_or_insert(began);
                        }
                        Effect::Conflict | Effect::Statement | Effect::Answer => {}
                    }
                    // A server that has been away for long is asked once for every group.
                    let waiting_since = away_since.unwrap_or(began);
                    if waiting_since.elapsed() > PATIENCE {
                        break error;
                    }
                    tracing::debug!(kind = error.kind(), "a group of writes will be tried again");
                    tokio::time::sleep(pause + pause.mul_f64(chance())).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        };
        let failure = error::meanwhile("commit", failure);
        tracing::warn!(
            kind = failure.kind(),
            error = std::error::Error::source(&failure).map(tracing::field::display),
            operations = group.len(),
            "a group of writes was given up"
        );
        for operation in group {
            operation.answer(Some(&failure));
        }
    }

    async fn attempt(
        &self,
        session: &mut Option<Session>,
        group: &mut [Box<dyn Operation>],
        failures: &mut Vec<Option<Error>>,
        keep: Keep,
    ) -> Result<HashSet<Change>, Ended> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.connect().await.map_err(Ended::Again)?),
        };
        let tx = &mut session.tx;
        tx.conn.begin_operation("begin");
        if let Err(error) = begin(tx).await {
            return Err(take_back(tx, error, Ended::Again).await);
        }
        let mut changes = HashSet::new();
        let together = match keep {
            Keep::Together => merge(group),
            Keep::Apart => (0..group.len()).map(|number| number..number + 1).collect(),
        };
        for range in together {
            let operations = &mut group[range];
            if keep == Keep::Apart {
                savepoint(tx, "SAVEPOINT operation").await?;
            }
            let result = run_together(tx, operations, Run::Repeatable).await;
            let wrote = tx.conn.wrote();
            match result {
                Ok(()) => {
                    changes.extend(tx.take_changes());
                    failures.resize(failures.len() + operations.len(), None);
                    continue;
                }
                Err(error) => match effect(&error) {
                    Effect::Answer if !wrote && operations.len() == 1 => failures.push(Some(error)),
                    Effect::Answer | Effect::Statement if keep == Keep::Together => {
                        return Err(take_back(tx, error, |_| Ended::Apart).await);
                    }
                    Effect::Answer | Effect::Statement => {
                        savepoint(tx, "ROLLBACK TO operation").await?;
                        tx.caches.rolled_back();
                        failures.push(Some(error));
                    }
                    Effect::Conflict => return Err(take_back(tx, error, Ended::Again).await),
                    Effect::Lost => return Err(Ended::Again(error)),
                },
            }
            tx.take_changes().for_each(drop);
        }
        self.write_down(tx, &changes).await?;
        session.plan_anew().await;
        Ok(changes)
    }

    async fn connect(&self) -> Result<Session, Error> {
        self.readers.shed();
        let mut connection = session::connect(&self.options, &self.server, Purpose::Write).await?;
        session::require_primary(&mut connection, &self.server).await?;
        let conn = Conn::postgres(connection, Place::Server(Arc::clone(&self.server)));
        Ok(Session { tx: Tx::new(conn, 0, self.restored), planned_at: Instant::now(), planned_for: 0 })
    }

    /// Commits, and tells the other controllers, in one message.
    async fn write_down(&self, tx: &mut Tx, changes: &HashSet<Change>) -> Result<(), Ended> {
        tx.conn.begin_operation("commit");
        // The first statement fails where the transaction has failed before: COMMIT alone would not say so.
        let mut sql = match tx.drawn_version() {
            Some(version) => format!("SELECT setval('resource_versions', {version}); "),
            None => "SELECT 1; ".to_owned(),
        };
        if !changes.is_empty() {
            sql.push_str(&wake::notify(&self.name, changes));
        }
        sql.push_str("COMMIT");
        match tx.conn.script(sql).await {
            Ok(_) => {
                tx.committed();
                Ok(())
            }
            Err(error) => match effect(&error) {
                Effect::Lost => Err(Ended::Unknown(error)),
                Effect::Answer | Effect::Statement | Effect::Conflict => {
                    Err(take_back(tx, error, Ended::Again).await)
                }
            },
        }
    }
}

impl Session {
    /// Has the server forget its plans, where tables may have grown out of them.
    async fn plan_anew(&mut self) {
        let version = self.tx.version();
        if version - self.planned_for < self.planned_for.max(GROWTH) && self.planned_at.elapsed() < PLANS_LAST
        {
            return;
        }
        (self.planned_for, self.planned_at) = (version, Instant::now());
        self.tx.conn.begin_operation("plan");
        if let Err(error) = self.tx.conn.script("DISCARD PLANS".to_owned()).await {
            tracing::debug!(kind = error.kind(), "the next statement will find out what is wrong");
        }
    }
}

async fn begin(tx: &mut Tx) -> Result<(), Error> {
    let rows = tx.conn.script(BEGIN.to_owned()).await?;
    let Some(row) = rows.last() else {
        let row = "resource_versions".to_owned();
        return Err(Error::Corrupt { table: "resource_versions", column: "last_value", row });
    };
    let mut cells = row.cells("resource_versions");
    tx.resume(cells.int("last_value")?);
    tx.caches.lanes_go_to(cells.int("coalesce")?);
    Ok(())
}

async fn savepoint(tx: &mut Tx, sql: &str) -> Result<(), Ended> {
    tx.conn.begin_operation("savepoint");
    match tx.conn.script(sql.to_owned()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(take_back(tx, error, Ended::Again).await),
    }
}

/// Rolls back. Versions that were drawn may be drawn again by somebody else, so nothing is known of jobs any more.
async fn take_back(tx: &mut Tx, error: Error, ended: impl FnOnce(Error) -> Ended) -> Ended {
    tx.take_changes().for_each(drop);
    tx.caches.forget_uncommitted();
    if effect(&error) == Effect::Lost {
        return Ended::Again(error);
    }
    tx.conn.begin_operation("rollback");
    match tx.conn.script("ROLLBACK".to_owned()).await {
        Ok(_) => ended(error),
        Err(lost) => Ended::Again(lost),
    }
}

/// A number between 0 and 1, to keep writers from trying in step.
fn chance() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Every new state is keyed by chance.
    let drawn = RandomState::new().hash_one(0);
    f64::from(u32::try_from(drawn >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}
