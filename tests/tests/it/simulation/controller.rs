//! The controller of a simulation: the product over a store in memory, on a thread of its own.
//!
//! The simulation's thread waits for each call to finish, so that virtual time stands still meanwhile and the order of
//! calls is the simulation's alone.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use windlass_controller::auth::{NodeTokens, secret_hash};
use windlass_controller::bodies::Bodies;
use windlass_controller::clock::{Clock as _, ManualClock, RandomIds};
use windlass_controller::dispatch::{Dispatch, DispatchParts, LeaseSettings};
use windlass_controller::metrics::Metrics;
use windlass_controller::reconcile::Sweeper;
use windlass_controller::rest::{AppParts, router};
use windlass_store::{ApiTokenRow, JoinTokenRow, Store, StoreOptions, StoreUrl};

/// The secret that every agent joins with.
pub(crate) const JOIN_SECRET: &str = "join";
const OPERATOR: &str = "operator";

pub(crate) struct Controller {
    /// Taken when dropped: a runtime cannot be waited for from inside another.
    runtime: Option<Runtime>,
    pub(crate) clock: Arc<ManualClock>,
    store: Store,
    bodies: Bodies,
    ids: Arc<RandomIds>,
    /// `None` while the controller is down. Protects which run of the controller is asked.
    running: Mutex<Option<Running>>,
}

#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) dispatch: Dispatch,
    sweeper: Sweeper,
    router: Router,
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
        let now = clock.now();
        let store = runtime.block_on(async move {
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
        });
        let controller = Self {
            runtime: Some(runtime),
            clock,
            store,
            bodies: Bodies::memory(),
            ids: Arc::new(RandomIds::seeded(seed)),
            running: Mutex::new(None),
        };
        controller.start();
        controller
    }

    /// Comes up, as a new process over the same store.
    pub(crate) fn start(&self) {
        let (store, bodies) = (self.store.clone(), self.bodies.clone());
        let (clock, ids) = (self.clock.clone(), self.ids.clone());
        let running = on(self.runtime(), async move {
            let stopping = CancellationToken::new();
            let dispatch = Dispatch::new(DispatchParts {
                store: store.clone(),
                bodies: bodies.clone(),
                clock: clock.clone(),
                ids: ids.clone(),
                tokens: NodeTokens::new(b"simulation"),
                leases: LeaseSettings::default(),
                base_url: "https://controller".into(),
                ca_pem: None,
                stopping: stopping.clone(),
            });
            let sweeper = Sweeper::new(dispatch.clone(), store.clone(), bodies.clone(), clock.clone());
            let app = AppParts {
                store,
                bodies,
                dispatch: dispatch.clone(),
                clock,
                ids,
                metrics: Metrics::new(),
                base_url: "https://controller".into(),
                ca_fingerprint: String::new(),
                stopping,
            };
            Running { dispatch, sweeper, router: router(Arc::new(app)) }
        });
        *self.running() = Some(running);
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
        *self.running() = None;
    }

    /// Asks the controller, if it is up, and waits for its answer.
    pub(crate) fn ask<T, F, Fut>(&self, now_millis: u64, ask: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(Running, Store) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        self.clock.set_millis(now_millis);
        let running = self.running().clone()?;
        Some(on(self.runtime(), ask(running, self.store.clone())))
    }

    pub(crate) fn sweep(&self, now_millis: u64) {
        let swept = self.ask(now_millis, |running, _| async move { running.sweeper.sweep().await });
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
        body: &Value,
    ) -> Option<(u16, Value)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {OPERATOR}"))
            .body(Body::from(body.to_string()))
            .expect("a simulation's request is well-formed");
        self.ask(now_millis, |running, _| async move {
            let response = running.router.oneshot(request).await.expect("the router answers");
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body ends");
            (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
        })
    }

    /// Everything in the store about a job.
    pub(crate) fn inspect<T, F, Fut>(&self, look: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(Store, Bodies) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
    {
        on(self.runtime(), look(self.store.clone(), self.bodies.clone()))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is taken only when dropped")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
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

/// Runs a future on the controller's thread and blocks this one until it is done.
fn on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move { sender.send(future.await) });
    receiver.recv().expect("the controller's thread does not panic")
}
