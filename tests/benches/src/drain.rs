//! P5: no-op jobs claimed and completed on SQLite, every acknowledged write on disk.
//!
//! Ours goes through the store as the controller does: a claim, then one report with the terminal records and the
//! transitions that they lead to.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::json;
use windlass_crds::protocol::{
    AttemptId, CapabilityReport, Compute, NodeIdentity, Outcome, Platform, VERSION,
};
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_crds::{JobPhase, SandboxJobSpec};
use windlass_store::{
    AttemptChange, AttemptPhase, ClaimSpec, ClaimedJob, JobChange, JoinTokenRow, NewJob, NewRecord,
    NodeRegistration, RecordKind, RecordStore, RedeemedToken, Requirement, Reserve, Store, StoreOptions,
    StoreUrl, Transition, TransitionOutcome,
};

use crate::bench::{Bench, run, script};
use crate::rounds::{interleave, reason, subject};
use crate::table::{Aim, Comparison, Table, Unit};

const NODE: &str = "bench";
/// How many jobs a claim and a report are about: what agents send at most.
const BATCH: u32 = 100;

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let (jobs, limit) = (bench.scale.drained, bench.scale.drain_limit);
    let ours = |batch| {
        Ok(subject(move || {
            let folder = bench.folder("store")?;
            let rate = bench.runtime.block_on(drain(&folder, jobs, batch, limit))?;
            std::fs::remove_dir_all(folder)?;
            Ok(vec![rate])
        }))
    };
    let plainjob = bench.install("node").map_err(reason).map(|installed| {
        subject(move || {
            let mut node = Command::new("node");
            node.arg(script("plainjob.cjs")).env("NODE_PATH", installed.file("node_modules"));
            peer_rate(bench, node)
        })
    });
    let huey = bench.install("python").map_err(reason).map(|installed| {
        subject(move || {
            let mut python = Command::new("python3");
            python.arg(script("huey_drain.py")).env("PYTHONPATH", installed.file(""));
            peer_rate(bench, python)
        })
    });
    let [ours, single, plainjob, huey] = interleave("P5", [ours(BATCH), ours(1), plainjob, huey]);
    let mut comparison = Comparison {
        row: "P5",
        metric: "claim + complete, batches of 100",
        peer: "plainjob",
        unit: Unit::PerSecond,
        aim: Aim::RatioAtLeast(2.0),
        note: format!(
            "{jobs} jobs or {} s, synchronous=FULL on both sides; plainjob has no batches: two commits a job, we two a \
             batch",
            limit.as_secs()
        ),
    };
    table.rounds(&comparison, &ours, &plainjob);
    comparison.peer = "huey, fsync";
    comparison.aim = Aim::RatioAtLeast(10.0);
    "huey stores results, so that completion is on disk".clone_into(&mut comparison.note);
    table.rounds(&comparison, &ours, &huey);
    comparison.metric = "claim + complete, one by one";
    comparison.peer = "plainjob";
    comparison.aim = Aim::None;
    "for orientation".clone_into(&mut comparison.note);
    table.rounds(&comparison, &single, &plainjob);
}

/// Runs a peer's script on a new database; it prints how many jobs a second it has done.
fn peer_rate(bench: &Bench, mut command: Command) -> anyhow::Result<Vec<f64>> {
    let folder = bench.folder("peer")?;
    command.arg(folder.join("queue.db")).arg(bench.scale.drained.to_string());
    let printed = run(command.arg(bench.scale.drain_limit.as_secs().to_string()))?;
    std::fs::remove_dir_all(folder)?;
    Ok(vec![printed.trim().parse().context("the script prints a rate")?])
}

/// Fills a new store and yields how many jobs a second one node claims and completes.
async fn drain(folder: &Path, jobs: usize, batch: u32, limit: Duration) -> anyhow::Result<f64> {
    let now = Timestamp::from_second(1_800_000_000)?;
    let url = StoreUrl::Sqlite(folder.join("windlass.db"));
    let store = Store::open(StoreOptions { url, read_connections: 2 }).await?;
    register(&store, now).await?;
    let new: Vec<NewJob> = (0..jobs).map(new_job).collect();
    for some in new.chunks(1000) {
        store.create_jobs(now, some.to_vec()).await?;
    }
    let classes: Vec<i64> = store.unfitted_classes(0).await?.iter().map(|class| class.id).collect();

    let start = Instant::now();
    let mut completed = 0;
    while completed < jobs && start.elapsed() < limit {
        let request = completed.to_string();
        let spec = ClaimSpec {
            node: NODE,
            boot_id: NODE,
            request_id: &request,
            max: batch,
            classes: &classes,
            queues: &[],
            slots: batch,
            capacity: Reserve { cpu_millis: 1_000_000, memory_bytes: 1 << 40, gpus: 0 },
            lease: Duration::from_secs(25),
            lease_continue: Duration::from_secs(900),
            node_offline_default: OfflinePolicy::Stop,
        };
        let claimed = store.claim(now, spec).await?;
        ensure!(!claimed.is_empty(), "{completed} of {jobs} jobs were completed, and no more are to be had");
        let records = claimed.iter().map(|claimed| terminal(claimed, now)).collect();
        let transitions = claimed.iter().map(success).collect();
        let applied = store.apply(now, NODE, records, transitions).await?;
        ensure!(applied.records.iter().all(|outcome| *outcome == Outcome::Accepted), "a record was refused");
        let done = |outcome: &&TransitionOutcome| matches!(outcome, TransitionOutcome::Done(_));
        ensure!(applied.transitions.iter().all(|outcome| done(&outcome)), "a job was not completed");
        completed += claimed.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    store.close().await?;
    Ok(completed as f64 / seconds)
}

async fn register(store: &Store, now: Timestamp) -> anyhow::Result<()> {
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
    let capability = CapabilityReport {
        version: VERSION,
        reported_at: now,
        node: NodeIdentity { node_slug: NODE.to_owned(), name: None, labels: BTreeMap::new() },
        platform: Platform {
            os: "linux".to_owned(),
            distro: None,
            arch: "amd64".to_owned(),
            kernel_version: None,
        },
        compute: Compute { cpu_model: None, cpu_cores: 1000, ram_mb: 1 << 20, storage_free_mb: None },
        container_runtime: None,
        gpu: None,
        sandbox: None,
        agent: None,
    };
    let registration = NodeRegistration {
        name: NODE.to_owned(),
        uid: NODE.to_owned(),
        boot_id: NODE.to_owned(),
        public_key: Some(NODE.into()),
        proven: true,
        token: Some(RedeemedToken { id: NODE.to_owned(), allows_new: true, replaces: None }),
        capability,
        capability_hash: NODE.to_owned(),
        labels: BTreeMap::new(),
        agent_version: "0.0.0".to_owned(),
    };
    store.register_node(now, registration).await?;
    Ok(())
}

fn new_job(number: usize) -> NewJob {
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
        requirement: Requirement { hash: "any".to_owned(), predicates: json!({}) },
        reserve: Reserve { cpu_millis: 100, memory_bytes: 1 << 20, gpus: 0 },
        queue: "default".to_owned(),
        priority: 500,
        phase: JobPhase::Queued,
        idempotency: None,
        input_digests: Vec::new(),
    }
}

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
