//! Unpacking that several wait for: begun by the first, ended early when the last has left.
//!
//! ```text
//!  Images::ensure ─► Works::join ─► Work ◄─ news (lines, the end) ── task ─► a turn ─► a thread that unpacks
//!        └─ each waiter holds the Work; dropping the last one ends the task and stops the thread
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::{Held, Trouble};

/// What is unpacked at one time, and uncompressed for that: each is a reader and a writer, and more would take the disk from jobs.
const AT_ONCE: usize = 4;

/// All unpacking that goes on.
#[derive(Debug)]
pub(super) struct Works {
    turns: Semaphore,
    /// By the image's id, or by its archive where that must be uncompressed first. Locked for a look or a change alone.
    running: Mutex<HashMap<String, Weak<Work>>>,
}

/// The unpacking of one image.
#[derive(Debug)]
pub(super) struct Work {
    news: watch::Receiver<News>,
    _stopper: Stopper,
}

/// What is told of it.
#[derive(Debug, Clone, Default)]
struct News {
    line: Option<String>,
    done: Option<Result<Arc<Held>, Trouble>>,
}

/// Tells the thread that works that nobody waits any more.
#[derive(Debug, Default)]
struct Stopper(Arc<AtomicBool>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells all who wait what is done.
pub(super) struct Teller(watch::Sender<News>);

impl Teller {
    pub(super) fn line(&self, line: String) {
        self.0.send_modify(|news| news.line = Some(line));
    }
}

impl Works {
    pub(super) fn new() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), running: Mutex::default() }
    }

    /// Waits for a turn. Cancel-safe.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("nobody closes it")
    }

    /// Joins the unpacking of an image, or begins it: `unpack` is called on a thread of its own once there is a turn, and
    /// `after` once all have been told.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        unpack: impl FnOnce(&Teller, &AtomicBool) -> Result<Held, Trouble> + Send + 'static,
        after: impl FnOnce() + Send + 'static,
    ) -> Arc<Work> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, work| work.strong_count() > 0);
        let going = running.get(name).and_then(Weak::upgrade);
        if let Some(work) = going.filter(|work| work.news.borrow().done.is_none()) {
            return work;
        }
        let (sender, news) = watch::channel(News::default());
        let stopper = Stopper::default();
        let stop = Arc::clone(&stopper.0);
        let works = Arc::clone(self);
        tokio::spawn(async move {
            let teller = Teller(sender);
            // Cancel-safe: a turn that was not taken goes to the next, and the other only looks.
            let turn = tokio::select! {
                biased;
                () = teller.0.closed() => return,
                turn = works.turn() => turn,
            };
            let work = move || {
                let done = unpack(&teller, &stop).map(Arc::new);
                teller.0.send_modify(|news| news.done = Some(done));
                // The image is held by those who were told alone.
                drop(teller);
                after();
            };
            // A panic drops the teller, by which those who wait notice it.
            let _ended = tokio::task::spawn_blocking(work).await;
            drop(turn);
        });
        let work = Arc::new(Work { news, _stopper: stopper });
        running.insert(name.to_owned(), Arc::downgrade(&work));
        work
    }
}

impl Work {
    /// Waits for the end, and hands on what is told until then. Cancel-safe.
    pub(super) async fn ended(&self, progress: impl Fn(String)) -> Result<Held, Trouble> {
        let mut news = self.news.clone();
        loop {
            let News { line, done } = news.borrow_and_update().clone();
            if let Some(done) = done {
                return done.map(|held| held.again());
            }
            if let Some(line) = line {
                progress(line);
            }
            if news.changed().await.is_err() && news.borrow().done.is_none() {
                return Err(Trouble::Stopped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::image::{Account, ImageConfig, SystemImage};

    fn image(id: &str) -> Held {
        let account = Account { uid: 1, gid: 1, passwd: None, group: None };
        let (dir, config) = (id.into(), ImageConfig::default());
        let programs = Vec::new();
        Held::of_others(SystemImage { id: id.to_owned(), dir, config, account, programs })
    }

    /// Unpacking that goes on until it is let go, or nobody waits.
    fn begin(works: &Arc<Works>, id: &'static str) -> (Arc<Work>, mpsc::Sender<()>, mpsc::Receiver<bool>) {
        let (let_go, held) = mpsc::channel();
        let (tell, ended) = mpsc::channel();
        let unpack = move |teller: &Teller, stop: &AtomicBool| {
            teller.line(format!("unpacking {id}"));
            while held.try_recv().is_err() && !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let stopped = stop.load(Ordering::Relaxed);
            // The test may be over.
            let _unheard = tell.send(stopped);
            if stopped { Err(Trouble::Stopped) } else { Ok(image(id)) }
        };
        (works.join(id, unpack, || {}), let_go, ended)
    }

    fn never(_: &Teller, _: &AtomicBool) -> Result<Held, Trouble> {
        panic!("it goes on already")
    }

    #[tokio::test]
    async fn one_image_is_unpacked_once_while_others_are_too() {
        let works = Arc::new(Works::new());
        let (slow, let_go, _) = begin(&works, "slow");
        let joined = works.join("slow", never, || {});
        let (quick, let_quick_go, _) = begin(&works, "quick");
        let_quick_go.send(()).unwrap();
        assert_eq!(quick.ended(|_| {}).await.unwrap().id, "quick");
        // Who leaves ends it for nobody else.
        drop(slow);
        let_go.send(()).unwrap();
        assert_eq!(joined.ended(|_| {}).await.unwrap().id, "slow");
    }

    #[tokio::test]
    async fn it_ends_when_the_last_one_leaves_and_is_begun_anew_for_the_next() {
        let works = Arc::new(Works::new());
        let (one, _hold, ended) = begin(&works, "a");
        let other = works.join("a", never, || {});
        let (seen, told) = mpsc::channel();
        let waiting = tokio::spawn(async move { one.ended(|line| drop(seen.send(line))).await });
        let told = tokio::task::spawn_blocking(move || told.recv()).await.unwrap();
        assert_eq!(told.unwrap(), "unpacking a");
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert!(ended.try_recv().is_err(), "somebody waits");
        drop(other);
        assert!(tokio::task::spawn_blocking(move || ended.recv()).await.unwrap().unwrap());
        let (again, let_go, _) = begin(&works, "a");
        let_go.send(()).unwrap();
        assert!(again.ended(|_| {}).await.is_ok());
    }

    #[tokio::test]
    async fn so_many_go_on_at_a_time_and_who_waits_for_a_turn_can_leave() {
        let works = Arc::new(Works::new());
        let mut first: Vec<_> = ["a", "b", "c", "d"].map(|id| begin(&works, id)).into();
        for (work, ..) in &first {
            let mut news = work.news.clone();
            news.wait_for(|news| news.line.is_some()).await.unwrap();
        }
        let left = works.join("left", never, || {});
        let (next, let_go, _) = begin(&works, "next");
        drop(left);
        let_go.send(()).unwrap();
        assert!(next.news.borrow().line.is_none(), "it has no turn yet");
        drop(first.pop());
        assert_eq!(next.ended(|_| {}).await.unwrap().id, "next");
    }
}
