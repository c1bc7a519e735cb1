//! One node's way to the controller: the agent's client on one side, the product's dispatch on the other.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windlass_agent::{ArtifactBody, ClientError, ControllerClient, InputStream, Session};
use windlass_controller::dispatch::Dispatch;
use windlass_controller::error::{ApiError, Code};
use windlass_crds::protocol::{
    ArtifactsLost, AttemptId, Bootstrap, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck,
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, ReportRequest, ReportResponse,
};
use windlass_store::NodeRow;

use super::network::Network;
use super::wire::Wire;

/// One node's way to the controller.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) network: Arc<Network>,
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) wire: Wire,
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
    /// One call over the network. `serve` is the controller's side of it.
    async fn call<Q, T, F, Fut>(&self, what: &'static str, request: &Q, serve: F) -> Result<T, ClientError>
    where
        Q: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(Self, Q) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<T, ClientError>> + Send + 'static,
    {
        let request = self.wire.request(request);
        let fate = self.network.fate(self.node);
        if let Some(later) = fate.again {
            // Nobody hears the answer.
            let (link, request, serve) = (self.clone(), request.clone(), serve.clone());
            tokio::spawn(async move {
                tokio::time::sleep(fate.there + later).await;
                link.network.note(format!("{} {what}: arrives once more", link.name));
                drop(serve(link, request).await);
            });
        }
        let (answer, heard) = oneshot::channel();
        let hung_up = CancellationToken::new();
        let noticed = fate.hang_up_is_noticed.then(|| hung_up.clone().drop_guard());
        let link = self.clone();
        tokio::spawn(async move {
            let travel = async {
                tokio::time::sleep(fate.there).await;
                if fate.request_lost || link.network.is_cut(link.node, false) {
                    link.network.note(format!("{} {what}: request lost", link.name));
                    tokio::time::sleep(fate.patience).await;
                    return Err(unreachable("the request is lost"));
                }
                let answer = serve(link.clone(), request).await;
                if let Err(ClientError::Refused { code, detail, .. }) = &answer {
                    link.network.note(format!("{} {what}: refused: {code}: {detail}", link.name));
                }
                tokio::time::sleep(fate.back).await;
                if fate.answer_lost || link.network.is_cut(link.node, true) {
                    link.network.note(format!("{} {what}: answer lost", link.name));
                    tokio::time::sleep(fate.patience).await;
                    return Err(unreachable("the answer is lost"));
                }
                answer
            };
            // Cancel-safe: a caller that is gone hears nothing more.
            tokio::select! {
                biased;
                () = hung_up.cancelled() => {}
                // Whoever asked may be gone.
                answered = travel => drop(answer.send(answered)),
            }
        });
        let answer = heard.await.unwrap_or_else(|_| Err(unreachable("the connection is gone")));
        drop(noticed);
        self.network.hash(&format!("{} {what} {}", self.name, answer.is_ok()));
        answer.map(|answer| self.wire.answer(answer))
    }

    /// The controller's side of a call that does not wait.
    fn serve<Q, T, F, Fut>(&self, request: Q, handle: F, heard: impl FnOnce(&T)) -> Result<T, ClientError>
    where
        Q: Send + 'static,
        T: Send + 'static,
        F: FnOnce(Dispatch, NodeRow, Q) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let name = self.name.clone();
        let ask = |running: super::controller::Running, store: windlass_store::Store| async move {
            let node = store.get_node(&name).await?;
            let node = node.ok_or_else(|| ApiError::new(Code::Unauthenticated, "register first"))?;
            handle(running.dispatch, node, request).await
        };
        let heard = |answer: &Result<T, ApiError>| {
            if let Ok(answer) = answer {
                heard(answer);
            }
        };
        match self.network.ask(ask, heard) {
            None => Err(unreachable("the controller is down")),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(refused(&error)),
        }
    }

    /// The controller's side of a claim: as the product's, but on the simulation's time.
    async fn serve_claim(self, request: ClaimRequest) -> Result<ClaimResponse, ClientError> {
        let received = Instant::now();
        let deadline = received + Duration::from_secs(request.wait_seconds.into());
        let held = request.held.iter().map(|attempt| attempt.job.clone()).collect();
        let (number, news) = self.network.begin_poll(&self.name, request.max > 0, held);
        let _end = EndPoll { network: Arc::clone(&self.network), number };
        loop {
            let handle = |dispatch: Dispatch, node: NodeRow, request: ClaimRequest| async move {
                dispatch.claim_once(&node.name, &request).await
            };
            let heard = |_: &ClaimResponse| self.network.oracle.served(&self.name, &request.boot_id);
            let mut answer = self.serve(request.clone(), handle, heard)?;
            for assignment in &mut answer.assignments {
                assignment.lease_seconds += received.elapsed().as_secs();
                self.network.note(format!("{} is given {}", self.name, assignment.attempt));
            }
            if !answer.assignments.is_empty() || !answer.orders.is_empty() {
                return Ok(answer);
            }
            if self.network.controller.is_stopping() {
                return Ok(ClaimResponse { stopping: true, ..answer });
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(answer);
            }
            let next_ready = self.network.controller.next_ready_in(self.network.now_millis());
            let wake_at = next_ready.map_or(deadline, |wait| deadline.min(now + wait));
            // Cancel-safe: both only wait.
            tokio::select! {
                biased;
                () = news.notified() => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }
}

/// Ends a long poll also where it is dropped.
struct EndPoll {
    network: Arc<Network>,
    number: u64,
}

impl Drop for EndPoll {
    fn drop(&mut self) {
        self.network.end_poll(self.number);
    }
}

#[async_trait]
impl ControllerClient for Link {
    async fn register(&self, request: &RegisterRequest) -> Result<Bootstrap, ClientError> {
        self.call("register", request, |link, request: RegisterRequest| async move {
            let agent = request.capability.agent.clone().unwrap_or_default();
            let ask = |running: super::controller::Running, _| async move {
                running.dispatch.register(request).await
            };
            let heard = |answer: &Result<(Bootstrap, bool), ApiError>| {
                if answer.is_ok() {
                    link.network.oracle.registered(&link.name, &agent.boot_id);
                }
            };
            match link.network.ask(ask, heard) {
                None => Err(unreachable("the controller is down")),
                Some(Ok((bootstrap, _))) => Ok(bootstrap),
                Some(Err(error)) => Err(refused(&error)),
            }
        })
        .await
    }

    async fn configuration(
        &self,
        _: &Session,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<Option<Value>, ClientError> {
        let found = self.call("configuration", &after, |link, after: Option<u64>| async move {
            let handle = |dispatch: Dispatch, node: NodeRow, after: Option<u64>| async move {
                dispatch.configuration(&node.name, after.unwrap_or(0), Duration::ZERO).await
            };
            link.serve(after, handle, |_| {})
        });
        let found = found.await?;
        if found.is_none() {
            tokio::time::sleep(wait).await;
        }
        Ok(found.map(|found| serde_json::to_value(found).expect("a configuration is plain data")))
    }

    async fn acknowledge(&self, _: &Session, ack: &ConfigAck) -> Result<(), ClientError> {
        self.call("acknowledge", ack, |link, ack: ConfigAck| async move {
            let handle = |dispatch: Dispatch, node: NodeRow, ack| async move {
                dispatch.acknowledge(&node, ack).await
            };
            link.serve(ack, handle, |()| {})
        })
        .await
    }

    async fn capability(&self, _: &Session, report: &CapabilityReport) -> Result<(), ClientError> {
        self.call("capability", report, |link, report: CapabilityReport| async move {
            let handle = |dispatch: Dispatch, node: NodeRow, report| async move {
                dispatch.capability(&node, report).await
            };
            link.serve(report, handle, |()| {})
        })
        .await
    }

    async fn claim(&self, _: &Session, request: &ClaimRequest) -> Result<ClaimResponse, ClientError> {
        self.call("claim", request, Self::serve_claim).await
    }

    async fn heartbeat(
        &self,
        _: &Session,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, ClientError> {
        self.call("heartbeat", request, |link, request: HeartbeatRequest| async move {
            let handle = |dispatch: Dispatch, node: NodeRow, request| async move {
                dispatch.heartbeat(&node, request).await
            };
            let (network, boot) = (Arc::clone(&link.network), request.boot_id.clone());
            let heard = |answer: &HeartbeatResponse| {
                network.oracle.served(&link.name, &boot);
                network.oracle.granted(&network, &link.name, answer);
            };
            link.serve(request, handle, heard)
        })
        .await
    }

    async fn report(&self, _: &Session, request: &ReportRequest) -> Result<ReportResponse, ClientError> {
        self.call("report", request, |link, request: ReportRequest| async move {
            let handle = |dispatch: Dispatch, node: NodeRow, request| async move {
                dispatch.report(&node, request).await
            };
            let network = Arc::clone(&link.network);
            let records = request.records.clone();
            link.serve(request, handle, |answer: &ReportResponse| {
                network.oracle.answered(&network, &records, answer);
            })
        })
        .await
    }

    async fn input(&self, _: &Session, _: &str) -> Result<InputStream, ClientError> {
        Err(unreachable("no job of the simulation has inputs"))
    }

    async fn artifact(&self, _: &Session, _: &AttemptId, _: u32, _: ArtifactBody) -> Result<(), ClientError> {
        Err(unreachable("no job of the simulation leaves artifacts"))
    }

    async fn artifacts_lost(&self, _: &Session, _: &ArtifactsLost) -> Result<(), ClientError> {
        Err(unreachable("no job of the simulation leaves artifacts"))
    }
}
