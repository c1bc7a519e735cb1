//! Our store at work as the controller uses it, with no-op jobs: claims, and one report for each with the terminal records
//! and the transitions that they lead to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use jiff::Timestamp;
use serde_json::json;
use tokio::task::JoinSet;
use windlass_crds::protocol::{
    AttemptId, CapabilityReport, Compute, NodeIdentity, Outcome, Platform, VERSION,
};
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_crds::{JobPhase, SandboxJobSpec};
use windlass_store::{
    AttemptChange, AttemptPhase, ClaimSpec, ClaimedJob, CreateOutcome, JobChange, JoinTokenRow, NewJob,
    NewRecord, NodeRegistration, RecordKind, RecordStore, RedeemedToken, Requirement, Reserve, Store,
    StoreOptions, StoreUrl, Transition, TransitionOutcome,
};

/// The node that works where one is enough.
pub(crate) const NODE: &str = "bench";

/// The nodes of a drain: an agent claims for itself and nobody else.
fn worker(number: usize) -> String {
    format!("{NODE}-{number}")
}

/// A store with one node or more.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) store: Store,
    pub(crate) now: Timestamp,
    requests: Arc<AtomicU64>,
}

/// How much a drain does.
#[derive(Clone, Copy)]
pub(crate) struct Drain {
    /// Jobs that are there.
    pub(crate) jobs: usize,
    /// Jobs of a claim and of a report.
    pub(crate) batch: u32,
    /// How many claim and report at once.
    pub(crate) workers: usize,
    /// How long it goes on at most.
    pub(crate) limit: Duration,
}

impl Work {
    /// Opens a new store, with the node [`NODE`].
    pub(crate) async fn open(url: StoreUrl) -> anyhow::Result<Self> {
        let now = Timestamp::from_second(1_800_000_000)?;
        let store = Store::open(StoreOptions { url, read_connections: 2 }).await?;
        let token = JoinTokenRow {
            id: NODE.to_owned(),
            secret_hash: [0; 32],
            description: String::new(),
            expires_at: None,
            max_uses: None,
            uses: 0,
            replaces: None,
            created_at: now,
            revoked_at: None,
        };
        store.create_join_token(now, token).await?;
        let this = Self { store, now, requests: Arc::default() };
        this.register(NODE).await?;
        Ok(this)
    }

    /// Adds a node.
    pub(crate) async fn register(&self, node: &str) -> anyhow::Result<()> {
        let capability = CapabilityReport {
            version: VERSION,
            reported_at: self.now,
            node: NodeIdentity { node_slug: node.to_owned(), name: None, labels: BTreeMap::new() },
            platform: Platform {
                os: "linux".to_owned(),
                distro: None,
                arch: "amd64".to_owned(),
                kernel_version: None,
            },
            compute: Compute { cpu_model: None, cpu_cores: 1000, ram_mb: 1 << 20, storage_free_mb: None },
            container_runtime: None,
            inference: None,
            gpu: None,
            sandbox: None,
            agent: None,
            worker_api: None,
            tls: None,
        };
        let registration = NodeRegistration {
            name: node.to_owned(),
            uid: node.to_owned(),
            boot_id: node.to_owned(),
            public_key: Some(node.into()),
            proven: true,
            token: Some(RedeemedToken { id: NODE.to_owned(), allows_new: true, replaces: None }),
            capability,
            capability_hash: node.to_owned(),
            labels: BTreeMap::new(),
            agent_version: "0.0.0".to_owned(),
        };
        self.store.register_node(self.now, registration).await?;
        Ok(())
    }

    /// Fills the queue with the jobs `from..until`, job `n` in class `n % classes`.
    pub(crate) async fn fill(&self, from: usize, until: usize, classes: usize) -> anyhow::Result<()> {
        let mut next = from;
        while next < until {
            let end = until.min(next + 1000);
            let batch: Vec<NewJob> = (next..end).map(|number| new_job(number, number % classes)).collect();
            for outcome in self.store.create_jobs(self.now, batch).await? {
                ensure!(matches!(outcome, CreateOutcome::Created(_)), "a job was not created: {outcome:?}");
            }
            next = end;
        }
        Ok(())
    }

    /// The ids of all classes.
    pub(crate) async fn classes(&self) -> anyhow::Result<Vec<i64>> {
        Ok(self.store.unfitted_classes(0).await?.iter().map(|class| class.id).collect())
    }

    /// A claim of `max` jobs for a node that has room for anything.
    pub(crate) async fn claim(
        &self,
        node: &str,
        max: u32,
        classes: &[i64],
    ) -> anyhow::Result<Vec<ClaimedJob>> {
        let anything = Reserve { cpu_millis: 1 << 40, memory_bytes: 1 << 50, gpus: 0 };
        self.claim_into(node, anything, max, classes).await
    }

    /// A claim of `max` jobs for a node of this size.
    pub(crate) async fn claim_into(
        &self,
        node: &str,
        capacity: Reserve,
        max: u32,
        classes: &[i64],
    ) -> anyhow::Result<Vec<ClaimedJob>> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed).to_string();
        let spec = ClaimSpec {
            node,
            boot_id: node,
            request_id: &request,
            max,
            classes,
            queues: &[],
            slots: u32::MAX,
            capacity,
            lease: Duration::from_secs(25),
            lease_continue: Duration::from_secs(900),
            node_offline_default: OfflinePolicy::Stop,
            on_behalf: false,
        };
        Ok(self.store.claim(self.now, spec).await?)
    }

    /// Reports that all of these have succeeded.
    pub(crate) async fn complete(&self, node: &str, claimed: &[ClaimedJob]) -> anyhow::Result<()> {
        let records = claimed.iter().map(|claimed| terminal(claimed, self.now)).collect();
        let transitions = claimed.iter().map(success).collect();
        let applied = self.store.apply(self.now, node, records, transitions).await?;
        ensure!(applied.records.iter().all(|outcome| *outcome == Outcome::Accepted), "a record was refused");
        let done = |outcome: &TransitionOutcome| matches!(outcome, TransitionOutcome::Done(_));
        ensure!(applied.transitions.iter().all(done), "a job was not completed");
        Ok(())
    }

    /// Claims and completes until all jobs are done or the time is up; yields how many a second.
    pub(crate) async fn drain(&self, drain: Drain) -> anyhow::Result<f64> {
        let Drain { jobs, batch, workers, limit } = drain;
        let classes = self.classes().await?;
        for number in 0..workers {
            self.register(&worker(number)).await?;
        }
        let completed = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..workers {
            let (this, classes, completed) = (self.clone(), classes.clone(), Arc::clone(&completed));
            tasks.spawn(async move {
                let node = worker(number);
                while start.elapsed() < limit {
                    let claimed = this.claim(&node, batch, &classes).await?;
                    if claimed.is_empty() {
                        break;
                    }
                    this.complete(&node, &claimed).await?;
                    completed.fetch_add(claimed.len(), Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
        while let Some(worker) = tasks.join_next().await {
            worker??;
        }
        let (seconds, completed) = (start.elapsed().as_secs_f64(), completed.load(Ordering::Relaxed));
        ensure!(
            completed == jobs || seconds >= limit.as_secs_f64(),
            "{completed} of {jobs} jobs were to be had"
        );
        Ok(completed as f64 / seconds)
    }
}

/// A no-op job of a class.
pub(crate) fn new_job(number: usize, class: usize) -> NewJob {
    NewJob {
        uid: format!("00000000-0000-7000-8000-{number:012}"),
        namespace: "default".to_owned(),
        name: format!("noop-{number}"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        spec: SandboxJobSpec {
            queue: "default".to_owned(),
            command: Some(vec!["true".to_owned()]),
            ..SandboxJobSpec::default()
        },
        spec_hash: "noop".to_owned(),
        requirement: Requirement { hash: class.to_string(), predicates: json!({ "class": class }) },
        reserve: RESERVE,
        queue: "default".to_owned(),
        priority: 500,
        phase: JobPhase::Queued,
        idempotency: None,
        input_digests: Vec::new(),
    }
}

/// What a job of [`new_job`] takes.
pub(crate) const RESERVE: Reserve = Reserve { cpu_millis: 100, memory_bytes: 1 << 20, gpus: 0 };

fn terminal(claimed: &ClaimedJob, now: Timestamp) -> NewRecord {
    NewRecord {
        attempt: AttemptId { job: claimed.job.uid.clone(), epoch: claimed.epoch },
        sequence: 1,
        at: now,
        kind: RecordKind::Terminal,
        step: None,
        stream: None,
        offset: None,
        body: RecordStore::Json(json!({ "phase": "succeeded", "exit_code": 0, "last_sequence": 1 })),
    }
}

fn success(claimed: &ClaimedJob) -> Transition {
    let job = &claimed.job;
    let attempt = AttemptChange {
        phase: AttemptPhase::Succeeded,
        reason: Some("Completed".to_owned()),
        message: None,
        exit_code: Some(0),
        ended_at: None,
        last_sequence: Some(1),
    };
    let set = JobChange {
        phase: JobPhase::Succeeded,
        reason: Some("Completed".to_owned()),
        exit_code: Some(0),
        attempt: Some(attempt),
        ..JobChange::of(job)
    };
    Transition { job: job.uid.clone(), epoch: job.epoch, expect_version: job.resource_version, set }
}
