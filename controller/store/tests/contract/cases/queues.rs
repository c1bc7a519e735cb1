//! Queues: what is set for them, and the order in them.

use std::collections::HashMap;

use windlass_crds::JobPhase;
use windlass_store::{Change, ClaimedJob, QueueSettings, RetryOutcome, Store};

use crate::fixtures::{at, claim, finish, is_lost, job, register, transit, transition};

const fn limit(concurrency: u32) -> QueueSettings {
    QueueSettings { weight: 1, concurrency: Some(concurrency) }
}

const fn weight(weight: u32) -> QueueSettings {
    QueueSettings { weight, concurrency: None }
}

async fn fill(store: &Store, queue: &str, jobs: usize) {
    let batch = (0..jobs).map(|n| job(&format!("{queue}-{n:04}")).queue(queue).build());
    store.create_jobs(at(0), batch.collect()).await.unwrap();
}

fn by_queue(claimed: &[ClaimedJob]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for claimed in claimed {
        *counts.entry(claimed.job.queue.as_str()).or_default() += 1;
    }
    counts
}

pub(crate) async fn a_job_that_has_waited_long_enough_is_not_overtaken(store: Store) {
    register(&store, &["n"]).await;
    job("low").priority(250).create(&store, at(0)).await;
    job("soon").priority(500).create(&store, at(249 * 60)).await;
    job("late").priority(500).create(&store, at(251 * 60)).await;
    let order = claim("n").names(&store, at(252 * 60)).await;
    assert_eq!(order, ["soon", "low", "late"], "a point of priority is worth a minute of waiting");
}

pub(crate) async fn a_lost_job_keeps_its_place_and_one_that_is_opened_again_waits_anew(store: Store) {
    register(&store, &["n"]).await;
    job("first").create(&store, at(0)).await;
    let got = claim("n").run(&store, at(1)).await.remove(0);
    job("second").create(&store, at(600)).await;
    transit(&store, at(1200), is_lost(&got.job, Some(at(1300)))).await;
    assert_eq!(claim("n").max(1).names(&store, at(1300)).await, ["first"], "also after a delay");

    let ended = job("ended").create(&store, at(1300)).await;
    store.request_cancel(at(1301), &ended.uid).await.unwrap();
    job("third").create(&store, at(2000)).await;
    assert!(matches!(store.retry_job(at(3000), &ended.uid).await.unwrap(), RetryOutcome::Queued(_)));
    assert_eq!(claim("n").names(&store, at(3001)).await, ["second", "third", "ended"]);
}

pub(crate) async fn a_limit_holds_over_all_nodes_and_hides_nothing(store: Store) {
    register(&store, &["n", "m"]).await;
    store.set_queue(at(0), "few", limit(3)).await.unwrap();
    fill(&store, "few", 10).await;
    fill(&store, "many", 10).await;
    let first = claim("n").queues(&["few"]).max(2).run(&store, at(1)).await;
    assert_eq!(first.len(), 2);
    let second = claim("m").max(8).run(&store, at(1)).await;
    assert_eq!(by_queue(&second), HashMap::from([("few", 1), ("many", 7)]));
    assert_eq!(by_queue(&claim("n").max(2).run(&store, at(1)).await), HashMap::from([("many", 2)]));
    finish(&store, &first[0], at(2)).await;
    // A job that waits for an answer runs nothing.
    transit(&store, at(2), transition(&first[1].job, |set| set.phase = JobPhase::Waiting)).await;
    assert_eq!(by_queue(&claim("n").queues(&["few"]).run(&store, at(3)).await), HashMap::from([("few", 2)]));
    store.set_queue(at(4), "few", limit(4)).await.unwrap();
    assert_eq!(claim("n").queues(&["few"]).run(&store, at(4)).await.len(), 1);
    store.set_queue(at(5), "few", limit(0)).await.unwrap();
    assert_eq!(claim("n").queues(&["few"]).run(&store, at(5)).await.len(), 0, "a limit of nothing stops it");
    assert!(store.unset_queue("few").await.unwrap());
    assert_eq!(claim("n").queues(&["few"]).run(&store, at(6)).await.len(), 10 - 3 - 2 - 1);
}

pub(crate) async fn claimers_at_the_same_time_keep_a_limit_together(store: Store) {
    let nodes: Vec<String> = (0..8).map(|n| format!("node-{n}")).collect();
    register(&store, &nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    store.set_queue(at(0), "few", limit(5)).await.unwrap();
    fill(&store, "few", 50).await;
    let mut tasks = tokio::task::JoinSet::new();
    for node in nodes {
        let store = store.clone();
        tasks.spawn(async move { claim(&node).max(2).run(&store, at(1)).await.len() });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 5);
}

pub(crate) async fn a_limit_holds_with_many_classes(store: Store) {
    register(&store, &["n"]).await;
    store.set_queue(at(0), "few", limit(7)).await.unwrap();
    let batch = (0..600).map(|n| {
        let queue = if n % 2 == 0 { "few" } else { "many" };
        job(&format!("job-{n:03}")).queue(queue).class(&format!("class-{}", n % 300)).build()
    });
    store.create_jobs(at(0), batch.collect()).await.unwrap();
    let got = claim("n").max(100).run(&store, at(1)).await;
    assert_eq!(by_queue(&got), HashMap::from([("few", 7), ("many", 93)]));
}

pub(crate) async fn weights_share_what_runs(store: Store) {
    register(&store, &["n", "m"]).await;
    store.set_queue(at(0), "heavy", weight(3)).await.unwrap();
    for queue in ["heavy", "light", "other"] {
        fill(&store, queue, 40).await;
    }
    let got = claim("n").max(10).run(&store, at(1)).await;
    assert_eq!(by_queue(&got), HashMap::from([("heavy", 6), ("light", 2), ("other", 2)]));
    // What runs already counts: a queue that has had its share waits until others have theirs.
    let heavy: Vec<_> = got.iter().filter(|claimed| claimed.job.queue == "heavy").collect();
    for claimed in &heavy[..4] {
        finish(&store, claimed, at(2)).await;
    }
    let got = claim("m").max(4).run(&store, at(3)).await;
    assert_eq!(by_queue(&got), HashMap::from([("heavy", 4)]));
    // A queue that has nothing leaves its share to the others.
    assert_eq!(claim("m").queues(&["light", "other"]).max(76).run(&store, at(4)).await.len(), 76);
    assert_eq!(claim("m").max(100).run(&store, at(5)).await.len(), 30);
}

pub(crate) async fn weights_share_with_many_classes_and_sizes(store: Store) {
    register(&store, &["n"]).await;
    store.set_queue(at(0), "heavy", weight(4)).await.unwrap();
    let batch = (0..600).map(|n| {
        let queue = if n % 2 == 0 { "heavy" } else { "light" };
        let job = job(&format!("job-{n:03}")).queue(queue).class(&format!("class-{}", n % 300));
        // One in three is too large for the node.
        job.reserve(if n % 3 == 0 { 9000 } else { 10 }, 0, 0).build()
    });
    store.create_jobs(at(0), batch.collect()).await.unwrap();
    let got = claim("n").max(50).capacity(5000, 0, 0).run(&store, at(1)).await;
    assert_eq!(by_queue(&got), HashMap::from([("heavy", 40), ("light", 10)]));
    let rest = claim("n").max(1000).capacity(5000, 0, 0).run(&store, at(2)).await;
    assert_eq!(rest.len(), 350, "everything that fits is found in the end");
}

pub(crate) async fn priority_and_age_order_the_jobs_of_a_queue_with_a_weight(store: Store) {
    register(&store, &["n"]).await;
    store.set_queue(at(0), "q", weight(2)).await.unwrap();
    for (name, priority) in [("a", 500), ("b", 750), ("c", 500), ("d", 250)] {
        job(name).queue("q").priority(priority).create(&store, at(0)).await;
    }
    assert_eq!(claim("n").names(&store, at(1)).await, ["b", "a", "c", "d"]);
}

pub(crate) async fn settings_are_listed_with_what_runs(store: Store) {
    register(&store, &["n"]).await;
    assert_eq!(store.queue_settings().await.unwrap(), []);
    let mut changes = store.changes();
    assert!(store.set_queue(at(0), "q", limit(2)).await.unwrap());
    assert_eq!(changes.try_recv(), Ok(Change::Queued), "those who wait for work look again");
    assert!(!store.set_queue(at(1), "q", limit(2)).await.unwrap(), "it was so already");
    assert!(changes.try_recv().is_err());
    fill(&store, "q", 3).await;
    claim("n").run(&store, at(1)).await;
    let row = store.queue_settings().await.unwrap().remove(0);
    assert_eq!((row.queue.as_str(), row.settings, row.running, row.has_ready), ("q", limit(2), 2, true));
    store.set_queue(at(2), "q", weight(5)).await.unwrap();
    claim("n").run(&store, at(3)).await;
    let row = store.queue_settings().await.unwrap().remove(0);
    assert_eq!((row.settings, row.running, row.has_ready), (weight(5), 3, false));
    assert!(store.unset_queue("q").await.unwrap());
    assert!(!store.unset_queue("q").await.unwrap());
    assert_eq!(store.queue_settings().await.unwrap(), []);
}
