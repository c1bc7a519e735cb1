//! The network between agents and the controller: it loses, delays, doubles and reorders, in either direction.
//!
//! ```text
//! agent ──► fate ──► travels ──► controller ──► oracle looks ──► travels ──► agent
//!             └──────► travels longer ──► controller (the same request once more)
//! ```
//!
//! A call goes on by itself once it was made, whether its caller lives or not: what was sent may arrive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_store::{Change, Store};

use super::controller::{Controller, Running};
use super::oracle::Oracle;
use super::plan::{Plan, STORM, Weather};

/// When virtual time begins: the same second as the agents' clocks.
pub(crate) const EPOCH_MILLIS: u64 = 1_767_225_600_000;

/// The network of a simulation, with what it connects.
pub(crate) struct Network {
    pub(crate) controller: Controller,
    pub(crate) oracle: Oracle,
    began: Instant,
    weather: Weather,
    /// Protects what changes; held for a few operations at a time.
    state: Mutex<State>,
}

struct State {
    links: Vec<LinkState>,
    /// Long polls that wait for news.
    polls: Vec<Poll>,
    /// How long the store takes, until then.
    slow_store: Option<Instant>,
    trace: Vec<String>,
    /// A running hash of all that happens, also of what is too much to be kept.
    digest: u64,
}

struct LinkState {
    rng: StdRng,
    cut: Option<Cut>,
}

/// A cut line.
#[derive(Clone, Copy)]
struct Cut {
    requests: bool,
    answers: bool,
    until: Instant,
}

struct Poll {
    number: u64,
    node: String,
    wants_work: bool,
    held: Vec<String>,
    news: Arc<Notify>,
}

/// What happens to one call.
pub(crate) struct Fate {
    pub(crate) there: Duration,
    pub(crate) back: Duration,
    pub(crate) request_lost: bool,
    pub(crate) answer_lost: bool,
    /// How long the caller waits for what does not come.
    pub(crate) patience: Duration,
    /// When the request arrives once more.
    pub(crate) again: Option<Duration>,
    /// Whether the controller notices that a caller has hung up.
    pub(crate) hang_up_is_noticed: bool,
}

impl Network {
    pub(crate) fn new(controller: Controller, plan: &Plan) -> Self {
        let links = (0..plan.nodes.len() as u64).map(|node| LinkState {
            rng: StdRng::seed_from_u64(plan.seed.wrapping_mul(0x9e37_79b9).wrapping_add(node)),
            cut: None,
        });
        let state = State {
            links: links.collect(),
            polls: Vec::new(),
            slow_store: None,
            trace: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
        };
        Self {
            controller,
            oracle: Oracle::new(plan),
            began: Instant::now(),
            weather: plan.weather,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn now_millis(&self) -> u64 {
        EPOCH_MILLIS + u64::try_from(self.elapsed().as_millis()).expect("a simulation is short")
    }

    /// Notes what happened, with its time.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let line = format!("{:>9.3} {}", self.elapsed().as_secs_f64(), text.as_ref());
        self.hash(&line);
        self.state().trace.push(line);
    }

    /// Lets the digest know of something that happens too often to be noted.
    pub(crate) fn hash(&self, text: &str) {
        let mut state = self.state();
        for byte in text.bytes() {
            state.digest = (state.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// All notes, and the digest of everything.
    pub(crate) fn take_trace(&self) -> (Vec<String>, u64) {
        let mut state = self.state();
        (std::mem::take(&mut state.trace), state.digest)
    }

    /// No more faults.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.slow_store = None;
        for link in &mut state.links {
            link.cut = None;
        }
    }

    /// Cuts a node's line, in one direction or both.
    pub(crate) fn cut(&self, node: usize, requests: bool, answers: bool, away: Duration) {
        self.state().links[node].cut = Some(Cut { requests, answers, until: Instant::now() + away });
    }

    /// The store takes its time for so long.
    pub(crate) fn slow_store(&self, away: Duration) {
        self.state().slow_store = Some(Instant::now() + away);
    }

    /// Whether what a node sends (or is sent) is lost just now.
    pub(crate) fn is_cut(&self, node: usize, answers: bool) -> bool {
        let cut = self.state().links[node].cut;
        cut.is_some_and(|cut| cut.until > Instant::now() && if answers { cut.answers } else { cut.requests })
    }

    pub(crate) fn fate(&self, node: usize) -> Fate {
        let good = self.elapsed() >= STORM;
        let weather = if good { Weather { lost: 0.0, slow: 0.0, again: 0.0 } } else { self.weather };
        let mut state = self.state();
        let slow_store = state.slow_store.is_some_and(|until| until > Instant::now());
        let rng = &mut state.links[node].rng;
        let mut delay = || {
            let limit = match rng.random::<f64>() {
                chance if chance < weather.slow / 10.0 => 20_000,
                chance if chance < weather.slow => 4_000,
                _ => 30,
            };
            Duration::from_millis(rng.random_range(0..limit))
        };
        let (there, mut back, again) = (delay(), delay(), delay() * 3);
        if slow_store {
            back += Duration::from_millis(rng.random_range(500..8_000));
        }
        Fate {
            there,
            back,
            request_lost: rng.random_bool(weather.lost),
            answer_lost: rng.random_bool(weather.lost),
            patience: Duration::from_millis(rng.random_range(100..8_000)),
            again: rng.random_bool(weather.again).then_some(again),
            hang_up_is_noticed: rng.random_bool(0.7),
        }
    }

    /// Asks the controller, if it is up; `heard` sees what it answers before anything else happens. Then the oracle
    /// looks at what has changed, and long polls hear of it.
    pub(crate) fn ask<T, F, Fut>(&self, ask: F, heard: impl FnOnce(&T)) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(Running, Store) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        let answer = self.controller.ask(self.now_millis(), ask);
        if let Some(answer) = &answer {
            heard(answer);
        }
        self.settle();
        answer
    }

    /// A request of an operator: the status and the body; `None` while the controller is down.
    pub(crate) fn ask_operator(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Option<(u16, Value)> {
        let answer = self.controller.request(self.now_millis(), method, path, key, body);
        self.settle();
        answer
    }

    /// Looks at what has changed in the store and passes it on.
    pub(crate) fn settle(&self) {
        let changes = self.controller.changes();
        if changes.is_empty() {
            return;
        }
        self.oracle.examine(self, &changes);
        // One after the other, so that what the polls do next does not depend on the order of the changes.
        let state = self.state();
        for poll in &state.polls {
            let concerns = |change: &Change| match change {
                Change::Queued => poll.wants_work,
                Change::Node { name } => *name == poll.node,
                Change::Freed { node } => poll.wants_work && *node == poll.node,
                Change::Job { uid } => poll.held.contains(uid),
                Change::Any => true,
                Change::Records { .. } | Change::Event { .. } | Change::Template { .. } => false,
            };
            if changes.iter().any(concerns) {
                poll.news.notify_one();
            }
        }
    }

    /// Everybody who waits looks again: the controller has come, gone, or is about to go.
    pub(crate) fn wake_polls(&self) {
        for poll in &self.state().polls {
            poll.news.notify_one();
        }
    }

    /// Waits for news from now on; [`Network::end_poll`] ends it.
    pub(crate) fn begin_poll(&self, node: &str, wants_work: bool, held: Vec<String>) -> (u64, Arc<Notify>) {
        let mut state = self.state();
        let number = state.polls.last().map_or(0, |poll| poll.number + 1);
        let news = Arc::new(Notify::new());
        state.polls.push(Poll { number, node: node.to_owned(), wants_work, held, news: Arc::clone(&news) });
        (number, news)
    }

    pub(crate) fn end_poll(&self, number: u64) {
        self.state().polls.retain(|poll| poll.number != number);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
