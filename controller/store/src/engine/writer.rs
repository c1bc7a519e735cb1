//! What every writer has in common: group commit.
//!
//! # Flow
//! Operations wait in a bounded queue. The writer takes all that wait, opens one transaction, runs each apart from the
//! others, commits once, and only then sends their wake-ups and answers all of them. While one group is being committed
//! the next one gathers, so that under load one flush to disk serves many callers and an idle store answers at once.
//! Operations of a kind that [can be merged](Merge) moreover share their statements, so that under load a round trip
//! serves many callers too. How each database does that is in `sqlite/writer.rs` and `postgres/writer.rs`.
//!
//! # Guarantees
//! An operation that fails takes back its own writes and nobody else's. An answer is sent after its commit is on disk.
//! When the engine gives up the whole transaction (a full disk), all operations of the group fail with that error and
//! none of them has happened.
//!
//! # Caveats
//! An operation runs to its end also when nobody waits for the answer any more.

use std::any::{Any, TypeId};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use tokio::sync::oneshot;

use super::caches::Caches;
use super::conn::Conn;
use super::postgres;
use crate::transfer::Restored;
use crate::{Change, Error};

/// A future that borrows and can move between threads.
pub(crate) type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// How many operations may wait for the writer before callers wait to hand in theirs.
pub(crate) const QUEUE: usize = 1024;

/// What an operation works on: the connection inside the transaction, and what goes with it.
pub(crate) struct Tx {
    pub(crate) conn: Conn,
    pub(crate) caches: Caches,
    /// How the database came to be, where it was restored from a backup.
    pub(crate) restored: Option<Restored>,
    changes: Vec<Change>,
    /// The last version that was drawn. It stays drawn when an operation is taken back.
    version: i64,
    /// The last version that is known to be on disk.
    committed_version: i64,
}

impl Tx {
    /// Begins with the version where the database has left off.
    pub(crate) fn new(conn: Conn, version: i64, restored: Option<Restored>) -> Self {
        let caches = Caches::default();
        Self { conn, caches, restored, changes: Vec::new(), version, committed_version: version }
    }

    /// Goes on where other writers have left off.
    pub(crate) fn resume(&mut self, version: i64) {
        self.version = version;
        self.committed_version = version;
    }

    /// Sends a wake-up after the commit.
    pub(crate) fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Takes the wake-ups that have gathered.
    pub(crate) fn take_changes(&mut self) -> impl Iterator<Item = Change> {
        self.changes.drain(..)
    }

    /// Draws a version that is higher than all before.
    pub(crate) fn draw_version(&mut self) -> i64 {
        self.draw_versions(1)
    }

    /// Draws `count` consecutive versions and yields the last.
    pub(crate) fn draw_versions(&mut self, count: usize) -> i64 {
        self.version += i64::try_from(count).expect("a batch fits into memory");
        self.version
    }

    /// The last version that was drawn.
    pub(crate) const fn version(&self) -> i64 {
        self.version
    }

    /// The last version that was drawn, where it has to be written down.
    pub(crate) fn drawn_version(&self) -> Option<i64> {
        (self.version != self.committed_version).then_some(self.version)
    }

    /// The version is on disk, with everything else.
    pub(crate) fn committed(&mut self) {
        self.committed_version = self.version;
        self.caches.committed();
    }
}

/// Whether an operation may have to run once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// What it does now counts.
    Once,
    /// What it does now may be taken back and done again.
    Repeatable,
}

/// Something for the writer to do.
pub(crate) trait Operation: Any + Send {
    /// Does it inside the transaction (or, for a lookup, just on the connection); keeps the result.
    fn run<'t>(&'t mut self, tx: &'t mut Tx, run: Run) -> BoxFuture<'t, Result<(), Error>>;

    /// Operations of the same kind can be done with the statements of one; how much of a batch this one is.
    fn kind(&self) -> Option<(TypeId, usize)> {
        None
    }

    /// Does this and others of its kind with the statements of one; each keeps its result. It may have to run once more.
    fn run_with<'t>(
        &'t mut self,
        tx: &'t mut Tx,
        others: &'t mut [Box<dyn Operation>],
    ) -> BoxFuture<'t, Result<(), Error>>;

    /// Answers the caller: the result, or `failure` in place of it.
    fn answer(self: Box<Self>, failure: Option<&Error>);
}

/// An operation made of a closure.
pub(crate) struct Queued<T, F> {
    name: &'static str,
    /// The term of the leader that it is an operation of.
    term: Option<i64>,
    body: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Queued<T, F>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Clone + Send + 'static,
{
    pub(crate) fn new(
        name: &'static str,
        term: Option<i64>,
        body: F,
    ) -> (Box<Self>, oneshot::Receiver<Result<T, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { name, term, body: Some(body), result: None, reply }), answer)
    }
}

impl<T, F> Operation for Queued<T, F>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, Error>> + Clone + Send + 'static,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx, run: Run) -> BoxFuture<'t, Result<(), Error>> {
        Box::pin(async move {
            tx.conn.begin_operation(self.name);
            if let Some(term) = self.term {
                postgres::check_term(tx, term).await?;
            }
            let body = match run {
                Run::Once => self.body.take(),
                Run::Repeatable => self.body.clone(),
            };
            let body = body.expect("nothing runs after it has run for good");
            self.result = Some(body(tx).await?);
            Ok(())
        })
    }

    fn run_with<'t>(
        &'t mut self,
        tx: &'t mut Tx,
        others: &'t mut [Box<dyn Operation>],
    ) -> BoxFuture<'t, Result<(), Error>> {
        assert!(others.is_empty(), "{} has no kind", self.name);
        self.run(tx, Run::Repeatable)
    }

    fn answer(self: Box<Self>, failure: Option<&Error>) {
        let answer = match failure {
            Some(error) => Err(error.clone()),
            None => Ok(self.result.expect("an operation without failure has its result")),
        };
        reply(self.name, self.reply, answer);
    }
}

fn reply<T>(operation: &str, to: oneshot::Sender<Result<T, Error>>, answer: Result<T, Error>) {
    if to.send(answer).is_err() {
        tracing::debug!(operation, "nobody waits for the answer any more");
    }
}

/// What each of those is answered that are done together.
pub(crate) type Answers<T> = Vec<Result<T, Error>>;

/// What can be done for many callers with the statements of one.
pub(crate) trait Merge: Clone + Send + 'static {
    /// What a caller is answered.
    type Answer: Send + 'static;

    /// Names the operation.
    const NAME: &'static str;

    /// How much of a batch this is: rows that are written, more or less.
    fn weight(&self) -> usize;

    /// Does all of them, with the effects and answers of one after the other in this order. One that fails by itself has
    /// written nothing; an error of the whole takes back everything, and each is then tried alone.
    fn run<'t>(tx: &'t mut Tx, parts: Vec<Self>) -> BoxFuture<'t, Result<Answers<Self::Answer>, Error>>;
}

/// An operation that others of its kind can be merged with.
pub(crate) struct Mergeable<M: Merge> {
    part: Option<M>,
    result: Option<Result<M::Answer, Error>>,
    reply: oneshot::Sender<Result<M::Answer, Error>>,
}

impl<M: Merge> Mergeable<M> {
    pub(crate) fn new(part: M) -> (Box<Self>, oneshot::Receiver<Result<M::Answer, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { part: Some(part), result: None, reply }), answer)
    }
}

/// Does one alone.
pub(crate) async fn run_alone<M: Merge>(tx: &mut Tx, part: M) -> Result<M::Answer, Error> {
    let mut answers = M::run(tx, vec![part]).await?;
    answers.pop().expect("each part has its answer")
}

impl<M: Merge> Operation for Mergeable<M> {
    fn run<'t>(&'t mut self, tx: &'t mut Tx, run: Run) -> BoxFuture<'t, Result<(), Error>> {
        Box::pin(async move {
            tx.conn.begin_operation(M::NAME);
            let part = match run {
                Run::Once => self.part.take(),
                Run::Repeatable => self.part.clone(),
            };
            let part = part.expect("nothing runs after it has run for good");
            self.result = Some(Ok(run_alone(tx, part).await?));
            Ok(())
        })
    }

    fn kind(&self) -> Option<(TypeId, usize)> {
        self.part.as_ref().map(|part| (TypeId::of::<M>(), part.weight()))
    }

    fn run_with<'t>(
        &'t mut self,
        tx: &'t mut Tx,
        others: &'t mut [Box<dyn Operation>],
    ) -> BoxFuture<'t, Result<(), Error>> {
        Box::pin(async move {
            tx.conn.begin_operation(M::NAME);
            let mut all = vec![self];
            for other in others {
                let other: &mut dyn Any = other.as_mut();
                all.push(other.downcast_mut().expect("it is of the same kind"));
            }
            let answers = M::run(tx, all.iter().filter_map(|one| one.part.clone()).collect()).await?;
            for (one, answer) in all.into_iter().zip(answers) {
                one.result = Some(answer);
            }
            Ok(())
        })
    }

    fn answer(self: Box<Self>, failure: Option<&Error>) {
        let answer = match failure {
            Some(error) => Err(error.clone()),
            None => self.result.expect("an operation without failure has its result"),
        };
        reply(M::NAME, self.reply, answer);
    }
}

/// How much is merged at most: beyond this a statement takes as long as a round trip saves.
const BATCH: usize = 512;

/// Puts operations of a kind one after the other, and yields which of them are done together. Callers that wait at the same
/// time cannot tell in which order they are served; what belongs to no kind comes last, so that an attempt that has reported
/// is not ended for its silence.
pub(crate) fn merge(group: &mut [Box<dyn Operation>]) -> Vec<Range<usize>> {
    let mut kinds: Vec<TypeId> = Vec::new();
    group.sort_by_cached_key(|operation| {
        let Some((kind, _)) = operation.kind() else { return usize::MAX };
        let known = kinds.iter().position(|known| *known == kind);
        known.unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        })
    });
    let mut ranges: Vec<Range<usize>> = Vec::with_capacity(group.len());
    let (mut last, mut weight) = (None, 0);
    for (number, operation) in group.iter().enumerate() {
        let (kind, more) = operation.kind().unzip();
        weight += more.unwrap_or_default();
        match ranges.last_mut() {
            Some(range) if kind.is_some() && kind == last && weight <= BATCH => range.end = number + 1,
            Some(_) | None => {
                ranges.push(number..number + 1);
                weight = more.unwrap_or_default();
            }
        }
        last = kind;
    }
    ranges
}

/// Does operations together that [`merge`] has put together.
pub(crate) async fn run_together(
    tx: &mut Tx,
    operations: &mut [Box<dyn Operation>],
    run: Run,
) -> Result<(), Error> {
    match operations.split_first_mut() {
        Some((only, [])) => only.run(tx, run).await,
        Some((first, others)) => first.run_with(tx, others).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Part<const KIND: usize>(usize);

    impl<const KIND: usize> Merge for Part<KIND> {
        type Answer = ();

        const NAME: &'static str = "part";

        fn weight(&self) -> usize {
            self.0
        }

        fn run<'t>(_: &'t mut Tx, parts: Vec<Self>) -> BoxFuture<'t, Result<Answers<()>, Error>> {
            Box::pin(async move { Ok(parts.into_iter().map(|_| Ok(())).collect()) })
        }
    }

    fn part<const KIND: usize>(weight: usize) -> Box<dyn Operation> {
        Mergeable::new(Part::<KIND>(weight)).0
    }

    fn closure() -> Box<dyn Operation> {
        Queued::new("closure", None, |_| Box::pin(async { Ok(()) })).0
    }

    #[test]
    fn only_what_is_of_a_kind_is_merged_and_only_up_to_a_batch() {
        let mut group =
            vec![part::<1>(BATCH), closure(), part::<2>(1), part::<1>(1), part::<2>(BATCH - 1), closure()];
        let together = merge(&mut group);
        assert_eq!(together, [0..1, 1..2, 2..4, 4..5, 5..6]);
        let weights: Vec<_> = group.iter().map(|one| one.kind().map(|(_, weight)| weight)).collect();
        assert_eq!(weights, [Some(BATCH), Some(1), Some(1), Some(BATCH - 1), None, None]);
    }
}
