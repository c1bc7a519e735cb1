//! What tells why a job waits.

use windlass_crds::JobPhase;
use windlass_store::{HolderRow, NodeUsage, QueuePosition, Reserve, Store};

use crate::fixtures::{at, claim, finish, job, register, transit, transition};

pub(crate) async fn usage_sums_up_what_each_node_holds(store: Store) {
    register(&store, &["a", "b", "idle"]).await;
    for (name, queue) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        job(name).queue(queue).reserve(500, 1 << 20, 1).create(&store, at(0)).await;
    }
    let first = claim("a").queues(&["a"]).run(&store, at(1)).await;
    claim("b").queues(&["b"]).run(&store, at(1)).await;
    let usage = |node: &str, slots, cpu_millis, memory_bytes, gpus| NodeUsage {
        node: node.to_owned(),
        slots,
        reserve: Reserve { cpu_millis, memory_bytes, gpus },
    };
    let found = store.node_usage().await.unwrap();
    assert_eq!(found, [usage("a", 2, 1000, 2 << 20, 2), usage("b", 1, 500, 1 << 20, 1)]);
    // A job that waits for an answer keeps its memory and frees its slot and processors.
    transit(&store, at(2), transition(&first[0].job, |set| set.phase = JobPhase::Waiting)).await;
    assert_eq!(store.node_usage().await.unwrap()[0], usage("a", 1, 500, 2 << 20, 2));
    finish(&store, &first[1], at(3)).await;
    assert_eq!(store.node_usage().await.unwrap()[0], usage("a", 0, 0, 1 << 20, 1));
}

pub(crate) async fn holders_are_the_jobs_of_the_nodes_asked_for(store: Store) {
    register(&store, &["a", "b"]).await;
    for (name, queue) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        job(name).queue(queue).reserve(500, 0, 0).create(&store, at(0)).await;
    }
    let first = claim("a").queues(&["a"]).run(&store, at(1)).await;
    claim("b").queues(&["b"]).run(&store, at(1)).await;
    let holder = |node: &str, name: &str| HolderRow {
        node: node.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        waiting: false,
        reserve: Reserve { cpu_millis: 500, ..Reserve::default() },
    };
    assert_eq!(store.holders(&["a"], 10).await.unwrap(), [holder("a", "a1"), holder("a", "a2")]);
    assert_eq!(store.holders(&["b", "a", "none"], 2).await.unwrap(), [holder("a", "a1"), holder("a", "a2")]);
    assert_eq!(store.holders(&[], 10).await.unwrap(), []);
    finish(&store, &first[0], at(2)).await;
    assert_eq!(store.holders(&["a"], 10).await.unwrap(), [holder("a", "a2")]);
}

pub(crate) async fn a_position_counts_the_ready_jobs_of_the_queue_that_are_before(store: Store) {
    register(&store, &["n"]).await;
    for (name, queue, priority) in
        [("a1", "a", 500), ("b1", "b", 500), ("a2", "a", 500), ("a3", "a", 750), ("a4", "a", 500)]
    {
        job(name).queue(queue).priority(priority).create(&store, at(0)).await;
    }
    let position = async |name: &str| {
        let row = store.get_job("default", name).await.unwrap().unwrap();
        store.queue_position(&row.uid).await.unwrap()
    };
    let at_position = |ahead| Some(QueuePosition { ahead, at_least: false });
    assert_eq!(position("a3").await, at_position(0));
    assert_eq!(position("a4").await, at_position(3));
    assert_eq!(position("b1").await, at_position(0));
    claim("n").queues(&["a"]).max(2).run(&store, at(1)).await;
    assert_eq!(position("a4").await, at_position(1));
    assert_eq!(position("a3").await, None, "it does not wait any more");
    assert_eq!(store.queue_position("none").await.unwrap(), None);
}

pub(crate) async fn counting_a_position_ends_somewhere(store: Store) {
    let jobs = (0..10_005).map(|n| job(&format!("job-{n:05}")).build()).collect::<Vec<_>>();
    let last = jobs.last().unwrap().uid.clone();
    for batch in jobs.chunks(1000) {
        store.create_jobs(at(0), batch.to_vec()).await.unwrap();
    }
    let found = store.queue_position(&last).await.unwrap();
    assert_eq!(found, Some(QueuePosition { ahead: 10_000, at_least: true }));
}
