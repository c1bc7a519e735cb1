//! Measures the store: how fast no-op jobs are claimed and completed, and what a claim costs as the backlog and the
//! number of requirement classes grow.
//!
//! ```text
//! drain [FOLDER|postgres] [--jobs N] [--batch N] [--workers N] [--only drain|single|backlog|classes]
//! ```
//!
//! The database is made in FOLDER (default: the system's temporary folder), or on a PostgreSQL server that is started for it,
//! with the settings of production: a write that was acknowledged is on disk.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::json;
use windlass_crds::protocol::{AttemptId, CapabilityReport, Outcome};
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_crds::{JobPhase, SandboxJobSpec};
use windlass_store::{
    AttemptChange, AttemptPhase, ClaimSpec, ClaimedJob, CreateOutcome, JobChange, JoinTokenRow, NewJob,
    NewRecord, NodeRegistration, RecordKind, RecordStore, RedeemedToken, RegisterOutcome, Requirement,
    Reserve, Store, StoreOptions, StoreUrl, Transition, TransitionOutcome,
};
use windlass_test_postgres::Server;

struct Settings {
    place: Place,
    jobs: usize,
    batch: u32,
    workers: usize,
    only: Option<String>,
}

/// Where databases are made.
#[derive(Clone)]
enum Place {
    Folder(PathBuf),
    Server(Arc<Server>),
}

fn main() -> anyhow::Result<()> {
    let mut settings = Settings {
        place: Place::Folder(std::env::temp_dir()),
        jobs: 100_000,
        batch: 100,
        workers: 4,
        only: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--jobs" => settings.jobs = value()?.parse()?,
            "--batch" => settings.batch = value()?.parse()?,
            "--workers" => settings.workers = value()?.parse()?,
            "--only" => settings.only = Some(value()?),
            "postgres" => settings.place = Place::Server(Arc::new(Server::own())),
            folder if !folder.starts_with('-') => settings.place = Place::Folder(folder.into()),
            other => bail!("unknown option {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let wanted = |name: &str| settings.only.as_deref().is_none_or(|only| only == name);
        if wanted("drain") {
            drain(&settings.place, settings.jobs, settings.batch, 1).await?;
            drain(&settings.place, settings.jobs, settings.batch, settings.workers).await?;
        }
        if wanted("single") {
            let few = settings.jobs.min(5_000);
            drain(&settings.place, few, 1, 1).await?;
            drain(&settings.place, few, 1, settings.workers).await?;
        }
        if wanted("backlog") {
            backlog(&settings).await?;
        }
        if wanted("classes") {
            classes(&settings).await?;
        }
        Ok(())
    })
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time in this century")
}

const NODE: &str = "bench";

/// An empty store of its own, with one registered node. The folder goes with it, the server with the program.
#[derive(Clone)]
struct Bench {
    store: Store,
    requests: Arc<AtomicU64>,
    /// What the database needs to stay.
    _kept: Arc<Kept>,
}

enum Kept {
    Folder { _folder: tempfile::TempDir },
    Server { _server: Arc<Server> },
}

impl Bench {
    async fn new(place: &Place) -> anyhow::Result<Self> {
        let (url, kept) = match place {
            Place::Folder(folder) => {
                let folder = tempfile::tempdir_in(folder)?;
                (StoreUrl::Sqlite(folder.path().join("windlass.db")), Kept::Folder { _folder: folder })
            }
            Place::Server(server) => {
                let url = server.database().url();
                (StoreUrl::Postgres(url.parse()?), Kept::Server { _server: Arc::clone(server) })
            }
        };
        let store = Store::open(StoreOptions { url, read_connections: 4 }).await?;
        let token = JoinTokenRow {
            id: "bench".into(),
            secret_hash: [0; 32],
            description: String::new(),
            expires_at: None,
            max_uses: None,
            uses: 0,
            replaces: None,
            created_at: now(),
            revoked_at: None,
        };
        store.create_join_token(now(), token).await?;
        let capability: CapabilityReport = serde_json::from_value(json!({
            "version": 1,
            "reported_at": "2026-01-01T00:00:00Z",
            "node": { "node_slug": NODE },
            "platform": { "os": "linux", "arch": "amd64" },
            "compute": { "cpu_cores": 2, "ram_mb": 4096 },
        }))?;
        let registration = NodeRegistration {
            name: NODE.into(),
            uid: NODE.into(),
            boot_id: NODE.into(),
            public_key: None,
            proven: false,
            token: Some(RedeemedToken { id: "bench".into(), allows_new: true, replaces: None }),
            capability,
            capability_hash: "1".into(),
            labels: Default::default(),
            agent_version: "1".into(),
        };
        match store.register_node(now(), registration).await? {
            RegisterOutcome::Created(_) => {
                Ok(Self { store, requests: Arc::default(), _kept: Arc::new(kept) })
            }
            other => bail!("the node was not created: {other:?}"),
        }
    }

    /// Fills the queue, job `n` in class `n % classes`.
    async fn fill(&self, from: usize, count: usize, classes: usize) -> anyhow::Result<()> {
        let mut n = from;
        while n < from + count {
            let until = (n + 1000).min(from + count);
            let batch = (n..until).map(|n| no_op(n, &format!("class-{}", n % classes))).collect();
            for outcome in self.store.create_jobs(now(), batch).await? {
                if !matches!(outcome, CreateOutcome::Created(_)) {
                    bail!("a job was not created: {outcome:?}");
                }
            }
            n = until;
        }
        Ok(())
    }

    async fn claim(&self, max: u32, classes: &[i64]) -> anyhow::Result<Vec<ClaimedJob>> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let spec = ClaimSpec {
            node: NODE,
            boot_id: NODE,
            request_id: &request.to_string(),
            max,
            classes,
            queues: &[],
            slots: u32::MAX,
            capacity: Reserve { cpu_millis: 1 << 40, memory_bytes: 1 << 50, gpus: 0 },
            lease: Duration::from_secs(25),
            lease_continue: Duration::from_secs(900),
            node_offline_default: OfflinePolicy::Stop,
            on_behalf: false,
        };
        Ok(self.store.claim(now(), spec).await?)
    }

    /// Reports the end of every job, in one batch.
    async fn complete(&self, claimed: Vec<ClaimedJob>) -> anyhow::Result<()> {
        let mut records = Vec::with_capacity(claimed.len());
        let mut transitions = Vec::with_capacity(claimed.len());
        for ClaimedJob { job, epoch, .. } in claimed {
            let attempt = AttemptId { job: job.uid.clone(), epoch };
            records.push(NewRecord {
                attempt,
                sequence: 1,
                at: now(),
                kind: RecordKind::Terminal,
                step: None,
                stream: None,
                offset: None,
                body: RecordStore::Json(
                    json!({ "phase": "succeeded", "reason": "Completed", "last_sequence": 1 }),
                ),
            });
            let mut set = JobChange::of(&job);
            set.phase = JobPhase::Succeeded;
            set.reason = Some("Completed".into());
            set.exit_code = Some(0);
            set.attempt = Some(AttemptChange {
                phase: AttemptPhase::Succeeded,
                reason: Some("Completed".into()),
                message: None,
                exit_code: Some(0),
                ended_at: None,
                last_sequence: Some(1),
            });
            transitions.push(Transition { job: job.uid, epoch, expect_version: job.resource_version, set });
        }
        let applied = self.store.apply(now(), NODE, records, transitions).await?;
        let all_done = applied.records.iter().all(|outcome| *outcome == Outcome::Accepted)
            && applied.transitions.iter().all(|outcome| matches!(outcome, TransitionOutcome::Done(_)));
        if all_done { Ok(()) } else { bail!("a job was not completed") }
    }

    async fn class_ids(&self) -> anyhow::Result<Vec<i64>> {
        Ok(self.store.unfitted_classes(0).await?.into_iter().map(|class| class.id).collect())
    }
}

fn no_op(n: usize, class: &str) -> NewJob {
    NewJob {
        uid: format!("00000000-0000-7000-8000-{n:012x}"),
        namespace: "bench".into(),
        name: format!("no-op-{n}"),
        labels: Default::default(),
        annotations: Default::default(),
        spec: SandboxJobSpec {
            queue: "default".into(),
            command: Some(vec!["true".into()]),
            ..SandboxJobSpec::default()
        },
        spec_hash: "5df6e0e2761359d30a8275058e299fcc0381534545f55cf43e41983f5d4c9456".into(),
        requirement: Requirement { hash: class.into(), predicates: json!({ "class": class }) },
        reserve: Reserve { cpu_millis: 100, memory_bytes: 1 << 20, gpus: 0 },
        queue: "default".into(),
        priority: 500,
        phase: JobPhase::Queued,
        idempotency: None,
        input_digests: Vec::new(),
    }
}

/// The processor time that this process has taken so far, all threads together: steadier than the clock on a machine
/// that others use too.
fn processor_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("the format of /proc/self/stat has changed")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || anyhow::Ok(fields.next().context("/proc/self/stat is too short")?.parse::<u64>()?);
    // Linux reports in hundredths of a second whatever the kernel's own rate is.
    Ok(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

async fn drain(place: &Place, jobs: usize, batch: u32, workers: usize) -> anyhow::Result<()> {
    let bench = Bench::new(place).await?;
    let started = Instant::now();
    bench.fill(0, jobs, 1).await?;
    println!("create    {:>9.0} jobs/s in batches of 1000", per_second(jobs, started.elapsed()));
    let classes = bench.class_ids().await?;
    let processor = processor_time()?;
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (bench, classes) = (bench.clone(), classes.clone());
        tasks.spawn(async move {
            let mut done = 0;
            loop {
                let claimed = bench.claim(batch, &classes).await?;
                if claimed.is_empty() {
                    return anyhow::Ok(done);
                }
                done += claimed.len();
                bench.complete(claimed).await?;
            }
        });
    }
    let mut done = 0;
    while let Some(worker) = tasks.join_next().await {
        done += worker??;
    }
    let took = started.elapsed();
    let processor = processor_time()? - processor;
    if done != jobs {
        bail!("{done} of {jobs} jobs were completed");
    }
    println!(
        "drain     {:>9.0} jobs/s claimed and completed in batches of {batch} by {workers} at a time \
         ({:.0} us of processor time a job)",
        per_second(done, took),
        processor.as_secs_f64() * 1e6 / done as f64
    );
    Ok(())
}

/// The median time of a claim of one job, over `rounds`; the jobs are put back out of reach by completing them.
async fn claim_time(bench: &Bench, classes: &[i64], rounds: usize) -> anyhow::Result<Duration> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let claimed = bench.claim(1, classes).await?;
        times.push(started.elapsed());
        if claimed.len() != 1 {
            bail!("there was nothing to claim");
        }
        bench.complete(claimed).await?;
    }
    times.sort_unstable();
    Ok(times[rounds / 2])
}

async fn backlog(settings: &Settings) -> anyhow::Result<()> {
    let bench = Bench::new(&settings.place).await?;
    let (mut filled, mut first) = (0, None);
    for target in [1_000, 10_000, 100_000, 1_000_000] {
        bench.fill(filled, target - filled, 1).await?;
        filled = target;
        let classes = bench.class_ids().await?;
        let time = claim_time(&bench, &classes, 300).await?;
        let base = *first.get_or_insert(time);
        println!(
            "backlog   {target:>9} queued: a claim takes {:>7.0} us, {:.2} x of the first",
            time.as_secs_f64() * 1e6,
            time.as_secs_f64() / base.as_secs_f64()
        );
    }
    Ok(())
}

async fn classes(settings: &Settings) -> anyhow::Result<()> {
    let mut first = None;
    for count in [1, 100, 10_000] {
        let bench = Bench::new(&settings.place).await?;
        bench.fill(0, 100_000, count).await?;
        let all = bench.class_ids().await?;
        let one = &all[all.len() / 2..=all.len() / 2];
        // Ten jobs are all that one of 10,000 classes has.
        for (what, fits, rounds) in [("all", all.as_slice(), 300), ("one", one, 9)] {
            let time = claim_time(&bench, fits, rounds).await?;
            let base = *first.get_or_insert(time);
            println!(
                "classes   {count:>9} in the queue, {what} of them fit: a claim takes {:>7.0} us, {:.2} x of the first",
                time.as_secs_f64() * 1e6,
                time.as_secs_f64() / base.as_secs_f64()
            );
        }
    }
    Ok(())
}
