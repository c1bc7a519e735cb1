//! Random sequences of operations keep what must always hold:
//! a job is held exactly while it has one live attempt, which has the job's epoch; epochs and versions only grow; a node
//! never holds more than it has; what has ended stays ended until somebody retries it.

use std::collections::HashMap;

use proptest::prelude::*;
use windlass_crds::JobPhase;
use windlass_crds::protocol::AttemptId;
use windlass_store::{
    AttemptPhase, Beat, ClaimedJob, JobFilter, JobPatch, JobRow, Page, RetryOutcome, Store, TransitionOutcome,
};

use crate::fixtures::{
    LEASE, LONG_LEASE, at, claim, ended, in_memory, is_lost, job, log, register, succeeds, terminal,
    transition,
};

const NODES: [&str; 3] = ["a", "b", "c"];
const SLOTS: u32 = 4;
const CPU: u64 = 5;

#[derive(Clone, Debug)]
enum Step {
    Create {
        priority: u16,
        cpu: u64,
        queue: u8,
    },
    Claim {
        node: usize,
        max: u32,
    },
    /// Repeats the node's last request.
    ClaimAgain {
        node: usize,
    },
    Beat {
        node: usize,
    },
    Pass {
        seconds: i64,
    },
    /// What the controller does about ended leases.
    Sweep {
        delay: bool,
    },
    /// The node reports about an attempt that it once got, whether it still has it or not.
    Report {
        claim: usize,
        what: u8,
    },
    Cancel {
        job: usize,
    },
    Retry {
        job: usize,
    },
    Suspend {
        job: usize,
        suspend: bool,
    },
    Delete {
        job: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES.len();
    prop_oneof![
        4 => (prop_oneof![Just(250), Just(500), Just(750)], 0..4u64, 0..2u8)
            .prop_map(|(priority, cpu, queue)| Step::Create { priority, cpu, queue }),
        5 => (node.clone(), 1..4u32).prop_map(|(node, max)| Step::Claim { node, max }),
        1 => node.clone().prop_map(|node| Step::ClaimAgain { node }),
        2 => node.prop_map(|node| Step::Beat { node }),
        2 => (1..20i64).prop_map(|seconds| Step::Pass { seconds }),
        2 => any::<bool>().prop_map(|delay| Step::Sweep { delay }),
        6 => (any::<usize>(), 0..5u8).prop_map(|(claim, what)| Step::Report { claim, what }),
        1 => any::<usize>().prop_map(|job| Step::Cancel { job }),
        1 => any::<usize>().prop_map(|job| Step::Retry { job }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(job, suspend)| Step::Suspend { job, suspend }),
        1 => any::<usize>().prop_map(|job| Step::Delete { job }),
    ]
}

struct World {
    store: Store,
    seconds: i64,
    uids: Vec<String>,
    claims: Vec<ClaimedJob>,
    requests: HashMap<usize, String>,
    last: HashMap<String, JobRow>,
    retried: Vec<String>,
    ever_waited: bool,
}

impl World {
    async fn new() -> Self {
        let store = in_memory().await;
        register(&store, &NODES).await;
        Self {
            store,
            seconds: 0,
            uids: Vec::new(),
            claims: Vec::new(),
            requests: HashMap::new(),
            last: HashMap::new(),
            retried: Vec::new(),
            ever_waited: false,
        }
    }

    fn uid(&self, pick: usize) -> Option<&String> {
        (!self.uids.is_empty()).then(|| &self.uids[pick % self.uids.len()])
    }

    async fn take(&mut self, step: Step) {
        let now = at(self.seconds);
        match step {
            Step::Create { priority, cpu, queue } => {
                let name = format!("job-{}", self.uids.len());
                let new = job(&name).priority(priority).reserve(cpu, 0, 0).queue(&format!("q{queue}"));
                self.uids.push(new.create(&self.store, now).await.uid);
            }
            Step::Claim { node, max } => {
                let request = format!("request {} of {node}", self.requests.len() + self.claims.len());
                self.requests.insert(node, request.clone());
                self.claim(node, max, &request).await;
            }
            Step::ClaimAgain { node } => {
                if let Some(request) = self.requests.get(&node).cloned() {
                    self.claim(node, 1, &request).await;
                }
            }
            Step::Beat { node } => {
                let mine = self.claims.iter().filter(|claim| claim.job.node.as_deref() == Some(NODES[node]));
                let held = mine
                    .map(|claim| AttemptId { job: claim.job.uid.clone(), epoch: claim.epoch })
                    .collect::<Vec<_>>();
                let beat = Beat {
                    node: NODES[node].to_owned(),
                    boot_id: format!("{} boot 1", NODES[node]),
                    held,
                    left: HashMap::new(),
                    slots: SLOTS,
                    not_ready: None,
                    lease: LEASE,
                    lease_continue: LONG_LEASE,
                };
                let outcome = self.store.beat(now, vec![beat]).await.unwrap().remove(0);
                for (renewed, _) in &outcome.renewed {
                    let job = self.store.get_job_by_uid(&renewed.job).await.unwrap().unwrap();
                    assert_eq!((job.epoch, job.node.as_deref()), (renewed.epoch, Some(NODES[node])));
                    assert!(job.phase.is_held());
                }
            }
            Step::Pass { seconds } => self.seconds += seconds,
            Step::Sweep { delay } => {
                let expired = self.store.expired_leases(now, 100).await.unwrap().rows;
                let transitions: Vec<_> = expired
                    .iter()
                    .map(|(job, _)| {
                        if job.lost_attempts >= 2 {
                            transition(job, |set| {
                                set.phase = JobPhase::Failed;
                                set.reason = Some("AttemptsExhausted".to_owned());
                                set.attempt = Some(ended(AttemptPhase::Lost, None));
                            })
                        } else {
                            is_lost(job, delay.then(|| at(self.seconds + 7)))
                        }
                    })
                    .collect();
                let outcomes = self.store.apply_transitions(now, transitions).await.unwrap();
                assert_eq!(outcomes.len(), expired.len());
                for outcome in outcomes {
                    let TransitionOutcome::Done(row) = outcome else { panic!("the sweep was stale") };
                    assert_eq!(self.store.get_job_by_uid(&row.uid).await.unwrap(), Some(row));
                }
            }
            Step::Report { claim, what } => self.report(claim, what).await,
            Step::Cancel { job } => {
                if let Some(uid) = self.uid(job) {
                    self.store.request_cancel(now, uid).await.unwrap();
                }
            }
            Step::Retry { job } => {
                if let Some(uid) = self.uid(job).cloned()
                    && matches!(self.store.retry_job(now, &uid).await.unwrap(), RetryOutcome::Queued(_))
                {
                    self.retried.push(uid);
                }
            }
            Step::Suspend { job, suspend } => {
                if let Some(uid) = self.uid(job).cloned() {
                    let patch = JobPatch { suspend: Some(suspend), ..JobPatch::default() };
                    if let Err(refused) = self.store.update_job(now, &uid, patch, None).await {
                        assert_eq!(refused.kind(), "NotFound", "only a deleted job cannot be changed");
                    }
                }
            }
            Step::Delete { job } => {
                if let Some(uid) = self.uid(job).cloned() {
                    self.store.delete_job(now, &uid, None).await.unwrap();
                }
            }
        }
    }

    async fn claim(&mut self, node: usize, max: u32, request: &str) {
        let ask = claim(NODES[node]).request(request).max(max).slots(SLOTS).capacity(CPU, 0, 0);
        for got in ask.run(&self.store, at(self.seconds)).await {
            assert!(!got.job.suspend || self.claims.iter().any(|old| old.job.uid == got.job.uid));
            assert!(got.job.not_before.is_none());
            self.claims.push(got);
        }
    }

    async fn report(&mut self, pick: usize, what: u8) {
        if self.claims.is_empty() {
            return;
        }
        let claim = self.claims[pick % self.claims.len()].clone();
        let id = AttemptId { job: claim.job.uid.clone(), epoch: claim.epoch };
        let node = claim.job.node.clone().expect("a claimed job has a node");
        // Decide on the newest state, or (what a slow controller does) on that of the claim.
        let current = self.store.get_job_by_uid(&id.job).await.unwrap();
        let job = if what == 4 { Some(claim.job.clone()) } else { current.clone() };
        let Some(job) = job else { return };
        self.ever_waited |= what == 1;
        let (records, transitions) = match what {
            0 => (vec![log(&id, 1, b"x")], vec![transition(&job, |set| set.phase = JobPhase::Running)]),
            1 => (vec![], vec![transition(&job, |set| set.phase = JobPhase::Waiting)]),
            2 => (
                vec![log(&id, 3, b"z")],
                vec![transition(&job, |set| {
                    set.phase = JobPhase::Queued;
                    set.failures += 1;
                    set.attempt = Some(ended(AttemptPhase::Failed, Some(3)));
                })],
            ),
            _ => (vec![terminal(&id, 2)], vec![succeeds(&job, 2)]),
        };
        // The epoch is that of the attempt that reports, whatever the job's is by now.
        let transitions = transitions.into_iter().map(|mut transition| {
            transition.epoch = id.epoch;
            transition
        });
        let applied =
            self.store.apply(at(self.seconds), &node, records, transitions.collect()).await.unwrap();
        let held = current.is_some_and(|job| job.epoch == id.epoch && job.phase.is_held());
        if let TransitionOutcome::Done(row) = &applied.transitions[0] {
            assert!(held || what >= 2, "only a held attempt runs or waits");
            assert_eq!(self.store.get_job_by_uid(&id.job).await.unwrap().as_ref(), Some(row));
        }
    }

    async fn check(&mut self) {
        let (jobs, more) =
            self.store.list_jobs(JobFilter::default(), Page { limit: 1000, cursor: None }).await.unwrap();
        assert_eq!(more, None);
        for job in &jobs {
            let attempts = self.store.attempts(&job.uid).await.unwrap();
            let live: Vec<_> = attempts.iter().filter(|attempt| attempt.phase.is_live()).collect();
            assert_eq!(live.len(), usize::from(job.phase.is_held()), "{job:?} {attempts:?}");
            for attempt in &live {
                assert_eq!((attempt.epoch, Some(&attempt.node)), (job.epoch, job.node.as_ref()));
                assert_eq!((attempt.ended_at, Some(attempt.lease_until)), (None, job.lease_until));
            }
            let epochs: Vec<u64> = attempts.iter().map(|attempt| attempt.epoch).collect();
            assert_eq!(epochs, (1..=job.epoch).collect::<Vec<_>>());
            assert_eq!(u64::from(job.attempts), job.epoch);
            assert_eq!(job.phase.is_terminal(), job.finished_at.is_some());
            if let Some(before) = self.last.get(&job.uid) {
                assert!(job.epoch >= before.epoch && job.resource_version >= before.resource_version);
                if before.phase.is_terminal() && !self.retried.contains(&job.uid) {
                    assert_eq!((job.phase, job.finished_at), (before.phase, before.finished_at));
                }
                if job.resource_version == before.resource_version {
                    assert_eq!(
                        (job.phase, job.epoch, &job.steps),
                        (before.phase, before.epoch, &before.steps)
                    );
                }
            }
        }
        self.retried.clear();
        for node in NODES {
            let held = self.store.live_attempts(node).await.unwrap();
            let mut busy = 0;
            let mut cpu = 0;
            for attempt in &held {
                let job = jobs.iter().find(|job| job.uid == attempt.job).expect("a live attempt has its job");
                if job.phase != JobPhase::Waiting {
                    busy += 1;
                    cpu += attempt.reserve.cpu_millis;
                }
            }
            // A job that waited may come back while others have taken its place; nothing else goes beyond.
            assert!(self.ever_waited || (busy <= SLOTS && cpu <= CPU), "{node}: {held:?}");
        }
        let stats = self.store.queue_stats(at(self.seconds)).await.unwrap();
        let queued = jobs.iter().filter(|job| job.phase == JobPhase::Queued).count() as u64;
        let counted = stats.iter().map(|row| row.totals.queued + row.totals.delayed + row.totals.suspended);
        assert_eq!(counted.sum::<u64>(), queued);
        for job in jobs {
            self.last.insert(job.uid.clone(), job);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_sequences_keep_the_invariants(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
                world.check().await;
            }
        });
    }
}
