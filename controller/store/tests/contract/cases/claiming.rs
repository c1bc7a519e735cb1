//! Claims.

use std::collections::HashSet;

use windlass_crds::JobPhase;
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_store::{AttemptPhase, Error, Store, TransitionOutcome};

use crate::fixtures::{
    LEASE, LONG_LEASE, at, claim, claimed, class_of, finish, is_lost, job, register, reread, transit,
    transition,
};

pub(crate) async fn a_claim_makes_an_attempt_with_a_lease(store: Store) {
    let got = claimed(&store, "n", "a", at(10)).await;
    assert_eq!((got.epoch, got.number, got.lease, got.offline), (1, 1, LEASE, OfflinePolicy::Stop));
    let job = reread(&store, &got.job.uid).await;
    assert_eq!(job, got.job);
    assert_eq!((job.phase, job.node.as_deref(), job.epoch), (JobPhase::Claimed, Some("n"), 1));
    assert_eq!(job.lease_until, Some(at(35)));
    let attempts = store.attempts(&job.uid).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].phase, attempts[0].node.as_str()), (AttemptPhase::Claimed, "n"));
    assert_eq!((attempts[0].claimed_at, attempts[0].lease_until), (at(10), at(35)));
}

pub(crate) async fn two_claimers_never_share_a_job(store: Store) {
    let nodes: Vec<String> = (0..10).map(|n| format!("node-{n}")).collect();
    register(&store, &nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let jobs = (0..1000).map(|n| job(&format!("job-{n}")).build()).collect();
    store.create_jobs(at(0), jobs).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for node in nodes {
        let store = store.clone();
        tasks.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let got = claim(&node).max(7).run(&store, at(1)).await;
                if got.is_empty() {
                    return mine;
                }
                mine.extend(got.into_iter().map(|claimed| claimed.job.uid));
            }
        });
    }
    let claimed: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 1000);
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>().len(), 1000);
}

pub(crate) async fn priority_comes_first_then_age(store: Store) {
    register(&store, &["n"]).await;
    for (name, priority, queue) in [
        ("old-normal", 500, "a"),
        ("old-low", 250, "a"),
        ("new-normal", 500, "b"),
        ("high", 750, "b"),
        ("most", 1000, "a"),
        ("least", 0, "b"),
    ] {
        job(name).priority(priority).queue(queue).create(&store, at(0)).await;
    }
    assert_eq!(claim("n").max(4).names(&store, at(1)).await, ["most", "high", "old-normal", "new-normal"]);
    assert_eq!(claim("n").max(4).names(&store, at(1)).await, ["old-low", "least"]);
}

pub(crate) async fn a_claim_keeps_within_the_slots(store: Store) {
    register(&store, &["n", "m"]).await;
    for n in 0..6 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let first = claim("n").slots(2).run(&store, at(1)).await;
    assert_eq!(first.len(), 2);
    assert!(claim("n").slots(2).run(&store, at(1)).await.is_empty());
    assert_eq!(claim("n").slots(3).run(&store, at(1)).await.len(), 1);
    assert_eq!(claim("m").slots(2).run(&store, at(1)).await.len(), 2, "another node has its own slots");
    finish(&store, &first[0], at(2)).await;
    assert_eq!(claim("n").slots(3).run(&store, at(3)).await.len(), 1);
}

pub(crate) async fn a_claim_keeps_within_cpu_memory_and_gpus(store: Store) {
    for (what, one, capacity) in [
        ("cpu", (1000, 0, 0), (2500, 0, 0)),
        ("memory", (0, 1 << 30, 0), (0, 5 << 29, 0)),
        ("gpus", (0, 0, 2), (0, 0, 5)),
    ] {
        register(&store, &[what]).await;
        for n in 0..3 {
            job(&format!("{what}-{n}")).queue(what).reserve(one.0, one.1, one.2).create(&store, at(0)).await;
        }
        let ask = || claim(what).queues(&[what]).capacity(capacity.0, capacity.1, capacity.2);
        let got = ask().run(&store, at(1)).await;
        assert_eq!(got.len(), 2, "{what}");
        assert!(ask().run(&store, at(1)).await.is_empty(), "{what}");
        finish(&store, &got[0], at(2)).await;
        assert_eq!(ask().run(&store, at(3)).await.len(), 1, "{what}");
    }
}

pub(crate) async fn a_job_too_large_for_what_is_free_hides_nothing(store: Store) {
    register(&store, &["n"]).await;
    job("large").priority(900).reserve(8000, 0, 0).create(&store, at(0)).await;
    job("small-1").reserve(1000, 0, 0).create(&store, at(0)).await;
    job("middle").reserve(2000, 0, 0).create(&store, at(0)).await;
    job("small-2").reserve(1000, 0, 0).create(&store, at(0)).await;
    let got = claim("n").capacity(2000, 0, 0).names(&store, at(1)).await;
    assert_eq!(got, ["small-1", "small-2"], "what fits is taken in order, what does not is passed over");
    assert_eq!(claim("n").capacity(10_000, 0, 0).names(&store, at(1)).await, ["large"]);
}

pub(crate) async fn a_thousand_jobs_too_large_hide_nothing(store: Store) {
    register(&store, &["n"]).await;
    let large = (0..3000).map(|n| job(&format!("large-{n}")).reserve(8000 + n % 3, 0, 0).build()).collect();
    store.create_jobs(at(0), large).await.unwrap();
    job("small").priority(0).reserve(1000, 0, 0).create(&store, at(0)).await;
    assert_eq!(claim("n").capacity(2000, 0, 0).names(&store, at(1)).await, ["small"]);
}

pub(crate) async fn only_served_queues_are_claimed(store: Store) {
    register(&store, &["n"]).await;
    for queue in ["a", "b", "c"] {
        job(queue).queue(queue).create(&store, at(0)).await;
    }
    assert_eq!(claim("n").queues(&["b", "c", "d"]).names(&store, at(1)).await, ["b", "c"]);
    assert_eq!(claim("n").names(&store, at(1)).await, ["a"], "no queue named means all");
}

pub(crate) async fn only_fitting_classes_are_claimed(store: Store) {
    register(&store, &["n"]).await;
    for class in ["gpu", "arm", "any"] {
        job(class).class(class).create(&store, at(0)).await;
    }
    let (gpu, any) = (class_of(&store, "gpu").await, class_of(&store, "any").await);
    assert!(claim("n").classes(&[]).run(&store, at(1)).await.is_empty());
    assert!(claim("n").classes(&[999]).run(&store, at(1)).await.is_empty());
    assert_eq!(claim("n").classes(&[any, gpu]).names(&store, at(1)).await, ["gpu", "any"]);
}

/// Creates `jobs` jobs spread over `classes` classes, named in the order in which they are to be claimed.
async fn spread(store: &Store, jobs: usize, classes: usize) {
    let batch =
        (0..jobs).map(|n| job(&format!("job-{n:05}")).class(&format!("class-{}", n % classes)).build());
    store.create_jobs(at(0), batch.collect()).await.unwrap();
}

pub(crate) async fn many_classes_are_claimed_in_order(store: Store) {
    register(&store, &["n"]).await;
    spread(&store, 900, 300).await;
    let wanted: Vec<String> = (0..900).map(|n| format!("job-{n:05}")).collect();
    let mut got = Vec::new();
    for _ in 0..9 {
        got.extend(claim("n").max(100).names(&store, at(1)).await);
    }
    assert_eq!(got, wanted);
}

pub(crate) async fn a_node_that_fits_few_of_many_classes_finds_its_jobs(store: Store) {
    register(&store, &["n"]).await;
    spread(&store, 3000, 1000).await;
    let classes = [class_of(&store, "class-998").await, class_of(&store, "class-7").await];
    let got = claim("n").classes(&classes).max(5).names(&store, at(1)).await;
    assert_eq!(got, ["job-00007", "job-00998", "job-01007", "job-01998", "job-02007"]);
    assert_eq!(claim("n").classes(&classes).max(5).names(&store, at(1)).await, ["job-02998"]);
}

pub(crate) async fn a_fitting_job_behind_thousands_that_do_not_fit_is_found(store: Store) {
    register(&store, &["n"]).await;
    let front = (0..5000).map(|n| job(&format!("front-{n}")).class("other").priority(900).build()).collect();
    store.create_jobs(at(0), front).await.unwrap();
    spread(&store, 400, 200).await;
    let mut classes = Vec::new();
    for class in store.unfitted_classes(0).await.unwrap() {
        if class.hash != "other" {
            classes.push(class.id);
        }
    }
    assert_eq!(classes.len(), 200);
    let wanted: Vec<String> = (0..400).map(|n| format!("job-{n:05}")).collect();
    let mut got = claim("n").classes(&classes).max(250).names(&store, at(1)).await;
    got.extend(claim("n").classes(&classes).max(250).names(&store, at(1)).await);
    assert_eq!(got, wanted);
}

pub(crate) async fn lanes_that_run_dry_give_way_to_others_in_order(store: Store) {
    register(&store, &["n"]).await;
    // One lane with much, several with little, of several sizes, interleaved.
    let mut wanted = Vec::new();
    let mut batch = Vec::new();
    for n in 0..200 {
        let name = format!("job-{n:03}");
        let (class, cpu) =
            if n % 10 == 0 { (format!("rare-{}", n / 10 % 4), 3) } else { ("common".to_owned(), 2) };
        batch.push(job(&name).class(&class).reserve(cpu, 0, 0).build());
        wanted.push((name, cpu));
    }
    store.create_jobs(at(0), batch).await.unwrap();
    // Room for exactly the first 150.
    let room: u64 = wanted.iter().take(150).map(|(_, cpu)| cpu).sum();
    let got = claim("n").max(200).capacity(room, 0, 0).names(&store, at(1)).await;
    let wanted: Vec<String> = wanted.into_iter().take(150).map(|(name, _)| name).collect();
    assert_eq!(got, wanted);
}

pub(crate) async fn a_delayed_job_is_claimed_when_its_time_has_come(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let row = transit(&store, at(1), is_lost(&got.job, Some(at(60)))).await;
    assert_eq!((row.phase, row.not_before), (JobPhase::Queued, Some(at(60))));
    assert!(claim("n").run(&store, at(59)).await.is_empty());
    let again = claim("n").run(&store, at(60)).await;
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].epoch, again[0].job.not_before), (2, None));
}

pub(crate) async fn the_next_ready_time_is_the_earliest_in_the_future(store: Store) {
    assert_eq!(store.next_ready_at(at(0)).await.unwrap(), None);
    for (name, not_before) in [("a", 60), ("b", 30)] {
        let got = claimed(&store, "n", name, at(0)).await;
        transit(&store, at(1), is_lost(&got.job, Some(at(not_before)))).await;
    }
    job("c").create(&store, at(0)).await;
    assert_eq!(store.next_ready_at(at(2)).await.unwrap(), Some(at(30)));
    assert_eq!(store.next_ready_at(at(30)).await.unwrap(), Some(at(60)));
    assert_eq!(store.next_ready_at(at(60)).await.unwrap(), None);
}

pub(crate) async fn a_repeated_request_yields_the_same_attempts(store: Store) {
    register(&store, &["n", "m"]).await;
    for n in 0..4 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let first = claim("n").request("r").max(2).run(&store, at(1)).await;
    let again = claim("n").request("r").max(2).run(&store, at(11)).await;
    let ids = |got: &[windlass_store::ClaimedJob]| {
        let mut ids: Vec<_> = got.iter().map(|claimed| (claimed.job.uid.clone(), claimed.epoch)).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(again[0].job.lease_until, Some(at(36)), "the lease counts from the repetition");
    let other = claim("m").request("r").max(2).run(&store, at(1)).await;
    assert_eq!(other.len(), 2, "a request belongs to its node");
    assert_ne!(ids(&first), ids(&other));
}

pub(crate) async fn what_a_repeated_request_yields_is_given_back_by_nobody_who_had_it_before(store: Store) {
    register(&store, &["n"]).await;
    job("a").create(&store, at(0)).await;
    let first = claim("n").request("r").run(&store, at(1)).await.remove(0);
    let again = claim("n").request("r").run(&store, at(2)).await.remove(0);
    assert_eq!((first.repeated, again.repeated), (false, true));
    assert_eq!(again.job, reread(&store, &again.job.uid).await);
    let outcomes = store.apply_transitions(at(3), vec![is_lost(&first.job, None)]).await.unwrap();
    assert_eq!(outcomes, [TransitionOutcome::Stale]);
    transit(&store, at(3), is_lost(&again.job, None)).await;
}

pub(crate) async fn a_repeated_request_leaves_out_what_has_ended(store: Store) {
    register(&store, &["n"]).await;
    for n in 0..2 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let first = claim("n").request("r").run(&store, at(1)).await;
    finish(&store, &first[0], at(2)).await;
    let again = claim("n").request("r").run(&store, at(3)).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].job.uid, first[1].job.uid);
}

pub(crate) async fn an_unregistered_node_claims_nothing(store: Store) {
    job("a").create(&store, at(0)).await;
    let refused = claim("nobody").try_run(&store, at(1)).await.unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
    let config = windlass_store::NewNodeConfig {
        name: "declared".into(),
        uid: "u".into(),
        spec: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
        expected_version: None,
    };
    store.put_node_config(at(0), config).await.unwrap();
    let refused = claim("declared").try_run(&store, at(1)).await.unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
}

pub(crate) async fn another_run_of_the_agent_claims_nothing(store: Store) {
    register(&store, &["n"]).await;
    job("a").create(&store, at(0)).await;
    let refused = claim("n").boot("another").try_run(&store, at(1)).await.unwrap_err();
    assert!(matches!(refused, Error::OtherBoot { ref node } if node == "n"), "{refused}");
}

pub(crate) async fn the_policy_for_offline_times_chooses_the_lease(store: Store) {
    register(&store, &["n"]).await;
    let policy = |policy| move |spec: &mut windlass_crds::SandboxJobSpec| spec.offline = policy;
    job("says-nothing").spec(policy(None)).create(&store, at(0)).await;
    job("stops").spec(policy(Some(OfflinePolicy::Stop))).create(&store, at(0)).await;
    job("continues").spec(policy(Some(OfflinePolicy::Continue))).create(&store, at(0)).await;
    let got = claim("n").offline(OfflinePolicy::Continue).run(&store, at(0)).await;
    let leases: Vec<_> = got.iter().map(|claimed| claimed.lease).collect();
    assert_eq!(leases, [LONG_LEASE, LEASE, LONG_LEASE]);
    for claimed in got {
        let attempt = store.attempts(&claimed.job.uid).await.unwrap().remove(0);
        assert_eq!(attempt.offline, claimed.offline);
        let lease = i64::try_from(claimed.lease.as_secs()).unwrap();
        assert_eq!(attempt.lease_until, at(lease));
    }
}

pub(crate) async fn a_waiting_job_frees_its_slot_and_cpu_but_not_its_memory(store: Store) {
    register(&store, &["n"]).await;
    job("a").reserve(1000, 100, 0).create(&store, at(0)).await;
    let ask = || claim("n").slots(1).capacity(1000, 150, 0);
    let got = ask().run(&store, at(1)).await.remove(0);
    job("b").reserve(1000, 50, 0).create(&store, at(2)).await;
    job("c").reserve(0, 51, 0).priority(900).create(&store, at(2)).await;
    assert!(ask().run(&store, at(2)).await.is_empty());
    let waits = transit(&store, at(3), transition(&got.job, |set| set.phase = JobPhase::Waiting)).await;
    assert_eq!(ask().names(&store, at(4)).await, ["b"]);
    let attempt = store.attempts(&waits.uid).await.unwrap().remove(0);
    assert_eq!(attempt.phase, AttemptPhase::Running);
}

pub(crate) async fn a_claim_is_noted_on_the_node(store: Store) {
    register(&store, &["n"]).await;
    assert_eq!(store.get_node("n").await.unwrap().unwrap().last_claim_at, None);
    claim("n").max(0).run(&store, at(7)).await;
    let node = store.get_node("n").await.unwrap().unwrap();
    assert_eq!((node.last_claim_at, node.last_seen_at), (Some(at(7)), Some(at(7))));
}

pub(crate) async fn nothing_is_claimed_for_a_maximum_of_zero(store: Store) {
    register(&store, &["n"]).await;
    job("a").create(&store, at(0)).await;
    assert!(claim("n").max(0).run(&store, at(1)).await.is_empty());
    assert!(claim("n").slots(0).run(&store, at(1)).await.is_empty());
}
