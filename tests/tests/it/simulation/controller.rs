//! The controller of a simulation: the product over a store in memory, on a thread of its own.
//!
//! The simulation's thread waits for each call to finish, so that virtual time stands still meanwhile and the order of
//! calls is the simulation's alone.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::{Receiver, error::TryRecvError};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use windlass_controller::auth::{NodeTokens, secret_hash};
use windlass_controller::bodies::Bodies;
use windlass_controller::clock::{Clock as _, ManualClock, RandomIds};
use windlass_controller::dispatch::{Dispatch, DispatchParts, LeaseSettings, WorkerTokens};
use windlass_controller::links::ArtifactLinks;
use windlass_controller::metrics::Metrics;
use windlass_controller::reconcile::{Reservations, Sweeper};
use windlass_controller::rest::{AppParts, router};
use windlass_controller::secrets::{Keyring, Secrets};
use windlass_store::{ApiTokenRow, Change, JoinTokenRow, Store, StoreOptions, StoreUrl};

/// The secret that every agent joins with.
pub(crate) const JOIN_SECRET: &str = "join";
const OPERATOR: &str = "operator";
/// How long a job is passed over before room is kept for it.
pub(crate) const RESERVE_AFTER: Duration = Duration::from_secs(60);

pub(crate) struct Controller {
    /// Taken when dropped: a runtime cannot be waited for from inside another.
    runtime: Option<Runtime>,
    clock: Arc<ManualClock>,
    /// How far its wall clock is off, in milliseconds.
    off: AtomicI64,
    store: Store,
    bodies: Bodies,
    ids: Arc<RandomIds>,
    /// `None` while the controller is down. Protects which run of the controller is asked.
    running: Mutex<Option<Running>>,
    /// What the store has told since the last look.
    changes: Mutex<Receiver<Change>>,
}

#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) dispatch: Dispatch,
    sweeper: Sweeper,
    reservations: Reservations,
    router: Router,
    stopping: CancellationToken,
}

impl Controller {
    /// A controller that is up. Must be made outside of the simulation's runtime.
    pub(crate) fn new(seed: u64, wall_millis: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread can be made");
        let clock = Arc::new(ManualClock::at_millis(wall_millis));
        let store = runtime.block_on(prepared_store(clock.now()));
        let changes = Mutex::new(store.changes());
        let controller = Self {
            runtime: Some(runtime),
            clock,
            off: AtomicI64::new(0),
            store,
            bodies: Bodies::memory(),
            ids: Arc::new(RandomIds::seeded(seed)),
            running: Mutex::new(None),
            changes,
        };
        controller.start(wall_millis);
        controller
    }

    /// Comes up, as a new process over the same store.
    pub(crate) fn start(&self, now_millis: u64) {
        self.set_clock(now_millis);
        let (store, bodies) = (self.store.clone(), self.bodies.clone());
        let (clock, ids) = (self.clock.clone(), self.ids.clone());
        let running = on(self.runtime(), async move {
            let stopping = CancellationToken::new();
            let metrics = Metrics::new();
            let keys = Keyring::none();
            let secrets = Secrets::new(store.clone(), clock.clone(), ids.clone(), metrics.clone(), keys);
            let dispatch = Dispatch::new(DispatchParts {
                store: store.clone(),
                bodies: bodies.clone(),
                secrets: secrets.clone(),
                clock: clock.clone(),
                ids: ids.clone(),
                tokens: NodeTokens::new(b"simulation"),
                worker_tokens: WorkerTokens::new(b"simulation", jiff::SignedDuration::from_hours(24)),
                leases: LeaseSettings::default(),
                base_url: "https://controller".into(),
                ca_pem: None,
                stopping: stopping.clone(),
            });
            let sweeper =
                Sweeper::new(dispatch.clone(), store.clone(), bodies.clone(), clock.clone(), metrics.clone());
            let reservations =
                Reservations::new(dispatch.clone(), store.clone(), clock.clone(), RESERVE_AFTER);
            let app = AppParts {
                store,
                bodies,
                dispatch: dispatch.clone(),
                secrets,
                clock,
                ids,
                metrics,
                links: ArtifactLinks::new(b"simulation"),
                base_url: "https://controller".into(),
                ca_fingerprint: String::new(),
                stopping: stopping.clone(),
            };
            Running { dispatch, sweeper, reservations, router: router(Arc::new(app)), stopping }
        });
        *self.running() = Some(running);
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
        *self.running() = None;
    }

    /// Tells it to stop: long polls end, and heartbeats get long leases.
    pub(crate) fn begin_stop(&self) {
        if let Some(running) = &*self.running() {
            running.stopping.cancel();
        }
    }

    /// The end of a planned stop: what is held gets a lease that outlasts the absence.
    pub(crate) fn end_stop(&self, now_millis: u64) {
        let now = self.wall_at(now_millis);
        let until = now + LeaseSettings::default().grace;
        let extended =
            self.ask(now_millis, move |_, store| async move { store.extend_all_leases(now, until).await });
        if let Some(extended) = extended {
            extended.expect("the store works");
        }
        self.kill();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running().is_some()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.running().as_ref().is_none_or(|running| running.stopping.is_cancelled())
    }

    /// Moves the wall clock. No time passes.
    pub(crate) fn jump(&self, seconds: i64) {
        self.off.fetch_add(seconds * 1000, Ordering::SeqCst);
        self.clock.jump(SignedDuration::from_secs(seconds));
    }

    /// What its wall clock shows at a time of the simulation.
    pub(crate) fn wall_at(&self, now_millis: u64) -> Timestamp {
        let millis = i64::try_from(now_millis).expect("a time of this era") + self.off.load(Ordering::SeqCst);
        Timestamp::from_millisecond(millis).expect("a time of this era")
    }

    fn set_clock(&self, now_millis: u64) {
        let millis = self.wall_at(now_millis).as_millisecond();
        self.clock.set_millis(u64::try_from(millis).expect("a time of this era"));
    }

    /// Asks the controller, if it is up, and waits for its answer.
    pub(crate) fn ask<T, F, Fut>(&self, now_millis: u64, ask: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(Running, Store) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        self.set_clock(now_millis);
        let running = self.running().clone()?;
        Some(on(self.runtime(), ask(running, self.store.clone())))
    }

    /// One round of the sweeper, and of what keeps room for jobs that others pass over.
    pub(crate) fn sweep(&self, now_millis: u64) {
        let swept = self.ask(now_millis, |running, _| async move {
            running.sweeper.sweep().await?;
            running.reservations.reconcile().await
        });
        if let Some(swept) = swept {
            swept.expect("the store works");
        }
    }

    /// A request of an operator: the status and the body; `None` while the controller is down.
    pub(crate) fn request(
        &self,
        now_millis: u64,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Option<(u16, Value)> {
        let mut request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {OPERATOR}"));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request =
            request.body(Body::from(body.to_string())).expect("a simulation's request is well-formed");
        self.ask(now_millis, |running, _| async move {
            let response = running.router.oneshot(request).await.expect("the router answers");
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body ends");
            (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
        })
    }

    /// Looks into the store, whether the controller is up or not.
    pub(crate) fn inspect<T, F, Fut>(&self, look: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        on(self.runtime(), look(self.store.clone()))
    }

    /// How long it is until a delayed job becomes ready.
    pub(crate) fn next_ready_in(&self, now_millis: u64) -> Option<std::time::Duration> {
        let now = self.wall_at(now_millis);
        let next = self.ask(now_millis, move |_, store| async move { store.next_ready_at(now).await })?;
        next.expect("the store works").map(|at| at.duration_since(now).unsigned_abs())
    }

    /// What the store has told since the last look.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut receiver = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        loop {
            match receiver.try_recv() {
                Ok(change) => changes.push(change),
                Err(TryRecvError::Lagged(missed)) => panic!("{missed} changes were missed"),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return changes,
            }
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is taken only when dropped")
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn prepared_store(now: Timestamp) -> Store {
    let options = StoreOptions { url: StoreUrl::SqliteMemory, read_connections: 1 };
    let store = Store::open(options).await.expect("a store in memory opens");
    let join = JoinTokenRow {
        id: "join".into(),
        secret_hash: secret_hash(JOIN_SECRET),
        description: String::new(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        replaces: None,
        created_at: now,
        revoked_at: None,
    };
    store.create_join_token(now, join).await.expect("the token is new");
    let operator = ApiTokenRow {
        id: OPERATOR.into(),
        secret_hash: secret_hash(OPERATOR),
        name: OPERATOR.into(),
        role: "admin".into(),
        created_at: now,
        expires_at: None,
    };
    store.create_api_token(operator).await.expect("the token is new");
    store
}

/// Runs a future on the controller's thread and blocks this one until it is done.
fn on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move { sender.send(future.await) });
    receiver.recv().expect("the controller's thread does not panic")
}
