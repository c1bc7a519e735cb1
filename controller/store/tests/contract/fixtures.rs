//! Stores, and short ways to fill them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use windlass_crds::facts::Facts;
use windlass_crds::protocol::{
    Artifact, ArtifactKind, AttemptId, CapabilityReport, Compute, NodeIdentity, Outcome, Platform, Stream,
    VERSION,
};
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_crds::{JobPhase, SandboxJobSpec};
use windlass_store::{
    AttemptChange, AttemptPhase, ClaimSpec, ClaimedJob, CreateOutcome, IdempotencyKey, JobChange, JobRow,
    JoinTokenRow, NewJob, NewRecord, NodeRegistration, RecordKind, RecordStore, RedeemedToken,
    RegisterOutcome, Requirement, Reserve, Store, StoreOptions, StoreUrl, Transition, TransitionOutcome,
};

/// The lease in the cases.
pub(crate) const LEASE: Duration = Duration::from_secs(25);
/// The lease of jobs that continue offline.
pub(crate) const LONG_LEASE: Duration = Duration::from_secs(900);

pub(crate) async fn in_memory() -> Store {
    open(StoreUrl::SqliteMemory).await
}

pub(crate) async fn on_disk(folder: &Path) -> Store {
    open(StoreUrl::Sqlite(folder.join("windlass.db"))).await
}

pub(crate) async fn on_server(url: &str) -> Store {
    open(StoreUrl::Postgres(url.parse().expect("a URL"))).await
}

async fn open(url: StoreUrl) -> Store {
    Store::open(StoreOptions { url, read_connections: 2 }).await.expect("an empty store opens")
}

/// A time: so many seconds after the beginning of the case.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time in this century")
}

/// A job to create, one sentence at a time.
#[derive(Clone)]
pub(crate) struct JobBuilder(NewJob);

/// A job of this name in namespace `default`, queue `default`, class `any`, that reserves nothing.
pub(crate) fn job(name: &str) -> JobBuilder {
    static UID: AtomicU64 = AtomicU64::new(1);
    JobBuilder(NewJob {
        uid: format!("uid-{name}-{}", UID.fetch_add(1, Ordering::Relaxed)),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        spec: SandboxJobSpec {
            queue: "default".to_owned(),
            command: Some(vec!["true".to_owned()]),
            ..SandboxJobSpec::default()
        },
        spec_hash: format!("hash of {name}"),
        requirement: requirement("any"),
        reserve: Reserve::default(),
        queue: "default".to_owned(),
        priority: 500,
        phase: JobPhase::Queued,
        idempotency: None,
        input_digests: Vec::new(),
    })
}

pub(crate) fn requirement(hash: &str) -> Requirement {
    Requirement { hash: hash.to_owned(), predicates: json!({ "is": hash }) }
}

impl JobBuilder {
    pub(crate) fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.0.uid);
        self
    }

    pub(crate) fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.0.namespace);
        self
    }

    pub(crate) fn queue(mut self, queue: &str) -> Self {
        queue.clone_into(&mut self.0.queue);
        self
    }

    pub(crate) fn priority(mut self, priority: u16) -> Self {
        self.0.priority = priority;
        self
    }

    pub(crate) fn class(mut self, hash: &str) -> Self {
        self.0.requirement = requirement(hash);
        self
    }

    pub(crate) fn reserve(mut self, cpu_millis: u64, memory_bytes: u64, gpus: u32) -> Self {
        self.0.reserve = Reserve { cpu_millis, memory_bytes, gpus };
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn phase(mut self, phase: JobPhase) -> Self {
        self.0.phase = phase;
        self
    }

    pub(crate) fn key(mut self, key: &str, request_hash: &str, keep_until: Timestamp) -> Self {
        self.0.idempotency =
            Some(IdempotencyKey { key: key.to_owned(), request_hash: request_hash.to_owned(), keep_until });
        self
    }

    pub(crate) fn input(mut self, digest: &str) -> Self {
        self.0.input_digests.push(digest.to_owned());
        self
    }

    pub(crate) fn spec(mut self, change: impl FnOnce(&mut SandboxJobSpec)) -> Self {
        change(&mut self.0.spec);
        self
    }

    pub(crate) fn build(self) -> NewJob {
        self.0
    }

    /// Creates the job, which must be new.
    pub(crate) async fn create(self, store: &Store, now: Timestamp) -> JobRow {
        match self.try_create(store, now).await {
            CreateOutcome::Created(row) => row,
            other => panic!("the job was not created: {other:?}"),
        }
    }

    pub(crate) async fn try_create(self, store: &Store, now: Timestamp) -> CreateOutcome {
        let mut outcomes = store.create_jobs(now, vec![self.0]).await.expect("jobs can be created");
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }
}

pub(crate) fn capability(node: &str) -> CapabilityReport {
    CapabilityReport {
        version: VERSION,
        reported_at: at(0),
        node: NodeIdentity { node_slug: node.to_owned(), name: None, labels: BTreeMap::new() },
        platform: Platform {
            os: "linux".to_owned(),
            distro: None,
            arch: "amd64".to_owned(),
            kernel_version: None,
        },
        compute: Compute { cpu_model: None, cpu_cores: 4, ram_mb: 4096, storage_free_mb: None },
        container_runtime: None,
        inference: None,
        gpu: None,
        sandbox: None,
        agent: None,
        worker_api: None,
        tls: None,
    }
}

pub(crate) fn registration(node: &str) -> NodeRegistration {
    NodeRegistration {
        name: node.to_owned(),
        uid: format!("uid of {node}"),
        boot_id: format!("{node} boot 1"),
        public_key: Some(format!("key of {node}").into_bytes()),
        proven: true,
        token: Some(redeemed("token")),
        capability: capability(node),
        capability_hash: "capability 1".to_owned(),
        labels: BTreeMap::new(),
        agent_version: "1.0.0".to_owned(),
    }
}

pub(crate) fn redeemed(id: &str) -> RedeemedToken {
    RedeemedToken { id: id.to_owned(), allows_new: true, replaces: None }
}

pub(crate) fn join_token(id: &str) -> JoinTokenRow {
    let mut secret_hash = [0; 32];
    for (to, from) in secret_hash.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    JoinTokenRow {
        id: id.to_owned(),
        secret_hash,
        description: String::new(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        replaces: None,
        created_at: at(0),
        revoked_at: None,
    }
}

/// Registers nodes with one token for all.
pub(crate) async fn register(store: &Store, nodes: &[&str]) {
    if store.find_join_token(&join_token("token").secret_hash).await.expect("a lookup").is_none() {
        store.create_join_token(at(0), join_token("token")).await.expect("a token");
    }
    for node in nodes {
        match store.register_node(at(0), registration(node)).await.expect("a registration") {
            RegisterOutcome::Created(_) => {}
            other => panic!("{node} was not created: {other:?}"),
        }
    }
}

/// A request for work, one sentence at a time. Without more it has room for everything, and fits every class.
#[derive(Clone)]
pub(crate) struct ClaimBuilder {
    node: String,
    boot_id: String,
    request_id: String,
    max: u32,
    classes: Option<Vec<i64>>,
    queues: Vec<String>,
    slots: u32,
    capacity: Reserve,
    default: OfflinePolicy,
    on_behalf: bool,
}

pub(crate) fn claim(node: &str) -> ClaimBuilder {
    static REQUEST: AtomicU64 = AtomicU64::new(1);
    ClaimBuilder {
        node: node.to_owned(),
        boot_id: format!("{node} boot 1"),
        request_id: format!("request {}", REQUEST.fetch_add(1, Ordering::Relaxed)),
        max: 100,
        classes: None,
        queues: Vec::new(),
        slots: 1_000_000,
        capacity: Reserve { cpu_millis: 1 << 40, memory_bytes: 1 << 50, gpus: 1000 },
        default: OfflinePolicy::Stop,
        on_behalf: false,
    }
}

impl ClaimBuilder {
    pub(crate) fn boot(mut self, boot_id: &str) -> Self {
        boot_id.clone_into(&mut self.boot_id);
        self
    }

    pub(crate) fn request(mut self, request_id: &str) -> Self {
        request_id.clone_into(&mut self.request_id);
        self
    }

    pub(crate) fn max(mut self, max: u32) -> Self {
        self.max = max;
        self
    }

    pub(crate) fn classes(mut self, classes: &[i64]) -> Self {
        self.classes = Some(classes.to_vec());
        self
    }

    pub(crate) fn queues(mut self, queues: &[&str]) -> Self {
        self.queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
        self
    }

    /// Somebody else asks for the node.
    pub(crate) fn on_behalf(mut self) -> Self {
        self.on_behalf = true;
        self
    }

    pub(crate) fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    pub(crate) fn capacity(mut self, cpu_millis: u64, memory_bytes: u64, gpus: u32) -> Self {
        self.capacity = Reserve { cpu_millis, memory_bytes, gpus };
        self
    }

    pub(crate) fn offline(mut self, default: OfflinePolicy) -> Self {
        self.default = default;
        self
    }

    pub(crate) async fn try_run(
        self,
        store: &Store,
        now: Timestamp,
    ) -> Result<Vec<ClaimedJob>, windlass_store::Error> {
        let classes = match self.classes {
            Some(classes) => classes,
            None => all_classes(store).await,
        };
        let spec = ClaimSpec {
            node: &self.node,
            boot_id: &self.boot_id,
            request_id: &self.request_id,
            max: self.max,
            classes: &classes,
            queues: &self.queues,
            slots: self.slots,
            capacity: self.capacity,
            lease: LEASE,
            lease_continue: LONG_LEASE,
            node_offline_default: self.default,
            on_behalf: self.on_behalf,
        };
        store.claim(now, spec).await
    }

    pub(crate) async fn run(self, store: &Store, now: Timestamp) -> Vec<ClaimedJob> {
        self.try_run(store, now).await.expect("a registered node can claim")
    }

    /// Claims, and yields the names of the jobs.
    pub(crate) async fn names(self, store: &Store, now: Timestamp) -> Vec<String> {
        self.run(store, now).await.into_iter().map(|claimed| claimed.job.name).collect()
    }
}

pub(crate) async fn all_classes(store: &Store) -> Vec<i64> {
    store.unfitted_classes(0).await.expect("classes").into_iter().map(|class| class.id).collect()
}

pub(crate) async fn class_of(store: &Store, hash: &str) -> i64 {
    let classes = store.unfitted_classes(0).await.expect("classes");
    classes.iter().find(|class| class.hash == hash).expect("the class exists").id
}

/// Creates a job and lets `node`, which is registered on first use, claim it.
pub(crate) async fn claimed(store: &Store, node: &str, name: &str, now: Timestamp) -> ClaimedJob {
    if store.get_node(node).await.expect("a lookup").is_none() {
        register(store, &[node]).await;
    }
    let row = job(name).create(store, now).await;
    let mut got = claim(node).run(store, now).await;
    assert_eq!(got.len(), 1, "only the new job is to be claimed");
    let got = got.remove(0);
    assert_eq!(got.job.uid, row.uid);
    got
}

pub(crate) fn attempt(claimed: &ClaimedJob) -> AttemptId {
    AttemptId { job: claimed.job.uid.clone(), epoch: claimed.epoch }
}

pub(crate) fn log(attempt: &AttemptId, sequence: u64, body: &[u8]) -> NewRecord {
    NewRecord {
        attempt: attempt.clone(),
        sequence,
        at: at(1),
        kind: RecordKind::Log,
        step: Some(0),
        stream: Some(Stream::Stdout),
        offset: Some(0),
        body: RecordStore::Inline(body.to_vec()),
    }
}

pub(crate) fn terminal(attempt: &AttemptId, sequence: u64) -> NewRecord {
    NewRecord {
        kind: RecordKind::Terminal,
        step: None,
        stream: None,
        offset: None,
        body: RecordStore::Json(json!({ "phase": "succeeded", "last_sequence": sequence })),
        ..log(attempt, sequence, b"")
    }
}

/// An artifact of this number and name.
pub(crate) fn artifact(number: u32, name: &str) -> Artifact {
    Artifact {
        number,
        name: name.to_owned(),
        kind: ArtifactKind::File,
        size: 7,
        sha256: Some("ab".repeat(32)),
        refused: None,
    }
}

/// A file that was refused.
pub(crate) fn refused(number: u32, name: &str) -> Artifact {
    Artifact { sha256: None, refused: Some("it is a socket".to_owned()), ..artifact(number, name) }
}

/// A manifest of artifacts.
pub(crate) fn artifacts(attempt: &AttemptId, sequence: u64, items: &[Artifact]) -> NewRecord {
    NewRecord {
        kind: RecordKind::Artifacts,
        body: RecordStore::Json(json!({ "kind": "artifacts", "items": items })),
        ..terminal(attempt, sequence)
    }
}

/// The end of an attempt and its job, in one phase.
pub(crate) fn ended(phase: AttemptPhase, last_sequence: Option<u64>) -> AttemptChange {
    AttemptChange {
        phase,
        reason: Some("Told".to_owned()),
        message: None,
        exit_code: None,
        ended_at: None,
        last_sequence,
    }
}

/// A transition decided on the job as it is in `job`.
pub(crate) fn transition(job: &JobRow, change: impl FnOnce(&mut JobChange)) -> Transition {
    let mut set = JobChange::of(job);
    change(&mut set);
    Transition { job: job.uid.clone(), epoch: job.epoch, expect_version: job.resource_version, set }
}

pub(crate) fn succeeds(job: &JobRow, last_sequence: u64) -> Transition {
    transition(job, |set| {
        set.phase = JobPhase::Succeeded;
        set.reason = Some("Completed".to_owned());
        set.attempt = Some(ended(AttemptPhase::Succeeded, Some(last_sequence)));
    })
}

pub(crate) fn is_lost(job: &JobRow, not_before: Option<Timestamp>) -> Transition {
    transition(job, |set| {
        set.phase = JobPhase::Queued;
        set.reason = Some("LeaseExpired".to_owned());
        set.lost_attempts += 1;
        set.not_before = not_before;
        set.attempt = Some(ended(AttemptPhase::Lost, None));
    })
}

/// Carries out a transition that must not be stale.
pub(crate) async fn transit(store: &Store, now: Timestamp, transition: Transition) -> JobRow {
    let mut outcomes =
        store.apply_transitions(now, vec![transition]).await.expect("transitions can be applied");
    match outcomes.remove(0) {
        TransitionOutcome::Done(row) => {
            assert_eq!(row, reread(store, &row.uid).await, "what is answered is what is stored");
            row
        }
        TransitionOutcome::Stale => panic!("the transition was stale"),
    }
}

/// Reports records, and yields what became of them.
pub(crate) async fn report(store: &Store, node: &str, records: Vec<NewRecord>) -> Vec<Outcome> {
    store.apply(at(2), node, records, Vec::new()).await.expect("records can be reported").records
}

pub(crate) async fn reread(store: &Store, uid: &str) -> JobRow {
    store.get_job_by_uid(uid).await.expect("a lookup").expect("the job exists")
}

/// Ends a claimed job as succeeded with one terminal record.
pub(crate) async fn finish(store: &Store, claimed: &ClaimedJob, now: Timestamp) -> JobRow {
    let id = attempt(claimed);
    let node = claimed.job.node.clone().expect("a claimed job has a node");
    let job = reread(store, &claimed.job.uid).await;
    let applied = store
        .apply(now, &node, vec![terminal(&id, 1)], vec![succeeds(&job, 1)])
        .await
        .expect("a report can be applied");
    assert_eq!(applied.records, [Outcome::Accepted]);
    match applied.transitions.into_iter().next() {
        Some(TransitionOutcome::Done(row)) => {
            assert_eq!(row, reread(store, &row.uid).await, "what is answered is what is stored");
            row
        }
        other => panic!("the job did not end: {other:?}"),
    }
}

/// What a node tells of its host.
pub(crate) fn facts(node: &str, seconds: i64) -> Facts {
    Facts {
        collected_at: at(seconds),
        node: node.to_owned(),
        labels: BTreeMap::new(),
        job: None,
        counts: BTreeMap::from([("containers".to_owned(), 2)]),
        host: None,
        containers: Vec::new(),
        logs: Vec::new(),
        proxmox: None,
        problems: vec!["docker does not answer".to_owned()],
    }
}
