//! The network between an agent and the controller: it loses, delays, doubles and reorders.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_agent::{ClientError, ControllerClient, InputStream, Session};
use windlass_controller::dispatch::Dispatch;
use windlass_controller::error::ApiError;
use windlass_crds::protocol::{
    Bootstrap, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck, HeartbeatRequest, HeartbeatResponse,
    RegisterRequest, ReportRequest, ReportResponse,
};
use windlass_store::NodeRow;

use super::controller::Controller;

/// When virtual time begins: the same second as the agents' clocks.
pub(crate) const EPOCH_MILLIS: u64 = 1_767_225_600_000;

/// The network of a simulation.
pub(crate) struct Network {
    pub(crate) controller: Controller,
    began: Instant,
    state: Mutex<State>,
    /// Told whenever the controller may have something new to say.
    pub(crate) news: Notify,
}

struct State {
    rng: StdRng,
    /// How bad it is, from 0 to 1.
    trouble: f64,
    /// Nodes that reach nobody until then.
    cut: Vec<Option<Instant>>,
    trace: Vec<String>,
}

/// What happens to one call.
struct Fate {
    there: Duration,
    back: Duration,
    lost: bool,
    answer_lost: bool,
    again: Option<Duration>,
}

impl Network {
    pub(crate) fn new(controller: Controller, seed: u64, nodes: usize) -> Arc<Self> {
        Arc::new(Self {
            controller,
            began: Instant::now(),
            state: Mutex::new(State {
                rng: StdRng::seed_from_u64(seed ^ 0x6e65_7477),
                trouble: 1.0,
                cut: vec![None; nodes],
                trace: Vec::new(),
            }),
            news: Notify::new(),
        })
    }

    pub(crate) fn now_millis(&self) -> u64 {
        EPOCH_MILLIS + u64::try_from(self.began.elapsed().as_millis()).expect("a simulation is short")
    }

    /// Notes what happened, with its time.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let at = self.began.elapsed();
        self.state().trace.push(format!("{:>9.3} {}", at.as_secs_f64(), text.as_ref()));
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }

    /// No more faults.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.trouble = 0.0;
        state.cut.fill(None);
    }

    /// A node reaches nobody for this long.
    pub(crate) fn cut(&self, node: usize, how_long: Duration) {
        self.state().cut[node] = Some(Instant::now() + how_long);
    }

    pub(crate) fn something_new(&self) {
        self.news.notify_waiters();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, node: usize) -> Fate {
        let mut state = self.state();
        let cut = state.cut[node].is_some_and(|until| until > Instant::now());
        let State { rng, trouble, .. } = &mut *state;
        let trouble = *trouble;
        let mut delay = || {
            let slow = rng.random_bool(0.1 * trouble);
            Duration::from_millis(rng.random_range(0..if slow { 4_000 } else { 30 }))
        };
        let (there, back, again) = (delay(), delay(), delay() * 3);
        Fate {
            there,
            back,
            lost: rng.random_bool(0.06 * trouble) || cut,
            answer_lost: rng.random_bool(0.06 * trouble),
            again: rng.random_bool(0.06 * trouble).then_some(again),
        }
    }
}

/// One node's way to the controller.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) network: Arc<Network>,
    pub(crate) node: usize,
    pub(crate) name: String,
}

fn unreachable(why: &str) -> ClientError {
    ClientError::Unreachable { url: "https://controller".into(), source: why.to_owned().into() }
}

fn refused(error: &ApiError) -> ClientError {
    let problem = error.problem();
    ClientError::Refused {
        status: problem.status,
        code: problem.code,
        detail: problem.detail.unwrap_or_default(),
    }
}

impl Link {
    /// One call over the network.
    async fn call<Q, T, F, Fut>(&self, what: &'static str, request: &Q, handle: F) -> Result<T, ClientError>
    where
        Q: Clone + Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(Dispatch, NodeRow, Q) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let fate = self.network.fate(self.node);
        tokio::time::sleep(fate.there).await;
        if fate.lost {
            self.network.note(format!("{} {what}: request lost", self.name));
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(unreachable("the request is lost"));
        }
        let answer = self.handle(what, request.clone(), handle.clone());
        if let Some(later) = fate.again {
            // The same request once more, later, with nobody to hear the answer.
            let (link, request) = (self.clone(), request.clone());
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                drop(link.handle(what, request, handle));
            });
        }
        if fate.answer_lost {
            self.network.note(format!("{} {what}: answer lost", self.name));
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(unreachable("the answer is lost"));
        }
        tokio::time::sleep(fate.back).await;
        answer
    }

    /// The controller's side of a call.
    fn handle<Q, T, F, Fut>(&self, what: &'static str, request: Q, handle: F) -> Result<T, ClientError>
    where
        Q: Send + 'static,
        T: Send + 'static,
        F: FnOnce(Dispatch, NodeRow, Q) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let name = self.name.clone();
        let answer = self.network.controller.ask(self.network.now_millis(), |running, store| async move {
            let node = store.get_node(&name).await?;
            let node = node.ok_or_else(|| {
                ApiError::new(windlass_controller::error::Code::Unauthenticated, "register first")
            })?;
            handle(running.dispatch, node, request).await
        });
        self.network.something_new();
        match answer {
            None => Err(unreachable("the controller is down")),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                self.network.note(format!("{} {what}: refused: {error}", self.name));
                Err(refused(&error))
            }
        }
    }
}

#[async_trait]
impl ControllerClient for Link {
    async fn register(&self, request: &RegisterRequest) -> Result<Bootstrap, ClientError> {
        let fate = self.network.fate(self.node);
        tokio::time::sleep(fate.there).await;
        if fate.lost {
            return Err(unreachable("the request is lost"));
        }
        let request = request.clone();
        let answer = self.network.controller.ask(self.network.now_millis(), |running, _| async move {
            running.dispatch.register(request).await
        });
        self.network.something_new();
        tokio::time::sleep(fate.back).await;
        if fate.answer_lost {
            return Err(unreachable("the answer is lost"));
        }
        match answer {
            None => Err(unreachable("the controller is down")),
            Some(Ok((bootstrap, _))) => Ok(bootstrap),
            Some(Err(error)) => Err(refused(&error)),
        }
    }

    async fn configuration(
        &self,
        _: &Session,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<Option<Value>, ClientError> {
        let found = self
            .call("configuration", &after, |dispatch, node, after| async move {
                dispatch.configuration(&node.name, after.unwrap_or(0), Duration::ZERO).await
            })
            .await?;
        if found.is_none() {
            tokio::time::sleep(wait).await;
        }
        Ok(found.map(|found| serde_json::to_value(found).expect("a configuration is plain data")))
    }

    async fn acknowledge(&self, _: &Session, ack: &ConfigAck) -> Result<(), ClientError> {
        self.call(
            "acknowledge",
            ack,
            |dispatch, node, ack| async move { dispatch.acknowledge(&node, ack).await },
        )
        .await
    }

    async fn capability(&self, _: &Session, report: &CapabilityReport) -> Result<(), ClientError> {
        self.call("capability", report, |dispatch, node, report| async move {
            dispatch.capability(&node, report).await
        })
        .await
    }

    async fn claim(&self, _: &Session, request: &ClaimRequest) -> Result<ClaimResponse, ClientError> {
        let deadline = Instant::now() + Duration::from_secs(request.wait_seconds.into());
        loop {
            // Enabled before the look, so that nothing falls between the two.
            let mut news = pin!(self.network.news.notified());
            news.as_mut().enable();
            let answer = self
                .call("claim", request, |dispatch, node, request| async move {
                    dispatch.claim_once(&node.name, &request).await
                })
                .await?;
            if !answer.assignments.is_empty() || !answer.orders.is_empty() || Instant::now() >= deadline {
                for assignment in &answer.assignments {
                    self.network.note(format!("{} claimed {}", self.name, assignment.attempt));
                }
                return Ok(answer);
            }
            // A pause, so that a busy network does not make every claim look again at once.
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Cancel-safe: both only wait.
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep(Duration::from_secs(3)) => {}
            }
        }
    }

    async fn heartbeat(
        &self,
        _: &Session,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, ClientError> {
        self.call("heartbeat", request, |dispatch, node, request| async move {
            dispatch.heartbeat(&node, request).await
        })
        .await
    }

    async fn report(&self, _: &Session, request: &ReportRequest) -> Result<ReportResponse, ClientError> {
        self.call("report", request, |dispatch, node, request| async move {
            dispatch.report(&node, request).await
        })
        .await
    }

    async fn input(&self, _: &Session, _: &str) -> Result<InputStream, ClientError> {
        Err(unreachable("no job of the simulation has inputs"))
    }
}
