//! A controller for the agent's own tests: grants what it is told to, renews leases, keeps records by their number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::watch;
use async_trait::async_trait;
use futures::StreamExt as _;
use jiff::Timestamp;
use windlass_crds::protocol::{
    ArtifactsLost, Assignment, AttemptId, Bootstrap, BootstrapAuth, CapabilityReport, ClaimRequest,
    ClaimResponse, ConfigAck, Configuration, Endpoints, HeartbeatRequest, HeartbeatResponse, LogBody,
    Orchestrator, Order, Outcome, Record, RecordBody, RecordOutcome, RegisterRequest, Renewal, ReportRequest,
    ReportResponse, Stream, Terminal, Unreadable, VERSION,
};

use crate::client::{ArtifactBody, ControllerClient, Error, InputStream};
use crate::session::Session;

/// A controller. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct FakeController {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Nobody gets an answer.
    pub(crate) down: bool,
    /// Reports get no answer.
    pub(crate) reports_down: bool,
    /// Leases are not renewed.
    pub(crate) stingy: bool,
    /// What registrations are refused with, by turns.
    pub(crate) refuse_registration: VecDeque<u16>,
    /// How long tokens live, in seconds.
    pub(crate) token_life: Option<i64>,
    /// Tokens that are not accepted any more.
    pub(crate) expired_tokens: BTreeSet<String>,
    pub(crate) registrations: Vec<RegisterRequest>,
    pub(crate) configuration: Option<serde_json::Value>,
    pub(crate) acks: Vec<ConfigAck>,
    pub(crate) capabilities: Vec<CapabilityReport>,
    pub(crate) queue: VecDeque<Assignment>,
    /// Given with the next answer to a claim.
    pub(crate) unreadable: Vec<Unreadable>,
    granted: BTreeMap<String, Vec<Assignment>>,
    pub(crate) claims: Vec<ClaimRequest>,
    pub(crate) heartbeats: Vec<HeartbeatRequest>,
    pub(crate) cancelled: BTreeSet<AttemptId>,
    pub(crate) fenced: BTreeSet<AttemptId>,
    pub(crate) fence_node: bool,
    pub(crate) reject: BTreeSet<(AttemptId, u64)>,
    /// How the next reports are answered: outcomes are left out, turned round, or the answer is lost.
    pub(crate) answers: VecDeque<Answer>,
    pub(crate) records: BTreeMap<(AttemptId, u64), Record>,
    /// Every record that came, with repetitions.
    pub(crate) received: Vec<(AttemptId, u64)>,
    pub(crate) largest_batch: usize,
    pub(crate) inputs: BTreeMap<String, Vec<u8>>,
    /// Bodies of artifacts, by attempt and number.
    pub(crate) artifacts: BTreeMap<(AttemptId, u32), Vec<u8>>,
    /// Every body that came, with repetitions.
    pub(crate) sent: Vec<(AttemptId, u32)>,
    pub(crate) lost: Vec<ArtifactsLost>,
    /// What the next bodies are refused with, by turns; 0 stands for an answer that is lost.
    pub(crate) refuse_artifacts: VecDeque<u16>,
    /// Attempts whose bodies fail.
    pub(crate) fail_artifacts: BTreeSet<AttemptId>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// Only every second record is answered for, from the back.
    Half,
    /// Everything is stored and the answer is lost.
    Lost,
    /// Batches of more than one record are malformed.
    OnlySingles,
}

fn refused(status: u16, code: &str) -> Error {
    Error::Refused { status, code: code.to_owned(), detail: "because".to_owned() }
}

fn unreachable() -> Error {
    Error::Unreachable { url: "https://controller".to_owned(), source: "connection refused".into() }
}

impl FakeController {
    /// With a configuration of version 1 for `node`.
    pub(crate) fn new(node: &str) -> Self {
        let this = Self::default();
        this.configure(&super::configuration(node, 1));
        this
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.inner.changes.send_modify(|count| *count += 1);
        result
    }

    pub(crate) fn configure(&self, configuration: &Configuration) {
        self.change(|state| state.configuration = Some(serde_json::to_value(configuration).unwrap()));
    }

    pub(crate) fn assign(&self, assignment: Assignment) {
        self.change(|state| state.queue.push_back(assignment));
    }

    /// Waits until `look` finds something, at most an hour of virtual time.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut changes = self.inner.changes.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(3600), async {
            loop {
                if let Some(found) = look(&self.state()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not within an hour: {what}"))
    }

    pub(crate) async fn terminal(&self, job: &str) -> Terminal {
        self.until("a terminal record", |state| state.terminal(job)).await
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Checks the call, and lets everybody else go on first as a network would.
    async fn called(&self, session: Option<&Session>) -> Result<(), Error> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let state = self.state();
        if state.down {
            return Err(unreachable());
        }
        if session.is_some_and(|session| state.expired_tokens.contains(&session.token)) {
            return Err(refused(401, "unauthenticated"));
        }
        Ok(())
    }
}

impl State {
    /// The uid of the node's object, which the configuration names.
    fn node_uid(&self) -> Option<String> {
        Some(self.configuration.as_ref()?.get("node_uid")?.as_str()?.to_owned())
    }

    pub(crate) fn terminal(&self, job: &str) -> Option<Terminal> {
        self.records.iter().find_map(|((attempt, _), record)| match &record.body {
            RecordBody::Terminal(terminal) if attempt.job == job => Some(terminal.clone()),
            _ => None,
        })
    }

    /// The bodies of a job's records in order.
    pub(crate) fn bodies(&self, job: &str) -> Vec<RecordBody> {
        let records = self.records.iter().filter(|((attempt, _), _)| attempt.job == job);
        records.map(|(_, record)| record.body.clone()).collect()
    }

    /// A job's records by name, for short comparisons.
    pub(crate) fn story(&self, job: &str) -> Vec<String> {
        self.bodies(job)
            .into_iter()
            .map(|body| match body {
                RecordBody::Started { .. } => "started".to_owned(),
                RecordBody::StepStarted { step } => format!("step {step}"),
                RecordBody::Log { step, stream, body, .. } => {
                    let text = String::from_utf8(body.into_bytes().unwrap()).unwrap();
                    format!("{stream} {step} {text}")
                }
                RecordBody::StepEnded(ended) => format!("step {} {}", ended.step, ended.reason),
                RecordBody::Event { reason, .. } => format!("event {reason}"),
                RecordBody::Terminal(terminal) => format!("{} {}", terminal.phase, terminal.reason),
                RecordBody::Artifacts { items } => {
                    let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
                    format!("artifacts {}", names.join(" "))
                }
                RecordBody::Facts(facts) => format!("facts {:?}", facts.counts),
            })
            .collect()
    }

    /// What the steps wrote, one after the other, checked for gaps and repetitions.
    pub(crate) fn output(&self, job: &str, wanted: Stream) -> String {
        let mut output: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for body in self.bodies(job) {
            if let RecordBody::Log { step, stream, offset, body } = body
                && stream == wanted
            {
                let output = output.entry(step).or_default();
                assert_eq!(offset, output.len() as u64, "{job} {step} {stream}");
                output.extend(LogBody::into_bytes(body).unwrap());
            }
        }
        String::from_utf8(output.into_values().flatten().collect()).unwrap()
    }

    /// That every attempt that has ended did so once, and that its records have no gaps.
    pub(crate) fn check_records(&self) {
        let attempts: BTreeSet<_> = self.records.keys().map(|(attempt, _)| attempt).collect();
        for attempt in attempts {
            let of: Vec<_> = self.records.iter().filter(|((of, _), _)| of == attempt).collect();
            let sequences: Vec<u64> = of.iter().map(|((_, sequence), _)| *sequence).collect();
            let expected: Vec<u64> = (1..=of.len() as u64).collect();
            assert_eq!(sequences, expected, "{attempt}");
            let ends: Vec<_> = of
                .iter()
                .filter_map(|(_, record)| match &record.body {
                    RecordBody::Terminal(terminal) => Some(terminal.last_sequence),
                    _ => None,
                })
                .collect();
            assert_eq!(ends, [of.len() as u64], "{attempt}: {:?}", self.story(&attempt.job));
        }
    }

    fn orders(&self, held: &[AttemptId]) -> Vec<Order> {
        let order = |attempt: &AttemptId| {
            let attempt = attempt.clone();
            if self.fenced.contains(&attempt) {
                Some(Order::Fenced { attempt })
            } else if self.cancelled.contains(&attempt) {
                Some(Order::Cancel { attempt })
            } else {
                None
            }
        };
        held.iter().filter_map(order).collect()
    }

    fn store(&mut self, record: &Record) -> RecordOutcome {
        let key = (record.attempt.clone(), record.sequence);
        self.received.push(key.clone());
        let outcome = if self.reject.contains(&key) {
            Outcome::Rejected
        } else if let Some(known) = self.records.get(&key) {
            assert_eq!(known, record, "a sequence was used twice");
            Outcome::Duplicate
        } else {
            self.records.insert(key, record.clone());
            Outcome::Accepted
        };
        RecordOutcome { attempt: record.attempt.clone(), sequence: record.sequence, outcome, detail: None }
    }
}

#[async_trait]
impl ControllerClient for FakeController {
    async fn register(&self, request: &RegisterRequest) -> Result<Bootstrap, Error> {
        self.called(None).await?;
        let (number, life) = self.change(|state| {
            state.registrations.push(request.clone());
            if let Some(status) = state.refuse_registration.pop_front() {
                return Err(refused(status, "refused"));
            }
            Ok((state.registrations.len(), state.token_life.unwrap_or(3600)))
        })?;
        let url = |path: &str| format!("https://controller/v1/nodes/{path}");
        Ok(Bootstrap {
            version: VERSION,
            issued_at: Timestamp::UNIX_EPOCH,
            node_uid: self.state().node_uid(),
            orchestrator: Orchestrator {
                base_url: "https://controller".to_owned(),
                endpoints: Endpoints {
                    worker_registration_url: url("register"),
                    node_report_url: url("capability"),
                    node_config_url: url("config"),
                    claim_url: url("claim"),
                    heartbeat_url: url("heartbeat"),
                    report_url: url("report"),
                    inputs_url: url("inputs"),
                    artifacts_url: Some(url("artifacts")),
                },
            },
            auth: BootstrapAuth {
                node_jwt: format!("token-{number}"),
                expires_at: Timestamp::from_second(life).unwrap(),
            },
            trust: None,
            initial_config_version: None,
        })
    }

    async fn configuration(
        &self,
        session: &Session,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<Option<serde_json::Value>, Error> {
        self.called(Some(session)).await?;
        let newer = |state: &State| {
            let configuration = state.configuration.clone()?;
            let version: u64 = configuration["config_version"].as_str()?.parse().ok()?;
            (version > after.unwrap_or(0)).then_some(configuration)
        };
        let mut changes = self.inner.changes.subscribe();
        let waited = tokio::time::timeout(wait, async {
            loop {
                if let Some(found) = newer(&self.state()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        let found = waited.await.ok();
        self.called(Some(session)).await?;
        Ok(found)
    }

    async fn acknowledge(&self, session: &Session, ack: &ConfigAck) -> Result<(), Error> {
        self.called(Some(session)).await?;
        self.change(|state| state.acks.push(ack.clone()));
        Ok(())
    }

    async fn capability(&self, session: &Session, report: &CapabilityReport) -> Result<(), Error> {
        self.called(Some(session)).await?;
        self.change(|state| state.capabilities.push(report.clone()));
        Ok(())
    }

    async fn claim(&self, session: &Session, request: &ClaimRequest) -> Result<ClaimResponse, Error> {
        self.called(Some(session)).await?;
        self.change(|state| state.claims.push(request.clone()));
        let mut changes = self.inner.changes.subscribe();
        let wait = Duration::from_secs(request.wait_seconds.into());
        let waited = tokio::time::timeout(wait, async {
            loop {
                {
                    let mut state = self.state();
                    if state.fence_node {
                        return Err(refused(409, "fenced"));
                    }
                    let orders = state.orders(&request.held);
                    let again = state.granted.get(&request.request_id).cloned();
                    let assignments = again.unwrap_or_else(|| {
                        let count = state.queue.len().min(request.max as usize);
                        state.queue.drain(..count).collect()
                    });
                    if !assignments.is_empty() {
                        state.granted.insert(request.request_id.clone(), assignments.clone());
                    }
                    let unreadable = std::mem::take(&mut state.unreadable);
                    if !orders.is_empty() || !assignments.is_empty() || !unreadable.is_empty() {
                        return Ok((assignments, orders, unreadable));
                    }
                }
                changes.changed().await.unwrap();
            }
        });
        let (assignments, orders, unreadable) = waited.await.unwrap_or(Ok(Default::default()))?;
        self.called(Some(session)).await?;
        Ok(ClaimResponse { version: VERSION, assignments, orders, stopping: false, unreadable })
    }

    async fn heartbeat(
        &self,
        session: &Session,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Error> {
        self.called(Some(session)).await?;
        let answer = self.change(|state| {
            state.heartbeats.push(request.clone());
            if state.fence_node {
                return Err(refused(409, "fenced"));
            }
            let orders = state.orders(&request.held);
            let live = request.held.iter().filter(|attempt| !state.stingy && !state.fenced.contains(attempt));
            let renewed =
                live.map(|attempt| Renewal { attempt: attempt.clone(), lease_seconds: 25 }).collect();
            let version = state.configuration.as_ref().and_then(|c| c["config_version"].as_str());
            Ok((orders, renewed, version.unwrap_or("0").to_owned()))
        });
        let (orders, renewed, config_version) = answer?;
        Ok(HeartbeatResponse {
            version: VERSION,
            renewed,
            orders,
            interval_seconds: 10,
            config_version,
            send_capability: false,
        })
    }

    async fn report(&self, session: &Session, request: &ReportRequest) -> Result<ReportResponse, Error> {
        self.called(Some(session)).await?;
        self.change(|state| {
            if state.reports_down {
                return Err(unreachable());
            }
            let answer = state.answers.pop_front();
            if matches!(answer, Some(Answer::OnlySingles)) {
                state.answers.push_front(Answer::OnlySingles);
                if request.records.len() > 1 {
                    return Err(refused(422, "invalid"));
                }
            }
            state.largest_batch = state.largest_batch.max(request.records.len());
            let mut results: Vec<_> = request.records.iter().map(|record| state.store(record)).collect();
            match answer {
                None | Some(Answer::OnlySingles) => {}
                Some(Answer::Half) => results = results.into_iter().rev().step_by(2).collect(),
                Some(Answer::Lost) => return Err(unreachable()),
            }
            Ok(ReportResponse { version: VERSION, results })
        })
    }

    async fn input(&self, session: &Session, digest: &str) -> Result<InputStream, Error> {
        self.called(Some(session)).await?;
        let content = self.state().inputs.get(digest).cloned().ok_or_else(|| refused(404, "not_found"))?;
        let chunks: Vec<_> =
            content.chunks(1000).map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
        Ok(futures::stream::iter(chunks).boxed())
    }

    async fn artifact(
        &self,
        session: &Session,
        attempt: &AttemptId,
        number: u32,
        body: ArtifactBody,
    ) -> Result<(), Error> {
        self.called(Some(session)).await?;
        let mut content = Vec::new();
        let mut pieces = body.content;
        while let Some(piece) = pieces.next().await {
            content.extend_from_slice(&piece.map_err(|_| unreachable())?);
        }
        assert_eq!(content.len() as u64, body.size);
        self.change(|state| {
            state.sent.push((attempt.clone(), number));
            let told = state.records.values().filter(|record| record.attempt == *attempt);
            let mut told = told.filter_map(|record| match &record.body {
                RecordBody::Artifacts { items } => Some(items),
                _ => None,
            });
            if !told.any(|items| items.iter().any(|item| item.number == number)) {
                return Err(refused(404, "not_found"));
            }
            if state.fail_artifacts.contains(attempt) {
                return Err(refused(500, "internal"));
            }
            match state.refuse_artifacts.pop_front() {
                None => drop(state.artifacts.insert((attempt.clone(), number), content)),
                Some(0) => {
                    state.artifacts.insert((attempt.clone(), number), content);
                    return Err(unreachable());
                }
                Some(404) => return Err(refused(404, "not_found")),
                Some(status) => return Err(refused(status, "refused")),
            }
            Ok(())
        })
    }

    async fn artifacts_lost(&self, session: &Session, lost: &ArtifactsLost) -> Result<(), Error> {
        self.called(Some(session)).await?;
        self.change(|state| state.lost.push(lost.clone()));
        Ok(())
    }
}
